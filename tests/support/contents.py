"""Images, artifacts and indexes made by hand, for tests that need a certain document and no build."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from buildkit_py.digest import Digest
from buildkit_py.oci import (
    DOCKER_CONFIG,
    DOCKER_INDEX,
    DOCKER_MANIFEST,
    OCI_CONFIG,
    OCI_EMPTY,
    OCI_INDEX,
    OCI_MANIFEST,
    Descriptor,
)
from buildkit_py.registry import Registry

OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar.gzip"
ATTESTATION_TYPE = "application/vnd.docker.attestation.manifest.v1+json"
PROVENANCE = "https://slsa.dev/provenance/v0.2"
SPDX = "https://spdx.dev/Document"


@dataclass(frozen=True, kw_only=True)
class Document:
    """A manifest or index, with the blobs and documents below it."""

    raw: bytes
    media_type: str
    entry: Mapping[str, object]
    """Its descriptor, as an index lists it."""
    blobs: Sequence[bytes] = ()
    below: Sequence[Document] = field(default=())

    @property
    def digest(self) -> Digest:
        return Digest.of(self.raw)

    def walk(self) -> list[Document]:
        """All documents, those below before those above."""
        return [*(item for child in self.below for item in child.walk()), self]

    async def push(self, registry: Registry, repository: str, *tags: str) -> Document:
        """Write it with everything below it, then the tags."""
        for document in self.walk():
            for blob in document.blobs:
                described = descriptor("application/octet-stream", blob)
                await registry.push_blob(repository, described, partial(io.BytesIO, blob))
            await registry.push_manifest(
                repository,
                document.raw,
                document.media_type,
                tags if document is self else (),
                track_subject=False,
            )
        return self


def descriptor(media_type: str, raw: bytes) -> Descriptor:
    return Descriptor.of(raw, media_type)


def described(media_type: str, raw: bytes, **more: object) -> dict[str, object]:
    """A descriptor as JSON."""
    return {"mediaType": media_type, "digest": str(Digest.of(raw)), "size": len(raw), **more}


def encode(fields: Mapping[str, object]) -> bytes:
    """As Go's tools do when they indent."""
    return json.dumps(fields, indent=2).encode()


def image(
    platform: str = "linux/amd64",
    *,
    text: str = "",
    docker: bool = False,
    annotations: Mapping[str, str] | None = None,
    os_version: str = "",
    layers: Sequence[bytes] | None = None,
) -> Document:
    """An image whose content is of no use, other for each platform and text."""
    os, architecture, *variant = platform.split("/")
    machine: dict[str, object] = {"architecture": architecture, "os": os}
    if os_version:
        machine["os.version"] = os_version
    if variant:
        machine["variant"] = variant[0]
    contents = [f"layer of {platform} {text} {os_version}".encode()] if layers is None else list(layers)
    config = encode(
        {
            **machine,
            "config": {"Labels": {"text": text}, "Env": ["A=<1>&2"]},
            "rootfs": {"type": "layers", "diff_ids": [str(Digest.of(layer)) for layer in contents]},
        }
    )
    kind = DOCKER_MANIFEST if docker else OCI_MANIFEST
    fields: dict[str, object] = {
        "schemaVersion": 2,
        "mediaType": kind,
        "config": described(DOCKER_CONFIG if docker else OCI_CONFIG, config),
        "layers": [described(DOCKER_LAYER if docker else OCI_LAYER, layer) for layer in contents],
    }
    if annotations:
        fields["annotations"] = dict(annotations)
    raw = encode(fields)
    return Document(raw=raw, media_type=kind, entry=described(kind, raw, platform=machine), blobs=[config, *contents])


def attestation(of: Document, *, artifact: bool = True, statements: Mapping[str, object] | None = None) -> Document:
    """What BuildKit says of an image: as an artifact with a subject, or as it did before v0.32."""
    said = {PROVENANCE: {"builder": {"id": "tests"}}} if statements is None else statements
    subject = [{"name": "_", "digest": {"sha256": of.digest.hex}}]
    blobs = [
        encode(
            {
                "_type": "https://in-toto.io/Statement/v0.1",
                "predicateType": kind,
                "subject": subject,
                "predicate": predicate,
            }
        )
        for kind, predicate in said.items()
    ]
    layers = [
        described("application/vnd.in-toto+json", blob, annotations={"in-toto.io/predicate-type": kind})
        for kind, blob in zip(said, blobs, strict=True)
    ]
    fields: dict[str, object] = {"schemaVersion": 2, "mediaType": OCI_MANIFEST}
    if artifact:
        config = b"{}"
        fields |= {"artifactType": ATTESTATION_TYPE, "config": described(OCI_EMPTY, config, data="e30=")}
        fields |= {"layers": layers, "subject": described(of.media_type, of.raw)}
    else:
        config = encode(
            {
                "architecture": "unknown",
                "os": "unknown",
                "config": {},
                "rootfs": {"type": "layers", "diff_ids": [str(Digest.of(blob)) for blob in blobs]},
            }
        )
        fields |= {"config": described(OCI_CONFIG, config), "layers": layers}
    raw = encode(fields)
    entry = described(
        OCI_MANIFEST,
        raw,
        annotations={
            "vnd.docker.reference.digest": str(of.digest),
            "vnd.docker.reference.type": "attestation-manifest",
        },
        platform={"architecture": "unknown", "os": "unknown"},
    )
    return Document(raw=raw, media_type=OCI_MANIFEST, entry=entry, blobs=[config, *blobs])


def artifact(kind: str = "application/vnd.example+type", *, subject: Document | None = None) -> Document:
    """An artifact that is no image, such as a signature."""
    blob = f"content of a {kind}".encode()
    fields: dict[str, object] = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "artifactType": kind,
        "config": described(OCI_EMPTY, b"{}"),
        "layers": [described("application/octet-stream", blob)],
    }
    if subject is not None:
        fields["subject"] = described(subject.media_type, subject.raw)
    raw = encode(fields)
    return Document(
        raw=raw, media_type=OCI_MANIFEST, entry=described(OCI_MANIFEST, raw, artifactType=kind), blobs=[b"{}", blob]
    )


def index(
    *below: Document,
    docker: bool = False,
    annotations: Mapping[str, str] | None = None,
    entries: Sequence[Mapping[str, object]] | None = None,
    raw: bytes | None = None,
    **more: object,
) -> Document:
    """An index of documents; entries and raw are given where they are not to be the usual ones."""
    kind = DOCKER_INDEX if docker else OCI_INDEX
    fields: dict[str, object] = {
        "schemaVersion": 2,
        "mediaType": kind,
        "manifests": [dict(entry) for entry in entries or [document.entry for document in below]],
        **more,
    }
    if annotations:
        fields["annotations"] = dict(annotations)
    raw = encode(fields) if raw is None else raw
    return Document(raw=raw, media_type=kind, entry=described(kind, raw), below=below)


def listing(*children: Document, **fields: object) -> Document:
    """An index, with other fields in the entry of the first child."""
    first, *others = (dict(child.entry) for child in children)
    raw = encode({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [first | fields, *others]})
    return Document(raw=raw, media_type=OCI_INDEX, entry=described(OCI_INDEX, raw), below=children)
