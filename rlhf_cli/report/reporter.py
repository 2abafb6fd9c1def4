"""What a run tells: metrics.jsonl, samples.jsonl, log.txt, the live view and trackers. Only rank 0 writes."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from typing import Any

from rich.markup import escape

from rlhf_cli.config.report_options import ReportConfig
from rlhf_cli.engine.peak_memory import PeakMemory
from rlhf_cli.engine.roofline import Work
from rlhf_cli.report.check_table import Check, table
from rlhf_cli.report.live_view import LiveView
from rlhf_cli.report.run_dir import CHECKS, EVENTS, METRICS, PAIRS, PLAN, ROLLOUTS, SAMPLES, RunDir
from rlhf_cli.report.trackers import Trackers
from rlhf_cli.system.run_status import State, write_status
from rlhf_cli.system.signals import StopSignals
from rlhf_cli.system.terminal import console
from rlhf_cli.system.watchdog import PROGRESS

_LIVE_ROWS = (  # those that a run logs are shown
    *("score", "kl", "reward", "response_length", "eos_rate", "entropy", "clipfrac/policy", "loss/value"),
    *("loss", "accuracy", "margin", "grad_norm", "lr", "tokens_per_s", "perf/mfu", "memory/peak_gib"),
)
logger = logging.getLogger("rlhf")


class Reporter:
    """One run's voice; silent unless `speaks`, which is rank 0. It has no folder until the input has proved good."""

    def __init__(self, speaks: bool, config: ReportConfig | None = None) -> None:
        self.config = config or ReportConfig()
        self.console = console(quiet=not speaks, soft_wrap=True)
        self.speaks = speaks
        self.run_dir: RunDir | None = None
        self._num_steps = 0
        self._headline: Sequence[str] = ()
        self._said: list[str] = []
        self._events: list[tuple[str, str]] | None = []  # kind and text, until it is known after which step they come
        self._documents: dict[str, dict[str, Any]] = {}  # likewise, by file
        self._step = 0  # of the newest record
        self._evaluation: dict[str, float] = {}
        self._warned: set[str] = set()
        self._seconds: dict[str, float] = {}
        self._gib: dict[str, float] = {}  # the most memory of each phase
        self.memory = PeakMemory()
        self._peak: float | None = None
        self._live: LiveView | None = None
        self._tracked: Trackers | None = None

    def open(self, run_dir: RunDir | None, num_steps: int, headline: Sequence[str]) -> None:
        """From here on write to a run folder (rank 0); `headline` names the metrics of the progress line."""
        assert (run_dir is not None) == self.speaks
        self.run_dir, self._num_steps, self._headline = run_dir, num_steps, headline
        for text in self._said:
            logger.info("%s", text)
        if run_dir is not None:
            for name, record in self._documents.items():
                run_dir.write_json(name, record)

    def began(self, step: int) -> None:
        """From here on events are written down; step: after which the run begins or goes on."""
        self._step, waiting, self._events = step, self._events or [], None
        for kind, text in waiting:
            self.event(kind, text)

    def measure_against(self, peak: float) -> None:
        """Log from here on how much of `peak`, the FLOP/s of all ranks together, each phase makes use of."""
        self._peak = peak
        self.say(
            f"matrix products: {peak / 1e12:.3g} TFLOP/s on all ranks together, measured; perf/mfu is a share of it"
        )

    @contextmanager
    def time(self, phase: str) -> Iterator[None]:
        """Add the seconds of the body to `time/<phase>` of the next logged step; its peak is `memory/<phase>_gib`."""
        self._enter(phase)
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
        self._seconds, self._gib, self._step = {}, {}, step
        if self.run_dir is None:
            return
        self.run_dir.append(METRICS, record)
        with suppress(OSError):  # it says no more than the line above
            write_status(self.run_dir.folder, State.running, step)
        line = "  ".join(f"{name} {record[name]:.4g}" for name in self._headline if name in record)
        logger.info("step %d/%d  %s  %.1f s", step, self._num_steps, line, seconds)
        if self._tracked is not None:
            self._tracked.log(step, record)
        if self._live is None:
            self.console.print(f"step {step}/{self._num_steps}  {line}  {seconds:.1f} s", highlight=False)
        else:
            self._live.show_step(step, record)

    def _speed(self, work: Mapping[str, Work]) -> dict[str, float]:
        """Tokens a second and share of the peak, of each phase and of all."""
        figures = {f"perf/{phase}_tokens_per_s": done.tokens / self._seconds[phase] for phase, done in work.items()}
        if self._peak and work:
            figures |= {
                f"perf/mfu_{phase}": done.flops / self._seconds[phase] / self._peak for phase, done in work.items()
            }
            figures["perf/mfu"] = sum(done.flops for done in work.values()) / sum(self._seconds.values()) / self._peak
        return figures

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Take the seconds of the body out of every step's; they are `time/evaluate` of the next evaluation logged."""
        self._enter("evaluate")
        start = time.perf_counter()
        yield
        self._evaluation = {"time/evaluate": time.perf_counter() - start}

    def _enter(self, phase: str) -> None:
        PROGRESS.enter(phase)
        if self._live is not None:
            self._live.show_phase(phase)

    def has_logged(self, step: int, name: str) -> bool:
        """Say whether a metric of a step stands in metrics.jsonl; False on other ranks than the first."""
        lines = () if self.run_dir is None else self.run_dir.lines(METRICS)
        return any(line["step"] == step and name in line for line in lines)

    def log_eval(self, step: int, metrics: dict[str, float]) -> None:
        """Write the metrics of an evaluation, as a record of its own."""
        if self.run_dir is None:
            return
        record = {"step": step, **metrics, **self._evaluation}
        self._evaluation = {}
        self.run_dir.append(METRICS, record)
        if self._tracked is not None:
            self._tracked.log(step, record)
        figures = "  ".join(f"{name} {value:.4g}" for name, value in metrics.items())
        text = f"evaluation at step {step}: {figures}"
        if self._live is None:
            self.say(text)
        else:
            self._live.show_evaluation(step, metrics)
            logger.info("%s", text)

    def say(self, text: str) -> None:
        """Tell the user one line, and the log."""
        self.console.print(escape(text), highlight=False)
        if self.run_dir is not None:
            logger.info("%s", text)
        else:
            self._said.append(text)

    def event(self, kind: str, text: str) -> None:
        """Write down that something has happened at the newest step; kind: guard, warning or resume."""
        if self._events is not None:
            self._events.append((kind, text))
        elif self.run_dir is not None:
            now = time.strftime("%Y-%m-%dT%H:%M:%S%z")
            self.run_dir.append(EVENTS, {"step": self._step, "kind": kind, "text": text, "time": now})

    def warn(self, text: str, kind: str = "warning") -> None:
        """Tell the user of something that should be looked at, and write it down as an event."""
        self.say(f"warning: {text}")
        self.event(kind, text)
        if self._live is not None:
            self._live.show_warning(text)

    def warn_once(self, text: str) -> None:
        """Warn of something that later steps will see again."""
        if text not in self._warned:
            self._warned.add(text)
            self.warn(text)

    def resumed(self, step: int) -> None:
        """Say that the run goes on after a step."""
        self.say(f"resumed after step {step}")
        self.event("resume", f"resumed after step {step}")

    def rollout(self, step: int, record: dict[str, Any]) -> None:
        """Write down the responses of a step as figures, and one of them as text."""
        if self.run_dir is not None:
            self.run_dir.append(ROLLOUTS, {"step": step, **record})
            if self._live is not None:
                self._live.show_sample(*(record["sample"][name] for name in ("prompt", "response", "score")))

    def checks(self, checks: Sequence[Check], seconds: float) -> None:
        """Show the checks of the set-up as a table, and write each to the log."""
        self.console.print(
            table(checks, f"Checks of the set-up ({seconds:.1f} s)", self.console.width), soft_wrap=False
        )
        self._said += [str(check) for check in checks]
        self._documents[CHECKS] = {"checks": [{**asdict(check), "status": check.status} for check in checks]}

    def planned(self, lines: Sequence[str], warnings: Sequence[str]) -> None:
        """Show the arithmetic of the batches and the plan of the memory."""
        for line in lines:
            self.say(line)
        for warning in warnings:
            self.warn(warning)
        self._documents[PLAN] = {"lines": [*lines, *(f"warning: {text}" for text in warnings)]}

    def samples_once(self, stage: str, records: list[dict[str, Any]]) -> None:
        """Write the answers of a stage to samples.jsonl, unless an earlier start of the run has."""
        if self.run_dir is not None and all(one["stage"] != stage for one in self.run_dir.lines(SAMPLES)):
            self.samples(records)

    def pairs(self, records: list[dict[str, Any]]) -> None:
        """Write the held-out pairs with their scores, in place of what an earlier start wrote."""
        if self.run_dir is not None and records:
            self.run_dir.write_lines(PAIRS, records, len(str(records)))

    def samples(self, records: list[dict[str, Any]]) -> None:
        """Write answers to samples.jsonl."""
        if self.run_dir is not None:
            for record in records:
                self.run_dir.append(SAMPLES, record)

    def track(self, name: str, options: Mapping[str, Any], first_step: int) -> None:
        """Log to the trackers too; name: of the run; first_step: after which it goes on, 0 for a new one."""
        if self.run_dir is not None and self.config.trackers:
            self._tracked = Trackers(self.config, name, self.run_dir.folder, options, first_step, self.warn_once)

    def close(self, failed: bool) -> None:
        """Bring what trackers have been told to its end."""
        tracked, self._tracked = self._tracked, None
        if tracked is not None:
            tracked.finish(failed)

    @contextmanager
    def progress(self, first_step: int, signals: StopSignals) -> Iterator[None]:
        """Show the live view while the body runs, where standard output is a terminal; plain lines otherwise."""
        shown = self.console
        is_terminal = sys.stdout.isatty() and shown.is_terminal and not shown.is_dumb_terminal
        if self.run_dir is None or not self.config.live or not is_terminal:
            yield
            return
        try:
            title, asked = self.run_dir.folder.name, lambda: signals.received
            with LiveView(shown, title, self._num_steps, first_step, _LIVE_ROWS, asked) as self._live:
                statuses = [check["status"] for check in self._documents.get(CHECKS, {}).get("checks", [])]
                self._live.show_checks(*(statuses.count(status) for status in ("ok", "warn", "FAIL")))
                yield
        finally:
            self._live = None
