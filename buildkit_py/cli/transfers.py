"""Live counts of files beside the daemon's own progress, where a transfer takes long enough to be looked at."""

from __future__ import annotations

import re
from collections.abc import Callable

from buildkit_py.builder.transfers import TransferCounts
from buildkit_py.progress import StatusUpdate, VertexStatus
from buildkit_py.progress.text import format_size

SHOWN_AFTER_SECONDS = 1.0

# Source: moby/buildkit, frontend/dockerui, config.go and namedcontext.go.
_LOADING = re.compile(r"\[internal\] load build (?:(context)|(definition) from .*)|\[context (.+)\] load from client")


class TransferProgress:
    """Puts what it is told of transfers to the steps that load them."""

    def __init__(self, update: Callable[[str, StatusUpdate], None], clock: Callable[[], float]) -> None:
        """update is a display's, clock any that goes forward in seconds."""
        self._update = update
        self._clock = clock
        self._vertexes: dict[str, tuple[str, str]] = {}
        """Label and digest of the vertex that loads a directory, by the directory's name."""
        self._begun: dict[str, float] = {}

    def on_status(self, label: str, update: StatusUpdate) -> None:
        """What the daemon says, passed on."""
        for vertex in update.vertexes:
            if vertex.started_ns is not None and (found := _LOADING.fullmatch(vertex.name)):
                name = found[1] or ("dockerfile" if found[2] else found[3])
                self._vertexes[name] = label, vertex.digest
        self._update(label, update)

    def on_transfer(self, counts: TransferCounts) -> None:
        """Show the counts, unless they are young."""
        vertex = self._vertexes.get(counts.name)
        begun = self._begun.setdefault(counts.name, self._clock())
        if counts.done:
            del self._begun[counts.name]
        if vertex is None or self._clock() - begun < SHOWN_AFTER_SECONDS:
            return
        text = (
            f"{counts.visited:,} entries seen, {counts.listed:,} listed, {counts.files_sent:,} of "
            f"{counts.requested:,} files sent, {format_size(counts.bytes_sent)}"
        )
        status = VertexStatus(id=f"files of {counts.name}", vertex=vertex[1], text=text)
        self._update(vertex[0], StatusUpdate(statuses=(status,)))
