"""The metrics of a PPO step. docs/metrics.md lists their names and formulas."""

from __future__ import annotations

from rlhf_cli.algo.kl import kl_k1
from rlhf_cli.algo.masking import masked_mean, masked_sum, masked_variance
from rlhf_cli.algo.normalise import Moments
from rlhf_cli.config.objectives import PPOConfig
from rlhf_cli.engine.base import StepResult
from rlhf_cli.rewards.weighted_sum import WeightedSum
from rlhf_cli.train.batch import PPOBatch, Rollout
from rlhf_cli.train.shaping import repetitions


def batch_metrics(batch: PPOBatch, ppo: PPOConfig) -> dict[str, float]:
    """Return the metrics of a rollout and its rewards, over all ranks."""
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
        "advantage_std": masked_variance(batch.returns - rollout.values, mask).sqrt(),
        "entropy": masked_mean(rollout.entropy, mask),
        "response_length": mask.sum() / num_responses,
        "eos_rate": rollout.ended.float().mean(),
        "repetition": repetitions(rollout, ppo.repetition_size).mean(),
    }
    return {name: float(value) for name, value in metrics.items()}


def source_metrics(rollout: Rollout, weigh: WeightedSum, moments: dict[str, Moments]) -> dict[str, float]:
    """Return each reward source's mean score, and the mean of what it adds to the scores."""
    columns = {"reward": rollout.source_scores, "reward_part": weigh.parts(rollout.source_scores, moments)}
    return {
        f"{kind}/{name}": float(mean)
        for kind, scores in columns.items()
        for name, mean in zip(weigh.names, scores.mean(dim=0), strict=True)
    }


def response_figures(rollout: Rollout) -> dict[str, list[float]]:
    """Return score, KL (k1, nats) and length of every response, [B] each, rounded for the log."""
    columns = {"scores": rollout.scores, "kl": rollout.kl()}
    figures = {name: [float(f"{value:.5g}") for value in column.tolist()] for name, column in columns.items()}
    return {**figures, "lengths": rollout.response_mask.sum(dim=1).tolist()}


def optimizer_metrics(results: dict[str, StepResult]) -> dict[str, float]:
    """Return the gradient norm and the learning rate of each updated model."""
    norms = {f"grad_norm/{name}": result.grad_norm for name, result in results.items()}
    return {**norms, **{f"lr/{name}": result.learning_rate for name, result in results.items()}}
