"""The memory plan of a run, made before the models are loaded and if memory runs out."""

from __future__ import annotations

from dataclasses import dataclass

from rlhf_cli.config.schema import TrainPPOConfig, TrainRMConfig
from rlhf_cli.engine import distributed
from rlhf_cli.plan.advice import savings
from rlhf_cli.plan.fit import Fit, check_launch, memory_map
from rlhf_cli.plan.memory_map import Topology, gib
from rlhf_cli.plan.phases import Lengths
from rlhf_cli.report.reporter import Reporter
from rlhf_cli.report.run_dir import run_folder
from rlhf_cli.system.text import one_line

Config = TrainRMConfig | TrainPPOConfig


@dataclass(frozen=True)
class RunPlan:
    """The memory plan of a run, if one could be made."""

    topology: Topology
    lengths: Lengths
    fit: Fit | None

    def report_peak(self, report: Reporter) -> dict[str, float]:
        """Report the measured peak memory of rank 0 and the planned one; return them in GiB.

        On a GPU only tensors count; in host memory the process counts with its libraries.
        """
        if self.fit is None:
            report.say(f"peak memory: {report.memory.highest:.2f} GiB on rank 0")
            return {"measured_gib": report.memory.highest}
        found = self.fit.memory
        planned = (found.device_peak().bytes if found.topology.on_gpu else found.rank_peak()) / 2**30
        measured = report.memory.highest
        report.say(f"peak memory: {measured:.2f} GiB on rank 0, {planned:.2f} GiB planned")
        return {"planned_gib": planned, "measured_gib": measured}


def plan_launch(config: Config, lengths: Lengths, report: Reporter, num_steps: int | None = None) -> RunPlan:
    """Show the batch arithmetic and whether the run fits this machine; collective.

    Raises InputError if it does not fit and plan.on_misfit=error.
    """
    topology = run_topology()
    folder = run_folder(config.run)
    lines, warnings, fit = distributed.together(
        lambda: check_launch(config, topology, folder, lengths, num_steps), only_first=True
    )
    report.planned(lines, warnings)
    return RunPlan(topology, lengths, fit)


def run_topology() -> Topology:
    """Return the ranks of this run, how many are on this machine, and whether they have GPUs."""
    return Topology(distributed.world_size(), distributed.num_local_ranks(), distributed.device().type != "cpu")


def out_of_memory_advice(config: Config, topology: Topology, lengths: Lengths) -> str:
    """Return the settings that save the most memory, one a line, with what each saves per GPU."""
    try:
        found = savings(config, topology.num_ranks, lambda changed: memory_map(changed, topology, lengths))
    except Exception as error:  # the original error matters more than the advice
        return f"no advice, because the run cannot be planned: {one_line(error, 300)}"
    lines = [f"  {' '.join(one.arguments):40} saves about {gib(saved)} per GPU ({one.effect})" for one, saved in found]
    return "\n".join(["any of these settings saves memory; apply one and continue with run.resume=true:", *lines])
