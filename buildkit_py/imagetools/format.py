"""``--format`` of inspect: the fields that docker buildx offers its templates."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import cast

from buildkit_py.imagetools.gotemplate import GoTemplate
from buildkit_py.imagetools.govalues import NIL_LIST, NIL_MAP, NIL_POINTER, Field, Record, Value
from buildkit_py.imagetools.inspection import Image, Inspection
from buildkit_py.imagetools.text import describe
from buildkit_py.oci import Descriptor, Index, parse_json
from buildkit_py.platforms import Platform

_ROOT = {name: Field(name) for name in ("Name", "Manifest", "Image", "Provenance", "SBOM")}
_PLATFORM = {
    "Architecture": Field("architecture"),
    "OS": Field("os"),
    "OSVersion": Field("os.version"),
    "OSFeatures": Field("os.features", NIL_LIST),
    "Variant": Field("variant"),
}
_DESCRIPTOR = {
    "MediaType": Field("mediaType"),
    "Digest": Field("digest"),
    "Size": Field("size", 0),
    "URLs": Field("urls", NIL_LIST),
    "Annotations": Field("annotations", NIL_MAP),
    "Data": Field("data", NIL_LIST),
    "Platform": Field("platform", NIL_POINTER),
    "ArtifactType": Field("artifactType"),
}
_INDEX = {
    "SchemaVersion": Field("schemaVersion", 0),
    "MediaType": Field("mediaType"),
    "Digest": Field("digest"),
    "Size": Field("size", 0),
    "Manifests": Field("manifests", NIL_LIST),
    "Annotations": Field("annotations", NIL_MAP),
}
_HISTORY = {
    "Created": Field("created", NIL_POINTER),
    "CreatedBy": Field("created_by"),
    "Author": Field("author"),
    "Comment": Field("comment"),
    "EmptyLayer": Field("empty_layer", False),
}
_ROOTFS = {"Type": Field("type"), "DiffIDs": Field("diff_ids", NIL_LIST)}
_CONFIG = {
    "User": Field("User"),
    "ExposedPorts": Field("ExposedPorts", NIL_MAP),
    "Env": Field("Env", NIL_LIST),
    "Entrypoint": Field("Entrypoint", NIL_LIST),
    "Cmd": Field("Cmd", NIL_LIST),
    "Volumes": Field("Volumes", NIL_MAP),
    "WorkingDir": Field("WorkingDir"),
    "Labels": Field("Labels", NIL_MAP),
    "StopSignal": Field("StopSignal"),
    "ArgsEscaped": Field("ArgsEscaped", False),
}
_IMAGE = {
    "Created": Field("created", NIL_POINTER),
    "Author": Field("author"),
    **_PLATFORM,
    "Config": Field("config", Record({}, _CONFIG)),
    "RootFS": Field("rootfs", Record({}, _ROOTFS)),
    "History": Field("history", NIL_LIST),
}
_NOWHERE = Platform("", "")


@dataclass(frozen=True, slots=True)
class Template:
    """A format that was read; tells what has to be read to fill it."""

    template: GoTemplate
    plain: bool
    """Whether it is but ``{{.Manifest}}``, which docker buildx takes for its own text."""

    @classmethod
    def parse(cls, text: str) -> Template:
        """Read a format, ``json`` being short for ``{{json .}}``; InvalidOption for what is not supported."""
        template = GoTemplate.parse("{{json .}}" if text == "json" else text)
        return cls(template, "".join(text.split()) == "{{.Manifest}}")

    @property
    def needs_configs(self) -> bool:
        """Whether it shows the images' configs."""
        return bool(self.template.fields() & {"Image", ""})

    @property
    def needs_attestations(self) -> bool:
        """Whether it shows provenance or an SBOM."""
        return bool(self.template.fields() & {"Provenance", "SBOM"})

    def fill(self, inspection: Inspection) -> str:
        """The text, without a newline of its own. ImageError for a field that is not there."""
        return describe(inspection).removesuffix("\n") if self.plain else self.template.fill(_root(inspection))


class _Root(Record):
    """What templates begin at: ``{{json .}}`` shows no provenance and no SBOM, which have to be asked for."""

    def __init__(self, shown: Mapping[str, Value], asked: Mapping[str, Value]) -> None:
        super().__init__(shown, _ROOT)
        self._asked = asked

    def member(self, name: str) -> Value:
        return self._asked[name] if name in self._asked else super().member(name)


def _root(inspection: Inspection) -> _Root:
    shown: dict[str, Value] = {"name": inspection.text, "manifest": _manifest(inspection)}
    image = _by_platform(inspection, _config)
    if image:
        shown["image"] = image
    asked: dict[str, Value] = {
        "Name": inspection.text,
        "Manifest": shown["manifest"],
        "Image": image,
        "Provenance": _by_platform(inspection, _provenance) or {},
        "SBOM": _by_platform(inspection, _sbom) or {},
    }
    return _Root(shown, asked)


def _manifest(inspection: Inspection) -> Record:
    found, content = inspection.descriptor, inspection.content
    if not isinstance(content, Index):
        bare = Descriptor(media_type=found.media_type, digest=found.digest, size=found.size)
        return _record(bare.to_json(), _DESCRIPTOR)
    fields: dict[str, object] = {
        "schemaVersion": 2,
        "mediaType": content.media_type,
        "digest": str(found.digest),
        "size": found.size,
        "manifests": [_entry(entry) for entry in content.manifests],
    }
    if content.annotations:
        fields["annotations"] = dict(content.annotations)
    return Record(fields, _INDEX)


def _entry(entry: Descriptor) -> Record:
    fields = entry.to_json()
    return _record({**fields, **_part(fields, "platform", _PLATFORM)}, _DESCRIPTOR)


def _record(items: Mapping[str, object], fields: Mapping[str, Field]) -> Record:
    """With the items in Go's order; those that Go's struct lacks come last."""
    keys = [field.key for field in fields.values() if field.key in items]
    return Record({key: items[key] for key in (*keys, *(key for key in items if key not in keys))}, fields)


def _part(items: Mapping[str, object], key: str, fields: Mapping[str, Field]) -> dict[str, object]:
    value = items.get(key)
    return {key: _record(cast("dict[str, object]", value), fields)} if isinstance(value, dict) else {}


def _by_platform(inspection: Inspection, view: Callable[[Image], Record | None]) -> Value:
    """The view of the only image, or a map of platforms to views."""
    images = [image for image in inspection.images if image.platform is not None]
    if len(images) == 1:
        return view(images[0])
    views = {(image.platform or _NOWHERE).format(): view(image) for image in images}
    return {name: item for name, item in sorted(views.items()) if item is not None} or None


def _config(image: Image) -> Record | None:
    if image.config is None:
        return None
    fields = dict(parse_json(image.config.raw, "image config", max_bytes=1 << 30))
    fields |= _part(fields, "config", _CONFIG) | _part(fields, "rootfs", _ROOTFS)
    history = fields.get("history")
    if isinstance(history, list):
        items = cast("list[object]", history)
        fields["history"] = [
            _record(cast("dict[str, object]", item), _HISTORY) if isinstance(item, dict) else item for item in items
        ]
    return _record(fields, _IMAGE)


def _provenance(image: Image) -> Record | None:
    if image.provenance is None:
        return None
    return Record({"SLSA": dict(image.provenance)}, {"SLSA": Field("SLSA", NIL_POINTER)})


def _sbom(image: Image) -> Record | None:
    if not image.sboms:
        return None
    first, *rest = image.sboms
    fields: dict[str, object] = {"SPDX": dict(first)}
    if rest:
        fields["AdditionalSPDXs"] = [dict(item) for item in rest]
    names = {"SPDX": Field("SPDX", NIL_POINTER), "AdditionalSPDXs": Field("AdditionalSPDXs", NIL_LIST)}
    return Record(fields, names)


__all__ = ["Template"]
