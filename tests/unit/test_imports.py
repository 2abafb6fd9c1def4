"""cli, {train, use}, plan, {rollout, rewards, engine, models, data, report}, algo; config for all."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "rlhf_cli"
STANDARD = {"math", "typing", "collections", "dataclasses", "__future__"}
MIDDLE = {"rollout", "rewards", "engine", "models", "data", "report"}
ALLOWED = {
    "config": {"config"},
    "algo": {"algo"},
    **{room: MIDDLE | {"algo", "config"} for room in MIDDLE},
    "plan": MIDDLE | {"algo", "config", "plan"},
    "train": MIDDLE | {"algo", "config", "plan", "train"},
    "use": MIDDLE | {"algo", "config", "use"},
}


def imported(file):
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


FILES = sorted(PACKAGE.glob("*/**/*.py"))


def room_of(file):
    return file.relative_to(PACKAGE).parts[0]


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_a_room_imports_only_the_rooms_below_it(file):
    rooms = {name.split(".")[1] for name in imported(file) if name.startswith("rlhf_cli.")}
    assert rooms <= ALLOWED.get(room_of(file), set())


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_deepspeed_and_torch_distributed_stay_in_the_engine(file):
    names = set(imported(file))
    if room_of(file) != "engine":
        assert not any(name == "deepspeed" or name.startswith(("deepspeed.", "torch.distributed")) for name in names)


@pytest.mark.parametrize("file", sorted((PACKAGE / "algo").glob("*.py")), ids=lambda file: file.name)
def test_algo_imports_torch_and_nothing_else_but_the_standard_library(file):
    assert {name.split(".")[0] for name in imported(file)} <= {"torch", "rlhf_cli", *STANDARD}
