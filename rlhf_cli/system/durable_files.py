"""Durable files: atomic replacement, fsync, hashes, and disk-space errors. Imports no torch."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rlhf_cli.config.errors import DiskError
from rlhf_cli.system.text import one_line


def sync(path: Path) -> None:
    """Flush a file's bytes, or a folder's entries, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_durably(path: Path, text: str | Iterable[str]) -> None:
    """Replace a file atomically: a reader finds the old text or the new text, even after a power cut.

    text: the whole text, or an iterable of its parts, which may read the old file.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.writelines([text] if isinstance(text, str) else text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    sync(path.parent)


def publish(staging: Path, target: Path) -> None:
    """Rename a complete, synced folder to its final name. An older folder of that name is replaced as a whole."""
    old = target.with_name(f".old-{target.name}")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    staging.rename(target)
    sync(target.parent)
    shutil.rmtree(old, ignore_errors=True)


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file, in hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def disk_errors(path: Path, wanted: int) -> Iterator[None]:
    """Convert an error while writing `wanted` bytes below `path` into a DiskError that gives the path and the sizes."""
    try:
        yield
    except DiskError:
        raise
    except Exception as error:
        if not isinstance(error, OSError) and type(error).__name__ != "SafetensorError":  # safetensors wraps OSError
            raise
        sizes = f"{size(wanted)}, {size(free_bytes(path))} free"
        raise DiskError(
            f"cannot write {path} ({sizes}): {one_line(error, 300)}; earlier checkpoints are intact. "
            "Free some disk space and continue with run.resume=true"
        ) from error


def require_disk_space(path: Path, wanted: int, what: str) -> None:
    """Raise DiskError unless `wanted` bytes are free on the file system of `path`, which need not exist yet."""
    free = free_bytes(path)
    if free < wanted:
        raise DiskError(
            f"{what} needs {size(wanted)}, but {path} has {size(free)} free. Free some space or set run.output_dir"
        )


def free_bytes(path: Path) -> int:
    """Return the bytes available on the file system of `path`, which need not exist yet."""
    existing = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    return shutil.disk_usage(existing).free


def folder_bytes(folder: Path) -> int:
    """Return the total size of all files below a folder, in bytes."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def size(num_bytes: int) -> str:
    """Format a number of bytes for people and exactly: `1.50 GiB (1610612736 bytes)`."""
    for unit, name in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if num_bytes >= unit:
            return f"{num_bytes / unit:.2f} {name} ({num_bytes} bytes)"
    return f"{num_bytes} bytes"
