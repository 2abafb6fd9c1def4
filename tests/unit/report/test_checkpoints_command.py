"""`rlhf checkpoints RUN_DIR [--verify]`: what a run can resume from, and exit code 5 if it cannot."""

import shutil

import pytest

from rlhf_cli.cli import main
from rlhf_cli.engine.checkpoint_manifest import read_manifest
from rlhf_cli.system.run_status import State, write_status
from tests.unit.engine.test_checkpoint import save


@pytest.fixture(scope="module")
def saved(tmp_path_factory, _process_group):
    """A run with the checkpoints of step 2, the best, and 4."""
    run = tmp_path_factory.mktemp("saved")
    for step in (2, 4):
        save(run, step, best=step == 2)
    return run


@pytest.fixture
def run(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "run")


@pytest.fixture
def show(run, capsys):
    """Run the command on the run, and return its exit code and what it printed."""

    def call(*words, folder=run):
        code = main(["checkpoints", str(folder), *words])
        printed = capsys.readouterr()
        assert printed.err == ""
        return code, printed.out

    return call


def cells(out):
    """The cells of the table's rows."""
    rows = [line.split("\u2502")[1:-1] for line in out.splitlines() if line.startswith("\u2502")]
    return [[cell.strip() for cell in row] for row in rows]


def title(out):
    """The title of the table, which a narrow table breaks into lines."""
    return "".join(out.partition("\u250f")[0].split())


def mib(folder):
    return f"{sum(file.stat().st_size for file in folder.rglob('*') if file.is_file()) / 2**20:.1f}"


def flip(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def row(run, step, marks, state):
    folder = run / "checkpoints" / f"step-{step}"
    return [f"step-{step}", mib(folder), "1", read_manifest(folder).written, marks, state]


@pytest.mark.parametrize("words", [[], ["--verify"]])
def test_whole_checkpoints_are_listed(run, show, words):
    code, out = show(*words)
    assert code == 0
    assert title(out) == f"{run}/checkpoints"
    assert ("every byte checked" in out) == bool(words)
    assert ("files and sizes" in out) != bool(words)
    assert cells(out) == [row(run, 2, "best", "valid"), row(run, 4, "latest", "valid")]
    assert "FAULT" not in out


def test_the_size_is_that_of_all_files_in_mib(run, show):
    """A file of 3.5 MiB, more than the rest has together by far."""
    (run / "checkpoints" / "step-2" / "policy" / "more").write_bytes(bytes(7 * 2**19))
    assert cells(show()[1])[0][:2] == ["step-2", "3.5"]


def test_a_checkpoint_that_is_latest_and_best_shows_both(run, show):
    (run / "checkpoints" / "best").write_text("step-4\n")
    assert [cell[4] for cell in cells(show()[1])] == ["", "latest best"]


def test_only_verify_finds_a_changed_byte(run, show):
    weights = run / "checkpoints" / "step-2" / "policy" / "rank0-0.safetensors"
    flip(weights)
    assert show()[0] == 0
    code, out = show("--verify")
    assert code == 5
    assert [cell[5] for cell in cells(out)] == ["FAULT, see below", "valid"]
    assert out.splitlines()[-1].startswith(f"{weights}: got SHA-256 ")


@pytest.mark.parametrize(("step", "code"), [(4, 5), (2, 0)])
def test_a_missing_file_is_a_fault_and_of_the_newest_checkpoint_an_error(run, show, step, code):
    """run.resume=true does not use the older one; --verify checks all of them."""
    missing = run / "checkpoints" / f"step-{step}" / "trainer.json"
    missing.unlink()
    got, out = show()
    assert got == code
    assert out.splitlines()[-1] == f"{missing}: missing"
    assert [cell[5] for cell in cells(out)] == ["FAULT, see below", "valid"][:: 1 if step == 2 else -1]
    assert show("--verify")[0] == 5


def test_a_missing_manifest_leaves_fields_unknown(run, show):
    (run / "checkpoints" / "step-4" / "manifest.json").unlink()
    code, out = show()
    assert code == 5
    assert cells(out)[1][2:] == ["?", "?", "latest", "FAULT, see below"]


@pytest.mark.parametrize("words", [[], ["--verify"]])
def test_without_latest_a_run_cannot_resume(run, show, words):
    latest = run / "checkpoints" / "latest"
    latest.unlink()
    code, out = show(*words)
    assert (code, out.splitlines()[-1]) == (5, f"{latest}: missing")
    latest.write_text("step-6\n")
    code, out = show(*words)
    assert (code, out.splitlines()[-1]) == (5, f"{latest}: names 'step-6', which is not a checkpoint in this folder")
    assert [cell[4] for cell in cells(out)] == ["best", ""]


def test_a_wrong_best_is_reported_and_is_no_error(run, show):
    best = run / "checkpoints" / "best"
    best.write_text("hello")
    code, out = show()
    assert (code, out.splitlines()[-1]) == (0, f"{best}: names 'hello', which is not a checkpoint in this folder")
    assert show("--verify")[0] == 5
    best.unlink()
    assert show("--verify")[0] == 0


@pytest.mark.parametrize("words", [[], ["--verify"]])
def test_a_run_without_checkpoints(tmp_path, show, words):
    folder = tmp_path / "new"
    folder.mkdir()
    assert show(*words, folder=folder) == (0, f"{folder}: no checkpoint\n")
    (folder / "checkpoints" / ".step-2").mkdir(parents=True)
    assert show(*words, folder=folder) == (0, f"{folder}: no checkpoint\n")


def test_what_a_killed_run_left_is_not_listed(run, show):
    shutil.copytree(run / "checkpoints" / "step-2", run / "checkpoints" / ".old-step-1")
    assert [cell[0] for cell in cells(show("--verify")[1])] == ["step-2", "step-4"]


def test_the_status_of_the_run_is_the_last_line(run, show):
    write_status(run, State.running, 5)
    assert show()[1].splitlines()[-1] == "status: running at step 5"
    write_status(run, State.stopped, 5, reason="stopped by SIGTERM\x1b[31m after step 5", exit_code=75)
    code, out = show()
    assert (code, out.splitlines()[-1]) == (0, "status: stopped at step 5: stopped by SIGTERM\ufffd[31m after step 5")


def test_a_name_in_brackets_is_not_markup(run, tmp_path, show):
    """To rich, `[red]` is a colour and `[/x]` an error."""
    for name in ("demo[red]", "a[b", "v[1]"):
        folder = shutil.copytree(run, tmp_path / name)
        code, out = show(folder=folder)
        assert code == 0
        assert title(out) == f"{folder}/checkpoints"
        assert len(cells(out)) == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "usage: rlhf checkpoints RUN_DIR [--verify], got nothing"),
        (["--verify"], "usage: rlhf checkpoints RUN_DIR [--verify], got --verify"),
        (["a", "b"], "usage: rlhf checkpoints RUN_DIR [--verify], got a b"),
        (["a", "--verfy"], "usage: rlhf checkpoints RUN_DIR [--verify], got a --verfy"),
        (["nowhere/at/all"], "nowhere/at/all: no such run folder"),
    ],
)
def test_wrong_arguments_are_an_input_error(capsys, words, message):
    assert main(["checkpoints", *words]) == 2
    assert capsys.readouterr() == ("", f"rlhf: error: {message}\n")


def test_reading_changes_nothing(run, show):
    def content():
        return {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in run.rglob("*")}

    before = content()
    show("--verify")
    assert content() == before
