"""Synthetic run folders."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

CONFIG = "run: {name: a}\nppo: {num_steps: NUM, kl_coef: 0.05}\nmodel: {path: null}\n"
CONFIG_RM = "run: {name: a}\ntrain: {num_steps: null}\nmodel: {path: null}\n"


def write_lines(file: Path, records: list[dict[str, Any]]) -> None:
    file.write_text("".join(json.dumps(record) + "\n" for record in records), "utf-8")


def begun(folder: Path, command: str, config: str) -> Path:
    """A run that has not written any step yet."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(config)
    run = {"command": f"rlhf {command} conf=x", "started": "2026-01-02T03:04:05+0000", "versions": {"torch": "2"}}
    (folder / "run.json").write_text(json.dumps(run))
    (folder / "status.json").write_text(json.dumps({"state": "running", "step": 0, "host": "elsewhere", "pid": 1}))
    return folder


def ppo_step(step: int, num_steps: int, draw: random.Random, beta: float = 0.05) -> dict[str, Any]:
    """The score rises and levels off, the KL grows with the square of the steps."""
    share = step / num_steps
    kl = 30 * share**2
    score = -1.2 + 2.4 * (1 - math.exp(-4 * share)) + draw.gauss(0, 0.1)
    more = {name: draw.random() for name in ("entropy", "response_length", "eos_rate", "clipfrac/policy", "loss/value")}
    times = {"time/rollout": 1.0, "time/score": 0.5, "time/update": 2.0, "time/step": 3.5}
    rest = {"tokens_per_s": 100.0, "memory/peak_gib": 2.5, "grad_norm/policy": 1.0, "lr/policy": 1e-5}
    return {
        "step": step,
        "score": score,
        "kl": kl,
        "reward": score - beta * kl,
        "kl_coef": beta,
        **more,
        **times,
        **rest,
    }


def ppo_run(folder: Path, num_steps: int, every: int = 0) -> Path:
    """A PPO run with rollouts, samples and, every `every` steps, an evaluation with a gold score that has a peak."""
    draw = random.Random(1)
    begun(folder, "train-ppo", CONFIG.replace("NUM", str(num_steps)))
    metrics, rollouts, during = [], [], []
    for step in range(1, num_steps + 1):
        record = ppo_step(step, num_steps, draw)
        metrics.append(record)
        scores = [record["score"] + draw.gauss(0, 0.5) for _ in range(8)]
        rollouts.append({"step": step, "scores": scores, "kl": [record["kl"]] * 8, "lengths": [12] * 8})
        if every and step % every == 0:
            metrics.append(evaluation(record, step / num_steps))
            gold = metrics[-1]["eval/gold_score"]
            during += [
                answer("during", "sampled", n, step=step, gold_score=gold + n + draw.gauss(0, 0.02)) for n in range(4)
            ]
    write_lines(folder / "metrics.jsonl", metrics)
    write_lines(folder / "rollouts.jsonl", rollouts)
    before, after = (
        [answer(stage, mode, n, step=step) for mode in ("greedy", "sampled") for n in range(4)]
        for stage, step in (("before", 0), ("after", num_steps))
    )
    write_lines(folder / "samples.jsonl", [*before, *during, *after])
    event = {"step": 2, "kind": "guard", "text": "kl 12 is over its limit", "time": "2026-01-02T03:05:00+0000"}
    write_lines(folder / "events.jsonl", [event])
    check = {"name": "masks", "figure": 0.0, "bound": 1e-5, "advice": "look at masks", "warns": False, "status": "ok"}
    (folder / "checks.json").write_text(json.dumps({"checks": [check]}))
    (folder / "plan.json").write_text(json.dumps({"lines": ["prompts a step: 8 = 1 rank x 8"]}))
    return folder


def evaluation(record: dict[str, Any], share: float) -> dict[str, Any]:
    names = {"eval/score": record["score"], "eval/kl": record["kl"], "eval/gold_score": 2 * share - 1.6 * share**2}
    rate = {"eval/win_rate": 0.5 + 0.4 * share, "eval/win_rate_low": 0.4, "eval/win_rate_high": 0.95}
    return {"step": record["step"], **names, **rate, "time/evaluate": 1.5}


def answer(stage: str, mode: str, place: int, **more: Any) -> dict[str, Any]:
    later = stage != "before"
    return {
        "stage": stage,
        "step": 4 if later else 0,
        "mode": mode,
        "prompt": f"Where is parcel {place}?",
        "response": "It is here." if later else "I do not know.",
        "score": place + (1.0 if later else 0.0),
        "num_tokens": 4,
        "ended": True,
        "gold_score": None,
        "tokens": ["It", " is", " here", "."] if later else [],
        "kl": [0.1, -0.6, 3.0, 0.0] if later else [],
        **more,
    }


def pair(chosen: float, rejected: float, gap: int = 0, category: str | None = None, **more: Any) -> dict[str, Any]:
    """A held-out pair. Its log odds are the difference of its scores."""
    return {
        "prompt": "Where is it?",
        "chosen": "x" * (20 + gap),
        "rejected": "y" * 20,
        "score_chosen": chosen,
        "score_rejected": rejected,
        "log_odds": chosen - rejected,
        "tokens_chosen": 20 + gap,
        "tokens_rejected": 20,
        "weight": 1.0,
        "category": category,
        **more,
    }


def reward_run(folder: Path, num_steps: int = 12, num_pairs: int = 200) -> Path:
    draw = random.Random(2)
    begun(folder, "train-rm", CONFIG_RM)
    times = {"time/update": 1.0, "time/step": 1.0, "tokens_per_s": 10.0, "memory/peak_gib": 1.0}
    steps = [
        {"step": n, "loss": 0.69 - 0.02 * n, "accuracy": 0.5 + 0.02 * n, "margin": 0.1 * n, "lr": 1e-5, **times}
        for n in range(1, num_steps + 1)
    ]
    held_out = {"eval/accuracy": 0.7, "eval/longer_wins_accuracy": 0.5, "eval/margin": 1.0, "eval/loss": 0.6}
    write_lines(folder / "metrics.jsonl", [{"step": 0, **held_out}, *steps, {"step": num_steps, **held_out}])
    kinds = ["refund", "delivery", None]
    pairs = [pair(draw.gauss(1, 1), 0.0, draw.randint(-9, 9), draw.choice(kinds)) for _ in range(num_pairs)]
    write_lines(folder / "pairs.jsonl", pairs)
    return folder
