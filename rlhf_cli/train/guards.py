"""Guards against bad training: each watches a metric, and warns or stops the run as configured.

Guards decide from the metrics alone, which are the same on every rank. docs/guards.md explains each
of them.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from enum import Enum
from statistics import median
from typing import Any

from rlhf_cli.config.guard_options import GuardAction, GuardConfig, PPOGuardConfig

KL_COEF_FACTOR = 1.5  # by which a guard raises kl_coef
_WINDOW = 50  # gradient norms in the median
_ENOUGH_NORMS = 10  # before that median is used
_EOS_DECAY = 0.9  # of the moving average of eos_rate, about ten steps
_ENDING = 0.5  # the average at which a policy counts as ending its responses

Metrics = Mapping[str, float]


class Reaction(Enum):
    """What a guard does about a finding."""

    wait = "wait"  # until the limit is exceeded for long enough; also after a warning was given
    warn = "warn"
    stop = "stop"
    raise_kl_coef = "raise_kl_coef"


@dataclass(frozen=True)
class Finding:
    """A limit that is exceeded at a step; str() is the message for the user."""

    guard: str  # the option of the limit, without its section
    metric: str
    problem: str  # the figure and its limit
    remedy: str  # options to set
    since: int = 0  # first of the consecutive steps
    reaction: Reaction = Reaction.wait

    def __str__(self) -> str:
        return f"{self.problem} since step {self.since}; {self.remedy}"


Readings = Iterator[tuple[bool, Finding]]  # whether the limit is exceeded, and the finding if so


@dataclass
class _State:
    """What the guards remember. Every field survives JSON unchanged."""

    # by metric: the number of consecutive steps over its limit, and the first of them
    rows: dict[str, list[int]] = field(default_factory=dict)
    norms: dict[str, list[float]] = field(default_factory=dict)  # by metric: the last _WINDOW
    baseline_steps: int = 0
    baseline_score: float = 0.0  # sum over those steps
    baseline_length: float = 0.0  # sum over those steps
    eos_average: float = 0.0
    ends: bool = False  # whether eos_average has reached _ENDING


class Guards:
    """The guards of a run of train-rm or train-ppo."""

    def __init__(self, config: GuardConfig) -> None:
        self.config = config
        self._state = _State()

    def check(self, step: int, metrics: Metrics) -> list[Finding]:
        """Read the metrics of a step, once and in order; return a finding for each exceeded limit.

        A metric that is missing or not finite leaves its guard unchanged.
        """
        findings = [self._judge(step, exceeded, reading) for exceeded, reading in self._readings(metrics)]
        return [finding for finding in findings if finding is not None]

    def state_dict(self) -> dict[str, Any]:
        """Return the state for a checkpoint, ready for JSON."""
        return asdict(self._state)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from the result of `state_dict`."""
        self._state = _State(**copy.deepcopy(state))

    def _readings(self, metrics: Metrics) -> Readings:
        config, state = self.config, self._state
        finite = {name: value for name, value in metrics.items() if math.isfinite(value)}
        yield from _skipped(config, metrics)
        yield from _norms(config, state, finite)
        if isinstance(config, PPOGuardConfig):
            remedy = "lower optim.learning_rate, raise ppo.kl_coef, set ppo.kl_target"
            yield from _bound(config, finite, "kl", "kl_limit", "nats a response", remedy)
            yield from _length(config, state, finite)
            remedy = "lower optim.learning_rate, raise ppo.kl_coef or ppo.entropy_coef"
            yield from _bound(config, finite, "entropy", "min_entropy", "nats a token", remedy)
            yield from _eos_rate(config, state, finite)
            yield from _values(config, finite)

    def _judge(self, step: int, exceeded: bool, reading: Finding) -> Finding | None:
        rows, metric = self._state.rows, reading.metric
        if not exceeded:
            rows.pop(metric, None)
            return None
        count, since = rows.get(metric, [0, step])
        rows[metric] = [count + 1, since]
        reaction = self._reaction(reading.guard, count + 1)
        if reaction is Reaction.stop:
            del rows[metric]  # a resumed run with other options starts to count again
        return replace(reading, since=since, reaction=reaction)

    def _reaction(self, guard: str, count: int) -> Reaction:
        """Return what a guard does at the `count`-th consecutive step."""
        config, raises = self.config, 0
        if guard == "kl_limit" and isinstance(config, PPOGuardConfig):
            raises = config.kl_raises
        late = count - (config.max_skipped_steps if guard == "max_skipped_steps" else config.patience)
        if late < 0:
            return Reaction.wait
        if late < raises:
            return Reaction.raise_kl_coef
        if config.action is GuardAction.stop:
            return Reaction.stop
        return Reaction.warn if late == raises else Reaction.wait


def _skipped(config: GuardConfig, metrics: Metrics) -> Readings:
    """Watch for metrics that are not finite and for skipped updates."""
    wrong = {name: value for name, value in metrics.items() if not math.isfinite(value)}
    if metrics.get("skipped_updates", 0.0) > 0:
        wrong["skipped_updates"] = metrics["skipped_updates"]
    if config.max_skipped_steps:
        named = ", ".join(f"{name} {value:g}" for name, value in sorted(wrong.items()))
        problem = f"{named}: not finite, guard.max_skipped_steps={config.max_skipped_steps}"
        remedy = "lower the learning rate, look for broken data, set model.dtype=float32"
        yield bool(wrong), Finding("max_skipped_steps", "skipped_updates", problem, remedy)


def _norms(config: GuardConfig, state: _State, finite: Metrics) -> Readings:
    """Compare every gradient norm with the median of earlier ones."""
    limit = config.grad_norm_ratio
    if limit is None:
        return
    for name in (name for name in finite if name.partition("/")[0] == "grad_norm"):
        norm, earlier = finite[name], state.norms.get(name, [])
        state.norms[name] = [*earlier, norm][-_WINDOW:]
        usual = median(earlier) if len(earlier) >= _ENOUGH_NORMS else 0.0
        if usual > 0:
            ratio = norm / usual
            optim = "value_optim" if name == "grad_norm/value" else "optim"
            problem = f"{name} {norm:.4g}, {ratio:.4g} times its median, over guard.grad_norm_ratio={limit:g}"
            remedy = f"lower {optim}.learning_rate or {optim}.max_grad_norm, look at the data of these steps"
            yield ratio > limit, Finding("grad_norm_ratio", name, problem, remedy)


def _bound(config: PPOGuardConfig, finite: Metrics, metric: str, option: str, unit: str, remedy: str) -> Readings:
    """Compare a metric with a fixed limit: a minimum if the option is min_*, else a maximum."""
    limit: float | None = getattr(config, option)
    if limit is not None and metric in finite:
        figure = finite[metric]
        is_minimum = option.startswith("min_")
        problem = f"{metric} {figure:.4g} {unit}, {'under' if is_minimum else 'over'} guard.{option}={limit:g}"
        yield figure < limit if is_minimum else figure > limit, Finding(option, metric, problem, remedy)


def _length(config: PPOGuardConfig, state: _State, finite: Metrics) -> Readings:
    """Watch for a score that rises while the length leaves the range of the first steps."""
    ratio = config.length_ratio
    if ratio is None or not {"score", "response_length"} <= finite.keys():
        return
    score, length = finite["score"], finite["response_length"]
    if state.baseline_steps < config.baseline_steps:
        state.baseline_steps += 1
        state.baseline_score += score
        state.baseline_length += length
        return
    first_score, first = state.baseline_score / state.baseline_steps, state.baseline_length / state.baseline_steps
    longer = length > first
    exceeded = length > first * ratio if longer else length < first / ratio
    remedy = "compare eval/longer_wins_accuracy of the reward model with its accuracy"
    if not longer:
        remedy = "set ppo.min_length and ppo.min_length_penalty"
    problem = (
        f"response_length {length:.4g} instead of {first:.4g} in the first steps, with score {first_score:.4g} -> "
        f"{score:.4g}, beyond guard.length_ratio={ratio:g}"
    )
    finding = Finding("length_ratio", "response_length", problem, f"raise ppo.kl_coef, {remedy}")
    yield score > first_score and exceeded, finding


def _eos_rate(config: PPOGuardConfig, state: _State, finite: Metrics) -> Readings:
    """Watch for a policy that used to end its responses and no longer does."""
    limit = config.min_eos_rate
    if limit is not None and "eos_rate" in finite:
        rate = finite["eos_rate"]
        state.eos_average = _EOS_DECAY * state.eos_average + (1 - _EOS_DECAY) * rate
        state.ends = state.ends or state.eos_average >= _ENDING
        problem = f"eos_rate {rate:.4g} although most responses used to end, under guard.min_eos_rate={limit:g}"
        remedy = "raise rollout.max_new_tokens, ppo.missing_eos_penalty or ppo.kl_coef"
        yield state.ends and rate < limit, Finding("min_eos_rate", "eos_rate", problem, remedy)


def _values(config: PPOGuardConfig, finite: Metrics) -> Readings:
    """Compare values, returns and advantages with the size of scores and rewards, at least 1."""
    limit = config.value_limit
    if limit is None or not {"score", "score_std", "reward"} <= finite.keys():
        return
    size = max(1.0, abs(finite["score"]) + finite["score_std"], abs(finite["reward"]))
    for name in (name for name in ("value", "return", "advantage_std") if name in finite):
        ratio = abs(finite[name]) / size
        problem = f"{name} {finite[name]:.4g}, {ratio:.4g} times the reward's size, over guard.value_limit={limit:g}"
        remedy = "lower value_optim.learning_rate, set ppo.value_warmup_steps or ppo.reward_clip"
        yield ratio > limit, Finding("value_limit", name, problem, remedy)
