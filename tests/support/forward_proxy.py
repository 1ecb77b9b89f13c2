"""A forward proxy, as companies have them: CONNECT for TLS, whole URLs for plain HTTP, with a password if wanted."""

from __future__ import annotations

import base64
import contextlib
import socket
import threading
from collections.abc import Mapping
from socketserver import StreamRequestHandler, ThreadingTCPServer
from typing import Self
from urllib.parse import urlsplit


class ForwardProxy:
    """Use it with ``with``. It knows where names are that nobody else knows."""

    def __init__(self, places: Mapping[str, str], *, password: str = "") -> None:
        self.asked: list[tuple[str, Mapping[str, str]]] = []
        """Request lines, and what stood in the headers for the proxy to read; names in lower case."""
        proxy = self
        wanted = f"Basic {base64.b64encode(f'user:{password}'.encode()).decode()}" if password else ""

        class Handler(StreamRequestHandler):
            def handle(self) -> None:
                with contextlib.suppress(OSError):
                    proxy._serve(self, places, wanted)

        class Server(ThreadingTCPServer):
            allow_reuse_address = True
            daemon_threads = True

        self._server = Server(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})

    @property
    def address(self) -> str:
        """host:port."""
        return f"127.0.0.1:{self._server.server_address[1]}"

    def _serve(self, handler: StreamRequestHandler, places: Mapping[str, str], wanted: str) -> None:
        line = handler.rfile.readline().decode().rstrip()
        head: list[str] = []
        while text := handler.rfile.readline().decode().rstrip():
            head.append(text)
        headers = {name.lower(): value.strip() for name, _, value in (text.partition(":") for text in head)}
        self.asked.append((line, headers))
        if headers.get("proxy-authorization", "") != wanted:
            handler.wfile.write(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")
            return
        method, target, version = line.split()
        host = target if method == "CONNECT" else urlsplit(target).netloc
        if host not in places:
            handler.wfile.write(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            return
        name, _, port = places[host].partition(":")
        with socket.create_connection((name, int(port))) as there:
            if method == "CONNECT":
                handler.wfile.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
                back = threading.Thread(target=_pump, args=(there, handler.connection))
                back.start()
                _pump(handler.connection, there)
                back.join()
                return
            parts = urlsplit(target)
            path = f"{parts.path}?{parts.query}" if parts.query else parts.path
            kept = [text for text in head if not text.lower().startswith(("proxy-", "connection:"))]
            there.sendall("\r\n".join([f"{method} {path} {version}", *kept, "Connection: close", "", ""]).encode())
            left = int(headers.get("content-length", "0"))
            while left and (chunk := handler.rfile.read(min(left, 1 << 16))):
                there.sendall(chunk)
                left -= len(chunk)
            _pump(there, handler.connection)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def _pump(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 16):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)
