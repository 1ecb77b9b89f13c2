"""Which line of the user's program made a vertex.

Looking costs one walk over a few frames. The text of the file is read when a graph is marshalled, through
linecache, which is how Python itself finds the lines of a traceback: it also knows files inside archives and
the interactive prompt. This is the one place of the package that may read a file.
"""

from __future__ import annotations

import linecache
import sys
from typing import TypeAlias

from buildkit_py.llb import check

Caller: TypeAlias = tuple[str, int]
"""File name and line, from 1."""

_PACKAGE = __name__.rpartition(".")[0]
_enabled = True


def capture_source(enabled: bool) -> bool:
    """Switch on or off, for the whole process, that vertexes remember who made them; return how it was.

    It is on at first. Vertex digests are the same either way.
    """
    global _enabled
    before, _enabled = _enabled, check.boolean("enabled", enabled)
    return before


def find_caller() -> Caller | None:
    """Where the innermost code outside of this package stands now; None when switched off."""
    if not _enabled:
        return None
    frame = sys._getframe(1)  # pyright: ignore[reportPrivateUsage]  # documented; inspect is ten times slower
    while True:
        name = frame.f_globals.get("__name__", "")
        if not (isinstance(name, str) and name.startswith(_PACKAGE)):
            return frame.f_code.co_filename, frame.f_lineno
        if frame.f_back is None:
            return None
        frame = frame.f_back


def source_text(filename: str) -> bytes:
    """The file that a caller was in; empty when it cannot be found."""
    return "".join(linecache.getlines(filename)).encode(errors="replace")
