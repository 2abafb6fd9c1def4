"""`rlhf generate`: answers of a policy to prompts."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from rlhf_cli.data.prompts import Prompt
from rlhf_cli.system.text import printable
from rlhf_cli.use.cli_options import Loading, Rows, Sampling
from rlhf_cli.use.input_rows import prompts
from rlhf_cli.use.responses import Asked, ask, load_policy, write_lines


@dataclass(frozen=True)
class Generate:
    """What was asked for."""

    model: str
    texts: list[str]  # prompts from the command line
    rows: Rows | None
    num: int
    out: Path | None
    loading: Loading
    sampling: Sampling


def run(wanted: Generate) -> None:
    """Answer the prompts; show the answers, or write them."""
    asked_for = _typed(wanted.texts)
    if wanted.rows is not None:
        asked_for += prompts(wanted.rows, "--file")
    policy = load_policy(wanted.model, wanted.loading, wanted.sampling)
    answers = ask(policy, asked_for, wanted.num, wanted.sampling)
    if wanted.out is not None:
        write_lines(wanted.out, (one.record for one in answers))
        print(printable(f"{len(answers)} answers: {wanted.out}"))
        return
    sys.stdout.write("\n".join(_shown(one, wanted.num) for one in answers))


def _typed(texts: list[str]) -> list[Prompt]:
    return [Prompt(text, (), text, ({"role": "user", "content": text},)) for text in texts]


def _shown(one: Asked, num: int) -> str:
    head = f"> {one.prompt.text}\n" if one.sample == 0 else ""
    count = f", answer {one.sample + 1} of {num}" if num > 1 else ""
    end = "" if one.answer.ended else ", cut off"
    return printable(f"{head}{one.answer.text}\n[{one.answer.num_tokens} tokens{end}{count}]\n")
