"""Checkpoints between two steps: periodic, after a signal or a guard's stop, and the best one."""

import json
import math
import signal
import subprocess
import sys

import pytest

from rlhf_cli.config.errors import GuardError, InputError, Interrupted, NonFiniteError
from rlhf_cli.config.guard_options import PPOGuardConfig
from rlhf_cli.config.sections import CheckpointConfig
from rlhf_cli.engine import distributed
from rlhf_cli.report.reporter import Reporter
from rlhf_cli.system.signals import StopSignals
from rlhf_cli.system.watchdog import PROGRESS
from rlhf_cli.train.guards import Finding, Guards, Reaction
from rlhf_cli.train.step_hooks import StepHooks
from tests.conftest import REPOSITORY, child_environment

pytestmark = pytest.mark.usefixtures("one_rank")


class Saved:
    """Replaces Checkpoints: records what was saved, as JSON would return it."""

    def __init__(self):
        self.states, self.best, self.dropping = [], [], []
        self.best_step = None

    def save(self, state, best=False, drop_oldest=True):
        self.states.append(json.loads(json.dumps(state)))
        self.best.append(best)
        self.dropping.append(drop_oldest)
        self.best_step = state["step"] if best else self.best_step

    @property
    def steps(self):
        return [state["step"] for state in self.states]


class FixedGuards:
    """Replaces Guards: each check returns the given findings."""

    def __init__(self, *findings):
        self.findings = findings

    def check(self, _step, _metrics):
        return self.findings

    def state_dict(self):
        return {"rows": 1}


def finding(reaction, guard="kl_limit"):
    return Finding(guard=guard, metric="kl", problem="kl 2", remedy="do less", since=3, reaction=reaction)


INPUTS = {"data.train": "0a", "model.path": "1b"}


def make_hooks(guards=None, signals=None, inputs=INPUTS, **options):
    config = CheckpointConfig(**{"every_steps": 2, **options})
    guards = guards or FixedGuards()
    return StepHooks(config, guards, Saved(), Reporter(speaks=True), signals or StopSignals(), inputs)


def go(hooks, first, last, metrics=lambda step: {}):
    """Call the hooks as a trainer's fit does, over some steps."""
    for step in range(first, last + 1):
        hooks.before_step({"step": step - 1, "kl_coef": 0.5})
        hooks.check(step, metrics(step))
        hooks.after_step({"step": step, "kl_coef": 0.5}, metrics(step))


@pytest.mark.parametrize(("every", "saved"), [(1, [1, 2, 3, 4, 5, 6, 7]), (3, [3, 6]), (7, [7]), (8, []), (0, [])])
def test_a_checkpoint_is_saved_at_the_configured_interval(every, saved):
    hooks = make_hooks(every_steps=every)
    go(hooks, 1, 7)
    assert hooks.checkpoints.steps == saved
    assert not any(hooks.checkpoints.best)
    assert all(hooks.checkpoints.dropping)


def test_a_checkpoint_has_the_trainers_state_the_guards_and_the_best():
    hooks = make_hooks()
    go(hooks, 1, 2)
    own = {"best": None, "best_of": [None, False], "guards": {"rows": 1}, "inputs": INPUTS}
    assert hooks.checkpoints.states == [{"step": 2, "kl_coef": 0.5, **own}]


def test_the_time_of_saving_is_measured():
    hooks = make_hooks()
    go(hooks, 1, 1)
    assert "checkpoint" not in hooks.report._seconds
    go(hooks, 2, 2)
    assert hooks.report._seconds["checkpoint"] >= 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
@pytest.mark.parametrize(("every", "saved"), [(5, [3]), (3, [3]), (2, [2, 3]), (0, [3])])
def test_a_signal_ends_the_run_with_one_checkpoint(number, every, saved):
    """If that step has a checkpoint already, it is not written again."""
    hooks = make_hooks(every_steps=every)
    go(hooks, 1, 3)
    hooks.signals._receive(number, None)
    with pytest.raises(Interrupted) as caught:
        hooks.before_step({"step": 3, "kl_coef": 0.5})
    assert str(caught.value) == (
        f"stopped by {number.name} after step 3, checkpoint saved; continue with run.resume=true"
    )
    assert caught.value.code == 75
    assert hooks.checkpoints.steps == saved
    assert hooks.checkpoints.dropping == [every and step % every == 0 for step in saved]


def test_a_signal_before_the_first_step_saves_that():
    hooks = make_hooks()
    hooks.signals._receive(signal.SIGINT, None)
    with pytest.raises(Interrupted, match="stopped by SIGINT after step 0, checkpoint saved"):
        hooks.before_step({"step": 0})
    assert hooks.checkpoints.steps == [0]


@pytest.mark.parametrize(("every", "saved"), [(1, [1, 2, 3]), (2, [2, 3]), (3, [3]), (5, [3]), (0, [])])
def test_after_the_last_step_there_is_a_checkpoint_of_it(every, saved):
    """Unless checkpoints are switched off; one that was due is not written again."""
    hooks = make_hooks(every_steps=every, best_metric="score")
    go(hooks, 1, 3)
    hooks.after_last_step({"step": 3, "kl_coef": 0.5})
    assert hooks.checkpoints.steps == saved
    assert all(hooks.checkpoints.dropping)
    assert not any(hooks.checkpoints.best)


@pytest.mark.parametrize(("every", "dropping"), [(0, [False]), (3, [True]), (5, [False])])
def test_a_signal_during_the_last_step_ends_the_run_before_the_evaluation(every, dropping):
    hooks = make_hooks(every_steps=every)
    go(hooks, 1, 3)
    hooks.signals._receive(signal.SIGTERM, None)
    with pytest.raises(Interrupted, match="stopped by SIGTERM after step 3, checkpoint saved"):
        hooks.after_last_step({"step": 3, "kl_coef": 0.5})
    assert hooks.checkpoints.steps == [3]
    assert hooks.checkpoints.dropping == dropping


def test_a_signal_that_was_ignored_when_the_process_began_stays_ignored():
    """`nohup rlhf train-ppo`: a closed terminal does not end it, and it reacts to all other
    signals.
    """
    body = """
import os, signal
from rlhf_cli.system.signals import STOPPING, StopSignals
stop = StopSignals()
stop.install()
os.kill(os.getpid(), signal.SIGHUP)
print(stop.received, signal.getsignal(signal.SIGHUP) is signal.SIG_IGN)
print([number.name for number in STOPPING if signal.getsignal(number) == stop._receive])
os.kill(os.getpid(), signal.SIGTERM)
print(stop.received.name)
"""
    ended = subprocess.run(
        [sys.executable, "-c", body],
        cwd=REPOSITORY,
        env=child_environment(),
        capture_output=True,
        text=True,
        timeout=20,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN),
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout == "None True\n['SIGTERM', 'SIGINT', 'SIGUSR1']\nSIGTERM\n"


def test_a_signal_during_a_step_lets_it_finish():
    hooks = make_hooks(every_steps=4)
    go(hooks, 1, 2)
    hooks.before_step({"step": 2})
    hooks.signals._receive(signal.SIGTERM, None)
    hooks.check(3, {})
    hooks.after_step({"step": 3}, {})
    assert hooks.checkpoints.steps == []
    with pytest.raises(Interrupted, match="after step 3"):
        hooks.before_step({"step": 3})


def test_a_signal_that_reached_another_rank_ends_this_one_too(monkeypatch):
    """This rank received none; the message names the signal of the other rank."""
    monkeypatch.setattr(distributed, "any_rank", lambda flag: not flag)
    monkeypatch.setattr(distributed, "gather_all", lambda mine: [mine, signal.SIGHUP])
    hooks = make_hooks()
    with pytest.raises(Interrupted, match="stopped by SIGHUP after step 1"):
        hooks.before_step({"step": 1})
    assert hooks.checkpoints.steps == [1]


def test_every_step_counts_as_progress_for_the_watchdog():
    hooks = make_hooks()
    before = PROGRESS.ticked_at
    hooks.before_step({"step": 6})
    assert str(PROGRESS) == "in step of step 7"
    assert PROGRESS.ticked_at > before


@pytest.mark.parametrize(
    ("guard", "error", "code"), [("kl_limit", GuardError, 10), ("max_skipped_steps", NonFiniteError, 6)]
)
@pytest.mark.parametrize("every", [0, 1, 5])
def test_a_guard_stops_the_run_once_the_step_is_saved(guard, error, code, every):
    hooks = make_hooks(FixedGuards(finding(Reaction.stop, guard)), every_steps=every)
    assert hooks.check(5, {}) == 1.0
    assert hooks.checkpoints.steps == []
    with pytest.raises(error) as caught:
        hooks.after_step({"step": 5}, {})
    assert type(caught.value) is error
    assert caught.value.code == code
    assert str(caught.value) == (
        "a guard stopped the run at step 5, checkpoint saved: kl 2 since step 3; do less; continue with "
        "run.resume=true and other settings, or guard.action=warn, or from an earlier checkpoint "
        "(run.resume=PATH; `rlhf checkpoints` lists them)"
    )
    assert hooks.checkpoints.steps == [5]
    assert hooks.checkpoints.dropping == [False]  # the user may continue from an older one


@pytest.mark.parametrize(("every", "best"), [(0, False), (2, False), (1, True), (5, True)])
def test_a_step_that_a_guard_stops_can_be_the_best_if_a_checkpoint_is_due(every, best):
    hooks = make_hooks(FixedGuards(finding(Reaction.stop)), every_steps=every, best_metric="score")
    hooks.check(5, {"score": 1.0})
    with pytest.raises(GuardError):
        hooks.after_step({"step": 5}, {"score": 1.0})
    assert hooks.checkpoints.best == [best]
    assert hooks.checkpoints.states[0]["best"] == (1.0 if best else None)


def test_of_two_guards_that_stop_the_first_is_reported():
    hooks = make_hooks(
        FixedGuards(
            finding(Reaction.warn), finding(Reaction.stop, "min_entropy"), finding(Reaction.stop, "max_skipped_steps")
        )
    )
    hooks.check(1, {})
    with pytest.raises(GuardError):
        hooks.after_step({"step": 1}, {})


def test_a_guard_warns(capsys):
    hooks = make_hooks(FixedGuards(finding(Reaction.warn), finding(Reaction.wait)))
    assert hooks.check(1, {}) == 1.0
    hooks.after_step({"step": 1}, {})
    assert capsys.readouterr().out == "warning: kl 2 since step 3; do less\n"


def test_a_guard_raises_kl_coef_once_a_step(capsys):
    hooks = make_hooks(FixedGuards(finding(Reaction.raise_kl_coef), finding(Reaction.raise_kl_coef)))
    assert hooks.check(1, {}) == 1.5
    assert capsys.readouterr().out == "warning: kl 2 since step 3; do less; ppo.kl_coef is multiplied by 1.5\n" * 2
    assert make_hooks().check(1, {}) == 1.0


NAN, INF = math.nan, math.inf
SCORES = [0.5, 0.7, 0.6, 0.7, NAN, 0.9, INF, -INF, 0.1, 0.2]
HIGHEST = [True, True, False, False, False, True, False, False, False, False]
LOWEST = [True, False, False, False, False, False, False, False, True, False]


@pytest.mark.parametrize(("lowest", "best", "figure"), [(False, HIGHEST, 0.9), (True, LOWEST, 0.1)])
def test_the_best_is_named(lowest, best, figure):
    """It must be better than all earlier ones, not equal; a value that is not finite never is."""
    hooks = make_hooks(every_steps=1, best_metric="score", best_is_lowest=lowest)
    go(hooks, 1, len(SCORES), lambda step: {"score": SCORES[step - 1], "kl": -step})
    assert hooks.checkpoints.best == best
    assert hooks.best == figure
    assert hooks.checkpoints.states[0]["best"] == 0.5


def test_a_first_score_that_is_not_finite_is_not_the_best():
    hooks = make_hooks(every_steps=1, best_metric="score")
    go(hooks, 1, 3, lambda step: {"score": [NAN, -5.0, -6.0][step - 1]})
    assert hooks.checkpoints.best == [False, True, False]
    assert [state["best"] for state in hooks.checkpoints.states] == [None, -5.0, -5.0]


def test_only_a_step_with_a_checkpoint_can_be_the_best():
    hooks = make_hooks(every_steps=2, best_metric="score")
    go(hooks, 1, 4, lambda step: {"score": [9.0, 1.0, 9.0, 2.0][step - 1]})
    assert hooks.checkpoints.best == [True, True]


def test_without_the_metric_none_is_the_best():
    hooks = make_hooks(every_steps=1, best_metric="eval/loss")
    go(hooks, 1, 2, lambda step: {"score": 1.0} if step == 1 else {"eval/loss": 1.0})
    assert hooks.checkpoints.best == [False, True]


def test_what_a_signal_saves_is_not_the_best():
    """The metrics of its step are not read again."""
    hooks = make_hooks(every_steps=5, best_metric="score")
    go(hooks, 1, 3, lambda _: {"score": 1.0})
    hooks.signals._receive(signal.SIGTERM, None)
    with pytest.raises(Interrupted):
        hooks.before_step({"step": 3})
    assert hooks.checkpoints.best == [False]
    assert hooks.checkpoints.states[0]["best"] is None


def test_a_resumed_run_restores_guards_and_best_metric():
    """Guards and best metric are part of the checkpoint, and the trainer gets its own part back."""
    config = PPOGuardConfig(patience=3)
    options = {"every_steps": 1, "best_metric": "score"}
    metrics = {1: 1.0, 2: 5.0, 3: 4.0, 4: 4.5, 5: 6.0}

    def see(step):
        return {"score": metrics[step], "kl": 200.0 if step in (2, 3, 4) else 1.0, "entropy": 1.0}

    through = make_hooks(Guards(config), **options)
    with pytest.raises(GuardError) as whole:
        go(through, 1, 5, see)
    first = make_hooks(Guards(config), **options)
    go(first, 1, 3, see)
    second = make_hooks(Guards(config), **options)
    second.checkpoints.best_step = 2  # as Checkpoints.load finds it
    assert second.resume(dict(first.checkpoints.states[-1])) == {"step": 3, "kl_coef": 0.5}
    assert second.best == 5.0
    with pytest.raises(GuardError) as resumed:
        go(second, 4, 5, see)
    assert str(resumed.value) == str(whole.value)
    assert "kl 200 nats a response, over guard.kl_limit=100 since step 2" in str(resumed.value)
    assert first.checkpoints.states + second.checkpoints.states == through.checkpoints.states
    assert first.checkpoints.best + second.checkpoints.best == through.checkpoints.best == [True, True, False, False]


def test_a_restored_best_must_still_be_beaten():
    hooks = make_hooks(every_steps=1, best_metric="score", best_is_lowest=True)
    hooks.guards.load_state_dict = lambda state: None
    hooks.checkpoints.best_step = 1
    hooks.resume({"step": 1, "best": 0.5, "best_of": ["score", True], "guards": {}, "inputs": INPUTS})
    go(hooks, 2, 4, lambda step: {"score": [0.6, 0.5, 0.4][step - 2]})
    assert hooks.checkpoints.best == [False, False, True]


def test_a_best_whose_checkpoint_is_deleted_need_not_be_beaten():
    hooks = make_hooks(every_steps=1, best_metric="score", best_is_lowest=True)
    hooks.guards.load_state_dict = lambda state: None
    hooks.resume({"step": 1, "best": 0.5, "best_of": ["score", True], "guards": {}, "inputs": INPUTS})
    go(hooks, 2, 3, lambda step: {"score": [0.6, 0.7][step - 2]})
    assert hooks.checkpoints.best == [True, False]


@pytest.mark.parametrize(
    ("was", "named"),
    [
        ({**INPUTS, "data.train": "0b"}, "data.train"),
        ({"data.train": "0a"}, "model.path"),
        ({}, "data.train and model.path"),
    ],
)
def test_what_has_changed_since_the_checkpoint_is_refused(was, named):
    hooks = make_hooks()
    with pytest.raises(InputError) as caught:
        hooks.require_same_inputs(was)
    hooks.require_same_inputs(INPUTS)
    assert str(caught.value) == (
        f"{named} changed since this checkpoint was saved. Restore the original files, or start a new run with a "
        "different run.name"
    )


def test_a_signal_right_after_resuming_writes_nothing_again():
    hooks = make_hooks()
    hooks.guards.load_state_dict = lambda state: None
    assert hooks.resume({"step": 4, "best": None, "best_of": [None, False], "guards": {}, "inputs": INPUTS}) == {
        "step": 4
    }
    hooks.signals._receive(signal.SIGTERM, None)
    with pytest.raises(Interrupted, match="after step 4"):
        hooks.before_step({"step": 4})
    assert hooks.checkpoints.steps == []


@pytest.mark.parametrize(
    ("more", "best"),
    [
        ({}, 0.5),
        ({"best_is_lowest": True}, None),  # the highest score is not to be beaten by a lower one
        ({"best_metric": "kl"}, None),
    ],
)
def test_a_best_value_counts_for_its_own_metric_alone(more, best):
    options = {"every_steps": 1, "best_metric": "score"}
    first = make_hooks(Guards(PPOGuardConfig()), **options)
    go(first, 1, 2, lambda step: {"score": 0.5, "kl": 9.0})
    saved = first.checkpoints.states[-1]
    other = make_hooks(Guards(PPOGuardConfig()), **{**options, **more})
    other.checkpoints.best_step = 1
    other.resume(dict(saved))
    assert other.best == best
