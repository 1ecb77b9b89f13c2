"""Everything that touches ``oras``, in one place.

``oras`` gives the registry class, its session, the URLs of a repository and paging. All of its traffic goes
through ``do_request``, which is replaced here: as shipped it sends one registry's password to another, does
not verify what it downloads, has no timeouts and rewrites manifests. What is relied on is written down in
tests/unit/registry/test_oras_contract.py.
"""

from __future__ import annotations

import json as jsonlib
from collections.abc import Callable, Generator, Mapping, Sequence
from collections.abc import Container as Statuses
from types import MappingProxyType
from typing import Any, TypeAlias, cast
from urllib.parse import urlencode, urljoin

import requests

from buildkit_py.registry import _lazy

with _lazy.loaded_at_first_use("jsonschema"):
    # Validators of manifests of files, which nothing here calls, would take a third of a command's start.
    import oras.auth
    import oras.auth.base
    import oras.container
    import oras.provider

from buildkit_py.errors import NotFound, RegistryError
from buildkit_py.reference import Reference
from buildkit_py.registry import _http
from buildkit_py.registry._http import Origin, Response, Transport
from buildkit_py.registry._operation import Operation
from buildkit_py.registry.auth import Authorizer, is_local, parse_challenges, secrets_of
from buildkit_py.registry.config import Mirror, is_loopback

Body: TypeAlias = bytes | Callable[[], Generator[bytes]]
"""Bytes, or what makes the body anew each time it is sent; then the headers hold its Content-Length."""

_BACKEND = "buildkit_py"
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_MAX_REDIRECTS = 5
_MAX_AUTH_ROUNDS = 2
_MAX_ERROR_BYTES = 64 << 10
_MAX_MESSAGE_CHARS = 300
SUCCESS = range(200, 300)


# mypy sees no types in oras (it ships no py.typed), hence the ignores on its classes.
class RepositoryURLs(oras.container.Container):  # type: ignore[misc]
    """URLs of one repository, from a reference that has been parsed already (oras' own parser guesses)."""

    def __init__(self, reference: Reference) -> None:  # no super(): that one parses text
        self.registry = reference.api_host
        self.namespace = None
        self.repository = reference.path
        self.tag = reference.tag_or_latest
        self.digest = str(reference.digest) if reference.digest is not None else None

    def referrers_url(self, digest: str) -> str:
        """URL of the list of manifests whose subject this is; oras knows none."""
        return f"{self.registry}/v2/{self.repository}/referrers/{digest}"

    @property
    def all_tags_url(self) -> str:
        """URL of the list of tags."""
        return cast("str", self.tags_url())  # pyright: ignore[reportUnknownMemberType, reportUnnecessaryCast]


class _NoState(oras.auth.base.AuthBackend):  # type: ignore[misc]
    """An auth backend that knows nothing, so that nothing inherited can leak; see Authorizer."""

    def get_auth_header(self) -> dict[str, str]:
        return {}

    def load_configs(self, container: object, configs: object = None) -> None:
        return None

    def authenticate_request(
        self, original: Response, headers: dict[str, str], refresh: bool = False
    ) -> tuple[dict[str, str], bool]:
        return headers, False


cast("dict[str, object]", oras.auth.auth_backends)[_BACKEND] = _NoState


class OrasRegistry(oras.provider.Registry):  # type: ignore[misc]
    """The registry class of oras on our transport; one instance serves many hosts and threads."""

    def __init__(self, transport: Transport, authorizer: Authorizer) -> None:
        super().__init__(auth_backend=_BACKEND)
        self.session: requests.Session = transport.session  # the one made by oras has opened nothing
        self._transport = transport
        self._authorizer = authorizer

    def url(
        self,
        reference: Reference,
        path: Callable[[RepositoryURLs], str],
        mirror: Mirror | None = None,
        query: Mapping[str, str] = MappingProxyType({}),
    ) -> str:
        """A URL of the repository, such as ``url(reference, RepositoryURLs.tags_url)``; at home without a mirror.

        Home is where pushes go.
        """
        config, host = self._transport.config, reference.api_host
        place = config.writing(host) if mirror is None else mirror
        rest = path(RepositoryURLs(reference)).removeprefix(f"{host}/v2")
        fields = dict(query)
        if mirror is not None and mirror.host != config.home(host).host:
            # Whose repository it is, for those that stand in for many. Source: OCI distribution-spec, "Proxying".
            fields["ns"] = reference.domain
        url = f"{config.scheme(place.host)}://{place.host}{place.path}{rest}"
        return f"{url}?{urlencode(fields)}" if fields else url

    def pages(
        self,
        url: str,
        take: Callable[[Response], bool],
        *,
        scopes: Sequence[str],
        repository: str,
        operation: Operation,
        accept: str = "",
    ) -> None:
        """GET a list page by page while take() says so; the links to follow are those of the registry."""
        home, seen = Origin.of(url), {url}

        def take_page(response: Response) -> bool:
            link = response.links.get("next", {}).get("url")
            if not take(response) or not link:
                return False
            target = _join(url, link)
            if Origin.of(target) != home or target in seen:
                raise RegistryError(f"registry {home}: the next page of its list is no page of its own")
            seen.add(target)
            return True

        pager = _Pager(self, scopes, repository, operation, accept)
        pager._do_paginated_request(url, take_page)  # pyright: ignore[reportPrivateUsage]

    def do_request(
        self,
        url: str,
        method: str = "GET",
        data: Any = None,
        headers: Mapping[str, str] | None = None,
        json: Any = None,
        stream: bool = False,
        *,
        scopes: Sequence[str] = (),
        body: Body | None = None,
        home: Origin | None = None,
        repository: str = "",
        expect: Statuses[int] | None = None,
        max_bytes: int = _http.MAX_ANSWER_BYTES,
        operation: Operation | None = None,
    ) -> Response:
        """One request with authentication and redirects, never sent again for a failure.

        The first six parameters are those of oras. home is the registry that credentials belong to, the
        origin of url unless said otherwise. Statuses out of expect raise; None lets all pass. The body is
        read, up to max_bytes, unless stream is set.
        """
        operation = operation or Operation(self._transport.timeouts.total)
        sending = dict(headers or {})
        body = _as_body(data, json, sending) if body is None else body
        home = home or Origin.of(url)
        call = _Call(self._transport, self._authorizer, home, tuple(scopes), repository, operation)
        response = call.run(method, url, sending, body)
        if expect is not None and response.status_code not in expect:
            raise call.error(response)
        if not stream:
            content = _http.read_all(response, max_bytes=max_bytes, operation=operation)
            # What requests itself sets once a body has been read.
            response._content = content  # pyright: ignore[reportPrivateUsage]
            response._content_consumed = True  # type: ignore[attr-defined]
        return response


class _Pager(oras.provider.Registry):  # type: ignore[misc]
    """The paging of oras, bound to one operation."""

    def __init__(
        self, registry: OrasRegistry, scopes: Sequence[str], repository: str, operation: Operation, accept: str
    ) -> None:
        self.headers: dict[str, str] = {}  # no super(): that one opens a session
        self._accept = {"Accept": accept} if accept else {}
        self._registry = registry
        self._scopes = scopes
        self._repository = repository
        self._operation = operation

    def do_request(self, url: str, method: str = "GET", *args: Any, **kwargs: Any) -> Response:
        return self._registry.do_request(
            url,
            method,
            headers=self._accept,
            scopes=self._scopes,
            repository=self._repository,
            operation=self._operation,
            expect=frozenset({200}),
        )


class _Call:
    """One request on its way through challenges and redirects."""

    def __init__(
        self,
        transport: Transport,
        authorizer: Authorizer,
        home: Origin,
        scopes: tuple[str, ...],
        repository: str,
        operation: Operation,
    ) -> None:
        self._transport = transport
        self._authorizer = authorizer
        self._home = home
        self._scopes = scopes
        self._repository = repository
        self._operation = operation
        self._sent: str | None = None

    def run(self, method: str, url: str, headers: Mapping[str, str], body: Body | None) -> Response:
        rounds = redirects = 0
        while True:
            response = self._send(method, url, headers, body)
            status = response.status_code
            if status == 401 and Origin.of(url) == self._home:
                rounds += 1
                self._authenticate(response, rounds)
                if callable(body):
                    # An upload that was begun cannot be continued: it is started anew, with the new token.
                    raise self._plain_error("the upload was interrupted to authenticate", response, retryable=True)
                continue
            if status in _REDIRECTS and method in {"GET", "HEAD"}:
                redirects += 1
                if redirects > _MAX_REDIRECTS:
                    raise self._plain_error(f"more than {_MAX_REDIRECTS} redirects", response)
                url = self._target(url, response)
                continue
            return response

    def _send(self, method: str, url: str, headers: Mapping[str, str], body: Body | None) -> Response:
        sending = dict(headers)
        origin = Origin.of(url)
        self._sent = None
        if origin == self._home:
            sending.update(self._transport.config.host(str(origin)).headers)
            self._sent = self._authorizer.header(origin, self._scopes, self._operation)
            if self._sent is not None:
                sending["Authorization"] = self._sent
        content = body() if callable(body) else body
        try:
            return self._transport.send(method, url, headers=sending, body=content, operation=self._operation)
        except RegistryError as error:
            error.repository = error.repository or self._repository  # else of the content's own source
            raise
        finally:
            if content is not None and not isinstance(content, bytes):
                content.close()  # it may have been left in the middle, with a file open

    def _authenticate(self, response: Response, rounds: int) -> None:
        """Make the next request carry a better header, or raise Unauthorized."""
        values = cast("list[str]", response.raw.headers.getlist("WWW-Authenticate"))
        offered = parse_challenges(values)
        short = any(item.parameters.get("error", "").lower() == "insufficient_scope" for item in offered)
        # One refresh of what was known; a second round only where the registry asks for more than we did.
        if rounds > _MAX_AUTH_ROUNDS or (rounds > 1 and not short):
            raise self.error(response)
        _http.discard(response, operation=self._operation)
        self._scopes = self._authorizer.answer(self._home, offered, self._sent, self._scopes, self._operation)

    def _target(self, url: str, response: Response) -> str:
        location = response.headers.get("Location", "")
        _http.discard(response, operation=self._operation)
        return follow(url, location)

    def _plain_error(self, text: str, response: Response, *, retryable: bool = False) -> RegistryError:
        _http.discard(response, operation=self._operation)
        return RegistryError(
            f"{_http.describe(response)}: {text}",
            status=response.status_code,
            retryable=retryable,
            host=str(self._home),
            method=response.request.method or "",
            repository=self._repository,
        )

    def error(self, response: Response) -> RegistryError:
        """The error for an answer that was not asked for; reads a little of its body and closes it."""
        status, origin = response.status_code, Origin.of(response.request.url or "")
        codes, message = self._explanation(response)
        method = response.request.method or ""
        if status in {401, 403} and origin == self._home:
            refusal = self._authorizer.refusal(origin, status, self._scopes, codes)
            refusal.method, refusal.repository = method, self._repository
            return refusal
        wait = _http.retry_after(response.headers.get("Retry-After"))
        if status == 429 and wait is not None:
            self._transport.slow_down(origin, wait)
        said = ": ".join(filter(None, (", ".join(codes), message)))
        kind = NotFound if status == 404 else RegistryError
        return kind(
            f"{_http.describe(response)}: HTTP {status}{f' {said}' if said else ''}",
            status=status,
            codes=codes,
            retryable=status in _http.RETRYABLE_STATUSES,
            host=str(origin),
            method=method,
            repository=self._repository,
            retry_after=wait,
        )

    def _explanation(self, response: Response) -> tuple[tuple[str, ...], str]:
        """Codes and first message of an error body, which may be anything."""
        try:
            raw = _http.read_all(response, max_bytes=_MAX_ERROR_BYTES, operation=self._operation)
            parsed: object = jsonlib.loads(raw)
        except (RegistryError, ValueError, RecursionError):
            return (), ""
        listed = cast("dict[str, object]", parsed).get("errors") if isinstance(parsed, dict) else None
        items = cast("list[object]", listed) if isinstance(listed, list) else []
        errors = [cast("dict[str, object]", item) for item in items if isinstance(item, dict)]
        secrets = secrets_of(self._sent)
        # A registry that repeats what we sent does not get it into a log.
        said = [text for item in errors if (text := str(item.get("message") or "")) and not _any_in(secrets, text)]
        codes = [text for item in errors if (text := str(item.get("code", ""))) and not _any_in(secrets, text)]
        unique = dict.fromkeys(_printable(text).upper() for text in codes)
        return tuple(unique)[:8], _printable(said[0]) if said else ""


def follow(url: str, location: str) -> str:
    """The absolute URL that an answer to url names; RegistryError where it must not be asked."""
    home = Origin.of(url)
    if not location:
        raise RegistryError(f"registry {home}: an answer without the Location that it needs", host=str(home))
    target = _join(url, location)
    origin = Origin.of(target)
    if home.scheme == "https" and origin.scheme == "http":
        if (origin.host, origin.port) != (home.host, 80):
            raise RegistryError(f"registry {home}: wants to go on without TLS at {origin}; refused", host=str(home))
        # Registries behind a proxy that ends TLS often name themselves without the s.
        target = "https" + target[len("http") :]
        if Origin.of(target) != home:
            raise RegistryError(f"registry {home}: names itself at another port without TLS", host=str(home))
    if is_local(origin.host) and not is_loopback(str(home)):
        raise RegistryError(
            f"registry {home}: wants to go on at {origin}, an address of this machine; refused",
            host=str(home),
        )
    return target


def _join(url: str, location: str) -> str:
    try:
        return urljoin(url, location)
    except ValueError:
        home = Origin.of(url)
        raise RegistryError(f"registry {home}: names a place that is no URL", host=str(home)) from None


def _as_body(data: Any, json: Any, headers: dict[str, str]) -> Body | None:
    if json is not None:
        headers.setdefault("Content-Type", "application/json")
        return jsonlib.dumps(json).encode()
    if data is None or isinstance(data, bytes):
        return data
    raise RegistryError("oras: a body other than bytes was not expected here")


def _any_in(secrets: Sequence[str], text: str) -> bool:
    return any(secret in text for secret in secrets)


def _printable(text: str) -> str:
    cut = text if len(text) <= _MAX_MESSAGE_CHARS else text[:_MAX_MESSAGE_CHARS] + "..."
    return "".join(character if character.isprintable() else " " for character in cut)
