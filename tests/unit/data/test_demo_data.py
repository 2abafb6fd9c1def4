"""The embedded demo data: balanced rows, with situations that only the evaluation split has."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from tests.conftest import REPOSITORY

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


def read(name: str) -> list[dict[str, str]]:
    """Return the rows of a committed file."""
    return [json.loads(line) for line in (DEMO / name).read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def pairs() -> dict[str, list[dict[str, str]]]:
    """Return the preference pairs of each split."""
    return {split: read(f"preferences_{split}.jsonl") for split in SPLITS}


@pytest.fixture(scope="module")
def prompts() -> dict[str, list[dict[str, str]]]:
    """Return the prompts of each split."""
    return {split: read(f"prompts_{split}.jsonl") for split in SPLITS}


def longer_wins(lengths: list[tuple[int, int]]) -> float:
    """Return how often the first of two lengths is the larger one; a tie counts as a half."""
    return sum((a > b) + 0.5 * (a == b) for a, b in lengths) / len(lengths)


def test_the_folder_has_no_other_files() -> None:
    wanted = sorted(f"{kind}_{split}.jsonl" for kind in ("preferences", "prompts") for split in SPLITS)
    assert sorted(path.name for path in DEMO.glob("*.jsonl")) == wanted


def test_counts(pairs: dict[str, list[dict[str, str]]], prompts: dict[str, list[dict[str, str]]]) -> None:
    situations = {split: {row["situation"] for row in pairs[split]} for split in SPLITS}
    assert len(pairs["train"]) >= 1000
    assert len(pairs["eval"]) >= 200
    assert len(situations["train"] | situations["eval"]) >= 56
    assert len(situations["eval"]) >= 12
    assert len(prompts["train"]) >= 300
    assert len(prompts["eval"]) >= 40


def test_splits_share_no_situation_prompt_or_chosen_response(
    pairs: dict[str, list[dict[str, str]]], prompts: dict[str, list[dict[str, str]]]
) -> None:
    for key in ("situation", "prompt", "chosen"):
        assert not {row[key] for row in pairs["train"]} & {row[key] for row in pairs["eval"]}, key
    for split in SPLITS:
        texts = [row["prompt"] for row in prompts[split]]
        assert len(set(texts)) == len(texts)
        assert {row["prompt"] for row in pairs[split]} == set(texts)


@pytest.mark.parametrize("split", SPLITS)
def test_length_does_not_predict_the_preference(pairs: dict[str, list[dict[str, str]]], split: str) -> None:
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
        assert row["prompt"].strip()
        assert row["rejected"].strip()
        assert row["chosen"].isascii()
        assert row["chosen"][-1] in ".?!"
        assert 12 <= len(row["chosen"].split()) <= 40
        assert 4 <= len(row["prompt"].split()) <= 25
        assert "{" not in row["prompt"] + row["chosen"]
