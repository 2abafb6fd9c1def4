"""How a run ends that does not come to its end: one voice, one exit code on every rank, and status.json."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
from contextlib import suppress
from pathlib import Path

import torch

from rlhf_cli.config.errors import GuardError, Interrupted, OutOfMemoryError, RunError, StalledError
from rlhf_cli.config.schema import TrainPPOConfig, TrainRMConfig
from rlhf_cli.engine import distributed
from rlhf_cli.plan.phases import Lengths
from rlhf_cli.report.html.html_page import leave_report
from rlhf_cli.run.memory_plan import here, out_of_memory_advice
from rlhf_cli.system.run_status import State, read_status, write_status
from rlhf_cli.system.text import one_line, printable
from rlhf_cli.system.watchdog import FOLDER, PROGRESS, Watchdog

INTERRUPTED_BY_KEYBOARD = 130  # 128 + SIGINT, where nothing was to save yet
_PEER_S = 8.0  # how long the rank that broke a connection has to say why
_PEER_LOST = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "Socket closed")
_PEER_LOST_NCCL = ("remote process exited", "ncclRemoteError")


class FailureHandler:
    """Knows what a failure needs to be told well; filled in as the run comes to know it."""

    def __init__(self, watch: Path, config: TrainRMConfig | TrainPPOConfig) -> None:
        """watch: the folder that the ranks share."""
        rank, num_ranks = distributed.rank(), distributed.world_size()
        self.watchdog = Watchdog(watch, rank, num_ranks, config.launch.timeout_s, self._stalled)
        self.config = config
        self.folder: Path | None = None  # of the run, once this process may write there
        self.lengths = Lengths.allowed(config)  # of the texts, until the data are known

    def _stalled(self, message: str) -> None:
        self._tell(f"rlhf: error: {message}", State.failed, StalledError.code, message)

    def failed(self, error: BaseException) -> int:
        """Tell of an error, if this rank is the first that failed; return the exit code of the run."""
        code, text = self._explain(error)
        if _lost_a_peer(error) or (isinstance(error, RunError) and error.second_hand):
            self._wait_for_peer()
        first = self.watchdog.claim_failure(code)
        if first is not None:
            return first
        stopped = isinstance(error, Interrupted | GuardError)
        self._tell(text, State.stopped if stopped else State.failed, code, _one_line(error))
        return code

    def _explain(self, error: BaseException) -> tuple[int, str]:
        if isinstance(error, KeyboardInterrupt):
            return INTERRUPTED_BY_KEYBOARD, ""
        if isinstance(error, torch.OutOfMemoryError):
            error = OutOfMemoryError(
                f"rank {distributed.rank()}, {PROGRESS}: {_one_line(error)}\n"
                + out_of_memory_advice(self.config, here(), self.lengths)
            )
        if isinstance(error, Interrupted):
            return error.code, f"rlhf: {error}"
        if isinstance(error, RunError):
            return error.code, f"rlhf: error: {error}"
        if _lost_a_peer(error):
            return 1, (
                f"rlhf: error: rank {distributed.rank()}, {PROGRESS}, lost another rank, which ended without a word "
                f"(killed, or out of host memory?): {_one_line(error)}"
            )
        told = "".join(traceback.format_exception(error))
        return 1, f"rlhf: error: rank {distributed.rank()} failed {PROGRESS}:\n{told}"

    def _wait_for_peer(self) -> None:
        deadline = time.monotonic() + _PEER_S
        while self.watchdog.first_failure() is None and time.monotonic() < deadline:
            time.sleep(0.1)

    def _tell(self, text: str, state: State, code: int, reason: str) -> None:
        with suppress(OSError):  # nobody may listen
            print(printable(text), end="\n" if text else "", file=sys.stderr, flush=True)
        if self.folder is None or not self.folder.is_dir():
            return
        rank = distributed.rank()
        step = read_status(self.folder).get("step", 0)
        with suppress(OSError):  # a full disk must not hide what is told here
            write_status(self.folder, state, step, exit_code=code, reason=reason, rank=rank, phase=PROGRESS.phase)
            with (self.folder / "log.txt").open("a", encoding="utf-8") as log:
                log.write(f"{printable(text)}\n")
            if self.config.report.html:
                _deaf_to_terminations()
                said = leave_report(self.folder)
                with (self.folder / "log.txt").open("a", encoding="utf-8") as log:
                    log.write(f"{said}\n")


def _deaf_to_terminations() -> None:
    """A launcher terminates the ranks that are left once one has ended; what is being written is not to be cut off."""
    with suppress(ValueError):  # a thread of the watchdog's may not say so
        signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _lost_a_peer(error: BaseException) -> bool:
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in (*_PEER_LOST, *_PEER_LOST_NCCL))


def _one_line(error: BaseException) -> str:
    return one_line(error, 500) or type(error).__name__


def watch_folder() -> Path:
    """Return the folder that the ranks of this machine share to look after each other; all ranks together."""
    if FOLDER in os.environ:
        return Path(os.environ[FOLDER])
    folder = Path(distributed.broadcast(tempfile.mkdtemp(prefix="rlhf-watch-") if distributed.rank() == 0 else ""))
    folder.mkdir(exist_ok=True)  # on another machine
    return folder


def forget_watch_folder(folder: Path) -> None:
    """Remove what `watch_folder` made, after a run without failure."""
    if FOLDER not in os.environ:
        shutil.rmtree(folder, ignore_errors=True)
