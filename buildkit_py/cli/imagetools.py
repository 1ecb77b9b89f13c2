"""``buildkit-py imagetools inspect``."""

from __future__ import annotations

import argparse
import sys

from buildkit_py.cli.registry import open_registry
from buildkit_py.oci import Descriptor, Index, Manifest, parse_manifest_or_index
from buildkit_py.reference import Reference


def configure(name: str, parser: argparse.ArgumentParser) -> None:
    """Add the subcommands."""
    commands = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    inspect = commands.add_parser("inspect", help="print a manifest or an index", allow_abbrev=False)
    inspect.add_argument("reference", metavar="REF")
    inspect.add_argument("--raw", action="store_true", help="print the bytes as the registry has them")
    inspect.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help="print tracebacks")


async def execute(args: argparse.Namespace) -> int:
    """Print what REF names; the raw form is byte for byte what the digest is of."""
    reference = Reference.parse_normalized(args.reference)
    async with open_registry() as (registry, _):
        raw, root = await registry.fetch_manifest(reference)
    if args.raw:
        sys.stdout.buffer.write(raw)
        sys.stdout.buffer.flush()
        return 0
    print(_text(reference, root, parse_manifest_or_index(raw, root.media_type)))
    return 0


def _text(reference: Reference, root: Descriptor, content: Manifest | Index) -> str:
    """Laid out as ``docker buildx imagetools inspect`` lays it out."""
    tagged = reference if reference.digest else reference.with_tag(reference.tag_or_latest)
    lines = [
        f"Name:      {tagged}",
        f"MediaType: {root.media_type}",
        f"Digest:    {root.digest}",
    ]
    if isinstance(content, Index):
        lines += [" ", "Manifests: "]
        for position, entry in enumerate(content.manifests):
            if position:
                lines.append(" ")
            lines += _entry_lines(reference, entry)
    return "\n".join(lines)


def _entry_lines(reference: Reference, entry: Descriptor) -> list[str]:
    lines = [
        f"  Name:        {reference.name}@{entry.digest}",
        f"  MediaType:   {entry.media_type}",
    ]
    if entry.platform is not None:
        lines.append(f"  Platform:    {entry.platform}")
    if entry.annotations:
        lines.append("  Annotations: ")
        width = max(len(key) for key in entry.annotations) + 1
        lines += [f"    {key + ':':<{width}} {value}" for key, value in sorted(entry.annotations.items())]
    return lines
