"""One HTTP exchange with one host: connections, trust, time, cancelling, and what failures are called.

Credentials and redirects are the business of the layers above; :meth:`Transport.retrying` is the one
loop that sends anything again.
"""

from __future__ import annotations

import functools
import http.client
import http.cookiejar
import random
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias, TypeVar, cast
from urllib.parse import urlsplit

import requests
import requests.adapters
import requests.structures
import requests.utils
import urllib3
import urllib3.connection
import urllib3.connectionpool
import urllib3.exceptions

from buildkit_py.errors import InvalidOption, RegistryError
from buildkit_py.registry._operation import Operation
from buildkit_py.registry.config import RegistryConfig, RetryPolicy, Timeouts, is_loopback

Response: TypeAlias = requests.Response
T = TypeVar("T")

CONNECTIONS = 32
"""Kept to each host while they are idle."""
_POOLS_KEPT = 16
CHUNK_BYTES = 1 << 20
MAX_ANSWER_BYTES = 4 << 20
"""Limit of an answer held in memory; the registry's own word on its size is not trusted."""
USER_AGENT = "buildkit-py"
RETRYABLE_STATUSES = frozenset({408, 429, 500, 502, 503, 504})
_VERBATIM = re.compile(r"/[\x21-\x7e]*")
_TUNNEL = re.compile(r"Tunnel connection failed: (\d{3})\b")
"""How http.client tells what a proxy answered to CONNECT; only the number is repeated."""
_DEFAULT_PORTS = {"http": 80, "https": 443}


class Origin(NamedTuple):
    """What credentials are bound to: they never leave it."""

    scheme: str
    host: str
    port: int

    @classmethod
    def of(cls, url: str) -> Origin:
        """Origin of an absolute http(s) URL; RegistryError for anything else."""
        return _origin_of(url)

    @classmethod
    def read(cls, url: str) -> Origin:
        """The same, of a URL that was not read lately."""
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError:
            parts, port = urlsplit(""), None
        # Other characters would be looked up as those that they resemble: a name that was judged must be the one asked.
        if parts.scheme not in _DEFAULT_PORTS or not parts.hostname or not parts.hostname.isascii():
            raise RegistryError(f"{redact(url)}: expected an http or https URL")
        if parts.username is not None or parts.password is not None:
            raise RegistryError(f"{parts.scheme}://{parts.hostname}: a URL must not carry credentials")
        return cls(parts.scheme, parts.hostname, port or _DEFAULT_PORTS[parts.scheme])

    def __str__(self) -> str:
        name = f"[{self.host}]" if ":" in self.host else self.host
        return name if self.port == _DEFAULT_PORTS[self.scheme] else f"{name}:{self.port}"


@functools.lru_cache(256)
def _origin_of(url: str) -> Origin:
    """Each request asks for that of its URL several times."""
    return Origin.read(url)


def _target(url: str) -> str:
    """Path and query as they are, but for characters that no request line may hold."""
    parts = urlsplit(url)
    target = f"{parts.path or '/'}{'?' + parts.query if parts.query else ''}"
    return target if _VERBATIM.fullmatch(target) else requests.utils.requote_uri(target)


def redact(url: str) -> str:
    """A URL without user, query and fragment: those may be signed or secret."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return "(malformed URL)"
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


_running = threading.local()  # .operation and .target: what this thread works for, and what it asks for


def _track(connection: urllib3.connection.HTTPConnection) -> None:
    operation = cast("Operation | None", getattr(_running, "operation", None))
    sock = cast("socket.socket | None", connection.sock)
    if operation is not None and sock is not None:
        operation.attach(sock)


def _as_given(url: str) -> str:
    """The request target as the URL had it.

    urllib3 would rewrite percent signs, which may be signed, and log the query: so it is told the path alone,
    and the whole target is put in when the request is written.
    """
    target = cast("str | None", getattr(_running, "target", None))
    if target is None:
        return url
    if url.startswith("/"):
        return target
    parts = urlsplit(url)  # a whole URL is for a proxy
    return f"{parts.scheme}://{parts.netloc}{target}"


class _Connection(urllib3.connection.HTTPConnection):
    def connect(self) -> None:
        super().connect()
        _track(self)

    def putrequest(self, method: str, url: str, *args: Any, **kwargs: Any) -> None:
        _track(self)
        super().putrequest(method, _as_given(url), *args, **kwargs)


class _TLSConnection(urllib3.connection.HTTPSConnection):
    def connect(self) -> None:
        super().connect()
        _track(self)

    def putrequest(self, method: str, url: str, *args: Any, **kwargs: Any) -> None:
        _track(self)
        super().putrequest(method, _as_given(url), *args, **kwargs)


class _Pool(urllib3.connectionpool.HTTPConnectionPool):
    ConnectionCls = _Connection  # pyright: ignore[reportAssignmentType]  # urllib3's own class fails it too


class _TLSPool(urllib3.connectionpool.HTTPSConnectionPool):
    ConnectionCls = _TLSConnection  # pyright: ignore[reportAssignmentType]  # as above

    def _validate_conn(self, conn: Any) -> None:
        # Connects, as the base class does, but without the warning about skip_verify that it then prints:
        # whoever set that knows.
        if conn.is_closed:
            conn.connect()


_POOLS = {"http": _Pool, "https": _TLSPool}


class _Adapter(requests.adapters.HTTPAdapter):
    """Connection pools whose trust depends on the host.

    What requests does for each request again, and has no effect here, is left out where no proxy is in between: many
    requests are small, and this would be half of what they cost.
    """

    def __init__(self, config: RegistryConfig, *, size: int) -> None:
        self._config = config
        self._direct: dict[Origin, Any] = {}
        self._contexts: dict[str, ssl.SSLContext] = {}
        self._contexts_lock = threading.Lock()
        super().__init__(pool_connections=_POOLS_KEPT, pool_maxsize=size)

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)
        self.poolmanager.pool_classes_by_scheme = _POOLS

    def proxy_manager_for(self, proxy: str, **proxy_kwargs: Any) -> Any:
        manager = super().proxy_manager_for(proxy, **proxy_kwargs)
        manager.pool_classes_by_scheme = _POOLS
        return manager

    def get_connection_with_tls_context(self, request: Any, verify: Any, proxies: Any = None, cert: Any = None) -> Any:
        """The pool for a request."""
        if proxies:
            return super().get_connection_with_tls_context(request, verify, proxies=proxies, cert=cert)
        origin = Origin.of(request.url)
        pool = self._direct.get(origin)
        if pool is None:
            pool = super().get_connection_with_tls_context(request, verify, cert=cert)
            if len(self._direct) >= _POOLS_KEPT:  # redirects may lead to any number of hosts
                self._direct.clear()
            self._direct[origin] = pool
        return pool

    def request_url(self, request: Any, proxies: Any) -> str:
        """Without the query; see _as_given."""
        target = super().request_url(request, proxies) if proxies else _target(request.url)
        return target.partition("?")[0]

    def build_response(self, req: Any, resp: Any) -> Response:
        """Without cookies, which nobody here takes."""
        response = requests.Response()
        response.status_code, response.reason, response.raw = resp.status, resp.reason, resp
        response.headers = requests.structures.CaseInsensitiveDict(resp.headers)
        response.url, response.request = req.url, req
        return response

    def close(self) -> None:
        """Close idle connections."""
        self._direct.clear()
        super().close()

    def cert_verify(self, conn: Any, url: Any, verify: Any, cert: Any) -> None:
        """Trust is in the pool's own context already."""

    def build_connection_pool_key_attributes(self, request: Any, verify: Any, cert: Any = None) -> Any:
        """Where to connect, and with which trust."""
        origin = Origin.of(request.url)
        keys: dict[str, Any] = {}
        if origin.scheme == "https":
            skip = self._config.host(str(origin)).skip_verify
            keys = {
                "ssl_context": self._context(str(origin)),
                "cert_reqs": "CERT_NONE" if skip else "CERT_REQUIRED",
            }
        return {"scheme": origin.scheme, "host": origin.host, "port": origin.port}, keys

    def _context(self, host: str) -> ssl.SSLContext:
        with self._contexts_lock:
            context = self._contexts.get(host)
            if context is None:
                context = self._contexts[host] = tls_context(self._config, host)
            return context


def tls_context(config: RegistryConfig, host: str) -> ssl.SSLContext:
    """Trust for one host; InvalidOption where what it names cannot be read."""
    settings = config.host(host)
    context = ssl.create_default_context()
    if not _system_has_certificates():
        # python.org's macOS builds, slim images: then those that requests brings.
        context.load_verify_locations(requests.utils.DEFAULT_CA_BUNDLE_PATH)
    context.set_alpn_protocols(["http/1.1"])
    try:
        if isinstance(settings.ca, Path):
            context.load_verify_locations(cafile=settings.ca)
        elif settings.ca is not None:
            context.load_verify_locations(cadata=settings.ca.decode("ascii"))
        if settings.cert is not None:
            context.load_cert_chain(settings.cert, settings.key)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "not a PEM certificate"
        raise InvalidOption(f"registry {host}: the certificates given cannot be used: {reason}") from error
    if settings.skip_verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _system_has_certificates() -> bool:
    paths = ssl.get_default_verify_paths()
    # The stub says str, the documentation None for what does not exist.
    file, folder = cast("tuple[str | None, str | None]", (paths.cafile, paths.capath))
    return bool(file) or (bool(folder) and any(Path(str(folder)).iterdir()))


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
        self.session = requests.Session()
        # The environment may name a .netrc, and an entry there would replace our own Authorization.
        self.session.trust_env = False
        # Some registries (Harbor) take a client with cookies for a browser and ask it for CSRF tokens.
        self.session.cookies.set_policy(http.cookiejar.DefaultCookiePolicy(allowed_domains=[]))
        self._adapter = _Adapter(config, size=connections)
        self.session.mount("https://", self._adapter)
        self.session.mount("http://", self._adapter)

    def close(self) -> None:
        """Close idle connections; running exchanges finish."""
        self.session.close()

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
        prepared = requests.PreparedRequest()
        # Not by prepare(): percent signs, blank and repeated parameters of a signed location must stay what they are.
        prepared.method, prepared.url, prepared.body = method, url, cast("Any", body)
        prepared.headers = requests.structures.CaseInsensitiveDict(
            {"User-Agent": USER_AGENT, "Accept-Encoding": "identity", **headers}
        )
        if isinstance(body, bytes):
            prepared.headers["Content-Length"] = str(len(body))
        seconds = max(0.001, operation.remaining())
        connect = self.config.host(str(origin)).connect_timeout or self.timeouts.connect
        timeout = (min(connect, seconds), min(self.timeouts.read, seconds))
        # A body may come from another request of this thread, which must not disturb this one.
        before = getattr(_running, "operation", None), getattr(_running, "target", None)
        _running.operation, _running.target = operation, _target(url)
        try:
            # Not session.send: that one reads the whole body of a redirect, to prepare the next request.
            return self._adapter.send(prepared, stream=True, timeout=timeout, proxies=self._proxies(url, origin))
        except (requests.RequestException, urllib3.exceptions.HTTPError, OSError) as error:
            operation.attach(None)
            operation.check()
            raise failure(error, method, origin) from error
        except BaseException:
            operation.attach(None)
            raise
        finally:
            _running.operation, _running.target = before

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

    @staticmethod
    def _proxies(url: str, origin: Origin) -> dict[str, str]:
        if is_loopback(str(origin)):
            return {}
        return requests.utils.get_environ_proxies(url)


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
            chunk = cast("bytes", response.raw.read(chunk_bytes, decode_content=False))
            if not chunk:
                break
            yield chunk
        response.raw.release_conn()
    except (urllib3.exceptions.HTTPError, OSError) as error:
        operation.check()
        raise RegistryError(f"{describe(response)}: {_reason(error)}", retryable=True, **_where(response)) from error
    finally:
        operation.attach(None)
        response.close()


def discard(response: Response, *, operation: Operation) -> None:
    """Be done with an answer whose body does not matter; the connection is kept where that is cheap."""
    try:
        read_all(response, max_bytes=64 << 10, operation=operation)
    except RegistryError:
        operation.check()


def describe(response: Response) -> str:
    """Method and redacted URL of the request that was answered."""
    return f"{response.request.method} {redact(response.request.url or '')}"


def _where(response: Response) -> dict[str, Any]:
    return {"host": str(Origin.of(response.request.url or "")), "method": response.request.method or ""}


def media_type(response: Response) -> str:
    """Content-Type without its parameters."""
    return response.headers.get("Content-Type", "").partition(";")[0].strip().lower()


def _utc_now() -> datetime:
    return datetime.now(UTC)


def retry_after(value: str | None, *, now: Callable[[], datetime] = _utc_now) -> float | None:
    """Seconds of a Retry-After header, in either of its forms; None where it holds neither."""
    if not value:
        return None
    text = value.strip()
    if text.isascii() and text.isdigit():
        return float(text[:9])
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
    if first(requests.exceptions.ProxyError) or first(urllib3.exceptions.ProxyError):
        refused = next(filter(None, (_TUNNEL.match(str(item)) for item in chain if isinstance(item, OSError))), None)
        said = f"refuses to connect (HTTP {refused[1]})" if refused else _reason(error)
        return RegistryError(f"registry {origin}: the proxy of the environment: {said}", retryable=not refused, **where)
    lookup = first(socket.gaierror)
    if lookup is not None or first(urllib3.exceptions.NameResolutionError) is not None:
        again = lookup is not None and lookup.errno == socket.EAI_AGAIN
        return RegistryError(f"registry {origin}: no such host", retryable=again, **where)
    if isinstance(error, (requests.exceptions.InvalidURL, requests.exceptions.InvalidSchema)):
        return RegistryError(f"registry {origin}: not a URL that can be asked", **where)
    return RegistryError(f"registry {origin}: {_reason(error)}", retryable=True, **where)


def _reason(error: BaseException) -> str:
    if any(isinstance(item, ConnectionRefusedError) for item in _causes(error)):
        return "connection refused; nothing listens there"
    for item in _causes(error):
        if isinstance(item, (requests.ConnectTimeout, urllib3.exceptions.ConnectTimeoutError)):
            return "no connection within the time allowed"
        if isinstance(item, (TimeoutError, requests.ReadTimeout, urllib3.exceptions.ReadTimeoutError)):
            return "no answer within the time allowed"
        if isinstance(item, (urllib3.exceptions.IncompleteRead, http.client.IncompleteRead)):
            return "the connection ended in the middle of the answer"
        if isinstance(item, (ConnectionResetError, BrokenPipeError, http.client.RemoteDisconnected)):
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
