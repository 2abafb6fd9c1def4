"""The checks before the first update pass on a correct set-up and find what is broken in others."""

from __future__ import annotations

import copy
import json
from dataclasses import replace

import pytest
import torch
from tokenizers import normalizers

from rlhf_cli.config.errors import InputError
from rlhf_cli.config.objectives import ValueInit, ValueModelConfig
from rlhf_cli.config.sections import CheckConfig, DType, ModelConfig, PromptDataConfig
from rlhf_cli.data.conversation import Renderer
from rlhf_cli.data.prompts import Prompt
from rlhf_cli.data.token_batches import EndTokens, TokenBatch
from rlhf_cli.models.byte_tokenizer import byte_tokenizer
from rlhf_cli.models.heads import TokenScorer
from rlhf_cli.models.load_models import load_causal_lm, load_sequence_classifier
from rlhf_cli.report.reporter import Reporter
from rlhf_cli.rollout import embedded
from rlhf_cli.run.check_ppo import Tokenizers, _for_logits, check_ppo
from rlhf_cli.run.check_rm import check_rm
from rlhf_cli.run.checks import BFLOAT16, FLOAT32, bounds_of, report_checks, spread
from rlhf_cli.train import forward
from rlhf_cli.train.reward import RankingData, RewardTrainer
from tests.oracle.cases import ENDS, EOS, OPTIM, Record, ppo_config, ppo_trainer, rm_config, rm_rows
from tests.oracle.engines import SimpleTrain
from tests.unit.models.tiny import tiny_config

TOKENIZER = byte_tokenizer()
DATA = PromptDataConfig(train="x")
TEXTS = ["Where is it?", "ABC", "Please tell me a long story about padding on the left.", "No"]


def prompts():
    renderer = Renderer(TOKENIZER, DATA)
    chats = [[{"role": "user", "content": text}] for text in TEXTS]
    return [Prompt(chat[0]["content"], renderer.prompt_ids(chat), json.dumps(chat)) for chat in chats]


def models(architecture="gpt2"):
    """Four models as a run starts with them."""
    config = tiny_config(architecture)
    scorer = load_sequence_classifier(config, "reward_model", TOKENIZER, 1, new_head=True)
    policy = load_causal_lm(config, "model", TOKENIZER, 0)
    with torch.no_grad():  # a random model hardly prefers one token to another; a trained one does
        policy.get_input_embeddings().weight.mul_(8)
    return {
        "policy": policy,
        "reference": copy.deepcopy(policy),
        "reward_model": scorer,
        "value_model": copy.deepcopy(scorer),
    }


def failed(checks):
    return {check.name for check in checks if check.status == "FAIL"}


def sound(architecture="gpt2", name="base", ends=ENDS, **more):
    config = replace(ppo_config(name), **more)
    return ppo_trainer(config, models(architecture), "simple", Record(), ends)


def attentive():
    """A set-up whose policy depends on what it attends to, as a trained one does."""
    four = models()
    for name in ("policy", "reference"):
        for layer in four[name].transformer.h:
            for matrix in (layer.attn.c_attn.weight, layer.attn.c_proj.weight):
                torch.nn.init.normal_(matrix, std=0.5, generator=torch.Generator().manual_seed(0))
    return ppo_trainer(ppo_config("base"), four, "simple", Record())


def check(trainer, texts=None):
    return failed(check_ppo(trainer, prompts(), texts or Tokenizers(TOKENIZER, TOKENIZER, DATA), FLOAT32))


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "qwen2"])
@pytest.mark.parametrize("name", ["base", "cool"])
def test_a_sound_set_up_passes(architecture, name, one_rank):
    assert check(sound(architecture, name)) == set()


SECOND_PASS = "a second pass gives the same numbers"
PADDING = "logprobs do not depend on padding or neighbours"
SAMPLING = "responses are drawn from the scored distribution"
TEXT = "policy and reward model read the same text"
FROZEN = "reference and reward model are frozen"
REFERENCE = "KL(policy || reference) is 0"
VALUE = "the value model starts as the reward model"
END = "responses end at their first EOS"


def switch_dropout_on(module):
    for part in module.modules():
        if isinstance(part, torch.nn.Dropout):
            part.p = 0.1


def test_a_policy_with_dropout_is_caught(one_rank):
    trainer = sound()
    switch_dropout_on(trainer.models.policy.module)
    assert {SECOND_PASS, REFERENCE, PADDING} <= check(trainer)


def test_a_reward_model_in_train_mode_is_caught(one_rank):
    trainer = sound()
    trainer.models.rewards.reward_model.engine.module.train()
    assert check(trainer) == {FROZEN}
    switch_dropout_on(trainer.models.rewards.reward_model.engine.module)
    assert {FROZEN, SECOND_PASS} <= check(trainer)


def test_a_reference_that_learns_is_caught(one_rank):
    trainer = sound()
    trainer.models.reference.module.requires_grad_(True)
    assert check(trainer) == {FROZEN}


def test_a_reference_that_is_not_the_policy_is_caught(one_rank):
    trainer = sound()
    with torch.no_grad():
        trainer.models.reference.module.model.lm_head.weight[65] *= 1.01
    assert check(trainer) == {REFERENCE}


@pytest.mark.parametrize("part", ["backbone", "head"])
def test_a_value_model_that_is_not_the_reward_model_is_caught(part, one_rank):
    trainer = sound()
    model = trainer.models.value_model.module.model
    with torch.no_grad():
        (model.score.weight if part == "head" else model.transformer.wte.weight).mul_(1.01)
    assert check(trainer) == {VALUE}


def test_a_value_model_that_should_start_from_the_policy_is_compared_with_it(one_rank):
    trainer = sound(value_model=ValueModelConfig(init=ValueInit.policy))
    name = "the value model starts from the policy's backbone"
    assert name in check(trainer)
    own, theirs = trainer.models.value_model.module.model, trainer.models.policy.module.model
    own.transformer.load_state_dict(theirs.transformer.state_dict())
    assert check(trainer) == set()


def changed_rows(monkeypatch, change):
    """Change the sampler's batches as they are made."""
    of = embedded._DecodingRows.of

    def changed(*args):
        rows = of(*args)
        change(rows)
        return rows

    monkeypatch.setattr(embedded._DecodingRows, "of", staticmethod(changed))


def test_positions_that_count_padding_are_caught(one_rank, monkeypatch):
    def count_all(rows):
        rows.positions = torch.arange(rows.num_prompt).expand_as(rows.positions)

    changed_rows(monkeypatch, count_all)
    assert check(sound()) == {SAMPLING}


def test_attention_to_padding_is_caught(one_rank, monkeypatch):
    def see_all(rows):
        rows.mask = torch.ones_like(rows.mask)

    assert check(attentive()) == set()
    changed_rows(monkeypatch, see_all)
    assert check(attentive()) == {SAMPLING}


def test_prompts_padded_on_the_wrong_side_are_caught(one_rank):
    """transformers pads on the right by default; generation then continues after the padding."""
    trainer = sound()
    decode = trainer.sampler._decode

    def wrong(model, some, uniform):
        longest = max(map(len, some))
        return decode(model, [(*prompt, *[0] * (longest - len(prompt))) for prompt in some], uniform)

    trainer.sampler._decode = wrong
    assert SAMPLING in check(trainer)


def test_batches_padded_on_the_left_are_caught(one_rank, monkeypatch):
    """The models get no mask, so they read padding on the left as part of the text."""
    collate = forward.collate

    def left(sequences, pad_id, device):
        longest = max(map(len, sequences))
        filled = [replace(one, prompt_ids=(*[pad_id] * (longest - len(one)), *one.prompt_ids)) for one in sequences]
        return collate(filled, pad_id, device)

    monkeypatch.setattr(forward, "collate", left)
    assert PADDING in check(sound())


def test_an_update_at_another_temperature_is_caught(one_rank):
    """The check runs the update's own code, not a copy of it."""
    trainer = sound()
    objective = trainer.policy_objective

    def warmer(part, tokens):
        passes = trainer.passes
        passes.config = replace(passes.config, rollout=replace(passes.config.rollout, temperature=1.5))
        return objective(part, tokens)

    trainer.policy_objective = warmer
    assert "the ratio of the first minibatch is 1" in check(trainer)


def test_a_value_model_that_returns_nan_is_caught(one_rank):
    trainer = sound()
    with torch.no_grad():
        trainer.models.value_model.module.model.score.weight.fill_(torch.nan)
    assert {VALUE, SECOND_PASS} <= check(trainer)


def last_column(batch, per_token):
    return per_token[:, -1]


def test_a_score_read_in_the_last_column_is_caught_though_all_responses_are_of_one_length(one_rank, monkeypatch):
    trainer = sound(ends=EndTokens(frozenset({EOS}), 0))  # a random model hardly ever ends
    monkeypatch.setattr(TokenBatch, "at_last_token", last_column)
    assert check(trainer) == {"scores do not depend on padding or neighbours"}


def test_a_template_that_requires_a_system_prompt_passes(one_rank):
    strict = byte_tokenizer()
    strict.chat_template = (
        "{% if messages[0]['role'] != 'system' %}{{ raise_exception('no system') }}{% endif %}" + strict.chat_template
    )
    data = replace(DATA, system_prompt="Be kind.")
    renderer = Renderer(strict, data)
    chats = [[{"role": "user", "content": text}] for text in TEXTS]
    asked = [Prompt(chat[0]["content"], renderer.prompt_ids(chat), json.dumps(chat)) for chat in chats]
    checks = check_ppo(sound(), asked, Tokenizers(strict, strict, data), FLOAT32)
    assert {found.status for found in checks} == {"ok"}
    assert Renderer(strict, DATA).end_id == EOS


def test_top_k_sampling_is_caught(one_rank, monkeypatch):
    draw = embedded.draw

    def top_k(logits, *rest):
        kept = logits.topk(20).values[:, -1:]
        return draw(logits.masked_fill(logits < kept, -torch.inf), *rest)

    monkeypatch.setattr(embedded, "draw", top_k)
    assert check(sound()) == {SAMPLING}


def test_a_temperature_that_sampling_ignores_is_caught(one_rank, monkeypatch):
    draw = embedded.draw
    monkeypatch.setattr(embedded, "draw", lambda logits, numbers, _, top_p: draw(logits, numbers, 1.0, top_p))
    assert check(sound(name="cool")) == {SAMPLING}


def test_a_top_p_that_the_user_chose_is_a_warning(one_rank):
    config = ppo_config("base")
    trainer = sound(rollout=replace(config.rollout, top_p=0.5))
    checks = check_ppo(trainer, prompts(), Tokenizers(TOKENIZER, TOKENIZER, DATA), FLOAT32)
    assert [found.name for found in checks if found.status == "warn"] == [SAMPLING]
    assert failed(checks) == set()


def lower_case():
    other = byte_tokenizer()
    other.backend_tokenizer.normalizer = normalizers.Lowercase()
    return other


def other_template():
    other = byte_tokenizer()
    other.chat_template = "{% for m in messages %}{{ m['content'] }}|{% endfor %}"
    return other


@pytest.mark.parametrize("make", [lower_case, other_template])
def test_a_tokenizer_that_reads_another_text_is_caught(make, one_rank):
    assert check(sound(), Tokenizers(TOKENIZER, make(), DATA)) == {TEXT}


def test_a_sampler_that_continues_after_eos_is_caught(one_rank):
    class Uncut(EndTokens):
        def cut(self, response):
            return tuple(response)

    assert END in check(sound(ends=Uncut(frozenset(range(1, 259, 2)), 0)))


def test_a_template_with_another_end_of_turn_is_a_warning(one_rank):
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = tokenizer.chat_template.replace("<eos>", "<bos>")
    checks = check_ppo(sound(), prompts(), Tokenizers(tokenizer, tokenizer, DATA), FLOAT32)
    warned = [found.name for found in checks if found.status == "warn"]
    assert warned == ["the chat template's end of turn ends a response"]


def reward_trainer(rows=None):
    model = load_sequence_classifier(tiny_config("gpt2"), "model", TOKENIZER, 1, new_head=True)
    engine = SimpleTrain(TokenScorer(model), OPTIM, 3)
    return RewardTrainer(rm_config("pairs"), engine, RankingData(rows or rm_rows("pairs"), [], 0), Record(), Record())


def check_reward(trainer):
    return failed(check_rm(trainer, EOS, FLOAT32))


def test_a_sound_reward_model_passes(one_rank):
    assert check_reward(reward_trainer()) == set()


def test_a_reward_model_with_dropout_is_caught(one_rank):
    trainer = reward_trainer()
    switch_dropout_on(trainer.model.module)
    assert SECOND_PASS in check_reward(trainer)


def test_a_score_read_off_by_one_is_caught(one_rank, monkeypatch):
    """Read at the last column instead of the last real token."""
    monkeypatch.setattr(TokenBatch, "at_last_token", last_column)
    assert check_reward(reward_trainer()) == {"scores do not depend on padding or neighbours"}


def test_answers_without_eos_are_caught(one_rank):
    rows = [
        replace(row, answers=tuple(replace(one, response_ids=one.response_ids[:-1]) for one in row.answers))
        for row in rm_rows("pairs")
    ]
    assert check_reward(reward_trainer(rows)) == {"every answer ends with its end token"}


def test_a_failed_check_stops_the_run_unless_strict_is_off(one_rank, capsys):
    trainer = sound()
    trainer.models.reference.module.requires_grad_(True)
    report = Reporter(speaks=True)

    def make():
        return check_ppo(trainer, prompts(), Tokenizers(TOKENIZER, TOKENIZER, DATA), FLOAT32)

    with pytest.raises(InputError, match=r"1 of 12 checks failed: reference and reward model are frozen\. Fix"):
        report_checks(make, CheckConfig(), report)
    report_checks(make, CheckConfig(strict=False), report)
    shown = capsys.readouterr().out
    assert shown.count("FAIL") == 2
    assert shown.count("│ ok") == 22


def test_the_coarsest_type_sets_the_bounds():
    single, half = ModelConfig(dtype=DType.float32), ModelConfig(dtype=DType.bfloat16)
    assert bounds_of(single, single) is FLOAT32
    assert bounds_of(single, half) is BFLOAT16


def test_probes_are_spread_from_the_shortest_to_the_longest():
    assert spread("abcdef", [6, 5, 4, 3, 2, 1], 3) == ["f", "d", "a"]
    assert spread("abc", [3, 1, 2], 9) == ["b", "c", "a"]
    assert spread("abc", [3, 1, 2], 1) == ["b"]


@pytest.mark.parametrize(("times", "temperature", "factor"), [(0.001, 1.0, 1.0), (1.0, 1.0, 2.0), (1.0, 0.5, 4.0)])
def test_bounds_of_bfloat16_know_the_size_of_the_logits(times, temperature, factor, one_rank, monkeypatch):
    """Logits of 32, twice the size that the bounds assume; half the temperature doubles them again."""
    trainer = sound(rollout=replace(ppo_config("base").rollout, temperature=temperature))
    logits = torch.tensor([[32.0, -1.0], [-30.0, 2.0], [3.0, 34.0]]) * times
    monkeypatch.setattr(trainer.passes, "response_logits", lambda sequences: logits)
    found = _for_logits(BFLOAT16, trainer, [None, None])
    assert found.padded == pytest.approx(BFLOAT16.padded * factor)
    assert found.clipped == pytest.approx(BFLOAT16.clipped * factor**2)
    assert (found.same, found.score, found.drawn) == (BFLOAT16.same, BFLOAT16.score, BFLOAT16.drawn)
    assert _for_logits(FLOAT32, trainer, [None, None]) is FLOAT32
