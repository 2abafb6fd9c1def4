"""Compiled layers give the same logits and gradients; decoding does not use them."""

import shutil
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from rlhf_cli.config.compose import load
from rlhf_cli.config.errors import InputError
from rlhf_cli.data.token_batches import EndTokens, TokenSequence, collate
from rlhf_cli.models.byte_tokenizer import byte_tokenizer
from rlhf_cli.models.heads import ResponseLM
from rlhf_cli.models.kernels import uncompiled
from rlhf_cli.models.load_models import load_causal_lm
from rlhf_cli.rollout.embedded import EmbeddedSampler
from tests.oracle.engines import SimpleTrain
from tests.unit.models.tiny import tiny_config

# what torch 2.13 warns of in its own compiler
pytestmark = [
    pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning"),
    pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning"),
]
CPU = torch.device("cpu")
needs_a_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs g++ on a CPU")


def policy(**options):
    return ResponseLM(load_causal_lm(replace(tiny_config("llama"), **options), "model", byte_tokenizer(), 0)).train()


def is_compiled(module):
    return [layer._compiled_call_impl is not None for layer in module.model.model.layers]


@needs_a_compiler
def test_compiled_layers_compute_the_same_for_any_number_of_tokens():
    from torch._dynamo.utils import counters

    torch.compiler.reset()
    counters.clear()
    written, compiled = policy(), policy(compile=True)
    assert (is_compiled(written), is_compiled(compiled)) == ([False] * 2, [True] * 2)
    num_compiled = []
    for length in (3, 5, 9):
        batch = collate([TokenSequence((1, 2, 3), tuple(range(10, 10 + length))), TokenSequence((1, 2), (7,))], 0, CPU)
        for module in (written, compiled):
            module.zero_grad()
            logits = module(batch.input_ids, **batch.before_response_tokens(), packing=batch.packing)
            logits.logsumexp(dim=1).sum().backward()
            if module is written:
                expected = logits
        assert_close(logits, expected, atol=1e-5, rtol=0)
        for one, other in zip(compiled.parameters(), written.parameters(), strict=True):
            assert_close(one.grad, other.grad, atol=1e-5, rtol=1e-4)
        num_compiled.append(counters["stats"]["unique_graphs"])
    assert 0 < num_compiled[0] == num_compiled[-1]  # other lengths take what is there


@needs_a_compiler
def test_decoding_does_not_use_compiled_layers(one_rank):
    prompts, keys, ends = [(1, 2, 3), (4, 5)], ["a", "b"], EndTokens(frozenset({300}), 0)
    config = load("train-ppo", ["conf=tiny", "rollout.max_new_tokens=4"])
    found, ran = [], []
    for compiled in (False, True):
        module = policy(compile=compiled)
        module.model.model.layers[0].register_forward_hook(lambda *_: ran.append(torch.compiler.is_compiling()))
        sampler = EmbeddedSampler(SimpleTrain(module, config.optim, 1), config.rollout, ends, CPU)
        found.append(sampler.sample(prompts, keys))
    assert found[0] == found[1]
    assert ran == [False] * 8
    assert not torch.compiler.is_compiling()


def test_a_model_that_is_not_compiled_is_left_alone(monkeypatch):
    monkeypatch.setattr(torch.compiler, "set_stance", lambda _: pytest.fail("asked"))
    with uncompiled(nn.Linear(2, 2)):
        pass


@pytest.mark.parametrize("key", ["model", "reward_model"])
def test_several_ranks_and_offload_are_refused(key):
    config = load("train-ppo", ["conf=tiny", f"{key}.compile=true"])
    config.check_ranks(1)
    with pytest.raises(InputError, match=rf"^{key}\.compile must be false with several ranks or offload, got True"):
        config.check_ranks(2)
    with pytest.raises(InputError, match=rf"^{key}\.compile"):
        load("train-ppo", ["conf=tiny", f"{key}.compile=true", "deepspeed=zero3_offload"]).check_ranks(1)
