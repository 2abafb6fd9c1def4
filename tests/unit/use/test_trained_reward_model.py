import pytest
import torch
from transformers import AutoModelForSequenceClassification, BertConfig, BertForSequenceClassification

from rlhf_cli.config.errors import InputError
from rlhf_cli.config.sections import DType
from rlhf_cli.models.byte_tokenizer import byte_tokenizer
from rlhf_cli.rewards.source import Exchange
from rlhf_cli.use.trained_models import Role, find_model
from rlhf_cli.use.trained_reward_model import TrainedRewardModel, find_device
from tests.unit.use.conftest import SYSTEM

EXCHANGES = [
    Exchange([{"role": "user", "content": text}], answer)
    for text, answer in [("Hello?", "Hi."), ("Is it far from here to the station?", "No, a short walk."), ("A", "")]
]


def load(path, dtype=None, system_prompt=None, batch_size=16):
    model = find_model(str(path), Role.reward_model).with_options(system_prompt, dtype, trust_remote_code=False)
    return TrainedRewardModel(model, find_device("cpu"), batch_size)


def plain_score(run, tokenizer, exchange):
    """What transformers alone says of one text, without padding, of the text that the byte
    template makes.
    """
    text = f"<bos>system\n{SYSTEM}<eos><bos>user\n{exchange.prompt}<eos><bos>assistant\n"
    ids = [*tokenizer(text)["input_ids"], *tokenizer(exchange.response)["input_ids"], tokenizer.eos_token_id]
    model = AutoModelForSequenceClassification.from_pretrained(run / "final").eval()
    with torch.no_grad():
        return model(torch.tensor([ids])).logits.item()


def test_scores_are_those_of_transformers_on_the_text_of_training(rm_run):
    scorer = load(rm_run)
    expected = [plain_score(rm_run, scorer.classifier.renderer.tokenizer, exchange) for exchange in EXCHANGES]
    assert scorer.score(EXCHANGES) == pytest.approx(expected, abs=1e-5)
    assert len({round(score, 4) for score in expected}) == 3


def test_batch_and_order_do_not_change_scores(rm_run):
    scorer = load(rm_run, batch_size=2)
    together = scorer.score(EXCHANGES)
    alone = [scorer.score([exchange])[0] for exchange in EXCHANGES]
    assert together == pytest.approx(alone, abs=1e-5)
    assert scorer.score(EXCHANGES[::-1]) == pytest.approx(alone[::-1], abs=1e-5)
    assert scorer.score([]) == []
    scorer.close()


def test_the_system_prompt_of_the_run_counts_and_can_be_changed(rm_run):
    assert load(rm_run).score(EXCHANGES) != pytest.approx(load(rm_run, system_prompt="").score(EXCHANGES), abs=1e-5)


def test_an_encoder_reads_prompt_and_response_as_a_pair(tmp_path):
    tokenizer = byte_tokenizer()
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = BertConfig(vocab_size=len(tokenizer), num_labels=1, max_position_embeddings=64, pad_token_id=256, **shape)
    torch.manual_seed(0)
    model = BertForSequenceClassification(config).eval()
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    expected = []
    for exchange in EXCHANGES:
        inputs = tokenizer(exchange.prompt, exchange.response, return_tensors="pt")
        with torch.no_grad():
            expected.append(model(**inputs).logits.item())
    scorer = load(tmp_path, DType.float32)
    assert scorer.score(EXCHANGES) == pytest.approx(expected, abs=1e-5)
    with pytest.raises(InputError, match="has 64 positions"):
        scorer.score([Exchange([{"role": "user", "content": "x" * 60}], "abcdef")])


def test_a_text_longer_than_the_model_is_refused(rm_run):
    scorer = load(rm_run)
    with pytest.raises(InputError, match="has 512 positions"):
        scorer.score([Exchange([{"role": "user", "content": "x" * 600}], "y")])


def test_other_models_and_devices_are_refused(ppo_run):
    with pytest.raises(InputError, match=r"reward_model.path=.*: 1 tensors missing: score.weight"):
        load(ppo_run.parent / "base")
    with pytest.raises(InputError, match="device nowhere"):
        find_device("nowhere")


@pytest.mark.parametrize("name", ["meta", "cpu:7", "xla", "tpu", "", "cuda:x"])
def test_an_unusable_device_is_refused_in_one_line(name):
    with pytest.raises(InputError, match=f"^--device {name}: [^\n]+$"):
        find_device(name)
