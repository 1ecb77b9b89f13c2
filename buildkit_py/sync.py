"""The same API for code without asyncio: every call blocks until it is done.

The work runs on one background event loop per client, so that a session is served while its solve runs::

    with buildkit_py.sync.connect() as client:
        result = client.build(BuildRequest(context=".", tags=["localhost:5000/app"], push=True))

Registries without a daemon::

    with buildkit_py.sync.open_registry() as registry:
        registry.copy("localhost:5000/app:tested", "localhost:5000/app:v1")

Names, arguments and errors are those of the asynchronous API. KeyboardInterrupt cancels what runs.
Callbacks such as on_status are called on the background thread, and must not call the client themselves: that raises
RuntimeError, as does a client that was made before a fork.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, BinaryIO, Protocol

from buildkit_py import builder, imagetools
from buildkit_py import client as aio
from buildkit_py import registry as aio_registry
from buildkit_py.builder import BuildRequest, BuildResult, GraphRequest, StatusCallback, TransferCallback
from buildkit_py.builder import call as builder_call
from buildkit_py.builder.call import CallResult
from buildkit_py.client import SolveRequest, SolveResult, StatusHandler
from buildkit_py.digest import Digest
from buildkit_py.loopthread import LoopThread, loop_thread
from buildkit_py.oci import Descriptor
from buildkit_py.platforms import Platform
from buildkit_py.progress import StatusUpdate
from buildkit_py.records import DaemonInfo, UsageRecord, Worker
from buildkit_py.reference import Reference
from buildkit_py.registry import CopyReport, CredentialStore, RegistryConfig, Transfer
from buildkit_py.registry.registry import CONCURRENCY
from buildkit_py.rpc import TLSConfig
from buildkit_py.session.attachable import Attachable

if TYPE_CHECKING:
    from buildkit_py.llb.definition import Definition
    from buildkit_py.session.policy import SourceRules


class BlobWriter(Protocol):
    """Where a blob goes."""

    def write(self, data: bytes, /) -> object:
        """Take all of data."""
        ...


class Client:
    """Blocking view of :class:`buildkit_py.client.Client`; made by :func:`connect`. Threads may share it."""

    def __init__(self, client: aio.Client, loop: LoopThread) -> None:
        self._client = client
        self._loop = loop

    @property
    def address(self) -> str:
        """Where the daemon is."""
        return self._client.address

    def info(self) -> DaemonInfo | None:
        """Version of the daemon; None from one older than v0.11."""
        return self._loop.call(self._client.info())

    def capabilities(self) -> frozenset[str]:
        """What the daemon can do for LLB and frontends, by name."""
        return self._loop.call(self._client.capabilities())

    def supports(self, capability: str) -> bool:
        """Whether the daemon has a capability."""
        return self._loop.call(self._client.supports(capability))

    def workers(self, filters: Sequence[str] = ()) -> tuple[Worker, ...]:
        """The daemon's workers, the one that builds first."""
        return self._loop.call(self._client.workers(filters))

    def disk_usage(self, filters: Sequence[str] = ()) -> tuple[UsageRecord, ...]:
        """Records of the build cache."""
        return self._loop.call(self._client.disk_usage(filters))

    def prune(
        self,
        filters: Sequence[str] = (),
        *,
        all: bool = False,
        keep_seconds: float = 0,
        reserved_space: int = 0,
        max_used_space: int = 0,
        min_free_space: int = 0,
    ) -> Iterator[UsageRecord]:
        """Delete cache records and yield each one deleted."""
        return self._loop.iterate(
            self._client.prune(
                filters,
                all=all,
                keep_seconds=keep_seconds,
                reserved_space=reserved_space,
                max_used_space=max_used_space,
                min_free_space=min_free_space,
            )
        )

    def recorded_attestations(self, ref: str) -> tuple[Descriptor, ...]:
        """What the daemon's build history keeps about how a solve of one result was made."""
        return self._loop.call(self._client.recorded_attestations(ref))

    def has_blob(self, digest: Digest) -> bool:
        """Whether the daemon's content store has a blob, now."""
        return self._loop.call(self._client.has_blob(digest))

    def read_blob(self, digest: Digest, max_bytes: int) -> bytes:
        """A blob of the daemon's content store, checked."""
        return self._loop.call(self._client.read_blob(digest, max_bytes))

    def read_file(
        self,
        definition: Definition,
        path: str,
        *,
        max_bytes: int,
        attachables: Sequence[Attachable] = (),
        source_rules: SourceRules | None = None,
        on_status: StatusHandler | None = None,
    ) -> bytes:
        """Solve a definition and read a file of its result; see :meth:`buildkit_py.client.Client.read_file`."""
        return self._loop.call(
            self._client.read_file(
                definition,
                path,
                max_bytes=max_bytes,
                attachables=attachables,
                source_rules=source_rules,
                on_status=on_status,
            )
        )

    def status(self, ref: str) -> Iterator[StatusUpdate]:
        """Follow one solve to its end."""
        return self._loop.iterate(self._client.status(ref))

    def solve(
        self,
        request: SolveRequest | Definition,
        *,
        attachables: Sequence[Attachable] = (),
        on_status: StatusHandler | None = None,
    ) -> SolveResult:
        """Run one solve to its end on a session of its own."""
        return self._loop.call(self._client.solve(request, attachables=attachables, on_status=on_status))

    def build(
        self,
        request: BuildRequest | GraphRequest,
        *,
        credentials: CredentialStore | None = None,
        registry_config: RegistryConfig | None = None,
        on_status: StatusCallback | None = None,
        on_transfer: TransferCallback | None = None,
    ) -> BuildResult:
        """Build a Dockerfile or a graph for one platform or many; see :func:`buildkit_py.build`."""
        return self._loop.call(
            builder.build(
                self._client,
                request,
                credentials=credentials,
                registry_config=registry_config,
                on_status=on_status,
                on_transfer=on_transfer,
            )
        )

    def call(
        self,
        request: BuildRequest,
        method: str,
        *,
        credentials: CredentialStore | None = None,
        registry_config: RegistryConfig | None = None,
        on_status: StatusCallback | None = None,
    ) -> CallResult:
        """Ask a Dockerfile's frontend about a build; see :func:`buildkit_py.call`."""
        return self._loop.call(
            builder_call.call(
                self._client,
                request,
                method,
                credentials=credentials,
                registry_config=registry_config,
                on_status=on_status,
            )
        )


@contextmanager
def connect(
    address: str | None = None, *, tls: TLSConfig | None = None, dial_timeout: float = 10.0
) -> Generator[Client, None, None]:
    """Connect to a daemon and close the connection at the end; see :func:`buildkit_py.connect`."""
    with (
        loop_thread() as loop,
        loop.hold(aio.connect(address, tls=tls, dial_timeout=dial_timeout)) as client,
    ):
        yield Client(client, loop)


class Registry:
    """Blocking view of :class:`buildkit_py.registry.Registry`, and of :mod:`buildkit_py.imagetools` with it.

    Made by :func:`open_registry`. Threads may share it.
    """

    def __init__(self, registry: aio_registry.Registry, loop: LoopThread) -> None:
        self._registry = registry
        self._loop = loop

    def resolve(self, reference: Reference | str, *, mirrors: bool = True) -> Descriptor:
        """Digest, size and type of a manifest, without its bytes where the registry allows it."""
        return self._loop.call(self._registry.resolve(reference, mirrors=mirrors))

    def fetch_manifest(self, reference: Reference | str, *, mirrors: bool = True) -> tuple[bytes, Descriptor]:
        """Bytes of a manifest or index and their descriptor, verified."""
        return self._loop.call(self._registry.fetch_manifest(reference, mirrors=mirrors))

    def exists(self, repository: Reference | str, digest: Digest, *, blob: bool = False) -> bool:
        """Whether the repository has this manifest (or blob)."""
        return self._loop.call(self._registry.exists(repository, digest, blob=blob))

    def push_manifest(
        self,
        repository: Reference | str,
        raw: bytes,
        media_type: str,
        tags: Sequence[str] = (),
        *,
        track_subject: bool = True,
        present: bool = False,
    ) -> Descriptor:
        """Put the bytes by their digest, then at each tag in the order given."""
        return self._loop.call(
            self._registry.push_manifest(
                repository, raw, media_type, tags, track_subject=track_subject, present=present
            )
        )

    def delete_manifest(self, reference: Reference | str) -> None:
        """Delete a manifest by its digest, with every tag that it has, or a tag alone."""
        self._loop.call(self._registry.delete_manifest(reference))

    def referrers(
        self, repository: Reference | str, digest: Digest, artifact_type: str | None = None
    ) -> tuple[Descriptor, ...]:
        """Manifests of the repository that have this digest as their subject."""
        return self._loop.call(self._registry.referrers(repository, digest, artifact_type))

    def tags(self, repository: Reference | str) -> list[str]:
        """All tags, sorted."""
        return self._loop.call(self._registry.tags(repository))

    def fetch_blob_bytes(self, repository: Reference | str, descriptor: Descriptor, max_bytes: int) -> bytes:
        """A small blob, verified."""
        return self._loop.call(self._registry.fetch_blob_bytes(repository, descriptor, max_bytes))

    def fetch_blob(self, repository: Reference | str, descriptor: Descriptor, writer: BlobWriter) -> None:
        """Stream a blob into writer, whose write() runs in another thread."""
        self._loop.call(self._registry.fetch_blob(repository, descriptor, writer))

    def push_blob(
        self,
        repository: Reference | str,
        descriptor: Descriptor,
        open_content: Callable[[], BinaryIO],
        *,
        mount_from: Reference | str | None = None,
    ) -> bool:
        """Upload a blob unless the repository has it; returns whether bytes had to be sent."""
        return self._loop.call(self._registry.push_blob(repository, descriptor, open_content, mount_from=mount_from))

    def copy_blob(self, source: Reference | str, target: Reference | str, descriptor: Descriptor) -> Transfer:
        """Bring a blob from one repository to another."""
        return self._loop.call(self._registry.copy_blob(source, target, descriptor))

    def copy_manifest(
        self,
        source: Reference | str,
        target: Reference | str,
        descriptor: Descriptor | None = None,
        tags: Sequence[str] = (),
        *,
        track_subject: bool = True,
    ) -> CopyReport:
        """Copy a manifest or index with everything below it, and write the tags."""
        return self._loop.call(
            self._registry.copy_manifest(source, target, descriptor, tags, track_subject=track_subject)
        )

    def warm_up(self, *push_to: Reference | str) -> None:
        """Be ready for a push to these repositories."""
        self._loop.call(self._registry.warm_up(*push_to))

    def inspect(
        self, location: imagetools.Location | str, *, configs: bool = False, attestations: bool = False
    ) -> imagetools.Inspection:
        """Read an image or index; see :func:`buildkit_py.imagetools.inspect`."""
        return self._loop.call(imagetools.inspect(self._registry, location, configs=configs, attestations=attestations))

    def create(self, request: imagetools.CreateRequest) -> imagetools.Created:
        """Make one index of images that exist; see :func:`buildkit_py.imagetools.create`."""
        return self._loop.call(imagetools.create(self._registry, request))

    def copy(
        self,
        source: imagetools.Location | str,
        destination: imagetools.Location | str,
        *,
        platforms: Sequence[Platform | str] = (),
        attestations: bool = True,
        referrers: bool = True,
    ) -> imagetools.Copied:
        """Copy an image with all that belongs to it; see :func:`buildkit_py.imagetools.copy`."""
        request = imagetools.CopyRequest(
            source=source,
            destination=destination,
            platforms=platforms,
            attestations=attestations,
            referrers=referrers,
        )
        return self._loop.call(imagetools.copy(self._registry, request))

    def rm_platform(
        self,
        reference: Reference | str,
        platforms: Sequence[Platform | str],
        options: imagetools.EditOptions | None = None,
    ) -> imagetools.Edited:
        """Take platforms out of an index; see :func:`buildkit_py.imagetools.rm_platform`."""
        return self._loop.call(imagetools.rm_platform(self._registry, reference, platforms, options))

    def annotate(
        self,
        reference: Reference | str,
        annotations: Mapping[str, str] | Sequence[str] = (),
        *,
        remove: Sequence[str] = (),
        options: imagetools.EditOptions | None = None,
    ) -> imagetools.Edited:
        """Put annotations into an index and its entries; see :func:`buildkit_py.imagetools.annotate`."""
        return self._loop.call(
            imagetools.annotate(self._registry, reference, annotations, remove=remove, options=options)
        )

    def verify(
        self, location: imagetools.Location | str, *, full: bool = False, platforms: Sequence[Platform | str] = ()
    ) -> imagetools.Verified:
        """Check that an image is whole; see :func:`buildkit_py.imagetools.verify`."""
        request = imagetools.VerifyRequest(location=location, full=full, platforms=platforms)
        return self._loop.call(imagetools.verify(self._registry, request))


@contextmanager
def open_registry(
    *,
    credentials: CredentialStore | None = None,
    config: RegistryConfig | None = None,
    timeouts: aio_registry.Timeouts | None = None,
    retry: aio_registry.RetryPolicy | None = None,
    concurrency: int = CONCURRENCY,
) -> Generator[Registry, None, None]:
    """A registry client; see :class:`buildkit_py.registry.Registry`. Its connections are closed at the end."""
    registry = aio_registry.Registry(
        credentials=credentials, config=config, timeouts=timeouts, retry=retry, concurrency=concurrency
    )
    with loop_thread() as loop, loop.hold(registry):
        yield Registry(registry, loop)


__all__ = ["Client", "connect", "Registry", "open_registry"]
