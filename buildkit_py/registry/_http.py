"""One HTTP exchange with one host: connections, trust, time, cancelling, and what failures are called.

Credentials and redirects are the business of the layers above; :meth:`Transport.retrying` is the one
loop that sends anything again.
"""

from __future__ import annotations

import logging
import random
import re
import socket
import ssl
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, TypeVar
from urllib.parse import quote, urlsplit

from buildkit_py.errors import RegistryError
from buildkit_py.registry._operation import Operation
from buildkit_py.registry._origin import Origin, redact
from buildkit_py.registry._pool import Pool, ProxyFailed
from buildkit_py.registry._wire import Answer, Broken, Unsendable
from buildkit_py.registry.config import RegistryConfig, RetryPolicy, Timeouts

_LOG = logging.getLogger(__name__)
T = TypeVar("T")

CONNECTIONS = 32
"""Kept to each host while they are idle."""
CHUNK_BYTES = 1 << 20
MAX_ANSWER_BYTES = 4 << 20
"""Limit of an answer held in memory; the registry's own word on its size is not trusted."""
USER_AGENT = "buildkit-py"
RETRYABLE_STATUSES = frozenset({408, 429, 500, 502, 503, 504})
_VERBATIM = re.compile(r"/[\x21-\x7e]*")


def _target(url: str) -> str:
    """Path and query as they are, but for characters that no request line may hold."""
    parts = urlsplit(url)
    target = f"{parts.path or '/'}{'?' + parts.query if parts.query else ''}"
    return target if _VERBATIM.fullmatch(target) else quote(target, safe="!#$%&'()*+,/:;=?@[]~")


class Response:
    """An answer on its way: what was asked, and the answer itself."""

    def __init__(self, method: str, url: str, answer: Answer) -> None:
        self.method = method
        self.url = url
        self.status_code = answer.status_code
        self.headers = answer.headers
        self.answer = answer
        self.content = b""
        """The body, once it was read."""

    @property
    def links(self) -> Mapping[str, Mapping[str, str]]:
        """What the Link header names, by relation; the paging of oras asks for it."""
        named = self.headers.get("Link")
        if not named:
            return {}
        from requests.utils import parse_header_links

        return {link["rel"]: link for link in parse_header_links(named) if "rel" in link}


class Transport:
    """Keep-alive connections to many hosts. Thread-safe; close() ends the idle ones."""

    def __init__(
        self,
        config: RegistryConfig,
        *,
        timeouts: Timeouts,
        retry: RetryPolicy,
        connections: int = CONNECTIONS,
        wait: Callable[[Operation, float], None] = Operation.wait,
        jitter: Callable[[], float] = random.random,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.config = config
        self.timeouts = timeouts
        self._retry = retry
        self._wait = wait
        self._jitter = jitter
        self._clock = clock
        self._not_before: dict[Origin, float] = {}
        self._pool = Pool(config, size=connections)

    def close(self) -> None:
        """Close idle connections; running exchanges finish."""
        self._pool.close()

    def send(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str],
        body: bytes | Iterable[bytes] | None = None,
        operation: Operation,
    ) -> Response:
        """One request, one answer, whatever its status; the body is still to be read.

        A body that is no bytes needs a Content-Length among the headers. Raises RegistryError when no
        answer came.
        """
        origin = Origin.of(url)
        self._pass_gate(origin, operation)
        fields = {"Host": str(origin), "User-Agent": USER_AGENT, "Accept-Encoding": "identity", **headers}
        if isinstance(body, bytes):
            fields["Content-Length"] = str(len(body))
        seconds = max(0.001, operation.remaining())
        connect = self.config.host(str(origin)).connect_timeout or self.timeouts.connect
        timeouts = (min(connect, seconds), min(self.timeouts.read, seconds))
        try:
            answer = self._pool.ask(method, origin, _target(url), fields, body, timeouts=timeouts, operation=operation)
        except (OSError, Unsendable) as error:
            operation.attach(None)
            operation.check()
            raise failure(error, method, origin) from error
        except BaseException:
            operation.attach(None)
            raise
        if _LOG.isEnabledFor(logging.DEBUG):
            _LOG.debug("%s %s: %d", method, redact(url), answer.status_code)
        return Response(method, url, answer)

    def retrying(self, operation: Operation, action: Callable[[], T]) -> T:
        """Run action until it succeeds, fails for good, or is out of attempts or time."""
        attempt = 1
        while True:
            operation.check()
            try:
                return action()
            except RegistryError as error:
                if not error.retryable or attempt >= self._retry.attempts or operation.ended:
                    raise
                delay = self._delay(error, attempt)
                if delay >= operation.remaining():
                    raise
            self._wait(operation, delay)
            attempt += 1

    def pause(self, operation: Operation, seconds: float) -> None:
        """Wait so long within the operation."""
        self._wait(operation, seconds)

    def spread(self, seconds: float, attempt: int) -> float:
        """A wait from so many seconds on, longer by chance with each attempt (from 1): clients that collide spread."""
        return min(self._retry.cap, seconds * (1.0 + self._jitter() * 2.0 ** (attempt - 1)))

    def slow_down(self, origin: Origin, seconds: float) -> None:
        """Hold back every request to this host for so long: it said that it has too many."""
        self._not_before[origin] = self._clock() + min(seconds, self._retry.retry_after_cap)

    def _delay(self, error: RegistryError, attempt: int) -> float:
        if error.retry_after is not None:
            return min(error.retry_after, self._retry.retry_after_cap)
        if attempt == 1 and error.status == 0:
            # Most often a kept connection that the registry had closed; a new one will do.
            return 0.0
        return self._jitter() * min(self._retry.cap, self._retry.base * 2.0 ** (attempt - 1))

    def _pass_gate(self, origin: Origin, operation: Operation) -> None:
        operation.check()
        wait = self._not_before.get(origin, 0.0) - self._clock()
        if wait > 0:
            self._wait(operation, wait)


def read_all(response: Response, *, max_bytes: int, operation: Operation) -> bytes:
    """The whole body; RegistryError when it is larger than max_bytes, or ends early."""
    parts: list[bytes] = []
    size = 0
    for chunk in read_chunks(response, operation=operation, chunk_bytes=min(CHUNK_BYTES, max_bytes + 1)):
        size += len(chunk)
        if size > max_bytes:
            raise RegistryError(
                f"{describe(response)}: the answer is larger than {max_bytes} bytes", **_where(response)
            )
        parts.append(chunk)
    return b"".join(parts)


def read_chunks(response: Response, *, operation: Operation, chunk_bytes: int = CHUNK_BYTES) -> Iterator[bytes]:
    """The body as it comes, undecoded. The response is closed when the iterator is left."""
    try:
        while True:
            operation.check()
            chunk = response.answer.read(chunk_bytes)
            if not chunk:
                break
            yield chunk
    except OSError as error:
        operation.check()
        raise RegistryError(f"{describe(response)}: {_reason(error)}", retryable=True, **_where(response)) from error
    finally:
        operation.attach(None)
        response.answer.close()


def discard(response: Response, *, operation: Operation) -> None:
    """Be done with an answer whose body does not matter; the connection is kept where that is cheap."""
    try:
        read_all(response, max_bytes=64 << 10, operation=operation)
    except RegistryError:
        operation.check()


def describe(response: Response) -> str:
    """Method and redacted URL of the request that was answered."""
    return f"{response.method} {redact(response.url)}"


def _where(response: Response) -> dict[str, Any]:
    return {"host": str(Origin.of(response.url)), "method": response.method}


def media_type(response: Response) -> str:
    """Content-Type without its parameters."""
    return response.headers.get("Content-Type").partition(";")[0].strip().lower()


def _utc_now() -> datetime:
    return datetime.now(UTC)


def retry_after(value: str | None, *, now: Callable[[], datetime] = _utc_now) -> float | None:
    """Seconds of a Retry-After header, in either of its forms; None where it holds neither."""
    if not value:
        return None
    text = value.strip()
    if text.isascii() and text.isdigit():
        return float(text[:9])
    from email.utils import parsedate_to_datetime  # most give seconds

    try:
        when = parsedate_to_datetime(text)
    except (ValueError, IndexError, OverflowError):
        return None
    if when.tzinfo is None:
        when = when.replace(tzinfo=UTC)
    return max(0.0, (when - now()).total_seconds())


def failure(error: BaseException, method: str, origin: Origin) -> RegistryError:
    """What to call a request that got no answer.

    The text of the foreign error is left out: it holds the URL, query included.
    """
    chain = list(_causes(error))
    where: dict[str, Any] = {"host": str(origin), "method": method}

    def first(kind: type[T]) -> T | None:
        return next((item for item in chain if isinstance(item, kind)), None)

    refused_certificate = first(ssl.SSLCertVerificationError)
    if refused_certificate is not None:
        return RegistryError(
            f"registry {origin}: its certificate is not trusted: {refused_certificate.verify_message}; "
            "name its CA in the registry settings",
            **where,
        )
    tls = first(ssl.SSLError)
    if tls is not None and not isinstance(tls, (ssl.SSLEOFError, ssl.SSLZeroReturnError)):
        plain = tls.reason in {"WRONG_VERSION_NUMBER", "HTTP_REQUEST", "RECORD_LAYER_FAILURE"}
        hint = "; it may speak plain HTTP" if plain else ""
        return RegistryError(
            f"registry {origin}: the TLS handshake failed ({tls.reason or 'TLS error'}){hint}", **where
        )
    proxy = first(ProxyFailed)
    if proxy is not None:
        said = str(proxy) or _reason(error)
        return RegistryError(
            f"registry {origin}: the proxy of the environment: {said}", retryable=not proxy.refused, **where
        )
    lookup = first(socket.gaierror)
    if lookup is not None:
        return RegistryError(f"registry {origin}: no such host", retryable=lookup.errno == socket.EAI_AGAIN, **where)
    if isinstance(error, Unsendable):
        return RegistryError(f"registry {origin}: not a URL that can be asked", **where)
    return RegistryError(f"registry {origin}: {_reason(error)}", retryable=True, **where)


def _reason(error: BaseException) -> str:
    for item in _causes(error):
        if isinstance(item, Broken) and str(item):
            return str(item)
        if isinstance(item, ConnectionRefusedError):
            return "connection refused; nothing listens there"
        if isinstance(item, TimeoutError):
            return "no answer within the time allowed"
        if isinstance(item, (ConnectionResetError, BrokenPipeError)):
            return "the connection was closed before the answer"
        if isinstance(item, OSError) and item.strerror:
            return item.strerror.lower()
    return "the connection failed"


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error and everything it wraps: as cause, context, argument or reason, each once."""
    pending: list[BaseException] = [error]
    seen: set[int] = set()
    while pending:
        item = pending.pop(0)
        if id(item) in seen:
            continue
        seen.add(id(item))
        yield item
        reason: object = getattr(item, "reason", None)
        inner: Sequence[object] = (*item.args, reason, item.__cause__, item.__context__)
        pending.extend(found for found in inner if isinstance(found, BaseException))
