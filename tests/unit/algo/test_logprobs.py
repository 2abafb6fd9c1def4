import math

import pytest
import torch
from torch.testing import assert_close

from rlhf_cli.algo.logprobs import token_entropy, token_logprobs


def test_logprobs_by_hand_at_two_temperatures():
    """Logits log 1, log 3: probabilities 1/4, 3/4; at temperature 0.5 they are squared: 1/10, 9/10."""
    logits = torch.log(torch.tensor([[[1.0, 3.0], [1.0, 3.0]]]))
    tokens = torch.tensor([[0, 1]])
    expected = torch.log(torch.tensor([[0.25, 0.75]]))
    assert_close(token_logprobs(logits, tokens, 1.0), expected, atol=1e-6, rtol=0)
    assert_close(token_logprobs(logits, tokens, 0.5), torch.log(torch.tensor([[0.1, 0.9]])), atol=1e-6, rtol=0)


def test_entropy_by_hand():
    logits = torch.log(torch.tensor([[[1.0, 1.0], [1.0, 3.0]]]))
    expected = torch.tensor([[math.log(2), -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))]])
    assert_close(token_entropy(logits, 1.0), expected, atol=1e-6, rtol=0)
    assert token_entropy(logits, 0.5)[0, 1] < expected[0, 1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_result_is_float32_and_matches_log_softmax(dtype):
    generator = torch.Generator().manual_seed(0)
    logits = (4 * torch.randn(3, 5, 17, generator=generator)).to(dtype)
    tokens = torch.randint(17, (3, 5), generator=generator)
    expected = torch.log_softmax(logits.float(), -1).gather(2, tokens[:, :, None]).squeeze(2)
    got = token_logprobs(logits, tokens, 1.0)
    assert got.dtype is torch.float32
    assert_close(got, expected, atol=2e-6, rtol=0)
