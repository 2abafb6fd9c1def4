"""Linear layers with reordered weights give the same products."""

import pytest
import torch
from torch import nn

from rlhf_cli.models.cpu.linear import reordered_weights

pytestmark = pytest.mark.skipif(
    not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="this CPU has no bfloat16 products"
)


def layers(dtype=torch.bfloat16):
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Linear(48, 96), nn.ReLU(), nn.Linear(96, 32, bias=False))
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator)
    return model.to(dtype)


def forwards(model):
    return [layer.__dict__.get("forward") for layer in model]


@pytest.mark.parametrize("num_rows", [1, 5, 64])
@torch.no_grad()
def test_products_equal_rounded_float32_products(num_rows):
    """For any number of rows. Both round once, after a sum in float32."""
    model = layers()
    rows = torch.randn(num_rows, 3, 48).bfloat16()
    expected = model(rows).float()
    with reordered_weights(model, 5):
        assert all(forward is not None for forward in forwards(model)[::2])
        found = model(rows)
    assert found.dtype is torch.bfloat16
    assert (found.float() - expected).abs().max() <= 2**-7 * expected.abs().max()
    exact = nn.functional.linear(rows.float(), model[0].weight.float(), model[0].bias.float())
    with reordered_weights(model, 5):
        assert ((model[0](rows).float() - exact).abs() <= 2**-8 * exact.abs() + 1e-6).all()


def test_linear_layers_are_restored_after_an_error():
    model = layers()
    with pytest.raises(KeyError), reordered_weights(model, 4):
        raise KeyError
    assert forwards(model) == [None] * 3


@torch.no_grad()
def test_weights_may_change_between_two_uses():
    model, rows = layers(), torch.ones(2, 48, dtype=torch.bfloat16)
    with reordered_weights(model, 2):
        before = model(rows)
    model[2].weight.mul_(2)
    with reordered_weights(model, 2):
        assert torch.equal(model(rows), 2 * before)


@torch.no_grad()
def test_layers_of_other_types_are_unchanged():
    class Own(nn.Linear):
        pass

    model = nn.Sequential(nn.Linear(4, 4), Own(4, 4).bfloat16())
    with reordered_weights(model, 4):
        assert forwards(model) == [None] * 2
