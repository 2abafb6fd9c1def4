"""`rlhf serve-reward RUN_DIR`: a reward model as an HTTP service, for runs whose source has its address as `url`."""

from __future__ import annotations

import argparse
import os
import re
import signal
import socket
from importlib.util import find_spec
from typing import TYPE_CHECKING, NoReturn

from rlhf_cli.config.errors import InputError
from rlhf_cli.config.sections import DType
from rlhf_cli.report.text import printable

if TYPE_CHECKING:
    from fastapi import FastAPI

USAGE = """\
usage: rlhf serve-reward RUN_DIR [--host HOST] [--port PORT] [--token-env VARIABLE] [--batch-size N] [--device DEVICE]
                                 [--dtype DTYPE] [--max-exchanges N] [--max-mib N]

Answer POST /score with the scores of a trained reward model, GET /info with what it is, GET /health with ok, until
Ctrl-C or SIGTERM, which let requests under way end. A run asks it as a source: reward=[{name: far, url: http://...}];
docs/rewards.md has the protocol, docs/reward_service.json describes it to machines.

  RUN_DIR                a run of train-rm, or any folder or Hub id of a one-label classifier
  --host 127.0.0.1       the address to listen at; 0.0.0.0: all of this machine
  --port 8081            the port; 0: one that is free
  --token-env VARIABLE   environment variable with a token that requests must carry as `Authorization: Bearer TOKEN`
  --batch-size 16        texts a forward pass
  --device, --dtype      as `cuda:1` and `bfloat16`; else a GPU if there is one, and what the model was trained in
  --max-exchanges 1024   responses a request
  --max-mib 16           MiB a request
"""
_DRAIN_S = 30  # for requests under way, after Ctrl-C
_KEEP_ALIVE_S = 120  # a run asks once a step


def serve(args: list[str]) -> int:
    """Serve until a signal; return 0. Raises InputError where that cannot be: no model, no such port, no package."""
    if "--help" in args or "-h" in args:
        print(USAGE, end="")
        return 0
    asked = _parsed(args)
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

    server = uvicorn.Server(
        uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,
            server_header=False,
            ws="none",
            timeout_keep_alive=_KEEP_ALIVE_S,
            timeout_graceful_shutdown=_DRAIN_S,
        )
    )

    def end(*_: object) -> None:
        server.should_exit = True

    for number in (signal.SIGINT, signal.SIGTERM):  # uvicorn raises what it caught once more when it has ended
        signal.signal(number, end)
    server.run([listener])


def _app(asked: argparse.Namespace, token: str | None) -> FastAPI:
    from rlhf_cli.use.runs import Role, find, with_options
    from rlhf_cli.use.scorer import RewardScorer, device_of
    from rlhf_cli.use.service import Info, Limits, make_app

    dtype = None if asked.dtype is None else DType[asked.dtype]
    found = with_options(find(asked.run_dir, Role.reward_model), None, dtype, trust_remote_code=False)
    device = device_of(asked.device)
    scorer = RewardScorer(found, device, asked.batch_size)
    info = Info(
        model=scorer.name,
        template="chat" if scorer.renderer.use_template else "plain",
        system_prompt=scorer.renderer.system_prompt,
        dtype=found.model.dtype.name,
        device=str(device),
    )
    return make_app(scorer.score, info, Limits(asked.max_exchanges, asked.max_mib * 2**20), token)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(f"serve-reward: {message}; see rlhf serve-reward --help")


def _parsed(args: list[str]) -> argparse.Namespace:
    parser = _Parser(add_help=False, allow_abbrev=False)
    parser.add_argument("run_dir", metavar="RUN_DIR")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8081)
    parser.add_argument("--token-env")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--device")
    parser.add_argument("--dtype", choices=[each.name for each in DType])
    parser.add_argument("--max-exchanges", type=int, default=1024)
    parser.add_argument("--max-mib", type=int, default=16)
    asked = parser.parse_args(args)
    if not 0 <= asked.port < 65536:
        raise InputError(f"--port must be between 0 and 65535, got {asked.port}")
    for name in ("batch_size", "max_exchanges", "max_mib"):
        if getattr(asked, name) < 1:
            raise InputError(f"--{name.replace('_', '-')} must be 1 or more, got {getattr(asked, name)}")
    return asked


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
