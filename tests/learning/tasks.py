"""Toy tasks with a known optimum, for the real trainers with tiny random models on one rank."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from rlhf_cli.config.objectives import PPOConfig, RewardConfig
from rlhf_cli.config.schema import TrainPPOConfig, TrainRMConfig
from rlhf_cli.config.sections import CheckpointConfig, OptimConfig, RolloutConfig, RunConfig
from rlhf_cli.data.preferences import Ranking
from rlhf_cli.data.token_batches import EndTokens, TokenSequence
from rlhf_cli.models.heads import TokenScorer
from rlhf_cli.models.load_models import load_causal_lm, load_sequence_classifier
from rlhf_cli.train.ppo import PPOTrainer
from rlhf_cli.train.reward import RankingData, RewardTrainer
from tests.oracle.cases import EOS, TOKENIZER, Record, ppo_trainer, train_engine
from tests.unit.models.tiny import tiny_config

SEED = 0
NEVER = frozenset({len(TOKENIZER)})  # no token: every response takes max_new_tokens
NO_FILES = CheckpointConfig(every_steps=0)


@dataclass
class EvenShare:
    """Replaces the reward model: the number of even ids in the response, divided by `size`.

    130 of 259 ids are even. A policy that draws ids uniformly gets 0.502 if no response ends early;
    the highest score is 1.
    """

    size: int
    sign: int = 1

    def score(self, sequences: list[TokenSequence]) -> Tensor:
        counts = [sum(token % 2 == 0 for token in sequence.response_ids) for sequence in sequences]
        return self.sign * torch.tensor(counts) / self.size


@dataclass
class Constant:
    """Replaces the reward model: every response has a score of 1."""

    def score(self, sequences: list[TokenSequence]) -> Tensor:
        return torch.ones(len(sequences))


@dataclass(frozen=True)
class Optimum:
    score: float
    kl: float  # nats a response
    reward: float  # score - kl_coef x KL


def optimum(size: int, kl_coef: float) -> Optimum:
    """Return the optimum on EvenShare against a reference p that draws ids uniformly.

    size: tokens per response. The best policy is proportional to p exp(score / kl_coef)
    (arXiv:2305.18290, eq. 4). The score is a sum over the tokens, which are therefore independent:
    each is even with odds p / (1 - p) x exp(1 / (size kl_coef)).
    """
    p = 130 / 259
    odds = p / (1 - p) * math.exp(1 / (size * kl_coef))
    best = odds / (1 + odds)
    kl = size * (best * math.log(best / p) + (1 - best) * math.log((1 - best) / (1 - p)))
    return Optimum(best, kl, best - kl_coef * kl)


@dataclass(frozen=True, kw_only=True)
class Toy:
    """A PPO run; without `score`, the reward model scores."""

    score: Any = None
    learning_rate: float = 0.01
    end_ids: frozenset[int] = NEVER
    size: int = 4  # max_new_tokens
    seed: int = SEED
    ppo: dict[str, Any] = field(default_factory=dict)

    def config(self) -> TrainPPOConfig:
        ppo = {"num_steps": 40, "batch_size": 64, "minibatch_size": 64, "micro_batch_size": 64, **self.ppo}
        optim = OptimConfig(learning_rate=self.learning_rate)
        return TrainPPOConfig(
            run=RunConfig(name="toy", seed=self.seed),
            rollout=RolloutConfig(max_new_tokens=self.size, micro_batch_size=64),
            ppo=PPOConfig(**ppo),
            optim=optim,
            value_optim=replace(optim, learning_rate=0.01),
            checkpoint=NO_FILES,
        )

    def models(self) -> dict[str, nn.Module]:
        """Return the models as a run starts: reference = policy, value model = reward model."""
        config = tiny_config("gpt2")
        policy = load_causal_lm(config, "model", TOKENIZER, self.seed)
        scorer = load_sequence_classifier(config, "reward_model", TOKENIZER, self.seed, new_head=True)
        return {"policy": policy, "reference": policy, "reward_model": scorer, "value_model": scorer}

    def trainer(self, models: dict[str, nn.Module], record: Record) -> PPOTrainer:
        """Return the real trainer with copies of the models."""
        trainer = ppo_trainer(self.config(), models, "plain", record, EndTokens(self.end_ids, 0))
        if self.score is not None:
            trainer.models.rewards.reward_model.score = self.score.score
        return trainer

    def run(self) -> Record:
        record = Record()
        self.trainer(self.models(), record).fit()
        return record


def start_and_end(record: Record, name: str, num_steps: int = 8) -> tuple[float, float]:
    """Return a metric at the first step, before any learning, and its mean over the last
    `num_steps`.
    """
    values = [metrics[name] for metrics in record.metrics]
    return values[0], sum(values[-num_steps:]) / num_steps


def explained_variance(record: Record, num_steps: int = 8) -> float:
    """Return 1 - Var(return - value) / Var(return) over the tokens of the last `num_steps`; a
    constant value has 0.
    """
    returns, values = [], []
    for batch in record.batches[-num_steps:]:
        mask = batch.rollout.response_mask
        returns.append(batch.returns[mask])
        values.append(batch.rollout.values[mask])
    error = torch.cat(returns) - torch.cat(values)
    return 1 - float(error.var() / torch.cat(returns).var())


MARK = 77


def marked_pairs(size: int, shuffled: bool, seed: int = SEED) -> list[Ranking]:
    """Return pairs of answers of equal length, the better one with more marks; shuffled: at random."""
    generator = random.Random(seed)
    others = [token for token in range(50, 250) if token != MARK]
    rows = []
    for number in range(size):
        prompt = tuple(generator.choices(others, k=generator.randint(2, 5)))
        length = generator.randint(4, 8)
        counts = sorted(generator.sample(range(4), 2), reverse=True)
        answers = []
        for count in counts:
            tokens = [MARK] * count + generator.choices(others, k=length - count)
            generator.shuffle(tokens)
            answers.append(TokenSequence(prompt, (*tokens, EOS)))
        flip = generator.random() < 0.5  # always drawn, so that shuffled labels keep the answers
        rows.append(Ranking(tuple(answers[::-1] if shuffled and flip else answers), 0.5, str(number)))
    return rows


def train_reward_model(rows: list[Ranking], held_out: list[Ranking], seed: int = SEED) -> dict[str, float]:
    """Take 60 updates of 32 rows; return the metrics on the held-out rows, and `accuracy` in the
    last 8 updates.
    """
    config = TrainRMConfig(
        run=RunConfig(name="toy", seed=seed),
        train=RewardConfig(num_steps=60, batch_size=32, micro_batch_size=32, eval_every_steps=0),
        optim=OptimConfig(learning_rate=0.003),
        checkpoint=NO_FILES,
    )
    model = load_sequence_classifier(tiny_config("gpt2"), "model", TOKENIZER, seed, new_head=True)
    engine = train_engine("plain", TokenScorer(model), config.optim, config.train.num_steps or 0)
    record: Any = Record()
    trainer = RewardTrainer(config, engine, RankingData(rows, held_out, TOKENIZER.pad_token_id), record, record)
    trainer.fit()
    return {"accuracy": start_and_end(record, "accuracy")[1], **trainer.evaluate()}
