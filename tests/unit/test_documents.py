"""What README and docs say is so: commands compose, generated pages are fresh, links lead somewhere."""

import re
import shlex
from pathlib import Path

import pytest

from rlhf_cli.cli import main
from rlhf_cli.config.compose import load
from rlhf_cli.config.schema import COMMANDS
from tests.conftest import script
from tests.unit.report.synthetic_runs import ppo_run

REPOSITORY = Path(__file__).resolve().parents[2]
PAGES = [REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md", *sorted((REPOSITORY / "docs").glob("*.md"))]


def shell_lines():
    """Every line of a code block, with its page and its words."""
    for page in PAGES:
        for block in re.findall(r"```bash\n(.*?)```", page.read_text("utf-8"), flags=re.DOTALL):
            for line in block.replace("\\\n", " ").splitlines():
                yield f"{page.name}: {line.strip()[:60]}", shlex.split(line, comments=True)


def command_lines():
    """The lines that start, plan or check one of our training commands."""
    for name, words in shell_lines():
        for place, word in enumerate(words):
            if word in COMMANDS and words[place - 1] in ("rlhf", "rlhf_cli", "plan", "check"):
                options = [one for one in words[place + 1 :] if "=" in one and not one.startswith("gpus=")]
                yield pytest.param(word, options, id=name)


def readme_example():
    blocks = re.findall(r"```yaml\n(.*?)```", (REPOSITORY / "README.md").read_text("utf-8"), flags=re.DOTALL)
    return next(block for block in blocks if block.startswith("# my_rm.yaml"))


@pytest.mark.parametrize(("command", "args"), list(command_lines()))
def test_a_documented_command_composes(command, args, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_rm.yaml").write_text(readme_example())  # the file that README shows
    (tmp_path / "my_ppo.yaml").write_text("defaults: [tiny]\n")
    load(command, args)


def report_lines():
    """The lines that read run folders."""
    for name, words in shell_lines():
        if words[:2] in (["rlhf", "report"], ["rlhf", "compare"]):
            yield pytest.param(words[1:], id=name)


@pytest.mark.parametrize("words", list(report_lines()))
def test_a_documented_command_on_run_folders_runs(words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for folder in [word for word in words[1:] if word.startswith("outputs/")]:
        ppo_run(tmp_path / folder, 12)
    assert main(words) == 0
    written = capsys.readouterr().out.splitlines()[-1].partition(": ")[2]
    assert (tmp_path / written).stat().st_size > 1_000_000


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_inside_the_repository_lead_to_files(page):
    for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text("utf-8")):
        assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_make_targets_that_pages_name_exist(page):
    targets = set(re.findall(r"^([a-z-]+):", (REPOSITORY / "Makefile").read_text(), flags=re.MULTILINE))
    assert set(re.findall(r"\bmake ([a-z-]+)`", page.read_text("utf-8"))) <= targets


GENERATED = {"config.md", "presets.md", "correctness.md"}
WRITTEN = [page for page in PAGES if page.name not in {*GENERATED, "log.md"} and page.parent != REPOSITORY]
WRITTEN.append(REPOSITORY / "CONTRIBUTING.md")


def prose(page):
    """The lines of a page outside of code blocks and tables."""
    text = re.sub(r"```.*?```", "", page.read_text("utf-8"), flags=re.DOTALL)
    return [line for line in text.splitlines() if not line.startswith("|")]


def cells(text):
    """The cells of all tables of a page, as a reader sees them: without the targets of links."""
    for line in re.sub(r"```.*?```", "", text, flags=re.DOTALL).splitlines():
        if line.startswith("|"):
            yield from re.split(r"(?<!\\)\|", re.sub(r"\]\([^)]*\)", "]", line))[1:-1]


@pytest.mark.parametrize("page", WRITTEN, ids=lambda page: page.name)
def test_prose_is_wrapped_at_100_columns(page):
    too_long = [line for line in prose(page) if len(line) > 100 and not re.search(r"\]\(|https?://", line)]
    assert too_long == []


@pytest.mark.parametrize("page", [*WRITTEN, REPOSITORY / "docs/correctness.md"], ids=lambda page: page.name)
def test_no_cell_of_a_table_is_a_paragraph(page):
    assert [cell.strip() for cell in cells(page.read_text("utf-8")) if len(cell.strip()) > 200] == []


def test_readme_is_short_and_narrow():
    lines = (REPOSITORY / "README.md").read_text("utf-8").splitlines()
    assert len(lines) <= 150
    assert [line for line in lines if len(line) > 100 and not line.startswith("|")] == []


def test_the_demo_table_in_readme_is_that_of_its_page():
    tables = [
        [line for line in (REPOSITORY / name).read_text("utf-8").splitlines() if line.startswith("|")]
        for name in ("README.md", "docs/demo.md")
    ]
    assert len(tables[1]) == 9
    assert tables[0][:9] == tables[1]


def test_the_index_lists_every_page():
    index = REPOSITORY / "docs/README.md"
    listed = set(re.findall(r"^- \[[^]]+\]\(([^)]+)\): ", index.read_text("utf-8"), flags=re.MULTILINE))
    pages = {page.name for page in index.parent.iterdir() if page.is_file()} - {"README.md"}
    assert pages == {name for name in listed if not name.startswith("../")}


def exists(name):
    """Whether a text in backticks that looks like an option or a file of ours is one; other texts count as existing."""
    options = re.findall(
        r"^\| `([a-z_0-9.]+)` ", (REPOSITORY / "docs/config.md").read_text("utf-8"), flags=re.MULTILINE
    )
    if re.fullmatch(r"[\w/]+/\w+\.(py|yaml)", name) and not name.startswith("outputs/"):
        return any((REPOSITORY / folder / name).exists() for folder in ("", "rlhf_cli"))
    option = name.partition("=")[0]
    if re.fullmatch(r"[a-z_]+(\.[a-z_0-9]+)+", option) and not option.endswith((".py", ".json")):
        sections = {known.partition(".")[0] for known in options}
        return option in options or option.partition(".")[0] not in sections
    return True


def unknown_names(text):
    """The options and files in backticks that do not exist."""
    outside_blocks = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    return [name for name in re.findall(r"`([^`\s]+)`", outside_blocks) if not exists(name)]


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "log.md"], ids=lambda page: page.name)
def test_options_and_files_that_pages_name_exist(page):
    assert unknown_names(page.read_text("utf-8")) == []


def test_an_option_and_a_file_that_do_not_exist_are_found():
    names = "`ppo.kl_coef=0.1` `ppo.kl_coeff` `run/build.py` `run/builds.py` `run.json` `conf=tiny`"
    assert unknown_names(names) == ["ppo.kl_coeff", "run/builds.py"]


def results(page):
    """The rows (what, figure, linked page) of the table below the heading Results of a page."""
    section = page.read_text("utf-8").partition("\n## Results\n")[2].partition("\n## ")[0]
    rows = [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("|")]
    for what, figure, linked in rows[2:]:
        yield what, figure, page.parent / re.search(r"\]\(([^)#]+)", linked)[1]


def unproved(page):
    """The figures of a table of results that do not occur on the page they link to."""
    return [figure for _, figure, linked in results(page) if figure not in " ".join(linked.read_text("utf-8").split())]


def test_every_figure_of_the_readme_is_on_the_page_it_links_to():
    assert len(list(results(REPOSITORY / "README.md"))) >= 5
    assert unproved(REPOSITORY / "README.md") == []


def test_a_figure_that_is_not_on_its_page_is_found(tmp_path):
    (tmp_path / "speed.md").write_text("Steps are 2.1 to 2.8 times as fast.")
    rows = [f"| steps | {figure} | [speed](speed.md) |\n" for figure in ("2.1 to 2.8 times", "1.7 to 2.3 times")]
    table = f"\n## Results\n\n| what | figure | page |\n|---|---|---|\n{''.join(rows)}\n## Use\n\n| x | y | z |\n"
    (tmp_path / "README.md").write_text(table)
    assert unproved(tmp_path / "README.md") == ["1.7 to 2.3 times"]


def test_the_page_of_options_is_fresh():
    assert (REPOSITORY / "docs/config.md").read_text("utf-8") == script("make_config_docs").render()


def test_the_drawing_on_the_memory_page_is_that_of_the_preset():
    block = (REPOSITORY / "docs/memory.md").read_text("utf-8").partition("```text\nload ")[2].partition("```")[0]
    page = (REPOSITORY / "docs/presets.md").read_text("utf-8").splitlines()
    lines = f"load {block}".strip().splitlines()
    assert len(lines) == 7
    assert set(lines) <= set(page)


def test_the_page_of_statements_is_fresh():
    assert (REPOSITORY / "docs/correctness.md").read_text("utf-8") == script("correctness").render()


def test_the_promises_name_tests_that_there_are():
    page = (REPOSITORY / "docs/reliability.md").read_text("utf-8")
    rows = re.findall(r"^\| (\d+) \|.*\|(.*)\|$", page.partition("## The promises")[2], flags=re.MULTILINE)
    assert [int(number) for number, _ in rows] == list(range(1, 21))
    tests = "".join(file.read_text("utf-8") for file in (REPOSITORY / "tests").rglob("test_*.py"))
    for _, named in rows:
        for name in re.findall(r"`([^`]+)`", named):
            assert (REPOSITORY / name).is_file() if "/" in name else f"def {name}(" in tests, name


def test_there_are_44_statements():
    assert len(script("correctness").statements()) == 44


@pytest.mark.parametrize("statement", script("correctness").statements(), ids=lambda statement: statement["holds"][:40])
def test_a_statement_has_a_test_and_a_change_that_breaks_it(statement):
    assert script("correctness").problems(statement) == []


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({"old": "import"}, "must occur once"),
        ({"new": "return ("}, "never closed"),
        ({"tests": ["tests/unit/test_documents.py::test_nothing"]}, "no such test"),
        ({"file": "rlhf_cli/missing.py"}, "No such file"),
    ],
)
def test_a_wrong_statement_is_noticed(changed, problem):
    module = script("correctness")
    statement = next(one for one in module.statements() if one["old"].startswith("return "))
    assert problem in "".join(module.problems({**statement, **changed}))


def test_the_changelog_check_can_fail():
    problem = script("check_changelog").problem
    assert problem((REPOSITORY / "CHANGELOG.md").read_text("utf-8"), "0.1.0") is None
    assert problem("# Changelog\n\n## [0.0.9]\n- x\n", "0.1.0") is not None
    assert problem("# Changelog\n\n## [Unreleased]\n\n## [0.1.0]\n- x\n", "0.1.0") is not None
