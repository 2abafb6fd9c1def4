"""A checkpoint that is not what was written is refused, with the file's name and a way out."""

import json
import re
import shutil
from pathlib import Path

import pytest

from rlhf_cli.cli import main
from rlhf_cli.config.errors import CheckpointError, InputError
from rlhf_cli.engine import checkpoint_manifest as manifests
from rlhf_cli.engine.checkpoint import verified_checkpoint
from rlhf_cli.engine.checkpoint_manifest import (
    BEST,
    LATEST,
    FileRecord,
    Manifest,
    check_hashes,
    find_checkpoint,
    pointed,
    read_manifest,
    saved_config,
    steps,
)
from tests.unit.engine.test_checkpoint import save

FILES = (
    "policy/rank0-0.safetensors",
    "value_model/rank0-0.safetensors",
    "trainer.json",
    "rng-rank0.json",
    "config.yaml",
    "manifest.json",
)


@pytest.fixture(scope="module")
def saved(tmp_path_factory, _process_group):
    """A run with the checkpoints of step 2 and 4, to be copied."""
    run = tmp_path_factory.mktemp("saved")
    for step in (2, 4):
        save(run, step)
    return run


@pytest.fixture
def run(saved, tmp_path, one_rank):
    return shutil.copytree(saved, tmp_path / "run")


@pytest.fixture
def older(run):
    return run / "checkpoints" / "step-2"


@pytest.fixture
def newest(run):
    return run / "checkpoints" / "step-4"


def truncate(file):
    file.write_bytes(file.read_bytes()[:-3])


def halve(file):
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])


def empty(file):
    file.write_bytes(b"")


def delete(file):
    file.unlink()


def lengthen(file):
    file.write_bytes(file.read_bytes() + b"\n")


def flip(at):
    def change(file):
        content = bytearray(file.read_bytes())
        content[int(at * (len(content) - 1))] ^= 1
        file.write_bytes(content)

    return change


def swap(file):
    """Exchange it with another file of the same checkpoint."""
    checkpoint = next(folder for folder in file.parents if folder.name.startswith("step-"))
    other = checkpoint / next(name for name in FILES if name != str(file.relative_to(checkpoint)))
    aside = checkpoint / "aside"
    file.rename(aside)
    other.rename(file)
    aside.rename(other)


def take_from_the_other_step(file):
    parts = [{"step-2": "step-4", "step-4": "step-2"}.get(part, part) for part in file.parts]
    shutil.copy(Path(*parts), file)


DAMAGES = {
    "truncated": truncate,
    "halved": halve,
    "emptied": empty,
    "deleted": delete,
    "first-bit": flip(0),
    "middle-bit": flip(0.5),
    "late-bit": flip(0.97),
    "swapped": swap,
    "other-step": take_from_the_other_step,
}


def refused(run, wanted=True):
    with pytest.raises(CheckpointError) as caught:
        verified_checkpoint(run, wanted)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def names_a_file_of(folder, message):
    """The file or files at fault: a swap has two."""
    return any(f"{folder / name}: " in message for name in FILES)


CASES = [(damage, name) for damage in DAMAGES for name in FILES]
CASES.remove(("other-step", "config.yaml"))  # the same options in both


@pytest.mark.parametrize(("damage", "name"), CASES)
def test_a_damaged_checkpoint_is_refused(run, older, newest, name, damage):
    DAMAGES[damage](newest / name)
    message = refused(run)
    if damage == "swapped":
        assert names_a_file_of(newest, message)
    else:
        assert message.startswith(f"{newest / name}: ")
    assert message.endswith(f". {older} is intact: continue from it with run.resume={older}")
    assert message == refused(run, str(newest))
    assert verified_checkpoint(run, str(older)) == older
    truncate(older / name)
    assert refused(run).endswith(f". No checkpoint of {run} is intact: start again with another run.name")


@pytest.mark.parametrize("name", FILES)
def test_a_longer_file_is_refused_by_its_size_or_by_its_hash(run, newest, name):
    """But for a newline after the manifest, which changes nothing that it says."""
    lengthen(newest / name)
    if name == "manifest.json":
        assert verified_checkpoint(run, True) == newest
    else:
        assert refused(run).startswith(f"{newest / name}: got ")


def test_no_bit_of_a_manifest_can_change_what_it_says(newest):
    """Of every byte one bit: the file is refused, or, where the byte is between two words, says what it said."""
    content, said = (newest / "manifest.json").read_bytes(), read_manifest(newest)
    for at, byte in enumerate(content):
        changed = bytearray(content)
        changed[at] ^= 1 << at % 8
        (newest / "manifest.json").write_bytes(changed)
        try:
            assert read_manifest(newest) == said
        except CheckpointError:
            continue
        assert chr(byte).isspace()


@pytest.mark.parametrize("part", range(3))
def test_each_rank_looks_at_a_part_and_all_at_every_file(newest, part):
    """With three ranks each of the five files is read by one of them."""
    manifest = read_manifest(newest)
    seen = []
    for record in manifest.files:
        content = (newest / record.name).read_bytes()
        flip(0.5)(newest / record.name)
        try:
            check_hashes(newest, manifest, part, 3)
        except CheckpointError:
            seen.append(record.name)
        (newest / record.name).write_bytes(content)
    assert seen == [record.name for record in manifest.files][part::3]
    assert len(seen) in (1, 2)


def delete_pointer(file):
    file.unlink()
    return "missing"


def empty_pointer(file):
    file.write_text("")
    return "names '', which is not a checkpoint in this folder"


def put(words, shown=None):
    def change(file):
        file.write_bytes(words)
        return f"names {(shown or words.decode())!r}, which is not a checkpoint in this folder"

    return change


POINTERS = {
    "deleted": delete_pointer,
    "emptied": empty_pointer,
    "missing-step": put(b"step-6"),
    "foreign": put(b"hello"),
    "outside": put(b"../run"),
    "two": put(b"step-2\nstep-4"),
    "not-utf8": put(b"\xffstep-4", "\ufffdstep-4"),
    "long": put(b"x" * 4000, "x" * 40),
}


@pytest.mark.parametrize("change", POINTERS)
def test_a_wrong_pointer_is_refused(run, newest, change):
    latest = run / "checkpoints" / LATEST
    fault = POINTERS[change](latest)
    assert refused(run) == f"{latest}: {fault}. {newest} is intact: continue from it with run.resume={newest}"
    assert find_checkpoint(run, str(newest))[0] == newest


def test_a_pointer_says_whom_it_names(run, newest):
    assert pointed(run / "checkpoints", LATEST) == newest
    assert pointed(run / "checkpoints", BEST) is None
    (run / "checkpoints" / BEST).write_text("step-9\n")
    with pytest.raises(CheckpointError, match="best: names 'step-9', which is not a checkpoint in this folder"):
        pointed(run / "checkpoints", BEST)


def test_a_run_without_a_checkpoint_is_told_so(tmp_path):
    for make in (lambda: None, tmp_path.joinpath("a", "checkpoints", ".step-2").mkdir):
        (tmp_path / "a" / "checkpoints").mkdir(parents=True, exist_ok=True)
        make()
        for wanted, given in ((True, "True"), (str(tmp_path / "x"), f"{tmp_path}/x")):
            with pytest.raises(InputError) as caught:
                find_checkpoint(tmp_path / "a", wanted)
            assert str(caught.value) == (
                f"run.resume={given}: {tmp_path}/a has no checkpoint. Choose another run.name, or delete the folder"
            )
    with pytest.raises(InputError) as caught:
        find_checkpoint(tmp_path / "nowhere", True)
    assert str(caught.value) == (
        f"run.resume=True: there is no run at {tmp_path}/nowhere. Remove run.resume to start it"
    )


@pytest.mark.parametrize("other", ["../other/checkpoints/step-2", "checkpoints", ".", "checkpoints/step-2/policy"])
def test_a_checkpoint_of_another_run_is_refused(run, other):
    shutil.copytree(run, run.with_name("other"))
    wanted = str(run / other)
    with pytest.raises(InputError) as caught:
        find_checkpoint(run, wanted)
    assert str(caught.value) == (
        f"run.resume={wanted}: not a checkpoint of this run; wanted one of {run}/checkpoints/step-*"
    )


def test_a_checkpoint_that_is_not_there_is_refused_with_those_that_are(run):
    wanted = run / "checkpoints" / "step-6"
    with pytest.raises(InputError) as caught:
        find_checkpoint(run, str(wanted))
    assert str(caught.value) == f"run.resume={wanted}: no such checkpoint; wanted one of step-2, step-4"


def test_a_checkpoint_is_found_by_any_path_to_it(run, older, monkeypatch):
    monkeypatch.chdir(run)
    for path in ("checkpoints/step-2", "checkpoints/step-2/", "./checkpoints/../checkpoints/step-2", str(older)):
        assert find_checkpoint(run, path)[0] == older


def test_what_a_killed_run_left_is_no_checkpoint(run, older, newest):
    for leftover in (".step-6", ".old-step-1"):
        shutil.copytree(older, run / "checkpoints" / leftover)
        message = refused(run, str(run / "checkpoints" / leftover))
        assert message.startswith(f"{run}/checkpoints/{leftover}/manifest.json: ")
        assert message.endswith(f". {newest} is intact: continue from it with run.resume={newest}")
    assert steps(run / "checkpoints") == [2, 4]


def test_steps_are_in_the_order_of_their_numbers(tmp_path):
    for name in ("step-10", "step-9", "step-100", "step-x", "astep-1", ".step-3", "step-2b"):
        (tmp_path / name).mkdir()
    assert steps(tmp_path) == [9, 10, 100]
    assert steps(tmp_path / "none") == []


def test_the_newest_whole_one_is_the_way_out(run, older, newest):
    """Not merely an older one: 6 is damaged too, 4 is whole."""
    save(run, 6, keep_last=3)
    halve(run / "checkpoints" / "step-6" / "trainer.json")
    assert refused(run).endswith(f". {newest} is intact: continue from it with run.resume={newest}")


def test_what_was_written_is_read(tmp_path):
    folder = tmp_path / "step-3"
    folder.mkdir()
    (folder / "a").write_text("abc")
    # printf abc | sha256sum
    known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    written = Manifest(3, 8, "2026-01-02T03:04:05+0000", (FileRecord("a", 3, known),))
    written.write(folder)
    assert read_manifest(folder) == written
    check_hashes(folder, written)
    (folder / "a").write_text("abd")
    with pytest.raises(CheckpointError) as caught:
        check_hashes(folder, read_manifest(folder))
    # printf abd | sha256sum
    got = "a52d159f262b2c6ddb724a61840befc36eb30c88877a4030b65cbe86298449c9"
    assert str(caught.value) == f"{folder}/a: got SHA-256 {got}, wanted {known}"


def test_another_format_is_named(newest, monkeypatch):
    """A manifest of a later version, whole, with its own hash."""
    manifest = read_manifest(newest)
    with monkeypatch.context() as later:
        later.setattr(manifests, "FORMAT", 2)
        manifest.write(newest)
    with pytest.raises(CheckpointError) as caught:
        read_manifest(newest)
    assert str(caught.value) == f"{newest}/manifest.json: got format 2, wanted format 1"


@pytest.mark.parametrize("content", ["[]", "null", "3", '"a"', "{}", '{"manifest_sha256": "x"}', "{", "\x00" * 9])
def test_what_is_no_manifest_is_named(newest, content):
    (newest / "manifest.json").write_text(content)
    with pytest.raises(CheckpointError, match=re.escape(f"{newest}/manifest.json: not a manifest (")):
        read_manifest(newest)


def test_a_manifest_with_another_hash_of_itself_shows_both(newest):
    file = newest / "manifest.json"
    body = json.loads(file.read_text())
    own, body["world_size"] = body["manifest_sha256"], 2
    file.write_text(json.dumps(body))
    with pytest.raises(CheckpointError) as caught:
        read_manifest(newest)
    shown = re.fullmatch(re.escape(f"{file}: got SHA-256 ") + r"([0-9a-f]{64})(.*)", str(caught.value))
    assert shown[2] == f", wanted {own}; the manifest has changed" != f", wanted {shown[1]}; the manifest has changed"


def test_the_options_of_a_checkpoint_are_those_it_was_written_with(run, older, newest):
    assert saved_config(run, True) == (newest, "run: {name: a}\n")
    assert saved_config(run, str(older)) == (older, "run: {name: a}\n")
    flip(0.5)(newest / "config.yaml")
    changed = re.escape(f"{newest}/config.yaml: got SHA-256 ") + ".*"
    whole = re.escape(f". {older} is intact: continue from it with run.resume={older}")
    for wanted in (True, str(newest)):
        with pytest.raises(CheckpointError, match=f"^{changed}{whole}$"):
            saved_config(run, wanted)
    flip(0.5)(older / "trainer.json")
    none = re.escape(f". No checkpoint of {run} is intact: start again with another run.name")
    with pytest.raises(CheckpointError, match=f"^{changed}{none}$"):
        saved_config(run, True)


def test_changed_options_of_a_checkpoint_are_refused_by_the_command_with_a_way_out(run, older, newest, capsys):
    flip(0.5)(newest / "config.yaml")
    words = ["conf=tiny", f"run.output_dir={run.parent}", f"run.name={run.name}", "run.resume=true"]
    assert main(["train-ppo", *words]) == 5
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"rlhf: error: {newest}/config.yaml: ")
    assert line.endswith(f". {older} is intact: continue from it with run.resume={older}")
