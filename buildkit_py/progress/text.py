"""Text of a daemon made fit for a terminal: cleaned, measured, cut; and numbers as displays write them.

Names and logs come from Dockerfiles, images and whatever runs inside a build. None of it may move the cursor,
set a title or hide what else is on the screen.
"""

from __future__ import annotations

import codecs
import re
import unicodedata
from functools import lru_cache

from buildkit_py.errors import without_credentials

# ECMA-48: CSI, strings (OSC, DCS, SOS, PM, APC) up to their terminator or the end of the line, other escapes,
# and an ESC that starts none of them. A string without its terminator loses its first two characters only;
# what stays is plain text.
_SEQUENCE = re.compile(
    r"\x1b\[(?P<params>[0-?]*)(?P<inter>[ -/]*)(?P<final>[@-~])"
    r"|\x1b[\]PX^_][^\x07\x1b\x9c\n]*(?:\x07|\x1b\\|\x9c)"
    r"|\x1b[ -/]*[0-~]"
    r"|\x1b"
)
_UNFINISHED = re.compile(r"\x1b(?:\[[0-?]*[ -/]*|[ -/]*|[\]PX^_][^\x07\x1b\x9c\n]*\x1b?)\Z")
_MAX_UNFINISHED = 1024
"""Characters of an escape sequence that are waited for."""

# C0 but tab and newline, DEL, C1, separators that terminals or editors take for a newline, and the marks that
# change the direction of text.
_UNSAFE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ufff9-\ufffb]"
)
# As above, but an ESC that starts a colour stays.
_UNSAFE_BUT_COLOR = re.compile(rf"(?!\x1b\[[0-9;:]*m){_UNSAFE.pattern}")
_COLOR_PARAMS = re.compile(r"[0-9;:]*")

# A line whose last colour is not a reset.
_LAST_COLOR = re.compile(r".*\x1b\[(?!0*m)[0-9;:]*m(?!.*\x1b)", re.DOTALL)

RESET = "\x1b[0m"

_JOINER = "\u200d"
_EMOJI_VARIATION = "\ufe0f"


def clean_name(text: str) -> str:
    """One printable line: no escape sequences, white space as spaces, other control characters as U+FFFD.

    URLs lose their passwords: the name of a step that reads a git repository has its URL as it was given.
    """
    text = without_credentials(text)
    if text.isprintable():
        return text
    text = _SEQUENCE.sub("", text).strip()
    return "".join(
        char if char.isprintable() or char == _JOINER else " " if char.isspace() else "\ufffd" for char in text
    )


def clean_line(data: bytes, *, keep_colors: bool = False) -> str:
    """One line of a log, as a terminal would show it after its last ``\\r``, with no escapes but colours."""
    text = data.decode(errors="replace")
    if _UNSAFE.search(text) is None:
        return text
    text = _clean(text.rstrip("\r").rpartition("\r")[2], keep_colors=keep_colors)
    return end_colors(text)


def end_colors(text: str) -> str:
    """Clean text, in which no line leaves its colours to the next one."""
    if "\x1b" not in text:
        return text
    lines = text.split("\n")
    return "\n".join(line + RESET if _LAST_COLOR.match(line) else line for line in lines)


def _clean(text: str, *, keep_colors: bool) -> str:
    if keep_colors:
        return _UNSAFE_BUT_COLOR.sub("", _SEQUENCE.sub(_keep_color, text))
    return _UNSAFE.sub("", _SEQUENCE.sub("", text))


class LogCleaner:
    """Turns the chunks of one log into safe text; keeps colours if asked to, and drops other sequences.

    Chunks may be cut inside of a character or of an escape sequence. ``\\r`` becomes a newline, so that each
    state of a progress bar stands on a line of its own.
    """

    __slots__ = ("_decoder", "_keep_colors", "_pending")

    def __init__(self, *, keep_colors: bool) -> None:
        self._keep_colors = keep_colors
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._pending = ""

    def feed(self, data: bytes) -> str:
        """Text of data and of what earlier chunks left over."""
        text = self._decoder.decode(data)
        if self._pending:
            text = self._pending + text
            self._pending = ""
        if _UNSAFE.search(text) is None:
            return text
        if text[-1] == "\r":  # the first half of \r\n, perhaps
            self._pending = "\r"
            text = text[:-1]
        elif (tail := _UNFINISHED.search(text)) and len(tail[0]) <= _MAX_UNFINISHED:
            self._pending = tail[0]
            text = text[: tail.start()]
        text = text.replace("\r\n", "\n").replace("\r", "\n")
        return _clean(text, keep_colors=self._keep_colors)


def _keep_color(match: re.Match[str]) -> str:
    if match["final"] == "m" and not match["inter"] and _COLOR_PARAMS.fullmatch(match["params"]):
        return match[0]
    return ""


@lru_cache(maxsize=4096)
def _char_width(char: str) -> int:
    if char == _EMOJI_VARIATION:
        return 1  # makes the narrow character before it wide, in most terminals
    if unicodedata.category(char) in {"Mn", "Me", "Cf"}:
        return 0
    # Emoji newer than Python's tables are drawn wide too.
    wide = unicodedata.east_asian_width(char) in {"W", "F"} or 0x1F300 <= ord(char) <= 0x1FAFF
    return 2 if wide else 1


def text_width(text: str) -> int:
    """Columns that clean text takes, or more: sequences that terminals may join count as their parts."""
    if text.isascii():
        return len(text)
    return sum(map(_char_width, text))


def fit(text: str, width: int) -> str:
    """Clean text, cut to at most width columns; a cut shows as ``...`` where there is room for it."""
    # Past this many characters nothing can be shown, unless it is all of zero width.
    text = text[: 8 * max(width, 0) + 8].expandtabs(4)
    if text_width(text) <= width:
        return text
    dots = "..." if width > 6 else ""
    room = width - len(dots)
    used = 0
    for position, char in enumerate(text):
        used += _char_width(char)
        if used > room:
            return text[:position] + dots
    return text


def format_size(size: int) -> str:
    """Bytes in decimal units, such as ``532B`` or ``2.81MB``."""
    if abs(size) < 1000:
        return f"{size}B"
    value = float(size)
    for unit in ("kB", "MB", "GB", "TB", "PB"):
        value /= 1000
        if abs(value) < 1000:
            return f"{value:.2f}{unit}"
    return f"{value / 1000:.2f}EB"


def format_log_time(seconds: float) -> str:
    """Seconds with three decimals below 10, two below 100, else one."""
    if seconds < 10:
        return f"{max(seconds, 0.0):.3f}"
    return f"{seconds:.2f}" if seconds < 100 else f"{seconds:.1f}"
