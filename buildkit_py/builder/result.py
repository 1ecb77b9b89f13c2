"""What came of a build."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from buildkit_py.builder.transfers import TransferCounts
    from buildkit_py.digest import Digest
    from buildkit_py.oci import Descriptor
    from buildkit_py.platforms import Platform
    from buildkit_py.progress import VertexWarning
    from buildkit_py.reference import Reference


@dataclass(frozen=True, slots=True, kw_only=True)
class PlatformResult:
    """One platform of a build."""

    platform: Platform | None
    """None where no platform was asked for and no image tells which one the daemon's own is."""
    manifest: Descriptor | None
    """The image manifest as it stands in the index; None where no image was exported."""
    config_digest: Digest | None
    size: int | None
    """Bytes of manifest, config and layers; None where they were not read back."""
    attestations: tuple[Descriptor, ...]
    ref: str
    """Id of the solve, the key to the daemon's build history."""
    node: str
    """Address of the daemon that solved it."""
    seconds: float
    """From the solve request to its reply."""
    cached: int
    total: int
    """Vertexes from the cache, and all of them."""
    provenance: Mapping[str, object] | None = None
    """What the daemon recorded of how it was made, as a SLSA v0.2 predicate, where that was asked for."""
    response: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    """What the exporters of the solve answered, as it came."""

    @property
    def digest(self) -> Digest | None:
        """Of the image manifest; None where no image was exported."""
        return None if self.manifest is None else self.manifest.digest


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildResult:
    """All platforms of a build and what joins them."""

    platforms: tuple[PlatformResult, ...]
    """In the order they were asked for."""
    descriptor: Descriptor | None
    """Root of the result: the index, or the one manifest; None where no image was exported."""
    references: tuple[Reference, ...]
    """What was pushed."""
    names: tuple[Reference, ...] = ()
    """What the image is called, wherever it went."""
    seconds: float
    """Wall time of the whole build."""
    publish_seconds: float
    """From the end of the slowest solve to the last tag written and the last file in place."""
    notes: tuple[str, ...] = ()
    """What people should know of it, such as what an engine could not take."""
    warnings: tuple[VertexWarning, ...] = ()
    """What the frontend and the daemon warned of, each once, in the order that they came."""
    transfers: tuple[TransferCounts, ...] = ()
    """What crossed to the daemon: directories, streams, and blobs of layouts and local caches."""

    @property
    def digest(self) -> Digest | None:
        """Of the root, which is what to pull; None where no image was exported."""
        return None if self.descriptor is None else self.descriptor.digest

    @property
    def image_id(self) -> str | None:
        """What docker calls the id of the image: the digest of the config, or of the index where there is one.

        None where no image was exported.
        """
        only = self.platforms[0] if len(self.platforms) == 1 else None
        if only is not None and only.config_digest is not None and not (self.descriptor and self.descriptor.is_index):
            return str(only.config_digest)
        return None if self.digest is None else str(self.digest)

    def metadata(self, *, warnings: bool = False) -> dict[str, object]:
        """What ``--metadata-file`` writes: docker buildx's keys, and ``buildkit_py.platforms``.

        With warnings, those are told of too, as ``buildx.build.warnings``.
        """
        fields: dict[str, object] = {}
        only = self.platforms[0] if len(self.platforms) == 1 else None
        if only is not None and only.provenance is not None:
            fields["buildx.build.provenance"] = only.provenance
        # In the place of builder and node there is a name for whoever has none, as docker buildx has it.
        fields["buildx.build.ref"] = f"default/default/{self.platforms[0].ref}"
        if warnings and self.warnings:
            from buildkit_py.progress.rawjson import warning_fields

            fields["buildx.build.warnings"] = [warning_fields(warning) for warning in self.warnings]
        response = self.platforms[0].response
        fields |= {
            key: text for key, text in response.items() if key == "cache.manifest" or key.startswith("frontend.")
        }
        if self.descriptor is None:
            # An engine with the classic image store has no manifests to describe.
            fields |= {key: text for key, text in response.items() if key.startswith("containerimage.")}
        if self.descriptor is not None:
            fields["containerimage.descriptor"] = self.descriptor.to_json()
            fields["containerimage.digest"] = str(self.descriptor.digest)
            if self.image_id != str(self.descriptor.digest):
                fields["containerimage.config.digest"] = self.image_id
        if self.names:
            fields["image.name"] = ",".join(str(name) for name in self.names)
        fields["buildkit_py.platforms"] = {
            str(entry.platform or "default"): _platform_fields(entry) for entry in self.platforms
        }
        return fields


def _platform_fields(entry: PlatformResult) -> Mapping[str, object]:
    return {
        "manifest.digest": None if entry.digest is None else str(entry.digest),
        "config.digest": None if entry.config_digest is None else str(entry.config_digest),
        "size": entry.size,
        "node": entry.node,
        "ref": entry.ref,
        "seconds": round(entry.seconds, 6),
        "vertexes.cached": entry.cached,
        "vertexes.total": entry.total,
    }
