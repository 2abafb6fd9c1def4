"""scripts/chaos.py: drawn faults, expected exit codes, suggestions of errors, tables. No run is started."""

from __future__ import annotations

import json
import random
from pathlib import Path
from types import ModuleType

import pytest

from rlhf_cli.config.errors import CheckpointError
from rlhf_cli.engine.checkpoint_manifest import (
    FileRecord,
    Manifest,
    check_hashes,
    find_checkpoint,
    pointed,
    read_manifest,
)
from rlhf_cli.system.durable_files import sha256
from tests.conftest import script


@pytest.fixture(scope="module")
def chaos() -> ModuleType:
    return script("chaos")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Return a run with two valid checkpoints."""
    for step in (2, 4):
        folder = tmp_path / "checkpoints" / f"step-{step}"
        (folder / "policy").mkdir(parents=True)
        files = []
        for name in ("policy/rank0-0.safetensors", "policy/rank1-0.safetensors", "trainer.json", "config.yaml"):
            (folder / name).write_text(f"{step} {name}\n" * 5)
            files.append(FileRecord(name, (folder / name).stat().st_size, sha256(folder / name)))
        Manifest(step, 2, "2026-01-01T00:00:00+0000", tuple(files)).write(folder)
    (tmp_path / "checkpoints" / "latest").write_text("step-4\n")
    return tmp_path


def test_one_seed_draws_the_same_faults(chaos: ModuleType) -> None:
    first, second = ([chaos.chosen(draw, True) for _ in range(50)] for draw in (random.Random(3), random.Random(3)))
    assert first == second
    assert len(set(first)) > 40


def test_every_act_target_moment_and_damage_is_drawn(chaos: ModuleType) -> None:
    draw = random.Random(0)
    faults = [chaos.chosen(draw, True) for _ in range(1000)]
    assert {fault.act for fault in faults} == set(chaos.ACTS)
    assert {fault.target for fault in faults} == set(chaos.TARGETS)
    assert {fault.moment for fault in faults} == set(chaos.MOMENTS)
    assert {fault.damage for fault in faults} == {"", *chaos.DAMAGES}
    assert {fault.act for fault in faults if fault.damage} == {"SIGKILL"}


def test_only_a_rank_that_trains_is_stopped_and_only_a_resume_finds_the_disk_full(chaos: ModuleType) -> None:
    draw = random.Random(0)
    faults = [chaos.chosen(draw, False) for _ in range(1000)]
    stopped = [fault for fault in faults if fault.act in (chaos.STOP, chaos.PAUSE)]
    assert {fault.target for fault in stopped} == {"rank 0", "rank 1"}
    assert "start" not in {fault.moment for fault in stopped}
    assert chaos.FULL not in {fault.act for fault in faults}


@pytest.mark.parametrize(
    ("act", "target", "trains", "codes"),
    [
        ("SIGKILL", "rank 1", True, {137}),  # 128 + 9
        ("SIGKILL", "supervisor", False, {-9}),
        ("SIGTERM", "supervisor", True, {75}),
        ("SIGTERM", "rank 0", False, {75, 143, -15}),  # 128 + 15: nothing to save yet
        ("SIGINT", "rank 0", False, {75, 130, -2}),
        ("SIGUSR1", "rank 1", True, {75}),
        ("SIGSTOP", "rank 0", True, {8}),
        ("full disk", "supervisor", False, {9}),
    ],
)
def test_documented_codes(chaos: ModuleType, act: str, target: str, trains: bool, codes: set[int]) -> None:
    assert chaos.documented_codes(chaos.Fault(act, target, "steps", 1, 0.1), trains) == codes


def test_the_suggestion_of_an_error_is_parsed(chaos: ModuleType, run: Path) -> None:
    older, newer = run / "checkpoints" / "step-2", run / "checkpoints" / "step-4"
    (newer / "trainer.json").unlink()
    with pytest.raises(CheckpointError) as refused:
        find_checkpoint(run, True)
    assert chaos.suggestion(f"some line\nrlhf: error: {refused.value}\n") == str(older)
    assert chaos.newest_valid(run / "checkpoints") == older

    (older / "config.yaml").unlink()
    with pytest.raises(CheckpointError) as refused:
        find_checkpoint(run, True)
    assert chaos.suggestion(f"rlhf: error: {refused.value}\n") == chaos.NEW_RUN
    assert chaos.newest_valid(run / "checkpoints") is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "rlhf: error: outputs/a/step-4/policy: got SHA-256 1, wanted 2\n",
        "rlhf: error: rank 1 was killed by SIGKILL; go on from the last checkpoint with run.resume=true\n",
    ],
)
def test_an_error_without_a_suggestion_gives_none(chaos: ModuleType, text: str) -> None:
    assert chaos.suggestion(text) is None


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("how", ["flip", "truncate", "delete", "empty latest", "flip in every checkpoint"])
def test_what_is_damaged_is_found_by_the_manifest(chaos: ModuleType, run: Path, how: str, seed: int) -> None:
    checkpoints = run / "checkpoints"
    file = chaos.damaged(random.Random(seed), checkpoints, how)
    with pytest.raises(CheckpointError, match=file.name):
        check_hashes(*find_checkpoint(run, True))
    wanted = None if how == chaos.ALL else "step-4" if file == checkpoints / "latest" else "step-2"
    found = chaos.newest_valid(checkpoints)
    assert (found and found.name) == wanted


def test_a_flip_changes_one_bit(chaos: ModuleType, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(bytes(100))
    chaos.flip(random.Random(1), file)
    assert sum(byte.bit_count() for byte in file.read_bytes()) == 1


def test_a_run_has_its_own_marks_and_folder(chaos: ModuleType, tmp_path: Path) -> None:
    run = chaos.Run(tmp_path, "run3", seed=5, resume="true", newest=4)
    run.start_again()
    assert (run.name, run.resume, run.newest) == ("run3-1", "", 0)
    assert run.marks == ("run.name=run3-1", f"run.output_dir={tmp_path}")
    assert run.last_logged() == 0
    run.folder.mkdir()
    (run.folder / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2}\n{"ste')
    assert run.last_logged() == 2


def test_a_run_resumed_from_a_path_is_checked_for_that_checkpoint_only(chaos: ModuleType, run: Path) -> None:
    state = chaos.Run(run.parent, "label", seed=1)
    state.label = run.name.removesuffix("-0")
    if state.folder != run:  # the folder that pytest made does not end with an attempt
        run.rename(state.folder)
    (state.checkpoints / "step-4" / "trainer.json").unlink()
    (state.checkpoints / "latest").write_text("")
    state.resume = "true"
    assert [fault.rsplit("/", 1)[1] for fault in state.checkpoint_faults()] == [
        "trainer.json: missing",
        "latest: names '', which is not a checkpoint in this folder",
    ]
    state.resume = str(state.checkpoints / "step-2")
    assert state.checkpoint_faults() == []
    state.resume = str(state.checkpoints / "step-4")
    assert len(state.checkpoint_faults()) == 1


def test_runs_are_compared_but_for_clock_and_memory(chaos: ModuleType, tmp_path: Path) -> None:
    mine, theirs = tmp_path / "mine", tmp_path / "theirs"
    for folder, seconds in ((mine, 1.0), (theirs, 2.0)):
        (folder / "final" / "policy").mkdir(parents=True)
        (folder / "final" / "policy" / "model.safetensors").write_bytes(b"weights")
        (folder / "samples.jsonl").write_text("{}\n")
        records = [
            {"step": step, "score": 0.5, "time/step": seconds, "perf/mfu": seconds, "tokens_per_s": seconds}
            for step in (1, 2)
        ]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    assert chaos.differences(mine, theirs) == []

    (theirs / "final" / "policy" / "model.safetensors").write_bytes(b"Weights")
    (theirs / "samples.jsonl").write_text('{"a": 1}\n')
    with (mine / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "score": 0.5}\n')
    assert [text.partition(":")[0] for text in chaos.differences(mine, theirs)] == [
        f"{mine}/metrics.jsonl",
        f"{mine}/samples.jsonl",
        f"{mine}/final/policy/model.safetensors",
    ]


def test_the_table_counts(chaos: ModuleType) -> None:
    tally = chaos.Tally()
    tally.faults.update(["SIGKILL of rank 0", "SIGKILL of rank 0", "full disk"])
    tally.damages["flip"] += 1
    tally.counts["resumes"] += 4
    tally.lose("kills", 2)
    tally.lose("kills", 1)
    lines = [line.split("  ") for line in chaos.table(tally, 61.4).splitlines()]
    assert {line[0]: line[-1].strip() for line in lines} == {
        "fault: SIGKILL of rank 0": "2",
        "fault: full disk": "1",
        "damage: flip": "1",
        "faults": "4",
        "resumes": "4",
        "most steps lost, kills": "2",
        "differences found": "0",
        "checks failed": "0",
        "wall time": "61 s",
    }


def test_waiting_ends_at_the_limit(chaos: ModuleType) -> None:
    assert not chaos.until(lambda: False, limit_s=0.05)
    assert chaos.until(lambda: True, limit_s=0)


def test_the_checkpoint_of_these_tests_is_valid(run: Path) -> None:
    newest = pointed(run / "checkpoints", "latest")
    assert newest == run / "checkpoints" / "step-4"
    check_hashes(newest, read_manifest(newest))
