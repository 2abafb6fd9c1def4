"""Traces on meta tensors, compared with real passes and with figures worked out by hand."""

import itertools

import pytest
import torch
from transformers import AutoConfig

from rlhf_cli.algo import logprobs
from rlhf_cli.algo.packing import Packing
from rlhf_cli.config.errors import InputError
from rlhf_cli.models.heads import Float32Head, ResponseLM, TokenScorer
from rlhf_cli.models.packed_forward import use_packing
from rlhf_cli.plan import trace_memory as trace
from rlhf_cli.plan.architecture import Architecture
from rlhf_cli.plan.live_tensors import LiveTensors
from rlhf_cli.plan.trace_memory import ACTIVATIONS, CACHE, LOGITS, Texts
from tests.unit.plan.fake import LLAMA

OTHERS = {
    "gpt2": {"model_type": "gpt2", "n_embd": 32, "n_layer": 6, "n_head": 4, "vocab_size": 300},
    "gpt_neox": {**LLAMA, "model_type": "gpt_neox"},
    "qwen2": {**LLAMA, "model_type": "qwen2"},
    "qwen3": {**LLAMA, "model_type": "qwen3", "head_dim": 8},
    "mistral": {**LLAMA, "model_type": "mistral"},
    "gemma2": {**LLAMA, "model_type": "gemma2", "head_dim": 8},
}
TEXTS = Texts(rows=3, prompt=20, response=12)


def architecture(scores=False, dtype=torch.float32, packing=True, checkpointing=False, eager=False, **changed):
    keys = {**LLAMA, **changed}
    return Architecture(AutoConfig.for_model(**keys), scores, dtype, packing, checkpointing, eager)


def real_model(what: Architecture):
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    keys = AutoConfig.for_model(**LLAMA)
    if what.scores:
        keys.num_labels = 1
        model = AutoModelForSequenceClassification.from_config(keys, dtype=what.dtype)
        model.score = Float32Head(model.score)
    else:
        model = AutoModelForCausalLM.from_config(keys, dtype=what.dtype)
    if what.packing:
        use_packing(model)
    if what.checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return (TokenScorer if what.scores else ResponseLM)(model)


def real_peaks(what: Architecture, with_gradients: bool):
    """Return the peak of a real pass, and what it keeps between the forward and the backward pass."""
    module = real_model(what).train(with_gradients)
    for parameter in module.parameters():
        parameter.register_post_accumulate_grad_hook(lambda one: setattr(one, "grad", None))
    generator = torch.Generator().manual_seed(0)
    texts = [tuple(torch.randint(0, 299, (TEXTS.length,), generator=generator).tolist()) for _ in range(TEXTS.rows)]
    rows = torch.arange(TEXTS.rows).repeat_interleave(TEXTS.response)
    columns = torch.arange(TEXTS.prompt - 1, TEXTS.length - 1).repeat(TEXTS.rows)
    with LiveTensors() as live, torch.set_grad_enabled(with_gradients):
        ids, packing = torch.tensor(texts), Packing.of(texts, torch.device("cpu"))
        if what.scores:
            output = module(ids, packing=packing)[0]
        else:
            logits = module(ids, rows=rows, columns=columns, packing=packing)
            of_tokens, entropy = logprobs.token_logprobs_and_entropy(logits, columns, 1.0)
            output = of_tokens + entropy
            del logits, of_tokens, entropy
        kept = live.total
        if with_gradients:
            output.sum().backward()
        return live.peak, kept


SIDES = list(itertools.product([False, True], [torch.float32, torch.bfloat16], [False, True], [False, True]))


@pytest.mark.parametrize(("scores", "dtype", "packing", "checkpointing"), SIDES)
def test_a_traced_pass_holds_what_a_real_one_holds(scores, dtype, packing, checkpointing):
    """The tolerance is for torch's attention on a CPU, which differs from the planned fused attention."""
    what = architecture(scores, dtype, packing, checkpointing)
    passes = trace.training(what, TEXTS)
    peak, kept = real_peaks(what, with_gradients=True)
    planned = max(one.total() for one in (passes.head, passes.layers, passes.embedding))
    assert planned == pytest.approx(peak, rel=0.1)
    assert passes.kept.total() == pytest.approx(kept, rel=0.06)
    assert trace.scoring(what, TEXTS).total() == pytest.approx(real_peaks(what, with_gradients=False)[0], rel=0.1)


ALL_WAYS = [(LLAMA, checkpointing, scores) for checkpointing in (False, True) for scores in (False, True)]
ALL_WAYS += [(keys, False, False) for keys in OTHERS.values()]


@pytest.mark.parametrize(("keys", "checkpointing", "scores"), ALL_WAYS)
def test_two_depths_extrapolate_to_all_layers(keys, checkpointing, scores, monkeypatch):
    """Two and three layers give the same as six."""
    what = architecture(scores, checkpointing=checkpointing, **keys)
    short = trace.training.__wrapped__(what, TEXTS), trace.scoring.__wrapped__(what, TEXTS)
    monkeypatch.setattr(trace, "_DEPTHS", (5, 6))
    long = trace.training.__wrapped__(what, TEXTS), trace.scoring.__wrapped__(what, TEXTS)
    for name in ("head", "layers", "embedding", "kept"):
        assert getattr(short[0], name).total() == pytest.approx(getattr(long[0], name).total(), rel=0.001)
    assert short[1].total() == pytest.approx(long[1].total(), rel=0.001)


@pytest.mark.parametrize("scores", [False, True])
def test_a_trace_is_the_same_the_second_time(scores):
    """Nothing that only the first trace creates may count."""
    what, texts = architecture(scores, hidden_size=48), Texts(5, 17, 9)
    for traced in (trace.training, trace.scoring):
        assert traced.__wrapped__(what, texts) == traced.__wrapped__(what, texts)


def test_decoding_holds_the_cache():
    """Keys and values: 2 x 6 layers x 3 rows x 2 heads x 32 tokens x 8 numbers of 4 bytes."""
    held = trace.decoding(architecture(), TEXTS, 1.0)
    assert held[CACHE] == 2 * 6 * 3 * 2 * 32 * 8 * 4
    assert held[ACTIVATIONS] > 3 * 20 * 32 * 4  # of the prompts' pass, which is more here than a step's draw


def test_a_decoding_step_holds_logits_and_probabilities():
    """3 rows of 300 logits and probabilities in 4 bytes, and cumulative ones in 8; prompts are short."""
    held = trace.decoding(architecture(), Texts(3, 1, 31), 1.0)
    assert held[LOGITS] >= 3 * 300 * (4 + 4 + 8)


def test_only_response_tokens_have_logits():
    """3 x 12 rows of 300 numbers of 4 bytes."""
    assert trace.training(architecture(), TEXTS).kept[LOGITS] == 3 * 12 * 300 * 4


def test_recomputed_layers_keep_only_their_inputs():
    """6 layers x 96 tokens x 32 numbers of 4 bytes; with both ends of the model, at most four times as much."""
    inputs = 6 * 96 * 32 * 4
    kept = trace.training(architecture(checkpointing=True), TEXTS).kept[ACTIVATIONS]
    assert inputs <= kept < 4 * inputs
    assert trace.training(architecture(), TEXTS).kept[ACTIVATIONS] > 10 * inputs


def test_attention_holds_nothing_of_length_squared():
    short, long = (trace.scoring(architecture(), Texts(1, 1, length - 1)).total() for length in (1024, 4096))
    assert long < 4.5 * short
    eager = trace.scoring(architecture(packing=False, eager=True), Texts(1, 1, 1023)).total()
    assert eager > 1024**2 * 4 * 4  # 4 heads


def test_stand_ins_are_removed_after_a_failure():
    own = torch.nn.functional.scaled_dot_product_attention, logprobs._chunks
    with pytest.raises(LookupError), trace._stand_ins():
        raise LookupError
    assert (torch.nn.functional.scaled_dot_product_attention, logprobs._chunks) == own


def test_two_chunks_of_logits_hold_as_much_as_all(monkeypatch):
    """36 rows of logits in chunks of 5."""
    monkeypatch.setattr(logprobs, "_CHUNK", 5 * 300)
    some = trace.training.__wrapped__(architecture(), TEXTS)
    monkeypatch.setattr(trace, "islice", lambda chunks, _: chunks)
    assert trace.training.__wrapped__(architecture(), TEXTS) == some


def test_a_model_that_cannot_be_traced_is_reported(monkeypatch):
    def broken(*_):
        raise RuntimeError("no kernel\nfor meta")

    monkeypatch.setattr(trace, "_output", broken)
    with pytest.raises(InputError, match=r"cannot plan LlamaForCausalLM: .* no kernel for meta"):
        trace.scoring(architecture(hidden_size=64), TEXTS)


def test_a_shape_that_transformers_cannot_build_is_reported():
    with pytest.raises(InputError, match="cannot build a llama model for the plan"):
        trace.scoring(architecture(hidden_size=0, num_attention_heads=4), TEXTS)
