"""The most memory that this process has held, without a GPU: resident memory."""

import mmap
from pathlib import Path

import pytest

from rlhf_cli.engine import peak_memory as memory
from rlhf_cli.engine.peak_memory import PeakMemory

SIZE = 400 * 2**20


def touch():
    """Hold 400 MiB for a moment, past malloc, which may keep what is freed."""
    with mmap.mmap(-1, SIZE) as pages:
        for place in range(0, SIZE, mmap.PAGESIZE):
            pages[place] = 1


def test_a_peak_counts_from_the_last_start_and_the_highest_stays():
    peak = PeakMemory()
    peak.restart()
    before = peak.since
    touch()
    assert peak.since == pytest.approx(before + SIZE / 2**30, abs=0.05)
    high = peak.highest
    peak.restart()
    assert peak.since == pytest.approx(before, abs=0.05)
    assert peak.highest == high


def test_where_the_peak_cannot_be_reset_it_stays(monkeypatch):
    peak = PeakMemory()
    monkeypatch.setattr(memory, "_CLEAR", Path("/proc/not/there"))
    touch()
    before = peak.since
    peak.restart()
    assert peak.since == before


def test_where_there_is_no_proc_the_process_s_own_account_serves(monkeypatch):
    monkeypatch.setattr(memory, "_STATUS", Path("/proc/not/there"))
    assert 0.01 < PeakMemory().since < 1000
