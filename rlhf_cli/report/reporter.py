"""What a run tells: metrics.jsonl, samples.jsonl, log.txt and a progress display. Only rank 0 writes."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from rlhf_cli.engine.memory import PeakMemory
from rlhf_cli.engine.watchdog import PROGRESS
from rlhf_cli.report.checks import Check, table
from rlhf_cli.report.run_dir import RunDir
from rlhf_cli.report.status import State, write_status


@dataclass(frozen=True)
class Work:
    """What a phase of a step has done, on all ranks."""

    flops: float  # that it cannot do without
    tokens: float


_PIPED_WIDTH = 160  # where nobody says how wide it is
logger = logging.getLogger("rlhf")


class Reporter:
    """One run's voice; silent unless `speaks`, which is rank 0. It has no folder until the input has proved good."""

    def __init__(self, speaks: bool) -> None:
        self.console = Console(quiet=not speaks, soft_wrap=True, width=None if sys.stdout.isatty() else _PIPED_WIDTH)
        self.speaks = speaks
        self.run_dir: RunDir | None = None
        self._num_steps = 0
        self._headline: Sequence[str] = ()
        self._said: list[str] = []
        self._warned: set[str] = set()
        self._seconds: dict[str, float] = {}
        self._gib: dict[str, float] = {}  # the most memory of each phase
        self.memory = PeakMemory()
        self._peak: float | None = None
        self._progress: Progress | None = None

    def open(self, run_dir: RunDir | None, num_steps: int, headline: Sequence[str]) -> None:
        """From here on write to a run folder (rank 0); `headline` names the metrics of the progress line."""
        assert (run_dir is not None) == self.speaks
        self.run_dir, self._num_steps, self._headline = run_dir, num_steps, headline
        for text in self._said:
            logger.info("%s", text)

    def measure_against(self, peak: float) -> None:
        """Log from here on how much of `peak`, the FLOP/s of all ranks together, each phase makes use of."""
        self._peak = peak
        self.say(
            f"matrix products: {peak / 1e12:.3g} TFLOP/s on all ranks together, measured; perf/mfu is a share of it"
        )

    @contextmanager
    def time(self, phase: str) -> Iterator[None]:
        """Add the seconds of the body to `time/<phase>` of the next logged step; its peak is `memory/<phase>_gib`."""
        PROGRESS.enter(phase)
        self.memory.restart()
        start = time.perf_counter()
        try:
            yield
        finally:
            self._seconds[phase] = self._seconds.get(phase, 0.0) + time.perf_counter() - start
            self._gib[phase] = max(self._gib.get(phase, 0.0), self.memory.since)

    def log(
        self, step: int, metrics: dict[str, float], num_tokens: int, work: Mapping[str, Work] | None = None
    ) -> None:
        """Write the metrics of a step with its times, speed and memory.

        num_tokens: response tokens of all ranks; work: what the phases did, by their names.
        """
        seconds = sum(self._seconds.values())
        record: dict[str, Any] = {"step": step, **metrics}
        record |= {f"time/{phase}": spent for phase, spent in self._seconds.items()}
        record |= {"time/step": seconds, "tokens_per_s": num_tokens / seconds}
        record |= {f"memory/{phase}_gib": gib for phase, gib in self._gib.items()}
        record["memory/peak_gib"] = self.memory.highest
        record |= self._speed(work or {})
        self._seconds, self._gib = {}, {}
        if self.run_dir is None:
            return
        self.run_dir.append("metrics.jsonl", record)
        with suppress(OSError):  # it says no more than the line above
            write_status(self.run_dir.folder, State.running, step)
        line = "  ".join(f"{name} {record[name]:.4g}" for name in self._headline if name in record)
        logger.info("step %d/%d  %s  %.1f s", step, self._num_steps, line, seconds)
        if self._progress is None:
            self.console.print(f"step {step}/{self._num_steps}  {line}  {seconds:.1f} s", highlight=False)
        else:
            self._progress.update(self._progress.task_ids[0], completed=step, figures=line)

    def _speed(self, work: Mapping[str, Work]) -> dict[str, float]:
        """Tokens a second and share of the peak, of each phase and of all."""
        figures = {f"perf/{phase}_tokens_per_s": done.tokens / self._seconds[phase] for phase, done in work.items()}
        if self._peak and work:
            figures |= {
                f"perf/mfu_{phase}": done.flops / self._seconds[phase] / self._peak for phase, done in work.items()
            }
            figures["perf/mfu"] = sum(done.flops for done in work.values()) / sum(self._seconds.values()) / self._peak
        return figures

    def log_eval(self, step: int, metrics: dict[str, float]) -> None:
        """Write the metrics of an evaluation, as a record of its own."""
        if self.run_dir is not None:
            self.run_dir.append("metrics.jsonl", {"step": step, **metrics})
            figures = "  ".join(f"{name} {value:.4g}" for name, value in metrics.items())
            self.say(f"evaluation at step {step}: {figures}")

    def say(self, text: str) -> None:
        """Tell the user one line, and the log."""
        self.console.print(escape(text), highlight=False)
        if self.run_dir is not None:
            logger.info("%s", text)
        else:
            self._said.append(text)

    def warn_once(self, text: str) -> None:
        """Warn of something that later steps will see again."""
        if text not in self._warned:
            self._warned.add(text)
            self.say(f"warning: {text}")

    def checks(self, checks: Sequence[Check], seconds: float) -> None:
        """Show the checks of the set-up as a table, and write each to the log."""
        self.console.print(
            table(checks, f"Checks of the set-up ({seconds:.1f} s)", self.console.width), soft_wrap=False
        )
        self._said += [str(check) for check in checks]

    def samples_once(self, stage: str, records: list[dict[str, Any]]) -> None:
        """Write the answers of a stage to samples.jsonl, unless an earlier start of the run has."""
        if self.run_dir is None or any(one["stage"] == stage for one in self.run_dir.read_lines("samples.jsonl")):
            return
        for record in records:
            self.run_dir.append("samples.jsonl", record)

    @contextmanager
    def progress(self, first_step: int) -> Iterator[None]:
        """Show a progress bar while the body runs, where standard output is a terminal; plain lines otherwise."""
        if self.run_dir is None or not self.console.is_terminal:
            yield
            return
        columns = [BarColumn(24), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.fields[figures]}")]
        with Progress(*columns, console=self.console) as self._progress:
            self._progress.add_task("steps", total=self._num_steps, completed=first_step, figures="")
            yield
        self._progress = None
