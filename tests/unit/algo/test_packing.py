"""Texts as a tree: each token once, and gradients of all its copies added up."""

import random

import pytest
import torch
from torch.testing import assert_close

from rlhf_cli.algo.packing import Packing

CPU = torch.device("cpu")
# sorted: 5 6 | 5 6 7 | 5 6 7 | 5 8 9; so the tokens are 5, 6, then 7, then 8, 9
TEXTS = [(5, 6, 7), (5, 8, 9), (5, 6, 7), (5, 6)]


def test_what_texts_begin_with_alike_is_held_once():
    packing = Packing.of(TEXTS, CPU)
    assert packing.ids.tolist() == [5, 6, 7, 8, 9]
    assert packing.positions.tolist() == [0, 1, 2, 1, 2]
    assert packing.indices.tolist() == [[0, 1, 2], [0, 3, 4], [0, 1, 2], [0, 1, 0]]
    assert packing.first.tolist() == [9, 10, 2, 4, 5]  # the last text is the first in order
    assert packing.shared.tolist() == [0, 1, 2]
    assert [indices.tolist() for indices in packing.copies] == [[0, 1, 8], [6, 7], [3]]


def test_texts_that_begin_apart_share_nothing_even_where_they_go_on_alike():
    packing = Packing.of([(1, 2, 3), (4, 2, 3)], CPU)
    assert packing.ids.tolist() == [1, 2, 3, 4, 2, 3]
    assert packing.shared.tolist() == []
    assert packing.copies == ()


def texts_of(seed):
    """Texts over two tokens, so that many begin alike, of 1 to 9 tokens."""
    draw = random.Random(seed)
    return [tuple(draw.choices((1, 2), k=draw.randint(1, 9))) for _ in range(draw.randint(1, 8))]


@pytest.mark.parametrize("seed", range(20))
def test_packed_texts_are_the_texts(seed):
    texts = texts_of(seed)
    packing = Packing.of(texts, CPU)
    ids, positions = packing.unpack(packing.ids), packing.unpack(packing.positions)
    for row, text in enumerate(texts):
        assert ids[row, : len(text)].tolist() == list(text)
        assert positions[row, : len(text)].tolist() == list(range(len(text)))
    assert len(packing.ids) == len({text[: end + 1] for text in texts for end in range(len(text))})
    assert torch.equal(packing.pack(ids), packing.ids)


@pytest.mark.parametrize("seed", range(20))
def test_gradients_of_all_copies_meet(seed):
    """Slowly: the gradient of a token is the sum over the real places where it stands."""
    texts = texts_of(seed)
    packing = Packing.of(texts, CPU)
    generator = torch.Generator().manual_seed(seed)
    packed = torch.randn(len(packing.ids), 3, 2, generator=generator, requires_grad=True)
    weight = torch.randn(*packing.indices.shape, 3, 2, generator=generator)
    for row, text in enumerate(texts):
        weight[row, len(text) :] = 0
    (packing.unpack(packed) * weight).sum().backward()
    expected = torch.zeros_like(packed)
    for row, text in enumerate(texts):
        for column in range(len(text)):
            expected[packing.indices[row, column]] += weight[row, column]
    assert_close(packed.grad, expected, atol=1e-6, rtol=0)


def test_padding_gives_no_gradient():
    """The padding of the short text points at the first token; whatever comes back from there is left out."""
    packing = Packing.of([(1,), (2, 3)], CPU)
    packed = torch.zeros(3, 1, requires_grad=True)
    packing.unpack(packed).backward(torch.tensor([[[1.0], [100.0]], [[2.0], [3.0]]]))
    assert packed.grad.flatten().tolist() == [1.0, 2.0, 3.0]


def test_copies_are_added_in_float32():
    """256 + 1 + 1 is 258; in bfloat16, which has eight digits, 256 + 1 is 256."""
    packing = Packing.of([(1,), (1,), (1,)], CPU)
    packed = torch.zeros(1, 1, dtype=torch.bfloat16, requires_grad=True)
    packing.unpack(packed).backward(torch.tensor([256.0, 1.0, 1.0], dtype=torch.bfloat16).view(3, 1, 1))
    assert packed.grad.item() == 258.0


def test_what_is_picked_gives_its_gradient_to_the_first_copy_alone():
    packing = Packing.of(TEXTS, CPU)
    spread = torch.zeros(4, 3, 1, requires_grad=True)
    packing.pack(spread).backward(torch.arange(1.0, 6.0).view(5, 1))
    assert spread.grad.squeeze(2).tolist() == [[0, 0, 3], [0, 4, 5], [0, 0, 0], [1, 2, 0]]
