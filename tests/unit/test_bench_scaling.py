"""scripts/bench_scaling.py: points, options, counted collectives, fits, tables and pictures. Nothing is trained."""

from __future__ import annotations

import argparse
import math
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from tests.conftest import script


@pytest.fixture(scope="module")
def scaling() -> ModuleType:
    return script("bench_scaling")


@pytest.mark.parametrize("quick", [False, True])
@pytest.mark.parametrize("given", [False, True])
def test_one_quantity_changes_along_an_axis(scaling: ModuleType, given: bool, quick: bool) -> None:
    found = scaling.axes(given, quick, [1, 2, 4])
    assert list(found) == list(scaling.LABELS)
    for name, points in found.items():
        columns = {key: {getattr(point, key) for point in points} for key in scaling.Point.__dataclass_fields__}
        assert {key for key, values in columns.items() if len(values) > 1} == {name}
        if name != "model":
            assert (columns["model"] == {scaling.GIVEN}) == given


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--model", "/no/such/folder"], "no such folder"),
        (["--steps", "1"], "--steps"),
        (["--ranks", "1", "3"], "--ranks"),
        (["--ranks", "0"], "--ranks"),
        (["--axis", "colour"], "--axis"),
    ],
)
def test_invalid_options_are_refused(
    scaling: ModuleType, capsys: pytest.CaptureFixture[str], words: list[str], reason: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        scaling.parsed(words)
    assert ended.value.code == 2
    assert reason in capsys.readouterr().err


def all_gather_into_tensor(output_tensor: SimpleNamespace, input_tensor: SimpleNamespace) -> str:
    return "gathered"


def test_collectives_are_counted_in_the_phases_of_all_steps_but_the_first(scaling: ModuleType) -> None:
    meter = scaling.Meter()
    gather = meter.counted(all_gather_into_tensor, "output_tensor", 1, 4)

    def all_reduce(tensor: SimpleNamespace) -> None:
        gather(tensor, tensor)  # inside another collective: counts once

    reduce = meter.counted(all_reduce, "tensor", 2, 4)
    whole = SimpleNamespace(nbytes=80)
    for step in (1, 2, 3):
        for phase in ("rollout", "score", "update"):
            meter.enter(phase, step)
            assert gather(whole, input_tensor=None) == "gathered"
        reduce(whole)
        meter.enter("checkpoint", step)
        gather(whole, None)
    gathered = {"calls": 1.0, "bytes": 80.0, "sent": 60.0}  # 3/4 of it on a ring of 4
    reduced = {"calls": 1.0, "bytes": 80.0, "sent": 120.0}
    assert meter.per_step() == {
        "rollout gathered": gathered,
        "score gathered": gathered,
        "update gathered": gathered,
        "update reduced": reduced,
    }


def test_collectives_beside_plain_zero3(scaling: ModuleType) -> None:
    options = argparse.Namespace(micro_tokens=200, dtype="bfloat16")
    # 8 rows per rank of 96 tokens, 2 per micro-batch: 4 micro-batches; a model has 1e6 weights of 2 bytes
    counted = {
        "update gathered": {"calls": 3.0, "bytes": 4e6, "sent": 2e6},
        "score other": dict.fromkeys(("calls", "bytes", "sent"), 1.0),
    }
    result = {"point": scaling.asdict(scaling.Point(ranks=2)), "weights": 1e6, "collectives": counted}
    lines = scaling.collectives_table(result, options).splitlines()
    assert lines[1].split() == ["update", "gathered", "3", "4.00", "32.00", "0.12", "2.00"]  # 2 models x 2 x 4 x 2 MB
    assert lines[2].split() == ["score", "other", "1", "0.00", "-", "-", "0.00"]


def test_plain_zero3_moves_every_model(scaling: ModuleType) -> None:
    assert scaling.zero3_bytes(10, 2, 3) == {
        "rollout gathered": 20,
        "score gathered": 80,
        "update gathered": 240,  # two models, forward and backward, 3 micro-batches
        "update reduced": 120,
    }


def test_a_line_and_its_exponent_are_found(scaling: ModuleType) -> None:
    fit = scaling.fitted([1, 2, 4, 8], [3, 5, 9, 17])
    assert (fit.fixed, fit.slope, fit.deviation) == pytest.approx((1, 2, 0))
    assert fit.exponent == pytest.approx(math.log(17 / 9) / math.log(2))  # the upper half
    assert fit.at(3) == pytest.approx(7)
    assert str(fit) == "1 +2 * x"


def test_more_ranks_divide_the_work(scaling: ModuleType) -> None:
    fit = scaling.fitted([1, 2, 4], [9, 5, 3], inverse=True)
    assert (fit.fixed, fit.slope) == pytest.approx((1, 8))
    assert str(fit) == "1 +8 / x"


def test_the_deviation_is_the_largest_one(scaling: ModuleType) -> None:
    # least squares through (1, 1), (2, 4), (3, 4): 1.5 x + 0; off by 0.5 / 1, 1 / 4 and 0.5 / 4
    assert scaling.fitted([1, 2, 3], [1, 4, 4]).deviation == pytest.approx(0.5)


def test_a_picture_shows_all_points_and_lines(scaling: ModuleType) -> None:
    xs = [1.0, 2.0, 4.0]
    curves = {name: ([2.0, 3.0, 5.0], scaling.fitted(xs, [2, 3, 5])) for name in scaling.QUANTITIES}
    root = ElementTree.fromstring(scaling.svg("a < b", xs, curves))
    tags = [element.tag.rpartition("}")[2] for element in root]
    assert (tags.count("polyline"), tags.count("circle")) == (5, 15)
    texts = [element.text or "" for element in root]
    assert "peak memory, GiB by a < b" in texts
    assert "update: 1 +1 * x" in texts


def test_an_axis_is_printed_drawn_and_returned(
    scaling: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(point: object, *_: object) -> dict[str, object]:
        figures = dict.fromkeys(scaling.QUANTITIES, 2.0 * point.prompts)  # type: ignore[attr-defined]
        return {**figures, "weights": 1e6, "point": scaling.asdict(point), "collectives": {}}

    monkeypatch.setattr(scaling, "run", run)
    points = scaling.axes(False, False, [1])["prompts"]
    found = list(scaling.measured("prompts", points, argparse.Namespace(out=tmp_path), tmp_path))
    assert [one["step"] for one in found] == [16, 32, 64, 128]
    assert (tmp_path / "growth_prompts.svg").exists()
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["8", *["16.00"] * 5] in lines
    assert any(line[:1] == ["step"] and line[-2:] == ["0%", "1.00"] for line in lines)
