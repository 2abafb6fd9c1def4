"""The tokenizers of a PPO run must match."""

import pytest

from rlhf_cli.config.errors import InputError
from rlhf_cli.data.chat_template import set_template
from rlhf_cli.models.byte_tokenizer import byte_tokenizer
from rlhf_cli.run.build import _check_same_tokenizer


def larger():
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(["<one>"])
    return tokenizer


def other_eos():
    tokenizer = byte_tokenizer()
    tokenizer.eos_token = "<pad>"
    return tokenizer


def other_template():
    tokenizer = byte_tokenizer()
    set_template(tokenizer, "default", "reward_model.chat_template")
    return tokenizer


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (larger, "vocabulary differs from the policy's; use the same tokenizer"),
        (other_eos, "EOS token differs from the policy's; use the same tokenizer"),
        (
            other_template,
            "chat template differs from the policy's; use the same tokenizer, or set model.chat_template and "
            "reward_model.chat_template alike",
        ),
    ],
)
def test_a_reward_model_with_another_tokenizer_is_refused(make, what):
    with pytest.raises(InputError) as caught:
        _check_same_tokenizer(byte_tokenizer(), make(), "reward_model")
    assert str(caught.value) == f"reward_model: its {what}"
    _check_same_tokenizer(make(), make(), "reward_model")
