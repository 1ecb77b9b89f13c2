"""Connections: to real servers of each kind, to places where none is, and through the bridge."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import gc
import os
import socket
import subprocess
import sys
import tempfile
import urllib.parse
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias, cast

import grpc
import pytest
import trustme
from grpc import aio

from buildkit_py.client import connect
from buildkit_py.digest import Digest
from buildkit_py.errors import ConnectFailed, ConnectionLost, InvalidAddress, InvalidOption, ProtocolError, RPCError
from buildkit_py.pb import content_pb2, content_pb2_grpc, control_pb2, control_pb2_grpc
from buildkit_py.rpc import Address, TLSConfig, map_rpc_error, open_connection
from buildkit_py.rpc.bridge import BUFFER_BYTES, Stream, docker_opener, open_bridge, socket_reason

Streams: TypeAlias = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

BIG = 1 << 20

if TYPE_CHECKING:
    Servicer = object
    ContentServicer = object
else:
    ContentServicer = content_pb2_grpc.ContentServicer
    Servicer = control_pb2_grpc.ControlServicer  # whose methods are abstract to type checkers alone


class Control(Servicer):
    """As much of a daemon as a connection looks at."""

    def __init__(self, *, old: bool = False) -> None:
        self.old = old

    async def Info(
        self, request: control_pb2.InfoRequest, context: aio.ServicerContext[object, object]
    ) -> control_pb2.InfoResponse:
        if self.old:
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, "unknown method Info")
        version = control_pb2.InfoResponse()
        version.buildkitVersion.version = "v1.2.3"
        return version

    async def ListWorkers(
        self, request: control_pb2.ListWorkersRequest, context: aio.ServicerContext[object, object]
    ) -> control_pb2.ListWorkersResponse:
        return control_pb2.ListWorkersResponse()

    async def DiskUsage(
        self, request: control_pb2.DiskUsageRequest, context: aio.ServicerContext[object, object]
    ) -> control_pb2.DiskUsageResponse:
        """An error with as much beside it as a failed solve has."""
        context.set_trailing_metadata((("x-large-bin", bytes(BIG)),))
        return await context.abort(grpc.StatusCode.NOT_FOUND, "no such thing")

    async def Prune(
        self, request: control_pb2.PruneRequest, context: aio.ServicerContext[object, object]
    ) -> AsyncGenerator[control_pb2.UsageRecord, None]:
        """A message that only raised limits let through, then silence."""
        yield control_pb2.UsageRecord(Description="x" * (16 << 20))
        await asyncio.Event().wait()


class Content(ContentServicer):
    """A content store that says the same for every digest, in two parts."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    async def Read(
        self, request: content_pb2.ReadContentRequest, context: aio.ServicerContext[object, object]
    ) -> AsyncGenerator[content_pb2.ReadContentResponse, None]:
        half = len(self.data) // 2
        for part in (self.data[:half], self.data[half:]):
            yield content_pb2.ReadContentResponse(data=part)


@contextlib.asynccontextmanager
async def serving(
    where: str,
    credentials: grpc.ServerCredentials | None = None,
    control: Control | None = None,
    content: Content | None = None,
) -> AsyncGenerator[aio.Server, None]:
    server = aio.server(options=[("grpc.max_metadata_size", 4 << 20), ("grpc.absolute_max_metadata_size", 4 << 20)])
    if control is not None:
        control_pb2_grpc.add_ControlServicer_to_server(cast(control_pb2_grpc.ControlServicer, control), server)
    if content is not None:
        content_pb2_grpc.add_ContentServicer_to_server(cast(content_pb2_grpc.ContentServicer, content), server)
    if credentials is None:
        server.add_insecure_port(where)
    else:
        server.add_secure_port(where, credentials)
    await server.start()
    try:
        yield server
    finally:
        await server.stop(0)


@contextlib.asynccontextmanager
async def raw_server(path: Path, handle: Streams) -> AsyncGenerator[None, None]:
    """A server of bytes on a unix socket; each connection is closed when handle returns."""

    async def run(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with contextlib.suppress(ConnectionError):
                await handle(reader, writer)
        finally:
            writer.close()

    async with await asyncio.start_unix_server(run, path):
        yield


async def copy(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while data := await source.read(1 << 16):
            target.write(data)
            await target.drain()
    target.close()


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder with a path short enough for sockets."""
    with tempfile.TemporaryDirectory(prefix="bkt-", dir="/tmp") as name:
        yield Path(name)


@pytest.fixture
def port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


async def reason(address: str | Address, tls: TLSConfig | None = None, dial_timeout: float = 5) -> str:
    """Why the address cannot be connected to."""
    with pytest.raises(ConnectFailed) as caught:
        async with open_connection(address, tls=tls, dial_timeout=dial_timeout):
            pass
    ((where, why),) = caught.value.attempts
    assert where == str(address)
    assert str(caught.value) == f"cannot connect to {where}: {why}"
    return why


# Servers that answer


@pytest.mark.parametrize("name", ["d.sock", "odd name %41?#.sock"])
async def test_unix(folder: Path, name: str) -> None:
    """Whatever its name, a socket is dialled as it is written."""
    (folder / "real").mkdir()
    async with serving(f"unix:{urllib.parse.quote(str(folder / name))}", control=Control()):
        assert (folder / name).is_socket()
        async with open_connection(f"unix://{folder / name}") as connection:
            assert (await connection.info()).buildkitVersion.version == "v1.2.3"
            assert connection.address.path == str(folder / name)


async def test_tcp(port: int) -> None:
    async with serving(f"127.0.0.1:{port}", control=Control()):
        for host in ("127.0.0.1", "localhost"):
            async with open_connection(f"tcp://{host}:{port}") as connection:
                assert (await connection.info()).buildkitVersion.version == "v1.2.3"


async def test_blobs_of_the_daemon_are_checked(folder: Path) -> None:
    """By their digest, and by how large they may be."""
    data = b"statement"
    serving_ = serving(f"unix:{folder}/s", control=Control(), content=Content(data))
    async with serving_, connect(f"unix://{folder}/s") as client:
        assert await client.read_blob(Digest.of(data), len(data)) == data
        with pytest.raises(ProtocolError, match="has digest"):
            await client.read_blob(Digest.of(b"another"), len(data))
        with pytest.raises(ProtocolError, match="is more than 8 bytes"):
            await client.read_blob(Digest.of(data), len(data) - 1)


async def test_http_proxies_are_not_asked(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("grpc_proxy", "http://127.0.0.1:9")
    async with serving(f"127.0.0.1:{port}", control=Control()), open_connection(f"tcp://127.0.0.1:{port}"):
        pass


async def test_a_daemon_too_old_to_be_asked_is_ready(folder: Path) -> None:
    daemon = Control(old=True)
    async with serving(f"unix:{folder}/s", control=daemon), open_connection(f"{folder}/s") as connection:
        assert not (await connection.info()).HasField("buildkitVersion")


async def test_large_messages_and_large_errors_pass(folder: Path) -> None:
    """The limits of gRPC's defaults would hide the error of a failed solve, and refuse a large export."""
    async with serving(f"unix:{folder}/s", control=Control()), open_connection(f"{folder}/s") as connection:
        with pytest.raises(aio.AioRpcError) as caught:
            await connection.control.DiskUsage(control_pb2.DiskUsageRequest())
        error = map_rpc_error(caught.value, what="disk usage")
        assert isinstance(error, RPCError)
        assert (error.code, error.message) == ("NOT_FOUND", "no such thing")
        async for record in connection.control.Prune(control_pb2.PruneRequest()):
            assert len(record.Description) == 16 << 20
            break


async def test_a_daemon_that_goes_away_is_a_lost_connection(folder: Path) -> None:
    async with (
        serving(f"unix:{folder}/s", control=Control()) as server,
        open_connection(f"{folder}/s") as connection,
    ):
        records = connection.control.Prune(control_pb2.PruneRequest())
        await records.read()
        await server.stop(0)
        with pytest.raises(aio.AioRpcError) as caught:
            await records.read()
        assert isinstance(map_rpc_error(caught.value, what="prune"), ConnectionLost)


async def test_two_connections_are_two(folder: Path) -> None:
    """Closing one does not touch the other, nor leave a call of its own running."""
    async with serving(f"unix:{folder}/s", control=Control()), open_connection(f"{folder}/s") as one:
        async with open_connection(f"{folder}/s") as other:
            records = other.control.Prune(control_pb2.PruneRequest())
            await records.read()
        assert records.done()
        await one.info()


async def test_waiting_for_a_daemon_that_starts(folder: Path) -> None:
    async def connect() -> str:
        async with open_connection(f"{folder}/s", dial_timeout=20, wait=True) as connection:
            return (await connection.info()).buildkitVersion.version

    connecting = asyncio.create_task(connect())
    await asyncio.sleep(0.3)
    assert not connecting.done()
    async with serving(f"unix:{folder}/s", control=Control()):
        assert await connecting == "v1.2.3"


async def test_a_slow_daemon_is_waited_for(folder: Path) -> None:
    """The time for one attempt of gRPC is the whole dial_timeout, not that between two attempts."""

    async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.6)
        to_reader, to_writer = await asyncio.open_unix_connection(folder / "g")
        await asyncio.gather(copy(reader, to_writer), copy(to_reader, writer))

    async with (
        serving(f"unix:{folder}/g", control=Control()),
        raw_server(folder / "s", slow),
        open_connection(f"{folder}/s"),
    ):
        pass


# Places where no daemon is


async def test_no_socket(folder: Path) -> None:
    assert await reason(f"unix://{folder}/none.sock") == "there is no such socket"
    assert await reason(f"docker://{folder}/none.sock") == "there is no such socket"


async def test_nobody_listens(folder: Path, port: int) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(folder / "s"))
    assert "connection refused" in await reason(f"unix://{folder}/s")
    assert "connection refused" in await reason(f"docker://{folder}/s")
    assert await reason(f"tcp://127.0.0.1:{port}") == f"connection refused: nothing listens on port {port}"


@pytest.mark.skipif(os.getuid() != 0, reason="becomes another user for a moment, which needs root")
async def test_permission_denied(folder: Path) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(folder / "s"))
        sock.listen()
        os.seteuid(65534)  # to whom the folder is closed
        try:
            assert await reason(f"unix://{folder}/s") == "permission denied"
        finally:
            os.seteuid(0)


def test_whose_socket_it_is_that_is_denied(folder: Path) -> None:
    path = folder / "s"
    path.touch(mode=0o640)
    why = socket_reason(str(path), PermissionError())
    assert why == f"permission denied: the socket belongs to {path.owner()}:{path.group()}, mode 640"


async def test_a_host_without_address() -> None:
    assert "cannot be resolved" in await reason("tcp://no-such-host.invalid:1234")


async def test_a_server_that_says_nothing_is_given_up(folder: Path) -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async with raw_server(folder / "s", silent):
        assert await reason(f"unix://{folder}/s", dial_timeout=0.5) == "no answer within 0.5 s"
        assert await reason(f"docker://{folder}/s", dial_timeout=0.5) == "no answer within 0.5 s"


async def test_servers_of_other_kinds(folder: Path) -> None:
    async def http(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await writer.drain()

    async with serving(f"unix:{folder}/g"):
        assert await reason(f"unix://{folder}/g") == "what answers is not BuildKit"
    async with raw_server(folder / "docker.sock", http):
        why = await reason(f"unix://{folder}/docker.sock")
    assert why.startswith("what answers speaks HTTP/1, not gRPC; for docker's own socket say docker:///")


async def test_every_place_is_listed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BUILDKIT_HOST", raising=False)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(folder))
    monkeypatch.setattr("buildkit_py.rpc.address.ROOTFUL_SOCKET", f"{folder}/rootful.sock")
    monkeypatch.setattr("buildkit_py.rpc.address.DOCKER_SOCKET", f"{folder}/var.sock")
    monkeypatch.delenv("DOCKER_HOST", raising=False)
    with pytest.raises(ConnectFailed) as caught:
        async with open_connection():
            pass
    places = ["rootful.sock", "buildkit/buildkitd.sock", "var.sock", "docker.sock"]
    assert [where.split(str(folder) + "/")[1] for where, _ in caught.value.attempts] == places
    assert str(caught.value).count("there is no such socket") == 4

    async with serving(f"unix:{folder}/rootful.sock", control=Control()), open_connection() as connection:
        assert connection.address.path == f"{folder}/rootful.sock"


async def test_bad_options_are_refused_before_anything_is_dialled() -> None:
    async def refused(address: str, **options: float) -> None:
        async with open_connection(address, **options):  # type: ignore[arg-type]  # floats are what it takes
            pass

    with pytest.raises(InvalidAddress):
        await refused("nonsense")
    with pytest.raises(InvalidOption, match="keepalive"):
        await refused("/x", keepalive=10)
    for seconds in (0, -1, float("inf"), float("nan")):
        with pytest.raises(InvalidOption, match="dial_timeout"):
            await refused("/x", dial_timeout=seconds)
    with pytest.raises(InvalidOption, match="TLS is for tcp"):
        async with open_connection("/x", tls=TLSConfig()):
            pass


# TLS


class Certificates:
    def __init__(self) -> None:
        self.ca = trustme.CA()
        self.other_ca = trustme.CA()
        self.server = self.ca.issue_cert("localhost", "127.0.0.1")
        self.client = self.ca.issue_cert("client.test")
        past = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
        day = datetime.timedelta(days=1)
        self.expired = self.ca.issue_cert("localhost", not_before=past, not_after=past + day)

    def trusting(self, *, client: trustme.LeafCert | None = None, server_name: str | None = None) -> TLSConfig:
        return TLSConfig(
            ca=self.ca.cert_pem.bytes(),
            cert=None if client is None else client.cert_chain_pems[0].bytes(),
            key=None if client is None else client.private_key_pem.bytes(),
            server_name=server_name,
        )

    def credentials(self, leaf: trustme.LeafCert, *, mutual: bool = False) -> grpc.ServerCredentials:
        pair = (leaf.private_key_pem.bytes(), leaf.cert_chain_pems[0].bytes())
        return grpc.ssl_server_credentials([pair], self.ca.cert_pem.bytes() if mutual else None, mutual)


@pytest.fixture(scope="module")
def certificates() -> Certificates:
    return Certificates()


async def test_tls(port: int, certificates: Certificates, tmp_path: Path) -> None:
    certificates.ca.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    credentials = certificates.credentials(certificates.server)
    async with serving(f"127.0.0.1:{port}", credentials, Control()):
        for tls in (certificates.trusting(), TLSConfig.from_dir(tmp_path)):
            for host in ("127.0.0.1", "localhost"):
                async with open_connection(f"tcp://{host}:{port}", tls=tls) as connection:
                    await connection.info()


async def test_mutual_tls(port: int, certificates: Certificates) -> None:
    address = f"tcp://localhost:{port}"
    stranger = certificates.other_ca.issue_cert("client.test")
    credentials = certificates.credentials(certificates.server, mutual=True)
    async with serving(f"127.0.0.1:{port}", credentials, Control()):
        async with open_connection(address, tls=certificates.trusting(client=certificates.client)):
            pass
        assert "client certificate" in await reason(address, certificates.trusting())
        why = await reason(address, certificates.trusting(client=stranger))
        assert "not accept the client certificate" in why


async def test_a_server_name_of_ones_own(port: int, certificates: Certificates) -> None:
    leaf = certificates.ca.issue_cert("builder.test")
    async with serving(f"127.0.0.1:{port}", certificates.credentials(leaf), Control()):
        async with open_connection(f"tcp://localhost:{port}", tls=certificates.trusting(server_name="builder.test")):
            pass
        why = await reason(f"tcp://localhost:{port}", certificates.trusting())
        assert "is not for 'localhost'" in why
        why = await reason(f"tcp://127.0.0.1:{port}", certificates.trusting())
        assert "is not for '127.0.0.1'" in why


async def test_an_unknown_authority(port: int, certificates: Certificates) -> None:
    tls = TLSConfig(ca=certificates.other_ca.cert_pem.bytes())
    async with serving(f"127.0.0.1:{port}", certificates.credentials(certificates.server), Control()):
        assert "not signed by a trusted CA" in await reason(f"tcp://localhost:{port}", tls)


async def test_an_expired_certificate(port: int, certificates: Certificates) -> None:
    async with serving(f"127.0.0.1:{port}", certificates.credentials(certificates.expired), Control()):
        why = await reason(f"tcp://localhost:{port}", certificates.trusting())
    assert why == "the daemon's certificate has expired"


async def test_tls_on_one_side_only(port: int, certificates: Certificates) -> None:
    async with serving(f"127.0.0.1:{port}", certificates.credentials(certificates.server), Control()):
        assert "expects TLS" in await reason(f"tcp://localhost:{port}")
    async with serving(f"127.0.0.1:{port}", control=Control()):
        assert "does not speak TLS" in await reason(f"tcp://localhost:{port}", certificates.trusting())


# The bridge


def upgraded(to: Path, *, early: bool = False) -> Streams:
    """dockerd's part: agree to the upgrade, then copy bytes to a gRPC server."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = await reader.readuntil(b"\r\n\r\n")
        assert request.startswith(b"POST /grpc HTTP/1.1\r\n")
        assert b"\r\nUpgrade: h2c\r\n" in request
        head = b"HTTP/1.1 101 UPGRADED\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n"
        to_reader, to_writer = await asyncio.open_unix_connection(to)
        if early:  # the server's first bytes come along with the header
            head += await to_reader.read(1 << 16)
        writer.write(head)
        await asyncio.gather(copy(reader, to_writer), copy(to_reader, writer))

    return handle


@pytest.mark.parametrize("early", [False, True])
async def test_docker(folder: Path, early: bool) -> None:
    async with (
        serving(f"unix:{folder}/g", control=Control()),
        raw_server(folder / "docker.sock", upgraded(folder / "g", early=early)),
        open_connection(f"docker://{folder}/docker.sock") as connection,
    ):
        assert (await connection.info()).buildkitVersion.version == "v1.2.3"
        async for record in connection.control.Prune(control_pb2.PruneRequest()):
            assert len(record.Description) == 16 << 20
            break


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (
            b'HTTP/1.1 404 Not Found\r\n\r\n{"message":"page not \\u001bfound"}\n',
            "docker refused the upgrade to gRPC with HTTP 404: page not  found (dockerd before 19.03, or built "
            "without BuildKit)",
        ),
        (b"HTTP/1.1 403 Forbidden\r\n\r\n<html>", "docker refused the upgrade to gRPC with HTTP 403"),
        (b"HTTP/1.1\r\n\r\n", "docker refused the upgrade to gRPC with HTTP ?"),
        (b"SSH-2.0-OpenSSH\r\n", "what answers is not docker: it does not speak HTTP"),
        (b"HTTP/1.1 101 x\r\n" + b"x" * 40_000, "what answers is not docker: the header of its answer does not end"),
        (b"HT", "what answers is not docker: it closed the connection"),
    ],
)
async def test_what_is_not_docker_is_told(folder: Path, answer: bytes, why: str) -> None:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        await writer.drain()

    async with raw_server(folder / "docker.sock", handle):
        assert await reason(f"docker://{folder}/docker.sock") == why


@contextlib.contextmanager
def pairs() -> Generator[tuple[list[socket.socket], Callable[[], contextlib.AbstractAsyncContextManager[Stream]]]]:
    """An opener of socket pairs, and the far ends of those it has opened."""
    far: list[socket.socket] = []

    @contextlib.asynccontextmanager
    async def opener() -> AsyncGenerator[Stream, None]:
        near, other = socket.socketpair()
        other.setblocking(False)
        near.setblocking(False)
        far.append(other)
        with near:
            yield Stream(near, b"left over")

    try:
        yield far, opener
    finally:
        for sock in far:
            sock.close()


def bridge_socket(target: str) -> str:
    """The socket of a bridge, for those that are not gRPC."""
    scheme, _, name = target.partition(":")
    return f"\0{name}" if scheme == "unix-abstract" else name


async def test_bytes_cross_the_bridge_both_ways_and_ends_are_passed_on() -> None:
    data = os.urandom(3 * BUFFER_BYTES + 1)
    with pairs() as (far, opener):
        async with open_bridge(opener) as target:
            path = bridge_socket(target)
            for number in range(2):  # the stream that was opened at once, and one opened on demand
                reader, writer = await asyncio.open_unix_connection(path)
                assert await reader.readexactly(9) == b"left over"
                far_reader, far_writer = await asyncio.open_unix_connection(sock=far[number])
                writer.write(data)
                far_writer.write(data[::-1])
                assert await far_reader.readexactly(len(data)) == data
                assert await reader.readexactly(len(data)) == data[::-1]
                writer.write_eof()
                assert await far_reader.read() == b""
                far_writer.write(b"still open")
                far_writer.close()
                assert await reader.read() == b"still open"
                writer.close()
        with pytest.raises(OSError):
            await asyncio.open_unix_connection(path)


async def test_a_bridge_without_a_file_system_of_names_has_a_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where sockets can have files for names only."""
    monkeypatch.setattr(sys, "platform", "darwin")
    with pairs() as (_, opener):
        async with open_bridge(opener) as target:
            path = Path(bridge_socket(target))
            assert path.parent.stat().st_mode & 0o777 == 0o700
            reader, writer = await asyncio.open_unix_connection(path)
            assert await reader.readexactly(9) == b"left over"
            writer.close()
        assert not path.parent.exists()


async def test_a_bridge_is_for_its_own_process(caplog: pytest.LogCaptureFixture) -> None:
    """Names that are no files have no permissions. Somebody who finds one gets nothing, and takes nothing away."""
    with pairs() as (_, opener):
        async with open_bridge(opener) as target:
            path = bridge_socket(target)
            assert path.startswith("\0")
            script = f"import socket; s = socket.socket(socket.AF_UNIX); s.connect({path!r}); exit(s.recv(1) != b'')"
            other = await asyncio.create_subprocess_exec(sys.executable, "-c", script)
            assert await other.wait() == 0
            reader, writer = await asyncio.open_unix_connection(path)
            assert await reader.readexactly(9) == b"left over"
            writer.close()
    assert "another process" in caplog.text


async def test_what_an_opener_trips_over_is_told_at_once() -> None:
    """Not as a daemon that gives no answer."""

    @contextlib.asynccontextmanager
    async def opener() -> AsyncGenerator[Stream, None]:
        raise ValueError("embedded null byte")
        yield

    async with asyncio.timeout(5):
        with pytest.raises(ValueError, match="embedded null byte"):
            async with open_bridge(opener):
                pass


async def test_nothing_stays_of_a_command_that_is_killed(tmp_path: Path) -> None:
    """No folder, as the socket that gRPC dials has no file."""
    script = (
        "import asyncio, sys\n"
        "from tests.integration.test_connections import open_bridge, pairs\n"
        "async def main():\n"
        "    with pairs() as (_, opener):\n"
        "        async with open_bridge(opener) as target:\n"
        "            print(target, flush=True)\n"
        "            await asyncio.sleep(60)\n"
        "asyncio.run(main())\n"
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", script, stdout=subprocess.PIPE, env={**os.environ, "TMPDIR": str(tmp_path)}
    )
    assert process.stdout is not None
    assert await process.stdout.readline()
    process.kill()
    await process.wait()
    assert list(tmp_path.iterdir()) == []


async def test_the_bridge_reads_no_more_than_is_taken() -> None:
    """A sender is held up by a receiver that does not read: memory is bounded by buffers of the kernel and ours."""
    loop = asyncio.get_running_loop()
    with pairs() as (_, opener):
        async with open_bridge(opener) as target:
            with socket.socket(socket.AF_UNIX) as sock:
                sock.setblocking(False)
                await loop.sock_connect(sock, bridge_socket(target))
                sent = 0
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(0.5):
                        while sent < 64 << 20:
                            await loop.sock_sendall(sock, bytes(1 << 16))
                            sent += 1 << 16
                assert sent < 8 << 20


@pytest.mark.parametrize("busy", [False, True])
async def test_nothing_is_left_of_a_bridge_when_its_user_is_cancelled(busy: bool) -> None:
    before = asyncio.all_tasks()
    opened = asyncio.Event()
    paths: list[str] = []
    with pairs() as (far, opener):

        async def use() -> None:
            async with open_bridge(opener) as target:
                path = bridge_socket(target)
                paths.append(path)
                if busy:
                    reader, writer = await asyncio.open_unix_connection(path)
                    try:
                        await reader.readexactly(9)
                        opened.set()
                        await reader.read()
                    finally:
                        writer.close()
                opened.set()
                await asyncio.Event().wait()

        using = asyncio.create_task(use())
        await opened.wait()
        using.cancel()
        with pytest.raises(asyncio.CancelledError):
            await using
        await asyncio.sleep(0)
        assert asyncio.all_tasks() == before
        with pytest.raises(OSError):
            await asyncio.open_unix_connection(paths[0])
        assert far[0].recv(1) == b""


async def test_a_bridge_whose_user_is_cancelled_while_its_stream_opens(caplog: pytest.LogCaptureFixture) -> None:
    """Both come in one turn of the loop: nothing is logged of a task that failed."""
    opening, go_on = asyncio.Event(), asyncio.Event()

    @contextlib.asynccontextmanager
    async def opener() -> AsyncGenerator[Stream, None]:
        near, far = socket.socketpair()
        with near, far:
            near.setblocking(False)
            opening.set()
            await go_on.wait()
            yield Stream(near)

    async def use() -> None:
        async with open_bridge(opener):
            pass

    using = asyncio.create_task(use())
    await opening.wait()
    using.cancel()
    go_on.set()
    await asyncio.wait([using])
    assert using.cancelled()
    del using
    gc.collect()
    assert caplog.text == ""


async def test_an_error_of_the_bridges_user_stays_as_it_is() -> None:
    with pairs() as (_, opener), pytest.raises(KeyError):
        async with open_bridge(opener):
            raise KeyError


async def test_the_bridge_says_why_it_has_no_stream(folder: Path) -> None:
    with pytest.raises(ConnectFailed, match="there is no such socket"):
        async with open_bridge(docker_opener(f"{folder}/none.sock")):
            pass


# Real daemons


@pytest.mark.daemon
async def test_a_real_daemon_answers(daemon_address: str) -> None:
    async with open_connection(daemon_address) as connection:
        await connection.info()
        workers = await connection.control.ListWorkers(control_pb2.ListWorkersRequest())
        assert workers.record[0].platforms


@pytest.mark.daemon
async def test_a_real_daemons_error_is_mapped(daemon_address: str) -> None:
    """An unknown ref is refused after the seconds for which a daemon waits for it to appear."""
    async with open_connection(daemon_address) as connection:
        with pytest.raises(aio.AioRpcError) as caught:
            async for _ in connection.control.Status(control_pb2.StatusRequest(Ref="no-such-ref")):
                pass
    error = map_rpc_error(caught.value, what="status")
    assert isinstance(error, RPCError)
    assert error.code == "NOT_FOUND"
    assert "no-such-ref" in error.message
