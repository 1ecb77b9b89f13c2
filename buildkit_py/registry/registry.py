"""The registry client for the event loop: the blocking one on a few threads of its own."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, BinaryIO, TypeAlias, TypeVar

from buildkit_py.digest import Digest
from buildkit_py.errors import InvalidOption, RegistryError
from buildkit_py.oci import Descriptor
from buildkit_py.reference import Reference
from buildkit_py.registry._operation import Operation, Workers
from buildkit_py.registry.config import RegistryConfig, RetryPolicy, Timeouts
from buildkit_py.registry.credentials import CredentialStore
from buildkit_py.registry.transfer import CopyReport, Transfer

if TYPE_CHECKING:
    # Its HTTP stack takes a quarter of a second to import; builds without a push never pay for it.
    from buildkit_py.registry.client import RegistryClient, Writer

_LOG = logging.getLogger(__name__)
T = TypeVar("T")
Repository: TypeAlias = Reference | str
"""A repository: a reference whose tag and digest do not matter, or its text as people write it."""

CONCURRENCY = 16
"""Requests at once: round trips dominate. Registries that have too many say so, and are obeyed."""


def _greet(repository: Repository, client: RegistryClient, operation: Operation) -> None:
    client.greet(repository, operation=operation)


class Registry:
    """Reads and writes manifests and blobs of any registry; one instance serves many hosts.

    Open it with ``async with``, or close it with aclose(). Cancelling a call ends its I/O at once and waits
    up to two seconds for its thread. Errors are those of RegistryClient.
    """

    def __init__(
        self,
        *,
        credentials: CredentialStore | None = None,
        config: RegistryConfig | None = None,
        timeouts: Timeouts | None = None,
        retry: RetryPolicy | None = None,
        concurrency: int = CONCURRENCY,
    ) -> None:
        """Without credentials those of docker are used, looked up when a registry asks for some.

        Without config the settings of this machine are used. concurrency is the number of requests at once.
        """
        if concurrency < 1:
            raise InvalidOption(f"registry: {concurrency} requests at once, expected at least 1")
        self._credentials = credentials
        self._config = RegistryConfig.of_system() if config is None else config
        self._timeouts = timeouts or Timeouts()
        self._retry = retry or RetryPolicy()
        # A copy uses two at a time. More idle ones than are kept would be closed, and opened again.
        self._connections = 2 * concurrency
        self._workers = Workers(concurrency, name="registry")
        self._opening = threading.Lock()
        self._client: RegistryClient | None = None

    async def __aenter__(self) -> Registry:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """End running calls and close the connections. Calls that come later fail."""
        await self._workers.close()
        with self._opening:
            if self._client is not None:
                self._client.close()

    async def warm_up(self, *push_to: Repository) -> None:
        """Be ready for a push to these repositories: HTTP stack loaded, connected, token fetched.

        For the time in which a solve runs. A failure is not raised: the push that follows meets it, too.
        """
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._quietly(lambda client, operation: None))
            for repository in push_to:
                tasks.create_task(self._quietly(partial(_greet, repository)))

    async def _quietly(self, action: Callable[[RegistryClient, Operation], None]) -> None:
        try:
            await self._run(action)
        except (RegistryError, InvalidOption) as error:
            _LOG.debug("warming up: %s", error)

    async def resolve(self, reference: Reference | str, *, mirrors: bool = True) -> Descriptor:
        """Digest, size and type of a manifest, without its bytes where the registry allows it.

        mirrors says whether the registry's mirrors may answer, which may know a tag as it was before.
        """
        return await self._run(
            lambda client, operation: client.resolve(reference, mirrors=mirrors, operation=operation)
        )

    async def fetch_manifest(self, reference: Reference | str, *, mirrors: bool = True) -> tuple[bytes, Descriptor]:
        """Bytes of a manifest or index and their descriptor, verified; at most 4 MiB. mirrors is as for resolve."""
        return await self._run(
            lambda client, operation: client.fetch_manifest(reference, mirrors=mirrors, operation=operation)
        )

    async def exists(self, repository: Repository, digest: Digest, *, blob: bool = False) -> bool:
        """Whether the repository has this manifest (or blob)."""
        return await self._run(
            lambda client, operation: client.exists(repository, digest, blob=blob, operation=operation)
        )

    async def push_manifest(
        self,
        repository: Repository,
        raw: bytes,
        media_type: str,
        tags: Sequence[str] = (),
        *,
        track_subject: bool = True,
        present: bool = False,
    ) -> Descriptor:
        """Put the bytes by their digest, then at each tag in the order given; returns their descriptor.

        present says that they are there by their digest already, so that only the tags are written. A tag is written
        only after everything before it succeeded. Of a manifest with a subject the registry
        keeps track; where it does not, the tag that lists the subject's referrers is brought up to date, unless
        track_subject is off.
        """
        return await self._run(
            lambda client, operation: client.push_manifest(
                repository, raw, media_type, tags, track_subject=track_subject, present=present, operation=operation
            )
        )

    async def delete_manifest(self, reference: Reference | str) -> None:
        """Delete a manifest by its digest, with every tag that it has, or a tag alone.

        Raises NotFound where it is not, Unsupported where the registry does not delete, or no tags alone. A
        reference without tag and digest is InvalidReference. Blobs and children stay for the registry to clean up.
        """
        await self._run(lambda client, operation: client.delete_manifest(reference, operation=operation))

    async def referrers(
        self, repository: Repository, digest: Digest, artifact_type: str | None = None
    ) -> tuple[Descriptor, ...]:
        """Manifests of the repository that have this digest as their subject, each once.

        artifact_type picks those of one type. The registry is asked; where it keeps no such list, the tag that
        stands in for it is read. The digest itself need not exist.
        """
        return await self._run(
            lambda client, operation: client.referrers(repository, digest, artifact_type, operation=operation)
        )

    async def tags(self, repository: Repository) -> list[str]:
        """All tags, sorted."""
        return await self._run(lambda client, operation: client.tags(repository, operation=operation))

    async def fetch_blob_bytes(self, repository: Repository, descriptor: Descriptor, max_bytes: int) -> bytes:
        """A small blob, verified. One that says it is larger than max_bytes is not asked for."""
        return await self._run(
            lambda client, operation: client.fetch_blob_bytes(repository, descriptor, max_bytes, operation=operation)
        )

    async def fetch_blob(self, repository: Repository, descriptor: Descriptor, writer: Writer) -> None:
        """Stream a blob into writer, whose write() runs in a thread; after an interruption it goes on.

        What was written counts only if this returns: size and digest are known to be right at the end.
        """
        await self._run(
            lambda client, operation: client.fetch_blob(repository, descriptor, writer, operation=operation),
            seconds=self._timeouts.blob,
        )

    async def push_blob(
        self,
        repository: Repository,
        descriptor: Descriptor,
        open_content: Callable[[], BinaryIO],
        *,
        mount_from: Repository | None = None,
    ) -> bool:
        """Upload a blob unless the repository has it; returns whether bytes had to be sent.

        open_content is called in a thread, for each attempt. mount_from names a repository of the same
        registry that has the blob, so that nothing needs to be sent.
        """
        return await self._run(
            lambda client, operation: client.push_blob(
                repository, descriptor, open_content, mount_from=mount_from, operation=operation
            ),
            seconds=self._timeouts.blob,
        )

    async def copy_blob(self, source: Repository, target: Repository, descriptor: Descriptor) -> Transfer:
        """Bring a blob from one repository to another, of the same registry or not, in bounded memory.

        Inside a registry it is mounted where that is allowed. Otherwise it is streamed, and the last piece goes
        out only once size and digest of the whole are known to be right. Content that the descriptor carries is
        not fetched.
        """
        return await self._run(
            lambda client, operation: client.copy_blob(source, target, descriptor, operation=operation),
            seconds=self._timeouts.blob,
        )

    async def copy_manifest(
        self,
        source: Repository,
        target: Repository,
        descriptor: Descriptor | None = None,
        tags: Sequence[str] = (),
        *,
        track_subject: bool = True,
    ) -> CopyReport:
        """Copy a manifest or index, byte for byte, with everything below it; then write the tags.

        source is a reference to it where no descriptor says what to copy, else a repository that has it. What the
        target has already is left alone: a manifest that is there counts as whole, the children of an index are
        looked at each by each. Blobs come by mount where the registry is the same. Layers with URLs of their own
        (foreign layers) stay where they are. A manifest is written once all that it names is there, an
        attestation after its image; the tags come last. track_subject is as for push_manifest, and holds for the
        top: entries of an index are found by the index.
        """
        from buildkit_py.registry._copy import copy_tree

        return await copy_tree(self, source, target, descriptor, tags, track_subject=track_subject)

    async def _run(self, action: Callable[[RegistryClient, Operation], T], *, seconds: float | None = None) -> T:
        return await self._workers.run(
            self._timeouts.total if seconds is None else seconds,
            lambda operation: action(self._open(), operation),
        )

    def _open(self) -> RegistryClient:
        with self._opening:
            if self._client is None:
                from buildkit_py.registry.client import RegistryClient

                self._client = RegistryClient(
                    credentials=self._credentials,
                    config=self._config,
                    timeouts=self._timeouts,
                    retry=self._retry,
                    connections=self._connections,
                )
            return self._client
