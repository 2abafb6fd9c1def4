"""PPO: sample responses, score them, estimate advantages, update the policy and the value model."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rlhf_cli.algo.advantages import gae, token_rewards
from rlhf_cli.algo.kl import kl_k1, kl_k2, kl_k3
from rlhf_cli.algo.logprobs import token_entropy, token_logprobs
from rlhf_cli.algo.losses import approx_kl, policy_clipped, policy_loss, value_clipped, value_loss
from rlhf_cli.algo.masking import masked_mean, masked_sum, masked_whiten
from rlhf_cli.config.objectives import KLEstimator
from rlhf_cli.config.schema import TrainPPOConfig
from rlhf_cli.data.order import batch_indices, shuffled
from rlhf_cli.data.prompts import Prompt
from rlhf_cli.data.tokens import Sequence, TokenBatch, chunks, collate, flatten
from rlhf_cli.engine import distributed
from rlhf_cli.engine.checkpoint import Checkpoints
from rlhf_cli.engine.zero import FrozenEngine, StepResult, TrainEngine
from rlhf_cli.report.reporter import Reporter
from rlhf_cli.rewards.reward_model import RewardModel
from rlhf_cli.rollout.embedded import EmbeddedSampler
from rlhf_cli.train.batch import Episode, PPOBatch, Rollout

_KL = {KLEstimator.k1: kl_k1, KLEstimator.k2: kl_k2, KLEstimator.k3: kl_k3}
_STATISTICS = ("loss/policy", "loss/value", "approx_kl", "clipfrac/policy", "clipfrac/value")


@dataclass(frozen=True)
class Models:
    """The four models of a PPO run."""

    policy: TrainEngine
    reference: FrozenEngine
    reward_model: RewardModel
    value_model: TrainEngine


class PPOTrainer:
    """One PPO run. Every rank samples and scores its share of the prompts; estimates are made on the whole batch."""

    def __init__(
        self,
        config: TrainPPOConfig,
        models: Models,
        sampler: EmbeddedSampler,
        prompts: list[Prompt],
        checkpoints: Checkpoints,
        report: Reporter,
    ) -> None:
        self.config = config
        self.models = models
        self.sampler = sampler
        self.prompts = prompts
        self.checkpoints = checkpoints
        self.report = report
        self.device = distributed.device()
        self.step = 0

    def fit(self) -> None:
        """Run the loop from `self.step` to ppo.num_steps."""
        every = self.config.checkpoint.every_steps
        while self.step < self.config.ppo.num_steps:
            with self.report.time("rollout"):
                sequences = self.collect()
            with self.report.time("score"):
                rollout = self.score(sequences)
            with self.report.time("update"):
                batch = self.estimate(rollout)
                losses = self.update(batch)
            self.step += 1
            self.report.log(self.step, {**summary(batch), **losses}, num_tokens=int(rollout.response_mask.sum()))
            if every and self.step % every == 0:
                with self.report.time("checkpoint"):
                    self.checkpoints.save(self.step)

    def collect(self) -> list[Sequence]:
        """Sample a response to each of this rank's prompts of the step."""
        size = self.config.ppo.batch_size
        indices = batch_indices(len(self.prompts), size, self.step, self.config.run.seed)
        places = distributed.share(list(range(size)))
        keys = [f"{self.config.run.seed}/{self.step}/{place}" for place in places]
        return self.sampler.sample([self.prompts[indices[place]].ids for place in places], keys)

    @torch.no_grad()
    def score(self, sequences: list[Sequence]) -> Rollout:
        """Compute what the four models say of this rank's responses, and gather those of all ranks."""
        temperature = self.config.rollout.temperature
        episodes = []
        for part in chunks(sequences, self.config.ppo.micro_batch_size):
            batch = self._collate(part)
            logits = self._logits(self.models.policy, batch)
            logprobs = token_logprobs(logits, batch.response_ids, temperature)
            entropy = token_entropy(logits, temperature)
            ref_logits = self._logits(self.models.reference, batch)
            ref_logprobs = token_logprobs(ref_logits, batch.response_ids, temperature)
            values = self._values(batch)
            scores = self.models.reward_model.score(part)
            for row, sequence in enumerate(part):
                length = len(sequence.response_ids)
                per_token = {"logprobs": logprobs, "ref_logprobs": ref_logprobs, "values": values, "entropy": entropy}
                own = {name: tensor[row, :length].cpu() for name, tensor in per_token.items()}
                ended = self.sampler.ended(sequence)
                episodes.append(Episode(sequence=sequence, ended=ended, score=float(scores[row]), **own))
        return Rollout.of(flatten(distributed.gather_all(episodes)))

    def estimate(self, rollout: Rollout) -> PPOBatch:
        """Turn a scored rollout into rewards, advantages and returns, all [B, T]."""
        ppo, mask = self.config.ppo, rollout.response_mask
        scores = rollout.scores - ppo.missing_eos_penalty * (~rollout.ended).float()
        kl = _KL[ppo.kl_estimator](rollout.logprobs, rollout.ref_logprobs)
        rewards = token_rewards(scores, kl, mask, ppo.kl_coef)
        advantages, returns = gae(rewards, rollout.values, mask, ppo.gamma, ppo.lam)
        return PPOBatch(rollout, rewards, masked_whiten(advantages, mask), returns)

    def update(self, batch: PPOBatch) -> dict[str, float]:
        """Run num_epochs passes of clipped updates over the batch; return the means over tokens and updates."""
        ppo = self.config.ppo
        totals = torch.zeros(len(_STATISTICS), device=self.device)
        num_updates = num_skipped = 0
        for epoch in range(ppo.num_epochs):
            order = shuffled(ppo.batch_size, f"{self.config.run.seed}/minibatches/{self.step}/{epoch}")
            for minibatch in chunks(order, ppo.minibatch_size):
                num_tokens = int(batch.rollout.response_mask[minibatch].sum())
                for rows in chunks(distributed.share(minibatch), ppo.micro_batch_size):
                    totals += self._accumulate(batch, rows, num_tokens) / num_tokens
                policy, value = self.models.policy.step(), self.models.value_model.step()
                num_skipped += policy.skipped + value.skipped
                num_updates += 1
        means = (distributed.global_sum(totals) / num_updates).tolist()
        statistics = dict(zip(_STATISTICS, means, strict=True))
        return {**statistics, **_optimizer_metrics(policy, value), "skipped_updates": float(num_skipped)}

    def _accumulate(self, batch: PPOBatch, rows: list[int], num_tokens: int) -> Tensor:
        """Add the gradients of some rows to the update; return the sums of the statistics over their tokens."""
        ppo, rollout = self.config.ppo, batch.rollout
        tokens = self._collate([rollout.sequences[row] for row in rows])
        mask = tokens.response_mask
        length = mask.shape[1]

        def take(values: Tensor) -> Tensor:
            return values[rows, :length].to(self.device)

        old_logprobs, old_values = take(rollout.logprobs), take(rollout.values)
        advantages, returns = take(batch.advantages), take(batch.returns)
        logits = self._logits(self.models.policy, tokens)
        logprobs = token_logprobs(logits, tokens.response_ids, self.config.rollout.temperature)
        policy = masked_sum(policy_loss(logprobs, old_logprobs, advantages, ppo.cliprange), mask)
        self.models.policy.backward(policy / num_tokens)
        values = self._values(tokens)
        value = masked_sum(value_loss(values, old_values, returns, ppo.cliprange_value), mask)
        self.models.value_model.backward(value / num_tokens)
        with torch.no_grad():
            kl = masked_sum(approx_kl(logprobs, old_logprobs), mask)
            clipped = masked_sum(policy_clipped(logprobs, old_logprobs, advantages, ppo.cliprange), mask)
            value_clips = masked_sum(value_clipped(values, old_values, returns, ppo.cliprange_value), mask)
            return torch.stack([policy, value, kl, clipped, value_clips])

    def _collate(self, sequences: list[Sequence]) -> TokenBatch:
        return collate(sequences, self.sampler.pad_id, self.device)

    def _logits(self, model: TrainEngine | FrozenEngine, batch: TokenBatch) -> Tensor:
        logits: Tensor = model(**batch.model_inputs(), num_response=batch.response_ids.shape[1])
        return logits

    def _values(self, batch: TokenBatch) -> Tensor:
        per_token, _ = self.models.value_model(**batch.model_inputs())
        return batch.before_each_response_token(per_token)


def summary(batch: PPOBatch) -> dict[str, float]:
    """Return the metrics of a rollout, over all ranks; names and formulas: docs/metrics.md."""
    rollout = batch.rollout
    mask = rollout.response_mask
    k1 = kl_k1(rollout.logprobs, rollout.ref_logprobs)
    num_responses = len(rollout.sequences)
    metrics = {
        "score": rollout.scores.mean(),
        "score_std": rollout.scores.std(correction=0),
        "kl": masked_sum(k1, mask) / num_responses,
        "kl_per_token": masked_mean(k1, mask),
        "reward": batch.rewards.sum() / num_responses,
        "return": masked_mean(batch.returns, mask),
        "value": masked_mean(rollout.values, mask),
        "entropy": masked_mean(rollout.entropy, mask),
        "response_length": mask.sum() / num_responses,
        "eos_rate": rollout.ended.float().mean(),
    }
    return {name: float(value) for name, value in metrics.items()}


def _optimizer_metrics(policy: StepResult, value: StepResult) -> dict[str, float]:
    return {
        "grad_norm/policy": policy.grad_norm,
        "grad_norm/value": value.grad_norm,
        "lr/policy": policy.learning_rate,
        "lr/value": value.learning_rate,
    }
