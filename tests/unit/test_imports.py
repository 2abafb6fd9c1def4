"""The layers of the package: which package may import which. CONTRIBUTING.md shows the same table."""

import ast
import re
import typing
from graphlib import TopologicalSorter
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "rlhf_cli"
CPU = "rlhf_cli.models.cpu."
# a class of ours with the name of a public class of these would mislead
STANDARD_MODULES = (
    *("argparse", "array", "ast", "asyncio", "builtins", "collections", "collections.abc", "concurrent.futures"),
    *("configparser", "contextlib", "csv", "dataclasses", "datetime", "decimal", "email.message", "enum", "fractions"),
    *("functools", "graphlib", "http.client", "http.server", "importlib.resources", "inspect", "io", "json", "logging"),
    *("multiprocessing", "numbers", "pathlib", "queue", "random", "selectors", "signal", "socket"),
    *("statistics", "string", "struct", "subprocess", "tempfile", "textwrap", "threading", "types", "typing", "uuid"),
)
STANDARD = {"math", "typing", "collections", "dataclasses", "__future__"}
# package -> the packages it may import, besides itself; what is not listed here may import nothing
GRAPH = {
    "config": "",
    "algo": "",
    "demo": "",
    "conf": "",
    "system": "config",
    "engine": "config algo system",
    "data": "config algo system",
    "models": "config algo system data",
    "rewards": "config algo system data engine models",
    "rollout": "config algo system data engine models",
    "report": "config system engine",
    "plan": "config algo system engine models rollout report",
    "train": "config algo system data engine models rewards rollout",
    "use": "config algo system data engine models rewards rollout report",
    "run": "config algo system data engine models rewards rollout report plan train",
}
ALLOWED = {package: set(below.split()) for package, below in GRAPH.items()}


def imported(file):
    """Yield the modules a file imports, including those of `from package import module`."""
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


FILES = sorted(PACKAGE.glob("*/**/*.py"))


def package_of(file):
    return file.relative_to(PACKAGE).parts[0]


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_a_package_imports_only_the_packages_below_it(file):
    parts = [name.split(".") for name in imported(file)]
    packages = {name[1] for name in parts if name[0] == "rlhf_cli" and len(name) > 1} & set(GRAPH)
    assert packages <= ALLOWED[package_of(file)] | {package_of(file)}


def test_the_graph_names_every_package_and_has_no_cycle():
    assert set(GRAPH) >= {package_of(file) for file in FILES}
    TopologicalSorter(ALLOWED).prepare()


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_deepspeed_and_torch_distributed_stay_in_the_engine(file):
    names = set(imported(file))
    if package_of(file) != "engine":
        assert not any(name == "deepspeed" or name.startswith(("deepspeed.", "torch.distributed")) for name in names)


@pytest.mark.parametrize("file", sorted((PACKAGE / "algo").glob("*.py")), ids=lambda file: file.name)
def test_algo_imports_torch_and_nothing_else_but_the_standard_library(file):
    assert {name.split(".")[0] for name in imported(file)} <= {"torch", "rlhf_cli", *STANDARD}


@pytest.mark.parametrize("package", ["system", "config"])
def test_packages_for_processes_and_options_import_no_torch(package):
    for file in sorted((PACKAGE / package).glob("*.py")):
        assert not {name.split(".")[0] for name in imported(file)} & {"torch", "transformers", "deepspeed"}, file


def test_no_two_files_share_a_name():
    names = [file.name for file in PACKAGE.rglob("*.py") if file.name not in ("__init__.py", "__main__.py")]
    assert sorted(set(names)) == sorted(names)


def test_contributing_shows_the_graph():
    page = (ROOT / "CONTRIBUTING.md").read_text("utf-8").partition("## Packages")[2]
    rows = re.findall(r"^\| `(\w+)` \|.*\| ([\w -]+) \|$", page, flags=re.MULTILINE)
    assert {package: below.strip("-") for package, below in rows} | {"conf": ""} == GRAPH


def test_only_one_module_selects_the_kernels_for_cpus():
    """It selects them only for models on a CPU."""
    users = {
        str(file.relative_to(PACKAGE))
        for file in FILES
        if file.parent != PACKAGE / "models/cpu" and any(f"{name}.".startswith(CPU) for name in imported(file))
    }
    assert users == {"models/kernels.py"}


def public_classes(name):
    """Return the public classes that a module defines."""
    module = import_module(name)
    public = getattr(module, "__all__", [key for key in vars(module) if key[0] != "_"])
    return {key for key in public if isinstance(getattr(module, key), type)}


def test_no_class_has_the_name_of_a_standard_class():
    taken = set().union(*map(public_classes, STANDARD_MODULES), typing.__all__)
    classes = {
        node.name: file.name
        for file in FILES
        for node in ast.walk(ast.parse(file.read_text("utf-8")))
        if isinstance(node, ast.ClassDef)
    }
    assert not {name: file for name, file in classes.items() if name in taken}
