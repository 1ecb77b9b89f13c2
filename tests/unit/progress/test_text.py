"""Text made safe, measured and cut."""

from __future__ import annotations

import itertools
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from buildkit_py.progress.text import (
    LogCleaner,
    clean_line,
    clean_name,
    end_colors,
    fit,
    format_log_time,
    format_size,
    text_width,
)

# Bytes that hold much of what the cleaner has to deal with.
NASTY = st.lists(
    st.sampled_from([b"\x1b", b"[", b"]", b"3", b";", b"m", b"J", b"\x07", b"\\", b"\r", b"\n", b"a", b"\xc3", b"\xa9"])
    | st.binary(max_size=3),
    max_size=30,
).map(b"".join)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("[2/3] RUN x", "[2/3] RUN x"),
        ("a\nb\tc", "a b c"),
        ("\x1b[31mred\x1b[0m \x1b]0;title\x07x", "red x"),
        ("\x1b]8;;http://x\x1b\\link", "link"),
        ("bell\x07 back\x08 c1\x9b", "bell\ufffd back\ufffd c1\ufffd"),
        ("\u202etxt.exe", "\ufffdtxt.exe"),
        ("👩\u200d💻 é", "👩\u200d💻 é"),
    ],
)
def test_names(text: str, shown: str) -> None:
    assert clean_name(text) == shown


@pytest.mark.parametrize(
    ("data", "kept", "dropped"),
    [
        (b"plain\n", "plain\n", "plain\n"),
        (b"\x1b[1;31mred\x1b[0m\n", "\x1b[1;31mred\x1b[0m\n", "red\n"),
        (b"\x1b[2J\x1b[H\x1b[5Aup\x1b[?25l\x1b[>4;2m", "up", "up"),
        (b"\x1b]0;title\x07a\x1b]52;c;eA==\x1b\\b\x1bPdcs\x1b\\c\x1bcd", "abcd", "abcd"),
        (b"10%\r20%\r\nend\n", "10%\n20%\nend\n", "10%\n20%\nend\n"),
        (b"\x00\x08\x7f\xc2\x9b31m\xe2\x80\xaetab\tx", "31mtab\tx", "31mtab\tx"),
        (b"\x1b]never ended\nnext", "never ended\nnext", "never ended\nnext"),
        (b"\x1b\x1b[1K[31mx\n", "[31mx\n", "[31mx\n"),
        (b"\xff\xc3\xa9", "\ufffdé", "\ufffdé"),
    ],
)
def test_logs(data: bytes, kept: str, dropped: str) -> None:
    """Colours may stay; what moves the cursor, talks to the terminal or hides does not."""
    assert LogCleaner(keep_colors=True).feed(data) == kept
    assert LogCleaner(keep_colors=False).feed(data) == dropped


@given(NASTY, st.lists(st.integers(0, 60)), st.booleans())
def test_chunks_make_no_difference(data: bytes, cuts: list[int], keep_colors: bool) -> None:
    whole = LogCleaner(keep_colors=keep_colors).feed(data)
    cleaner = LogCleaner(keep_colors=keep_colors)
    edges = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    parts = [cleaner.feed(data[start:end]) for start, end in itertools.pairwise(edges)]
    assert "".join(parts) == whole


@given(NASTY, st.booleans())
def test_nothing_unsafe_comes_through(data: bytes, keep_colors: bool) -> None:
    for text in (LogCleaner(keep_colors=keep_colors).feed(data), clean_line(data, keep_colors=keep_colors)):
        rest = re.sub(r"\x1b\[[0-9;:]*m", "", text) if keep_colors else text
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]", rest)


def test_an_escape_sequence_is_not_waited_for_without_end() -> None:
    cleaner = LogCleaner(keep_colors=True)
    assert cleaner.feed(b"\x1b]" + b"x" * 10_000) == "x" * 10_000


@pytest.mark.parametrize(
    ("data", "shown"),
    [
        (b"10%\r20%\r", "20%"),
        (b"a\x1b[31mb", "ab"),
        (b"\xf0\x9f\x98", "\ufffd"),
        (b"plain", "plain"),
    ],
)
def test_a_line_of_a_log_window(data: bytes, shown: str) -> None:
    assert clean_line(data) == shown


def test_colours_end_with_their_line() -> None:
    assert end_colors("\x1b[31ma\nb\n") == "\x1b[31ma\x1b[0m\nb\n"
    assert end_colors("\x1b[31ma\x1b[0m\n\x1b[1mb\x1b[m") == "\x1b[31ma\x1b[0m\n\x1b[1mb\x1b[m"
    assert end_colors("\x1b[0m\x1b[31ma") == "\x1b[0m\x1b[31ma\x1b[0m"


@pytest.mark.parametrize(
    ("text", "width"),
    [("abc", 3), ("日本", 4), ("e\u0301", 1), ("👍", 2), ("a\u200bb", 2), ("❤\ufe0f", 2), ("", 0)],
)
def test_width(text: str, width: int) -> None:
    assert text_width(text) == width


@given(st.text().map(clean_name), st.integers(0, 40))
def test_cut_text_fits(text: str, width: int) -> None:
    cut = fit(text, width)
    assert text_width(cut) <= width
    if text_width(text) <= width and "\t" not in text:
        assert cut == text


def test_a_cut_shows() -> None:
    assert fit("0123456789", 9) == "012345..."
    assert fit("0123456789", 6) == "012345"
    assert fit("日本日本日本", 9) == "日本日..."
    assert fit("日本日本日本", 8) == "日本..."
    assert fit("e" + "\u0301" * 10_000, 10).startswith("e\u0301")


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0B"),
        (532, "532B"),
        (999, "999B"),
        (1000, "1.00kB"),
        (2_811_478, "2.81MB"),
        (5 * 10**9, "5.00GB"),
        (10**18, "1.00EB"),
        (-5, "-5B"),
    ],
)
def test_sizes(size: int, text: str) -> None:
    assert format_size(size) == text


def test_times_of_log_lines() -> None:
    shown = [format_log_time(seconds) for seconds in (-1, 0, 0.0591, 9.999, 10, 99.994, 100, 12_345.67)]
    assert shown == ["0.000", "0.000", "0.059", "9.999", "10.00", "99.99", "100.0", "12345.7"]
