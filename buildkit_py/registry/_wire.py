"""HTTP/1.1 over one connection: a request goes out as it was given, an answer is read with care.

Registries are asked many small things. What requests and urllib3 do for each took more of this process than all else.
"""

from __future__ import annotations

import re
import select
import socket
from collections.abc import Callable, Iterable, Mapping
from typing import Protocol, cast

_MAX_HEAD_BYTES = 64 << 10
_MAX_LINE_BYTES = 4 << 10
_MAX_INTERIM = 16
_TOGETHER_BYTES = 64 << 10
"""A body up to this goes out along with its head: one segment less to wait for."""
_RECEIVE_BYTES = 64 << 10
_STATUS_LINE = re.compile(r"HTTP/1\.([01]) ([1-9][0-9]{2})(?: .*)?")
_FIELD_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_SIZE = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;.*)?")


class Broken(OSError):
    """A connection that gave no whole answer; its text says what happened, and quotes nothing."""


class Unsendable(Exception):
    """A request that no connection may carry; nothing of it was sent."""


CLOSED = "the connection was closed before the answer"
CUT = "the connection ended in the middle of the answer"
NOT_CONNECTED = "no connection within the time allowed"
_NO_HTTP = "the answer is no HTTP"


class Socket(Protocol):
    """What is used of a socket, with or without TLS."""

    def sendall(self, data: bytes, /) -> object: ...
    def recv_into(self, buffer: memoryview, /) -> int: ...
    def recv(self, size: int, /) -> bytes: ...
    def settimeout(self, value: float | None, /) -> None: ...
    def close(self) -> None: ...


class Headers:
    """Fields of an answer by name, in whatever case."""

    def __init__(self) -> None:
        self._values: dict[str, list[str]] = {}

    def add(self, name: str, value: str) -> None:
        """One more field."""
        self._values.setdefault(name.lower(), []).append(value)

    def extend(self, name: str, more: str) -> None:
        """Go on with the last value of a field, which an old-fashioned server wrote in several lines."""
        self._values[name.lower()][-1] += f" {more}"

    def get(self, name: str, default: str = "") -> str:
        """The value; of a field that is there several times, all of them as one list."""
        values = self._values.get(name.lower())
        return default if values is None else ", ".join(values)

    def getlist(self, name: str) -> list[str]:
        """Each value."""
        return list(self._values.get(name.lower(), ()))


class Connection:
    """A connection that takes one request after another. Not thread-safe."""

    def __init__(self, sock: Socket, base: socket.socket | None = None) -> None:
        """base is the socket itself, where that is another one."""
        self._sock = sock
        self.socket = base or cast("socket.socket", sock)
        """What is shut down to end I/O from another thread."""
        self._rest = b""
        """Received, and not read."""

    def close(self) -> None:
        """End it."""
        self._sock.close()
        self.socket.close()

    @property
    def alive(self) -> bool:
        """Whether an idle connection looks as if it could be used: its end, or bytes that nobody asked for, show."""
        poll = select.poll()
        poll.register(self.socket, select.POLLIN)
        return not poll.poll(0)

    def ask(
        self,
        method: str,
        target: str,
        fields: Mapping[str, str],
        body: bytes | Iterable[bytes] | None,
        *,
        timeout: float,
        done: Callable[[Connection], object] = lambda _: None,
    ) -> Answer:
        """Send a request and read the head of its answer; timeout is for each wait.

        A body that is no bytes needs a Content-Length among the fields. done gets the connection once it is free for
        the next request. Unsendable for what no request may hold; OSError for a connection that fails; and what the
        body raises. After an error it is to be closed.
        """
        lines = [f"{method} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items()), "", ""]
        text = "\r\n".join(lines)
        if text.count("\n") != len(lines) - 1 or text.count("\r") != len(lines) - 1 or "\0" in text:
            raise Unsendable
        try:
            head = text.encode("latin-1")
        except UnicodeEncodeError as error:
            raise Unsendable from error
        self._sock.settimeout(timeout)
        sent = self._send(head, body)
        for _ in range(_MAX_INTERIM):
            answer = self._head(method, sent, done)
            if answer.status_code >= 200 or answer.status_code == 101:
                return answer
        raise Broken(_NO_HTTP)

    def _send(self, head: bytes, body: bytes | Iterable[bytes] | None) -> bool:
        """Whether all of it went out: a server may answer and close before it has read everything."""
        pieces = iter((body,) if isinstance(body, bytes) else body or ())
        first = next(pieces, b"")
        try:
            if len(first) <= _TOGETHER_BYTES:
                self._sock.sendall(head + first)
            else:
                self._sock.sendall(head)
                self._sock.sendall(first)
        except (BrokenPipeError, ConnectionResetError):
            return False
        for piece in pieces:
            try:
                self._sock.sendall(piece)
            except (BrokenPipeError, ConnectionResetError):
                return False
        return True

    def _head(self, method: str, sent: bool, done: Callable[[Connection], object]) -> Answer:
        data = self._rest
        while (end := data.find(b"\r\n\r\n")) < 0:
            if len(data) > _MAX_HEAD_BYTES:
                raise Broken(_NO_HTTP)
            more = self._sock.recv(_RECEIVE_BYTES)
            if not more:
                raise Broken(CUT if data else CLOSED)
            data += more
        self._rest = data[end + 4 :]
        first, *lines = data[:end].decode("latin-1").split("\r\n")
        match = _STATUS_LINE.fullmatch(first)
        if match is None:
            raise Broken(_NO_HTTP)
        status = int(match[2])
        headers = _fields(lines)
        size: int | None = 0
        if method != "HEAD" and status >= 200 and status not in (204, 304) and (method, status) != ("CONNECT", 200):
            size = _body_size(headers)
        options = headers.get("Connection").lower()
        kept = "keep-alive" in options if match[1] == "0" else "close" not in options
        return Answer(self, status, headers, size, done if kept and sent else None)

    def receive_into(self, view: memoryview) -> int:
        """Some of the next bytes; 0 at the end of the connection."""
        if not self._rest:
            return self._sock.recv_into(view)
        part = self._rest[: len(view)]
        view[: len(part)] = part
        self._rest = self._rest[len(part) :]
        return len(part)

    def line(self) -> bytes:
        """The next line, without its end."""
        while (end := self._rest.find(b"\r\n")) < 0:
            if len(self._rest) > _MAX_LINE_BYTES:
                raise Broken(_NO_HTTP)
            more = self._sock.recv(_RECEIVE_BYTES)
            if not more:
                raise Broken(CUT)
            self._rest += more
        found, self._rest = self._rest[:end], self._rest[end + 2 :]
        return found

    @property
    def clean(self) -> bool:
        """Whether nothing came that was not asked for."""
        return not self._rest


def _fields(lines: list[str]) -> Headers:
    headers, name = Headers(), ""
    for line in lines:
        if "\n" in line or "\r" in line or "\0" in line:
            raise Broken(_NO_HTTP)
        if name and line[:1] in (" ", "\t"):
            headers.extend(name, line.strip(" \t"))
            continue
        name, colon, value = line.partition(":")
        if not colon or _FIELD_NAME.fullmatch(name) is None:
            raise Broken(_NO_HTTP)
        headers.add(name, value.strip(" \t"))
    return headers


_CHUNKED = -1


def _body_size(headers: Headers) -> int | None:
    """Bytes of the body, _CHUNKED, or None for one that ends with the connection."""
    encoding = headers.get("Transfer-Encoding").strip().lower()
    if encoding:
        if encoding != "chunked":
            raise Broken("the answer is encoded in a way that was not asked for")
        return _CHUNKED
    told = {item.strip() for value in headers.getlist("Content-Length") for item in value.split(",")}
    if not told:
        return None
    (text, *others) = told
    if others or not (text.isascii() and text.isdigit() and len(text) < 19):
        raise Broken(_NO_HTTP)
    return int(text)


class Answer:
    """Status and headers, and a body that is read from the connection."""

    def __init__(
        self,
        connection: Connection,
        status: int,
        headers: Headers,
        size: int | None,
        done: Callable[[Connection], object] | None,
    ) -> None:
        self.status_code = status
        self.headers = headers
        self._connection: Connection | None = connection
        self._done = done
        self._chunked = size == _CHUNKED
        self._left = 0 if self._chunked else size
        self._whole = size == 0
        self._begun = False
        self._failed: OSError | None = None

    def read(self, size: int) -> bytes:
        """So many of the next bytes, fewer only before the end or a failure; none at the end. OSError."""
        if self._failed is not None:
            raise self._failed
        if self._whole:
            return b""
        if self._connection is None:
            raise Broken(CUT)
        view = memoryview(bytearray(size if self._left is None or self._chunked else min(size, self._left)))
        got = 0
        try:
            while got < len(view) and not self._whole:
                got += self._read_into(self._connection, view[got:])
        except OSError as error:
            if not got:
                raise
            self._failed = error  # what came before it is good
        return bytes(view[:got])

    def _read_into(self, connection: Connection, view: memoryview) -> int:
        if self._chunked and not self._left and not self._next_chunk(connection):
            return 0
        got = connection.receive_into(view if self._left is None else view[: self._left])
        if self._left is None:
            self._whole = not got
            self._done = None
            return got
        if not got:
            raise Broken(CUT)
        self._left -= got
        self._whole = not self._left and not self._chunked
        return got

    def _next_chunk(self, connection: Connection) -> bool:
        if self._begun and connection.line():
            raise Broken(_NO_HTTP)
        self._begun = True
        match = _SIZE.fullmatch(connection.line())
        if match is None:
            raise Broken(_NO_HTTP)
        self._left = int(match[1], 16)
        if not self._left:
            for _ in range(100):  # what may follow, and nobody needs
                if not connection.line():
                    self._whole = True
                    return False
            raise Broken(_NO_HTTP)
        return True

    def close(self) -> None:
        """Be done with it: the connection serves the next request if all was read, and ends if not."""
        connection, self._connection = self._connection, None
        if connection is None:
            return
        if self._whole and self._done is not None and connection.clean:
            self._done(connection)
        else:
            connection.close()


def connected(host: str, port: int, timeout: float) -> socket.socket:
    """A TCP connection; OSError, or Unsendable for what is no name of a host."""
    try:
        sock = socket.create_connection((host, port), timeout)
    except TimeoutError as error:
        raise Broken(NOT_CONNECTED) from error
    except UnicodeError as error:
        raise Unsendable from error
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


__all__ = ["Answer", "Broken", "Connection", "Headers", "Socket", "Unsendable", "connected"]
