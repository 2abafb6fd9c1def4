"""Rows from many places: lists, patterns, compressed files, filters, weights; and sets that memory does not hold."""

import bz2
import gzip
import json
import lzma
import subprocess
import sys
from collections import Counter
from functools import partial
from pathlib import Path

import pyarrow as pa
import pytest

from rlhf_cli.config.errors import InputError
from rlhf_cli.config.sections import PromptDataConfig
from rlhf_cli.data.conversation import Renderer
from rlhf_cli.data.prompts import load_prompts
from rlhf_cli.data.row_store import Rows, sorted_rows
from rlhf_cli.data.splits import _LoadedSource, _weighted
from rlhf_cli.models.byte_tokenizer import byte_tokenizer

TOKENIZER = byte_tokenizer()


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def write(name, rows):
    Path(name).write_bytes(lines(rows))
    return name


def prompts(train, seed=0, **options):
    config = PromptDataConfig(**{"train": train, "eval_fraction": 0.0, **options})
    return load_prompts(config, Renderer(TOKENIZER, config), seed)


def texts(rows):
    return [row.text for row in rows]


def refusal(train, **options):
    with pytest.raises(InputError) as caught:
        prompts(train, **options)
    return str(caught.value)


def asked(*names):
    return [{"prompt": name} for name in names]


def test_a_list_of_sources_is_joined_in_order_each_with_its_format_and_note():
    write("a.jsonl", asked("one", "two"))
    write("b.jsonl", [{"messages": [{"role": "user", "content": "three"}]}])
    write("c.jsonl", [{"question": "four"}])
    sides = prompts(["a.jsonl", {"path": "b.jsonl"}, {"path": "c.jsonl", "prompt_column": "question"}])
    assert texts(sides.train) == ["one", "two", "three", "four"]
    assert sides.notes[:3] == [
        "a.jsonl: 2 rows kept, 0 dropped",
        "b.jsonl: 1 rows kept, 0 dropped; read as messages",
        "c.jsonl: 1 rows kept, 0 dropped",
    ]


def test_a_pattern_takes_its_files_in_order_and_errors_name_the_file():
    Path("rows").mkdir()
    for name, row in (("rows/b2.jsonl", "three"), ("rows/b1.jsonl", "two"), ("rows/a.jsonl", "one")):
        write(name, asked(row))
    sides = prompts("rows/*.jsonl")
    assert texts(sides.train) == ["one", "two", "three"]
    assert sides.notes[0] == "rows/*.jsonl (3 files): 3 rows kept, 0 dropped"
    assert texts(prompts("rows/b?.jsonl").train) == ["two", "three"]
    write("rows/[1].jsonl", asked("literal"))
    assert texts(prompts("rows/[1].jsonl").train) == ["literal"]
    write("rows/b2.jsonl", [{"prompt": 3}])
    assert refusal("rows/*.jsonl").startswith("data.train=rows/b2.jsonl: 1 bad row of 1\n  rows/b2.jsonl:1: prompt: ")


COMPRESSED = {
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zst": partial(pa.compress, codec="zstd", asbytes=True),
}


@pytest.mark.parametrize("suffix", COMPRESSED)
@pytest.mark.parametrize("kind", ["jsonl", "json"])
def test_compressed_files_are_read_like_others(suffix, kind):
    rows = asked(*(f"prompt {n} é" for n in range(500)))
    content = lines(rows) if kind == "jsonl" else json.dumps(rows).encode()
    compress, name = COMPRESSED[suffix], f"a.{kind}.{suffix}"
    Path(name).write_bytes(compress(content))
    assert texts(prompts(name).train) == [row["prompt"] for row in rows]
    if kind == "jsonl":
        half = content.index(b"\n", len(content) // 2) + 1
        Path(name).write_bytes(compress(content[:half]) + compress(content[half:]))  # of two streams, as `cat` makes
        assert texts(prompts(name).train) == [row["prompt"] for row in rows]
        Path(name).write_bytes(compress(content[:half] + b"{\n"))
        number = content[:half].count(b"\n") + 1
        assert f"  {name}:{number}: not JSON" in refusal(name)


@pytest.mark.parametrize("suffix", COMPRESSED)
def test_a_truncated_or_damaged_compressed_file_is_an_error(suffix):
    content = COMPRESSED[suffix](lines(asked(*(f"prompt {n * 7919}" for n in range(5000)))))
    name = f"a.jsonl.{suffix}"
    for broken in (content[:-20], content[: len(content) // 2], b"no such file"):
        Path(name).write_bytes(broken)
        assert refusal(name).startswith(f"data.train={name}: cannot read rows: ")


def test_filters_split_one_file_into_training_and_evaluation():
    rows = [{"prompt": f"{split} {n}", "split": split, "n": n} for n in range(4) for split in ("train", "test", "ppo")]
    write("a.jsonl", rows)
    sides = prompts("a.jsonl", train_filter={"split": "train"}, eval_filter={"split": ["test", "ppo"], "n": 1})
    assert texts(sides.train) == [f"train {n}" for n in range(4)]
    assert texts(sides.eval) == ["test 1", "ppo 1"]
    assert sides.notes[:2] == [
        "a.jsonl: 4 rows kept, 0 dropped, 8 left out by the filter",
        "a.jsonl: 2 rows kept, 0 dropped, 10 left out by the filter",
    ]
    assert texts(prompts([{"path": "a.jsonl", "filter": {"split": "ppo"}}]).train) == [f"ppo {n}" for n in range(4)]


def test_a_filter_compares_values_and_not_their_texts():
    write("a.jsonl", [{"prompt": str(value), "x": value} for value in (1, True, "1", None, 1.0, [1])])
    assert texts(prompts("a.jsonl", train_filter={"x": 1}).train) == ["1", "1.0"]
    assert texts(prompts("a.jsonl", train_filter={"x": [True, None]}).train) == ["True", "None"]


def test_a_filter_whose_column_is_missing_or_that_nothing_fits_is_an_error():
    write("a.jsonl", [{"prompt": "q", "split": "a"}, {"prompt": "r", "split": "b"}, {"prompt": "s"}])
    assert refusal("a.jsonl", train_filter={"split": "a"}).splitlines() == [
        "data.train=a.jsonl: 1 bad row of 2",
        "  a.jsonl:3: split: missing",
    ]
    write("a.jsonl", [{"prompt": "q", "split": "a"}, {"prompt": "r", "split": "b"}])
    assert refusal("a.jsonl", train_filter={"split": "trian"}) == (
        "data.train=a.jsonl: no row matches the filter {'split': ['trian']}; split has: a, b"
    )


def test_a_filter_may_leave_nothing_of_some_files():
    write("a.jsonl", [{"prompt": "q", "split": "a"}])
    write("b.jsonl", [{"prompt": "r", "split": "b"}])
    for _ in range(2):  # the second from the cache
        assert texts(prompts("?.jsonl", train_filter={"split": "b"}).train) == ["r"]
        assert texts(prompts(["a.jsonl", "b.jsonl"], train_filter={"split": "a"}).train) == ["q"]
        assert refusal("?.jsonl", train_filter={"split": "c"}) == (
            "data.train=a.jsonl: no row matches the filter {'split': ['c']}; split has: a"
        )
        assert refusal("a.jsonl", eval_filter={"split": "c"}).startswith("data.eval=a.jsonl: no row matches the filter")


def test_weights_draw_rows_of_each_source_by_the_seed():
    write("a.jsonl", asked(*(f"a{n}" for n in range(40))))
    write("b.jsonl", asked(*(f"b{n}" for n in range(10))))
    mix = [{"path": "a.jsonl", "weight": 0.25}, {"path": "b.jsonl", "weight": 2.5}]
    sides = prompts(mix)
    found = Counter(texts(sides.train))
    assert Counter(name[0] for name in found.elements()) == {"a": 10, "b": 25}
    assert {found[f"b{n}"] for n in range(10)} == {2, 3}
    assert {found[f"a{n}"] for n in range(40)} == {0, 1}
    assert texts(prompts(mix).train) == texts(sides.train)
    assert texts(prompts(mix, seed=1).train) != texts(sides.train)
    assert sides.notes[0] == "a.jsonl: 40 rows kept, 0 dropped; weight 0.25"


def test_weights_draw_from_what_is_not_held_out():
    write("a.jsonl", asked(*(f"a{n}" for n in range(40))))
    write("b.jsonl", asked(*(f"b{n}" for n in range(40))))
    sides = prompts([{"path": "a.jsonl", "weight": 3}, "b.jsonl"], eval_fraction=0.25)
    train, held = Counter(texts(sides.train)), Counter(texts(sides.eval))
    assert len(held) == held.total() == 20
    assert not set(train) & set(held)
    assert {train[name] for name in train if name.startswith("a")} == {3}
    assert {train[name] for name in train if name.startswith("b")} == {1}
    assert len(train) == 60


def test_a_source_may_have_rows_of_the_other_sources_prompts():
    """A prompt that is in two files of data.train is on one side."""
    write("a.jsonl", asked(*(f"q{n}" for n in range(20))))
    sides = prompts(["a.jsonl", "a.jsonl"], eval_fraction=0.5)
    assert not set(texts(sides.train)) & set(texts(sides.eval))
    assert len(sides.eval) == 20


def test_rows_of_several_parts():
    rows = Rows([["a", "b"], [], ["c"], ["d", "e"]])
    assert list(rows) == ["a", "b", "c", "d", "e"] == rows[:]
    assert (rows[-1], rows[2], rows[1:4]) == ("e", "c", ["b", "c", "d"])
    assert list(rows.select([4, 0, 0])) == ["e", "a", "a"]
    assert rows.select([4, 0]).select([1]) == ["a"]
    assert list(sorted_rows(rows.select([3, 1, 2]), key=lambda letter: letter)) == ["b", "c", "d"]
    assert list(sorted_rows(["bb", "a", "cc"], key=len)) == ["a", "bb", "cc"]
    with pytest.raises(IndexError):
        rows[5]


HOLDS_LITTLE = """
import json, sys, tracemalloc
from rlhf_cli.config.sections import PreferenceDataConfig
from rlhf_cli.data.conversation import Renderer
from rlhf_cli.data.preferences import load_preferences
from rlhf_cli.models.byte_tokenizer import byte_tokenizer

def load(name):
    config = PreferenceDataConfig(train=name, max_tokens=100_000)
    return load_preferences(config, Renderer(byte_tokenizer(), config), 0)

def peak(name):
    tracemalloc.start()
    sides = load(name)
    longest = max(len(row.answers[0]) for row in sides.train)
    held, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return len(sides.train) + len(sides.eval), held, most

load(sys.argv[1])  # whatever is made once
print(json.dumps([peak(name) for name in sys.argv[2:]]))
"""


def test_memory_does_not_grow_with_the_set():
    """A set of eight times the rows; ids take 8 KiB a row in Python, 32 MiB for the larger set. First and from the
    cache."""
    for name, size in (("warm.jsonl", 5), ("small.jsonl", 100), ("large.jsonl", 800)):
        rows = ({"prompt": f"q{n}", "chosen": f"{n} " * 400, "rejected": f"{n} " * 300} for n in range(size))
        with open(name, "w") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
    words = ["warm.jsonl", "small.jsonl", "large.jsonl", "large.jsonl"]
    done = subprocess.run([sys.executable, "-c", HOLDS_LITTLE, *words], capture_output=True, text=True, check=True)
    small, large, again = json.loads(done.stdout)
    assert (small[0], large[0], again[0]) == (100, 800, 800)
    for figures in (large, again):
        assert figures[1] - small[1] < 500_000  # bytes that stay
        assert figures[2] < 4_000_000  # at the highest


def test_a_source_of_which_nothing_is_kept_takes_no_row_of_the_next_one():
    """Three, two and three rows; the second source, five times over, has none on this side."""
    parts = [_LoadedSource([range(size)], weight) for size, weight in ((3, 1.0), (2, 5.0), (3, 1.0))]
    assert list(_weighted(parts, [0, 1, 2, 5, 6, 7], "key")) == [0, 1, 2, 5, 6, 7]
    assert list(_weighted(parts, [0, 4, 7], "key")) == [0, 4, 4, 4, 4, 4, 7]
    assert list(_weighted(parts, [3], "key")) == [3] * 5
