import math

import torch
from torch.testing import assert_close

from rlhf_cli.algo.masking import length_mask, masked_mean, masked_sum, masked_variance, masked_whiten


def test_length_mask():
    expected = torch.tensor([[True, True, False], [False, False, False], [True, True, True]])
    assert torch.equal(length_mask(torch.tensor([2, 0, 3]), 3), expected)


def test_masked_sum_and_mean_ignore_what_is_masked_nan_included():
    values = torch.tensor([[1.0, 2.0, math.nan], [4.0, 999.0, math.inf]])
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    assert_close(masked_sum(values, mask), torch.tensor(7.0))
    assert_close(masked_mean(values, mask), torch.tensor(7.0 / 3))


def test_the_mean_of_one_token_is_that_token():
    assert masked_mean(torch.tensor([7.0, 9.0]), torch.tensor([1, 0])).item() == 7.0


def test_masked_sum_gives_no_gradient_to_masked_places():
    values = torch.tensor([1.0, 2.0], requires_grad=True)
    masked_sum(values, torch.tensor([1, 0])).backward()
    assert values.grad is not None
    assert values.grad.tolist() == [1.0, 0.0]


def test_masked_mean_of_an_empty_mask_is_zero():
    assert masked_mean(torch.ones(2, 2), torch.zeros(2, 2)).item() == 0.0


def test_variance_by_hand():
    """Over 1, 3 and 5: mean 3, squares 4, 0 and 4."""
    values, mask = torch.tensor([[1.0, 3.0], [5.0, math.nan]]), torch.tensor([[1, 1], [1, 0]])
    assert_close(masked_variance(values, mask), torch.tensor(8 / 3))
    assert masked_variance(values, torch.zeros(2, 2)).item() == 0


def test_whitening_by_hand():
    """Over 1, 3 and 5: mean 3, population variance 8/3."""
    whitened = masked_whiten(torch.tensor([[1.0, 3.0], [5.0, 100.0]]), torch.tensor([[1, 1], [1, 0]]))
    unit = 2 / math.sqrt(8 / 3)
    assert_close(whitened, torch.tensor([[-unit, 0.0], [unit, 0.0]]), atol=1e-6, rtol=0)


def test_whitening_constants_gives_zero_not_nan():
    whitened = masked_whiten(torch.full((2, 3), 7.0), torch.ones(2, 3))
    assert torch.equal(whitened, torch.zeros(2, 3))


def test_whitening_can_keep_the_mean():
    """Over 1, 3 and 5, as above, and 3 added again."""
    whitened = masked_whiten(torch.tensor([[1.0, 3.0], [5.0, 9.0]]), torch.tensor([[1, 1], [1, 0]]), shift_mean=False)
    unit = 2 / math.sqrt(8 / 3)
    assert_close(whitened, torch.tensor([[3 - unit, 3.0], [3 + unit, 0.0]]), atol=1e-6, rtol=0)
    assert torch.equal(
        masked_whiten(torch.full((1, 3), 7.0), torch.ones(1, 3), shift_mean=False), torch.full((1, 3), 7.0)
    )


def test_whitening_adds_a_small_number_to_the_variance():
    """Over -1e-4 and 1e-4 the variance is 1e-8, and the number 1e-8: the deviation counts as sqrt(2) * 1e-4."""
    whitened = masked_whiten(torch.tensor([[-1e-4, 1e-4]]), torch.ones(1, 2))
    assert_close(whitened, torch.tensor([[-1.0, 1.0]]) / math.sqrt(2), atol=1e-4, rtol=0)
