"""``buildkit-py llb``: look at definitions, without a daemon."""

from __future__ import annotations

import argparse
import json
import sys
from typing import cast

from buildkit_py import llb
from buildkit_py.cli.definitions import read_definitions, select
from buildkit_py.errors import InvalidOption

_FILE = "file with a definition, or with those of several platforms (default: standard input)"


def configure(name: str, parser: argparse.ArgumentParser) -> None:
    """Add the subcommands."""
    commands = parser.add_subparsers(dest="action", metavar="ACTION", required=True)

    def command(action: str, help_line: str, description: str = "") -> argparse.ArgumentParser:
        made = commands.add_parser(action, help=help_line, description=description or help_line, allow_abbrev=False)
        made.add_argument(
            "--platform", action="append", default=[], metavar="LIST", help="of several definitions, take these alone"
        )
        return made

    dump = command("dump", "print the vertexes of a definition")
    dump.add_argument("file", nargs="?", default="-", metavar="FILE", help=_FILE)
    dump.add_argument("--json", action="store_true", help="as JSON, one document for each definition")
    graph = command("graph", "draw a definition")
    graph.add_argument("file", nargs="?", default="-", metavar="FILE", help=_FILE)
    graph.add_argument("--format", default="dot", choices=("dot", "mermaid", "svg"), help="(default: dot)")
    diff = command(
        "diff",
        "say where two definitions part",
        "Say which vertexes differ first, and in what. The exit code is 0 where none does and 1 where some do.",
    )
    diff.add_argument("before", metavar="A", help="file; - is standard input")
    diff.add_argument("after", metavar="B")
    diff.add_argument("--json", action="store_true", help="as JSON")


async def execute(args: argparse.Namespace) -> int:
    """Print what was asked for; the exit code."""
    if args.action == "diff":
        return _diff(args)
    found = _read(args.file, args)
    if args.action == "graph":
        if len(found) > 1:
            known = ", ".join(found)
            raise InvalidOption(f"--platform: one of {known} is needed, as a drawing shows one definition")
        (definition,) = found.values()
        sys.stdout.write(llb.graph(definition, cast("llb.Format", args.format)))
        return 0
    for label, definition in found.items():
        if args.json:
            sys.stdout.write(llb.dump_json(definition))
        else:
            sys.stdout.write(f"== {label}\n{llb.dump(definition)}" if label else llb.dump(definition))
    return 0


def _diff(args: argparse.Namespace) -> int:
    if args.before == args.after == "-":
        raise InvalidOption("A and B: only one of them can be standard input")
    before, after = _read(args.before, args), _read(args.after, args)
    if before.keys() != after.keys() and len(before) == len(after) == 1:
        # One that does not say what it is for, beside one that does; or two platforms, held against each other.
        label = "" if "" in {*before, *after} else f"{next(iter(before))} and {next(iter(after))}"
        before, after = {label: next(iter(before.values()))}, {label: next(iter(after.values()))}
    results = {label: llb.compare(before[label], after[label]) for label in before if label in after}
    alone = {label: args.before for label in before if label not in after}
    alone |= {label: args.after for label in after if label not in before}
    is_equal = not alone and all(result.is_equal for result in results.values())
    if args.json:
        json.dump(
            {
                "equal": is_equal,
                "only": alone,
                "definitions": {label: _comparison(result) for label, result in results.items()},
            },
            sys.stdout,
            indent=2,
            ensure_ascii=False,
        )
        sys.stdout.write("\n")
    else:
        for label, result in results.items():
            sys.stdout.write(f"== {label}\n{result}" if label else str(result))
        for label, name in alone.items():
            sys.stdout.write(f"== {label}\nonly in {name}\n")
    return 0 if is_equal else 1


def _comparison(result: llb.Comparison) -> dict[str, object]:
    return {
        "changes": [
            {
                "before": change.before or None,
                "after": change.after or None,
                "name": change.name,
                "fields": [
                    {"path": field.path, "before": _value(field.before), "after": _value(field.after)}
                    for field in change.fields
                ],
            }
            for change in result.changes
        ],
        "downstream": result.downstream,
        "shared": result.shared,
    }


def _value(text: str | None) -> object:
    value: object = None if text is None else json.loads(text)
    return value


def _read(path: str, args: argparse.Namespace) -> dict[str, llb.Definition]:
    """Definitions by platform; one alone by ""."""
    found = read_definitions(path)
    if isinstance(found, llb.Definition):
        if args.platform:
            raise InvalidOption(f"--platform: {path} holds one definition, which is for what it is for")
        return {"": found}
    return {str(item.platform): item.definition for item in select(found, args.platform)}
