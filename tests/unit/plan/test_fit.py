"""The plan that a run makes before it loads models, and what does not fit a machine."""

from pathlib import Path

import pytest

from rlhf_cli.config.compose import load
from rlhf_cli.config.errors import InputError
from rlhf_cli.plan import fit
from rlhf_cli.plan.fit import check_launch
from rlhf_cli.plan.machine import Machine
from rlhf_cli.plan.memory_map import LIBRARIES, Topology
from rlhf_cli.plan.phases import Lengths
from tests.unit.plan.fake import GIB, planned_with

TOPOLOGY = Topology(1, 1, on_gpu=False)
LENGTHS = Lengths(10, 40, 0)
FIRST = "prompts per step: 8 = 1 rank x 8, one response each"


def checked(*words):
    return check_launch(load("train-ppo", ["conf=tiny", *words]), TOPOLOGY, Path("outputs/tiny"), LENGTHS)


@pytest.fixture
def small(monkeypatch):
    """A machine with 64 MiB."""
    monkeypatch.setattr(Machine, "here", staticmethod(lambda _: Machine(None, 2**26)))


def test_a_run_that_fits_reports_its_plan(monkeypatch):
    monkeypatch.setattr(Machine, "here", staticmethod(lambda _: Machine(None, 64 * GIB)))
    lines, warnings, planned = checked()
    assert lines[0] == FIRST
    assert lines[-1].startswith("memory plan: fits: ")
    assert warnings == []
    assert planned is not None
    assert planned.misfits == ()


def test_a_run_that_does_not_fit_is_warned_of(small):
    lines, warnings, planned = checked()
    assert lines[0] == FIRST
    assert warnings[0].startswith("the memory plan does not fit this machine: host memory: needs ")
    assert warnings[-1].endswith("or set plan.on_misfit=ignore")
    assert planned is not None


def test_a_run_that_does_not_fit_can_be_refused(small):
    with pytest.raises(InputError, match=r"the memory plan does not fit this machine: host memory: needs .*, 64"):
        checked("plan.on_misfit=error")


def test_a_misfit_can_be_ignored(small):
    lines, warnings, planned = checked("plan.on_misfit=ignore")
    assert lines[0] == FIRST
    assert not any("plan" in line for line in (*lines, *warnings))
    assert planned is None


@pytest.mark.parametrize("error", [InputError("no such shape"), KeyError("vocab_size")])
def test_a_run_that_cannot_be_planned_still_starts(monkeypatch, error):
    def fails(*_):
        raise error

    monkeypatch.setattr(fit, "memory_map", fails)
    lines, warnings, planned = checked("plan.on_misfit=error")
    assert lines[-1].startswith(f"no memory plan: {type(error).__name__}: ")
    assert warnings == []
    assert planned is None


def test_indivisible_batches_are_always_refused():
    with pytest.raises(InputError, match="multiple of the number of ranks"):
        check_launch(load("train-ppo", ["conf=tiny"]), Topology(3, 3, on_gpu=False), Path(), LENGTHS)


def test_a_gpu_that_is_too_small_is_reported_with_what_fills_it():
    """Tensors of 2 GiB and a context of 1 GiB on a GPU of 3 GiB, of which 5% are reserved."""
    assert planned_with(Machine(4 * GIB, None), 0.05, context=GIB).misfits == ()
    assert planned_with(Machine(3 * GIB, None), 0.0, context=GIB).misfits == ()
    assert planned_with(Machine(3 * GIB, None), 0.05, context=GIB).misfits == (
        "GPU: needs 3.0 GiB, 2.8 GiB usable (3.0 GiB less 5%); peak in update (policy), "
        "mostly weights of policy (2.0 GiB)",
    )


def test_host_memory_counts_all_ranks_of_a_machine():
    """With a GPU, the host holds half a GiB per rank and the libraries; without one, also the tensors."""
    needed = 2 * (GIB // 2 + LIBRARIES)
    assert planned_with(Machine(80 * GIB, needed), num_ranks=4, ranks_per_node=2).misfits == ()
    assert planned_with(Machine(80 * GIB, needed - 1), num_ranks=4, ranks_per_node=2).misfits == (
        "host memory: needs 2.1 GiB for 2 ranks, 2.1 GiB available; peak in update (policy), "
        "mostly optimizer states of policy (0.5 GiB) per rank",
    )
    needed = 5 * GIB // 2 + LIBRARIES
    assert planned_with(Machine(None, needed), on_gpu=False).misfits == ()
    assert len(planned_with(Machine(None, needed - 1), on_gpu=False).misfits) == 1


def test_disk_counts_checkpoints_and_exports():
    files = {"checkpoint": 10 * GIB, "num_checkpoints": 3, "exports": 2 * GIB}
    assert planned_with(Machine(80 * GIB, None, disk=32 * GIB), **files).misfits == ()
    assert planned_with(Machine(80 * GIB, None, disk=31 * GIB), **files).misfits == (
        "disk: needs 32.0 GiB (3 x 10.0 GiB of checkpoints + 2.0 GiB of exports), 31.0 GiB free",
    )


def test_shared_memory_matters_only_with_several_gpus():
    small = Machine(80 * GIB, None, shared=64 * 2**20)
    assert planned_with(small).misfits == ()
    assert planned_with(small, num_ranks=2, ranks_per_node=2).misfits == (
        "/dev/shm: NCCL needs 1.0 GiB, 64.0 MiB free; start the container with --shm-size=1g",
    )


def test_spare_memory_is_a_share_of_the_limit():
    assert planned_with(Machine(8 * GIB, None), device_gib=2).spare == pytest.approx(0.75)
    assert planned_with(Machine(None, None), device_gib=2).spare is None
    assert "needs 2.0 GiB per GPU; peak in update" in planned_with(Machine(None, None)).verdict


def test_existing_checkpoints_need_no_more_disk(tmp_path, monkeypatch):
    """A resumed run replaces them by new ones."""
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "file").write_bytes(b"x" * 10_000_000)
    monkeypatch.setattr(Machine, "here", staticmethod(lambda _: Machine(None, 64 * GIB, disk=1_000_000)))
    config = load("train-ppo", ["conf=tiny", "plan.on_misfit=error"])
    assert check_launch(config, TOPOLOGY, tmp_path, LENGTHS)[2] is not None
    with pytest.raises(InputError, match="disk: "):
        check_launch(config, TOPOLOGY, tmp_path / "new", LENGTHS)
