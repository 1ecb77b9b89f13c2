"""``buildkit-py build``."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from types import MappingProxyType

from buildkit_py.builder import BuildRequest, BuildResult, build
from buildkit_py.builder.outputs import check_outputs
from buildkit_py.builder.request import DEFAULT_PROVENANCE, plan
from buildkit_py.builder.streams import open_streams
from buildkit_py.cli.connection import open_client
from buildkit_py.cli.files import check_writable, write_text
from buildkit_py.cli.progress import show_progress, shows_logs
from buildkit_py.errors import InvalidOption
from buildkit_py.options import CacheSpec, ExporterSpec, SecretSpec, SSHSpec, parse_fields


def configure(name: str, parser: argparse.ArgumentParser) -> None:
    """Add the arguments, spelt as docker buildx spells them."""
    add = parser.add_argument
    add("context", nargs="?", default=".", metavar="PATH|URL|-", help="context (default: this directory)")
    add("-f", "--file", metavar="PATH", help="Dockerfile (default: PATH/Dockerfile); - is standard input")
    add("-t", "--tag", action="append", default=[], metavar="REF", help="name to write; may be repeated")
    add("--platform", action="append", default=[], metavar="LIST", help="target platforms, comma-separated")
    add("--push", action="store_true", help="push to every --tag")
    add("--load", action="store_true", help="load into a docker engine")
    add(
        *("-o", "--output"),
        action="append",
        default=[],
        metavar="SPEC",
        help="type=image|registry|oci|docker|local|tar|cacheonly,dest=PATH,name=REF,...",
    )
    add("--target", default="", metavar="STAGE", help="stage to build")
    add("--build-arg", action="append", default=[], metavar="NAME=VALUE", help="build argument")
    add("--build-context", action="append", default=[], metavar="NAME=VALUE", help="named context")
    add("--secret", action="append", default=[], metavar="SPEC", help="id=ID[,src=FILE|,env=NAME] for RUN to mount")
    add("--ssh", action="append", default=[], metavar="SPEC", help="default or ID=SOCKET|KEY,... for RUN to sign with")
    add("--label", action="append", default=[], metavar="NAME=VALUE", help="label of the image")
    add("--annotation", action="append", default=[], metavar="NAME=VALUE", help="[LEVEL[PLATFORM]:]NAME=VALUE")
    add("--attest", action="append", default=[], metavar="SPEC", help="attestation: type=sbom|provenance,...")
    add("--provenance", metavar="SPEC", help="short for --attest type=provenance,...; false for none")
    add("--sbom", metavar="SPEC", help="short for --attest type=sbom,...; false for none")
    add("--cache-from", action="append", default=[], metavar="SPEC", help="cache to import")
    add("--cache-to", action="append", default=[], metavar="SPEC", help="cache to export")
    add("--no-cache", action="store_true", help="run every step again")
    add("--pull", action="store_true", help="ask for newer base images")
    add("--allow", action="append", default=[], metavar="ENTITLEMENT", help="such as network.host")
    add(
        "--progress",
        default="auto",
        choices=("auto", "plain", "tty", "rawjson", "quiet"),
        help="how progress is shown on stderr (default: auto)",
    )
    add("-q", "--quiet", action="store_true", help="no progress, the digest alone")
    add("--metadata-file", metavar="FILE", help="write digests and figures as JSON")
    add("--iidfile", metavar="FILE", help="write the digest of the result")
    add("--digest-file", metavar="FILE", help="write what was pushed, for imagetools create to join")


async def execute(args: argparse.Namespace) -> int:
    """Build; print the digest of what was made, unless that itself goes to stdout."""
    request = await open_streams(_request(args))
    planned = plan(request)  # bad input is told of without a daemon
    if args.digest_file is not None and not planned.exports.references:
        raise InvalidOption("--digest-file: nothing is pushed that could be joined; use --push")
    check_outputs(planned)
    to_stdout = any(spec.dest == "-" for spec in request.outputs)
    if to_stdout and sys.stdout.isatty():
        raise InvalidOption("output dest=-: standard output is a terminal; redirect it, or name a file")
    for path in (args.metadata_file, args.iidfile, args.digest_file):
        # Before any work: a file that cannot be written must not cost a build.
        if path is not None:
            check_writable(Path(path))
    mode = "quiet" if args.quiet else args.progress
    args.logs_shown = shows_logs(mode)
    async with show_progress(mode, sys.stderr) as on_status, open_client(args) as client:
        result = await build(client, request, on_status=on_status)
    for note in result.notes:
        print(f"warning: {note}", file=sys.stderr)
    if not (request.push or request.load or request.outputs):
        print(
            "warning: no output was asked for: the result stays in the build cache; use --push, --load or --output",
            file=sys.stderr,
        )
    digest = None if result.descriptor is None else str(result.descriptor.digest)
    if args.metadata_file is not None:
        write_text(Path(args.metadata_file), json.dumps(result.metadata(), indent=2) + "\n")
    if args.iidfile is not None and digest is not None:
        write_text(Path(args.iidfile), digest)
    if args.digest_file is not None and result.descriptor is not None:
        write_text(Path(args.digest_file), _digest_file(result))
    if digest is not None and not to_stdout:
        print(digest)
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


def _request(args: argparse.Namespace) -> BuildRequest:
    return BuildRequest(
        context=args.context,
        dockerfile=args.file,
        platforms=args.platform,
        tags=args.tag,
        push=args.push,
        load=args.load,
        outputs=[ExporterSpec.parse(text) for text in args.output],
        target=args.target,
        build_args=_pairs(args.build_arg, "build-arg", from_environment=True),
        build_contexts=_pairs(args.build_context, "build-context"),
        labels=_pairs(args.label, "label"),
        annotations=_pairs(args.annotation, "annotation"),
        attestations=_attestations(args),
        no_cache=args.no_cache,
        pull=args.pull,
        cache_from=[CacheSpec.parse(text) for text in args.cache_from],
        cache_to=[CacheSpec.parse(text) for text in args.cache_to],
        secrets=[SecretSpec.parse(text) for text in args.secret],
        ssh=[SSHSpec.parse(text) for text in args.ssh],
        allow=args.allow,
    )


def _pairs(items: Sequence[str], option: str, *, from_environment: bool = False) -> MappingProxyType[str, str]:
    """NAME=VALUE items; a bare build argument takes its value from the environment, if it is set there."""
    import os

    pairs: dict[str, str] = {}
    for item in items:
        name, equals, value = item.partition("=")
        if not name:
            raise InvalidOption(f"--{option} {item!r}: expected NAME=VALUE")
        if equals:
            pairs[name] = value
        elif from_environment:
            if name in os.environ:
                pairs[name] = os.environ[name]
        elif option == "label":
            pairs[name] = ""
        else:
            raise InvalidOption(f"--{option} {item!r}: expected NAME=VALUE")
    return MappingProxyType(pairs)


def _attestations(args: argparse.Namespace) -> MappingProxyType[str, str]:
    """Parameters by type; provenance is on, as in docker buildx, until somebody says otherwise."""
    wanted: dict[str, str] = {"provenance": DEFAULT_PROVENANCE}
    for text in args.attest:
        fields = dict(parse_fields(text, option="attest"))
        kind = fields.pop("type", None)
        if kind is None:
            raise InvalidOption(f"--attest {text!r}: type=... is missing")
        disabled = fields.pop("disabled", "false")
        wanted.pop(kind, None)
        if disabled not in {"true", "1", None}:
            wanted[kind] = ",".join(f"{key}={value}" for key, value in fields.items())
    for kind in ("provenance", "sbom"):
        text = getattr(args, kind)
        if text is None:
            continue
        if text in {"false", "0"}:
            wanted.pop(kind, None)
        else:
            wanted[kind] = "" if text in {"true", "1"} else text
    return MappingProxyType(wanted)
