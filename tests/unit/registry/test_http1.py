"""Answers as servers write them, good and bad, byte by byte; and requests that must not go out."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme

from buildkit_py.registry import HostConfig, RegistryConfig
from buildkit_py.registry._operation import Operation
from buildkit_py.registry._origin import Origin
from buildkit_py.registry._pool import Pool, ProxyFailed, proxy_for
from buildkit_py.registry._wire import Answer, Broken, Connection, Unsendable


@pytest.fixture
def ends() -> Iterator[tuple[Connection, socket.socket]]:
    """A connection of ours, and what the server has of it."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield Connection(ours), theirs


def ask(ends: tuple[Connection, socket.socket], answer: bytes, *, method: str = "GET", whole: bool = True) -> Answer:
    connection, server = ends
    server.sendall(answer)
    if whole:
        server.shutdown(socket.SHUT_WR)
    return connection.ask(method, "/", {"Host": "x"}, None, timeout=2)


def body(answer: Answer) -> bytes:
    parts: list[bytes] = []
    while part := answer.read(3):
        parts.append(part)
    return b"".join(parts)


@pytest.mark.parametrize(
    ("raw", "wanted"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", b"hello"),
        (b"HTTP/1.1 200\r\ncontent-length: 5, 5\r\n\r\nhello", b"hello"),
        (b"HTTP/1.0 200 OK\r\n\r\nhello", b"hello"),
        (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhell\r\n1;x=y\r\no\r\n0\r\nA: b\r\n\r\n",
            b"hello",
        ),
        (
            b"HTTP/1.1 103 Early\r\nA: b\r\n\r\nHTTP/1.1 100 C\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx",
            b"x",
        ),
        (b"HTTP/1.1 204 None\r\nContent-Length: 5\r\n\r\n", b""),
        (b"HTTP/1.1 200 OK\r\nX: a\r\n  b\r\nContent-Length: 0\r\n\r\n", b""),
    ],
)
def test_bodies(ends: tuple[Connection, socket.socket], raw: bytes, wanted: bytes) -> None:
    assert body(ask(ends, raw)) == wanted


def test_fields(ends: tuple[Connection, socket.socket]) -> None:
    """By any case; repeated ones as a list, folded ones as one."""
    raw = b"HTTP/1.1 200 OK\r\nLink: a\r\nLINK:\tb \r\nX-Y: one\r\n\ttwo\r\nContent-Length: 0\r\n\r\n"
    headers = ask(ends, raw).headers
    assert (headers.get("link"), headers.getlist("Link")) == ("a, b", ["a", "b"])
    assert (headers.get("x-y"), headers.get("none"), headers.getlist("none")) == ("one two", "", [])


@pytest.mark.parametrize(
    "raw",
    [
        b"SSH-2.0-x\r\n\r\n",
        b"HTTP/2 200 OK\r\n\r\n",
        b"HTTP/1.1 99 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nbad name: x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n folded: first\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA: b\nC: d\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA: b\x00\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        b"HTTP/1.1 200 OK\r\nContent-Length: 9999999999999999999\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA: " + b"x" * 150_000,
        b"HTTP/1.1 100 Continue\r\n\r\n" * 20,
        b"HTTP/1.1 200 OK\r\n",
        b"",
    ],
)
def test_no_answers(ends: tuple[Connection, socket.socket], raw: bytes) -> None:
    """None of these is one, and none takes memory or time without end."""
    with pytest.raises(Broken):
        ask(ends, raw)


@pytest.mark.parametrize(
    ("raw", "kept"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhello", b"hello"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nhello", b"hello"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n", b"hello"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello9\r\nx", b"hello"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\nzz\r\n", b"hello"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"5;" + b"x" * 100_000, b""),
    ],
)
def test_bodies_that_end_early(ends: tuple[Connection, socket.socket], raw: bytes, kept: bytes) -> None:
    """What came is given, and then the failure, as often as it is asked for; it is never taken for the end."""
    answer = ask(ends, raw)
    got = answer.read(100) if kept else b""
    assert got == kept
    for _ in range(2):
        with pytest.raises(Broken):
            answer.read(100)


@pytest.mark.parametrize(
    ("raw", "method", "free"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx", "GET", True),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n", "HEAD", True),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n", "GET", True),
        (b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 1\r\n\r\nx", "GET", True),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 1\r\n\r\nx", "GET", False),
        (b"HTTP/1.1 200 OK\r\nConnection: Close\r\nContent-Length: 1\r\n\r\nx", "GET", False),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nxHTTP/1.1 200 OK\r\n", "GET", False),
        (b"HTTP/1.1 200 OK\r\n\r\nx", "GET", False),
    ],
)
def test_whether_a_connection_is_kept(
    ends: tuple[Connection, socket.socket], raw: bytes, method: str, free: bool
) -> None:
    """Only after a whole answer that says so, and with nothing behind it that others would take for theirs."""
    connection, server = ends
    done: list[Connection] = []
    server.sendall(raw)
    if b"\r\n\r\nx" in raw and b"Length" not in raw and b"chunked" not in raw:
        server.shutdown(socket.SHUT_WR)
    answer = connection.ask(method, "/", {}, None, timeout=2, done=done.append)
    body(answer)
    answer.close()
    answer.close()
    assert done == ([connection] if free else [])
    assert (connection.socket.fileno() >= 0) is free


def test_an_answer_left_in_the_middle_ends_the_connection(ends: tuple[Connection, socket.socket]) -> None:
    answer = ask(ends, b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhello")
    answer.close()
    assert ends[0].socket.fileno() < 0
    with pytest.raises(Broken):
        answer.read(1)


@pytest.mark.parametrize(
    ("target", "fields"),
    [
        ("/a b\r\nX: y", {}),
        ("/", {"X": "a\r\nY: b"}),
        ("/", {"X": "a\nb"}),
        ("/", {"X\0": "a"}),
        ("/", {"X": "\u20ac"}),
    ],
)
def test_requests_that_do_not_go_out(
    ends: tuple[Connection, socket.socket], target: str, fields: dict[str, str]
) -> None:
    connection, server = ends
    with pytest.raises(Unsendable):
        connection.ask("GET", target, fields, None, timeout=2)
    connection.close()
    assert server.recv(100) == b""


def test_head_and_a_small_body_go_out_together(ends: tuple[Connection, socket.socket]) -> None:
    connection, server = ends
    server.sendall(b"HTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n")
    connection.ask("PUT", "/x", {"Content-Length": "5"}, iter([b"he", b"llo"]), timeout=2)
    assert server.recv(1000) == b"PUT /x HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello"


def test_an_answer_before_the_end_of_a_body() -> None:
    """A registry that refuses an upload and closes is heard; the connection is not used again."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def refuse() -> None:
            peer, _ = listening.accept()
            with peer:
                peer.recv(1000)
                peer.sendall(b"HTTP/1.1 413 Too large\r\nContent-Length: 2\r\n\r\nno")
                peer.shutdown(socket.SHUT_WR)
                ended.wait(5)

        ended = threading.Event()
        thread = threading.Thread(target=refuse)
        thread.start()
        pool = Pool(RegistryConfig(), size=4)
        origin = Origin.of(f"http://127.0.0.1:{listening.getsockname()[1]}")

        def pieces() -> Iterator[bytes]:
            yield b"x" * 100
            ended.set()
            thread.join()
            for _ in range(100):
                yield b"x" * 100_000

        fields = {"Content-Length": "10000100"}
        answer = pool.ask("PUT", origin, "/", fields, pieces(), timeouts=(2, 2), operation=Operation(10))
        assert answer.status_code == 413
        assert answer.read(10) == b"no"
        answer.close()
        pool.close()


def test_a_connection_that_was_closed_meanwhile_is_not_used() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        origin = Origin.of(f"http://127.0.0.1:{listening.getsockname()[1]}")
        peers: list[socket.socket] = []

        def serve() -> None:
            for _ in range(2):
                peers.append(listening.accept()[0])
                peers[-1].recv(1000)
                peers[-1].sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

        thread = threading.Thread(target=serve)
        thread.start()
        pool = Pool(RegistryConfig(), size=4)
        for _ in range(2):
            answer = pool.ask("GET", origin, "/", {}, None, timeouts=(2, 2), operation=Operation(10))
            assert answer.status_code == 200
            answer.close()
            peers[-1].close()
        thread.join()
        pool.close()


def test_tls_through_the_tls_of_a_proxy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The proxy proves who it is, and so does the registry behind it."""
    ca = trustme.CA()
    ca.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.issue_cert("localhost").configure_cert(context)
    inner = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.issue_cert("registry.invalid").configure_cert(inner)

    def proxy(listening: socket.socket) -> None:
        peer, _ = listening.accept()
        with context.wrap_socket(peer, server_side=True) as outside:
            assert outside.recv(1000).startswith(b"CONNECT registry.invalid:443 HTTP/1.1\r\n")
            outside.sendall(b"HTTP/1.1 200 Yes\r\n\r\n")
            received, sent = ssl.MemoryBIO(), ssl.MemoryBIO()
            tls = inner.wrap_bio(received, sent, server_side=True)
            while True:
                try:
                    tls.do_handshake()
                    asked = tls.read(1000)
                    break
                except ssl.SSLWantReadError:
                    if data := sent.read():
                        outside.sendall(data)
                    received.write(outside.recv(65536))
            assert asked.startswith(b"GET /v2/ HTTP/1.1\r\n")
            tls.write(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello")
            outside.sendall(sent.read())
            outside.recv(1000)

    with socket.create_server(("localhost", 0)) as listening:
        thread = threading.Thread(target=proxy, args=(listening,))
        thread.start()
        port = listening.getsockname()[1]
        monkeypatch.setenv("HTTPS_PROXY", f"https://localhost:{port}")
        trust = HostConfig(ca=tmp_path / "ca.pem")
        pool = Pool(RegistryConfig(hosts={"registry.invalid": trust, f"localhost:{port}": trust}), size=4)
        origin = Origin.of("https://registry.invalid/")
        answer = pool.ask("GET", origin, "/v2/", {}, None, timeouts=(2, 2), operation=Operation(10))
        assert answer.read(100) == b"hello"
        answer.close()
        pool.close()
        thread.join()


def test_proxies_of_other_kinds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", "socks5://127.0.0.1:1")
    pool = Pool(RegistryConfig(), size=4)
    origin = Origin.of("https://registry.invalid")
    with pytest.raises(ProxyFailed, match="speaks HTTP"):
        pool.ask("GET", origin, "/", {}, None, timeouts=(2, 2), operation=Operation(10))
    assert proxy_for(Origin.of("http://127.0.0.1:5000")) == ""
    monkeypatch.setenv("NO_PROXY", "registry.invalid")
    assert proxy_for(origin) == ""
    monkeypatch.delenv("NO_PROXY")
    monkeypatch.setenv("HTTPS_PROXY", "proxy.example:3128")
    assert proxy_for(origin) == "http://proxy.example:3128"
