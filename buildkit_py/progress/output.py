"""The stream that a display writes to."""

from __future__ import annotations

from typing import TextIO


class Output:
    """Writes whole pieces of text, each flushed; errors of the stream come through as OSError."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> None:
        """Write text; characters that the stream's encoding lacks are written as ``?``."""
        try:
            self._stream.write(text)
        except UnicodeEncodeError:
            encoding = self._stream.encoding or "ascii"
            self._stream.write(text.encode(encoding, "replace").decode(encoding))
        self._stream.flush()
