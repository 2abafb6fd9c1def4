"""Sampling on one process, with a stand-in for the engine that holds a plain model."""

from contextlib import contextmanager

import pytest
import torch
from transformers import GenerationConfig

from rlhf_cli.algo.logprobs import token_logprobs
from rlhf_cli.config.sections import RolloutConfig
from rlhf_cli.data.tokens import collate
from rlhf_cli.models.byte_tokenizer import byte_tokenizer
from rlhf_cli.models.heads import ResponseLM
from rlhf_cli.models.load import load_causal_lm
from rlhf_cli.rollout.embedded import EmbeddedSampler, end_token_ids, uniforms
from tests.unit.models.tiny import ARCHITECTURES, tiny_config

CPU = torch.device("cpu")
PROMPTS = [(5, 6, 7), (8,), tuple(range(20, 40))]
KEYS = ["a", "b", "c"]


class Engine:
    def __init__(self, module):
        self.module = module

    @contextmanager
    def gathered(self):
        yield self.module


def sampler(architecture="llama", end_ids=frozenset({257}), **options):
    module = ResponseLM(load_causal_lm(tiny_config(architecture), "model", byte_tokenizer(), 0))
    return EmbeddedSampler(Engine(module), RolloutConfig(**{"max_new_tokens": 20, **options}), end_ids, 0, CPU)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_response_does_not_depend_on_its_batch(architecture):
    together = sampler(architecture).sample(PROMPTS, KEYS)
    alone = [sampler(architecture).sample([prompt], [key])[0] for prompt, key in zip(PROMPTS, KEYS, strict=True)]
    assert together == alone == sampler(architecture, micro_batch_size=2).sample(PROMPTS, KEYS)


def test_a_response_depends_on_its_key():
    assert sampler().sample(PROMPTS[:1], ["a"]) != sampler().sample(PROMPTS[:1], ["x"])
    assert torch.equal(uniforms("a", 5), uniforms("a", 5))
    assert not torch.equal(uniforms("a", 5), uniforms("b", 5))


@torch.no_grad()
def test_samples_follow_the_logprobs_they_are_given():
    """Over many keys, the share of each first token is its probability at the sampling temperature."""
    one = sampler(max_new_tokens=1, temperature=0.05, micro_batch_size=4000)
    drawn = one.sample([(5, 6)] * 4000, [str(index) for index in range(4000)])
    tokens = torch.tensor([sequence.response_ids[0] for sequence in drawn])
    likeliest = int(tokens.mode().values)
    batch = collate([drawn[int((tokens == likeliest).nonzero()[0])]], 0, CPU)
    logits = one.policy.module(**batch.model_inputs(), num_response=1)
    expected = token_logprobs(logits, batch.response_ids, 0.05).exp().item()
    assert 0.02 < expected < 0.9
    share = (tokens == likeliest).float().mean().item()
    assert abs(share - expected) < 4 * (expected * (1 - expected) / 4000) ** 0.5


def test_greedy_takes_the_likeliest_token_whatever_the_key():
    assert sampler().sample(PROMPTS, KEYS, greedy=True) == sampler().sample(PROMPTS, ["x", "y", "z"], greedy=True)


def test_a_response_stops_at_the_first_end_token_and_keeps_it():
    free = sampler().sample(PROMPTS[:1], ["a"])[0]
    stop = free.response_ids[4]
    stopping = sampler(end_ids=frozenset({stop}))
    cut = stopping.sample(PROMPTS[:1], ["a"])[0]
    assert cut.response_ids == free.response_ids[: free.response_ids.index(stop) + 1]
    assert stopping.ended(cut)
    assert not stopping.ended(free) or free.response_ids[-1] == stop


def test_the_models_own_sampling_settings_are_not_used_and_are_kept():
    plain = sampler().sample(PROMPTS, KEYS)
    tuned = sampler()
    own = GenerationConfig(do_sample=True, top_k=1, repetition_penalty=5.0, max_length=4)
    tuned.policy.module.model.generation_config = own
    assert tuned.sample(PROMPTS, KEYS) == plain
    assert tuned.policy.module.model.generation_config is own


def test_end_tokens_of_the_generation_config_count():
    tokenizer = byte_tokenizer()
    assert end_token_ids(tokenizer, None) == {257}
    assert end_token_ids(tokenizer, GenerationConfig(eos_token_id=[3, 4])) == {3, 4, 257}
    assert end_token_ids(tokenizer, GenerationConfig(eos_token_id=3)) == {3, 257}
