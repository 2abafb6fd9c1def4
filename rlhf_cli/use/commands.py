"""The commands of what is done after training: words to options, checked before anything is loaded. No torch."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence

from rlhf_cli.config.errors import InputError, OutOfMemoryError
from rlhf_cli.use.words import Loading, Parser, Rows, Sampling, add_out, out_of, parser, whole

NAMES = ("generate",)


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


def check_model(path: str) -> None:
    """Raise InputError where there is no such policy."""
    from rlhf_cli.use.runs import Role, find

    find(path, Role.policy)


_COMMANDS: dict[str, tuple[Callable[[], Parser], Callable[[argparse.Namespace], Callable[[], None]]]] = {
    "generate": (_generate_parser, _generate),
}
