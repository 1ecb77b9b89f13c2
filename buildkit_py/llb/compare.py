"""Where two definitions part: the first vertexes that differ, and in what."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

from buildkit_py.llb.definition import Definition
from buildkit_py.llb.dump import one_line, op_fields, short

_VALUE_WIDTH = 120


@dataclass(frozen=True, slots=True)
class FieldChange:
    """A field that two vertexes do not share, such as ``exec.meta.args[2]``."""

    path: str
    before: str | None
    """As JSON; None where it is not there."""
    after: str | None

    def __str__(self) -> str:
        return f"{self.path}: {_shown(self.before)} -> {_shown(self.after)}"


@dataclass(frozen=True, slots=True)
class VertexChange:
    """Two vertexes that stand at the same place and differ in themselves, not only in what they depend on."""

    before: str
    """Digest in the first definition; "" where there is nothing in that place."""
    after: str
    name: str
    fields: tuple[FieldChange, ...]


@dataclass(frozen=True, slots=True)
class Comparison:
    """What has become of a definition."""

    changes: tuple[VertexChange, ...]
    """Vertexes that differ first, in the order in which they are built."""
    downstream: int
    """How many vertexes of the second definition are new only because something before them is."""
    shared: int
    """How many vertexes both have."""

    @property
    def is_equal(self) -> bool:
        """Whether both make the same result of the same vertexes. Names and source locations do not count."""
        return not self.changes and not self.downstream

    def __str__(self) -> str:
        """For people; the format may change."""
        if self.is_equal:
            return f"no difference, {self.shared} vertexes\n"
        lines: list[str] = []
        for change in self.changes:
            before, after = (short(digest) if digest else "none" for digest in (change.before, change.after))
            lines.append(f"{before} -> {after} {one_line(change.name, _VALUE_WIDTH)}")
            lines += [f"    {field}" for field in change.fields]
        lines.append(f"{self.downstream} more differ in what they depend on, {self.shared} are in both")
        return "\n".join(lines) + "\n"


def compare(before: Definition, after: Definition) -> Comparison:
    """Walk both graphs from their results and pair up vertexes by the places they have as inputs."""
    digests, known = set(after.walk()), set(before.walk())
    changes: list[VertexChange] = []
    for old, young in _pairs(before, after):
        if fields := tuple(_changes(_describe(before, old), _describe(after, young))):
            vertex = after.vertex(young) if young else before.vertex(old)
            changes.append(VertexChange(old, young, vertex.name, fields))
    explained = {change.after for change in changes}
    return Comparison(tuple(changes), len(digests - known - explained), len(digests & known))


def _pairs(before: Definition, after: Definition) -> Iterator[tuple[str, str]]:
    """Vertexes in the same place with different digests, inputs first; "" where there is none.

    Each vertex is paired once, with what stands at the place where it is met first, so that large graphs which
    share much inside of them take no longer than others.
    """
    old_head, young_head = before.head, after.head
    todo = [(old_head.digest if old_head else "", young_head.digest if young_head else "")]
    entered: set[tuple[str, str]] = set()
    met: set[str] = set()
    while todo:
        pair = old, young = todo[-1]
        if pair in entered:
            todo.pop()
            entered.discard(pair)
            yield pair
        elif old == young or (young or f"-{old}") in met:
            todo.pop()
        else:
            met.add(young or f"-{old}")
            entered.add(pair)
            if old and young:
                olds = [given.digest for given in before.op(old).inputs]
                youngs = [given.digest for given in after.op(young).inputs]
                places = range(max(len(olds), len(youngs)))
                todo += [(_at(olds, place), _at(youngs, place)) for place in reversed(places)]


def _at(items: list[str], position: int) -> str:
    return items[position] if position < len(items) else ""


def _describe(definition: Definition, digest: str) -> dict[str, str]:
    """Fields of a vertex that are its own, as path and JSON value. Of its inputs only their number counts."""
    if not digest:
        return {}
    vertex = definition.vertex(digest)
    fields: dict[str, str] = {"kind": json.dumps(vertex.kind), "inputs": json.dumps(len(vertex.inputs))}
    for position, given in enumerate(vertex.inputs):
        if given.index:
            fields[f"inputs[{position}].index"] = json.dumps(given.index)
    if vertex.platform is not None:
        fields["platform"] = json.dumps(str(vertex.platform))
    todo: list[tuple[str, object]] = [(vertex.kind, op_fields(definition, digest)), ("require", list(vertex.require))]
    while todo:
        path, value = todo.pop()
        if isinstance(value, dict):
            todo += [(f"{path}.{key}", item) for key, item in cast("dict[str, object]", value).items()]
        elif isinstance(value, list):
            todo += [(f"{path}[{index}]", item) for index, item in enumerate(cast("list[object]", value))]
        else:
            fields[path] = json.dumps(value, ensure_ascii=False)
    return fields


def _changes(before: dict[str, str], after: dict[str, str]) -> Iterator[FieldChange]:
    for path in sorted(before.keys() | after.keys(), key=_natural):
        if before.get(path) != after.get(path):
            yield FieldChange(path, before.get(path), after.get(path))


def _natural(path: str) -> list[tuple[int, str]]:
    """Sort key: numbers in brackets by their value."""
    parts = path.replace("]", "").split("[")
    return [(int(part), "") if part.isdigit() else (-1, part) for part in parts]


def _shown(value: str | None) -> str:
    return "(none)" if value is None else one_line(value, _VALUE_WIDTH)
