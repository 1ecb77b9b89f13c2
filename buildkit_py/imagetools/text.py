"""How an inspection is printed: as docker buildx prints it, or by a small part of its template language."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

from buildkit_py.errors import ImageError, InvalidOption
from buildkit_py.imagetools.inspect import Image, Inspection
from buildkit_py.oci import Descriptor, Index, JSONObject, encode_json, parse_json
from buildkit_py.platforms import Platform
from buildkit_py.reference import Reference

_FIELDS = ("Name", "Manifest", "Image", "Provenance", "SBOM")
_ACTION = re.compile(r"\{\{-?(.*?)-?\}\}", re.DOTALL)
_WORD = re.compile(
    r"""\s*(?:(?P<json>json)\s+)?
    (?: \(\s*index\s+\.(?P<indexed>\w+)\s+"(?P<key>[^"\\]*)"\s*\)(?P<more>(?:\.\w+)*)
      | (?P<dot>\.)(?P<path>\w+(?:\.\w+)*)?
    )\s*""",
    re.VERBOSE,
)
_EXPECTED = (
    'expected json, or text with {{.Field}}, {{json .Field}} and {{json (index .Field "linux/arm64")}}, where '
    "Field is Name, Manifest, Image, Provenance or SBOM, with names of their fields after a dot"
)


def describe(inspection: Inspection) -> str:
    """The text of ``docker buildx imagetools inspect``, with a newline at the end.

    Annotations are sorted, where buildx prints them in random order.
    """
    name = str(inspection.location)
    descriptor = inspection.descriptor
    table = _Table()
    table.row("Name:", name)
    table.row("MediaType:", descriptor.media_type)
    table.row("Digest:", str(descriptor.digest))
    table.flush()
    if isinstance(inspection.content, Index):
        table.row("", "")
        table.row("Manifests:", "")
        table.flush()
        for position, entry in enumerate(inspection.content.manifests):
            if position:
                table.row("", "")
            _describe_entry(table, inspection, entry)
    return table.text()


def _describe_entry(table: _Table, inspection: Inspection, entry: Descriptor) -> None:
    table.row("  Name:", _entry_name(inspection, entry))
    table.row("  MediaType:", entry.media_type)
    if entry.platform is None:
        return
    table.row("  Platform:", entry.platform.format())
    if entry.platform.os_version:
        table.row("  OSVersion:", entry.platform.os_version)
    if entry.platform.os_features:
        table.row("  OSFeatures:", ", ".join(entry.platform.os_features))
    if entry.urls:
        table.row("  URLs:", ", ".join(entry.urls))
    if entry.annotations:
        table.row("  Annotations:", "")
        table.flush()
        for key, value in sorted(entry.annotations.items()):
            table.row(f"    {key}:", value)
        table.flush()


def _entry_name(inspection: Inspection, entry: Descriptor) -> str:
    location = inspection.location
    if isinstance(location, Reference):
        tag = f":{location.tag}" if location.tag else ""
        return f"{location.name}{tag}@{entry.digest}"
    return f"layout:{location.path}@{entry.digest}"


class _Table:
    """Two columns, of which the first is as wide as its widest cell since the last flush."""

    def __init__(self) -> None:
        self._rows: list[tuple[str, str]] = []
        self._lines: list[str] = []

    def row(self, first: str, second: str) -> None:
        # Content comes from strangers, and goes to a terminal.
        self._rows.append((_printable(first), _printable(second)))

    def flush(self) -> None:
        width = max((len(first) for first, _ in self._rows), default=0) + 1
        self._lines += [f"{first:<{width}}{second}\n" for first, second in self._rows]
        self._rows.clear()

    def text(self) -> str:
        self.flush()
        return "".join(self._lines)


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


@dataclass(frozen=True, slots=True)
class _Action:
    """One ``{{...}}``."""

    path: tuple[str, ...]
    """Names from the record down; a key of index stands among them."""
    as_json: bool


@dataclass(frozen=True, slots=True)
class Template:
    """A format that was read; tells what has to be read to fill it."""

    parts: tuple[str | _Action, ...]

    @classmethod
    def parse(cls, text: str) -> Template:
        """Read a format, ``json`` being short for ``{{json .}}``; InvalidOption for what is not supported."""
        if text == "json":
            text = "{{json .}}"
        pieces = _ACTION.split(text)
        parts: list[str | _Action] = []
        for position, piece in enumerate(pieces):
            if position % 2:
                parts.append(_action(piece, text))
            elif "{{" in piece or "}}" in piece:
                raise InvalidOption(f"format {text!r}: {{{{ and }}}} do not match; {_EXPECTED}")
            elif piece:
                parts.append(piece)
        return cls(tuple(parts))

    @property
    def needs_configs(self) -> bool:
        return self._names({"Image"}) or any(isinstance(part, _Action) and not part.path for part in self.parts)

    @property
    def needs_attestations(self) -> bool:
        return self._names({"Provenance", "SBOM"})

    def _names(self, fields: set[str]) -> bool:
        return any(isinstance(part, _Action) and part.path[:1] and part.path[0] in fields for part in self.parts)

    def fill(self, inspection: Inspection) -> str:
        """The text, without a newline of its own. ImageError for a field that is not there."""
        if self.parts == (_Action(("Manifest",), False),):
            return describe(inspection)
        return "".join(part if isinstance(part, str) else _filled(part, inspection) for part in self.parts)


def _action(text: str, whole: str) -> _Action:
    match = _WORD.fullmatch(text)
    if match is None:
        raise InvalidOption(f"format {whole!r}: {{{{{text}}}}} is not supported; {_EXPECTED}")
    if match["indexed"] is not None:
        path = (match["indexed"], match["key"], *(match["more"] or "").split(".")[1:])
    else:
        path = tuple(match["path"].split(".")) if match["path"] else ()
    if path and path[0] not in _FIELDS:
        raise InvalidOption(f"format {whole!r}: there is no field {path[0]}; {_EXPECTED}")
    if not path and not match["json"]:
        raise InvalidOption(f"format {whole!r}: {{{{.}}}} is not supported; use {{{{json .}}}}")
    return _Action(path, match["json"] is not None)


def _filled(action: _Action, inspection: Inspection) -> str:
    value: object = _record(inspection) if not action.path else _field(inspection, action.path[0])
    for name in action.path[1:]:
        value = _member(value, name)
    if action.as_json:
        return _json(value)
    if isinstance(value, bool) or value is None or isinstance(value, (dict, list)):
        named = "." + ".".join(action.path)
        raise ImageError(f"format: {named} is not a plain value; use {{{{json {named}}}}}")
    return str(value)


def _member(value: object, name: str) -> object:
    """A member by its key in JSON, or by the name that it has in Go; None where there is none."""
    if not isinstance(value, dict):
        return None
    fields = cast("dict[str, object]", value)
    if name in fields:
        return fields[name]
    folded = name.lower()
    return next((item for key, item in fields.items() if key.replace(".", "").lower() == folded), None)


def _record(inspection: Inspection) -> dict[str, object]:
    """What ``{{json .}}`` shows: provenance and SBOM have to be asked for, as with buildx."""
    record: dict[str, object] = {"name": inspection.text, "manifest": _manifest(inspection)}
    image = _by_platform(inspection, _config)
    return {**record, "image": image} if image else record


def _field(inspection: Inspection, name: str) -> object:
    match name:
        case "Name":
            return inspection.text
        case "Manifest":
            return _manifest(inspection)
        case "Image":
            return _by_platform(inspection, _config)
        case "Provenance":
            return _by_platform(inspection, _provenance) or {}
        case _:
            return _by_platform(inspection, _sbom) or {}


def _manifest(inspection: Inspection) -> dict[str, object]:
    descriptor, content = inspection.descriptor, inspection.content
    if not isinstance(content, Index):
        return Descriptor(media_type=descriptor.media_type, digest=descriptor.digest, size=descriptor.size).to_json()
    fields: dict[str, object] = {
        "schemaVersion": 2,
        "mediaType": content.media_type,
        "digest": str(descriptor.digest),
        "size": descriptor.size,
        "manifests": [entry.to_json() for entry in content.manifests],
    }
    if content.annotations:
        fields["annotations"] = dict(sorted(content.annotations.items()))
    return fields


def _by_platform(inspection: Inspection, view: Callable[[Image], dict[str, object] | None]) -> dict[str, object] | None:
    """The view of the only image, or a map of platforms to views."""
    images = [image for image in inspection.images if image.platform is not None]
    if len(images) == 1:
        return view(images[0])
    views = {(image.platform or _NOWHERE).format(): view(image) for image in images}
    return {name: item for name, item in sorted(views.items()) if item is not None} or None


_NOWHERE = Platform("", "")


def _config(image: Image) -> dict[str, object] | None:
    return None if image.config is None else dict(parse_json(image.config.raw, "image config", max_bytes=1 << 30))


def _provenance(image: Image) -> dict[str, object] | None:
    return None if image.provenance is None else {"SLSA": image.provenance}


def _sbom(image: Image) -> dict[str, object] | None:
    if not image.sboms:
        return None
    first, *rest = image.sboms
    fields: dict[str, object] = {"SPDX": first}
    if rest:
        fields["AdditionalSPDXs"] = rest
    return fields


def _json(value: object) -> str:
    # Lists, texts and null are encoded as well as objects are.
    return encode_json(cast("JSONObject", value), indent=2).decode()


__all__ = ["Template", "describe"]
