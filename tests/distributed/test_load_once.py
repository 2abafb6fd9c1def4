"""On several ranks one loads the rows and the others get what it loaded."""

import sys

from tests.conftest import REPOSITORY, run_on_ranks

WORKER = """
import json, sys
from rlhf_cli.config.errors import InputError
from rlhf_cli.config.sections import PreferenceDataConfig
from rlhf_cli.data.conversation import Renderer
from rlhf_cli.data.preferences import load_preferences
from rlhf_cli.engine import distributed
from rlhf_cli.models.byte_tokenizer import byte_tokenizer
from rlhf_cli.run.build import load_once

distributed.initialise(100)
loads = []

def load(path):
    loads.append(path)
    config = PreferenceDataConfig(train=path)
    return load_preferences(config, Renderer(byte_tokenizer(), config), 0)

sides = load_once(lambda: load(sys.argv[1]))
assert len(loads) == (distributed.rank() == 0), loads
assert sides == load(sys.argv[1])
try:
    load_once(lambda: load("./nowhere.jsonl"))
except InputError as error:
    print(error)
distributed.barrier()
distributed.shut_down()
"""


def test_the_first_rank_loads_and_its_error_is_that_of_all(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("".join(f'{{"prompt": "q{i}", "chosen": "a", "rejected": "b{i}"}}\n' for i in range(20)))
    done = run_on_ranks([sys.executable, "-c", WORKER, str(path)], 2, REPOSITORY, timeout=100)
    for process in done:
        assert process.returncode == 0, process.stderr[-3000:]
        assert process.stdout == "data.train=./nowhere.jsonl: no such file or folder\n"
