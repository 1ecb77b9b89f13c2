"""A connection to a daemon for a protocol of our own, beside the one that gRPC has."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from buildkit_py.errors import ConnectFailed
from buildkit_py.rpc.address import Address

if TYPE_CHECKING:
    import ssl


@asynccontextmanager
async def open_transport(
    address: Address,
    protocol: Callable[[], asyncio.Protocol],
    *,
    timeout: float,  # of the connecting alone, not of the body
    context: ssl.SSLContext | None = None,
    server_name: str | None = None,
) -> AsyncGenerator[asyncio.Transport]:
    """Connect protocol to the daemon, within timeout seconds; at the end the connection is dropped.

    context is that of TLS, for tcp addresses. Raises ConnectFailed with the bare reason.
    """
    loop = asyncio.get_running_loop()
    match address.scheme:
        case "unix":
            connecting = loop.create_unix_connection(protocol, address.path)
        case "tcp":
            name = (server_name or address.host) if context is not None else None
            connecting = loop.create_connection(protocol, address.host, address.port, ssl=context, server_hostname=name)
        case "docker":
            async with _upgraded(address, protocol, context, server_name) as transport:
                yield transport
            return
    try:
        async with asyncio.timeout(timeout):
            transport, _ = await connecting
    except TimeoutError:
        raise ConnectFailed(f"no answer within {timeout:g} s") from None
    except OSError as error:
        raise ConnectFailed(_reason(address, error)) from error
    try:
        yield transport
    finally:
        await _close(transport)


@asynccontextmanager
async def _upgraded(
    address: Address,
    protocol: Callable[[], asyncio.Protocol],
    context: ssl.SSLContext | None,
    server_name: str | None,
) -> AsyncGenerator[asyncio.Transport]:
    """By way of docker's API, which has its own deadline."""
    from buildkit_py.rpc.bridge import docker_opener, remote_docker_opener

    opener = remote_docker_opener(address, context, server_name) if address.host else docker_opener(address.path)
    async with opener() as stream:

        def fed() -> asyncio.Protocol:
            made = protocol()
            if stream.leftover:
                made.data_received(stream.leftover)
            return made

        try:
            transport, _ = await asyncio.get_running_loop().create_connection(fed, sock=stream.sock)
        except OSError as error:
            raise ConnectFailed(error.strerror or str(error)) from error
        try:
            yield transport
        finally:
            await _close(transport)


async def _close(transport: asyncio.Transport) -> None:
    """Drop what is still open, and let the loop forget the socket: it does so a turn later."""
    transport.abort()
    await asyncio.sleep(0)


def _reason(address: Address, error: OSError) -> str:
    if address.scheme == "unix":
        from buildkit_py.rpc.bridge import socket_reason

        return socket_reason(address.path, error)
    if isinstance(error, socket.gaierror):
        return f"host {address.host!r} cannot be resolved: {error.strerror}"
    return error.strerror or str(error)
