"""gRPC's errors as ours, and what the details of a failed solve tell."""

from __future__ import annotations

import base64
import json

import grpc
import pytest
from google.protobuf.any_pb2 import Any
from google.rpc.status_pb2 import Status  # type: ignore[import-untyped]  # has no stubs
from grpc import aio
from hypothesis import given
from hypothesis import strategies as st

from buildkit_py.errors import (
    BuildKitError,
    ConnectionLost,
    DeadlineExceeded,
    RPCError,
    SolveError,
    SourceDenied,
    SourceSnippet,
)
from buildkit_py.rpc import exit_code_in, map_rpc_error, map_solve_error, parse_status, solve_error

PREFIX = "github.com/moby/buildkit/"
EXIT_3 = 'process "/bin/sh -c exit 3" did not complete successfully: exit code: 3'


def detail(name: str, value: object) -> tuple[str, bytes]:
    return f"{PREFIX}{name}+json", json.dumps(value).encode()


def source(filename: str, data: bytes, *ranges: tuple[int, int]) -> tuple[str, bytes]:
    places = [{"start": {"line": a}, "end": {"line": b}} for a, b in ranges]
    info = {"filename": filename, "data": base64.b64encode(data).decode(), "language": "Dockerfile"}
    return detail("errdefs.Source", {"info": info, "ranges": places})


def status(message: str, *details: tuple[str, bytes], code: int = 2) -> bytes:
    anys = [Any(type_url=url, value=value) for url, value in details]
    return bytes(Status(code=code, message=message, details=anys).SerializeToString())


def failed(code: grpc.StatusCode, message: str, trailer: bytes | None = None) -> aio.AioRpcError:
    trailers = aio.Metadata(("x-other", "1"))
    if trailer is not None:
        trailers.add("grpc-status-details-bin", trailer)
    return aio.AioRpcError(code, aio.Metadata(), trailers, details=message)


def test_only_so_many_sources_are_kept() -> None:
    """What a frontend attaches to an error is its own affair; 64 places are more than anybody reads."""
    details = [source(f"f{number}", b"x\n", (1, 1)) for number in range(70)]
    error = map_solve_error(failed(grpc.StatusCode.UNKNOWN, EXIT_3, status(EXIT_3, *details)), ref="r", platform="")
    assert isinstance(error, SolveError)
    assert len(error.sources) == 64


@pytest.mark.parametrize(
    ("code", "message", "kind"),
    [
        (grpc.StatusCode.UNAVAILABLE, "Socket closed", ConnectionLost),
        (grpc.StatusCode.UNKNOWN, "Stream removed (Socket closed)", ConnectionLost),
        (grpc.StatusCode.INTERNAL, "Received RST_STREAM with error code 2", ConnectionLost),
        (grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded", DeadlineExceeded),
        (grpc.StatusCode.UNKNOWN, "boom", RPCError),
        (grpc.StatusCode.NOT_FOUND, "no such job", RPCError),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "received metadata size exceeds", RPCError),
    ],
)
def test_each_status_has_its_error(code: grpc.StatusCode, message: str, kind: type[BuildKitError]) -> None:
    error = map_rpc_error(failed(code, message), what="disk usage")
    assert type(error) is kind
    assert message in str(error)
    assert not isinstance(error, RPCError) or error.code == code.name


def test_unavailable_with_details_is_the_daemons_word_and_no_lost_connection() -> None:
    """A registry that is down makes a solve fail with the code of a broken transport."""
    trailer = status("registry is down", detail("stack.Stack", {}), code=14)
    call = failed(grpc.StatusCode.UNAVAILABLE, "registry is down", trailer)
    error = map_rpc_error(call, what="prune")
    assert isinstance(error, RPCError)
    assert isinstance(map_solve_error(call), SolveError)


def test_an_error_that_came_back_from_this_side_reads_as_it_was_sent() -> None:
    """An export that cannot be written fails in our handler; the daemon wraps what that said."""
    error = solve_error(RPCError("UNKNOWN", "rpc error: code = Unknown desc = cannot write '/x': No space left"))
    assert str(error) == "cannot write '/x': No space left"


def test_a_lost_connection_is_not_a_failed_solve() -> None:
    assert type(map_solve_error(failed(grpc.StatusCode.UNAVAILABLE, "Socket closed"))) is ConnectionLost


def test_details_are_kept_as_received() -> None:
    details = (detail("errdefs.Vertex", {"digest": "sha256:1"}), ("type.googleapis.com/x.Y", b"\xff\0"))
    error = map_rpc_error(failed(grpc.StatusCode.UNKNOWN, "m", status("m", *details)), what="x")
    assert isinstance(error, RPCError)
    assert error.details == details


@pytest.mark.parametrize("trailer", [None, b"", b"\xff\xff\xff", b"\x1a\x05ab"])
def test_absent_and_garbled_details_are_none(trailer: bytes | None) -> None:
    error = map_rpc_error(failed(grpc.StatusCode.UNKNOWN, "m", trailer), what="x")
    assert isinstance(error, RPCError)
    assert (error.message, error.details) == ("m", ())


def test_an_error_that_is_no_call_is_mapped_too() -> None:
    error = map_rpc_error(grpc.RpcError("odd"), what="x")
    assert isinstance(error, RPCError)
    assert (error.code, error.message) == ("UNKNOWN", "odd")


def test_a_failed_run_tells_vertex_exit_code_and_place() -> None:
    dockerfile = b"FROM a\nRUN exit 3\n"
    details = (
        detail("stack.Stack", {"frames": []}),
        detail("errdefs.Frontend", {"name": "dockerfile.v0"}),
        detail("errdefs.Solve", {"description": {"llb.customname": "[2/2] RUN exit 3"}}),
        source("outer", b"x\n", (1, 1)),
        source("Dockerfile", dockerfile, (2, 2), (5, 4)),
        detail("errdefs.Vertex", {"digest": "sha256:aa"}),
        detail("gatewayapi.ExitMessage", {"Code": 3}),
    )
    call = failed(grpc.StatusCode.UNKNOWN, EXIT_3, status(EXIT_3, *details))
    error = map_solve_error(call, ref="r", platform="linux/arm64")
    assert isinstance(error, SolveError)
    assert (error.ref, error.platform, error.code) == ("r", "linux/arm64", "UNKNOWN")
    assert (error.vertex, error.vertex_name, error.exit_code) == ("sha256:aa", "[2/2] RUN exit 3", 3)
    assert error.sources == (
        SourceSnippet("Dockerfile", "Dockerfile", dockerfile, ((2, 2), (5, 5))),
        SourceSnippet("outer", "Dockerfile", b"x\n", ((1, 1),)),
    )
    assert error.details == details
    assert str(error) == EXIT_3


@pytest.mark.parametrize(
    ("code", "text", "expected"),
    [
        (3, "killed", 3),
        ("137", "cannot allocate memory", 137),
        (None, EXIT_3, 3),
        (None, "registry is down", None),
        (0, "x did not complete successfully: exit code: 0", 0),
        (255, "executor failed", None),
        (255, "x did not complete successfully: exit code: 255", 255),
        (True, "odd", None),
        (-1, "odd", None),
    ],
)
def test_the_exit_code_comes_from_the_detail_then_from_the_text(code: object, text: str, expected: int | None) -> None:
    details = [] if code is None else [detail("gatewayapi.ExitMessage", {"Code": code})]
    assert solve_error(RPCError("UNKNOWN", text, details)).exit_code == expected


def test_the_exit_code_in_a_text_is_the_last_one() -> None:
    """The command itself may print such a line into its own arguments."""
    text = 'process "did not complete successfully: exit code: 1" did not complete successfully: exit code: 2'
    assert exit_code_in(text) == 2
    assert exit_code_in("fine") is None


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
keys = st.sampled_from(["info", "ranges", "start", "end", "line", "data", "digest", "Code", "description"])
shaped = st.recursive(
    json_values,
    lambda inner: st.dictionaries(keys, inner, max_size=4) | st.lists(inner, max_size=3),
    max_leaves=12,
)
names = st.sampled_from(["errdefs.Vertex", "errdefs.Source", "errdefs.Solve", "gatewayapi.ExitMessage"])


@given(st.lists(st.tuples(names, shaped), max_size=4))
def test_any_json_in_the_details_makes_an_error_that_prints(details: list[tuple[str, object]]) -> None:
    error = solve_error(RPCError("UNKNOWN", "m", [detail(*d) for d in details]))
    assert all(isinstance(snippet.excerpt(), str) for snippet in error.sources)
    f"{error}{error.vertex}{error.vertex_name}".encode()


@given(st.lists(st.tuples(names, st.binary(max_size=50)), max_size=4), st.binary(max_size=80))
def test_any_bytes_in_the_details_make_an_error(details: list[tuple[str, bytes]], blob: bytes) -> None:
    raw = [(f"{PREFIX}{name}+json", value) for name, value in details]
    assert solve_error(RPCError("UNKNOWN", "m", raw)).details == tuple(raw)
    assert isinstance(parse_status(blob), RPCError)


@pytest.mark.parametrize("value", [b"[" * 100_000, b"9" * 5000, b'{"digest": "\\ud800"}', b"\xff"])
def test_json_made_to_hurt_is_left_out(value: bytes) -> None:
    error = solve_error(RPCError("UNKNOWN", "m", [(f"{PREFIX}errdefs.Vertex+json", value)]))
    assert error.vertex in {"", "?"}


def test_a_status_of_the_history_is_read() -> None:
    error = parse_status(status("gone", ("a", b"b"), code=5))
    assert (error.code, error.message, error.details) == ("NOT_FOUND", "gone", (("a", b"b"),))


LINES = b"FROM a\nline two\nline three\nline four\nRUN exit 3\nline six\nline seven\nline eight\n"


def excerpt(data: bytes, *ranges: tuple[int, int]) -> list[str]:
    return SourceSnippet("Dockerfile", "Dockerfile", data, ranges).excerpt().splitlines()


def test_one_line_is_shown_with_two_around_it() -> None:
    assert excerpt(LINES, (5, 5)) == [
        "Dockerfile:5",
        "--------------------",
        "   3 |     line three",
        "   4 |     line four",
        "   5 | >>> RUN exit 3",
        "   6 |     line six",
        "   7 |     line seven",
        "--------------------",
    ]


@pytest.mark.parametrize(
    ("ranges", "numbers", "marked"),
    [
        ([(1, 1)], [1, 2, 3], [1]),
        ([(9, 9)], [7, 8, 9], [9]),
        ([(4, 5)], [3, 4, 5, 6], [4, 5]),
        ([(5, 3)], [3, 4, 5, 6, 7], [5]),
        ([(3, 3), (5, 5)], [2, 3, 4, 5, 6], [3, 5]),
        ([(8, 99)], [7, 8, 9], [8, 9]),
    ],
)
def test_which_lines_are_shown(ranges: list[tuple[int, int]], numbers: list[int], marked: list[int]) -> None:
    lines = excerpt(LINES, *ranges)[2:-1]
    assert [int(line[:4]) for line in lines] == numbers
    assert [int(line[:4]) for line in lines if ">>>" in line] == marked


@pytest.mark.parametrize("ranges", [[], [(0, 4)], [(10, 10)], [(-5, 2)]])
def test_nothing_is_shown_of_lines_that_are_not_there(ranges: list[tuple[int, int]]) -> None:
    assert excerpt(LINES, *ranges) == []


def test_a_snippet_holds_nothing_that_a_terminal_obeys() -> None:
    assert "\x1b" not in SourceSnippet("a\x1b[2J", "", b"RUN \x1b[31m\r\n", ((1, 1),)).excerpt()


@pytest.mark.parametrize(
    ("message", "details", "reasons"),
    [
        (
            'could not resolve image due to policy: source "docker-image://x:1" not allowed by policy: action DENY',
            [detail("policysession.DecisionResponse", {"action": "DENY", "denyMessages": [{"message": "old"}, {}]})],
            ("old", ""),
        ),
        ('source "docker-image://x:1" not allowed by policy: action DENY', [], ()),
        ('source "docker-image://x:1" denied by policy: denied', [], ()),
    ],
)
def test_a_denied_source_has_an_error_of_its_own(
    message: str, details: list[tuple[str, bytes]], reasons: tuple[str, ...]
) -> None:
    """Denied by the session's policy, with and without reasons, or by rules that were sent along."""
    error = solve_error(RPCError("UNKNOWN", message, details))
    assert isinstance(error, SourceDenied)
    assert (error.source, error.reasons) == ("docker-image://x:1", reasons)
    assert all(reason in str(error) for reason in reasons)
    assert message in str(error)
