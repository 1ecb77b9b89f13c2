"""What the session server and the services behind it know of each other.

A service is an :class:`Attachable`: a table from full method path to :data:`Handler`. A handler gets one
:class:`Call`, speaks raw message bytes, and ends the call by returning (status OK) or by raising
:class:`CallError` (that status) or anything else (UNKNOWN with the text of the error).
"""

from __future__ import annotations

import enum
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Protocol, TypeAlias

from buildkit_py.errors import BuildKitError

# Methods whose being served a solve has to say.
CHECK_POLICY = "/moby.buildkit.v1.sourcepolicy.policysession.PolicyVerifier/CheckPolicy"
FIND_EXPORTERS = "/moby.exporter.v1.Exporter/FindExporters"


class Code(enum.IntEnum):
    """gRPC status codes. Source: grpc, doc/statuscodes.md."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


class CallError(BuildKitError):
    """Ends a call of the daemon with this status; the text travels to the user of the build."""

    def __init__(self, code: Code, message: str) -> None:
        self.code = code
        self.message = message
        super().__init__(message)


class Call(Protocol):
    """One call that the daemon makes on the session."""

    @property
    def method(self) -> str:
        """Full method path, such as ``/moby.filesync.v1.FileSync/DiffCopy``."""
        ...

    @property
    def metadata(self) -> Sequence[tuple[str, str]]:
        """Request headers in the order they came, names in lower case; pseudo headers are left out."""
        ...

    async def receive(self) -> bytes | None:
        """Next message of the daemon, or None once it has half-closed.

        Raises SessionClosed when the session ends; is cancelled when the daemon cancels the call.
        """
        ...

    async def send(self, *messages: bytes | bytearray | memoryview) -> None:
        """Queue messages in order, waiting only while too much is queued; several at once share frames.

        The buffers must not be changed afterwards. Same errors as receive.
        """
        ...


Handler: TypeAlias = Callable[[Call], Awaitable[None]]


class Attachable(Protocol):
    """A service, or a part of one, that a session can serve."""

    def methods(self) -> Mapping[str, Handler]:
        """Handlers by full method path; read once, when the session is opened."""
        ...


def metadata_values(metadata: Sequence[tuple[str, str]], name: str) -> list[str]:
    """All values of one header, in order."""
    return [value for key, value in metadata if key == name]


async def only_message(call: Call) -> bytes:
    """The request of a call that takes one message."""
    message = await call.receive()
    if message is None:
        raise CallError(Code.INVALID_ARGUMENT, f"{call.method}: no request")
    return message
