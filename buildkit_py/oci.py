"""Manifests, indexes and image configs: read strictly, written as BuildKit writes them.

What was read keeps its bytes: a digest is of these, never of JSON that was written again. Content comes from
daemons and registries, so whatever is not as it should be raises ProtocolError.
Source: OCI image-spec v1.1 and the Docker types that preceded it.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import NoReturn, TypeAlias, cast

from buildkit_py.digest import Digest
from buildkit_py.errors import InvalidDigest, InvalidPlatform, ProtocolError
from buildkit_py.platforms import Platform

OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_EMPTY = "application/vnd.oci.empty.v1+json"
DOCKER_INDEX = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"

INDEX_TYPES = frozenset({OCI_INDEX, DOCKER_INDEX})
MANIFEST_TYPES = frozenset({OCI_MANIFEST, DOCKER_MANIFEST})

MAX_MANIFEST_BYTES = 4 << 20
"""Most that registries are asked to take. Source: OCI distribution-spec v1.1, "Pushing Manifests"."""
MAX_CONFIG_BYTES = 8 << 20
"""Far above what image configs need, which are kilobytes."""

REFERENCE_TYPE = "vnd.docker.reference.type"
REFERENCE_DIGEST = "vnd.docker.reference.digest"
ATTESTATION = "attestation-manifest"

JSONObject: TypeAlias = Mapping[str, object]

_MAX_SIZE = (1 << 63) - 1  # a size is an int64 for everyone else
_NO_ANNOTATIONS: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True)
class Descriptor:
    """Type, digest and size of some content, and what else its holder says of it."""

    media_type: str
    digest: Digest
    size: int
    platform: Platform | None = None
    """As it was written; compare after normalising."""
    annotations: Mapping[str, str] = field(default_factory=lambda: _NO_ANNOTATIONS, hash=False)
    artifact_type: str = ""
    urls: tuple[str, ...] = ()
    data: bytes | None = None
    """The content itself, where the descriptor carries it."""

    @classmethod
    def from_json(cls, value: object, where: str = "descriptor") -> Descriptor:
        """Read a parsed JSON value; where names it in the ProtocolError that anything wrong raises."""
        fields = _Fields(value, where)
        descriptor = cls(
            media_type=fields.required_text("mediaType"),
            digest=fields.digest("digest"),
            size=fields.size("size"),
            platform=fields.platform("platform"),
            annotations=fields.text_map("annotations"),
            artifact_type=fields.text("artifactType"),
            urls=fields.texts("urls"),
            data=fields.base64("data"),
        )
        if descriptor.data is not None:
            descriptor.verify(descriptor.data, f"{where}: data")
        return descriptor

    @classmethod
    def of(cls, raw: bytes, media_type: str) -> Descriptor:
        """Descriptor of these bytes."""
        return cls(media_type=media_type, digest=Digest.of(raw), size=len(raw))

    def to_json(self) -> dict[str, object]:
        """JSON object with the keys in Go's order, so that its bytes are those that BuildKit writes."""
        fields: dict[str, object] = {
            "mediaType": self.media_type,
            "digest": str(self.digest),
            "size": self.size,
        }
        if self.urls:
            fields["urls"] = list(self.urls)
        if self.annotations:
            fields["annotations"] = dict(sorted(self.annotations.items()))
        if self.data:
            fields["data"] = base64.b64encode(self.data).decode()
        if self.platform is not None:
            fields["platform"] = self.platform.to_oci()
        if self.artifact_type:
            fields["artifactType"] = self.artifact_type
        return fields

    @property
    def is_index(self) -> bool:
        return self.media_type in INDEX_TYPES

    @property
    def is_attestation(self) -> bool:
        """Whether this entry of an index says something of another one, rather than being an image to run.

        Source: buildkit, docs/attestations/attestation-storage.md.
        """
        if self.annotations.get(REFERENCE_TYPE) == ATTESTATION:
            return True
        return self.platform is not None and self.platform.is_unknown

    @property
    def attests(self) -> str:
        """Digest, as text, of the entry that an attestation is about; empty where it does not say."""
        # The second spelling stands in indexes of the feature's first months.
        return self.annotations.get(REFERENCE_DIGEST) or self.annotations.get("com.docker.reference.digest", "")

    def with_platform(self, platform: Platform | None) -> Descriptor:
        return replace(self, platform=platform)

    def with_annotations(self, annotations: Mapping[str, str]) -> Descriptor:
        """The same with these annotations in place of its own."""
        return replace(self, annotations=MappingProxyType(dict(annotations)))

    def verify(self, raw: bytes, what: str = "content") -> None:
        """Raise ProtocolError, whose message names what, unless raw has this size and digest."""
        if len(raw) != self.size:
            raise ProtocolError(f"{what} is {len(raw)} bytes, expected {self.size}")
        try:
            self.digest.verify(raw, what)
        except InvalidDigest as error:
            raise ProtocolError(str(error)) from error


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """An image or artifact manifest beside the bytes it was read from."""

    raw: bytes = field(repr=False)
    digest: Digest
    media_type: str
    config: Descriptor
    layers: tuple[Descriptor, ...]
    artifact_type: str
    subject: Descriptor | None
    annotations: Mapping[str, str] = field(hash=False)

    @classmethod
    def parse(cls, raw: bytes, media_type: str | None = None) -> Manifest:
        """Read a manifest; media_type is what its holder calls it, which must agree with its own word."""
        fields = _document(raw, "manifest")
        media_type = _document_type(fields, media_type, MANIFEST_TYPES, OCI_MANIFEST)
        # Content that can be read as either kind was used to smuggle images: CVE-2021-41190.
        fields.refuse("manifests")
        return cls(
            raw=raw,
            digest=Digest.of(raw),
            media_type=media_type,
            config=fields.descriptor("config"),
            layers=fields.descriptors("layers"),
            artifact_type=fields.text("artifactType"),
            subject=fields.optional_descriptor("subject"),
            annotations=fields.text_map("annotations"),
        )

    @property
    def descriptor(self) -> Descriptor:
        return Descriptor(media_type=self.media_type, digest=self.digest, size=len(self.raw))

    @property
    def blobs(self) -> tuple[Descriptor, ...]:
        """Everything that this manifest needs: its config, then its layers."""
        return (self.config, *self.layers)


@dataclass(frozen=True, slots=True, kw_only=True)
class Index:
    """An index, or a Docker manifest list, beside the bytes it was read from."""

    raw: bytes = field(repr=False)
    digest: Digest
    media_type: str
    manifests: tuple[Descriptor, ...]
    artifact_type: str
    subject: Descriptor | None
    annotations: Mapping[str, str] = field(hash=False)

    @classmethod
    def parse(cls, raw: bytes, media_type: str | None = None) -> Index:
        """Read an index; media_type is what its holder calls it, which must agree with its own word."""
        fields = _document(raw, "index")
        media_type = _document_type(fields, media_type, INDEX_TYPES, OCI_INDEX)
        fields.refuse("config")
        fields.refuse("layers")
        return cls(
            raw=raw,
            digest=Digest.of(raw),
            media_type=media_type,
            manifests=fields.descriptors("manifests"),
            artifact_type=fields.text("artifactType"),
            subject=fields.optional_descriptor("subject"),
            annotations=fields.text_map("annotations"),
        )

    @property
    def descriptor(self) -> Descriptor:
        return Descriptor(media_type=self.media_type, digest=self.digest, size=len(self.raw))

    @property
    def images(self) -> tuple[Descriptor, ...]:
        """The entries that are not attestations."""
        return tuple(entry for entry in self.manifests if not entry.is_attestation)

    @property
    def attestations(self) -> tuple[Descriptor, ...]:
        return tuple(entry for entry in self.manifests if entry.is_attestation)


def parse_manifest_or_index(raw: bytes, media_type: str | None = None) -> Manifest | Index:
    """Read either kind: the one that media_type names, else the one that the content says it is."""
    said = _base_type(media_type)
    if not said:
        fields = _document(raw, "manifest")
        said = fields.text("mediaType") or (OCI_INDEX if fields.has("manifests") else OCI_MANIFEST)
    if said in INDEX_TYPES:
        return Index.parse(raw, said)
    if said in MANIFEST_TYPES:
        return Manifest.parse(raw, said)
    raise ProtocolError(f"manifest has media type {_clip(said)!r}; expected an OCI or Docker manifest or index")


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageConfig:
    """What an image is for and how it starts, beside the bytes it was read from."""

    raw: bytes = field(repr=False)
    digest: Digest
    os: str
    architecture: str
    variant: str
    os_version: str
    os_features: tuple[str, ...]
    created: str
    """RFC 3339, as written; empty where it is not known."""
    author: str
    entrypoint: tuple[str, ...]
    cmd: tuple[str, ...]
    env: tuple[str, ...]
    """``NAME=VALUE`` items."""
    working_dir: str
    user: str
    stop_signal: str
    labels: Mapping[str, str] = field(hash=False)
    diff_ids: tuple[Digest, ...]
    """Digests of the uncompressed layers, lowest first."""

    @classmethod
    def parse(cls, raw: bytes) -> ImageConfig:
        """Read the config of an image; in that of an artifact, such as ``{}``, everything is empty."""
        fields = _Fields(parse_json(raw, "image config", max_bytes=MAX_CONFIG_BYTES), "image config")
        start = fields.object("config")
        return cls(
            raw=raw,
            digest=Digest.of(raw),
            os=fields.text("os"),
            architecture=fields.text("architecture"),
            variant=fields.text("variant"),
            os_version=fields.text("os.version"),
            os_features=fields.texts("os.features"),
            created=fields.text("created"),
            author=fields.text("author"),
            entrypoint=start.words("Entrypoint"),
            cmd=start.words("Cmd"),
            env=start.texts("Env"),
            working_dir=start.text("WorkingDir"),
            user=start.text("User"),
            stop_signal=start.text("StopSignal"),
            labels=start.text_map("Labels"),
            diff_ids=fields.object("rootfs").digests("diff_ids"),
        )

    @property
    def platform(self) -> Platform:
        """Normalised; os and architecture stay empty where the config has none."""
        written = Platform(self.os, self.architecture, self.variant, self.os_version, self.os_features)
        return written.normalized(default_os="")


def check_entry(entry: Descriptor, config: ImageConfig) -> None:
    """Raise ProtocolError unless the entry's platform is the one that the image's config names.

    Spellings may differ: arm64 and arm64/v8 agree, as do arm and arm/v7.
    """
    if entry.platform is None:
        raise ProtocolError(f"{entry.digest}: its entry has no platform")
    said, is_ = entry.platform.normalized(default_os=""), config.platform
    if (said.os, said.architecture, said.variant) != (is_.os, is_.architecture, is_.variant):
        raise ProtocolError(f"{entry.digest}: its entry says {said.format()}, its config {is_.format()}")
    if said.os == "windows" and said.os_version and said.os_version != is_.os_version:
        raise ProtocolError(f"{entry.digest}: its entry says {said}, its config {is_}")


@dataclass(frozen=True, slots=True, kw_only=True)
class PlatformRoot:
    """What the solve of one platform exported: a manifest, or an index where there are attestations."""

    descriptor: Descriptor
    index: Index | None = None
    """The content, when descriptor is of an index."""


def assemble(
    roots: Sequence[PlatformRoot], platforms: Mapping[Digest, Platform] | None = None
) -> tuple[Descriptor, ...]:
    """Entries of the index that joins these roots: their images in order, then the attestations likewise.

    Entries stay as they are, except that one without a platform gets it from platforms, by digest. An
    attestation of an image that is not there is left out, as is a second entry of the same digest.
    Raises ProtocolError when an image has no platform or two have the same one.
    """
    images: dict[Digest, Descriptor] = {}
    attestations: dict[Digest, Descriptor] = {}
    taken: dict[Platform, Digest] = {}
    for entry in (entry for root in roots for entry in _root_entries(root)):
        if entry.is_attestation:
            attestations.setdefault(entry.digest, entry)
            continue
        if entry.platform is None:
            entry = entry.with_platform((platforms or {}).get(entry.digest))
        if entry.platform is None:
            raise ProtocolError(f"{entry.digest}: nothing says which platform it is for")
        platform = entry.platform.normalized()
        if taken.setdefault(platform, entry.digest) != entry.digest:
            raise ProtocolError(f"{taken[platform]} and {entry.digest} are both for {platform}")
        first = images.setdefault(entry.digest, entry)
        if first.platform is None or first.platform.normalized() != platform:
            raise ProtocolError(f"{entry.digest}: is said to be for {first.platform} and for {platform}")
    present = [str(digest) for digest in images]
    paired = [entry for entry in attestations.values() if entry.attests in present]
    paired.sort(key=lambda entry: present.index(entry.attests))
    return (*images.values(), *paired)


def _root_entries(root: PlatformRoot) -> tuple[Descriptor, ...]:
    if not root.descriptor.is_index:
        return (root.descriptor,)
    if root.index is None or root.index.digest != root.descriptor.digest:
        raise ProtocolError(f"{root.descriptor.digest}: the content of this index is missing")
    for entry in root.index.manifests:
        if entry.is_index:
            raise ProtocolError(f"{root.descriptor.digest}: holds another index, {entry.digest}")
    return root.index.manifests


def index_media_type(manifests: Sequence[Descriptor], annotations: Mapping[str, str] | None = None) -> str:
    """Docker's list where every entry is Docker's and nothing needs more than that has; else an OCI index."""
    if annotations or not manifests:
        return OCI_INDEX
    docker = all(entry.media_type.startswith("application/vnd.docker.") for entry in manifests)
    return DOCKER_INDEX if docker else OCI_INDEX


def encode_index(
    manifests: Sequence[Descriptor],
    *,
    annotations: Mapping[str, str] | None = None,
    media_type: str | None = None,
    artifact_type: str = "",
    subject: Descriptor | None = None,
) -> bytes:
    """Bytes of an index with these entries, equal to those that BuildKit and imagetools write.

    Without media_type it is what index_media_type says. Raises ProtocolError when the result is more than
    registries take. Source: buildkit, exporter/containerimage/writer.go, which uses Go's json.MarshalIndent.
    """
    fields: dict[str, object] = {
        "schemaVersion": 2,
        "mediaType": media_type or index_media_type(manifests, annotations),
    }
    if artifact_type:
        fields["artifactType"] = artifact_type
    fields["manifests"] = [entry.to_json() for entry in manifests]
    if subject is not None:
        fields["subject"] = subject.to_json()
    if annotations:
        fields["annotations"] = dict(sorted(annotations.items()))
    raw = encode_json(fields, indent=2)
    if len(raw) > MAX_MANIFEST_BYTES:
        raise ProtocolError(f"the index is {len(raw)} bytes; registries take {MAX_MANIFEST_BYTES}")
    return raw


_GO_ESCAPES = str.maketrans({"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"})


def encode_json(value: JSONObject, *, indent: int | None = None) -> bytes:
    """JSON as Go's encoding/json writes it, without a newline at the end; compact unless indented."""
    separators = (",", ":") if indent is None else (",", ": ")
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, indent=indent, separators=separators)
    # None of the five can stand outside of a string, where the escapes mean the same.
    return text.translate(_GO_ESCAPES).encode()


def parse_json(raw: bytes, what: str, *, max_bytes: int = MAX_MANIFEST_BYTES) -> JSONObject:
    """Read one JSON object that somebody else wrote; what names it in the ProtocolError.

    Stricter than json.loads where parsers disagree: UTF-8 alone, no key twice, no NaN, no lone surrogate.
    """
    if len(raw) > max_bytes:
        raise ProtocolError(f"{what} is {len(raw)} bytes, more than the {max_bytes} that are allowed")
    try:
        value: object = json.loads(raw.decode(), object_pairs_hook=_unique, parse_constant=_no_constant)
        # Fails for lone surrogates and infinities, which would break whoever writes the value again.
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except RecursionError:
        raise ProtocolError(f"{what} is nested too deeply") from None
    except ValueError as error:
        raise ProtocolError(f"{what} is not valid JSON: {_clip(str(error))}") from None
    if not isinstance(value, dict):
        raise ProtocolError(f"{what} is not a JSON object")
    return cast("dict[str, object]", value)


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise ValueError("a key stands twice in one object")
    return fields


def _no_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is no JSON")


class _Fields:
    """Typed access to a JSON object; an absent key and null are the same, as they are for Go."""

    def __init__(self, value: object, where: str) -> None:
        if not isinstance(value, Mapping):
            raise ProtocolError(f"{where} is not a JSON object")
        self._fields = cast("JSONObject", value)
        self._where = where

    def _bad(self, key: str, expected: str) -> ProtocolError:
        return ProtocolError(f"{self._where}: {key} is not {expected}")

    def has(self, key: str) -> bool:
        return self._fields.get(key) is not None

    def refuse(self, key: str) -> None:
        if self.has(key):
            raise ProtocolError(f"{self._where}: {key} does not belong there")

    def text(self, key: str) -> str:
        value = self._fields.get(key)
        if value is None:
            return ""
        if not isinstance(value, str):
            raise self._bad(key, "a string")
        return value

    def required_text(self, key: str) -> str:
        value = self.text(key)
        if not value:
            raise self._bad(key, "there")
        return value

    def size(self, key: str) -> int:
        value = self._fields.get(key)
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= _MAX_SIZE:
            raise self._bad(key, "a size in bytes")
        return value

    def texts(self, key: str) -> tuple[str, ...]:
        return tuple(self._checked(item, key, "a list of strings") for item in self._items(key))

    def _items(self, key: str) -> list[object]:
        value = self._fields.get(key)
        if value is None:
            return []
        if not isinstance(value, list):
            raise self._bad(key, "a list")
        return cast("list[object]", value)

    def _checked(self, item: object, key: str, expected: str) -> str:
        if not isinstance(item, str):
            raise self._bad(key, expected)
        return item

    def words(self, key: str) -> tuple[str, ...]:
        """A list of strings, or one string that stands for a list of it, as old Docker versions wrote."""
        value = self._fields.get(key)
        return (value,) if isinstance(value, str) else self.texts(key)

    def text_map(self, key: str) -> Mapping[str, str]:
        value = self._fields.get(key)
        if value is None:
            return _NO_ANNOTATIONS
        if not isinstance(value, Mapping):
            raise self._bad(key, "an object of strings")
        items = cast("JSONObject", value).items()
        return MappingProxyType({name: self._checked(item, key, "an object of strings") for name, item in items})

    def digest(self, key: str) -> Digest:
        return self._digest(self.required_text(key), key)

    def digests(self, key: str) -> tuple[Digest, ...]:
        return tuple(self._digest(text, key) for text in self.texts(key))

    def _digest(self, text: str, key: str) -> Digest:
        try:
            return Digest.parse(text)
        except InvalidDigest as error:
            raise ProtocolError(f"{self._where}: {key}: {error}") from error

    def platform(self, key: str) -> Platform | None:
        value = self._fields.get(key)
        if value is None:
            return None
        if not isinstance(value, Mapping):
            raise self._bad(key, "an object")
        try:
            return Platform.from_oci(cast("JSONObject", value))
        except InvalidPlatform as error:
            raise ProtocolError(f"{self._where}: {error}") from error

    def base64(self, key: str) -> bytes | None:
        text = self.text(key)
        if not text:
            return None
        try:
            return base64.b64decode(text, validate=True)
        except (binascii.Error, ValueError):
            raise self._bad(key, "base64") from None

    def object(self, key: str) -> _Fields:
        value = self._fields.get(key)
        return _Fields({} if value is None else value, f"{self._where}: {key}")

    def descriptor(self, key: str) -> Descriptor:
        return Descriptor.from_json(self._fields.get(key), f"{self._where}: {key}")

    def optional_descriptor(self, key: str) -> Descriptor | None:
        return self.descriptor(key) if self.has(key) else None

    def descriptors(self, key: str) -> tuple[Descriptor, ...]:
        return tuple(
            Descriptor.from_json(item, f"{self._where}: {key}[{position}]")
            for position, item in enumerate(self._items(key))
        )


def _document(raw: bytes, what: str) -> _Fields:
    """Fields of a manifest or index of the one version that exists."""
    fields = parse_json(raw, what)
    version = fields.get("schemaVersion")
    if version == 1:
        raise ProtocolError(f"{what} is of the old schema 1, which nobody should use any more")
    if version != 2:
        raise ProtocolError(f"{what}: schemaVersion is not 2")
    return _Fields(fields, what)


def _document_type(fields: _Fields, said: str | None, allowed: frozenset[str], default: str) -> str:
    """Media type of a document: its own word, which must not contradict its holder's."""
    outer, inner = _base_type(said), fields.text("mediaType")
    if outer and inner and outer != inner:
        raise ProtocolError(f"manifest calls itself {_clip(inner)!r} and is called {_clip(outer)!r}")
    media_type = inner or outer or default
    if media_type not in allowed:
        raise ProtocolError(f"manifest has media type {_clip(media_type)!r}; expected {' or '.join(sorted(allowed))}")
    return media_type


def _base_type(media_type: str | None) -> str:
    """Media type without parameters."""
    return (media_type or "").partition(";")[0].strip()


def _clip(text: str) -> str:
    return text if len(text) <= 120 else text[:120] + "..."


__all__ = [
    "ATTESTATION",
    "DOCKER_CONFIG",
    "DOCKER_INDEX",
    "DOCKER_MANIFEST",
    "INDEX_TYPES",
    "MANIFEST_TYPES",
    "MAX_CONFIG_BYTES",
    "MAX_MANIFEST_BYTES",
    "OCI_CONFIG",
    "OCI_EMPTY",
    "OCI_INDEX",
    "OCI_MANIFEST",
    "REFERENCE_DIGEST",
    "REFERENCE_TYPE",
    "Descriptor",
    "ImageConfig",
    "Index",
    "JSONObject",
    "Manifest",
    "PlatformRoot",
    "assemble",
    "check_entry",
    "encode_index",
    "encode_json",
    "index_media_type",
    "parse_json",
    "parse_manifest_or_index",
]
