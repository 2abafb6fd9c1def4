"""`python -m tests.e2e.inject FAULT RANK ARGS...`: the command with a fault built into one of its ranks."""

from __future__ import annotations

import math
import os
import resource
import signal
import sys
import time

import torch

from rlhf_cli.cli import entry
from rlhf_cli.engine.checkpoint import Checkpoints
from rlhf_cli.engine.plain import PlainTrain
from rlhf_cli.engine.zero3 import ZeroTrain
from rlhf_cli.rewards.reward_model import RewardModel
from rlhf_cli.run import ppo_run, reward_run
from rlhf_cli.system import durable_files as files
from rlhf_cli.system.watchdog import PROGRESS
from rlhf_cli.train.ppo import PPOTrainer

_collect, _score, _write_own = PPOTrainer.collect, RewardModel.score, Checkpoints._write_own


def _raise(self):
    if self.state.step == 2:
        raise LookupError("row 7 has gone")
    return _collect(self)


def _hang(self):
    if self.state.step == 2:
        time.sleep(1000)
    return _collect(self)


def _out_of_memory(self):
    if self.state.step == 2:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
    return _collect(self)


def _nan_scores(first, last):
    def score(self, sequences):
        scores = _score(self, sequences)
        return scores * math.nan if first <= PROGRESS.step <= last else scores

    return score


def _nan_loss():
    """In the engine of one rank and in that of several."""
    for engine in (PlainTrain, ZeroTrain):

        def backward(self, loss, plain=engine.backward):
            return plain(self, loss * math.nan if PROGRESS.step == 3 else loss)

        engine.backward = backward


def _die_while_writing(self, staging):
    if staging.name == ".step-4":
        os.kill(os.getpid(), signal.SIGKILL)
    return _write_own(self, staging)


def _break_export(*_):
    raise TypeError("the export broke")


def _no_space():
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))


FAULTS = {
    "raise": lambda: setattr(PPOTrainer, "collect", _raise),
    "hang": lambda: setattr(PPOTrainer, "collect", _hang),
    "out-of-memory": lambda: setattr(PPOTrainer, "collect", _out_of_memory),
    "one-nan-score": lambda: setattr(RewardModel, "score", _nan_scores(2, 2)),
    "nan-scores": lambda: setattr(RewardModel, "score", _nan_scores(3, math.inf)),
    "nan-loss": _nan_loss,
    "die-while-writing": lambda: setattr(Checkpoints, "_write_own", _die_while_writing),
    "export": lambda: [setattr(module, "export", _break_export) for module in (ppo_run, reward_run)],
    "no-space": _no_space,
    "no-room": lambda: setattr(files, "free_bytes", lambda _: 4096),
}


def main() -> None:
    fault, rank, *args = sys.argv[1:]
    if os.environ.get("RANK", "0") == rank:
        FAULTS[fault]()
    sys.argv[1:] = args
    entry()


if __name__ == "__main__":
    main()
