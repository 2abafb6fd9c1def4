"""Attention on a CPU equals softmax(q k' * scale) v by hand, and is used only where it should be."""

import copy
import json

import pytest
import torch
from torch.testing import assert_close
from transformers.integrations import sdpa_attention

from rlhf_cli.models.byte_tokenizer import byte_tokenizer
from rlhf_cli.models.cpu import attention as cpu_attention
from rlhf_cli.models.cpu.attention import NAME, CausalAttention, attend_one_token, attention, use_cpu_attention
from rlhf_cli.models.export import export
from rlhf_cli.models.load_models import load_causal_lm, load_sequence_classifier
from tests.unit.models.tiny import ARCHITECTURES, tiny_config

SCALE = 0.3
HEADS = {"mha": (4, 4), "gqa": (4, 2), "mqa": (3, 1)}  # of queries, of keys and values


def tensors(heads, dtype=torch.float32, length=7, size=1.0):
    """Query, key and value [B, H, L, d], stored as [B, L, H, d] as in models, and a gradient."""
    generator = torch.Generator().manual_seed(0)
    num_heads, num_keys = HEADS[heads]
    made = [size * torch.randn(2, length, n, 5, generator=generator) for n in (num_heads, num_keys, num_keys)]
    gradient = torch.randn(2, num_heads, length, 5, generator=generator)
    return [one.to(dtype).transpose(1, 2).requires_grad_() for one in made], gradient.to(dtype)


def by_hand(query, key, value, scale):
    """One head and one position at a time."""
    groups, rows = query.shape[1] // key.shape[1], []
    for batch in range(query.shape[0]):
        for head in range(query.shape[1]):
            k, v = key[batch, head // groups], value[batch, head // groups]
            for place in range(query.shape[2]):
                weights = torch.softmax(k[: place + 1] @ query[batch, head, place] * scale, dim=0)
                rows.append(weights @ v[: place + 1])
    return torch.stack(rows).view(query.shape)


def by_torch(query, key, value, scale):
    return torch.nn.functional.scaled_dot_product_attention(
        query, key, value, is_causal=True, scale=scale, enable_gqa=True
    )


def read(function, inputs, gradient):
    """Return the output and the gradients of all inputs."""
    inputs = [one.detach().clone().requires_grad_() for one in inputs]
    output = function(*inputs, SCALE)
    output.backward(gradient)
    return [output.detach(), *[one.grad for one in inputs]]


@pytest.fixture(params=[3, 7, 64])
def block(request, monkeypatch):
    """Seven positions are two blocks and one left over; one block; less than one."""
    monkeypatch.setattr(cpu_attention, "_BLOCK", request.param)


@pytest.mark.parametrize("heads", HEADS)
def test_output_and_gradients_equal_those_by_hand(heads, block):
    inputs, gradient = tensors(heads)
    expected = read(by_hand, [one.double() for one in inputs], gradient.double())
    for got, wanted in zip(read(CausalAttention.apply, inputs, gradient), expected, strict=True):
        assert_close(got, wanted.float(), atol=1e-5, rtol=1e-5)


@pytest.fixture(params=[False, True], ids=["no tiles", "tiles"])
def tiles(request, monkeypatch):
    """Processors with and without tiles, independent of this one."""
    monkeypatch.setattr(cpu_attention, "_has_tiles", lambda dtype: request.param and dtype is torch.bfloat16)


def test_processors_with_tiles_for_bfloat16_are_known(monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": True})
    assert cpu_attention._has_tiles(torch.bfloat16)
    assert not cpu_attention._has_tiles(torch.float32)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"architecture": "aarch64"})
    assert not cpu_attention._has_tiles(torch.bfloat16)


@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.05)])
@pytest.mark.parametrize("length", [7, 150])
def test_output_and_gradients_equal_those_of_pytorch(heads, dtype, tolerance, length, tiles):
    inputs, gradient = tensors(heads, dtype, length)
    found = read(CausalAttention.apply, inputs, gradient)
    for got, wanted in zip(found, read(by_torch, inputs, gradient), strict=True):
        assert got.dtype is dtype
        assert_close(got, wanted, atol=tolerance, rtol=tolerance)


def test_a_later_token_with_an_overflowing_weight_is_ignored(block):
    """Its weight would be infinite: it must be dropped instead of multiplied by 0."""
    inputs, gradient = tensors("gqa")
    with torch.no_grad():
        inputs[1][:, :, -1] *= 1000
    expected = read(by_hand, [one.double() for one in inputs], gradient.double())
    found = read(CausalAttention.apply, inputs, gradient)
    assert expected[0].isfinite().all()
    for got, wanted in zip(found, expected, strict=True):
        assert_close(got, wanted.float(), atol=1e-3, rtol=1e-4)


class Layer(torch.nn.Module):
    """The attributes of an attention layer that transformers uses."""

    num_key_value_groups = 2

    def __init__(self, is_causal=True):
        super().__init__()
        self.is_causal = is_causal


@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 0.02)])
def test_the_newest_token_attends_to_all_tokens_that_are_not_masked(heads, dtype, tolerance, tiles):
    """Two positions of the second row are padding."""
    (query, key, value), _ = tensors(heads, dtype)
    whole = by_hand(query.double(), key.double(), value.double(), SCALE)[:, :, -1:]
    cut = by_hand(*(one[1:, :, 2:].double() for one in (query, key, value)), SCALE)[:, :, -1:]
    newest = query[:, :, -1:]
    plain = attend_one_token(newest, key, value, None, SCALE)
    assert plain.dtype is dtype
    assert_close(plain.double(), whole, atol=tolerance, rtol=tolerance)
    mask = torch.ones(2, 1, 1, 7, dtype=torch.bool)
    mask[1, :, :, :2] = False
    masked = attend_one_token(newest, key, value, mask, SCALE)
    assert_close(masked.double(), torch.cat([whole[:1], cut]), atol=tolerance, rtol=tolerance)


@pytest.fixture
def asked(monkeypatch):
    """Record which function computes: full sequences, one token, or PyTorch."""
    calls = []

    def noted(name, function):
        return lambda *args, **more: (calls.append(name), function(*args, **more))[1]

    monkeypatch.setattr(CausalAttention, "apply", noted("whole", CausalAttention.apply))
    monkeypatch.setattr(cpu_attention, "attend_one_token", noted("one token", attend_one_token))
    monkeypatch.setattr(cpu_attention, "sdpa_attention_forward", noted("torch", sdpa_attention.sdpa_attention_forward))
    return calls


def test_full_sequences_are_computed_here(asked):
    inputs, _ = tensors("gqa")
    for options in ({}, {"is_causal": True}, {"dropout": 0.0}):
        output, weights = attention(Layer(), *inputs, None, **options)
        assert weights is None
        assert output.is_contiguous()
        assert_close(output, by_hand(*inputs, 5**-0.5).transpose(1, 2), atol=1e-5, rtol=0)  # [B, L, H, d]
    output, _ = attention(Layer(), *inputs, None, scaling=SCALE)
    assert_close(output, by_hand(*inputs, SCALE).transpose(1, 2), atol=1e-5, rtol=0)
    pair = [one[:, :, :2] for one in inputs]
    output, _ = attention(torch.nn.Module(), *pair, None)  # causal unless it says otherwise
    assert_close(output, by_hand(*pair, 5**-0.5).transpose(1, 2), atol=1e-5, rtol=0)
    with torch.no_grad():
        output, _ = attention(Layer(), *(one.detach() for one in inputs), None)
    assert_close(output, by_hand(*inputs, 5**-0.5).transpose(1, 2), atol=1e-5, rtol=0)
    attention(Layer(), *(one[:, :, :1] for one in inputs), None)  # a text of one token, to train on
    assert asked == ["whole"] * 7


def test_one_token_without_gradient_is_computed_here(asked):
    """Its output is [B, 1, H, d]; a mask hides positions."""
    inputs, _ = tensors("gqa")
    query, key, value = (one.detach() for one in inputs)
    mask = torch.ones(2, 1, 1, 7, dtype=torch.bool)
    for given, options, scale in (
        (None, {}, 5**-0.5),
        (mask, {"scaling": SCALE}, SCALE),
        (mask, {"dropout": 0.0}, None),
    ):
        output, weights = attention(Layer(), query[:, :, -1:], key, value, given, **options)
        assert weights is None
        expected = by_hand(query, key, value, scale or 5**-0.5)[:, :, -1:]
        assert_close(output, expected.transpose(1, 2), atol=1e-5, rtol=0)
    assert asked == ["one token"] * 3


def test_everything_else_is_computed_by_pytorch(asked):
    """A mask, dropout, keys of earlier tokens, attention to later tokens, values of another width."""
    (query, key, value), _ = tensors("gqa")
    mask = torch.ones(2, 1, 7, 7, dtype=torch.bool).tril()
    masked, _ = attention(Layer(), query, key, value, mask)
    assert_close(masked, by_hand(query, key, value, 5**-0.5).transpose(1, 2), atol=1e-5, rtol=0)
    attention(Layer(), query, key, value, None, dropout=0.5)
    attention(Layer(), query[:, :, -1:], key, value, None)
    attention(Layer(), query[:, :, -2:], key, value, None)
    attention(Layer(is_causal=False), query, key, value, None)
    attention(Layer(), query, key, value, None, is_causal=False)
    attention(Layer(is_causal=False), query.detach(), key.detach(), value.detach(), None)
    attention(Layer(), query, key, value[..., :3], None)
    assert asked == ["torch"] * 8
    with torch.no_grad():
        numbers = torch.zeros(2, 1, 1, 7)  # to be added to the scores, as some models have it
        attention(Layer(), query[:, :, -1:].detach(), key, value, numbers)
        attention(Layer(), query[:, :, -1:].detach(), key, value, None, dropout=0.5)
    assert asked == ["torch"] * 10


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_model_has_the_gradients_of_eager_attention(architecture, asked):
    model = load_causal_lm(tiny_config(architecture), "model", byte_tokenizer(), 0).train()
    eager = copy.deepcopy(model)
    eager.set_attn_implementation("eager")
    assert model.config._attn_implementation == f"packed_{NAME}"
    ids = torch.arange(3, 51).view(2, 24)
    for one in (model, eager):
        logits = one(ids, use_cache=False).logits
        torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).backward()
    assert asked == ["whole"] * 2  # two layers
    for (name, parameter), other in zip(model.named_parameters(), eager.parameters(), strict=True):
        assert_close(parameter.grad, other.grad, atol=1e-5, rtol=1e-5, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_an_exported_config_does_not_contain_it(architecture, tmp_path):
    tokenizer = byte_tokenizer()
    for number, model in enumerate(
        (
            load_causal_lm(tiny_config(architecture), "model", tokenizer, 0),
            load_sequence_classifier(tiny_config(architecture), "model", tokenizer, 0, new_head=True),
        )
    ):
        folder = tmp_path / str(number)
        assert model.config._attn_implementation == f"packed_{NAME}"
        export(model, {f"model.{name}": one for name, one in model.state_dict().items()}, tokenizer, folder)
        assert NAME not in (folder / "config.json").read_text()
        assert not [key for key in json.loads((folder / "config.json").read_text()) if "attn_impl" in key]


def test_another_chosen_attention_is_kept_and_gpus_use_pytorchs(monkeypatch):
    eager = load_causal_lm(tiny_config("llama"), "model", byte_tokenizer(), 0)
    eager.set_attn_implementation("eager")
    use_cpu_attention(eager)
    assert eager.config._attn_implementation == "eager"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    on_gpu = load_causal_lm(tiny_config("llama"), "model", byte_tokenizer(), 0)
    assert on_gpu.config._attn_implementation == "packed_sdpa"
