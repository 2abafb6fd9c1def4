"""The trainers against a slow reference in float64, one sequence at a time (tests/oracle); plain torch as the engine."""

import pytest

from tests.oracle.cases import PPO_CASES, RM_CASES, check_ppo_case, check_rm_case


@pytest.mark.parametrize("name", PPO_CASES)
def test_ppo_agrees_with_the_oracle(name, one_rank):
    check_ppo_case(name, plain=True)


@pytest.mark.parametrize("name", RM_CASES)
def test_the_reward_model_agrees_with_the_oracle(name, one_rank):
    check_rm_case(name, plain=True)


@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
def test_ppo_agrees_with_the_oracle_on_other_architectures(architecture, one_rank):
    check_ppo_case("base", plain=True, architecture=architecture)
