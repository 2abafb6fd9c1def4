"""How a failed run is reported."""

import os
import signal

import pytest

from rlhf_cli.config.compose import load
from rlhf_cli.run import failures
from rlhf_cli.run.failures import FailureHandler
from rlhf_cli.system.run_status import State, read_status


@pytest.fixture
def handler(tmp_path, one_rank):
    before = signal.getsignal(signal.SIGTERM)
    handler = FailureHandler(tmp_path, load("train-ppo", ["conf=tiny"]))
    handler.write_to(tmp_path)
    yield handler
    signal.signal(signal.SIGTERM, before)


def test_a_launcher_that_terminates_the_last_ranks_does_not_interrupt_the_report(handler, tmp_path, monkeypatch):
    """Status and reason are on disk before the report is written."""

    def terminated(folder):
        assert read_status(folder)["reason"] == "stopped by SIGTERM"
        assert (folder / "log.txt").read_text() == "rlhf: stopped\n"
        os.kill(os.getpid(), signal.SIGTERM)
        return "report: done"

    monkeypatch.setattr(failures, "leave_report", terminated)
    handler._report("rlhf: stopped", State.stopped, 75, "stopped by SIGTERM")
    assert (tmp_path / "log.txt").read_text() == "rlhf: stopped\nreport: done\n"


def test_no_report_is_written_if_it_is_switched_off(tmp_path, one_rank):
    handler = FailureHandler(tmp_path, load("train-ppo", ["conf=tiny", "report.html=false"]))
    handler.write_to(tmp_path)
    handler._report("rlhf: stopped", State.stopped, 75, "stopped")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["log.txt", "status.json"]
