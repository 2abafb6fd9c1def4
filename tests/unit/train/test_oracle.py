"""The trainers on one rank against a slow float64 reference that reads one sequence at a time."""

from functools import cache

import pytest
import torch

from tests.oracle.cases import BASE, PPO_CASES, RM_CASES, check_ppo_case, check_rm_case, ppo_config, run_simple


@pytest.mark.parametrize("name", PPO_CASES)
def test_ppo_agrees_with_the_oracle(name, one_rank):
    check_ppo_case(name, "simple")


@pytest.mark.parametrize("name", RM_CASES)
def test_the_reward_model_agrees_with_the_oracle(name, one_rank):
    check_rm_case(name, "simple")


@pytest.mark.parametrize("name", ["base", "average", "pretrain", "early-end"])
def test_ppo_on_the_products_engines_agrees_with_the_oracle(name, one_rank):
    """These engines keep their own sums of gradients and float32 weights, and use a fused AdamW."""
    check_ppo_case(name, "plain")


@pytest.mark.parametrize("name", ["pairs", "rankings"])
def test_the_reward_model_on_the_products_engine_agrees_with_the_oracle(name, one_rank):
    check_rm_case(name, "plain")


@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
def test_ppo_agrees_with_the_oracle_on_other_architectures(architecture, one_rank):
    check_ppo_case("base", "simple", architecture=architecture)


@cache
def base_run():
    return run_simple(ppo_config("base"))


@pytest.mark.parametrize("name", sorted(PPO_CASES.keys() - {"base"}))
def test_every_option_moves_the_weights_elsewhere(name, one_rank):
    weights, _ = run_simple(ppo_config(name))
    base, _ = base_run()
    assert any(not torch.equal(weights[key], base.get(key, torch.zeros(1))) for key in weights)


NEUTRAL = {
    "value_warmup_steps": 0,
    "kl_target": None,
    "kl_horizon": 1,
    "kl_loss_coef": 0.0,
    "cliprange_high": BASE.cliprange,
    "dual_clip": 1e9,
    "entropy_coef": 0.0,
    "early_stop_kl": 1e9,
    "reward_clip": 1e9,
    "whiten_rewards": False,
    "missing_eos_penalty": 0.0,
    "ema_decay": 0.5,
}


@pytest.mark.parametrize("option", NEUTRAL)
def test_a_neutral_option_changes_no_bit(option, one_rank):
    """Each option alone, at a value without effect, compared with the run that has its default."""
    weights, metrics = run_simple(ppo_config("base", **{option: NEUTRAL[option]}))
    base, base_metrics = base_run()
    assert metrics == base_metrics
    assert all(torch.equal(weights[key], tensor) for key, tensor in base.items())
