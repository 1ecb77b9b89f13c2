"""Every exception that buildkit_py raises on purpose.

::

    BuildKitError
      InvalidDigest, InvalidReference, InvalidPlatform,
      InvalidAddress, InvalidOption          also ValueError; raised before any I/O
        InvalidDefinition                    bytes that are not an LLB definition
      ConnectFailed, ConnectionLost, SessionClosed
      DeadlineExceeded                       also TimeoutError
      ProtocolError                          a peer broke the protocol
      PeerError                              a peer reported a failure of its own
      RPCError                               the daemon answered a call with an error
        SolveError                           a build failed
          SourceDenied                       a policy forbids one of its sources
      UnsupportedByDaemon                    the daemon is too old for what was asked
      RegistryError                          a registry answered with an error
        Unauthorized, NotFound, Unsupported
      ImageError                             images that cannot be joined, or lack what was asked for
      BuildErrors                            more than one platform failed (an ExceptionGroup)
"""

from __future__ import annotations

import re
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import cast


class BuildKitError(Exception):
    """Base of all errors of this library."""


class InvalidDigest(BuildKitError, ValueError):
    """Text that is not a digest, or content that does not have the digest it should have."""


class InvalidReference(BuildKitError, ValueError):
    """Text that is not an image reference."""


class InvalidPlatform(BuildKitError, ValueError):
    """Text that is not a platform, or a platform given twice."""


class InvalidAddress(BuildKitError, ValueError):
    """Text that is not the address of a daemon."""


class InvalidOption(BuildKitError, ValueError):
    """An option that cannot be used as given; the message names it."""


class InvalidDefinition(InvalidOption):
    """Bytes that are not an LLB definition."""


class ConnectFailed(BuildKitError):
    """No daemon answered; attempts says what was tried."""

    def __init__(self, message: str, attempts: Sequence[tuple[str, str]] = ()) -> None:
        self.attempts = tuple(attempts)
        """(address, reason) of each place that was tried, in order."""
        super().__init__(message)


class ConnectionLost(BuildKitError):
    """The daemon or registry went away in the middle of something."""


class SessionClosed(BuildKitError):
    """The session with the daemon ended before the work that needs it."""


class DeadlineExceeded(BuildKitError, TimeoutError):
    """A wait that has a limit reached it."""


class ProtocolError(BuildKitError):
    """The other side sent something that the protocol does not allow."""


class PeerError(BuildKitError):
    """The other side of a stream said that it failed."""


class RPCError(BuildKitError):
    """The daemon answered a call with an error status."""

    def __init__(self, code: str, message: str, details: Sequence[tuple[str, bytes]] = ()) -> None:
        self.code = code
        """Name of the gRPC status code, such as "UNAVAILABLE"."""
        self.message = message
        self.details = tuple(details)
        """(type URL, value) of each detail, as received."""
        super().__init__(message if code in {"UNKNOWN", ""} else f"{code}: {message}")


@dataclass(frozen=True, slots=True)
class SourceSnippet:
    """A part of a source file that an error points at."""

    filename: str
    language: str
    data: bytes
    """The whole file."""
    ranges: tuple[tuple[int, int], ...]
    """First and last line of each range, from 1."""

    def excerpt(self) -> str:
        """The lines of the ranges, marked, with some around them; "" when the file has no such lines.

        No newline at the end. Source: moby/buildkit, solver/errdefs/source.go.
        """
        if not self.ranges:
            return ""
        lines = self.data.decode("utf-8", "replace").split("\n")
        ranges = [(start, max(start, end)) for start, end in self.ranges]
        top = first = min(start for start, _ in ranges)
        last = min(max(end for _, end in ranges), len(lines))
        if not self.data or first < 1 or first > len(lines):
            return ""
        spent, budget = 0, 4 if first == last else 2
        while spent < budget:
            if first > 1:
                first, spent = first - 1, spent + 1
            if last < len(lines):
                last, spent = last + 1, spent + 1
            spent += 1
        rule = "-" * 20
        shown = [f"{_printable(self.filename)}:{top}", rule]
        for number in range(first, last + 1):
            marker = ">>>" if any(start <= number <= end for start, end in ranges) else "   "
            shown.append(f" {number:3d} | {marker} {_printable(lines[number - 1].rstrip(chr(13)))}".rstrip())
        return "\n".join([*shown, rule])


_WEB_CREDENTIALS = re.compile(r"\b(https?://)[^/\s@]+@")
_PASSWORD = re.compile(r"(//[^/\s:@]*):[^/\s@]+@(?!sha\d+:)")  # that is a tag and a digest
# Of URLs that storage services sign, and of what services take for a password.
_SIGNATURE = re.compile(
    r"([?&](?:sig|signature|x-(?:amz|goog)-(?:signature|credential|security-token)|(?:access_|private_)?token|password)=)"
    r"[^&#\s\"']+",
    re.IGNORECASE,
)


def without_credentials(text: str) -> str:
    """The text with ``***`` for what URLs in it have of users and passwords: of web servers both, else the password.

    So it is for the signatures and tokens of queries.
    """
    if "//" not in text:
        return text
    if "@" in text:
        text = _PASSWORD.sub(r"\1:***@", _WEB_CREDENTIALS.sub(r"\1***@", text))
    return _SIGNATURE.sub(r"\1***", text) if "?" in text else text


def _printable(text: str) -> str:
    """The text without what a terminal would act upon; it may come from a stranger's repository."""
    return "".join(c if c.isprintable() or c == "\t" else "\N{REPLACEMENT CHARACTER}" for c in text)


class SolveError(RPCError):
    """A solve failed in the daemon; what it failed at is in the fields."""

    def __init__(
        self,
        code: str,
        message: str,
        details: Sequence[tuple[str, bytes]] = (),
        *,
        ref: str = "",
        platform: str = "",
        vertex: str = "",
        vertex_name: str = "",
        exit_code: int | None = None,
        log_tail: Sequence[str] = (),
        sources: Sequence[SourceSnippet] = (),
    ) -> None:
        self.ref = ref
        self.platform = platform
        """Platform of the solve, if it was for one."""
        self.vertex = vertex
        """Digest of the vertex that failed, or ""."""
        self.vertex_name = vertex_name
        self.exit_code = exit_code
        """Exit code of the process that failed; None where no process did, or where it is unknown."""
        self.log_tail = tuple(log_tail)
        """Last lines that the vertex printed."""
        self.sources = tuple(sources)
        """Where in the source the failure lies, innermost first."""
        self.hint = ""
        """What to try, where this library knows more than the daemon said."""
        self.cached = 0
        self.total = 0
        """Vertexes from the cache, and all of them, as far as it came."""
        super().__init__(code, message, details)


class SourceDenied(SolveError):
    """A source policy did not allow the build to use a source."""

    source = ""
    """Identifier of the source, such as ``docker-image://docker.io/library/alpine:latest``; "" where it is unknown."""
    reasons: tuple[str, ...] = ()
    """What the policy gave as reasons."""


class UnsupportedByDaemon(BuildKitError):
    """The daemon does not know a feature that was asked for; the message names it."""


class RegistryError(BuildKitError):
    """A registry answered with a status that was not asked for, or not at all (status 0)."""

    def __init__(
        self,
        message: str,
        *,
        status: int = 0,
        codes: Sequence[str] = (),
        retryable: bool = False,
        host: str = "",
        method: str = "",
        repository: str = "",
        retry_after: float | None = None,
    ) -> None:
        self.status = status
        """HTTP status; 0 when no answer came."""
        self.codes = tuple(codes)
        """Error codes of the OCI distribution-spec, such as "MANIFEST_UNKNOWN"."""
        self.retryable = retryable
        self.host = host
        """host[:port] that was asked; "" where the failure has none."""
        self.method = method
        self.repository = repository
        self.retry_after = retry_after
        """Seconds that the registry asked to wait, if it did."""
        super().__init__(message)


class Unauthorized(RegistryError):
    """The registry or its token server refused the credentials, or wants some."""


class NotFound(RegistryError):
    """The registry has no such manifest, blob or repository."""


class ImageError(BuildKitError):
    """Images that cannot stand in one index, or an image that is broken or lacks what was asked for."""


class Unsupported(RegistryError):
    """The registry does not do that, such as delete, or was told not to."""


class BuildErrors(ExceptionGroup[BuildKitError], BuildKitError):
    """More than one platform failed; exceptions holds one error for each."""

    def __new__(cls, message: str, exceptions: Sequence[BuildKitError], /) -> BuildErrors:
        return super().__new__(cls, message, exceptions)

    def derive(self, excs: Sequence[BuildKitError], /) -> BuildErrors:  # type: ignore[override]  # narrower on purpose
        """The same for a part of the errors, as ``split`` and ``except*`` make it."""
        return BuildErrors(self.message, excs)


def leaves(group: BaseExceptionGroup[BaseException]) -> list[BaseException]:
    """The errors of a group and of the groups in it; a BuildErrors counts as one error."""
    found: list[BaseException] = []
    errors: Sequence[BaseException | BaseExceptionGroup[BaseException]] = group.exceptions
    for error in errors:
        if isinstance(error, BuildKitError) or not isinstance(error, BaseExceptionGroup):
            found.append(error)
        else:
            found += leaves(cast("BaseExceptionGroup[BaseException]", error))
    return found


@contextmanager
def sole_error() -> Generator[None, None, None]:
    """Raise the only error of an exception group as itself; several stay a group."""
    try:
        yield
    except BaseExceptionGroup as group:
        errors = leaves(group)
        if len(errors) != 1:
            raise
        raise errors[0] from errors[0].__cause__


def describe_attempts(attempts: Mapping[str, str] | Sequence[tuple[str, str]]) -> str:
    """One indented line for each (address, reason)."""
    pairs = attempts.items() if isinstance(attempts, Mapping) else attempts
    return "".join(f"\n  {address}: {reason}" for address, reason in pairs)


__all__ = [
    "BuildKitError",
    "InvalidDigest",
    "InvalidReference",
    "InvalidPlatform",
    "InvalidAddress",
    "InvalidOption",
    "InvalidDefinition",
    "ConnectFailed",
    "ConnectionLost",
    "SessionClosed",
    "DeadlineExceeded",
    "ProtocolError",
    "PeerError",
    "RPCError",
    "SolveError",
    "SourceDenied",
    "UnsupportedByDaemon",
    "SourceSnippet",
    "RegistryError",
    "Unauthorized",
    "NotFound",
    "Unsupported",
    "ImageError",
    "BuildErrors",
]
