"""Parsers that say what is wrong in one line, and those of subcommands."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import NoReturn


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, as everything else here does; the whole usage is what --help is for."""

    def error(self, message: str) -> NoReturn:
        # argparse's words for a value that a switch does not take; it ignores nothing.
        message = message.replace("ignored explicit argument ", "expected true or false, not ")
        self.exit(2, f"error: {message}; {self.prog} --help shows what it takes\n")


class Subcommands:
    """The subcommands of a parser, one of which must be named."""

    def __init__(self, parser: argparse.ArgumentParser, *, dest: str, metavar: str) -> None:
        self._action = parser.add_subparsers(dest=dest, metavar=metavar, required=True, parser_class=Parser)

    def add(
        self,
        name: str,
        help_line: str,
        configure: Callable[[argparse.ArgumentParser], object] | None,
        *,
        parents: Sequence[Parser] = (),
    ) -> None:
        """One more; configure gives its parser the arguments."""
        made = self._action.add_parser(
            name, help=help_line, description=help_line, allow_abbrev=False, parents=list(parents)
        )
        if configure is not None:
            configure(made)


__all__ = ["Parser", "Subcommands"]
