"""Every guard acts after `patience` steps, not earlier, and on nothing else; its state survives
JSON.
"""

import json
import math
import random

import pytest
from omegaconf import OmegaConf

from rlhf_cli.config.errors import InputError
from rlhf_cli.config.guard_options import GuardAction, GuardConfig, PPOGuardConfig
from rlhf_cli.config.objectives import PPOConfig
from rlhf_cli.train.guards import Finding, Guards, Reaction

NAN, INF = math.nan, math.inf

# as in the demo, which is a healthy run
HEALTHY = {
    "score": 0.5,
    "score_std": 0.8,
    "kl": 14.6,
    "kl_per_token": 0.7,
    "reward": -0.2,
    "return": 0.4,
    "value": 0.1,
    "advantage_std": 1.2,
    "entropy": 0.9,
    "response_length": 24.0,
    "eos_rate": 0.9,
    "loss/policy": -0.01,
    "loss/value": 0.4,
    "grad_norm/policy": 6.0,
    "grad_norm/value": 20.0,
    "skipped_updates": 0.0,
    "kl_coef": 0.05,
}
WARM_UP = [{}] * 12  # healthy steps, for baseline and medians


def reactions(changes, config=None):
    """Return the reactions of each step, by guard, when the healthy metrics have these changes from
    step 1.
    """
    guards = Guards(config or PPOGuardConfig())
    return [
        {finding.guard: finding.reaction for finding in guards.check(step, {**HEALTHY, **change})}
        for step, change in enumerate(changes, start=1)
    ]


def findings(changes, config=None):
    """Return all findings of such a run."""
    guards = Guards(config or PPOGuardConfig())
    return [
        finding for step, change in enumerate(changes, start=1) for finding in guards.check(step, {**HEALTHY, **change})
    ]


# option, changed metrics, the metric in question, the message at step 15
FAULTS = [
    pytest.param(
        "kl_limit",
        {"kl": 123.44},
        "kl",
        "kl 123.4 nats a response, over guard.kl_limit=100 since step 13; "
        "lower optim.learning_rate, raise ppo.kl_coef, set ppo.kl_target",
        id="kl",
    ),
    pytest.param(
        "max_skipped_steps",
        {"skipped_updates": 1.0},
        "skipped_updates",
        "skipped_updates 1: not finite, guard.max_skipped_steps=3 since step 13; "
        "lower the learning rate, look for broken data, set model.dtype=float32",
        id="skipped",
    ),
    pytest.param(
        "max_skipped_steps",
        {"score": NAN, "grad_norm/policy": INF},
        "skipped_updates",
        "grad_norm/policy inf, score nan: not finite, guard.max_skipped_steps=3 since step 13; "
        "lower the learning rate, look for broken data, set model.dtype=float32",
        id="not finite",
    ),
    pytest.param(
        "grad_norm_ratio",
        {"grad_norm/policy": 900.0},
        "grad_norm/policy",
        "grad_norm/policy 900, 150 times its median, over guard.grad_norm_ratio=100 since step 13; "
        "lower optim.learning_rate or optim.max_grad_norm, look at the data of these steps",
        id="policy norm",
    ),
    pytest.param(
        "grad_norm_ratio",
        {"grad_norm/value": 2100.0},
        "grad_norm/value",
        "grad_norm/value 2100, 105 times its median, over guard.grad_norm_ratio=100 since step 13; "
        "lower value_optim.learning_rate or value_optim.max_grad_norm, look at the data of these steps",
        id="value norm",
    ),
    pytest.param(
        "length_ratio",
        {"response_length": 5.5, "score": 1.25},
        "response_length",
        "response_length 5.5 instead of 24 in the first steps, with score 0.5 -> 1.25, beyond guard.length_ratio=4 "
        "since step 13; raise ppo.kl_coef, set ppo.min_length and ppo.min_length_penalty",
        id="shorter",
    ),
    pytest.param(
        "length_ratio",
        {"response_length": 97.0, "score": 1.25},
        "response_length",
        "response_length 97 instead of 24 in the first steps, with score 0.5 -> 1.25, beyond guard.length_ratio=4 "
        "since step 13; raise ppo.kl_coef, compare eval/longer_wins_accuracy of the reward model with its accuracy",
        id="longer",
    ),
    pytest.param(
        "min_entropy",
        {"entropy": 0.004},
        "entropy",
        "entropy 0.004 nats a token, under guard.min_entropy=0.01 since step 13; "
        "lower optim.learning_rate, raise ppo.kl_coef or ppo.entropy_coef",
        id="entropy",
    ),
    pytest.param(
        "min_eos_rate",
        {"eos_rate": 0.03125},
        "eos_rate",
        "eos_rate 0.03125 although most responses used to end, under guard.min_eos_rate=0.05 since step 13; "
        "raise rollout.max_new_tokens, ppo.missing_eos_penalty or ppo.kl_coef",
        id="eos",
    ),
    pytest.param(
        "value_limit",
        {"value": -260.0},
        "value",
        "value -260, 200 times the reward's size, over guard.value_limit=100 since step 13; "
        "lower value_optim.learning_rate, set ppo.value_warmup_steps or ppo.reward_clip",
        id="value",
    ),
    pytest.param(
        "value_limit",
        {"return": 130.5},
        "return",
        "return 130.5, 100.4 times the reward's size, over guard.value_limit=100 since step 13; "
        "lower value_optim.learning_rate, set ppo.value_warmup_steps or ppo.reward_clip",
        id="return",
    ),
    pytest.param(
        "value_limit",
        {"advantage_std": 1300.0},
        "advantage_std",
        "advantage_std 1300, 1000 times the reward's size, over guard.value_limit=100 since step 13; "
        "lower value_optim.learning_rate, set ppo.value_warmup_steps or ppo.reward_clip",
        id="advantages",
    ),
]


@pytest.mark.parametrize(("guard", "fault", "metric", "message"), FAULTS)
def test_a_guard_stops_the_run_at_the_third_consecutive_step_and_says_why(guard, fault, metric, message):
    found = findings([*WARM_UP, fault, fault, fault])
    assert [finding.guard for finding in found] == [guard] * 3
    assert [finding.reaction for finding in found] == [Reaction.wait, Reaction.wait, Reaction.stop]
    assert [finding.since for finding in found] == [13, 13, 13]
    assert found[-1].metric == metric
    assert str(found[-1]) == message


@pytest.mark.parametrize(("guard", "fault", "metric", "message"), FAULTS)
def test_a_step_without_the_fault_restarts_the_count(guard, fault, metric, message):
    steps = reactions([*WARM_UP, fault, fault, {}, fault, fault, {}])
    once = {guard: Reaction.wait}
    assert steps[12:] == [once, once, {}, once, once, {}]


@pytest.mark.parametrize(("guard", "fault", "metric", "message"), FAULTS)
def test_a_guard_that_is_off_sees_nothing(guard, fault, metric, message):
    off = 0 if guard == "max_skipped_steps" else None
    assert findings([*WARM_UP, *[fault] * 5], PPOGuardConfig(**{guard: off})) == []


@pytest.mark.parametrize(("guard", "fault", "metric", "message"), FAULTS)
def test_a_warning_is_given_once_and_again_after_a_recovery(guard, fault, metric, message):
    warns = PPOGuardConfig(action=GuardAction.warn)
    steps = reactions([*WARM_UP, *[fault] * 5, {}, *[fault] * 3], warns)
    assert [step.get(guard) for step in steps[12:]] == [
        *[Reaction.wait, Reaction.wait, Reaction.warn, Reaction.wait, Reaction.wait],
        None,
        *[Reaction.wait, Reaction.wait, Reaction.warn],
    ]


def test_patience_of_one_acts_at_once():
    assert reactions([{"kl": 101.0}], PPOGuardConfig(patience=1)) == [{"kl_limit": Reaction.stop}]


def test_max_skipped_steps_has_its_own_patience():
    config = PPOGuardConfig(patience=5, max_skipped_steps=2)
    assert reactions([{"loss/value": NAN}] * 2, config)[1] == {"max_skipped_steps": Reaction.stop}


def test_a_limit_itself_is_not_passed():
    at_the_limits = {"kl": 100.0, "entropy": 0.01, "eos_rate": 0.05, "grad_norm/policy": 600.0, "score": 1.25}
    shortest, longest = {"response_length": 6.0}, {"response_length": 96.0}
    assert findings([*WARM_UP, {**at_the_limits, **shortest}, {**at_the_limits, **longest}]) == []


def test_a_run_that_is_resumed_after_a_stop_has_its_full_patience_again():
    steps = reactions([{"kl": 200.0}] * 6)
    assert [step["kl_limit"] for step in steps] == [Reaction.wait, Reaction.wait, Reaction.stop] * 2


def test_kl_coef_is_raised_a_limited_number_of_times_before_the_action():
    config = PPOGuardConfig(patience=2, kl_raises=3)
    steps = reactions([{"kl": 150.0}] * 5, config)
    raises = [Reaction.raise_kl_coef] * 3
    assert [step["kl_limit"] for step in steps] == [Reaction.wait, *raises, Reaction.stop]


def test_a_kl_that_comes_down_ends_the_raises():
    config = PPOGuardConfig(patience=1, kl_raises=3, action=GuardAction.warn)
    steps = reactions([{"kl": 150.0}] * 2 + [{}] + [{"kl": 150.0}] * 5, config)
    raised = Reaction.raise_kl_coef
    assert [step.get("kl_limit") for step in steps] == [
        *[raised, raised, None],
        *[raised, raised, raised, Reaction.warn, Reaction.wait],
    ]


def test_only_the_kl_guard_raises_kl_coef():
    config = PPOGuardConfig(patience=1, kl_raises=3)
    assert reactions([{"entropy": 0.0}], config) == [{"min_entropy": Reaction.stop}]


def demo_like(step):
    """A healthy run: the course of the demo over 300 steps, with noise."""
    noise = random.Random(step).uniform
    share = min(1.0, step / 100)
    return {
        **HEALTHY,
        "score": -1.0 + 2.0 * share + noise(-0.4, 0.4),
        "kl": 25.0 * share + noise(-1.0, 1.0),
        "reward": -1.0 + share + noise(-0.5, 0.5),
        "entropy": 3.0 - 2.5 * share + noise(-0.1, 0.1),
        "response_length": 35.0 - 16.0 * share + noise(-3.0, 3.0),
        "eos_rate": min(1.0, 0.3 + 0.7 * share + noise(-0.2, 0.2)),
        "grad_norm/policy": 6.0 * 10 ** noise(-0.5, 0.5),
        "grad_norm/value": 20.0 * 10 ** noise(-0.5, 0.5),
    }


def test_a_healthy_run_passes_no_limit():
    guards = Guards(PPOGuardConfig())
    assert [finding for step in range(1, 301) for finding in guards.check(step, demo_like(step))] == []


def test_a_random_model_that_never_ends_its_responses_passes_no_limit():
    """As conf=tiny: eos_rate 0 to 0.25, entropy ln 257, scores of 0.1, the first values far off."""
    guards = Guards(PPOGuardConfig())
    for step in range(1, 101):
        noise = random.Random(step).uniform
        tiny = {"score": noise(-0.1, 0.1), "score_std": 0.1, "reward": noise(-0.1, 0.1), "kl": noise(-1, 1)}
        tiny |= {"entropy": 5.55, "eos_rate": random.Random(step).choice([0.0, 0.125, 0.25]), "value": noise(-9, 9)}
        assert guards.check(step, {**HEALTHY, **tiny}) == []


def test_a_single_spike_does_nothing():
    spike = {"grad_norm/policy": 1e6, "kl": 1e4, "entropy": 0.0, "value": 1e9}
    steps = reactions([*WARM_UP, spike, {}, spike, {}])
    assert {ask for step in steps for ask in step.values()} == {Reaction.wait}


def test_a_gradient_norm_is_judged_after_ten_others_by_the_last_fifty():
    big = {"grad_norm/policy": 700.0}
    assert reactions([{}] * 9 + [big] * 3)[9:] == [
        {},
        {"grad_norm_ratio": Reaction.wait},
        {"grad_norm_ratio": Reaction.wait},
    ]
    assert reactions([{}] * 50 + [big] * 24)[-1] != {}  # 50 norms: 27 of 6 and 23 of 700
    assert reactions([{}] * 50 + [big] * 30, PPOGuardConfig(patience=40))[-1] == {}  # 21 of 6, 29 of 700


def test_a_median_is_that_of_the_fifty_norms_before():
    """The median of five 1s and five 3s is 2: 250 is 125 times that, and 83 times the median of all
    eleven.
    """
    norms = [{"grad_norm/policy": norm} for norm in (1.0, 3.0) * 5]
    found = findings([*norms, {"grad_norm/policy": 250.0}])
    assert [finding.problem for finding in found] == [
        "grad_norm/policy 250, 125 times its median, over guard.grad_norm_ratio=100"
    ]
    guards = Guards(GuardConfig())
    for step in range(1, 61):
        guards.check(step, {"grad_norm": float(step)})
    assert guards.state_dict()["norms"] == {"grad_norm": [float(step) for step in range(11, 61)]}


def test_norms_of_zero_have_no_ratio():
    assert findings([{"grad_norm/policy": 0.0}] * 12 + [{"grad_norm/policy": 5.0}] * 5) == []


def test_length_alone_or_score_alone_is_no_fault():
    no_gain = {"response_length": 2.0, "score": 0.5}
    no_change = {"response_length": 7.0, "score": 9.0}
    assert findings([*WARM_UP, *[no_gain] * 5, *[no_change] * 5]) == []


def test_the_first_steps_are_those_of_baseline_steps():
    """Lengths 10 and 30: mean 20, so 81 is more than 4 times that; scores 0 and 1: mean 0.5."""
    first = [{"response_length": 10.0, "score": 0.0}, {"response_length": 30.0, "score": 1.0}]
    config = PPOGuardConfig(baseline_steps=2, patience=1)
    found = findings([*first, {"response_length": 80.0, "score": 0.6}, {"response_length": 81.0, "score": 0.6}], config)
    assert [(finding.since, finding.reaction) for finding in found] == [(4, Reaction.stop)]
    assert "response_length 81 instead of 20 in the first steps, with score 0.5 -> 0.6" in found[0].problem


def test_ending_is_learnt_before_it_is_missed():
    """The average over about ten steps must reach one half. At a rate of 1 it does in the seventh
    step: 1 - 0.9^7 = 0.52.
    """
    low = {"eos_rate": 0.0}
    assert findings([{"eos_rate": 1.0}] * 6 + [low] * 5) == []
    assert len(findings([{"eos_rate": 1.0}] * 7 + [low] * 5)) == 5
    assert findings([{"eos_rate": 0.45}] * 200 + [low] * 5) == []


def test_what_a_response_is_worth_includes_penalties_and_large_scores():
    """The limit is 1000 x 100 if the reward is -1000, or if the scores are about 1000 or -1000."""
    assert findings([{"reward": -1000.0, "return": -90_000.0}] * 5) == []
    assert findings([{"score": 600.0, "score_std": 400.0, "value": 90_000.0}] * 5) == []
    assert findings([{"score": -600.0, "score_std": 400.0, "value": -90_000.0}] * 5) == []
    assert findings([{"score": 0.0, "score_std": 0.001, "reward": 0.0, "value": 99.0}] * 5) == []  # at least 1


def test_the_reward_model_has_only_the_guards_of_both_commands():
    guards = Guards(GuardConfig())
    metrics = {"loss": 0.6, "accuracy": 0.7, "margin": 0.2, "lr": 1e-5, "kl": 1e9, "entropy": 0.0}
    for step in range(1, 13):
        assert guards.check(step, {**metrics, "grad_norm": 2.0, "skipped_updates": 0.0}) == []
    found = [guards.check(step, {**metrics, "grad_norm": 300.0, "skipped_updates": 0.0}) for step in (13, 14, 15)]
    assert [str(finding) for finding in found[-1]] == [
        "grad_norm 300, 150 times its median, over guard.grad_norm_ratio=100 since step 13; "
        "lower optim.learning_rate or optim.max_grad_norm, look at the data of these steps"
    ]
    assert found[-1][0].reaction is Reaction.stop
    bad = [guards.check(step, {**metrics, "grad_norm": INF, "skipped_updates": 1.0}) for step in (16, 17, 18)]
    assert [finding.reaction for step in bad for finding in step] == [Reaction.wait, Reaction.wait, Reaction.stop]


@pytest.mark.parametrize("bad", [NAN, INF, -INF, None], ids=["nan", "inf", "-inf", "missing"])
@pytest.mark.parametrize("metric", ["kl", "entropy", "eos_rate", "response_length", "score", "grad_norm/policy"])
def test_a_metric_that_is_missing_or_not_finite_changes_no_count(metric, bad):
    config = PPOGuardConfig(max_skipped_steps=0)
    fault = {"kl": 200.0, "entropy": 0.0, "eos_rate": 0.0, "response_length": 1.0, "score": 2.0}
    fault |= {"grad_norm/policy": 1e4}
    guards, plain = Guards(config), Guards(config)
    for step in range(1, 13):
        guards.check(step, HEALTHY)
        plain.check(step, HEALTHY)
    broken = {**HEALTHY, **fault, metric: bad}
    if bad is None:
        del broken[metric]
    for step, metrics in enumerate([{**HEALTHY, **fault}, broken, {**HEALTHY, **fault}], start=13):
        found = guards.check(step, metrics)
    expected = [plain.check(step, {**HEALTHY, **fault}) for step in (13, 15)][-1]
    stopped = {finding.metric for finding in found if finding.reaction is Reaction.stop}
    waits = {"response_length"} if metric == "score" else {metric}
    assert stopped == {finding.metric for finding in expected} - waits
    assert [finding for finding in found if finding.metric in waits] == [
        finding for finding in expected if finding.metric in waits
    ]


def test_a_baseline_and_medians_are_not_poisoned():
    broken = [dict.fromkeys(HEALTHY, bad) for bad in (NAN, INF, -INF)]
    guards = Guards(PPOGuardConfig())
    for step, metrics in enumerate([{}, *broken, *[HEALTHY] * 12], start=1):
        guards.check(step, metrics)
    state = guards.state_dict()
    assert json.loads(json.dumps(state, allow_nan=False)) == state
    assert state["baseline_steps"] == 10
    assert (state["baseline_score"], state["baseline_length"]) == (5.0, 240.0)
    assert state["norms"] == {"grad_norm/policy": [6.0] * 12, "grad_norm/value": [20.0] * 12}


def wild(seed, num_steps):
    """A series that exceeds the limit of every guard now and then."""
    draw = random.Random(seed)
    for _ in range(num_steps):
        metrics = {
            "score": draw.gauss(0, 1),
            "score_std": draw.random(),
            "kl": draw.choice([20.0, 90.0, 110.0, 200.0]),
            "reward": draw.gauss(0, 3),
            "return": draw.gauss(0, 200),
            "value": draw.gauss(0, 200),
            "entropy": draw.choice([0.001, 0.002, 1.0]),
            "response_length": draw.choice([2.0, 30.0, 300.0]),
            "eos_rate": draw.choice([0.0, 0.9, 1.0]),
            "grad_norm/policy": 10 ** draw.uniform(-2, 3),
            "grad_norm/value": 10 ** draw.uniform(-2, 3),
            "skipped_updates": draw.choice([0.0, 1.0]),
        }
        for name in draw.sample(sorted(metrics), 2):
            metrics[name] = draw.choice([NAN, INF])
        metrics.pop(draw.choice(sorted(metrics)))
        yield metrics


@pytest.mark.parametrize("action", GuardAction)
@pytest.mark.parametrize("seed", range(5))
def test_a_resumed_run_finds_the_same(seed, action):
    config = PPOGuardConfig(patience=2, kl_raises=2, action=action, grad_norm_ratio=5.0, value_limit=20.0)
    through, resumed = Guards(config), Guards(config)
    seen = set()
    for step, metrics in enumerate(wild(seed, 200), start=1):
        expected = through.check(step, metrics)
        assert resumed.check(step, metrics) == expected
        seen |= {(finding.guard, finding.reaction) for finding in expected}
        state = json.loads(json.dumps(resumed.state_dict()))
        resumed = Guards(config)
        resumed.load_state_dict(state)
    acts = Reaction.stop if action is GuardAction.stop else Reaction.warn
    options = {"kl_limit", "max_skipped_steps", "grad_norm_ratio", "length_ratio", "min_entropy", "min_eos_rate"}
    assert {guard for guard, reaction in seen if reaction is acts} == options | {"value_limit"}
    assert ("kl_limit", Reaction.raise_kl_coef) in seen


def test_a_saved_state_is_not_changed_by_what_follows():
    guards = Guards(PPOGuardConfig())
    guards.check(1, {**HEALTHY, "kl": 200.0})
    state = guards.state_dict()
    text = json.dumps(state)
    other = Guards(PPOGuardConfig())
    other.load_state_dict(state)
    for step in (2, 3):
        guards.check(step, {**HEALTHY, "kl": 200.0})
        other.check(step, {**HEALTHY, "kl": 200.0})
    assert json.dumps(state) == text


def test_a_finding_is_a_value():
    found = findings([{"kl": 200.0}])
    assert found == [
        Finding(
            guard="kl_limit",
            metric="kl",
            since=1,
            reaction=Reaction.wait,
            problem="kl 200 nats a response, over guard.kl_limit=100",
            remedy="lower optim.learning_rate, raise ppo.kl_coef, set ppo.kl_target",
        )
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"patience": 0}, "guard.patience must be 1 or more, got 0"),
        ({"max_skipped_steps": -1}, "guard.max_skipped_steps must be 0 or more, got -1"),
        ({"grad_norm_ratio": 0.5}, "guard.grad_norm_ratio must be between 1 and 1e+09, got 0.5"),
        ({"grad_norm_ratio": NAN}, "guard.grad_norm_ratio must be between 1 and 1e+09, got nan"),
        ({"kl_limit": 0.0}, "guard.kl_limit must be between 1e-06 and 1e+09, got 0.0"),
        ({"kl_limit": INF}, "guard.kl_limit must be between 1e-06 and 1e+09, got inf"),
        ({"kl_raises": -1}, "guard.kl_raises must be between 0 and 20, got -1"),
        ({"kl_raises": 21}, "guard.kl_raises must be between 0 and 20, got 21"),
        ({"kl_raises": 1, "kl_limit": None}, "guard.kl_raises must be 0 if guard.kl_limit is null, got 1"),
        ({"length_ratio": 0.9}, "guard.length_ratio must be between 1 and 1e+09, got 0.9"),
        ({"baseline_steps": 0}, "guard.baseline_steps must be 1 or more, got 0"),
        ({"min_entropy": -0.1}, "guard.min_entropy must be between 0 and 20, got -0.1"),
        ({"min_eos_rate": 0.6}, "guard.min_eos_rate must be between 0 and 0.5, got 0.6"),
        ({"value_limit": 0.0}, "guard.value_limit must be between 1 and 1e+09, got 0.0"),
    ],
)
def test_an_option_out_of_range_is_refused(options, message):
    with pytest.raises(InputError) as error:
        PPOGuardConfig(**options)
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("guard", "ppo", "message"),
    [
        (
            {"kl_raises": 1},
            {"kl_coef": 0.0},
            "guard.kl_raises must be 0 if ppo.kl_coef is 0, which no factor can raise, got 1",
        ),
        ({"kl_limit": 10.0}, {"kl_target": 10.0}, "guard.kl_limit must be above ppo.kl_target 10.0, or null, got 10.0"),
    ],
)
def test_a_guard_that_does_not_fit_the_objective_is_refused(guard, ppo, message):
    with pytest.raises(InputError) as error:
        PPOGuardConfig(**guard).check(PPOConfig(**ppo))
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("guard", "ppo"),
    [
        ({"kl_raises": 1}, {"kl_coef": 0.05}),
        ({}, {"kl_coef": 0.0}),
        ({"kl_limit": 10.0}, {"kl_target": 9.0}),
        ({"kl_limit": None}, {"kl_target": 500.0}),
    ],
)
def test_a_guard_that_fits_is_not(guard, ppo):
    PPOGuardConfig(**guard).check(PPOConfig(**ppo))


def test_options_read_from_yaml():
    text = "{action: warn, kl_limit: null, grad_norm_ratio: 20, kl_raises: 0}"
    config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(PPOGuardConfig), OmegaConf.create(text)))
    assert config == PPOGuardConfig(action=GuardAction.warn, kl_limit=None, grad_norm_ratio=20.0)
