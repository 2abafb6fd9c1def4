"""`rlhf generate`: responses of a policy to prompts."""

from __future__ import annotations

import sys

from rlhf_cli.data.prompts import Prompt
from rlhf_cli.system.text import printable
from rlhf_cli.use.commands import GenerateOptions
from rlhf_cli.use.input_rows import read_prompts
from rlhf_cli.use.responses import Response, respond, write_json_lines
from rlhf_cli.use.trained_policy import TrainedPolicy


def run(options: GenerateOptions) -> None:
    """Generate responses, and show or write them."""
    prompts = [Prompt(text, (), text, ({"role": "user", "content": text},)) for text in options.prompts]
    if options.rows is not None:
        prompts += read_prompts(options.rows)
    policy = TrainedPolicy(options.policy, options.loading)
    responses = respond(policy, prompts, options.num, options.sampling)
    if options.out is None:
        sys.stdout.write("\n".join(_as_text(response, options.num) for response in responses))
    else:
        write_json_lines(options.out, (response.record() for response in responses))
        print(printable(f"{len(responses)} responses: {options.out}"))


def _as_text(response: Response, num: int) -> str:
    prompt = f"> {response.prompt.text}\n" if response.sample == 0 else ""
    number = f", response {response.sample + 1} of {num}" if num > 1 else ""
    end = "" if response.ended else ", cut off"
    return printable(f"{prompt}{response.text}\n[{response.num_tokens} tokens{end}{number}]\n")
