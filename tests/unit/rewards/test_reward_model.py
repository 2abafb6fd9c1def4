import torch

from rlhf_cli.data.token_batches import EndTokens, TokenSequence
from rlhf_cli.rewards.reward_model import RewardModel


class Positions:
    """Stands in for an engine: the score of a token is its id plus a tenth of its position."""

    def __call__(self, input_ids, packing):
        return input_ids + torch.arange(input_ids.shape[1]) / 10, None


def test_the_score_is_read_at_the_end_token_and_a_cut_off_response_gets_one():
    ends = EndTokens(frozenset({8, 9}), pad_id=9)
    model = RewardModel(Positions(), end_id=9, ends=ends, device=torch.device("cpu"))
    sequences = [
        TokenSequence((1, 2), (3, 9)),  # ends: read at position 3
        TokenSequence((1,), (3, 4, 8)),  # ends in another end token: EOS in its place, at position 3
        TokenSequence((1,), (3, 4)),  # cut off: EOS is added at position 3
        TokenSequence((1,), (2, 2, 2, 9)),  # the longest, for whose sake the others are padded
    ]
    assert torch.allclose(model.score(sequences), torch.tensor([9.3, 9.3, 9.3, 9.4]))
