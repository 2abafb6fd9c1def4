import math

import pytest
import torch
from torch.testing import assert_close

from rlhf_cli.algo import logprobs
from rlhf_cli.algo.logprobs import token_logprobs, token_logprobs_and_entropy

LOG3 = math.log(3)


def test_logprobs_by_hand_at_two_temperatures():
    """Logits log 1, log 3: probabilities 1/4, 3/4; at temperature 0.5 they are squared: 1/10, 9/10."""
    logits = torch.log(torch.tensor([[[1.0, 3.0], [1.0, 3.0]]]))
    tokens = torch.tensor([[0, 1]])
    expected = torch.log(torch.tensor([[0.25, 0.75]]))
    assert_close(token_logprobs(logits, tokens, 1.0), expected, atol=1e-6, rtol=0)
    assert_close(token_logprobs(logits, tokens, 0.5), torch.log(torch.tensor([[0.1, 0.9]])), atol=1e-6, rtol=0)


def test_entropy_by_hand():
    logits = torch.log(torch.tensor([[[1.0, 1.0], [1.0, 3.0]]]))
    tokens = torch.tensor([[0, 1]])
    expected = torch.tensor([[math.log(2), -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))]])
    assert_close(token_logprobs_and_entropy(logits, tokens, 1.0)[1], expected, atol=1e-6, rtol=0)
    cool = -(0.1 * math.log(0.1) + 0.9 * math.log(0.9))
    assert_close(token_logprobs_and_entropy(logits, tokens, 0.5)[1][0, 1].item(), cool, atol=1e-6, rtol=0)


def some_logits(dtype, rows=7, width=17):
    generator = torch.Generator().manual_seed(0)
    logits = (4 * torch.randn(rows, width, generator=generator)).to(dtype)
    return logits, torch.randint(width, (rows,), generator=generator)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_result_is_float32_and_matches_log_softmax_in_any_shape(dtype):
    logits, tokens = some_logits(dtype, rows=6)
    expected = torch.log_softmax(logits.float(), -1).gather(1, tokens[:, None]).squeeze(1)
    for shape in ((6,), (2, 3), (1, 6, 1)):
        got = token_logprobs(logits.view(*shape, 17), tokens.view(shape), 1.0)
        assert got.dtype is torch.float32
        assert_close(got, expected.view(shape), atol=2e-6, rtol=0)


def by_autograd(logits, tokens, temperature):
    """The plain formulas, in float64."""
    log_p = torch.log_softmax(logits.double() / temperature, dim=1)
    return log_p.gather(1, tokens[:, None]).squeeze(1), -(log_p.exp() * log_p).sum(dim=1)


# of 7 rows of 17 logits: one at a time; two; all
@pytest.mark.parametrize("chunk", [1, 40, 2**20])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("used", [(True, True), (True, False), (False, True)])
def test_values_and_gradients_are_those_of_the_plain_formulas(chunk, dtype, temperature, used, monkeypatch):
    """Each row's logprob and entropy have a weight of their own in the loss; one of the two may have no part in it."""
    monkeypatch.setattr(logprobs, "_CHUNK", chunk)
    logits, tokens = some_logits(dtype)
    weights = torch.linspace(-1, 2, 7), torch.linspace(3, -1, 7)
    found = []
    for function, precise in ((token_logprobs_and_entropy, False), (by_autograd, True)):
        leaf = logits.detach().clone().requires_grad_()
        outputs = function(leaf, tokens, temperature)
        terms = [(weight * output).sum() for weight, output in zip(weights, outputs, strict=True)]
        sum(term for term, use in zip(terms, used, strict=True) if use).backward()
        found.append((*[output.detach() for output in outputs], leaf.grad))
        assert precise or leaf.grad.dtype is dtype
    for got, expected in zip(found[0][:2], found[1][:2], strict=True):
        assert_close(got.double(), expected, atol=5e-6, rtol=0)
    rounding = 1e-5 if dtype is torch.float32 else 2**-7  # of the gradient itself, which has the logits' type
    assert_close(found[0][2].double(), found[1][2].double(), atol=1e-5, rtol=rounding)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_logits_keep_every_bit(dtype):
    """Both passes scale copies: others may read the logits after them."""
    logits, tokens = some_logits(dtype)
    leaf = logits.detach().clone().requires_grad_()
    outputs = token_logprobs_and_entropy(leaf, tokens, 0.7)
    assert torch.equal(leaf, logits)
    (outputs[0].sum() + outputs[1].sum()).backward()
    assert torch.equal(leaf, logits)


def test_a_token_that_the_model_rules_out_leaves_the_gradient_of_logprobs_finite():
    """Its logit is -inf, and so is its log p: only in the entropy's gradient that would count."""
    logits = torch.tensor([[-torch.inf, 0.0, LOG3]], requires_grad=True)
    token_logprobs(logits, torch.tensor([2]), 1.0).sum().backward()
    assert_close(logits.grad, torch.tensor([[0.0, -0.25, 0.25]]), atol=1e-6, rtol=0)


def test_two_backward_passes_through_one_result_add_up():
    logits, tokens = some_logits(torch.float32)
    logits.requires_grad_()
    total = token_logprobs(logits, tokens, 1.0).sum()
    total.backward(retain_graph=True)
    once = logits.grad.clone()
    total.backward()
    assert torch.equal(logits.grad, 2 * once)


def test_without_gradients_nothing_is_kept():
    logits, tokens = some_logits(torch.float32)
    assert not token_logprobs(logits, tokens, 1.0).requires_grad
    with torch.no_grad():
        assert not token_logprobs(logits.requires_grad_(), tokens, 1.0).requires_grad


def test_chunks_by_hand(monkeypatch):
    """Six numbers are two rows of three; a row that is larger has a chunk of its own."""
    assert all((rows.stop - rows.start) * 50_000 <= 2**19 for rows in logprobs._chunks(100, 50_000))  # 2 MiB of float32
    assert next(logprobs._chunks(100, 50_000)) == slice(0, 10)
    monkeypatch.setattr(logprobs, "_CHUNK", 6)
    assert list(logprobs._chunks(5, 3)) == [slice(0, 2), slice(2, 4), slice(4, 6)]
    assert list(logprobs._chunks(2, 7)) == [slice(0, 1), slice(1, 2)]
