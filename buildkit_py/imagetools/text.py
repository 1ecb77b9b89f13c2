"""How an inspection is printed: as docker buildx prints it."""

from __future__ import annotations

from buildkit_py.imagetools.inspection import Inspection
from buildkit_py.oci import Descriptor, Index
from buildkit_py.reference import Reference


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


__all__ = ["describe"]
