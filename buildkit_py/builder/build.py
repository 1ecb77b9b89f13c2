"""The life of one build: check, open a session, solve every platform at once, publish."""

from __future__ import annotations

import asyncio
import importlib
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from buildkit_py.builder.graph import GraphRequest, plan_graph
from buildkit_py.builder.identity import node_id
from buildkit_py.builder.outputs import ClientOutputs
from buildkit_py.builder.request import BuildRequest, Plan, plan
from buildkit_py.builder.result import BuildResult, PlatformResult
from buildkit_py.client import Client, SolveRequest, SolveResult
from buildkit_py.errors import (
    BuildErrors,
    BuildKitError,
    ConnectionLost,
    InvalidPlatform,
    ProtocolError,
    SolveError,
    leaves,
)
from buildkit_py.options import ExporterSpec
from buildkit_py.platforms import Platform
from buildkit_py.progress import StatusUpdate
from buildkit_py.session.attachable import Attachable
from buildkit_py.session.auth import Auth
from buildkit_py.session.filesync import FileSync, LocalDir
from buildkit_py.session.server import Session

if TYPE_CHECKING:
    # What publishing needs takes long to load, and is loaded while the solves run.
    from buildkit_py.builder.publish import Pushed
    from buildkit_py.oci import Descriptor
    from buildkit_py.registry import Credentials, CredentialStore, DockerCredentials, Registry, RegistryConfig

StatusCallback: TypeAlias = Callable[[str, StatusUpdate], None]
"""Gets (platform, update) on the event loop; must not block. The platform is "" where none was asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Solved:
    """One platform after its solve, and after its image was read back from the registry."""

    platform: Platform | None
    request: SolveRequest
    result: SolveResult
    ended: float
    pushed: Pushed | None


async def build(
    client: Client,
    request: BuildRequest | GraphRequest,
    *,
    credentials: CredentialStore | None = None,
    registry_config: RegistryConfig | None = None,
    on_status: StatusCallback | None = None,
) -> BuildResult:
    """Build a Dockerfile or a graph for every platform of the request, one solve each, and publish what was asked for.

    Bad input raises InvalidOption, InvalidPlatform or InvalidReference before any work. A platform that fails
    cancels the others; its SolveError is raised, or BuildErrors when several failed by themselves. Nothing is
    published then: no tag is moved and no file of an earlier build is touched. Cancelling does the same.
    credentials defaults to those of docker and Podman, registry_config to the settings of this machine.
    """
    checked = plan(request) if isinstance(request, BuildRequest) else await _plan_graph(client, request)
    started = time.monotonic()
    async with AsyncExitStack() as stack:
        # One store for the daemon's questions and for our own: it asks a helper once, and one at a time.
        registries = _Registries(credentials or _DockerCredentials(), registry_config)
        stack.push_async_callback(registries.aclose)
        outputs = await stack.enter_async_context(ClientOutputs(checked))
        auth = Auth(registries.credentials, registry_config)
        run = _Run(client, checked, registries, outputs, auth, on_status)
        solved = await run.solve_all()
        descriptor = await run.publish(solved)
    ended = time.monotonic()
    return BuildResult(
        platforms=tuple(run.platform_result(entry) for entry in solved),
        descriptor=descriptor,
        references=checked.references,
        seconds=ended - started,
        publish_seconds=ended - max(entry.ended for entry in solved),
    )


async def _plan_graph(client: Client, request: GraphRequest) -> Plan:
    own: Platform | None = None
    if not request.platforms:
        workers = await client.workers()
        if not (workers and workers[0].platforms):
            raise InvalidPlatform("platforms: none is given, and the daemon does not say what its own is")
        own = workers[0].platforms[0]
    # Graphs may be large, and are made by code of the caller that may wait for something.
    return await asyncio.to_thread(plan_graph, request, own)


class _DockerCredentials:
    """Docker's credentials, from the first question on."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._store: DockerCredentials | None = None

    def get(self, host: str, /) -> Credentials:
        """See CredentialStore."""
        return self.for_repository(host, "")

    def for_repository(self, host: str, repository: str, /) -> Credentials:
        """See RepositoryCredentialStore."""
        with self._lock:
            if self._store is None:
                from buildkit_py.registry import DockerCredentials

                self._store = DockerCredentials()
        return self._store.for_repository(host, repository)


class _Registries:
    """The registry client of one build, from the first use on."""

    def __init__(self, credentials: CredentialStore, config: RegistryConfig | None) -> None:
        self.credentials = credentials
        self._config = config
        self._client: Registry | None = None

    def open(self) -> Registry:
        """The client; closed by aclose()."""
        if self._client is None:
            from buildkit_py.registry import Registry

            self._client = Registry(credentials=self.credentials, config=self._config)
        return self._client

    async def warm_up(self, repositories: Sequence[str]) -> None:
        """Load the code for a push, connect, and fetch tokens."""
        await asyncio.to_thread(importlib.import_module, "buildkit_py.builder.publish")
        await self.open().warm_up(*repositories)

    async def aclose(self) -> None:
        """End running calls and close the connections."""
        if self._client is not None:
            await self._client.aclose()


class _Run:
    """What the solves of one build share."""

    def __init__(
        self,
        client: Client,
        checked: Plan,
        registries: _Registries,
        outputs: ClientOutputs,
        auth: Auth,
        on_status: StatusCallback | None,
    ) -> None:
        self._client = client
        self._plan = checked
        self._registries = registries
        self._outputs = outputs
        self._on_status = on_status
        self._auth = auth
        self._attachables: Sequence[Attachable] = ()
        self._shared_key = ""

    async def solve_all(self) -> tuple[_Solved, ...]:
        """Solve all platforms at once over one session, so that the context crosses once."""
        plan_ = self._plan
        sources = FileSync({name: LocalDir(path) for name, path in plan_.directories.items()})
        self._attachables = [sources, self._auth]
        self._shared_key = plan_.shared_key(await asyncio.to_thread(node_id))
        async with self._open_session() as session:
            try:
                async with asyncio.TaskGroup() as tasks:
                    solving = [
                        tasks.create_task(self._solve(session, platform)) for platform in plan_.platforms or (None,)
                    ]
                    if plan_.repositories:
                        warming = tasks.create_task(self._registries.warm_up(plan_.repositories))
                        await asyncio.wait(solving)
                        warming.cancel()
            except BaseExceptionGroup as group:
                raise _joined(group) from None
        return tuple(task.result() for task in solving)

    def _open_session(self, *more: Attachable) -> AbstractAsyncContextManager[Session]:
        """A session with all that a solve of this build may ask for."""
        return self._client.open_session([*more, *self._attachables], shared_key=self._shared_key)

    async def _solve(self, session: Session, platform: Platform | None) -> _Solved:
        label = "" if platform is None else str(platform)
        on_status = self._on_status

        def labelled(update: StatusUpdate) -> None:
            if on_status is not None:
                on_status(label, update)

        async with AsyncExitStack() as stack:
            own = session
            receiver = self._outputs.attachable(platform, first_exporter=len(self._push_exporter()))
            if receiver is not None:
                # Streams to this machine do not say which solve they belong to, so this solve gets a session of
                # its own for them; where the frontend can be told so, its directories still come from the shared one.
                own = await stack.enter_async_context(self._open_session(receiver))
            work = self._plan.work(platform, directories_session="" if own is session else session.id)
            request = SolveRequest(
                frontend=work.frontend,
                frontend_attrs=work.attrs,
                definition=work.definition,
                result_metadata=work.metadata,
                exporters=[*self._push_exporter(), *self._outputs.exporters],
                cache_imports=self._plan.request.cache_from,
                cache_exports=self._plan.request.cache_to,
                entitlements=self._plan.request.allow,
                label=label,
            )
            try:
                result = await self._client.solve(request, session=own, on_status=labelled)
            except SolveError as error:
                from buildkit_py.builder.hints import hint_for

                error.hint = await hint_for(error, platform, self._client.workers)
                raise
            ended = time.monotonic()
        pushed = await self._read_back(result, platform)
        return _Solved(platform=platform, request=request, result=result, ended=ended, pushed=pushed)

    def _push_exporter(self) -> tuple[ExporterSpec, ...]:
        """Push by digest to untagged names: no tag exists before the whole index does."""
        if not self._plan.repositories:
            return ()
        attrs = {
            "name": ",".join(self._plan.repositories),
            "push": "true",
            "push-by-digest": "true",
            # An engine's embedded BuildKit writes Docker media types unless told otherwise.
            "oci-mediatypes": "true",
            # A daemon with an image store would keep each platform under the same name, the last one winning.
            "store": "false",
        }
        return (ExporterSpec(type="image", attrs=attrs),)

    async def _read_back(self, result: SolveResult, platform: Platform | None) -> Pushed | None:
        """Start as soon as this platform is done: only the slowest one's reading delays the tag."""
        if not self._plan.repositories:
            return None
        root = result.descriptor
        if root is None:
            raise ProtocolError("the daemon pushed an image but did not say which: no containerimage.descriptor")
        from buildkit_py.builder.publish import collect

        return await collect(self._registries.open(), self._plan.repositories, root, platform)

    async def publish(self, solved: Sequence[_Solved]) -> Descriptor | None:
        """Files first, tags last: a build that cannot write its files moves no tag."""
        merged = await self._outputs.publish([entry.platform for entry in solved])
        pushed = [entry.pushed for entry in solved if entry.pushed is not None]
        if pushed:
            from buildkit_py.builder.publish import push_root

            return await push_root(
                self._registries.open(),
                self._plan.references,
                pushed,
                annotations=self._plan.request.annotations,
            )
        if merged is not None:
            return merged
        return solved[0].result.descriptor if len(solved) == 1 else None

    def platform_result(self, entry: _Solved) -> PlatformResult:
        """The public record of one platform."""
        from buildkit_py.digest import Digest

        image = entry.pushed.images[0] if entry.pushed is not None else None
        config = entry.result.response.get("containerimage.config.digest")
        root = entry.result.descriptor
        return PlatformResult(
            platform=entry.platform or (image.descriptor.platform if image is not None else None),
            manifest=image.descriptor if image is not None else root,
            config_digest=(
                image.manifest.config.digest
                if image is not None
                else Digest.parse(config)
                if config is not None
                else None
            ),
            size=image.size if image is not None else None,
            attestations=entry.pushed.attestations if entry.pushed is not None else (),
            ref=entry.request.ref,
            node=self._client.address,
            seconds=entry.result.seconds,
            cached=entry.result.cached,
            total=entry.result.total,
        )


def _joined(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """One error as itself, several as BuildErrors; what is not ours goes on as it is."""
    errors = leaves(group)
    if len(errors) == 1:
        return errors[0]
    ours = [error for error in errors if isinstance(error, BuildKitError)]
    if len(ours) != len(errors):
        return group
    # A daemon that goes away does so for every platform.
    lost = [error for error in ours if isinstance(error, ConnectionLost)]
    return lost[0] if len(lost) == len(ours) else BuildErrors(f"{len(ours)} platforms failed", ours)
