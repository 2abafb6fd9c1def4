"""The arithmetic of batches: how many prompts, passes and updates a step has, and what that makes of the run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rlhf_cli.config.schema import TrainPPOConfig, TrainRMConfig


@dataclass(frozen=True)
class Batches:
    """Lines to show, and the same as numbers."""

    lines: tuple[str, ...]
    numbers: dict[str, Any]


def batches(config: TrainPPOConfig | TrainRMConfig, num_ranks: int, num_steps: int | None = None) -> Batches:
    """Work out the batches of a run on so many ranks.

    num_steps: of a reward-model run, where the data are known. Raises InputError, with the arithmetic, where a batch
    does not divide among the ranks.
    """
    config.check_ranks(num_ranks)
    if isinstance(config, TrainPPOConfig):
        return _ppo(config, num_ranks)
    return _reward(config, num_ranks, num_steps)


def _ppo(config: TrainPPOConfig, num_ranks: int) -> Batches:
    ppo, new = config.ppo, config.rollout.max_new_tokens
    longest = config.data.max_prompt_tokens + new
    own = ppo.minibatch_size // num_ranks
    minibatches = ppo.batch_size // ppo.minibatch_size
    episodes = ppo.num_steps * ppo.batch_size
    policy_updates = (ppo.num_steps - ppo.value_warmup_steps) * ppo.updates_per_step
    together = _times(num_ranks, "rank", "ranks")
    passes, rows = _passes(own, ppo.micro_batch_size, ppo.micro_batch_tokens, longest)
    lines = [
        f"prompts a step: {ppo.batch_size} = {together} x {ppo.batch_size // num_ranks}, a response each",
        f"minibatches: {minibatches} of {ppo.minibatch_size} responses = {together} x {own}",
        f"micro-batches: {passes} x {rows} responses a rank and minibatch{_budget(ppo.micro_batch_tokens)}; gradients "
        f"accumulate over {passes}",
        f"updates a step: {ppo.updates_per_step} = {_times(ppo.num_epochs, 'pass', 'passes')} x "
        f"{_times(minibatches, 'minibatch', 'minibatches')}, of policy and value model each",
        f"run: {ppo.num_steps} steps = {episodes} episodes, {policy_updates} policy updates, at most {episodes * new} "
        "response tokens",
    ]
    hours = config.plan.deadline_hours
    numbers: dict[str, Any] = {
        "ranks": num_ranks,
        "prompts_a_step": ppo.batch_size,
        "minibatches": minibatches,
        "micro_batches": passes,
        "accumulation": passes,
        "updates_a_step": ppo.updates_per_step,
        "policy_updates": policy_updates,
        "episodes": episodes,
        "response_tokens": episodes * new,
    }
    if hours is not None:
        numbers["tokens_per_s"] = episodes * new / (3600 * hours)
        lines.append(
            f"to end in {hours:g} h: {numbers['tokens_per_s']:.1f} response tokens a second, or {hours * 3600:g} s / "
            f"{ppo.num_steps} = {3600 * hours / ppo.num_steps:.1f} s a step"
        )
    return Batches(tuple(lines), numbers)


def _reward(config: TrainRMConfig, num_ranks: int, num_steps: int | None) -> Batches:
    train = config.train
    own = train.batch_size // num_ranks
    together = _times(num_ranks, "rank", "ranks")
    passes, rows = _passes(own, train.micro_batch_size, train.micro_batch_tokens, 2 * config.data.max_tokens)
    num_steps = train.num_steps if num_steps is None else num_steps
    lines = [
        f"rows a step: {train.batch_size} = {together} x {own}, one update",
        f"micro-batches: {passes} x {rows} rows a rank{_budget(train.micro_batch_tokens)}; gradients accumulate over "
        f"{passes}",
    ]
    numbers: dict[str, Any] = {
        "ranks": num_ranks,
        "rows_a_step": train.batch_size,
        "micro_batches": passes,
        "accumulation": passes,
        "updates_a_step": 1,
    }
    if num_steps is None:
        lines.append(f"run: {_times(train.num_epochs, 'pass', 'passes')} over the rows, / {train.batch_size} = updates")
        return Batches(tuple(lines), numbers)
    numbers |= {"updates": num_steps, "rows": num_steps * train.batch_size}
    lines.append(f"run: {num_steps} steps = {num_steps} updates, {num_steps * train.batch_size} rows")
    hours = config.plan.deadline_hours
    if hours is not None:
        numbers["rows_per_s"] = num_steps * train.batch_size / (3600 * hours)
        lines.append(f"to end in {hours:g} h: {numbers['rows_per_s']:.2f} rows a second")
    return Batches(tuple(lines), numbers)


def _passes(own: int, rows: int, budget: int | None, longest: int) -> tuple[int, str]:
    """Passes of a rank and the rows of each; with a budget of tokens: those of the longest rows."""
    if budget is not None:
        rows = max(1, budget // longest)
    rows = min(rows, own)
    passes = -(-own // rows)
    last = own - (passes - 1) * rows
    return passes, f"{rows}" if last == rows else f"{rows} (the last: {last})"


def _budget(budget: int | None) -> str:
    return "" if budget is None else f" at full length, more of shorter ones: {budget} tokens a pass"


def _times(count: int, one: str, several: str) -> str:
    return f"{count} {one if count == 1 else several}"
