"""Finds a trained model, and how its run rendered text and sampled responses. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
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
_FINAL = "final"  # the folder to which a run exports its model
_CONFIG_JSON = "config.json"
_SECTIONS = ("run", "model", "data")  # every run's config has them


class Role(Enum):
    """What a model is used for; the value names the role in messages."""

    policy = "policy"
    reward_model = "reward model"

    @property
    def folders(self) -> tuple[str, ...]:
        """Where a run folder, or the `final` folder in it, holds the model."""
        return (f"{_FINAL}/policy", "policy") if self is Role.policy else (_FINAL,)


@dataclass(frozen=True)
class TrainedModel:
    """A model with the options of its run; defaults if it comes from no run."""

    name: str  # as the user gave it
    model: ModelConfig
    data: DataConfig = field(default_factory=PromptDataConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    run: Path | None = None  # its run's folder
    base: ModelConfig | None = None  # what the run started from
    seed: int = 0  # of random weights

    @property
    def start(self) -> TrainedModel:
        """The model that the run started from, rendered and sampled as in the run."""
        assert self.base is not None
        return replace(self, name="what it started from", model=self.base, base=None)

    def with_options(self, system_prompt: str | None, dtype: DType | None, trust_remote_code: bool) -> TrainedModel:
        """Return the model with these options in place of its run's; None leaves the run's."""
        model = replace(
            self.model,
            dtype=dtype or self.model.dtype,
            trust_remote_code=trust_remote_code or self.model.trust_remote_code,
        )
        data = self.data if system_prompt is None else replace(self.data, system_prompt=system_prompt or None)
        return replace(self, model=model, data=data)


def find_model(path: str, role: Role, option: str | None = None) -> TrainedModel:
    """Return the model at `path`: a run folder, a folder inside it, or any other model.

    A run's model keeps the run's rendering (system prompt, chat template), sampling and dtype.
    option: the option with the path, for messages. Raises InputError if there is no model of
    this role.
    """
    option = option or role.value
    if not path:
        raise InputError(f"{option}: wanted a folder, a file or a Hub id, got an empty name")
    local = Path(path).expanduser()
    folder = _model_folder(local, role) if local.is_dir() else None
    if folder is None:
        resolve_path(path, option)
        return TrainedModel(path, ModelConfig(path=path))
    for run in (folder.parent, folder.parent.parent):
        options = _run_options(run)
        if options is not None:
            return _from_run(path, folder, run, options, role)
    return TrainedModel(path, ModelConfig(path=str(folder)))


def _model_folder(local: Path, role: Role) -> Path | None:
    """Return the model's folder in a folder, None if the folder is neither a model nor a run."""
    for candidate in (*role.folders, "."):
        if (local / candidate / _CONFIG_JSON).is_file():
            return (local / candidate).absolute()
    (other,) = set(Role) - {role}
    if any((local / candidate / _CONFIG_JSON).is_file() for candidate in other.folders):
        raise InputError(f"{local}: this run trained a {other.value}, wanted a {role.value}")
    if _run_options(local) is not None:
        raise InputError(f"{local}: this run has no `{_FINAL}` folder yet, wanted a finished run")
    return None


def _run_options(folder: Path) -> DictConfig | None:
    """Return the options of the run in a folder, None if it holds no run."""
    file = folder / CONFIG
    if not (file.is_file() and (folder / RUN).is_file()):
        return None
    try:
        options: Any = OmegaConf.load(file)
        is_run = isinstance(options, DictConfig) and all(OmegaConf.is_dict(options.get(name)) for name in _SECTIONS)
    except (OSError, YAMLError, UnicodeDecodeError, OmegaConfBaseException) as error:
        raise InputError(f"{file}: cannot be read: {' '.join(str(error).split())}") from error
    return options if is_run else None


def _from_run(path: str, folder: Path, run: Path, options: DictConfig, role: Role) -> TrainedModel:
    is_ppo, file = "ppo" in options, run / CONFIG
    if role is Role.policy and not is_ppo:
        raise InputError(f"{path}: this run trained a reward model, wanted a policy")
    base = _section(options, "model", ModelConfig, file)
    is_value_model = folder.name.startswith("value_model") and "reward_model" in options
    loading = _section(options, "reward_model", ModelConfig, file) if is_value_model else base
    return TrainedModel(
        name=path,
        model=ModelConfig(
            path=str(folder),
            dtype=loading.dtype,
            attn_implementation=loading.attn_implementation,
            packing=loading.packing,
            trust_remote_code=loading.trust_remote_code,
        ),
        data=_section(options, "data", PromptDataConfig if is_ppo else PreferenceDataConfig, file),
        rollout=_section(options, "rollout", RolloutConfig, file) if is_ppo else RolloutConfig(),
        run=run,
        base=base,
        seed=_section(options, "run", RunConfig, file).seed,
    )


def _section(options: DictConfig, name: str, kind: type[Section], file: Path) -> Section:
    """Return one section of a run's options, without keys that another version of rlhf wrote."""
    known = {option.name for option in fields(kind)}  # type: ignore[arg-type]
    try:
        found = options.get(name)
        if not (found is None or OmegaConf.is_dict(found)):
            raise InputError(f"{file}: {name}: wanted a section of options, got {type(found).__name__}")
        given: Any = {} if found is None else OmegaConf.to_container(found, resolve=True)
        given = {key: value for key, value in given.items() if key in known and value != MISSING}
        section = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(kind), given))
    except OmegaConfBaseException as error:
        raise InputError(f"{file}: {name}: {str(error).splitlines()[0]}") from error
    assert isinstance(section, kind)
    return section
