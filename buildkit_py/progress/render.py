"""Which display a build gets."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Literal, Protocol, TextIO, TypeAlias, assert_never, cast, get_args

from buildkit_py.errors import InvalidOption
from buildkit_py.progress.model import StatusUpdate
from buildkit_py.progress.output import Output

if TYPE_CHECKING:
    from buildkit_py.progress.tty import Colors

logger = logging.getLogger(__name__)

ProgressMode: TypeAlias = Literal["auto", "plain", "tty", "rawjson", "quiet"]

REFRESH_SECONDS = 0.1
"""A display changes at most this often."""
TICK_SECONDS = 0.15
"""How often tick() should be called, so that times go on while the daemon is silent."""


class Renderer(Protocol):
    """A display of one build. Errors of its stream come through as OSError."""

    def update(self, label: str, update: StatusUpdate) -> None:
        """Take one update of the solve that label names ("linux/arm64", or "" for the only one)."""
        ...

    def tick(self) -> None:
        """Show what has become due; to be called every TICK_SECONDS or so."""
        ...

    def finish(self, *, failed: bool) -> None:
        """Show all that is left, once, however the build ends; failed adds the steps that failed."""
        ...


class QuietRenderer:
    """Shows nothing."""

    def update(self, label: str, update: StatusUpdate) -> None:
        """Show nothing."""

    def tick(self) -> None:
        """Show nothing."""

    def finish(self, *, failed: bool) -> None:
        """Show nothing."""


def open_renderer(
    mode: str,
    stream: TextIO,
    env: Mapping[str, str],
    clock: Callable[[], float],
    *,
    terminal_size: Callable[[], tuple[int, int]] | None = None,
) -> Renderer:
    """The display that mode names, on stream, which stays the caller's.

    ``auto`` is what ``BUILDKIT_PROGRESS`` names, else ``tty`` on a terminal and ``plain`` elsewhere. Raises
    InvalidOption for an unknown mode, and for ``tty`` where stream is no terminal. clock gives seconds since
    the epoch; terminal_size gives columns and rows, those of stream if left out. env also has ``NO_COLOR``,
    ``BUILDKIT_COLORS``, ``BUILDKIT_TTY_LOG_LINES``, ``TTY_DISPLAY_RATE`` and ``PROGRESS_NO_TRUNC``.
    """
    output = Output(stream)
    colored = not env.get("NO_COLOR")
    refresh_seconds = _refresh_seconds(env)
    resolved = _resolve(mode, stream, env)
    match resolved:
        # Only the one that is wanted is loaded.
        case "plain":
            from buildkit_py.progress.plain import PlainRenderer

            return PlainRenderer(
                output,
                clock=clock,
                refresh_seconds=refresh_seconds,
                keep_colors=colored,
                truncate_names=env.get("PROGRESS_NO_TRUNC") == "0",
            )
        case "tty":
            from buildkit_py.progress.tty import LOG_WINDOW_LINES, NO_COLORS, TTYRenderer

            return TTYRenderer(
                output,
                clock=clock,
                terminal_size=terminal_size or (lambda: _terminal_size(stream)),
                refresh_seconds=refresh_seconds,
                colors=parse_colors(env.get("BUILDKIT_COLORS", "")) if colored else NO_COLORS,
                log_lines=_number(env, "BUILDKIT_TTY_LOG_LINES", LOG_WINDOW_LINES, most=100),
            )
        case "rawjson":
            from buildkit_py.progress.rawjson import RawJSONRenderer

            return RawJSONRenderer(output)
        case "quiet":
            return QuietRenderer()
        case _:
            assert_never(resolved)


def _resolve(mode: str, stream: TextIO, env: Mapping[str, str]) -> Literal["plain", "tty", "rawjson", "quiet"]:
    asked, source = mode, "progress"
    if mode == "auto" and env.get("BUILDKIT_PROGRESS"):
        asked, source = env["BUILDKIT_PROGRESS"], "BUILDKIT_PROGRESS"
    if asked not in get_args(ProgressMode):
        raise InvalidOption(f"{source} {asked!r}: expected one of {', '.join(get_args(ProgressMode))}")
    known = cast("ProgressMode", asked)
    if known == "auto":
        return "tty" if stream.isatty() and env.get("TERM") != "dumb" else "plain"
    if known == "tty" and not stream.isatty():
        raise InvalidOption(f"{source} 'tty': the output is not a terminal; use auto or plain")
    return known


_NAMED_COLORS = {
    name: f"\x1b[{code}m"
    for base, names in (
        (30, ("black", "red", "green", "yellow", "blue", "magenta", "cyan", "white")),
        (90, ("light-black", "light-red", "light-green", "light-yellow")),
        (94, ("light-blue", "light-magenta", "light-cyan", "light-white")),
    )
    for code, name in enumerate(names, base)
} | {"default": "\x1b[39m"}


def parse_colors(text: str) -> Colors:
    """Colours as BUILDKIT_COLORS has them: ``run=green:error=255,0,0``.

    A part that cannot be read is logged and left out: an old setting must not stop a build.
    """
    from buildkit_py.progress.tty import Colors

    chosen: dict[str, str] = {}
    for part in filter(None, text.split(":")):
        key, _, value = part.partition("=")
        color = _NAMED_COLORS.get(value.lower()) or _rgb(value)
        if key not in {"run", "cancel", "warning", "error"} or color is None:
            logger.warning("BUILDKIT_COLORS: ignoring %r", part)
            continue
        chosen[key] = color
    return Colors(**chosen)


def _rgb(text: str) -> str | None:
    numbers = text.split(",")
    if len(numbers) == 3 and all(number.isascii() and number.isdigit() for number in numbers):
        red, green, blue = (int(number[:4]) for number in numbers)
        if max(red, green, blue) <= 255:
            return f"\x1b[38;2;{red};{green};{blue}m"
    return None


def _refresh_seconds(env: Mapping[str, str]) -> float:
    return _number(env, "TTY_DISPLAY_RATE", int(REFRESH_SECONDS * 1000), most=60_000) / 1000


def _number(env: Mapping[str, str], name: str, default: int, *, most: int) -> int:
    text = env.get(name, "")
    if not text:
        return default
    if text.isascii() and text.isdigit() and int(text[:9]) <= most:
        return int(text[:9])
    logger.warning("%s: ignoring %r", name, text)
    return default


def _terminal_size(stream: TextIO) -> tuple[int, int]:
    try:
        return os.get_terminal_size(stream.fileno())
    except (OSError, ValueError):  # no terminal any more, or no file at all
        return 80, 24
