"""Compare options: a resumed run may change only those that do not affect training."""

import copy
import re
from contextlib import suppress

import pytest
from omegaconf import OmegaConf

from rlhf_cli.config import config_diff as compare
from rlhf_cli.config.compose import as_text, compose_yaml
from rlhf_cli.config.config_diff import Difference, differences, require_same
from rlhf_cli.config.errors import InputError
from rlhf_cli.config.option_docs import all_keys

# every option of either command that may be another when a run goes on; all others may not
MAY_CHANGE = {
    "data": {"cache"},
    "run": {"name", "output_dir", "resume"},
    "model": {"attn_implementation", "gradient_checkpointing", "liger_kernel", "packing", "compile"},
    "reward_model": {"attn_implementation", "gradient_checkpointing", "liger_kernel", "packing", "compile"},
    "rollout": {"micro_batch_size", "micro_batch_tokens", "gather"},
    "ppo": {"micro_batch_size", "micro_batch_tokens", "gather", "reuse_forward", "offload_frozen"},
    "train": {"micro_batch_size", "micro_batch_tokens", "gather", "eval_micro_batch_size"},
    "gold_reward_model": {"attn_implementation", "gradient_checkpointing", "liger_kernel", "packing", "compile"},
    "pretrain": {"micro_batch_size"},
    "eval": {"every_steps"},
    "optim": {"max_skipped_updates"},
    "value_optim": {"max_skipped_updates"},
}
WHOLE_SECTIONS = {"launch", "plan", "check", "checkpoint", "guard", "report"}


@pytest.fixture(scope="module")
def text():
    """The options of the tiny experiment as YAML, with some of them replaced."""
    composed = compose_yaml("train-ppo", ["conf=tiny"])

    def write(**values):
        cfg = copy.deepcopy(composed)
        for key, value in values.items():
            OmegaConf.update(cfg, key, value, force_add=True)
        return as_text(cfg)

    return write


@pytest.mark.parametrize("command", ["train-ppo", "train-rm"])
def test_only_options_that_do_not_affect_training_may_change(monkeypatch, command):
    """Test for every option whether another value is refused. deepspeed has keys outside the schema."""
    allowed = set()
    for key in all_keys(command):
        monkeypatch.setattr(compare, "differences", lambda *_, key=key: [Difference(key, 1, 2)])
        with suppress(InputError):
            require_same(command, "", "", "it was")
            allowed.add(key)
    sections = {key: (key.partition(".")[0], key.rpartition(".")[2]) for key in all_keys(command)}
    assert allowed - {"deepspeed"} == {
        key
        for key, (section, name) in sections.items()
        if section in WHOLE_SECTIONS or name in MAY_CHANGE.get(section, ())
    }


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("deepspeed.zero_optimization.overlap_comm", True),
        ("deepspeed.zero_optimization.offload_optimizer", {"device": "cpu"}),
        ("deepspeed.zero_optimization.stage", 3),
        ("deepspeed.zero_optimization.new", [1, 2]),
    ],
)
def test_zero_optimization_may_change(text, key, value):
    require_same("train-ppo", text(), text(**{key: value}), "it was")
    require_same("train-ppo", text(**{key: value}), text(), "it was")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("deepspeed.new", [1, 2]),
        ("deepspeed.zero_optimization_new", 1),
        ("deepspeed.gradient_clipping", 1.0),
        ("deepspeed.zero_optimization.zero_quantized_weights", True),
        ("deepspeed.zero_optimization.zero_quantized_gradients", True),
        ("deepspeed.zero_optimization.zero_quantized_nontrainable_weights", True),
    ],
)
def test_other_keys_of_deepspeed_may_not_change(text, key, value):
    """They may affect results; quantised weights and gradients do."""
    for was, now, change in ((text(), text(**{key: value}), f"None -> {value}"), (text(**{key: value}), text(), None)):
        with pytest.raises(InputError) as caught:
            require_same("train-ppo", was, now, "it was")
        assert str(caught.value).startswith(f"it was with other options: {key}: {change or f'{value} -> None'}; only")


@pytest.mark.parametrize(
    ("was", "now", "named"),
    [
        ("{}", "{a: 1}", "deepspeed.a: None -> 1"),
        ("{a: {}}", "{a: {b: 1}}", "deepspeed.a.b: None -> 1"),
        (
            "{zero_optimization: {}}",
            "{zero_optimization: {stage: 3, zero_quantized_weights: true}}",
            "deepspeed.zero_optimization.zero_quantized_weights: None -> True",
        ),
    ],
)
def test_an_empty_deepspeed_section_does_not_hide_a_change(was, now, named):
    with pytest.raises(InputError, match=re.escape(f"it was with other options: {named}; only these may change: ")):
        require_same("train-ppo", f"deepspeed: {was}", f"deepspeed: {now}", "it was")


@pytest.mark.parametrize(
    ("was", "now"),
    [
        ("{}", "{zero_optimization: {stage: 3}}"),
        ("{}", "{zero_optimization: {}}"),
        ("{zero_optimization: {}}", "{zero_optimization: {stage: 3}}"),
        ("{zero_optimization: {offload_param: {}}}", "{zero_optimization: {offload_param: {device: cpu}}}"),
    ],
)
def test_zero_optimization_may_be_added_and_removed(was, now):
    was, now = f"deepspeed: {was}", f"deepspeed: {now}"
    require_same("train-ppo", was, now, "it was")
    require_same("train-ppo", now, was, "it was")


@pytest.mark.parametrize("name", ["attn_implementation_kind", "no_micro_batch_size"])
def test_a_key_that_only_resembles_an_allowed_one_may_not_change(text, name):
    """model.from_config may have any keys."""
    with pytest.raises(InputError, match=f"it was with other options: model.from_config.{name}: None -> 1; "):
        require_same("train-ppo", text(), text(**{f"model.from_config.{name}": 1}), "it was")


def test_the_message_lists_every_change_and_what_may_change(text):
    now = text(**{"ppo.kl_coef": 0.1, "run.seed": 3, "launch.num_gpus": 2, "model.from_config.hidden_size": 64})
    with pytest.raises(InputError) as caught:
        require_same("train-ppo", text(), now, "outputs/a/checkpoints/step-2 was written")
    assert str(caught.value) == (
        "outputs/a/checkpoints/step-2 was written with other options: model.from_config.hidden_size: 32 -> 64; "
        "ppo.kl_coef: 0.05 -> 0.1; run.seed: 0 -> 3; only these may change: run.name, run.output_dir, run.resume, "
        "launch.*, plan.*, check.*, checkpoint.*, guard.*, report.*, eval.every_steps, "
        "deepspeed.zero_optimization.*, *.micro_batch_size, "
        "*.micro_batch_tokens, *.eval_micro_batch_size, *.gradient_checkpointing, *.attn_implementation, "
        "*.liger_kernel, *.packing, *.compile, *.gather, ppo.reuse_forward, ppo.offload_frozen, data.cache, "
        "*.max_skipped_updates, reward.*.url, reward.*.auth_env, reward.*.timeout_s, reward.*.retries, "
        "reward.*.concurrency, reward.*.batch_size, reward.*.on_failure, reward.*.max_failures, reward.*.offload, "
        "reward.*.random"
    )


def test_sources_are_compared_by_name_and_may_move_to_another_address(text):
    was = text(reward=[{"name": "judge", "url": "http://a"}, {"name": "rm"}])
    now = text(reward=[{"name": "judge", "url": "http://b", "retries": 9}, {"name": "rm", "weight": 2.0}])
    with pytest.raises(InputError, match=r"with other options: reward\.rm\.weight: 1\.0 -> 2\.0; only"):
        require_same("train-ppo", was, now, "it was written")
    other_order = text(reward=[{"name": "rm"}, {"name": "judge", "url": "http://b"}])
    with pytest.raises(InputError, match=r"reward\.\[\]: \['judge', 'rm'\] -> \['rm', 'judge'\]"):
        require_same("train-ppo", was, other_order, "it was written")
    require_same(
        "train-ppo", was, text(reward=[{"name": "judge", "url": "http://b"}, {"name": "rm"}]), "it was written"
    )


def test_differences_have_key_and_both_values(text):
    assert differences("train-ppo", text(), text()) == []
    now = text(**{"ppo.kl_coef": 0.1, "model.from_config.new": [1, {"a": 2}]})
    assert differences("train-ppo", text(), now) == [
        Difference("model.from_config.new", None, [1, {"a": 2}]),
        Difference("ppo.kl_coef", 0.05, 0.1),
    ]


def test_a_missing_option_has_its_default():
    """A run of an older version can resume if new options have their defaults."""
    assert differences("train-ppo", "run: {name: a}", "run: {name: a}\nppo: {kl_coef: 0.05, dual_clip: null}") == []
    assert differences("train-ppo", "run: {name: a}\nppo: {kl_coef: 0.3}", "run: {name: a}") == [
        Difference("ppo.kl_coef", 0.3, 0.05)
    ]


def test_equal_values_in_another_notation_are_no_difference():
    assert (
        differences("train-ppo", "ppo: {kl_coef: 1, kl_estimator: k3}", "ppo:\n  kl_estimator: 'k3'\n  kl_coef: 1.0")
        == []
    )


def test_interpolations_are_compared_unresolved(monkeypatch):
    """Values depend on the machine, and the message could contain a secret."""
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
def test_options_of_another_version_give_one_line(was, reason):
    for pair in ((was, ""), ("", was)):
        with pytest.raises(InputError) as caught:
            differences("train-ppo", *pair)
        assert str(caught.value) == f"the saved configuration is from another version: {reason}"


@pytest.mark.parametrize("broken", ["run: [1", "run: {name: a}\n\tppo: 1", "[1, 2]", "just words"])
def test_a_damaged_configuration_is_an_input_error(text, broken):
    """Users may edit `config.yaml` of a finished run."""
    with pytest.raises(InputError) as caught:
        differences("train-ppo", broken, text())
    assert not re.search(r"\n", str(caught.value))
