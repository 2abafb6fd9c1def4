"""What a run may be gone on with: nothing that changes what is learnt."""

import re

import pytest
from omegaconf import OmegaConf

from rlhf_cli.config.compare import Difference, differences, require_same
from rlhf_cli.config.errors import InputError
from rlhf_cli.config.load import all_keys, as_text, compose_yaml

# every option of either command that may be another when a run goes on; all others may not
MAY_CHANGE = {
    "run": {"name", "output_dir", "resume"},
    "model": {"attn_implementation", "gradient_checkpointing"},
    "reward_model": {"attn_implementation", "gradient_checkpointing"},
    "rollout": {"micro_batch_size"},
    "ppo": {"micro_batch_size", "micro_batch_tokens"},
    "train": {"micro_batch_size", "micro_batch_tokens", "eval_micro_batch_size"},
    "pretrain": {"micro_batch_size"},
    "optim": {"max_skipped_updates"},
    "value_optim": {"max_skipped_updates"},
}
WHOLE_SECTIONS = {"launch", "check", "checkpoint", "guard"}


def text(command="train-ppo", **values):
    """The options of the tiny experiment as YAML, with some set anew."""
    cfg = compose_yaml(command, ["conf=tiny"])
    for key, value in values.items():
        OmegaConf.update(cfg, key, value, force_add=True)
    return as_text(cfg)


@pytest.mark.parametrize("command", ["train-ppo", "train-rm"])
def test_only_what_changes_nothing_that_is_learnt_may_change(command):
    """Each option is set to another value than it has, of its own type."""
    was, refused = text(command), set()
    for key in all_keys(command):
        if key == "deepspeed":
            continue
        value = OmegaConf.select(OmegaConf.create(was), key)
        kinds = {bool: lambda v: not v, int: lambda v: v + 1, float: lambda v: v / 2 + 0.001}
        if key.endswith((".from_config",)):
            other = {"model_type": "gpt2"}
        else:
            other = kinds.get(type(value), lambda _: "x")(value)
        for candidate in (other, "7", "error", "warn", "bfloat16", "linear", "k3", "replace"):
            now = OmegaConf.create(was)
            OmegaConf.update(now, key, candidate, merge=False)
            try:
                found = differences(command, was, OmegaConf.to_yaml(now))
            except InputError:  # not of this option's type
                continue
            if found:
                break
        assert {one.key for one in found} and all(one.key.startswith(key) for one in found), key
        try:
            require_same(command, was, OmegaConf.to_yaml(now), "it was")
        except InputError:
            refused.add(key)
    allowed = set(all_keys(command)) - refused - {"deepspeed"}
    expected = {
        key
        for key in all_keys(command)
        if key.partition(".")[0] in WHOLE_SECTIONS
        or key.rpartition(".")[2] in MAY_CHANGE.get(key.partition(".")[0], ())
    }
    assert allowed == expected


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("deepspeed.zero_optimization.overlap_comm", True),
        ("deepspeed.zero_optimization.offload_optimizer", {"device": "cpu"}),
        ("deepspeed.new", [1, 2]),
    ],
)
def test_any_key_of_deepspeed_may_change(key, value):
    require_same("train-ppo", text(), text(**{key: value}), "it was")
    require_same("train-ppo", text(**{key: value}), text(), "it was")


@pytest.mark.parametrize(("was", "now"), [("{}", "{zero_optimization: {stage: 3}}"), ("{a: {}}", "{a: {b: 1}}")])
def test_deepspeed_may_change_from_nothing_and_to_nothing(was, now):
    was, now = f"deepspeed: {was}", f"deepspeed: {now}"
    require_same("train-ppo", was, now, "it was")
    require_same("train-ppo", now, was, "it was")


def test_the_message_lists_every_change_and_what_may_change():
    now = text(**{"ppo.kl_coef": 0.1, "run.seed": 3, "launch.num_gpus": 2, "model.from_config.hidden_size": 64})
    with pytest.raises(InputError) as caught:
        require_same("train-ppo", text(), now, "outputs/a/checkpoints/step-2 was written")
    assert str(caught.value) == (
        "outputs/a/checkpoints/step-2 was written with other options: model.from_config.hidden_size: 32 -> 64; "
        "ppo.kl_coef: 0.05 -> 0.1; run.seed: 0 -> 3; only these may change: run.name, run.output_dir, run.resume, "
        "launch.*, check.*, checkpoint.*, guard.*, deepspeed.*, *.micro_batch_size, *.micro_batch_tokens, "
        "*.eval_micro_batch_size, *.gradient_checkpointing, *.attn_implementation, *.max_skipped_updates"
    )


def test_differences_are_those_of_the_values():
    assert differences("train-ppo", text(), text()) == []
    now = text(**{"ppo.kl_coef": 0.1, "model.from_config.new": [1, {"a": 2}]})
    assert differences("train-ppo", text(), now) == [
        Difference("model.from_config.new", None, [1, {"a": 2}]),
        Difference("ppo.kl_coef", 0.05, 0.1),
    ]


def test_an_option_that_one_lacks_has_its_default():
    """A later version has new options: a run of before goes on where they stand at their defaults."""
    assert differences("train-ppo", "run: {name: a}", "run: {name: a}\nppo: {kl_coef: 0.05, dual_clip: null}") == []
    assert differences("train-ppo", "run: {name: a}\nppo: {kl_coef: 0.3}", "run: {name: a}") == [
        Difference("ppo.kl_coef", 0.3, 0.05)
    ]


def test_ways_of_writing_are_no_difference():
    assert (
        differences("train-ppo", "ppo: {kl_coef: 1, kl_estimator: k3}", "ppo:\n  kl_estimator: 'k3'\n  kl_coef: 1.0")
        == []
    )


def test_interpolations_are_compared_as_they_are_written(monkeypatch):
    """Their values are for this machine; and a secret would stand in the message."""
    monkeypatch.setenv("FOLDER", "/data/secret")
    with pytest.raises(InputError) as caught:
        require_same("train-ppo", "data: {train: /data/a}", "data: {train: '${oc.env:FOLDER}/a'}", "it was")
    assert "data.train: /data/a -> ${oc.env:FOLDER}/a; " in str(caught.value)
    assert differences("train-ppo", *["data: {train: '${oc.env:UNSET_HERE}/a'}"] * 2) == []


@pytest.mark.parametrize(
    ("was", "reason"),
    [
        ("ppo: {nonsense: 1}", "Key 'nonsense' not in 'PPOConfig'"),
        ("nonsense: {a: 1}", "Key 'nonsense' not in 'TrainPPOConfig'"),
        ("ppo: {kl_estimator: k9}", "Invalid value 'k9', expected one of [k1, k2, k3]"),
    ],
)
def test_options_of_another_version_are_named_in_one_line(was, reason):
    for pair in ((was, ""), ("", was)):
        with pytest.raises(InputError) as caught:
            differences("train-ppo", *pair)
        assert str(caught.value) == f"the configuration was written by another version: {reason}"


@pytest.mark.parametrize("broken", ["run: [1", "run: {name: a}\n\tppo: 1", "[1, 2]", "just words"])
def test_a_file_that_is_no_configuration_is_an_input_error(broken):
    """`config.yaml` of a finished run is anybody's to edit."""
    with pytest.raises(InputError) as caught:
        differences("train-ppo", broken, text())
    assert not re.search(r"\n", str(caught.value))
