"""The embedded demo data: reproducible, balanced, and with evaluation situations of its own."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest

from tests.conftest import REPOSITORY, script

DEMO = REPOSITORY / "rlhf_cli" / "demo"
SPLITS = ("train", "eval")
FLAWS = {
    "curt",
    "blaming",
    "off_topic",
    "over_promising",
    "rambling",
    "dismissive",
    "wrong_situation",
    "garbled",
    "endless",
}


@pytest.fixture(scope="module", name="script")
def generator() -> ModuleType:
    return script("make_demo_data")


def read(name: str) -> list[dict[str, str]]:
    """The rows of one committed file."""
    return [json.loads(line) for line in (DEMO / name).read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def pairs() -> dict[str, list[dict[str, str]]]:
    """The preference pairs by split."""
    return {split: read(f"preferences_{split}.jsonl") for split in SPLITS}


@pytest.fixture(scope="module")
def prompts() -> dict[str, list[dict[str, str]]]:
    """The prompts by split."""
    return {split: read(f"prompts_{split}.jsonl") for split in SPLITS}


def longer_wins(lengths: list[tuple[int, int]]) -> float:
    """How often the first of two lengths is the larger one; ties count half."""
    return sum((a > b) + 0.5 * (a == b) for a, b in lengths) / len(lengths)


def test_committed_files_are_what_the_script_writes(script: ModuleType) -> None:
    files = script.build(0)
    assert sorted(files) == sorted(path.name for path in DEMO.glob("*.jsonl"))
    for name, rows in files.items():
        assert (DEMO / name).read_bytes() == script.render(rows), name


def test_check_notices_a_changed_file(script: ModuleType, tmp_path: Path) -> None:
    assert script.main(["--out", str(tmp_path), "--check"]) == 1
    assert script.main(["--out", str(tmp_path)]) == 0
    assert script.main(["--out", str(tmp_path), "--check"]) == 0
    with (tmp_path / "prompts_eval.jsonl").open("ab") as file:
        file.write(b"\n")
    assert script.main(["--out", str(tmp_path), "--check"]) == 1


def test_another_seed_gives_other_pairs(script: ModuleType) -> None:
    assert script.build(1)["preferences_eval.jsonl"] != script.build(0)["preferences_eval.jsonl"]


def test_counts(pairs: dict[str, list[dict[str, str]]], prompts: dict[str, list[dict[str, str]]]) -> None:
    situations = {split: {row["situation"] for row in pairs[split]} for split in SPLITS}
    assert len(pairs["train"]) >= 1000
    assert len(pairs["eval"]) >= 200
    assert len(situations["train"] | situations["eval"]) >= 56
    assert len(situations["eval"]) >= 12
    assert len(prompts["train"]) >= 300
    assert len(prompts["eval"]) >= 40


def test_splits_share_no_situation_prompt_or_answer(
    pairs: dict[str, list[dict[str, str]]], prompts: dict[str, list[dict[str, str]]]
) -> None:
    for key in ("situation", "prompt", "chosen"):
        assert not {row[key] for row in pairs["train"]} & {row[key] for row in pairs["eval"]}, key
    for split in SPLITS:
        texts = [row["prompt"] for row in prompts[split]]
        assert len(set(texts)) == len(texts)
        assert {row["prompt"] for row in pairs[split]} == set(texts)


@pytest.mark.parametrize("split", SPLITS)
def test_length_does_not_tell_the_preference(pairs: dict[str, list[dict[str, str]]], split: str) -> None:
    rows = pairs[split]
    characters = longer_wins([(len(row["chosen"]), len(row["rejected"])) for row in rows])
    words = longer_wins([(len(row["chosen"].split()), len(row["rejected"].split())) for row in rows])
    assert 0.40 <= characters <= 0.60
    assert 0.40 <= words <= 0.60


@pytest.mark.parametrize("split", SPLITS)
def test_flaws_are_balanced(pairs: dict[str, list[dict[str, str]]], split: str) -> None:
    counts = Counter(row["flaw"] for row in pairs[split])
    assert set(counts) == FLAWS
    assert max(counts.values()) <= 1.2 * min(counts.values())


@pytest.mark.parametrize("split", SPLITS)
def test_rows_are_distinct_and_well_formed(pairs: dict[str, list[dict[str, str]]], split: str) -> None:
    rows = pairs[split]
    assert len({(row["prompt"], row["chosen"], row["rejected"]) for row in rows}) == len(rows)
    assert max(Counter(row["chosen"] for row in rows).values()) <= 3
    for row in rows:
        assert list(row) == ["prompt", "chosen", "rejected", "situation", "flaw"]
        assert row["chosen"] != row["rejected"]
        assert row["rejected"].strip()
        assert row["chosen"].isascii()
        assert row["chosen"][-1] in ".?!"
        assert 12 <= len(row["chosen"].split()) <= 40
        assert 4 <= len(row["prompt"].split()) <= 25
        assert "{" not in row["prompt"] + row["chosen"]


def test_every_prompt_can_be_answered(script: ModuleType) -> None:
    texts = script.demo_situations
    for situation in script.parse(texts.TRAIN) + script.parse(texts.EVAL):
        for prompt in situation.prompts:
            for kind in "ANQ":
                assert situation.fitting(kind, prompt), (situation.slug, prompt.text, kind)
