"""Whether an image is whole: everything in its place, and everything what it is said to be."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from types import MappingProxyType

from buildkit_py.digest import Digest
from buildkit_py.errors import BuildKitError, ImageError, ProtocolError, RegistryError
from buildkit_py.imagetools.inspection import read_config, read_statements
from buildkit_py.imagetools.join import platform_key
from buildkit_py.imagetools.location import Location, parse_location
from buildkit_py.imagetools.store import LayoutStore, RepositoryStore, open_store, parse_document
from buildkit_py.imagetools.tasks import gather
from buildkit_py.oci import DOCKER_CONFIG, OCI_CONFIG, Descriptor, ImageConfig, Index, Manifest, check_entry
from buildkit_py.platforms import Platform, only, parse_platforms
from buildkit_py.registry import Registry


class Severity(Enum):
    """How bad a finding is."""

    ERROR = "error"
    """Somebody's pull fails, or gets something else than it is said to be."""
    WARNING = "warning"
    """Legal, and hardly meant."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Something that is not as it should be."""

    severity: Severity
    digest: Digest
    """The manifest or index that it was found in."""
    message: str

    def __str__(self) -> str:
        return f"{self.severity.value}: {self.digest}: {self.message}"


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyRequest:
    """An image to look at."""

    location: Location | str
    full: bool = False
    """True reads every blob whole and checks its digest; otherwise they are only looked for."""
    platforms: Sequence[Platform | str] = ()
    """Clients to answer for, beside those that the image names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verified:
    """What was found."""

    descriptor: Descriptor
    findings: tuple[Finding, ...]
    """Those of the index first, then those of its entries in order."""
    manifests: int
    blobs: int
    """How many were looked at; each digest once."""
    blob_bytes: int
    pulls: Mapping[Platform, Descriptor | None] = field(default_factory=lambda: MappingProxyType({}), hash=False)
    """What a client of each platform would pull; None where it finds nothing to run."""

    @property
    def ok(self) -> bool:
        """Whether there is no error; warnings are none."""
        return all(finding.severity is not Severity.ERROR for finding in self.findings)

    def require_ok(self) -> None:
        """Raise ImageError with the first error, if there is one."""
        for finding in self.findings:
            if finding.severity is Severity.ERROR:
                raise ImageError(f"{finding.digest}: {finding.message}")


Store = RepositoryStore | LayoutStore


async def verify(registry: Registry, request: VerifyRequest) -> Verified:
    """Look at every manifest, config and blob of an image, and tell all that is wrong.

    Failures of the connection are raised; what is missing or wrong is a finding.
    """
    location = parse_location(request.location)
    wanted = parse_platforms(request.platforms)
    async with open_store(registry, location) as store:
        raw, found = await store.find()
        inspector = _Inspector(store, full=request.full)
        root = Descriptor(media_type=found.media_type, digest=found.digest, size=found.size)
        entries = await inspector.root(root, raw)
        await inspector.check_blobs()
    return Verified(
        descriptor=root,
        findings=tuple(inspector.findings),
        manifests=inspector.manifests,
        blobs=len(inspector.blobs),
        blob_bytes=sum(blob.size for blob, _ in inspector.blobs.values()),
        pulls=MappingProxyType(_pulls(entries, wanted)),
    )


class _Null:
    def write(self, data: bytes, /) -> None:
        """The store checks what passes."""


class _Inspector:
    """One walk over an image."""

    def __init__(self, store: Store, *, full: bool) -> None:
        self.findings: list[Finding] = []
        self.manifests = 0
        self.blobs: dict[Digest, tuple[Descriptor, Digest]] = {}
        """Each blob and the first manifest that needs it."""
        self._store = store
        self._full = full

    async def root(self, root: Descriptor, raw: bytes) -> tuple[Descriptor, ...]:
        """Check from the root down; the images that clients choose from, with their platforms."""
        content = parse_document(raw, root)
        self.manifests += 1
        if isinstance(content, Manifest):
            config = await self._manifest(root, content)
            return (root.with_platform(config.platform if config and config.os else None),)
        if content is None:
            self._error(root.digest, f"media type {root.media_type} is none of an image or index")
            return ()
        self._index(content)
        reports = await gather(self._entry(entry, content) for entry in content.manifests)
        for report in reports:
            self.findings += report
        return content.images

    def _error(self, digest: Digest, message: str) -> None:
        self.findings.append(Finding(severity=Severity.ERROR, digest=digest, message=message))

    def _warning(self, digest: Digest, message: str) -> None:
        self.findings.append(Finding(severity=Severity.WARNING, digest=digest, message=message))

    def _index(self, index: Index) -> None:
        """What can be said of an index by itself."""
        if not index.manifests:
            self._error(index.digest, "the index is empty")
        platforms = Counter(filter(None, (platform_key(entry) for entry in index.manifests)))
        for platform, count in platforms.items():
            if count > 1:
                self._warning(index.digest, f"{count} images are for {platform}; clients pull the first")
        for digest, count in Counter(entry.digest for entry in index.manifests).items():
            if count > 1:
                self._warning(index.digest, f"{digest} is listed {count} times")
        images = {str(entry.digest) for entry in index.images}
        for entry in index.attestations:
            if not entry.attests:
                self._warning(entry.digest, "is for no platform and does not say what it is about")
            elif entry.attests not in images:
                self._error(entry.digest, f"is about {entry.attests}, which is not in the index")
        for entry in index.images:
            if entry.platform is None and not entry.is_index:
                self._warning(entry.digest, "its entry has no platform; clients may pull it or not")

    async def _entry(self, entry: Descriptor, index: Index) -> list[Finding]:
        """What is to be said of one entry of an index; each has a list of its own, so that the order stays."""
        part = _Inspector(self._store, full=self._full)
        try:
            await part._read_entry(entry)
        except RegistryError:
            raise
        except BuildKitError as error:
            part._error(entry.digest, str(error))
        self.manifests += part.manifests
        for digest, blob in part.blobs.items():
            self.blobs.setdefault(digest, blob)
        return part.findings

    async def _read_entry(self, entry: Descriptor) -> None:
        content = parse_document(await self._store.manifest(entry), entry)
        if isinstance(content, Index):
            self._warning(entry.digest, "is an index within the index, which some clients cannot read")
            await self.root(entry, content.raw)
            return
        self.manifests += 1
        if content is None:
            self._warning(entry.digest, f"has media type {entry.media_type}, which is not known here")
        elif entry.is_attestation:
            await self._attestation(entry, content)
        else:
            config = await self._manifest(entry, content)
            if config is not None and entry.platform is not None:
                check_entry(entry, config)

    async def _manifest(self, entry: Descriptor, manifest: Manifest) -> ImageConfig | None:
        """Check an image or artifact; the image's config."""
        for blob in manifest.blobs:
            self.blobs.setdefault(blob.digest, (blob, entry.digest))
        if manifest.config.media_type not in (OCI_CONFIG, DOCKER_CONFIG):
            return None
        config = await read_config(self._store, manifest)
        if config is not None and config.os and len(config.diff_ids) != len(manifest.layers):
            raise ProtocolError(f"has {len(manifest.layers)} layers, its config {len(config.diff_ids)} diff_ids")
        return config

    async def _attestation(self, entry: Descriptor, manifest: Manifest) -> None:
        for blob in manifest.blobs:
            self.blobs.setdefault(blob.digest, (blob, entry.digest))
        if manifest.subject is not None and entry.attests and str(manifest.subject.digest) != entry.attests:
            self._error(entry.digest, f"is about {entry.attests}, its subject is {manifest.subject.digest}")
        for statement in await read_statements(self._store, entry):
            subjects = [str(digest) for digest in statement.subjects]
            if entry.attests and subjects and entry.attests not in subjects:
                self._error(entry.digest, f"its {statement.predicate_type} is about {subjects[0]}, not {entry.attests}")

    async def check_blobs(self) -> None:
        """Look for every blob, or read it."""
        reports = await gather(self._blob(blob, holder) for blob, holder in self.blobs.values())
        self.findings += [finding for finding in reports if finding is not None]

    async def _blob(self, blob: Descriptor, holder: Digest) -> Finding | None:
        there = await self._store.has_blob(blob)
        problem = "" if there else f"blob {blob.digest} is not there"
        if not there and blob.urls:
            return None  # it is fetched from elsewhere
        if there and self._full:
            try:
                await self._store.pull(blob, _Null())
            except ImageError as error:
                problem = str(error)
        return Finding(severity=Severity.ERROR, digest=holder, message=problem) if problem else None


def _pulls(entries: Sequence[Descriptor], wanted: Sequence[Platform]) -> dict[Platform, Descriptor | None]:
    """What clients choose: the best that runs there, the first of equals. Source: containerd/platforms."""
    candidates = [(entry, entry.platform) for entry in entries if platform_key(entry) is not None and entry.platform]
    clients = dict.fromkeys((*(platform.normalized() for _, platform in candidates), *wanted))
    found: dict[Platform, Descriptor | None] = {}
    for client in clients:
        best = only(client).best([platform for _, platform in candidates])
        found[client] = None if best is None else candidates[best][0]
    return found


__all__ = ["Finding", "Severity", "Verified", "VerifyRequest", "verify"]
