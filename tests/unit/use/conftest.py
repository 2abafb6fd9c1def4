"""Folders of finished runs, with tiny random models."""

from __future__ import annotations

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from rlhf_cli.config.compose import as_text, compose_yaml
from rlhf_cli.models.load_models import load_causal_lm, load_sequence_classifier
from rlhf_cli.models.load_tokenizer import load_tokenizer
from tests.unit.models.tiny import tiny_config

SYSTEM = "Be brief."


def _save(model, tokenizer, folder):
    model.config = model.exported_config
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _write_config(run, command, *words):
    text = as_text(compose_yaml(command, [f"run.name={run.name}", "conf=tiny", *words]))
    (run / "config.yaml").write_text(text)
    (run / "run.json").write_text("{}")
    assert OmegaConf.create(text)


@pytest.fixture(scope="session")
def rm_run(tmp_path_factory) -> Path:
    """The folder of a reward-model run; the system prompt is SYSTEM."""
    run = tmp_path_factory.mktemp("runs") / "rm"
    config = tiny_config("llama")
    tokenizer = load_tokenizer(config, "model")
    model = load_sequence_classifier(config, "model", tokenizer, 3, new_head=True)
    _save(model, tokenizer, run / "final")
    _write_config(run, "train-rm", f"data.system_prompt={SYSTEM}")
    return run


@pytest.fixture(scope="session")
def ppo_run(tmp_path_factory) -> Path:
    """The folder of a PPO run that started from the neighbouring folder `base`; the system prompt is SYSTEM."""
    folder = tmp_path_factory.mktemp("runs")
    run = folder / "ppo"
    config = tiny_config("llama")
    tokenizer = load_tokenizer(config, "model")
    for name, seed in (("base", 1), ("ppo/final/policy", 2)):
        _save(load_causal_lm(config, "model", tokenizer, seed), tokenizer, folder / name)
    _save(load_sequence_classifier(config, "model", tokenizer, 4, new_head=True), tokenizer, run / "final/value_model")
    _write_config(
        run,
        "train-ppo",
        f"data.system_prompt={SYSTEM}",
        f"model.path={folder / 'base'}",
        "model.from_config=null",
        "model.tokenizer=null",
        "rollout.max_new_tokens=12",
        "rollout.temperature=0.7",
    )
    return run
