"""Answers as pieces of text with figures of their tokens."""

from itertools import chain

import pytest

from rlhf_cli.config.sections import PromptDataConfig
from rlhf_cli.data.conversation import Renderer
from rlhf_cli.models.byte_tokenizer import byte_tokenizer

TOKENIZER = byte_tokenizer()  # a token a byte
RENDERER = Renderer(TOKENIZER, PromptDataConfig(train="x"))


def pieces(ids):
    """The pieces, each with the places of its tokens: token n has the figure 2^n."""
    texts, sums = RENDERER.pieces(tuple(ids), [2.0**place for place in range(len(ids))])
    return texts, [[place for place in range(len(ids)) if int(total) >> place & 1] for total in sums]


def ids(text):
    return TOKENIZER(text, add_special_tokens=False)["input_ids"]


def test_every_token_is_a_piece():
    assert pieces(ids("a b!")) == (["a", " ", "b", "!"], [[0], [1], [2], [3]])


def test_tokens_that_make_a_character_together_are_one_piece():
    assert pieces(ids("a\u00e9\u20ac")) == (["a", "\u00e9", "\u20ac"], [[0], [1, 2], [3, 4, 5]])


def test_special_tokens_are_seen():
    assert pieces([*ids("ok"), TOKENIZER.eos_token_id]) == (["o", "k", "<eos>"], [[0], [1], [2]])


@pytest.mark.parametrize(
    "text",
    ["", " ", "one two  three\n\n", "\U0001f469\u200d\U0001f4bb!", "\u6771\u4eac \u00e9 \u0645\u06cc\u200c\u062e"],
)
def test_pieces_add_up_to_the_text_and_keep_every_value(text):
    texts, places = pieces(ids(text))
    assert "".join(texts) == text
    assert list(chain(*places)) == list(range(len(ids(text))))


def test_incomplete_characters_join_the_next_piece_or_the_last_one():
    """A response may end within a character, or hold one that is broken."""
    broken = ids("\u20ac")[:2]
    texts, places = pieces([*ids("a"), *broken])
    assert (texts[0], list(chain(*places))) == ("a", [0, 1, 2])
    assert texts[-1].strip("\ufffd") == ""
    texts, places = pieces([*broken, *ids("b")])
    assert ("".join(texts)[-1], list(chain(*places))) == ("b", [0, 1, 2])


def test_a_sequence_is_the_prompt_and_the_response_with_its_end_token():
    sequence = RENDERER.sequence([{"role": "user", "content": "a"}], "b")
    assert TOKENIZER.decode(sequence.prompt_ids) == "<bos>user\na<eos><bos>assistant\n"
    assert TOKENIZER.decode(sequence.response_ids) == "b<eos>"


def test_the_text_of_a_response_keeps_its_spaces_without_the_end_token():
    sequence = RENDERER.sequence([{"role": "user", "content": "a"}], " b , c .\n")
    assert RENDERER.response_text(sequence.response_ids) == " b , c .\n"
