"""Write docs/correctness.md from docs/statements.yaml, or show that the tests of each statement can fail.

--check changes nothing. It exits with 1 if the page is out of date or a statement is invalid: the quoted code must
occur exactly once in its file, the broken copy must compile, and the tests must exist.
--break copies the project for each statement, breaks the copy as the statement says and runs its tests. It exits
with 1 unless one of them fails. Tests that start several processes take minutes.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml

sys.path.insert(0, str(Path(__file__).resolve().parent))

from sample import REPOSITORY, add_sample_options, sampled

PAGE = REPOSITORY / "docs/correctness.md"
SLOW = ("tests/distributed", "tests/e2e", "tests/learning")
START, END = "<!-- statements: made by scripts/correctness.py -->\n", "<!-- end of the statements -->\n"
PYTEST = (sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider")


def entries() -> list[dict[str, Any]]:
    """Return the statements and the section headings between them, in order."""
    loaded: list[dict[str, Any]] = yaml.safe_load((REPOSITORY / "docs/statements.yaml").read_text("utf-8"))
    return loaded


def statements() -> list[dict[str, Any]]:
    """Return the statements in order; the first is number 1."""
    return [entry for entry in entries() if "holds" in entry]


def render() -> str:
    """Return the text of docs/correctness.md, with the current statements between its two markers."""
    before, _, rest = PAGE.read_text("utf-8").partition(START)
    lines, number = [before, START], 0
    for entry in entries():
        if "section" in entry:
            lines.append(f"\n## {entry['section']}\n\n")
            continue
        number += 1
        proofs = ", ".join(_link(test) for test in entry["tests"])
        lines.append(f"{number}. **{entry['holds']}.**\n   * Source: {entry['source']}.\n")
        lines.append(f"   * Tests: {proofs}.\n   * Broken copy: {entry['broken']}.\n")
    return "".join(lines) + "\n" + END + rest.partition(END)[2]


def _link(test: str) -> str:
    file, _, name = test.partition("::")
    words = name.removeprefix("test_").replace("_", " ").replace("[", " (").replace("]", ")")
    return f"[{words}](../{file})"


def broken_source(statement: dict[str, Any]) -> str:
    """Return the broken text of a statement's file; raise ValueError if it cannot be made or does not compile."""
    text = (REPOSITORY / statement["file"]).read_text("utf-8")
    if text.count(statement["old"]) != 1:
        raise ValueError(
            f"{statement['file']}: must occur once, occurs {text.count(statement['old'])} times: {statement['old']}"
        )
    broken = text.replace(statement["old"], statement["new"])
    if broken == text:
        raise ValueError(f"{statement['file']}: old and new are the same: {statement['old']}")
    if statement["file"].endswith(".py"):
        compile(broken, statement["file"], "exec")
    return broken


def problems(statement: dict[str, Any]) -> list[str]:
    """Return what is wrong with a statement, without running a test."""
    found = []
    try:
        broken_source(statement)
    except (OSError, ValueError, SyntaxError) as error:
        found.append(str(error))
    for test in statement["tests"]:
        file, _, name = test.partition("::")
        path = REPOSITORY / file
        if not path.is_file() or f"def {name.partition('[')[0]}(" not in path.read_text("utf-8"):
            found.append(f"{test}: no such test")
    return found


def check() -> int:
    """Print every problem of the page and its statements; return 1 if there is one."""
    found = [f"statement {n}: {p}" for n, statement in enumerate(statements(), 1) for p in problems(statement)]
    if PAGE.read_text("utf-8") != render():
        found.append("docs/correctness.md is out of date: run `make docs`")
    tests = sorted({test for statement in statements() for test in statement["tests"]})
    collected = subprocess.run(
        [*PYTEST, "--collect-only", *tests], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    if collected.returncode:
        found.append(f"pytest cannot collect the tests:\n{collected.stdout[-2000:]}{collected.stderr[-2000:]}")
    print("\n".join(found) or f"{len(statements())} statements are valid")
    return 1 if found else 0


def fails(statement: dict[str, Any]) -> bool:
    """Return whether one of a statement's tests fails on its broken copy; fast tests run first."""
    with tempfile.TemporaryDirectory(prefix="rlhf-broken-") as folder:
        copy = Path(folder) / "copy"
        ignored = shutil.ignore_patterns(".*", "outputs", "build", "*.egg-info", "__pycache__")
        shutil.copytree(REPOSITORY, copy, symlinks=True, ignore=ignored)
        if not (copy / "rlhf_cli/conf").exists():  # an installed package has it
            (copy / "rlhf_cli/conf").symlink_to("../conf")
        (copy / statement["file"]).write_text(broken_source(statement), "utf-8")
        environment = {**os.environ, "PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
        for test in sorted(statement["tests"], key=lambda name: name.startswith(SLOW)):
            words = [*PYTEST, "-x", test]
            done = subprocess.run(words, cwd=copy, env=environment, capture_output=True, text=True, check=False)
            if done.returncode not in (0, 1):
                raise SystemExit(f"{done.stdout}{done.stderr}\n{test}: pytest ended with exit code {done.returncode}")
            if done.returncode == 1:
                return True
    return False


def break_statements(chosen: list[tuple[int, dict[str, Any]]]) -> int:
    """Run the broken copies of some numbered statements; return 1 if the tests of one pass."""
    passed = []
    for number, statement in chosen:
        start = time.perf_counter()
        failed = fails(statement)
        passed += [] if failed else [number]
        verdict = "fails, as it must" if failed else "PASSES"
        print(f"{number:2} {verdict} ({time.perf_counter() - start:.0f} s): {statement['broken']}", flush=True)
    print(f"broken copies that pass their tests: {passed or 'none'}")
    return 1 if passed else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="validate the page and every statement; run no test")
    parser.add_argument(
        "--break", dest="broken", nargs="*", type=int, metavar="N", help="run the broken copies (default: of all)"
    )
    add_sample_options(parser)
    options = parser.parse_args()
    if options.check:
        return check()
    if options.broken is None:
        PAGE.write_text(render(), "utf-8")
        return 0
    numbered = enumerate(statements(), 1)
    return break_statements(
        sampled([(n, s) for n, s in numbered if not options.broken or n in options.broken], options)
    )


if __name__ == "__main__":
    sys.exit(main())
