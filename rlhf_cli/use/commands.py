"""The commands of what is done after training: words to options, checked before anything is loaded. No torch."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence

from rlhf_cli.config.errors import InputError, OutOfMemoryError
from rlhf_cli.use.words import Loading, Parser, Rewarding, Rows, Sampling, add_out, out_of, parser, positive, whole

_REWARD = "a reward-model run or folder, a Hub id, http://..., module:function or file.py:function"


def run(command: str, args: Sequence[str]) -> int:
    """Run one of the commands and return its exit code; raise RunError for whatever we foresee."""
    build, start = _COMMANDS[command]
    made = build()
    if "--help" in args or "-h" in args:
        made.print_help()
        return 0
    begin = start(made.parse_args(list(args)))
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TQDM_DISABLE", "1")  # the GGUF reader has a bar of its own
    import torch

    from rlhf_cli.report.logs import quieten_libraries

    quieten_libraries()
    try:
        begin()
    except torch.OutOfMemoryError as error:
        raise OutOfMemoryError(
            f"the GPU's memory does not hold it ({str(error).splitlines()[0]}); lower --batch-size, "
            "--reward-batch-size or --max-new-tokens, or give --dtype bfloat16"
        ) from error
    return 0


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
    if sampling.greedy and given.num > 1:
        raise InputError(f"generate: --num {given.num} with --greedy gives the same answer again; leave one out")
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
    group.add_argument("--chosen-column", default="chosen", metavar="NAME", help="default: chosen")
    group.add_argument("--rejected-column", default="rejected", metavar="NAME", help="default: rejected")
    group.add_argument("--ranking-column", metavar="NAME", help="a list of answers, the best first, instead")
    group.add_argument("--category-column", metavar="NAME", help="show the accuracy of each kind of row")
    group.add_argument("--response-column", metavar="NAME", help="rows have one answer, in this column")
    group.add_argument("--scale", type=positive(1e6), metavar="X", help="log odds of a point of score, for calibration")
    Rewarding.add(made)
    Loading.add(made)
    return made


def _score(given: argparse.Namespace) -> Callable[[], None]:
    specs = [one for one in (given.reward, given.http, given.function) if one is not None]
    if len(specs) != 1:
        raise InputError(f"score: wanted one of REWARD, --http and --function, got {len(specs)}")
    rewarding = Rewarding.of(specs[0], given, "reward")
    if given.function is not None and rewarding.config.function is None:
        raise InputError(f"--function must be module:name or path/to/file.py:name, got {given.function}")
    if given.http is not None and rewarding.config.url is None:
        raise InputError(f"--http must be http://... or https://..., got {given.http}")
    rows, out = Rows.of(given, "--file"), out_of(given)
    columns = {
        name: getattr(given, name) for name in ("chosen_column", "rejected_column", "ranking_column", "category_column")
    }

    def begin() -> None:
        from rlhf_cli.use import score

        score.run(score.Score(rewarding, rows, out, given.response_column, given.scale, columns))

    return begin


def check_model(path: str) -> None:
    """Raise InputError where there is no such policy."""
    from rlhf_cli.use.runs import Role, find

    find(path, Role.policy)


_COMMANDS: dict[str, tuple[Callable[[], Parser], Callable[[argparse.Namespace], Callable[[], None]]]] = {
    "generate": (_generate_parser, _generate),
    "score": (_score_parser, _score),
}
