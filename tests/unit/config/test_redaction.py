"""No saved text contains a secret, and no option runs code."""

import pytest
from omegaconf import OmegaConf

from rlhf_cli.config.compose import as_text, compose_yaml, load
from rlhf_cli.config.errors import InputError
from rlhf_cli.config.redaction import is_secret, redact_args

CANARY = "hunter2"


def written(yaml):
    """The saved text of a deepspeed section."""
    return as_text(OmegaConf.create(f"deepspeed: {yaml}"))


def test_an_interpolation_is_kept_and_not_resolved(monkeypatch):
    monkeypatch.setenv("HUB_TOKEN", CANARY)
    monkeypatch.setenv("DATA", "/data/prompts.jsonl")
    words = ["conf=tiny", "+deepspeed.hub_token=${oc.env:HUB_TOKEN}", "data.train=${oc.env:DATA}"]
    text = as_text(compose_yaml("train-ppo", words))
    options = OmegaConf.to_container(OmegaConf.create(text), resolve=False)
    assert options["deepspeed"]["hub_token"] == "${oc.env:HUB_TOKEN}"
    assert options["data"]["train"] == "${oc.env:DATA}"
    assert CANARY not in text
    assert load("train-ppo", ["conf=tiny", "data.train=${oc.env:DATA}"]).data.train == "/data/prompts.jsonl"


def test_an_interpolation_of_an_unset_variable_stays_text(monkeypatch):
    monkeypatch.delenv("NOT_SET", raising=False)
    assert "${oc.env:NOT_SET}" in written("{token: '${oc.env:NOT_SET}'}")


def test_written_options_read_back_unchanged():
    composed = compose_yaml("train-ppo", ["conf=tiny", "+deepspeed.list=[1,{a: b}]"])
    again = OmegaConf.create(as_text(composed))
    del again["defaults"]
    plain = OmegaConf.to_container(composed, resolve=False, enum_to_str=True)
    assert OmegaConf.to_container(again, resolve=False) == plain


@pytest.mark.parametrize(
    "key",
    [
        *["token", "hub_token", "HF_TOKEN", "secret", "client_secret", "password", "db_passwd", "api_key", "apikey"],
        *["API_KEY", "wandb_api_key", "credential", "credentials", "deepspeed.comet.api_key"],
    ],
)
def test_keys_with_secret_names_are_hidden(key):
    assert is_secret(key)
    leaf = key.rpartition(".")[2]
    assert written(f"{{comet: {{{leaf}: {CANARY}}}}}").endswith(f"deepspeed:\n  comet:\n    {leaf}: <hidden>\n")
    assert redact_args([f"+deepspeed.{key}={CANARY}"]) == [f"+deepspeed.{key}=<hidden>"]


@pytest.mark.parametrize(
    "key",
    [
        *["rollout.max_new_tokens", "data.max_tokens", "ppo.micro_batch_tokens", "model.tokenizer", "tokens"],
        *["pad_token_id", "tokenizer_name", "secretary", "password_file_mode", "keys"],
    ],
)
def test_keys_with_similar_names_are_kept(key):
    assert not is_secret(key)
    assert redact_args([f"{key}=16"]) == [f"{key}=16"]


# what a value can be, under a key that is secret or around one
SHAPES = {
    "text": f"{{token: {CANARY}}}",
    "number": "{password: 271828}",
    "section": f"{{credentials: {{user: me, word: {CANARY}}}}}",
    "list": f"{{token: [{CANARY}]}}",
    "inside-a-section": f"{{b: {{token: {CANARY}}}}}",
    "inside-a-list": f"[{{token: {CANARY}}}]",
    "with-a-comma": f"{{token: 'x,{CANARY}'}}",
    "beside-an-interpolation": f"{{token: '{CANARY}-${{oc.env:USER}}'}}",
    "default-of-an-interpolation": f"{{token: '${{oc.env:NOT_SET,{CANARY}}}'}}",
}


@pytest.mark.parametrize("yaml", SHAPES.values(), ids=SHAPES)
def test_saved_options_contain_no_secret(yaml):
    text = written(f"{{a: {yaml}}}")
    assert CANARY not in text
    assert "271828" not in text


@pytest.mark.parametrize("yaml", SHAPES.values(), ids=SHAPES)
def test_the_saved_command_contains_no_secret(yaml):
    """As a mapping in braces, and for a single key as a dotted key."""
    (in_braces,) = redact_args([f"+deepspeed.a={yaml}"])
    assert CANARY not in in_braces
    assert "271828" not in in_braces
    if yaml.startswith("{"):
        key, _, value = yaml[1:-1].partition(": ")
        (alone,) = redact_args([f"+deepspeed.a.{key}={value}"])
        assert CANARY not in alone
        assert "271828" not in alone


@pytest.mark.parametrize(
    "value",
    [
        f"{{'token': {CANARY}}}",
        f'{{"api_key": {CANARY}}}',
        f'{{"api_key" : "{CANARY}"}}',
        f"{{a: {{'client-secret': {CANARY}}}}}",
        f"[{{'hub_token':{CANARY}}}]",
        f"https://me:{CANARY}@host/rows.jsonl",
        f"https://:{CANARY}@host",
        f"[a.jsonl,s3://me:{CANARY}@host:9000/rows.jsonl]",
        f"{{url: 'https://me:{CANARY}@host'}}",
    ],
)
def test_the_saved_command_contains_no_quoted_secret_or_password_of_a_url(value):
    assert redact_args([f"+deepspeed.a={value}"]) == ["+deepspeed.a=<hidden>"]


@pytest.mark.parametrize(
    "value",
    [
        *["https://host:8080/rows.jsonl", "https://host/a:b@c", "hf://datasets/me/rows@main:x", "me@host:rows.jsonl"],
        *["{'max_tokens': 3}", '{"pad_token_id": 0}'],
    ],
)
def test_values_that_only_resemble_secrets_are_kept(value):
    assert redact_args([f"a.b={value}"]) == [f"a.b={value}"]


def test_the_saved_command_keeps_everything_else():
    words = ["conf=tiny", "model=tiny_llama", "token", "a.token=${oc.env:TOKEN}", "a.b=x=y", "~deepspeed.x", ""]
    assert redact_args(words) == words
    assert redact_args([f"a.token={CANARY}=x", "b=1"]) == ["a.token=<hidden>", "b=1"]


def refused(args):
    with pytest.raises(InputError) as caught:
        load("train-ppo", args)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("word", "where"),
    [
        ("+deepspeed._target_=os.system", "deepspeed._target_"),
        ("++deepspeed._target_=os.system", "deepspeed._target_"),
        ("+deepspeed.a.b._target_=os.system", "deepspeed.a.b._target_"),
        ("+deepspeed.a={_target_: os.system}", "deepspeed.a._target_"),
        ("+deepspeed.a=[1,{b: {_target_: os.system}}]", "deepspeed.a.1.b._target_"),
        ("+deepspeed.a=[[{_target_: os.system}]]", "deepspeed.a.0.0._target_"),
        ("+deepspeed.a._target_.b=1", "deepspeed.a._target_"),
    ],
)
def test_no_argument_instantiates_an_object(word, where):
    assert refused(["conf=tiny", word]) == f"{where}: _target_ is not allowed; options cannot run code"


@pytest.mark.parametrize("word", ["model._target_=os.system", "_target_=os.system", "model.from_config._target_=a.b"])
def test_no_option_instantiates_an_object(word):
    assert refused(["conf=tiny", word]) == f"{word}: _target_ is not allowed; options cannot run code"


@pytest.mark.parametrize("word", ["+model._target_=a.b", "model.from_config={model_type: llama, _target_: a.b}"])
def test_a_target_that_is_not_in_the_schema_is_refused(word):
    refused(["conf=tiny", word])


@pytest.mark.parametrize(
    ("yaml", "where"),
    [
        ("deepspeed: {_target_: os.system}", "deepspeed._target_"),
        ("deepspeed: {a: [{_target_: os.system}]}", "deepspeed.a.0._target_"),
        ("model: {from_config: {model_type: llama, _target_: os.system}}", "model.from_config._target_"),
        ("model: {from_config: {model_type: llama, a: {_target_: x}}}", "model.from_config.a._target_"),
    ],
)
def test_no_file_instantiates_an_object(tmp_path, yaml, where):
    file = tmp_path / "my.yaml"
    file.write_text(f"run: {{name: a}}\ndata: {{train: a.jsonl}}\n{yaml}\n")
    assert refused([f"conf={file}"]) == f"{where}: _target_ is not allowed; options cannot run code"


@pytest.mark.parametrize("yaml", ["_target_: os.system", "model: {_target_: os.system}", "ppo: {_target_: os.system}"])
def test_no_file_instantiates_a_section(tmp_path, yaml):
    """The schema has no such key."""
    file = tmp_path / "my.yaml"
    file.write_text(f"run: {{name: a}}\n{yaml}\n")
    assert "_target_" in refused([f"conf={file}"])


def test_yaml_cannot_run_code(tmp_path):
    file = tmp_path / "my.yaml"
    file.write_text(f"run: {{name: !!python/object/apply:pathlib.Path.touch [{tmp_path}/touched]}}\n")
    assert "not valid YAML" in refused([f"conf={file}"])
    assert not (tmp_path / "touched").exists()


@pytest.mark.parametrize("query", ["api_key=x", "a=1&token=x", "key=x", "sig=x&v=2", "X-Amz-Signature=x"])
def test_a_url_with_a_secret_in_its_query_is_hidden(query):
    source = OmegaConf.create({"reward": [{"name": "far", "url": f"https://judge.example/score?{query}"}]})
    assert "judge.example" not in as_text(source)
    assert redact_args([f"reward=[{{name: far, url: 'https://judge.example/score?{query}'}}]"]) == ["reward=<hidden>"]


def test_a_url_with_another_query_is_kept():
    source = OmegaConf.create({"reward": [{"name": "far", "url": "https://judge.example/score?model=a&v=2"}]})
    assert "https://judge.example/score?model=a&v=2" in as_text(source)
