"""Write the statements into docs/correctness.md; or break the package, statement by statement, and see tests fail.

usage: python scripts/correctness.py [--check | --break [N ...]]
--check: exit 1 where the page is stale. --break: for each statement (or those given) copy the project aside, make the
stated change and run the stated tests: exit 1 unless one of them fails. The tests of real ranks take minutes.
"""

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

REPOSITORY = Path(__file__).resolve().parent.parent
STATEMENTS = REPOSITORY / "docs/statements.yaml"
PAGE = REPOSITORY / "docs/correctness.md"
SLOW = ("tests/distributed", "tests/e2e", "tests/learning")
START, END = "<!-- statements: made by scripts/correctness.py -->\n", "<!-- end of the statements -->\n"
TABLE_HEAD = "| | what holds | proved by | a copy that must fail | source |\n|---|---|---|---|---|\n"


def entries() -> list[dict[str, Any]]:
    """Return the statements and the section heads between them, in order."""
    loaded: list[dict[str, Any]] = yaml.safe_load(STATEMENTS.read_text("utf-8"))
    return loaded


def statements() -> list[dict[str, Any]]:
    """Return the statements, in order; the first has number 1."""
    return [entry for entry in entries() if "holds" in entry]


def render() -> str:
    """Return the text of docs/correctness.md, with the statements of docs/statements.yaml between its two marks."""
    before, _, rest = PAGE.read_text("utf-8").partition(START)
    lines, number = [before, START], 0
    for entry in entries():
        if "section" in entry:
            lines.append(f"\n## {entry['section']}\n\n{TABLE_HEAD}")
            continue
        number += 1
        proofs = "<br>".join(_link(test) for test in entry["tests"])
        cells = (str(number), entry["holds"], proofs, entry["broken"], entry["source"])
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n")
    return "".join(lines) + "\n" + END + rest.partition(END)[2]


def _link(test: str) -> str:
    file, _, name = test.partition("::")
    words = name.removeprefix("test_").replace("_", " ").replace("[", " (").replace("]", ")")
    return f"[{words}](../{file})"


def broken_copy(statement: dict[str, Any], folder: Path) -> Path:
    """Copy the project into a folder, with the change of a statement made; return the copy."""
    copy = folder / "copy"
    ignored = shutil.ignore_patterns(".*", "outputs", "build", "*.egg-info", "__pycache__")
    shutil.copytree(REPOSITORY, copy, ignore=ignored)
    (copy / "rlhf_cli/conf").symlink_to(copy / "conf")  # as an installed package has it
    file = copy / statement["file"]
    text = file.read_text("utf-8")
    assert text.count(statement["old"]) == 1, f"{statement['file']}: not there once: {statement['old']!r}"
    file.write_text(text.replace(statement["old"], statement["new"]), "utf-8")
    return copy


def fails(statement: dict[str, Any]) -> bool:
    """Say whether one of a statement's tests, the quick ones first, fails on its broken copy."""
    with tempfile.TemporaryDirectory(prefix="rlhf-broken-") as folder:
        copy = broken_copy(statement, Path(folder))
        for test in sorted(statement["tests"], key=lambda name: name.startswith(SLOW)):
            words = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", test]
            environment = {**os.environ, "PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
            done = subprocess.run(words, cwd=copy, env=environment, capture_output=True, text=True, check=False)
            assert done.returncode in (0, 1), done.stdout + done.stderr
            if done.returncode == 1:
                return True
    return False


def main() -> int:
    """Do what the arguments ask for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--check", action="store_true", help="exit 1 where docs/correctness.md is stale")
    parser.add_argument("--break", dest="broken", nargs="*", type=int, metavar="N", help="run the broken copies")
    args = parser.parse_args()
    if args.broken is None:
        if args.check and PAGE.read_text("utf-8") != render():
            print("docs/correctness.md is stale; run python scripts/correctness.py")
            return 1
        PAGE.write_text(render(), "utf-8")
        return 0
    survivors = []
    for number, statement in enumerate(statements(), 1):
        if not args.broken or number in args.broken:
            start = time.perf_counter()
            failed = fails(statement)
            survivors += [] if failed else [number]
            what = "fails, as it must" if failed else "PASSES"
            print(f"{number:2} {what} ({time.perf_counter() - start:.0f} s): {statement['broken']}", flush=True)
    print(f"broken copies that passed their tests: {survivors or 'none'}")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
