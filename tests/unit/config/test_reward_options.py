"""Options of `reward`: valid lists, and one-line errors."""

import pytest

from rlhf_cli.config.compose import load
from rlhf_cli.config.errors import InputError
from rlhf_cli.config.paths import check_paths
from rlhf_cli.config.reward_options import Normalise

NO_MODEL = ["reward_model.from_config=null", "value_model.init=policy"]


def refusal(*words: str) -> str:
    with pytest.raises(InputError) as caught:
        check_paths(load("train-ppo", ["conf=tiny", *words]))
    return str(caught.value)


def test_without_a_list_the_reward_model_is_the_only_source():
    config = load("train-ppo", ["conf=tiny"])
    assert [(source.name, source.weight) for source in config.sources] == [("reward_model", 1.0)]
    assert config.has_reward_model


def test_a_weighted_list_on_the_command_line():
    listed = "reward=[{name: rm, weight: 1.0, normalise: running}, {name: brief, function: a/b.py:f, weight: -0.2}]"
    config = load("train-ppo", ["conf=tiny", listed])
    rm, brief = config.sources
    assert (rm.is_reward_model, rm.normalise, rm.weight) == (True, Normalise.running, 1.0)
    assert (brief.is_reward_model, brief.is_external, brief.function, brief.weight) == (False, True, "a/b.py:f", -0.2)


def test_sources_without_a_reward_model():
    config = load("train-ppo", ["conf=tiny", *NO_MODEL, "reward=[{name: judge, url: 'http://127.0.0.1:1/score'}]"])
    assert not config.has_reward_model


def test_a_sources_own_model_is_a_path_or_options():
    listed = "reward=[{name: a, model: owner/name}, {name: b, model: {path: owner/other, dtype: float32}}]"
    first, second = load("train-ppo", ["conf=tiny", *NO_MODEL, listed]).sources
    assert first.own_model("k").path == "owner/name"
    assert (second.own_model("k").path, second.own_model("k").dtype.value) == ("owner/other", "float32")


@pytest.mark.parametrize(
    ("listed", "message"),
    [
        ("{weight: 1.0}", "not set: reward[0].name; add it to the list"),
        ("{name: 'a b'}", "reward[0].name must be made of letters, digits, '_', '-' and '.', got 'a b'"),
        ("{name: a, weight: 0}", "reward[0].weight must be finite and not 0, got 0.0"),
        ("{name: a, weight: nan}", "reward[0].weight must be finite and not 0, got nan"),
        ("{name: a, scale: -1}", "reward[0].scale must be positive, got -1.0"),
        ("{name: a, clip: 0}", "reward[0].clip must be positive or null, got 0.0"),
        (
            "{name: a, function: 'm:f', url: 'http://b'}",
            "reward[0] must be set by only one of model, function and url, got function and url",
        ),
        (
            "{name: a, function: f}",
            "reward[0].function must be module:function or path/to/file.py:function, got f",
        ),
        ("{name: a, url: 'ftp://b'}", "reward[0].url must be http://... or https://..., got ftp:..."),
        ("{name: a, timeout_s: 0}", "reward[0].timeout_s must be between 0.001 and 86400, got 0.0"),
        ("{name: a, retries: 99}", "reward[0].retries must be between 0 and 20, got 99"),
        ("{name: a, auth_env: X}", "reward[0].auth_env must be unset: it has no effect on a model, got X"),
        (
            "{name: a, function: 'm:f', retries: 1}",
            "reward[0].retries must be unset: it has no effect on a function, got 1",
        ),
        (
            "{name: a, offload: true}",
            "reward[0].offload must be unset: it has no effect on a source without its own model, got True",
        ),
        ("{name: a, batch_size: 2}", "reward[0].batch_size must be unset: it has no effect on reward_model"),
        ("{name: rm}, {name: a, model: ''}", "reward[1].model must be a path, or the options of a model"),
        (
            "{name: rm}, {name: a, url: 'http://b', timeout_s: 600}",
            "launch.timeout_s must be above 3900, the longest time for a batch of reward[1]",
        ),
        (
            "{name: a, on_failure: skip}",
            "reward[0].on_failure must be unset: it has no effect on a model, got skip",
        ),
        ("{name: a}, {name: a, function: 'm:f'}", "reward must be a list of sources with different names, got a twice"),
        (
            "{name: a}, {name: b}",
            "reward must be a list with at most one source without model, function and url, which",
        ),
        (
            "{name: a, model: {paht: x}}, {name: rm}",
            "reward[0].model: Key 'paht' not in 'ModelConfig'",
        ),
        ("{name: rm}, {name: a, model: ./not/there}", "reward[1].model.path=./not/there: no such file or folder"),
        (
            "{name: rm}, {name: a, function: 'not/there.py:f'}",
            "reward[1].function must be in an existing file, and not/there.py does not exist, got not/there.py:f",
        ),
        (
            "{name: rm}, {name: a, url: 'http://b', auth_env: NOT_SET_ANYWHERE}",
            "reward[1].auth_env must be an environment variable that is set and not empty, got NOT_SET_ANYWHERE",
        ),
        ("{name: a, function: 'm:f'}", "value_model.init must be policy if no source of reward is reward_model"),
        ("{name: a, ulr: 'http://b'}", "unknown key reward[].ulr; did you mean reward[].url?"),
    ],
)
def test_what_is_refused(listed, message):
    assert message in refusal(f"reward=[{listed}]")


def test_a_reward_model_that_no_source_uses_is_refused():
    words = ["value_model.init=policy", "reward=[{name: a, function: 'm:f'}]"]
    assert refusal(*words).startswith("reward_model must be unset, or used")
