"""A scoring service on loopback whose behaviour a test scripts."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Handler(BaseHTTPRequestHandler):
    """One connection, kept alive; `asked`: the JSON of the request that is being answered."""

    protocol_version = "HTTP/1.1"
    server: Server

    def do_POST(self) -> None:
        self.asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.requests.append((self.path, dict(self.headers), self.asked))
            script = self.server.script
            behaviour = script.pop(0) if len(script) > 1 else script[0]
        behaviour(self)

    def do_CONNECT(self) -> None:
        self.server.requests.append((self.path, dict(self.headers), None))
        self.send(200, b"")

    def send(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def setup(self) -> None:
        super().setup()
        with self.server.lock:
            self.server.open.append(self.connection)

    def hang_up(self) -> None:
        """Close the connection at once."""
        self.connection.shutdown(socket.SHUT_RDWR)
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        """Log nothing."""


class Server(ThreadingHTTPServer):
    """Listens from its construction on; `script`: what it does with each request, the last one
    again and again.
    """

    daemon_threads = True

    def __init__(self, script: list[Callable[[Handler], None]], port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.script = script
        self.requests: list[tuple[str, dict[str, str], Any]] = []
        self.open: list[socket.socket] = []
        self.lock = threading.Lock()
        self._thread = threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def stop(self) -> None:
        """Stop listening, and cut all connections."""
        self.shutdown()
        self._thread.join()
        self.server_close()
        with self.lock:
            for connection in self.open:
                try:
                    connection.shutdown(socket.SHUT_RDWR)
                except OSError:
                    continue  # closed before

    def handle_error(self, *_: object) -> None:
        """Ignore closed connections."""


def lengths(handler: Handler) -> None:
    """Score each response by its length."""
    answer({"scores": [len(one["response"]) for one in handler.asked["exchanges"]]})(handler)


def answer(body: Any, status: int = 200, **headers: str) -> Callable[[Handler], None]:
    """Return a behaviour that sends this reply; a body other than bytes is sent as JSON."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return lambda handler: handler.send(status, content, **headers)
