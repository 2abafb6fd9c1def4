"""Which files a trained model is made of, and how its run rendered text. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from enum import Enum
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from rlhf_cli.config.errors import InputError
from rlhf_cli.config.paths import resolve_path
from rlhf_cli.config.sections import (
    DataConfig,
    DType,
    ModelConfig,
    PreferenceDataConfig,
    PromptDataConfig,
    RolloutConfig,
    RunConfig,
)
from rlhf_cli.report.run_dir import CONFIG, RUN

Section = TypeVar("Section")
_FINAL = "final"  # where a run exports what it has trained
_CONFIG_JSON = "config.json"
_SECTIONS = ("run", "model", "data")  # that the options of every run have


class Role(Enum):
    """What a model is wanted for; the value names it in messages."""

    policy = "policy"
    reward_model = "reward model"


@dataclass(frozen=True)
class Trained:
    """A model, and the options of the run it comes from: defaults where it comes from none."""

    model: ModelConfig
    data: DataConfig
    rollout: RolloutConfig
    has_run: bool  # whether these are a run's
    base: ModelConfig | None = None  # what the run started from
    seed: int = 0  # of random weights

    @property
    def name(self) -> str:
        """The model, for people."""
        return self.model.path or "random weights"

    @property
    def start(self) -> Trained:
        """What the run started from, rendered and sampled as in the run."""
        assert self.base is not None
        return replace(self, model=self.base, base=None)


def find(path: str, role: Role) -> Trained:
    """Return the model that `path` names: a run folder, its `final` or a folder in there, or any other model.

    A model out of a run has the run's rendering (system prompt, template), its sampling and its type of numbers.
    Raises InputError where there is nothing, or nothing of that role.
    """
    if not path:
        raise InputError(f"{role.value}: wanted a folder, a file or a Hub id, got an empty name")
    local = Path(path).expanduser()
    folder = _exported(local, role) if local.is_dir() else None
    if folder is None:
        resolve_path(path, role.value)
        return Trained(ModelConfig(path=path), PromptDataConfig(), RolloutConfig(), has_run=False)
    run = _run_above(folder)
    if run is None:
        return Trained(ModelConfig(path=str(folder)), PromptDataConfig(), RolloutConfig(), has_run=False)
    found = _of_run(folder, run)
    if role is Role.policy and not isinstance(found.data, PromptDataConfig):  # its `final`, given by name
        raise InputError(f"{path}: that run has trained a reward model, wanted a policy")
    return found


def run_of(path: str, role: Role) -> Path | None:
    """Return the folder of the run that a model comes from, None where it comes from none."""
    local = Path(path).expanduser()
    folder = _exported(local, role) if local.is_dir() else None
    return None if folder is None else _run_above(folder)


def with_options(found: Trained, system_prompt: str | None, dtype: DType | None, trust_remote_code: bool) -> Trained:
    """Return the model with what was asked for in place of what its run says; unset leaves that."""
    model = replace(
        found.model,
        dtype=dtype or found.model.dtype,
        trust_remote_code=trust_remote_code or found.model.trust_remote_code,
    )
    data = found.data if system_prompt is None else replace(found.data, system_prompt=system_prompt or None)
    return replace(found, model=model, data=data)


def _exported(local: Path, role: Role) -> Path | None:
    """Return the model folder inside a folder; None where the folder itself is the model, or none that we know."""
    inside = ("policy",) if role is Role.policy else ("",)
    for final in (local / _FINAL, local):
        for name in inside:
            if (final / name / _CONFIG_JSON).is_file():
                return (final / name).absolute()
    if (local / _CONFIG_JSON).is_file():
        return local.absolute()
    if role is Role.reward_model and local.name == _FINAL and (local / "policy" / _CONFIG_JSON).is_file():
        raise InputError(f"{local}: that run has trained a policy, wanted a reward model")
    if _options(local) is None:
        return None
    if (local / _FINAL / _CONFIG_JSON).is_file() or (local / _FINAL / "policy").is_dir():
        other = "a reward model" if role is Role.policy else "a policy"
        raise InputError(f"{local}: that run has trained {other}, wanted a {role.value}")
    raise InputError(f"{local}: that run has no `{_FINAL}` folder yet, wanted a finished one")


def _run_above(folder: Path) -> Path | None:
    return next((one for one in (folder.parent, folder.parent.parent) if _options(one) is not None), None)


def _options(folder: Path) -> DictConfig | None:
    """Return the options of the run in a folder; None where it holds none: a config.yaml alone may be anybody's."""
    where = folder / CONFIG
    if not (where.is_file() and (folder / RUN).is_file()):
        return None
    try:
        options: Any = OmegaConf.load(where)
        is_run = isinstance(options, DictConfig) and all(OmegaConf.is_dict(options.get(name)) for name in _SECTIONS)
    except (OSError, YAMLError, UnicodeDecodeError, OmegaConfBaseException) as error:
        raise InputError(f"{where}: cannot be read: {' '.join(str(error).split())}") from error
    return options if is_run else None


def _of_run(folder: Path, run: Path) -> Trained:
    where, options = run / CONFIG, _options(run)
    assert options is not None
    is_ppo = "ppo" in options
    base = _section(options, "model", ModelConfig, where)
    value = folder.name.startswith("value_model") and "reward_model" in options
    kind = _section(options, "reward_model", ModelConfig, where) if value else base
    return Trained(
        model=ModelConfig(
            path=str(folder),
            dtype=kind.dtype,
            attn_implementation=kind.attn_implementation,
            packing=kind.packing,
            trust_remote_code=kind.trust_remote_code,
        ),
        data=_section(options, "data", PromptDataConfig if is_ppo else PreferenceDataConfig, where),
        rollout=_section(options, "rollout", RolloutConfig, where) if is_ppo else RolloutConfig(),
        has_run=True,
        base=base,
        seed=_section(options, "run", RunConfig, where).seed,
    )


def _section(options: DictConfig, name: str, kind: type[Section], where: Path) -> Section:
    """Read one section of a run's options; keys that other versions wrote are passed over."""
    assert isinstance(kind, type)
    known = {field.name for field in fields(kind)}  # type: ignore[arg-type]
    try:
        found = options.get(name)
        if not (found is None or OmegaConf.is_dict(found)):
            raise InputError(f"{where}: {name}: wanted a section of options, got {type(found).__name__}")
        node = {} if found is None else OmegaConf.to_container(found, resolve=True)
        assert isinstance(node, dict)
        given = {key: value for key, value in node.items() if key in known and value != MISSING}
        section = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(kind), given))
    except OmegaConfBaseException as error:
        raise InputError(f"{where}: {name}: {str(error).splitlines()[0]}") from error
    assert isinstance(section, kind)
    return section
