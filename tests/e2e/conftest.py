"""Fixtures that end-to-end tests share with unit tests."""

from tests.unit.use.conftest import ppo_run, rm_run  # noqa: F401
