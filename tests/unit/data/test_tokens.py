import torch

from rlhf_cli.data.tokens import Sequence, Size, chunks, collate, micro_batches

BATCH = collate([Sequence((7,), (1, 2, 3)), Sequence((8, 9), (4,))], pad_id=4, device=torch.device("cpu"))


def test_prompts_are_padded_on_the_left_and_responses_on_the_right():
    assert BATCH.input_ids.tolist() == [[4, 7, 1, 2, 3], [8, 9, 4, 4, 4]]
    assert BATCH.response_ids.tolist() == [[1, 2, 3], [4, 4, 4]]
    assert BATCH.num_prompt == 2


def test_masks_come_from_lengths_though_a_real_token_is_the_pad_id():
    assert BATCH.attention_mask.tolist() == [[0, 1, 1, 1, 1], [1, 1, 1, 0, 0]]
    assert BATCH.response_mask.tolist() == [[True, True, True], [True, False, False]]


def test_positions_count_real_tokens():
    assert BATCH.position_ids[0, 1:].tolist() == [0, 1, 2, 3]
    assert BATCH.position_ids[1, :3].tolist() == [0, 1, 2]


def test_picking_places():
    per_token = torch.arange(10.0).reshape(2, 5)
    assert BATCH.at_last_token(per_token).tolist() == [4.0, 7.0]
    assert BATCH.before_each_response_token(per_token).tolist() == [[1.0, 2.0, 3.0], [6.0, 7.0, 8.0]]


def test_chunks():
    assert chunks([1, 2, 3, 4, 5], 2) == [[1, 2], [3, 4], [5]]


SIZES = [Size(1, prompt, 2) for prompt in (8, 1, 3, 1, 30)]


def test_micro_batches_of_a_number_of_rows_keep_their_order():
    assert micro_batches(SIZES, 2, None) == [[0, 1], [2, 3], [4]]


def test_micro_batches_of_a_number_of_tokens_hold_rows_of_like_length():
    """Widths 10, 3, 5, 3, 32: by length 3, 3, 5 (3 x 5 = 15 fit in 16), then 10 alone, and 32, which fits nowhere."""
    assert micro_batches(SIZES, 2, 16) == [[1, 3, 2], [0], [4]]
    assert micro_batches(SIZES, 2, 15) == [[1, 3, 2], [0], [4]]
    assert micro_batches(SIZES, 2, 14) == [[1, 3], [2], [0], [4]]
    assert micro_batches(SIZES, 2, 1) == [[1], [3], [2], [0], [4]]


def test_a_later_micro_batch_takes_more_than_one_row_too():
    """Widths 3, 3, 10, 10: a third row would make it 3 x 10."""
    assert micro_batches([Size(1, width - 2, 2) for width in (3, 3, 10, 10)], 2, 20) == [[0, 1], [2, 3]]


def test_the_padded_size_counts_the_longest_prompt_and_the_longest_response():
    """A prompt of 9 with a response of 1, and the other way round, make two rows of 18."""
    both = Size.of(Sequence((1,) * 9, (1,))).joined(Size.of(Sequence((1,), (1,) * 9)))
    assert both == Size(2, 9, 9)
    assert both.num_tokens == 36
    assert micro_batches([Size(1, 9, 1), Size(1, 1, 9)], 2, 35) == [[0], [1]]
    assert micro_batches([Size(1, 9, 1), Size(1, 1, 9)], 2, 36) == [[0, 1]]
    assert micro_batches([Size(4, 0, 5), Size(2, 0, 5)], 2, 30) == [[0, 1]]
