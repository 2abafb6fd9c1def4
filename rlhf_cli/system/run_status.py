"""status.json: whether a run is in progress, and how it ended. Imports no torch."""

from __future__ import annotations

import json
import os
import socket
import time
from enum import Enum
from pathlib import Path
from typing import Any

from rlhf_cli.system.processes import state_and_parent

STATUS = "status.json"


class State(Enum):
    running = "running"
    finished = "finished"
    stopped = "stopped"  # by a signal or a guard, with a checkpoint
    failed = "failed"


def write_status(folder: Path, state: State, step: int, **more: Any) -> None:
    """Replace the status of a run; more: fields such as exit_code, reason, rank and phase."""
    record = {
        "state": state.value,
        "step": step,
        **more,
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "host": socket.gethostname(),
        "pid": os.getpid(),
    }
    temporary = folder / f".{STATUS}.{os.getpid()}"
    temporary.write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", "utf-8")
    temporary.replace(folder / STATUS)


def read_status(folder: Path) -> dict[str, Any]:
    """Return the status of a run; {} if there is no readable status.

    A run whose status is `running` but whose process is gone was killed: its state is reported as `failed`.
    """
    try:
        record: dict[str, Any] = json.loads((folder / STATUS).read_text("utf-8"))
        int(record["step"])
        is_local = record["host"] == socket.gethostname()
        if record["state"] == State.running.value and is_local and not _is_alive(record["pid"]):
            return {**record, "state": State.failed.value, "reason": "the process was killed before it could report"}
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return record


def _is_alive(pid: int) -> bool:
    try:
        found = state_and_parent(pid)
    except PermissionError:  # another user's process
        return True
    return found is not None and found[0] != "Z"  # a zombie has ended
