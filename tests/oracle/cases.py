"""Small PPO and reward-model runs of the real trainers, and the oracle's view of them."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.testing import assert_close

from rlhf_cli.config.objectives import (
    KLEstimator,
    MissingEOS,
    PPOConfig,
    PretrainConfig,
    RewardConfig,
)
from rlhf_cli.config.reward_options import RewardSourceConfig
from rlhf_cli.config.schema import TrainPPOConfig, TrainRMConfig
from rlhf_cli.config.sections import CheckpointConfig, OptimConfig, RolloutConfig, RunConfig, Schedule
from rlhf_cli.data.preferences import Ranking
from rlhf_cli.data.prompts import Prompt
from rlhf_cli.data.sampler import batch_indices
from rlhf_cli.data.token_batches import EndTokens, TokenSequence
from rlhf_cli.engine import distributed
from rlhf_cli.engine.plain import PlainFrozen, PlainTrain
from rlhf_cli.engine.zero3 import ZeroFrozen, ZeroTrain
from rlhf_cli.models.byte_tokenizer import byte_tokenizer
from rlhf_cli.models.heads import ResponseLM, TokenScorer
from rlhf_cli.models.load_models import load_causal_lm, load_sequence_classifier
from rlhf_cli.rewards.ensemble import RewardEnsemble
from rlhf_cli.rewards.reward_model import RewardModel
from rlhf_cli.rollout.embedded import EmbeddedSampler
from rlhf_cli.train.batch import PPOBatch
from rlhf_cli.train.forward import ForwardPasses, HeldPolicy, Models
from rlhf_cli.train.ppo import Monitors, PPOData, PPOTrainer
from rlhf_cli.train.reward import RankingData, RewardTrainer
from tests.oracle.engines import SimpleFrozen, SimpleTrain
from tests.oracle.ppo import Adam, Oracle, Sample
from tests.unit.models.tiny import tiny_config

TOKENIZER = byte_tokenizer()
EOS: int = TOKENIZER.eos_token_id
END_IDS = frozenset({EOS, *range(3, 40)})  # a seventh of a random model's tokens
ENDS = EndTokens(END_IDS, pad_id=0)
ZERO3 = {"zero_optimization": {"stage": 3, "overlap_comm": False, "stage3_param_persistence_threshold": 0}}
CPU = torch.device("cpu")
# Adam divides a gradient by its size; a large eps limits the rounding of small gradients
OPTIM = OptimConfig(learning_rate=0.01, eps=4e-3, warmup_ratio=0.25, min_lr_ratio=0.2, weight_decay=0.05)
PROMPTS = [Prompt("", tuple(range(50 + n, 52 + 2 * n)), str(n)) for n in range(8)]  # uneven lengths
TEXTS = [TokenSequence((60 + n,), tuple(range(70, 75 + n))) for n in range(5)]

BASE = PPOConfig(num_steps=2, batch_size=8, minibatch_size=4, micro_batch_size=2, num_epochs=2, kl_coef=0.3)
# name -> changes to BASE; each has an effect that the oracle reproduces
PPO_CASES: dict[str, dict[str, Any]] = {
    "base": {},
    "one-epoch-one-minibatch": {"num_epochs": 1, "minibatch_size": 8},
    "in-one-pass": {"minibatch_size": 8, "micro_batch_size": 8, "entropy_coef": 0.1, "kl_loss_coef": 0.5},
    "in-one-pass-again": {"minibatch_size": 8, "micro_batch_size": 8, "reuse_forward": False, "gather": False},
    "four-epochs": {"num_epochs": 4},
    "kl-k2": {"kl_estimator": KLEstimator.k2},
    "kl-k3": {"kl_estimator": KLEstimator.k3},
    "kl-loss-k1": {"kl_loss_coef": 0.5, "kl_loss_estimator": KLEstimator.k1},
    "kl-loss-k2": {"kl_loss_coef": 0.5, "kl_coef": 0.0},
    "kl-loss-k3": {"kl_loss_coef": 0.5, "kl_loss_estimator": KLEstimator.k3},
    "adaptive-kl": {"kl_target": 0.1, "kl_horizon": 20},
    "value-clip-off": {"cliprange_value": None},
    "value-clip-tight": {"cliprange_value": 0.01},
    "clip-tight": {"cliprange": 0.02},
    "clip-high": {"cliprange": 0.02, "cliprange_high": 0.1},
    "dual-clip": {"dual_clip": 1.02, "cliprange": 0.01},
    "entropy": {"entropy_coef": 0.1},
    "discount": {"gamma": 0.9, "lam": 0.7},
    "missing-eos": {"missing_eos_penalty": 0.7},
    "missing-eos-replace": {"missing_eos_penalty": 0.7, "missing_eos": MissingEOS.replace},
    "min-length": {"min_length": 3, "min_length_penalty": 0.6},
    "reward-clip": {"reward_clip": 0.05},
    "whiten-rewards": {"whiten_rewards": True},
    "value-warmup": {"value_warmup_steps": 1},
    "early-end": {"early_stop_kl": 1e-4, "num_epochs": 4},
    "average": {"ema_decay": 0.8},
    "pretrain": {},
    "cool": {},
}


@dataclass
class Record:
    """Replaces the run log and the hooks between steps, and records what the trainer did."""

    metrics: list[dict[str, float]] = field(default_factory=list)
    batches: list[PPOBatch] = field(default_factory=list)
    minibatches: list[list[list[int]]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def log(self, step: int, metrics: dict[str, float], num_tokens: int, work: Any = None) -> None:
        self.metrics.append(metrics)

    def warn_once(self, text: str) -> None:
        self.warnings.append(text)

    warn = warn_once

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        yield

    def log_eval(self, step: int, metrics: dict[str, float]) -> None:
        self.metrics.append(metrics)

    def before_step(self, state: dict[str, Any]) -> None:
        pass

    def check(self, step: int, metrics: dict[str, float]) -> float:
        return 1.0

    def after_last_step(self, state: dict[str, Any]) -> None:
        pass

    def after_step(self, state: dict[str, Any], metrics: dict[str, float]) -> None:
        pass

    @contextmanager
    def time(self, phase: str) -> Iterator[None]:
        yield


def ppo_config(name: str, **more: Any) -> TrainPPOConfig:
    return TrainPPOConfig(
        run=RunConfig(name=name, seed=5),
        rollout=RolloutConfig(max_new_tokens=5, micro_batch_size=3, temperature=0.7 if name == "cool" else 1.0),
        ppo=replace(BASE, **{**PPO_CASES[name], **more}),
        pretrain=PretrainConfig(path="x" if name == "pretrain" else None, coef=0.5, batch_size=2, micro_batch_size=1),
        optim=replace(OPTIM, max_grad_norm=0.3),
        value_optim=replace(OPTIM, schedule=Schedule.linear),
        checkpoint=CheckpointConfig(every_steps=0),
    )


def ppo_models(architecture: str = "gpt2") -> dict[str, nn.Module]:
    """Four plain models. The reference differs from the policy, the value model from the reward
    model.
    """
    config = tiny_config(architecture)
    policy = load_causal_lm(config, "model", TOKENIZER, 0)
    reward_model = load_sequence_classifier(config, "reward_model", TOKENIZER, 1, new_head=True)
    return {
        "policy": policy,
        "reference": _moved(policy, 2),
        "reward_model": reward_model,
        "value_model": _moved(reward_model, 3),
    }


def _moved(model: nn.Module, seed: int) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    return other


def train_engine(
    kind: str, module: nn.Module, optim: OptimConfig, num_updates: int, ema_decay: float | None = None
) -> Any:
    """Return an engine that trains; kind: simple (of the tests), plain (one rank) or zero
    (DeepSpeed).
    """
    if kind == "zero":
        return ZeroTrain(module, torch.float32, optim, num_updates, ZERO3, ema_decay)
    return {"simple": SimpleTrain, "plain": PlainTrain}[kind](module, optim, num_updates, ema_decay)


def frozen_engine(kind: str, module: nn.Module) -> Any:
    """Return a frozen engine."""
    if kind == "zero":
        return ZeroFrozen(module, torch.float32, ZERO3)
    return {"simple": SimpleFrozen, "plain": PlainFrozen}[kind](module)


def ppo_trainer(
    config: TrainPPOConfig, models: dict[str, nn.Module], kind: str, record: Record, ends: EndTokens = ENDS
) -> PPOTrainer:
    """Return the real trainer with copies of the models; kind: of their engines."""
    own = {name: copy.deepcopy(model) for name, model in models.items()}
    ppo = config.ppo
    updates = ppo.num_steps * ppo.updates_per_step
    policy_updates = (ppo.num_steps - ppo.value_warmup_steps) * ppo.updates_per_step
    policy = train_engine(kind, ResponseLM(own["policy"]), config.optim, policy_updates, ppo.ema_decay)
    value = train_engine(kind, TokenScorer(own["value_model"]), config.value_optim, updates)
    reference = frozen_engine(kind, ResponseLM(own["reference"]))
    reward_model = RewardModel(frozen_engine(kind, TokenScorer(own["reward_model"])), EOS, ends, CPU)
    sampler = EmbeddedSampler(policy, config.rollout, ends, CPU)
    data = PPOData(PROMPTS, TEXTS if config.pretrain.path else [])
    rewards = RewardEnsemble([RewardSourceConfig(name="reward_model")], cast(Any, None), reward_model, {}, {})
    passes = ForwardPasses(config, Models(policy, reference, value, rewards), ends, packed=False)
    recorder = cast(Any, record)
    trainer = PPOTrainer(config, passes, sampler, data, recorder, recorder, Monitors())
    _record_updates(trainer, record)
    return trainer


def _record_updates(trainer: PPOTrainer, record: Record) -> None:
    update = trainer.update

    def recorded(batch: PPOBatch, held: HeldPolicy | None = None) -> dict[str, float]:
        record.batches.append(batch)
        record.minibatches.append(list(trainer._minibatches()))
        return update(batch, held)

    trainer.update = recorded  # type: ignore[method-assign]


def run_oracle(config: TrainPPOConfig, models: dict[str, nn.Module], record: Record) -> tuple[Oracle, list[Any]]:
    """Run the oracle on the steps that the trainer recorded; it gets only the sampled ids."""
    oracle = Oracle(
        models, config.ppo, config.pretrain, (config.optim, config.value_optim), config.rollout.temperature, EOS
    )
    steps = []
    for number, (batch, minibatches) in enumerate(zip(record.batches, record.minibatches, strict=True)):
        samples = [
            Sample(list(s.prompt_ids), list(s.response_ids), s.response_ids[-1] in END_IDS)
            for s in batch.rollout.sequences
        ]
        steps.append(oracle.step(samples, minibatches, _blocks(config, number, len(minibatches))))
    return oracle, steps


def _blocks(config: TrainPPOConfig, step: int, num_updates: int) -> list[list[list[int]]]:
    if config.pretrain.path is None:
        return []
    first = (step - config.ppo.value_warmup_steps) * num_updates
    taken = [batch_indices(len(TEXTS), config.pretrain.batch_size, first + n, 5) for n in range(num_updates)]
    return [[[*TEXTS[i].prompt_ids, *TEXTS[i].response_ids] for i in indices] for indices in taken]


def run_simple(
    config: TrainPPOConfig, architecture: str = "gpt2", pad_id: int = 0
) -> tuple[dict[str, Tensor], list[dict[str, float]]]:
    """Run the real trainer on simple engines; return its final weights, averages included, and
    metrics.
    """
    record = Record()
    trainer = ppo_trainer(config, ppo_models(architecture), "simple", record, EndTokens(END_IDS, pad_id))
    trainer.fit()
    policy, value = trainer.models.policy, trainer.models.value_model
    weights = {"policy": policy.full_state_dict(), "value_model": value.full_state_dict()}
    if config.ppo.ema_decay is not None:
        weights["average"] = policy.full_ema({})
    named = {f"{model}.{name}": tensor for model, state in weights.items() for name, tensor in state.items()}
    return named, record.metrics


def check_ppo_case(name: str, kind: str, architecture: str = "gpt2", gather: bool = True) -> None:
    """Check that trainer and oracle agree on everything, from the logprobs to the updated weights."""
    config, models, record = ppo_config(name), ppo_models(architecture), Record()
    config = replace(config, rollout=replace(config.rollout, gather=gather))
    trainer = ppo_trainer(config, models, kind, record)
    trainer.fit()
    oracle, steps = run_oracle(config, models, record)
    for batch, metrics, step in zip(record.batches, record.metrics, steps, strict=True):
        _check_batch(batch, step)
        for key, expected in step.metrics.items():
            assert_close(metrics[key], float(expected), rtol=1e-5, atol=1e-6, msg=lambda m, key=key: f"{key}: {m}")
    pairs = [
        (trainer.models.policy.full_state_dict(), models["policy"], list(oracle.policy.parameters())),
        (trainer.models.value_model.full_state_dict(), models["value_model"], list(oracle.value_model.parameters())),
    ]
    if config.ppo.ema_decay is not None:
        state = trainer.models.policy.full_state_dict()
        pairs.append((trainer.models.policy.full_ema(state), models["policy"], oracle.average))
    for state, before, after in pairs:
        if distributed.rank() == 0:
            _check_weights(state, before, after)


def _check_batch(batch: PPOBatch, step: Any) -> None:
    rollout = batch.rollout
    assert_close(rollout.scores.double(), torch.tensor(step.scores).double(), rtol=1e-5, atol=1e-6)
    found = {
        "logprobs": rollout.logprobs,
        "ref_logprobs": rollout.ref_logprobs,
        "values": rollout.values,
        "rewards": batch.rewards,
        "advantages": batch.advantages,
        "returns": batch.returns,
    }
    for key, padded in found.items():
        for row, expected in enumerate(getattr(step, key)):
            got = padded[row, : len(expected)].double()
            # whitening makes rounding errors relative to the largest entry
            assert_close(
                got, torch.as_tensor(expected).double(), rtol=1e-5, atol=1e-5, msg=lambda m, k=key: f"{k}: {m}"
            )
            assert not padded[row, len(expected) :].any(), key


def _check_weights(state: dict[str, Tensor], before: nn.Module, after: list[Tensor]) -> None:
    """Check every tensor to within 1e-5 of its size, and 1e-6 if that is near 0 (a bias without
    effect).
    """
    moved = 0.0
    for (name, start), expected in zip(before.named_parameters(), after, strict=True):
        size, difference = expected.detach().norm(), (state[f"model.{name}"].double() - expected.detach()).norm()
        assert difference <= 1e-5 * max(float(size), 0.1), f"{name}: off by {difference:.2e} of {size:.2e}"
        moved = max(moved, float((expected.detach() - start.detach()).norm() / (size + 1e-3)))
    assert moved > 1e-2, "the weights must move by far more than the tolerance"


RM_BASE = RewardConfig(num_steps=3, batch_size=4, micro_batch_size=2, eval_every_steps=0)
RM_CASES: dict[str, dict[str, Any]] = {
    "pairs": {},
    "smoothing": {"label_smoothing": 0.2},
    "centering": {"centering_coef": 0.5},
    "margins": {},
    "confidences": {},
    "rankings": {"centering_coef": 0.1},
    "ties": {},
    "weights": {"centering_coef": 0.3},
    "by-layers": {"gather": False},
}


def rm_rows(name: str) -> list[Ranking]:
    rows = []
    for n in range(6):
        prompt = tuple(range(50, 52 + n))
        sizes = [3 + n, 2, 4, 6][: 2 + n % 3] if name in ("rankings", "ties") else [2 + n, 5]
        answers = tuple(
            TokenSequence(prompt, (*range(60 + 10 * k, 60 + 10 * k + size), EOS)) for k, size in enumerate(sizes)
        )
        margin = 0.3 * n if name == "margins" else 0.0
        confidence = 1 - 0.05 * n if name == "confidences" else 1.0
        weight = 0.5 * n if name == "weights" else 1.0
        ranks = (0, 1, 1, 2)[: len(sizes)] if name == "ties" else ()
        rows.append(Ranking(answers, 0.5, str(n), margin, confidence, None, weight, ranks))
    return rows


def rm_config(name: str) -> TrainRMConfig:
    return TrainRMConfig(
        run=RunConfig(name=name, seed=5),
        train=replace(RM_BASE, **RM_CASES[name]),
        optim=replace(OPTIM, max_grad_norm=0.3),
        checkpoint=CheckpointConfig(every_steps=0),
    )


def check_rm_case(name: str, kind: str, architecture: str = "gpt2") -> None:
    """Compare three updates of the real reward-model trainer with one answer at a time in float64."""
    config, rows = rm_config(name), rm_rows(name)
    model = load_sequence_classifier(tiny_config(architecture), "model", TOKENIZER, 1, new_head=True)
    engine = train_engine(kind, TokenScorer(copy.deepcopy(model)), config.optim, 3)
    record: Any = Record()
    trainer = RewardTrainer(config, engine, RankingData(rows, [], 0), record, record)
    trainer.fit()
    oracle = copy.deepcopy(model).double()
    adam = Adam(oracle, config.optim, 3)
    for step in range(3):
        batch = [rows[index] for index in batch_indices(len(rows), 4, step, 5)]
        expected = rm_update(oracle, adam, batch, config.train, step, 1.25 if name == "weights" else 1.0)
        for key, value in expected.items():
            got = record.metrics[step][key]
            assert_close(got, value, rtol=1e-5, atol=1e-6, msg=lambda m, key=key: f"{key}: {m}")
    state = engine.full_state_dict()
    if distributed.rank() == 0:
        _check_weights(state, model, list(oracle.parameters()))


def rm_update(
    model: nn.Module, adam: Adam, batch: list[Ranking], train: RewardConfig, step: int, mean_weight: float
) -> dict[str, float]:
    """Make an update of Bradley-Terry (arXiv:2203.02155, eq. 1) over all pairs of each prompt.

    -log sigmoid(x) = log(1 + e^-x). mean_weight: of all rows; for weights 0, 0.5, ... 2.5 it is 1.25.
    """
    loss = centering = difference = torch.zeros((), dtype=torch.float64)
    correct = 0.0
    for row in batch:
        scores = []
        for answer in row.answers:
            ids = torch.tensor([[*answer.prompt_ids, *answer.response_ids]])
            scores.append(model.base_model(ids).last_hidden_state[0, -1] @ model.score.weight[0])  # type: ignore
        pairs = [(a, b) for a in range(len(scores)) for b in range(a + 1, len(scores))]
        pairs = [(a, b) for a, b in pairs if not row.ranks or row.ranks[a] != row.ranks[b]]
        weight = row.weight / mean_weight
        sure = (1 - train.label_smoothing) if train.label_smoothing else row.confidence
        for a, b in pairs:
            x = scores[a] - scores[b] - row.margin
            one = sure * torch.log1p(torch.exp(-x)) + (1 - sure) * torch.log1p(torch.exp(x))
            loss = loss + weight * one / len(pairs) / len(batch)
            centering = centering + weight * (scores[a] + scores[b]) ** 2 / len(pairs) / len(batch)
            correct += float(scores[a] > scores[b]) / len(pairs) / len(batch)
            difference = difference + (scores[a] - scores[b]) / len(pairs) / len(batch)
    total = loss + train.centering_coef * centering
    gradients = torch.autograd.grad(total, adam.parameters, allow_unused=True)
    filled = [torch.zeros_like(p) if g is None else g for p, g in zip(adam.parameters, gradients, strict=True)]
    norm, rate = adam.step(filled, step)
    tensors = {"loss": loss, "margin": difference, **({"centering": centering} if train.centering_coef else {})}
    numbers = {name: float(tensor.detach()) for name, tensor in tensors.items()}
    return {**numbers, "accuracy": correct, "grad_norm": norm, "lr": rate}
