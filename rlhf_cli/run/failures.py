"""How a failed run ends: one rank explains the failure, and all ranks exit with the same code."""

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
from rlhf_cli.run.memory_plan import out_of_memory_advice, run_topology
from rlhf_cli.system.run_status import State, read_status, write_status
from rlhf_cli.system.text import one_line, printable
from rlhf_cli.system.watchdog import FOLDER, PROGRESS, Watchdog

INTERRUPTED_BY_KEYBOARD = 130  # 128 + SIGINT, before there is anything to save
_PEER_S = 8.0  # how long to wait for the rank that broke a connection to explain itself
_PEER_LOST = (
    *("Connection closed by peer", "Connection reset by peer", "Broken pipe", "Socket closed"),
    *("remote process exited", "ncclRemoteError"),  # of NCCL
)


class FailureHandler:
    """Explains failures to the user and records them in the run folder.

    watch_folder: shared by the ranks of this machine.
    """

    def __init__(self, watch_folder: Path, config: TrainRMConfig | TrainPPOConfig) -> None:
        rank, num_ranks = distributed.rank(), distributed.world_size()
        self.watchdog = Watchdog(watch_folder, rank, num_ranks, config.launch.timeout_s, self._stalled)
        self.config = config
        self._folder: Path | None = None  # of the run, once this process may write to it
        self._lengths = Lengths.allowed(config)  # upper bounds, until the data are loaded

    def write_to(self, folder: Path) -> None:
        """Record failures in a run folder from now on."""
        self._folder = folder

    def use_lengths(self, lengths: Lengths) -> None:
        """Plan memory savings with the measured lengths of the data from now on."""
        self._lengths = lengths

    def _stalled(self, message: str) -> None:
        self._report(f"rlhf: error: {message}", State.failed, StalledError.code, message)

    def failed(self, error: BaseException) -> int:
        """Report an error if this rank is the first to fail; return the exit code of the run."""
        code, text = self._explain(error)
        if _lost_a_peer(error) or (isinstance(error, RunError) and error.second_hand):
            self._wait_for_peer()
        first = self.watchdog.claim_failure(code)
        if first is not None:
            return first
        stopped = isinstance(error, Interrupted | GuardError)
        self._report(text, State.stopped if stopped else State.failed, code, _one_line(error))
        return code

    def _explain(self, error: BaseException) -> tuple[int, str]:
        """Return the exit code and the message of an error."""
        if isinstance(error, KeyboardInterrupt):
            return INTERRUPTED_BY_KEYBOARD, ""
        if isinstance(error, torch.OutOfMemoryError):
            error = OutOfMemoryError(
                f"rank {distributed.rank()}, {PROGRESS}: {_one_line(error)}\n"
                + out_of_memory_advice(self.config, run_topology(), self._lengths)
            )
        if isinstance(error, Interrupted):
            return error.code, f"rlhf: {error}"
        if isinstance(error, RunError):
            return error.code, f"rlhf: error: {error}"
        if _lost_a_peer(error):
            return 1, (
                f"rlhf: error: rank {distributed.rank()}, {PROGRESS}, lost another rank, which ended without a message "
                f"(killed, or out of host memory?): {_one_line(error)}"
            )
        trace = "".join(traceback.format_exception(error))
        return 1, f"rlhf: error: rank {distributed.rank()} failed {PROGRESS}:\n{trace}"

    def _wait_for_peer(self) -> None:
        deadline = time.monotonic() + _PEER_S
        while self.watchdog.first_failure() is None and time.monotonic() < deadline:
            time.sleep(0.1)

    def _report(self, text: str, state: State, code: int, reason: str) -> None:
        with suppress(OSError):  # standard error may be closed
            print(printable(text), end="\n" if text else "", file=sys.stderr, flush=True)
        if self._folder is None or not self._folder.is_dir():
            return
        rank = distributed.rank()
        step = read_status(self._folder).get("step", 0)
        with suppress(OSError):  # a full disk must not hide the failure
            write_status(self._folder, state, step, exit_code=code, reason=reason, rank=rank, phase=PROGRESS.phase)
            self._log(printable(text))
            if self.config.report.html:
                _ignore_sigterm()
                self._log(leave_report(self._folder))

    def _log(self, line: str) -> None:
        assert self._folder is not None
        with (self._folder / "log.txt").open("a", encoding="utf-8") as log:
            log.write(f"{line}\n")


def _ignore_sigterm() -> None:
    """Let the report be written: a launcher terminates the remaining ranks once one has ended."""
    with suppress(ValueError):  # the watchdog's thread may not set signal handlers
        signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _lost_a_peer(error: BaseException) -> bool:
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _PEER_LOST)


def _one_line(error: BaseException) -> str:
    return one_line(error, 500) or type(error).__name__


def make_watch_folder() -> Path:
    """Return the folder in which the ranks of this machine watch each other; collective."""
    if FOLDER in os.environ:
        return Path(os.environ[FOLDER])
    folder = Path(distributed.broadcast(tempfile.mkdtemp(prefix="rlhf-watch-") if distributed.rank() == 0 else ""))
    folder.mkdir(exist_ok=True)  # on another machine
    return folder


def remove_watch_folder(folder: Path) -> None:
    """Remove the folder after a successful run, unless a launcher owns it."""
    if FOLDER not in os.environ:
        shutil.rmtree(folder, ignore_errors=True)
