"""Which display is chosen, and how the environment sets it up."""

from __future__ import annotations

from io import StringIO

import pytest

from buildkit_py.errors import InvalidOption
from buildkit_py.progress import open_renderer
from buildkit_py.progress.plain import PlainRenderer
from buildkit_py.progress.rawjson import RawJSONRenderer
from buildkit_py.progress.render import QuietRenderer, parse_colors
from buildkit_py.progress.tty import Colors, TTYRenderer
from tests.unit.progress.scenarios import two_platforms
from tests.unit.progress.streams import Clock, Terminal, play


@pytest.mark.parametrize(
    ("mode", "terminal", "env", "kind"),
    [
        ("auto", True, {}, TTYRenderer),
        ("auto", False, {}, PlainRenderer),
        ("auto", True, {"TERM": "dumb"}, PlainRenderer),
        ("auto", True, {"TERM": "xterm"}, TTYRenderer),
        ("auto", True, {"BUILDKIT_PROGRESS": "rawjson"}, RawJSONRenderer),
        ("auto", False, {"BUILDKIT_PROGRESS": "auto"}, PlainRenderer),
        ("auto", True, {"BUILDKIT_PROGRESS": ""}, TTYRenderer),
        ("plain", True, {"BUILDKIT_PROGRESS": "rawjson"}, PlainRenderer),
        ("tty", True, {"TERM": "dumb"}, TTYRenderer),
        ("rawjson", False, {}, RawJSONRenderer),
        ("quiet", True, {}, QuietRenderer),
    ],
)
def test_choice(mode: str, terminal: bool, env: dict[str, str], kind: type) -> None:
    stream = Terminal() if terminal else StringIO()
    assert type(open_renderer(mode, stream, env, Clock())) is kind
    assert stream.getvalue() == ""


@pytest.mark.parametrize(
    ("mode", "env", "message"),
    [
        ("fancy", {}, "progress 'fancy': expected one of auto, plain, tty, rawjson, quiet"),
        ("auto", {"BUILDKIT_PROGRESS": "x"}, "BUILDKIT_PROGRESS 'x': expected one of auto, plain"),
        ("tty", {}, "progress 'tty': the output is not a terminal"),
        ("auto", {"BUILDKIT_PROGRESS": "tty"}, "BUILDKIT_PROGRESS 'tty': the output is not a terminal"),
    ],
)
def test_refusals(mode: str, env: dict[str, str], message: str) -> None:
    with pytest.raises(InvalidOption, match=message):
        open_renderer(mode, StringIO(), env, Clock())


def test_quiet_is_quiet() -> None:
    stream = StringIO()
    play(open_renderer("quiet", stream, {}, Clock()), Clock(), two_platforms(), failed=True)
    assert stream.getvalue() == ""


def test_colours(caplog: pytest.LogCaptureFixture) -> None:
    assert parse_colors("") == Colors()
    chosen = parse_colors("run=green:error=255,0,10:cancel=LIGHT-blue:warning=default")
    assert chosen == Colors("\x1b[32m", "\x1b[94m", "\x1b[39m", "\x1b[38;2;255;0;10m")
    assert not caplog.records
    for bad in ("run", "run=", "run=puce", "run=1,2", "run=1,2,256", "run=1,2,²", "walk=red", "run=\x1b[2J"):
        assert parse_colors(bad) == Colors()
    assert len(caplog.records) == 8


@pytest.mark.parametrize("value", ["-1", "x", "1e9", "99999999999", "²"])
def test_numbers_that_cannot_be_read_are_ignored(value: str, caplog: pytest.LogCaptureFixture) -> None:
    open_renderer("tty", Terminal(), {"BUILDKIT_TTY_LOG_LINES": value, "TTY_DISPLAY_RATE": value}, Clock())
    assert [record.args for record in caplog.records] == [
        ("TTY_DISPLAY_RATE", value),
        ("BUILDKIT_TTY_LOG_LINES", value),
    ]
