from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM

from rlhf_cli.config.errors import InputError
from rlhf_cli.config.sections import DType
from rlhf_cli.use import responses as answers
from rlhf_cli.use.cli_options import Loading
from rlhf_cli.use.responses import as_asked
from rlhf_cli.use.trained_policy import Policy, Typist
from rlhf_cli.use.trained_runs import Role, find, with_options

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def policy(ppo_run) -> Policy:
    found = find(str(ppo_run), Role.policy)
    return Policy(found, found.rollout, CPU)


def ids_of(policy, *texts):
    return [policy.prompt_ids([{"role": "user", "content": text}]) for text in texts]


def test_an_answer_depends_on_its_key_alone(policy):
    prompts = ids_of(policy, "Hello?", "A much longer question than the other two, is it not?", "Why?")
    keys = ["0/0/0", "0/1/0", "0/2/0"]
    together = [answer.tokens for answer in policy.answer(prompts, keys)]
    alone = [policy.answer([prompt], [key])[0].tokens for prompt, key in zip(prompts, keys, strict=True)]
    assert together == alone
    assert policy.answer([prompts[0]], ["1/0/0"])[0].tokens != alone[0]
    assert policy.answer([], []) == []


@pytest.mark.parametrize("greedy", [False, True])
def test_a_stream_yields_the_tokens_of_the_answer(policy, greedy):
    for number in range(20):
        (prompt,) = ids_of(policy, "?" * (number + 1))
        answer = policy.answer([prompt], [f"7/{number}"], greedy)[0]
        assert tuple(policy.stream(prompt, f"7/{number}", greedy)) == answer.tokens.response_ids


def test_a_stream_ends_with_the_end_token(policy):
    """Of 259 tokens of a random model an end token is drawn soon; max_new_tokens is 400."""
    long = Policy(find(policy.name, Role.policy), replace(policy.rollout, max_new_tokens=400), CPU)
    (prompt,) = ids_of(long, "Hello?")
    streams = [list(long.stream(prompt, str(key))) for key in range(8)]
    ended = [tokens for tokens in streams if len(tokens) < 400]
    assert ended
    for tokens in ended:
        assert [token in long.ends.ids for token in tokens] == [False] * (len(tokens) - 1) + [True]


def test_logprobs_are_those_of_transformers_at_the_temperature(policy):
    prompts = ids_of(policy, "Hello?", "Is it far?")
    sequences = [answer.tokens for answer in policy.answer(prompts, ["1", "2"])]
    model = AutoModelForCausalLM.from_pretrained(policy.name).eval()
    for found, sequence in zip(policy.logprobs(sequences), sequences, strict=True):
        with torch.no_grad():
            logits = model(torch.tensor([sequence.ids])).logits[0] / 0.7
        start = len(sequence.prompt_ids)
        expected = [
            torch.log_softmax(logits[start + place - 1], dim=0)[token].item()
            for place, token in enumerate(sequence.response_ids)
        ]
        assert found.tolist() == pytest.approx(expected, abs=1e-5)
    assert policy.logprobs([]) == []


def test_a_prompt_that_leaves_no_room_is_refused(policy):
    with pytest.raises(InputError, match=r"has 512 positions: a prompt of .* tokens leaves no room"):
        ids_of(policy, "x" * 480)


def test_text_comes_in_whole_characters(policy):
    typist = Typist(policy.renderer)
    tokens = policy.renderer.response_ids("aé€😀")  # 1, 2, 3 and 4 bytes, a token each, and EOS
    assert [typist.add(token) for token in tokens] == ["a", "", "é", "", "", "€", "", "", "", "😀", ""]
    assert typist.text == "aé€😀"
    assert typist.rest() == ""


def test_half_a_character_at_the_end_is_shown_as_such(policy):
    typist = Typist(policy.renderer)
    assert [typist.add(token) for token in policy.renderer.response_ids("é")[:1]] == [""]
    assert typist.rest() == "\ufffd"


def test_a_policy_on_a_cpu_computes_in_float32_unless_told_otherwise(ppo_run, monkeypatch):
    """In bfloat16 another batch turns draws."""
    found = with_options(find(str(ppo_run), Role.policy), None, DType.bfloat16, trust_remote_code=False)
    assert as_asked(found, Loading("cpu", None, None, False)).model.dtype is DType.float32
    assert as_asked(found, Loading("cpu", DType.bfloat16, None, False)).model.dtype is DType.bfloat16
    monkeypatch.setattr(answers, "device_of", torch.device)  # there may be no GPU here
    assert as_asked(found, Loading("cuda", None, None, False)).model.dtype is DType.bfloat16
