import pytest

from rlhf_cli.config.errors import InputError
from rlhf_cli.config.objectives import PretrainConfig
from rlhf_cli.data.pretrain_texts import load_texts
from rlhf_cli.models.byte_tokenizer import byte_tokenizer

TOKENIZER = byte_tokenizer()


def load(path, max_tokens):
    return load_texts(PretrainConfig(path=str(path), max_tokens=max_tokens), TOKENIZER)


def test_a_text_is_cut_into_blocks_and_nothing_is_lost(tmp_path):
    (tmp_path / "a.txt").write_text("abcdefg", "utf-8")
    blocks = load(tmp_path / "a.txt", 3)
    assert [TOKENIZER.decode(block.prompt_ids + block.response_ids) for block in blocks] == ["abc", "def"]
    assert all(len(block.prompt_ids) == 1 for block in blocks)  # a lone last token has nothing to predict


def test_a_file_that_is_not_text_is_refused(tmp_path):
    (tmp_path / "a.bin").write_bytes(b"\xff\xfe\xff")
    (tmp_path / "empty.txt").write_text("")
    with pytest.raises(InputError, match="not a readable UTF-8 text file"):
        load(tmp_path / "a.bin", 3)
    with pytest.raises(InputError, match="fewer than two tokens"):
        load(tmp_path / "empty.txt", 3)
