"""``buildkit-py imagetools``: look at images in registries and layouts, join, copy, trim, annotate and verify them."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Awaitable, Callable, Iterable, Sequence
from pathlib import Path

from buildkit_py import imagetools
from buildkit_py.cli.files import check_writable, write_text
from buildkit_py.cli.parsers import Subcommands
from buildkit_py.cli.registry import open_registry
from buildkit_py.errors import InvalidOption
from buildkit_py.oci import Descriptor
from buildkit_py.registry import Registry
from buildkit_py.registry.registry import CONCURRENCY

_SOURCES = "reference, digest, layout:DIR[:TAG], descriptor, or FILE.json of build --digest-file"
_ANNOTATION = "index:KEY=VALUE, manifest-descriptor[PLATFORM]:KEY=VALUE or manifest:KEY=VALUE"


def configure(name: str, parser: argparse.ArgumentParser) -> None:
    """Add the subcommands, spelt as docker buildx spells those that it has."""
    commands = Subcommands(parser, dest="action", metavar="ACTION")

    def command(action: str, help_line: str, arguments: Callable[[argparse.ArgumentParser], None]) -> None:
        def configure(made: argparse.ArgumentParser) -> None:
            made.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help="print tracebacks")
            made.add_argument("--concurrency", type=int, default=CONCURRENCY, metavar="N", help="requests at once")
            arguments(made)

        commands.add(action, help_line, configure)

    command("inspect", "print a manifest or an index", _inspect_arguments)
    command("create", "make one index of images that exist", _create_arguments)
    command("copy", "copy an image, byte for byte", _copy_arguments)
    command("rm-platform", "take platforms out of an index", _rm_platform_arguments)
    command("annotate", "put annotations into an index and its entries", _annotate_arguments)
    command("verify", "check that an image is whole", _verify_arguments)


def _inspect_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("reference", metavar="REF", help="reference, or layout:DIR[:TAG]")
    parser.add_argument("--raw", action="store_true", help="print the bytes as they are stored")
    parser.add_argument(
        "--format", metavar="TEMPLATE", help="json, or a template like {{json .Manifest}} or {{.Manifest.Digest}}"
    )


def _create_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("sources", nargs="*", metavar="SOURCE", help=_SOURCES)
    add("-t", "--tag", action="append", default=[], metavar="REF", help="reference to write; may be repeated")
    add("-f", "--file", action="append", default=[], metavar="FILE", help="read a source from a file")
    add("--append", action="store_true", help="add to what the first tag has, replacing equal platforms")
    add("-p", "--platform", action="append", default=[], metavar="LIST", help="keep these platforms alone")
    add("--annotation", action="append", default=[], metavar="LEVEL:KEY=VALUE", help=_ANNOTATION)
    add("--dry-run", action="store_true", help="print the index instead of writing it")
    add("--prefer-index", default="true", metavar="BOOL", help="index for a single image")
    add("--metadata-file", metavar="FILE", help="write the descriptor as JSON")


def _copy_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("source", metavar="SRC", help="reference, or layout:DIR[:TAG|@DIGEST]")
    add("destination", metavar="DST", help="reference, or layout:DIR[:TAG]; a DIR in .tar is an archive")
    add("-p", "--platform", action="append", default=[], metavar="LIST", help="copy these platforms alone")
    add("--no-attestations", action="store_true", help="leave the attestations in the index out")
    add("--no-referrers", action="store_true", help="leave signatures and other referrers out")


def _target_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("-t", "--tag", action="append", default=[], metavar="REF", help="reference to write (default: REF)")
    add("--dry-run", action="store_true", help="print the index instead of writing it")


def _rm_platform_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("reference", metavar="REF")
    parser.add_argument("platforms", nargs="+", metavar="PLATFORM")
    _target_arguments(parser)


def _annotate_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("reference", metavar="REF")
    add("--annotation", action="append", default=[], metavar="LEVEL:KEY=VALUE", help="index: or manifest-descriptor:")
    add("--remove", action="append", default=[], metavar="LEVEL:KEY", help="annotation to take out")
    _target_arguments(parser)


def _verify_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("reference", metavar="REF", help="reference, or layout:DIR[:TAG]")
    add("--full", action="store_true", help="read every blob and check its digest")
    add("-p", "--platform", action="append", default=[], metavar="LIST", help="say what these clients would pull")
    add("--json", action="store_true", help="print the findings as JSON")


async def execute(args: argparse.Namespace) -> int:
    """Run one of them; the exit code. verify has 1 for an image that is not whole."""
    actions: dict[str, Callable[[Registry, argparse.Namespace], Awaitable[int]]] = {
        "inspect": _inspect,
        "create": _create,
        "copy": _copy,
        "rm-platform": _rm_platform,
        "annotate": _annotate,
        "verify": _verify,
    }
    async with open_registry(args.concurrency) as (registry, _):
        return await actions[args.action](registry, args)


async def _inspect(registry: Registry, args: argparse.Namespace) -> int:
    if args.raw and args.format is not None:
        raise InvalidOption("--raw: cannot be combined with --format")
    template = None if args.format is None else imagetools.Template.parse(args.format)
    found = await imagetools.inspect(
        registry,
        args.reference,
        configs=template is not None and template.needs_configs,
        attestations=template is not None and template.needs_attestations,
    )
    if args.raw:
        _write(found.raw)
    elif template is None:
        print(imagetools.describe(found), end="")
    else:
        text = template.fill(found)
        print(text, end="" if text.endswith("\n") else "\n")
    return 0


async def _create(registry: Registry, args: argparse.Namespace) -> int:
    if args.metadata_file is not None:
        check_writable(Path(args.metadata_file))
    request = imagetools.CreateRequest(
        sources=[*(Path(name) for name in args.file), *args.sources],
        tags=args.tag,
        append=args.append,
        platforms=args.platform,
        annotations=args.annotation,
        prefer_index=_boolean(args.prefer_index, "prefer-index"),
        dry_run=args.dry_run,
    )
    made = await imagetools.create(registry, request)
    _tell(f"note: {note}" for note in made.notes)
    if args.dry_run:
        _write(made.raw + b"\n")
        return 0
    _tell(_entry_line(entry) for entry in made.entries)
    _tell([str(made.traffic)])
    _tell(_written(made.references, made.unchanged))
    if args.metadata_file is not None:
        write_text(Path(args.metadata_file), json.dumps(made.metadata(), indent=2))
    print(made.descriptor.digest)
    return 0


async def _copy(registry: Registry, args: argparse.Namespace) -> int:
    request = imagetools.CopyRequest(
        source=args.source,
        destination=args.destination,
        platforms=args.platform,
        attestations=not args.no_attestations,
        referrers=not args.no_referrers,
    )
    copied = await imagetools.copy(registry, request)
    _tell(f"referrer {entry.digest} {entry.artifact_type}".rstrip() for entry in copied.referrers)
    _tell([str(copied.traffic)])
    _tell(_written([copied.destination], [copied.destination] if copied.unchanged else []))
    print(copied.descriptor.digest)
    return 0


async def _rm_platform(registry: Registry, args: argparse.Namespace) -> int:
    options = imagetools.EditOptions(tags=args.tag, dry_run=args.dry_run)
    return _edited(await imagetools.rm_platform(registry, args.reference, args.platforms, options), args)


async def _annotate(registry: Registry, args: argparse.Namespace) -> int:
    options = imagetools.EditOptions(tags=args.tag, dry_run=args.dry_run)
    edited = await imagetools.annotate(registry, args.reference, args.annotation, remove=args.remove, options=options)
    return _edited(edited, args)


def _edited(edited: imagetools.Edited, args: argparse.Namespace) -> int:
    if args.dry_run:
        _write(edited.raw + b"\n")
        return 0
    _tell(f"removed {_entry_line(entry)}" for entry in edited.removed)
    _tell(_written(edited.references, edited.unchanged))
    print(edited.descriptor.digest)
    return 0


async def _verify(registry: Registry, args: argparse.Namespace) -> int:
    request = imagetools.VerifyRequest(location=args.reference, full=args.full, platforms=args.platform)
    found = await imagetools.verify(registry, request)
    if args.json:
        print(json.dumps(_verified_fields(found), indent=2))
        return 0 if found.ok else 1
    for finding in found.findings:
        print(finding)
    for platform, entry in found.pulls.items():
        print(f"{platform}: {'nothing that it could run' if entry is None else entry.digest}")
    looked = "read" if args.full else "found"
    _tell([f"{found.manifests} manifests read, {found.blobs} blobs {looked} ({found.blob_bytes} bytes)"])
    _tell([f"{found.descriptor.digest} is {'whole' if found.ok else 'broken'}"])
    return 0 if found.ok else 1


def _verified_fields(found: imagetools.Verified) -> dict[str, object]:
    return {
        "digest": str(found.descriptor.digest),
        "ok": found.ok,
        "manifests": found.manifests,
        "blobs": found.blobs,
        "findings": [
            {"severity": item.severity.value, "digest": str(item.digest), "message": item.message}
            for item in found.findings
        ],
        "pulls": {
            str(platform): None if entry is None else str(entry.digest) for platform, entry in found.pulls.items()
        },
    }


def _entry_line(entry: Descriptor) -> str:
    what = f"attestation of {entry.attests}" if entry.attests else str(entry.platform or entry.media_type)
    return f"{entry.digest} {what}"


def _written(references: Sequence[object], unchanged: Sequence[object]) -> list[str]:
    return [f"{name}: {'was there already' if name in unchanged else 'written'}" for name in references]


def _boolean(text: str, option: str) -> bool:
    if text.lower() in {"true", "1", "t"}:
        return True
    if text.lower() in {"false", "0", "f"}:
        return False
    raise InvalidOption(f"--{option} {text!r}: expected true or false")


def _tell(lines: Iterable[str]) -> None:
    for line in lines:
        print(line, file=sys.stderr)


def _write(raw: bytes) -> None:
    sys.stdout.flush()
    sys.stdout.buffer.write(raw)
    sys.stdout.buffer.flush()
