"""Run an image of a registry on a daemon, once for each platform: the proof that an index works."""

from __future__ import annotations

import asyncio
import posixpath
from collections import deque
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeAlias

from buildkit_py.client import Client, SolveRequest
from buildkit_py.digest import Digest
from buildkit_py.errors import BuildErrors, BuildKitError, InvalidOption, InvalidPlatform, SolveError, leaves
from buildkit_py.llb.definition import Definition
from buildkit_py.llb.execop import DEFAULT_PATH
from buildkit_py.llb.marshal import marshal
from buildkit_py.llb.sources import image as llb_image
from buildkit_py.oci import MAX_CONFIG_BYTES, Descriptor, ImageConfig, Manifest, parse_manifest_or_index
from buildkit_py.platforms import Platform, parse_platforms
from buildkit_py.progress import StatusUpdate
from buildkit_py.reference import Reference
from buildkit_py.registry import Registry
from buildkit_py.session.attachable import Attachable
from buildkit_py.session.server import Session

# What a platform prints while another one has the turn is kept in memory; the daemon clips a vertex at 2 MiB.
_MAX_WAITING_BYTES = 16 << 20

OutputHandler: TypeAlias = Callable[[Platform, int, bytes], None]
"""Gets (platform, 1 for stdout or 2 for stderr, bytes) on the event loop; must not block."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRequest:
    """An image and how to start it."""

    reference: str
    platforms: Sequence[Platform | str] = ()
    """Platforms to run, in this order; none means every one of the index, in its order."""
    args: Sequence[str] = ()
    """Replaces the image's command; its entrypoint stays, as with ``docker run``."""
    env: Sequence[str] = ()
    """``NAME=VALUE`` items, which outrank the image's."""

    def check(self) -> None:
        """Raise InvalidOption, InvalidPlatform or InvalidReference for what cannot be run anywhere."""
        Reference.parse_normalized(self.reference)
        for platform in parse_platforms(self.platforms):
            platform.check_known()
        for item in self.env:
            if "=" not in item or item.startswith("="):
                raise InvalidOption(f"env {item!r}: expected NAME=VALUE")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunResult:
    """How one platform ended."""

    platform: Platform
    digest: Digest
    """Of the manifest that ran."""
    exit_code: int
    seconds: float


async def run(
    client: Client,
    request: RunRequest,
    *,
    registry: Registry,
    attachables: Sequence[Attachable] = (),
    on_output: OutputHandler,
    on_status: Callable[[str, StatusUpdate], None] | None = None,
) -> tuple[RunResult, ...]:
    """Run every platform, all at once, and hand over what they print in the order of the platforms.

    Each manifest is run by digest, with the image's own environment, user and directory, and never from
    the daemon's cache. Output is the log of a build step: unless configured otherwise a daemon cuts each
    one's at 2 MiB, and at 200 KiB a second, and says so in the output where it cut. A process that fails is a
    result, not an error; SolveError is raised where none could be started, BuildErrors where that happens to
    several platforms. attachables serve the daemon, above all credentials for the pull.
    """
    request.check()
    wanted = parse_platforms(request.platforms)
    reference = Reference.parse_normalized(request.reference)
    images = await _images(registry, reference, wanted)
    turns = _Turns([platform for platform, _, _ in images], on_output)
    definitions = [_definition(reference, image, request) for image in images]
    async with client.open_session(attachables) as session:
        with _joined():
            async with asyncio.TaskGroup() as tasks:
                running = [
                    tasks.create_task(_run_one(client, session, image, definition, turns=turns, on_status=on_status))
                    for image, definition in zip(images, definitions, strict=True)
                ]
    return tuple(task.result() for task in running)


_Image: TypeAlias = tuple[Platform, Descriptor, ImageConfig]


async def _images(registry: Registry, reference: Reference, wanted: Sequence[Platform]) -> list[_Image]:
    """The manifests to run, each with its config; InvalidPlatform for a platform that is not there."""
    raw, root = await registry.fetch_manifest(reference)
    content = parse_manifest_or_index(raw, root.media_type)
    if isinstance(content, Manifest):
        config = await _config(registry, reference, content)
        images = [(config.platform.normalized(), root, config)]
        chosen = images if not wanted else [image for image in images if image[0] == wanted[0]]
        if not chosen or len(wanted) > 1:
            raise InvalidPlatform(f"{reference}: has {images[0][0]} only")
        return chosen
    entries: dict[Platform, Descriptor] = {}
    for entry in content.images:
        if entry.platform is not None:
            entries.setdefault(entry.platform.normalized(), entry)  # the first of several, as everywhere
    picked: list[tuple[Platform, Descriptor]] = []
    for platform in wanted or entries:
        if platform not in entries:
            names = ", ".join(str(have) for have in entries) or "none"
            raise InvalidPlatform(f"{reference}: has no {platform}; its platforms are {names}")
        picked.append((platform, entries[platform]))
    if not picked:
        raise InvalidPlatform(f"{reference}: has no image of any platform")
    with _joined():
        async with asyncio.TaskGroup() as tasks:
            reading = [tasks.create_task(_child_config(registry, reference, entry)) for _, entry in picked]
    return [(platform, entry, task.result()) for (platform, entry), task in zip(picked, reading, strict=True)]


async def _child_config(registry: Registry, reference: Reference, entry: Descriptor) -> ImageConfig:
    raw, _ = await registry.fetch_manifest(reference.with_digest(entry.digest))
    content = parse_manifest_or_index(raw, entry.media_type)
    if not isinstance(content, Manifest):
        raise InvalidPlatform(f"{reference}: {entry.digest} is an index inside an index")
    return await _config(registry, reference, content)


async def _config(registry: Registry, reference: Reference, manifest: Manifest) -> ImageConfig:
    raw = await registry.fetch_blob_bytes(reference.name, manifest.config, MAX_CONFIG_BYTES)
    return ImageConfig.parse(raw)


async def _run_one(
    client: Client,
    session: Session,
    image: _Image,
    definition: Definition,
    *,
    turns: _Turns,
    on_status: Callable[[str, StatusUpdate], None] | None,
) -> RunResult:
    platform, descriptor, _ = image
    label = str(platform)

    def fold(update: StatusUpdate) -> None:
        for log in update.logs:
            turns.put(platform, log.stream, log.data)
        if on_status is not None:
            on_status(label, update)

    solve = SolveRequest(definition=definition, label=label)
    loop = asyncio.get_running_loop()
    started = loop.time()
    exit_code = 0
    try:
        await client.solve(solve, session=session, on_status=fold)
    except SolveError as error:
        if error.exit_code is None:
            raise
        if any("exec format error" in line for line in error.log_tail):
            await _explain(client, error, platform)
        exit_code = error.exit_code
    turns.end(platform)
    return RunResult(platform=platform, digest=descriptor.digest, exit_code=exit_code, seconds=loop.time() - started)


async def _explain(client: Client, error: SolveError, platform: Platform) -> None:
    """Raise the error, with what to try, where it is the daemon that cannot run programs of the platform."""
    workers = await client.workers()
    hint = workers[0].emulation_hint(platform) if workers else ""
    if hint:
        error.hint = hint
        raise error


@contextmanager
def _joined() -> Generator[None, None, None]:
    """One error of a task group as itself, several as BuildErrors; what is not ours goes on as it is."""
    try:
        yield
    except BaseExceptionGroup as group:
        errors = leaves(group)
        if len(errors) == 1:
            raise errors[0] from errors[0].__cause__
        ours = [error for error in errors if isinstance(error, BuildKitError)]
        if len(ours) != len(errors):
            raise
        raise BuildErrors(f"{len(ours)} platforms failed", ours) from None


def _definition(reference: Reference, image: _Image, request: RunRequest) -> Definition:
    """One process on the image's file system."""
    platform, descriptor, config = image
    args = [*config.entrypoint, *(request.args or config.cmd)]
    if not args:
        raise InvalidOption(f"{reference}: the image has no command; give one")
    variables: dict[str, str] = {}
    for item in (*config.env, *request.env):
        name, equals, value = item.partition("=")
        if name and equals:  # an image may have anything there
            variables[name] = value
    if "PATH" not in variables:
        variables = {"PATH": DEFAULT_PATH, **variables}
    name = f"{reference.name}@{descriptor.digest}"
    process = llb_image(name, custom_name=f"pull {name}").run(
        args,
        env=variables,
        cwd=posixpath.join("/", config.working_dir),
        user=config.user,
        custom_name=f"run {' '.join(args)}",
        # A run that came from the cache would print nothing.
        ignore_cache=True,
    )
    # Where this library makes the graph is of no use to who runs an image.
    return marshal(process, platform=platform, source_map=False)


class _Turns:
    """Hands over the output of several platforms one after the other; the first to come is not delayed."""

    def __init__(self, order: Sequence[Platform], handler: OutputHandler) -> None:
        self._handler = handler
        self._order = deque(order)
        self._waiting: dict[Platform, list[tuple[int, bytes]]] = {platform: [] for platform in order}
        self._room = _MAX_WAITING_BYTES
        self._ended: set[Platform] = set()

    def put(self, platform: Platform, stream: int, data: bytes) -> None:
        if self._order and self._order[0] == platform:
            self._handler(platform, stream, data)
        elif self._room > 0:
            self._room -= len(data)
            self._waiting[platform].append((stream, data))

    def end(self, platform: Platform) -> None:
        self._ended.add(platform)
        while self._order and self._order[0] in self._ended:
            self._order.popleft()
            if self._order:
                for stream, data in self._waiting.pop(self._order[0], []):
                    self._handler(self._order[0], stream, data)
