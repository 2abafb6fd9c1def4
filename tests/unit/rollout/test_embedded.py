"""Sampling on one process, with a stand-in for the engine that holds a plain model."""

import copy
from contextlib import contextmanager

import pytest
import torch
from transformers import GenerationConfig

from rlhf_cli.algo.logprobs import token_logprobs
from rlhf_cli.algo.sampling import draw
from rlhf_cli.config.sections import RolloutConfig
from rlhf_cli.data.token_batches import EndTokens, TokenSequence, collate
from rlhf_cli.engine import distributed
from rlhf_cli.models.byte_tokenizer import byte_tokenizer
from rlhf_cli.models.cpu import attention as cpu_attention
from rlhf_cli.models.heads import ResponseLM
from rlhf_cli.models.load_models import load_causal_lm
from rlhf_cli.rollout import embedded
from rlhf_cli.rollout.embedded import EmbeddedSampler, _DecodingRows, end_token_ids, uniforms
from tests.unit.models.tiny import ARCHITECTURES, tiny_config

CPU = torch.device("cpu")
PROMPTS = [(5, 6, 7), (8,), tuple(range(20, 40)), (9, 10, 11), (12, 13), (14, 15, 16, 17)]
KEYS = ["a", "b", "c", "d", "e", "f"]
EOS = frozenset({257})
MANY = frozenset(range(0, 259, 7))  # a random model ends a response every seventh token
NEVER = frozenset({259})


class Engine:
    """A fake engine that records how it was gathered and the batches of the model."""

    def __init__(self, module):
        self.module, self.held, self.read = module, [], []
        module.model.register_forward_hook(self._note, with_kwargs=True)

    def _note(self, model, _, options, output):
        assert not model.training
        assert options["use_cache"]
        assert output.logits.shape[:2] == (1, len(options["input_ids"]))  # of the last place of each row alone
        self.read.append(options)

    @property
    def shapes(self):
        """Return rows and columns of each forward pass."""
        return [tuple(options["input_ids"].shape) for options in self.read]

    @contextmanager
    def gathered(self, hold=True):
        self.held.append(hold)
        yield self.module


def policy(architecture="llama", **extra):
    """A model with weights large enough for its tokens to depend on everything it attends to."""
    model = load_causal_lm(tiny_config(architecture, **extra), "model", byte_tokenizer(), 0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.normal_(std=0.5, generator=generator)
    return model


def sampler(architecture="llama", end_ids=EOS, model=None, **options):
    module = ResponseLM(copy.deepcopy(model or policy(architecture))).train()
    config = RolloutConfig(**{"max_new_tokens": 20, **options})
    return EmbeddedSampler(Engine(module), config, EndTokens(end_ids, 0), CPU)


@torch.no_grad()
def slowly(model, end_ids, prompts, keys, greedy=False, **options):
    """Process each prompt separately, from the start for each token, without cache, padding or mask."""
    config, found = RolloutConfig(**{"max_new_tokens": 20, **options}), []
    for prompt, key in zip(prompts, keys, strict=True):
        numbers, response = uniforms(key, config.max_new_tokens), []
        for number in numbers:
            logits = model(torch.tensor([[*prompt, *response]]), use_cache=False).logits[:, -1]
            token = logits.argmax(dim=1) if greedy else draw(logits, number[None], config.temperature, config.top_p)
            response.append(int(token))
            if response[-1] in end_ids:
                break
        found.append(TokenSequence(prompt, tuple(response)))
    return found


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("options", [{}, {"temperature": 0.7, "top_p": 0.8}, {"greedy": True}])
def test_responses_equal_those_without_cache_or_padding(architecture, options):
    """Prompts of 1 to 20 tokens in one batch, padded on the left; rows leave when they finish."""
    model, greedy = policy(architecture), options.get("greedy", False)
    more = {name: value for name, value in options.items() if name != "greedy"}
    expected = slowly(model, MANY, PROMPTS, KEYS, greedy, **more)
    assert sampler(model=model, end_ids=MANY, **more).sample(PROMPTS, KEYS, greedy) == expected
    lengths = {len(sequence.response_ids) for sequence in expected}
    assert greedy or len(lengths) > 1
    if not greedy:  # the model does depend on what it has read
        shorter = slowly(model, MANY, [prompt[1:] for prompt in PROMPTS if len(prompt) > 1], KEYS[1:], **more)
        assert [one.response_ids for one in shorter] != [one.response_ids for one in expected if one.prompt_ids != (8,)]


def test_a_model_with_a_sliding_window_generates_the_same():
    model = policy("mistral", sliding_window=4)
    assert sampler(model=model, end_ids=MANY).sample(PROMPTS, KEYS) == slowly(model, MANY, PROMPTS, KEYS)


@pytest.mark.parametrize("check_every", [1, 16])
@pytest.mark.parametrize("gather", [True, False])
@pytest.mark.parametrize(
    "shape",
    [{"micro_batch_size": 1}, {"micro_batch_size": 2}, {"micro_batch_size": 6}, {"micro_batch_tokens": 80}],
)
def test_a_response_does_not_depend_on_its_batch(shape, gather, check_every, one_rank, monkeypatch):
    monkeypatch.setattr(embedded, "_CHECK_EVERY", {"cpu": check_every})
    model = policy()
    made = sampler(model=model, end_ids=MANY, gather=gather, **shape)
    assert made.sample(PROMPTS, KEYS) == slowly(model, MANY, PROMPTS, KEYS)
    assert made.policy.held == [gather]


def test_prompts_of_similar_length_share_a_batch():
    """1, 2 | 3, 3 | 4, 20; or up to 80 tokens, including 20 per response: 3 x 23, 2 x 24, 1 x 40."""
    by_rows, by_tokens = sampler(end_ids=NEVER, micro_batch_size=2), sampler(end_ids=NEVER, micro_batch_tokens=80)
    for made, expected in ((by_rows, [(2, 2), (2, 3), (2, 20)]), (by_tokens, [(3, 3), (2, 4), (1, 20)])):
        made.sample(PROMPTS, KEYS)
        assert [shape for shape in made.policy.shapes if shape[1] > 1] == expected


def test_each_prompt_is_processed_once_and_then_token_by_token():
    made = sampler(end_ids=NEVER)
    made.sample(PROMPTS, KEYS)
    assert made.policy.shapes == [(6, 20)] + [(6, 1)] * 19  # the last token is drawn and never read


@pytest.mark.parametrize("prompts", [[(5, 6), (7, 8)], [(5, 6), (7,)]])
def test_a_cpu_uses_its_attention_for_new_tokens(prompts, monkeypatch):
    """Two layers and two steps after the prompts, padded or not."""
    calls, attend_one_token = [], cpu_attention.attend_one_token
    monkeypatch.setattr(cpu_attention, "attend_one_token", lambda *args: (calls.append(1), attend_one_token(*args))[1])
    sampler(end_ids=NEVER, max_new_tokens=3).sample(prompts, ["a", "b"])
    assert len(calls) == 4


def test_prompts_of_one_length_need_no_mask():
    made = sampler(end_ids=NEVER, max_new_tokens=3)
    made.sample([(5, 6), (7, 8)], ["a", "b"])
    assert all(options["attention_mask"] is None for options in made.policy.read)
    made.sample([(5, 6), (7,)], ["a", "b"])
    assert [tuple(options["attention_mask"].shape) for options in made.policy.read[3:]] == [(2, 2), (2, 3), (2, 4)]


def test_finished_rows_leave_the_batch_and_decoding_stops_with_the_last():
    """A row of n tokens is in n forward passes, if one row is a quarter of the batch."""
    made = sampler(end_ids=MANY)
    lengths = [len(one.response_ids) for one in made.sample(PROMPTS[:4], KEYS[:4])]
    assert 1 <= min(lengths) < max(lengths) < 20
    rows = [shape[0] for shape in made.policy.shapes]
    assert rows == [sum(length > step for length in lengths) for step in range(max(lengths))]


class Scripted:
    """A fake draw: token lengths[b] of row b is the end token 9; all others are 1."""

    def __init__(self, lengths):
        self.lengths, self.seen = torch.tensor(lengths), []

    def __call__(self, logits, numbers, *_):
        places = (numbers // 1000).long()  # uniform numbers that say their row and step
        self.seen.append(places.tolist())
        return torch.where((numbers % 1000).long() + 1 == self.lengths[places], 9, 1)


def scripted(monkeypatch, lengths, check_every=1, **options):
    """Sample responses of given lengths; return the sampler and the active rows of each step."""
    script = Scripted(lengths)
    monkeypatch.setattr(embedded, "draw", script)
    monkeypatch.setattr(embedded, "uniforms", lambda key, size: 1000.0 * int(key) + torch.arange(size).double())
    monkeypatch.setattr(embedded, "_CHECK_EVERY", {"cpu": check_every})
    made = sampler(end_ids=frozenset({9}), **options)
    keys = [str(n) for n in range(len(lengths))]
    found = made.sample([(5 + n, 6) for n in range(len(lengths))], keys)
    wanted = [min(length, made.config.max_new_tokens) for length in lengths]
    assert [len(one.response_ids) for one in found] == wanted
    return made, script.seen


def test_rows_leave_only_if_a_quarter_has_finished(monkeypatch):
    """Of eight rows, two must finish to leave; then two of six; of four, one leaves at once."""
    _, seen = scripted(monkeypatch, [1, 2, 3, 4, 5, 6, 7, 8])
    full = list(range(8))
    assert seen == [full, full, full[2:], full[2:], full[4:], full[5:], full[6:], full[7:]]


def test_with_rare_checks_rows_leave_and_decoding_stops_at_every_sixteenth_token(monkeypatch):
    _, seen = scripted(monkeypatch, [1, 16, 17, 18, 40], check_every=16, max_new_tokens=40)
    assert seen == [[0, 1, 2, 3, 4]] * 16 + [[2, 3, 4]] * 16 + [[4]] * 8
    _, seen = scripted(monkeypatch, [1, 3, 2], check_every=16, max_new_tokens=40)
    assert seen == [[0, 1, 2]] * 16


def test_a_gpu_is_checked_every_sixteenth_token():
    assert (embedded._CHECK_EVERY, embedded._CHECK_EVERY_ON_GPU) == ({"cpu": 1}, 16)


def test_there_is_no_check_after_the_last_token(monkeypatch, one_rank):
    """A check is a collective without gather: all ranks must make the same number, and no useless ones."""
    asked = []
    monkeypatch.setattr(distributed, "any_rank", lambda flag: (asked.append(flag), flag)[1])
    scripted(monkeypatch, [9, 9], max_new_tokens=3, gather=False)
    assert asked == [True, True]


@pytest.mark.parametrize("others_go_on", [True, False])
def test_a_finished_rank_continues_for_other_ranks_without_gather(others_go_on, monkeypatch, one_rank):
    asked = []
    monkeypatch.setattr(distributed, "any_rank", lambda flag: (asked.append(flag), flag or others_go_on)[1])
    made, _ = scripted(monkeypatch, [2, 1], max_new_tokens=5, gather=False)
    assert len(made.policy.shapes) == (5 if others_go_on else 2)
    assert asked == ([True, False, False, False] if others_go_on else [True, False])


def test_a_rank_with_fewer_batches_repeats_one_without_gather(monkeypatch, one_rank):
    """Another rank has three batches and this one two, so it repeats the first. With gather it does not."""
    monkeypatch.setattr(distributed, "gather_all", lambda number: [number, 3])
    for gather, num_batches in ((False, 3), (True, 2)):
        made = sampler(end_ids=NEVER, gather=gather, micro_batch_size=3, max_new_tokens=2)
        assert len(made.sample(PROMPTS, KEYS)) == 6
        assert len([shape for shape in made.policy.shapes if shape[1] > 1]) == num_batches


def test_positions_count_real_tokens_and_the_mask_hides_the_padding():
    """Prompts of 3 and 1 tokens, and two new tokens."""
    rows = _DecodingRows.of([(5, 6, 7), (8,)], 2, 0, CPU)
    assert rows.next_ids.tolist() == [[5, 6, 7], [0, 0, 8]]
    assert rows.positions.tolist() == [[0, 1, 2], [0, 0, 0]]
    assert rows.mask.tolist() == [[1, 1, 1, 1, 1], [0, 0, 1, 1, 1]]
    assert rows.is_padded
    rows.append(torch.tensor([40, 50]))
    assert rows.next_ids.tolist() == [[40], [50]]
    assert rows.positions.tolist() == [[3], [1]]
    rows.keep(torch.tensor([1]))
    assert (rows.next_ids.tolist(), rows.positions.tolist(), rows.active.tolist()) == ([[50]], [[1]], [1])
    assert rows.mask.tolist() == [[0, 0, 1, 1, 1]]
    rows.append(torch.tensor([60]))
    assert rows.positions.tolist() == [[2]]
    assert not _DecodingRows.of([(5, 6), (7, 8)], 2, 0, CPU).is_padded


def test_the_model_samples_in_eval_mode_and_returns_to_training_mode_after_an_error(monkeypatch):
    made = sampler()
    made.sample(PROMPTS, KEYS)  # Engine sees to the eval mode
    assert made.policy.module.model.training

    def broken(*_):
        raise LookupError

    monkeypatch.setattr(embedded, "draw", broken)
    with pytest.raises(LookupError):
        made.sample(PROMPTS, KEYS)
    assert made.policy.module.model.training


def test_gradient_checkpointing_leaves_the_cache_on():
    model = policy()
    expected = sampler(model=model).sample(PROMPTS, KEYS)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    made = sampler(model=model)
    assert made.sample(PROMPTS, KEYS) == expected
    assert {shape[1] for shape in made.policy.shapes[1:]} == {1}


def test_a_response_depends_on_its_key():
    assert sampler().sample(PROMPTS[:1], ["a"]) != sampler().sample(PROMPTS[:1], ["x"])
    assert torch.equal(uniforms("a", 5), uniforms("a", 5))
    assert not torch.equal(uniforms("a", 5), uniforms("b", 5))


@torch.no_grad()
def test_samples_follow_the_logprobs():
    """Over many keys, the frequency of each first token is its probability at the temperature."""
    model = load_causal_lm(tiny_config("llama"), "model", byte_tokenizer(), 0)
    one = sampler(model=model, max_new_tokens=1, temperature=0.05, micro_batch_size=4000)
    drawn = one.sample([(5, 6)] * 4000, [str(index) for index in range(4000)])
    tokens = torch.tensor([sequence.response_ids[0] for sequence in drawn])
    likeliest = int(tokens.mode().values)
    batch = collate([drawn[int((tokens == likeliest).nonzero()[0])]], 0, CPU)
    logits = ResponseLM(model.eval())(batch.input_ids, **batch.before_response_tokens())
    expected = token_logprobs(logits, batch.real_response_ids(), 0.05).exp().item()
    assert 0.02 < expected < 0.9
    share = (tokens == likeliest).float().mean().item()
    assert abs(share - expected) < 4 * (expected * (1 - expected) / 4000) ** 0.5


def test_greedy_takes_the_likeliest_token_whatever_the_key():
    assert sampler().sample(PROMPTS, KEYS, greedy=True) == sampler().sample(PROMPTS, KEYS[::-1], greedy=True)


def test_a_response_stops_at_the_first_end_token_and_keeps_it():
    free = sampler(end_ids=NEVER).sample(PROMPTS[:1], ["a"])[0]
    stop = free.response_ids[4]
    stopping = sampler(end_ids=frozenset({stop}))
    cut = stopping.sample(PROMPTS[:1], ["a"])[0]
    assert cut.response_ids == free.response_ids[: free.response_ids.index(stop) + 1]
    assert stopping.ends.ended(cut)
    assert len(free.response_ids) == 20


def test_the_models_own_sampling_settings_are_not_used_and_are_kept():
    plain = sampler().sample(PROMPTS, KEYS)
    tuned = sampler()
    own = GenerationConfig(do_sample=True, temperature=0.1, top_k=1, repetition_penalty=5.0, max_length=4)
    tuned.policy.module.model.generation_config = own
    assert tuned.sample(PROMPTS, KEYS) == plain
    assert tuned.policy.module.model.generation_config is own


def test_end_tokens_of_the_generation_config_are_included():
    tokenizer = byte_tokenizer()
    assert end_token_ids(tokenizer, None) == {257}
    assert end_token_ids(tokenizer, GenerationConfig(eos_token_id=[3, 4])) == {3, 4, 257}
    assert end_token_ids(tokenizer, GenerationConfig(eos_token_id=3)) == {3, 257}
