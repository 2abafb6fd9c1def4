"""Options of a reward source: a model, a Python function or an HTTP service."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from enum import Enum
from typing import Any

from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rlhf_cli.config.errors import InputError, require, require_at_least, require_finite_range
from rlhf_cli.config.sections import ModelConfig

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_FUNCTION = re.compile(r".+:[A-Za-z_][A-Za-z0-9_]*")
LONGEST_PAUSE_S = 60.0  # between two tries of a request
_OF_MODELS = ("whole_turn", "offload")
_OF_SERVICES = ("retries", "concurrency", "auth_env")
_EXTERNAL = ("timeout_s", "on_failure", "max_failures", "random", *_OF_SERVICES)


class Normalise(Enum):
    none = "none"
    running = "running"  # by mean and standard deviation of all scores so far
    fixed = "fixed"  # by those of the first step


class OnFailure(Enum):
    stop = "stop"  # save a checkpoint and end the run
    skip = "skip"  # skip the updates of the step and continue


@dataclass(frozen=True, kw_only=True)
class RewardSourceConfig:
    name: str = MISSING
    """Name of the source. Its scores are logged as `reward/<name>`."""

    weight: float = 1.0
    """Weight of its scores in the sum over all sources. Negative weights penalise."""

    model: Any = None
    """A one-label sequence classifier: a path, or options as in `reward_model`. Unset, without function
    or url: `reward_model` itself."""

    function: str | None = None
    """A Python function instead of a model: `module:function` or `path/to/file.py:function`."""

    url: str | None = None
    """An HTTP service instead of a model. docs/rewards.md describes the protocol."""

    normalise: Normalise = Normalise.none
    """Subtract the mean of the scores and divide by their standard deviation, taken over the run so far
    or from the first step."""

    scale: float = 1.0
    """Factor applied after normalisation."""

    clip: float | None = None
    """Clip scores to [-clip, clip] after scaling. Unset: no clipping."""

    batch_size: int = 16
    """Responses per forward pass, call or request of one rank."""

    whole_turn: bool = False
    """For `model`: include the text that its chat template writes after a response, as many third-party
    reward models expect."""

    offload: bool = False
    """For `model`: keep it in CPU memory except while scoring."""

    timeout_s: float = 60.0
    """Timeout of a function call or of one attempt of a request, in seconds."""

    retries: int = 5
    """Retries of a failed request, after 1, 2, 4, ... seconds."""

    concurrency: int = 4
    """Concurrent requests of one rank."""

    auth_env: str | None = None
    """Environment variable whose content is sent as `Authorization`. It is never written to disk."""

    on_failure: OnFailure = OnFailure.stop
    """When a function or service fails for good: save a checkpoint and stop, or skip the step."""

    max_failures: int = 10
    """With `on_failure=skip`: stop after this many consecutive skipped steps."""

    random: bool = False
    """Scores are not reproducible. Otherwise the checks score twice and compare."""

    @property
    def is_external(self) -> bool:
        """Whether a function or a service computes the scores."""
        return self.function is not None or self.url is not None

    @property
    def is_reward_model(self) -> bool:
        """Whether this is the model of the section `reward_model`."""
        return self.model is None and not self.is_external

    @property
    def longest_s(self) -> float:
        """Longest time for one batch of a function or service, including all retries and pauses."""
        if self.url is None:
            return self.timeout_s
        return (self.retries + 1) * self.timeout_s + self.retries * LONGEST_PAUSE_S  # Retry-After may ask for it

    def own_model(self, key: str) -> ModelConfig | None:
        """Return the options of `model`, None if unset; raise InputError if they are invalid.

        key: the name of this source in messages.
        """
        if self.model is None:
            return None
        given = {"path": self.model} if isinstance(self.model, str) else self.model
        is_valid = isinstance(given, dict) and self.model != ""
        require(is_valid, f"{key}.model", repr(self.model), "a path, or the options of a model: {path: ...}")
        try:
            merged = OmegaConf.merge(OmegaConf.structured(ModelConfig), OmegaConf.create(given))
            config = OmegaConf.to_object(merged)
        except OmegaConfBaseException as error:
            raise InputError(f"{key}.model: {str(error).splitlines()[0]}") from error
        assert isinstance(config, ModelConfig)
        config.check(f"{key}.model")
        return config

    def check(self, key: str) -> None:
        """Raise InputError for a value out of range.

        key: the name of this source in messages (reward[0]).
        """
        wanted = "made of letters, digits, '_', '-' and '.'"
        require(_NAME.fullmatch(self.name) is not None, f"{key}.name", repr(self.name), wanted)
        given = [name for name in ("model", "function", "url") if getattr(self, name) is not None]
        require(len(given) <= 1, key, " and ".join(given), "set by only one of model, function and url")
        require(math.isfinite(self.weight) and self.weight != 0, f"{key}.weight", self.weight, "finite and not 0")
        require(math.isfinite(self.scale) and self.scale > 0, f"{key}.scale", self.scale, "positive")
        require(self.clip is None or self.clip > 0, f"{key}.clip", self.clip, "positive or null")
        require_finite_range(f"{key}.timeout_s", self.timeout_s, 0.001, 86400.0)
        require_at_least(1, key, self, "batch_size", "concurrency", "max_failures")
        require(0 <= self.retries <= 20, f"{key}.retries", self.retries, "between 0 and 20")
        self._check_kind(key)
        self.own_model(key)

    def _check_kind(self, key: str) -> None:
        if self.function is not None:
            wanted = "module:function or path/to/file.py:function"
            require(_FUNCTION.fullmatch(self.function) is not None, f"{key}.function", self.function, wanted)
        if self.url is not None:
            shown = self.url.partition(":")[0] + ":..."  # the rest may contain a password
            require(self.url.startswith(("http://", "https://")), f"{key}.url", shown, "http://... or https://...")
        if self.model is None:
            self._check_unset(key, _OF_MODELS, "a source without its own model")
        if self.url is None:
            what = "a function" if self.is_external else "a model"
            self._check_unset(key, _OF_SERVICES if self.is_external else _EXTERNAL, what)
        if self.is_reward_model:
            self._check_unset(key, ("batch_size",), "reward_model, which uses ppo.micro_batch_size")

    def _check_unset(self, key: str, names: tuple[str, ...], what: str) -> None:
        """Raise InputError for an option that has no effect on a source of this kind."""
        for name in names:
            value, default = getattr(self, name), type(self).__dataclass_fields__[name].default
            shown = value.value if isinstance(value, Enum) else value
            require(value == default, f"{key}.{name}", shown, f"unset: it has no effect on {what}")
