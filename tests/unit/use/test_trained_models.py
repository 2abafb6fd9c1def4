import pytest

from rlhf_cli.config.errors import InputError
from rlhf_cli.config.sections import DType
from rlhf_cli.use.trained_models import Role, find_model
from tests.unit.use.conftest import SYSTEM


@pytest.mark.parametrize("inside", [".", "final"])
def test_a_reward_model_run_is_found_with_its_rendering(rm_run, inside):
    found = find_model(str(rm_run / inside), Role.reward_model)
    assert found.model.path == str(rm_run / "final")
    assert found.model.dtype is DType.float32  # of the run; the default is bfloat16
    assert found.data.system_prompt == SYSTEM
    assert found.run == rm_run


@pytest.mark.parametrize("inside", [".", "final", "final/policy"])
def test_a_policy_is_found_with_its_sampling_and_its_base(ppo_run, inside):
    found = find_model(str(ppo_run / inside), Role.policy)
    assert found.model.path == str(ppo_run / "final/policy")
    assert (found.rollout.max_new_tokens, found.rollout.temperature) == (12, 0.7)
    assert found.data.system_prompt == SYSTEM
    assert found.base is not None
    assert found.base.path == str(ppo_run.parent / "base")


def test_any_other_model_has_the_defaults(ppo_run):
    found = find_model(str(ppo_run.parent / "base"), Role.policy)
    assert found.run is None
    assert found.data.system_prompt is None
    assert find_model("some/hub-id", Role.policy).model.path == "some/hub-id"


def test_options_win_over_the_run(rm_run):
    found = find_model(str(rm_run), Role.reward_model).with_options("Other.", DType.bfloat16, trust_remote_code=True)
    assert (found.data.system_prompt, found.model.dtype, found.model.trust_remote_code) == (
        "Other.",
        DType.bfloat16,
        True,
    )
    assert found.with_options("", None, trust_remote_code=False).data.system_prompt is None


def test_models_of_another_role_are_refused(rm_run, ppo_run, tmp_path):
    with pytest.raises(InputError, match="no such file or folder"):
        find_model(str(tmp_path / "none"), Role.policy)
    with pytest.raises(InputError, match="got an empty name"):
        find_model("", Role.policy)
    for inside in (".", "final"):
        with pytest.raises(InputError, match="this run trained a reward model, wanted a policy"):
            find_model(str(rm_run / inside), Role.policy)
        with pytest.raises(InputError, match="this run trained a policy, wanted a reward model"):
            find_model(str(ppo_run / inside), Role.reward_model)
    (tmp_path / "config.yaml").write_text("ppo: {}\nrun: {}\nmodel: {}\ndata: {}")
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(InputError, match="no `final` folder yet"):
        find_model(str(tmp_path), Role.policy)


def damaged(tmp_path, text):
    run = tmp_path / "run"
    (run / "final").mkdir(parents=True, exist_ok=True)
    (run / "final/config.json").write_text("{}")
    (run / "run.json").write_text("{}")
    (run / "config.yaml").write_text(text)
    return str(run)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "cannot be read"),
        ("run: ${nope}", "cannot be read"),
        ("{run: {}, data: {}, model: {dtype: x}}", "model: "),
        (
            "{run: {}, data: {train: x}, model: {}, ppo: {}, rollout: 3}",
            "rollout: wanted a section of options, got int",
        ),
    ],
)
def test_a_damaged_config_is_named(text, message, tmp_path):
    with pytest.raises(InputError, match=message):
        find_model(damaged(tmp_path, text), Role.reward_model)


@pytest.mark.parametrize("text", ["- 1", "{model: resnet50, data: x, run: 3}", "lr: 0.1", "{run: {}, model: {}}"])
def test_a_config_of_another_tool_is_not_a_run(text, tmp_path):
    found = find_model(damaged(tmp_path, text) + "/final", Role.reward_model)
    assert found.run is None
    assert found.model.path == str(tmp_path / "run/final")


def test_a_config_without_run_json_is_not_a_run(tmp_path):
    run = tmp_path / "run"
    damaged(tmp_path, "{run: {}, data: {}, model: {dtype: x}}")
    (run / "run.json").unlink()
    assert find_model(str(run / "final"), Role.reward_model).run is None
