"""From a command line to a schema object: YAML, `conf=`, overrides. Imports no torch."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

from hydra import compose, initialize_config_module
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from rlhf_cli.config import schema
from rlhf_cli.config.errors import InputError
from rlhf_cli.config.option_docs import element_type
from rlhf_cli.config.redaction import hidden, is_secret
from rlhf_cli.config.schema import TrainPPOConfig, TrainRMConfig

_ALONE = "defaults:\n- override /deepspeed: empty\n"  # no key of a preset joins those that are written down
FROM_FILE = "from_file"  # reserved name: a file `conf=my/tiny.yaml` must not be shadowed by the packaged tiny
_SHAPE = re.compile(r"(\w+\.from_config|data\.\w+_filter)=\{")
Config = TrainRMConfig | TrainPPOConfig


def load(command: str, args: list[str]) -> Config:
    """Return the schema object of `command` ("train-ppo"); overrides win over `conf=`, whatever their order.

    args: `conf=NAME`, `conf=path.yaml`, `group=option`, `a.b=value`, in Hydra's grammar.
    Raises InputError, in one line, for anything that does not compose.
    """
    return to_object(compose_yaml(command, args))


def compose_yaml(command: str, args: list[str]) -> DictConfig:
    """Return what `show-config` prints: the composed options, interpolations unresolved."""
    if sum(arg.startswith("conf=") for arg in args) > 1:
        raise InputError("conf= was given twice; give it once and override single keys")
    schema.register()
    try:
        overrides = [_as_override(command, arg) for arg in args]
        shapes = [one for one in overrides if _SHAPE.match(one)]
        with initialize_config_module("rlhf_cli.conf", version_base="1.3"):
            cfg = compose(command.replace("-", "_"), [one for one in overrides if one not in shapes])
        for shape in shapes:
            _set_shape(cfg, shape)
        return _without_targets(cfg)
    except InputError:
        raise
    except (HydraException, OmegaConfBaseException, OSError, YAMLError, ValueError) as error:
        raise InputError(_one_line(error, command, args)) from error


def _set_shape(cfg: DictConfig, shape: str) -> None:
    """Apply an override with a mapping: Hydra 1.3.8 merges it into the node, and fails where that is null or empty.

    A model's shape is merged, a filter replaced.
    """
    try:
        override = OverridesParser.create().parse_override(shape)
    except HydraException as error:
        raise InputError(f"{shape}: no mapping, wanted {shape.partition('=')[0]}={{key: value, ...}}") from error
    key = override.key_or_group
    merge = key.endswith(".from_config") and OmegaConf.select(cfg, key) is not None
    OmegaConf.update(cfg, key, override.value(), merge=merge)


def _without_targets(cfg: DictConfig) -> DictConfig:
    """Refuse the key that Hydra would make an object of, wherever it stands: no option runs code."""
    where = _target_in(OmegaConf.to_container(cfg, resolve=False), "")
    if where is not None:
        raise InputError(f"{where}: _target_ is refused; no option runs code")
    return cfg


def _target_in(node: Any, prefix: str) -> str | None:
    pairs = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in pairs:
        where = f"{prefix}{key}"
        found = where if key == "_target_" else _target_in(value, f"{where}.")
        if found is not None:
            return found
    return None


def as_text(cfg: DictConfig) -> str:
    """Return composed options as YAML that `conf=` takes, interpolations unresolved, values of secret keys hidden."""
    return _ALONE + OmegaConf.to_yaml(
        OmegaConf.create(hidden(OmegaConf.to_container(cfg, resolve=False, enum_to_str=True)))
    )


def to_object(cfg: DictConfig) -> Config:
    """Turn composed options into the frozen schema object; raise InputError for what is missing or out of range."""
    try:
        if missing := sorted(OmegaConf.missing_keys(cfg)):
            in_list = "[" in missing[0]
            give = "write it in the list" if in_list else f"give {missing[0]}=VALUE or a conf= that sets it"
            raise InputError(f"not set: {', '.join(missing)}; {give}")
        config: Any = OmegaConf.to_object(cfg)
    except OmegaConfBaseException as error:
        raise InputError(_first_line(str(error))) from error
    config.check_together()
    assert isinstance(config, TrainRMConfig | TrainPPOConfig)
    return config


def read_composed(command: str, path: str) -> DictConfig:
    """Read what `compose_yaml` returned and a parent process wrote, so that every rank has the same options."""
    cfg = OmegaConf.merge(schema.structured(command), OmegaConf.load(path))
    assert isinstance(cfg, DictConfig)
    return cfg


def all_keys(command: str) -> list[str]:
    """Return every dotted key of the schema of `command`."""
    return list(_keys(schema.COMMANDS[command](), ""))


def _keys(node: object, prefix: str) -> Iterator[str]:
    assert is_dataclass(node)
    hints = get_type_hints(type(node))
    for field in fields(node):
        value = getattr(node, field.name)
        if is_dataclass(value):
            yield from _keys(value, f"{prefix}{field.name}.")
        else:
            yield prefix + field.name
            inner = element_type(hints[field.name])
            if inner is not None:
                yield from _keys(inner(), f"{prefix}{field.name}[].")


def _as_override(command: str, arg: str) -> str:
    if arg.startswith("-"):
        raise InputError(f"unknown option {arg}; options are written key=value, `rlhf {command} --help` lists them")
    if "=" not in arg and not arg.startswith("~"):
        raise InputError(f"'{arg}' is not key=value; `rlhf {command} --help` lists the keys")
    if arg.startswith(("+", "~")) and not arg.lstrip("+~").startswith("deepspeed."):
        raise InputError(f"{arg}: '+' and '~' are for deepspeed.*; every other key is in the schema")
    if re.match(r"[\w.]*_target_", arg):
        raise InputError(f"{arg}: _target_ is refused; no option runs code")
    if not arg.startswith("conf="):
        return arg
    group = f"experiment/{command.replace('-', '_')}"
    value = arg.removeprefix("conf=")
    if not value.endswith((".yaml", ".yml")):
        return f"{group}={value}"
    loaded = OmegaConf.load(Path(value))
    if not isinstance(loaded, DictConfig):
        raise InputError(f"{arg}: the file holds {type(loaded).__name__}, wanted `key: value` lines")
    ConfigStore.instance().store(FROM_FILE, loaded, group=group, package="_global_")
    return f"{group}={FROM_FILE}"


def _first_line(text: str) -> str:
    return next((line.strip() for line in text.splitlines() if line.strip()), "configuration error")


def _one_line(error: BaseException, command: str, args: list[str]) -> str:
    """One line that names the key, what it got, what was wanted and the nearest existing key."""
    if isinstance(error, YAMLError | UnicodeDecodeError):
        conf = next((arg for arg in args if arg.startswith("conf=")), "conf")
        return f"{conf}: not valid YAML: {' '.join(str(error).split())}"
    if isinstance(error, MissingConfigException):
        return _missing_option(error)
    if isinstance(error, OSError):
        return f"cannot read {error.filename}: {error.strerror}"
    cause = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    whole = str(cause)
    text = _first_line(whole.partition("raised while composing config:\n")[2] or whole)
    full_key = re.search(r"full_key: (\S+)", whole)
    key = full_key[1] if full_key else _overridden(text)
    if not key:
        return text
    if re.search("could not be converted|Invalid value|Incompatible value|not Optional", text) or key in all_keys(
        command
    ):
        return text if key in text else f"{key}: {text}"
    return _unknown_key(key, command, args)


def _unknown_key(key: str, command: str, args: list[str]) -> str:
    given = next((arg for arg in args if arg.startswith((f"{key}=", f"{key}."))), None)
    got = ""
    if given is not None:
        override = OverridesParser.create().parse_override(given)
        key = override.key_or_group
        got = "" if is_secret(key) else f" (got {override.value()})"
        given = f"{key}=..." if is_secret(key) else given
    if key.startswith("deepspeed."):
        return f"{key} is not in the composed deepspeed section; write +{given or key} to add it"
    known = all_keys(command)
    in_list = "." not in key and key not in {one.partition(".")[0] for one in known}
    if in_list and any(arg.startswith("reward=[") for arg in args):  # OmegaConf 2.3 names the key alone
        key = f"reward[].{key}"
    return _with_nearest(f"unknown key {key}{got}", key, known)


def _missing_option(error: MissingConfigException) -> str:
    group, _, name = (error.missing_cfg_file or "").rpartition("/")
    what = f"conf={name}: no such experiment" if group.startswith("experiment/") else f"{group}={name}: no such option"
    return _with_nearest(what, name, list(error.options or []))


def _overridden(text: str) -> str | None:
    match = re.search(r"Could not override '([\w./@]+)'", text)
    return match[1] if match else None


def _with_nearest(message: str, got: str, known: list[str]) -> str:
    nearest = difflib.get_close_matches(got, known, n=1, cutoff=0.5)
    if nearest:
        return f"{message}; did you mean {nearest[0]}?"
    return f"{message}; there are: {', '.join(known[:12])}{', ...' if len(known) > 12 else ''}"
