"""What a build serves to its daemon through the session, besides registry credentials."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from buildkit_py.builder.transfers import TransferCounts
from buildkit_py.options import CacheSpec, SecretSpec, SSHSpec
from buildkit_py.platforms import Platform
from buildkit_py.session.attachable import Attachable
from buildkit_py.session.filesync import FileSync, LocalDir, MemoryDir

if TYPE_CHECKING:
    from buildkit_py.builder.request import Plan
    from buildkit_py.session.content import BlobStore
    from buildkit_py.session.localcache import LocalCaches


class ClientServices:
    """The attachables of one build, which all its solves share, and the local caches of each of them."""

    def __init__(self, plan: Plan) -> None:
        """Blocks on small files. Raises InvalidOption for what has gone since the plan was made."""
        request, sources = plan.request, plan.sources
        directories = {name: LocalDir(path) for name, path in plan.directories.items()}
        self.file_sync = FileSync({**directories, **{name: MemoryDir(files) for name, files in sources.files.items()}})
        self.attachables: list[Attachable] = [self.file_sync, *_asked_of_us(request.secrets, request.ssh)]
        self._uploads = tuple(sources.uploads.values())
        if sources.uploads:
            from buildkit_py.session.upload import Upload

            self.attachables.append(Upload(sources.uploads))
        if request.source_policy is not None:
            from buildkit_py.session.policy import SourcePolicy

            self.attachables.append(SourcePolicy(request.source_policy))
        self._imports: Sequence[CacheSpec] = ()
        self._exports: Mapping[Platform | None, Sequence[CacheSpec]] = {}
        if request.cache_from or request.cache_to:
            from buildkit_py.builder.caches import plan_caches

            caches = plan_caches(request.cache_from, request.cache_to, plan.platforms, warn=True)
            self._imports, self._exports = caches.imports, caches.exports
        self._local: dict[Platform | None, LocalCaches] = {}
        self._stores = self._open_stores(sources.layouts)
        if self._stores:
            from buildkit_py.session.content import ContentStores

            self.attachables.append(ContentStores(self._stores))

    def transfers(self) -> tuple[TransferCounts, ...]:
        """All transfers so far, those of directories in the order of their beginning; older ones may be left out."""
        directories = [
            TransferCounts(
                name=transfer.name,
                visited=transfer.visited,
                listed=transfer.listed,
                requested=transfer.requested,
                files_sent=transfer.files_sent,
                bytes_sent=transfer.bytes_sent,
                done=transfer.done,
            )
            for transfer in self.file_sync.transfers
        ]
        streams = [TransferCounts(name=stream.what, bytes_sent=stream.sent) for stream in self._uploads]
        stores = [
            TransferCounts(name=str(store.root), bytes_sent=store.sent, bytes_received=store.received)
            for store in self._stores.values()
        ]
        # Directories come last: the others are there from the beginning, so that each keeps its place.
        return (*streams, *stores, *directories)

    def cache_imports(self, platform: Platform | None) -> Sequence[CacheSpec]:
        """What the solve of this platform imports; None may also be one solve of all platforms."""
        local = self._local.get(platform) or next(iter(self._local.values()), None)
        return self._imports if local is None else local.imports

    def cache_exports(self, platform: Platform | None) -> Sequence[CacheSpec]:
        """What the solve of this platform exports."""
        local = self._local.get(platform)
        return self._exports.get(platform, ()) if local is None else local.exports

    def publish_caches(self, platform: Platform | None, response: Mapping[str, str]) -> None:
        """Let the tags of local caches stand for what the solve of this platform has exported. Blocks."""
        local = self._local.get(platform)
        if local is not None:
            local.publish(response)

    def _open_stores(self, layouts: Mapping[str, Path]) -> dict[str, BlobStore]:
        stores: dict[str, BlobStore] = {}
        if layouts:
            from buildkit_py.session.content import open_layout_store

            for name, path in layouts.items():
                stores[f"oci:{name}"] = open_layout_store(path, option="build context")
        for platform, exports in self._exports.items():
            if any(spec.type == "local" for spec in (*self._imports, *exports)):
                from buildkit_py.session.localcache import LocalCaches

                local = self._local[platform] = LocalCaches(self._imports, exports)
                stores |= local.stores
        return stores


def check_services(secrets: Iterable[SecretSpec], ssh: Iterable[SSHSpec]) -> None:
    """Raise InvalidOption for a secret, agent or key that cannot be had. Blocks on small files."""
    _asked_of_us(secrets, ssh)


def _asked_of_us(secrets: Iterable[SecretSpec], ssh: Iterable[SSHSpec]) -> list[Attachable]:
    attachables: list[Attachable] = []
    if secrets := tuple(secrets):
        from buildkit_py.session.secrets import Secrets

        attachables.append(Secrets(secrets))
    if ssh := tuple(ssh):
        from buildkit_py.session.sshforward import SSHForward

        attachables.append(SSHForward(ssh))
    return attachables
