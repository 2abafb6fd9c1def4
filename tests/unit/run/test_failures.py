"""What is told of a run that ends otherwise than well."""

import os
import signal

import pytest

from rlhf_cli.config.compose import load
from rlhf_cli.run import failures as failure
from rlhf_cli.run.failures import FailureHandler
from rlhf_cli.system.run_status import State, read_status


@pytest.fixture
def ending(tmp_path, one_rank):
    before = signal.getsignal(signal.SIGTERM)
    ending = FailureHandler(tmp_path, load("train-ppo", ["conf=tiny"]))
    ending.folder = tmp_path
    yield ending
    signal.signal(signal.SIGTERM, before)


def test_a_launcher_that_terminates_the_last_ranks_does_not_cut_the_report_off(ending, tmp_path, monkeypatch):
    """Status and reason are on the disk before the report is begun."""

    def terminated(folder):
        assert read_status(folder)["reason"] == "stopped by SIGTERM"
        assert (folder / "log.txt").read_text() == "rlhf: stopped\n"
        os.kill(os.getpid(), signal.SIGTERM)
        return "report: done"

    monkeypatch.setattr(failure, "leave_report", terminated)
    ending._tell("rlhf: stopped", State.stopped, 75, "stopped by SIGTERM")
    assert (tmp_path / "log.txt").read_text() == "rlhf: stopped\nreport: done\n"


def test_no_report_is_left_where_none_is_wanted(tmp_path, one_rank):
    ending = FailureHandler(tmp_path, load("train-ppo", ["conf=tiny", "report.html=false"]))
    ending.folder = tmp_path
    ending._tell("rlhf: stopped", State.stopped, 75, "stopped")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["log.txt", "status.json"]
