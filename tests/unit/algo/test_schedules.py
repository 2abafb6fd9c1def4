import pytest

from rlhf_cli.algo.schedules import cosine_factor, decay_progress, linear_factor, warmup_factor
from rlhf_cli.config.sections import OptimConfig, Schedule
from rlhf_cli.engine.base import learning_rate


def test_the_warmup_has_no_update_at_rate_zero_and_ends_at_the_peak():
    assert [warmup_factor(update, 4) for update in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    assert warmup_factor(0, 0) == 1.0


def test_the_decay_starts_at_the_peak_and_is_done_at_the_last_update():
    assert [decay_progress(update, 7, 3) for update in range(7)] == [0.0, 0.0, 0.0, 0.25, 0.5, 0.75, 1.0]
    assert [decay_progress(update, 5, 0) for update in range(5)] == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert [decay_progress(update, 5, 1) for update in range(5)] == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert decay_progress(0, 1, 0) == 0.0
    assert decay_progress(3, 4, 4) == 0.0


def test_linear_and_cosine_fall_from_one_to_the_floor():
    assert [linear_factor(p, 0.2) for p in (0.0, 0.5, 1.0)] == pytest.approx([1.0, 0.6, 0.2])
    assert [cosine_factor(p, 0.2) for p in (0.0, 0.5, 1.0)] == pytest.approx([1.0, 0.6, 0.2])
    assert cosine_factor(1 / 3, 0.0) == pytest.approx(0.75)  # (1 + cos 60 degrees) / 2


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (Schedule.constant, [1.0, 2.0, 2.0, 2.0, 2.0]),
        (Schedule.linear, [1.0, 2.0, 1.5, 1.0, 0.5]),
        (Schedule.cosine, [1.0, 2.0, 1.625, 0.875, 0.5]),
    ],
)
def test_a_run_of_five_updates(schedule, expected):
    """Two of warm-up, then three steps down to a quarter of the peak; cos(60) = 0.5, cos(120) = -0.5."""
    optim = OptimConfig(learning_rate=0.2, schedule=schedule, warmup_ratio=0.4, min_lr_ratio=0.25)
    rates = [learning_rate(optim, update, 5) for update in range(5)]
    assert rates == pytest.approx([rate / 10 for rate in expected])
