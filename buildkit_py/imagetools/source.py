"""What an index can be made from: references, digests, descriptors, layouts, and files that builds wrote."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TypeAlias, cast

from buildkit_py.digest import Digest
from buildkit_py.errors import InvalidDigest, InvalidOption, InvalidPlatform, InvalidReference, ProtocolError
from buildkit_py.imagetools.location import LayoutLocation, Location, parse_location
from buildkit_py.oci import MAX_MANIFEST_BYTES, Descriptor, JSONObject, encode_json, parse_json
from buildkit_py.platforms import Platform
from buildkit_py.reference import Reference

_DIGEST = re.compile(r"sha[0-9]+:\S*")
_EXPECTED = "expected a reference, a digest, a descriptor, layout:DIR or a file"


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """One source of a join. What it says of the image must be true, or goes into the index instead of what is found."""

    text: str
    """As it was given, for messages."""
    location: Location | None = None
    """None where only the digest is known; the repository is then that of the others."""
    digest: Digest | None = None
    media_type: str = ""
    size: int = 0
    """0 is unknown; anything else must be right."""
    platform: Platform | None = None
    """Goes into the index."""
    annotations: Mapping[str, str] | None = field(default=None, hash=False)
    """Go into the index in place of those found; None keeps these."""
    platforms: Mapping[Platform, Digest] = field(default_factory=lambda: MappingProxyType({}), hash=False)
    """Images that a build said it made: all of them must be there."""


SourceLike: TypeAlias = "Source | Location | Digest | Path | str"


def parse_source(given: SourceLike) -> Source | Path:
    """Read one source as it is typed; a Path is a file still to be read with read_source_file.

    ``sha256:...`` is a digest, ``{...}`` a descriptor, ``layout:DIR`` a layout, and what ends in ``.json`` or begins
    with ``/``, ``./`` or ``../`` a file. Everything else is a reference. Raises InvalidOption, InvalidReference.
    """
    match given:
        case Source() | Path():
            return given
        case Reference() | LayoutLocation():
            return Source(text=str(given), location=given, digest=given.digest)
        case Digest():
            return Source(text=str(given), digest=given)
        case str():
            return _parse_text(given)


def _parse_text(text: str) -> Source | Path:
    if not text:
        raise InvalidOption(f"source: is empty; {_EXPECTED}")
    if text.startswith("{"):
        return _from_json(text.encode(), "source descriptor", text="descriptor")
    if text.endswith(".json") or text.startswith(("/", "./", "../")):
        return Path(text)
    if _DIGEST.fullmatch(text):
        try:
            return Source(text=text, digest=Digest.parse(text))
        except InvalidDigest as error:
            raise InvalidOption(f"source {text[:160]!r}: {error}") from error
    location = parse_location(text)
    return Source(text=text, location=location, digest=location.digest)


def read_source_file(path: Path) -> Source:
    """The source in a file: a descriptor, or what ``build --digest-file`` or ``--metadata-file`` wrote. Blocks.

    Raises InvalidOption for anything else.
    """
    try:
        with path.open("rb") as stream:
            raw = stream.read(MAX_MANIFEST_BYTES + 1)
    except OSError as error:
        raise InvalidOption(f"source file {path}: {error.strerror}") from error
    return _from_json(raw, f"source file {path}", text=str(path))


def _from_json(raw: bytes, what: str, *, text: str) -> Source:
    try:
        fields = parse_json(raw, what)
        if "schemaVersion" in fields:
            raise InvalidOption(f"{what}: is a manifest or an index; expected the descriptor of one")
        if "containerimage.descriptor" in fields:
            return _from_build(fields, what, text)
        return _from_descriptor(fields, what, text)
    except (ProtocolError, InvalidPlatform) as error:
        raise InvalidOption(str(error)) from error


def _from_descriptor(fields: JSONObject, what: str, text: str) -> Source:
    if "digest" not in fields:
        raise InvalidOption(f"{what}: has no digest; expected a descriptor, or what build --digest-file writes")
    # Type and size may be left out: the registry knows them.
    read = Descriptor.from_json({"mediaType": "unknown", "size": 0, **fields}, what)
    return Source(
        text=text,
        digest=read.digest,
        media_type="" if read.media_type == "unknown" else read.media_type,
        size=read.size,
        platform=read.platform,
        annotations=read.annotations if "annotations" in fields else None,
    )


def _from_build(fields: JSONObject, what: str, text: str) -> Source:
    read = Descriptor.from_json(fields["containerimage.descriptor"], f"{what}: containerimage.descriptor")
    name = fields.get("image.name")
    location: Reference | None = None
    if name is not None:
        if not isinstance(name, str) or not name:
            raise InvalidOption(f"{what}: image.name is not a string")
        try:
            location = Reference.parse_normalized(name.partition(",")[0]).with_digest(read.digest)
        except InvalidReference as error:
            raise InvalidOption(f"{what}: image.name: {error}") from error
    return Source(
        text=text,
        location=location,
        digest=read.digest,
        media_type=read.media_type,
        size=read.size,
        # Builders put the platform of an index's one image here as well; only an image's own counts.
        platform=None if read.is_index else read.platform,
        platforms=_platforms(fields.get("buildkit_py.platforms"), what),
    )


def _platforms(value: object, what: str) -> Mapping[Platform, Digest]:
    found: dict[Platform, Digest] = {}
    if value is None:
        return found
    if not isinstance(value, dict):
        raise InvalidOption(f"{what}: buildkit_py.platforms is not an object")
    for name, entry in cast("dict[str, object]", value).items():
        digest = cast("dict[str, object]", entry).get("manifest.digest") if isinstance(entry, dict) else None
        if digest is None or name == "default":
            continue
        if not isinstance(digest, str):
            raise InvalidOption(f"{what}: {name}: manifest.digest is not a string")
        try:
            found[Platform.parse(name).normalized()] = Digest.parse(digest)
        except InvalidDigest as error:
            raise InvalidOption(f"{what}: {name}: {error}") from error
    return MappingProxyType(found)


def encode_digest_file(
    descriptor: Descriptor, references: Sequence[Reference], platforms: Mapping[Platform, Digest]
) -> bytes:
    """What ``build --digest-file`` writes: enough to join this build's images with those of others, anywhere.

    The keys are those of ``--metadata-file``, so that such a file, docker buildx's own included, is a source too.
    """
    fields: dict[str, object] = {
        "containerimage.descriptor": descriptor.to_json(),
        "containerimage.digest": str(descriptor.digest),
        "image.name": ",".join(str(reference) for reference in references),
        "buildkit_py.platforms": {
            str(platform): {"manifest.digest": str(digest)} for platform, digest in platforms.items()
        },
    }
    return encode_json(fields, indent=2) + b"\n"


__all__ = ["Source", "SourceLike", "encode_digest_file", "parse_source", "read_source_file"]
