"""The memory and disk space of a machine."""

from pathlib import Path

import pytest

from rlhf_cli.config.compose import load
from rlhf_cli.config.errors import InputError
from rlhf_cli.config.plan_options import PlanConfig, num_bytes
from rlhf_cli.plan import machine
from rlhf_cli.plan.machine import Machine
from rlhf_cli.plan.memory_map import gib
from tests.unit.plan.fake import GIB


@pytest.mark.parametrize(
    ("text", "size"),
    [("80GiB", 80 * GIB), ("512 GB", 512_000_000_000), ("1.5TiB", 1536 * GIB), ("1024", 1024), ("2MiB", 2**21)],
)
def test_sizes(text, size):
    assert num_bytes(text, "plan.gpu_memory") == size


@pytest.mark.parametrize("text", ["80 gigs", "GiB", "-1GiB", "0GiB", "1e3GiB", ""])
def test_a_bad_size_is_reported(text):
    with pytest.raises(InputError, match=r"plan\.gpu_memory must be a size such as 80GiB"):
        PlanConfig(gpu_memory=text)


@pytest.mark.parametrize("word", ["plan.gpus=0", "plan.reserve=0.9", "plan.deadline_hours=0", "plan.on_misfit=maybe"])
def test_options_out_of_range_are_refused(word):
    with pytest.raises(InputError, match=r"plan\."):
        load("train-ppo", ["conf=tiny", word])


def test_options_describe_another_machine():
    here = Machine(None, 16 * GIB, 100 * GIB, 8 * GIB)
    assert here.planned(PlanConfig()) == here
    assert here.planned(PlanConfig(gpu_memory="80GiB")) == Machine(80 * GIB, None)
    assert here.planned(PlanConfig(gpu_memory="80GiB", host_memory="512GiB")) == Machine(80 * GIB, 512 * GIB)
    assert here.planned(PlanConfig(host_memory="512GiB")) == Machine(None, 512 * GIB)


def test_this_machine_is_measured(tmp_path):
    found = Machine.here(tmp_path / "not" / "there" / "yet")
    assert found.host is not None
    assert found.host > 2**28
    assert found.disk is not None
    assert found.disk > 0


def test_the_limit_of_the_control_group_counts(tmp_path, monkeypatch):
    """10 GiB allowed, 4 in use, of which 1 is file cache that can be freed: 7 are left."""
    real = Path

    def moved(path):
        return tmp_path if path == "/sys/fs/cgroup" else real(path)

    (tmp_path / "memory.max").write_text(f"{10 * GIB}\n")
    (tmp_path / "memory.current").write_text(f"{4 * GIB}\n")
    (tmp_path / "memory.stat").write_text(f"anon 5\ninactive_file {GIB}\n")
    monkeypatch.setattr(machine, "Path", moved)
    monkeypatch.setattr(machine, "_available", lambda: 100 * GIB)
    assert machine._host_memory() == 7 * GIB
    (tmp_path / "memory.max").write_text("max\n")
    assert machine._host_memory() == 100 * GIB


def test_bytes_are_formatted():
    assert [gib(size) for size in (80 * GIB, GIB // 2, 2**20)] == ["80.0 GiB", "0.5 GiB", "1.0 MiB"]
