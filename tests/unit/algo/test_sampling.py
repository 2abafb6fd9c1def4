import torch
from torch.testing import assert_close

from rlhf_cli.algo.sampling import distance_from_slice, draw, top_p_filter

PROBS = torch.tensor([0.1, 0.6, 0.0, 0.3])


def test_a_uniform_number_picks_the_token_whose_slice_holds_it():
    """Slices: [0, 0.1), [0.1, 0.7), none, [0.7, 1)."""
    uniforms = torch.tensor([0.0, 0.05, 0.15, 0.65, 0.75, 0.999])
    logits = PROBS.log().expand(6, 4)
    assert draw(logits, uniforms, 1.0, 1.0).tolist() == [0, 0, 1, 1, 3, 3]


def test_a_slice_holds_its_lower_end_and_a_token_without_probability_is_never_drawn():
    """Slices: none, [0, 0.5), [0.5, 1); all three numbers are exact in float32."""
    logits = torch.tensor([-torch.inf, 0.0, 0.0]).expand(2, 3)
    assert draw(logits, torch.tensor([0.0, 0.5]), 1.0, 1.0).tolist() == [1, 2]


def test_slices_are_shares_of_what_the_probabilities_sum_to():
    """In float32 a third is 1/3 + 1e-8, so that three sum to 1 + 3e-8; the slices still end at 2/3."""
    uniforms = torch.tensor([2 / 3 - 1e-12, 2 / 3 + 1e-12], dtype=torch.float64)
    assert draw(torch.zeros(2, 3), uniforms, 1.0, 1.0).tolist() == [1, 2]


def test_a_draw_from_logits_that_are_not_numbers_is_still_a_token():
    """Of a model that has diverged: an id beyond the vocabulary would end the process on a GPU."""
    assert draw(torch.full((2, 3), torch.nan), torch.tensor([0.0, 0.5]), 1.0, 1.0).tolist() == [2, 2]


def test_draws_follow_the_distribution_at_the_temperature():
    """At temperature 0.5 the probabilities are squared and renormalised."""
    uniforms = (torch.arange(10_000) + 0.5) / 10_000
    drawn = draw(PROBS.log().expand(10_000, 4), uniforms, 0.5, 1.0)
    expected = PROBS.square() / PROBS.square().sum()
    assert_close(torch.bincount(drawn, minlength=4) / 10_000, expected, atol=2e-4, rtol=0)


def test_a_draw_does_not_depend_on_the_rest_of_its_batch():
    logits, uniforms = torch.randn(5, 50), torch.rand(5)
    together = draw(logits, uniforms, 0.7, 0.9)
    alone = torch.cat([draw(logits[i : i + 1], uniforms[i : i + 1], 0.7, 0.9) for i in range(5)])
    assert torch.equal(together, alone)


def test_top_p_keeps_the_smallest_set_that_reaches_it():
    probs = torch.tensor([[0.1, 0.6, 0.3]])
    assert_close(top_p_filter(probs, 0.5), torch.tensor([[0.0, 1.0, 0.0]]))
    assert_close(top_p_filter(probs, 0.7), torch.tensor([[0.0, 2 / 3, 1 / 3]]))
    assert_close(top_p_filter(probs, 1.0), probs)


def test_a_token_that_reaches_top_p_exactly_is_the_last_one_kept():
    assert top_p_filter(torch.tensor([[0.25, 0.5, 0.25]]), 0.5).tolist() == [[0.0, 1.0, 0.0]]


def test_top_p_1_does_nothing_at_all():
    """Not even a renormalisation: these sum to 0.75."""
    assert top_p_filter(torch.tensor([[0.5, 0.25]]), 1.0).tolist() == [[0.5, 0.25]]


def test_the_distance_of_a_number_from_its_tokens_slice_by_hand():
    """Probabilities 0.2, 0.5, 0.3 at temperature 2 (logits are twice their logarithms): token 1 holds [0.2, 0.7)."""
    logits = 2 * torch.tensor([0.2, 0.5, 0.3]).log().expand(5, 3)
    tokens, numbers = torch.tensor([1, 1, 1, 0, 2]), torch.tensor([0.5, 0.1, 0.9, 0.25, 0.6], dtype=torch.float64)
    got = distance_from_slice(logits, tokens, numbers, temperature=2.0)
    expected = torch.tensor([0.0, 0.1, 0.2, 0.05, 0.1], dtype=torch.float64)
    assert torch.allclose(got, expected, atol=1e-6, rtol=0)


def test_a_drawn_token_has_its_number_in_its_slice():
    generator = torch.Generator().manual_seed(0)
    logits, numbers = torch.randn(200, 50, generator=generator), torch.rand(200, generator=generator).double()
    tokens = draw(logits, numbers, 0.7, 1.0)
    assert distance_from_slice(logits, tokens, numbers, 0.7).max() < 1e-6
    assert distance_from_slice(logits, tokens, numbers, 1.0).mean() > 1e-3
