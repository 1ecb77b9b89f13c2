"""The registry client, blocking and thread-safe. The event loop uses :class:`buildkit_py.registry.Registry`.

Bytes go in and come out as they are: a digest is always that of bytes sent or received.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Generator, Sequence
from typing import BinaryIO, Protocol, TypeAlias, cast
from urllib.parse import quote, urlencode

from buildkit_py.digest import Digest, Hash
from buildkit_py.errors import InvalidDigest, NotFound, RegistryError
from buildkit_py.oci import Descriptor
from buildkit_py.reference import Reference
from buildkit_py.registry import _http
from buildkit_py.registry._http import Origin, Response, Transport
from buildkit_py.registry._operation import Operation
from buildkit_py.registry._oras import SUCCESS, OrasRegistry, RepositoryURLs, follow
from buildkit_py.registry.auth import Authorizer, merge_scopes, pull, push
from buildkit_py.registry.config import RegistryConfig, RetryPolicy, Timeouts
from buildkit_py.registry.credentials import CredentialStore, DockerCredentials

Repository: TypeAlias = Reference | str
"""A repository: a reference whose tag and digest do not matter, or its text as people write it."""

MAX_MANIFEST_BYTES = 4 << 20
"""What registries must take, and what most of them refuse to exceed. Source: OCI distribution-spec v1.1."""
ACCEPT = ", ".join(
    (
        "application/vnd.oci.image.index.v1+json",
        "application/vnd.docker.distribution.manifest.list.v2+json",
        "application/vnd.oci.image.manifest.v1+json",
        "application/vnd.docker.distribution.manifest.v2+json",
    )
)
"""All four, always: a registry answers 404, or with another manifest, where the stored type is not named."""
_MAX_PAGES = 1000
_MAX_TAGS = 200_000
_CONTENT_RANGE = re.compile(r"bytes (\d+)-\d+/(?:\d+|\*)")


class Writer(Protocol):
    """Where a blob goes."""

    def write(self, data: bytes, /) -> object:
        """Take all of data."""
        ...


class RegistryClient:
    """Reads and writes manifests and blobs of any registry.

    Methods block and may be called from many threads. Each takes the Operation that ends it from outside;
    without one it ends by the timeouts. Errors: RegistryError and its kinds; InvalidDigest for content that
    is not what it should be; InvalidReference before any I/O.
    """

    def __init__(
        self,
        *,
        credentials: CredentialStore | None = None,
        config: RegistryConfig | None = None,
        timeouts: Timeouts | None = None,
        retry: RetryPolicy | None = None,
        transport: Transport | None = None,
    ) -> None:
        """Without credentials those of docker are used. A transport brings timeouts and retries with it."""
        config = config or RegistryConfig()
        self._timeouts = timeouts or Timeouts()
        self._transport = transport or Transport(config, timeouts=self._timeouts, retry=retry or RetryPolicy())
        store = config.credential_store(credentials or DockerCredentials())
        self._http = OrasRegistry(self._transport, Authorizer(self._transport, store))

    def close(self) -> None:
        """Close idle connections."""
        self._transport.close()

    def __enter__(self) -> RegistryClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # Manifests

    def resolve(self, reference: Repository, *, operation: Operation | None = None) -> Descriptor:
        """Digest, size and type of a manifest, without its bytes where the registry allows it."""
        reference = _reference(reference)
        operation = self._operation(operation)

        def once() -> Descriptor | None:
            response = self._manifest(reference, "HEAD", operation, expect=frozenset({200, 403, 405}))
            if response.status_code != 200:
                return None
            return _head_descriptor(response, reference)

        found = self._transport.retrying(operation, once)
        # No HEAD here, or no digest in its answer: the bytes themselves tell.
        return found or self.fetch_manifest(reference, operation=operation)[1]

    def fetch_manifest(self, reference: Repository, *, operation: Operation | None = None) -> tuple[bytes, Descriptor]:
        """Bytes of a manifest or index and their descriptor, verified; at most 4 MiB."""
        reference = _reference(reference)
        operation = self._operation(operation)

        def once() -> tuple[bytes, Descriptor]:
            response = self._manifest(reference, "GET", operation, expect=frozenset({200}))
            raw = response.content
            return raw, _verified(raw, response, reference)

        return self._transport.retrying(operation, once)

    def exists(
        self,
        repository: Repository,
        digest: Digest,
        *,
        blob: bool = False,
        operation: Operation | None = None,
    ) -> bool:
        """Whether the repository has this manifest (or blob)."""
        reference = _reference(repository).with_digest(digest)
        operation = self._operation(operation)
        if blob:
            scope = pull(reference.path)
            return self._transport.retrying(operation, lambda: self._has_blob(reference, digest, scope, operation))
        try:
            found = self.resolve(reference, operation=operation)
        except NotFound:
            return False
        return found.digest == digest

    def push_manifest(
        self,
        repository: Repository,
        raw: bytes,
        media_type: str,
        tags: Sequence[str] = (),
        *,
        operation: Operation | None = None,
    ) -> Descriptor:
        """Put the bytes by their digest, then at each tag in the order given; returns their descriptor.

        A tag is written only after everything before it succeeded.
        """
        reference = _reference(repository)
        targets = [reference.with_tag(tag) for tag in tags]
        if len(raw) > MAX_MANIFEST_BYTES:
            raise RegistryError(
                f"{reference.name}: a manifest of {len(raw)} bytes; registries take {MAX_MANIFEST_BYTES}"
            )
        digest = Digest.of(raw)
        operation = self._operation(operation)
        for target in (reference.with_digest(digest), *targets):
            self._put_manifest(target, raw, media_type, digest, operation)
        return Descriptor(media_type=media_type, digest=digest, size=len(raw))

    def tags(self, repository: Repository, *, operation: Operation | None = None) -> list[str]:
        """All tags, sorted."""
        reference = _reference(repository)
        operation = self._operation(operation)

        def once() -> set[str]:
            found: set[str] = set()
            pages = 0

            def take(response: Response) -> bool:
                nonlocal pages
                pages += 1
                found.update(_tags_of(response, reference))
                if len(found) > _MAX_TAGS or pages > _MAX_PAGES:
                    raise RegistryError(f"{reference.name}: more than {_MAX_TAGS} tags, or an endless list")
                return True

            url = self._http.url(reference, lambda urls: urls.all_tags_url)
            self._http.pages(url, take, scopes=(pull(reference.path),), repository=reference.path, operation=operation)
            return found

        return sorted(self._transport.retrying(operation, once))

    # Blobs

    def fetch_blob_bytes(
        self,
        repository: Repository,
        descriptor: Descriptor,
        max_bytes: int,
        *,
        operation: Operation | None = None,
    ) -> bytes:
        """A small blob, verified. One that says it is larger than max_bytes is not asked for."""
        if descriptor.size > max_bytes:
            raise RegistryError(
                f"{_reference(repository).name}@{descriptor.digest}: {descriptor.size} bytes, "
                f"expected at most {max_bytes}"
            )
        collected = _Collected()
        self.fetch_blob(repository, descriptor, collected, operation=self._operation(operation))
        return b"".join(collected.parts)

    def fetch_blob(
        self,
        repository: Repository,
        descriptor: Descriptor,
        writer: Writer,
        *,
        operation: Operation | None = None,
    ) -> None:
        """Stream a blob into writer; after an interruption it goes on where it was.

        What was written counts only if this returns: size and digest are known to be right at the end.
        """
        reference = _reference(repository).with_digest(descriptor.digest)
        operation = operation or Operation(self._timeouts.blob)
        state = _Download(descriptor, writer)
        self._transport.retrying(operation, lambda: self._download(reference, state, operation))
        descriptor.digest.verify_hash(state.hash, f"blob of {reference.name}")

    def push_blob(
        self,
        repository: Repository,
        descriptor: Descriptor,
        open_content: Callable[[], BinaryIO],
        *,
        mount_from: Repository | None = None,
        operation: Operation | None = None,
    ) -> bool:
        """Upload a blob unless the repository has it; returns whether bytes had to be sent.

        open_content is called for each attempt. mount_from names a repository of the same registry that
        has the blob, so that nothing needs to be sent.
        """
        reference = _reference(repository).with_digest(descriptor.digest)
        source = None if mount_from is None else _reference(mount_from)
        if source is not None and source.domain != reference.domain:
            source = None
        operation = operation or Operation(self._timeouts.blob)

        def once() -> bool:
            # The scope is that of the upload, so that one token serves it all.
            if self._has_blob(reference, descriptor.digest, push(reference.path), operation):
                return False
            location = self._begin_upload(reference, descriptor.digest, source, operation)
            if location is None:
                return False
            self._upload(reference, descriptor, location, open_content, operation)
            return True

        return self._transport.retrying(operation, once)

    def greet(self, repository: Repository, *, operation: Operation | None = None) -> None:
        """Connect and authenticate for a push to the repository, and change nothing there."""
        reference = _reference(repository)
        self._has_blob(reference, Digest.of(b""), push(reference.path), self._operation(operation))

    # One attempt each

    def _operation(self, operation: Operation | None) -> Operation:
        return operation or Operation(self._timeouts.total)

    def _manifest(self, reference: Reference, method: str, operation: Operation, *, expect: frozenset[int]) -> Response:
        return self._http.do_request(
            self._http.url(reference, RepositoryURLs.manifest_url),
            method,
            headers={"Accept": ACCEPT},
            scopes=(pull(reference.path),),
            repository=reference.path,
            expect=expect,
            max_bytes=MAX_MANIFEST_BYTES,
            operation=operation,
        )

    def _put_manifest(
        self, target: Reference, raw: bytes, media_type: str, digest: Digest, operation: Operation
    ) -> None:
        response = self._transport.retrying(
            operation,
            lambda: self._http.do_request(
                self._http.url(target, RepositoryURLs.manifest_url),
                "PUT",
                headers={"Content-Type": media_type},
                body=raw,
                scopes=(push(target.path),),
                repository=target.path,
                expect=SUCCESS,
                operation=operation,
            ),
        )
        told = _digest_header(response)
        if told is not None and told.algorithm == digest.algorithm and told != digest:
            raise InvalidDigest(f"{target}: the registry stored {told}, {digest} was sent")

    def _has_blob(self, reference: Reference, digest: Digest, scope: str, operation: Operation) -> bool:
        response = self._http.do_request(
            self._http.url(reference, lambda urls: urls.get_blob_url(str(digest))),
            "HEAD",
            scopes=(scope,),
            repository=reference.path,
            expect=frozenset({200, 404}),
            operation=operation,
        )
        return response.status_code == 200

    def _begin_upload(
        self, reference: Reference, digest: Digest, source: Reference | None, operation: Operation
    ) -> str | None:
        """Where to send the bytes, or None when the registry took them from source."""
        url = self._http.url(reference, RepositoryURLs.upload_blob_url)
        scopes: tuple[str, ...] = (push(reference.path),)
        if source is not None:
            query = urlencode({"mount": str(digest), "from": source.path})
            try:
                response = self._post(
                    f"{url}?{query}", merge_scopes(scopes, (pull(source.path),)), reference, operation
                )
            except RegistryError as error:
                # Harbor, for one, answers 401 for a source that it does not know: then without a mount.
                if error.retryable:
                    raise
            else:
                return None if response.status_code == 201 else _location(response)
        return _location(self._post(url, scopes, reference, operation))

    def _post(self, url: str, scopes: Sequence[str], reference: Reference, operation: Operation) -> Response:
        return self._http.do_request(
            url,
            "POST",
            body=b"",
            scopes=scopes,
            repository=reference.path,
            expect=frozenset({201, 202}),
            operation=operation,
        )

    def _upload(
        self,
        reference: Reference,
        descriptor: Descriptor,
        location: str,
        open_content: Callable[[], BinaryIO],
        operation: Operation,
    ) -> None:
        separator = "&" if "?" in location else "?"
        try:
            response = self._http.do_request(
                f"{location}{separator}digest={quote(str(descriptor.digest), safe='')}",
                "PUT",
                headers={
                    "Content-Type": "application/octet-stream",
                    "Content-Length": str(descriptor.size),
                },
                body=lambda: _slices(descriptor, open_content, operation),
                home=Origin.of(self._http.url(reference, RepositoryURLs.upload_blob_url)),
                scopes=(push(reference.path),),
                repository=reference.path,
                expect=SUCCESS,
                operation=operation,
            )
        except NotFound as error:
            # The upload session is gone, for instance after a restart; the next attempt opens another.
            error.retryable = True
            raise
        told = _digest_header(response)
        if told is not None and told.algorithm == descriptor.digest.algorithm and told != descriptor.digest:
            raise InvalidDigest(f"{reference.name}: the registry stored {told}, {descriptor.digest} was sent")

    def _download(self, reference: Reference, state: _Download, operation: Operation) -> None:
        if state.complete:
            return
        headers = {"Range": f"bytes={state.received}-"} if state.received else {}
        response = self._http.do_request(
            self._http.url(reference, lambda urls: urls.get_blob_url(str(state.descriptor.digest))),
            "GET",
            headers=headers,
            stream=True,
            scopes=(pull(reference.path),),
            repository=reference.path,
            expect=frozenset({200, 206}),
            operation=operation,
        )
        skip = state.received
        if response.status_code == 206:
            match = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
            if match is None or int(match[1]) != state.received:
                _http.discard(response, operation=operation)
                raise RegistryError(f"{reference}: the registry went on at another place than asked for")
            skip = 0
        for chunk in _http.read_chunks(response, operation=operation):
            fresh = chunk[skip:]
            skip = max(0, skip - len(chunk))
            if fresh:
                state.take(fresh, reference)
        if not state.complete:
            raise RegistryError(
                f"{reference}: the blob ended after {state.received} of {state.descriptor.size} bytes",
                retryable=True,
                host=reference.api_host,
                method="GET",
                repository=reference.path,
            )


class _Collected:
    def __init__(self) -> None:
        self.parts: list[bytes] = []

    def write(self, data: bytes, /) -> None:
        self.parts.append(data)


class _Download:
    """How far a blob has come, over all attempts."""

    def __init__(self, descriptor: Descriptor, writer: Writer) -> None:
        self.descriptor = descriptor
        self.received = 0
        self.hash: Hash = descriptor.digest.new_hash()
        self._writer = writer

    @property
    def complete(self) -> bool:
        return self.received == self.descriptor.size

    def take(self, chunk: bytes, reference: Reference) -> None:
        if self.received + len(chunk) > self.descriptor.size:
            raise InvalidDigest(f"{reference}: the blob is larger than the {self.descriptor.size} bytes it should be")
        self._writer.write(chunk)
        self.hash.update(chunk)
        self.received += len(chunk)


def _reference(repository: Repository) -> Reference:
    return repository if isinstance(repository, Reference) else Reference.parse_normalized(repository)


def _location(response: Response) -> str:
    return follow(response.request.url or "", response.headers.get("Location", ""))


def _digest_header(response: Response) -> Digest | None:
    """Docker-Content-Digest, if it is there and a digest."""
    try:
        return Digest.parse(response.headers.get("Docker-Content-Digest", "").strip())
    except InvalidDigest:
        return None


def _head_descriptor(response: Response, reference: Reference) -> Descriptor | None:
    """None where the headers do not tell enough."""
    digest, kind = _digest_header(response), _http.media_type(response)
    length = response.headers.get("Content-Length", "")
    if digest is None or not kind or not (length.isascii() and length.isdigit()):
        return None
    if reference.digest is not None and digest != reference.digest:
        # A registry that stored it under another algorithm, or a wrong answer: only the bytes can tell.
        return None
    return Descriptor(media_type=kind, digest=digest, size=int(length))


def _verified(raw: bytes, response: Response, reference: Reference) -> Descriptor:
    what = f"manifest of {reference.name}"
    digest = Digest.of(raw)
    if reference.digest is not None:
        reference.digest.verify(raw, what)
        digest = reference.digest
    else:
        told = _digest_header(response)
        if told is not None:
            told.verify(raw, what)
    kind, inner = _http.media_type(response), _inner_media_type(raw)
    if kind and inner and kind != inner:
        raise RegistryError(
            f"{reference}: the registry calls it {kind[:100]}, it calls itself {inner[:100]}",
            status=response.status_code,
            host=reference.api_host,
            repository=reference.path,
        )
    return Descriptor(media_type=inner or kind, digest=digest, size=len(raw))


def _inner_media_type(raw: bytes) -> str:
    try:
        parsed: object = json.loads(raw)
    except (ValueError, RecursionError):
        parsed = None
    kind = cast("dict[str, object]", parsed).get("mediaType") if isinstance(parsed, dict) else None
    return kind if isinstance(kind, str) else ""


def _tags_of(response: Response, reference: Reference) -> list[str]:
    try:
        parsed: object = json.loads(response.content)
    except (ValueError, RecursionError):
        parsed = None
    if not isinstance(parsed, dict):
        raise RegistryError(f"{reference.name}: the list of tags is not JSON", host=reference.api_host)
    # Some registries put null, or digests, among the tags.
    listed = cast("dict[str, object]", parsed).get("tags")
    items = cast("list[object]", listed) if isinstance(listed, list) else []
    return [item for item in items if isinstance(item, str) and item]


def _slices(descriptor: Descriptor, open_content: Callable[[], BinaryIO], operation: Operation) -> Generator[bytes]:
    """The content in pieces, exactly as many bytes as announced."""
    left = descriptor.size
    try:
        with open_content() as file:
            while chunk := file.read(_http.CHUNK_BYTES):
                left -= len(chunk)
                if left < 0:
                    break
                operation.check()
                yield chunk
    except OSError as error:
        # Not to be taken for a failure of the connection that this is being written to.
        raise RegistryError(f"content of {descriptor.digest}: {error.strerror or 'cannot be read'}") from error
    if left:
        raise InvalidDigest(f"content of {descriptor.digest}: not the {descriptor.size} bytes it should be")


__all__ = ["ACCEPT", "MAX_MANIFEST_BYTES", "RegistryClient", "Repository", "Writer"]
