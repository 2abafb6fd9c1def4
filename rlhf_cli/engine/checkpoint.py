"""Checkpoints of a run: all engines, the trainer's state and the random generators, published as one by a rename."""

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
    pointed,
    read_manifest,
    steps,
    to_resume,
    with_way_out,
)
from rlhf_cli.system.durable_files import disk_errors, publish, require_room, sha256, sync, write_durably
from rlhf_cli.system.watchdog import PROGRESS

STATE = "trainer.json"
_SMALL_FILES = 2**20  # room for what is not tensors


class Checkpoints:
    """The folder `checkpoints/` of a run. What is named in it is complete and on the disk.

    config_yaml: the options of the run, kept in every checkpoint; on_save: called on rank 0 before a checkpoint is
    published, to bring the log to the disk; returns how many metric records there are.
    """

    def __init__(self, folder: Path, engines: dict[str, TrainEngine], keep_last: int, config_yaml: str) -> None:
        self.folder = folder
        self.engines = engines
        self.keep_last = keep_last
        self.config_yaml = config_yaml
        self.best_step: int | None = None
        self.num_logged = 0  # metric records of the run when the loaded checkpoint was saved
        self.on_save: Callable[[], int] = lambda: 0

    @property
    def num_bytes(self) -> int:
        """Bytes of one checkpoint."""
        return sum(engine.state_bytes for engine in self.engines.values()) + _SMALL_FILES

    def save(self, state: dict[str, Any], best: bool = False, drop_oldest: bool = True) -> None:
        """Write, sync and publish a checkpoint, then drop the oldest; all ranks together.

        state: the trainer's, with its "step"; best: name it the best so far; drop_oldest: not where a run ends before
        its time, for an older checkpoint may be the one to go on from. What a killed run leaves behind starts
        with a dot and is never read. When a rank fails, all raise its error and the older checkpoints stand.
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
        require_room(self.folder, self.num_bytes, "a checkpoint")

    def clean(self) -> None:
        """Remove what a killed save has left."""
        for leftover in self.folder.glob(".*-*"):
            shutil.rmtree(leftover)

    def _write_own(self, staging: Path) -> list[FileRecord]:
        """Write and sync this rank's files; return what they are."""
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
        """On rank 0: complete the checkpoint, give it its name, point to it."""
        with disk_errors(staging, _SMALL_FILES):
            num_logged = self.on_save()
            skipped = {name: engine.num_skipped for name, engine in self.engines.items()}
            own_state = {"skipped_in_a_row": skipped, "num_logged": num_logged}
            write_durably(staging / STATE, json.dumps({**state, **own_state}) + "\n")
            write_durably(staging / CONFIG, self.config_yaml)
            files = [
                *(one for part in records for one in part),
                *(_record(staging / n, staging) for n in (STATE, CONFIG)),
            ]
            written = time.strftime("%Y-%m-%dT%H:%M:%S%z")
            manifest = Manifest(state["step"], distributed.world_size(), written, tuple(files))
            check_sizes(staging, manifest)  # no rank wrote to a disk of its own
            manifest.write(staging)
            for engine in self.engines:
                sync(staging / engine)
            sync(staging)
            name = f"step-{state['step']}\n"
            if not steps(self.folder):  # from the very first rename on there is something to go on from
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
        """Return the trainer's state in a checkpoint, and load nothing."""
        state: dict[str, Any] = json.loads((folder / STATE).read_text("utf-8"))
        return state

    def load(self, folder: Path) -> dict[str, Any]:
        """Load a checkpoint into the engines, and return the trainer's state; all ranks together.

        Any number of ranks reads it. Later checkpoints, if there are any, are dropped: the run goes on from this one.
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
        """Let the pointers be what they were after a step, and drop what came later; return the best that is there."""
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
        """Remove a checkpoint; half removed it has no name that is read."""
        going = self.folder / f".old-step-{step}"
        (self.folder / f"step-{step}").rename(going)
        shutil.rmtree(going)


def to_resume_together(run: Path, wanted: bool | str) -> Path:
    """Return the checkpoint to go on from once every byte of it is checked, each rank reading a share of the files.

    Raises what manifest.to_resume raises, on all ranks.
    """
    folder, manifest = distributed.together(lambda: to_resume(run, wanted), only_first=True)
    try:
        distributed.together(lambda: check_hashes(folder, manifest, distributed.rank(), distributed.world_size()))
    except CheckpointError as error:
        failed = error
        raise distributed.together(lambda: with_way_out(failed, run), only_first=True) from None
    return folder


def write_folder(write: Callable[[Path], None], target: Path, num_bytes: int) -> None:
    """Let rank 0 write a folder that appears under its name complete and on the disk; all ranks together."""

    def on_first() -> None:
        staging = target.with_name(f".{target.name}")
        with disk_errors(target, num_bytes):
            shutil.rmtree(staging, ignore_errors=True)
            staging.mkdir(parents=True)
            write(staging)
            for path in (*staging.rglob("*"), staging):
                sync(path)
            publish(staging, target)

    distributed.together(on_first, only_first=True)


def _record(file: Path, staging: Path) -> FileRecord:
    PROGRESS.tick()
    return FileRecord(str(file.relative_to(staging)), file.stat().st_size, sha256(file))


def _random_state() -> dict[str, Any]:
    """The state of every global generator of this process, as JSON takes it."""
    kind, keys, position, has_gauss, gauss = np.random.get_state()  # the global one, which others use
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
