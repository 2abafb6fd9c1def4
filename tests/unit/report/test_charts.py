"""Which metrics share a plot."""

from rlhf_cli.report.html.charts import PPO, SPEED, draw_other_metrics


def test_a_reward_source_is_drawn_with_its_evaluations():
    steps = [{"step": n, "score": 1.0, "reward/far": float(n), "time/step": 1.0} for n in (1, 2)]
    evaluations = [{"step": 2, "eval/score": 1.0, "eval/reward/far": 3.0, "eval/greedy_reward/far": 4.0}]
    [plot] = draw_other_metrics((*PPO, *SPEED), steps, evaluations)
    assert plot.title == "reward/far"
    assert [(trace["name"], trace["y"]) for trace in plot.traces] == [
        ("reward/far", [1.0, 2.0]),
        ("eval/reward/far", [3.0]),
        ("eval/greedy_reward/far", [4.0]),
    ]
