"""``buildkit-py info``, ``workers``, ``du`` and ``prune``: the daemon's own state."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Coroutine, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from datetime import datetime
from functools import partial

from buildkit_py.cli.connection import open_client
from buildkit_py.client import Client
from buildkit_py.errors import InvalidOption
from buildkit_py.progress.text import clean_name
from buildkit_py.records import UsageRecord

_UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h)")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}


def configure(name: str, parser: argparse.ArgumentParser) -> None:
    """Add the arguments of one of the commands."""
    parser.add_argument("--format", choices=("text", "json"), default="text", help="how to print it")
    if name != "info":
        parser.add_argument(
            "--filter", action="append", default=[], metavar="FILTER", help="containerd filter; may be repeated"
        )
    if name == "prune":
        parser.add_argument("--all", action="store_true", help="also internal, frontend and shared records")
        parser.add_argument("--keep-duration", metavar="TIME", help="keep what was used within it, as 48h")
        parser.add_argument("--reserved-space", metavar="SIZE", help="keep this much, as 10gb")
        parser.add_argument("--max-used-space", metavar="SIZE", help="keep at most this much")
        parser.add_argument("--min-free-space", metavar="SIZE", help="leave this much of the disk free")


async def execute(args: argparse.Namespace) -> int:
    """Print records, one a line, or one JSON document."""
    commands: dict[str, Callable[[Client, argparse.Namespace], Coroutine[object, object, None]]] = {
        "info": _info,
        "workers": _workers,
        "du": _du,
    }
    if args.command == "prune":
        # Here, so that bad input is told of without a daemon.
        commands["prune"] = partial(_prune, limits=_Limits.of(args))
    async with open_client(args) as client:
        await commands[args.command](client, args)
    return 0


async def _info(client: Client, args: argparse.Namespace) -> None:
    info = await client.info()
    fields = {
        "address": client.address,
        "package": info.package if info else "",
        "version": info.version if info else "older than v0.11",
        "revision": info.revision if info else "",
    }
    _print(args, fields, [f"{key + ':':<10}{value}" for key, value in fields.items()])


async def _workers(client: Client, args: argparse.Namespace) -> None:
    workers = await client.workers(args.filter)
    document = [
        {
            "id": worker.id,
            "platforms": [str(platform) for platform in worker.platforms],
            "labels": dict(worker.labels),
            "version": worker.version.version if worker.version else None,
        }
        for worker in workers
    ]
    lines = _table(
        ("ID", "PLATFORMS"),
        [(worker.id, ",".join(str(platform) for platform in worker.platforms)) for worker in workers],
    )
    _print(args, document, lines)


async def _du(client: Client, args: argparse.Namespace) -> None:
    records = await client.disk_usage(args.filter)
    _print(args, [_record(record) for record in records], [*_records_table(records), *_totals(records)])


@dataclass(frozen=True, slots=True, kw_only=True)
class _Limits:
    """What a pruning leaves, in seconds and bytes."""

    keep_seconds: float
    reserved_space: int
    max_used_space: int
    min_free_space: int

    @classmethod
    def of(cls, args: argparse.Namespace) -> _Limits:
        return cls(
            keep_seconds=_duration(args.keep_duration),
            reserved_space=_size("--reserved-space", args.reserved_space),
            max_used_space=_size("--max-used-space", args.max_used_space),
            min_free_space=_size("--min-free-space", args.min_free_space),
        )


async def _prune(client: Client, args: argparse.Namespace, *, limits: _Limits) -> None:
    pruned = client.prune(
        args.filter,
        all=args.all,
        keep_seconds=limits.keep_seconds,
        reserved_space=limits.reserved_space,
        max_used_space=limits.max_used_space,
        min_free_space=limits.min_free_space,
    )
    async with aclosing(pruned):
        records = [record async for record in pruned]
    lines = [*_records_table(records), f"Total: {_human(sum(record.size for record in records))}"]
    _print(args, [_record(record) for record in records], lines)


def _print(args: argparse.Namespace, document: object, lines: Sequence[str]) -> None:
    if args.format == "json":
        print(json.dumps(document, indent=2))
    else:
        print("\n".join(lines))


def _record(record: UsageRecord) -> dict[str, object]:
    return {
        "id": record.id,
        "type": record.record_type,
        "size": record.size,
        "description": record.description,
        "mutable": record.mutable,
        "in_use": record.in_use,
        "shared": record.shared,
        "parents": list(record.parents),
        "usage_count": record.usage_count,
        "created_at": _iso(record.created_at),
        "last_used_at": _iso(record.last_used_at),
    }


def _records_table(records: Sequence[UsageRecord]) -> list[str]:
    rows = [
        (
            record.id + ("*" if record.mutable else ""),
            "false" if record.in_use else "true",
            _human(record.size),
            _iso(record.last_used_at) or "-",
            record.description.splitlines()[0] if record.description else "",
        )
        for record in records
    ]
    return _table(("ID", "RECLAIMABLE", "SIZE", "LAST USED", "DESCRIPTION"), rows)


def _totals(records: Sequence[UsageRecord]) -> list[str]:
    total = sum(record.size for record in records)
    reclaimable = sum(record.size for record in records if not record.in_use)
    return [f"Reclaimable: {_human(reclaimable)}", f"Total: {_human(total)}"]


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns, without what a terminal would act upon: descriptions come from the Dockerfiles of strangers."""
    rows = [[clean_name(cell) for cell in row] for row in rows]
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]
    return [
        "   ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in (header, *rows)
    ]


def _iso(time: datetime | None) -> str | None:
    return None if time is None else time.isoformat(timespec="seconds")


def _human(size: float) -> str:
    """Decimal units, as the daemon's own tools print them."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.4g}{unit}"
        size /= 1000
    return f"{size:.4g}TB"


def _size(flag: str, text: str | None) -> int:
    if text is None:
        return 0
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-z]*)", text.strip().lower())
    if match is None or match[2] not in _UNITS:
        raise InvalidOption(f"{flag} {text!r}: expected a size such as 500mb or 10gb")
    return int(float(match[1]) * _UNITS[match[2]])


def _duration(text: str | None) -> float:
    """Seconds of a duration in Go's notation, such as ``1h30m``."""
    if text is None:
        return 0.0
    parts = _DURATION.findall(text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise InvalidOption(f"--keep-duration {text!r}: expected a duration such as 48h or 1h30m")
    return sum(float(number) * _SECONDS[unit] for number, unit in parts)
