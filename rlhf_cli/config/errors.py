"""How a run can fail: one class and one exit code a kind, each message one line; and the range checks of options."""

from __future__ import annotations

import math


class RunError(Exception):
    """A failure that we foresee; its message says what, and what to try. `code` is the exit code of the command."""

    code = 1
    second_hand = False  # raised on this rank for another one, which knows more and speaks


class InputError(RunError, ValueError):
    """Something the user gave is wrong: what, got, wanted, how to mend."""

    code = 2


class CheckpointError(RunError):
    """A checkpoint is not what was written, or does not belong to this run."""

    code = 5


class NonFiniteError(RunError):
    """NaN or infinity, again and again."""

    code = 6


class OutOfMemoryError(RunError):
    """The device's memory does not hold the run."""

    code = 7


class StalledError(RunError):
    """A rank made no progress within launch.timeout_s."""

    code = 8


class DiskError(RunError):
    """A file of the run cannot be written."""

    code = 9


class GuardError(RunError):
    """A guard ended the run, after a checkpoint."""

    code = 10


class RewardError(RunError):
    """A reward function or service failed for good; a run ends with a checkpoint."""

    code = 11


class Interrupted(RunError):
    """A signal ended the run between two steps, after a checkpoint."""

    code = 75  # sysexits.h: EX_TEMPFAIL, try again later


def require(ok: bool, key: str, got: object, wanted: str) -> None:
    if not ok:
        raise InputError(f"{key} must be {wanted}, got {got}")


def require_finite_range(key: str, got: float, low: float, high: float) -> None:
    require(math.isfinite(got) and low <= got <= high, key, got, f"between {low:g} and {high:g}")


def require_text(key: str, text: str) -> None:
    """Raise InputError for a text with bytes that are no UTF-8, as Python hands them on from a command line."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        wanted = f"wanted UTF-8, got another byte at character {error.start + 1}"
        raise InputError(f"{key}: {wanted}; check the terminal's encoding") from error
