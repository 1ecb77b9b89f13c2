"""What a registry or layout has under a name: the document, its images' configs, their provenance and SBOMs."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import cast

from buildkit_py.digest import Digest
from buildkit_py.errors import ImageError, ProtocolError
from buildkit_py.imagetools.location import Location, parse_location
from buildkit_py.imagetools.store import Document, Store, open_store, parse_document
from buildkit_py.imagetools.tasks import gather
from buildkit_py.oci import (
    DOCKER_CONFIG,
    MAX_CONFIG_BYTES,
    OCI_CONFIG,
    Descriptor,
    ImageConfig,
    Index,
    JSONObject,
    Manifest,
    parse_json,
)
from buildkit_py.platforms import Platform
from buildkit_py.reference import Reference
from buildkit_py.registry import Registry

MAX_STATEMENT_BYTES = 64 << 20
"""Of one attestation; SBOMs of large images have some megabytes."""

PREDICATE_TYPE = "in-toto.io/predicate-type"
STATEMENT_TYPE = "application/vnd.in-toto+json"
ATTESTATION_ARTIFACT = "application/vnd.docker.attestation.manifest.v1+json"
_PROVENANCE = "https://slsa.dev/provenance/"
_SPDX = "https://spdx.dev/Document"


@dataclass(frozen=True, slots=True, kw_only=True)
class Statement:
    """What an attestation says of an image. Source: in-toto attestation framework, Statement."""

    predicate_type: str
    predicate: JSONObject = field(hash=False)
    subjects: tuple[Digest, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """One image of what was inspected."""

    descriptor: Descriptor
    platform: Platform | None
    """Normalised; None for what is not an image to run."""
    config: ImageConfig | None
    """None where it was not asked for, or is no image's."""
    statements: tuple[Statement, ...] = ()

    @property
    def provenance(self) -> JSONObject | None:
        """Predicate of the first provenance attestation."""
        return next((s.predicate for s in self.statements if s.predicate_type.startswith(_PROVENANCE)), None)

    @property
    def sboms(self) -> tuple[JSONObject, ...]:
        """SPDX documents: the first is the image's, further ones are those of what it was built with."""
        return tuple(s.predicate for s in self.statements if s.predicate_type == _SPDX)


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspection:
    """An image or index and what was read with it."""

    text: str
    """As the location was given."""
    location: Location
    descriptor: Descriptor
    raw: bytes = field(repr=False)
    content: Document | None
    """None where its media type is none of those known."""
    images: tuple[Image, ...] = ()


async def inspect(
    registry: Registry, location: Location | str, *, configs: bool = False, attestations: bool = False
) -> Inspection:
    """Read what location names; its images with their configs, provenance and SBOMs where asked for."""
    parsed = parse_location(location)
    async with open_store(registry, parsed) as store:
        raw, descriptor = await store.find()
        content = parse_document(raw, descriptor)
        images: tuple[Image, ...] = ()
        if configs or attestations:
            images = tuple(await gather(_image(store, part, attestations) for part in _parts(descriptor, content)))
    return Inspection(
        text=str(location),
        location=parsed.with_default_tag() if isinstance(parsed, Reference) else parsed,
        descriptor=descriptor,
        raw=raw,
        content=content,
        images=images,
    )


@dataclass(frozen=True, slots=True)
class _Part:
    """An image and its attestations in the index."""

    descriptor: Descriptor
    manifest: Manifest | None
    attestations: Sequence[Descriptor]


def _parts(descriptor: Descriptor, content: Document | None) -> list[_Part]:
    if isinstance(content, Index):
        paired: dict[str, list[Descriptor]] = {}
        for entry in content.attestations:
            paired.setdefault(entry.attests, []).append(entry)
        images = [entry for entry in content.images if not entry.is_index]
        return [_Part(entry, None, paired.get(str(entry.digest), ())) for entry in images]
    return [] if content is None else [_Part(descriptor, content, ())]


async def _image(store: Store, part: _Part, attestations: bool) -> Image:
    manifest = part.manifest
    if manifest is None:
        read = parse_document(await store.manifest(part.descriptor), part.descriptor)
        manifest = read if isinstance(read, Manifest) else None
    config = None if manifest is None else await read_config(store, manifest)
    platform = part.descriptor.platform
    if platform is None and config is not None and config.os:
        platform = config.platform
    statements: tuple[Statement, ...] = ()
    if attestations:
        entries = part.attestations or [
            entry
            for entry in await store.referrers(part.descriptor.digest)
            if entry.artifact_type == ATTESTATION_ARTIFACT
        ]
        statements = tuple(
            statement
            for found in await gather(read_statements(store, entry) for entry in entries)
            for statement in found
        )
    return Image(
        descriptor=part.descriptor,
        platform=None if platform is None else platform.normalized(default_os=""),
        config=config,
        statements=statements,
    )


async def read_config(store: Store, manifest: Manifest) -> ImageConfig | None:
    """Config of an image's manifest; None for a manifest of something else."""
    if manifest.config.media_type not in (OCI_CONFIG, DOCKER_CONFIG):
        return None
    return ImageConfig.parse(await store.blob(manifest.config, MAX_CONFIG_BYTES))


async def read_statements(store: Store, entry: Descriptor) -> tuple[Statement, ...]:
    """The statements in an attestation manifest."""
    manifest = parse_document(await store.manifest(entry), entry)
    if not isinstance(manifest, Manifest):
        raise ImageError(f"{store.name}@{entry.digest}: an attestation is expected to be a manifest")
    layers = [layer for layer in manifest.layers if layer.media_type.startswith("application/vnd.in-toto")]
    return tuple(await gather(_statement(store, layer) for layer in layers))


async def _statement(store: Store, layer: Descriptor) -> Statement:
    what = f"{store.name}@{layer.digest}: statement"
    fields = parse_json(await store.blob(layer, MAX_STATEMENT_BYTES), what, max_bytes=MAX_STATEMENT_BYTES)
    if layer.media_type.endswith("+dsse"):
        fields = _opened(fields, what)
    predicate = fields.get("predicate")
    kind = fields.get("predicateType")
    return Statement(
        predicate_type=kind if isinstance(kind, str) else layer.annotations.get(PREDICATE_TYPE, ""),
        predicate=cast("JSONObject", predicate) if isinstance(predicate, dict) else {},
        subjects=_subjects(fields.get("subject"), what),
    )


def _opened(envelope: JSONObject, what: str) -> JSONObject:
    """The statement in a signed envelope, whose signature is not looked at. Source: secure-systems-lab/dsse."""
    payload = envelope.get("payload")
    try:
        raw = base64.b64decode(payload, validate=True) if isinstance(payload, str) else b""
    except (binascii.Error, ValueError):
        raise ProtocolError(f"{what}: payload is not base64") from None
    return parse_json(raw, what, max_bytes=MAX_STATEMENT_BYTES)


def _subjects(value: object, what: str) -> tuple[Digest, ...]:
    found: dict[Digest, None] = {}
    for item in cast("list[object]", value) if isinstance(value, list) else []:
        digests = cast("Mapping[str, object]", item).get("digest") if isinstance(item, Mapping) else None
        if not isinstance(digests, Mapping):
            raise ProtocolError(f"{what}: a subject has no digest")
        for algorithm, text in cast("Mapping[str, object]", digests).items():
            # Other algorithms, such as git's sha1, name things that are no images.
            if algorithm in ("sha256", "sha384", "sha512") and isinstance(text, str):
                found[Digest(algorithm, text)] = None
    return tuple(found)


__all__ = [
    "ATTESTATION_ARTIFACT",
    "Image",
    "Inspection",
    "Statement",
    "inspect",
    "read_config",
    "read_statements",
]
