"""Content and amount of padding change nothing: it is on the right, where no token attends to it."""

from copy import deepcopy
from dataclasses import replace
from functools import cache
from itertools import product

import pytest
import torch
from torch.testing import assert_close

from rlhf_cli.algo.logprobs import token_logprobs
from rlhf_cli.algo.masking import masked_sum
from rlhf_cli.data.token_batches import TokenSequence, collate
from rlhf_cli.models.byte_tokenizer import byte_tokenizer
from rlhf_cli.models.heads import ResponseLM, TokenScorer
from rlhf_cli.models.load_models import load_causal_lm, load_sequence_classifier
from tests.unit.models.tiny import ARCHITECTURES, tiny_config

CPU = torch.device("cpu")
EOS = byte_tokenizer().eos_token_id
SHORT = TokenSequence(prompt_ids=(10, 11, 12), response_ids=(20, 21, EOS))
LONG = TokenSequence(prompt_ids=tuple(range(30, 50)), response_ids=tuple(range(60, 75)))

KINDS = [f"{architecture} {how}" for architecture, how in product(ARCHITECTURES, ("packed", "whole"))]


def config_of(kind):
    architecture, how = kind.split()
    return replace(tiny_config(architecture), packing=how == "packed")


@cache
def policy_of(kind):
    return ResponseLM(load_causal_lm(config_of(kind), "model", byte_tokenizer(), 0)).eval()


@cache
def scorer_of(kind):
    return TokenScorer(load_sequence_classifier(config_of(kind), "model", byte_tokenizer(), 0, True)).eval()


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@pytest.fixture
def policy(kind):
    return deepcopy(policy_of(kind))


@pytest.fixture
def scorer(kind):
    return deepcopy(scorer_of(kind))


def logits_of(policy, batch):
    return policy(batch.input_ids, **batch.before_response_tokens(), packing=batch.packing)


def scores_of(scorer, batch):
    return scorer(batch.input_ids, packing=batch.packing)[0]


def logprobs_of(policy, batch):
    return batch.per_response_token(token_logprobs(logits_of(policy, batch), batch.real_response_ids(), 1.0))


@pytest.mark.parametrize("pad_id", [0, EOS])
@torch.no_grad()
def test_logprobs_do_not_depend_on_padding_or_neighbours(policy, pad_id):
    alone = logprobs_of(policy, collate([SHORT], pad_id, CPU))
    together = logprobs_of(policy, collate([LONG, SHORT], pad_id, CPU))
    assert_close(together[1:, :3], alone, atol=1e-5, rtol=0)
    assert not together[1:, 3:].any()


@pytest.mark.parametrize("num_pads", [1, 9, 60])
@pytest.mark.parametrize("longer", ["prompt", "response"])
@pytest.mark.parametrize("pad_id", [0, EOS])
@torch.no_grad()
def test_any_number_of_pads_changes_nothing(policy, scorer, pad_id, longer, num_pads):
    """A neighbour whose prompt (or response) is longer by num_pads determines the padding of the other."""
    ids = tuple(range(30, 30 + 3 + num_pads))
    neighbour = TokenSequence(ids, (20, 21, EOS)) if longer == "prompt" else TokenSequence((10, 11, 12), ids)

    def read(sequences):
        batch = collate(sequences, pad_id, CPU)
        logprobs, scores = logprobs_of(policy, batch), scores_of(scorer, batch)
        loss = -masked_sum(logprobs[-1:], batch.response_mask[-1:])
        values = batch.before_each_response_token(scores)
        return logprobs[-1, :3], values[-1, :3], batch.at_last_token(scores)[-1], loss

    for got, expected in zip(read([neighbour, SHORT]), read([SHORT]), strict=True):
        assert_close(got, expected, atol=1e-4, rtol=0)


@torch.no_grad()
def test_response_logits_are_those_of_the_plain_model_row_after_row(policy):
    batch = collate([LONG, SHORT], 0, CPU)
    whole = [policy.model(torch.tensor([s.prompt_ids + s.response_ids])).logits[0] for s in (LONG, SHORT)]
    assert_close(logits_of(policy, batch), torch.cat([whole[0][19:34], whole[1][2:5]]), atol=1e-5, rtol=0)


@torch.no_grad()
def test_no_keys_and_values_are_kept(policy, scorer):
    outputs, batch = [], collate([LONG, SHORT], 0, CPU)
    for module in (policy, scorer):
        module.model.base_model.register_forward_hook(lambda _, __, output: outputs.append(output))
    logits_of(policy, batch)
    scores_of(scorer, batch)
    assert [output.past_key_values for output in outputs] == [None, None]


@torch.no_grad()
def test_a_forward_pass_that_fails_leaves_the_head_as_it_was(policy):
    batch = collate([SHORT], 0, CPU)
    whole = policy.model(batch.input_ids).logits
    with pytest.raises(IndexError):
        policy(batch.input_ids, torch.tensor([0]), torch.tensor([99]), packing=batch.packing)
    assert torch.equal(policy.model(batch.input_ids).logits, whole)


@pytest.mark.parametrize("pad_id", [0, EOS])
@torch.no_grad()
def test_the_score_is_read_at_the_last_real_token_eos_included(scorer, pad_id):
    whole = torch.tensor([SHORT.prompt_ids + SHORT.response_ids])
    scorer.model.config.pad_token_id = None  # then transformers reads the very last token
    expected = scorer.model(whole).logits[:, 0]
    batch = collate([LONG, SHORT], pad_id, CPU)
    got = batch.at_last_token(scores_of(scorer, batch))[1:]
    assert_close(got, expected, atol=1e-5, rtol=0)


@torch.no_grad()
def test_values_are_read_at_the_token_before_each_response_token(scorer):
    prefix = torch.tensor([SHORT.prompt_ids + SHORT.response_ids[:1]])
    value_before_second = scorer(prefix)[0][0, -1]
    batch = collate([LONG, SHORT], 0, CPU)
    values = batch.before_each_response_token(scores_of(scorer, batch))
    assert values.shape == batch.response_ids.shape
    assert_close(values[1, 1], value_before_second, atol=1e-5, rtol=0)
