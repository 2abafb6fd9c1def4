"""`rlhf data inspect` shows what a run would see and refuse; `rlhf data convert` writes what
reads the same again.
"""

import json
from pathlib import Path

import pytest

from rlhf_cli.cli import main
from rlhf_cli.config.sections import PreferenceDataConfig, PromptDataConfig
from rlhf_cli.data.conversation import Renderer
from rlhf_cli.data.inspect_rows import histogram, quantile
from rlhf_cli.data.preferences import load_preferences
from rlhf_cli.data.prompts import load_prompts
from rlhf_cli.models.byte_tokenizer import byte_tokenizer

PAIRS = [{"prompt": f"q{n}", "chosen": "a" * (n + 1), "rejected": "bbb"} for n in range(4)]


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def write(name, *rows):
    lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
    Path(name).write_bytes(b"\n".join(lines))
    return name


@pytest.fixture
def inspect(capsys):
    """Run `rlhf data inspect` and return its exit code and lines."""

    def run(*words):
        code = main(["data", "inspect", *words])
        return code, capsys.readouterr().out.splitlines()

    return run


@pytest.fixture
def fails(capsys):
    """Run `rlhf data ...` with wrong arguments and return its error."""

    def run(*words):
        assert main(["data", *words]) == 2
        return capsys.readouterr().err.strip()

    return run


def test_pairs_are_shown_as_the_model_sees_them(inspect):
    code, lines = inspect(write("a.jsonl", *PAIRS))
    assert code == 0
    assert lines[0] == "for train-rm, tokens of bytes"
    assert lines[2:8] == [
        "data.train: a.jsonl",
        "  format columns: prompt from prompt, answers from chosen over rejected",
        "  4 rows: 4 kept, 0 dropped, 0 refused",
        "  4 distinct prompts; 0 duplicate rows",
        "  the longer answer wins in 0.375 of pairs",  # of 1, 2, 3 and 4 letters against 3
        "  0 rows contradict another row",
    ]
    start = lines.index("a.jsonl:1, as the model sees it:")
    assert lines[start + 1 : start + 6] == [
        "  prompt   | <bos>user",
        "           | q0<eos><bos>assistant",
        "           | ",
        "  chosen   | a<eos>",
        "  rejected | bbb<eos>",
    ]
    assert "a.jsonl:3, as the model sees it:" in lines
    assert "a.jsonl:4, as the model sees it:" not in lines
    assert lines[-1] == "a run accepts these rows"


def test_every_problem_is_listed_and_refused_rows_exit_with_3(inspect):
    rows = [PAIRS[0], b"{", {**PAIRS[1], "chosen": ""}, {**PAIRS[2], "chosen": "c" * 99}, {**PAIRS[3], "rejected": 7}]
    code, lines = inspect(write("a.jsonl", *rows), "data.max_tokens=60")
    assert code == 3
    assert "  5 rows: 1 kept, 2 dropped (1 empty, 1 too long), 2 refused" in lines
    start = lines.index("  dropped or refused rows:")
    assert lines[start + 1 : start + 5] == [
        "    a.jsonl:2: not JSON: Expecting property name enclosed in double quotes (column 2)",
        "    a.jsonl:3: chosen: empty, and data.empty=drop -> dropped",
        "    a.jsonl:4: prompt + answer: too long, 120 tokens of at most 60, and data.too_long=drop -> dropped",
        "    a.jsonl:5: rejected: got int, wanted a string or a list of messages",
    ]
    assert lines[-1] == "a run refuses data.train"
    _, lines = inspect("a.jsonl", "data.max_tokens=60", "show=1")
    assert "    … and 3 more; show=N shows more than 1" in lines
    assert not any("a.jsonl:3" in line for line in lines)


def test_a_policy_of_error_exits_with_3(inspect):
    write("a.jsonl", *PAIRS, {**PAIRS[0], "chosen": ""})
    assert inspect("a.jsonl")[0] == 0
    assert inspect("a.jsonl", "data.empty=error")[0] == 3
    assert inspect("a.jsonl", "data.max_tokens=5")[0] == 3  # nothing is left


def test_duplicates_contradictions_and_prompts_on_both_sides(inspect):
    turned = {**PAIRS[1], "chosen": PAIRS[1]["rejected"], "rejected": PAIRS[1]["chosen"]}
    code, lines = inspect(
        write("a.jsonl", *PAIRS, PAIRS[2], turned), write("b.jsonl", PAIRS[3], {**PAIRS[0], "prompt": "x"})
    )
    assert code == 0
    assert "  4 distinct prompts; 1 duplicate rows (first: a.jsonl:5 and a.jsonl:3)" in lines
    assert "  1 rows contradict another row (first: a.jsonl:6 and a.jsonl:2)" in lines
    place = lines.index("1 prompts are on both sides")
    assert lines[place + 1] == "  b.jsonl:1 has the prompt of a.jsonl:4"


def test_one_file_with_filters_has_two_sides(inspect):
    write("a.jsonl", *({**row, "split": "x"} for row in PAIRS), {**PAIRS[0], "split": "y"})
    code, lines = inspect("a.jsonl", "data.train_filter={split: x}", "data.eval_filter={split: y}")
    assert code == 0
    assert "  4 rows: 4 kept, 0 dropped, 0 refused, 1 left out by the filter" in lines
    assert "1 prompts are on both sides" in lines


def test_a_filter_without_matches_exits_with_3(inspect):
    write("a.jsonl", {**PAIRS[0], "split": "x"})
    code, lines = inspect("a.jsonl", "data.train_filter={split: y}")
    assert code == 3
    assert "  data.train=a.jsonl: no row matches the filter {'split': ['y']}; split has: x" in lines


def test_prompts_are_recognised_unless_a_command_is_given(inspect):
    write("a.jsonl", {"messages": [{"role": "user", "content": "hi"}]})
    code, lines = inspect("a.jsonl")
    assert (code, lines[0]) == (0, "for train-ppo, tokens of bytes")
    assert any(line.startswith("  format messages: ") for line in lines)
    assert inspect("a.jsonl", "for=train-rm")[0] == 3
    code, lines = inspect(write("b.jsonl", *PAIRS), "for=train-ppo", "data.max_prompt_tokens=30")
    assert (code, lines[0]) == (0, "for train-ppo, tokens of bytes")
    assert inspect("b.jsonl", "data.max_prompt_tokens=30")[1][0] == "for train-ppo, tokens of bytes"


def test_a_configuration_brings_files_tokenizer_and_options(inspect):
    code, lines = inspect("conf=tiny", "for=train-ppo")
    assert code == 0
    assert "data.eval: pkg://rlhf_cli.demo/prompts_eval.jsonl" in lines
    assert "0 prompts are on both sides" in lines
    assert "           | You are a friendly customer service agent. Be brief.<eos><bos>user" in lines
    code, lines = inspect(write("a.jsonl", *PAIRS), "conf=tiny", "data.category_column=kind")
    assert code == 3
    wanted = "  data.train=a.jsonl: no column 'kind'; there are: prompt, chosen, rejected; set data.category_column"
    assert wanted in lines


def test_files_that_no_run_can_read_exit_with_3_and_missing_ones_with_2(inspect, fails):
    code, lines = inspect(write("a.jsonl", {"messages": []}, {"prompt": "q"}), "for=train-ppo")
    assert code == 3
    assert "  data.train=a.jsonl: rows of several formats, messages and columns; set data.format" in lines
    assert inspect(write("empty.jsonl"))[0] == 3
    Path("a.csv").write_bytes(b"prompt\n\xff\n")
    assert inspect("a.csv")[0] == 3
    assert fails("inspect", "nowhere.jsonl").endswith("data.train=nowhere.jsonl: no such file or folder")


def test_hostile_texts_are_shown_harmlessly(inspect):
    code, lines = inspect(write("a.jsonl", {"prompt": "\x1b[31m\u202e", "chosen": "\x00", "rejected": "b\r\nc"}))
    assert code == 0
    assert not any("\x1b" in line or "\u202e" in line or "\x00" in line for line in lines)


def test_wrong_arguments_are_refused_in_one_line(fails):
    write("a.jsonl", *PAIRS)
    for words, message in (
        (["look"], "rlhf data must be followed by inspect or convert, got look"),
        (["inspect"], "no rows to read; give a file, or a conf= that sets data.train"),
        (
            ["inspect", "a.jsonl", "a.jsonl", "a.jsonl"],
            "data inspect takes one or two files, TRAIN and EVAL; for more",
        ),
        (["inspect", "a.jsonl", "--all"], "unknown option --all; see `rlhf data --help`"),
        (["inspect", "a.jsonl", "for=rm"], "for must be train-rm or train-ppo, got rm"),
        (["inspect", "a.jsonl", "show=all"], "show must be a number of rows, got all"),
        (["inspect", "a.jsonl", "data.formt=hh"], "unknown key data.formt (got hh); did you mean data.format?"),
        (["convert", "a.jsonl"], "data convert must be followed by IN ... OUT.jsonl; see `rlhf data --help`"),
        (["convert", "a.jsonl", "b.csv"], "data convert: the last argument is the new .jsonl file to write, got b.csv"),
        (["convert", "a.jsonl", "no/b.jsonl"], "data convert: cannot write no/b.jsonl: No such file or directory"),
        (
            ["convert", "a.jsonl", "a.jsonl"],
            "data convert: a.jsonl exists and is never overwritten; choose another name",
        ),
    ):
        assert fails(*words).startswith(f"rlhf: error: {message}"), words
    assert Path("a.jsonl").read_text() == "\n".join(map(json.dumps, PAIRS))


def test_help(capsys):
    assert main(["data", "--help"]) == 0
    assert capsys.readouterr().out.startswith("usage: rlhf data inspect TRAIN [EVAL]")


CASES = {
    "columns": ([{**row, "gap": 0.5, "sure": 0.75, "kind": "x", "w": 2} for row in PAIRS], True),
    "hh": ([{"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: a\n\nAssistant: c"}], False),
    "sharegpt": (
        [
            {
                "conversations": [{"from": "system", "value": "s"}, {"from": "human", "value": "q"}],
                "chosen": {"from": "gpt", "value": "a"},
                "rejected": {"from": "gpt", "value": "b"},
            }
        ],
        False,
    ),
    "rated": (
        [
            {
                "instruction": "q",
                "completions": [{"response": f"r{n}", "rating": r} for n, r in enumerate((3, 5, 3, 1))],
            },
            {"instruction": "r", "completions": [{"response": f"r{n}", "rating": n} for n in range(3)]},
            {"instruction": "s", "completions": [{"response": f"r{n}", "rating": n} for n in range(2)]},
        ],
        False,
    ),
    "alpaca": ([{"instruction": "q", "output": ["a", "b", "c"][:n]} for n in (2, 3)], False),
    "rated_rows": ([{"prompt": "q", "response": f"r{n}", "score": n % 3} for n in range(4)], False),
}


@pytest.mark.parametrize("name", CASES)
def test_what_is_converted_reads_the_same(name, capsys):
    rows, numbers = CASES[name]
    columns = {"margin": "gap", "confidence": "sure", "category": "kind", "weight": "w"} if numbers else {}
    keys = [f"data.{what}_column={column}" for what, column in columns.items()]
    assert main(["data", "convert", write("a.jsonl", *rows), "b.jsonl", *keys]) == 0
    assert capsys.readouterr().out.startswith("a.jsonl: ")
    before = load("a.jsonl", **{f"{what}_column": column for what, column in columns.items()})
    after = load("b.jsonl", **{f"{what}_column": what for what in columns})
    assert before.train == after.train
    assert len(before.train) == (1 if name == "rated_rows" else len(rows))
    assert all(isinstance(json.loads(line)["prompt"], list) for line in Path("b.jsonl").read_text().splitlines())


def load(train, **options):
    config = PreferenceDataConfig(train=train, eval_fraction=0.0, **options)
    return load_preferences(config, Renderer(byte_tokenizer(), config), 0)


def test_prompts_are_converted_with_their_other_columns():
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]
    write("a.jsonl", {"messages": messages, "answer": [4]}, {"messages": messages[:1], "answer": None})
    assert main(["data", "convert", "a.jsonl", "b.jsonl"]) == 0
    config = PromptDataConfig(train="b.jsonl", eval_fraction=0.0)
    found = load_prompts(config, Renderer(byte_tokenizer(), config), 0).train
    assert [prompt.columns for prompt in found] == [{"answer": [4]}, {"answer": None}]
    assert [list(prompt.messages) for prompt in found] == [messages[:1], messages[:1]]


def test_a_second_column_named_prompt_is_not_lost(fails):
    write("a.jsonl", {"question": "q", "prompt": "other"})
    message = fails("convert", "a.jsonl", "b.jsonl", "data.prompt_column=question")
    assert "rows have a column 'prompt' in addition to data.prompt_column=question" in message
    assert not Path("b.jsonl").exists()


def test_several_files_become_one_and_bad_rows_write_nothing(fails):
    write("a.jsonl", *PAIRS)
    write("b.jsonl", *({"instruction": "q", "chosen": "a", "rejected": "b"} for _ in range(2)))
    assert main(["data", "convert", "a.jsonl", "b.jsonl", "c.jsonl"]) == 0
    assert len(Path("c.jsonl").read_text().splitlines()) == 6
    write("rated.jsonl", *CASES["rated"][0])
    assert "rated.jsonl: pairs and rankings in one file; convert" in fails(
        "convert", "a.jsonl", "rated.jsonl", "d.jsonl"
    )
    write("bad.jsonl", PAIRS[0], {**PAIRS[0], "chosen": 3})
    assert "bad.jsonl:2: chosen: got int" in fails("convert", "a.jsonl", "bad.jsonl", "d.jsonl")
    assert sorted(file.name for file in Path().iterdir()) == [
        "a.jsonl",
        "b.jsonl",
        "bad.jsonl",
        "c.jsonl",
        "rated.jsonl",
    ]


def test_a_histogram_counts_every_length_once():
    """Of 1 to 20 in eight bins: three lengths wide, the last one two."""
    lengths = list(range(1, 21))
    bins = histogram(lengths)
    assert bins == [(1, 3, 3), (4, 6, 3), (7, 9, 3), (10, 12, 3), (13, 15, 3), (16, 18, 3), (19, 20, 2)]
    assert histogram([5, 5]) == [(5, 5, 2)]
    assert [quantile(lengths, share) for share in (0.0, 0.5, 0.95, 1.0)] == [1, 11, 20, 20]


def test_broken_pairs_are_no_prompts(tmp_path, capsys):
    """Every row has a prompt, so a run of PPO could take them; but a column `chosen` means pairs."""
    file = tmp_path / "pairs.jsonl"
    file.write_text('{"prompt": "a", "chosen": 1, "rejected": "b"}\n' * 3)
    assert main(["data", "inspect", str(file)]) == 3
    assert "chosen" in capsys.readouterr().out
