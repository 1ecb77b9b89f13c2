"""``buildkit-py build``."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from buildkit_py.builder import BuildRequest, BuildResult, build
from buildkit_py.builder.outputs import check_outputs
from buildkit_py.builder.request import plan
from buildkit_py.cli import flags
from buildkit_py.cli.connection import open_client
from buildkit_py.cli.files import check_writable, write_text
from buildkit_py.cli.progress import show_progress, shows_logs
from buildkit_py.errors import InvalidOption
from buildkit_py.options import CacheSpec, ExporterSpec, SecretSpec, SSHSpec

if TYPE_CHECKING:
    from buildkit_py.builder.request import Plan
    from buildkit_py.cli.call import CallSpec


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
    add("--no-cache-filter", action="append", default=[], metavar="STAGE", help="run the steps of a stage again")
    add("--pull", action="store_true", help="ask for newer base images")
    add("--add-host", action="append", default=[], metavar="NAME:ADDRESS", help="line of the steps' hosts file")
    add("--network", default="default", metavar="MODE", help="network of the steps: default, host or none")
    add("--shm-size", default="0", metavar="SIZE", help="size of /dev/shm in the steps, such as 64m")
    add("--ulimit", action="append", default=[], metavar="NAME=SOFT[:HARD]", help="limit of the steps")
    add("--cgroup-parent", default="", metavar="PATH", help="control group to run the steps in")
    add("--allow", action="append", default=[], metavar="ENTITLEMENT", help="such as network.host")
    add(
        "--progress",
        default="auto",
        choices=("auto", "plain", "tty", "rawjson", "quiet", "none"),
        help="how progress is shown on stderr (default: auto)",
    )
    add(
        "--call",
        default="build",
        metavar="METHOD",
        help="ask about the build: check, outline or targets, with ,format=json if wanted",
    )
    add("--check", action="store_true", help="short for --call=check")
    add("-q", "--quiet", action="store_true", help="no progress, the id of the image alone")
    add("--metadata-file", metavar="FILE", help="write digests and figures as JSON")
    add("--iidfile", metavar="FILE", help="write the id of the image")
    add("--digest-file", metavar="FILE", help="write what was pushed, for imagetools create to join")


async def execute(args: argparse.Namespace) -> int:
    """Build; print the digest of what was made, unless that itself goes to stdout."""
    request = _request(args)
    if "-" in (args.context, args.file):
        from buildkit_py.builder.streams import open_streams

        request = await open_streams(request)
    if args.check or args.call != "build":
        from buildkit_py.cli.call import CallSpec

        spec = CallSpec.parse("check" if args.check else args.call)
        if spec is not None:
            return await _call(args, request, spec)
    planned = plan(request)  # bad input is told of without a daemon
    if args.digest_file is not None and not planned.exports.references:
        raise InvalidOption("--digest-file: nothing is pushed that could be joined; use --push")
    if args.iidfile is not None and any(spec.type in {"local", "tar"} for spec in request.outputs):
        raise InvalidOption("--iidfile: outputs of type local and tar have no image id")
    check_outputs(planned)
    to_stdout = any(spec.dest == "-" for spec in request.outputs)
    if to_stdout and sys.stdout.isatty():
        raise InvalidOption("output dest=-: standard output is a terminal; redirect it, or name a file")
    for path in (args.metadata_file, args.iidfile, args.digest_file):
        # Before any work: a file that cannot be written must not cost a build.
        if path is not None:
            check_writable(Path(path))
    if args.quiet and args.progress not in {"auto", "quiet", "none"}:
        raise InvalidOption(f"--quiet and --progress={args.progress}: cannot be used together")
    mode = "quiet" if args.quiet or args.progress == "none" else args.progress
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
    if args.iidfile is not None and result.image_id is not None:
        write_text(Path(args.iidfile), result.image_id)
    if args.digest_file is not None and result.descriptor is not None:
        write_text(Path(args.digest_file), _digest_file(result))
    printed = result.image_id if args.quiet or digest is None else digest
    if printed is not None and not to_stdout:
        print(printed)
    return 0


async def _call(args: argparse.Namespace, request: BuildRequest, spec: CallSpec) -> int:
    """Print what the frontend answers."""
    from buildkit_py.builder.call import call
    from buildkit_py.cli.call import render

    planned = plan(request)  # bad input is told of without a daemon
    mode = "quiet" if args.quiet or args.progress in {"auto", "none"} else args.progress
    args.logs_shown = shows_logs(mode)
    async with show_progress(mode, sys.stderr) as on_status, open_client(args) as client:
        result = await call(client, request, spec.method, on_status=on_status)
    text, status = render(spec, result, _shown_name(planned))
    print(text, end="")
    return status


def _shown_name(planned: Plan) -> str:
    """The Dockerfile as the caller finds it; "" where it is not on this machine."""
    directory = planned.directories.get("dockerfile")
    return "" if directory is None else os.path.relpath(directory / planned.attrs["filename"])


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
    build_args = flags.build_args(args.build_arg, getattr(args, "addr", "") or "")
    return BuildRequest(
        context=args.context,
        dockerfile=args.file,
        platforms=flags.platforms(args.platform),
        tags=args.tag,
        push=args.push,
        load=args.load,
        outputs=[ExporterSpec.parse(text) for text in args.output],
        target=args.target,
        build_args=build_args,
        build_contexts=flags.pairs(args.build_context, "build-context"),
        labels=flags.pairs(args.label, "label"),
        annotations=flags.pairs(args.annotation, "annotation"),
        attestations=flags.attestations(args.attest, args.provenance, args.sbom),
        no_cache=args.no_cache,
        no_cache_filter=args.no_cache_filter,
        add_hosts=args.add_host,
        network=args.network,
        shm_size=flags.size(args.shm_size, "--shm-size"),
        ulimits=args.ulimit,
        cgroup_parent=args.cgroup_parent,
        record_provenance=flags.record_provenance() if args.metadata_file is not None else "",
        pull=args.pull,
        cache_from=CacheSpec.parse_all(args.cache_from),
        cache_to=CacheSpec.parse_all([*args.cache_to, *flags.inline_cache(build_args)]),
        secrets=[SecretSpec.parse(text) for text in args.secret],
        ssh=[SSHSpec.parse(text) for text in args.ssh],
        allow=args.allow,
    )
