"""Runs train-rm or train-ppo in this process, and turns failures into exit codes."""

from __future__ import annotations

import ctypes
import faulthandler
import os
import random
import signal

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("TQDM_DISABLE", "1")  # the GGUF reader shows its own progress bar

import numpy as np
import torch

from rlhf_cli.config.schema import TrainPPOConfig, TrainRMConfig
from rlhf_cli.engine import distributed
from rlhf_cli.report.library_logs import quieten_libraries
from rlhf_cli.report.reporter import Reporter
from rlhf_cli.run.failures import FailureHandler, make_watch_folder, remove_watch_folder
from rlhf_cli.run.ppo_run import train_ppo
from rlhf_cli.run.reward_run import train_rm
from rlhf_cli.run.session import RunSession
from rlhf_cli.system.processes import end_with_parent

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # from glibc's malloc.h
COLLECTIVES_LATER_S = 30  # after the watchdog, whose message names the ranks that are stuck


def run(
    command: str, args: list[str], config: TrainRMConfig | TrainPPOConfig, config_yaml: str, check_only: bool
) -> int:
    """Run one command on this rank and return its exit code. All ranks use the options of rank 0.

    config_yaml: the options, interpolations unresolved. check_only: build and check the run, but do
    not start it.
    """
    end_with_parent()
    quieten_libraries()
    _share_cores()
    keep_freed_memory()
    faulthandler.register(signal.SIGUSR2)  # prints the stack of every thread
    distributed.initialise(config.launch.timeout_s + COLLECTIVES_LATER_S)
    config = distributed.broadcast(config)
    folder = make_watch_folder()
    failures = FailureHandler(folder, config)
    failures.watchdog.start()
    report = Reporter(distributed.rank() == 0, config.report)
    try:
        random.seed(config.run.seed)
        np.random.seed(config.run.seed)
        torch.manual_seed(config.run.seed)
        session = RunSession(command, args, config_yaml, report, check_only, failures)
        if isinstance(config, TrainRMConfig):
            train_rm(config, session)
        else:
            train_ppo(config, session)
        distributed.barrier()  # the watch folder must stay while another rank may still fail
    except (Exception, KeyboardInterrupt) as error:
        code = failures.failed(error)
        report.close(failed=True)
        return code
    report.close(failed=False)
    failures.watchdog.stop()
    remove_watch_folder(folder)
    distributed.shut_down()
    return 0


def _share_cores() -> None:
    """Divide the cores among the ranks of this machine, unless a launcher did."""
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // distributed.num_local_ranks()))


def keep_freed_memory() -> None:
    """On a CPU, let glibc reuse freed memory: returning it to the kernel costs page faults.

    scripts/bench_allocator.py measures it. Without glibc there is no mallopt, and nothing changes.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None and not torch.cuda.is_available():
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
