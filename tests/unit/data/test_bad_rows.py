"""Bad rows: file, line, field, reason, the first 20 of them, all counted."""

import json

import datasets
import pytest

from rlhf_cli.config.errors import InputError
from rlhf_cli.config.sections import PreferenceDataConfig, PromptDataConfig, RowPolicy
from rlhf_cli.data.conversation import Renderer
from rlhf_cli.data.preferences import load_preferences
from rlhf_cli.data.prompts import load_prompts
from rlhf_cli.models.byte_tokenizer import byte_tokenizer

TOKENIZER = byte_tokenizer()
GOOD = {"prompt": "q", "chosen": "a", "rejected": "b"}


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def write(lines, name="a.jsonl"):
    """Write rows, or lines of bytes, to a file in the current folder."""
    data = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]
    with open(name, "wb") as file:
        file.write(b"\n".join(data))
    return name


def pairs(train, **options):
    config = PreferenceDataConfig(train=train, eval_fraction=0.0, **options)
    return load_preferences(config, Renderer(TOKENIZER, config), seed=0)


def prompts(train, **options):
    config = PromptDataConfig(train=train, eval_fraction=0.0, **options)
    return load_prompts(config, Renderer(TOKENIZER, config), seed=0)


def refusal(call, *args, **options):
    with pytest.raises(InputError) as caught:
        call(*args, **options)
    return str(caught.value)


def test_every_kind_of_bad_row_is_listed_with_line_field_and_reason():
    path = write(
        [
            GOOD,
            b"",  # blank lines are skipped, the numbers stay those of the file
            b'{"prompt": ',
            [1, 2],
            b'{"prompt": "\xff", "chosen": "a", "rejected": "b"}',
            {"prompt": "q", "chosen": "a"},
            {**GOOD, "prompt": 3},
            {**GOOD, "chosen": [{"role": "user"}]},
            {**GOOD, "rejected": 0},
            {**GOOD, "chosen": [{"role": "user", "content": "x"}]},
            b'{"prompt": "q", "prompt": "r", "chosen": "a", "rejected": "b"}',
            b'{"prompt": "\\ud800", "chosen": "a", "rejected": "b"}',
            b"[" * 100_000,
            b'{"prompt": 1' + b"0" * 5000 + b"}",
            {"chosen": "a", "rejected": "b"},
            GOOD,
        ]
    )
    too_deep, too_long = refusal(pairs, path).splitlines()[11:13]
    assert too_deep.startswith("  a.jsonl:13: not JSON: maximum recursion depth exceeded")
    assert too_long.startswith("  a.jsonl:14: not JSON: Exceeds the limit (4300 digits)")
    assert [line for line in refusal(pairs, path).splitlines() if line not in (too_deep, too_long)] == [
        "data.train=a.jsonl: 13 bad rows of 15",
        "  a.jsonl:3: not JSON: Expecting value (column 11)",
        "  a.jsonl:4: wanted an object, {...}, got list",
        "  a.jsonl:5: prompt: not UTF-8 text",
        "  a.jsonl:6: rejected: missing",
        "  a.jsonl:7: prompt: got int, wanted a string or a list of messages",
        "  a.jsonl:8: chosen: a message needs `role` and `content` strings, got str and none",
        "  a.jsonl:9: rejected: got int, wanted a string or a list of messages",
        "  a.jsonl:10: chosen: wanted a prompt and then one assistant message, got ['user']",
        "  a.jsonl:11: not JSON: key 'prompt' occurs twice",
        "  a.jsonl:12: prompt: not UTF-8 text",
        "  a.jsonl:15: prompt: answers are plain strings and there is no prompt; set data.prompt_column",
    ]


@pytest.mark.parametrize(
    ("number", "shown"),
    [
        (None, "None"),
        ("high", "'high'"),
        (True, "True"),
        (float("nan"), "nan"),
        (float("inf"), "inf"),
        (20000, "20000"),
    ],
)
def test_a_margin_out_of_range_is_listed(number, shown):
    path = write([{**GOOD, "gap": 1.5}, {**GOOD, "gap": number}, GOOD])
    assert refusal(pairs, path, margin_column="gap").splitlines() == [
        "data.train=a.jsonl: 2 bad rows of 3",
        f"  a.jsonl:2: gap: wanted a number between -10000 and 10000, got {shown}",
        "  a.jsonl:3: gap: missing",
    ]


def test_the_first_20_are_shown_and_all_are_counted():
    path = write([{"prompt": number if number % 2 else "q"} for number in range(108)])
    lines = refusal(prompts, path).splitlines()
    assert lines[0] == "data.train=a.jsonl: 54 bad rows of 108"
    assert lines[1] == "  a.jsonl:2: prompt: got int, wanted a string or a list of messages"
    assert lines[20] == "  a.jsonl:40: prompt: got int, wanted a string or a list of messages"
    assert lines[21:] == ["  … and 34 more; 54 bad rows of 108"]


def test_20_bad_rows_are_all_shown_and_21_are_not():
    good = {"prompt": "q"}
    assert refusal(prompts, write([{"prompt": 1}] * 20 + [good])).splitlines()[-1].startswith("  a.jsonl:20: ")
    assert refusal(prompts, write([{"prompt": 1}] * 21 + [good])).endswith("\n  … and 1 more; 21 bad rows of 22")


def test_one_line_reports_rows_that_are_all_bad_for_one_reason():
    assert refusal(prompts, write([{"prompt": 1}] * 30)) == (
        "data.train=a.jsonl: all 30 rows: prompt: got int, wanted a string or a list of messages"
    )


def test_a_missing_column_is_reported_with_the_existing_columns():
    path = write([{"prompt": "q", "situation": "s"}, {"prompt": "r", "more": 1}, b"{"])
    assert refusal(prompts, path, prompt_column="question") == (
        "data.train=a.jsonl: no column 'question'; there are: prompt, situation, more; set data.prompt_column"
    )
    path = write([GOOD])
    for option in ("chosen_column", "rejected_column", "margin_column", "confidence_column", "ranking_column"):
        assert refusal(pairs, path, **{option: "x"}).endswith(
            f"no column 'x'; there are: prompt, chosen, rejected; set data.{option}"
        )


def test_the_policies_with_error_are_listed_in_the_same_way():
    path = write(
        [
            {**GOOD, "prompt": " "},
            {**GOOD, "chosen": None},
            {**GOOD, "rejected": []},
            {**GOOD, "rejected": "a"},
            {**GOOD, "prompt": "q" * 99},
            GOOD,
        ]
    )
    options = dict.fromkeys(("empty", "equal", "too_long"), RowPolicy.error)
    assert refusal(pairs, path, max_tokens=60, **options).splitlines() == [
        "data.train=a.jsonl: 5 bad rows of 6",
        "  a.jsonl:1: prompt: empty, and data.empty=error",
        "  a.jsonl:2: chosen: empty, and data.empty=error",
        "  a.jsonl:3: rejected: empty, and data.empty=error",
        "  a.jsonl:4: rejected: chosen == rejected, and data.equal=error",
        "  a.jsonl:5: prompt + answer: too long, and data.too_long=error",
    ]
    assert refusal(
        prompts, path, max_prompt_tokens=60, **{k: options[k] for k in ("empty", "too_long")}
    ).splitlines() == [
        "data.train=a.jsonl: 2 bad rows of 6",
        "  a.jsonl:1: prompt: empty, and data.empty=error",
        "  a.jsonl:5: prompt: too long, and data.too_long=error",
    ]


def test_rows_that_a_policy_drops_do_not_count_as_bad():
    path = write([{**GOOD, "chosen": ""}, {**GOOD, "chosen": 1}, GOOD])
    assert refusal(pairs, path).startswith("data.train=a.jsonl: 1 bad row of 3\n  a.jsonl:2: chosen: ")


def test_a_ranking_is_listed_like_a_pair():
    rankings = (["a", "b"], ["a"], "", ["a", 1], ["a", "a"], ["", "a"])
    rows = [{"prompt": "q", "answers": answers} for answers in rankings]
    path = write([*rows, {"prompt": "q"}, {"answers": ["a", "b"]}])
    options = {"ranking_column": "answers", "equal": RowPolicy.error, "empty": RowPolicy.error}
    wanted = "answers: wanted a list of two or more strings, the best first"
    assert refusal(pairs, path, **options).splitlines()[1:] == [
        f"  a.jsonl:2: {wanted}",
        f"  a.jsonl:3: {wanted}",
        f"  a.jsonl:4: {wanted}",
        "  a.jsonl:5: answers: equal answers, and data.equal=error",
        "  a.jsonl:6: answers: empty, and data.empty=error",
        "  a.jsonl:7: answers: missing",
        "  a.jsonl:8: prompt: missing",
    ]


def test_rows_that_the_template_refuses_are_listed_with_their_lines():
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = (
        "{% if messages[0]['role'] == 'user' %}x{% else %}{{ raise_exception('user first') }}{% endif %}"
    )
    config = PromptDataConfig(train=write([{"prompt": "q"}, {"prompt": [{"role": "tool", "content": "q"}]}]))
    assert refusal(load_prompts, config, Renderer(tokenizer, config), seed=0).endswith(
        "  a.jsonl:2: prompt: the chat template refuses the roles ['tool']: user first; see data.system_prompt"
    )


def test_control_characters_and_long_values_in_messages_are_harmless():
    path = write([{**GOOD, "gap": "\x1b[31m\nred\u202e"}, {**GOOD, "gap": "x" * 999}, {**GOOD, "gap": 1}])
    first, second = refusal(pairs, path, margin_column="gap").splitlines()[1:]
    assert first == r"  a.jsonl:1: gap: wanted a number between -10000 and 10000, got '\x1b[31m\nred\u202e'"
    assert second.endswith("xxx…")
    assert len(second) < 250
    message = refusal(prompts, write([{"\x1b[2J\nname": "q"}]), prompt_column="p")
    assert message == "data.train=a.jsonl: no column 'p'; there are: \ufffd[2J name; set data.prompt_column"
    assert refusal(prompts, write([b'{"\x1b]": 1, "\x1b]": 2}', {"prompt": "q"}])).endswith(
        "control character at (column 3)"
    )


def test_bad_rows_of_the_held_out_file_name_that_file():
    write([{"prompt": "q"}], "b.jsonl")
    message = refusal(prompts, "b.jsonl", eval=write([{"prompt": 1}, {"prompt": "q"}]))
    assert message.startswith("data.eval=a.jsonl: 1 bad row of 2\n  a.jsonl:1: prompt: got int")


def test_text_is_not_changed():
    """A byte order mark, CRLF, Unicode line ends inside a string, and texts that look like dates or null."""
    rows = [{"prompt": text} for text in ("2020-01-01", "None", "x\u2028y\x85z", "é")]
    lines = [json.dumps(row, ensure_ascii=False).encode() + b"\r" for row in rows]
    write([b"\xef\xbb\xbf" + lines[0], *lines[1:]])
    assert [prompt.text for prompt in prompts("a.jsonl").train] == [row["prompt"] for row in rows]


@pytest.mark.parametrize("kind", ["json", "parquet", "folder"])
def test_other_sources_name_the_row_counted_from_1(kind):
    user, answer = ([{"role": role, "content": "x"}] for role in ("user", "assistant"))
    other = [{"role": "assistant", "content": "y"}]
    rows = [
        {"prompt": user, "chosen": answer, "rejected": other},
        {"prompt": [{"role": "user", "content": None}], "chosen": answer, "rejected": other},
        {"prompt": user, "chosen": answer, "rejected": answer},
    ]
    path, table = f"a.{kind}", datasets.Dataset.from_list(rows)
    writers = {
        "json": lambda: write([json.dumps(rows, indent=1).encode()], path),
        "parquet": lambda: table.to_parquet(path),
        "folder": lambda: table.save_to_disk(path),
    }
    writers[kind]()
    assert refusal(pairs, path, equal=RowPolicy.error).splitlines() == [
        f"data.train=a.{kind}: 2 bad rows of 3",
        f"  a.{kind}: row 2: prompt: a message needs `role` and `content` strings, got str and NoneType",
        f"  a.{kind}: row 3: rejected: chosen == rejected, and data.equal=error",
    ]


def test_a_json_array_names_rows_and_a_broken_one_its_line():
    path = write([b'[{"prompt": "q"},', b' {"prompt": "\xff"}, 3,', b' {"p": 1}]'], "a.json")
    assert refusal(prompts, path).splitlines() == [
        "data.train=a.json: 3 bad rows of 4",
        "  a.json: row 2: prompt: not UTF-8 text",
        "  a.json: row 3: wanted an object, {...}, got int",
        "  a.json: row 4: prompt: missing",
    ]
    path = write([b'[{"prompt": "q"},', b' {"prompt": }]'], "a.json")
    assert refusal(prompts, path) == "data.train=a.json: cannot read rows: Expecting value: line 2 column 13 (char 30)"


def test_a_json_file_may_hold_lines_or_one_object():
    assert len(prompts(write([{"prompt": "q"}, {"prompt": "r"}], "a.json")).train) == 2
    assert len(prompts(write([b'{"prompt":', b' "q"}'], "a.json")).train) == 1
    assert refusal(prompts, write([{"prompt": "q"}, b"x"], "a.json")).splitlines()[1].startswith("  a.json:2: not JSON")


def test_csv_errors_name_rows_and_lines_that_are_not_utf8():
    path = write([b"prompt,chosen,rejected,sure", b"q,a,b,0.7", b"q,None,NA,0.9", b"q,a,b,", b"q,a,b,0.2"], "a.csv")
    assert refusal(pairs, path, confidence_column="sure").splitlines() == [
        "data.train=a.csv: 2 bad rows of 4",
        "  a.csv: row 3: sure: wanted a number between 0.5 and 1, got None",
        "  a.csv: row 4: sure: wanted a number between 0.5 and 1, got '0.2'",
    ]
    assert refusal(prompts, write([b"prompt", b"q", b"\xff", b"q", b"\xfe"], "a.csv")) == (
        "data.train=a.csv: cannot read rows: 2 lines are not UTF-8 text, the first of them 3, 5"
    )


def test_a_csv_row_that_does_not_fit_the_header_is_bad():
    path = write([b"prompt,x", b"q,1,2", b"", b"q,1", b"q", b"  ", b'"q"r,1', b'q,"1'], "a.csv")
    assert refusal(prompts, path).splitlines() == [
        "data.train=a.csv: 4 bad rows of 5",
        "  a.csv: row 1: 3 fields, wanted 2 as in the header",
        "  a.csv: row 3: 1 field, wanted 2 as in the header",
        "  a.csv: row 4: not CSV: ',' expected after '\"'",
        "  a.csv: row 5: not CSV: unexpected end of data",
    ]


def test_a_csv_header_must_name_each_column_once():
    for header, wrong in (
        (b"prompt,x,x", "a.csv: two columns have the name 'x'; rename one in the first line"),
        (b",prompt,x", "a.csv: column 1 of 3 has no name; name it in the first line"),
        (b'"prompt"a,x', "a.csv: the header is not CSV: ',' expected after '\"'"),
    ):
        assert refusal(prompts, write([header, b"q,1,2"], "a.csv")).endswith(wrong)
    assert refusal(prompts, write([b""], "a.csv")) == "data.train=a.csv: no rows"


def test_cells_of_a_csv_file_are_texts():
    path = write([b"\xef\xbb\xbfprompt,id,none", b'"a, ""b""\r\nc",007,', b"4,1e3,x"], "a.csv")
    first, second = prompts(path).train
    assert (first.text, first.columns) == ('a, "b"\r\nc', {"id": "007", "none": None})
    assert (second.text, second.columns) == ("4", {"id": "1e3", "none": "x"})
    pair = pairs(write([b"prompt,chosen,rejected", b"q,4,5"], "b.csv")).train[0]
    assert [TOKENIZER.decode(answer.response_ids) for answer in pair.answers] == ["4<eos>", "5<eos>"]


def test_long_cells_of_a_csv_file_are_read_and_endless_ones_refused(monkeypatch):
    path = write([b"prompt,x", b"q," + b"x" * 200_000, b'q,"1', b"q,1"], "a.csv")
    monkeypatch.setattr("rlhf_cli.data.csv_rows.MAX_ROW_CHARS", 1 << 18)
    assert "row 2: not CSV: unexpected end of data" in refusal(prompts, path)
    monkeypatch.setattr("rlhf_cli.data.csv_rows.MAX_ROW_CHARS", 1 << 17)
    assert "a.csv: a row that reaches line 2 is longer than" in refusal(prompts, path)


def test_a_compressed_csv_file_is_refused():
    path = write([b"prompt", b"q"], "a.csv.gz")
    assert refusal(prompts, path) == "a.csv.gz: unknown file type '.gz', wanted one of .jsonl, .json, .csv, .parquet"


def test_the_answers_none_and_na_in_a_csv_file_are_texts():
    pair = pairs(write([b"prompt,chosen,rejected", b"q,None,NA"], "a.csv")).train[0]
    assert [TOKENIZER.decode(answer.response_ids) for answer in pair.answers] == ["None<eos>", "NA<eos>"]
