"""`rlhf serve-reward RUN_DIR`: a reward model as an HTTP service, for runs whose source has its address as `url`."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import re
import signal
import socket
from collections.abc import Sequence
from importlib.util import find_spec
from types import FrameType
from typing import TYPE_CHECKING

from rlhf_cli.config.errors import InputError, RewardError, require_text
from rlhf_cli.system.text import printable
from rlhf_cli.use.cli_options import Loading, Parser, parser, whole

if TYPE_CHECKING:
    from fastapi import FastAPI

    from rlhf_cli.rewards.source import Exchange
    from rlhf_cli.use.score_service import Score

_DRAIN_S = 30  # for requests under way, after Ctrl-C
_LAST_WORDS_S = 2  # for who waits still, to be told so
_KEEP_ALIVE_S = 120  # a run asks once a step
_CONNECTIONS = 1024  # 256 ranks that ask four things at a time; more are told that it is busy


def serve(args: list[str]) -> int:
    """Serve until a signal; return 0. Raises InputError where that cannot be: no model, no such port, no package."""
    words = _parser()
    if "--help" in args or "-h" in args:
        words.print_help()
        return 0
    asked = words.parse_args(args)
    require_text("--system", asked.system or "")
    for package in ("fastapi", "uvicorn"):
        if find_spec(package) is None:
            raise InputError(
                f"serve-reward needs the package {package}, which is not installed: pip install 'rlhf[serve]'"
            )
    token = None if asked.token_env is None else _token(asked.token_env)
    with _listening(asked.host, asked.port) as listener:  # before the model is loaded, which takes longer
        app = _app(asked, token)
        address = _address(listener)
        print(
            printable(f"{asked.run_dir} answers at {address} (POST /score, GET /info, GET /health); Ctrl-C ends it"),
            flush=True,
        )
        if token is None and asked.host not in ("127.0.0.1", "::1", "localhost"):
            print("warning: whoever can reach this address may ask; --token-env wants a token of them", flush=True)
        _serve(app, listener)
    return 0


def _serve(app: FastAPI, listener: socket.socket) -> None:
    import uvicorn

    class Server(uvicorn.Server):
        """Answers who still waits at the end, where uvicorn would cancel the request with a traceback."""

        def give_up(self) -> None:
            logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)  # of requests that have not come in yet
            app.state.give_up()

        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            super().handle_exit(sig, frame)
            if self.force_exit:  # a second Ctrl-C
                asyncio.get_running_loop().call_soon_threadsafe(self.give_up)

        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            timer = asyncio.get_running_loop().call_later(_DRAIN_S, self.give_up)
            await super().shutdown(sockets)
            timer.cancel()

    server = Server(
        uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,
            server_header=False,
            ws="none",
            limit_concurrency=_CONNECTIONS,
            timeout_keep_alive=_KEEP_ALIVE_S,
            timeout_graceful_shutdown=_DRAIN_S + _LAST_WORDS_S,
        )
    )

    def end(*_: object) -> None:
        server.should_exit = True

    for number in (signal.SIGINT, signal.SIGTERM):  # uvicorn raises what it caught once more when it has ended
        signal.signal(number, end)
    server.run([listener])


def _app(asked: argparse.Namespace, token: str | None) -> FastAPI:
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from rlhf_cli.report.library_logs import quieten_libraries
    from rlhf_cli.rewards.classifier_source import DecoderClassifier
    from rlhf_cli.use.reward_scorer import RewardScorer, device_of
    from rlhf_cli.use.score_service import Info, Limits, make_app
    from rlhf_cli.use.trained_runs import Role, find, with_options

    quieten_libraries()
    loading = Loading.of(asked)
    found = find(asked.run_dir, Role.reward_model)
    found = with_options(found, loading.system_prompt, loading.dtype, loading.trust_remote_code)
    device = device_of(loading.device)
    scorer = RewardScorer(found, device, asked.batch_size, whole_turn=asked.whole_turn)
    renderer = scorer.classifier.renderer if isinstance(scorer.classifier, DecoderClassifier) else None
    info = Info(
        model=scorer.name,
        template="pair" if renderer is None else "chat" if renderer.use_template else "plain",
        system_prompt=None if renderer is None else renderer.system_prompt,
        dtype=found.model.dtype.value,
        device=str(device),
    )
    return make_app(_told(scorer.score), info, Limits(asked.max_exchanges, asked.max_mib * 2**20), token)


def _parser() -> Parser:
    made = parser(
        "serve-reward",
        "Answer POST /score with the scores of a trained reward model, GET /info with what it is, GET /health, until\n"
        "Ctrl-C or SIGTERM, which let requests under way end.",
        "A run asks it as a source: 'reward=[{name: far, url: \"http://127.0.0.1:8081\"}]'. docs/rewards.md has the\n"
        "protocol, docs/reward_service.json describes it to machines.",
    )
    made.add_argument("run_dir", metavar="RUN_DIR", help="a reward-model run, such a model's folder, or a Hub id")
    group = made.add_argument_group("service")
    group.add_argument("--host", default="127.0.0.1", help="address to listen at; default: 127.0.0.1; 0.0.0.0: all")
    group.add_argument("--port", type=whole(0, 65535), default=8081, metavar="N", help="default: 8081; 0: a free one")
    group.add_argument("--token-env", metavar="NAME", help="environment variable with the token that is asked for")
    group.add_argument("--max-exchanges", type=whole(1), default=1024, metavar="N", help="a request; default: 1024")
    group.add_argument("--max-mib", type=whole(1, 1024), default=16, metavar="N", help="a request; default: 16")
    group.add_argument("--batch-size", type=whole(1), default=16, metavar="N", help="texts a pass; default: 16")
    Loading.add(made)
    text = "the model reads what its template writes at the end of a turn, too"
    made.add_argument("--whole-turn", action="store_true", help=text)
    return made


def _told(score: Score) -> Score:
    """Let a scorer that is out of memory say so to who asked."""
    from torch import OutOfMemoryError

    def tell(exchanges: Sequence[Exchange]) -> list[float]:
        try:
            return score(exchanges)
        except OutOfMemoryError as error:
            first = str(error).splitlines()[0]
            raise RewardError(f"the GPU's memory does not hold it ({first}); lower --batch-size") from error

    return tell


def _token(variable: str) -> str:
    """Return the token; the word `Bearer` before it may be there, so that both ends can use one variable."""
    token = re.sub(r"^Bearer(\s+|$)", "", os.environ.get(variable, "").strip())
    if not token or not token.isascii() or not token.isprintable():
        raise InputError(f"--token-env: wanted a token of printable ASCII in the environment variable {variable}")
    return token


def _listening(host: str, port: int) -> socket.socket:
    """Return a socket that listens; raise InputError where it cannot."""
    try:
        family, kind, _, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except OSError as error:
        raise InputError(f"--host {host}: {error.strerror}") from error
    listener = socket.socket(family, kind)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # an earlier one's last connections do not matter
    try:
        listener.bind(place)
        listener.listen()
    except OSError as error:
        listener.close()
        raise InputError(
            f"cannot listen at port {port} of {host}: {error.strerror}; give another --port or --host"
        ) from error
    return listener


def _address(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
