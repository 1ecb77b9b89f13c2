"""Open a connection to a daemon, and say why when there is none."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import urllib.parse
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from functools import cached_property
from typing import TYPE_CHECKING

import grpc
from grpc import aio

from buildkit_py.errors import (
    ConnectFailed,
    ConnectionLost,
    DeadlineExceeded,
    InvalidOption,
    describe_attempts,
)
from buildkit_py.pb import control_pb2, control_pb2_grpc
from buildkit_py.rpc.address import Address, default_addresses
from buildkit_py.rpc.status import map_rpc_error
from buildkit_py.rpc.tls import TLSConfig, TLSMaterial
from buildkit_py.rpc.transport import open_transport

if TYPE_CHECKING:
    import ssl

    from buildkit_py.pb import content_pb2_grpc, gateway_pb2_grpc

MIN_KEEPALIVE_SECONDS = 300.0
"""A daemon hangs up on a client that pings more often. Source: grpc-go, internal/transport/defaults.go."""
CLOSE_SECONDS = 5.0
_MAX_RECEIVE_BYTES = 64 << 20
"""The daemon sends at most 16 MiB in a message; leave room for one that is told to send more."""
_MAX_METADATA_BYTES = 4 << 20
"""Details of a failed solve travel as metadata, with the Dockerfile in them."""
_RETRY_SECONDS = 0.2
_MAX_SECONDS = 86_400.0
_LOCAL_AUTHORITY = "localhost"


_process: set[int] = set()
"""The process in which the first connection was made. A child of it has gRPC without gRPC's threads."""


class Connection:
    """An open connection to one daemon, shared by any number of calls. Made by open_connection()."""

    def __init__(self, address: Address, channel: aio.Channel, tls: TLSMaterial | None, dial_timeout: float) -> None:
        self.address = address
        self.channel = channel
        self._control = control_pb2_grpc.ControlStub(channel)
        self._closed = False
        self.says_version = True
        """False for BuildKit before v0.11, which cannot be asked."""
        self._tls = tls
        self._dial_timeout = dial_timeout
        self._context: ssl.SSLContext | None = None

    @property
    def authority(self) -> str:
        """Name of the daemon, for HTTP/2."""
        if self.address.scheme == "tcp" and self._tls is not None and self._tls.server_name is not None:
            return self._tls.server_name
        return f"{self.address.host}:{self.address.port}" if self.address.scheme == "tcp" else _LOCAL_AUTHORITY

    @property
    def scheme(self) -> str:
        """``http`` or ``https``, for HTTP/2."""
        return "https" if self.address.scheme == "tcp" and self._tls is not None else "http"

    @contextlib.asynccontextmanager
    async def open_transport(
        self, protocol: Callable[[], asyncio.Protocol]
    ) -> AsyncGenerator[asyncio.WriteTransport, None]:
        """A further connection to the same daemon, for a protocol of the caller's; dropped at the end.

        Raises ConnectFailed with the bare reason.
        """
        self._check_open()
        if self._tls is not None and self._context is None:
            self._context = await asyncio.to_thread(self._tls.context, http2=self.address.scheme == "tcp")
        async with open_transport(
            self.address,
            protocol,
            timeout=self._dial_timeout,
            context=self._context,
            server_name=None if self._tls is None else self._tls.server_name,
        ) as transport:
            yield transport

    def close(self) -> None:
        """Refuse further calls, with ConnectionLost."""
        self._closed = True

    def _check_open(self) -> None:
        if self._closed:
            raise ConnectionLost(f"the connection to {self.address} is closed")

    @property
    def control(self) -> control_pb2_grpc.ControlAsyncStub:
        """What a daemon does."""
        self._check_open()
        return self._control

    @property
    def content(self) -> content_pb2_grpc.ContentAsyncStub:
        """Blobs of the daemon, read-only; absent (UNIMPLEMENTED) before v0.11."""
        self._check_open()
        return self._content

    @property
    def gateway(self) -> gateway_pb2_grpc.LLBBridgeAsyncStub:
        """What a frontend may ask for during its solve."""
        self._check_open()
        return self._gateway

    # Few builds need these two, and their messages take their time to load.

    @cached_property
    def _content(self) -> content_pb2_grpc.ContentAsyncStub:
        from buildkit_py.pb import content_pb2_grpc

        return content_pb2_grpc.ContentStub(self.channel)

    @cached_property
    def _gateway(self) -> gateway_pb2_grpc.LLBBridgeAsyncStub:
        from buildkit_py.pb import gateway_pb2_grpc

        return gateway_pb2_grpc.LLBBridgeStub(self.channel)

    async def info(self) -> control_pb2.InfoResponse:
        """What the daemon says about itself; empty from one too old to be asked. Raises RPCError."""
        try:
            return await self.control.Info(control_pb2.InfoRequest())
        except aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.UNIMPLEMENTED:
                return control_pb2.InfoResponse()
            raise map_rpc_error(error, what="info") from error


@contextlib.asynccontextmanager
async def open_connection(
    address: str | Address | None = None,
    *,
    tls: TLSConfig | None = None,
    dial_timeout: float = 10.0,
    wait: bool = False,
    keepalive: float = 330.0,
) -> AsyncGenerator[Connection, None]:
    """Connect to the daemon at address, or to the first one found in the usual places, and close at the end.

    The value is ready: the daemon has answered a call, within dial_timeout seconds for each place looked at.
    With wait, places are looked at again and again during that time, for a daemon that is still starting.

    Raises InvalidAddress or InvalidOption before any connection is made, and ConnectFailed, which lists every
    place that was looked at and why there was no daemon.
    """
    if not 0 < dial_timeout <= _MAX_SECONDS:
        raise InvalidOption(f"dial_timeout is {dial_timeout:g}: expected seconds, more than 0 and at most a day")
    if not MIN_KEEPALIVE_SECONDS <= keepalive <= _MAX_SECONDS:
        expected = f"expected seconds, from {MIN_KEEPALIVE_SECONDS:g} (what daemons put up with) to a day"
        raise InvalidOption(f"keepalive is {keepalive:g}: {expected}")
    match address:
        case Address():
            places = [address]
        case str():
            places = [Address.parse(address, env=os.environ)]
        case None:
            places = default_addresses(os.environ, os.getuid())
    if tls is not None and (other := next((p for p in places if not p.host), None)):
        raise InvalidOption(f"TLS is for tcp:// addresses and engines across a network only, not for {other}")
    if tls is None and any(p.scheme == "docker" and p.host for p in places):
        docker = TLSConfig.of_docker(os.environ)
    else:
        docker = tls
    materials = {
        "tcp": None if tls is None else await asyncio.to_thread(tls.load),
        "docker": None if docker is None else await asyncio.to_thread(docker.load),
    }
    dialled = [(p, materials[p.scheme] if p.host else None) for p in places]
    async with contextlib.AsyncExitStack() as stack:
        yield await _first_ready(stack, dialled, dial_timeout, wait=wait, keepalive=keepalive)


async def _first_ready(
    stack: contextlib.AsyncExitStack,
    places: Sequence[tuple[Address, TLSMaterial | None]],
    dial_timeout: float,
    *,
    wait: bool,
    keepalive: float,
) -> Connection:
    loop = asyncio.get_running_loop()
    end = loop.time() + dial_timeout
    while True:
        attempts: list[tuple[str, str]] = []
        for place, tls in places:
            try:
                return await stack.enter_async_context(_dial(place, tls, dial_timeout, keepalive))
            except ConnectFailed as error:
                attempts.append((str(place), str(error)))
        if not wait or loop.time() + _RETRY_SECONDS >= end:
            break
        await asyncio.sleep(_RETRY_SECONDS)
    if len(attempts) == 1:
        where, why = attempts[0]
        raise ConnectFailed(f"cannot connect to {where}: {why}", attempts)
    raise ConnectFailed(
        f"no BuildKit daemon found; looked at:{describe_attempts(attempts)}\n"
        "Name one in $BUILDKIT_HOST; `buildkit-py daemon start` starts one, and prints what to set it to",
        attempts,
    )


@contextlib.asynccontextmanager
async def _dial(
    address: Address, tls: TLSMaterial | None, dial_timeout: float, keepalive: float
) -> AsyncGenerator[Connection, None]:
    """Raises ConnectFailed with the bare reason."""
    _check_process()
    async with contextlib.AsyncExitStack() as stack:
        try:
            async with asyncio.timeout(dial_timeout):
                target = await _target(stack, address, tls)
                # To an engine it is the bridge that speaks TLS.
                channel = _channel(target, address, tls if address.scheme == "tcp" else None, dial_timeout, keepalive)
                stack.push_async_callback(_close, channel)
                connection = Connection(address, channel, tls, dial_timeout)
                stack.callback(connection.close)
                await _ready(connection, tls, dial_timeout)
        except TimeoutError:
            # A deadline that gRPC reached itself comes as DeadlineExceeded, which is a TimeoutError too.
            raise ConnectFailed(f"no answer within {dial_timeout:g} s") from None
        yield connection


def _check_process() -> None:
    _process.add(os.getpid())
    if len(_process) > 1:
        raise ConnectFailed(
            "this process was forked from one that had a connection, which gRPC does not survive; "
            "start processes by multiprocessing's 'spawn' or 'forkserver', or connect after the fork only"
        )


async def _target(stack: contextlib.AsyncExitStack, address: Address, tls: TLSMaterial | None) -> str:
    """What gRPC is to dial."""
    match address.scheme:
        case "tcp":
            host = f"[{address.host}]" if ":" in address.host else address.host
            return f"dns:///{urllib.parse.quote(host, safe='[]:')}:{address.port}"
        case "unix":
            await _try_socket(address.path)
            return f"unix:{urllib.parse.quote(address.path)}"
        case "docker":
            context = None if tls is None else await asyncio.to_thread(tls.context, http2=False)
            name = None if tls is None else tls.server_name
            return await stack.enter_async_context(_bridge(address, context, name))


def _bridge(
    address: Address, context: ssl.SSLContext | None, server_name: str | None
) -> AbstractAsyncContextManager[str]:
    from buildkit_py.rpc.bridge import docker_opener, open_bridge, remote_docker_opener

    if address.host:
        return open_bridge(remote_docker_opener(address, context, server_name))
    return open_bridge(docker_opener(address.path))


async def _try_socket(path: str) -> None:
    """A connection made and dropped tells more than gRPC does, and costs a unix socket next to nothing."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.setblocking(False)
        try:
            await asyncio.get_running_loop().sock_connect(sock, path)
        except OSError as error:
            from buildkit_py.rpc.bridge import socket_reason

            raise ConnectFailed(socket_reason(path, error)) from error


async def _ready(connection: Connection, tls: TLSMaterial | None, dial_timeout: float) -> None:
    """Return once the daemon has answered."""
    control = connection.control
    try:
        try:
            await control.Info(control_pb2.InfoRequest(), timeout=dial_timeout)
        except aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.UNIMPLEMENTED:
                raise
            # BuildKit before v0.11, or something else that speaks gRPC.
            connection.says_version = False
            await control.ListWorkers(control_pb2.ListWorkersRequest(), timeout=dial_timeout)
    except aio.AioRpcError as error:
        if error.code() is grpc.StatusCode.UNIMPLEMENTED:
            raise ConnectFailed(f"what answers is not BuildKit{_docker_hint(connection.address)}") from error
        mapped = map_rpc_error(error, what="info")
        if isinstance(mapped, DeadlineExceeded):
            raise mapped from error
        reason = None
        if isinstance(mapped, ConnectionLost):
            from buildkit_py.rpc.diagnosis import diagnose

            reason = await diagnose(connection.address, tls)
        reason = reason or error.details() or mapped.__class__.__name__
        raise ConnectFailed(reason + _docker_hint(connection.address)) from error


def _docker_hint(address: Address) -> str:
    if address.scheme == "unix" and address.path.endswith("docker.sock"):
        return f"; for docker's own socket say docker://{address.path}"
    return ""


def _channel(
    target: str, address: Address, tls: TLSMaterial | None, dial_timeout: float, keepalive: float
) -> aio.Channel:
    options: list[tuple[str, int | str]] = [
        ("grpc.max_send_message_length", -1),
        ("grpc.max_receive_message_length", _MAX_RECEIVE_BYTES),
        ("grpc.max_metadata_size", _MAX_METADATA_BYTES),
        ("grpc.absolute_max_metadata_size", _MAX_METADATA_BYTES),
        # Two clients of one process do not share a connection: closing one would not close it.
        ("grpc.use_local_subchannel_pool", 1),
        # Builds are not repeated behind our back.
        ("grpc.enable_retries", 0),
        ("grpc.service_config_disable_resolution", 1),
        # The address names the daemon itself; buildctl does not go through HTTP proxies either.
        ("grpc.enable_http_proxy", 0),
        ("grpc.initial_reconnect_backoff_ms", 100),
        # Not a pause, but how long one attempt to connect may take.
        ("grpc.min_reconnect_backoff_ms", int(dial_timeout * 1000)),
        ("grpc.max_reconnect_backoff_ms", 1000),
    ]
    if address.scheme == "tcp":
        options.append(("grpc.keepalive_time_ms", int(keepalive * 1000)))
        options.append(("grpc.keepalive_timeout_ms", 20_000))
    else:
        # By default it is the socket's path, escaped, which Go's HTTP/2 server refuses.
        options.append(("grpc.default_authority", _LOCAL_AUTHORITY))
    if tls is None:
        return aio.insecure_channel(target, options=options)
    if tls.server_name is not None:
        options.append(("grpc.ssl_target_name_override", tls.server_name))
        options.append(("grpc.default_authority", tls.server_name))
    credentials = grpc.ssl_channel_credentials(tls.ca, tls.key, tls.cert)
    return aio.secure_channel(target, credentials, options=options)


async def _close(channel: aio.Channel) -> None:
    """End what is still running on the channel, for a bounded time."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(CLOSE_SECONDS):
            await channel.close()
