import datetime
import json
from decimal import Decimal

import datasets
import pytest

from rlhf_cli.config.errors import InputError
from rlhf_cli.config.sections import PreferenceDataConfig, PromptDataConfig, RowPolicy
from rlhf_cli.data.conversation import Renderer
from rlhf_cli.data.preferences import load_preferences
from rlhf_cli.data.prompts import load_prompts
from rlhf_cli.data.read_rows import load_rows
from rlhf_cli.data.splits import split_by_prompt
from rlhf_cli.models.byte_tokenizer import byte_tokenizer

TOKENIZER = byte_tokenizer()
ROWS = [{"prompt": f"question {i}", "chosen": f"good {i}", "rejected": f"bad answer {i}"} for i in range(10)]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return str(path)


def load(train, **options):
    config = PreferenceDataConfig(train=train, **options)
    return load_preferences(config, Renderer(TOKENIZER, config), seed=0)


def text(ids):
    return TOKENIZER.decode(ids)


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "parquet", "folder", "dict"])
def test_every_kind_of_source_gives_the_same_pairs(kind, tmp_path):
    dataset = datasets.Dataset.from_list(ROWS)
    path = tmp_path / f"rows.{kind}"
    writers = {
        "jsonl": lambda: dataset.to_json(path),
        "json": lambda: path.write_text(json.dumps(ROWS)),
        "csv": lambda: dataset.to_csv(path),
        "parquet": lambda: dataset.to_parquet(path),
        "folder": lambda: dataset.save_to_disk(path),
        "dict": lambda: datasets.DatasetDict(train=dataset, test=dataset.select([0])).save_to_disk(path),
    }
    writers[kind]()
    pairs = load(str(path), eval_fraction=0.0).train
    assert [text(pair.answers[0].response_ids) for pair in pairs] == [f"good {i}<eos>" for i in range(10)]


def test_a_row_is_rendered_with_the_chat_template_and_one_eos(tmp_path):
    pair = load(write(tmp_path / "a.jsonl", ROWS[:1]), eval_fraction=0.0, system_prompt="be kind").train[0]
    assert text(pair.answers[0].prompt_ids) == "<bos>system\nbe kind<eos><bos>user\nquestion 0<eos><bos>assistant\n"
    assert text(pair.answers[1].response_ids) == "bad answer 0<eos>"
    assert pair.longer_wins == 0.0


def test_without_a_template_the_plain_text_is_taken(tmp_path):
    pair = load(write(tmp_path / "a.jsonl", ROWS[:1]), eval_fraction=0.0, apply_chat_template=False).train[0]
    assert text(pair.answers[0].prompt_ids) == "question 0"


MESSAGES = [
    {"role": "user", "content": "hi"},
    {"role": "assistant", "content": "yes?"},
    {"role": "user", "content": "help"},
]
GOOD, BAD = ({"role": "assistant", "content": content} for content in ("sure", "no"))


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": MESSAGES, "chosen": [GOOD], "rejected": [BAD]},
        {"prompt": MESSAGES, "chosen": [*MESSAGES, GOOD], "rejected": [*MESSAGES, BAD]},
        {"chosen": [*MESSAGES, GOOD], "rejected": [*MESSAGES, BAD]},
    ],
)
def test_chat_messages_with_the_prompt_given_or_implied(row, tmp_path):
    pair = load(write(tmp_path / "a.jsonl", [row]), eval_fraction=0.0).train[0]
    rendered = "<bos>user\nhi<eos><bos>assistant\nyes?<eos><bos>user\nhelp<eos><bos>assistant\n"
    assert text(pair.answers[0].prompt_ids) == rendered
    assert text(pair.answers[0].response_ids) == "sure<eos>"
    assert text(pair.answers[1].response_ids) == "no<eos>"


def test_rankings_hold_every_answer_the_best_first(tmp_path):
    row = {"prompt": "q", "answers": ["longest", "mid", "tiny"]}
    ranking = load(write(tmp_path / "a.jsonl", [row]), eval_fraction=0.0, ranking_column="answers").train[0]
    assert [text(answer.response_ids) for answer in ranking.answers] == ["longest<eos>", "mid<eos>", "tiny<eos>"]
    assert ranking.pairs == [(0, 1), (0, 2), (1, 2)]
    assert ranking.longer_wins == pytest.approx(2 / 3)  # "tiny" is longer than "mid"
    assert ranking.num_tokens == len(ranking.answers[0])


@pytest.mark.parametrize("answers", [["one"], "text", ["a", 3], [["a"], ["b"]]])
def test_a_ranking_that_is_no_list_of_texts_is_refused(answers, tmp_path):
    path = write(tmp_path / "a.json", [{"prompt": "q", "answers": answers}])
    with pytest.raises(InputError, match=r"row 1: answers: wanted a list of two or more strings, the best first"):
        load(path, ranking_column="answers")


def test_equal_and_empty_answers_of_a_ranking_are_counted(tmp_path):
    rows = [{"prompt": "q", "answers": answers} for answers in (["a", "b", "a"], ["a", " "], [], ["x", "y"])]
    sets = load(write(tmp_path / "a.jsonl", rows), eval_fraction=0.0, ranking_column="answers")
    assert sets.notes[0].endswith("1 rows kept, 3 dropped (2 empty, 1 equal answers)")


def test_margin_and_confidence_come_from_their_columns(tmp_path):
    row = {**ROWS[0], "gap": 2, "sure": 0.75}
    path = write(tmp_path / "a.jsonl", [row])
    pair = load(path, eval_fraction=0.0, margin_column="gap", confidence_column="sure").train[0]
    assert (pair.margin, pair.confidence) == (2.0, 0.75)
    plain = load(path, eval_fraction=0.0).train[0]
    assert (plain.margin, plain.confidence) == (0.0, 1.0)


@pytest.mark.parametrize("value", [0.4, 1.1, None, "high", True])
def test_a_confidence_out_of_range_is_refused(value, tmp_path):
    path = write(tmp_path / "a.jsonl", [{**ROWS[0], "sure": value}])
    with pytest.raises(InputError, match=r"a.jsonl:1: sure: wanted a number between 0.5 and 1, got"):
        load(path, confidence_column="sure")


def test_bad_rows_are_counted_never_cut(tmp_path):
    bad = [
        {"prompt": "q", "chosen": "same", "rejected": "same"},
        {"prompt": " ", "chosen": "a", "rejected": "b"},
        {"prompt": "q", "chosen": "", "rejected": "b"},
        {"prompt": "q", "chosen": None, "rejected": "b"},
        {"prompt": None, "chosen": "a", "rejected": "b"},
        {"prompt": "q" * 200, "chosen": "a", "rejected": "b"},
    ]
    sets = load(write(tmp_path / "a.jsonl", ROWS + bad), eval_fraction=0.0, max_tokens=100)
    assert len(sets.train) == 10
    assert sets.notes[0].endswith("10 rows kept, 6 dropped (1 chosen == rejected, 4 empty, 1 too long)")


@pytest.mark.parametrize(
    ("row", "option", "reason"),
    [
        ({"prompt": "q", "chosen": "s", "rejected": "s"}, "equal", "chosen == rejected"),
        ({"prompt": "", "chosen": "a", "rejected": "b"}, "empty", "empty"),
        ({"prompt": "q" * 99, "chosen": "a", "rejected": "b"}, "too_long", "too long"),
    ],
)
def test_a_policy_of_error_names_row_reason_and_option(row, option, reason, tmp_path):
    path = write(tmp_path / "a.jsonl", [ROWS[0], row])
    with pytest.raises(InputError, match=rf"a.jsonl:2: .*: {reason}, and data.{option}=error"):
        load(path, max_tokens=60, **{option: RowPolicy.error})


def test_an_answer_that_includes_its_eos_gets_no_second_one(tmp_path):
    row = {"prompt": "q", "chosen": "good<eos>", "rejected": "bad"}
    pair = load(write(tmp_path / "a.jsonl", [row]), eval_fraction=0.0).train[0]
    assert text(pair.answers[0].response_ids) == "good<eos>"
    assert text(pair.answers[1].response_ids) == "bad<eos>"


def test_a_template_that_refuses_the_roles_is_a_one_line_error(tmp_path):
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}x"
    config = PreferenceDataConfig(train=write(tmp_path / "a.jsonl", ROWS), system_prompt="be kind")
    with pytest.raises(InputError, match=r"refuses the roles \['system', 'user'\]: no system; see data.system_prompt"):
        load_preferences(config, Renderer(tokenizer, config), seed=0)


def test_the_split_is_by_prompt_seeded_and_has_the_requested_size(tmp_path):
    twice = [{**row, "chosen": f"{row['chosen']} {k}"} for row in ROWS for k in range(2)]
    sets = load(write(tmp_path / "a.jsonl", twice), eval_fraction=0.3)
    train, held_out = ({pair.prompt_key for pair in side} for side in (sets.train, sets.eval))
    assert len(sets.eval) == 6
    assert not train & held_out
    assert split_by_prompt(["a", "b", "c"], 0.3, 1) == split_by_prompt(["a", "b", "c"], 0.3, 1)
    assert [list(side) for side in split_by_prompt(["a", "a"], 0.0, 1)] == [[0, 1], []]


def test_unknown_columns_splits_and_files_are_named(tmp_path):
    path = write(tmp_path / "a.jsonl", ROWS)
    with pytest.raises(InputError, match=r"no column 'better'; there are: prompt, chosen, rejected"):
        load(path, chosen_column="better")
    with pytest.raises(InputError, match=r"data.train=./nowhere.jsonl: no such file"):
        load("./nowhere.jsonl")
    (tmp_path / "broken.jsonl").write_text('{"prompt": ')
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(InputError, match=r"data.train=.*empty.jsonl: no rows"):
        load(str(tmp_path / "empty.jsonl"))
    with pytest.raises(InputError, match=r"broken.jsonl:1: not JSON: Expecting value \(column 11\)"):
        load(str(tmp_path / "broken.jsonl"))
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(InputError, match=r"unknown file type '.txt'"):
        load(str(tmp_path / "notes.txt"))
    datasets.DatasetDict(train=datasets.Dataset.from_list(ROWS)).save_to_disk(tmp_path / "dict")
    with pytest.raises(InputError, match="no split 'dev'; there are: train"):
        list(load_rows(str(tmp_path / "dict"), "dev", "data.eval"))


def test_nothing_left_is_an_error_with_the_counts(tmp_path):
    with pytest.raises(InputError, match=r"nothing is left to train on: .*10 too long"):
        load(write(tmp_path / "a.jsonl", ROWS), max_tokens=5)


def test_prompts(tmp_path):
    mixed = [{"q": "one"}, {"q": ""}, {"q": "x" * 99}]
    path = write(tmp_path / "p.jsonl", mixed)
    config = PromptDataConfig(train=path, prompt_column="q", eval_fraction=0.0, max_prompt_tokens=60)
    sets = load_prompts(config, Renderer(TOKENIZER, config), seed=0)
    assert [prompt.text for prompt in sets.train] == ["one"]
    assert sets.notes[0].endswith("1 rows kept, 2 dropped (1 empty, 1 too long)")
    assert text(sets.train[0].ids) == "<bos>user\none<eos><bos>assistant\n"


def test_a_prompt_keeps_its_conversation_and_the_rows_other_columns(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    chat = [{"role": "system", "content": "kind"}, {"role": "user", "content": "q?"}]
    rows = [{"prompt": chat, "answer": "4", "tags": ["a", None], "more": {"x": 1.5, "yes": True}}, {"prompt": "plain"}]
    config = PromptDataConfig(train=write(tmp_path / "a.jsonl", rows), eval_fraction=0.0, system_prompt="be short")
    for _ in range(2):  # the second from the cache
        first, second = load_prompts(config, Renderer(TOKENIZER, config), 0).train
        assert first.messages == tuple(chat)
        assert first.columns == {"answer": "4", "tags": ["a", None], "more": {"x": 1.5, "yes": True}}
        assert second.messages == ({"role": "user", "content": "plain"},)
        assert second.columns == {}


def test_values_that_json_cannot_hold_become_text_or_none(tmp_path):
    moment = datetime.datetime(2026, 1, 2, 3, 4)
    table = datasets.Dataset.from_list([{"prompt": "q", "when": moment, "raw": b"ab", "gap": float("nan")}])
    table.to_parquet(tmp_path / "a.parquet")
    config = PromptDataConfig(train=str(tmp_path / "a.parquet"), eval_fraction=0.0, cache=False)
    (prompt,) = load_prompts(config, Renderer(TOKENIZER, config), 0).train
    assert prompt.columns == {"when": "2026-01-02 03:04:00", "raw": "b'ab'", "gap": None}


def test_reward_training_and_ppo_render_the_same_ids(tmp_path):
    preferences = PreferenceDataConfig(train=write(tmp_path / "a.jsonl", ROWS), eval_fraction=0.0)
    prompts = PromptDataConfig(train=preferences.train, eval_fraction=0.0)
    pairs = load_preferences(preferences, Renderer(TOKENIZER, preferences), 0).train
    asked = load_prompts(prompts, Renderer(TOKENIZER, prompts), 0).train
    assert [pair.answers[0].prompt_ids for pair in pairs] == [prompt.ids for prompt in asked]


def test_a_category_comes_from_its_column(tmp_path):
    rows = [{**row, "kind": kind, "number": 3} for row, kind in zip(ROWS, ("refund", None), strict=False)]
    path = write(tmp_path / "a.jsonl", rows)
    assert [pair.category for pair in load(path, eval_fraction=0.0, category_column="kind").train] == ["refund", None]
    assert {pair.category for pair in load(path, eval_fraction=0.0, category_column="number").train} == {"3"}
    assert load(path, eval_fraction=0.0).train[0].category is None
    bad = write(tmp_path / "b.jsonl", [{**ROWS[0], "kind": ["a"]}])
    with pytest.raises(InputError, match="wanted a word, got list"):
        load(bad, eval_fraction=0.0, category_column="kind")


def test_numbers_may_be_texts_or_decimals(tmp_path):
    path = str(tmp_path / "a.parquet")
    rows = [{**ROWS[0], "gap": Decimal("0.50"), "sure": "0.75"}, {**ROWS[1], "gap": Decimal("-2.25"), "sure": " 1 "}]
    datasets.Dataset.from_list(rows).to_parquet(path)
    first, second = load(path, eval_fraction=0.0, margin_column="gap", confidence_column="sure").train
    assert (first.margin, first.confidence) == (0.5, 0.75)
    assert (second.margin, second.confidence) == (-2.25, 1.0)


@pytest.mark.parametrize("value", ["nan", "inf", "", "half", "1e999", True, None, [1]])
def test_text_that_is_not_a_finite_number_is_refused(value, tmp_path):
    path = write(tmp_path / "a.jsonl", [{**ROWS[0], "gap": value}])
    with pytest.raises(InputError, match=r"gap: wanted a number between -10000 and 10000, got "):
        load(path, eval_fraction=0.0, margin_column="gap")
