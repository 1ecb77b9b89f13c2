"""A definition as text and as JSON, for people and for scripts."""

from __future__ import annotations

import json
from typing import Any, cast

from google.protobuf import json_format

from buildkit_py.errors import InvalidDefinition
from buildkit_py.llb import check
from buildkit_py.llb.definition import Definition, Vertex
from buildkit_py.llb.names import kind_of

_NAME_WIDTH = 100
_MAX_INDENT = 40


def dump(definition: Definition) -> str:
    """A line for each vertex, numbered in the order of the definition, with its inputs under it.

    The format is for people and may change; scripts take dump_json().
    """
    head = check.instance("definition", definition, Definition, "a Definition").head
    if head is None:
        return "scratch\n"
    numbers = {vertex.digest: number for number, vertex in enumerate(definition.vertexes, 1)}
    lines: list[str] = []
    for number, vertex in enumerate(definition.vertexes, 1):
        platform = "-" if vertex.platform is None else str(vertex.platform)
        lines.append(f"#{number} {short(vertex.digest)} {vertex.kind} {platform} {one_line(vertex.name, _NAME_WIDTH)}")
        if vertex.inputs:
            lines.append("    inputs " + " ".join([_input(numbers, i.digest, i.index) for i in vertex.inputs]))
        lines += [f"    {text}" for text in _remarks(vertex)]
    lines.append(f"result {_input(numbers, head.digest, head.index)} {short(head.digest)}")
    return "\n".join(lines) + "\n"


def dump_json(definition: Definition, *, indent: int | None = 2) -> str:
    """All that a definition says, as one JSON object with keys in a fixed order.

    ``head`` is {digest, index} or null; ``vertexes`` have digest, kind, name, platform, inputs [[digest, index]],
    op (protobuf's JSON with the names of the wire definition), caps, description and the settings that were
    made; ``files`` are what locations [[file, first line, last line]] point into.
    """
    if indent is not None:
        check.integer("indent", indent, (0, _MAX_INDENT))
    head = check.instance("definition", definition, Definition, "a Definition").head
    files = {id(file): index for index, file in enumerate(definition.source_files)}
    document = {
        "head": None if head is None else {"digest": head.digest, "index": head.index},
        "vertexes": [_vertex(definition, vertex, files) for vertex in definition.vertexes],
        "files": [{"filename": file.filename, "language": file.language} for file in definition.source_files],
    }
    return json.dumps(document, indent=indent, ensure_ascii=False) + "\n"


def op_fields(definition: Definition, digest: str) -> dict[str, Any]:
    """The op of a vertex as JSON values, without its inputs, platform and constraints."""
    fields: dict[str, Any] = _to_json(definition, digest).get(kind_of(definition.op(digest)), {})
    for name in ("attrs", "inputs"):
        if isinstance(entries := fields.get(name), dict):
            # Protobuf gives entries of a map in any order.
            fields[name] = dict(sorted(cast("dict[str, Any]", entries).items()))
    return fields


def short(digest: str) -> str:
    """Enough of a digest for people."""
    return digest.removeprefix("sha256:")[:12]


def one_line(text: str, width: int) -> str:
    """Text cut to a width, with what would break the line shown as escapes."""
    shown = "".join(
        [character if character.isprintable() else ascii(character)[1:-1] for character in text[: width + 1]]
    )
    return shown if len(shown) <= width else shown[: width - 3] + "..."


def _to_json(definition: Definition, digest: str) -> dict[str, Any]:
    try:
        fields: dict[str, Any] = json_format.MessageToDict(definition.op(digest), preserving_proto_field_name=True)
    except json_format.Error as error:
        raise InvalidDefinition(f"definition: vertex {digest} has no JSON form: {error}") from error
    return fields


def _vertex(definition: Definition, vertex: Vertex, files: dict[int, int]) -> dict[str, object]:
    fields: dict[str, object] = {
        "digest": vertex.digest,
        "kind": vertex.kind,
        "name": vertex.name,
        "platform": None if vertex.platform is None else str(vertex.platform),
        "inputs": [[given.digest, given.index] for given in vertex.inputs],
        "op": op_fields(definition, vertex.digest),
        "caps": list(vertex.caps),
    }
    if vertex.require:
        fields["require"] = list(vertex.require)
    if vertex.description:
        fields["description"] = dict(vertex.description)
    if vertex.ignore_cache:
        fields["ignore_cache"] = True
    if vertex.export_cache is not None:
        fields["export_cache"] = vertex.export_cache
    if (group := vertex.progress_group) is not None:
        fields["progress_group"] = {"id": group.id, "name": group.name, "weak": group.weak}
    if (limits := vertex.resources) is not None:
        fields["resources"] = {name: value for name in limits.__slots__ if (value := getattr(limits, name))}
    locations = [
        [files[id(place.source)], part.start_line, part.end_line] for place in vertex.locations for part in place.ranges
    ]
    if locations:
        fields["locations"] = locations
    return fields


def _remarks(vertex: Vertex) -> list[str]:
    """What else was said of a vertex, where something was."""
    remarks: list[str] = []
    if vertex.require:
        remarks.append("require " + " ".join([one_line(text, _NAME_WIDTH) for text in vertex.require]))
    if vertex.ignore_cache:
        remarks.append("ignores the cache")
    if vertex.export_cache is not None:
        remarks.append(f"export cache {'on' if vertex.export_cache else 'off'}")
    if (group := vertex.progress_group) is not None:
        remarks.append(f"group {one_line(group.name or group.id, _NAME_WIDTH)}")
    for place in vertex.locations:
        remarks += [f"at {one_line(place.source.filename, _NAME_WIDTH)}:{part.start_line}" for part in place.ranges]
    return remarks


def _input(numbers: dict[str, int], digest: str, index: int) -> str:
    return f"#{numbers[digest]}:{index}" if index else f"#{numbers[digest]}"
