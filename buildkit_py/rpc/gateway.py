"""Be the frontend of a solve: run another frontend for it, read what that says, and hand its result back."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import MutableMapping
from typing import TYPE_CHECKING

import grpc
from grpc import aio

from buildkit_py.pb import gateway_pb2
from buildkit_py.rpc.status import status_of

if TYPE_CHECKING:
    from buildkit_py.pb import control_pb2
    from buildkit_py.rpc.connection import Connection

_BUILD_ID = "buildkit-controlapi-buildid"
_RETRY_SECONDS = 0.1


def as_gateway(message: control_pb2.SolveRequest) -> gateway_pb2.SolveRequest:
    """Take the frontend out of a solve, which then waits for forward(), and say what it was."""
    inner = gateway_pb2.SolveRequest(
        Frontend=message.Frontend,
        FrontendOpt=message.FrontendAttrs,
        FrontendInputs=message.FrontendInputs,
        allowResultReturn=True,
        allowResultArrayRef=True,
    )
    message.Frontend = ""
    return inner


async def forward(
    connection: Connection, ref: str, inner: gateway_pb2.SolveRequest, found: MutableMapping[str, bytes]
) -> None:
    """Run a frontend for the solve ref, which is running or about to; found gets the metadata of its result.

    The solve ends without a result of its own, or with the frontend's error. Raises grpc.RpcError with the same.
    When the solve has ended well, found is complete, though this may not have returned yet.
    Source: buildkit, client/build.go.
    """
    metadata = ((_BUILD_ID, ref),)
    await _known(connection, metadata)
    try:
        reply = await connection.gateway.Solve(inner, metadata=metadata)
    except grpc.RpcError as error:
        # Without an answer the solve would wait for ever; one that has failed by itself takes none.
        with contextlib.suppress(grpc.RpcError):
            await connection.gateway.Return(gateway_pb2.ReturnRequest(error=status_of(error)), metadata=metadata)
        raise
    found.update(reply.result.metadata)
    await connection.gateway.Return(gateway_pb2.ReturnRequest(result=gateway_pb2.Result()), metadata=metadata)


async def _known(connection: Connection, metadata: tuple[tuple[str, str], ...]) -> None:
    """Wait until the daemon knows the solve: it waits for some seconds itself, but the solve may come later."""
    while True:
        try:
            await connection.gateway.Ping(gateway_pb2.PingRequest(), metadata=metadata)
            return
        except aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.NOT_FOUND:
                raise
        await asyncio.sleep(_RETRY_SECONDS)
