"""Compose options from packaged YAML, `conf=` and overrides. Imports no torch."""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_module
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from rlhf_cli.config import schema
from rlhf_cli.config.errors import InputError
from rlhf_cli.config.option_docs import all_keys
from rlhf_cli.config.redaction import is_secret, redact
from rlhf_cli.config.schema import TrainPPOConfig, TrainRMConfig

_NO_PRESET = "defaults:\n- override /deepspeed: empty\n"  # the text that follows has all of DeepSpeed's options
FROM_FILE = "from_file"  # reserved, so that `conf=my/tiny.yaml` is not mistaken for the packaged tiny
_MAPPING = re.compile(r"(\w+\.from_config|data\.\w+_filter)=\{")
Config = TrainRMConfig | TrainPPOConfig


def load(command: str, args: list[str]) -> Config:
    """Return the options of `command` ("train-ppo").

    args: `conf=NAME`, `conf=path.yaml`, `group=option`, `a.b=value`, in Hydra's grammar. Overrides
    win over `conf=`, whatever their order. Raises InputError, in one line, for invalid options.
    """
    return to_object(compose_yaml(command, args))


def compose_yaml(command: str, args: list[str]) -> DictConfig:
    """Return the composed options with interpolations unresolved, as `show-config` prints them."""
    if sum(arg.startswith("conf=") for arg in args) > 1:
        raise InputError("conf= was given twice; give it once and override single keys")
    schema.register()
    try:
        overrides = [_as_override(command, arg) for arg in args]
        mappings = [one for one in overrides if _MAPPING.match(one)]
        with initialize_config_module("rlhf_cli.conf", version_base="1.3"):
            cfg = compose(command.replace("-", "_"), [one for one in overrides if one not in mappings])
        for mapping in mappings:
            _set_mapping(cfg, mapping)
        if target := _find_target(OmegaConf.to_container(cfg, resolve=False)):
            raise InputError(f"{target}: _target_ is not allowed; options cannot run code")
    except InputError:
        raise
    except (HydraException, OmegaConfBaseException, OSError, YAMLError, ValueError) as error:
        raise InputError(_one_line(error, command, args)) from error
    return cfg


def _set_mapping(cfg: DictConfig, text: str) -> None:
    """Apply an override whose value is a mapping: merge into a model's shape, replace a filter.

    Hydra 1.3.8 always merges, and fails if the old value is null or empty.
    """
    try:
        override = OverridesParser.create().parse_override(text)
    except HydraException as error:
        key = text.partition("=")[0]
        raise InputError(f"{key} must be a mapping: {key}={{key: value, ...}}, got {text}") from error
    key = override.key_or_group
    merge = key.endswith(".from_config") and OmegaConf.select(cfg, key) is not None
    OmegaConf.update(cfg, key, override.value(), merge=merge)


def _find_target(node: Any, prefix: str = "") -> str | None:
    """Return the dotted key of a `_target_`, which Hydra could instantiate; None if there is none."""
    pairs = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in pairs:
        found = f"{prefix}{key}" if key == "_target_" else _find_target(value, f"{prefix}{key}.")
        if found is not None:
            return found
    return None


def as_text(cfg: DictConfig) -> str:
    """Return composed options as YAML for `conf=`: interpolations unresolved, secrets hidden."""
    options = redact(OmegaConf.to_container(cfg, resolve=False, enum_to_str=True))
    return _NO_PRESET + OmegaConf.to_yaml(OmegaConf.create(options))


def to_object(cfg: DictConfig) -> Config:
    """Return composed options as objects; raise InputError for missing or invalid ones."""
    try:
        if missing := sorted(OmegaConf.missing_keys(cfg)):
            in_list = "[" in missing[0]
            fix = "add it to the list" if in_list else f"add {missing[0]}=VALUE, or a conf= that sets it"
            raise InputError(f"not set: {', '.join(missing)}; {fix}")
        config: Any = OmegaConf.to_object(cfg)
    except OmegaConfBaseException as error:
        raise InputError(_first_line(str(error))) from error
    config.check_together()
    assert isinstance(config, TrainRMConfig | TrainPPOConfig)
    return config


def read_composed(command: str, path: str) -> DictConfig:
    """Read composed options that a parent process wrote, so that all ranks have the same ones."""
    cfg = OmegaConf.merge(schema.structured(command), OmegaConf.load(path))
    assert isinstance(cfg, DictConfig)
    return cfg


def _as_override(command: str, arg: str) -> str:
    """Return an argument in Hydra's grammar; a file of `conf=` is stored under the name FROM_FILE."""
    if arg.startswith("-"):
        raise InputError(f"unknown option {arg}; options have the form key=value, see `rlhf {command} --help`")
    if "=" not in arg and not arg.startswith("~"):
        raise InputError(f"options must have the form key=value, got '{arg}'; see `rlhf {command} --help`")
    if arg.startswith(("+", "~")) and not arg.lstrip("+~").startswith("deepspeed."):
        raise InputError(f"{arg}: '+' and '~' are only for deepspeed.*; remove the '{arg[0]}'")
    if re.match(r"[\w.]*_target_", arg):
        raise InputError(f"{arg}: _target_ is not allowed; options cannot run code")
    if not arg.startswith("conf="):
        return arg
    group = f"experiment/{command.replace('-', '_')}"
    value = arg.removeprefix("conf=")
    if not value.endswith((".yaml", ".yml")):
        return f"{group}={value}"
    loaded = OmegaConf.load(Path(value))
    if not isinstance(loaded, DictConfig):
        raise InputError(f"{arg}: the file must contain `key: value` lines, got {type(loaded).__name__}")
    ConfigStore.instance().store(FROM_FILE, loaded, group=group, package="_global_")
    return f"{group}={FROM_FILE}"


def _first_line(text: str) -> str:
    return next((line.strip() for line in text.splitlines() if line.strip()), "configuration error")


def _one_line(error: BaseException, command: str, args: list[str]) -> str:
    """Return an error of Hydra, OmegaConf or YAML as one line that names the key."""
    if isinstance(error, YAMLError | UnicodeDecodeError):
        conf = next((arg for arg in args if arg.startswith("conf=")), "conf")
        return f"{conf}: not valid YAML: {' '.join(str(error).split())}"
    if isinstance(error, MissingConfigException):
        group, _, name = (error.missing_cfg_file or "").rpartition("/")
        is_conf = group.startswith("experiment/")
        got = f"conf={name}: no such experiment" if is_conf else f"{group}={name}: no such option"
        return _with_nearest(got, name, list(error.options or []))
    if isinstance(error, OSError):
        return f"cannot read {error.filename}: {error.strerror}"
    while error.__cause__ is not None:
        error = error.__cause__
    details = str(error)
    text = _first_line(details.partition("raised while composing config:\n")[2] or details)
    found = re.search(r"full_key: (\S+)", details) or re.search(r"Could not override '([\w./@]+)'", text)
    if found is None:
        return text
    is_wrong_value = re.search("could not be converted|Invalid value|Incompatible value|not Optional", text)
    if is_wrong_value or found[1] in all_keys(command):
        return text if found[1] in text else f"{found[1]}: {text}"
    return _unknown_key(found[1], command, args)


def _unknown_key(key: str, command: str, args: list[str]) -> str:
    given = next((arg for arg in args if arg.startswith((f"{key}=", f"{key}."))), None)
    got = ""
    if given is not None:
        override = OverridesParser.create().parse_override(given)
        key = override.key_or_group
        got = "" if is_secret(key) else f" (got {override.value()})"
        given = f"{key}=..." if is_secret(key) else given
    if key in schema.RENAMED:
        return f"{key}: renamed to {schema.RENAMED[key]}"
    if key.startswith("deepspeed."):
        return f"{key} is not in the composed options of deepspeed; write +{given or key} to add it"
    known = all_keys(command)
    in_list = "." not in key and key not in {one.partition(".")[0] for one in known}
    if in_list and any(arg.startswith("reward=[") for arg in args):  # OmegaConf 2.3 omits the list's name
        key = f"reward[].{key}"
    return _with_nearest(f"unknown key {key}{got}", key, known)


def _with_nearest(message: str, got: str, known: list[str]) -> str:
    nearest = difflib.get_close_matches(got, known, n=1, cutoff=0.5)
    if nearest:
        return f"{message}; did you mean {nearest[0]}?"
    return f"{message}; known: {', '.join(known[:12])}{', ...' if len(known) > 12 else ''}"
