"""How a registry's challenge becomes an Authorization header, and how bearer tokens are fetched and kept.

Everything known is filed under the origin (scheme, host, port) that asked: a password or token of one
registry is never shown to another, nor to a place that a registry redirects to.
"""

from __future__ import annotations

import base64
import ipaddress
import json
import logging
import re
import socket
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, NamedTuple, TypeAlias, cast
from urllib.parse import urlencode, urlsplit, urlunsplit

from buildkit_py.errors import RegistryError, Unauthorized
from buildkit_py.registry.config import RegistryConfig, is_loopback
from buildkit_py.registry.credentials import ANONYMOUS, Credentials, CredentialStore, look_up

if TYPE_CHECKING:
    # Imported where they are used: the HTTP client costs 100 ms, and parsing needs none.
    from buildkit_py.registry._http import Origin, Response, Transport
    from buildkit_py.registry._operation import Operation

_LOG = logging.getLogger(__name__)

CLIENT_ID = "buildkit-py"
_MIN_LIFETIME_SECONDS = 60
"""Also what a token without expires_in is good for. Source: distribution, auth/token.md."""
_USED_SHARE = 0.9
"""Of a token's life; the rest is for clocks that differ and requests under way."""
_MAX_TOKEN_ANSWER_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Challenge:
    """One way to authenticate that a registry offers."""

    scheme: str
    """In lower case: ``bearer``, ``basic``."""
    parameters: Mapping[str, str]
    """By name in lower case."""


class Scope(NamedTuple):
    """What a token shall allow, written ``type:name:action,action``."""

    type: str
    name: str
    actions: frozenset[str]

    @classmethod
    def parse(cls, text: str) -> Scope | None:
        """None for text that is no scope. A name may hold colons (``host:port/repository``)."""
        kind, colon, rest = text.partition(":")
        name, second, actions = rest.rpartition(":")
        if not (colon and second and kind and name):
            return None
        return cls(kind, name, frozenset(filter(None, actions.split(","))))

    def __str__(self) -> str:
        actions = {"*"} if "*" in self.actions else self.actions
        return f"{self.type}:{self.name}:{','.join(sorted(actions))}"


def pull(repository: str) -> str:
    """Scope for reading a repository."""
    return f"repository:{repository}:pull"


def push(repository: str) -> str:
    """Scope for writing a repository, which includes reading it: uploads begin by looking."""
    return f"repository:{repository}:pull,push"


def everything(repository: str) -> str:
    """Scope for deleting in a repository. Some registries refuse ``delete`` by its name."""
    return f"repository:{repository}:*"


def merge_scopes(*groups: Iterable[str]) -> tuple[str, ...]:
    """One scope for each resource, actions united, in the order of first mention.

    Order matters: some token servers honour the first scope only. Text that is no scope is kept as it is.
    """
    merged: dict[object, Scope | str] = {}
    for group in groups:
        for text in group:
            scope = Scope.parse(text)
            if scope is None:
                merged.setdefault(text, text)
                continue
            known = merged.get(scope[:2])
            before: frozenset[str] = known.actions if isinstance(known, Scope) else frozenset()
            merged[scope[:2]] = scope._replace(actions=scope.actions | before)
    return tuple(str(scope) for scope in merged.values())


def covers(granted: Iterable[str], wanted: Iterable[str]) -> bool:
    """Whether every wanted scope is within the granted ones."""
    have = set(merge_scopes(granted))
    return set(merge_scopes(granted, wanted)) == have


def repository_of(scopes: Iterable[str]) -> str:
    """The repository that is worked on: that of the first scope; a second is of where blobs come from. Or ""."""
    parsed = (scope for scope in map(Scope.parse, scopes) if scope is not None)
    return next((scope.name for scope in parsed if scope.type == "repository"), "")


_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"  # noqa: S105  # RFC 9110's name for such words
_PARAMETER = re.compile(rf'\s*({_TOKEN})\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s,"=][^\s,"]*))\s*(?:,|$)')
_SCHEME = re.compile(rf"\s*({_TOKEN})(?:\s+|\s*(?:,|$))")
_TOKEN68 = re.compile(r"\s*[A-Za-z0-9._~+/-]+=*\s*(?:,|$)")
_MAX_CHALLENGE_CHARS = 16 << 10


def parse_challenges(values: Iterable[str]) -> tuple[Challenge, ...]:
    """Challenges of WWW-Authenticate headers, in order; what cannot be read is skipped.

    Several may stand in one value, parameters may be quoted or bare. Source: RFC 9110, section 11.6.1.
    """
    found: list[Challenge] = []
    for value in values:
        rest = value[:_MAX_CHALLENGE_CHARS]
        parameters: dict[str, str] | None = None
        while rest:
            match = _PARAMETER.match(rest) if parameters is not None else None
            if match is not None and parameters is not None:
                quoted = cast("str | None", match[2])
                text = re.sub(r"\\(.)", r"\1", quoted) if quoted is not None else match[3]
                # The first one counts: a second realm must not replace what a proxy in between has seen.
                parameters.setdefault(match[1].lower(), text)
            elif (match := _SCHEME.match(rest)) is not None:
                parameters = {}
                found.append(Challenge(match[1].lower(), parameters))
            elif (match := _TOKEN68.match(rest)) is None:
                break
            rest = rest[match.end() :].lstrip(" \t,")
    return tuple(found)


@dataclass(frozen=True, slots=True)
class Token:
    """A bearer token; its text stays out of repr."""

    value: str = field(repr=False)
    lifetime: float
    """Seconds that it is good for, counted from when it arrived."""


def check_realm(realm: str, *, host: str, config: RegistryConfig) -> None:
    """Raise Unauthorized unless a token server of this URL may be asked for the registry at host.

    A realm comes from the registry (in a session: by way of the daemon), and credentials are sent to it:
    it must use https unless the registry itself is plain HTTP, and must not point into this machine or its
    link unless the registry is there, too.
    """
    try:
        parts = urlsplit(realm)
        name, _ = parts.hostname or "", parts.port
    except ValueError:
        parts, name = urlsplit(""), ""
    where = f"registry {host}: the token server that it names"
    if parts.scheme not in {"http", "https"} or not name or not name.isascii():
        raise Unauthorized(f"{where} is not an http or https URL", host=host)
    if parts.username is not None or parts.password is not None:
        raise Unauthorized(f"{where} has credentials in its URL", host=host)
    if parts.scheme == "http" and config.scheme(host) == "https":
        raise Unauthorized(
            f"{where} ({name}) is not https; nothing was sent. If this registry is plain HTTP, set plain_http for it",
            host=host,
        )
    if is_local(name) and not is_loopback(host):
        raise Unauthorized(f"{where} ({name}) is an address of this machine; nothing was sent", host=host)


def is_local(name: str) -> bool:
    """Whether a host is this machine or on its link, however the resolver lets one write that."""
    name = name.lower().rstrip(".")
    address = _address(name)
    if address is None:
        return name == "localhost" or name.endswith(".localhost")
    return address.is_loopback or address.is_link_local or address.is_unspecified


def _address(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        address = ipaddress.ip_address(name.partition("%")[0])
    except ValueError:
        try:
            return ipaddress.IPv4Address(socket.inet_aton(name))  # 127.1, 0x7f000001
        except (OSError, ValueError):
            return None
    return getattr(address, "ipv4_mapped", None) or address


def fetch_token(
    transport: Transport,
    *,
    host: str,
    realm: str,
    service: str,
    scopes: Sequence[str],
    credentials: Credentials,
    operation: Operation,
    client_id: str = CLIENT_ID,
) -> Token:
    """Ask the token server of the registry at host, once; blocks.

    An identity token is traded by POST, a password is shown by GET (and by POST where GET is not served),
    nothing at all gets an anonymous token. Redirects are not followed. Raises Unauthorized when refused,
    RegistryError otherwise. Source: distribution, auth/token.md and auth/oauth.md.
    """
    check_realm(realm, host=host, config=transport.config)
    if credentials.registry_token:
        return Token(credentials.registry_token, _MIN_LIFETIME_SECONDS)
    ask = _TokenServer(transport, host, realm, service, tuple(scopes), client_id, operation)
    if credentials.identity_token:
        form = {"grant_type": "refresh_token", "refresh_token": credentials.identity_token}
        return ask.token(ask.post(form), anonymous=False)
    response = ask.get(credentials)
    if response.status_code in {404, 405} and not credentials.anonymous:
        ask.discard(response)
        form = {"grant_type": "password", "username": credentials.username, "password": credentials.secret}
        response = ask.post(form)
    return ask.token(response, anonymous=credentials.anonymous)


@dataclass(frozen=True, slots=True)
class _TokenServer:
    transport: Transport
    host: str
    realm: str
    service: str
    scopes: tuple[str, ...]
    client_id: str
    operation: Operation

    def get(self, credentials: Credentials) -> Response:
        """Distribution's own way: scopes as repeated parameters, the password as Basic."""
        query = [("service", self.service)] if self.service else []
        query += [("scope", scope) for scope in self.scopes]
        headers: dict[str, str] = {}
        if not credentials.anonymous:
            query += [("account", credentials.username), ("client_id", self.client_id)]
            headers["Authorization"] = basic(credentials)
        parts = urlsplit(self.realm)
        joined = "&".join(filter(None, (parts.query, urlencode(query))))
        return self._send("GET", urlunsplit(parts._replace(query=joined, fragment="")), headers, None)

    def post(self, form: Mapping[str, str]) -> Response:
        """The OAuth2 way: scopes as one value with spaces."""
        fields = {**form, "client_id": self.client_id}
        if self.service:
            fields["service"] = self.service
        if self.scopes:
            fields["scope"] = " ".join(self.scopes)
        headers = {"Content-Type": "application/x-www-form-urlencoded; charset=utf-8"}
        return self._send("POST", self.realm, headers, urlencode(fields).encode())

    def _send(self, method: str, url: str, headers: Mapping[str, str], body: bytes | None) -> Response:
        headers = {**headers, "Accept": "application/json"}
        return self.transport.send(method, url, headers=headers, body=body, operation=self.operation)

    def discard(self, response: Response) -> None:
        from buildkit_py.registry import _http

        _http.discard(response, operation=self.operation)

    def token(self, response: Response, *, anonymous: bool) -> Token:
        """Read the answer. Nothing of its body is ever quoted: it may hold the token."""
        from buildkit_py.registry import _http

        status = response.status_code
        server = urlsplit(self.realm).netloc
        where = f"token server {server} of registry {self.host}"
        if status != 200:
            wait = _http.retry_after(response.headers.get("Retry-After"))
            self.discard(response)
            if status in {400, 401, 403}:
                raise Unauthorized(
                    f"{where}: refused ({status}) {_whom(anonymous)}; {advice(self.host, anonymous)}",
                    status=status,
                    host=self.host,
                )
            raise RegistryError(
                f"{where}: HTTP {status}",
                status=status,
                host=self.host,
                retryable=status in _http.RETRYABLE_STATUSES,
                retry_after=wait,
            )
        raw = _http.read_all(response, max_bytes=_MAX_TOKEN_ANSWER_BYTES, operation=self.operation)
        try:
            parsed: object = json.loads(raw)
        except (ValueError, RecursionError):
            parsed = None
        answer = cast("dict[str, object]", parsed) if isinstance(parsed, dict) else {}
        value = answer.get("token") or answer.get("access_token")
        if not isinstance(value, str) or not _SAFE_TOKEN.fullmatch(value):
            raise RegistryError(f"{where}: the answer holds no token", status=status, host=self.host)
        return Token(value, _lifetime(answer))


_SAFE_TOKEN = re.compile(r"[\x21-\x7e]{1,65536}")  # nothing that could end a header line


def _lifetime(answer: Mapping[str, object]) -> float:
    told = answer.get("expires_in")
    seconds = float(told) if isinstance(told, int | float) and told == told else 0.0
    seconds = min(max(seconds, _MIN_LIFETIME_SECONDS), 24 * 3600.0)
    issued = answer.get("issued_at")
    if isinstance(issued, str):
        try:
            then = datetime.fromisoformat(issued)
        except ValueError:
            return seconds
        age = (datetime.now(UTC) - (then if then.tzinfo else then.replace(tzinfo=UTC))).total_seconds()
        # A server may hand out one token twice. An age beyond the whole life is a clock that is wrong.
        if 0 < age < seconds:
            return seconds - age
    return seconds


def _whom(anonymous: bool) -> str:
    return "a token without credentials" if anonymous else "the credentials"


def advice(host: str, anonymous: bool) -> str:
    """What to try after a refusal."""
    login = "docker login" if host == "registry-1.docker.io" else f"docker login {host}"
    if anonymous:
        return f"no credentials are known for this registry: run `{login}`"
    return f"check the account's rights, or run `{login}` again"


def basic(credentials: Credentials) -> str:
    """An Authorization header that shows the password."""
    pair = f"{credentials.username}:{credentials.secret}".encode()
    return f"Basic {base64.b64encode(pair).decode('ascii')}"


def secrets_of(header: str | None) -> tuple[str, ...]:
    """What of an Authorization header nobody may see: its token, or the password in either of its forms."""
    scheme, _, secret = (header or "").partition(" ")
    if scheme != "Basic":
        return (secret,) if secret else ()
    return secret, base64.b64decode(secret).decode().partition(":")[2]


def credentials_for(store: CredentialStore, host: str, scopes: Iterable[str]) -> Credentials:
    """Look credentials up. Where the store fails, a push does, too; a pull goes on as nobody, with a warning.

    A broken helper must not stop the pull of a public image, and must not be hidden where it is the
    reason for a refusal.
    """
    scopes = tuple(scopes)
    try:
        return look_up(store, host, repository_of(scopes))
    except Unauthorized as error:
        actions = [scope.actions for scope in map(Scope.parse, scopes) if scope is not None]
        if not actions or any(group - {"pull"} for group in actions):
            raise
        _LOG.warning("%s; going on without credentials for %s", error, host)
        return ANONYMOUS


_TokenKey: TypeAlias = tuple[str, str, tuple[str, ...]]  # realm, service, scopes


@dataclass(slots=True)
class _Cached:
    scopes: tuple[str, ...]
    header: str = field(repr=False)
    until: float


class _Realm:
    """What is known of one origin's way to authenticate."""

    def __init__(self) -> None:
        self.challenge: Challenge | None = None
        self.lock = threading.Lock()
        """For the tables, never held across I/O."""
        self.tokens: dict[_TokenKey, _Cached] = {}
        self.fetching: dict[_TokenKey, threading.Lock] = {}
        """Held while a token is fetched, so that many requests at once fetch one."""


class Authorizer:
    """Authorization headers by origin and scope. Thread-safe; its methods may block for a token fetch."""

    def __init__(
        self,
        transport: Transport,
        store: CredentialStore,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._transport = transport
        self._store = store
        self._clock = clock
        self._lock = threading.Lock()
        self._realms: dict[Origin, _Realm] = {}

    def header(self, origin: Origin, scopes: Sequence[str], operation: Operation) -> str | None:
        """What to send at first; None as long as this origin has not asked for anything."""
        realm = self._realm(origin)
        return self._authorize(origin, realm, scopes, operation) if realm.challenge is not None else None

    def answer(
        self,
        origin: Origin,
        offered: Sequence[Challenge],
        sent: str | None,
        scopes: Sequence[str],
        operation: Operation,
    ) -> tuple[str, ...]:
        """Take in the challenges of a 401, given the header that was refused.

        Returns the scopes to ask header() for from now on; Unauthorized when there is nothing left to try.
        """
        realm = self._realm(origin)
        bearer = next((item for item in offered if item.scheme == "bearer"), None)
        # A 401 may come without a challenge (gcr.io): then the one that is known still holds.
        chosen = bearer or next((item for item in offered if item.scheme == "basic"), None) or realm.challenge
        if chosen is None:
            kinds = ", ".join(sorted({item.scheme for item in offered})) or "none"
            raise Unauthorized(
                f"registry {origin}: wants authentication in no way that is known (offered: {kinds})",
                status=401,
                host=str(origin),
            )
        realm.challenge = chosen
        if sent is not None:
            self._forget(realm, sent)
        told = chosen.parameters.get("scope", "").split() if chosen.scheme == "bearer" else []
        wanted = self._wanted(scopes, told, chosen)
        if self._authorize(origin, realm, wanted, operation) == sent:
            raise self.refusal(origin, 401, scopes)
        return wanted

    def refusal(self, origin: Origin, status: int, scopes: Iterable[str], codes: Sequence[str] = ()) -> Unauthorized:
        """The error for an answer of 401 or 403 that no other header would change."""
        host, scopes = str(origin), tuple(scopes)
        try:
            anonymous = look_up(self._store, host, repository_of(scopes)).anonymous
        except Unauthorized as error:
            return Unauthorized(f"registry {origin}: refused ({status}): {error}", status=status, host=host)
        wanted = " ".join(scopes)
        what = f" access ({wanted})" if wanted else ""
        said = f" {', '.join(codes)}" if codes else ""
        return Unauthorized(
            f"registry {origin}: refused{what}: HTTP {status}{said}; {advice(host, anonymous)}",
            status=status,
            codes=codes,
            host=host,
        )

    @staticmethod
    def _wanted(scopes: Sequence[str], told: Sequence[str], challenge: Challenge) -> tuple[str, ...]:
        """Ours first. Of the registry's scopes only those for the same repositories, at first: GHCR, for one,
        names a placeholder. The others join when it says that ours were not enough."""
        if not scopes or challenge.parameters.get("error", "").lower() == "insufficient_scope":
            return merge_scopes(scopes, told)
        ours = {scope[:2] for scope in map(Scope.parse, scopes) if scope is not None}
        same = [text for text in told if (scope := Scope.parse(text)) is not None and scope[:2] in ours]
        return merge_scopes(scopes, same)

    def _realm(self, origin: Origin) -> _Realm:
        with self._lock:
            return self._realms.setdefault(origin, _Realm())

    @staticmethod
    def _forget(realm: _Realm, header: str) -> None:
        with realm.lock:
            for key in [key for key, cached in realm.tokens.items() if cached.header == header]:
                del realm.tokens[key]

    def _authorize(self, origin: Origin, realm: _Realm, scopes: Sequence[str], operation: Operation) -> str:
        challenge = realm.challenge
        assert challenge is not None
        if challenge.scheme == "basic":
            credentials = look_up(self._store, str(origin), repository_of(scopes))
            if not (credentials.username and credentials.secret):
                raise self.refusal(origin, 401, scopes)
            return basic(credentials)
        return self._bearer(origin, realm, challenge, merge_scopes(scopes), operation)

    def _bearer(
        self,
        origin: Origin,
        realm: _Realm,
        challenge: Challenge,
        scopes: tuple[str, ...],
        operation: Operation,
    ) -> str:
        url, service = challenge.parameters.get("realm", ""), challenge.parameters.get("service", "")
        key = (url, service, scopes)
        with realm.lock:
            fetching = realm.fetching.setdefault(key, threading.Lock())
        # In steps, so that whoever waits here can still be cancelled.
        while not fetching.acquire(timeout=0.2):
            operation.check()
        try:
            known = self._known(realm, key)
            if known is not None:
                return known
            operation.check()
            token = fetch_token(
                self._transport,
                host=str(origin),
                realm=url,
                service=service,
                scopes=scopes,
                credentials=credentials_for(self._store, str(origin), scopes),
                operation=operation,
            )
            header = f"Bearer {token.value}"
            with realm.lock:
                until = self._clock() + _USED_SHARE * token.lifetime
                realm.tokens[key] = _Cached(scopes, header, until)
            return header
        finally:
            fetching.release()

    def _known(self, realm: _Realm, key: _TokenKey) -> str | None:
        url, service, scopes = key
        with realm.lock:
            for (known_url, known_service, _), cached in realm.tokens.items():
                fits = (known_url, known_service) == (url, service) and covers(cached.scopes, scopes)
                if fits and self._clock() < cached.until:
                    return cached.header
        return None
