"""`rlhf serve-reward`: a reward model as an HTTP service that runs can use as a source."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket

import torch
import uvicorn
from fastapi import FastAPI, Request, Response

from rlhf_cli.config.errors import InputError
from rlhf_cli.rewards.classifier_source import DecoderClassifier
from rlhf_cli.system.text import printable
from rlhf_cli.use.commands import ServeOptions
from rlhf_cli.use.score_service import Info, make_app, refuse
from rlhf_cli.use.trained_reward_model import TrainedRewardModel, find_device

_DRAIN_S = 30  # to finish open requests after the first signal
_KEEP_ALIVE_S = 120  # a run sends requests once per step


def run(options: ServeOptions) -> None:
    """Serve the model until a signal; raise InputError if the port cannot be opened."""
    with _listen(options.host, options.port) as listener:  # before the model is loaded, which takes longer
        device = find_device(options.device)
        model = TrainedRewardModel(options.model, device, options.batch_size, whole_turn=options.whole_turn)
        renderer = model.classifier.renderer if isinstance(model.classifier, DecoderClassifier) else None
        info = Info(
            model=str(options.model.model.path),
            template="pair" if renderer is None else "chat" if renderer.use_template else "plain",
            system_prompt=None if renderer is None else renderer.system_prompt,
            dtype=options.model.model.dtype.value,
            device=str(device),
        )
        app = make_app(model.score, info, options.max_bytes, options.token)
        app.add_exception_handler(torch.OutOfMemoryError, refuse_out_of_memory)
        host, port = listener.getsockname()[:2]
        url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        paths = "POST /score, GET /info, GET /health"
        print(printable(f"serving {options.model.name} at {url} ({paths}); stop it with Ctrl-C"), flush=True)
        if options.token is None and host not in ("127.0.0.1", "::1"):
            print("warning: anyone who reaches this address can use it; set a token with --token-env", flush=True)
        serve(app, listener)


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        return socket.create_server(address, family=family)
    except OSError as error:
        reason = (error.strerror or str(error)).partition(" (")[0]
        raise InputError(
            f"cannot listen on --host {host} --port {port}: {reason}; choose another address or port"
        ) from error


def serve(app: FastAPI, listener: socket.socket) -> None:
    """Serve until SIGINT or SIGTERM, then finish open requests; a second SIGINT cancels them."""
    config = uvicorn.Config(
        app,
        log_level="error",
        lifespan="off",
        access_log=False,
        server_header=False,
        ws="none",
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=_DRAIN_S,
    )
    logging.getLogger("uvicorn.error").addFilter(_is_not_cancelled)
    server = uvicorn.Server(config)

    def stop(*_: object) -> None:
        server.should_exit = True

    for number in (signal.SIGINT, signal.SIGTERM):  # uvicorn raises the signal once more after it has stopped
        signal.signal(number, stop)
    server.run([listener])


def _is_not_cancelled(record: logging.LogRecord) -> bool:
    """Drop the tracebacks of requests that the second signal cancelled."""
    return not (record.exc_info and isinstance(record.exc_info[1], asyncio.CancelledError))


async def refuse_out_of_memory(_: Request, error: Exception) -> Response:
    """Tell the client that the request needs too much GPU memory."""
    reason = str(error).splitlines()[0]
    return refuse(500, f"out of GPU memory ({reason}); restart the service with a lower --batch-size")
