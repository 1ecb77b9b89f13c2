"""Splitting a command line into words without a shell."""

from __future__ import annotations

from collections.abc import Iterator

from buildkit_py.errors import InvalidOption

_SPACES = " \t\r\n"


def split_words(command: str) -> tuple[str, ...]:
    """Words of a command line; raise InvalidOption where a quote is left open.

    Quotes, backslashes and comments count, nothing is expanded. The rules are those the Go client splits by,
    and differ from the shlex module's: "#" starts a comment only where a word could start, and inside double
    quotes a backslash makes any next character plain. Source: google/shlex.
    """
    words: list[str] = []
    word: list[str] = []
    in_word = False  # a word may be empty, as "" is
    quote = ""
    characters = iter(command)
    for character in characters:
        if quote:
            if character == quote:
                quote = ""
            else:
                escapes = character == "\\" and quote == '"'
                word.append(_escaped(characters, command) if escapes else character)
        elif character in _SPACES:
            if in_word:
                words.append("".join(word))
                word, in_word = [], False
        elif character == "#" and not in_word:
            for skipped in characters:
                if skipped == "\n":
                    break
        else:
            in_word = True
            if character in "\"'":
                quote = character
            else:
                word.append(_escaped(characters, command) if character == "\\" else character)
    if quote:
        raise InvalidOption(f"command={command[:120]!r}: the quote {quote} is not closed")
    if in_word:
        words.append("".join(word))
    return tuple(words)


def _escaped(characters: Iterator[str], command: str) -> str:
    for character in characters:
        return character
    raise InvalidOption(f"command={command[:120]!r}: nothing follows the last backslash")
