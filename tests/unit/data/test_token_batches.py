import random

import pytest
import torch

from rlhf_cli.data.token_batches import (
    EndTokens,
    PackedSize,
    Size,
    TokenSequence,
    chunks,
    collate,
    micro_batches,
    sized_rows,
)

CPU = torch.device("cpu")
BATCH = collate([TokenSequence((7,), (1, 2, 3)), TokenSequence((8, 9), (4,))], pad_id=4, device=CPU)


def test_a_response_follows_its_prompt_and_all_padding_is_on_the_right():
    assert BATCH.input_ids.tolist() == [[7, 1, 2, 3], [8, 9, 4, 4]]
    assert BATCH.response_ids.tolist() == [[1, 2, 3], [4, 4, 4]]
    assert BATCH.prompt_lengths.tolist() == [1, 2]


def test_masks_come_from_lengths_though_a_real_token_is_the_pad_id():
    assert BATCH.response_mask.tolist() == [[True, True, True], [True, False, False]]
    assert BATCH.real_response_ids().tolist() == [1, 2, 3, 4]


def test_the_positions_that_predict_response_tokens():
    """The last token of the prompt predicts the first of the response; nothing predicts padding."""
    at = BATCH.before_response_tokens()
    assert at["rows"].tolist() == [0, 0, 0, 1]
    assert at["columns"].tolist() == [0, 1, 2, 1]


def test_values_of_response_tokens_go_back_to_their_places():
    values = torch.tensor([1.5, 2.5, 3.5, 4.5], dtype=torch.float64, requires_grad=True)
    placed = BATCH.per_response_token(values)
    assert placed.tolist() == [[1.5, 2.5, 3.5], [4.5, 0.0, 0.0]]
    assert placed.dtype is torch.float64
    (placed * torch.tensor([[1.0, 2.0, 3.0], [4.0, 99.0, 99.0]])).sum().backward()
    assert values.grad.tolist() == [1.0, 2.0, 3.0, 4.0]


def test_selecting_the_last_token_of_each_row():
    per_token = torch.arange(8.0).reshape(2, 4)
    assert BATCH.at_last_token(per_token).tolist() == [3.0, 6.0]
    assert BATCH.at_last_token(torch.stack([per_token, -per_token], dim=2)).tolist() == [[3.0, -3.0], [6.0, -6.0]]
    assert BATCH.before_each_response_token(per_token).tolist() == [[0.0, 1.0, 2.0], [5.0, 0.0, 0.0]]


def test_a_sequence_may_have_an_empty_prompt():
    """As in reward-model training, where nothing is a prompt."""
    batch = collate([TokenSequence((), (1, 2)), TokenSequence((), (3, 4, 5))], 0, CPU)
    assert batch.at_last_token(batch.input_ids).tolist() == [2, 5]


def test_a_sequence_counts_its_tokens():
    assert len(TokenSequence((1, 2), (3,))) == 3


def test_an_end_token_is_kept_and_what_follows_the_first_is_cut():
    ends = EndTokens(frozenset({8, 9}), pad_id=8)
    assert ends.cut([1, 9, 8, 9, 2]) == (1, 9)
    assert ends.cut([8, 1]) == (8,)
    assert ends.cut([1, 2]) == (1, 2)
    assert ends.ended(TokenSequence((9,), (1, 8)))
    assert not ends.ended(TokenSequence((1,), (9, 1)))


def test_chunks():
    assert chunks([1, 2, 3, 4, 5], 2) == [[1, 2], [3, 4], [5]]


SIZES = [Size(1, longest) for longest in (10, 3, 5, 3, 32)]


def test_micro_batches_of_a_number_of_rows_go_from_the_shortest_to_the_longest():
    assert micro_batches(SIZES, 2, None) == [[1, 3], [2, 0], [4]]
    assert micro_batches(SIZES, 9, None) == [[1, 3, 2, 0, 4]]


def test_micro_batches_of_a_number_of_tokens_hold_rows_of_like_length():
    """By length 3, 3, 5 (3 x 5 = 15 fit in 16), then 10 alone, and 32, which fits nowhere."""
    assert micro_batches(SIZES, 2, 16) == [[1, 3, 2], [0], [4]]
    assert micro_batches(SIZES, 2, 15) == [[1, 3, 2], [0], [4]]
    assert micro_batches(SIZES, 2, 14) == [[1, 3], [2], [0], [4]]
    assert micro_batches(SIZES, 2, 1) == [[1], [3], [2], [0], [4]]


def test_a_later_micro_batch_takes_more_than_one_row_too():
    """Widths 3, 3, 10, 10: a third row would make it 3 x 10."""
    assert micro_batches([Size(1, width) for width in (3, 3, 10, 10)], 2, 20) == [[0, 1], [2, 3]]


def test_the_padded_size_counts_every_sequence_as_the_longest():
    assert Size(1, 9).joined(Size(1, 4)) == Size(1, 4).joined(Size(1, 9)) == Size(2, 9)
    assert Size(3, 9).num_tokens == 27
    assert micro_batches([Size(4, 5), Size(2, 5)], 2, 30) == [[0, 1]]
    assert micro_batches([Size(4, 5), Size(2, 5)], 2, 29) == [[0], [1]]


@pytest.mark.parametrize("num_tokens", [None, 1, 12, 40])
def test_every_index_is_in_one_micro_batch(num_tokens):
    groups = micro_batches([Size(1 + n % 3, 1 + 7 * n % 11) for n in range(20)], 3, num_tokens)
    assert sorted(place for group in groups for place in group) == list(range(20))


def test_a_shared_prefix_of_packed_texts_counts_once():
    """1 2 3 | 1 2 4 5, then 1 2 4 6 and 9: 3 + 2, + 1, + 1."""
    two = PackedSize.of(TokenSequence((1, 2), (3,)), TokenSequence((1, 2), (4, 5)))
    assert (two.num_tokens, two.longest) == (5, 4)
    four = two.joined(PackedSize.of(TokenSequence((1, 2), (4, 6)), TokenSequence((9,), ())))
    assert (four.num_tokens, four.longest) == (7, 4)
    assert four.joined(two).num_tokens == 7


@pytest.mark.parametrize("seed", range(10))
def test_the_packed_size_is_that_of_the_packed_batch(seed):
    draw = random.Random(seed)
    sequences = [TokenSequence((1,), tuple(draw.choices((1, 2), k=draw.randint(1, 6)))) for _ in range(7)]
    size = PackedSize.of()
    for sequence in sequences:
        size = size.joined(PackedSize.of(sequence))
    assert size.num_tokens == len(collate(sequences, 0, CPU).packing.ids)
    assert size.longest == max(map(len, sequences))


def test_rows_are_measured_packed_or_padded():
    rows = [(TokenSequence((1, 2), (3,)), TokenSequence((1, 2), (4, 5))), (TokenSequence((7,), (8,)),)]
    assert sized_rows(rows, packed=False) == [Size(2, 4), Size(1, 2)]
    assert [room.num_tokens for room in sized_rows(rows, packed=True)] == [5, 2]


def test_more_packed_rows_fit_in_a_number_of_tokens():
    """Three rows with a prompt of four tokens and an answer of one: 4 + 3 tokens."""
    rows = [(TokenSequence((1, 2, 3, 4), (answer,)),) for answer in (7, 8, 9)]
    assert micro_batches(sized_rows(rows, packed=True), 9, 7) == [[0, 1, 2]]
    assert micro_batches(sized_rows(rows, packed=True), 9, 6) == [[0, 1], [2]]
    assert micro_batches(sized_rows(rows, packed=False), 9, 7) == [[0], [1], [2]]
