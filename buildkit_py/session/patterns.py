"""The pattern language of include lists, exclude lists and .dockerignore files.

A list is matched last match wins: a pattern that starts with ``!`` takes back what earlier ones matched.
A pattern that matches a directory matches all that is below it.

Source: moby/patternmatcher, patternmatcher.go; tests/data/golden/patterns.json pins its corner cases.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeAlias

from buildkit_py.errors import BuildKitError

_SPECIAL = frozenset("*[]?^\\")
"""Characters that keep a pattern from being used as a plain path prefix."""

_REGEX_LITERALS = frozenset(".+()|{}$")

_POSIX_CLASSES = {
    "alnum": "0-9A-Za-z",
    "alpha": "A-Za-z",
    "ascii": r"\x00-\x7f",
    "blank": r"\t ",
    "cntrl": r"\x00-\x1f\x7f",
    "digit": "0-9",
    "graph": "!-~",
    "lower": "a-z",
    "print": " -~",
    "punct": r"!-/:-@\[-`{-~",
    "space": r"\t\n\v\f\r ",
    "upper": "A-Z",
    "word": "0-9A-Za-z_",
    "xdigit": "0-9A-Fa-f",
}

Test: TypeAlias = Callable[[str], bool]


class BadPattern(BuildKitError, ValueError):
    """A pattern that cannot be used."""


@dataclass(frozen=True, slots=True)
class Matched:
    """What a directory hands down to its entries: whether it matched, and by which patterns."""

    matched: bool
    flags: tuple[bool, ...]


class PatternMatcher:
    """An ordered list of patterns. Paths are relative, separated by slashes, and not cleaned."""

    __slots__ = ("_exact", "_fast", "_inherited", "_others", "_tests", "exceptions", "patterns")

    def __init__(self, patterns: Sequence[str]) -> None:
        """Raises BadPattern for a syntax error. Some errors show only when a path is tried, as in Go."""
        cleaned = [clean(text) for text in (pattern.strip() for pattern in patterns) if text]
        if "!" in cleaned:
            raise BadPattern('illegal exclusion pattern: "!"')
        self.exceptions = tuple(text.startswith("!") for text in cleaned)
        """For each pattern, whether it takes back."""
        self.patterns = tuple(text.removeprefix("!") for text in cleaned)
        for text in self.patterns:
            check_syntax(text)
        self._tests: list[Test | None] = [None] * len(self.patterns)
        self._inherited: dict[tuple[bool, ...], Matched] = {}
        self._fast, self._exact, self._others = self._combine()

    def __len__(self) -> int:
        return len(self.patterns)

    @property
    def has_exceptions(self) -> bool:
        return any(self.exceptions)

    def matches(self, path: str) -> bool:
        """Whether the list matches path or, through one of its patterns, an ancestor of path."""
        tried = [path, *_ancestors(path)]
        matched = False
        for index, exception in enumerate(self.exceptions):
            if exception == matched and any(map(self._test(index), tried)):
                matched = not exception
        return matched

    def match_below(self, path: str, parent: Matched | None) -> Matched:
        """The form for walks: parent is what this returned for the directory of path.

        Without parent, ancestors are tried too. It differs from matches() where an exception
        takes back a directory whose entries an earlier pattern matches.
        """
        if parent is None:
            return self._evaluate(path, None, _ancestors(path))
        inherited = self._inherited.get(parent.flags)
        if inherited is None:
            inherited = self._inherited[parent.flags] = self._inherit(parent.flags)
        # Most paths match no pattern by themselves; one combined test sees that.
        if (
            self._fast
            and "\n" not in path
            and path not in self._exact
            and (self._others is None or not self._others(path))
        ):
            return inherited
        return self._evaluate(path, parent.flags, ())

    def _inherit(self, flags: tuple[bool, ...]) -> Matched:
        """The result for a path that no pattern matches by itself."""
        matched = False
        for exception, flag in zip(self.exceptions, flags, strict=True):
            if flag:
                matched = not exception
        return Matched(matched, flags)

    def _evaluate(self, path: str, parent: tuple[bool, ...] | None, above: Sequence[str]) -> Matched:
        matched = False
        flags: list[bool] = []
        for index, exception in enumerate(self.exceptions):
            hit = parent is not None and parent[index]
            if not hit and exception == matched:
                test = self._test(index)
                hit = test(path)
                if not hit and parent is None:
                    hit = any(map(test, above))
            flags.append(hit)
            if hit:
                matched = not exception
        return Matched(matched, tuple(flags))

    def _test(self, index: int) -> Test:
        test = self._tests[index]
        if test is None:
            test = self._tests[index] = compile_pattern(self.patterns[index])
        return test

    def _combine(self) -> tuple[bool, frozenset[str], Test | None]:
        """One test that says whether any pattern matches; not usable when a pattern is bad."""
        exact: set[str] = set()
        pieces: list[str] = []
        try:
            for text in self.patterns:
                kind, value = _classify(text)
                match kind:
                    case "exact":
                        exact.add(value)
                    case "prefix":
                        pieces.append(re.escape(value))
                    case "suffix":
                        rest = re.escape(value.removeprefix("/"))
                        optional = r"(?:(?s:.*)/)?" if value.startswith("/") else r"(?s:.*)"
                        pieces.append(rf"{optional}{rest}\Z")
                    case _:
                        pieces.append(_bounded(value) + r"\Z")
            if not pieces:
                return True, frozenset(exact), None
            combined = re.compile("|".join(f"(?:{piece})" for piece in pieces), re.ASCII).match
        except (BadPattern, re.error, OverflowError, RecursionError):
            return False, frozenset(), None
        return True, frozenset(exact), lambda path: combined(path) is not None


def _ancestors(path: str) -> list[str]:
    """Outermost first. Only the directory part is cleaned."""
    directory = clean(posixpath.dirname(path))
    if directory == ".":
        return []
    names = directory.split("/")
    return ["/".join(names[:end]) for end in range(1, len(names) + 1)]


def literal_prefixes(patterns: Sequence[str]) -> list[str] | None:
    """The patterns as plain paths that end in a slash, or None when one of them is not plain.

    A directory D can hold a match of a plain pattern only if one of the paths starts with ``D/``.
    """
    paths: list[str] = []
    for pattern in patterns:
        text = pattern.removesuffix("/**").removesuffix("/*")
        if not _SPECIAL.isdisjoint(text):
            return None
        paths.append(text + "/")
    return paths


def clean(path: str) -> str:
    """Shortest lexical equal of a slash path; ``.`` for an empty one."""
    text = posixpath.normpath(path)
    # POSIX lets two leading slashes be special; here they are one.
    return text[1:] if text.startswith("//") else text


def match_name(pattern: str, name: str) -> bool:
    """Whether the whole of name matches a shell pattern. Source: Go, path/filepath.Match."""
    return _name_regex(pattern).fullmatch(name) is not None


def check_syntax(pattern: str) -> None:
    """Raise BadPattern unless pattern is well-formed for match_name."""
    _name_regex(pattern)


def has_wildcard(text: str) -> bool:
    """Whether a ``*``, ``?`` or ``[`` stands in text without a backslash before it."""
    return re.search(r"[*?\[]", re.sub(r"\\.", "", text, flags=re.DOTALL)) is not None


@lru_cache(maxsize=4096)
def _name_regex(pattern: str) -> re.Pattern[str]:
    out: list[str] = []
    at, end = 0, len(pattern)

    def member() -> str:
        nonlocal at
        if at < end and pattern[at] == "\\":
            at += 1
        elif at < end and pattern[at] in "-]":
            raise BadPattern("syntax error in pattern")
        # A member is never the last character: the closing bracket has to follow.
        if at + 1 >= end:
            raise BadPattern("syntax error in pattern")
        at += 1
        return pattern[at - 1]

    while at < end:
        char = pattern[at]
        at += 1
        if char == "*":
            out.append(_STAR)
        elif char == "?":
            out.append("[^/]")
        elif char == "\\":
            if at == end:
                raise BadPattern("syntax error in pattern")
            out.append(re.escape(pattern[at]))
            at += 1
        elif char == "[":
            negated = at < end and pattern[at] == "^"
            at += negated
            ranges: list[str] = []
            first = True
            while first or at >= end or pattern[at] != "]":
                first = False
                low = high = member()
                if pattern[at] == "-":
                    at += 1
                    high = member()
                if low <= high:
                    ranges.append(f"{re.escape(low)}-{re.escape(high)}")
            at += 1
            # A class of reversed ranges only matches nothing, or anything when negated.
            if ranges:
                out.append(f"[{'^' * negated}{''.join(ranges)}]")
            else:
                out.append(r"(?s:.)" if negated else r"(?!)")
        else:
            out.append(re.escape(char))
    return re.compile(_without_detours(out))


@lru_cache(maxsize=4096)
def compile_pattern(pattern: str) -> Test:
    """The test for one cleaned pattern. Raises BadPattern."""
    kind, value = _classify(pattern)
    match kind:
        case "exact":
            return lambda path: path == value
        case "prefix":
            return lambda path: path.startswith(value)
        case "suffix":
            rest = value[1:] if value.startswith("/") else None
            return lambda path: path.endswith(value) or path == rest
        case _:
            return _regex_test(value)


def _regex_test(expression: str) -> Test:
    """The test for one of _classify's expressions."""
    try:
        bounded = re.compile(_bounded(expression) + r"\Z", re.ASCII).match
        plain = re.compile(_to_python(expression) + r"\Z", re.ASCII).match
    except (re.error, OverflowError, RecursionError) as error:
        raise BadPattern("syntax error in pattern") from error

    def test(path: str) -> bool:
        if "\n" not in path:
            return bounded(path) is not None
        if expression.count("*") > _MAX_DETOURS:
            raise BadPattern("too many wildcards for a name with a line break in it")
        return plain(path) is not None

    return test


def _classify(pattern: str) -> tuple[str, str]:
    """(kind, text to compare, or expression in Go's regexp language)."""
    kind = "exact"
    out: list[str] = ["^"]
    at, end = 0, len(pattern)
    while at < end:
        start, char = at, pattern[at]
        at += 1
        if char == "*" and pattern.startswith("*", at):
            at += 1
            if pattern.startswith("/", at):
                at += 1
            if at < end:
                out.append("(.*/)?")
                kind = "regexp"
            elif kind == "exact":
                kind = "prefix"
            else:
                out.append(".*")
                kind = "regexp"
            if start == 0:
                # Stays so only if nothing special follows.
                kind = "suffix"
        elif char == "*":
            out.append("[^/]*")
            kind = "regexp"
        elif char == "?":
            out.append("[^/]")
            kind = "regexp"
        elif char == "\\":
            # The escape is handed on as it is: \d is a digit, not the letter.
            out.append("\\" + pattern[at : at + 1])
            at += 1
            kind = "regexp"
        elif char in "[]":
            out.append(char)
            kind = "regexp"
        elif char in _REGEX_LITERALS:
            out.append("\\" + char)
        else:
            out.append(char)
    match kind:
        case "prefix":
            return kind, pattern[:-2]
        case "suffix":
            return kind, pattern[2:]
        case "regexp":
            return kind, "".join(out)
        case _:
            return kind, pattern


# Go's regular expressions take time that grows with the text, Python's try every way to share it out among wildcards:
# five ``**`` took 40 s for one path of 60 directories. Most patterns can do without, as of two ways to match a part of
# the pattern the shorter one is always as good; an atomic group keeps to the first that is found.

_STAR, _DIRECTORIES = "[^/]*", "(?:.*/)?"
_MAX_DETOURS = 3
"""Wildcards of a pattern that has to try every way."""
_ONE = re.compile(r"\\.|\[(?:\\.|[^\\\]])*\]|[^\\\[*?^().]", re.DOTALL)
"""What stands for one character, in Python's dialect."""
_ZERO_WIDTH = frozenset({r"\b", r"\B", r"\A", r"\Z"})


def _bounded(expression: str) -> str:
    """_to_python() without needless ways to match. Not for paths with line breaks, at which ``.`` stops.

    Raises BadPattern where many would remain.
    """
    plain = _to_python(expression)
    sections = _sections(plain)
    if sections is None:
        if plain.count("*") > _MAX_DETOURS:
            raise BadPattern("too many wildcards beside what may stand for a slash")
        return plain
    *before, last = sections
    first = True
    out: list[str] = []
    for section in before:
        if section or first:
            step = "" if first else "(?:.*?/)??"
            out.append(f"(?>{step}{_without_detours(section, last=False)})")
        first = False
    if before:
        out.append(_DIRECTORIES)
    return "".join([*out, _without_detours(last)])


def _sections(plain: str) -> list[list[str]] | None:
    """What stands between the ``**/`` of a pattern: stars, and characters one by one; None where it is not so simple.

    No character but a slash may be one, and what comes before a ``**/`` ends with a slash or is nothing: how much of a
    path it takes then depends on nothing but its number of slashes.
    """
    sections: list[list[str]] = [[]]
    at = 1  # behind the "^"
    while at < len(plain):
        if plain.startswith(_DIRECTORIES, at):
            if sections[-1] and sections[-1][-1] != "/":
                return None
            sections.append([])
            at += len(_DIRECTORIES)
        elif plain.startswith(_STAR, at):
            sections[-1].append(_STAR)
            at += len(_STAR)
        elif plain[at:] == ".*":
            sections[-1].append(".*")
            at += 2
        else:
            one = _ONE.match(plain, at)
            if one is None or one[0] in _ZERO_WIDTH or plain[one.end() : one.end() + 1] in {"*", "?"}:
                return None
            if one[0] != "/" and re.match(one[0], "/", re.ASCII):
                return None
            sections[-1].append(one[0])
            at = one.end()
    return sections


def _without_detours(items: Sequence[str], *, last: bool = True) -> str:
    """Stars and characters; each star takes as little as it can, but for the last one where the end has to fit."""
    parts: list[list[str]] = [[]]
    for item in items:
        if item == _STAR:
            parts.append([])
        else:
            parts[-1].append(item)
    head, *rest = ("".join(part) for part in parts)
    loose = rest.pop() if rest and last else None
    middle = "".join(f"(?>[^/]*?{part})" for part in rest)
    return head + middle + ("" if loose is None else _STAR + loose)


_SAME_ESCAPES = frozenset("dDwWsSbBAaftnrvx01234567")


def _to_python(expression: str) -> str:
    """Say one of _classify's expressions in Python's dialect: escapes and classes differ."""
    out: list[str] = []
    at, end = 0, len(expression)
    while at < end:
        char = expression[at]
        if char == "\\":
            out.append(_escape(expression[at + 1 : at + 2]))
            at += 2
        elif char == "[":
            piece, at = _class(expression, at + 1)
            out.append(piece)
        elif char == "(":
            out.append("(?:")
            at += 1
        elif char in "^*.?)":
            out.append(char)
            at += 1
        else:
            out.append(re.escape(char))
            at += 1
    return "".join(out)


def _escape(char: str) -> str:
    if char in _SAME_ESCAPES and char:
        return "\\" + char
    if char == "z":
        return r"\Z"
    if char and char.isascii() and not char.isalnum() and char != "_":
        return re.escape(char)
    raise BadPattern("syntax error in pattern")


def _class(expression: str, at: int) -> tuple[str, int]:
    """The class whose inside begins at that place, and where it ends."""
    out = ["["]
    if expression.startswith("^", at):
        out.append("^")
        at += 1
    first = True
    while first or not expression.startswith("]", at):
        if at >= len(expression):
            raise BadPattern("syntax error in pattern")
        first = False
        if expression.startswith("[:", at) and (stop := expression.find(":]", at + 2)) >= 0:
            name = expression[at + 2 : stop]
            members = _POSIX_CLASSES.get(name)
            if members is None:
                raise BadPattern("syntax error in pattern")
            out.append(members)
            at = stop + 2
            continue
        piece, at = _member(expression, at)
        out.append(piece)
        if expression.startswith("-", at) and not expression.startswith("-]", at):
            high, at = _member(expression, at + 1)
            out.append(f"-{high}")
    return "".join(out) + "]", at + 1


def _member(expression: str, at: int) -> tuple[str, int]:
    if expression.startswith("\\", at):
        return _escape(expression[at + 1 : at + 2]), at + 2
    if at >= len(expression):
        raise BadPattern("syntax error in pattern")
    return re.escape(expression[at]), at + 1
