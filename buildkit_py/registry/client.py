"""The registry client, blocking and thread-safe. The event loop uses :class:`buildkit_py.registry.Registry`.

Bytes go in and come out as they are: a digest is always that of bytes sent or received.
"""

from __future__ import annotations

import contextlib
import io
import logging
import re
from collections.abc import Callable, Generator, Sequence
from typing import BinaryIO, TypeAlias, TypeVar
from urllib.parse import quote

from buildkit_py.digest import Digest
from buildkit_py.errors import (
    InvalidDigest,
    InvalidReference,
    NotFound,
    RegistryError,
    Unauthorized,
    Unsupported,
)
from buildkit_py.oci import OCI_INDEX, Descriptor
from buildkit_py.reference import Reference
from buildkit_py.registry import _http
from buildkit_py.registry._answers import digest_told, head_descriptor, location_of, tags_of, verified
from buildkit_py.registry._content import BlobReader, Collected, Content, Download, Writer, ended_early, slices
from buildkit_py.registry._http import CONNECTIONS, Origin, Response, Transport
from buildkit_py.registry._lists import ReferrerLists
from buildkit_py.registry._operation import Operation, Turns
from buildkit_py.registry._oras import SUCCESS, OrasRegistry, RepositoryURLs
from buildkit_py.registry._referrers import subject_of
from buildkit_py.registry.auth import Authorizer, everything, merge_scopes, pull, push
from buildkit_py.registry.config import Mirror, RegistryConfig, RetryPolicy, Timeouts
from buildkit_py.registry.credentials import CredentialStore, DockerCredentials
from buildkit_py.registry.transfer import Transfer

_LOG = logging.getLogger(__name__)
T = TypeVar("T")
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
_ABSENT_ENOUGH = 8
_SMALL_BLOB_BYTES = 256 << 10
_CONTENT_RANGE = re.compile(r"bytes (\d+)-\d+/(?:\d+|\*)")


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
        connections: int = CONNECTIONS,
        transport: Transport | None = None,
    ) -> None:
        """Without credentials those of docker are used, without config the settings of this machine.

        So many idle connections are kept to a host. A transport brings config, timeouts, retries and connections with
        it.
        """
        config = RegistryConfig.of_system() if config is None else config
        self._timeouts = timeouts or Timeouts()
        self.transport = transport or Transport(
            config, timeouts=self._timeouts, retry=retry or RetryPolicy(), connections=connections
        )
        store = config.credential_store(credentials or DockerCredentials())
        self._absent: dict[str, int] = {}
        """By repository: of how many blobs in a row it was asked, and had none."""
        self._turns = Turns()
        self._http = OrasRegistry(self.transport, Authorizer(self.transport, store))
        self._lists = ReferrerLists(
            self._http,
            self.transport,
            self._turns,
            fetch=lambda tag, operation: self.fetch_manifest(tag, mirrors=False, operation=operation),
            put=lambda tag, raw, operation: self._put_manifest(tag, raw, OCI_INDEX, Digest.of(raw), operation),
            exists=lambda repository, digest, operation: self.exists(repository, digest, operation=operation),
        )

    def close(self) -> None:
        """Close idle connections."""
        self.transport.close()

    def __enter__(self) -> RegistryClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # Manifests

    def resolve(self, reference: Repository, *, mirrors: bool = True, operation: Operation | None = None) -> Descriptor:
        """Digest, size and type of a manifest, without its bytes where the registry allows it.

        mirrors says whether the registry's mirrors may answer, which may know a tag as it was before.
        """
        reference = _reference(reference)
        operation = self._operation(operation)

        def once(place: Mirror | None) -> Descriptor | None:
            response = self._manifest(reference, "HEAD", operation, place, expect=frozenset({200, 403, 405}))
            if response.status_code != 200:
                return None
            return head_descriptor(response, reference)

        found = self._read(reference, once, operation, mirrors=mirrors)
        # No HEAD here, or no digest in its answer: the bytes themselves tell.
        return found or self.fetch_manifest(reference, mirrors=mirrors, operation=operation)[1]

    def fetch_manifest(
        self, reference: Repository, *, mirrors: bool = True, operation: Operation | None = None
    ) -> tuple[bytes, Descriptor]:
        """Bytes of a manifest or index and their descriptor, verified; at most 4 MiB. mirrors is as for resolve."""
        reference = _reference(reference)
        operation = self._operation(operation)

        def once(place: Mirror | None) -> tuple[bytes, Descriptor]:
            response = self._manifest(reference, "GET", operation, place, expect=frozenset({200}))
            raw = response.content
            return raw, verified(raw, response, reference)

        return self._read(reference, once, operation, mirrors=mirrors)

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
            return self.transport.retrying(operation, lambda: self._has_blob(reference, digest, scope, operation))
        try:
            found = self.resolve(reference, mirrors=False, operation=operation)
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
        track_subject: bool = True,
        present: bool = False,
        operation: Operation | None = None,
    ) -> Descriptor:
        """Put the bytes by their digest, then at each tag in the order given; returns their descriptor.

        present says that they are there by their digest already, so that only the tags are written. A tag is written
        only after everything before it succeeded. Of a manifest with a subject the registry
        keeps track; where it does not, the tag that lists the subject's referrers is brought up to date, unless
        track_subject is off.
        """
        reference = _reference(repository)
        targets = [reference.with_tag(tag) for tag in tags]
        if len(raw) > MAX_MANIFEST_BYTES:
            raise RegistryError(
                f"{reference.name}: a manifest of {len(raw)} bytes; registries take {MAX_MANIFEST_BYTES}"
            )
        digest = Digest.of(raw)
        operation = self._operation(operation)
        if not present:
            response = self._put_manifest(reference.with_digest(digest), raw, media_type, digest, operation)
            subject = subject_of(raw) if track_subject else None
            if subject is not None and response.headers.get("OCI-Subject", "").strip() != str(subject):
                self._lists.track(reference, subject, raw, media_type, operation)
        for target in targets:
            self._put_manifest(target, raw, media_type, digest, operation)
        return Descriptor(media_type=media_type, digest=digest, size=len(raw))

    def delete_manifest(self, reference: Repository, *, operation: Operation | None = None) -> None:
        """Delete a manifest by its digest, with every tag that it has, or a tag alone.

        Raises NotFound where it is not, Unsupported where the registry does not delete, or no tags alone. A
        reference without tag and digest is InvalidReference. Blobs and children stay for the registry to clean up.
        """
        reference = _reference(reference)
        operation = self._operation(operation)
        if reference.digest is None:
            if reference.tag is None:
                raise InvalidReference(f"{reference}: to delete something, name its tag or digest")
            self._delete(reference, operation)
            return
        digest = reference.digest
        reference = reference.with_digest(digest)
        try:
            subject = subject_of(self.fetch_manifest(reference, mirrors=False, operation=operation)[0])
        except (NotFound, Unauthorized):
            raise
        except (RegistryError, InvalidDigest):
            operation.check()
            subject = None  # unreadable: all the more reason to delete it
        self._delete(reference, operation)
        if subject is not None and not self._lists.are_kept(reference, subject, operation):
            self._lists.forget(reference, subject, digest, operation)

    def referrers(
        self,
        repository: Repository,
        digest: Digest,
        artifact_type: str | None = None,
        *,
        operation: Operation | None = None,
    ) -> tuple[Descriptor, ...]:
        """Manifests of the repository that have this digest as their subject, each once.

        artifact_type picks those of one type. The registry is asked; where it keeps no such list, the tag that
        stands in for it is read. The digest itself need not exist.
        """
        reference = _reference(repository)
        operation = self._operation(operation)
        told = self._lists.of_api(reference, digest, artifact_type, operation)
        found = self._lists.of_tag(reference, digest, operation)[1] if told is None else told
        wanted = (item for item in found if artifact_type is None or item.artifact_type == artifact_type)
        return tuple({item.digest: item for item in wanted}.values())

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
                found.update(tags_of(response, reference))
                if len(found) > _MAX_TAGS or pages > _MAX_PAGES:
                    raise RegistryError(f"{reference.name}: more than {_MAX_TAGS} tags, or an endless list")
                return True

            place = self.transport.config.reading(reference.api_host)[-1]
            url = self._http.url(reference, lambda urls: urls.all_tags_url, place)
            self._http.pages(url, take, scopes=(pull(reference.path),), repository=reference.path, operation=operation)
            return found

        return sorted(self.transport.retrying(operation, once))

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
        collected = Collected()
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
        with contextlib.closing(Download(descriptor, writer)) as state:
            self._read(reference, lambda place: self._download(reference, state, operation, place), operation)
            descriptor.digest.verify_hash(state.hashed(), f"blob of {reference.name}")

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
        source = None if mount_from is None else _reference(mount_from)
        operation = operation or Operation(self._timeouts.blob)
        return self._push(_reference(repository), descriptor, open_content, source, operation) is Transfer.SENT

    def copy_blob(
        self,
        source: Repository,
        target: Repository,
        descriptor: Descriptor,
        *,
        operation: Operation | None = None,
    ) -> Transfer:
        """Bring a blob from one repository to another, of the same registry or not, in bounded memory.

        Inside a registry it is mounted where that is allowed. Otherwise it is streamed, and the last piece goes
        out only once size and digest of the whole are known to be right. Content that the descriptor carries is
        not fetched.
        """
        origin, reference = _reference(source), _reference(target)
        operation = operation or Operation(self._timeouts.blob)

        def open_content() -> Content:
            if descriptor.data is not None:
                descriptor.verify(descriptor.data, f"data of {descriptor.digest}")
                return io.BytesIO(descriptor.data)
            part, blob = operation.part(), origin.with_digest(descriptor.digest)
            return BlobReader(self.transport, blob, descriptor, part, lambda at: self.blob_chunks(blob, at, part))

        return self._push(reference, descriptor, open_content, origin, operation)

    def greet(self, repository: Repository, *, operation: Operation | None = None) -> None:
        """Connect and authenticate for a push to the repository, and change nothing there."""
        reference = _reference(repository)
        self._has_blob(reference, Digest.of(b""), push(reference.path), self._operation(operation))

    def _read(
        self,
        reference: Reference,
        action: Callable[[Mirror | None], T],
        operation: Operation,
        *,
        mirrors: bool = True,
    ) -> T:
        """Do it at the mirrors in turn, once each, and at last, patiently, where the content is at home."""
        *before, last = self.transport.config.reading(reference.api_host) if mirrors else (None,)
        for place in before:
            try:
                return action(place)
            except (RegistryError, InvalidDigest) as error:
                operation.check()
                _LOG.debug("%s: mirror %s: %s", reference, place, error)
        return self.transport.retrying(operation, lambda: action(last))

    # One attempt each

    def _operation(self, operation: Operation | None) -> Operation:
        return operation or Operation(self._timeouts.total)

    def _manifest(
        self, reference: Reference, method: str, operation: Operation, place: Mirror | None, *, expect: frozenset[int]
    ) -> Response:
        return self._http.do_request(
            self._http.url(reference, RepositoryURLs.manifest_url, place),
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
    ) -> Response:
        def once() -> Response:
            try:
                return self._http.do_request(
                    self._http.url(target, RepositoryURLs.manifest_url),
                    "PUT",
                    headers={"Content-Type": media_type},
                    body=raw,
                    scopes=(push(target.path),),
                    repository=target.path,
                    expect=SUCCESS,
                    operation=operation,
                )
            except RegistryError as error:
                # Distribution on a file system, when somebody else pushes a blob of the manifest to the repository at
                # this moment: its link there is empty while it is written. A blob that is missing has one code alone.
                if error.status == 400 and set(error.codes) > {"MANIFEST_BLOB_UNKNOWN"}:
                    error.retryable = True
                raise

        response = self.transport.retrying(operation, once)
        told = digest_told(response)
        if told is not None and told.algorithm == digest.algorithm and told != digest:
            raise InvalidDigest(f"{target}: the registry stored {told}, {digest} was sent")
        return response

    def _delete(self, reference: Reference, operation: Operation) -> None:
        attempts = 0

        def once() -> None:
            nonlocal attempts
            attempts += 1
            try:
                self._http.do_request(
                    self._http.url(reference, RepositoryURLs.manifest_url),
                    "DELETE",
                    scopes=(everything(reference.path),),
                    repository=reference.path,
                    expect=SUCCESS,
                    operation=operation,
                )
            except NotFound:
                if attempts == 1:
                    raise
                # Gone by an earlier attempt whose answer was lost.

        try:
            self.transport.retrying(operation, once)
        except RegistryError as error:
            # Distribution 2.8 takes a tag for a malformed digest, and says UNSUPPORTED when deleting is off.
            refused = {"UNSUPPORTED"} if reference.digest is not None else {"UNSUPPORTED", "DIGEST_INVALID"}
            if error.status == 405 or (error.status == 400 and refused & set(error.codes)):
                raise _no_delete(reference, error) from error
            raise

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

    def _push(
        self,
        reference: Reference,
        descriptor: Descriptor,
        open_content: Callable[[], Content],
        source: Reference | None,
        operation: Operation,
    ) -> Transfer:
        if source is not None and source.domain != reference.domain:
            source = None
        if source is not None and source.path == reference.path:
            source = None
        target = reference.with_digest(descriptor.digest)
        with self._turns.take(f"{target.name}@{target.digest}", operation) as waited:
            return self.transport.retrying(
                operation,
                lambda: (
                    # Somebody else has just seen to it, unless that failed.
                    Transfer.PRESENT
                    if waited and self._has_blob(target, descriptor.digest, push(target.path), operation)
                    else self._push_once(target, descriptor, open_content, source, operation)
                ),
            )

    def _push_once(
        self,
        reference: Reference,
        descriptor: Descriptor,
        open_content: Callable[[], Content],
        source: Reference | None,
        operation: Operation,
    ) -> Transfer:
        location: str | None = None
        if source is not None:
            # First of all: where it works it also tells that the blob is there, by one request.
            mounted, location = self._mount(reference, descriptor.digest, source, operation)
            if mounted:
                return Transfer.MOUNTED
        if self._is_there(reference, descriptor, operation):
            if location is not None:
                self._cancel_upload(reference, location, operation)
            return Transfer.PRESENT
        if location is None:
            url = self._http.url(reference, RepositoryURLs.upload_blob_url)
            location = location_of(self._post(url, (push(reference.path),), reference, operation))
        self._upload(reference, descriptor, location, open_content, operation)
        return Transfer.SENT

    def _is_there(self, reference: Reference, descriptor: Descriptor, operation: Operation) -> bool:
        """Whether the repository has a blob; taken to be false for a small one where none was there of late."""
        absent = self._absent.get(reference.name, 0)
        if absent >= _ABSENT_ENOUGH and descriptor.size <= _SMALL_BLOB_BYTES:
            return False  # asking costs as much as sending
        # The scope is that of the upload, so that one token serves it all.
        found = self._has_blob(reference, descriptor.digest, push(reference.path), operation)
        self._absent[reference.name] = 0 if found else absent + 1
        return found

    def _mount(
        self, reference: Reference, digest: Digest, source: Reference, operation: Operation
    ) -> tuple[bool, str | None]:
        """Whether the registry took the blob from source; if not, where to send it, if it says so."""
        query = {"mount": str(digest), "from": source.path}
        url = self._http.url(reference, RepositoryURLs.upload_blob_url, query=query)
        scopes = merge_scopes((push(reference.path),), (pull(source.path),))
        try:
            response = self._post(url, scopes, reference, operation)
        except RegistryError as error:
            # Harbor, for one, answers 401 for a source that it does not know: then without a mount.
            if error.retryable:
                raise
            operation.check()
            return False, None
        if response.status_code != 201:
            return False, location_of(response)
        told = digest_told(response)
        if told is not None and told.algorithm == digest.algorithm and told != digest:
            raise InvalidDigest(f"{reference.name}: the registry mounted {told}, {digest} was asked for")
        return True, None

    def _cancel_upload(self, reference: Reference, location: str, operation: Operation) -> None:
        """Give an upload session back; registries that do not know this forget it by themselves."""
        try:
            self._http.do_request(
                location,
                "DELETE",
                home=Origin.of(self._http.url(reference, RepositoryURLs.upload_blob_url)),
                scopes=(push(reference.path),),
                repository=reference.path,
                operation=operation,
            )
        except RegistryError:
            operation.check()

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
        open_content: Callable[[], Content],
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
                body=lambda: slices(descriptor, open_content, operation),
                home=Origin.of(self._http.url(reference, RepositoryURLs.upload_blob_url)),
                scopes=(push(reference.path),),
                repository=reference.path,
                expect=SUCCESS,
                operation=operation,
            )
        except NotFound as error:
            # The upload session is gone, for instance after a restart; the next attempt opens another. Not so
            # where it is the content that is nowhere.
            error.retryable = error.method == "PUT"
            raise
        told = digest_told(response)
        if told is not None and told.algorithm == descriptor.digest.algorithm and told != descriptor.digest:
            raise InvalidDigest(f"{reference.name}: the registry stored {told}, {descriptor.digest} was sent")

    def _download(self, reference: Reference, state: Download, operation: Operation, place: Mirror | None) -> None:
        if state.complete:
            return
        for chunk in self.blob_chunks(reference, state.received, operation, place):
            state.take(chunk, reference)
        if not state.complete:
            raise ended_early(reference, state)

    def blob_chunks(
        self, reference: Reference, start: int, operation: Operation, place: Mirror | None = None
    ) -> Generator[bytes]:
        """The bytes of a blob from start on, as they come and unverified; one attempt."""
        headers = {"Range": f"bytes={start}-"} if start else {}
        response = self._http.do_request(
            self._http.url(reference, lambda urls: urls.get_blob_url(str(reference.digest)), place),
            "GET",
            headers=headers,
            stream=True,
            scopes=(pull(reference.path),),
            repository=reference.path,
            expect=frozenset({200, 206}),
            operation=operation,
        )
        skip = start
        if response.status_code == 206:
            match = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
            if match is None or int(match[1]) != start:
                _http.discard(response, operation=operation)
                raise RegistryError(f"{reference}: the registry went on at another place than asked for")
            skip = 0
        for chunk in _http.read_chunks(response, operation=operation):
            fresh = chunk[skip:]
            skip = max(0, skip - len(chunk))
            if fresh:
                yield fresh


def _no_delete(reference: Reference, error: RegistryError) -> Unsupported:
    if reference.digest is not None:
        advice = "its operator can allow that (Distribution: storage.delete.enabled)"
        text = f"{reference}: the registry does not delete manifests; {advice}"
    else:
        advice = f"delete by digest, {reference.name}@sha256:..., which takes all tags of that manifest along"
        text = f"{reference}: the registry does not delete a tag alone; {advice}"
    return Unsupported(
        text,
        status=error.status,
        codes=error.codes,
        host=error.host,
        method="DELETE",
        repository=reference.path,
    )


def _reference(repository: Repository) -> Reference:
    return repository if isinstance(repository, Reference) else Reference.parse_normalized(repository)


__all__ = ["ACCEPT", "MAX_MANIFEST_BYTES", "RegistryClient", "Repository", "Writer"]
