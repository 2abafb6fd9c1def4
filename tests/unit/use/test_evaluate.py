import json

import pytest
import torch
from transformers import AutoModelForCausalLM

from rlhf_cli.cli import main
from rlhf_cli.rewards.function_source import load_function
from rlhf_cli.use.cli_options import Loading
from rlhf_cli.use.evaluate import compare, prompt_means
from rlhf_cli.use.trained_models import Role, find_model
from rlhf_cli.use.trained_policy import TrainedPolicy
from tests.unit.use.conftest import SYSTEM

PROMPTS = [{"prompt": "Hello?"}, {"prompt": "Is it far from here to the station?"}, {"prompt": "Why?"}]
LENGTHS = "def length(responses): return [len(one) for one in responses]\n"


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in PROMPTS))
    (tmp_path / "rewards.py").write_text(LENGTHS)
    return tmp_path


def cells(out):
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in out.splitlines() if line.startswith("│")]
    return {row[0]: row[1:] for row in rows}


def records(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_responses_to_one_prompt_count_as_one():
    """Two prompts, two answers each. Differences 1, 0, -3, -1: by prompt 1/2 and -2, in the mean
    -3/4.

    Wins 1, 1/2, 0, 0: by prompt 3/4 and 0, so 3/8 of 2. Wilson 1927, z^2 = 3.8415: the middle is
    (0.375 + 0.9604) / 2.9207 = 0.4572, the half 1.96 / 2.9207 * sqrt(0.1172 + 0.2401) = 0.4011. KL
    by prompt: 2 and 3.
    """
    found = compare([1, 2, 3, 4], [0, 2, 6, 5], [1.0, 3.0, 2.0, 4.0], num=2)
    assert (found.score, found.reference_score) == (2.5, 3.25)
    assert (found.difference.mean, found.difference.low, found.difference.high) == (-0.75, -2, 0.5)
    assert found.win_rate.mean == 0.375
    assert (found.win_rate.low, found.win_rate.high) == pytest.approx((0.0561, 0.8583), abs=1e-4)
    assert (found.kl.mean, found.kl.low, found.kl.high) == (2.5, 2, 3)
    assert compare([1], [0], None, num=1).kl is None
    assert prompt_means([1, 2, 6, 3, 4, 5], 3) == [3, 4]


def test_a_policy_is_compared_with_what_its_run_started_from(ppo_run, rm_run, here, capsys):
    words = ["--prompts", "prompts.jsonl", "--reward", str(rm_run), "--num", "2", "--out", "out.jsonl"]
    assert main(["evaluate", str(ppo_run), *words]) == 0
    shown = cells(capsys.readouterr().out)
    found = records(here / "out.jsonl")
    assert [one["sample"] for one in found] == [0, 1, 0, 1, 0, 1]
    difference = sum(one["policy"]["score"] - one["reference"]["score"] for one in found) / 6
    assert shown["mean score"][2].startswith(f"{difference:+.3f} (")
    assert shown["KL to the reference (nats/response)"][0] == f"{sum(one['policy']['kl'] for one in found) / 6:.3f}"
    length = sum(one["reference"]["num_tokens"] for one in found) / 6
    assert shown["tokens per response"][1] == f"{length:.1f}"
    ended = sum(one["policy"]["ended"] for one in found) / 6
    assert shown["responses with an end token"][0] == f"{ended:.1%}"


def test_the_kl_of_a_response_is_that_of_transformers(ppo_run, here):
    """On the text of the run: its system prompt, the byte template; logits are divided by the
    temperature, 0.7.
    """
    words = ["--prompts", "prompts.jsonl", "--reward", "rewards.py:length", "--limit", "1", "--out", "out.jsonl"]
    assert main(["evaluate", str(ppo_run), *words, "--max-new-tokens", "6"]) == 0
    main(["generate", str(ppo_run), "--prompt", "Hello?", "--max-new-tokens", "6", "--out", "tokens.jsonl"])
    kl = records(here / "out.jsonl")[0]["policy"]["kl"]
    policy = TrainedPolicy(find_model(str(ppo_run), Role.policy), Loading("cpu", None, None, False))
    prompt = policy.prompt_ids([{"role": "user", "content": "Hello?"}])
    response = list(policy.stream(prompt, "0/0/0"))[:6]
    total = 0.0
    for folder, sign in ((ppo_run / "final/policy", 1), (ppo_run.parent / "base", -1)):
        with torch.no_grad():
            logits = AutoModelForCausalLM.from_pretrained(folder)(torch.tensor([[*prompt, *response]])).logits[0] / 0.7
        for place, token in enumerate(response, len(prompt) - 1):
            total += sign * torch.log_softmax(logits[place], dim=0)[token].item()
    assert kl == pytest.approx(total, abs=1e-4)


def test_a_policy_against_itself_differs_in_nothing(ppo_run, here, capsys):
    same = str(ppo_run / "final/policy")
    words = ["--against", same, "--prompts", "prompts.jsonl", "--reward", "rewards.py:length"]
    assert main(["evaluate", str(ppo_run), *words]) == 0
    shown = cells(capsys.readouterr().out)
    assert shown["mean score"][2] == "+0.000 (+0.000 to +0.000)"
    assert shown["win rate"][0] == "50.0%"
    assert shown["KL to the reference (nats/response)"][0] == "0.000"


def test_greedy_responses_have_no_kl(ppo_run, here, capsys):
    words = ["--prompts", "prompts.jsonl", "--reward", "rewards.py:length", "--greedy", "--out", "out.jsonl"]
    assert main(["evaluate", str(ppo_run), *words]) == 0
    assert cells(capsys.readouterr().out)["KL to the reference (nats/response)"] == [
        "-",
        "",
        "not estimated from greedy responses",
    ]
    assert "kl" not in records(here / "out.jsonl")[0]["policy"]


def test_top_p_is_reported_to_bias_the_kl(ppo_run, here, capsys):
    words = ["--prompts", "prompts.jsonl", "--reward", "rewards.py:length", "--top-p", "0.5"]
    assert main(["evaluate", str(ppo_run), *words]) == 0
    assert "biased: logprobs" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["{base}"], "comes from no run; give its reference with --against MODEL"),
        (["{run}", "--against", "none/at/all"], "--against=none/at/all: no such"),
        (["{run}", "--reward", "none/at/all"], "--reward=none/at/all: no such"),
        (["{rm}", "--against", "{base}"], "this run trained a reward model, wanted a policy"),
        (["{run}", "--reward", "r.py:f"], "no file"),
        (["{run}", "--num", "2", "--greedy"], "repeats the same response"),
    ],
)
def test_wrong_input_is_one_line_and_exit_code_2(words, message, ppo_run, rm_run, here, capsys):
    places = {"run": ppo_run, "rm": rm_run, "base": ppo_run.parent / "base"}
    more = [] if "--reward" in words else ["--reward", "rewards.py:length"]
    words = ["evaluate", *(word.format(**places) for word in words), *more, "--prompts", "prompts.jsonl"]
    assert main(words) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1


def test_a_reward_that_fails_is_refused_before_generation(ppo_run, here, capsys, monkeypatch):
    monkeypatch.setattr(TrainedPolicy, "generate", lambda *_: pytest.fail("drawn"))
    (here / "rewards.py").write_text("def exact(responses, answer): return [0.0 for _ in responses]\n")
    assert main(["evaluate", str(ppo_run), "--prompts", "prompts.jsonl", "--reward", "rewards.py:exact"]) == 2
    assert "it takes 'answer', a column that no prompt has" in capsys.readouterr().err


def test_a_reward_is_probed_with_the_system_prompt_and_the_columns(ppo_run, here):
    (here / "prompts.jsonl").write_text('{"prompt": "Hello?", "answer": "yes"}\n')
    (here / "rewards.py").write_text("""seen = []
def look(messages, responses, answer):
    seen.append((messages, responses, answer))
    return [0.0 for _ in responses]
""")
    spec = "rewards.py:look"
    words = ["--prompts", "prompts.jsonl", "--reward", spec, "--max-new-tokens", "2"]
    assert main(["evaluate", str(ppo_run), *words]) == 0
    messages, responses, answer = load_function(spec, "reward").__globals__["seen"][0]
    assert [one["content"] for one in messages[0]] == [SYSTEM, "Hello?"]
    assert responses == ["A made-up response to test the reward."]
    assert answer == ["yes"]


def test_one_prompt_has_no_interval(ppo_run, here, capsys):
    words = ["--prompts", "prompts.jsonl", "--reward", "rewards.py:length", "--limit", "1", "--num", "2"]
    assert main(["evaluate", str(ppo_run), *words]) == 0
    shown = cells(capsys.readouterr().out)
    assert shown["mean score"][2].endswith(" (-)")
    assert shown["KL to the reference (nats/response)"][2] == "(-)"


def test_a_temperature_too_small_for_logprobs_is_refused(capsys):
    words = ["--prompts", "prompts.jsonl", "--reward", "rewards.py:length", "--temperature", "1e-39"]
    assert main(["evaluate", "none/at/all", *words]) == 2
    assert "--temperature must be 0.001 or more, got 1e-39; use --greedy" in capsys.readouterr().err


def test_columns_with_the_name_of_an_output_field_are_kept(ppo_run, here):
    (here / "own.jsonl").write_text('{"prompt": "Hello?", "policy": "mine", "score": 7}\n')
    words = ["--prompts", "own.jsonl", "--reward", "rewards.py:length", "--max-new-tokens", "4", "--out"]
    assert main(["evaluate", str(ppo_run), *words, "a.jsonl"]) == 0
    [found] = records(here / "a.jsonl")
    assert (found["row_policy"], found["score"], found["policy"]["score"]) == (
        "mine",
        7,
        len(found["policy"]["response"]),
    )
    assert main(["best-of-n", str(ppo_run), *words, "b.jsonl", "--n", "1"]) == 0
    found, _ = records(here / "b.jsonl")
    assert (found["row_score"], found["policy"], found["score"]) == (7, "mine", len(found["response"]))
