"""What a machine has, and what does not fit it."""

from pathlib import Path

import pytest

from rlhf_cli.config.compose import load
from rlhf_cli.config.errors import InputError
from rlhf_cli.config.plan_options import PlanConfig, num_bytes
from rlhf_cli.plan import machine
from rlhf_cli.plan.machine import Machine, gib, misfits
from rlhf_cli.plan.memory_map import LIBRARIES
from tests.unit.plan.fake import GIB, made_map


@pytest.mark.parametrize(
    ("text", "size"),
    [("80GiB", 80 * GIB), ("512 GB", 512_000_000_000), ("1.5TiB", 1536 * GIB), ("1024", 1024), ("2MiB", 2**21)],
)
def test_sizes(text, size):
    assert num_bytes(text, "plan.gpu_memory") == size


@pytest.mark.parametrize("text", ["80 gigs", "GiB", "-1GiB", "0GiB", "1e3GiB", ""])
def test_what_is_no_size_is_named(text):
    with pytest.raises(InputError, match=r"plan\.gpu_memory must be a size such as 80GiB"):
        PlanConfig(gpu_memory=text)


@pytest.mark.parametrize("word", ["plan.gpus=0", "plan.reserve=0.9", "plan.deadline_hours=0", "plan.on_misfit=maybe"])
def test_options_out_of_range_are_refused(word):
    with pytest.raises(InputError, match=r"plan\."):
        load("train-ppo", ["conf=tiny", word])


def test_a_gpu_that_is_too_small_is_named_with_what_fills_it():
    """Tensors of 2 GiB and a context of 1 GiB in 3 GiB, of which a twentieth is kept."""
    found = made_map(context=GIB)
    assert misfits(found, Machine(4 * GIB, None), 0.05) == []
    assert misfits(found, Machine(3 * GIB, None), 0.0) == []
    assert misfits(found, Machine(3 * GIB, None), 0.05) == [
        "GPU: 3.0 GiB of 2.8 GiB (3.0 GiB less 5%) in update, policy; most of it: weights of policy, 2.0 GiB"
    ]


def test_host_memory_counts_all_ranks_of_a_machine():
    """On a GPU the host has half a GiB a rank and the libraries; without one the tensors too."""
    on_gpu = made_map(num_ranks=4, node_ranks=2)
    needed = 2 * (GIB // 2 + LIBRARIES)
    assert misfits(on_gpu, Machine(80 * GIB, needed), 0.0) == []
    (line,) = misfits(on_gpu, Machine(80 * GIB, needed - 1), 0.0)
    assert line.startswith("host memory: 2.1 GiB of 2.1 GiB in update, policy, 2 ranks together; most of it: optimizer")
    on_cpu = made_map(on_gpu=False)
    needed = 5 * GIB // 2 + LIBRARIES
    assert misfits(on_cpu, Machine(None, needed), 0.0) == []
    assert len(misfits(on_cpu, Machine(None, needed - 1), 0.0)) == 1


def test_disk_counts_checkpoints_and_exports():
    found = made_map(checkpoint=10 * GIB, num_checkpoints=3, exports=2 * GIB)
    assert misfits(found, Machine(80 * GIB, None, disk=32 * GIB), 0.0) == []
    assert misfits(found, Machine(80 * GIB, None, disk=31 * GIB), 0.0) == [
        "disk: 32.0 GiB (3 checkpoints of 10.0 GiB and exports of 2.0 GiB), 31.0 GiB free"
    ]


def test_shared_memory_matters_to_several_gpus_alone():
    small = Machine(80 * GIB, None, shared=64 * 2**20)
    assert misfits(made_map(), small, 0.0) == []
    assert misfits(made_map(num_ranks=2, node_ranks=2), small, 0.0) == [
        "/dev/shm: 64.0 MiB free, NCCL wants 1.0 GiB; start the container with --shm-size=1g"
    ]


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


def test_a_limit_of_the_control_group_counts(tmp_path, monkeypatch):
    """10 GiB allowed, 4 in use, of which 1 is a cache of files that can go: 7 are left."""
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


def test_bytes_for_people():
    assert [gib(size) for size in (80 * GIB, GIB // 2, 2**20)] == ["80.0 GiB", "0.5 GiB", "1.0 MiB"]
