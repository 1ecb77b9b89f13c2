"""Changes to one index: platforms taken out, annotations put in. All else in it stays as it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from buildkit_py.digest import Digest
from buildkit_py.errors import ImageError, InvalidOption
from buildkit_py.imagetools.annotations import Annotation, Level, parse_annotations, parse_place
from buildkit_py.imagetools.creation import tags_before, target_reference, write_tags
from buildkit_py.imagetools.join import platform_key
from buildkit_py.imagetools.rewrite import Fields, annotate_entry, with_annotations, with_entries
from buildkit_py.imagetools.store import RepositoryStore
from buildkit_py.imagetools.transfer import Traffic, push_nodes
from buildkit_py.imagetools.tree import Node, read_tree
from buildkit_py.oci import DOCKER_INDEX, OCI_INDEX, Descriptor, Index, Manifest, parse_manifest_or_index
from buildkit_py.platforms import Platform, parse_platforms
from buildkit_py.reference import Reference
from buildkit_py.registry import Registry


@dataclass(frozen=True, slots=True, kw_only=True)
class EditOptions:
    """Where the changed index goes."""

    tags: Sequence[Reference | str] = ()
    """References of the same repository, or of others; none means the tag that it came from."""
    dry_run: bool = False
    """True writes nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Edited:
    """An index that was changed."""

    before: Descriptor
    descriptor: Descriptor
    raw: bytes = field(repr=False)
    entries: tuple[Descriptor, ...]
    removed: tuple[Descriptor, ...]
    references: tuple[Reference, ...]
    unchanged: tuple[Reference, ...]
    """Those of references that pointed at the result before."""
    traffic: Traffic


async def rm_platform(
    registry: Registry,
    reference: Reference | str,
    platforms: Sequence[Platform | str],
    options: EditOptions | None = None,
) -> Edited:
    """Take the images of these platforms, with their attestations, out of an index.

    ImageError when one of them is not there or nothing would be left.
    """
    wanted = parse_platforms(platforms)
    if not wanted:
        raise InvalidOption("rm-platform: no platform is given")
    target = _Target.of(reference, options or EditOptions())
    index = await target.read(registry)
    gone: set[Digest] = set()
    for platform in wanted:
        found = {e.digest for e in index.images if e.platform is not None and platform.matches(e.platform)}
        if not found:
            present = ", ".join(str(entry.platform) for entry in index.images) or "none"
            raise ImageError(f"{target.source}: there is no image for {platform}; there is {present}")
        gone |= found
    if all(entry.digest in gone for entry in index.images):
        raise ImageError(f"{target.source}: no image would be left")
    names = {str(digest) for digest in gone}

    def kept(entry: Descriptor, fields: Fields) -> Fields | None:
        return None if entry.digest in gone or entry.attests in names else fields

    return await target.write(registry, index, with_entries(index.raw, f"index {index.digest}", kept))


async def annotate(
    registry: Registry,
    reference: Reference | str,
    annotations: Mapping[str, str] | Sequence[str] = (),
    *,
    remove: Sequence[str] = (),
    options: EditOptions | None = None,
) -> Edited:
    """Put annotations into an index and its entries, and take those out whose ``LEVEL:KEY`` is in remove.

    Those it has stay. ``manifest:`` is refused: it would change what attestations and signatures are of; see create.
    """
    added = parse_annotations(annotations)
    removed = tuple(Annotation(*place, "") for name in remove for place in parse_place(name))
    if not added and not removed:
        raise InvalidOption("annotate: no annotation is given")
    if manifest := next((item for item in (*added, *removed) if item.level is Level.MANIFEST), None):
        raise InvalidOption(f"annotation {manifest}: images are not changed here; use index: or manifest-descriptor:")
    target = _Target.of(reference, options or EditOptions())
    index = await target.read(registry)
    for item in (*added, *removed):
        if item.platform is not None and not any(platform_key(entry) == item.platform for entry in index.images):
            raise ImageError(f"annotation {item}: there is no image for {item.platform}")

    def annotated(entry: Descriptor, fields: Fields) -> Fields:
        mine = [a for a in added if _of_entry(a, entry)]
        without = frozenset(item.key for item in removed if _of_entry(item, entry))
        if not mine and not without:
            return fields
        return annotate_entry(fields, {item.key: item.value for item in mine}, without)

    what = f"index {index.digest}"
    # A Docker list has no place for annotations that anybody reads.
    kind: dict[str, object] = {"mediaType": OCI_INDEX} if index.media_type == DOCKER_INDEX else {}
    raw = with_entries(index.raw, what, annotated, **kind)
    raw = with_annotations(
        raw,
        what,
        {item.key: item.value for item in added if item.level is Level.INDEX},
        frozenset(item.key for item in removed if item.level is Level.INDEX),
    )
    return await target.write(registry, index, raw)


def _of_entry(item: Annotation, entry: Descriptor) -> bool:
    return item.level is Level.DESCRIPTOR and (item.platform is None or platform_key(entry) == item.platform)


@dataclass(frozen=True, slots=True)
class _Target:
    """The index to change, and where it goes."""

    source: Reference
    references: tuple[Reference, ...]
    dry_run: bool

    @classmethod
    def of(cls, given: Reference | str, options: EditOptions) -> _Target:
        if isinstance(given, str) and given.startswith(("layout:", "oci-layout:")):
            raise InvalidOption(f"{given}: layouts are not changed in place; copy it to a registry first")
        source = Reference.parse_normalized(given) if isinstance(given, str) else given
        source = source.with_default_tag()
        if not options.tags and source.digest is not None:
            raise InvalidOption(f"{source}: a digest cannot be written to; give a tag for the result")
        references = tuple(dict.fromkeys(target_reference(tag) for tag in options.tags or [source]))
        return cls(source, references, options.dry_run)

    async def read(self, registry: Registry) -> Index:
        raw, found = await registry.fetch_manifest(self.source, mirrors=False)
        content = parse_manifest_or_index(raw, found.media_type or None)
        if isinstance(content, Manifest):
            raise ImageError(f"{self.source}: is a single image; only an index can be changed")
        return content

    async def write(self, registry: Registry, before: Index, raw: bytes) -> Edited:
        """Bring what the index lists to other repositories, put the index there, and write the tags."""
        after = Index.parse(raw)
        traffic = Traffic()
        unchanged: tuple[Reference, ...] = ()
        if not self.dry_run:
            await self._push_children(registry, after, traffic)
            tags = await tags_before(registry, self.references)
            unchanged = await write_tags(registry, raw, after.media_type, tags)
        kept = {entry.digest for entry in after.manifests}
        return Edited(
            before=before.descriptor,
            descriptor=after.descriptor,
            raw=raw,
            entries=after.manifests,
            removed=tuple(entry for entry in before.manifests if entry.digest not in kept),
            references=self.references,
            unchanged=unchanged,
            traffic=traffic,
        )

    async def _push_children(self, registry: Registry, index: Index, traffic: Traffic) -> None:
        others = dict.fromkeys(r.without_tag() for r in self.references if r.name != self.source.name)
        if not others:
            return
        store = RepositoryStore(registry, self.source)
        tree = await read_tree(store, index.descriptor, index.raw)
        nodes: list[Node] = [node for node in tree.walk() if node is not tree]
        for repository in others:
            await push_nodes(registry, store, nodes, repository, traffic)


__all__ = ["EditOptions", "Edited", "annotate", "rm_platform"]
