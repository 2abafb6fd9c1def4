"""Decoding on a CPU gives the logits of transformers' layers, and replaces only supported layers."""

import pytest
import torch
from torch.testing import assert_close

from rlhf_cli.models.byte_tokenizer import byte_tokenizer
from rlhf_cli.models.cpu import attention as cpu_attention
from rlhf_cli.models.cpu import decoding
from rlhf_cli.models.cpu.decoding import cpu_decoding
from rlhf_cli.models.heads import ResponseLM
from rlhf_cli.models.load_models import load_causal_lm
from rlhf_cli.rollout import kv_cache as cache
from rlhf_cli.rollout.kv_cache import preallocated_cache
from tests.unit.models.tiny import tiny_config

BATCH, PROMPT, STEPS = 3, 5, 4
TOLERANCES = [(torch.float32, 1e-5), (torch.bfloat16, 0.02)]  # of the largest logit
KINDS = {
    "llama": ("llama", {}),
    "one head a group": ("llama", {"num_key_value_heads": 4}),
    "biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "another width of heads": ("llama", {"head_dim": 16}),
    "qwen2": ("qwen2", {}),
    "mistral": ("mistral", {"sliding_window": None}),
}


def model_of(architecture, dtype=torch.float32, **extra):
    """A model whose weights, including biases and norms, are large enough to matter."""
    model = load_causal_lm(tiny_config(architecture, **extra), "model", byte_tokenizer(), seed=0)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn(parameter.shape, generator=generator)
    return ResponseLM(model.to(dtype)).eval()


@torch.no_grad()
def decoded(model, padding=0):
    """The logits [B, V] of each step over fixed tokens; padding: of the first row, on the left."""
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(3, 250, (BATCH, PROMPT + STEPS), generator=generator)
    mask = torch.ones_like(tokens)
    mask[0, :padding] = 0
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    held = preallocated_cache(model.model, PROMPT + STEPS + 1)
    found, start = [], 0
    for end in range(PROMPT, PROMPT + STEPS):
        seen = mask[:, :end] if padding else None
        found.append(model.next_logits(tokens[:, start:end], seen, positions[:, start:end], held))
        start = end
    return torch.stack(found)


def replaced(model):
    return [layer for layer in model.modules() if isinstance(layer.__dict__.get("forward"), decoding._DecodingLayer)]


@pytest.mark.parametrize("padding", [0, 2])
@pytest.mark.parametrize(("dtype", "tolerance"), TOLERANCES)
@pytest.mark.parametrize("kind", KINDS)
def test_logits_equal_those_of_transformers_layers(kind, dtype, tolerance, padding):
    architecture, extra = KINDS[kind]
    model = model_of(architecture, dtype, **extra)
    expected = decoded(model, padding)
    with cpu_decoding(model.model, BATCH):
        assert len(replaced(model)) == 2
        found = decoded(model, padding)
    assert found.dtype is dtype
    largest = float(expected.abs().max())
    assert_close(found, expected, atol=tolerance * largest, rtol=0)


def test_the_layers_own_forward_processes_only_prompts():
    model, lengths = model_of("llama"), []

    def counted(own):
        def forward(hidden, **given):
            lengths.append(hidden.shape[1])
            return own(hidden, **given)

        return forward

    layers = model.model.model.layers
    for layer in layers:
        layer.forward = counted(layer.forward)
    given = [layer.forward for layer in layers]
    with cpu_decoding(model.model, BATCH):
        decoded(model)
    assert lengths == [PROMPT, PROMPT]
    assert [layer.forward for layer in layers] == given


@pytest.mark.parametrize("padding", [0, 2])
def test_keys_are_read_by_blocks_and_unused_ones_are_masked(monkeypatch, padding):
    """With blocks of 3, the steps attend to 6, 7 and 8 keys of 6, 9 and 9."""
    model, seen = model_of("llama"), []
    expected = decoded(model, padding)
    monkeypatch.setattr(cache, "_CPU_BLOCK", 3)
    attend_one_token = cpu_attention.attend_one_token

    def watched(query, key, value, mask, scale):
        assert key.is_contiguous()
        assert value.is_contiguous()
        seen.append((key.shape[2], mask[-1].sum().item()))
        return attend_one_token(query, key, value, mask, scale)

    monkeypatch.setattr(cpu_attention, "attend_one_token", watched)
    with cpu_decoding(model.model, BATCH):
        assert_close(decoded(model, padding), expected, atol=1e-5 * float(expected.abs().max()), rtol=0)
    assert seen[::2] == seen[1::2] == [(6, 6), (9, 7), (9, 8)]


OTHERS = [("gpt2", {}), ("gpt_neox", {}), ("mistral", {"sliding_window": 4})]


@pytest.mark.parametrize(("architecture", "extra"), OTHERS)
def test_other_layers_are_unchanged(architecture, extra):
    """Another architecture, or a sliding window."""
    model = model_of(architecture, **extra)
    expected = decoded(model)
    with cpu_decoding(model.model, BATCH):
        assert replaced(model) == []
        assert torch.equal(decoded(model), expected)


def test_layers_with_another_attention_are_unchanged():
    model = model_of("llama")
    model.model.set_attn_implementation("eager")
    with cpu_decoding(model.model, BATCH):
        assert replaced(model) == []


def test_layers_are_restored_after_an_error():
    model = model_of("llama")
    with pytest.raises(KeyError), cpu_decoding(model.model, BATCH):
        raise KeyError
    assert not any("forward" in layer.__dict__ for layer in model.modules())


@pytest.mark.parametrize(("dtype", "tolerance"), TOLERANCES)
def test_weights_may_change_between_two_uses(dtype, tolerance):
    model = model_of("llama", dtype)
    with cpu_decoding(model.model, BATCH):
        before = decoded(model)
    with torch.no_grad():
        model.model.model.layers[0].self_attn.k_proj.weight.mul_(-1)
    with cpu_decoding(model.model, BATCH):
        after = decoded(model)
    assert not torch.equal(before, after)
    assert_close(after, decoded(model), atol=tolerance * float(after.abs().max()), rtol=0)
