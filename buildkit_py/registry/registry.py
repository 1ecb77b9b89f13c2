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

if TYPE_CHECKING:
    # Its HTTP stack takes a quarter of a second to import; builds without a push never pay for it.
    from buildkit_py.registry.client import RegistryClient, Writer

_LOG = logging.getLogger(__name__)
T = TypeVar("T")
Repository: TypeAlias = Reference | str
"""A repository: a reference whose tag and digest do not matter, or its text as people write it."""

CONCURRENCY = 8
"""Requests at once: round trips dominate, and registries begin to push back above this."""


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
        """Without credentials those of docker are used, looked up when a registry asks for some."""
        self._credentials = credentials
        self._config = config or RegistryConfig()
        self._timeouts = timeouts or Timeouts()
        self._retry = retry or RetryPolicy()
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

    async def resolve(self, reference: Reference | str) -> Descriptor:
        """Digest, size and type of a manifest, without its bytes where the registry allows it."""
        return await self._run(lambda client, operation: client.resolve(reference, operation=operation))

    async def fetch_manifest(self, reference: Reference | str) -> tuple[bytes, Descriptor]:
        """Bytes of a manifest or index and their descriptor, verified; at most 4 MiB."""
        return await self._run(lambda client, operation: client.fetch_manifest(reference, operation=operation))

    async def exists(self, repository: Repository, digest: Digest, *, blob: bool = False) -> bool:
        """Whether the repository has this manifest (or blob)."""
        return await self._run(
            lambda client, operation: client.exists(repository, digest, blob=blob, operation=operation)
        )

    async def push_manifest(
        self, repository: Repository, raw: bytes, media_type: str, tags: Sequence[str] = ()
    ) -> Descriptor:
        """Put the bytes by their digest, then at each tag in the order given; returns their descriptor.

        A tag is written only after everything before it succeeded.
        """
        return await self._run(
            lambda client, operation: client.push_manifest(repository, raw, media_type, tags, operation=operation)
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
                )
            return self._client
