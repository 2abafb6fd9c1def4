"""The preallocated cache holds the same tokens as transformers' cache."""

import pytest
import torch
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from rlhf_cli.models.byte_tokenizer import byte_tokenizer
from rlhf_cli.models.load_models import load_causal_lm
from rlhf_cli.rollout.kv_cache import PreallocatedLayer, preallocated_cache
from tests.unit.models.tiny import tiny_config


@pytest.mark.parametrize("block", [10, 1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_preallocated_layer_equals_a_dynamic_one(dtype, block):
    """A prompt of 5 tokens, two steps, keep rows 2 and 0 of three, three more steps: the cache is full."""
    generator = torch.Generator().manual_seed(0)
    preallocated, dynamic = PreallocatedLayer(10, block), DynamicLayer()
    num_rows, held = 3, 0
    for size in (5, 1, 1, None, 1, 1, 1):
        if size is None:
            for layer in (preallocated, dynamic):
                layer.batch_select_indices(torch.tensor([2, 0]))
            num_rows = 2
            continue
        new = [torch.randn(num_rows, 2, size, 4, generator=generator).to(dtype) for _ in range(2)]
        found, expected = (layer.update(*new) for layer in (preallocated, dynamic))
        held += size
        for got, wanted in zip(found, expected, strict=True):
            assert got.dtype is dtype
            assert torch.equal(got, wanted)
        assert preallocated.get_seq_length() == dynamic.get_seq_length() == held
        assert preallocated.get_mask_sizes(1) == dynamic.get_mask_sizes(1)
    assert held == 10


def test_a_preallocated_layer_is_allocated_once():
    layer = PreallocatedLayer(capacity=3, block=3)
    layer.update(torch.ones(1, 1, 2, 4), torch.ones(1, 1, 2, 4))
    keys = layer.keys.data_ptr()
    layer.update(torch.ones(1, 1, 1, 4), torch.ones(1, 1, 1, 4))
    assert layer.keys.data_ptr() == keys
    assert layer.keys.shape == layer.values.shape == (1, 1, 3, 4)


def test_a_preallocated_layer_grows_by_blocks_up_to_its_capacity():
    """Blocks of 3 and a capacity of 7. Unused tokens are 0, so that products with them stay finite."""
    layer, sizes = PreallocatedLayer(capacity=7, block=3), []
    for size in (2, 1, 1, 2, 1):
        layer.update(torch.ones(2, 1, size, 4), torch.ones(2, 1, size, 4))
        sizes.append(layer.keys.shape[2])
        for held in (layer.keys, layer.values):
            assert held.is_contiguous()
            assert held.sum() == 2 * layer.length * 4
    assert sizes == [3, 3, 6, 6, 7]


def test_a_cache_grows_on_a_cpu_and_is_allocated_at_once_elsewhere():
    model = load_causal_lm(tiny_config("llama"), "model", byte_tokenizer(), 0)
    assert {layer.block for layer in preallocated_cache(model, 1000).layers} == {64}
    assert {layer.block for layer in preallocated_cache(model.to("meta"), 1000).layers} == {1000}


def test_layers_of_other_kinds_are_unchanged():
    plain = load_causal_lm(tiny_config("llama"), "model", byte_tokenizer(), 0)
    assert [type(layer) for layer in preallocated_cache(plain, 9).layers] == [PreallocatedLayer] * 2
    assert {layer.capacity for layer in preallocated_cache(plain, 9).layers} == {9}
    sliding = load_causal_lm(tiny_config("mistral", sliding_window=4), "model", byte_tokenizer(), 0)
    assert {type(layer) for layer in preallocated_cache(sliding, 9).layers} == {DynamicSlidingWindowLayer}
