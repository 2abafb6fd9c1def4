"""Held-out prompts asked while training: what is logged, and that training does not notice."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

from rlhf_cli.report.run_dir import lines_of
from tests.e2e.processes import TINY, Started
from tests.e2e.series import NOT_COMPARED
from tests.e2e.test_train import documented

RUN = [*TINY, "checkpoint.every_steps=2", "eval.num_prompts=3"]
EVALUATES = ["eval.every_steps=2", "checkpoint.best_metric=eval/gold_score"]


def records(run: Path, name: str) -> list[dict[str, Any]]:
    """The lines of a file, without its clock, its speed and its memory."""
    return [{k: v for k, v in one.items() if not k.startswith(NOT_COMPARED)} for one in lines_of(run / name)]


def test_evaluations_leave_training_as_it_was_and_survive_a_kill(tmp_path: Path) -> None:
    """With and without evaluations the same metrics and weights; killed and gone on with, the same evaluations."""
    gold = ["gold_reward_model.from_config=${model.from_config}", "gold_reward_model.tokenizer=bytes"]
    gold += ["gold_reward_model.dtype=float32"]
    evaluates = [*RUN, *EVALUATES, *gold]
    plain, whole = Started(tmp_path, *RUN, "run.name=plain"), Started(tmp_path, *evaluates, "run.name=whole")
    for one in (plain, whole):
        assert one.end(150) == 0, one.text
    killed = Started(tmp_path, *evaluates, "run.name=killed")
    killed.wait_for("\nstep 5/")
    os.kill(killed.parent.pid, signal.SIGKILL)
    killed.end(60)
    again = Started(tmp_path, *evaluates, "run.name=killed", "run.resume=true")
    assert again.end(150) == 0, again.text

    outputs = tmp_path / "outputs"
    logged = records(outputs / "whole", "metrics.jsonl")
    evaluations = [one for one in logged if "eval/score" in one]
    assert [one["step"] for one in evaluations] == [0, 2, 4, 6, 8]
    assert evaluations[0]["eval/win_rate"] == 0.5
    assert evaluations[0]["eval/kl"] == 0
    assert {name for one in evaluations for name in one} <= documented()
    assert [one for one in logged if one not in evaluations] == records(outputs / "plain", "metrics.jsonl")
    weights = "final/policy/model.safetensors"
    assert (outputs / "whole" / weights).read_bytes() == (outputs / "plain" / weights).read_bytes()

    for name in ("metrics.jsonl", "samples.jsonl", "rollouts.jsonl"):
        assert records(outputs / "killed", name) == records(outputs / "whole", name)
    assert (outputs / "killed" / weights).read_bytes() == (outputs / "whole" / weights).read_bytes()
    best = max(evaluations[1:], key=lambda one: one["eval/gold_score"])["step"]
    assert {(outputs / name / "checkpoints/best").read_text() for name in ("whole", "killed")} == {f"step-{best}\n"}

    answers = records(outputs / "whole", "samples.jsonl")
    stages = [("before", 0), *(("during", step) for step in (2, 4, 6, 8)), ("after", 8)]
    assert [(one["stage"], one["step"]) for one in answers[::6]] == stages
    assert all(len(one["tokens"]) == len(one["kl"]) > 0 for one in answers if one["stage"] != "before")
    assert all(one["gold_score"] is not None for one in answers)
    assert json.loads((outputs / "killed/summary.json").read_text())["held_out"]["sampled"]["num_prompts"] == 3
    assert (outputs / "killed/report.html").stat().st_size < 5e6
