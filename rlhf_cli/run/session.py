"""How a run begins, goes on and ends: its checkpoint, its plan, its folder, its trackers."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from rlhf_cli.config.schema import TrainPPOConfig, TrainRMConfig
from rlhf_cli.config.sections import RunConfig
from rlhf_cli.engine import distributed
from rlhf_cli.engine.checkpoint import Checkpoints, verified_checkpoint
from rlhf_cli.engine.checkpoint_manifest import steps
from rlhf_cli.plan.phases import Lengths
from rlhf_cli.report.html.html_page import leave_report
from rlhf_cli.report.library_logs import write_log
from rlhf_cli.report.reporter import Reporter
from rlhf_cli.report.run_dir import METRICS, SUMMARY, RunDir, run_folder
from rlhf_cli.run.failures import FailureHandler
from rlhf_cli.run.memory_plan import RunPlan, plan_launch
from rlhf_cli.system.durable_files import disk_errors, require_disk_space, size
from rlhf_cli.system.run_status import State, read_status, write_status
from rlhf_cli.system.signals import StopSignals
from rlhf_cli.train.guards import Guards
from rlhf_cli.train.step_hooks import StepHooks


@dataclass
class RunSession:
    """What a run needs to open its folder: the words of the command line, the rank's voice, and how it may end."""

    command: str
    args: list[str]
    text: str  # the options as YAML
    report: Reporter
    check_only: bool
    ending: FailureHandler
    signals: StopSignals = field(default_factory=StopSignals)

    def checkpoint(self, run: RunConfig) -> Path | None:
        """Return the checkpoint to go on from, every byte of it checked, before anything is loaded; None: a new run."""
        if not run.resumes:
            return None
        self.ending.folder = run_folder(run)  # whose status.json tells how this start ended, too
        return verified_checkpoint(run_folder(run), run.resume)

    def begin(self, config: TrainRMConfig | TrainPPOConfig, first_step: int) -> None:
        """Say after which step the run begins or goes on; log to the trackers too from here on."""
        self.report.began(first_step)
        options = OmegaConf.to_container(OmegaConf.create(self.text))  # ${oc.env:...} stays: it may name a secret
        assert isinstance(options, dict)
        self.report.track(config.run.name, {str(key): value for key, value in options.items()}, first_step)

    def plan(self, config: TrainRMConfig, lengths: Lengths, num_steps: int) -> RunPlan:
        """Show what a reward-model run will take, and keep its lengths for advice where memory runs out."""
        self.ending.lengths = lengths
        return plan_launch(config, lengths, self.report, num_steps)

    def open(
        self,
        config: TrainRMConfig | TrainPPOConfig,
        checkpoints: Checkpoints,
        num_steps: int,
        headline: tuple[str, ...],
    ) -> Path:
        """Make the run folder, on rank 0, once the input has proved good; return its path.

        From here on a signal ends the run between two steps, with a checkpoint.
        """
        folder = run_folder(config.run)
        run_dir: RunDir | None = None

        def make() -> None:
            nonlocal run_dir
            words = (self.command, self.args, self.text, distributed.world_size())
            if config.run.resumes:  # the folder is locked before anything in it is touched
                run_dir = RunDir(config.run, *words)
                checkpoints.clean()
            weights = sum(engine.export_bytes for engine in checkpoints.engines.values())
            missing = max(1, config.checkpoint.most_kept(num_steps) - len(steps(checkpoints.folder)))
            what = f"the run ({missing} checkpoints of {size(checkpoints.num_bytes)} and its exported weights)"
            require_disk_space(folder, missing * checkpoints.num_bytes + weights, what)
            run_dir = run_dir or RunDir(config.run, *words)
            write_status(folder, State.running, read_status(folder).get("step", 0))
            write_log(folder / "log.txt")
            checkpoints.on_save = run_dir.sync

        distributed.together(make, only_first=True)
        self.ending.folder = folder
        self.signals.install()
        self.report.open(run_dir, num_steps, headline)
        self.report.say(f"run folder: {folder}")
        return folder

    def boundary(
        self, config: TrainRMConfig | TrainPPOConfig, checkpoints: Checkpoints, inputs: dict[str, str]
    ) -> StepHooks:
        """Return what the trainer goes through between two steps; inputs: fingerprints of what the run reads."""
        return StepHooks(config.checkpoint, Guards(config.guard), checkpoints, self.report, self.signals, inputs)

    def resume(self, checkpoints: Checkpoints, boundary: StepHooks, folder: Path) -> dict[str, Any]:
        """Load a checkpoint; return the trainer's state in it.

        Raises InputError where data or frozen models are not those it was written with.
        """
        boundary.require_same_inputs(checkpoints.state_of(folder)["inputs"])  # before any later checkpoint is dropped
        state = boundary.resume(checkpoints.load(folder))
        if self.report.run_dir is not None:
            self.report.run_dir.forget_after(state["step"], checkpoints.num_logged)
        self.report.resumed(state["step"])
        return state

    def logged(self, step: int) -> dict[str, float]:
        """Return what an earlier start of the run has evaluated at a step, without its clock; {} where it has not."""
        records = () if self.report.run_dir is None else self.report.run_dir.lines(METRICS)
        found = next((record for record in records if record.pop("step") == step), {})
        return distributed.broadcast({name: value for name, value in found.items() if not name.startswith("time/")})

    def finish(self, num_steps: int, summary: dict[str, Any]) -> None:
        """Write down that the run has come to its end, and with what."""
        if self.report.run_dir is not None:
            folder = self.report.run_dir.folder
            self.report.run_dir.write_json(SUMMARY, summary)
            with disk_errors(folder, 0):
                write_status(folder, State.finished, num_steps, exit_code=0)
            if self.report.config.html:
                self.report.say(leave_report(folder))
