"""Checkpoints of a run: all engines and the step, written aside and published by a rename."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from rlhf_cli.engine import distributed
from rlhf_cli.engine.zero import TrainEngine
from rlhf_cli.report.run_dir import CHECKPOINT_STATE, checkpoint_steps, newest_checkpoint


class Checkpoints:
    """The folder `checkpoints/` of a run: `step-N/` holds one sub-folder an engine and the trainer's state."""

    def __init__(self, folder: Path, engines: dict[str, TrainEngine], keep_last: int) -> None:
        self.folder = folder
        self.engines = engines
        self.keep_last = keep_last

    def save(self, state: dict[str, Any]) -> None:
        """Write a checkpoint and drop the oldest ones; all ranks together. state: the trainer's, with its "step".

        It appears under its name only when every rank has written its part; what a killed run leaves behind starts
        with a dot and is never read.
        """
        step = state["step"]
        staging = self.folder / f".step-{step}"
        if distributed.rank() == 0:
            shutil.rmtree(staging, ignore_errors=True)
            staging.mkdir(parents=True)
        distributed.barrier()
        for name, engine in self.engines.items():
            engine.save(str(staging), name)
        distributed.barrier()
        if distributed.rank() == 0:
            record = {**state, "world_size": distributed.world_size()}
            (staging / CHECKPOINT_STATE).write_text(json.dumps(record) + "\n", "utf-8")
            published = self.folder / f"step-{step}"
            shutil.rmtree(published, ignore_errors=True)
            staging.rename(published)
            for old in checkpoint_steps(self.folder)[: -self.keep_last]:
                shutil.rmtree(self.folder / f"step-{old}")
        distributed.barrier()

    def load_newest(self) -> dict[str, Any]:
        """Load the newest checkpoint into the engines and return the trainer's state; all ranks together.

        Raises InputError where there is none, or where it was written by another number of ranks.
        """
        folder = newest_checkpoint(self.folder.parent, distributed.world_size())
        for name, engine in self.engines.items():
            engine.load(str(folder), name)
        state: dict[str, Any] = json.loads((folder / CHECKPOINT_STATE).read_text("utf-8"))
        return state
