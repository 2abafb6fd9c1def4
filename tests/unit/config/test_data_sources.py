"""Parse `data.train` and `data.eval`, and refuse malformed sources."""

import pytest

from rlhf_cli.config.compose import as_text, compose_yaml, load
from rlhf_cli.config.config_diff import require_same
from rlhf_cli.config.data_sources import Format, Source
from rlhf_cli.config.errors import InputError
from rlhf_cli.config.paths import check_paths


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def data(*args):
    return load("train-rm", ["conf=tiny", *args]).data


def refusal(*args):
    with pytest.raises(InputError) as caught:
        check_paths(load("train-rm", ["conf=tiny", *args]))
    return str(caught.value)


def test_a_list_of_paths_and_mappings():
    entry = "{path: b.jsonl, weight: 0.5, split: dev, filter: {kind: [x, 3]}, format: hh, prompt_column: q}"
    assert data(f"data.train=[a.jsonl, {entry}]").train_sources() == [
        Source("a.jsonl", split="train"),
        Source("b.jsonl", 0.5, "dev", {"kind": ["x", 3]}, {"format": Format.hh, "prompt_column": "q"}),
    ]


def test_options_of_a_source_apply_only_to_its_rows():
    options = data("data.train=[{path: b, format: rated, prompt_column: q}]", "data.chosen_column=c")
    own = options.of_source(options.train_sources()[0])
    assert (own.format, own.prompt_column, own.chosen_column) == (Format.rated, "q", "c")
    assert (options.format, options.prompt_column) == (Format.auto, "prompt")


def test_filters_split_one_file_into_training_and_evaluation():
    options = data("data.train=a", "data.eval=null", "data.train_filter={split: train}", "data.eval_filter={split: t}")
    assert options.train_sources() == [Source("a", split="train", filter={"split": "train"})]
    assert options.eval_sources() == [Source("a", split="train", filter={"split": "t"})]
    assert data("data.eval=null").eval_sources() == []


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("data.train=3", "data.train must be a path or a list of sources, got int"),
        ("data.train=[]", "data.train must be a path or a list of sources, got an empty list"),
        ("data.train={a: b}", "data.train must be a path or a list of sources, got dict"),
        ("data.train=[3]", "data.train[0] must be a path or a mapping with a path, got int"),
        ("data.eval=[{weight: 1}]", "data.eval[0].path must be a path, got None"),
        ("data.train=[{path: a, weight: 0}]", "data.train[0].weight must be above 0 and at most 1000, got 0"),
        ("data.train=[{path: a, weight: true}]", "data.train[0].weight must be above 0 and at most 1000, got True"),
        ("data.train=[{path: a, split: 3}]", "data.train[0].split must be the name of a split, got 3"),
        ("data.train=[{path: a, filter: 3}]", "data.train[0].filter must be a mapping such as {split: train}, got int"),
        (
            "data.train=[{path: a, filter: {x: []}}]",
            "data.train[0].filter.x must be a value or a list of values, got []",
        ),
        ("data.train_filter={x: {y: 1}}", "data.train_filter.x must be a value or a list of values, got {'y': 1}"),
        ("data.train=[{path: a, prompt_column: 3}]", "data.train[0].prompt_column must be the name of a column, got 3"),
    ],
)
def test_an_invalid_source_is_refused_in_one_line(argument, message):
    assert refusal(argument) == message


def test_an_unknown_key_or_format_is_refused_with_the_known_ones():
    assert refusal("data.train=[{path: a, wieght: 1}]").startswith(
        "data.train[0]: unknown key wieght; known keys: categ"
    )
    assert refusal("data.train=[{path: a, format: x}]") == (
        "data.train[0].format must be one of auto, columns, hh, messages, sharegpt, alpaca, rated, rated_rows, got 'x'"
    )


def test_paths_of_lists_and_patterns_are_checked_early(tmp_path):
    (tmp_path / "a1.jsonl").touch()
    assert refusal("data.train=[a1.jsonl, b.jsonl]") == "data.train=b.jsonl: no such file or folder"
    assert refusal("data.train=b*.jsonl") == "data.train=b*.jsonl: no file matches this pattern"
    assert refusal("data.train=rows.jsonl.zst") == "data.train=rows.jsonl.zst: no such file or folder"
    check_paths(load("train-rm", ["conf=tiny", "data.train=[a*.jsonl, a1.jsonl]"]))


def test_a_margin_is_refused_with_ratings():
    wanted = "data.margin_column must be unset with data.format=rated: it belongs to one pair, got gap"
    assert refusal("data.format=rated", "data.margin_column=gap") == wanted


@pytest.mark.parametrize(
    "change",
    [
        "data.train=[a, {path: b, weight: 2}]",
        "data.train=[a, b]",
        "data.train_filter={split: test}",
        "data.eval_filter={split: test}",
        "data.format=hh",
        "data.weight_column=w",
    ],
)
def test_a_run_cannot_resume_with_other_data(change):
    first = ["conf=tiny", "data.train=[a, {path: b, weight: 1}]"]
    was, now = (as_text(compose_yaml("train-rm", words)) for words in (first, [*first, change]))
    require_same("train-rm", was, was, "checkpoint was written")
    with pytest.raises(InputError, match=change.partition("=")[0]):
        require_same("train-rm", was, now, "checkpoint was written")
