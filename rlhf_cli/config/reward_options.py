"""What scores a response: the sources of `reward`, each a model, a Python function or an HTTP service."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from enum import Enum
from typing import Any

from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rlhf_cli.config.errors import InputError, require, require_finite_range
from rlhf_cli.config.sections import ModelConfig

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_FUNCTION = re.compile(r".+:[A-Za-z_][A-Za-z0-9_]*")
LONGEST_PAUSE_S = 60.0  # between two tries of a request
_OF_MODELS = ("whole_turn", "offload")
_OF_SERVICES = ("retries", "concurrency", "auth_env")
_OUTSIDE = ("timeout_s", "on_failure", "max_failures", "random", *_OF_SERVICES)


class Normalise(Enum):
    none = "none"
    running = "running"  # by mean and deviation of all scores of the run so far
    fixed = "fixed"  # by those of the first step


class OnFailure(Enum):
    stop = "stop"  # save a checkpoint and end the run
    skip = "skip"  # learn nothing from the step, and go on


@dataclass(frozen=True, kw_only=True)
class RewardSourceConfig:
    name: str = MISSING
    """A word for the source; its scores are logged as `reward/<name>`."""

    weight: float = 1.0
    """What its scores are multiplied by in the sum of all sources; negative: to be avoided."""

    model: Any = None
    """A one-label sequence classifier of its own: a path, or the options of `reward_model`; unset: `reward_model`."""

    function: str | None = None
    """Instead of a model: a Python function, `module:function` or `path/to/file.py:function`."""

    url: str | None = None
    """Instead of a model: an HTTP service (docs/rewards.md has its protocol)."""

    normalise: Normalise = Normalise.none
    """Take the mean from the scores and divide by their deviation: over the run so far, or as in the first step."""

    scale: float = 1.0
    """What scores are multiplied by next."""

    clip: float | None = None
    """Then they are clipped to [-clip, clip]; unset: not."""

    batch_size: int = 16
    """Responses per forward pass, call or request, on each rank."""

    whole_turn: bool = False
    """A model of its own reads what its template writes after an answer, too, as models of others often do."""

    offload: bool = False
    """Keep a model of its own in host memory but while it scores."""

    timeout_s: float = 60.0
    """Seconds that a call of a function, or one try of a request, may take."""

    retries: int = 5
    """Further tries of a request that failed, after 1, 2, 4, ... seconds."""

    concurrency: int = 4
    """Requests that one rank has under way at a time."""

    auth_env: str | None = None
    """Environment variable whose content is sent as `Authorization`; it is written down nowhere."""

    on_failure: OnFailure = OnFailure.stop
    """When a function or service fails for good: stop with a checkpoint, or skip the step."""

    max_failures: int = 10
    """With `skip`: stop once so many steps in a row were skipped."""

    random: bool = False
    """The same response may get another score the next time; otherwise the checks ask twice and compare."""

    @property
    def is_outside(self) -> bool:
        """Whether a function or a service scores, and no model of this process."""
        return self.function is not None or self.url is not None

    @property
    def is_reward_model(self) -> bool:
        """Whether it is the model of the section `reward_model`."""
        return self.model is None and not self.is_outside

    @property
    def longest_s(self) -> float:
        """The longest that one batch may take of a function or a service, all tries and pauses together."""
        if self.url is None:
            return self.timeout_s
        return (self.retries + 1) * self.timeout_s + self.retries * LONGEST_PAUSE_S  # as Retry-After may ask for

    def own_model(self, key: str) -> ModelConfig | None:
        """Return the options of the model of its own, None without one; raise InputError where they are not sound.

        key: where it stands, for messages.
        """
        if self.model is None:
            return None
        require(self.model != "", f"{key}.model", "''", "a path, or the options of a model: {path: ...}")
        given = {"path": self.model} if isinstance(self.model, str) else self.model
        require(isinstance(given, dict), f"{key}.model", given, "a path, or the options of a model: {path: ...}")
        try:
            merged = OmegaConf.merge(OmegaConf.structured(ModelConfig), OmegaConf.create(given))
            config = OmegaConf.to_object(merged)
        except OmegaConfBaseException as error:
            raise InputError(f"{key}.model: {str(error).splitlines()[0]}") from error
        assert isinstance(config, ModelConfig)
        config.check(f"{key}.model")
        return config

    def check(self, key: str) -> None:
        """Raise InputError for a value out of range; `key` (reward[0]) names the place in the message."""
        wanted = "letters, digits, '_', '-' and '.'"
        require(_NAME.fullmatch(self.name) is not None, f"{key}.name", repr(self.name), wanted)
        given = [name for name in ("model", "function", "url") if getattr(self, name) is not None]
        require(len(given) <= 1, key, " and ".join(given), "given one of model, function and url")
        require(math.isfinite(self.weight) and self.weight != 0, f"{key}.weight", self.weight, "a number, and not 0")
        require(math.isfinite(self.scale) and self.scale > 0, f"{key}.scale", self.scale, "positive")
        require(self.clip is None or self.clip > 0, f"{key}.clip", self.clip, "positive or null")
        require_finite_range(f"{key}.timeout_s", self.timeout_s, 0.001, 86400.0)
        for name in ("batch_size", "concurrency", "max_failures"):
            require(getattr(self, name) >= 1, f"{key}.{name}", getattr(self, name), "1 or more")
        require(0 <= self.retries <= 20, f"{key}.retries", self.retries, "between 0 and 20")
        self._check_kind(key)
        self.own_model(key)

    def _check_kind(self, key: str) -> None:
        if self.function is not None:
            wanted = "module:function or path/to/file.py:function"
            require(_FUNCTION.fullmatch(self.function) is not None, f"{key}.function", self.function, wanted)
        if self.url is not None:
            shown = self.url.partition(":")[0] + ":..."  # there may be a login behind it
            require(self.url.startswith(("http://", "https://")), f"{key}.url", shown, "http://... or https://...")
        if self.model is None:
            self._check_unset(key, _OF_MODELS, "a source without a model of its own")
        if self.url is None:
            what = "a function" if self.is_outside else "a model"
            self._check_unset(key, _OF_SERVICES if self.is_outside else _OUTSIDE, what)
        if self.is_reward_model:
            self._check_unset(key, ("batch_size",), "reward_model (ppo.micro_batch_size is its own)")

    def _check_unset(self, key: str, names: tuple[str, ...], what: str) -> None:
        """Raise InputError for an option that does nothing for a source of this kind."""
        for name in names:
            value, default = getattr(self, name), type(self).__dataclass_fields__[name].default
            shown = value.value if isinstance(value, Enum) else value
            require(value == default, f"{key}.{name}", shown, f"unset: it does nothing for {what}")
