"""What build and solve share: flags for outputs, caches and services, and what is told of a result."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypedDict

from buildkit_py.builder import BuildRequest, BuildResult, build
from buildkit_py.builder.outputs import check_outputs
from buildkit_py.cli import flags
from buildkit_py.cli.connection import open_client
from buildkit_py.cli.files import check_writable, write_text
from buildkit_py.cli.progress import show_progress, shows_logs
from buildkit_py.cli.transfers import TransferProgress
from buildkit_py.errors import InvalidOption
from buildkit_py.options import CacheSpec, ExporterSpec, SecretSpec, SSHSpec

if TYPE_CHECKING:
    from buildkit_py.builder import GraphRequest
    from buildkit_py.builder.request import Plan
    from buildkit_py.session.policy import SourceRules


class CommonFields(TypedDict):
    """Arguments that every request has, whatever is built."""

    tags: Sequence[str]
    push: bool
    load: bool
    outputs: Sequence[ExporterSpec]
    annotations: Mapping[str, str]
    attestations: Mapping[str, str]
    record_provenance: Literal["", "min", "max"]
    no_cache: bool
    cache_from: Sequence[CacheSpec]
    cache_to: Sequence[CacheSpec]
    secrets: Sequence[SecretSpec]
    ssh: Sequence[SSHSpec]
    allow: Sequence[str]
    source_rules: SourceRules | None


def add_switch(parser: argparse.ArgumentParser, *names: str, help: str) -> None:
    """A flag that is true when it is named, and takes ``=false`` and ``=true`` too; the last one counts."""
    action = parser.add_argument(*names, action="store_true", help=help)
    for words, value in ((flags.TRUE, True), (flags.FALSE, False)):
        # Options of their own: one with an optional value would take the context for it.
        spelt = [f"{name}={word}" for name in names for word in words]
        parser.add_argument(
            *spelt, dest=action.dest, action="store_const", const=value, default=False, help=argparse.SUPPRESS
        )


def add_output_flags(parser: argparse.ArgumentParser) -> None:
    """Platforms, and where the result goes."""
    add = parser.add_argument
    add("-t", "--tag", action="append", default=[], metavar="REF", help="name to write; may be repeated")
    add("--platform", action="append", default=[], metavar="LIST", help="target platforms, comma-separated")
    add_switch(parser, "--push", help="push to every --tag")
    add_switch(parser, "--load", help="load into a docker engine")
    add(
        *("-o", "--output"),
        action="append",
        default=[],
        metavar="SPEC",
        help="type=image|registry|oci|docker|local|tar|cacheonly,dest=PATH,name=REF,...",
    )
    add("--annotation", action="append", default=[], metavar="NAME=VALUE", help="[LEVEL[PLATFORM]:]NAME=VALUE")
    add("--attest", action="append", default=[], metavar="SPEC", help="attestation: type=sbom|provenance,...")
    add("--provenance", metavar="SPEC", help="short for --attest type=provenance,...; false for none")
    add("--sbom", metavar="SPEC", help="short for --attest type=sbom,...; false for none")


def add_solve_flags(parser: argparse.ArgumentParser) -> None:
    """What steps may use, caches, and what is told of the build."""
    add = parser.add_argument
    add("--secret", action="append", default=[], metavar="SPEC", help="id=ID[,src=FILE|,env=NAME] for steps to mount")
    add("--ssh", action="append", default=[], metavar="SPEC", help="default or ID=SOCKET|KEY,... to sign with")
    add("--allow", action="append", default=[], metavar="ENTITLEMENT", help="such as network.host")
    add("--cache-from", action="append", default=[], metavar="SPEC", help="cache to import")
    add("--cache-to", action="append", default=[], metavar="SPEC", help="cache to export")
    add_switch(parser, "--no-cache", help="run every step again")
    add(
        "--progress",
        default="auto",
        type=lambda text: text or "auto",
        choices=("auto", "plain", "tty", "rawjson", "quiet", "none"),
        help="how progress is shown on stderr (default: auto)",
    )
    add_switch(parser, "-q", "--quiet", help="no progress, the id of the image alone")
    add("--metadata-file", metavar="FILE", help="write digests and figures as JSON")
    add("--iidfile", metavar="FILE", help="write the id of the image")
    add("--digest-file", metavar="FILE", help="write what was pushed, for imagetools create to join")


def common_fields(args: argparse.Namespace, *, cache_to: Sequence[str] = ()) -> CommonFields:
    """What the flags ask for, but for --platform; cache_to are further caches to export."""
    return {
        "tags": args.tag,
        "push": args.push,
        "load": args.load,
        "outputs": [ExporterSpec.parse(text) for text in flags.said(args.output)],
        "annotations": flags.pairs(flags.said(args.annotation), "annotation"),
        "attestations": flags.attestations(args.attest, args.provenance, args.sbom),
        "record_provenance": flags.record_provenance() if args.metadata_file else "",
        "no_cache": args.no_cache,
        "cache_from": CacheSpec.parse_all(flags.said(args.cache_from)),
        "cache_to": CacheSpec.parse_all(flags.said([*args.cache_to, *cache_to])),
        "secrets": [SecretSpec.parse(text) for text in flags.said(args.secret)],
        "ssh": [SSHSpec.parse(text) for text in flags.said(args.ssh)],
        "allow": flags.said(args.allow),
        "source_rules": flags.source_rules(),
    }


async def run_build(args: argparse.Namespace, request: BuildRequest | GraphRequest, planned: Plan) -> int:
    """Build; print the digest of what was made, unless that itself goes to stdout."""
    if args.digest_file and not planned.exports.references:
        raise InvalidOption("--digest-file: nothing is pushed that could be joined; use --push")
    exported = {spec.type for spec in request.outputs}
    if args.iidfile and exported and exported <= {"local", "tar"} and not (request.push or request.load):
        raise InvalidOption("--iidfile: outputs of type local and tar have no image id")
    check_outputs(planned)
    to_stdout = any(spec.dest == "-" for spec in request.outputs)
    if to_stdout and sys.stdout.isatty():
        raise InvalidOption("output dest=-: standard output is a terminal; redirect it, or name a file")
    for path in (args.metadata_file, args.iidfile, args.digest_file):
        # Before any work: a file that cannot be written must not cost a build.
        if path:
            check_writable(Path(path))
    if args.quiet and args.progress not in {"auto", "quiet", "none"}:
        raise InvalidOption(f"--quiet and --progress={args.progress}: cannot be used together")
    mode = "quiet" if args.quiet or args.progress == "none" else args.progress
    args.logs_shown = shows_logs(mode)
    async with show_progress(mode, sys.stderr) as update, open_client(args) as client:
        if isinstance(request, BuildRequest) and flags.loads_by_default(request, client.address):
            request = replace(request, load=True)
        progress = TransferProgress(update, time.monotonic)
        result = await build(client, request, on_status=progress.on_status, on_transfer=progress.on_transfer)
    for note in result.notes:
        print(f"warning: {note}", file=sys.stderr)
    if not (request.push or request.load or request.outputs):
        print(
            "warning: no output was asked for: the result stays in the build cache; use --push, --load or --output",
            file=sys.stderr,
        )
    digest = None if result.digest is None else str(result.digest)
    if args.metadata_file:
        fields = result.metadata(warnings=os.environ.get("BUILDX_METADATA_WARNINGS", "") in flags.TRUE)
        write_text(Path(args.metadata_file), json.dumps(fields, indent=2) + "\n")
    if args.iidfile:
        write_text(Path(args.iidfile), result.image_id or "")  # that of an earlier build would be wrong
    if args.digest_file and result.descriptor is not None:
        write_text(Path(args.digest_file), _digest_file(result))
    printed = result.image_id if args.quiet or digest is None else digest
    if printed is not None and not to_stdout:
        print(printed)
    return 0


def _digest_file(result: BuildResult) -> str:
    from buildkit_py.imagetools.source import encode_digest_file  # for those who ask for it

    assert result.descriptor is not None
    images = {
        entry.platform: entry.manifest.digest
        for entry in result.platforms
        if entry.platform is not None and entry.manifest is not None
    }
    return encode_digest_file(result.descriptor, result.references, images).decode()
