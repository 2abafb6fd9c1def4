import json
from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close
from transformers import AutoModelForSequenceClassification

from rlhf_cli.config.errors import InputError
from rlhf_cli.config.sections import DType, ModelConfig
from rlhf_cli.data.token_batches import EndTokens
from rlhf_cli.models.byte_tokenizer import byte_tokenizer
from rlhf_cli.models.export import export, export_ends
from rlhf_cli.models.load_models import check_length, load_causal_lm, load_sequence_classifier
from rlhf_cli.models.load_tokenizer import load_tokenizer, set_pad_token
from tests.unit.models.tiny import ARCHITECTURES, tiny_config


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_dropout_is_off(architecture):
    config = tiny_config(
        architecture, hidden_dropout=0.5, attention_dropout=0.5, resid_pdrop=0.5, attn_pdrop=0.5, embd_pdrop=0.5
    )
    model = load_causal_lm(config, "model", byte_tokenizer(), seed=0).train()
    ids = torch.arange(20)[None]
    with torch.no_grad():
        assert torch.equal(model(ids).logits, model(ids).logits)
    assert all(module.p == 0 for module in model.modules() if isinstance(module, torch.nn.Dropout))


def test_equal_seeds_give_equal_weights_and_leave_the_global_generator_alone():
    state = torch.get_rng_state()
    first, second, other = (load_causal_lm(tiny_config("llama"), "model", byte_tokenizer(), seed) for seed in (1, 1, 2))
    assert torch.equal(state, torch.get_rng_state())
    weights = [model.get_input_embeddings().weight for model in (first, second, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_a_new_head_has_the_stated_spread():
    config = tiny_config("llama", hidden_size=1024, intermediate_size=16, num_hidden_layers=1)
    head = load_sequence_classifier(config, "model", byte_tokenizer(), 0, new_head=True).score.weight
    assert head.shape == (1, 1024)
    assert_close(head.std().item(), 1025**-0.5, rtol=0.1, atol=0)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_saved_classifier_loads_with_its_head(architecture, tmp_path):
    tokenizer = byte_tokenizer()
    model = load_sequence_classifier(tiny_config(architecture), "model", tokenizer, 0, new_head=True)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    loaded = load_sequence_classifier(
        ModelConfig(path=str(tmp_path), dtype=DType.float32), "reward_model", tokenizer, 7, new_head=False
    )
    assert torch.equal(loaded.score.weight, model.score.weight)
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    ids = torch.tensor([[5, 6, 7, tokenizer.eos_token_id]])
    with torch.no_grad():
        assert_close(plain(ids).logits, loaded.eval()(ids).logits, atol=1e-6, rtol=0)


def test_a_causal_model_is_refused_as_a_reward_model(tmp_path):
    tokenizer = byte_tokenizer()
    load_causal_lm(tiny_config("llama"), "model", tokenizer, 0).save_pretrained(tmp_path)
    config = ModelConfig(path=str(tmp_path), dtype=DType.float32)
    with pytest.raises(InputError, match=r"reward_model.path=.*1 tensors missing.*score.weight"):
        load_sequence_classifier(config, "reward_model", tokenizer, 0, new_head=False)


def test_a_classifier_with_two_labels_is_refused(tmp_path):
    tokenizer = byte_tokenizer()
    model = load_sequence_classifier(tiny_config("llama"), "model", tokenizer, 0, new_head=True)
    two = AutoModelForSequenceClassification.from_config(
        model.config.__class__(**{**model.config.to_dict(), "num_labels": 2})
    )
    two.save_pretrained(tmp_path)
    with pytest.raises(InputError, match="reward_model"):
        load_sequence_classifier(
            ModelConfig(path=str(tmp_path), dtype=DType.float32), "reward_model", tokenizer, 0, new_head=False
        )


def test_a_model_with_missing_tensors_is_refused(tmp_path):
    from safetensors.torch import load_file, save_file

    tokenizer = byte_tokenizer()
    load_causal_lm(tiny_config("llama"), "model", tokenizer, 0).save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors.pop("model.layers.1.mlp.up_proj.weight")
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"1 tensors missing.*up_proj"):
        load_causal_lm(ModelConfig(path=str(tmp_path), dtype=DType.float32), "model", tokenizer, 0)


def test_tied_embeddings_survive_saving_and_loading(tmp_path):
    tokenizer = byte_tokenizer()
    model = load_causal_lm(tiny_config("qwen2", tie_word_embeddings=True), "model", tokenizer, 0)
    model.save_pretrained(tmp_path)
    again = load_causal_lm(ModelConfig(path=str(tmp_path), dtype=DType.float32), "model", tokenizer, 1)
    ids = torch.arange(10)[None]
    with torch.no_grad():
        assert torch.equal(model(ids).logits, again(ids).logits)


def test_weights_in_pickle_files_are_refused(tmp_path):
    tokenizer = byte_tokenizer()
    model = load_causal_lm(tiny_config("llama"), "model", tokenizer, 0)
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"weights must be in safetensors, got pytorch_model\.bin, a pickle file"):
        load_causal_lm(ModelConfig(path=str(tmp_path)), "model", tokenizer, 0)


def test_a_vocabulary_larger_than_the_embedding_is_refused(tmp_path):
    load_causal_lm(tiny_config("llama"), "model", byte_tokenizer(), 0).save_pretrained(tmp_path)
    larger = byte_tokenizer()
    larger.add_tokens(["<one>", "<two>"])
    with pytest.raises(InputError, match="261 tokens with ids up to 260, but the embedding has 259 rows"):
        load_causal_lm(ModelConfig(path=str(tmp_path), dtype=DType.float32), "model", larger, 0)


def test_a_tokenizer_whose_pad_is_its_eos_gets_another_pad_if_it_has_a_token_to_spare():
    tokenizer = byte_tokenizer()
    tokenizer.unk_token = "<unk>"
    tokenizer.add_special_tokens({"unk_token": "<unk>"})
    tokenizer.pad_token = tokenizer.eos_token
    set_pad_token(tokenizer)
    assert tokenizer.pad_token == "<unk>"


def test_a_tokenizer_whose_pad_ends_a_turn_gets_another_pad():
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = tokenizer.chat_template.replace("<eos>", "<pad>")
    tokenizer.add_special_tokens({"unk_token": "<unk>"})
    set_pad_token(tokenizer)
    assert tokenizer.pad_token == "<unk>"


def test_a_classifiers_config_has_no_pad_token_that_ends_a_turn():
    tokenizer = byte_tokenizer()
    model = load_sequence_classifier(tiny_config("llama"), "model", tokenizer, 0, new_head=True)
    assert model.config.pad_token_id == tokenizer.pad_token_id
    tokenizer.chat_template = tokenizer.chat_template.replace("<eos>", "<pad>")
    model = load_sequence_classifier(tiny_config("llama"), "model", tokenizer, 0, new_head=True)
    assert model.config.pad_token_id is None


def test_a_tokenizer_gets_the_chosen_template_and_is_saved_with_it(tmp_path):
    (tmp_path / "mine.jinja").write_text("{{ messages[0]['content'] }}")
    config = replace(tiny_config("llama"), chat_template=str(tmp_path / "mine.jinja"))
    tokenizer = load_tokenizer(config, "model")
    model = load_causal_lm(config, "model", tokenizer, 0)
    state = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    export(model, state, tokenizer, tmp_path / "out")
    again = load_tokenizer(ModelConfig(path=str(tmp_path / "out")), "reward_model")
    assert again.chat_template == "{{ messages[0]['content'] }}"
    (tmp_path / "mine.jinja").write_text("{% if %}")
    with pytest.raises(InputError, match=r"^model.chat_template=.*mine.jinja: renders no conversation: line 1: "):
        load_tokenizer(config, "model")


@pytest.mark.parametrize(
    ("listed", "ends", "saved"),
    [([1, 2], {1, 2}, [1, 2]), (2, {2}, 2), (2, {1, 2}, [1, 2]), (None, {2, 7}, [2, 7])],
)
def test_an_export_has_the_end_tokens_of_sampling(listed, ends, saved):
    model = load_causal_lm(tiny_config("llama"), "model", byte_tokenizer(), 0)
    model.generation_config.eos_token_id = listed
    export_ends(model, EndTokens(frozenset(ends), 0))
    assert model.generation_config.eos_token_id == saved


def test_the_exported_config_keeps_the_dropout_it_came_with(tmp_path):
    model = load_causal_lm(tiny_config("gpt2", attn_pdrop=0.3), "model", byte_tokenizer(), 0)
    state = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    export(model, state, byte_tokenizer(), tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["attn_pdrop"] == 0.3


def test_a_generation_config_that_cannot_be_saved_is_fixed(tmp_path):
    tokenizer = byte_tokenizer()
    load_causal_lm(tiny_config("llama"), "model", tokenizer, 0).save_pretrained(tmp_path)
    (tmp_path / "generation_config.json").write_text('{"temperature": 0.9, "top_p": 0.6, "eos_token_id": [1, 2]}')
    model = load_causal_lm(ModelConfig(path=str(tmp_path), dtype=DType.float32), "model", tokenizer, 0)
    state = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    export(model, state, tokenizer, tmp_path / "out")
    saved = json.loads((tmp_path / "out/generation_config.json").read_text())
    assert (saved["temperature"], saved["eos_token_id"]) == (0.9, [1, 2])


def test_a_trained_head_is_kept_even_if_a_new_one_is_allowed(tmp_path):
    tokenizer = byte_tokenizer()
    model = load_sequence_classifier(tiny_config("llama"), "model", tokenizer, 0, new_head=True)
    model.save_pretrained(tmp_path)
    config = ModelConfig(path=str(tmp_path), dtype=DType.float32)
    again = load_sequence_classifier(config, "model", tokenizer, 5, new_head=True)
    assert torch.equal(again.score.weight, model.score.weight)


def test_sequences_longer_than_the_positions_are_refused():
    model = load_causal_lm(tiny_config("gpt2", n_positions=64), "model", byte_tokenizer(), 0)
    check_length(model, 64, "model", "data.max_tokens")
    with pytest.raises(InputError, match=r"model has 64 positions, but the longest sequence may have 65; lower data"):
        check_length(model, 65, "model", "data.max_tokens")


@pytest.mark.parametrize(
    "extra", [{"hidden_size": "abc"}, {"hidden_size": 33}, {"num_attention_heads": 0}, {"model_type": "t5"}]
)
def test_a_wrong_from_config_is_one_line(extra):
    with pytest.raises(InputError, match=r"^model.from_config: ") as caught:
        load_causal_lm(tiny_config("llama", **extra), "model", byte_tokenizer(), 0)
    assert "\n" not in str(caught.value)


def test_broken_files_and_settings_are_one_line(tmp_path):
    tokenizer = byte_tokenizer()
    load_causal_lm(tiny_config("llama"), "model", tokenizer, 0).save_pretrained(tmp_path)
    config = ModelConfig(path=str(tmp_path), dtype=DType.float32)
    with pytest.raises(InputError, match=r"cannot load the weights: (ImportError|ValueError)"):
        load_causal_lm(replace(config, attn_implementation="flash_attention_2"), "model", tokenizer, 0)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"model\.safetensors is damaged"):
        load_causal_lm(config, "model", tokenizer, 0)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(InputError, match="model: no tokenizer in "):
        load_tokenizer(config, "model")


def test_kernels_for_a_gpu_are_refused_without_one():
    config = replace(tiny_config("llama"), liger_kernel=True)
    with pytest.raises(InputError, match=r"^model\.liger_kernel must be false without an NVIDIA GPU, got true$"):
        load_causal_lm(config, "model", byte_tokenizer(), 0)


def test_a_missing_folder_is_one_line():
    with pytest.raises(InputError, match=r"model.path=\./nowhere: no such file or folder"):
        load_tokenizer(ModelConfig(path="./nowhere"), "model")
