"""Report a run to the terminal, its folder and the trackers. Only rank 0 writes."""

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
from rlhf_cli.report.check_table import Check, check_table
from rlhf_cli.report.live_view import LiveView
from rlhf_cli.report.run_dir import CHECKS, EVENTS, METRICS, PAIRS, PLAN, ROLLOUTS, SAMPLES, RunDir
from rlhf_cli.report.trackers import Trackers
from rlhf_cli.system.run_status import State, write_status
from rlhf_cli.system.signals import StopSignals
from rlhf_cli.system.terminal import console
from rlhf_cli.system.watchdog import PROGRESS

_LIVE_METRICS = (  # shown if the run logs them
    *("score", "kl", "reward", "response_length", "eos_rate", "entropy", "clipfrac/policy", "loss/value"),
    *("loss", "accuracy", "margin", "grad_norm", "lr", "tokens_per_s", "perf/mfu", "memory/peak_gib"),
)
logger = logging.getLogger("rlhf")


class Reporter:
    """Reports a run to the terminal and, after `open`, to its folder."""

    def __init__(self, speaks: bool, config: ReportConfig | None = None) -> None:
        """speaks: whether this is rank 0; the reporters of other ranks print and write nothing."""
        self.config = config or ReportConfig()
        self.console = console(quiet=not speaks, soft_wrap=True)
        self.speaks = speaks
        self.run_dir: RunDir | None = None
        self.memory = PeakMemory()
        self._num_steps = 0
        self._headline: Sequence[str] = ()
        self._early_lines: list[str] = []  # until there is a run folder
        self._early_documents: dict[str, dict[str, Any]] = {}  # by file name, until there is a run folder
        self._early_events: list[tuple[str, str]] | None = []  # kind and text, until the first step is known
        self._step = 0  # of the newest record
        self._seconds: dict[str, float] = {}  # by phase of the current step
        self._gib: dict[str, float] = {}  # peak memory by phase of the current step
        self._evaluation: dict[str, float] = {}
        self._warned: set[str] = set()
        self._peak_flops: float | None = None
        self._live: LiveView | None = None
        self._trackers: Trackers | None = None

    def open(self, run_dir: RunDir | None, num_steps: int, headline: Sequence[str]) -> None:
        """Write to a run folder from now on. headline: the metrics of the progress line."""
        assert (run_dir is not None) == self.speaks
        self.run_dir, self._num_steps, self._headline = run_dir, num_steps, headline
        for text in self._early_lines:
            logger.info("%s", text)
        if run_dir is not None:
            for name, record in self._early_documents.items():
                run_dir.write_json(name, record)

    def began(self, step: int) -> None:
        """Write events from now on. step: the step after which the run starts or resumes."""
        self._step, events, self._early_events = step, self._early_events or [], None
        for kind, text in events:
            self.event(kind, text)

    def track(self, name: str, options: Mapping[str, Any], first_step: int) -> None:
        """Log to the trackers too. name: run.name; first_step: the resumed step, or 0."""
        if self.run_dir is not None and self.config.trackers:
            self._trackers = Trackers(self.config, name, self.run_dir.folder, options, first_step, self.warn_once)

    def close(self, failed: bool) -> None:
        """Finish the runs of the trackers."""
        trackers, self._trackers = self._trackers, None
        if trackers is not None:
            trackers.finish(failed)

    @contextmanager
    def progress(self, first_step: int, signals: StopSignals) -> Iterator[None]:
        """Show the live view during the body, if standard output is a terminal."""
        is_terminal = sys.stdout.isatty() and self.console.is_terminal and not self.console.is_dumb_terminal
        if self.run_dir is None or not self.config.live or not is_terminal:
            yield
            return
        title = self.run_dir.folder.name
        statuses = [check["status"] for check in self._early_documents.get(CHECKS, {}).get("checks", [])]
        view = LiveView(self.console, title, self._num_steps, first_step, _LIVE_METRICS, lambda: signals.received)
        view.show_checks(*(statuses.count(status) for status in ("ok", "warn", "FAIL")))
        try:
            with view as self._live:
                yield
        finally:
            self._live = None

    def measure_against(self, peak: float) -> None:
        """Log the speed of each phase relative to `peak`, the measured FLOP/s of all ranks."""
        self._peak_flops = peak
        self.say(f"peak speed of matrix products: {peak / 1e12:.3g} TFLOP/s on all ranks; perf/mfu is relative to it")

    @contextmanager
    def time(self, phase: str) -> Iterator[None]:
        """Add the seconds and the peak memory of the body to the next step."""
        self._enter(phase)
        self.memory.restart()
        start = time.perf_counter()
        try:
            yield
        finally:
            self._seconds[phase] = self._seconds.get(phase, 0.0) + time.perf_counter() - start
            self._gib[phase] = max(self._gib.get(phase, 0.0), self.memory.since)

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Log the seconds of the body as `time/evaluate` of the next evaluation."""
        self._enter("evaluate")
        start = time.perf_counter()
        yield
        self._evaluation = {"time/evaluate": time.perf_counter() - start}

    def _enter(self, phase: str) -> None:
        PROGRESS.enter(phase)
        if self._live is not None:
            self._live.show_phase(phase)

    def log(
        self, step: int, metrics: dict[str, float], num_tokens: int, work: Mapping[str, Work] | None = None
    ) -> None:
        """Log the metrics of a step with its times, speed and memory.

        num_tokens: response tokens of all ranks; work: of all ranks, by phase.
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
        self._write_metrics(step, record)
        with suppress(OSError):  # metrics.jsonl has the same information
            write_status(self.run_dir.folder, State.running, step)
        line = "  ".join(f"{name} {record[name]:.4g}" for name in self._headline if name in record)
        logger.info("step %d/%d  %s  %.1f s", step, self._num_steps, line, seconds)
        if self._live is None:
            self.console.print(f"step {step}/{self._num_steps}  {line}  {seconds:.1f} s", highlight=False)
        else:
            self._live.show_step(step, record)

    def _speed(self, work: Mapping[str, Work]) -> dict[str, float]:
        """Return tokens per second and the share of the peak FLOP/s."""
        metrics = {f"perf/{phase}_tokens_per_s": done.tokens / self._seconds[phase] for phase, done in work.items()}
        if self._peak_flops and work:
            flops = {phase: done.flops / self._peak_flops for phase, done in work.items()}
            metrics |= {f"perf/mfu_{phase}": share / self._seconds[phase] for phase, share in flops.items()}
            metrics["perf/mfu"] = sum(flops.values()) / sum(self._seconds.values())
        return metrics

    def log_eval(self, step: int, metrics: dict[str, float]) -> None:
        """Log the metrics of an evaluation as a record of its own."""
        if self.run_dir is None:
            return
        self._write_metrics(step, {"step": step, **metrics, **self._evaluation})
        self._evaluation = {}
        values = "  ".join(f"{name} {value:.4g}" for name, value in metrics.items())
        text = f"evaluation at step {step}: {values}"
        if self._live is None:
            self.say(text)
        else:
            self._live.show_evaluation(step, metrics)
            logger.info("%s", text)

    def _write_metrics(self, step: int, record: dict[str, Any]) -> None:
        assert self.run_dir is not None
        self.run_dir.append(METRICS, record)
        if self._trackers is not None:
            self._trackers.log(step, record)

    def has_logged(self, step: int, name: str) -> bool:
        """Return whether metrics.jsonl has a metric of a step; False on ranks other than 0."""
        lines = () if self.run_dir is None else self.run_dir.lines(METRICS)
        return any(line["step"] == step and name in line for line in lines)

    def say(self, text: str) -> None:
        """Print a line, and write it to the log."""
        self.console.print(escape(text), highlight=False)
        if self.run_dir is not None:
            logger.info("%s", text)
        else:
            self._early_lines.append(text)

    def warn(self, text: str, kind: str = "warning") -> None:
        """Print a warning, and record it as an event of this kind."""
        self.say(f"warning: {text}")
        self.event(kind, text)
        if self._live is not None:
            self._live.show_warning(text)

    def warn_once(self, text: str) -> None:
        """Warn, unless the same warning was given before."""
        if text not in self._warned:
            self._warned.add(text)
            self.warn(text)

    def event(self, kind: str, text: str) -> None:
        """Record an event at the newest step. kind: guard, warning or resume."""
        if self._early_events is not None:
            self._early_events.append((kind, text))
        elif self.run_dir is not None:
            now = time.strftime("%Y-%m-%dT%H:%M:%S%z")
            self.run_dir.append(EVENTS, {"step": self._step, "kind": kind, "text": text, "time": now})

    def checks(self, checks: Sequence[Check], seconds: float) -> None:
        """Show the setup checks as a table, and write each of them to the log."""
        title = f"Setup checks ({seconds:.1f} s)"
        self.console.print(check_table(checks, title, self.console.width), soft_wrap=False)
        self._early_lines += [str(check) for check in checks]
        self._early_documents[CHECKS] = {"checks": [{**asdict(check), "status": check.status} for check in checks]}

    def planned(self, lines: Sequence[str], warnings: Sequence[str]) -> None:
        """Show the planned batches and memory."""
        for line in lines:
            self.say(line)
        for warning in warnings:
            self.warn(warning)
        self._early_documents[PLAN] = {"lines": [*lines, *(f"warning: {text}" for text in warnings)]}

    def rollout(self, step: int, record: dict[str, Any]) -> None:
        """Write the figures of a step's responses, and one response as text."""
        if self.run_dir is not None:
            self.run_dir.append(ROLLOUTS, {"step": step, **record})
            if self._live is not None:
                self._live.show_sample(*(record["sample"][name] for name in ("prompt", "response", "score")))

    def samples(self, records: list[dict[str, Any]]) -> None:
        """Write held-out responses to samples.jsonl."""
        if self.run_dir is not None:
            for record in records:
                self.run_dir.append(SAMPLES, record)

    def samples_once(self, stage: str, records: list[dict[str, Any]]) -> None:
        """Write the held-out responses of a stage, unless an earlier start of the run did."""
        if self.run_dir is not None and all(one["stage"] != stage for one in self.run_dir.lines(SAMPLES)):
            self.samples(records)

    def pairs(self, records: list[dict[str, Any]]) -> None:
        """Write the held-out pairs with their scores. They replace those of an earlier start."""
        if self.run_dir is not None and records:
            self.run_dir.write_lines(PAIRS, records, len(str(records)))
