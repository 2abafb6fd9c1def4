"""Rows of one answer each, grouped by prompt: what must agree, and where they wait."""

import json
import tempfile

import pytest

from rlhf_cli.config.errors import DiskError
from rlhf_cli.config.sections import PreferenceDataConfig
from rlhf_cli.data.bad_rows import BadRow
from rlhf_cli.data.group_by_prompt import grouped


def rows(*weights):
    return [
        (f"a.jsonl:{n}", {"prompt": "hi", "response": f"answer {n}", "score": n, "w": weight})
        for n, weight in enumerate(weights, 1)
    ]


def test_rows_of_one_prompt_must_agree_on_its_columns():
    config = PreferenceDataConfig(train="x", weight_column="w")
    [(_, whole)] = grouped(rows(2.0, 2.0), config)
    assert (whole["w"], len(whole["completions"])) == (2.0, 2)
    [(place, bad)] = grouped(rows(1.0, 3.0), config)
    assert isinstance(bad, BadRow)
    assert (place, str(bad)) == (
        "a.jsonl:1",
        "w: the rows of one prompt differ here; wanted the same value in all of them",
    )


def test_a_full_temporary_folder_is_a_disk_error(monkeypatch):
    class Full:
        def __enter__(self):
            return self

        def __exit__(self, *_):
            return None

        def write(self, _):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(tempfile, "TemporaryFile", Full)
    with pytest.raises(DiskError, match=r"cannot write a temporary file in .*No space left on device.*set TMPDIR"):
        list(grouped(rows(1.0), PreferenceDataConfig(train="x")))


def test_answers_with_equal_token_ids_are_equal(tmp_path, monkeypatch):
    """The end token that a text has is the one that every answer gets."""
    from rlhf_cli.data.conversation import Renderer
    from rlhf_cli.data.preferences import load_preferences
    from rlhf_cli.models.byte_tokenizer import byte_tokenizer

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    tokenizer = byte_tokenizer()
    pairs = [("yes", f"yes{tokenizer.eos_token}"), ("yes", "no")]
    file = tmp_path / "pairs.jsonl"
    file.write_text(
        "".join(json.dumps({"prompt": f"p{n}", "chosen": a, "rejected": b}) + "\n" for n, (a, b) in enumerate(pairs))
    )
    config = PreferenceDataConfig(train=str(file), eval_fraction=0.0)
    sides = load_preferences(config, Renderer(tokenizer, config), 0)
    assert len(sides.train) == 1
    assert "1 dropped (1 chosen == rejected)" in sides.notes[0]
