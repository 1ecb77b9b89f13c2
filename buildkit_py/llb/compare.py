"""Where two definitions part: the first vertexes that differ, and in what."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

from buildkit_py.llb import check
from buildkit_py.llb.definition import Definition, Input
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
            name = one_line(change.name, _VALUE_WIDTH)
            if not change.before:
                lines.append(f"added {short(change.after)} {name}")
            elif not change.after:
                lines.append(f"removed {short(change.before)} {name}")
            else:
                lines.append(f"{short(change.before)} -> {short(change.after)} {name}")
                lines += [f"    {field}" for field in change.fields]
        lines.append(f"{self.downstream} more differ in what they depend on, {self.shared} are in both")
        return "\n".join(lines) + "\n"


def compare(before: Definition, after: Definition) -> Comparison:
    """Walk both graphs from their results and pair up vertexes by the places they have as inputs.

    What both graphs have is never a difference; a vertex that only one has, beside one that both have, was added
    or removed there.
    """
    for name, given in (("before", before), ("after", after)):
        check.instance(name, given, Definition, "a Definition")
    known, digests = set(before.walk()), set(after.walk())
    shared = known & digests
    changes: list[VertexChange] = []
    for old, young in _pairs(before, after, shared):
        own = _changes(_describe(before, old), _describe(after, young))
        if fields := (*own, *_rewired(before, old, after, young, shared)):
            vertex = after.vertex(young) if young else before.vertex(old)
            changes.append(VertexChange(old, young, vertex.name, fields))
    explained = {change.after for change in changes}
    changes += _result_change(before, after)
    return Comparison(tuple(changes), len(digests - known - explained), len(shared))


def _pairs(before: Definition, after: Definition, shared: set[str]) -> Iterator[tuple[str, str]]:
    """Vertexes that only one graph has, with the one in their place in the other or "", inputs first; each once."""
    todo: list[tuple[str, str, bool]] = [(_head(before), _head(after), False)]
    met: set[str] = set()
    while todo:
        old, young, is_done = todo.pop()
        if is_done:
            yield old, young
            continue
        gone = old if old and old not in shared and old not in met else ""
        new = young if young and young not in shared and young not in met else ""
        met |= {gone, new}
        olds, youngs = _inputs(before, gone), _inputs(after, new)
        if gone and new:
            places = range(max(len(olds), len(youngs)))
            inner = [(_at(olds, place), _at(youngs, place), False) for place in places]
        elif new:
            inner = [(old, given, False) for given in youngs]
        elif gone:
            inner = [(given, young, False) for given in olds]
        else:
            continue
        todo.append((gone, new, True))
        todo += reversed(inner)


def _rewired(before: Definition, old: str, after: Definition, young: str, shared: set[str]) -> Iterator[FieldChange]:
    """Inputs of a pair that are other vertexes now, though both graphs have them."""
    for place, (first, second) in enumerate(zip(_inputs(before, old), _inputs(after, young), strict=False)):
        if first != second and first in shared and second in shared:
            yield FieldChange(f"inputs[{place}]", json.dumps(short(first)), json.dumps(short(second)))


def _result_change(before: Definition, after: Definition) -> list[VertexChange]:
    """The result can be another output of the same vertex, or a vertex that was there already."""
    old, young = before.head, after.head
    if old is None or young is None or old == young:
        return []
    known = set(before.walk()) & set(after.walk())
    if old.digest != young.digest and not {old.digest, young.digest} <= known:
        if old.index == young.index:
            return []
        fields = (FieldChange("result.index", str(old.index), str(young.index)),)
    else:
        fields = (FieldChange("result", json.dumps(_output(old)), json.dumps(_output(young))),)
    return [VertexChange(old.digest, young.digest, "result", fields)]


def _output(output: Input) -> str:
    return f"{short(output.digest)}:{output.index}"


def _head(definition: Definition) -> str:
    return "" if definition.head is None else definition.head.digest


def _inputs(definition: Definition, digest: str) -> list[str]:
    return [given.digest for given in definition.op(digest).inputs] if digest else []


def _at(items: list[str], place: int) -> str:
    return items[place] if place < len(items) else ""


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
