import torch
from torch.testing import assert_close

from rlhf_cli.algo.normalise import normalised_head


def hidden_states(num_rows, shift):
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(num_rows, 8, generator=generator)
    return rows + shift * torch.nn.functional.one_hot(torch.tensor(3), 8)


def test_scores_have_mean_0_and_deviation_1():
    hidden, weight = hidden_states(200, 5.0), torch.linspace(-1, 1, 8)
    scores = hidden.double() @ normalised_head(weight, hidden).double()
    assert_close(scores.mean(), torch.tensor(0.0, dtype=torch.float64), atol=1e-5, rtol=0)
    assert_close(scores.std(correction=0), torch.tensor(1.0, dtype=torch.float64), atol=1e-5, rtol=0)


def test_with_a_constant_direction_it_is_a_shift_and_a_scale_and_no_order_changes():
    """One coordinate is always 5, as under a LayerNorm with bias: the new scores are an affine map of the old."""
    hidden, weight = hidden_states(200, 5.0), torch.linspace(-1, 1, 8)
    hidden[:, 3] = 5.0
    old, new = hidden @ weight, hidden @ normalised_head(weight, hidden)
    assert_close(new, (old - old.mean()) / old.std(correction=0), atol=1e-4, rtol=0)
    assert torch.equal(old.argsort(), new.argsort())


def test_a_common_direction_keeps_nearly_every_order():
    """Rows far from the origin, as those of language models are: pairs change sides only when nearly tied."""
    hidden, weight = hidden_states(400, 50.0), torch.linspace(-1, 1, 8)
    old, new = hidden @ weight, hidden @ normalised_head(weight, hidden)
    same = (old[:200] > old[200:]) == (new[:200] > new[200:])
    assert same.float().mean() > 0.95
