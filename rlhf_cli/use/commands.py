"""The commands of what is done after training: words to options, checked before anything is loaded. No torch."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence

from rlhf_cli.config.data_sources import Format
from rlhf_cli.config.errors import InputError, OutOfMemoryError, require_text
from rlhf_cli.use.cli_options import (
    Loading,
    Parser,
    Rewarding,
    Rows,
    Sampling,
    add_out,
    out_of,
    parser,
    positive,
    whole,
)
from rlhf_cli.use.trained_runs import Role, Trained, find

_REWARD = "a reward-model run or folder, a Hub id, http://..., module:function or file.py:function"

_COLDEST = 1e-3  # logits divided by less overflow, and log probabilities are no numbers


def run(command: str, args: Sequence[str]) -> int:
    """Run one of the commands and return its exit code; raise RunError for whatever we foresee."""
    build, start = _COMMANDS[command]
    made = build()
    if "--help" in args or "-h" in args:
        made.print_help()
        return 0
    given = made.parse_args(list(args))
    _check(given)
    begin = start(given)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TQDM_DISABLE", "1")  # the GGUF reader has a bar of its own
    import torch

    from rlhf_cli.report.library_logs import quieten_libraries

    quieten_libraries()
    try:
        begin()
    except torch.OutOfMemoryError as error:
        raise OutOfMemoryError(
            f"the GPU's memory does not hold it ({str(error).splitlines()[0]}); lower --batch-size, "
            "--reward-batch-size or --max-new-tokens, or give --dtype bfloat16"
        ) from error
    return 0


def _check(given: argparse.Namespace) -> None:
    """Raise InputError for what no command can do with."""
    words = vars(given)
    for option, text in [("--system", given.system or ""), *(("--prompt", one) for one in words.get("prompt", []))]:
        require_text(option, text)
    temperature = words.get("temperature")
    if temperature is not None and temperature < _COLDEST:
        raise InputError(f"--temperature must be {_COLDEST:g} or more, got {temperature:g}; --greedy draws nothing")


def _generate_parser() -> Parser:
    made = parser(
        "generate",
        "Answer prompts with a trained policy, or any causal language model.",
        "The same seed gives the same answers, however many are drawn at a time.",
    )
    made.add_argument("model", metavar="MODEL", help="a PPO run folder, a model folder, a Hub id or a .gguf file")
    made.add_argument("--prompt", action="extend", nargs="+", default=[], metavar="TEXT", help="one prompt or more")
    made.add_argument("--num", type=whole(1), default=1, metavar="N", help="answers to every prompt; default: 1")
    add_out(made)
    Rows.add(made, "--file", required=False)
    Sampling.add(made)
    Loading.add(made)
    return made


def _generate(given: argparse.Namespace) -> Callable[[], None]:
    sampling = Sampling.of(given)
    if not given.prompt and given.rows is None:
        raise InputError("generate: no prompt; give --prompt TEXT or --file FILE")
    if any(not text.strip() for text in given.prompt):
        raise InputError("generate: --prompt is empty, wanted a text")
    _refuse_equal_answers(sampling, given.num)
    rows = None if given.rows is None else Rows.of(given, "--file")
    out, loading = out_of(given), Loading.of(given)
    check_model(given.model)

    def begin() -> None:
        from rlhf_cli.use import generate

        generate.run(generate.Generate(given.model, given.prompt, rows, given.num, out, loading, sampling))

    return begin


def _score_parser() -> Parser:
    made = parser(
        "score",
        "Score pairs (prompt, chosen, rejected) or single answers (prompt, response) with a reward.",
        'Of pairs: how often the chosen answer scores higher, beside "the longer answer wins", and how far the\n'
        "probabilities can be believed. Some rows are scored twice: a reward must say the same again.",
    )
    made.add_argument("reward", nargs="?", metavar="REWARD", help=_REWARD)
    made.add_argument("--http", metavar="URL", help="a scoring service instead; without a path: URL/score")
    made.add_argument("--function", metavar="SPEC", help="a Python function instead: module:name or file.py:name")
    add_out(made)
    Rows.add(made, "--file")
    group = made.add_argument_group("columns")
    group.add_argument("--chosen-column", metavar="NAME", help="default: chosen")
    group.add_argument("--rejected-column", metavar="NAME", help="default: rejected")
    group.add_argument("--ranking-column", metavar="NAME", help="a list of answers, the best first, instead")
    group.add_argument("--category-column", metavar="NAME", help="show the accuracy of each kind of row")
    group.add_argument(
        "--response-column", metavar="NAME", help="rows have one answer, in this column (or as --format rated says)"
    )
    group.add_argument("--scale", type=positive(1e6), metavar="X", help="log odds of a point of score, for calibration")
    Rewarding.add(made)
    Loading.add(made)
    return made


def _score(given: argparse.Namespace) -> Callable[[], None]:
    specs = [one for one in (given.reward, given.http, given.function) if one is not None]
    if len(specs) != 1:
        raise InputError(f"score: wanted one of REWARD, --http and --function, got {len(specs)}")
    rewarding = Rewarding.of(specs[0], given, "reward", with_system=True)
    if given.function is not None and rewarding.config.function is None:
        raise InputError(f"--function must be module:name or path/to/file.py:name, got {given.function}")
    if given.http is not None and rewarding.config.url is None:
        raise InputError(f"--http must be http://... or https://..., got {given.http}")
    rows, out = Rows.of(given, "--file"), out_of(given)
    names = ("chosen_column", "rejected_column", "ranking_column", "category_column")
    columns = {name: getattr(given, name) for name in names if getattr(given, name) is not None}
    column = given.response_column
    if rows.format in (Format.rated, Format.rated_rows) and column is not None:
        columns["response_column"], column = column, None

    def begin() -> None:
        from rlhf_cli.use import score

        score.run(score.Score(rewarding, rows, out, column, given.scale, columns))

    return begin


def _evaluate_parser() -> Parser:
    made = parser(
        "evaluate",
        "Answer prompts with a policy and with a reference, score all answers, and compare.",
        "Both draw the same random numbers. Intervals are over prompts.",
    )
    made.add_argument("policy", metavar="POLICY", help="a PPO run folder, or any causal language model")
    made.add_argument("--against", metavar="MODEL", help="the reference; default: what the policy's run started from")
    made.add_argument("--reward", required=True, metavar="REWARD", help=_REWARD)
    made.add_argument("--num", type=whole(1), default=1, metavar="N", help="answers to every prompt; default: 1")
    add_out(made)
    Rows.add(made, "--prompts")
    Sampling.add(made)
    Rewarding.add(made)
    Loading.add(made)
    return made


def _evaluate(given: argparse.Namespace) -> Callable[[], None]:
    rewarding, sampling = Rewarding.of(given.reward, given, "--reward"), Sampling.of(given)
    _refuse_equal_answers(sampling, given.num)
    policy = check_model(given.policy)
    if given.against is not None:
        check_model(given.against)
    elif not policy.has_run:
        raise InputError(f"evaluate: {given.policy} comes from no run of ours; give --against MODEL")
    rows, out, loading = Rows.of(given, "--prompts"), out_of(given), Loading.of(given)

    def begin() -> None:
        from rlhf_cli.use import evaluate

        evaluate.run(evaluate.Evaluate(given.policy, given.against, rows, rewarding, given.num, out, loading, sampling))

    return begin


def _best_of_n_parser() -> Parser:
    made = parser(
        "best-of-n",
        "What the best of n answers of a model would score, by a reward that picks it, and at which KL.",
        "Expected scores are estimated without bias from all choices of n of the answers drawn (arXiv:2210.10760).",
    )
    made.add_argument("model", metavar="MODEL", help="the policy before PPO: a model folder, a Hub id or a .gguf file")
    made.add_argument("--reward", required=True, metavar="REWARD", help=_REWARD)
    made.add_argument("--n", default="1,2,4,8", metavar="N,N,...", help="sizes of the choice; default: 1,2,4,8")
    made.add_argument(
        "--samples", type=whole(1), metavar="N", help="answers to every prompt; default: twice the largest n"
    )
    made.add_argument("--policy", metavar="DIR", help="a trained policy to show beside, at its measured KL to MODEL")
    add_out(made)
    Rows.add(made, "--prompts")
    Sampling.add(made, greedy=False)
    Rewarding.add(made)
    Loading.add(made)
    return made


def _best_of_n(given: argparse.Namespace) -> Callable[[], None]:
    try:
        sizes = sorted({whole(1)(word) for word in given.n.split(",")})
    except argparse.ArgumentTypeError as error:
        raise InputError(f"best-of-n: --n {given.n}: {error}") from error
    num = given.samples or 2 * sizes[-1]
    if num < sizes[-1]:
        raise InputError(f"best-of-n: --samples must be at least the largest n, {sizes[-1]}, got {num}")
    rewarding, sampling = Rewarding.of(given.reward, given, "--reward"), Sampling.of(given)
    for path in (given.model, given.policy):
        if path is not None:
            check_model(path)
    rows, out, loading = Rows.of(given, "--prompts"), out_of(given), Loading.of(given)

    def begin() -> None:
        from rlhf_cli.use import best_of_n

        best_of_n.run(best_of_n.BestOfN(given.model, given.policy, rows, rewarding, sizes, num, out, loading, sampling))

    return begin


def _chat_parser() -> Parser:
    made = parser("chat", "Talk with a policy in the terminal.", "In the chat, /help lists its commands.")
    made.add_argument("model", metavar="MODEL", help="a PPO run folder, a model folder, a Hub id or a .gguf file")
    made.add_argument("--reward", metavar="REWARD", help=f"show the score of each answer: {_REWARD}")
    Sampling.add(made, batches=False)
    Rewarding.add(made)
    Loading.add(made)
    return made


def _chat(given: argparse.Namespace) -> Callable[[], None]:
    rewarding = None if given.reward is None else Rewarding.of(given.reward, given, "--reward")
    loading, sampling = Loading.of(given), Sampling.of(given)
    check_model(given.model)

    def begin() -> None:
        from rlhf_cli.use import chat

        chat.run(chat.Chat(given.model, rewarding, loading, sampling))

    return begin


def _refuse_equal_answers(sampling: Sampling, num: int) -> None:
    if sampling.greedy and num > 1:
        raise InputError(f"--num {num} with --greedy gives the same answer again; leave one out")


def check_model(path: str) -> Trained:
    """Return the policy that `path` names; raise InputError where there is none."""
    return find(path, Role.policy)


_COMMANDS: dict[str, tuple[Callable[[], Parser], Callable[[argparse.Namespace], Callable[[], None]]]] = {
    "generate": (_generate_parser, _generate),
    "score": (_score_parser, _score),
    "evaluate": (_evaluate_parser, _evaluate),
    "chat": (_chat_parser, _chat),
    "best-of-n": (_best_of_n_parser, _best_of_n),
}
