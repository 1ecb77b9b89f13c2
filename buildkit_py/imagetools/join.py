"""From the entries of several sources to the bytes of one index. No I/O.

Where docker buildx defines the result the bytes are the same. On purpose different: two sources for one platform
are an error, and with append the newer one takes the older one's place; a platform that was asked for and is not
there is an error; the version and features of a Windows image are kept; annotations make an OCI index of a Docker
list instead of getting lost; an attestation leaves together with its image.
Source: docker buildx, util/imagetools/create.go.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from buildkit_py.digest import Digest
from buildkit_py.errors import ImageError
from buildkit_py.imagetools.annotations import Annotation, Level
from buildkit_py.oci import OCI_INDEX, Descriptor, Index, Manifest, encode_index, index_media_type
from buildkit_py.platforms import Platform, any_of

_ZSTD = "io.github.containers.compression.zstd"


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One source, read."""

    text: str
    """As it was given."""
    root: Descriptor
    """With platform and annotations as they go into the index."""
    content: Manifest | Index
    replaceable: bool = False
    """Whether images of other parts take the place of these."""

    @property
    def entries(self) -> tuple[Descriptor, ...]:
        return self.content.manifests if isinstance(self.content, Index) else (self.root,)


@dataclass(frozen=True, slots=True, kw_only=True)
class Joined:
    """What came of it."""

    raw: bytes = field(repr=False)
    media_type: str
    entries: tuple[Descriptor, ...]
    """Of the index; of a lone manifest, itself."""
    notes: tuple[str, ...] = ()
    """What was replaced or left out."""


def join(
    parts: Sequence[Part],
    *,
    platforms: Sequence[Platform] = (),
    annotations: Sequence[Annotation] = (),
    prefer_index: bool = True,
) -> Joined:
    """Join parts in their order; ImageError for what cannot stand in one index.

    A single part without annotations keeps its bytes: an index always, a manifest unless an index is preferred.
    """
    if len(parts) == 1 and not annotations:
        content = parts[0].content
        if isinstance(content, Index):
            return filter_index(content, platforms)
        if not prefer_index:
            _filtered(parts[0].entries, platforms)
            return Joined(raw=content.raw, media_type=content.media_type, entries=parts[0].entries)
    merged, notes = _merged(parts)
    entries, index_annotations = annotate_entries(merged, annotations)
    media_type = index_media_type(entries, index_annotations)
    if any(entry.annotations for entry in entries):
        media_type = OCI_INDEX  # nobody reads annotations in a Docker list
    kept = _filtered(entries, platforms)
    raw = encode_index(kept, annotations=index_annotations, media_type=media_type)
    return Joined(raw=raw, media_type=media_type, entries=kept, notes=tuple(notes))


def filter_index(index: Index, platforms: Sequence[Platform]) -> Joined:
    """An index with the images of these platforms alone; none means all. The bytes stay where the entries do."""
    kept = _filtered(index.manifests, platforms)
    return _with_entries(index, kept)


def without_attestations(index: Index) -> Joined:
    """An index with its images alone. The bytes stay where there are no attestations."""
    return _with_entries(index, index.images)


def _with_entries(index: Index, kept: tuple[Descriptor, ...]) -> Joined:
    index = index if kept == index.manifests else with_children(index, kept)
    return Joined(raw=index.raw, media_type=index.media_type, entries=kept)


def with_children(index: Index, entries: Sequence[Descriptor]) -> Index:
    """The index with other entries, encoded anew."""
    raw = encode_index(
        entries,
        annotations=index.annotations,
        media_type=index.media_type,
        artifact_type=index.artifact_type,
        subject=index.subject,
    )
    return Index.parse(raw)


def platform_key(entry: Descriptor) -> Platform | None:
    """What no two images of an index may share; None for what is not an image to choose by platform."""
    if entry.platform is None or entry.is_attestation or _ZSTD in entry.annotations:
        return None
    return entry.platform.normalized(default_os="")


def _merged(parts: Sequence[Part]) -> tuple[list[Descriptor], list[str]]:
    """All entries, each digest once, and notes on what was replaced."""
    entries: dict[Digest, Descriptor] = {}
    owners: dict[Platform, tuple[Digest, Part]] = {}
    replaced: dict[Digest, Digest] = {}
    for part in parts:
        own = set[Platform]()
        for entry in part.entries:
            known = entries.get(entry.digest)
            entries[entry.digest] = entry if known is None else _united(known, entry)
            platform = platform_key(entry)
            if platform is None or platform in own:
                continue  # twice in one source: whoever made that one wanted it
            own.add(platform)
            digest, owner = owners.get(platform, (entry.digest, part))
            if digest != entry.digest:
                if not owner.replaceable:
                    raise ImageError(
                        f"{owner.text} and {part.text} both have an image for {platform}: {digest} and "
                        f"{entry.digest}; leave one out, or use --append to replace what the tag has"
                    )
                replaced[digest] = entry.digest
            owners[platform] = (entry.digest, part)
    return _replaced(entries, replaced)


def _replaced(
    entries: Mapping[Digest, Descriptor], replaced: Mapping[Digest, Digest]
) -> tuple[list[Descriptor], list[str]]:
    """New images in the places of the old ones, whose attestations go as well."""
    gone, moved = {str(digest) for digest in replaced}, set(replaced.values())
    kept: list[Descriptor] = []
    notes: list[str] = []
    for digest, entry in entries.items():
        if digest in replaced:
            notes.append(f"{entry.platform}: {digest} is replaced by {replaced[digest]}")
            kept.append(entries[replaced[digest]])
        elif entry.attests not in gone and digest not in moved:
            kept.append(entry)
    return kept, notes


def _united(first: Descriptor, second: Descriptor) -> Descriptor:
    """Two entries of one digest: the later one knows better."""
    return replace(
        first,
        media_type=first.media_type or second.media_type,
        platform=second.platform or first.platform,
    ).with_annotations({**first.annotations, **second.annotations})


def annotate_entries(
    entries: Sequence[Descriptor], annotations: Sequence[Annotation]
) -> tuple[list[Descriptor], dict[str, str]]:
    """Entries with the annotations that are theirs, and those of the index; ImageError where one has no place."""
    index: dict[str, str] = {}
    result = list(entries)
    for item in annotations:
        if item.level is Level.INDEX:
            index[item.key] = item.value
        elif item.level is Level.DESCRIPTOR:
            places = [position for position, entry in enumerate(result) if _concerns(item, entry)]
            if not places:
                raise ImageError(f"annotation {item}: there is no image for {item.platform or 'it'}")
            for position in places:
                entry = result[position]
                result[position] = entry.with_annotations({**entry.annotations, item.key: item.value})
    return result, index


def _concerns(item: Annotation, entry: Descriptor) -> bool:
    return item.platform is None or platform_key(entry) == item.platform


def _filtered(entries: Sequence[Descriptor], platforms: Sequence[Platform]) -> tuple[Descriptor, ...]:
    """Images of these platforms with their attestations, and entries that have no platform."""
    if not platforms:
        return tuple(entries)
    present = [entry.platform for entry in entries if entry.platform is not None and not entry.is_attestation]
    for wanted in platforms:
        if not any(wanted.matches(platform) for platform in present):
            known = ", ".join(str(platform) for platform in present) or "none"
            raise ImageError(f"there is no image for {wanted}; there is {known}")
    return keep_images(entries, lambda entry: entry.platform is None or any_of(*platforms).match(entry.platform))


def keep_images(entries: Sequence[Descriptor], wanted: Callable[[Descriptor], bool]) -> tuple[Descriptor, ...]:
    """The images that are wanted and the attestations of these."""
    images = {str(entry.digest) for entry in entries if not entry.is_attestation and wanted(entry)}
    return tuple(entry for entry in entries if (entry.attests if entry.is_attestation else str(entry.digest)) in images)


__all__ = [
    "Joined",
    "Part",
    "annotate_entries",
    "filter_index",
    "join",
    "keep_images",
    "platform_key",
    "with_children",
    "without_attestations",
]
