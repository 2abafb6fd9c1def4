from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM

from rlhf_cli.config.errors import InputError
from rlhf_cli.config.sections import DType
from rlhf_cli.use.cli_options import Loading
from rlhf_cli.use.trained_models import Role, find_model
from rlhf_cli.use.trained_policy import TokenDecoder, TrainedPolicy

CPU = Loading("cpu", None, None, trust_remote_code=False)


@pytest.fixture(scope="module")
def policy(ppo_run) -> TrainedPolicy:
    return TrainedPolicy(find_model(str(ppo_run), Role.policy), CPU)


def ids_of(policy, *texts):
    return [policy.prompt_ids([{"role": "user", "content": text}]) for text in texts]


def test_a_response_depends_on_its_prompt_and_key_alone(policy):
    prompts = ids_of(policy, "Hello?", "A much longer question than the other two, is it not?", "Why?")
    keys = ["0/0/0", "0/1/0", "0/2/0"]
    together = policy.generate(prompts, keys)
    alone = [policy.generate([prompt], [key])[0] for prompt, key in zip(prompts, keys, strict=True)]
    assert together == alone
    assert policy.generate([prompts[0]], ["1/0/0"])[0] != alone[0]
    assert policy.generate([], []) == []


@pytest.mark.parametrize("greedy", [False, True])
def test_a_stream_yields_the_tokens_of_generate(policy, greedy):
    for number in range(20):
        (prompt,) = ids_of(policy, "?" * (number + 1))
        response = policy.generate([prompt], [f"7/{number}"], greedy)[0]
        assert tuple(policy.stream(prompt, f"7/{number}", greedy)) == response.response_ids


def test_a_stream_ends_with_the_end_token(policy):
    """Of 259 tokens of a random model an end token is drawn soon; max_new_tokens is 400."""
    found = find_model(policy.name, Role.policy)
    long = TrainedPolicy(replace(found, rollout=replace(policy.rollout, max_new_tokens=400)), CPU)
    (prompt,) = ids_of(long, "Hello?")
    streams = [list(long.stream(prompt, str(key))) for key in range(8)]
    ended = [tokens for tokens in streams if len(tokens) < 400]
    assert ended
    for tokens in ended:
        assert [token in long.ends.ids for token in tokens] == [False] * (len(tokens) - 1) + [True]


def test_logprobs_are_those_of_transformers_at_the_temperature(policy):
    prompts = ids_of(policy, "Hello?", "Is it far?")
    sequences = policy.generate(prompts, ["1", "2"])
    model = AutoModelForCausalLM.from_pretrained(f"{policy.name}/final/policy").eval()
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


def test_a_prompt_that_is_too_long_is_refused(policy):
    with pytest.raises(InputError, match=r"has 512 positions: a prompt of .* tokens is too long"):
        ids_of(policy, "x" * 480)


def test_text_comes_in_whole_characters(policy):
    decoder = TokenDecoder(policy.renderer)
    tokens = policy.renderer.response_ids("aé€😀")  # 1, 2, 3 and 4 bytes, a token each, and EOS
    assert [decoder.add(token) for token in tokens] == ["a", "", "é", "", "", "€", "", "", "", "😀", ""]
    assert decoder.text == "aé€😀"
    assert decoder.rest() == ""


def test_half_a_character_at_the_end_is_shown_as_such(policy):
    decoder = TokenDecoder(policy.renderer)
    assert [decoder.add(token) for token in policy.renderer.response_ids("é")[:1]] == [""]
    assert decoder.rest() == "\ufffd"


@pytest.mark.parametrize(("given", "computed"), [(None, torch.float32), (DType.bfloat16, torch.bfloat16)])
def test_a_policy_on_a_cpu_computes_in_float32_unless_told_otherwise(given, computed, ppo_run):
    """In bfloat16 another batch changes samples."""
    loading = Loading("cpu", given, None, trust_remote_code=False)
    found = find_model(str(ppo_run), Role.policy).with_options(None, DType.bfloat16, trust_remote_code=False)
    assert TrainedPolicy(found, loading)._engine.module.model.dtype is computed
