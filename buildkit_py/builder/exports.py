"""Outputs as they were asked for, sorted by who has to do what for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

from buildkit_py.builder.annotations import Annotations, is_annotation
from buildkit_py.errors import InvalidOption, InvalidReference
from buildkit_py.options import ExporterSpec
from buildkit_py.platforms import Platform
from buildkit_py.reference import Reference

# What of an image output is ours to see to, or says where the image goes rather than what it is.
_PLACEMENT = frozenset({"name", "push", "push-by-digest", "registry.insecure", "store", "unpack"})
_STORE_ONLY = frozenset({"dangling-name-prefix", "danging-name-empty-only", "name-canonical"})
_BOOLEANS = frozenset(
    {
        *("push", "push-by-digest", "registry.insecure", "store", "unpack", "oci-mediatypes", "oci-artifact"),
        *("force-compression", "rewrite-timestamp", "prefer-nondist-layers", "name-canonical", "platform-split"),
        *("attestation-inline", "tar"),
    }
)
_TRUE = frozenset({"", "1", "t", "T", "true", "TRUE", "True"})
_FALSE = frozenset({"0", "f", "F", "false", "FALSE", "False"})
_COMPRESSIONS: Mapping[str, tuple[int, int] | None] = {
    "uncompressed": None,
    "gzip": (-1, 9),
    "estargz": (-1, 9),
    "zstd": (0, 22),
}
"""The levels of each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Push:
    """Images that differ in their names only."""

    references: tuple[Reference, ...]
    """Each with a tag, even where none is written."""
    attrs: Mapping[str, str]
    """What the image is to be like, in the exporter's words."""
    insecure: bool = False
    """Plain HTTP, and certificates that nobody vouches for, will do."""
    tagged: bool = True
    """False writes no tag: the root is there by its digest alone."""
    annotations: Annotations = field(default_factory=Annotations)

    @property
    def repositories(self) -> tuple[str, ...]:
        """Names without tags, none twice."""
        return tuple(dict.fromkeys(reference.name for reference in self.references))


@dataclass(frozen=True, slots=True, kw_only=True)
class Keep:
    """An image for the store of a daemon or an engine."""

    references: tuple[Reference, ...]
    """Each with a tag; there may be none."""
    attrs: Mapping[str, str]
    engine: bool
    """True loads it into an engine, False leaves it in the store of the daemon that builds."""
    context: str = ""
    """The docker context that names the engine; "" for the usual one."""
    annotations: Annotations = field(default_factory=Annotations)


@dataclass(frozen=True, slots=True, kw_only=True)
class FileExport:
    """An output on this machine."""

    spec: ExporterSpec
    dest: str
    references: tuple[Reference, ...]
    """Names for the entries of a layout, each with a tag."""
    annotations: Annotations = field(default_factory=Annotations)


@dataclass(frozen=True, slots=True, kw_only=True)
class Exports:
    """Everything that becomes of a build."""

    pushes: tuple[Push, ...] = ()
    keeps: tuple[Keep, ...] = ()
    files: tuple[FileExport, ...] = ()
    names: tuple[Reference, ...] = ()
    """What images are called, wherever they go, as daemons say it."""

    @property
    def references(self) -> tuple[Reference, ...]:
        """All that is pushed, each with a tag."""
        return tuple(dict.fromkeys(reference for push in self.pushes for reference in push.references))


def plan_exports(
    outputs: Sequence[ExporterSpec],
    *,
    tags: Sequence[str],
    push: bool,
    load: bool,
    annotations: Annotations,
    platforms: Sequence[Platform] = (),
) -> Exports:
    """Sort the outputs; raise InvalidOption or InvalidReference for what no daemon could do."""
    for tag in tags:
        tagged(tag)  # told of even where nothing takes a name
    if push and not tags:
        raise InvalidOption("push: needs at least one tag")
    specs = [spec for spec in outputs if spec.type != "cacheonly"]
    for spec in specs:
        spec.check()
        _check_attrs(spec)
    if push and not any(spec.type == "image" for spec in specs):
        specs.append(ExporterSpec(type="image"))
    if load and not any(spec.type == "docker" and spec.dest is None for spec in specs):
        specs.append(ExporterSpec(type="docker"))
    pushes: list[Push] = []
    keeps: list[Keep] = []
    files: list[FileExport] = []
    called: dict[Reference, Reference] = {}
    for spec in specs:
        given = _names(spec, tags)
        if spec.type not in {"local", "tar"}:
            # Daemons say the names of images as they were given to them, those of archives with a tag.
            plain = spec.type == "image"
            called |= {tagged(name): Reference.parse_normalized(name) if plain else tagged(name) for name in given}
        names = tuple(dict.fromkeys(tagged(name) for name in given))
        own = annotations.over(spec.attrs, platforms)
        if spec.dest is not None:
            files.append(FileExport(spec=spec, dest=spec.dest, references=names, annotations=own))
        elif spec.type == "docker":
            attrs, context = _image_attrs(spec), _context(spec)
            keeps.append(Keep(references=names, attrs=attrs, engine=True, context=context, annotations=own))
        else:
            pushed = push or is_true(spec.attrs.get("push"))
            if pushed:
                pushes.append(_push(spec, names, given, own))
            if not pushed or is_true(spec.attrs.get("store")) or is_true(spec.attrs.get("unpack")):
                attrs = _image_attrs(spec, *_STORE_ONLY)
                keeps.append(Keep(references=names, attrs=attrs, engine=False, annotations=own))
    _check_files(files)
    names = tuple(called.values())
    return Exports(pushes=_merged(pushes), keeps=tuple(keeps), files=tuple(files), names=names)


def tagged(text: str) -> Reference:
    """A name to write, with a tag; raise InvalidReference for one with a digest."""
    reference = Reference.parse_normalized(text)
    if reference.digest is not None:
        raise InvalidReference(f"tag {text!r}: a name to write cannot have a digest")
    return reference.with_tag(reference.tag_or_latest)


def is_true(value: str | None) -> bool:
    """Go's notion of an exporter's flag: present and empty is true."""
    return value is not None and value in _TRUE


def _names(spec: ExporterSpec, tags: Sequence[str]) -> Sequence[str]:
    """The tags of the build, which go before the output's own names, as docker buildx has it."""
    return tags or [name for name in spec.attrs.get("name", "").split(",") if name]


def _push(spec: ExporterSpec, names: tuple[Reference, ...], given: Sequence[str], annotations: Annotations) -> Push:
    if not names:
        raise InvalidOption("output type=image,push=true: needs name=... or a tag")
    by_digest = is_true(spec.attrs.get("push-by-digest"))
    if by_digest and (own := next((name for name in given if Reference.parse_normalized(name).tag), None)):
        raise InvalidOption(f"output push-by-digest=true: {own} has a tag, and none would be written")
    insecure = is_true(spec.attrs.get("registry.insecure"))
    return Push(
        references=names,
        attrs=_image_attrs(spec),
        insecure=insecure,
        tagged=not by_digest,
        annotations=annotations,
    )


def _merged(pushes: Sequence[Push]) -> tuple[Push, ...]:
    """One for each kind of image, with all its names."""
    kinds: dict[tuple[object, ...], Push] = {}
    for push in pushes:
        kind = (tuple(sorted(push.attrs.items())), push.insecure, push.tagged, push.annotations)
        before = kinds.get(kind)
        references = (*before.references, *push.references) if before else push.references
        kinds[kind] = Push(
            references=tuple(dict.fromkeys(references)),
            attrs=push.attrs,
            insecure=push.insecure,
            tagged=push.tagged,
            annotations=push.annotations,
        )
    names = [reference for push in kinds.values() if push.tagged for reference in push.references]
    for name in names:
        if names.count(name) > 1:
            raise InvalidOption(f"output name={name}: two different images would have this name")
    return tuple(kinds.values())


def _image_attrs(spec: ExporterSpec, *more: str) -> Mapping[str, str]:
    """What the image is to be like."""
    dropped = (_PLACEMENT | _STORE_ONLY | {"context"}) - set(more)
    kept = {key: value for key, value in spec.attrs.items() if key not in dropped and not is_annotation(key)}
    return MappingProxyType(kept)


def _context(spec: ExporterSpec) -> str:
    return spec.attrs.get("context", "")


def _check_attrs(spec: ExporterSpec) -> None:
    """Daemons say the same only when all is built, and some take what they do not understand for nothing."""
    where = f"output type={spec.type}"
    for key in sorted(_BOOLEANS & spec.attrs.keys()):
        if spec.attrs[key] not in _TRUE | _FALSE:
            raise InvalidOption(f"{where}: {key}={spec.attrs[key]}: expected true or false")
    compression = spec.attrs.get("compression", "gzip")
    if compression not in _COMPRESSIONS:
        raise InvalidOption(f"{where}: compression={compression}: expected one of {', '.join(_COMPRESSIONS)}")
    level = spec.attrs.get("compression-level")
    limits = _COMPRESSIONS[compression]
    if level is not None and limits is not None:
        lowest, highest = limits
        if not level.lstrip("-").isdigit() or not lowest <= int(level) <= highest:
            raise InvalidOption(f"{where}: compression-level={level}: expected {max(lowest, 0)} to {highest}")
    if spec.attrs.get("mode", "copy") not in {"copy", "delete"}:
        raise InvalidOption(f"{where}: mode={spec.attrs['mode']}: expected copy or delete")


def _check_files(files: Sequence[FileExport]) -> None:
    destinations = [file.dest for file in files]
    for dest in destinations:
        if destinations.count(dest) > 1:
            raise InvalidOption(f"output dest={dest}: two outputs have the same destination")
