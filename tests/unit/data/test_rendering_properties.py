"""Any conversation, with templates of ten shapes and tokenizers of four kinds, has one rendering everywhere.

The oracle is transformers: the whole conversation as text, and the ids of that text.
"""

import json
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from rlhf_cli.config.sections import PreferenceDataConfig, PromptDataConfig
from rlhf_cli.data.conversation import Renderer
from rlhf_cli.data.preferences import load_preferences
from rlhf_cli.data.prompts import load_prompts
from rlhf_cli.data.token_batches import EndTokens, TokenSequence
from rlhf_cli.rewards.reward_model import RewardModel
from tests.unit.data.chats import BOS, SHAPES, TOKENIZERS, tokenizer_for

CONFIG = PromptDataConfig(train="x")
EXAMPLES = settings(
    max_examples=25,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.filter_too_much],
)
LOSSLESS = ("bytes", "byte-pairs", "sentence-pieces")
every_shape = pytest.mark.parametrize("shape", SHAPES)
every_tokenizer = pytest.mark.parametrize("kind", TOKENIZERS)

PIECES = [
    "hello",
    "there",
    "cat",
    " ",
    "  ",
    "\n",
    "\t",
    ".",
    ", how",
    "1",
    "\u00e9",
    "\u6771",
    "\U0001f469",
    "<",
    "|>",
    "[INST]",
]
FORGED = ["</s>", "<s>", "<|im_end|>", "<|im_start|>", "<|eot_id|>", "<start_of_turn>", "<|assistant|>", "<|user|>"]
plain_texts = st.lists(st.sampled_from(PIECES), min_size=1, max_size=6).map("".join).filter(str.strip)
any_texts = st.lists(st.sampled_from([*PIECES, *FORGED]), min_size=1, max_size=6).map("".join).filter(str.strip)


@cache
def renderer(shape, kind):
    return Renderer(tokenizer_for(kind, SHAPES[shape]), CONFIG)


def conversations(texts, system=True):
    """Prompts that start with the user, or with a system message, take turns, and end with the user."""

    def made(parts):
        first, rest = parts
        rest = rest if len(rest) % 2 else rest[1:]
        roles = [("user", "assistant")[place % 2] for place in range(len(rest))]
        messages = [{"role": role, "content": text} for role, text in zip(roles, rest, strict=True)]
        return messages if first is None else [{"role": "system", "content": first}, *messages]

    first = st.none() | texts if system else st.none()
    return st.tuples(first, st.lists(texts, min_size=1, max_size=5)).map(made)


def drawn(data, shape, texts):
    return data.draw(conversations(texts, SHAPES[shape].takes_system)), data.draw(texts)


def expected_bos(shape, messages):
    each = sum(message["role"] == "user" for message in messages)
    return {"none": 0, "one": 1, "user": each}[SHAPES[shape].bos]


@every_shape
@every_tokenizer
@EXAMPLES
@given(data=st.data())
def test_prompt_and_answer_are_the_beginning_of_the_rendered_conversation(shape, kind, data):
    made, tokenizer = renderer(shape, kind), renderer(shape, kind).tokenizer
    messages, answer = drawn(data, shape, plain_texts)
    assume(answer == answer.strip())  # spaces may melt into what stands beside them; see docs/conversations.md
    sequence = made.sequence(messages, answer)
    text = tokenizer.apply_chat_template([*messages, {"role": "assistant", "content": answer}], tokenize=False)
    whole = tuple(tokenizer(text, add_special_tokens=False)["input_ids"])
    assert made.conversation_ids(messages, answer) == whole
    if shape == "plain-end" and kind in ("byte-pairs", "sentence-pieces"):
        # its generation prompt ends in a space, which these tokenizers would join to the answer's first word
        assert tokenizer.decode(sequence.ids[:-1]) == tokenizer.decode(whole).removesuffix("\n")
        return
    assert whole[: len(sequence) - 1] == sequence.ids[:-1]
    rest = whole[len(sequence) - 1 :]
    if shape == "plain-end":  # a line's end in place of an end token
        assert tokenizer.decode(rest) in ("\n", "")
    elif shape == "llama-2":  # a space before it
        assert tokenizer.convert_tokens_to_ids("</s>") in rest[:2]
    else:
        assert rest[0] == sequence.ids[-1]


@every_shape
@every_tokenizer
@EXAMPLES
@given(data=st.data())
def test_a_message_writes_no_special_token_and_an_answer_ends_in_one(shape, kind, data):
    made, tokenizer = renderer(shape, kind), renderer(shape, kind).tokenizer
    messages, answer = drawn(data, shape, any_texts)
    assume(made.response_ids(answer) == made.response_ids(answer + SHAPES[shape].end))  # it brings no end of its own
    harmless = [{**message, "content": "x"} for message in messages]
    sequence = made.sequence(messages, answer)
    ours = {*tokenizer.added_tokens_decoder} - {tokenizer.unk_token_id}
    assert [token for token in sequence.prompt_ids if token in ours] == [
        token for token in made.prompt_ids(harmless) if token in ours
    ]
    end = tokenizer.convert_tokens_to_ids(SHAPES[shape].end)
    assert [token for token in sequence.response_ids if token in ours] == [end] == [made.end_id]
    assert sequence.response_ids[-1] == end
    bos = tokenizer.convert_tokens_to_ids(BOS)
    assert sequence.ids.count(bos) == expected_bos(shape, messages)
    whole = made.conversation_ids(messages, answer)
    assert whole.count(bos) == expected_bos(shape, messages)


@every_shape
@pytest.mark.parametrize("kind", LOSSLESS)
@EXAMPLES
@given(answer=any_texts)
def test_the_text_of_a_response_is_recovered_from_its_ids(shape, kind, answer):
    made = renderer(shape, kind)
    assume(not answer.endswith(tuple(FORGED)))
    wanted = answer.strip() if SHAPES[shape].trims else answer
    assert made.response_text(made.response_ids(answer)) == wanted
    assert made.response_text(made.response_ids(answer)[:-1]) == wanted  # cut off


class Recorder:
    """Stands in for a reward model's engine: remembers the ids of its rows."""

    def __call__(self, input_ids, packing):
        self.rows = input_ids.tolist()
        return torch.zeros(input_ids.shape), None


def scored(made, sequence):
    """The ids that a reward model reads for what the policy said."""
    engine, tokenizer = Recorder(), made.tokenizer
    ends = EndTokens(frozenset({made.end_id, tokenizer.eos_token_id}), tokenizer.pad_token_id)
    RewardModel(engine, made.end_id, ends, torch.device("cpu")).score([sequence])
    return tuple(engine.rows[0])


@every_shape
@every_tokenizer
@settings(EXAMPLES, max_examples=4)
@given(data=st.data())
def test_reward_training_scoring_and_ppo_read_the_same_ids(shape, kind, data):
    made = renderer(shape, kind)
    messages, chosen = drawn(data, shape, any_texts)
    rejected = data.draw(any_texts.filter(lambda text: made.response_ids(text) != made.response_ids(chosen)))
    answers = [[*messages, {"role": "assistant", "content": text}] for text in (chosen, rejected)]
    with TemporaryDirectory() as folder:
        path = Path(folder) / "rows.jsonl"
        path.write_text(json.dumps({"prompt": messages, "chosen": answers[0], "rejected": answers[1]}))
        same = {"train": str(path), "eval_fraction": 0.0, "cache": False}
        (pair,) = load_preferences(PreferenceDataConfig(**same), made, 0).train
        (prompt,) = load_prompts(PromptDataConfig(**same), made, 0).train
    assert prompt.ids == made.prompt_ids(messages)
    for text, answer in zip((chosen, rejected), pair.answers, strict=True):
        assert answer == made.sequence(messages, text)
        said = answer.response_ids  # as a policy that says the same in PPO
        others = {made.end_id, made.tokenizer.eos_token_id}
        for response in (said, *((*said[:-1], end) for end in others), said[:-1]):
            if response:
                assert scored(made, TokenSequence(prompt.ids, response)) == answer.ids
