"""Reads the command line of a command on trained models, and runs it. Imports torch last."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rlhf_cli.config.data_sources import Format
from rlhf_cli.config.errors import InputError, OutOfMemoryError, require_text
from rlhf_cli.use.cli_options import (
    CommandParser,
    InputRows,
    Loading,
    Reward,
    Sampling,
    add_out,
    add_whole_turn,
    integer,
    out_of,
    positive,
)
from rlhf_cli.use.trained_models import Role, TrainedModel, find_model

_POLICY = "a PPO run, a model folder, a Hub id or a .gguf file"
_REWARD = "a reward-model run or folder, a Hub id, http://..., module:function or file.py:function"
_ANSWER_COLUMNS = ("chosen_column", "rejected_column", "ranking_column", "category_column")


def run(command: str, args: Sequence[str]) -> int:
    """Run a command and return its exit code; raise RunError for failures that we foresee."""
    make_parser, read_options = _COMMANDS[command]
    parser = make_parser()
    if "--help" in args or "-h" in args:
        parser.print_help()
        return 0
    given = parser.parse_args(list(args))
    options = read_options(given)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TQDM_DISABLE", "1")  # the progress bar of the GGUF reader
    import torch

    from rlhf_cli.report.library_logs import quieten_libraries

    quieten_libraries()
    try:
        import_module(f"rlhf_cli.use.{command.replace('-', '_')}").run(options)
    except torch.OutOfMemoryError as error:
        raise OutOfMemoryError(
            f"out of GPU memory ({str(error).splitlines()[0]}); lower --batch-size, --reward-batch-size or "
            "--max-new-tokens, or set --dtype bfloat16"
        ) from error
    return 0


@dataclass(frozen=True)
class GenerateOptions:
    """The options of `rlhf generate`."""

    policy: TrainedModel
    prompts: list[str]
    rows: InputRows | None
    num: int  # responses per prompt
    out: Path | None
    loading: Loading
    sampling: Sampling


@dataclass(frozen=True)
class ScoreOptions:
    """The options of `rlhf score`."""

    reward: Reward
    rows: InputRows
    out: Path | None
    response_column: str | None  # of rows with one response; None: it is recognised
    scale: float | None  # log odds per point of score
    columns: dict[str, str]  # of PreferenceDataConfig, as given


@dataclass(frozen=True)
class EvaluateOptions:
    """The options of `rlhf evaluate`."""

    policy: TrainedModel
    reference: TrainedModel
    rows: InputRows
    reward: Reward
    num: int  # responses per prompt
    out: Path | None
    loading: Loading
    sampling: Sampling


@dataclass(frozen=True)
class BestOfNOptions:
    """The options of `rlhf best-of-n`."""

    base: TrainedModel
    policy: TrainedModel | None  # to compare with
    rows: InputRows
    reward: Reward
    sizes: list[int]  # n
    num: int  # responses per prompt
    out: Path | None
    loading: Loading
    sampling: Sampling


@dataclass(frozen=True)
class ChatOptions:
    """The options of `rlhf chat`."""

    policy: TrainedModel
    reward: Reward | None
    loading: Loading
    sampling: Sampling


@dataclass(frozen=True)
class ServeOptions:
    """The options of `rlhf serve-reward`."""

    model: TrainedModel
    host: str
    port: int
    token: str | None
    max_bytes: int  # of a request
    batch_size: int
    whole_turn: bool
    device: str | None


def _generate_parser() -> CommandParser:
    parser = CommandParser(
        "generate",
        "Generate responses to prompts with a trained policy or any causal language model.",
        "The same seed gives the same responses, whatever the batch size.",
    )
    parser.add_argument("model", metavar="MODEL", help=_POLICY)
    parser.add_argument("--prompt", action="extend", nargs="+", default=[], metavar="TEXT", help="prompts")
    _add_num(parser)
    add_out(parser)
    InputRows.add_to(parser, "--file", required=False)
    Sampling.add_to(parser)
    Loading.add_to(parser)
    return parser


def _generate_options(given: argparse.Namespace) -> GenerateOptions:
    if not given.prompt and given.rows is None:
        raise InputError("generate: no prompt; give --prompt TEXT or --file FILE")
    for text in given.prompt:
        require_text("--prompt", text)
        if not text.strip():
            raise InputError("generate: --prompt is empty, wanted a text")
    sampling, loading = _sampling(given, given.num), Loading.of(given)
    rows = None if given.rows is None else InputRows.of(given, "--file")
    out = out_of(given)
    policy = _prepared(find_model(given.model, Role.policy), loading, sampling)
    return GenerateOptions(policy, given.prompt, rows, given.num, out, loading, sampling)


def _score_parser() -> CommandParser:
    parser = CommandParser(
        "score",
        "Score pairs (prompt, chosen, rejected) or single responses (prompt, response) with a reward.",
        'For pairs: how often the chosen response scores higher, the baseline "the longer answer wins", and how\n'
        "well the probabilities are calibrated. Some rows are scored twice: a reward must repeat its scores.",
    )
    parser.add_argument("reward", nargs="?", metavar="REWARD", help=_REWARD)
    parser.add_argument("--http", metavar="URL", help="score with a service; without a path: URL/score")
    parser.add_argument("--function", metavar="SPEC", help="score with a function: module:name or file.py:name")
    add_out(parser)
    InputRows.add_to(parser, "--file")
    group = parser.add_argument_group("columns")
    group.add_argument("--chosen-column", metavar="NAME", help="column of the better response; default: chosen")
    group.add_argument("--rejected-column", metavar="NAME", help="column of the worse response; default: rejected")
    group.add_argument(
        "--ranking-column", metavar="NAME", help="instead: column with a list of responses, the best first"
    )
    group.add_argument("--category-column", metavar="NAME", help="show the accuracy of each category")
    group.add_argument(
        "--response-column", metavar="NAME", help="score single responses from this column (or see --format rated)"
    )
    group.add_argument(
        "--scale", type=positive(1e6), metavar="X", help="log odds per point of score, for the calibration"
    )
    Reward.add_to(parser)
    Loading.add_to(parser)
    return parser


def _score_options(given: argparse.Namespace) -> ScoreOptions:
    specs = [spec for spec in (given.reward, given.http, given.function) if spec is not None]
    if len(specs) != 1:
        raise InputError(f"score: wanted one of REWARD, --http and --function, got {len(specs)}")
    reward = Reward.of(specs[0], given, "reward", with_system=True)
    if given.function is not None and reward.config.function is None:
        raise InputError(f"--function must be module:name or path/to/file.py:name, got {given.function}")
    if given.http is not None and reward.config.url is None:
        raise InputError(f"--http must be http://... or https://..., got {given.http}")
    rows, out = InputRows.of(given, "--file"), out_of(given)
    columns = {name: getattr(given, name) for name in _ANSWER_COLUMNS if getattr(given, name) is not None}
    response_column = given.response_column
    if rows.format in (Format.rated, Format.rated_rows) and response_column is not None:
        columns["response_column"], response_column = response_column, None
    return ScoreOptions(reward, rows, out, response_column, given.scale, columns)


def _evaluate_parser() -> CommandParser:
    parser = CommandParser(
        "evaluate",
        "Generate responses with a policy and a reference, score them, and compare.",
        "Both sample with the same random numbers. Intervals are over prompts.",
    )
    parser.add_argument("policy", metavar="POLICY", help=_POLICY)
    parser.add_argument("--against", metavar="MODEL", help="the reference; default: what the policy started from")
    parser.add_argument("--reward", required=True, metavar="REWARD", help=_REWARD)
    _add_num(parser)
    add_out(parser)
    InputRows.add_to(parser, "--prompts")
    Sampling.add_to(parser)
    Reward.add_to(parser)
    Loading.add_to(parser)
    return parser


def _evaluate_options(given: argparse.Namespace) -> EvaluateOptions:
    """Both models sample as the policy, which also renders a reference without a run."""
    reward, loading = Reward.of(given.reward, given, "--reward"), Loading.of(given)
    sampling = _sampling(given, given.num)
    policy = find_model(given.policy, Role.policy)
    if given.against is None and policy.run is None:
        raise InputError(f"evaluate: {given.policy} comes from no run; give its reference with --against MODEL")
    reference = policy.start if given.against is None else find_model(given.against, Role.policy, "--against")
    data = policy.data if reference.run is None else reference.data
    reference = replace(reference, data=data, rollout=policy.rollout)
    rows, out = InputRows.of(given, "--prompts"), out_of(given)
    policy, reference = (_prepared(model, loading, sampling) for model in (policy, reference))
    return EvaluateOptions(policy, reference, rows, reward, given.num, out, loading, sampling)


def _best_of_n_parser() -> CommandParser:
    parser = CommandParser(
        "best-of-n",
        "Estimate the score and the KL of a model whose best of n responses is picked by a reward.",
        "The estimates are unbiased: they use all choices of n of the responses (arXiv:2210.10760).",
    )
    parser.add_argument("model", metavar="MODEL", help="the policy before PPO: a folder, a Hub id or a .gguf file")
    parser.add_argument("--reward", required=True, metavar="REWARD", help=_REWARD)
    parser.add_argument("--n", default="1,2,4,8", metavar="N,N,...", help="values of n; default: 1,2,4,8")
    parser.add_argument(
        "--samples", type=integer(1), metavar="N", help="responses per prompt; default: twice the largest n"
    )
    parser.add_argument("--policy", metavar="DIR", help="also show a trained policy and its KL to MODEL")
    add_out(parser)
    InputRows.add_to(parser, "--prompts")
    Sampling.add_to(parser, greedy=False)
    Reward.add_to(parser)
    Loading.add_to(parser)
    return parser


def _best_of_n_options(given: argparse.Namespace) -> BestOfNOptions:
    """Both sample as MODEL in its run. Without a run, MODEL samples and renders as the policy."""
    try:
        sizes = sorted({integer(1)(word) for word in given.n.split(",")})
    except argparse.ArgumentTypeError as error:
        raise InputError(f"best-of-n: --n {given.n}: {error}") from error
    num = given.samples or 2 * sizes[-1]
    if num < sizes[-1]:
        raise InputError(f"best-of-n: --samples must be at least the largest n, {sizes[-1]}, got {num}")
    reward, loading, sampling = Reward.of(given.reward, given, "--reward"), Loading.of(given), Sampling.of(given)
    base = find_model(given.model, Role.policy)
    policy = None if given.policy is None else find_model(given.policy, Role.policy)
    if policy is not None and base.run is None:
        base = replace(base, data=policy.data, rollout=policy.rollout)
    if policy is not None:
        policy = _prepared(replace(policy, rollout=base.rollout), loading, sampling)
    base = _prepared(base, loading, sampling)
    rows, out = InputRows.of(given, "--prompts"), out_of(given)
    return BestOfNOptions(base, policy, rows, reward, sizes, num, out, loading, sampling)


def _chat_parser() -> CommandParser:
    parser = CommandParser("chat", "Chat with a policy in the terminal.", "In the chat, /help lists its commands.")
    parser.add_argument("model", metavar="MODEL", help=_POLICY)
    parser.add_argument("--reward", metavar="REWARD", help=f"show the score of each response: {_REWARD}")
    Sampling.add_to(parser, batch_size=False)
    Reward.add_to(parser)
    Loading.add_to(parser)
    return parser


def _chat_options(given: argparse.Namespace) -> ChatOptions:
    reward = None if given.reward is None else Reward.of(given.reward, given, "--reward")
    loading, sampling = Loading.of(given), Sampling.of(given)
    policy = _prepared(find_model(given.model, Role.policy), loading, sampling)
    return ChatOptions(policy, reward, loading, sampling)


def _serve_reward_parser() -> CommandParser:
    parser = CommandParser(
        "serve-reward",
        "Serve a trained reward model over HTTP: POST /score, GET /info, GET /health. Ctrl-C or SIGTERM finishes\n"
        "open requests and stops the service.",
        "A run uses it as a source: 'reward=[{name: far, url: \"http://127.0.0.1:8081\"}]'. The protocol is in\n"
        "docs/rewards.md, its OpenAPI description in docs/reward_service.json.",
    )
    parser.add_argument("run_dir", metavar="RUN_DIR", help="a reward-model run, a reward model's folder or a Hub id")
    group = parser.add_argument_group("service")
    group.add_argument("--host", default="127.0.0.1", help="address to listen on; default: 127.0.0.1; all: 0.0.0.0")
    group.add_argument(
        "--port", type=integer(0, 65535), default=8081, metavar="N", help="port; 0: a free one; default: 8081"
    )
    group.add_argument("--token-env", metavar="NAME", help="environment variable with the token that clients send")
    group.add_argument("--max-mib", type=integer(1, 1024), default=16, metavar="N", help="largest request; default: 16")
    group.add_argument("--batch-size", type=integer(1), default=16, metavar="N", help="texts per pass; default: 16")
    Loading.add_to(parser)
    add_whole_turn(parser)
    return parser


def _serve_reward_options(given: argparse.Namespace) -> ServeOptions:
    for package in ("fastapi", "uvicorn"):
        if find_spec(package) is None:
            raise InputError(f"serve-reward needs the package {package}; install it: pip install 'rlhf[serve]'")
    return ServeOptions(
        model=Loading.of(given).apply(find_model(given.run_dir, Role.reward_model)),
        host=given.host,
        port=given.port,
        token=None if given.token_env is None else _token(given.token_env),
        max_bytes=given.max_mib * 2**20,
        batch_size=given.batch_size,
        whole_turn=given.whole_turn,
        device=given.device,
    )


def _token(variable: str) -> str:
    """Return the token without `Bearer`: a run's auth_env may name the same variable."""
    token = re.sub(r"^Bearer(\s+|$)", "", os.environ.get(variable, "").strip())
    if not token or not token.isascii() or not token.isprintable():
        raise InputError(f"--token-env: set the environment variable {variable} to a token of printable ASCII")
    return token


def _prepared(model: TrainedModel, loading: Loading, sampling: Sampling) -> TrainedModel:
    return replace(loading.apply(model), rollout=sampling.apply(model.rollout))


def _add_num(parser: CommandParser) -> None:
    parser.add_argument("--num", type=integer(1), default=1, metavar="N", help="responses per prompt; default: 1")


def _sampling(given: argparse.Namespace, num: int) -> Sampling:
    sampling = Sampling.of(given)
    if sampling.greedy and num > 1:
        raise InputError(f"--num {num} with --greedy repeats the same response; leave one of them out")
    return sampling


_COMMANDS: dict[str, tuple[Callable[[], CommandParser], Callable[[argparse.Namespace], Any]]] = {
    "generate": (_generate_parser, _generate_options),
    "score": (_score_parser, _score_options),
    "evaluate": (_evaluate_parser, _evaluate_options),
    "chat": (_chat_parser, _chat_options),
    "best-of-n": (_best_of_n_parser, _best_of_n_options),
    "serve-reward": (_serve_reward_parser, _serve_reward_options),
}
