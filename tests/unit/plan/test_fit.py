"""What a run says of its plan before it loads models."""

from pathlib import Path

import pytest

from rlhf_cli.config.compose import load
from rlhf_cli.config.errors import InputError
from rlhf_cli.plan import fit
from rlhf_cli.plan.fit import check_launch
from rlhf_cli.plan.machine import Machine
from rlhf_cli.plan.memory_map import Place
from rlhf_cli.plan.phases import Lengths
from tests.unit.plan.fake import GIB, planned_with

PLACE = Place(1, 1, on_gpu=False)
LENGTHS = Lengths(10, 40, 0)
FIRST = "prompts a step: 8 = 1 rank x 8, a response each"


def checked(*words):
    return check_launch(load("train-ppo", ["conf=tiny", *words]), PLACE, Path("outputs/tiny"), LENGTHS)


@pytest.fixture
def small(monkeypatch):
    """A machine with 64 MiB."""
    monkeypatch.setattr(Machine, "here", staticmethod(lambda _: Machine(None, 2**26)))


def test_what_fits_is_said_to(monkeypatch):
    monkeypatch.setattr(Machine, "here", staticmethod(lambda _: Machine(None, 64 * GIB)))
    lines, warnings, planned = checked()
    assert lines[0] == FIRST
    assert lines[-1].startswith("memory plan: fits: ")
    assert warnings == []
    assert planned is not None
    assert planned.misfits == ()


def test_what_does_not_fit_is_warned_of(small):
    lines, warnings, planned = checked()
    assert lines[0] == FIRST
    assert warnings[0].startswith("by plan this run does not fit: host memory: ")
    assert warnings[-1].endswith("plan.on_misfit=ignore says nothing")
    assert planned is not None


def test_or_refused(small):
    with pytest.raises(InputError, match=r"by plan this run does not fit: host memory: .* of 64"):
        checked("plan.on_misfit=error")


def test_or_nothing_is_said_but_the_batches(small):
    lines, warnings, planned = checked("plan.on_misfit=ignore")
    assert lines[0] == FIRST
    assert not any("plan" in line for line in (*lines, *warnings))
    assert planned is None


@pytest.mark.parametrize("error", [InputError("no such shape"), KeyError("vocab_size")])
def test_a_run_that_cannot_be_planned_starts_all_the_same(monkeypatch, error):
    def fails(*_):
        raise error

    monkeypatch.setattr(fit, "memory_map", fails)
    lines, warnings, planned = checked("plan.on_misfit=error")
    assert lines[-1].startswith(f"no memory plan: {type(error).__name__}: ")
    assert warnings == []
    assert planned is None


def test_batches_that_do_not_divide_are_refused_whatever_the_plan_says():
    with pytest.raises(InputError, match="multiple of the number of ranks"):
        check_launch(load("train-ppo", ["conf=tiny"]), Place(3, 3, on_gpu=False), Path(), LENGTHS)


def test_what_is_spared_is_a_share_of_the_limit():
    assert planned_with(Machine(8 * GIB, None), device_gib=2).spare == pytest.approx(0.75)
    assert planned_with(Machine(None, None), device_gib=2).spare is None
    assert "2.0 GiB (a GPU); fullest in update" in planned_with(Machine(None, None)).verdict


def test_checkpoints_that_are_there_take_no_more_disk(tmp_path, monkeypatch):
    """A run that goes on puts new ones in their place."""
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "file").write_bytes(b"x" * 10_000_000)
    monkeypatch.setattr(Machine, "here", staticmethod(lambda _: Machine(None, 64 * GIB, disk=1_000_000)))
    config = load("train-ppo", ["conf=tiny", "plan.on_misfit=error"])
    assert check_launch(config, PLACE, tmp_path, LENGTHS)[2] is not None
    with pytest.raises(InputError, match="disk: "):
        check_launch(config, PLACE, tmp_path / "new", LENGTHS)
