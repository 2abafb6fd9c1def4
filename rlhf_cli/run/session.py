"""How a run starts, resumes and ends: its folder, checkpoints, memory plan, trackers and status."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from rlhf_cli.config.schema import TrainPPOConfig, TrainRMConfig
from rlhf_cli.config.sections import RunConfig
from rlhf_cli.engine import distributed
from rlhf_cli.engine.base import TrainEngine
from rlhf_cli.engine.checkpoint import Checkpoints, verified_checkpoint
from rlhf_cli.engine.checkpoint_manifest import steps
from rlhf_cli.report.html.html_page import leave_report
from rlhf_cli.report.library_logs import write_log
from rlhf_cli.report.reporter import Reporter
from rlhf_cli.report.run_dir import METRICS, SUMMARY, RunDir, run_folder
from rlhf_cli.run.failures import FailureHandler
from rlhf_cli.system.durable_files import disk_errors, require_disk_space, size
from rlhf_cli.system.run_status import State, read_status, write_status
from rlhf_cli.system.signals import StopSignals
from rlhf_cli.train.guards import Guards
from rlhf_cli.train.step_hooks import StepHooks

Config = TrainRMConfig | TrainPPOConfig


@dataclass(frozen=True)
class RunSession:
    """One run of a command on this rank."""

    command: str
    args: list[str]
    config_yaml: str  # the options, interpolations unresolved
    report: Reporter
    check_only: bool
    failures: FailureHandler
    signals: StopSignals = field(default_factory=StopSignals)

    def find_checkpoint(self, run: RunConfig) -> Path | None:
        """Return the verified checkpoint to resume from; None for a new run."""
        if not run.resumes:
            return None
        self.failures.write_to(run_folder(run))  # a failure of this start too
        return verified_checkpoint(run_folder(run), run.resume)

    def checkpoints(self, config: Config, engines: dict[str, TrainEngine]) -> Checkpoints:
        """Return the checkpoints of the run."""
        folder = run_folder(config.run) / "checkpoints"
        return Checkpoints(folder, engines, config.checkpoint.keep_last, self.config_yaml, self._sync_log)

    def _sync_log(self) -> int:
        """Sync the log of the run to disk, on rank 0; return the number of metric records."""
        assert self.report.run_dir is not None
        return self.report.run_dir.sync()

    def hooks(self, config: Config, checkpoints: Checkpoints, inputs: dict[str, str]) -> StepHooks:
        """Return the hooks between steps; inputs: fingerprints of what the run reads."""
        return StepHooks(config.checkpoint, Guards(config.guard), checkpoints, self.report, self.signals, inputs)

    def open(self, config: Config, checkpoints: Checkpoints, num_steps: int, headline: tuple[str, ...]) -> Path:
        """Create the run folder on rank 0, now that the input is valid; return its path.

        From here on a signal stops the run between two steps, with a checkpoint.
        """
        folder = run_folder(config.run)
        run_dir: RunDir | None = None

        def create() -> None:
            nonlocal run_dir
            args = (self.command, self.args, self.config_yaml, distributed.world_size())
            if config.run.resumes:  # lock the folder before changing anything in it
                run_dir = RunDir(config.run, *args)
                checkpoints.clean()
            weights = sum(engine.export_bytes for engine in checkpoints.engines.values())
            missing = max(1, config.checkpoint.most_kept(num_steps) - len(steps(checkpoints.folder)))
            what = f"the run ({missing} checkpoints of {size(checkpoints.num_bytes)} and its exported weights)"
            require_disk_space(folder, missing * checkpoints.num_bytes + weights, what)
            run_dir = run_dir or RunDir(config.run, *args)
            write_status(folder, State.running, read_status(folder).get("step", 0))
            write_log(folder / "log.txt")

        distributed.together(create, only_first=True)
        self.failures.write_to(folder)
        self.signals.install()
        self.report.open(run_dir, num_steps, headline)
        self.report.say(f"run folder: {folder}")
        return folder

    def resume(self, checkpoints: Checkpoints, hooks: StepHooks, folder: Path) -> dict[str, Any]:
        """Load a checkpoint and return the trainer's state; raise InputError if inputs changed."""
        # before later checkpoints are deleted
        hooks.require_same_inputs(checkpoints.state_of(folder)["inputs"])
        state = hooks.resume(checkpoints.load(folder))
        if self.report.run_dir is not None:
            self.report.run_dir.forget_after(state["step"], checkpoints.num_logged)
        resumed = f"resumed after step {state['step']}"
        self.report.say(resumed)
        self.report.event("resume", resumed)
        return state

    def begin(self, config: Config, first_step: int) -> None:
        """Start recording events and logging to trackers; first_step: the last completed step."""
        self.report.began(first_step)
        # interpolations stay unresolved: ${oc.env:...} may hold a secret
        options = OmegaConf.to_container(OmegaConf.create(self.config_yaml))
        assert isinstance(options, dict)
        self.report.track(config.run.name, {str(key): value for key, value in options.items()}, first_step)

    def logged(self, step: int) -> dict[str, float]:
        """Return the metrics that an earlier start of the run logged at a step, without times."""
        records = () if self.report.run_dir is None else self.report.run_dir.lines(METRICS)
        found = next((record for record in records if record.pop("step") == step), {})
        return distributed.broadcast({name: value for name, value in found.items() if not name.startswith("time/")})

    def finish(self, num_steps: int, summary: dict[str, Any]) -> None:
        """Record that the run is finished, and write its report."""
        if self.report.run_dir is not None:
            folder = self.report.run_dir.folder
            self.report.run_dir.write_json(SUMMARY, summary)
            with disk_errors(folder, 0):
                write_status(folder, State.finished, num_steps, exit_code=0)
            if self.report.config.html:
                self.report.say(leave_report(folder))
