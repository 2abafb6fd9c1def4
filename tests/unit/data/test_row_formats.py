"""Every format, as pairs and as prompts: what is recognised, what a row says, what is refused."""

import json

import pytest

from rlhf_cli.config.data_sources import Format
from rlhf_cli.config.errors import InputError
from rlhf_cli.config.sections import PreferenceDataConfig, PromptDataConfig, RowPolicy
from rlhf_cli.data.conversation import Renderer
from rlhf_cli.data.preferences import load_preferences
from rlhf_cli.data.prompts import load_prompts
from rlhf_cli.models.byte_tokenizer import byte_tokenizer

TOKENIZER = byte_tokenizer()


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def write(*rows, name="a.jsonl"):
    with open(name, "w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    return name


def preferences(*rows, **options):
    config = PreferenceDataConfig(train=write(*rows), eval_fraction=0.0, **options)
    return load_preferences(config, Renderer(TOKENIZER, config), seed=0)


def prompts(*rows, **options):
    config = PromptDataConfig(train=write(*rows), eval_fraction=0.0, **options)
    return load_prompts(config, Renderer(TOKENIZER, config), seed=0)


def chat(*turns):
    """Messages, from the roles' first letters and texts."""
    roles = {"s": "system", "u": "user", "a": "assistant"}
    return [{"role": roles[who], "content": text} for who, text in turns]


def turns(*pairs):
    """The same as ShareGPT has them."""
    names = {"s": "system", "u": "human", "a": "gpt"}
    return [{"from": names[who], "value": text} for who, text in pairs]


def said(ranking):
    """The conversation of a ranking, and its answers, the best first."""
    texts = [TOKENIZER.decode(answer.response_ids).removesuffix("<eos>") for answer in ranking.answers]
    return json.loads(ranking.prompt_key), texts


ASK = (("u", "hi"), ("a", "yes?"), ("u", "help"))
TRANSCRIPT = "\n\nHuman: hi\n\nAssistant: yes?\n\nHuman: help\n\nAssistant:"
KIND = ("s", "be kind")
SURE, NO = ("a", "sure"), ("a", "no")

PAIRS = {
    "hh": (Format.hh, {"chosen": f"{TRANSCRIPT} sure", "rejected": f"{TRANSCRIPT} no"}, ASK),
    "hh with a prompt": (Format.hh, {"prompt": TRANSCRIPT, "chosen": " sure", "rejected": " no"}, ASK),
    "hh whole and a prompt": (
        Format.hh,
        {"prompt": TRANSCRIPT, "chosen": f"{TRANSCRIPT} sure", "rejected": f"{TRANSCRIPT} no"},
        ASK,
    ),
    "messages": (Format.messages, {"chosen": chat(KIND, *ASK, SURE), "rejected": chat(KIND, *ASK, NO)}, (KIND, *ASK)),
    "messages beside": (Format.messages, {"messages": chat(*ASK), "chosen": "sure", "rejected": "no"}, ASK),
    "messages, one answer each": (
        Format.messages,
        {"messages": chat(*ASK), "chosen": chat(SURE)[0], "rejected": chat(NO)[0]},
        ASK,
    ),
    "messages in parts": (
        Format.messages,
        {
            "messages": [{"role": "user", "content": [{"type": "text", "text": "he"}, {"type": "text", "text": "lp"}]}],
            "chosen": chat(SURE),
            "rejected": chat(NO),
        },
        (("u", "help"),),
    ),
    "openai's preferences": (
        Format.messages,
        {
            "input": {"messages": chat(KIND, *ASK)},
            "preferred_output": chat(SURE),
            "non_preferred_output": chat(NO),
        },
        (KIND, *ASK),
    ),
    "sharegpt": (
        Format.sharegpt,
        {"conversations": turns(KIND, *ASK), "chosen": turns(SURE)[0], "rejected": turns(NO)[0]},
        (KIND, *ASK),
    ),
    "sharegpt, lists": (Format.sharegpt, {"chosen": turns(*ASK, SURE), "rejected": turns(*ASK, NO)}, ASK),
    "sharegpt, texts and a system column": (
        Format.sharegpt,
        {"conversations": turns(*ASK), "system": "be kind", "chosen": "sure", "rejected": "no"},
        (KIND, *ASK),
    ),
    "alpaca": (
        Format.alpaca,
        {"instruction": "help", "input": "me", "chosen": "sure", "rejected": "no"},
        (("u", "help\nme"),),
    ),
    "alpaca, outputs in order": (
        Format.alpaca,
        {"instruction": "help", "input": "", "output": ["sure", "no"], "system": "be kind"},
        (KIND, ("u", "help")),
    ),
    "alpaca, labelled": (
        Format.alpaca,
        {"instruction": "help", "output_1": "no", "output_2": "sure", "preference": 2},
        (("u", "help"),),
    ),
    "alpaca, history": (
        Format.alpaca,
        {"instruction": "help", "history": [["hi", "yes?"]], "chosen": "sure", "rejected": "no"},
        ASK,
    ),
    "rated": (
        Format.rated,
        {
            "instruction": "help",
            "completions": [{"response": "no", "overall_score": 2.5}, {"response": "sure", "overall_score": 7}],
        },
        (("u", "help"),),
    ),
    "rated, messages": (
        Format.rated,
        {"prompt": chat(*ASK), "completions": [{"response": "no", "rating": "1"}, {"response": "sure", "rating": "5"}]},
        ASK,
    ),
}


@pytest.mark.parametrize("name", PAIRS)
def test_pairs_of_every_format_are_recognised_and_read(name):
    row_format, row, asked = PAIRS[name]
    sides = preferences(row)
    assert [said(one) for one in sides.train] == [(chat(*asked), ["sure", "no"])]
    assert sides.notes[0] == f"a.jsonl: 1 rows kept, 0 dropped; read as {row_format.name}"
    assert preferences(row, format=row_format).train == sides.train


@pytest.mark.parametrize("name", PAIRS)
def test_the_same_rows_give_prompts(name):
    _, row, asked = PAIRS[name]
    sides = prompts({**row, "answer": 4})
    assert [list(prompt.messages) for prompt in sides.train] == [chat(*asked)]
    assert sides.train[0].columns["answer"] == 4
    assert not {"prompt", "instruction", "messages", "conversations"} & set(sides.train[0].columns)


ONLY_PROMPTS = {
    "hh": (Format.hh, {"prompt": TRANSCRIPT}, ASK),
    "messages": (Format.messages, {"messages": chat(*ASK)}, ASK),
    "messages with an answer": (Format.messages, {"messages": chat(*ASK, SURE)}, ASK),
    "sharegpt": (Format.sharegpt, {"conversations": turns(*ASK, SURE)}, ASK),
    "alpaca": (Format.alpaca, {"instruction": "help", "input": "", "output": "sure"}, (("u", "help"),)),
}


@pytest.mark.parametrize("name", ONLY_PROMPTS)
def test_rows_of_prompts_alone(name):
    row_format, row, asked = ONLY_PROMPTS[name]
    sides = prompts(row)
    assert list(sides.train[0].messages) == chat(*asked)
    assert sides.notes[0].endswith(f"; read as {row_format.name}")


def test_rows_of_columns_are_not_mistaken_for_another_format():
    row = {"prompt": "q", "chosen": "Human: no\n\nAssistant: yes", "rejected": "b", "messages": chat(*ASK)}
    assert preferences(row).notes[0] == "a.jsonl: 1 rows kept, 0 dropped"
    assert prompts(row).notes[0] == "a.jsonl: 1 rows kept, 0 dropped"
    row = {"instruction": "q", "input": "x", "output": "y"}
    assert prompts(row, prompt_column="instruction").train[0].text == "q"


def test_rows_of_two_formats_are_refused_unless_the_format_is_set():
    rows = [PAIRS["hh"][1], PAIRS["alpaca"][1]]
    with pytest.raises(InputError) as caught:
        preferences(*rows)
    assert str(caught.value) == "data.train=a.jsonl: rows of several formats, hh and alpaca; set data.format"
    with pytest.raises(InputError, match=r"a.jsonl:2: chosen: a transcript begins with"):
        preferences(*rows, format=Format.hh)


def rated(*ratings, **more):
    completions = [{"response": f"answer {n}", "overall_score": rating} for n, rating in enumerate(ratings)]
    return {"instruction": "q", "completions": completions, **more}


def test_completions_are_ranked_by_their_ratings():
    (ranking,) = preferences(rated(3, "N/A", 5, 1, None)).train
    assert said(ranking)[1] == ["answer 2", "answer 0", "answer 3"]
    assert ranking.ranks == ()
    assert ranking.pairs == [(0, 1), (0, 2), (1, 2)]


def test_tied_answers_make_no_pair_and_stay_otherwise():
    for _ in range(2):  # the second from the cache
        (ranking,) = preferences(rated(4, 5, 4, 1)).train
        assert said(ranking)[1] == ["answer 1", "answer 0", "answer 2", "answer 3"]
        assert ranking.ranks == (0, 1, 1, 2)
        assert ranking.pairs == [(0, 1), (0, 2), (0, 3), (1, 3), (2, 3)]
    assert ranking.longer_wins == 0.5


def test_a_duplicate_answer_has_the_mean_of_its_ratings():
    row = rated(3, 4, 3.5)
    row["completions"][2]["response"] = "answer 0"  # (3 + 3.5) / 2 < 4
    row["completions"].append({"response": "answer 3", "overall_score": 3.4})
    (ranking,) = preferences(row).train
    assert said(ranking)[1] == ["answer 1", "answer 3", "answer 0"]


def test_rows_whose_ratings_rank_nothing_are_counted():
    sides = preferences(rated(1, 2), rated(3, 3), rated(3), rated())
    reasons = "1 equal ratings, 2 fewer than two rated answers"
    assert sides.notes[0] == f"a.jsonl: 1 rows kept, 3 dropped ({reasons}); read as rated"
    with pytest.raises(InputError, match=r"a.jsonl:2: completions: equal ratings, and data.equal=error"):
        preferences(rated(1, 2), rated(3, 3), equal=RowPolicy.error)


def test_the_rating_column_can_be_set():
    row = rated(1, 2)
    for one, own in zip(row["completions"], (9, 8), strict=True):
        one["truth"] = own
    assert said(preferences(row, score_column="truth").train[0])[1] == ["answer 0", "answer 1"]
    with pytest.raises(InputError, match=r"a.jsonl: all 2 rows: completions.x: missing"):
        preferences(row, row, score_column="x", format=Format.rated)


def scored(prompt, response, score, **more):
    return {"prompt": prompt, "response": response, "helpfulness": score, **more}


def test_rows_of_one_answer_each_are_grouped_by_their_prompt():
    rows = [
        scored("q", "bad", 0, coherence=4),
        scored("r", "alone", 3, coherence=1),
        scored("q", "best", 4, coherence=1),
        scored("q", "mid", 2, coherence=9),
    ]
    sides = preferences(*rows)
    assert [said(one) for one in sides.train] == [(chat(("u", "q")), ["best", "mid", "bad"])]
    assert sides.notes[0] == ("a.jsonl: 1 rows kept, 1 dropped (1 fewer than two rated answers); read as rated_rows")
    assert said(preferences(*rows, score_column="coherence").train[0])[1] == ["mid", "bad", "best"]
    assert [one.text for one in prompts(*rows, format=Format.rated_rows).train] == ["q", "r"]


def test_prompts_of_one_answer_a_row_count_once_each():
    rows = [scored("q", "bad", 0, kind="x"), scored("r", "alone", 3, kind="y"), scored("q", "best", 4, kind="z")]
    sides = prompts(*rows)
    assert [(one.text, one.columns["kind"]) for one in sides.train] == [("q", "x"), ("r", "y")]
    assert sides.notes[0] == "a.jsonl: 2 rows kept, 0 dropped; read as rated_rows"
    for others in ({"score": 4}, {"response": "x"}, {"response": "x", "score": 4, "chosen": "y"}):
        assert len(prompts(*[{"prompt": "q", **others}] * 2).train) == 2


def test_other_columns_of_grouped_prompts_are_kept():
    rows = [{"question": "q", "prompt": "other", "response": "a", "score": 1}] * 2
    (one,) = prompts(*rows, prompt_column="question").train
    assert (one.text, one.columns) == ("q", {"prompt": "other", "response": "a", "score": 1})


def test_text_parts_of_columns_are_joined():
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    row = {"prompt": [{"role": "user", "content": parts}], "chosen": "x", "rejected": "y"}
    assert said(preferences(row).train[0])[0] == chat(("u", "ab"))
    assert prompts(row).train[0].text == "ab"


@pytest.mark.parametrize(
    ("message", "wrong"),
    [
        ({"role": "user", "content": [{"type": "image"}]}, "may contain text only, got a part of type image"),
        ({"role": "user", "content": ["a"]}, "a message may contain text only, got a part of type str"),
        (
            {"role": "user", "content": [{"type": "text", "text": 3}]},
            "may contain text only, got text of type int",
        ),
        ({"role": "user", "content": 3}, "`role` and `content` strings, got str and int"),
        ({"content": "x"}, "`role` and `content` strings, got none and str"),
        ("x", "a message is an object with `role` and `content`, got str"),
    ],
)
def test_a_value_that_is_not_a_message_is_named_by_its_type(message, wrong):
    with pytest.raises(InputError, match=wrong):
        prompts({"prompt": [message]})


def test_ratings_and_preferences_may_be_texts():
    rows = [scored("q", "bad", "9"), scored("q", "best", "10.5"), scored("q", "none", "N/A")]
    assert said(preferences(*rows).train[0])[1] == ["best", "bad"]
    pair = {"instruction": "q", "output_1": "bad", "output_2": "best", "preference": "2"}
    assert said(preferences(pair).train[0])[1] == ["best", "bad"]
    with pytest.raises(InputError, match=r"preference: wanted 1 or 2, the number of the better output, got '3'"):
        preferences({**pair, "preference": "3"})


def test_a_bad_row_among_the_grouped_ones_is_named():
    rows = [scored("q", "a", 1), {"prompt": "q", "response": "b"}, scored("q", "c", "high"), scored("q", 3, 3)]
    with pytest.raises(InputError) as caught:
        preferences(*rows)
    assert str(caught.value).splitlines() == [
        "data.train=a.jsonl: 3 bad rows of 3",
        "  a.jsonl:2: helpfulness: missing",
        "  a.jsonl:3: helpfulness: wanted a number, got 'high'",
        "  a.jsonl:1: completions.response: got int, wanted a string",
    ]


def test_margin_and_confidence_are_refused_where_ratings_are_recognised():
    with pytest.raises(InputError) as caught:
        preferences(rated(1, 2, gap=1), margin_column="gap")
    assert str(caught.value) == "data.margin_column must be unset: rows are read as rated, got gap"


BAD = {
    "hh": [
        ({"chosen": "hello", "rejected": f"{TRANSCRIPT} no"}, "chosen: a transcript begins with"),
        ({"chosen": f"{TRANSCRIPT} sure", "rejected": 3}, "rejected: got int, wanted a transcript"),
        (
            {"chosen": f"{TRANSCRIPT} sure", "rejected": "\n\nHuman: other\n\nAssistant: no"},
            "chosen: wanted a prompt and then one assistant message",
        ),
    ],
    "messages": [
        ({"chosen": 3, "rejected": chat(*ASK, NO)}, "chosen: got int, wanted a string or a list of messages"),
        (
            {"messages": chat(SURE), "chosen": "a", "rejected": "b"},
            "messages: this conversation has no prompt: only the assistant speaks",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}], "chosen": "a", "rejected": "b"},
            "messages: a message may contain text only, got a part of type image_url",
        ),
    ],
    "sharegpt": [
        (
            {"conversations": [{"from": "tool", "value": "x"}], "chosen": "a", "rejected": "b"},
            "conversations: a turn is from 'tool', wanted human, user, gpt",
        ),
        ({"conversations": [{"from": "human"}], "chosen": "a", "rejected": "b"}, "conversations: a turn needs `from`"),
        ({"conversations": 3, "chosen": "a", "rejected": "b"}, "conversations: got int, wanted a list of turns"),
        (
            {"conversations": turns(*ASK), "system": 3, "chosen": "a", "rejected": "b"},
            "system: got int, wanted a string",
        ),
    ],
    "alpaca": [
        ({"instruction": 3, "chosen": "a", "rejected": "b"}, "instruction: wanted strings in `instruction`"),
        ({"instruction": "q", "output_1": "a", "output_2": "b", "preference": 3}, "preference: wanted 1 or 2"),
        ({"instruction": "q", "output_1": "a", "output_2": 3, "preference": 1}, "output_2: got int, wanted a string"),
        ({"instruction": "q", "output": ["a"]}, "output: wanted a list of two or more strings, the best first"),
        ({"instruction": "q", "history": ["x"], "chosen": "a", "rejected": "b"}, "history: wanted a list of"),
        ({"instruction": "q", "output": "a"}, "chosen: missing"),
        ({"instruction": "q", "chosen": ["a"], "rejected": "b"}, "chosen: got list, wanted a string"),
    ],
    "rated": [
        ({"instruction": "q", "completions": 3}, "completions: wanted a list of completions"),
        ({"instruction": "q", "completions": [{"response": "a"}]}, "completions: no rating, wanted one of"),
        (
            {"instruction": "q", "completions": [{"response": "a", "rating": True}]},
            "completions.rating: wanted a number, got True",
        ),
        (
            {"instruction": "q", "completions": [{"response": "a", "rating": "inf"}]},
            "completions.rating: wanted a number, got 'inf'",
        ),
        ({"instruction": "q", "completions": [{"rating": 3}]}, "completions.response: missing"),
        (
            {"instruction": "q", "completions": [{"response": 3, "rating": 3}]},
            "completions.response: got int, wanted a string",
        ),
    ],
}


@pytest.mark.parametrize(("name", "number"), [(name, number) for name in BAD for number in range(len(BAD[name]))])
def test_a_row_of_another_form_is_reported_with_its_field(name, number):
    row, message = BAD[name][number]
    good = next(one for row_format, one, _ in PAIRS.values() if row_format.name == name)
    with pytest.raises(InputError) as caught:
        preferences(good, row, format=Format[name])
    assert str(caught.value).splitlines()[1].startswith(f"  a.jsonl:2: {message}")


@pytest.mark.parametrize("name", ["hh", "messages", "sharegpt", "alpaca", "rated"])
def test_empty_prompts_and_answers_are_counted_in_every_format(name):
    row_format, row, _ = PAIRS[name]
    text = json.dumps(row)
    rows = [row, json.loads(text.replace("sure", " ").replace("help", "h")), json.loads(text.replace('"no"', '""'))]
    if name == "hh":
        rows[2] = json.loads(text.replace(" no", ""))
    notes = preferences(*rows, format=row_format).notes
    assert notes[0] == f"a.jsonl: 1 rows kept, 2 dropped (2 empty); read as {name}"


def test_weights_of_rows_come_from_their_column():
    rows = [{"prompt": f"q{n}", "chosen": "a", "rejected": "b", "sure": n} for n in range(3)]
    assert [one.weight for one in preferences(*rows, weight_column="sure").train] == [0.0, 1.0, 2.0]
    assert [one.weight for one in preferences(*rows).train] == [1.0, 1.0, 1.0]
    with pytest.raises(InputError, match=r"a.jsonl:1: sure: wanted a number between 0 and 10000, got -1"):
        preferences({**rows[0], "sure": -1}, rows[1], weight_column="sure")
