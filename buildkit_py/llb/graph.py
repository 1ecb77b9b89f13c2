"""A definition drawn: DOT, Mermaid, and SVG by a layout of our own, so that no program needs to be installed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from html import escape
from typing import Literal

from buildkit_py.llb import check
from buildkit_py.llb.definition import Definition, Vertex
from buildkit_py.llb.dump import one_line, short

Format = Literal["dot", "mermaid", "svg"]

_LABEL_WIDTH = 48
_COLORS = {
    "source": "#dbeafe",
    "exec": "#fef3c7",
    "file": "#dcfce7",
    "merge": "#f3e8ff",
    "diff": "#fce7f3",
    "build": "#e0e7ff",
    "passthrough": "#f1f5f9",
}
_UNKNOWN_COLOR = "#ffffff"
_RESULT = "result"


def graph(definition: Definition, format: Format = "dot") -> str:  # as the command line calls it
    """Draw a definition; equal definitions give equal text. Arrows go from what is needed to what needs it."""
    check.choice("format", format, ("dot", "mermaid", "svg"))
    drawing = _Drawing.of(check.instance("definition", definition, Definition, "a Definition"))
    if format == "dot":
        return _dot(drawing)
    return _mermaid(drawing) if format == "mermaid" else _svg(drawing)


@dataclass(frozen=True, slots=True)
class _Drawing:
    """Vertexes that the result needs, numbered from 0, and the arrows between them; the result is the last."""

    labels: tuple[tuple[str, str], ...]
    """Two lines for each vertex."""
    kinds: tuple[str, ...]
    arrows: tuple[tuple[int, int, str], ...]
    """From, to, and which output where it is not the first."""

    @classmethod
    def of(cls, definition: Definition) -> _Drawing:
        vertexes = [definition.vertex(digest) for digest in definition.walk()]
        numbers = {vertex.digest: number for number, vertex in enumerate(vertexes)}
        arrows = [
            (numbers[given.digest], number, str(given.index) if given.index else "")
            for number, vertex in enumerate(vertexes)
            for given in dict.fromkeys(vertex.inputs)
        ]
        if (head := definition.head) is not None:
            arrows.append((numbers[head.digest], len(vertexes), str(head.index) if head.index else ""))
        return cls(
            (*[_label(vertex) for vertex in vertexes], (_RESULT, "scratch" if definition.is_scratch else "")),
            (*[vertex.kind for vertex in vertexes], _RESULT),
            tuple(arrows),
        )


def _label(vertex: Vertex) -> tuple[str, str]:
    platform = "" if vertex.platform is None else f" {vertex.platform}"
    return one_line(vertex.name, _LABEL_WIDTH), f"{vertex.kind}{platform} {short(vertex.digest)}"


def _dot(drawing: _Drawing) -> str:
    lines = ["digraph llb {", "  rankdir=LR;", '  node [shape=box, style="rounded,filled", fontname="monospace"];']
    for number, (label, kind) in enumerate(zip(drawing.labels, drawing.kinds, strict=True)):
        text = "\\n".join([_dot_text(line) for line in label if line])
        lines.append(f'  v{number} [label="{text}", fillcolor="{_COLORS.get(kind, _UNKNOWN_COLOR)}"];')
    for start, end, output in drawing.arrows:
        lines.append(f"  v{start} -> v{end}" + (f' [label="{output}"];' if output else ";"))
    return "\n".join([*lines, "}"]) + "\n"


def _dot_text(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"')


def _mermaid(drawing: _Drawing) -> str:
    lines = ["flowchart LR"]
    for number, label in enumerate(drawing.labels):
        text = "<br/>".join([_mermaid_text(line) for line in label if line])
        lines.append(f'  v{number}["{text}"]')
    for start, end, output in drawing.arrows:
        lines.append(f"  v{start} -->{f'|{output}|' if output else ''} v{end}")
    for kind, color in _COLORS.items():
        members = [f"v{number}" for number, own in enumerate(drawing.kinds) if own == kind]
        if members:
            lines += [f"  classDef {kind} fill:{color}", f"  class {','.join(members)} {kind}"]
    return "\n".join(lines) + "\n"


def _mermaid_text(text: str) -> str:
    """What is special to Mermaid or to HTML, as its entity codes."""
    return "".join([c if c.isalnum() or c in " -_./:=,@+" else f"#{ord(c)};" for c in text])


# Sizes in pixels.
_BOX_WIDTH, _BOX_HEIGHT, _GAP_X, _GAP_Y, _MARGIN = 360, 44, 60, 16, 16
_SWEEPS = 8


def _svg(drawing: _Drawing) -> str:
    columns = _columns(drawing)
    places = {
        number: (_MARGIN + x * (_BOX_WIDTH + _GAP_X), _MARGIN + y * (_BOX_HEIGHT + _GAP_Y))
        for x, column in enumerate(columns)
        for y, number in enumerate(column)
    }
    width = 2 * _MARGIN + len(columns) * (_BOX_WIDTH + _GAP_X) - _GAP_X
    height = 2 * _MARGIN + max(map(len, columns)) * (_BOX_HEIGHT + _GAP_Y) - _GAP_Y
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        'font-family="monospace" font-size="11">',
        '<defs><marker id="arrow" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="8" markerHeight="8" orient="auto">'
        '<path d="M0 0L8 4L0 8z" fill="#475569"/></marker></defs>',
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
    ]
    lines += [_svg_arrow(places, *arrow) for arrow in drawing.arrows]
    for number, (x, y) in sorted(places.items()):
        lines += _svg_box(x, y, drawing.labels[number], drawing.kinds[number])
    return "\n".join([*lines, "</svg>"]) + "\n"


def _svg_box(x: int, y: int, label: tuple[str, str], kind: str) -> Iterator[str]:
    color = _COLORS.get(kind, _UNKNOWN_COLOR)
    yield (
        f'<rect x="{x}" y="{y}" width="{_BOX_WIDTH}" height="{_BOX_HEIGHT}" rx="6" fill="{color}" stroke="#475569"/>'
    )
    for row, line in enumerate(label):
        if line:
            style = "" if row == 0 else ' fill="#64748b"'
            yield f'<text x="{x + 8}" y="{y + 18 + 16 * row}"{style}>{escape(line)}</text>'


def _svg_arrow(places: dict[int, tuple[int, int]], start: int, end: int, output: str) -> str:
    x1, y1 = places[start][0] + _BOX_WIDTH, places[start][1] + _BOX_HEIGHT // 2
    x2, y2 = places[end][0], places[end][1] + _BOX_HEIGHT // 2
    bend = _GAP_X // 2
    path = (
        f'<path d="M{x1} {y1}C{x1 + bend} {y1} {x2 - bend} {y2} {x2} {y2}" fill="none" stroke="#475569" '
        'marker-end="url(#arrow)"/>'
    )
    return path + (f'<text x="{x1 + 4}" y="{y1 - 4}" fill="#64748b">{output}</text>' if output else "")


def _columns(drawing: _Drawing) -> list[list[int]]:
    """Vertexes by how far they are from the sources, each column sorted so that few arrows cross."""
    count = len(drawing.kinds)
    before: list[list[int]] = [[] for _ in range(count)]
    after: list[list[int]] = [[] for _ in range(count)]
    depth = [0] * count
    # Inputs have lower numbers than what needs them.
    for start, end, _ in drawing.arrows:
        before[end].append(start)
        after[start].append(end)
    for number in range(count):
        depth[number] = 1 + max([depth[start] for start in before[number]], default=-1)
    columns: list[list[int]] = [[] for _ in range(max(depth) + 1)]
    for number in range(count):
        columns[depth[number]].append(number)
    position = {number: float(row) for column in columns for row, number in enumerate(column)}
    for sweep in range(_SWEEPS):
        forward = sweep % 2 == 0
        neighbours = before if forward else after
        for column in columns if forward else reversed(columns):
            wanted = {
                number: _mean([position[other] for other in neighbours[number]], position[number]) for number in column
            }
            column.sort(key=lambda number: (wanted[number], number))
            position.update({number: float(row) for row, number in enumerate(column)})
    return columns


def _mean(values: list[float], default: float) -> float:
    return sum(values) / len(values) if values else default
