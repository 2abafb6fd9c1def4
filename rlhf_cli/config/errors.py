"""Foreseen failures, one class and exit code per kind, and range checks for options."""

from __future__ import annotations

import math


class RunError(Exception):
    """A foreseen failure. Its one-line message describes the problem and how to fix it."""

    code = 1  # exit code of the command
    second_hand = False  # another rank failed; it reports the cause


class InputError(RunError, ValueError):
    """Wrong input from the user. The message names the input, what was wanted and what it got."""

    code = 2


class CheckpointError(RunError):
    """A checkpoint is damaged or belongs to another run."""

    code = 5


class NonFiniteError(RunError):
    """Repeated NaN or infinity."""

    code = 6


class OutOfMemoryError(RunError):
    """The device has too little memory for the run."""

    code = 7


class StalledError(RunError):
    """A rank made no progress within launch.timeout_s."""

    code = 8


class DiskError(RunError):
    """A file of the run could not be written."""

    code = 9


class GuardError(RunError):
    """A guard ended the run after saving a checkpoint."""

    code = 10


class RewardError(RunError):
    """A reward function or service failed for good; the run saves a checkpoint and ends."""

    code = 11


class Interrupted(RunError):
    """A signal ended the run between two steps, after saving a checkpoint."""

    code = 75  # EX_TEMPFAIL in sysexits.h: try again later


def require(ok: bool, key: str, got: object, wanted: str) -> None:
    if not ok:
        raise InputError(f"{key} must be {wanted}, got {got}")


def require_finite_range(key: str, got: float, low: float, high: float) -> None:
    require(math.isfinite(got) and low <= got <= high, key, got, f"between {low:g} and {high:g}")


def require_at_least(least: int, section: str, options: object, *names: str) -> None:
    """Raise InputError if one of the named options of a section is below `least`; None passes."""
    for name in names:
        value = getattr(options, name)
        require(value is None or value >= least, f"{section}.{name}", value, f"{least} or more")


def require_text(key: str, text: str) -> None:
    """Raise InputError for command-line text that is not UTF-8, which Python keeps as surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        got = f"another byte at character {error.start + 1}"
        raise InputError(f"{key} must be UTF-8, got {got}; check the encoding of the terminal") from error
