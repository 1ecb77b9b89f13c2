"""An HTTP server on loopback that answers from a script, faults included, and remembers what it was asked."""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self, TypeAlias
from urllib.parse import parse_qs, urlsplit


@dataclass(frozen=True, kw_only=True)
class Request:
    """What came in; headers by name in lower case."""

    method: str
    path: str
    query: str
    headers: Mapping[str, str]
    body: bytes

    @property
    def parameters(self) -> dict[str, list[str]]:
        return parse_qs(self.query, keep_blank_values=True)

    @property
    def authorization(self) -> str | None:
        return self.headers.get("authorization")


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What goes out."""

    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    challenges: tuple[str, ...] = ()
    """One WWW-Authenticate header each."""
    length: int | None = None
    """Content-Length to announce instead of the body's."""
    cut: bool = False
    """Drop the connection after the body, as a server that dies does."""
    silent: bool = False
    """Never answer, as long as the server lives."""
    drip: float = 0.0
    """Send the body one byte at a time, with so many seconds between."""


Script: TypeAlias = "Answer | Callable[[Request], Answer]"


@dataclass
class _Route:
    method: str
    path: re.Pattern[str]
    answers: list[Script]


class FakeRegistry:
    """Use it with ``with``. A route's last answer is given again and again; no route is 404."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.ended = threading.Event()
        self._routes: list[_Route] = []
        self._lock = threading.Lock()
        fake = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_one_request(self) -> None:
                try:
                    super().handle_one_request()
                except (ConnectionError, TimeoutError):
                    self.close_connection = True

            def answer(self) -> None:
                fake._answer(self)

            do_GET = do_HEAD = do_PUT = do_POST = do_PATCH = do_DELETE = answer

            def log_message(self, format: str, *args: object) -> None:
                """Tests show what was asked through requests."""

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            block_on_close = False

        self._server = Server(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self._server.server_address[1]}"

    @property
    def url(self) -> str:
        return f"http://{self.host}"

    def on(self, method: str, path: str, *answers: Script) -> None:
        """Answer requests whose whole path matches the pattern; later routes win."""
        self._routes.insert(0, _Route(method, re.compile(path), list(answers)))

    def asked(self, method: str = "", path: str = "") -> list[Request]:
        """Requests of this method whose path matches."""
        with self._lock:
            return [r for r in self.requests if r.method.startswith(method) and re.search(path, r.path)]

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _answer(self, handler: BaseHTTPRequestHandler) -> None:
        parts = urlsplit(handler.path)
        request = Request(
            method=handler.command,
            path=parts.path,
            query=parts.query,
            headers={name.lower(): value for name, value in handler.headers.items()},
            body=_body(handler),
        )
        with self._lock:
            self.requests.append(request)
            script = self._next(request)
        answer = script if isinstance(script, Answer) else script(request)
        if answer.silent:
            self.ended.wait()
            handler.close_connection = True
            return
        handler.send_response(answer.status)
        for name, value in answer.headers.items():
            handler.send_header(name, value)
        for challenge in answer.challenges:
            handler.send_header("WWW-Authenticate", challenge)
        size = len(answer.body) if answer.length is None else answer.length
        if not any(name.lower() == "content-length" for name in answer.headers):
            handler.send_header("Content-Length", str(size))
        handler.end_headers()
        if request.method != "HEAD":
            self._send(handler, answer)
        if answer.cut:
            handler.close_connection = True
            handler.wfile.flush()
            handler.connection.shutdown(socket.SHUT_RDWR)

    def _send(self, handler: BaseHTTPRequestHandler, answer: Answer) -> None:
        if not answer.drip:
            handler.wfile.write(answer.body)
            return
        for byte in answer.body:
            handler.wfile.write(bytes((byte,)))
            handler.wfile.flush()
            if self.ended.wait(answer.drip):
                return

    def _next(self, request: Request) -> Script:
        for route in self._routes:
            if route.method == request.method and route.path.fullmatch(request.path):
                return route.answers.pop(0) if len(route.answers) > 1 else route.answers[0]
        return Answer(status=404, body=b'{"errors":[{"code":"MANIFEST_UNKNOWN","message":"no route"}]}')


def _body(handler: BaseHTTPRequestHandler) -> bytes:
    if handler.headers.get("Transfer-Encoding") != "chunked":
        return handler.rfile.read(int(handler.headers.get("Content-Length") or 0))
    chunks: list[bytes] = []
    while size := int(handler.rfile.readline().partition(b";")[0], 16):
        chunks.append(handler.rfile.read(size))
        handler.rfile.readline()
    handler.rfile.readline()  # no client of the tests has trailers
    return b"".join(chunks)


def manifest_answer(raw: bytes, media_type: str, digest: str | None = None, **extra: str) -> Answer:
    """A manifest as a registry gives it; for HEAD, too."""
    headers = {"Content-Type": media_type, **extra}
    if digest is not None:
        headers["Docker-Content-Digest"] = digest
    return Answer(body=raw, headers=headers)
