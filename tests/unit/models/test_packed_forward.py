"""Packed sequences give the same logits, scores and gradients as full ones."""

import random
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from rlhf_cli.data.token_batches import TokenSequence, collate
from rlhf_cli.models.byte_tokenizer import byte_tokenizer
from rlhf_cli.models.heads import ResponseLM, TokenScorer
from rlhf_cli.models.load_models import load_causal_lm, load_sequence_classifier
from rlhf_cli.models.packed_forward import reads_packed
from tests.unit.models.tiny import ARCHITECTURES, tiny_config

CPU = torch.device("cpu")
MODES = {"as it is": {}, "checkpointing": {"gradient_checkpointing": True}}
LENGTHS = {"short": 10, "long": 90}  # below and above the length at which attention's backward pass changes


def answers(most):
    """Two responses to each of four prompts with a common prefix; one response occurs twice."""
    draw = random.Random(0)

    def ids(low, high):
        return tuple(draw.randrange(3, 250) for _ in range(draw.randint(low, high)))

    system = ids(most, most)
    prompts = [system + ids(1, most) for _ in range(4)]
    sequences = [TokenSequence(prompt, ids(1, most)) for prompt in prompts for _ in range(2)]
    return [*sequences, sequences[2]]


def config_of(architecture, packing, **options):
    return replace(tiny_config(architecture), packing=packing, **options)


def policy(config):
    return ResponseLM(load_causal_lm(config, "model", byte_tokenizer(), 0)).train()


def scorer(config):
    return TokenScorer(load_sequence_classifier(config, "model", byte_tokenizer(), 0, True)).train()


@pytest.mark.parametrize("most", LENGTHS.values(), ids=LENGTHS)
@pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_packed_sequences_give_the_same_logits_scores_and_gradients(architecture, mode, most):
    batch = collate(answers(most), 0, CPU)
    assert len(batch.packing.ids) < 0.8 * batch.input_ids.numel()
    found = []
    for packing in (True, False):
        config = config_of(architecture, packing, **mode)
        models = policy(config), scorer(config)
        assert [reads_packed(model.model) for model in models] == [packing, packing]
        logits = models[0](batch.input_ids, **batch.before_response_tokens(), packing=batch.packing)
        scores, hidden = models[1](batch.input_ids, packing=batch.packing)
        values = batch.before_each_response_token(scores)
        generator = torch.Generator().manual_seed(0)
        (logits * torch.randn(logits.shape, generator=generator)).sum().backward()
        (values.square().sum() + batch.at_last_token(scores).sum()).backward()
        gradients = [p.grad for model in models for p in model.parameters()]
        found.append([logits, values, batch.at_last_token(hidden), *gradients])
    for packed, whole in zip(*found, strict=True):
        assert_close(packed, whole, atol=1e-5 * float(whole.detach().abs().max()), rtol=0)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@torch.no_grad()
def test_every_layer_except_attention_processes_each_token_once(architecture):
    model, batch, sizes = policy(config_of(architecture, True)), collate(answers(10), 0, CPU), set()
    for module in model.modules():
        if isinstance(module, nn.LayerNorm) or type(module).__name__.endswith("RMSNorm"):
            module.register_forward_pre_hook(lambda _, arguments: sizes.add(tuple(arguments[0].shape[:2])))
    model(batch.input_ids, **batch.before_response_tokens(), packing=batch.packing)
    assert sizes == {(1, len(batch.packing.ids))}


APART = {
    "switched off": ("llama", {}, {"packing": False}),
    "eager attention": ("llama", {}, {"attn_implementation": "eager"}),
    "a sliding window": ("mistral", {"sliding_window": 4}, {}),
    "a window in some layers": ("qwen2", {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}, {}),
}


@pytest.mark.parametrize(("architecture", "extra", "options"), APART.values(), ids=APART)
@torch.no_grad()
def test_other_models_do_not_read_packed_sequences(architecture, extra, options):
    model = policy(replace(tiny_config(architecture, **extra), **options))
    batch = collate(answers(10), 0, CPU)
    shapes = []
    model.model.get_input_embeddings().register_forward_pre_hook(lambda _, ids: shapes.append(ids[0].shape))
    with_packing = model(batch.input_ids, **batch.before_response_tokens(), packing=batch.packing)
    assert shapes == [batch.input_ids.shape]
    assert torch.equal(with_packing, model(batch.input_ids, **batch.before_response_tokens()))


def test_a_model_that_does_not_hand_the_packing_to_its_layers_is_refused():
    """Its attention would silently mix all sequences."""
    model, batch = policy(config_of("llama", True)), collate(answers(10), 0, CPU)
    layer = model.model.model.layers[1].self_attn
    forward = layer.forward
    layer.forward = lambda *args, packed=None, **options: forward(*args, **options)
    with pytest.raises(RuntimeError, match=r"LlamaForCausalLM unpacked the sequences in 1 of 2 layers"):
        model(batch.input_ids, **batch.before_response_tokens(), packing=batch.packing)
