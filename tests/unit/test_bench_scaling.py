"""scripts/bench_scaling.py: points, counting, the arithmetic of ZeRO-3, fits, tables, pictures. Nothing is trained."""

from __future__ import annotations

import argparse
import json
import math
import random
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from rlhf_cli.config.compose import load
from tests.conftest import script

Row = dict[str, object]


@pytest.fixture(scope="module")
def scaling() -> ModuleType:
    return script("bench_scaling")


# --- points


def test_the_largest_random_model_has_the_shape_of_smollm2(scaling: ModuleType) -> None:
    config = scaling.FULL.models[-1].config(49152)
    assert (config["hidden_size"], config["num_hidden_layers"], config["intermediate_size"]) == (576, 30, 1536)
    assert (config["num_attention_heads"], config["num_key_value_heads"], config["vocab_size"]) == (9, 3, 49152)


@pytest.mark.parametrize(("width", "heads", "kv_heads"), [(64, 1, 1), (128, 2, 1), (256, 4, 1), (384, 6, 2)])
def test_heads_divide(scaling: ModuleType, width: int, heads: int, kv_heads: int) -> None:
    config = scaling.Shape(width, 2).config(259)
    assert (config["num_attention_heads"], config["num_key_value_heads"]) == (heads, kv_heads)


@pytest.mark.parametrize("given", [False, True])
def test_one_quantity_changes_along_an_axis(scaling: ModuleType, given: bool) -> None:
    fields = {"prompts": "prompts", "response": "response", "prompt": "prompt", "ranks": "ranks", "model": "model"}
    found = scaling.axes(scaling.FULL, [1, 2, 4], given, scaling.AXES)
    assert [axis.name for axis in found] == list(scaling.AXES)
    for axis in found:
        columns = {name: {getattr(point, name) for point in axis.points} for name in scaling.Point.__dataclass_fields__}
        assert {name for name, values in columns.items() if len(values) > 1} == {fields[axis.name]}
        assert columns["counted"] == {axis.name == "ranks"}
        if axis.name != "model":
            assert columns["model"] == {scaling.GIVEN if given else "256x8"}


def test_the_axes_share_their_base_and_can_be_left_out(scaling: ModuleType) -> None:
    prompts, response = scaling.axes(scaling.FULL, [1], False, ["response", "prompts"])
    assert set(prompts.points) & set(response.points) == {scaling.FULL.base}


def test_a_prompt_is_cut_to_its_length(scaling: ModuleType) -> None:
    words, draw = ["one", "three", "x"], random.Random(0)
    assert all(len(scaling.cut(words, target, len, draw)) == target for target in (1, 2, 16, 256))
    assert len(scaling.cut(words, 9, lambda text: 2 * len(text), draw)) == 4  # a tokenizer that jumps over 9


def test_words_that_are_more_than_bytes_are_left_out(scaling: ModuleType) -> None:
    lines = "".join(json.dumps({"prompt": text}) + "\n" for text in ("to be", "or naïve", "to"))
    assert scaling.plain_words(lines + "\n") == ["be", "or", "to"]


def test_where_points_stand(scaling: ModuleType) -> None:
    models = {"256x8": {"weights": {"policy": 5_500_000}, "prompt_tokens": {"64": [63, 64]}}}
    found = {
        axis.name: scaling.position(axis, scaling.FULL.base, models)
        for axis in scaling.axes(scaling.FULL, [1], False, scaling.AXES)
    }
    assert found == {"prompts": 16, "response": 32, "prompt": 63.5, "ranks": 1, "model": 5.5}


# --- the command line


@pytest.mark.parametrize("ranks", [1, 2])
def test_our_options_compose(scaling: ModuleType, tmp_path: Path, ranks: int) -> None:
    """A point of the axis `ranks` shards every parameter; so does no other."""
    options = scaling.parsed(["--micro-tokens", "300", "--", "ppo.kl_coef=0.5"])
    point = scaling.Point(16, 32, 64, "256x8", ranks, counted=ranks == 2)
    for name in ("policy", "reward_model"):
        (tmp_path / "256x8" / name).mkdir(parents=True)
    config = load("train-ppo", scaling.our_words(options, tmp_path, point))
    assert config.ppo.batch_size == config.ppo.minibatch_size == 16  # type: ignore[union-attr]
    assert (config.ppo.num_steps, config.ppo.micro_batch_tokens) == (3, 300)  # type: ignore[union-attr]
    assert config.ppo.kl_coef == 0.5  # type: ignore[union-attr]
    assert config.rollout.max_new_tokens == 32  # type: ignore[union-attr]
    assert config.data.max_prompt_tokens == 64  # type: ignore[union-attr]
    assert not config.data.apply_chat_template
    assert config.data.train == str(tmp_path / "256x8" / "prompts-64.jsonl")
    zero = config.deepspeed["zero_optimization"]
    assert (zero.get("stage3_param_persistence_threshold") == 0) == (ranks == 2)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--model", "/no/such/folder"], "no such folder"),
        (["--steps", "1"], "--steps"),
        (["--vocabulary", "258"], "259 or more"),
        (["--ranks", "1", "3"], "--ranks 3 do not divide the 16"),
        (["--ranks", "0"], "--ranks 0"),
        (["--quick", "--ranks", "8"], "--ranks 8 do not divide the 4"),
        (["--axis", "colour"], "--axis"),
        (["--", "ppo.kl_coef"], "wanted key=value"),
        (["--", "ppo.batch_size=4"], "follows from the options"),
        (["--", "++rollout.gather=false"], "rollout.gather"),
    ],
)
def test_what_cannot_be_done_is_refused(
    scaling: ModuleType, capsys: pytest.CaptureFixture[str], words: list[str], reason: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        scaling.parsed(words)
    assert ended.value.code == 2
    assert reason in capsys.readouterr().err


def test_ranks_by_default(scaling: ModuleType) -> None:
    assert scaling.parsed([]).ranks == [1, 2, 4]
    assert scaling.parsed(["--quick"]).ranks == [1, 2]
    assert scaling.parsed(["--ranks", "4", "1", "4"]).ranks == [1, 4]


def test_the_help_is_the_docstring(scaling: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        scaling.parsed(["--help"])
    assert capsys.readouterr().out.strip() == (scaling.__doc__ or "").strip()


# --- counting


def tensor(num_bytes: int, dtype: str = "bfloat16") -> SimpleNamespace:
    return SimpleNamespace(nbytes=num_bytes, dtype=f"torch.{dtype}")


def test_the_payload_of_a_collective(scaling: ModuleType) -> None:
    assert scaling.payload(tensor(6)) == (6, "bfloat16")
    assert scaling.payload([tensor(6), tensor(2, "uint8")]) == (8, "bfloat16, uint8")
    assert scaling.payload(None) == (0, "-")


def test_what_a_rank_sends_on_a_ring(scaling: ModuleType) -> None:
    assert scaling.sent(1200, 1, 4) == 900
    assert scaling.sent(1200, 2, 4) == 1800  # all-reduce: reduce-scatter and all-gather
    assert scaling.sent(1200, 1, 1) == 0


def test_collectives_are_counted_by_step_and_phase(scaling: ModuleType) -> None:
    """Once where one calls another, and not at all between steps."""
    meter = scaling.Meter(lambda: 4)
    inner = meter.counted(lambda output_tensor, input_tensor: None, "all_gather_single", "output_tensor", 1)

    def outer(output_tensor: object, input_tensor: object, group: object = None) -> None:
        inner(output_tensor, input_tensor)

    gather = meter.counted(outer, "all_gather_single", "output_tensor", 1)
    reduce = meter.counted(lambda tensor: None, "all_reduce", "tensor", 2)
    gather(tensor(400), tensor(100))
    for _ in range(2):
        with meter.during("rollout"):
            gather(tensor(400), input_tensor=tensor(100))
            inner(output_tensor=tensor(800), input_tensor=tensor(200))
        with meter.during("update"):
            reduce(tensor(8, "float32"))
    reduce(tensor(8, "float32"))
    rows = [{key: value for key, value in row.items() if key != "seconds"} for row in meter.rows()]
    gathers = {"phase": "rollout", "name": "all_gather_single", "dtype": "bfloat16", "calls": 2, "bytes": 1200}
    reduces = {"phase": "update", "name": "all_reduce", "dtype": "float32", "calls": 1, "bytes": 8}
    assert rows == [
        {"step": step, **row, "sent": row_sent}
        for step in (1, 2)
        for row, row_sent in ((gathers, 900), (reduces, 2 * 8 * 3 / 4))
    ]


def test_waiting_for_a_collective_counts(scaling: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 1.0, 10.0, 13.0])
    monkeypatch.setattr(scaling.time, "perf_counter", lambda: next(clock))
    meter = scaling.Meter(lambda: 2)
    work = SimpleNamespace(wait=lambda *_: "done", is_completed=lambda: True)
    gather = meter.counted(lambda output_tensor: work, "all_gather_single", "output_tensor", 1)
    with meter.during("score"):
        handle = gather(tensor(2))
    assert handle.wait(5) == "done"
    assert handle.is_completed()
    (row,) = meter.rows()
    assert (row["calls"], row["seconds"]) == (1, 4.0)


def test_the_counts_are_means_over_ranks_and_steps_but_the_first(scaling: ModuleType) -> None:
    def row(step: int, num_bytes: int) -> Row:
        counts = {"calls": 2, "bytes": num_bytes, "sent": num_bytes / 2, "seconds": 0.5}
        return {"step": step, "phase": "score", "name": "broadcast", "dtype": "uint8", **counts}

    ranks = [[row(1, 1000), row(2, 10), row(3, 20)], [row(1, 1000), row(2, 30), row(3, 20)]]
    (mean,) = scaling.collectives(ranks, 2)
    assert (mean["phase"], mean["name"], mean["dtype"]) == ("score", "broadcast", "uint8")
    assert (mean["calls"], mean["bytes"], mean["sent"], mean["seconds"]) == (2, 20, 10, 0.5)


def test_a_run_keeps_seconds_and_memory(scaling: ModuleType) -> None:
    times = {f"time/{phase}": 1.0 for phase in scaling.PHASES}
    records = [{**times, "time/step": seconds, "tokens_per_s": 9.0, "response_length": 8.0} for seconds in (3.0, 5.0)]
    done = SimpleNamespace(peak_gib=0.5, seconds=30.0)
    alone = scaling.figures(records, done, [])
    assert scaling.values(alone) == {"rollout": 1, "score": 1, "update": 1, "step": 4, "memory": 0.5}
    assert "collectives" not in alone
    ranks = scaling.figures(records, done, [{"peak_gib": 0.75, "rows": []}, {"peak_gib": 1.0, "rows": []}])
    assert (ranks["peak_gib"], ranks["all_ranks_gib"], ranks["collectives"]) == (1.0, 1.75, [])


# --- ZeRO-3


@pytest.mark.parametrize(("rows", "tokens", "most", "passes"), [(8, 96, 1024, 1), (16, 96, 1024, 2), (3, 300, 200, 3)])
def test_the_micro_batches_of_rows_of_one_length(
    scaling: ModuleType, rows: int, tokens: int, most: int, passes: int
) -> None:
    assert scaling.num_micro_batches(rows, tokens, most) == passes


def test_what_plain_zero3_moves(scaling: ModuleType) -> None:
    # policy and reference 100 weights, reward and value model 90, 3 micro-batches, 2 bytes a weight
    assert scaling.zero3_bytes(100, 90, 3, 2) == {
        ("rollout", "all_gather_single"): 200,
        ("score", "all_gather_single"): 2 * (100 + 100 + 90 + 90),
        ("update", "all_gather_single"): 2 * 3 * 2 * (100 + 90),
        ("update", "reduce_scatter_single"): 2 * 3 * (100 + 90),
    }


def counted(phase: str, name: str, num_bytes: float) -> Row:
    return {"phase": phase, "name": name, "calls": 1, "bytes": num_bytes, "sent": num_bytes / 2, "seconds": 0.25}


def test_counts_beside_the_arithmetic(scaling: ModuleType) -> None:
    rows = [
        counted("update", "all_gather_single", 1000),
        counted("update", "all_gather_single", 140),  # of another type
        counted("update", "all_reduce", 8),
        counted("score", "all_gather", 40),
    ]
    expected = scaling.zero3_bytes(100, 90, 3, 2)
    found = {(row["phase"], row["name"]): row for row in scaling.against_zero3(rows, expected, 2)}
    update = found["update", "all_gather_single"]
    assert (update["bytes"], update["zero3_bytes"], update["zero3_sent"], update["calls"]) == (1140, 2280, 1140, 2)
    assert found["rollout", "all_gather_single"]["bytes"] == 0
    rest = found["", "all else"]
    assert (rest["bytes"], rest["seconds"], rest["zero3_bytes"]) == (48, 0.5, None)
    alone = scaling.against_zero3([], expected, 1)
    assert [row["zero3_bytes"] for row in alone] == [0, 0, 0, 0, None]
    lines = scaling.volume_table(list(found.values())).splitlines()
    assert lines[3].split() == ["update", "all_gather_single", "2", "0.001", "0.002", "0.50", "0.001", "0.001", "0.500"]
    assert lines[-1].split() == ["all", "else", "2", "0.000", "-", "-", "0.000", "-", "0.500"]
    assert "-" in scaling.volume_table(alone)


# --- fits


def test_a_line_is_found(scaling: ModuleType) -> None:
    fit = scaling.fitted([8, 16, 32, 64], [1 + 2 * x for x in (8, 16, 32, 64)])
    assert (fit.fixed, fit.slope) == (pytest.approx(1), pytest.approx(2))
    assert fit.at(10) == pytest.approx(21)
    assert fit.deviation == pytest.approx(0)
    assert str(fit) == "1 + 2 * x"


def test_least_squares_by_hand(scaling: ModuleType) -> None:
    # means 2 and 3; slope (-1 x -2 + 0 x 1 + 1 x 1) / 2 = 1.5
    assert scaling.least_squares([1, 2, 3], [1, 4, 4]) == (pytest.approx(0), pytest.approx(1.5))
    fit = scaling.fitted([1, 2, 3], [1, 4, 4])
    assert fit.deviation == pytest.approx(0.5)  # 1.5 beside 1


def test_the_exponent_is_that_of_the_upper_half(scaling: ModuleType) -> None:
    # of 1 2 4 8: 4 and 8, which the fixed part of the others does not touch
    fit = scaling.fitted([1, 2, 4, 8], [100, 100, 16, 64])
    assert fit.exponent == pytest.approx(2)
    assert fit.verdict == "super-linear: exponent 2.00"
    five = scaling.fitted([1, 2, 4, 8, 16], [1, 1, 4**1.5, 8**1.5, 16**1.5])
    assert five.exponent == pytest.approx(1.5)


def test_a_fixed_part_is_told_from_less_than_linear(scaling: ModuleType) -> None:
    xs = [1, 2, 4, 8]
    assert scaling.fitted(xs, [10 + x for x in xs]).verdict.startswith("linear beside a fixed part: exponent 0.3")
    assert scaling.fitted(xs, [math.sqrt(x) for x in xs]).verdict == "sub-linear: exponent 0.50"


def test_more_ranks_divide_the_work(scaling: ModuleType) -> None:
    fit = scaling.fitted([1, 2, 4], [2 + 8 / x for x in (1, 2, 4)], inverse=True)
    assert (fit.fixed, fit.slope) == (pytest.approx(2), pytest.approx(8))
    assert fit.at(8) == pytest.approx(3)
    assert str(fit) == "2 + 8 / x"
    assert fit.verdict == "falls: exponent -0.58"  # log2(4 / 6)


@pytest.mark.parametrize(
    ("exponent", "inverse", "said"),
    [
        (None, False, "-"),
        (-0.001, False, "constant: exponent 0.00"),
        (0.08, True, "constant: exponent 0.08"),
        (-0.5, False, "falls: exponent -0.50"),
        (0.5, False, "sub-linear: exponent 0.50"),
        (0.95, False, "linear: exponent 0.95"),
        (1.3, False, "super-linear: exponent 1.30"),
        (1.0, True, "grows: exponent 1.00"),
    ],
)
def test_verdicts(scaling: ModuleType, exponent: float | None, inverse: bool, said: str) -> None:
    assert scaling.verdict(exponent, False, inverse) == said


def test_what_cannot_be_fitted(scaling: ModuleType) -> None:
    assert scaling.fitted([4], [1.0]) is None
    assert scaling.fitted([4, 4], [1.0, 2.0]) is None
    assert scaling.fitted([1, 2], [0.0, 1.0]).exponent is None
    assert scaling.fit_table({"step": None}).splitlines()[1].split() == ["step,", "s", "-", "-", "-"]


# --- tables and pictures


def result(seconds: float) -> Row:
    phases = {"rollout": [seconds / 2], "score": [seconds / 4], "update": [seconds / 4], "step": [seconds]}
    return {"seconds": phases, "tokens_per_s": [100.0], "peak_gib": 0.5, "all_ranks_gib": 1.0}


def test_the_table_of_an_axis(scaling: ModuleType) -> None:
    prompts, ranks = scaling.axes(scaling.QUICK, [1, 2], False, ["prompts", "ranks"])
    lines = scaling.axis_table(prompts, [4.0, 8.0], [result(1), result(2)]).splitlines()
    assert lines[2].split() == ["8", "1.00", "0.50", "0.50", "2.00", "100.0", "0.50"]
    lines = scaling.axis_table(ranks, [1.0, 2.0], [result(3), result(2)]).splitlines()
    assert lines[2].split()[-3:] == ["1.50", "75%", "1.00"]


def test_memory_of_ranks_has_a_line_of_its_own(scaling: ModuleType) -> None:
    (ranks,) = scaling.axes(scaling.QUICK, [1, 2], False, ["ranks"])
    found = scaling.fits(ranks, [1.0, 2.0], [result(3), result(2)])
    assert found["step"].inverse
    assert not found["memory"].inverse
    assert "memory, GiB" in scaling.fit_table(found)


def test_the_summary_has_a_line_an_axis(scaling: ModuleType) -> None:
    fits = {"step": {"verdict": "linear"}, "memory": None}
    lines = scaling.summary([{"axis": "prompts", "fits": fits}]).splitlines()
    assert lines[1].split() == ["prompts", "linear", "-"]


@pytest.mark.parametrize(
    ("highest", "last", "step"),
    [(1.0, 1.0, 0.2), (11.2, 12.0, 2.0), (64, 70, 10), (0.04, 0.04, 0.01), (106, 120, 20), (0, 1, 1)],
)
def test_ticks_are_round_numbers(scaling: ModuleType, highest: float, last: float, step: float) -> None:
    found = scaling.ticks(highest)
    assert found[0] == 0
    assert found[1] == pytest.approx(step)
    assert found[-1] == pytest.approx(last)
    assert found[-1] >= highest - 1e-9


def test_a_picture_shows_points_line_and_labels(scaling: ModuleType) -> None:
    points = [(2.0, 1.0), (10.0, 5.0)]
    fit = scaling.fitted([2.0, 10.0], [1.0, 5.0])
    series = scaling.Series("a < b", points, fit, "#0072b2")
    root = ElementTree.fromstring(scaling.svg("title", [scaling.Panel("tokens", "seconds", [series])]))
    name = "{http://www.w3.org/2000/svg}"
    texts = [element.text for element in root.iter(f"{name}text")]
    assert {"title", "tokens", "seconds", "a < b", "0", "10", "5"} <= set(texts)
    dots = [(float(dot.attrib["cx"]), float(dot.attrib["cy"])) for dot in root.iter(f"{name}circle")]
    left, top, width, height = scaling.LEFT, scaling.TOP, scaling.WIDTH, scaling.HEIGHT
    assert dots[0] == (left + width * 0.2, top + height * 0.8)
    assert dots[1] == (left + width, top)
    (line,) = (element.attrib["points"].split() for element in root.iter(f"{name}polyline"))
    assert line[0] == f"{dots[0][0]:.1f},{dots[0][1]:.1f}"
    assert line[-1] == f"{dots[1][0]:.1f},{dots[1][1]:.1f}"


def test_a_line_stops_at_nothing(scaling: ModuleType) -> None:
    fit = scaling.fitted([1.0, 2.0, 3.0], [0.1, 0.1, 3.0])
    assert fit.at(1.0) < 0
    drawn = scaling.marks(scaling.Series("s", [(1.0, 0.1), (3.0, 3.0)], fit, "red"), lambda x, y: (x, y))
    heights = [float(pair.split(",")[1]) for pair in drawn[0].split('"')[1].split()]
    assert heights
    assert min(heights) >= 0


def test_the_picture_of_an_axis(scaling: ModuleType) -> None:
    (prompts,) = scaling.axes(scaling.QUICK, [1], False, ["prompts"])
    xs, results = [4.0, 8.0], [result(1), result(2)]
    text = scaling.picture(prompts, xs, results, scaling.fits(prompts, xs, results))
    root = ElementTree.fromstring(text)
    assert len(list(root.iter("{http://www.w3.org/2000/svg}polyline"))) == 5  # four phases, memory
    alone = scaling.picture(prompts, xs[:1], results[:1], scaling.fits(prompts, xs[:1], results[:1]))
    assert "polyline" not in alone


def test_all_points_of_an_axis_are_measured_once(
    scaling: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runs: list[object] = []

    def run(_options: object, _folder: object, point: object) -> Row:
        runs.append(point)
        more = {"run_s": 9.0, "response_tokens": [7.0], "collectives": [counted("score", "broadcast", 8)]}
        return {**result(len(runs)), **more}

    monkeypatch.setattr(scaling, "run", run)
    models = {"64x2": {"weights": {"policy": 10, "reward_model": 9}, "prompt_tokens": {"16": [16], "32": [32]}}}
    options = argparse.Namespace(out=tmp_path, dtype="bfloat16", micro_tokens=24)
    known: dict[object, Row] = {}
    found = [
        scaling.measured(axis, options, tmp_path, models, known)
        for axis in scaling.axes(scaling.QUICK, [1, 2], False, ["prompts", "prompt", "ranks"])
    ]
    assert len(runs) == len(known) == 5  # the base belongs to two axes
    assert sorted(file.name for file in tmp_path.iterdir()) == ["prompt.svg", "prompts.svg", "ranks.svg"]
    json.dumps(found)
    shown = capsys.readouterr().out
    assert "ranks: 2; micro-batches of the update: 2; 0.25 of 5.00 s" in shown
    assert "warning: the stand-in for EOS was drawn" in shown
