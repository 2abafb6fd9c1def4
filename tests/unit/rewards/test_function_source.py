"""Python functions as sources: how they are found, what they are called with, how they fail."""

import sys
import threading
import time

import numpy as np
import pytest
import torch

from rlhf_cli.config.errors import InputError, RewardError
from rlhf_cli.config.reward_options import RewardSourceConfig
from rlhf_cli.rewards.function_source import FunctionSource, load_function
from rlhf_cli.rewards.source import Exchange


def exchange(response, prompt="Hello?", **columns):
    return Exchange([{"role": "system", "content": "Be kind."}, {"role": "user", "content": prompt}], response, columns)


@pytest.fixture
def source(tmp_path, monkeypatch):
    """Make a source of the function `f` in a file of this text."""
    monkeypatch.chdir(tmp_path)
    path_before, modules_before = list(sys.path), set(sys.modules)
    made = []

    def make(code, **options):
        (tmp_path / "mine.py").write_text(code)
        config = RewardSourceConfig(name="mine", function="mine.py:f", **options)
        config.check("reward[0]")
        made.append(FunctionSource(config, "reward[0]"))
        return made[-1]

    yield make
    for each in made:
        each.close()
    sys.path[:] = path_before
    for name in set(sys.modules) - modules_before:
        if name.partition("_")[0] in ("mine", "other", "broken"):
            del sys.modules[name]


def mine():
    """The module that the source's file became."""
    return next(module for name, module in sys.modules.items() if name.startswith("mine_"))


@pytest.fixture
def folder(source, tmp_path):
    """The current folder, whose modules are forgotten after the test."""
    return tmp_path


def test_a_function_of_a_file_gets_prompts_and_responses_in_batches(source):
    code = (
        "calls = []\n"
        "def f(prompts, responses):\n    calls.append((prompts, responses))\n    return [len(r) for r in responses]"
    )
    found = source(code, batch_size=2)
    assert found.score([exchange("a", "P1"), exchange("bb", "P2"), exchange("ccc", "P3")]) == [1.0, 2.0, 3.0]
    module = mine()
    assert module.calls == [(["P1", "P2"], ["a", "bb"]), (["P3"], ["ccc"])]


def test_no_exchanges_have_no_scores(source):
    assert source("def f(responses): raise RuntimeError").score([]) == []


def test_a_function_of_a_module_in_the_current_folder(folder):
    (folder / "other.py").write_text("def f(responses): return [1.5 for _ in responses]")
    assert load_function("other:f", "key")(responses=["a"]) == [1.5]


def test_a_file_is_imported_once_and_can_import_its_neighbours(folder):
    (folder / "sub").mkdir()
    (folder / "sub/other_beside.py").write_text("VALUE = 3")
    (folder / "sub/mine.py").write_text(
        "import other_beside\nloaded = []\nloaded.append(1)\ndef f(): return loaded, other_beside.VALUE"
    )
    first, again = load_function("sub/mine.py:f", "key"), load_function(str(folder / "sub/mine.py:f"), "key")
    assert first is again
    assert first() == ([1], 3)


def test_files_of_the_same_name_are_two_modules(folder):
    for name in ("one", "two"):
        (folder / name).mkdir()
        (folder / name / "mine.py").write_text(f"def f(): return '{name}'")
    assert [load_function(f"{name}/mine.py:f", "key")() for name in ("one", "two")] == ["one", "two"]


@pytest.mark.parametrize(
    ("spec", "code", "message"),
    [
        ("missing.py:f", "", r"^key: no file /.*/missing\.py$"),
        ("no_such_module:f", "", "^key: no module 'no_such_module', wanted an installed one or one in /"),
        ("json.nothing:f", "", "^key: no module 'json.nothing'"),
        ("broken.py:g", "import os\ndef f(): pass\ndef h(): pass", r"^key: broken\.py has no 'g'; .* are: f, h$"),
        ("broken.py:f", "f = 3", r"^key must be a function, got broken\.py:f, which is of type int$"),
        (
            "broken.py:f",
            "\n\nimport nowhere",
            r"^key: cannot import broken\.py: Module.*'nowhere' \(/.*/broken\.py:3\)$",
        ),
        ("broken:f", "\n\nimport nowhere", r"^key: cannot import broken: Module.*'nowhere' \(/.*/broken\.py:3\)$"),
        ("broken.py:f", "x = 1\ndef f(:", r"cannot import broken\.py: SyntaxError: .* \(/.*/broken\.py:2\)$"),
        ("broken.py:f", "import sys\nsys.exit('no')", r"broken\.py: SystemExit: no \(/.*/broken\.py:2\)$"),
        ("broken.py:f", "import json\njson.loads('{')", r"JSONDecodeError: .* \(/.*/broken\.py:2\)$"),
    ],
)
def test_what_cannot_be_loaded_is_reported_in_one_line(folder, spec, code, message):
    (folder / "broken.py").write_text(code)
    with pytest.raises(InputError, match=message) as caught:
        load_function(spec, "key")
    assert "\n" not in str(caught.value)


def test_a_file_that_failed_is_read_again(folder):
    (folder / "broken.py").write_text("1 / 0")
    with pytest.raises(InputError, match="ZeroDivisionError"):
        load_function("broken.py:f", "key")
    (folder / "broken.py").write_text("def f(responses): return 'mended'")
    assert load_function("broken.py:f", "key")(["a"]) == "mended"


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("def f(): return []", "mine.py:f takes no keyword; it is called with prompts="),
        ("def f(responses, /): return []", "takes 'responses' by position only"),
    ],
)
def test_a_function_that_cannot_be_called_so_is_refused_at_once(source, code, message):
    with pytest.raises(InputError, match=rf"^reward\[0\]\.function: .*{message}"):
        source(code)


SAYS_WHAT_IT_GOT = "got = {}\ndef f(%s):\n    got.update({k: v for k, v in locals().items()})\n    return [0] * 2"


def got(code, source, exchanges):
    source(code).score(exchanges)
    return mine().got


def test_it_gets_the_columns_that_it_names_and_no_others(source):
    rows = [exchange("a", answer=4, topic="x"), exchange("b", topic="y")]
    assert got(SAYS_WHAT_IT_GOT % "responses, answer", source, rows) == {"responses": ["a", "b"], "answer": [4, None]}


def test_it_gets_all_columns_by_double_star(source):
    rows = [exchange("a", "P", answer=4), exchange("b", "Q", topic="y")]
    assert got(SAYS_WHAT_IT_GOT % "**rest", source, rows) == {
        "rest": {"prompts": ["P", "Q"], "responses": ["a", "b"], "answer": [4, None], "topic": [None, "y"]}
    }


def test_it_gets_conversations_only_by_name_and_a_column_takes_no_name_of_ours(source):
    rows = [exchange("a", "P", messages="column", responses="column"), exchange("b", "Q")]
    assert got(SAYS_WHAT_IT_GOT % "responses, messages", source, rows) == {
        "responses": ["a", "b"],
        "messages": [
            [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "P"}],
            [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Q"}],
        ],
    }


def test_a_named_column_that_no_row_has_is_an_error_but_not_with_a_default(source):
    with pytest.raises(RewardError, match=r"it takes 'answr', a column that no prompt has; columns: answer, topic$"):
        source("def f(responses, answr): return [0]").score([exchange("a", answer=1, topic=2)])


def test_a_column_with_a_default_may_be_missing(source):
    assert source("def f(responses, answer=(7,)): return answer").score([exchange("a")]) == [7.0]


def test_messages_are_copies(source):
    row = exchange("a", "P")
    source(
        "def f(messages):\n    messages[0][0]['content'] = 'changed'\n    messages[0].clear()\n    return [0]"
    ).score([row])
    assert row.messages[0] == {"role": "system", "content": "Be kind."}
    assert row.prompt == "P"


@pytest.mark.parametrize(
    ("returned", "scores"),
    [
        ("[True, 2]", [1.0, 2.0]),
        ("(x for x in [0.5, 1])", [0.5, 1.0]),
        ("map(float, '12')", [1.0, 2.0]),
        ("np.array([1.5, -2], dtype=np.float16)", [1.5, -2.0]),
        ("[np.float32(0.25), np.int64(3)]", [0.25, 3.0]),
        ("torch.tensor([[1.0], [2.0]], requires_grad=True)", [1.0, 2.0]),
        ("[torch.tensor(1.0), torch.tensor([2])]", [1.0, 2.0]),
    ],
)
def test_numbers_of_all_kinds(source, returned, scores):
    code = f"import numpy as np\nimport torch\ndef f(responses): return {returned}"
    assert source(code).score([exchange("a"), exchange("b")]) == scores


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ("None", "wanted a list of 2 numbers, got NoneType"),
        ("3.0", "wanted a list of 2 numbers, got float"),
        ("[1.0]", "wanted 2 numbers, one per response, got 1"),
        ("[1.0, float('nan')]", "wanted a finite number, got nan, for the response 'b'"),
        ("[float('inf'), 0]", "wanted a finite number, got inf, for the response 'a'"),
        ("[1.0, None]", "got None, for the response 'b'"),
        ("['1.0', 2]", "got '1.0', for the response 'a'"),
        ("[1.0, torch.zeros(2)]", r"got tensor\(\[0., 0.\]\), for the response 'b'"),
        ("{0: 1.0, 1: 2.0}", "wanted a list of 2 numbers, got dict"),
        ("{1.0, 2.0}", "wanted a list of 2 numbers, got set"),
    ],
)
def test_an_invalid_score_is_an_error_that_names_the_response(source, returned, message):
    with pytest.raises(RewardError, match=rf"^reward mine \(mine\.py:f\): .*{message}"):
        source(f"import torch\ndef f(responses): return {returned}").score([exchange("a"), exchange("b")])


def test_an_async_function_keeps_its_event_loop_between_calls(source):
    code = (
        "import asyncio\nloops = set()\n"
        "async def one(text):\n    await asyncio.sleep(0)\n"
        "    loops.add(id(asyncio.get_running_loop()))\n    return len(text)\n"
        "async def f(responses):\n    return await asyncio.gather(*map(one, responses))"
    )
    found = source(code, batch_size=1)
    assert found.score([exchange("a"), exchange("bb")]) == [1.0, 2.0]
    assert len(mine().loops) == 1


def test_a_plain_function_may_return_a_coroutine_or_run_a_loop_of_its_own(source):
    code = (
        "import asyncio\nasync def g(responses): return [len(r) for r in responses]\n"
        "def f(responses, own=(None,)): return asyncio.run(g(responses)) if own[0] else g(responses)"
    )
    found = source(code)
    assert [found.score([exchange("abc", own=own)]) for own in (False, True, False)] == [[3.0], [3.0], [3.0]]


FAILS_AT_B = """\
def f(responses):
    for response in responses:
        if response == "b":
            raise ValueError("bad\\nthing")
    return [0] * len(responses)
"""


def test_an_exception_names_the_sample_the_exception_and_the_line(source):
    with pytest.raises(RewardError) as caught:
        source(FAILS_AT_B).score([exchange("a"), exchange("b", "Q"), exchange("c")])
    said = str(caught.value)
    assert said.startswith("reward mine (mine.py:f): ValueError: bad thing (/")
    assert said.endswith("/mine.py:4), for the response 'b' to 'Q'")


def test_an_exception_of_an_async_function_has_its_line_too(source):
    with pytest.raises(
        RewardError, match=r"ZeroDivisionError: division by zero \(/.*/mine\.py:2\), for the response 'a'"
    ):
        source("async def f(responses):\n    return [1 / 0]").score([exchange("a")])


def test_an_exception_of_an_iterator_has_its_line_too(source):
    with pytest.raises(
        RewardError, match=r"ZeroDivisionError: division by zero \(/.*/mine\.py:2\), for the response 'a'"
    ):
        source("def f(responses):\n    return (1 / 0 for _ in responses)").score([exchange("a")])


def test_an_exception_inside_a_library_shows_the_line_of_the_user_s_file(source):
    with pytest.raises(RewardError, match=r"JSONDecodeError: .*/mine\.py:3\)"):
        source("import json\ndef f(responses):\n    return [json.loads(r) for r in responses]").score([exchange("{")])


def test_a_sample_is_scored_at_most_once_more(source):
    code = (
        "asked = []\ndef f(responses):\n    asked.append(responses)\n"
        "    if len(responses) > 1 or responses == ['b']: raise KeyError(1)\n    return [0]"
    )
    with pytest.raises(RewardError, match="for the response 'b'"):
        source(code).score([exchange("a"), exchange("b"), exchange("c")])
    module = mine()
    assert module.asked == [["a", "b", "c"], ["a"], ["b"]]


def test_a_batch_that_fails_only_together_is_named_by_its_first(source):
    code = "def f(responses):\n    if len(responses) > 1: raise KeyError('together')\n    return [0]"
    with pytest.raises(RewardError, match=r"KeyError: 'together' .*for a batch of 2, first the response 'a'"):
        source(code).score([exchange("a"), exchange("b")])


@pytest.mark.parametrize(
    "raised", ["SystemExit(3)", "asyncio.CancelledError()", "TimeoutError('theirs')", "MemoryError()"]
)
def test_no_exception_gets_past_it(source, raised):
    with pytest.raises(RewardError, match=raised.partition("(")[0].rpartition(".")[2]):
        source(f"import asyncio\ndef f(responses): raise {raised}").score([exchange("a")])


def test_a_plain_function_that_hangs_is_abandoned_and_the_next_call_works(source):
    code = (
        "import threading\ngo = threading.Event()\n"
        "def f(responses):\n    if responses == ['a']: go.wait(20)\n    return [1]"
    )
    found = source(code, timeout_s=1.5)
    started = time.monotonic()
    with pytest.raises(RewardError, match=r"no result within 1\.5 s, for the response 'a'"):
        found.score([exchange("a")])
    assert time.monotonic() - started < 5
    assert found.score([exchange("b")]) == [1.0]
    mine().go.set()


def test_an_async_function_that_hangs_is_cancelled(source):
    code = (
        "import asyncio, threading\nended = threading.Event()\n"
        "async def f(responses):\n    try:\n        await asyncio.sleep(20)\n    finally:\n        ended.set()\n"
    )
    with pytest.raises(RewardError, match=r"no result within 0\.1 s"):
        source(code, timeout_s=0.1).score([exchange("a")])
    assert mine().ended.wait(5)


def test_a_thread_ends_with_its_source(source):
    def threads():
        return [each for each in threading.enumerate() if each.name.startswith("reward mine")]

    found = source("def f(responses): return [0]")
    found.score([exchange("a")])
    (thread,) = threads()
    found.close()
    found.close()
    thread.join(5)
    assert not threads()


def test_no_gradient_goes_through_a_score(source):
    found = source("import torch\ndef f(responses): return [torch.is_grad_enabled()] * len(responses)")
    assert torch.is_grad_enabled()
    assert found.score([exchange("a")]) == [0.0]
    assert torch.is_grad_enabled()


def test_scores_are_floats_of_python(source):
    scores = source("import torch\ndef f(responses): return torch.ones(len(responses)) * 0.1").score([exchange("a")])
    assert scores == [float(np.float32(0.1))]
    assert type(scores[0]) is float


def test_every_batch_counts_as_progress(source):
    code = "from rlhf_cli.system.watchdog import PROGRESS as P\ndef f(responses): return [P.ticked_at] * len(responses)"
    first, second = source(code, batch_size=1).score([exchange("a"), exchange("b")])
    assert second > first
