"""One index from images that are in registries or layouts already, written to one tag or many."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

from buildkit_py.digest import Digest
from buildkit_py.errors import ImageError, InvalidOption, NotFound
from buildkit_py.imagetools.annotations import Annotation, Level, parse_annotations
from buildkit_py.imagetools.inspection import read_config
from buildkit_py.imagetools.join import Joined, Part, join, platform_key, with_children
from buildkit_py.imagetools.location import Location
from buildkit_py.imagetools.rewrite import with_annotations
from buildkit_py.imagetools.source import Source, SourceLike, parse_source, read_source_file
from buildkit_py.imagetools.store import LayoutStore, RepositoryStore, open_store
from buildkit_py.imagetools.tasks import both, gather
from buildkit_py.imagetools.transfer import Traffic, push_nodes
from buildkit_py.imagetools.tree import Node, read_tree
from buildkit_py.oci import Descriptor, ImageConfig, Index, Manifest
from buildkit_py.platforms import Platform, parse_platforms
from buildkit_py.reference import Reference
from buildkit_py.registry import Registry


@dataclass(frozen=True, slots=True, kw_only=True)
class CreateRequest:
    """An index to make."""

    sources: Sequence[SourceLike] = ()
    """As parse_source reads them, in the order of the index."""
    tags: Sequence[Reference | str] = ()
    """References to write; needed unless it is a dry run."""
    append: bool = False
    """True puts what the first tag has before the sources, and replaces there what they bring for its platforms."""
    platforms: Sequence[Platform | str] = ()
    """Which images go into the index; none means all."""
    annotations: Mapping[str, str] | Sequence[str] = ()
    """``(index|manifest|manifest-descriptor):KEY=VALUE``, the last two with ``[PLATFORM]`` if wanted."""
    prefer_index: bool = True
    """False leaves a single image the manifest that it is."""
    dry_run: bool = False
    """True reads and checks everything and writes nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Created:
    """An index that was made."""

    raw: bytes = field(repr=False)
    descriptor: Descriptor
    entries: tuple[Descriptor, ...]
    """Of the index, or of the lone manifest itself."""
    references: tuple[Reference, ...]
    """What points at it now; of a dry run, what would."""
    unchanged: tuple[Reference, ...]
    """Those of references that did so before."""
    notes: tuple[str, ...]
    """What people should know: what was replaced, what is odd."""
    traffic: Traffic

    def metadata(self) -> dict[str, object]:
        """What ``--metadata-file`` writes, with docker buildx's keys."""
        repositories = sorted({reference.name for reference in self.references})
        return {"containerimage.descriptor": self.descriptor.to_json(), "image.name": ",".join(repositories)}


@dataclass(frozen=True, slots=True)
class _Plan:
    sources: tuple[Source | Path, ...]
    references: tuple[Reference, ...]
    platforms: tuple[Platform, ...]
    annotations: tuple[Annotation, ...]


async def create(registry: Registry, request: CreateRequest) -> Created:
    """Read and check all images, copy what the tags' repositories lack, write the index and then the tags.

    Every image in the index has been read back by its digest, and its config agrees with its entry, before the first
    tag is written; a failure leaves all tags as they were, or some tags unwritten if it comes in their midst. Doing
    it again changes nothing. Raises InvalidOption and its like before any I/O; ImageError for images that are
    missing, broken or do not go together.
    """
    plan = _plan(request)
    sources = [await _loaded(source) for source in plan.sources]
    if request.append:
        sources.insert(0, Source(text=str(plan.references[0]), location=plan.references[0]))
    located = _located(sources, plan.references)
    async with AsyncExitStack() as stack:
        # What the tags are now is asked meanwhile: round trips are most of what a join takes.
        read, before = await both(
            _read(registry, stack, located, appended=request.append),
            tags_before(registry, () if request.dry_run else plan.references),
        )
        rewritten, notes = _annotated(read, plan.annotations)
        joined = join(
            [source.part for source in read],
            platforms=plan.platforms,
            annotations=[item for item in plan.annotations if item.level is not Level.MANIFEST],
            prefer_index=request.prefer_index,
        )
        notes += [note for source in read for note in source.notes]
        traffic = Traffic()
        unchanged: tuple[Reference, ...] = ()
        if not request.dry_run:
            await _push_children(registry, read, joined, rewritten, plan.references, traffic)
            unchanged = await write_tags(registry, joined.raw, joined.media_type, before)
    return Created(
        raw=joined.raw,
        descriptor=Descriptor.of(joined.raw, joined.media_type),
        entries=joined.entries,
        references=plan.references,
        unchanged=unchanged,
        notes=(*joined.notes, *notes),
        traffic=traffic,
    )


def _plan(request: CreateRequest) -> _Plan:
    """Check all that can be checked without asking anyone."""
    if not request.sources and not request.append:
        raise InvalidOption("imagetools create: no source is given")
    if not request.tags and (request.append or not request.dry_run):
        raise InvalidOption("imagetools create: no --tag says what to write")
    references = tuple(dict.fromkeys(target_reference(tag) for tag in request.tags))
    annotations = parse_annotations(request.annotations)
    return _Plan(
        sources=tuple(parse_source(source) for source in request.sources),
        references=references,
        platforms=parse_platforms(request.platforms),
        annotations=annotations,
    )


def target_reference(given: Reference | str) -> Reference:
    """A reference to write, with a tag; InvalidOption for one with a digest."""
    reference = Reference.parse_normalized(given) if isinstance(given, str) else given
    if reference.digest is not None:
        raise InvalidOption(f"{reference}: a digest cannot be chosen, it is that of the content; give a tag")
    return reference.with_tag(reference.tag_or_latest)


async def _loaded(source: Source | Path) -> Source:
    return await asyncio.to_thread(read_source_file, source) if isinstance(source, Path) else source


def _located(sources: Sequence[Source], references: Sequence[Reference]) -> list[tuple[Source, Location]]:
    """Where each source is: one that is only a digest, in the one repository that all others are about."""
    known = {source.location.name for source in sources if isinstance(source.location, Reference)}
    known |= {reference.name for reference in references}
    located: list[tuple[Source, Location]] = []
    for source in sources:
        if source.location is not None:
            located.append((source, source.location))
        elif len(known) != 1 or source.digest is None:
            listed = ", ".join(sorted(known)) or "none is named"
            raise InvalidOption(f"source {source.text}: it is not clear which repository has it: {listed}")
        else:
            repository = Reference.parse_normalized(next(iter(known)))
            located.append((source, repository.with_digest(source.digest)))
    return located


@dataclass(frozen=True, slots=True)
class _ReadSource:
    """A source and all manifests of it."""

    part: Part
    store: RepositoryStore | LayoutStore
    node: Node
    notes: tuple[str, ...]

    @property
    def children(self) -> tuple[Node, ...]:
        """What goes into the index."""
        return self.node.children if isinstance(self.part.content, Index) else (self.node,)


async def _read(
    registry: Registry, stack: AsyncExitStack, located: Sequence[tuple[Source, Location]], *, appended: bool
) -> list[_ReadSource]:
    opened = [
        # What a mirror says of a tag that is about to be replaced may be of yesterday.
        (source, await stack.enter_async_context(open_store(registry, location, mirrors=not appended or position > 0)))
        for position, (source, location) in enumerate(located)
    ]
    return await gather(
        _read_one(source, store, replaceable=appended and position == 0)
        for position, (source, store) in enumerate(opened)
    )


async def _read_one(source: Source, store: RepositoryStore | LayoutStore, *, replaceable: bool) -> _ReadSource:
    try:
        raw, found = await store.find()
    except NotFound as error:
        what = "the tag to append to" if replaceable else "the source"
        raise ImageError(f"{source.text}: {what} is not there: {error}") from error
    _check_said(source, found)
    root = _root_of(source, found)
    node = await read_tree(store, root, raw)
    content = node.content
    if content is None:
        raise ImageError(f"{source.text}: has media type {root.media_type}, which no index is made of")
    notes: list[str] = []
    if isinstance(content, Index):
        # Two levels down are images of nested indexes, which are nobody's choice here.
        checked = await gather(_check_child(store, source, child) for child in node.children)
        notes = [note for found in checked for note in found]
        _check_platforms(source, content)
    else:
        root = await _completed(store, source, root, content)
        node = replace(node, descriptor=root)
    part = Part(text=source.text, root=root, content=content, replaceable=replaceable)
    return _ReadSource(part, store, node, tuple(notes))


def _check_said(source: Source, found: Descriptor) -> None:
    if source.digest is not None and found.digest != source.digest:
        raise ImageError(f"{source.text}: {source.digest} was expected, {found.digest} is there")
    if source.size and source.size != found.size:
        raise ImageError(f"{source.text}: the descriptor says {source.size} bytes, it is {found.size}")
    if source.media_type and found.media_type and source.media_type != found.media_type:
        raise ImageError(f"{source.text}: the descriptor says {source.media_type}, it is {found.media_type}")


def _root_of(source: Source, found: Descriptor) -> Descriptor:
    # What a layout's index says of its entries, such as their names, is of that layout alone.
    root = replace(found, platform=source.platform or found.platform, urls=(), data=None)
    return root.with_annotations({} if source.annotations is None else source.annotations)


async def _completed(
    store: RepositoryStore | LayoutStore, source: Source, root: Descriptor, manifest: Manifest
) -> Descriptor:
    """The entry of a lone image, with the platform that its config names where nobody has named one."""
    config = await read_config(store, manifest)
    if config is None or not config.os:
        return root
    said = root.platform
    if said is None or not said.os or not said.architecture:
        return root.with_platform(config.platform)
    _check_agree(source, root, said, config)
    return root


async def _check_child(store: RepositoryStore | LayoutStore, source: Source, child: Node) -> list[str]:
    entry, manifest = child.descriptor, child.content
    if not isinstance(manifest, Manifest) or platform_key(entry) is None or entry.platform is None:
        return []
    config = await read_config(store, manifest)
    if config is None or not config.os:
        return []
    return _check_agree(source, entry, entry.platform, config)


def _check_agree(source: Source, entry: Descriptor, said: Platform, config: ImageConfig) -> list[str]:
    """Notes on a variant that differs, as some well-known images have it; ImageError for a wrong machine."""
    said, true = said.normalized(default_os=""), config.platform
    if (said.os, said.architecture) != (true.os, true.architecture):
        raise ImageError(f"{source.text}: {entry.digest} is said to be for {said}, its config says {true}")
    if said.variant != true.variant:
        return [f"{source.text}: {entry.digest} is said to be for {said.format()}, its config says {true.format()}"]
    return []


def _check_platforms(source: Source, index: Index) -> None:
    """What a build said it made is what is there."""
    there = {platform_key(entry): entry.digest for entry in index.images}
    for platform, digest in source.platforms.items():
        if there.get(platform) != digest:
            raise ImageError(f"{source.text}: says that {digest} is for {platform}; the index does not have that")


def _annotated(read: list[_ReadSource], annotations: Sequence[Annotation]) -> tuple[dict[Digest, bytes], list[str]]:
    """Write annotations into manifests; the new ones by digest, with read changed accordingly."""
    wanted = [item for item in annotations if item.level is Level.MANIFEST]
    rewritten: dict[Digest, bytes] = {}
    notes: list[str] = []
    if not wanted:
        return rewritten, notes
    used: set[Annotation] = set()
    for position, source in enumerate(read):
        children = [_rewritten(source, child, wanted, used, rewritten, notes) for child in source.children]
        read[position] = _with_children(source, children)
    if unused := next((item for item in wanted if item not in used), None):
        raise ImageError(f"annotation {unused}: there is no image for {unused.platform or 'it'}")
    return rewritten, notes


def _rewritten(
    source: _ReadSource,
    child: Node,
    wanted: Sequence[Annotation],
    used: set[Annotation],
    rewritten: dict[Digest, bytes],
    notes: list[str],
) -> Node:
    entry = child.descriptor
    platform = platform_key(entry)
    mine = [item for item in wanted if item.platform is None or item.platform == platform]
    if not isinstance(child.content, Manifest) or entry.is_attestation or not mine:
        return child
    if any(other.descriptor.attests == str(entry.digest) for other in source.children):
        raise ImageError(
            f"{source.part.text}: {entry.digest} has attestations, which are of its digest; annotations in its "
            "manifest would change that: use manifest-descriptor: or build it anew"
        )
    used.update(mine)
    raw = with_annotations(child.raw, f"manifest {entry.digest}", {item.key: item.value for item in mine})
    changed = Descriptor.of(raw, child.content.media_type)
    notes.append(f"{platform or 'image'}: {entry.digest} with its annotations is {changed.digest}")
    rewritten[changed.digest] = raw
    new = replace(entry, digest=changed.digest, size=changed.size, data=None)
    return replace(child, descriptor=new, raw=raw, content=Manifest.parse(raw, child.content.media_type))


def _with_children(source: _ReadSource, children: Sequence[Node]) -> _ReadSource:
    part = source.part
    if not isinstance(part.content, Index):
        (child,) = children
        assert isinstance(child.content, Manifest)
        return replace(source, part=replace(part, root=child.descriptor, content=child.content), node=child)
    if tuple(children) == source.node.children:
        return source
    index = with_children(part.content, [child.descriptor for child in children])
    node = replace(source.node, children=tuple(children))
    return replace(source, part=replace(part, content=index), node=node)


async def _push_children(
    registry: Registry,
    read: Sequence[_ReadSource],
    joined: Joined,
    rewritten: Mapping[Digest, bytes],
    references: Sequence[Reference],
    traffic: Traffic,
) -> None:
    """Put everything that the index lists into every repository that it is written to."""
    wanted = {entry.digest for entry in joined.entries}
    for repository in dict.fromkeys(reference.without_tag() for reference in references):
        done: set[Digest] = set()
        for source in read:
            nodes = [child for child in source.children if child.descriptor.digest in wanted - done]
            done |= {node.descriptor.digest for node in nodes}
            at_home = isinstance(source.store, RepositoryStore) and source.store.name == repository.name
            # What was read from this very repository is there; what was changed is not.
            moving = [node for node in nodes if not at_home or node.descriptor.digest in rewritten]
            flat = list({n.descriptor.digest: n for node in moving for n in node.walk()}.values())
            await push_nodes(registry, source.store, flat, repository, traffic)


async def tags_before(registry: Registry, references: Sequence[Reference]) -> dict[Reference, Digest | None]:
    """What the tags point at; None for those that are not there."""
    return dict(zip(references, await gather(_tag(registry, reference) for reference in references), strict=True))


async def write_tags(
    registry: Registry, raw: bytes, media_type: str, before: Mapping[Reference, Digest | None], *, present: bool = False
) -> tuple[Reference, ...]:
    """Put a root by its digest into every repository, then write the tags in order; returns those that had it.

    before is what tags_before told of the tags. present says that all repositories have the root already.
    """
    digest = Digest.of(raw)
    unchanged = tuple(reference for reference, found in before.items() if found == digest)
    tags: dict[str, list[str]] = {}
    for reference in before:
        tags.setdefault(reference.name, [])
        if reference not in unchanged:
            tags[reference.name].append(reference.tag_or_latest)
    changing = {name: names for name, names in tags.items() if names}
    if not present:
        # All repositories have the root before the first tag moves.
        await gather(registry.push_manifest(name, raw, media_type) for name in changing)
    for name, names in changing.items():
        await registry.push_manifest(name, raw, media_type, tags=names, present=True)
    return unchanged


async def _tag(registry: Registry, reference: Reference) -> Digest | None:
    try:
        return (await registry.resolve(reference, mirrors=False)).digest
    except NotFound:
        return None


__all__ = ["CreateRequest", "Created", "create", "tags_before", "target_reference", "write_tags"]
