"""Damaged or unsuitable model folders give one-line errors; unusual but valid ones pass."""

import json
import math
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from rlhf_cli.config.errors import InputError
from rlhf_cli.config.sections import DType, ModelConfig
from rlhf_cli.models.byte_tokenizer import byte_tokenizer
from rlhf_cli.models.load_models import load_causal_lm, load_sequence_classifier
from rlhf_cli.models.load_tokenizer import load_tokenizer
from tests.unit.models.tiny import ARCHITECTURES, tiny_config

TOKENIZER = byte_tokenizer()
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Folders with a tiny causal model and a tiny reward model of every architecture."""
    folder = tmp_path_factory.mktemp("models")
    for architecture in ARCHITECTURES:
        causal = load_causal_lm(tiny_config(architecture), "model", TOKENIZER, 0)
        scorer = load_sequence_classifier(tiny_config(architecture), "model", TOKENIZER, 0, new_head=True)
        for kind, model in (("causal", causal), ("scorer", scorer)):
            model.save_pretrained(folder / architecture / kind)
            TOKENIZER.save_pretrained(folder / architecture / kind)
    return folder


@pytest.fixture
def folder(saved, tmp_path, monkeypatch):
    """Copy a folder to ./m, the name in messages."""
    monkeypatch.chdir(tmp_path)

    def copy(architecture="llama", kind="causal"):
        shutil.copytree(saved / architecture / kind, tmp_path / "m")
        return tmp_path / "m"

    return copy


def edit(folder, change):
    """Apply `change` to the tensors of a folder."""
    tensors = change(load_file(folder / WEIGHTS))
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, folder / WEIGHTS, metadata={"format": "pt"})


def configure(folder, file="config.json", **options):
    path = folder / file
    path.write_text(json.dumps(json.loads(path.read_text()) | options))


def causal():
    return load_causal_lm(ModelConfig(path="./m", dtype=DType.float32), "model", TOKENIZER, 0)


def scorer(new_head=False):
    config = ModelConfig(path="./m", dtype=DType.float32)
    return load_sequence_classifier(config, "reward_model", TOKENIZER, 0, new_head=new_head)


def refusal(call, *args):
    with pytest.raises(InputError) as caught:
        call(*args)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_missing_tensor_is_refused(architecture, folder):
    made = folder(architecture)
    name = next(name for name in sorted(load_file(made / WEIGHTS)) if ".1." in name)
    edit(made, lambda tensors: {key: tensors[key] for key in tensors if key != name})
    assert refusal(causal) == f"model.path=./m: 1 tensors missing: {name}"


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_tensor_with_a_wrong_shape_is_refused_with_both_shapes(architecture, folder):
    made = folder(architecture)
    name = next(name for name in sorted(load_file(made / WEIGHTS)) if load_file(made / WEIGHTS)[name].shape == (32,))
    edit(made, lambda tensors: tensors | {name: torch.ones(31)})
    shapes = f"{name} is [31] in the files, [32] in config.json"
    assert refusal(causal) == f"model.path=./m: 1 tensors have a wrong shape: {shapes}"


@pytest.mark.parametrize("vocab_size", [300, 200])
def test_a_resized_vocabulary_is_refused(vocab_size, folder):
    configure(folder(), vocab_size=vocab_size, pad_token_id=0, bos_token_id=0, eos_token_id=0)
    shapes = f"[259, 32] in the files, [{vocab_size}, 32] in config.json"
    assert refusal(causal) == f"model.path=./m: 2 tensors have a wrong shape: lm_head.weight is {shapes}"
    assert "tensors have a wrong shape: model.embed_tokens.weight is [259, 32]" in refusal(scorer, True)


def test_a_tokenizer_with_ids_beyond_the_embedding_is_refused(folder):
    folder()
    larger = byte_tokenizer()
    larger.add_tokens(["<one>"])
    config = ModelConfig(path="./m", dtype=DType.float32)
    assert refusal(load_causal_lm, config, "model", larger, 0) == (
        "model: the tokenizer has 260 tokens with ids up to 259, but the embedding has 259 rows; "
        "use the tokenizer of this model"
    )


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
        ("pad_token_id", 259, 259),
        ("pad_token_id", -2, -2),
        ("bos_token_id", 259, 259),
        ("eos_token_id", 259, 259),
        ("eos_token_id", [3, 259], 259),
    ],
)
def test_a_special_token_outside_the_vocabulary_is_refused(name, value, shown, folder):
    configure(folder(), **{name: value}, vocab_size=259)
    assert refusal(causal) == f"model.path=./m: config.json: {name} must be below the vocabulary size 259, got {shown}"
    assert "reward_model.path=./m: config.json: " in refusal(scorer, True)


def test_a_special_token_outside_the_vocabulary_of_a_generation_config_or_of_random_weights_is_refused(folder):
    configure(folder(), "generation_config.json", eos_token_id=[3, 999])
    wanted = "model: generation_config.json: eos_token_id must be below the vocabulary size 259, got 999"
    assert refusal(causal) == wanted
    bad = tiny_config("gpt2", pad_token_id=259)
    assert refusal(load_causal_lm, bad, "model", TOKENIZER, 0) == (
        "model.from_config: pad_token_id must be below the vocabulary size 259, got 259"
    )


def test_a_special_token_is_also_compared_with_a_vocabulary_of_the_default_size(tmp_path, monkeypatch):
    """transformers 4 omitted defaults from config.json: 50257 tokens for gpt2."""
    monkeypatch.chdir(tmp_path)
    config = tiny_config("gpt2", n_embd=4, n_layer=1, vocab_size=50257)
    load_causal_lm(config, "model", TOKENIZER, 0).save_pretrained("m")
    given = json.loads((tmp_path / "m/config.json").read_text()) | {"bos_token_id": 50257}
    del given["vocab_size"]
    (tmp_path / "m/config.json").write_text(json.dumps(given))
    assert refusal(causal) == "model: bos_token_id must be below the vocabulary size 50257, got 50257"


def test_a_pad_token_of_minus_1_stands_for_none(folder):
    configure(folder(), pad_token_id=-1)
    causal()


@pytest.mark.parametrize("options", [{"id2label": {"0": "bad", "1": "good"}}, {"num_labels": 2}])
def test_a_reward_model_whose_config_has_two_labels_is_refused(options, folder):
    made = folder(kind="scorer")
    given = json.loads((made / "config.json").read_text())
    plain = {name: value for name, value in given.items() if "label" not in name}
    (made / "config.json").write_text(json.dumps(plain | options))
    assert refusal(scorer) == "reward_model.path=./m: a reward model must have one label, got 2 in config.json"


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("new_head", [False, True])
def test_a_reward_model_whose_head_gives_two_scores_is_refused(architecture, new_head, folder):
    made = folder(architecture, "scorer")
    edit(made, lambda tensors: tensors | {"score.weight": torch.ones(2, 32)})
    assert refusal(scorer, new_head) == "reward_model.path=./m: the head of a reward model must give 1 score, got 2"


@pytest.mark.parametrize("size", [0, 4, 50, 20_000, -1])
def test_a_truncated_file_is_refused(size, folder):
    made = folder()
    (made / WEIGHTS).write_bytes((made / WEIGHTS).read_bytes()[:size])
    message = refusal(causal)
    assert message.startswith("model.path=./m: model.safetensors is damaged (")
    assert message.endswith("); copy or download it again")


def test_a_damaged_header_is_refused(folder):
    made = folder()
    data = bytearray((made / WEIGHTS).read_bytes())
    data[20] ^= 0xFF
    (made / WEIGHTS).write_bytes(data)
    assert refusal(causal).startswith(
        "model.path=./m: model.safetensors is damaged (Error while deserializing header: "
    )


def split(folder):
    """Divide the weights into two files with an index."""
    tensors = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    names = [f"model-0000{part}-of-00002.safetensors" for part in (1, 2)]
    places = {name: names[number % 2] for number, name in enumerate(tensors)}
    for file in names:
        part = {name: tensors[name] for name in tensors if places[name] == file}
        save_file(part, folder / file, metadata={"format": "pt"})
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return names


def test_weights_in_several_files_are_loaded_and_a_missing_or_cut_file_is_refused(folder):
    made = folder()
    _, second = split(made)
    causal()
    data = (made / second).read_bytes()
    (made / second).write_bytes(data[:-1])
    assert refusal(causal).startswith(f"model.path=./m: {second} is damaged (")
    (made / second).unlink()
    assert refusal(causal) == f"model.path=./m: {INDEX} lists {second}, which is missing; copy or download it again"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "is damaged: Expecting value: line 1 column 1 (char 0)"),
        ("[]", "is damaged: wanted a JSON object, got list"),
        ("{}", "has no weight_map; copy or download it again"),
        ('{"weight_map": {}}', "has no weight_map; copy or download it again"),
    ],
)
def test_a_broken_index_is_refused(text, reason, folder):
    made = folder()
    split(made)
    (made / INDEX).write_text(text)
    assert refusal(causal) == f"model.path=./m: {INDEX} {reason}"


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "Expecting value: line 1 column 1 (char 0)"),
        (b"[]", "wanted a JSON object, got list"),
        (b"\x80", "'utf-8' codec can't decode byte 0x80 in position 0: invalid start byte"),
    ],
)
def test_a_broken_config_json_is_refused_by_tokenizer_and_model(data, reason, folder):
    (folder() / "config.json").write_bytes(data)
    message = f"model.path=./m: config.json is damaged: {reason}"
    assert refusal(causal) == message
    assert refusal(load_tokenizer, ModelConfig(path="./m"), "model") == message


def test_a_config_json_without_a_model_type_is_refused(folder):
    (folder() / "config.json").write_text("{}")
    assert "Should have a `model_type` key in its config.json" in refusal(causal)


def test_weights_in_a_pickle_file_are_refused_and_the_advice_works(folder):
    made = folder()
    torch.save(load_file(made / WEIGHTS), made / "pytorch_model.bin")
    (made / WEIGHTS).unlink()
    assert refusal(causal) == (
        "model.path=./m: weights must be in safetensors, got pytorch_model.bin, a pickle file, which may run code when "
        "read; convert it with AutoModelForCausalLM (a reward model: AutoModelForSequenceClassification)"
        ".from_pretrained('m').save_pretrained('m')"
    )
    AutoModelForCausalLM.from_pretrained("m").save_pretrained("m")
    causal()


def test_a_folder_without_weights_is_refused(folder):
    (folder() / WEIGHTS).unlink()
    assert refusal(causal) == "model.path=./m: the folder has no model.safetensors"


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", DType)
def test_weights_that_are_not_finite_are_refused(value, dtype, folder):
    made, name = folder(), "model.layers.1.mlp.up_proj.weight"

    def spoil(tensors):
        tensors[name][3, 5] = value
        return tensors

    edit(made, spoil)
    config = ModelConfig(path="./m", dtype=dtype)
    assert refusal(load_causal_lm, config, "model", TOKENIZER, 0) == f"model.path=./m: {name} contains NaN or infinity"
    assert refusal(load_sequence_classifier, config, "model", TOKENIZER, 0, True).endswith(
        f"{name} contains NaN or infinity"
    )


@pytest.mark.parametrize(("architecture", "num"), [("llama", 9), ("gpt2", 11), ("gpt_neox", 12)])
def test_layers_that_do_not_belong_to_the_config_are_refused(architecture, num, folder):
    """transformers itself ignores one of gpt2's 12 tensors per layer, `c_attn.bias`."""
    configure(folder(architecture), **{"n_layer" if architecture == "gpt2" else "num_hidden_layers": 1})
    for call in (causal, lambda: scorer(new_head=True)):
        assert f"path=./m: {num} tensors do not belong to the model of config.json: " in refusal(call)


def test_weights_of_another_architecture_are_refused(folder):
    """qwen2 is llama with biases, which transformers would ignore."""
    configure(folder("qwen2"), model_type="llama", architectures=["LlamaForCausalLM"])
    biases = [f"model.layers.{layer}.self_attn.{name}_proj.bias" for layer in (0, 1) for name in "kqv"]
    assert refusal(causal) == (
        f"model.path=./m: 6 tensors do not belong to the model of config.json: {', '.join(biases[:4])}"
    )


@pytest.mark.parametrize(("kind", "name"), [("causal", "lm_head.bias"), ("scorer", "score.bias")])
def test_a_bias_of_the_head_that_would_be_left_out_is_refused(kind, name, folder):
    edit(
        folder(kind=kind),
        lambda tensors: tensors | {name: torch.ones(1), f"{name.split('.')[0]}.\x1b[2J": torch.ones(1)},
    )
    assert refusal(causal if kind == "causal" else scorer).endswith(
        f"path=./m: 2 tensors do not belong to the model of config.json: {name.split('.')[0]}.\ufffd[2J, {name}"
    )


def test_layers_left_out_of_weights_saved_without_a_prefix_are_refused(folder):
    made = folder("llama")
    edit(made, lambda tensors: {name.removeprefix("model."): tensors[name] for name in tensors})
    causal()
    configure(made, num_hidden_layers=1)
    assert "9 tensors do not belong to the model of config.json: layers.1.input_layernorm.weight" in refusal(causal)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_causal_model_makes_a_new_reward_model_whatever_labels_its_config_names(architecture, folder):
    configure(folder(architecture), id2label={"0": "bad", "1": "good"}, label2id={"bad": 0, "good": 1})
    scorer(new_head=True)


@pytest.mark.parametrize("architecture", ["qwen2", "gpt2"])
def test_a_reward_model_with_tied_embeddings_makes_a_policy(architecture, folder):
    folder(architecture, "scorer")
    causal()


@pytest.mark.parametrize(
    ("architecture", "extra"),
    [
        ("llama", {"model.layers.0.self_attn.rotary_emb.inv_freq": (4,), "v_head.summary.weight": (1, 32)}),
        ("llama", {"score.weight": (1, 32), "value_head.bias": (1,), "mtp.layers.0.norm.weight": (32,)}),
        ("gpt2", {"transformer.h.0.attn.bias": (1, 1, 8, 8), "transformer.h.1.attn.masked_bias": (1,)}),
        (
            "gpt_neox",
            {"gpt_neox.layers.0.attention.bias": (1, 1, 8, 8), "gpt_neox.layers.0.attention.masked_bias": (1,)},
        ),
    ],
)
def test_harmless_extras_pass(architecture, extra, folder):
    edit(folder(architecture), lambda tensors: tensors | {name: torch.ones(shape) for name, shape in extra.items()})
    causal()
