"""A run killed, or out of room, at any instant goes on from a whole checkpoint: every event on the disk, one by one."""

import errno
import io
import json
import os
import pickle
import random
import shutil
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch

from rlhf_cli.config.errors import CheckpointError, DiskError, InputError, RunError
from rlhf_cli.engine import distributed, shards
from rlhf_cli.engine.checkpoint import Checkpoints, write_folder
from rlhf_cli.engine.checkpoint_manifest import (
    BEST,
    LATEST,
    check_hashes,
    find_checkpoint,
    pointed,
    read_manifest,
    steps,
)
from rlhf_cli.engine.shards import open_shards, write_shards
from rlhf_cli.system import durable_files as files

pytestmark = pytest.mark.usefixtures("one_rank")

NAMES = ("policy", "value_model")


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    """Thousands of saves: nobody pulls the plug here, and one rank has nobody to exchange its items with."""
    monkeypatch.setattr(os, "fsync", lambda _: None)
    monkeypatch.setattr(distributed, "gather_all", lambda item: [item])


class Killed(BaseException):
    """As kill -9: no `except Exception` sees it."""


class Engine:
    """What Checkpoints asks of an engine: two tensors filled with one value."""

    def __init__(self, value):
        self.tensors = {"master/a": torch.full((5,), value), "exp_avg/a": torch.full((5,), -value)}
        self.num_skipped = int(value)
        self.state_bytes = 40

    def save(self, folder):
        folder.mkdir(parents=True, exist_ok=True)
        write_shards(self.tensors.items(), folder, distributed.rank())

    def load(self, folder, num_skipped):
        with open_shards(folder) as reader:
            self.tensors = {name: reader.read(name, 0, 5) for name in self.tensors}
        self.num_skipped = num_skipped


@pytest.fixture
def tmp_path():
    """Thousands of small files: in memory, where there is such a place."""
    memory = Path("/dev/shm")
    with TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as folder:
        yield Path(folder)


def of(run, step=0, keep_last=2):
    engines = {name: Engine(step + number / 2) for number, name in enumerate(NAMES)}
    return Checkpoints(run / "checkpoints", engines, keep_last, "run: {name: a}\n")


def save(run, step, keep_last=2, best=False):
    """Save what a trainer has at a step: all of it follows from the step."""
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(step)
    checkpoints = of(run, step, keep_last)
    named = pointed(run / "checkpoints", BEST) if (run / "checkpoints").exists() else None
    checkpoints.best_step = None if named is None else int(named.name.removeprefix("step-"))  # as `load` finds it
    checkpoints.save({"step": step, "kl_coef": step / 7}, best)


def load(run, folder, keep_last=2):
    """Load in a new process, so to say, and see that all is as it was saved at that step."""
    random.seed(99)
    loaded = of(run, 99, keep_last)
    state = loaded.load(folder)
    step = state["step"]
    assert state == {"step": step, "kl_coef": step / 7}
    for number, name in enumerate(NAMES):
        engine, expected = loaded.engines[name], Engine(step + number / 2)
        assert engine.num_skipped == expected.num_skipped
        for key, tensor in expected.tensors.items():
            assert torch.equal(engine.tensors[key], tensor)
    assert random.random() == random.Random(step).random()
    return step


def resume(run, keep_last=2):
    """Go on from the newest checkpoint, every byte of it checked; return its step."""
    folder, manifest = find_checkpoint(run, True)
    check_hashes(folder, manifest)
    assert load(run, folder, keep_last) == manifest.step
    return manifest.step


def check_all_whole(run):
    """What has the name of a checkpoint is one: nobody has to guess which."""
    for step in steps(run / "checkpoints"):
        folder = run / "checkpoints" / f"step-{step}"
        check_hashes(folder, read_manifest(folder))


def names(run):
    """What is in `checkpoints`, but for the temporary file of a pointer, which the next one replaces."""
    return {path.name for path in (run / "checkpoints").iterdir() if path.is_dir() or path.name[0] != "."}


class Disk:
    """Counts what is done to the disk, and fails at event number `at`: before it, or with half of it done.

    After one event is before the next. Killed: from there on nothing happens any more. OSError: the disk is full, and
    from there on only what frees room works.
    """

    def __init__(self, monkeypatch):
        self.armed = False
        for name in ("rename", "replace", "mkdir", "unlink", "rmdir"):
            monkeypatch.setattr(os, name, self._event(name, getattr(os, name)))
        monkeypatch.setattr(os, "fsync", self._event("fsync", os.fsync, self._lose_half))
        save_file, opened = shards.save_file, io.open
        monkeypatch.setattr(shards, "save_file", self._event("save_file", save_file, self._write_half(save_file)))
        writing = self._event("open", opened, lambda file, *_, **__: opened(file, "w").close())
        monkeypatch.setattr(
            io, "open", lambda file, mode="r", *a, **k: (opened if mode in "rb" else writing)(file, mode, *a, **k)
        )

    @contextmanager
    def failing(self, at, half=False, error=Killed):
        self.at, self.half, self.error, self.events, self.failed = at, half, error, [], False
        self.armed = True
        try:
            yield self.events
        finally:
            self.armed = False

    def _event(self, name, action, half=None):
        def carry_out(*args, **kwargs):
            if not self.armed:
                return action(*args, **kwargs)
            named = (arg for arg in args if isinstance(arg, str | os.PathLike))
            what = os.readlink(f"/proc/self/fd/{args[0]}") if name == "fsync" else next(named)
            self.events.append((f"{name} {what}", half is not None))
            frees = name in ("unlink", "rmdir")
            if self.failed and (self.error is Killed or not frees):
                raise self._failure()
            if len(self.events) - 1 != self.at:
                return action(*args, **kwargs)
            self.failed = True
            if self.half:
                half(*args, **kwargs)
            raise self._failure()

        return carry_out

    def _failure(self):
        return Killed() if self.error is Killed else OSError(errno.ENOSPC, "No space left on device")

    @staticmethod
    def _lose_half(descriptor):
        """A power cut before a file is on the disk."""
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        if path.is_file():
            os.truncate(path, path.stat().st_size // 2)

    @staticmethod
    def _write_half(save_file):
        def write(tensors, path):
            save_file(tensors, path)
            os.truncate(path, path.stat().st_size // 2)

        return write


@pytest.fixture
def disk(monkeypatch):
    return Disk(monkeypatch)


def one_by_one(disk, base, act, error=Killed):
    """Carry out `act(run)` on copies of a run, failing at each of its events in turn; yield each copy after it."""
    run = base.with_name("whole")
    shutil.copytree(base, run)
    with disk.failing(-1) as events:
        act(run)
    cuts = [(at, False) for at in range(len(events))]
    if error is Killed:
        cuts += [(at, True) for at, (_, can_be_half) in enumerate(events) if can_be_half]
    assert len(cuts) > 5
    for at, half in cuts:
        run = base.with_name(f"run-{at}")
        shutil.copytree(base, run)
        raised = None
        with disk.failing(at, half, error):
            try:
                act(run)
            except (Killed, RunError, OSError) as caught:
                raised = caught
        yield run, f"event {at}{', half done' * half}: {events[at][0]}", raised
        shutil.rmtree(run)


def base_of(tmp_path, saved, keep_last=2, best=()):
    base = tmp_path / "base"
    for step in saved:
        save(base, step, keep_last, step in best)
    return base


@pytest.mark.parametrize(
    ("keep_last", "was_best", "best"), [(2, False, False), (1, False, False), (1, True, False), (1, True, True)]
)
def test_a_run_killed_while_it_saves_goes_on(disk, tmp_path, keep_last, was_best, best):
    """With keep_last=1 the older checkpoint is dropped, unless `best` names it."""
    base = base_of(tmp_path, (2,), keep_last, {2} if was_best else ())
    seen = set()
    for run, where, raised in one_by_one(disk, base, lambda run: save(run, 4, keep_last, best)):
        assert isinstance(raised, Killed), where
        check_all_whole(run)
        assert was_best == (pointed(run / "checkpoints", BEST) is not None), where
        step = resume(run, keep_last)
        seen.add(step)
        for following in (4, 6):
            save(run, following, keep_last)
        assert resume(run, keep_last) == 6, where
        named = pointed(run / "checkpoints", BEST)
        pointers = {LATEST, BEST} if named else {LATEST}
        kept = {f"step-{step}" for step in (4, 6)[-keep_last:]} | ({named.name} if named else set())
        assert names(run) == pointers | kept, where
    assert seen == {2, 4}


def test_a_run_killed_while_it_drops_several_goes_on(disk, tmp_path):
    """Three checkpoints, of which the second is the best, and from now on only one is to be kept."""
    base = base_of(tmp_path, (2, 4, 6), 3, {4})
    seen = set()
    for run, where, _ in one_by_one(disk, base, lambda run: save(run, 8, 1)):
        check_all_whole(run)
        assert pointed(run / "checkpoints", BEST).name == "step-4", where
        seen.add(resume(run, 1))
        save(run, 10, 1)
        assert names(run) == {LATEST, BEST, "step-4", "step-10"}, where
    assert seen == {6, 8}


def test_a_run_killed_in_its_first_save_has_a_checkpoint_or_none(disk, tmp_path):
    """What has its name is whole, and can be named."""
    (tmp_path / "base").mkdir()
    published = 0
    for run, where, _ in one_by_one(disk, tmp_path / "base", lambda run: save(run, 2)):
        if not steps(run / "checkpoints"):
            with pytest.raises(InputError, match="has no checkpoint"):
                find_checkpoint(run, True)
            continue
        published += 1
        folder, manifest = find_checkpoint(run, str(run / "checkpoints" / "step-2"))
        check_hashes(folder, manifest)
        assert load(run, folder) == 2
        assert resume(run) == 2
        save(run, 4)
        assert names(run) == {LATEST, "step-2", "step-4"}, where
    assert published > 0


def test_a_run_killed_in_its_first_save_goes_on_by_itself(disk, tmp_path):
    """A scheduler that starts it again says run.resume=true, and cannot read what to do instead."""
    (tmp_path / "base").mkdir()
    stuck = []
    for run, where, _ in one_by_one(disk, tmp_path / "base", lambda run: save(run, 2)):
        try:
            if steps(run / "checkpoints"):
                resume(run)
        except CheckpointError as error:
            stuck.append(f"{where}: {error}")
    assert stuck == []


@pytest.mark.parametrize("best", [2, 6])
def test_a_run_killed_while_it_goes_back_goes_on(disk, tmp_path, best):
    base = base_of(tmp_path, (2, 4, 6), 3, {best})

    def go_back(run):
        load(run, run / "checkpoints" / "step-2", 3)

    seen = set()
    for run, where, raised in one_by_one(disk, base, go_back):
        assert isinstance(raised, Killed), where
        check_all_whole(run)
        folder, manifest = find_checkpoint(run, True)
        check_hashes(folder, manifest)
        seen.add(manifest.step)
        assert pointed(run / "checkpoints", BEST) in (None, run / "checkpoints" / f"step-{best}"), where
        go_back(run)
        for following in (4, 6):
            save(run, following, 3)
        kept = {LATEST, "step-2", "step-4", "step-6"} | ({BEST} if best == 2 else set())
        assert names(run) == kept, where
        assert resume(run, 3) == 6, where
    assert seen == {2, 6}


def test_all_is_on_the_disk_before_it_has_its_name(disk, tmp_path):
    """Else a power cut could leave the name of a checkpoint without its content."""
    base = base_of(tmp_path, (2,))
    checkpoints, staging = base / "checkpoints", base / "checkpoints" / ".step-4"
    with disk.failing(-1) as events:
        save(base, 4, best=True)
    done = [event for event, _ in events]
    published = done.index(f"rename {staging}")
    synced = {event.removeprefix("fsync ") for event in done[:published] if event.startswith("fsync ")}
    written = {path.relative_to(checkpoints / "step-4") for path in (checkpoints / "step-4").rglob("*")}
    replaced = {"trainer.json", "config.yaml", "manifest.json"}
    as_written = {staging / (f".{path}.tmp" if str(path) in replaced else path) for path in written}
    assert synced == {str(path) for path in as_written | {staging}}
    assert done[published + 1] == f"fsync {checkpoints}"
    for pointer in (LATEST, BEST):
        at = done.index(f"replace {checkpoints}/.{pointer}.tmp")
        assert at > published
        assert done[at - 1 : at + 2 : 2] == [f"fsync {checkpoints}/.{pointer}.tmp", f"fsync {checkpoints}"]


def test_going_back_drops_what_came_later(tmp_path):
    base = base_of(tmp_path, (2, 4, 6), 3, {4})
    assert load(base, base / "checkpoints" / "step-4") == 4
    assert names(base) == {LATEST, BEST, "step-2", "step-4"}
    assert load(base, base / "checkpoints" / "step-2") == 2
    assert names(base) == {LATEST, "step-2"}
    assert resume(base) == 2


def test_going_back_makes_the_best_until_then_the_best_again(tmp_path):
    """Step 2 was the best when it was saved, and is again once step 4, which beat it, is forgotten."""
    base = base_of(tmp_path, (2, 4), 2, {2, 4})
    load(base, base / "checkpoints" / "step-2")
    assert pointed(base / "checkpoints", BEST) == base / "checkpoints" / "step-2"


def test_the_best_is_the_newest_best_also_after_a_kill(disk, tmp_path):
    """Both were the best when they were saved: who goes on from one of them has that one as the best."""
    base = base_of(tmp_path, (2,), 2, {2})
    wrong = []
    for run, where, _ in one_by_one(disk, base, lambda run: save(run, 4, 2, True)):
        step = resume(run)
        if pointed(run / "checkpoints", BEST) != run / "checkpoints" / f"step-{step}":
            wrong.append(where)
    assert wrong == []


@pytest.mark.parametrize("keep_last", [1, 2, 3])
@pytest.mark.parametrize("best", [None, 1, 3, 6])
def test_the_last_and_the_best_are_kept(tmp_path, keep_last, best):
    for step in range(1, 7):
        save(tmp_path, step, keep_last, step == best)
        assert resume(tmp_path, keep_last) == step
    kept = set(range(7 - keep_last, 7)) | ({best} if best else set())
    assert names(tmp_path) == {LATEST, *(f"step-{step}" for step in kept)} | ({BEST} if best else set())


def test_what_latest_names_is_kept_though_later_ones_are_there(tmp_path):
    """As a kill in the middle of going back leaves it: `latest` is behind."""
    base_of(tmp_path, (2, 4, 6), 3)
    checkpoints = of(tmp_path / "base", 3, 1)
    for later in ("step-7", "step-8"):
        shutil.copytree(checkpoints.folder / "step-6", checkpoints.folder / later)
    checkpoints.save({"step": 3})
    assert names(tmp_path / "base") == {LATEST, "step-3", "step-8"}


def test_a_run_that_ends_before_its_time_keeps_all_its_checkpoints(tmp_path):
    """An older one may be the one to go on from; the next save that may drop drops them all."""
    checkpoints = of(tmp_path, 1, 1)
    for step in (1, 2, 3):
        checkpoints.save({"step": step}, drop_oldest=False)
    assert names(tmp_path) == {LATEST, "step-1", "step-2", "step-3"}
    checkpoints.save({"step": 4})
    assert names(tmp_path) == {LATEST, "step-4"}


def test_a_checkpoint_stands_though_the_oldest_cannot_be_dropped(tmp_path, monkeypatch):
    save(tmp_path, 1, 1)

    def refuse(_, __):
        raise OSError(errno.EIO, "Input/output error")

    checkpoints = of(tmp_path, 2, 1)
    monkeypatch.setattr(Checkpoints, "_drop", refuse)
    with pytest.raises(
        DiskError, match=f"^cannot write {tmp_path}/checkpoints .*Input/output error; earlier checkpoints"
    ):
        checkpoints.save({"step": 2, "kl_coef": 2 / 7}, best=True)
    assert checkpoints.best_step == 2
    check_all_whole(tmp_path)
    assert names(tmp_path) == {LATEST, BEST, "step-1", "step-2"}
    assert pointed(tmp_path / "checkpoints", LATEST) == tmp_path / "checkpoints" / "step-2"


@pytest.mark.parametrize(("pointer", "best"), [("step-1", 2), (None, 2), ("step-2", 2), ("step-3", None)])
def test_the_best_is_the_one_that_the_checkpoint_knows(tmp_path, pointer, best):
    """Whatever the pointer says: a kill, or a hand, may have left it at another step, or nowhere."""
    checkpoints = of(tmp_path, 1, 3)
    for step in (1, 2, 3):
        checkpoints.save({"step": step}, best=step == best)
    file = tmp_path / "checkpoints" / BEST
    file.unlink(missing_ok=True)
    if pointer is not None:
        file.write_text(f"{pointer}\n")
    loaded = of(tmp_path, 0, 3)
    assert loaded.load(tmp_path / "checkpoints" / "step-3") == {"step": 3}
    assert loaded.best_step == best
    assert pointed(tmp_path / "checkpoints", BEST) == (best and tmp_path / "checkpoints" / f"step-{best}")


def test_a_best_that_was_deleted_is_none(tmp_path):
    for step in (1, 2):
        save(tmp_path, step, best=step == 1)
    shutil.rmtree(tmp_path / "checkpoints" / "step-1")
    loaded = of(tmp_path)
    loaded.load(tmp_path / "checkpoints" / "step-2")
    assert loaded.best_step is None
    assert names(tmp_path) == {LATEST, "step-2"}


def test_a_checkpoint_knows_how_much_was_logged(tmp_path):
    checkpoints = of(tmp_path)
    for step, number in ((1, 7), (2, 9)):
        checkpoints.on_save = lambda number=number: number
        checkpoints.save({"step": step})
    loaded = of(tmp_path)
    assert loaded.num_logged == 0
    for step, number in ((2, 9), (1, 7)):
        assert loaded.load(tmp_path / "checkpoints" / f"step-{step}") == {"step": step}
        assert loaded.num_logged == number


def fail(error):
    raise error


@pytest.mark.parametrize("only_first", [False, True])
def test_the_error_of_another_rank_is_second_hand(monkeypatch, only_first):
    """The rank that failed knows more, and speaks."""
    theirs = pickle.loads(pickle.dumps(DiskError("cannot write x")))
    assert not theirs.second_hand
    monkeypatch.setattr(distributed, "gather_all", lambda item: [(None, theirs), item])
    monkeypatch.setattr(distributed, "rank", lambda: 1)
    with pytest.raises(DiskError, match=r"^cannot write x$") as caught:
        distributed.together(lambda: 3, only_first)
    assert caught.value.second_hand is True
    assert caught.value.code == 9
    assert not DiskError("another").second_hand


@pytest.mark.parametrize("error", [DiskError("cannot write x"), KeyError("x")])
def test_an_error_of_ones_own_is_first_hand(monkeypatch, error):
    """Also where another rank failed too; and the others get it as what can be pickled."""
    sent = []
    theirs = RunError("theirs")
    monkeypatch.setattr(distributed, "gather_all", lambda item: [(None, theirs), sent.append(item) or item])
    with pytest.raises(type(error)) as caught:
        distributed.together(lambda: fail(error))
    assert caught.value is error
    assert not getattr(error, "second_hand", False)
    assert not theirs.second_hand
    ((_, portable),) = pickle.loads(pickle.dumps(sent))
    assert str(portable) == ("cannot write x" if isinstance(error, DiskError) else "rank 0: KeyError: 'x'")


def fails_for_want_of_room(disk, base, act):
    """The events whose failure was told otherwise than as DiskError; what was there must stand after each."""
    wrong = []
    for run, where, raised in one_by_one(disk, base, act, OSError):
        if not isinstance(raised, DiskError):
            wrong.append(f"{where}: {type(raised).__name__}: {raised}")
            continue
        words = str(raised)
        assert words.startswith(f"cannot write {run / 'checkpoints'}"), where
        assert " bytes, " in words or " bytes), " in words, where
        assert words.endswith(
            "No space left on device; earlier checkpoints are intact. "
            "Free some disk space and continue with run.resume=true"
        ), where
        check_hashes(run / "checkpoints" / "step-2", find_checkpoint(run, str(run / "checkpoints" / "step-2"))[1])
        assert not [name for name in names(run) if name.startswith(".step-")], where
        assert resume(run) in (2, 4), where
        for following in (4, 6):
            save(run, following)
        assert names(run) == {LATEST, "step-4", "step-6"}, where
    return wrong


def test_a_full_disk_is_told_and_leaves_what_was(disk, tmp_path):
    """Every event of a save that drops nothing."""
    base = base_of(tmp_path, (2,))
    assert fails_for_want_of_room(disk, base, lambda run: save(run, 4)) == []


def test_a_disk_that_fails_while_the_oldest_is_dropped_is_told(disk, tmp_path):
    base = base_of(tmp_path, (1, 2))
    wrong = [
        (where, raised)
        for _, where, raised in one_by_one(disk, base, lambda run: save(run, 4), OSError)
        if not isinstance(raised, DiskError)
    ]
    assert wrong == []


def test_a_disk_that_fails_while_a_run_goes_back_is_told(disk, tmp_path):
    base = base_of(tmp_path, (2, 4), 2, {4})
    wrong = [
        (where, raised)
        for run, where, raised in one_by_one(disk, base, lambda run: load(run, run / "checkpoints" / "step-2"), OSError)
        if not isinstance(raised, DiskError)
    ]
    assert wrong == []


def test_the_bytes_of_a_disk_error_are_those_of_the_checkpoint(disk, tmp_path, monkeypatch):
    """Two engines of 40 bytes, and a MiB for the small files: 1048656 bytes."""
    monkeypatch.setattr(files, "free_bytes", lambda _: 12)
    with pytest.raises(DiskError) as caught:
        save(tmp_path, 2)
    assert str(caught.value) == (
        f"a checkpoint needs 1.00 MiB (1048656 bytes), but {tmp_path}/checkpoints has 12 bytes free. "
        "Free some space or set run.output_dir"
    )
    assert names(tmp_path) == set()
    monkeypatch.setattr(files, "free_bytes", lambda _: 2**30)
    with disk.failing(0, error=OSError), pytest.raises(DiskError) as caught:
        save(tmp_path, 2)
    assert str(caught.value) == (
        f"cannot write {tmp_path}/checkpoints/.step-2 (1.00 MiB (1048656 bytes), 1.00 GiB (1073741824 bytes) free): "
        "[Errno 28] No space left on device; earlier checkpoints are intact. "
        "Free some disk space and continue with run.resume=true"
    )


def test_what_is_no_fault_of_the_disk_keeps_its_name(tmp_path):
    checkpoints = of(tmp_path)
    checkpoints.on_save = lambda: {}["missing"]
    with pytest.raises(KeyError):
        checkpoints.save({"step": 1})
    assert names(tmp_path) == set()


def test_logs_are_on_the_disk_before_the_checkpoint_is_there(tmp_path):
    """A checkpoint without the metrics before it would leave a gap in them."""
    seen = []
    checkpoints = of(tmp_path)
    checkpoints.on_save = lambda: seen.append(steps(checkpoints.folder))
    for step in (1, 2):
        checkpoints.save({"step": step})
    assert seen == [[], [1]]


def test_what_is_in_a_checkpoint(tmp_path):
    save(tmp_path, 2)
    folder, manifest = find_checkpoint(tmp_path, True)
    small = {"config.yaml", "trainer.json", "rng-rank0.json"}
    assert {record.name for record in manifest.files} == small | {f"{name}/rank0-0.safetensors" for name in NAMES}
    assert {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()} == {
        *(record.name for record in manifest.files),
        "manifest.json",
    }
    assert (folder / "config.yaml").read_text() == "run: {name: a}\n"
    assert (manifest.step, manifest.world_size) == (2, 1)
    assert json.loads((folder / "trainer.json").read_text())["skipped_in_a_row"] == {"policy": 2, "value_model": 2}


def draws():
    return (
        [random.random(), random.gauss(0, 1), random.getrandbits(64)],
        [*np.random.random(3), np.random.standard_normal(), *np.random.randint(0, 2**31, 3)],
        [*torch.rand(3).tolist(), *torch.randn(3).tolist(), int(torch.randint(0, 2**62, ()))],
    )


@pytest.mark.parametrize("num_before", [0, 1, 700])
def test_the_random_generators_go_on_where_they_were(tmp_path, num_before):
    """After an odd number of normals each keeps a second one for later; after 624 numbers Mersenne twists."""
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(5)
    for _ in range(num_before):
        random.gauss(0, 1), np.random.standard_normal(), torch.randn(())
    checkpoints = of(tmp_path)
    checkpoints.save({"step": 1})
    expected = draws()
    draws()
    assert draws() != expected
    checkpoints.load(tmp_path / "checkpoints" / "step-1")
    assert draws() == expected


def test_another_number_of_ranks_keeps_its_own_generators(tmp_path, monkeypatch):
    """Which of two streams should the third rank go on with?"""
    save(tmp_path, 1)
    random.seed(7)
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    monkeypatch.setattr(distributed, "together", lambda action, only_first=False: action())
    of(tmp_path).load(tmp_path / "checkpoints" / "step-1")
    assert random.random() == random.Random(7).random()


def export(run, words="new"):
    def write(folder):
        for name in ("a", "b"):
            (folder / name).mkdir()
            (folder / name / "weights").write_text(words)

    write_folder(write, run / "final", 10)


def exported(run):
    return {str(path.relative_to(run / "final")): path.read_text() for path in (run / "final").glob("*/*")}


def test_an_exported_folder_is_the_old_one_or_the_new_one(disk, tmp_path):
    """Or, for an instant between two names, none; a command run again makes it."""
    base = tmp_path / "base"
    export(base, "old")
    seen = []
    for run, where, _ in one_by_one(disk, base, export):
        words = exported(run)
        assert words in ({}, *({"a/weights": word, "b/weights": word} for word in ("old", "new"))), where
        assert words or not (run / "final").exists(), where
        seen.append(words.get("a/weights"))
        export(run)
        assert exported(run) == {"a/weights": "new", "b/weights": "new"}, where
    assert {"old", "new"} <= set(seen)
    assert seen.count(None) <= 2


def test_an_export_leaves_nothing_of_a_killed_one(disk, tmp_path):
    base = tmp_path / "base"
    export(base, "old")
    left = []
    for run, where, _ in one_by_one(disk, base, export):
        export(run)
        if {path.name for path in run.iterdir()} != {"final"}:
            left.append(where)
    assert left == []
