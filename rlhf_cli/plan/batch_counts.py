"""The arithmetic of batches: prompts, micro-batches and updates, per step and per run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rlhf_cli.config.schema import TrainPPOConfig, TrainRMConfig


@dataclass(frozen=True)
class BatchCounts:
    """The counts as lines to show, and as numbers."""

    lines: tuple[str, ...]
    numbers: dict[str, Any]


def batch_counts(config: TrainPPOConfig | TrainRMConfig, num_ranks: int, num_steps: int | None = None) -> BatchCounts:
    """Work out the batches of a run.

    num_steps: of a reward-model run, once its data are known. Raises InputError, with the
    arithmetic, if a batch cannot be divided among the ranks.
    """
    config.check_ranks(num_ranks)
    if isinstance(config, TrainPPOConfig):
        return _ppo_counts(config, num_ranks)
    return _reward_counts(config, num_ranks, num_steps)


def _ppo_counts(config: TrainPPOConfig, num_ranks: int) -> BatchCounts:
    ppo, new = config.ppo, config.rollout.max_new_tokens
    rank_size = ppo.minibatch_size // num_ranks
    minibatches = ppo.batch_size // ppo.minibatch_size
    episodes = ppo.num_steps * ppo.batch_size
    numbers: dict[str, Any] = {
        "ranks": num_ranks,
        "prompts_per_step": ppo.batch_size,
        "minibatches": minibatches,
        "updates_per_step": ppo.updates_per_step,
        "policy_updates": (ppo.num_steps - ppo.value_warmup_steps) * ppo.updates_per_step,
        "episodes": episodes,
        "response_tokens": episodes * new,
    }
    longest = config.data.max_prompt_tokens + new
    numbers["micro_batches"], micro_batches = _micro_batches(
        rank_size, ppo.micro_batch_size, ppo.micro_batch_tokens, longest, "responses"
    )
    ranks = _count(num_ranks, "rank")
    lines = [
        f"prompts per step: {ppo.batch_size} = {ranks} x {ppo.batch_size // num_ranks}, one response each",
        f"minibatches per step: {minibatches} of {ppo.minibatch_size} responses = {ranks} x {rank_size}",
        f"micro-batches per rank and minibatch: {micro_batches}",
        f"updates per step: {ppo.updates_per_step} = {_count(ppo.num_epochs, 'epoch')} x "
        f"{_count(minibatches, 'minibatch', 'es')}, for the policy and the value model each",
        f"run: {ppo.num_steps} steps = {episodes} episodes, {numbers['policy_updates']} policy updates, at most "
        f"{episodes * new} response tokens",
    ]
    hours = config.plan.deadline_hours
    if hours is not None:
        numbers["tokens_per_s"] = episodes * new / (3600 * hours)
        lines.append(
            f"to finish in {hours:g} h: {numbers['tokens_per_s']:.1f} response tokens per second, or {hours * 3600:g} s"
            f" / {ppo.num_steps} = {3600 * hours / ppo.num_steps:.1f} s per step"
        )
    return BatchCounts(tuple(lines), numbers)


def _reward_counts(config: TrainRMConfig, num_ranks: int, num_steps: int | None) -> BatchCounts:
    train = config.train
    rank_size, size = train.batch_size // num_ranks, train.batch_size
    num_steps = train.num_steps if num_steps is None else num_steps
    numbers: dict[str, Any] = {"ranks": num_ranks, "rows_per_step": size, "updates_per_step": 1}
    longest = 2 * config.data.max_tokens
    numbers["micro_batches"], micro_batches = _micro_batches(
        rank_size, train.micro_batch_size, train.micro_batch_tokens, longest, "rows"
    )
    lines = [
        f"rows per step: {size} = {_count(num_ranks, 'rank')} x {rank_size}, one update",
        f"micro-batches per rank: {micro_batches}",
    ]
    if num_steps is None:
        lines.append(f"run: {_count(train.num_epochs, 'epoch')}; updates = rows x {train.num_epochs} / {size}")
        return BatchCounts(tuple(lines), numbers)
    numbers |= {"updates": num_steps, "rows": num_steps * size}
    lines.append(f"run: {num_steps} steps = {num_steps} updates, {num_steps * size} rows")
    hours = config.plan.deadline_hours
    if hours is not None:
        numbers["rows_per_s"] = num_steps * size / (3600 * hours)
        lines.append(f"to finish in {hours:g} h: {numbers['rows_per_s']:.2f} rows per second")
    return BatchCounts(tuple(lines), numbers)


def _micro_batches(rank_size: int, rows: int, budget: int | None, longest: int, what: str) -> tuple[int, str]:
    """Count and describe a rank's micro-batches of full-length rows; budget: of tokens."""
    if budget is not None:
        rows = max(1, budget // longest)
    rows = min(rows, rank_size)
    passes = -(-rank_size // rows)
    last = rank_size - (passes - 1) * rows
    size = f"{rows}" if last == rows else f"{rows} (the last: {last})"
    limit = "" if budget is None else f" at full length (more if shorter: {budget} tokens per pass)"
    return passes, f"{passes} x {size} {what}{limit}; gradients are accumulated over {passes}"


def _count(count: int, noun: str, plural: str = "s") -> str:
    return f"{count} {noun}{'' if count == 1 else plural}"
