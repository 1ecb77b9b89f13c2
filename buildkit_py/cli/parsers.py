"""Parsers that say what is wrong in one line, and those of subcommands, made when they are called."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, cast


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, as everything else here does; the whole usage is what --help is for."""

    def error(self, message: str) -> NoReturn:
        # argparse's words for a value that a switch does not take; it ignores nothing.
        message = message.replace("ignored explicit argument ", "expected true or false, not ")
        self.exit(2, f"error: {message}; {self.prog} --help shows what it takes\n")


class _Later:
    """Stands in for the parser of a subcommand. One that is not called is not made: there are sixteen, and each takes
    a third of a millisecond."""

    def __init__(self, *, configure: Callable[[argparse.ArgumentParser], object] | None, **options: Any) -> None:
        self._configure = configure
        self._options = options

    def parse_known_args(self, words: Sequence[str], namespace: None) -> tuple[argparse.Namespace, list[str]]:
        """As that of the parser; all that argparse calls."""
        parser = Parser(**self._options)
        if self._configure is not None:
            self._configure(parser)
        return parser.parse_known_args(words, namespace)


class Subcommands:
    """The subcommands of a parser, one of which must be named."""

    def __init__(self, parser: argparse.ArgumentParser, *, dest: str, metavar: str) -> None:
        self._action = cast(
            "Any", parser.add_subparsers(dest=dest, metavar=metavar, required=True, parser_class=cast("Any", _Later))
        )

    def add(
        self,
        name: str,
        help_line: str,
        configure: Callable[[argparse.ArgumentParser], object] | None,
        *,
        parents: Sequence[argparse.ArgumentParser] = (),
    ) -> None:
        """One more; configure gives its parser the arguments."""
        self._action.add_parser(
            name, help=help_line, description=help_line, allow_abbrev=False, parents=parents, configure=configure
        )


__all__ = ["Parser", "Subcommands"]
