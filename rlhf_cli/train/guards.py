"""Guards against bad training: each sees its fault in the metrics of the steps, says so, and asks for what config says.

All is decided from the metrics, which are the same on every rank. What each guard sees, and why: docs/guards.md.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from enum import Enum
from statistics import median
from typing import Any

from rlhf_cli.config.guard_options import GuardAction, GuardConfig, PPOGuardConfig

KL_COEF_FACTOR = 1.5  # what a raise multiplies kl_coef by
_WINDOW = 50  # steps whose gradient norms have a median
_ENOUGH_NORMS = 10  # before that median is trusted
_EOS_DECAY = 0.9  # of the moving average of eos_rate: it looks back some ten steps
_ENDING = 0.5  # the average from which a policy is one that ends its responses


class Ask(Enum):
    nothing = "nothing"  # the limit is passed, but not for long enough, or it was said before
    warn = "warn"
    stop = "stop"
    raise_kl_coef = "raise_kl_coef"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A limit that is passed at a step; str() is the one line to show."""

    guard: str  # the option of the limit, without its section
    metric: str
    figure: float
    limit: float  # in the metric's unit
    saw: str  # figure and limit in words
    remedy: str  # options to set
    since: int = 0  # first step of those in a row
    asks: Ask = Ask.nothing

    def __str__(self) -> str:
        return f"{self.saw} since step {self.since}; {self.remedy}"


@dataclass
class _State:
    """What the guards remember; every field goes into JSON and back without loss."""

    rows: dict[str, list[int]] = field(default_factory=dict)  # metric -> steps in a row over its limit, their first
    norms: dict[str, list[float]] = field(default_factory=dict)  # metric -> the last _WINDOW finite norms
    baseline_steps: int = 0
    baseline_score: float = 0.0  # sum over those steps
    baseline_length: float = 0.0  # sum too
    eos_average: float = 0.0
    ends: bool = False  # eos_average has reached _ENDING


_Reader = Callable[[PPOGuardConfig, _State, Mapping[str, float]], Iterator[tuple[bool, Finding]]]


class Guards:
    """The guards of one run of either command."""

    def __init__(self, config: GuardConfig) -> None:
        self.config = config
        self._state = _State()

    def look(self, step: int, metrics: Mapping[str, float]) -> list[Finding]:
        """Take in the metrics of a step, once and in order, and return every limit that is passed there.

        A metric that is missing or not finite leaves its guard as it was.
        """
        findings = [self._judge(step, passed, reading) for passed, reading in self._readings(metrics)]
        return [finding for finding in findings if finding is not None]

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint keeps, ready for JSON."""
        return asdict(self._state)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` returned."""
        self._state = _State(**copy.deepcopy(state))

    def _readings(self, metrics: Mapping[str, float]) -> Iterator[tuple[bool, Finding]]:
        """What every guard makes of a step, and whether its limit is passed."""
        seen = {name: value for name, value in metrics.items() if math.isfinite(value)}
        yield from _skipped(self.config, metrics)
        yield from _norms(self.config, self._state, seen)
        if isinstance(self.config, PPOGuardConfig):
            for read in _PPO:
                yield from read(self.config, self._state, seen)

    def _judge(self, step: int, passed: bool, reading: Finding) -> Finding | None:
        rows, metric = self._state.rows, reading.metric
        if not passed:
            rows.pop(metric, None)
            return None
        count, since = rows.get(metric, [0, step])
        rows[metric] = [count + 1, since]
        asks = self._asks(reading.guard, count + 1)
        if asks is Ask.stop:
            del rows[metric]  # a run that is resumed with other options has its patience again
        return replace(reading, since=since, asks=asks)

    def _asks(self, guard: str, count: int) -> Ask:
        """What a guard asks for on the `count`-th step in a row."""
        config, raises = self.config, 0
        if guard == "kl_limit" and isinstance(config, PPOGuardConfig):
            raises = config.kl_raises
        late = count - (config.max_skipped_steps if guard == "max_skipped_steps" else config.patience)
        if late < 0:
            return Ask.nothing
        if late < raises:
            return Ask.raise_kl_coef
        if config.action is GuardAction.stop:
            return Ask.stop
        return Ask.warn if late == raises else Ask.nothing


def _skipped(config: GuardConfig, metrics: Mapping[str, float]) -> Iterator[tuple[bool, Finding]]:
    wrong = {name: value for name, value in metrics.items() if not math.isfinite(value)}
    if metrics.get("skipped_updates", 0.0) > 0:
        wrong["skipped_updates"] = metrics["skipped_updates"]
    if config.max_skipped_steps:
        what = ", ".join(f"{name} {value:g}" for name, value in sorted(wrong.items()))
        yield (
            bool(wrong),
            Finding(
                guard="max_skipped_steps",
                metric="skipped_updates",
                figure=float(len(wrong)),
                limit=0.0,
                saw=f"{what}: not finite, guard.max_skipped_steps={config.max_skipped_steps}",
                remedy="lower the learning rate, look for broken data, set model.dtype=float32",
            ),
        )


def _norms(config: GuardConfig, state: _State, seen: Mapping[str, float]) -> Iterator[tuple[bool, Finding]]:
    """Compare every gradient norm with the median of those before it."""
    if config.grad_norm_ratio is None:
        return
    for name in (name for name in seen if name.partition("/")[0] == "grad_norm"):
        norm, before = seen[name], state.norms.get(name, [])
        state.norms[name] = [*before, norm][-_WINDOW:]
        usual = median(before) if len(before) >= _ENOUGH_NORMS else 0.0
        if usual > 0:
            optim = "value_optim" if name == "grad_norm/value" else "optim"
            ratio, limit = norm / usual, config.grad_norm_ratio
            yield (
                ratio > limit,
                Finding(
                    guard="grad_norm_ratio",
                    metric=name,
                    figure=norm,
                    limit=limit * usual,
                    saw=f"{name} {norm:.4g}, {ratio:.4g} times its median, over guard.grad_norm_ratio={limit:g}",
                    remedy=f"lower {optim}.learning_rate or {optim}.max_grad_norm, look at the data of these steps",
                ),
            )


def _bound(metric: str, option: str, unit: str, remedy: str) -> _Reader:
    """Return the reader of a metric with a fixed limit: the least, where the option is min_*, or the most."""
    is_least = option.startswith("min_")

    def read(config: PPOGuardConfig, _: _State, seen: Mapping[str, float]) -> Iterator[tuple[bool, Finding]]:
        limit: float | None = getattr(config, option)
        if limit is not None and metric in seen:
            figure = seen[metric]
            yield (
                figure < limit if is_least else figure > limit,
                Finding(
                    guard=option,
                    metric=metric,
                    figure=figure,
                    limit=limit,
                    saw=f"{metric} {figure:.4g} {unit}, {'under' if is_least else 'over'} guard.{option}={limit:g}",
                    remedy=remedy,
                ),
            )

    return read


def _length(config: PPOGuardConfig, state: _State, seen: Mapping[str, float]) -> Iterator[tuple[bool, Finding]]:
    """Look for a score that rises with, or through, a length that is not the model's own any more."""
    if config.length_ratio is None or not {"score", "response_length"} <= seen.keys():
        return
    score, length = seen["score"], seen["response_length"]
    if state.baseline_steps < config.baseline_steps:
        state.baseline_steps += 1
        state.baseline_score += score
        state.baseline_length += length
        return
    first_score, first = state.baseline_score / state.baseline_steps, state.baseline_length / state.baseline_steps
    longer = length > first
    limit = first * config.length_ratio if longer else first / config.length_ratio
    short = "set ppo.min_length and ppo.min_length_penalty"
    long = "compare eval/longer_wins_accuracy of the reward model with its accuracy"
    yield (
        score > first_score and (length > limit if longer else length < limit),
        Finding(
            guard="length_ratio",
            metric="response_length",
            figure=length,
            limit=limit,
            saw=f"response_length {length:.4g} where the first steps had {first:.4g}, with score {first_score:.4g} -> "
            f"{score:.4g}, beyond guard.length_ratio={config.length_ratio:g}",
            remedy=f"raise ppo.kl_coef, {long if longer else short}",
        ),
    )


def _eos_rate(config: PPOGuardConfig, state: _State, seen: Mapping[str, float]) -> Iterator[tuple[bool, Finding]]:
    """Look for a policy that ended its responses and does so no more; one that never did is left alone."""
    limit = config.min_eos_rate
    if limit is not None and "eos_rate" in seen:
        rate = seen["eos_rate"]
        state.eos_average = _EOS_DECAY * state.eos_average + (1 - _EOS_DECAY) * rate
        state.ends = state.ends or state.eos_average >= _ENDING
        yield (
            state.ends and rate < limit,
            Finding(
                guard="min_eos_rate",
                metric="eos_rate",
                figure=rate,
                limit=limit,
                saw=f"eos_rate {rate:.4g} where most responses used to end, under guard.min_eos_rate={limit:g}",
                remedy="raise rollout.max_new_tokens, ppo.missing_eos_penalty or ppo.kl_coef",
            ),
        )


def _value(config: PPOGuardConfig, state: _State, seen: Mapping[str, float]) -> Iterator[tuple[bool, Finding]]:
    """Compare with what a response is worth, with and without penalties and KL, and at least 1."""
    limit = config.value_limit
    if limit is None or not {"score", "score_std", "reward"} <= seen.keys():
        return
    size = max(1.0, abs(seen["score"]) + seen["score_std"], abs(seen["reward"]))
    for name in (name for name in ("value", "return", "advantage_std") if name in seen):
        ratio = abs(seen[name]) / size
        yield (
            ratio > limit,
            Finding(
                guard="value_limit",
                metric=name,
                figure=seen[name],
                limit=limit * size,
                saw=f"{name} {seen[name]:.4g}, {ratio:.4g} times the reward's size, over guard.value_limit={limit:g}",
                remedy="lower value_optim.learning_rate, set ppo.value_warmup_steps or ppo.reward_clip",
            ),
        )


_PPO: tuple[_Reader, ...] = (
    _bound("kl", "kl_limit", "nats a response", "lower optim.learning_rate, raise ppo.kl_coef, set ppo.kl_target"),
    _length,
    _bound(
        "entropy", "min_entropy", "nats a token", "lower optim.learning_rate, raise ppo.kl_coef or ppo.entropy_coef"
    ),
    _eos_rate,
    _value,
)
