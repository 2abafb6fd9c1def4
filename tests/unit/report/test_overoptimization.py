"""The detection of over-optimisation."""

import random

import pytest

from rlhf_cli.report.overoptimization import find_gold_peak, find_overoptimization


def course(num_steps=100, noise=0.0, beta=0.05, gain=2.0, kl_end=40.0):
    """A score that levels off and a KL that grows with the square. score - 0.05 KL is highest where its slope is 0.

    score = gain (1 - (1 - t)^2) with t the share of the run, KL = kl_end t^2: gain (1 - t) = beta kl_end t, which with
    2.0, 0.05 and 40 is at t = 0.5.
    """
    draw = random.Random(3)
    shares = [place / (num_steps - 1) for place in range(num_steps)]
    scores = [gain * (1 - (1 - share) ** 2) + draw.gauss(0, noise) for share in shares]
    return scores, [kl_end * share**2 for share in shares], [beta] * num_steps


@pytest.mark.parametrize(("noise", "slack"), [(0.0, 1), (0.1, 12)])
def test_the_point_is_where_the_objective_is_highest(noise, slack):
    place = find_overoptimization(*course(noise=noise))
    assert place is not None
    assert abs(place - 49.5) <= slack


def test_a_smaller_coefficient_moves_the_point_later():
    """beta 0.025: 2 (1 - t) = t, at two thirds."""
    assert abs(find_overoptimization(*course(beta=0.025)) - 66) <= 1


def test_the_last_coefficient_is_what_counts():
    scores, kls, _ = course()
    assert find_overoptimization(scores, kls, [9.0] * 99 + [0.05]) == find_overoptimization(*course())


@pytest.mark.parametrize(
    "series",
    [
        course(kl_end=4.0),  # the objective still rises at the end
        course(num_steps=9),  # too few to say
        ([1.0] * 50, [1.0] * 50, [0.05] * 50),  # nothing moves
        ([1 - n / 50 for n in range(50)], [float(n) for n in range(50)], [0.05] * 50),  # the score falls
        ([n / 50 for n in range(50)], [50.0 - n for n in range(50)], [-1.0] * 50),  # the KL falls
    ],
)
def test_a_run_without_such_a_point(series):
    assert find_overoptimization(*series) is None


def test_noise_alone_is_not_a_fall():
    draw = random.Random(5)
    found = []
    for _ in range(50):
        scores = [0.01 * n + draw.gauss(0, 1.0) for n in range(60)]
        found.append(find_overoptimization(scores, [0.01 * n for n in range(60)], [0.05] * 60))
    assert sum(place is not None for place in found) <= 10


def rows(*means, spread=0.0, num_prompts=40):
    """Gold scores of each evaluation around a mean. A prompt has the same distance from the mean each time."""
    draw = random.Random(4)
    prompts = [draw.gauss(0, 1) for _ in range(num_prompts)]
    return [[mean + prompt + draw.gauss(0, spread) for prompt in prompts] for mean in means]


def test_a_gold_score_that_has_passed_its_peak():
    """The prompts differ by far more than the fall, so only paired differences can find it."""
    assert find_gold_peak([1, 2, 3, 4], rows(0.1, 0.5, 0.4, 0.2, spread=0.1)) == 1
    assert find_gold_peak([1, 2, 3, 4], rows(0.1, 0.2, 0.3, 0.4)) is None  # the last is the top
    assert find_gold_peak([1, 4, 3, 2], rows(0.1, 0.5, 0.4, 0.2)) is None  # both fall: nothing is being gamed


def test_a_fall_within_its_interval_does_not_count():
    """Twenty evaluations on a plateau: the highest is high by chance, and the last is not clearly lower."""
    level = rows(*[0.5] * 20, spread=1.0)
    assert find_gold_peak(list(range(20)), [*level, level[3]]) is None
    assert find_gold_peak([1, 2], rows(0.3, 0.29, spread=0.5)) is None
