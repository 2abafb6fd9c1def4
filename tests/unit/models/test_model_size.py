"""FLOPs of a forward pass, computed by hand."""

import pytest
import torch

from rlhf_cli.models.byte_tokenizer import byte_tokenizer
from rlhf_cli.models.load_models import load_causal_lm, load_sequence_classifier
from rlhf_cli.models.model_size import ModelSize
from tests.unit.models.tiny import tiny_config

HEAD = 259 * 32


def test_a_forward_pass_by_hand():
    """10 weights read 6 tokens, a head of 6 weights 3 places, and 2 layers of width 3 attend over half of 4 x 4, 2 x 2.

    Every weight is a multiplication and an addition; attention has two products.
    """
    size = ModelSize(body=10, head=6, layers=2, width=3)
    attention = 2 * (2 * 2 * 3 * (16 + 4) // 2)
    assert size.forward_flops(1, [4, 2], 3, num_read=6) == 2 * 10 * 6 + 2 * 6 * 3 + attention
    assert size.forward_flops(2.5, [4, 2], 3, num_read=11) == 2 * 10 * 11 + 2.5 * (2 * 6 * 3 + attention)


@pytest.mark.parametrize(
    ("architecture", "layer"),
    [
        ("llama", 32 * (32 + 16 + 16 + 32) + 3 * 32 * 64),  # four heads of 8, two of keys and values; a gated MLP
        ("qwen2", 32 * (32 + 16 + 16 + 32) + 3 * 32 * 64),  # its head is its embedding
        ("gpt2", 32 * (96 + 32) + 2 * 32 * 128),
        ("gpt_neox", 32 * (96 + 32) + 2 * 32 * 64),
    ],
)
def test_the_weights_of_tiny_models_by_hand(architecture, layer):
    policy = load_causal_lm(tiny_config(architecture), "model", byte_tokenizer(), 0)
    assert ModelSize.of(policy) == ModelSize(body=2 * layer, head=HEAD, layers=2, width=32)
    scorer = load_sequence_classifier(tiny_config(architecture), "model", byte_tokenizer(), 0, new_head=True)
    assert ModelSize.of(scorer) == ModelSize(body=2 * layer + 32, head=0, layers=2, width=32)


def test_heads_may_be_wider_than_the_model():
    model = load_causal_lm(tiny_config("llama", head_dim=16), "model", byte_tokenizer(), 0)
    assert ModelSize.of(model).width == 4 * 16


@torch.no_grad()
def test_pytorch_counts_the_same_products():
    """Except for attention, whose products are batched."""
    from torch.utils.flop_counter import FlopCounterMode

    model = load_causal_lm(tiny_config("llama"), "model", byte_tokenizer(), 0)
    with FlopCounterMode(display=False) as counter:
        model(torch.arange(40).view(2, 20), use_cache=False)
    products = counter.get_flop_counts()["Global"]
    matrices = sum(number for name, number in products.items() if not str(name).endswith("bmm"))
    size = ModelSize.of(model)
    assert matrices == 2 * (size.body + size.head) * 40
