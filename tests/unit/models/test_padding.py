"""What stands in the padding, and how much of it there is, changes nothing."""

import pytest
import torch
from torch.testing import assert_close

from rlhf_cli.algo.logprobs import token_logprobs
from rlhf_cli.algo.masking import masked_sum
from rlhf_cli.data.tokens import Sequence, collate
from rlhf_cli.models.byte_tokenizer import byte_tokenizer
from rlhf_cli.models.heads import ResponseLM, TokenScorer
from rlhf_cli.models.load import load_causal_lm, load_sequence_classifier
from tests.unit.models.tiny import ARCHITECTURES, tiny_config

CPU = torch.device("cpu")
EOS = byte_tokenizer().eos_token_id
SHORT = Sequence(prompt_ids=(10, 11, 12), response_ids=(20, 21, EOS))
LONG = Sequence(prompt_ids=tuple(range(30, 50)), response_ids=tuple(range(60, 75)))


@pytest.fixture(params=ARCHITECTURES)
def policy(request):
    return ResponseLM(load_causal_lm(tiny_config(request.param), "model", byte_tokenizer(), 0)).eval()


@pytest.fixture(params=ARCHITECTURES)
def scorer(request):
    return TokenScorer(load_sequence_classifier(tiny_config(request.param), "model", byte_tokenizer(), 0, True)).eval()


@pytest.mark.parametrize("pad_id", [0, EOS])
@torch.no_grad()
def test_logprobs_do_not_depend_on_padding_or_neighbours(policy, pad_id):
    def logprobs(sequences):
        batch = collate(sequences, pad_id, CPU)
        logits = policy(**batch.model_inputs(), num_response=batch.response_ids.shape[1])
        return token_logprobs(logits, batch.response_ids, 1.0)

    alone = logprobs([SHORT])
    assert_close(logprobs([LONG, SHORT])[1:, :3], alone, atol=1e-5, rtol=0)


@pytest.mark.parametrize("num_pads", [1, 9, 60])
@pytest.mark.parametrize("side", ["prompt", "response"])
@pytest.mark.parametrize("pad_id", [0, EOS])
@torch.no_grad()
def test_any_number_of_pads_on_either_side_changes_nothing(policy, scorer, pad_id, side, num_pads):
    """A neighbour whose prompt (or response) is longer by num_pads sets how much padding the other gets."""
    longer = tuple(range(30, 30 + 3 + num_pads))
    neighbour = Sequence(longer, (20, 21, EOS)) if side == "prompt" else Sequence((10, 11, 12), longer)

    def read(sequences):
        batch = collate(sequences, pad_id, CPU)
        logits = policy(**batch.model_inputs(), num_response=batch.response_ids.shape[1])
        logprobs = token_logprobs(logits, batch.response_ids, 1.0)
        scores = scorer(**batch.model_inputs())[0]
        loss = -masked_sum(logprobs[-1:], batch.response_mask[-1:])
        values = batch.before_each_response_token(scores)
        return logprobs[-1, :3], values[-1, :3], batch.at_last_token(scores)[-1], loss

    for got, expected in zip(read([neighbour, SHORT]), read([SHORT]), strict=True):
        assert_close(got, expected, atol=1e-4, rtol=0)


@torch.no_grad()
def test_response_logits_are_those_of_the_plain_model(policy):
    batch = collate([SHORT], 0, CPU)
    whole = policy.model(torch.tensor([SHORT.prompt_ids + SHORT.response_ids])).logits
    got = policy(**batch.model_inputs(), num_response=3)
    assert_close(got, whole[:, 2:5], atol=1e-5, rtol=0)


@pytest.mark.parametrize("pad_id", [0, EOS])
@torch.no_grad()
def test_the_score_is_read_at_the_last_real_token_eos_included(scorer, pad_id):
    whole = torch.tensor([SHORT.prompt_ids + SHORT.response_ids])
    scorer.model.config.pad_token_id = None  # then transformers reads the very last token
    expected = scorer.model(whole).logits[:, 0]
    batch = collate([LONG, SHORT], pad_id, CPU)
    got = batch.at_last_token(scorer(**batch.model_inputs())[0])[1:]
    assert_close(got, expected, atol=1e-5, rtol=0)


@torch.no_grad()
def test_values_are_read_at_the_token_before_each_response_token(scorer):
    prefix = torch.tensor([SHORT.prompt_ids + SHORT.response_ids[:1]])
    mask = torch.ones_like(prefix)
    value_before_second = scorer(prefix, mask, mask.cumsum(1) - 1)[0][0, -1]
    batch = collate([LONG, SHORT], 0, CPU)
    values = batch.before_each_response_token(scorer(**batch.model_inputs())[0])
    assert values.shape == batch.response_ids.shape
    assert_close(values[1, 1], value_before_second, atol=1e-5, rtol=0)
