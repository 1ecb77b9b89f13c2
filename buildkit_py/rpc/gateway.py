"""Be the frontend of a solve: run another frontend or a graph for it, and hand the result back."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping, MutableMapping
from typing import TYPE_CHECKING

import grpc
from grpc import aio

from buildkit_py.pb import control_pb2, gateway_pb2
from buildkit_py.rpc.status import status_of

if TYPE_CHECKING:
    from buildkit_py.pb import ops_pb2
    from buildkit_py.rpc.connection import Connection

_BUILD_ID = "buildkit-controlapi-buildid"
_RETRY_SECONDS = 0.1


def as_gateway(message: control_pb2.SolveRequest) -> gateway_pb2.SolveRequest:
    """Take what is to be solved out of a request, which then waits for forward() or answer(), and say what it was."""
    inner = gateway_pb2.SolveRequest(
        Frontend=message.Frontend,
        FrontendInputs=message.FrontendInputs,
        allowResultReturn=True,
        allowResultArrayRef=True,
    )
    inner.FrontendOpt.update(message.FrontendAttrs)
    message.Frontend = ""
    return inner


def graph_as_gateway(message: control_pb2.SolveRequest, definition: ops_pb2.Definition) -> gateway_pb2.SolveRequest:
    """Take what is to be solved out of a request, which then waits for answer(), and say how to solve this instead."""
    message.ClearField("Definition")
    return gateway_pb2.SolveRequest(
        Definition=definition,
        # A frontend imports caches by itself; a graph that is solved for one is given them by it.
        CacheImports=[
            gateway_pb2.CacheOptionsEntry(Type=entry.Type, Attrs=entry.Attrs) for entry in message.Cache.Imports
        ],
        allowResultReturn=True,
        allowResultArrayRef=True,
    )


async def forward(
    connection: Connection, ref: str, inner: gateway_pb2.SolveRequest, found: MutableMapping[str, bytes]
) -> None:
    """Run a frontend for the solve ref, which is running or about to; found gets the metadata of its result.

    The solve ends without a result of its own, or with the frontend's error. Raises grpc.RpcError with the same.
    When the solve has ended well, found is complete, though this may not have returned yet.
    Source: buildkit, client/build.go.
    """
    found.update((await _inner(connection, ref, inner)).metadata)
    await _return(connection, ref, gateway_pb2.ReturnRequest(result=gateway_pb2.Result()))


async def answer(
    connection: Connection,
    ref: str,
    inners: Mapping[str, gateway_pb2.SolveRequest],
    metadata: Mapping[str, bytes],
) -> None:
    """Solve definitions for the solve ref, which is running or about to, and say of its result what metadata has.

    The result is one of several platforms, by their ids; or of one, which has the name "". Raises grpc.RpcError where
    the daemon refuses a definition, and the solve ends with the same. A vertex that fails ends the solve alone, as the
    daemon builds nothing before it has the answer.
    """
    result = gateway_pb2.Result()
    for platform, inner in inners.items():
        found = await _inner(connection, ref, inner)
        if platform:
            result.refs.refs[platform].CopyFrom(found.ref)
        else:
            result.CopyFrom(found)
    result.metadata.update(metadata)
    await _return(connection, ref, gateway_pb2.ReturnRequest(result=result))


async def read_file(
    connection: Connection, ref: str, inner: gateway_pb2.SolveRequest, path: str, max_bytes: int, found: bytearray
) -> None:
    """Solve a definition for the solve ref, which is running or about to; found gets the file, at most so many bytes.

    The solve ends without a result of its own, or with the error of whatever failed. Raises grpc.RpcError with the
    same. When the solve has ended well, found is complete, though this may not have returned yet.
    """
    result = await _inner(connection, ref, inner)
    request = gateway_pb2.ReadFileRequest(
        Ref=result.ref.id, FilePath=path, Range=gateway_pb2.FileRange(Offset=0, Length=max_bytes)
    )
    try:
        found += (await connection.gateway.ReadFile(request, metadata=((_BUILD_ID, ref),))).Data[:max_bytes]
    except grpc.RpcError as error:
        with contextlib.suppress(grpc.RpcError):
            await _return(connection, ref, gateway_pb2.ReturnRequest(error=status_of(error)))
        raise
    await _return(connection, ref, gateway_pb2.ReturnRequest(result=gateway_pb2.Result()))


async def capabilities(connection: Connection, ref: str) -> frozenset[str]:
    """What the daemon lists for frontends, of its own interface and of LLB, to a solve of nothing named ref.

    Raises grpc.RpcError, alone or in a group.
    """
    found: frozenset[str] = frozenset()

    async def answer() -> None:
        nonlocal found
        pong = await _known(connection, ((_BUILD_ID, ref),))
        found = frozenset(entry.ID for entry in (*pong.FrontendAPICaps, *pong.LLBCaps) if entry.Enabled)
        await _return(connection, ref, gateway_pb2.ReturnRequest(result=gateway_pb2.Result()))

    async with asyncio.TaskGroup() as tasks:
        answering = tasks.create_task(answer())
        await connection.control.Solve(control_pb2.SolveRequest(Ref=ref, Internal=True))
        await answering
    return found


async def _inner(connection: Connection, ref: str, inner: gateway_pb2.SolveRequest) -> gateway_pb2.Result:
    """What the daemon makes of the inner solve; where that fails the outer one is told so."""
    await _known(connection, ((_BUILD_ID, ref),))
    try:
        reply = await connection.gateway.Solve(inner, metadata=((_BUILD_ID, ref),))
    except grpc.RpcError as error:
        # Without an answer the solve would wait for ever; one that has failed by itself takes none.
        with contextlib.suppress(grpc.RpcError):
            await _return(connection, ref, gateway_pb2.ReturnRequest(error=status_of(error)))
        raise
    return reply.result


async def _return(connection: Connection, ref: str, answer: gateway_pb2.ReturnRequest) -> None:
    await connection.gateway.Return(answer, metadata=((_BUILD_ID, ref),))


async def _known(connection: Connection, metadata: tuple[tuple[str, str], ...]) -> gateway_pb2.PongResponse:
    """What the daemon says of itself, once it knows the solve: it waits for some seconds, the solve may come later."""
    while True:
        try:
            return await connection.gateway.Ping(gateway_pb2.PingRequest(), metadata=metadata)
        except aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.NOT_FOUND:
                raise
        await asyncio.sleep(_RETRY_SECONDS)
