import torch

from rlhf_cli.data.tokens import Sequence, chunks, collate

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
