"""Paths are checked before anything slow is imported."""

import pytest

from rlhf_cli.config.compose import load
from rlhf_cli.config.errors import InputError
from rlhf_cli.config.paths import check_paths


@pytest.mark.parametrize("option", ["model.chat_template", "reward_model.chat_template"])
def test_a_chat_template_is_an_existing_file_or_the_default(option, tmp_path):
    path = tmp_path / "mine.jinja"
    with pytest.raises(InputError) as caught:
        check_paths(load("train-ppo", ["conf=tiny", "reward_model.path=null", f"{option}={path}"]))
    assert str(caught.value).startswith(f"{option}={path}: no such file")
    with pytest.raises(InputError, match=r"=chatml: no such file, wanted a Jinja file, or default$"):
        check_paths(load("train-ppo", ["conf=tiny", f"{option}=chatml"]))
    path.write_text("{{ messages }}")
    for good in (path, "default", "null"):
        assert check_paths(load("train-ppo", ["conf=tiny", f"{option}={good}"])) is None


def test_an_empty_chat_template_is_refused():
    with pytest.raises(InputError, match=r"model.chat_template must be a Jinja file, default or null, got ''"):
        load("train-rm", ["conf=tiny", "model.chat_template=''"])
