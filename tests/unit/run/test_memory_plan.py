"""Advice when memory runs out, and the planned peak next to the measured one."""

from dataclasses import replace

import pytest

from rlhf_cli.config.compose import load
from rlhf_cli.plan.fit import memory_map
from rlhf_cli.plan.memory_map import LIBRARIES, Topology
from rlhf_cli.plan.phases import Lengths
from rlhf_cli.run.memory_plan import RunPlan, out_of_memory_advice
from tests.unit.plan.fake import planned_with

TOPOLOGY = Topology(1, 1, on_gpu=True)
LENGTHS = Lengths(40, 40, 80)
PPO = ["conf=tiny", "ppo.micro_batch_size=8", "ppo.minibatch_size=8", "model.dtype=bfloat16"]
HEAD = "any of these settings saves memory; apply one and continue with run.resume=true:"


@pytest.mark.parametrize(
    ("command", "args", "wanted"),
    [
        ("train-ppo", PPO, {"ppo.micro_batch_size=4", "model.gradient_checkpointing=true"}),
        (
            "train-rm",
            ["conf=tiny", "train.eval_micro_batch_size=1"],
            {"train.micro_batch_size=1", "model.gradient_checkpointing=true"},
        ),
    ],
)
def test_advice_names_what_saves_with_the_plan_s_own_figure(command, args, wanted):
    config = load(command, args)
    head, *lines = out_of_memory_advice(config, TOPOLOGY, LENGTHS).splitlines()
    assert head == HEAD
    found = {line.split()[0]: line for line in lines}
    assert wanted <= found.keys()
    halved = next(word for word in wanted if "micro" in word)
    now = memory_map(config, TOPOLOGY, LENGTHS).running_peak
    then = memory_map(load(command, [*args, halved]), TOPOLOGY, LENGTHS).running_peak
    assert f"saves about {(now - then) / 2**20:.1f} MiB per GPU" in found[halved]


def test_advice_leaves_out_what_is_on_already_and_what_saves_nothing():
    args = [*PPO, "model.gradient_checkpointing=true", "rollout.gather=false", "ppo.gather=false"]
    advice = out_of_memory_advice(load("train-ppo", args), TOPOLOGY, LENGTHS)
    assert "gradient_checkpointing" not in advice
    assert "gather" not in advice


def test_without_a_plan_there_is_no_advice_and_no_other_error():
    config = load("train-ppo", [*PPO, "model.from_config.hidden_size=0"])
    assert out_of_memory_advice(config, TOPOLOGY, LENGTHS).startswith(
        "no advice, because the run cannot be planned: cannot build"
    )


class Report:
    """A reporter that has measured 3 GiB."""

    def __init__(self):
        self.said = []
        self.memory = type("Memory", (), {"highest": 3.0})()
        self.say = self.said.append


@pytest.mark.parametrize(("on_gpu", "planned"), [(True, 2.0), (False, 2.5 + LIBRARIES / 2**30)])
def test_plan_and_measurement_are_reported_together(on_gpu, planned):
    """On a GPU only tensors count; in host memory its tensors, 0.5 GiB, and the libraries."""
    fit = planned_with(device_gib=2, host_gib=0.5, on_gpu=on_gpu)
    report = Report()
    topology = replace(TOPOLOGY, on_gpu=on_gpu)
    assert RunPlan(topology, LENGTHS, fit).report_peak(report) == {"planned_gib": planned, "measured_gib": 3.0}
    assert report.said == [f"peak memory: 3.00 GiB on rank 0, {planned:.2f} GiB planned"]


def test_without_a_plan_only_the_measurement_is_reported():
    report = Report()
    assert RunPlan(TOPOLOGY, LENGTHS, None).report_peak(report) == {"measured_gib": 3.0}
    assert report.said == ["peak memory: 3.00 GiB on rank 0"]
