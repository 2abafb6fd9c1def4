"""Whatever stands in a file: a right result or one clear error, within bounds; and what holds of all rows."""

import json
import subprocess
import sys
import tempfile
import unicodedata
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rlhf_cli.config.data_sources import Format
from rlhf_cli.config.errors import InputError
from rlhf_cli.config.sections import PreferenceDataConfig, PromptDataConfig
from rlhf_cli.data.bad_rows import BadRow
from rlhf_cli.data.conversation import Renderer
from rlhf_cli.data.json_rows import MAX_LINE_BYTES, read_json, read_jsonl
from rlhf_cli.data.preferences import Ranking, load_preferences
from rlhf_cli.data.prompts import Prompt, load_prompts
from rlhf_cli.data.row_store import Rows, RowWriter, StoredRows
from rlhf_cli.data.splits import split_by_prompt
from rlhf_cli.data.token_batches import EndTokens, TokenSequence, collate, micro_batches, sized_rows
from rlhf_cli.models.byte_tokenizer import byte_tokenizer

TOKENIZER = byte_tokenizer()
FEW = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
WORDS = st.text(st.characters(exclude_categories=("Cs",)), max_size=30)
NAMES = ("prompt", "chosen", "rejected", "messages", "conversations", "instruction", "input", "output", "completions")
MESSAGES = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["system", "user", "assistant", "tool"]), "content": WORDS})
    | st.fixed_dictionaries({"from": st.sampled_from(["human", "gpt", "system", "x"]), "value": WORDS}),
    max_size=4,
)
TRANSCRIPTS = st.lists(st.sampled_from(["\n\nHuman: ", "\n\nAssistant: ", "hi", " "]), max_size=6).map("".join)
COMPLETIONS = st.lists(
    st.fixed_dictionaries({"response": WORDS | st.none()}, optional={"rating": JSON, "overall_score": st.floats()}),
    max_size=4,
)
ROWS = st.dictionaries(
    st.sampled_from([*NAMES, "system", "history", "preference", "output_1", "output_2", "response", "score"]),
    WORDS | MESSAGES | TRANSCRIPTS | COMPLETIONS | JSON,
    max_size=6,
)


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def preferences(file, **options):
    config = PreferenceDataConfig(train=file, eval_fraction=0.0, cache=False, **options)
    return load_preferences(config, Renderer(TOKENIZER, config), 0)


def prompts(file, **options):
    config = PromptDataConfig(train=file, eval_fraction=0.0, cache=False, **options)
    return load_prompts(config, Renderer(TOKENIZER, config), 0)


def loaded(load, file, **options):
    """Return rows to train on and no message, or none and the message of an error."""
    try:
        return list(load(file, **options).train), ""
    except InputError as error:
        return [], str(error)


def is_right_or_refused(load, file, **options):
    """Load rows; every one is kept, dropped or refused by an error that can be shown."""
    rows, message = loaded(load, file, **options)
    assert not any(unicodedata.category(char) in ("Cc", "Cs") for char in message.replace("\n", ""))
    for row in rows:
        if isinstance(row, Ranking):
            assert row.pairs
            assert 2 <= row.num_tokens <= 1024
            assert all(answer.response_ids for answer in row.answers)
        else:
            assert row.ids
            assert len(row.ids) <= 512
            json.dumps([list(row.messages), row.columns], allow_nan=False)


@FEW
@given(lines=st.lists(st.binary(max_size=60) | JSON.map(lambda value: json.dumps(value).encode()), max_size=8))
def test_any_bytes_are_rows_or_one_clear_error(lines):
    Path("a.jsonl").write_bytes(b"\n".join(lines))
    Path("a.json").write_bytes(b"\n".join(lines))
    for name in ("a.jsonl", "a.json"):
        is_right_or_refused(preferences, name)
        is_right_or_refused(prompts, name)


@settings(FEW, max_examples=200)
@given(row=ROWS, row_format=st.sampled_from(Format))
def test_any_row_in_any_format_is_read_or_refused(row, row_format):
    Path("a.jsonl").write_text(json.dumps(row))
    is_right_or_refused(preferences, "a.jsonl", format=row_format)
    is_right_or_refused(prompts, "a.jsonl", format=row_format)


@FEW
@given(texts=st.lists(WORDS.filter(str.strip), min_size=1, max_size=5), ends=st.sampled_from([b"\n", b"\r\n"]))
def test_texts_come_back_as_they_were_written(texts, ends):
    lines = [json.dumps({"prompt": text}, ensure_ascii=False).encode() for text in texts]
    Path("a.jsonl").write_bytes(b"\xef\xbb\xbf" + ends.join(lines) + ends)
    assert [prompt.text for prompt in prompts("a.jsonl", max_prompt_tokens=5000).train] == texts
    assert [row for _, row in read_jsonl(Path("a.jsonl"), "a")] == [{"prompt": text} for text in texts]
    Path("a.json").write_bytes(b"[" + b",".join(lines) + b"]")
    assert [row for _, row in read_json(Path("a.json"), "a")] == [{"prompt": text} for text in texts]


@FEW
@given(limit=st.integers(2, 80), sizes=st.lists(st.integers(1, 90), min_size=1, max_size=6))
def test_nothing_is_ever_cut(limit, sizes):
    """A prompt of n letters has n + 18 tokens; it is there whole, or counted as too long."""
    Path("a.jsonl").write_text("\n".join(json.dumps({"prompt": "x" * size}) for size in sizes))
    fit = [size for size in sizes if size + 18 <= limit]
    rows, message = loaded(prompts, "a.jsonl", max_prompt_tokens=limit)
    assert [len(prompt.ids) - 18 for prompt in rows] == fit
    assert [prompt.text for prompt in rows] == ["x" * size for size in fit]
    assert (f"{len(sizes)} too long" in message) == (not fit)


IDS = st.lists(st.integers(0, 2**31 - 1), max_size=20).map(tuple)
SEQUENCES = st.lists(st.builds(TokenSequence, IDS.filter(len), IDS.filter(len)), min_size=1, max_size=6)


@FEW
@given(sequences=SEQUENCES, pad_id=st.integers(0, 9))
def test_collation_loses_and_adds_nothing(sequences, pad_id):
    batch = collate(sequences, pad_id, torch.device("cpu"))
    assert batch.input_ids.shape == (len(sequences), max(map(len, sequences)))
    for row, sequence in enumerate(sequences):
        real = batch.input_ids[row, : len(sequence)].tolist()
        assert tuple(real) == sequence.ids
        assert set(batch.input_ids[row, len(sequence) :].tolist()) <= {pad_id}
        assert batch.response_ids[row, batch.response_mask[row]].tolist() == list(sequence.response_ids)
    flat = [token for sequence in sequences for token in sequence.response_ids]
    assert batch.real_response_ids().tolist() == flat


@FEW
@given(sequences=SEQUENCES, size=st.integers(1, 4), tokens=st.none() | st.integers(1, 60), packs=st.booleans())
def test_every_row_is_in_one_micro_batch(sequences, size, tokens, packs):
    measured = sized_rows([(sequence,) for sequence in sequences], packs)
    groups = micro_batches(measured, size, tokens)
    assert sorted(place for group in groups for place in group) == list(range(len(sequences)))
    if tokens is None:
        assert max(map(len, groups)) <= size


@FEW
@given(response=st.lists(st.integers(0, 5), min_size=1, max_size=12), ends=st.frozensets(st.integers(0, 5), max_size=2))
def test_a_response_is_cut_behind_its_first_end(response, ends):
    cut = EndTokens(ends, 0).cut(response)
    assert list(cut) == response[: len(cut)]
    assert not ends & set(cut[:-1])
    assert len(cut) == len(response) or cut[-1] in ends


@FEW
@given(ids=st.lists(IDS, min_size=1, max_size=4), text=WORDS, columns=st.dictionaries(WORDS, JSON, max_size=3))
def test_stored_rows_are_read_back_unchanged(ids, text, columns):
    columns = json.loads(json.dumps(columns).replace("NaN", "null").replace("Infinity", "1e9"))
    prompt = Prompt(text, ids[0], text, ({"role": "user", "content": text},), columns)
    assert list(stored(Prompt, prompt, prompt)) == [prompt, prompt]
    ranking = Ranking(
        tuple(TokenSequence(ids[0], one) for one in (*ids, ids[0])), 0.5, text, category=None, ranks=(0, 1)
    )
    assert list(stored(Ranking, ranking)) == [ranking]


def stored(kind, *rows):
    """Write rows to a file, and return them as they are read from it."""
    with tempfile.TemporaryFile() as file:
        writer = RowWriter(file)
        for row in rows:
            writer.append(row)
        writer.finish({})
        file.flush()
        return Rows([StoredRows(file.fileno(), kind, None)])


@FEW
@given(keys=st.lists(st.sampled_from("abcdefgh"), max_size=30), share=st.floats(0, 0.9), seed=st.integers(0, 9))
def test_a_prompt_is_never_on_both_sides(keys, share, seed):
    train, held = split_by_prompt(keys, share, seed)
    assert sorted([*train, *held]) == list(range(len(keys)))
    assert not {keys[place] for place in train} & {keys[place] for place in held}
    assert train or not keys


HOSTILE = {
    "NUL bytes": b'{"prompt": "a\x00b"}',
    "NUL escapes": b'{"prompt": "a\\u0000b"}',
    "only NUL": bytes(100),
    "UTF-16": '{"prompt": "q"}'.encode("utf-16"),
    "Latin-1": '{"prompt": "é"}'.encode("latin-1"),
    "mixed": '{"prompt": "é"}\n'.encode() + '{"prompt": "é"}'.encode("latin-1"),
    "deep lists": b'{"prompt": "q", "x": ' + b"[" * 900 + b"]" * 900 + b"}",
    "deeper lists": b'{"prompt": "q", "x": ' + b"[" * 50_000 + b"]" * 50_000 + b"}",
    "deep objects": b'{"prompt": "q", "x": ' + b'{"a": ' * 900 + b"1" + b"}" * 901,
    "twice": b'{"prompt": "q", "prompt": "r"}',
    "twice within": b'{"prompt": "q", "x": {"a": 1, "a": 2}}',
    "NaN": b'{"prompt": "q", "x": NaN}',
    "infinite": b'{"prompt": "q", "x": 1e999}',
    "a long number": b'{"prompt": "q", "x": 1' + b"0" * 5000 + b"}",
    "lone surrogate": b'{"prompt": "\\ud800"}',
    "surrogate in a name": b'{"prompt": "q", "\\udfff": 1}',
    "many names": json.dumps({"prompt": "q", **{f"n{n}": n for n in range(20_000)}}).encode(),
    "no names": b"{}",
    "only blanks": b" \n\t\n\r\n",
    "no end": b'{"prompt": "q"',
    "two on a line": b'{"prompt": "q"}{"prompt": "r"}',
    "byte order marks": b'\xef\xbb\xbf{"prompt": "q"}\n\xef\xbb\xbf{"prompt": "r"}',
}


@pytest.mark.parametrize("suffix", ["jsonl", "json"])
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_read_or_refused(name, suffix):
    Path(f"a.{suffix}").write_bytes(HOSTILE[name])
    is_right_or_refused(prompts, f"a.{suffix}")
    is_right_or_refused(preferences, f"a.{suffix}")


TABLES = """
import sys
from pathlib import Path
from rlhf_cli.config.errors import InputError
from rlhf_cli.data.read_rows import load_rows

for file in sorted(Path().iterdir()):
    try:
        print(file, len(list(load_rows(str(file), "train", "data.train"))))
    except InputError as error:
        print(file, str(error))
"""


def test_hostile_tables_are_read_or_refused():
    """In a process of its own: `datasets` leaves files open where it fails."""
    for suffix in ("csv", "parquet"):
        for number, content in enumerate(HOSTILE.values()):
            Path(f"{number}.{suffix}").write_bytes(content)
    done = subprocess.run([sys.executable, "-c", TABLES], capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert len(lines) == 2 * len(HOSTILE)
    assert all(": cannot read rows: " in line for line in lines if ".parquet " in line)
    assert "Traceback" not in done.stderr
    many = f"{list(HOSTILE).index('many names')}.csv"
    assert f"{many} {many}: 20001 columns; wanted at most 1000, or a .jsonl file" in lines


def test_hostile_rows_are_read_correctly():
    Path("a.jsonl").write_bytes(HOSTILE["NaN"] + b"\n" + HOSTILE["infinite"] + b"\n" + HOSTILE["NUL escapes"])
    first, second, third = prompts("a.jsonl").train
    assert first.columns == second.columns == {"x": None}
    assert third.text == "a\x00b"
    Path("a.jsonl").write_bytes(HOSTILE["byte order marks"])
    assert [prompt.text for prompt in prompts("a.jsonl").train] == ["q", "r"]


LONG_LINE = """
import resource, sys
from pathlib import Path
from rlhf_cli.data.json_rows import read_jsonl

before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
rows = [(place, str(row)) for place, row in read_jsonl(Path(sys.argv[1]), "a")]
print(rows, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


def test_a_line_of_a_hundred_megabytes_is_skipped():
    """It is held once at most, up to the limit of a line, and twice while it grows."""
    assert MAX_LINE_BYTES == 64 << 20
    with open("a.jsonl", "wb") as file:
        file.write(b'{"prompt": "q"}\n{"prompt": "')
        for _ in range(100):
            file.write(b"x" * (1 << 20))
        file.write(b'"}\n{"prompt": "r"}\n')
    done = subprocess.run([sys.executable, "-c", LONG_LINE, "a.jsonl"], capture_output=True, text=True, check=True)
    rows, _, peak = done.stdout.strip().rpartition(" ")
    assert rows == str([("a:1", "{'prompt': 'q'}"), ("a:2", "longer than 64 MiB"), ("a:3", "{'prompt': 'r'}")])
    assert int(peak) < 200  # MiB
    assert loaded(prompts, "a.jsonl")[1] == "data.train=a.jsonl: 1 bad row of 3\n  a.jsonl:2: longer than 64 MiB"


def test_a_bad_row_is_a_bad_row():
    (found,) = [row for _, row in read_jsonl(Path(_one(b"[1]")), "a")]
    assert isinstance(found, BadRow)


def _one(line):
    Path("one.jsonl").write_bytes(line)
    return "one.jsonl"
