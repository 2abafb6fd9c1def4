"""Models with tokenizers of their own: what they read, and that batches do not matter."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    PreTrainedTokenizerFast,
)

from rlhf_cli.config.errors import InputError
from rlhf_cli.config.reward_options import RewardSourceConfig
from rlhf_cli.config.schema import TrainPPOConfig
from rlhf_cli.config.sections import CheckpointConfig, DType, ModelConfig, PromptDataConfig, RunConfig
from rlhf_cli.data.conversation import Renderer
from rlhf_cli.models.byte_tokenizer import byte_tokenizer
from rlhf_cli.models.heads import TokenScorer
from rlhf_cli.models.load_models import is_encoder, load_sequence_classifier
from rlhf_cli.models.load_tokenizer import load_tokenizer
from rlhf_cli.rewards.classifier_source import ClassifierSource, DecoderClassifier
from rlhf_cli.rewards.source import Exchange
from rlhf_cli.run.reward_sources import load_classifiers
from tests.unit.models.tiny import tiny_config

CPU = torch.device("cpu")
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "why", "because", "it", "rains", "no"]
CHAT = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}"
    "{{ '\\n' }}{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
)


def exchange(prompt, response):
    return Exchange([{"role": "user", "content": prompt}], response)


EXCHANGES = [exchange("why", "because it rains"), exchange("why it", "no"), exchange("no", "it rains no")]


class Whole:
    """Stands in for an engine that shards nothing."""

    def __init__(self, module):
        self.module, self.held = module, []

    def __call__(self, *args, **kwargs):
        return self.module(*args, **kwargs)

    @contextmanager
    def gathered(self, hold):
        self.held.append(hold)
        yield self.module


def decoder(whole_turn=False, longest=None, batch_size=2):
    config = tiny_config("llama")
    tokenizer = load_tokenizer(config, "reward[0].model")
    tokenizer.chat_template = CHAT
    scorer = TokenScorer(load_sequence_classifier(config, "reward[0].model", tokenizer, 0, new_head=False))
    engine = Whole(scorer)
    renderer = Renderer(tokenizer, PromptDataConfig())
    read = DecoderClassifier(engine, renderer, whole_turn, longest, CPU)
    return ClassifierSource(read, batch_size, gather=True), scorer, renderer


def score_of(scorer, ids):
    with torch.no_grad():
        return float(scorer(torch.tensor([ids]))[0][0, -1])


def test_a_decoder_is_read_at_its_last_token_whatever_its_batch():
    own, scorer, renderer = decoder()
    wanted = [score_of(scorer, renderer.sequence(one.messages, one.response).ids) for one in EXCHANGES]
    assert own.score(EXCHANGES) == pytest.approx(wanted, abs=1e-5)
    assert own.score(EXCHANGES[::-1]) == pytest.approx(wanted[::-1], abs=1e-5)
    assert own.engine.held == [True, True]


def test_a_conversation_longer_than_the_model_loses_its_beginning():
    own, scorer, renderer = decoder(longest=8)
    ids = renderer.sequence(EXCHANGES[0].messages, EXCHANGES[0].response).ids
    assert len(ids) > 8
    assert own.score(EXCHANGES[:1]) == pytest.approx([score_of(scorer, ids[-8:])], abs=1e-5)


def test_a_whole_turn_has_what_the_template_writes_after_an_answer():
    own, scorer, renderer = decoder(whole_turn=True)
    ids = renderer.conversation_ids(EXCHANGES[0].messages, EXCHANGES[0].response)
    short = renderer.sequence(EXCHANGES[0].messages, EXCHANGES[0].response).ids
    assert ids[:-1] == short  # and then the end of the line
    assert own.score(EXCHANGES[:1]) == pytest.approx([score_of(scorer, ids)], abs=1e-5)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """A folder with a small BERT of one label, and a tokenizer of words."""
    folder = tmp_path_factory.mktemp("encoder")
    words = Tokenizer(WordLevel({word: place for place, word in enumerate(WORDS)}, unk_token="[UNK]"))
    words.pre_tokenizer = Whitespace()
    words.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    inputs = ["input_ids", "token_type_ids", "attention_mask"]
    PreTrainedTokenizerFast(tokenizer_object=words, model_input_names=inputs, **special).save_pretrained(folder)
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    config = BertConfig(vocab_size=len(WORDS), max_position_embeddings=10, num_labels=1, pad_token_id=0, **shape)
    BertForSequenceClassification(config).save_pretrained(folder)
    return folder


def run_with(*sources):
    run = RunConfig(name="x")
    return TrainPPOConfig(run=run, reward=list(sources), checkpoint=CheckpointConfig(every_steps=0))


def of_encoder(encoder, **more):
    return RewardSourceConfig(name="judge", model={"path": str(encoder), "dtype": "float32"}, **more)


def test_an_encoder_reads_prompt_and_response_as_a_pair(encoder, one_rank):
    """[CLS] why [SEP] because it rains [SEP], the second part with token type 1."""
    own = load_classifiers(run_with(of_encoder(encoder, batch_size=2)))["judge"]
    plain = AutoModelForSequenceClassification.from_pretrained(encoder).eval()
    rows = [
        ([2, 4, 3, 5, 6, 7, 3], [0, 0, 0, 1, 1, 1, 1]),
        ([2, 4, 6, 3, 8, 3], [0, 0, 0, 0, 1, 1]),
        ([2, 8, 3, 6, 7, 8, 3], [0, 0, 0, 1, 1, 1, 1]),
    ]
    with torch.no_grad():
        wanted = [
            float(plain(input_ids=torch.tensor([ids]), token_type_ids=torch.tensor([types])).logits)
            for ids, types in rows
        ]
    assert own.score(EXCHANGES) == pytest.approx(wanted, abs=1e-5)


def test_a_pair_longer_than_the_encoder_is_cut_where_it_is_longest(encoder, one_rank):
    own = load_classifiers(run_with(of_encoder(encoder)))["judge"]
    long = exchange("why " * 20, "it rains")
    cut = exchange("why " * 5, "it rains")  # [CLS] and two [SEP] make ten
    assert own.score([long]) == pytest.approx(own.score([cut]), abs=1e-6)


def test_an_encoder_refuses_whole_turn(encoder, one_rank):
    with pytest.raises(InputError, match=r"reward\[0\]\.model must be a decoder with whole_turn, .* got an encoder"):
        load_classifiers(run_with(of_encoder(encoder, whole_turn=True)))


def test_an_encoder_of_several_labels_is_refused(encoder, tmp_path, one_rank):
    model = BertForSequenceClassification(BertConfig.from_pretrained(encoder, num_labels=3))
    model.save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"a reward model must have one label, got 3 in config\.json"):
        load_classifiers(run_with(of_encoder(tmp_path)))


def test_decoders_and_encoders_are_told_apart(encoder, tmp_path):
    assert is_encoder(ModelConfig(path=str(encoder)), "k")
    config = tiny_config("qwen2")
    model = load_sequence_classifier(config, "k", byte_tokenizer(), 0, new_head=False)
    model.save_pretrained(tmp_path)
    assert not is_encoder(ModelConfig(path=str(tmp_path), dtype=DType.float32), "k")
    assert not is_encoder(config, "k")
