"""What gRPC and the daemon say about a failed call, as errors of ours."""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, TypeAlias, cast

import grpc
from google.protobuf.message import DecodeError

from buildkit_py.errors import (
    BuildKitError,
    ConnectionLost,
    DeadlineExceeded,
    RPCError,
    SolveError,
    SourceDenied,
    SourceSnippet,
)
from buildkit_py.jsonfields import object_at, objects_at

if TYPE_CHECKING:
    from google.rpc import status_pb2  # type: ignore[import-untyped]  # has no stubs

Details: TypeAlias = tuple[tuple[str, bytes], ...]
"""(type URL, value) of each detail of a status, outermost wrapper of the error first."""

_TRAILER = "grpc-status-details-bin"
_TYPE_URL = "github.com/moby/buildkit/{}+json"
_EXIT_CODE = re.compile(r"did not complete successfully: exit code: (\d{1,10})")
# Source: buildkit, solver/llbsolver/policy.go and sourcepolicy/engine.go.
_DENIED = re.compile(r'source "([^"]+)" (?:not allowed by policy: action|denied by policy)')
_UNKNOWN_EXIT_CODE = 255
_UNKNOWN = 2  # the code of a status without one
# What every hop between two processes puts before an error of this side, such as a disk that is full.
_HOP = re.compile(r"rpc error: code = Unknown desc = ")
_MAX_SOURCES = 64
_MAX_LINE = 2**31 - 1


def map_rpc_error(error: grpc.RpcError, *, what: str) -> BuildKitError:
    """Our error for one that gRPC raised; what names the call in the text, such as "disk usage"."""
    code, message = _code(error), _message(error)
    details = status_details(error)
    # Both codes also come from gRPC itself, and then without details; an error of BuildKit has some.
    if not details and _lost(code, message):
        return ConnectionLost(f"{what}: lost the connection to the daemon: {message}")
    if code == "DEADLINE_EXCEEDED":
        return DeadlineExceeded(f"{what}: {message or 'deadline exceeded'}")
    return RPCError(code, message, details)


@contextmanager
def mapped(what: str) -> Generator[None, None, None]:
    """Raise what map_rpc_error makes of gRPC's errors; for the awaits and iterations of one call."""
    try:
        yield
    except grpc.RpcError as error:
        raise map_rpc_error(error, what=what) from error


def map_solve_error(error: grpc.RpcError, *, what: str = "solve", ref: str = "", platform: str = "") -> BuildKitError:
    """The same for a call whose failure is that of a build: a SolveError, unless gRPC itself failed."""
    details = status_details(error)
    if details:
        return solve_error(RPCError(_code(error), _message(error), details), ref=ref, platform=platform)
    plain = map_rpc_error(error, what=what)
    return solve_error(plain, ref=ref, platform=platform) if isinstance(plain, RPCError) else plain


def solve_error(error: RPCError, *, ref: str = "", platform: str = "") -> SolveError:
    """Add what the details say: vertex, exit code, and where in the sources; a denial is a SourceDenied.

    Details that are not understood are left out of the fields and kept in error.details.
    """
    vertex = vertex_name = ""
    codes: list[int] = []
    reasons: list[str] = []
    sources: list[SourceSnippet] = []
    for name, document in _documents(error.details):
        match name:
            case "errdefs.Vertex":
                vertex = _text(document, "digest") or vertex
            case "errdefs.Solve":
                vertex_name = _text(object_at(document, "description"), "llb.customname") or vertex_name
            case "errdefs.Source":
                snippet = _snippet(document)
                if snippet is not None and snippet not in sources and len(sources) < _MAX_SOURCES:
                    sources.append(snippet)
            case "gatewayapi.ExitMessage":
                codes.append(_int(document, "Code"))
            case "policysession.DecisionResponse":
                reasons += [_text(entry, "message") for entry in objects_at(document, "denyMessages")]
            case _:
                pass
    message = _HOP.sub("", error.message)
    denied = _DENIED.search(message)
    failed = (SourceDenied if denied or reasons else SolveError)(
        error.code,
        f"{message}: {'; '.join(reasons)}" if reasons else message,
        error.details,
        ref=ref,
        platform=platform,
        vertex=vertex,
        vertex_name=vertex_name,
        exit_code=_exit_code(codes, error.message),
        sources=sources[::-1],
    )
    if isinstance(failed, SourceDenied):
        failed.source = denied[1] if denied else ""
        failed.reasons = tuple(reasons)
    return failed


def exit_code_in(text: str) -> int | None:
    """Exit code that the text of a failed vertex tells, or None."""
    found = _EXIT_CODE.findall(text)
    return int(found[-1]) if found else None


def status_details(error: grpc.RpcError) -> Details:
    """Details of the status in the call's trailers; none where there are none, or where they are garbled."""
    for key, value in _trailers(error):
        if key == _TRAILER and isinstance(value, bytes):
            return parse_status(value).details
    return ()


def status_of(error: grpc.RpcError) -> status_pb2.Status:
    """The error as a message that can be handed on, with its details where there are any."""
    from google.rpc import status_pb2

    for key, value in _trailers(error):
        if key == _TRAILER and isinstance(value, bytes):
            with suppress(DecodeError):
                return status_pb2.Status.FromString(value)
    number = next((number for number, name in _CODES.items() if name == _code(error)), _UNKNOWN)
    return status_pb2.Status(code=number, message=_message(error))


def _trailers(error: grpc.RpcError) -> Sequence[tuple[str, str | bytes]]:
    trailers = getattr(error, "trailing_metadata", None)
    return tuple(cast("Sequence[tuple[str, str | bytes]]", trailers() or ())) if callable(trailers) else ()


def parse_status(data: bytes) -> RPCError:
    """Read a serialised google.rpc.Status, as trailers and history hold it, or say that it is garbled."""
    # Here, as most calls succeed.
    from google.rpc import status_pb2

    try:
        status = status_pb2.Status.FromString(data)
    except DecodeError:
        return RPCError("UNKNOWN", "an error that cannot be read")
    details = tuple((detail.type_url, detail.value) for detail in status.details)
    return RPCError(_CODES.get(status.code, "UNKNOWN"), status.message, details)


_CODES: Mapping[int, str] = {code.value[0]: code.name for code in grpc.StatusCode}


def _code(error: grpc.RpcError) -> str:
    code = getattr(error, "code", None)
    status = code() if callable(code) else None
    return status.name if isinstance(status, grpc.StatusCode) else "UNKNOWN"


def _message(error: grpc.RpcError) -> str:
    details = getattr(error, "details", None)
    text = details() if callable(details) else None
    return text if isinstance(text, str) and text else str(error) if text is None else ""


def _lost(code: str, message: str) -> bool:
    """True when a status says that the transport broke, not that a call failed."""
    return code == "UNAVAILABLE" or (
        # A stream that ended without a status, and one that was reset by a daemon going down.
        code in {"UNKNOWN", "INTERNAL"} and ("Stream removed" in message or "RST_STREAM" in message)
    )


def _documents(details: Details) -> Iterator[tuple[str, Mapping[str, object]]]:
    """Those details that are JSON objects of BuildKit, by short name."""
    prefix, suffix = _TYPE_URL.split("{}")
    for url, value in details:
        if not (url.startswith(prefix) and url.endswith(suffix)):
            continue
        try:
            document: object = json.loads(value)
        except (ValueError, RecursionError):
            continue
        if isinstance(document, dict):
            yield url[len(prefix) : -len(suffix)], cast("dict[str, object]", document)


def _snippet(document: Mapping[str, object]) -> SourceSnippet | None:
    info = object_at(document, "info")
    try:
        data = base64.b64decode(_text(info, "data"))
    except (binascii.Error, ValueError):
        return None
    ranges: list[tuple[int, int]] = []
    for entry in objects_at(document, "ranges"):
        start, end = (_int(object_at(entry, side), "line") for side in ("start", "end"))
        ranges.append((start, max(start, end)))
    return SourceSnippet(_text(info, "filename"), _text(info, "language"), data, tuple(ranges))


def _exit_code(codes: list[int], text: str) -> int | None:
    """The daemon says 255 for a code that it does not know; its text then decides."""
    known = [code for code in codes if 0 < code != _UNKNOWN_EXIT_CODE]
    return known[-1] if known else exit_code_in(text)


def _text(document: Mapping[str, object], key: str) -> str:
    value = document.get(key)
    # JSON can hold halves of surrogate pairs, which cannot be printed.
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else ""


def _int(document: Mapping[str, object], key: str) -> int:
    """A number that may be written as text; 0 for anything that is none of reasonable size."""
    value = document.get(key)
    if isinstance(value, str) and re.fullmatch(r"-?[0-9]{1,10}", value):
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool) and -_MAX_LINE <= value <= 2**32:
        return value
    return 0
