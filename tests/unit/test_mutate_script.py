"""scripts/mutate.py and scripts/sample.py: mutants, checks of the lists, random samples. No mutant is run."""

from __future__ import annotations

import argparse
from pathlib import Path
from types import ModuleType

import pytest

from tests.conftest import script

SOURCE = """\
def mean(values, mask):
    return (values * mask).sum() / max(mask.sum(), 1)


def other(x):
    return -x
"""
MUTANTS = {
    "return (values / mask).sum() / max(mask.sum(), 1)",
    "return (values * mask).sum() * max(mask.sum(), 1)",
    "return (values * mask).sum() / min(mask.sum(), 1)",
    "return (values * mask).sum() / max(mask.sum(), 0)",
    "return (values * mask).sum() / max(mask.sum(), 2)",
}


@pytest.fixture
def mutate(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """Return the script with a file of its own to mutate."""
    module = script("mutate")
    (tmp_path / "a.py").write_text(SOURCE)
    (tmp_path / "test_a.py").touch()
    monkeypatch.setattr(module, "REPOSITORY", tmp_path)
    monkeypatch.setattr(module, "TARGETS", {"a.py": (("mean",), ("test_a.py",))})
    monkeypatch.setattr(module, "EQUIVALENT", {})
    return module


def test_every_token_of_the_named_functions_is_changed(mutate: ModuleType) -> None:
    found = mutate.all_mutants(["a.py"])
    assert {mutant.after for mutant in found} == MUTANTS
    assert {(mutant.line, mutant.before) for mutant in found} == {(2, SOURCE.splitlines()[1].strip())}


@pytest.mark.parametrize(
    ("targets", "equivalent", "error"),
    [
        ({"a.py": (("median",), ("test_a.py",))}, {}, "median does not exist"),
        ({"a.py": (("mean",), ("test_b.py",))}, {}, "test_b.py does not exist"),
        ({"b.py": ((), ("test_a.py",))}, {}, "No such file"),
        ({"a.py": (("mean",), ("test_a.py",))}, {("a.py", "return 1"): "why"}, "this line is no mutant"),
    ],
)
def test_outdated_lists_are_refused(
    mutate: ModuleType, monkeypatch: pytest.MonkeyPatch, targets: object, equivalent: object, error: str
) -> None:
    monkeypatch.setattr(mutate, "TARGETS", targets)
    monkeypatch.setattr(mutate, "EQUIVALENT", equivalent)
    with pytest.raises(SystemExit, match=error):
        mutate.all_mutants(list(mutate.TARGETS))


def test_a_sample_can_be_repeated(capsys: pytest.CaptureFixture[str]) -> None:
    sample = script("sample")
    parser = argparse.ArgumentParser()
    sample.add_sample_options(parser)
    options = parser.parse_args(["--sample", "0.1"])
    chosen = sample.sampled(range(101), options)
    assert len(chosen) == 11
    assert chosen == sorted(chosen)
    printed = capsys.readouterr().out
    assert printed.startswith("11 of 101 run; repeat with --sample 0.1 --seed ")
    again = parser.parse_args(["--sample", "0.1", "--seed", printed.split()[-1]])
    assert sample.sampled(range(101), again) == chosen
    assert sample.sampled(range(101), parser.parse_args(["--sample", "0.1", "--seed", "1"])) != chosen
    assert sample.sampled(range(101), parser.parse_args([])) == list(range(101))
