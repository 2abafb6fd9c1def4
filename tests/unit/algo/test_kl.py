import math

import pytest
import torch
from torch.testing import assert_close

from rlhf_cli.algo.kl import adapted_kl_coef, is_clearly_negative, kl_k1, kl_k2, kl_k3

P = torch.log(torch.tensor([0.5, 0.2]))
Q = torch.log(torch.tensor([0.25, 0.4]))


def test_estimators_by_hand():
    """log(p/q) is log 2 and -log 2; k3 = q/p - 1 + log(p/q)."""
    log2 = math.log(2)
    assert_close(kl_k1(P, Q), torch.tensor([log2, -log2]), atol=1e-6, rtol=0)
    assert_close(kl_k2(P, Q), torch.tensor([log2**2 / 2, log2**2 / 2]), atol=1e-6, rtol=0)
    assert_close(kl_k3(P, Q), torch.tensor([0.5 - 1 + log2, 2 - 1 - log2]), atol=1e-6, rtol=0)


@pytest.mark.parametrize("estimator", [kl_k1, kl_k3])
def test_k1_and_k3_are_unbiased(estimator):
    """The expectation over p of the estimate is sum p log(p/q), for a whole distribution."""
    p, q = torch.tensor([0.6, 0.3, 0.1]), torch.tensor([0.2, 0.3, 0.5])
    expected = (p * (p.log() - q.log())).sum()
    assert_close((p * estimator(p.log(), q.log())).sum(), expected, atol=1e-6, rtol=0)


def test_k2_and_k3_are_never_negative():
    logprobs, other = torch.randn(1000).neg().abs(), torch.randn(1000)
    assert kl_k2(logprobs, other).min() >= 0
    assert kl_k3(logprobs, other).min() >= 0


@pytest.mark.parametrize("estimator", [kl_k1, kl_k2, kl_k3])
def test_equal_distributions_have_no_divergence(estimator):
    assert torch.equal(estimator(P, P), torch.zeros(2))


@pytest.mark.parametrize(
    ("kl", "factor"),
    [
        (6.0, 1.0),  # on target
        (6.6, 1 + 0.1 * 64 / 1000),  # a tenth above
        (5.4, 1 - 0.1 * 64 / 1000),
        (60.0, 1 + 0.2 * 64 / 1000),  # the error is clipped
        (0.0, 1 - 0.2 * 64 / 1000),
    ],
)
def test_the_controller_moves_the_coefficient_towards_the_target(kl, factor):
    assert adapted_kl_coef(0.05, kl, target=6.0, num_responses=64, horizon=1000) == pytest.approx(
        0.05 * factor, rel=1e-12
    )


def test_five_standard_errors_make_a_mean_clearly_negative():
    """-3 and -1: mean -2, deviation sqrt(2), standard error 1: five of them reach above 0. -5 and -4.9 do not."""
    assert not is_clearly_negative(torch.tensor([-3.0, -1.0]))
    assert is_clearly_negative(torch.tensor([-5.0, -4.9]))
    assert not is_clearly_negative(torch.tensor([5.0, 4.9]))
    assert not is_clearly_negative(torch.tensor([-1.0, -0.5, 0.5, 1.0]))


def test_the_bound_of_a_clearly_negative_mean_by_hand():
    """Four numbers, 1 above and below their mean: a variance of 4/3, a standard error of sqrt(1/3); five are 2.887."""
    spread = torch.tensor([-1.0, 1.0, -1.0, 1.0])
    assert is_clearly_negative(spread - 2.90)
    assert not is_clearly_negative(spread - 2.88)
    assert not is_clearly_negative(torch.zeros(4))
