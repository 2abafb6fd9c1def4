"""Checkpoints of a run: all engines, the trainer's state and the random generators, published by one rename."""

from __future__ import annotations

import json
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rlhf_cli.config.errors import CheckpointError
from rlhf_cli.engine import distributed
from rlhf_cli.engine.base import TrainEngine
from rlhf_cli.engine.checkpoint_manifest import (
    BEST,
    CONFIG,
    LATEST,
    FileRecord,
    Manifest,
    check_hashes,
    check_sizes,
    find_checkpoint,
    pointed,
    read_manifest,
    steps,
    with_alternative,
)
from rlhf_cli.system.durable_files import disk_errors, publish, require_disk_space, sha256, sync, write_durably
from rlhf_cli.system.watchdog import PROGRESS

STATE = "trainer.json"
_SMALL_FILES = 2**20  # bytes for everything except tensors


class Checkpoints:
    """The folder `checkpoints/` of a run. Every checkpoint with a published name is complete and on disk.

    config_yaml: the run's options, stored in every checkpoint. on_save: called on rank 0 before a checkpoint is
    published, to sync the log to disk; returns the number of metric records.
    """

    def __init__(
        self,
        folder: Path,
        engines: dict[str, TrainEngine],
        keep_last: int,
        config_yaml: str,
        on_save: Callable[[], int] = lambda: 0,
    ) -> None:
        self.folder = folder
        self.engines = engines
        self.keep_last = keep_last
        self.config_yaml = config_yaml
        self.best_step: int | None = None
        self.num_logged = 0  # metric records of the run when the loaded checkpoint was saved
        self.on_save = on_save

    @property
    def num_bytes(self) -> int:
        """The size of one checkpoint in bytes."""
        return sum(engine.state_bytes for engine in self.engines.values()) + _SMALL_FILES

    def save(self, state: dict[str, Any], best: bool = False, drop_oldest: bool = True) -> None:
        """Write, sync and publish a checkpoint, then delete the oldest; a collective.

        state: the trainer's state, with its "step". best: also point `best` to this checkpoint. drop_oldest: False if
        the run ends early, because the user may want to continue from an older checkpoint. Files of a killed run start
        with a dot and are never read. If a rank fails, all ranks raise its error and older checkpoints stay intact.
        """
        step = state["step"]
        staging = self.folder / f".step-{step}"
        try:
            distributed.together(lambda: self._prepare(staging), only_first=True)
            records = distributed.gather_all(distributed.together(lambda: self._write_own(staging)))
            best_step = step if best else self.best_step
            distributed.together(
                lambda: self._publish(staging, {**state, "best_step": best_step}, records), only_first=True
            )
            self.best_step = best_step
            if drop_oldest:
                distributed.together(self._drop_oldest, only_first=True)
        except Exception:
            if distributed.rank() == 0:
                shutil.rmtree(staging, ignore_errors=True)
            raise

    def _prepare(self, staging: Path) -> None:
        with disk_errors(staging, self.num_bytes):
            self.clean()
            if not self.folder.exists():
                self.folder.mkdir(parents=True)
                sync(self.folder.parent)
            staging.mkdir()
        require_disk_space(self.folder, self.num_bytes, "a checkpoint")

    def clean(self) -> None:
        """Remove the leftovers of a killed save."""
        for leftover in self.folder.glob(".*-*"):
            shutil.rmtree(leftover)

    def _write_own(self, staging: Path) -> list[FileRecord]:
        """Write and sync this rank's files; return their records."""
        rank = distributed.rank()
        with disk_errors(staging, self.num_bytes // distributed.world_size()):
            for name, engine in self.engines.items():
                engine.save(staging / name)
            (staging / f"rng-rank{rank}.json").write_text(json.dumps(_random_state()), "utf-8")
            own = [*staging.glob(f"*/rank{rank}-*"), staging / f"rng-rank{rank}.json"]
            for file in own:
                PROGRESS.tick()
                sync(file)
            return [_record(file, staging) for file in own]

    def _publish(self, staging: Path, state: dict[str, Any], records: list[list[FileRecord]]) -> None:
        """On rank 0, complete the checkpoint, rename it to its final name, and point `latest` to it."""
        with disk_errors(staging, _SMALL_FILES):
            num_logged = self.on_save()
            skipped = {name: engine.num_skipped for name, engine in self.engines.items()}
            own_state = {"skipped_in_a_row": skipped, "num_logged": num_logged}
            write_durably(staging / STATE, json.dumps({**state, **own_state}) + "\n")
            write_durably(staging / CONFIG, self.config_yaml)
            files = [
                *(record for of_rank in records for record in of_rank),
                *(_record(staging / name, staging) for name in (STATE, CONFIG)),
            ]
            written = time.strftime("%Y-%m-%dT%H:%M:%S%z")
            manifest = Manifest(state["step"], distributed.world_size(), written, tuple(files))
            check_sizes(staging, manifest)  # fails if a rank wrote to a disk that rank 0 does not see
            manifest.write(staging)
            for engine in self.engines:
                sync(staging / engine)
            sync(staging)
            name = f"step-{state['step']}\n"
            if not steps(self.folder):  # so that the run can be resumed right after the first rename
                write_durably(self.folder / LATEST, name)
            publish(staging, self.folder / name.strip())
            write_durably(self.folder / LATEST, name)
            if state["best_step"] == state["step"]:
                write_durably(self.folder / BEST, name)

    def _drop_oldest(self) -> None:
        with disk_errors(self.folder, 0):
            kept = {pointed(self.folder, LATEST), pointed(self.folder, BEST)}
            for old in steps(self.folder)[: -self.keep_last]:
                if self.folder / f"step-{old}" not in kept:
                    self._drop(old)

    def state_of(self, folder: Path) -> dict[str, Any]:
        """Return the trainer's state in a checkpoint without loading anything."""
        state: dict[str, Any] = json.loads((folder / STATE).read_text("utf-8"))
        return state

    def load(self, folder: Path) -> dict[str, Any]:
        """Load a checkpoint into the engines and return the trainer's state; a collective.

        The number of ranks may differ from the one that saved it. Later checkpoints are deleted, because the run
        continues from this one.
        """
        state = self.state_of(folder)
        skipped, self.num_logged = state.pop("skipped_in_a_row"), state.pop("num_logged")
        for name, engine in self.engines.items():
            engine.load(folder / name, skipped[name])
        if read_manifest(folder).world_size == distributed.world_size():
            _restore_random_state(json.loads((folder / f"rng-rank{distributed.rank()}.json").read_text("utf-8")))
        best_step = state.pop("best_step")
        self.best_step = distributed.together(lambda: self._rewind(folder, state["step"], best_step), only_first=True)
        return state

    def _rewind(self, folder: Path, step: int, best: int | None) -> int | None:
        """Reset `latest` and `best` to a step and delete later checkpoints; return the best step that still exists."""
        with disk_errors(self.folder, _SMALL_FILES):
            write_durably(self.folder / LATEST, f"{folder.name}\n")
            best = best if best in steps(self.folder) else None
            if best is None:
                (self.folder / BEST).unlink(missing_ok=True)
            else:
                write_durably(self.folder / BEST, f"step-{best}\n")
            for later in steps(self.folder):
                if later > step:
                    self._drop(later)
        return best

    def _drop(self, step: int) -> None:
        """Delete a checkpoint. It is renamed first, so that a half-deleted one is never read."""
        doomed = self.folder / f".old-step-{step}"
        (self.folder / f"step-{step}").rename(doomed)
        shutil.rmtree(doomed)


def verified_checkpoint(run: Path, wanted: bool | str) -> Path:
    """Return the checkpoint to resume from after verifying every byte; each rank reads a share of the files.

    Raises the errors of checkpoint_manifest.find_checkpoint, on all ranks.
    """
    folder, manifest = distributed.together(lambda: find_checkpoint(run, wanted), only_first=True)
    try:
        distributed.together(lambda: check_hashes(folder, manifest, distributed.rank(), distributed.world_size()))
    except CheckpointError as error:
        failed = error
        raise distributed.together(lambda: with_alternative(failed, run), only_first=True) from None
    return folder


def write_folder(write: Callable[[Path], None], target: Path, num_bytes: int) -> None:
    """Write a folder on rank 0; it gets its name only when it is complete and on disk. A collective.

    num_bytes: the expected size, for the error message.
    """

    def write_on_rank_0() -> None:
        staging = target.with_name(f".{target.name}")
        with disk_errors(target, num_bytes):
            shutil.rmtree(staging, ignore_errors=True)
            staging.mkdir(parents=True)
            write(staging)
            for path in (*staging.rglob("*"), staging):
                sync(path)
            publish(staging, target)

    distributed.together(write_on_rank_0, only_first=True)


def _record(file: Path, staging: Path) -> FileRecord:
    PROGRESS.tick()
    return FileRecord(str(file.relative_to(staging)), file.stat().st_size, sha256(file))


def _random_state() -> dict[str, Any]:
    """Return the state of this process's global random generators as JSON values."""
    kind, keys, position, has_gauss, gauss = np.random.get_state()  # the global generator, which libraries use
    state = {
        "python": random.getstate(),
        "numpy": [kind, np.asarray(keys).tolist(), position, has_gauss, gauss],
        "torch": torch.get_rng_state().numpy().tobytes().hex(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state().numpy().tobytes().hex()
    return state


def _restore_random_state(state: dict[str, Any]) -> None:
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), *rest))
    torch.set_rng_state(torch.frombuffer(bytearray.fromhex(state["torch"]), dtype=torch.uint8))
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(torch.frombuffer(bytearray.fromhex(state["cuda"]), dtype=torch.uint8))
