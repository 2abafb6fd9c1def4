"""Files that are on the disk when we say so. Imports no torch."""

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
    """Wait until a file's bytes, or a folder's entries, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_durably(path: Path, text: str | Iterable[str]) -> None:
    """Replace a file at once: who reads it finds the old text or the new one, also after a power cut.

    text: all of it, or what yields it part by part, which may read the old file.
    """
    aside = path.with_name(f".{path.name}.tmp")
    with aside.open("w", encoding="utf-8") as file:
        file.writelines([text] if isinstance(text, str) else text)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)
    sync(path.parent)


def publish(staging: Path, target: Path) -> None:
    """Give a complete, synced folder its name. An older one of that name is removed first, and is never half there."""
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
    """Turn what fails while `wanted` bytes are written below `path` into a DiskError with the path and the bytes."""
    try:
        yield
    except DiskError:
        raise
    except Exception as error:
        if not isinstance(error, OSError) and type(error).__name__ != "SafetensorError":  # safetensors wraps OSError
            raise
        room = f"{size(wanted)}, {size(free_bytes(path))} free"
        raise DiskError(
            f"cannot write {path} ({room}): {one_line(error, 300)}; what was saved before is intact: make room and go "
            "on with run.resume=true"
        ) from error


def require_room(path: Path, wanted: int, what: str) -> None:
    """Raise DiskError unless `wanted` bytes are free where `path` is or will be."""
    free = free_bytes(path)
    if free < wanted:
        raise DiskError(f"{what} takes {size(wanted)}, {path} has {size(free)} free; make room or set run.output_dir")


def free_bytes(path: Path) -> int:
    """Return the bytes that are free for us on the file system of `path`, which need not exist."""
    existing = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    return shutil.disk_usage(existing).free


def folder_bytes(folder: Path) -> int:
    """Return the bytes of all files below a folder."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def size(num_bytes: int) -> str:
    """Write a number of bytes for people, and exactly: `1.50 GiB (1610612736 bytes)`."""
    for unit, name in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if num_bytes >= unit:
            return f"{num_bytes / unit:.2f} {name} ({num_bytes} bytes)"
    return f"{num_bytes} bytes"
