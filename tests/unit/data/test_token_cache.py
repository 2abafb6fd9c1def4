"""What the cache gives back is what loading gave, and nothing that has changed is ever taken from it."""

import errno
import json
import os
import pickle
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from pathlib import Path

import datasets
import pytest

from rlhf_cli.config.data_sources import Format
from rlhf_cli.config.errors import InputError
from rlhf_cli.config.sections import PreferenceDataConfig, PromptDataConfig, RowPolicy
from rlhf_cli.data import read_rows as reading
from rlhf_cli.data import row_pipeline
from rlhf_cli.data import token_cache as cache
from rlhf_cli.data.conversation import Renderer
from rlhf_cli.data.preferences import load_preferences
from rlhf_cli.data.prompts import load_prompts
from rlhf_cli.models.byte_tokenizer import byte_tokenizer

ROWS = [
    {
        "prompt": f"wörd {i}",
        "chosen": f"good {i}",
        "rejected": f"bad answer {i}",
        "answers": [f"best {i}", f"mid {i}", "x"],
        "gap": i / 3,
        "sure": 1 - i / 30,
        "other": f"another {i}",
    }
    for i in range(10)
]
DROPPED = [{**ROWS[0], "prompt": " "}, {**ROWS[0], "prompt": "q" * 200}, {**ROWS[0], "rejected": "good 0"}]
KINDS = {
    "pairs": (PreferenceDataConfig, load_preferences, {"max_tokens": 100}),
    "numbers": (PreferenceDataConfig, load_preferences, {"margin_column": "gap", "confidence_column": "sure"}),
    "rankings": (PreferenceDataConfig, load_preferences, {"ranking_column": "answers", "system_prompt": "be kind"}),
    "prompts": (PromptDataConfig, load_prompts, {"max_prompt_tokens": 100}),
}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """The folder of the cache, and an empty current one."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache/rlhf"


@pytest.fixture
def tokenised(monkeypatch):
    """Every prompt that was tokenised since the list was last cleared."""
    seen, prompt_ids = [], Renderer.prompt_ids

    def counted(self, messages):
        seen.append(messages)
        return prompt_ids(self, messages)

    monkeypatch.setattr(Renderer, "prompt_ids", counted)
    return seen


def write(rows, name="a.jsonl"):
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return name


def load(kind="pairs", train="a.jsonl", tokenizer=None, **options):
    schema, loader, more = KINDS[kind]
    config = schema(train=train, **{**more, **options})
    return loader(config, Renderer(tokenizer or byte_tokenizer(), config), seed=0)


def keys(folder):
    return {file.name for file in folder.iterdir()}


@pytest.mark.parametrize("kind", KINDS)
def test_a_second_load_gives_the_same_rows_and_tokenises_nothing(kind, tokenised):
    options = {"train": write(ROWS + DROPPED), "eval": write(ROWS[:3], "b.jsonl")}
    plain = load(kind, **options, cache=False)
    first = load(kind, **options)
    tokenised.clear()
    second = load(kind, **options)
    assert plain == first == second  # notes, floats, texts and ids
    assert not tokenised
    ids = second.train[0].ids if kind == "prompts" else second.train[0].answers[0].prompt_ids
    assert type(ids) is tuple
    assert {type(token) for token in ids} == {int}


@pytest.mark.parametrize("kind", ["json", "csv", "parquet", "folder", "dict"])
def test_every_kind_of_source_is_cached(kind, tokenised):
    table = datasets.Dataset.from_list(ROWS)
    path = f"a.{kind}"
    writers = {
        "json": lambda: Path(path).write_text(json.dumps(ROWS)),
        "csv": lambda: table.to_csv(path),
        "parquet": lambda: table.to_parquet(path),
        "folder": lambda: table.save_to_disk(path),
        "dict": lambda: datasets.DatasetDict(train=table, test=table.select([0])).save_to_disk(path),
    }
    writers[kind]()
    first = load(train=path)
    tokenised.clear()
    assert load(train=path) == first
    assert not tokenised
    if kind == "dict":
        assert len(load(train=path, train_split="test", eval_fraction=0.0).train) == 1


def test_a_hub_id_is_known_by_its_fingerprint(monkeypatch, tokenised):
    tables = [datasets.Dataset.from_list(ROWS), datasets.Dataset.from_list(ROWS[:5])]
    monkeypatch.setattr(reading.datasets, "load_dataset", lambda name, split: tables[0])
    first = load(train="owner/name")
    tokenised.clear()
    assert load(train="owner/name") == first
    assert not tokenised
    tables.pop(0)
    assert len(load(train="owner/name", eval_fraction=0.0).train) == 5


def test_a_moved_file_is_found_in_the_cache_and_named_by_its_new_path(tokenised):
    notes = load(train=write(ROWS)).notes
    Path("elsewhere").mkdir()
    shutil.move("a.jsonl", "elsewhere/b.jsonl")
    tokenised.clear()
    moved = load(train="elsewhere/b.jsonl", eval_fraction=0.5)
    assert not tokenised
    assert notes[0] == "a.jsonl: 10 rows kept, 0 dropped"
    assert moved.notes[0] == "elsewhere/b.jsonl: 10 rows kept, 0 dropped"
    assert len(moved.eval) == 5


OTHER_OPTIONS = {
    "train_split": "dev",
    "prompt_column": "other",
    "system_prompt": "be kind",
    "apply_chat_template": False,
    "too_long": RowPolicy.error,
    "empty": RowPolicy.error,
    "chosen_column": "other",
    "rejected_column": "other",
    "ranking_column": "answers",
    "margin_column": "gap",
    "confidence_column": "sure",
    "category_column": "other",
    "max_tokens": 99,
    "equal": RowPolicy.error,
    "max_prompt_tokens": 99,
    "format": Format.columns,
    "weight_column": "gap",
    "score_column": "gap",
    "response_column": "other",
    "train_filter": {"other": [f"another {i}" for i in range(10)]},
}
SAME_ROWS = {"eval": "b.jsonl", "eval_split": "dev", "eval_fraction": 0.5, "eval_filter": {"gap": 0.0}}


def test_every_option_is_known_to_matter_or_not_to():
    options = {field.name for schema in (PreferenceDataConfig, PromptDataConfig) for field in fields(schema)}
    assert options == {"train", "cache", *OTHER_OPTIONS, *SAME_ROWS}


@pytest.mark.parametrize(
    ("kind", "option"),
    [
        (kind, option)
        for kind in ("pairs", "prompts")
        for option in OTHER_OPTIONS
        if option in {field.name for field in fields(KINDS[kind][0])}
    ],
)
def test_an_option_that_matters_changes_the_cache_key(kind, option, folder):
    load(kind, write(ROWS))
    before = keys(folder)
    load(kind, **{option: OTHER_OPTIONS[option]})
    assert len(keys(folder) - before) == 1


@pytest.mark.parametrize("option", SAME_ROWS)
def test_an_option_that_does_not_matter_keeps_the_cache_key(option, tokenised):
    load(train=write(ROWS))
    write(ROWS[:2], "b.jsonl")
    tokenised.clear()
    load(**{option: SAME_ROWS[option]})
    assert len(tokenised) == {"eval": 2, "eval_filter": 1}.get(option, 0)  # of another file, or of other rows


def test_a_cache_file_that_changes_while_it_is_read_is_an_error(folder):
    rows = load(train=write(ROWS)).train
    (file,) = folder.iterdir()
    with file.open("r+b") as open_file:
        open_file.seek(file.read_bytes().index(b"rd 3"))  # in the text of a prompt
        open_file.write(b"RD")
    with pytest.raises(InputError, match=r"data\.cache: a file was changed while the run reads it"):
        list(rows)


def test_a_file_that_is_deleted_while_it_is_read_does_no_harm(folder):
    rows = load(train=write(ROWS)).train
    before = list(rows)
    shutil.rmtree(folder)
    assert list(rows) == before


def test_other_ranks_open_the_file_and_not_another_one_in_its_place(folder):
    rows = load(train=write(ROWS)).train
    sent = pickle.dumps(rows)
    assert pickle.loads(sent) == rows
    assert len(sent) < 1000  # no ids
    (file,) = folder.iterdir()
    with file.open("r+b") as open_file:
        open_file.seek(-9, os.SEEK_END)
        open_file.write(bytes(9))
    with pytest.raises(InputError, match="was replaced while the run started; start it again"):
        pickle.loads(sent)
    file.unlink()
    with pytest.raises(InputError, match="went away while the run started; start it again"):
        pickle.loads(sent)


def test_a_rank_accepts_a_replaced_file_with_the_same_content(folder):
    """As runs do that start at once and all find nothing."""
    rows = load(train=write(ROWS)).train
    sent = pickle.dumps(rows)
    (file,) = folder.iterdir()
    before = file.stat().st_ino
    file.unlink()
    load()
    assert file.stat().st_ino != before
    assert pickle.loads(sent) == rows


def test_ranks_of_other_machines_and_without_a_cache_get_the_rows(folder, monkeypatch):
    plain = load(train=write(ROWS), cache=False).train
    assert pickle.loads(pickle.dumps(plain)) == plain
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    rows = load().train
    sent = pickle.dumps(rows)
    shutil.rmtree(folder)
    assert pickle.loads(sent) == plain


def _longer_vocabulary():
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(["good"])
    return tokenizer


def _other_template():
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = f"!{tokenizer.chat_template}"
    return tokenizer


def _other_eos():
    tokenizer = byte_tokenizer()
    tokenizer.eos_token = "<pad>"
    return tokenizer


def _split_special_tokens():
    tokenizer = byte_tokenizer()
    tokenizer.split_special_tokens = True
    return tokenizer


def test_another_eos_changes_the_cache_key():
    rows, plain = [{**ROWS[0], "chosen": "good<eos>"}], {"eval_fraction": 0.0, "apply_chat_template": False}
    first = load(train=write(rows), **plain)
    assert load(tokenizer=_other_eos(), **plain).train != first.train


@pytest.mark.parametrize("other", [_longer_vocabulary, _other_template, _split_special_tokens])
def test_another_tokenizer_changes_the_cache_key(other):
    rows = [{**ROWS[0], "chosen": "good<eos>"}]
    first = load(train=write(rows), eval_fraction=0.0)
    assert load(tokenizer=other(), eval_fraction=0.0).train != first.train


def test_padding_set_in_the_tokenizer_does_not_matter(folder):
    tokenizer = byte_tokenizer()
    tokenizer.backend_tokenizer.enable_padding(length=500)
    first = load(train=write(ROWS))
    assert load(tokenizer=tokenizer) == first
    assert len(keys(folder)) == 1


@pytest.mark.parametrize("what", ["content", "name's end", "kind", "format", "code", "library"])
def test_everything_else_that_decides_the_rows_changes_the_cache_key(what, folder, monkeypatch):
    load(train=write(ROWS))
    (before,) = keys(folder)
    train, kind = "a.jsonl", "pairs"
    if what == "content":
        write([*ROWS[:-1], {**ROWS[-1], "chosen": "good 8"}])
    elif what == "name's end":
        train = shutil.move(train, "a.json")
    elif what == "kind":
        kind = "prompts"
    elif what == "format":
        monkeypatch.setattr(cache, "FORMAT", cache.FORMAT + 1)
    elif what == "code":
        monkeypatch.setattr(cache, "_code", lambda: "changed")
    else:
        monkeypatch.setattr(cache, "version", lambda name: f"{name} of tomorrow")
    load(kind, train)
    assert len(keys(folder) - {before}) == 1


def test_a_folder_is_known_by_the_bytes_of_its_files(tokenised):
    datasets.Dataset.from_list(ROWS).save_to_disk("a")
    load(train="a")
    state = Path("a/state.json").read_bytes()
    shutil.rmtree("a")
    datasets.Dataset.from_list(ROWS[:4]).save_to_disk("a")
    Path("a/state.json").write_bytes(state)  # the fingerprint of the first
    tokenised.clear()
    assert len(load(train="a", eval_fraction=0.0).train) == 4


def damaged(content, other):
    """Ways in which a file may be no longer, or never have been, what was written."""
    middle = len(content) // 2
    return {
        "empty": b"",
        "cut": content[:-1],
        "cut short": content[:40],
        "longer": content + b"\0",
        "first byte": bytes([content[0] ^ 1]) + content[1:],
        "a byte of ids": content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :],
        "last byte": content[:-1] + bytes([content[-1] ^ 1]),
        "of another key": other,
        "foreign": b"PK\x03\x04" * 100,
    }


@pytest.mark.parametrize("how", damaged(b" " * 99, b""))
def test_a_damaged_file_is_rebuilt(how, folder, tokenised):
    load("prompts", write(ROWS))
    (other,) = folder.iterdir()
    first = load(train=write(ROWS))
    train, held_out = list(first.train), list(first.eval)
    (file,) = (path for path in folder.iterdir() if path != other)
    content = file.read_bytes()
    file.write_bytes(damaged(content, other.read_bytes())[how])
    tokenised.clear()
    again = load()
    assert (again.train, again.eval, again.notes) == (train, held_out, first.notes)
    assert len(tokenised) == 10
    assert file.read_bytes() == content


def test_a_folder_in_place_of_a_cache_file_is_a_note_and_not_an_error(folder):
    first = load(train=write(ROWS))
    (file,) = folder.iterdir()
    file.unlink()
    (file / "x").mkdir(parents=True)
    again = load()
    assert again.train == first.train
    assert again.notes[-1].startswith(f"data.cache: cannot write {folder}: ")


def test_a_cache_that_cannot_be_written_is_one_note(folder):
    plain = load(train=write(ROWS), eval=write(ROWS[:3], "b.jsonl"), cache=False)
    folder.parent.write_text("a file where the folder should be")
    sides = load(eval="b.jsonl")
    assert (sides.train, sides.eval) == (plain.train, plain.eval)
    assert sides.notes[:-1] == plain.notes
    assert sides.notes[-1].startswith(f"data.cache: cannot write {folder}: ")
    assert sides.notes[-1].endswith("; rows are tokenised at every start")


def test_a_full_disk_leaves_nothing_behind(folder, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    sides = load(train=write(ROWS))
    assert len(sides.train) == 9
    assert "No space left on device" in sides.notes[-1]
    assert list(folder.iterdir()) == []


def test_without_a_home_folder_rows_are_loaded_all_the_same(monkeypatch):
    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", homeless)
    sides = load(train=write(ROWS))
    assert len(sides.train) == 9
    assert sides.notes[-1].startswith("data.cache: ")


@pytest.mark.parametrize("given", [None, "", "relative/folder"])
def test_without_an_absolute_xdg_cache_home_it_is_the_one_of_the_home_folder(given, tmp_path, monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME")
    if given is not None:
        monkeypatch.setenv("XDG_CACHE_HOME", given)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    load(train=write(ROWS))
    assert len(keys(tmp_path / "home/.cache/rlhf")) == 1


def test_it_can_be_switched_off(folder):
    load(train=write(ROWS), cache=False)
    assert not folder.exists()


def test_rows_that_are_refused_are_refused_again_and_never_cached(folder):
    write([ROWS[0], {**ROWS[1], "chosen": 3}, ROWS[2]])
    messages = []
    for _ in range(2):
        with pytest.raises(InputError) as caught:
            load()
        messages.append(str(caught.value))
    assert messages[0] == messages[1]
    assert messages[0].splitlines()[1].startswith("  a.jsonl:2: ")
    assert not keys(folder)


def test_nothing_left_to_train_on_is_the_same_error_from_the_cache():
    write(ROWS)
    messages = []
    for options in ({"cache": False}, {}, {}):
        with pytest.raises(InputError, match="nothing is left to train on") as caught:
            load(**{"max_tokens": 5, **options})
        messages.append(str(caught.value))
    assert len(set(messages)) == 1


def test_a_file_that_cannot_be_opened_is_the_same_error(monkeypatch):
    def refuse(path):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    write([])
    monkeypatch.setattr(reading, "sha256", refuse)
    with pytest.raises(InputError, match=r"data.train=a.jsonl: no rows"):
        load()


def test_a_file_that_changes_while_it_is_read_is_not_kept(folder, monkeypatch):
    load_rows = row_pipeline.load_rows

    def slowly(*args):
        rows = list(load_rows(*args))
        write(ROWS[:5])
        return rows

    monkeypatch.setattr(row_pipeline, "load_rows", slowly)
    assert len(load(train=write(ROWS), eval_fraction=0.0).train) == 10
    assert not keys(folder)


def test_rows_of_a_template_with_the_date_are_not_cached(folder):
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = f"{{{{ strftime_now('%Y') }}}}{tokenizer.chat_template}"
    sides = load(train=write(ROWS), tokenizer=tokenizer)
    assert sides.notes[-1] == "data.cache: not used, the chat template contains the current time"
    assert not folder.exists()
    load(tokenizer=tokenizer, apply_chat_template=False)
    assert len(keys(folder)) == 1


def test_rows_of_a_tokenizer_with_its_own_code_are_not_cached(folder):
    tokenizer = byte_tokenizer()
    tokenizer.__class__ = type("Own", (type(tokenizer),), {})
    sides = load(train=write(ROWS), tokenizer=tokenizer)
    assert sides.notes[-1] == "data.cache: not used, this tokenizer (Own) runs code of its own, which may change"
    assert not folder.exists()


def test_concurrent_writers_do_not_disturb_each_other(folder):
    write(ROWS * 100)
    with ThreadPoolExecutor(8) as pool:
        sides = list(pool.map(lambda _: load(), range(16)))
    assert all(one == sides[0] for one in sides)
    (file,) = folder.iterdir()
    assert file.suffix == ".rows"


def test_only_the_owner_can_read_cached_files(folder):
    load(train=write(ROWS))
    (file,) = folder.iterdir()
    assert file.stat().st_mode & 0o077 == 0
    assert folder.stat().st_mode & 0o077 == 0


def test_the_tests_do_not_touch_the_users_own_cache(monkeypatch):
    monkeypatch.undo()
    assert not cache.folder().is_relative_to(Path.home())
