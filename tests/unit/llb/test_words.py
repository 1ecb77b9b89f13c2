"""Command lines and paths, by the rules of the other implementation."""

from __future__ import annotations

import pytest

from buildkit_py.llb.paths import absolute, absolute_target, change_dir, clean, join
from buildkit_py.llb.sources import _parse_git_url  # pyright: ignore[reportPrivateUsage]
from buildkit_py.llb.words import split_words


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("", []),
        ("a  b\tc\nd", ["a", "b", "c", "d"]),
        ("a 'b c' \"d e\"", ["a", "b c", "d e"]),
        ("a'b'\"c\"d", ["abcd"]),
        ("'' \"\" a", ["", "", "a"]),
        (r"a\ b \'c", ["a b", "'c"]),
        (r'"a\"b" "\n" "\$x"', ['a"b', "n", "$x"]),
        (r"'a\b'", [r"a\b"]),
        ("a # b\nc", ["a", "c"]),
        ("a#b c#", ["a#b", "c#"]),
        ("#only", []),
        ("'#' \\#", ["#", "#"]),
        ("é 日本", ["é", "日本"]),
    ],
)
def test_words(command: str, words: list[str]) -> None:
    assert list(split_words(command)) == words


@pytest.mark.parametrize(
    ("path", "cleaned"),
    [("", "."), ("//a", "/a"), ("///a//b/", "/a/b"), ("a/../..", ".."), ("/..", "/"), ("./a/.", "a"), ("/", "/")],
)
def test_clean(path: str, cleaned: str) -> None:
    assert clean(path) == cleaned


@pytest.mark.parametrize(
    ("base", "path", "plain", "target"),
    [
        ("/w", "d", "/w/d", "/w/d"),
        ("/w", "d/", "/w/d", "/w/d/"),
        ("/w", "d/.", "/w/d", "/w/d/."),
        ("/w", ".", "/w", "/w"),
        ("/w", "./", "/w", "/w/"),
        ("/w", "/", "/", "/"),
        ("/w", "/.", "/", "/."),
        ("/w", "../..", "/", "/"),
        ("w", "x", "/w/x", "/w/x"),
    ],
)
def test_absolute(base: str, path: str, plain: str, target: str) -> None:
    assert absolute(base, path) == plain
    assert absolute_target(base, path) == target


def test_a_directory_is_cleaned_only_when_it_is_relative() -> None:
    assert change_dir("/a", "/b/../c/") == "/b/../c/"
    assert change_dir("/a/../b", "") == "/b"
    assert change_dir("", "x") == "/x"
    assert join("", "a", "", "b") == "a/b"


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://h/p.git?x=1#main:dir", (False, "h", "/p.git", "https://h/p.git")),
        ("HTTPS://U:P@H:1/p", (False, "H:1", "/p", "https://U:P@H:1/p")),
        ("host/p", (False, "host", "/p", "https://host/p")),
        ("git://h/a%20b", (False, "h", "/a b", "git://h/a%20b")),
        ("https://h/é", (False, "h", "/é", "https://h/%C3%A9")),
        ("ssh://git@h/p", (True, "h", "/p", "ssh://git@h/p")),
        ("git@h:p/q.git#x", (True, "h", "p/q.git", "git@h:p/q.git")),
    ],
)
def test_git_urls(url: str, expected: tuple[bool, str, str, str]) -> None:
    assert _parse_git_url(url) == expected
