"""scripts/bench_ppo.py, bench_rm.py and bench_common.py: counts, options, figures and tables. Nothing is trained."""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import jinja2
import pytest
from transformers import LlamaConfig

from rlhf_cli.config.compose import load
from tests.conftest import REPOSITORY, child_environment, script

SCRIPTS = REPOSITORY / "scripts"


@pytest.fixture(scope="module")
def common() -> ModuleType:
    return script("bench_common")


@pytest.fixture(scope="module")
def ppo() -> ModuleType:
    return script("bench_ppo")


@pytest.fixture(scope="module")
def rm() -> ModuleType:
    return script("bench_rm")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with empty stand-ins for the files that the options and the child process name."""
    for name in ("model", "scripts", "policy", "reward_model"):
        (tmp_path / name).mkdir()
    for name in ("prompts", "train", "test"):
        (tmp_path / f"{name}.jsonl").touch()
    (tmp_path / "scripts" / "zero3_cpu.yaml").write_text("gradient_accumulation_steps: 2\nmixed_precision: bf16\n")
    (tmp_path / "scripts" / "trl_ppo.py").write_text("ids = encode(prompt)[:96]\n")
    return tmp_path


@pytest.fixture
def options(ppo: ModuleType, folder: Path) -> argparse.Namespace:
    words = ["--model", str(folder / "model"), "--peer-scripts", str(folder / "scripts"), "--shape", "8x8"]
    parsed = ppo.parsed([*words, "--peer-python", str(folder / "bin" / "python"), "--peer-micro", "3"])
    assert isinstance(parsed, argparse.Namespace)
    return parsed


# 10 weights in matrices, head of 3 tokens x width 2, one layer, attention of width 2, keys and values 4 numbers
@pytest.fixture
def size(common: ModuleType) -> object:
    return common.ModelSize(10, 6, 1, 2, 4)


def test_the_flops_of_a_forward_pass(size: object) -> None:
    # 3 tokens: weights 2 x 10 x 3 = 60; attention 4 x 3^2 / 2 x 2 = 36. 1 token: 20 + 4 = 24
    assert size.forward([3]) == 96  # type: ignore[attr-defined]
    assert size.forward([3, 1]) == 120  # type: ignore[attr-defined]
    assert size.logits(5) == 60  # type: ignore[attr-defined]  # 2 x 6 x 5


def test_two_layers_have_twice_the_attention(common: ModuleType) -> None:
    assert common.ModelSize(10, 6, 2, 2, 4).forward([3]) == 60 + 72


def test_the_bytes_that_decoding_reads(size: object) -> None:
    # 5 steps x 16 weights x 2 bytes = 160; 2 rows x 5 steps x (3 + 5 / 2) tokens = 55, x 4 numbers x 2 bytes = 440
    assert size.decoded_bytes(2, 5, 2, 3.0) == (160, 440)  # type: ignore[attr-defined]


def test_the_work_of_the_phases(ppo: ModuleType, size: object) -> None:
    # Two responses of 2 tokens to prompts of 1 and 3: sequences of 3 and 5 tokens.
    # One forward pass: 96 + (2 x 10 x 5 + 4 x 25 / 2 x 2 = 200) = 296; the head on 4 tokens: 2 x 6 x 4 = 48
    work = ppo.phase_work(size, [1, 3], 2.0, 2)
    assert work["rollout"] == (296 + 48, 4)
    assert work["score"] == (4 * 296 + 2 * 48, 8)
    assert work["update"] == (3 * (2 * 296 + 48), 8)
    assert work["step"] == (344 + 1280 + 1920, 4)


def test_the_work_is_that_of_a_batch_of_average_prompts(ppo: ModuleType, size: object) -> None:
    one, three = (ppo.phase_work(size, [1, 3], 2.0, rows) for rows in (2, 6))
    assert {phase: (3 * flops, 3 * tokens) for phase, (flops, tokens) in one.items()} == three


def test_a_models_size_comes_from_its_config(common: ModuleType, tmp_path: Path) -> None:
    # a layer: q 8x8, k and v 4x8 (one of two heads, width 4), o 8x8, gate and up 16x8, down 8x16
    shapes = {"hidden_size": 8, "intermediate_size": 16, "num_attention_heads": 2, "num_key_value_heads": 1}
    LlamaConfig(**shapes, num_hidden_layers=3, vocab_size=20).save_pretrained(tmp_path)
    size, found = common.size_and_shapes(str(tmp_path))
    assert size == common.ModelSize(3 * (64 + 32 + 32 + 64 + 3 * 128), 20 * 8, 3, 8, 8)
    assert found[-1] == (20, 8)
    assert len(found) == 3 * 7 + 1


def test_what_decoding_reaches(ppo: ModuleType, common: ModuleType, size: object, folder: Path) -> None:
    roofline = common.Roofline(size, {"bfloat16": 1e3}, read=320.0, copy=1.0, decoding={2: 0.1})
    given = ppo.Prepared(folder, [3, 3], "<end>", 0)
    found = ppo.decoding(roofline, 2, 4.0, given, ppo.Shape(4, 5), "bfloat16")
    assert (found["rows"], found["steps"]) == (2, 10)  # 4 prompts, 2 at a time
    assert (found["bytes_weights"], found["bytes_cache"]) == (320, 880)
    assert found["bandwidth_share"] == pytest.approx(320 / 4 / 320)
    assert found["bandwidth_share_with_cache"] == pytest.approx(1200 / 4 / 320)
    assert found["products_s"] == pytest.approx(10 * 0.1)
    assert found["products_share"] == pytest.approx(0.25)
    assert found["products_flops"] == pytest.approx(2 * 2 * 16 / 0.1)


ADDED = [(0, "<pad>", True), (1, "<s>", True), (2, "</s>", True), (3, "<|user|>", True), (4, "<a>", True)]


def test_the_last_special_token_that_is_not_used_stands_for_eos(ppo: ModuleType) -> None:
    added = [*ADDED, (5, "<b>", True), (6, "<|assistant|>", True), (7, "word", False)]
    template = "<|user|>{{ text }}<|assistant|>"
    assert ppo.end_stand_in(added, {0, 1, 2}, template, 100) == 5
    assert ppo.end_stand_in(added, {0, 1, 2, 5}, template, 100) == 4


def test_a_token_that_is_known_never_to_be_drawn_comes_first(ppo: ModuleType) -> None:
    added = [*ADDED, (15, "<jupyter_script>", True), (16, "<empty_output>", True)]
    assert ppo.end_stand_in(added, {0, 1, 2}, "", 100) == 15


def test_without_a_free_special_token_the_last_id_stands_for_eos(ppo: ModuleType) -> None:
    assert ppo.end_stand_in(ADDED[:3], {0, 1, 2}, "", 100) == 99
    assert ppo.end_stand_in(ADDED[:3], {0, 1, 2, 99}, "", 100) == 98


def test_answers_alone_end_in_the_stand_in(ppo: ModuleType) -> None:
    whole = "{% for message in messages %}<{{ message['role'] }}>{{ message['content'] + '</s>' }}{% endfor %}"
    chat = [{"role": "user", "content": "a</s>"}, {"role": "assistant", "content": "b"}]
    rendered = jinja2.Template(ppo.ended_otherwise(whole, "</s>", "<end>")).render(messages=chat)
    assert rendered == "<user>a</s></s><assistant>b<end>"
    assert ppo.ended_otherwise(whole.replace("'</s>'", '"</s>"'), "</s>", "<end>").count('"<end>"') == 1


@pytest.mark.parametrize("target", [3, 10, 57])
def test_a_made_up_prompt_is_as_long_as_asked_for(ppo: ModuleType, target: int) -> None:
    def count(text: str) -> int:
        return 2 + 2 * len(text.split())  # a template of 2 tokens, 2 a word

    made = ppo.made_up(["a", "b"], target, count, random.Random(1))
    assert count(made) in ((4,) if target == 3 else (target, target - 1))  # one word at least
    assert made == ppo.made_up(["a", "b"], target, count, random.Random(1))


def test_medians_with_their_range(common: ModuleType) -> None:
    assert common.shown([]) == "-"
    assert common.shown([2.345]) == "2.35"
    assert common.shown([3.0, 1.0, 2.0], 1) == "2.0 (1.0 - 3.0)"


def test_the_ratio_is_the_peers_median_by_ours(common: ModuleType) -> None:
    assert common.ratio([6.0, 2.0, 4.0], [1.0, 3.0]) == 2.0
    assert common.ratio([], [1.0]) is None
    assert common.shown_ratio(None) == "-"
    assert common.shown_ratio(1.914) == "1.91"


def test_a_table_has_columns(common: ModuleType) -> None:
    text = common.table([["", "rlhf", "TRL"], ["seconds", "1.0", "12.0"], ["x", "100.25", ""]])
    assert text.splitlines() == ["           rlhf   TRL", "seconds     1.0  12.0", "x        100.25"]


def test_a_row_of_a_phase(common: ModuleType) -> None:
    assert common.phase_row("update", 3e12, 600, 2.0, 6e12) == ["update", "2.00", "300", "1.500", "25.0%"]


def test_the_last_json_object_is_found_before_other_lines(common: ModuleType) -> None:
    assert common.last_json('{"a": 1}\n{"a": 2}\n{broken\nbye\n') == {"a": 2}
    with pytest.raises(SystemExit, match="no JSON"):
        common.last_json("nothing\n")


def test_words_are_overridden_by_their_key(common: ModuleType) -> None:
    assert common.overridden(["a=1", "b=2"], ["b=x=y", "c=3"]) == ["a=1", "b=x=y", "c=3"]


@pytest.mark.parametrize(("rows", "wanted", "size"), [(16, 4, 4), (8, 3, 2), (2, 4, 2), (7, 4, 1)])
def test_micro_batches_split_a_ranks_rows_evenly(common: ModuleType, rows: int, wanted: int, size: int) -> None:
    assert common.micro_batch(rows, wanted) == size


def test_a_child_that_ends_well_tells_its_memory(tmp_path: Path) -> None:
    """In a small process: what a child's parent holds, here torch, counts as the child's."""
    inner = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'held = b\"x\" * (200 * 2**20)']); print(1)"
    code = (
        "import os, sys, bench_common; from pathlib import Path; "
        "done = bench_common.run_child([sys.executable, '-c', sys.argv[1]], Path('log'), dict(os.environ)); "
        "print(done.text.strip(), done.seconds, done.peak_gib)"
    )
    environment = child_environment(PYTHONPATH=str(SCRIPTS))
    words = [sys.executable, "-c", code, inner]
    run = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    text, seconds, peak = map(float, run.stdout.split())
    assert text == 1
    assert seconds > 0
    assert 200 / 1024 < peak < 0.25  # of its own child


def test_a_child_that_fails_ends_the_script_with_its_last_lines(common: ModuleType, tmp_path: Path) -> None:
    code = "import sys; print(*range(100), sep='\\n'); sys.exit(3)"
    with pytest.raises(SystemExit) as ended:
        common.run_child([sys.executable, "-c", code], tmp_path / "log", child_environment())
    lines = str(ended.value.code).splitlines()  # a text: exit code 1
    assert lines[0] == "75"
    assert lines[-1].startswith("exit code 3: ")


def test_the_scripts_themselves_import_no_torch(tmp_path: Path) -> None:
    code = "import sys, bench_ppo, bench_rm, rlhf_cli.config.paths; sys.exit('torch' in sys.modules)"
    environment = child_environment(PYTHONPATH=str(SCRIPTS))
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, check=True)


def test_the_peer_on_one_rank(ppo: ModuleType, common: ModuleType, options: argparse.Namespace, folder: Path) -> None:
    given, shape, peer = ppo.Prepared(folder, [3], "<end>", 0), ppo.Shape(8, 8), common.peer_of(options)
    words = ppo.peer_words(options, given, shape, peer)
    assert words[:2] == [str(folder / "bin" / "python"), str(folder / "scripts" / "trl_ppo.py")]
    pairs = dict(zip(words[2:-1:2], words[3:-1:2], strict=True))
    assert (pairs["--batch"], pairs["--micro"], pairs["--resp"], pairs["--iters"]) == ("8", "2", "8", "3")
    assert words[-1] == "--bf16"


def test_the_peer_on_two_ranks(ppo: ModuleType, common: ModuleType, options: argparse.Namespace, folder: Path) -> None:
    options.ranks, options.dtype, options.prompt_tokens = 2, "float32", [20, 400]
    given, shape, peer = ppo.Prepared(folder, [3], "<end>", 0), ppo.Shape(16, 8), common.peer_of(options)
    words = ppo.peer_words(options, given, shape, peer)
    config = str(folder / "zero3_cpu.yaml")
    launch = [str(folder / "bin" / "accelerate"), "launch", "--config_file", config, "--num_processes", "2"]
    assert words[:7] == [*launch, str(folder / "trl_ppo.py")]
    # 8 rows a rank, 2 in a pass
    assert Path(config).read_text() == "gradient_accumulation_steps: 4\nmixed_precision: no\n"
    assert (folder / "trl_ppo.py").read_text() == "ids = encode(prompt)[:400]\n"
    assert "--bf16" not in words


def test_a_peers_script_that_cuts_otherwise_is_not_patched(ppo: ModuleType) -> None:
    with pytest.raises(SystemExit, match=r"\[:96\]"):
        ppo.longer_prompts("ids[:128]", 400)


@pytest.mark.parametrize("ranks", [1, 2])
def test_our_options_compose(ppo: ModuleType, options: argparse.Namespace, folder: Path, ranks: int) -> None:
    options.ranks, options.overrides = ranks, ["ppo.kl_coef=0.5", "rollout.micro_batch_size=3"]
    given, shape = ppo.Prepared(folder, [3], "<end>", 0), ppo.Shape(8, 5)
    config = load("train-ppo", [*ppo.our_words(options, given, shape), "run.name=a"])
    assert config.ppo.batch_size == config.ppo.minibatch_size == 8  # type: ignore[union-attr]
    assert config.ppo.kl_coef == 0.5  # type: ignore[union-attr]
    assert config.rollout.max_new_tokens == 5  # type: ignore[union-attr]
    assert config.data.max_prompt_tokens == 96  # type: ignore[union-attr]
    assert ppo.decode_rows(options, given, shape) == 3


@pytest.mark.parametrize(
    ("ranks", "dtype", "kept", "expected"),
    [
        (1, "bfloat16", False, "bfloat16"),
        (1, "bfloat16", True, "float32"),
        (2, "bfloat16", False, "float32"),
        (1, "float32", False, "float32"),
    ],
)
def test_states_are_of_the_peers_type(
    ppo: ModuleType, options: argparse.Namespace, folder: Path, ranks: int, dtype: str, kept: bool, expected: str
) -> None:
    options.ranks, options.dtype, options.float32_states = ranks, dtype, kept
    words = ppo.our_words(options, ppo.Prepared(folder, [3], "<end>", 0), ppo.Shape(8, 5))
    config = load("train-ppo", [*words, "run.name=a"])
    assert config.optim.state_dtype.value == config.value_optim.state_dtype.value == expected  # type: ignore[union-attr]


def test_our_reward_model_options_compose(rm: ModuleType, folder: Path) -> None:
    options = rm.parsed(["--model", str(folder / "model"), "--", "train.micro_batch_tokens=1024"])
    config = load("train-rm", rm.our_words(options, folder, 2))
    assert (config.run.seed, config.train.batch_size, config.train.micro_batch_tokens) == (2, 16, 1024)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--iters", "1"], "--iters"),
        (["--ranks", "3"], "does not divide"),
        (["--shape", "16by4"], "--shape"),
        (["--", "ppo.batch_size=4"], "both sides must use"),
        (["--", "ppo.kl_coef"], "expected key=value"),
    ],
)
def test_what_cannot_be_done_is_refused(
    ppo: ModuleType, folder: Path, capsys: pytest.CaptureFixture[str], words: list[str], reason: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        ppo.parsed(["--model", str(folder / "model"), *words])
    assert ended.value.code == 2
    assert reason in capsys.readouterr().err


def figures(ppo: ModuleType, with_peer: bool) -> dict[str, object]:
    record = {"time/rollout": 1.0, "time/score": 0.5, "time/update": 2.5, "time/step": 4.0, "tokens_per_s": 10.0}
    records = [{**record, "response_length": 8.0, "perf/decode_s": value, "perf/none": None} for value in (1.0, 3.0)]
    ours = ppo.our_figures([{"records": records, "peak_gib": 2.0, "run_s": 20.0}])
    assert ours["perf"] == {"perf/decode_s": 2.0}
    their_runs = [{"step_s": [8.0, 10.0], "peak_gib": 3.0, "run_s": 30.0}]
    peer = ppo.their_figures(their_runs, ppo.Shape(5, 8)) if with_peer else None
    work = {phase: {"flops": 1e9, "tokens": 40.0} for phase in ppo.PHASES}
    ratios = {"ratio_step": 2.25, "ratio_peak": 1.5} if with_peer else {"ratio_step": None, "ratio_peak": None}
    return {"shape": "5x8", "ours": ours, "peer": peer, "work": work, **ratios}


def test_both_sides_of_ppo_in_one_table(ppo: ModuleType) -> None:
    found = figures(ppo, with_peer=True)
    lines = [line.split("  ") for line in ppo.sides(found, natural=False).splitlines()]
    cells = {line[0]: [cell.strip() for cell in line[1:] if cell.strip()] for line in lines}
    assert cells["seconds per step"] == ["4.00 (4.00 - 4.00)", "9.00 (8.00 - 10.00)", "2.25"]
    assert cells["response tokens/s"] == ["10.0 (10.0 - 10.0)", "4.5 (4.0 - 5.0)", "0.45"]  # 5 x 8 slots / 10 and 8 s
    assert cells["peak memory, GiB"] == ["2.00", "3.00", "1.50"]
    assert "slots" in ppo.sides(found, natural=True)


def test_one_side_alone_has_no_column_of_the_peer(ppo: ModuleType) -> None:
    found = figures(ppo, with_peer=False)
    assert "TRL" not in ppo.sides(found, natural=True)
    assert ppo.summary([found]).splitlines()[1].split() == ["5x8", "4.00", "-", "-", "-", "1.00", "0.50", "2.50"]


def test_the_phases_stand_against_the_roofline(ppo: ModuleType) -> None:
    lines = ppo.phases(figures(ppo, with_peer=False), 2e9, "bfloat16").splitlines()
    assert lines[1].split() == ["rollout", "1.00", "40", "0.001", "50.0%"]
    assert lines[2].split() == ["score", "0.50", "80", "0.002", "100.0%"]


def test_pairs_that_do_not_fit_are_left_out(rm: ModuleType) -> None:
    def row(chosen: str, rejected: str, prompt: str = "a b") -> dict[str, str]:
        return {"prompt": prompt, "chosen": chosen, "rejected": rejected, "more": "left out"}

    def lengths(prompt: str, answer: str) -> tuple[int, int]:
        ours = len(prompt.split()) + len(answer.split())
        return ours, ours + 1

    fits = "w " * 253  # 2 + 253 + 1 = 256 on the peer's side
    rows = [row("c", "d"), row("c", "c"), row(" ", "d"), row(fits + "w", "d"), row("c", fits), row("c", "e")]
    kept, tokens = rm.fitting(rows, lengths, None)
    assert [(one["chosen"], one["rejected"]) for one in kept] == [("c", "d"), ("c", fits), ("c", "e")]
    assert tokens == [3, 3, 3, 255, 3, 3]
    assert kept[0].keys() == {"prompt", "chosen", "rejected"}
    assert len(rm.fitting(rows, lengths, 2)[0]) == 2


def test_both_sides_of_the_reward_model(rm: ModuleType, common: ModuleType, size: object) -> None:
    roofline = common.Roofline(size, {"bfloat16": 1e12}, 1e9, 1e9, {})
    ours = [{"train_s": 2.0, "accuracy": 0.7, "peak_gib": 1.0, "run_s": 9.0}]
    peer = [{"train_s": 5.0, "accuracy": 0.6, "peak_gib": 3.0, "run_s": 9.0}]
    found = rm.figures(ours, peer, roofline, [3, 1, 1, 1])  # two pairs
    assert found["ours"]["pairs_per_s"] == [1.0]
    assert found["peer"]["pairs_per_s"] == [0.4]
    assert (found["ratio_train"], found["ratio_peak"]) == (2.5, 3.0)
    assert found["accuracy_difference"] == pytest.approx(0.1)
    assert found["work"] == {"flops": 3 * (96 + 3 * 24), "tokens": 6}
    assert "0.7000  0.6000" in rm.sides(found)
    json.dumps(found)
    alone = rm.figures(ours, [], roofline, [3, 1, 1, 1])
    assert (alone["peer"], alone["ratio_train"], alone["accuracy_difference"]) == (None, None, None)
    assert "TRL" not in rm.sides(alone)
