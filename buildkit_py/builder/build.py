"""The life of one build: check, open a session, solve every platform at once, publish."""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeAlias

from buildkit_py.builder.contexts import has_streams, is_web
from buildkit_py.builder.graph import GraphRequest, plan_graph
from buildkit_py.builder.identity import node_id
from buildkit_py.builder.outputs import ClientOutputs, receiver
from buildkit_py.builder.pushes import PushAttempts
from buildkit_py.builder.registries import OpenRegistries
from buildkit_py.builder.request import BuildRequest, Plan, Work, plan
from buildkit_py.builder.result import BuildResult, PlatformResult
from buildkit_py.builder.services import ClientServices
from buildkit_py.builder.steps import needs_gateway, with_gateway
from buildkit_py.builder.transfers import TransferCallback, watched
from buildkit_py.client import Client, SolveRequest, SolveResult, new_ref
from buildkit_py.errors import (
    BuildErrors,
    BuildKitError,
    ConnectionLost,
    InvalidPlatform,
    ProtocolError,
    SolveError,
    UnsupportedByDaemon,
    leaves,
)
from buildkit_py.options import CacheSpec, ExporterSpec
from buildkit_py.platforms import Platform
from buildkit_py.progress import StatusUpdate, VertexWarning
from buildkit_py.session.attachable import Attachable
from buildkit_py.session.auth import Auth
from buildkit_py.session.server import Session

if TYPE_CHECKING:
    # What publishing needs takes long to load, and is loaded while the solves run.
    from buildkit_py.builder.exports import Push
    from buildkit_py.builder.keeping import Keeping
    from buildkit_py.builder.publish import Pushed
    from buildkit_py.oci import Descriptor, Index
    from buildkit_py.registry import CredentialStore, RegistryConfig

StatusCallback: TypeAlias = Callable[[str, StatusUpdate], None]
"""Gets (platform, update) on the event loop; must not block. The platform is "" where none was asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Solved:
    """One platform after its solve, and after its image was read back from the registry."""

    platform: Platform | None
    request: SolveRequest
    result: SolveResult
    ended: float
    pushed: tuple[Pushed, ...]
    """In the order of the plan's pushes."""


async def build(
    client: Client,
    request: BuildRequest | GraphRequest,
    *,
    credentials: CredentialStore | None = None,
    registry_config: RegistryConfig | None = None,
    on_status: StatusCallback | None = None,
    on_transfer: TransferCallback | None = None,
) -> BuildResult:
    """Build a Dockerfile or a graph for every platform of the request, one solve each, and publish what was asked for.

    Bad input raises InvalidOption, InvalidPlatform or InvalidReference before any work. A platform that fails
    cancels the others; its SolveError is raised, or BuildErrors when several failed by themselves. Nothing is
    published then: no tag is moved and no file of an earlier build is touched. Cancelling does the same.
    credentials defaults to those of docker and Podman, registry_config to the settings of this machine.
    on_transfer is told, ten times a second, how far files have come on their way to the daemon.
    """
    if isinstance(request, BuildRequest):
        if has_streams(request.context, request.dockerfile):
            from buildkit_py.builder.streams import open_streams

            request = await open_streams(request)
        if is_web(request.dockerfile):
            from buildkit_py.builder.webfile import fetch_dockerfile

            request = await fetch_dockerfile(client, request, on_status)
        checked: Plan = plan(request)
    else:
        checked = await _plan_graph(client, request)
    started = time.monotonic()
    if needs_gateway(checked.attrs):
        checked = replace(checked, attrs=with_gateway(checked.attrs, await client.workers(), client.address))
    async with AsyncExitStack() as stack:
        insecure = [
            reference.domain for push in checked.exports.pushes if push.insecure for reference in push.references
        ]
        registries = OpenRegistries(credentials, registry_config, insecure=tuple(dict.fromkeys(insecure)))
        stack.push_async_callback(registries.aclose)
        outputs = await stack.enter_async_context(ClientOutputs(checked))
        keeps: Keeping | None = None
        if checked.exports.keeps:
            from buildkit_py.builder.keeping import open_keeping

            keeps = await open_keeping(client, checked, outputs)
            stack.push_async_callback(keeps.discard)
        auth = Auth(registries.credentials, registry_config)
        services = await asyncio.to_thread(ClientServices, checked)
        run = _Run(client, checked, registries, outputs, keeps, auth, services, on_status)
        async with watched(services.transfers, on_transfer):
            solved = await run.solve_all()
        descriptor = await run.publish(solved)
        platforms = tuple([await run.platform_result(entry) for entry in solved])
    ended = time.monotonic()
    return BuildResult(
        platforms=platforms,
        descriptor=descriptor,
        references=checked.exports.references,
        names=checked.exports.names,
        notes=(*run.notes, *(() if keeps is None else keeps.notes)),
        warnings=tuple(run.warnings.values()),
        seconds=ended - started,
        publish_seconds=ended - max(entry.ended for entry in solved),
        transfers=services.transfers(),
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


class _Run:
    """What the solves of one build share."""

    def __init__(
        self,
        client: Client,
        checked: Plan,
        registries: OpenRegistries,
        outputs: ClientOutputs,
        keeps: Keeping | None,
        auth: Auth,
        services: ClientServices,
        on_status: StatusCallback | None,
    ) -> None:
        self._client = client
        self._plan = checked
        self._exports = checked.exports
        self._registries = registries
        self._outputs = outputs
        self._keeps = keeps
        self._on_status = on_status
        self._auth = auth
        self._services = services
        self._attachables: Sequence[Attachable] = ()
        self._shared_key = ""
        self._attempts = PushAttempts(max(1, len(checked.platforms)))
        self._joint: SolveResult | None = None
        """What came of the solve of all platforms, where there is one."""
        self._kept: Index | None = None
        """What the daemon keeps of several platforms, where nothing is pushed."""
        self.notes: list[str] = []
        """What people should know of the solves."""
        self.warnings: dict[VertexWarning, VertexWarning] = {}
        """Those of the daemon as they came, by what tells different ones apart."""

    async def solve_all(self) -> tuple[_Solved, ...]:
        """Solve all platforms at once over one session, so that the context crosses once."""
        plan_ = self._plan
        self._attachables = [*self._services.attachables, self._auth]
        self._shared_key = plan_.shared_key(await asyncio.to_thread(node_id))
        async with self._open_session() as session:
            try:
                async with asyncio.TaskGroup() as tasks:
                    solving = [
                        tasks.create_task(self._solve(session, platform)) for platform in plan_.platforms or (None,)
                    ]
                    if self._exports.pushes:
                        repositories = [name for push in self._exports.pushes for name in push.repositories]
                        warming = tasks.create_task(self._registries.warm_up(repositories))
                        await asyncio.wait(solving)
                        warming.cancel()
                await self._solve_jointly(session)
            except BaseExceptionGroup as group:
                raise _joined(group) from None
        return tuple(task.result() for task in solving)

    def _open_session(self, *more: Attachable) -> AbstractAsyncContextManager[Session]:
        """A session with all that a solve of this build may ask for."""
        return self._client.open_session([*more, *self._attachables], shared_key=self._shared_key)

    async def _solve(self, session: Session, platform: Platform | None) -> _Solved:
        streams = self._outputs.exporters(platform)
        keeps = () if self._keeps is None else self._keeps.exporters(platform)
        pushes = [(push, self._push_exporter(push, platform)) for push in self._exports.pushes]
        # Of what exporters answer under the same key the last one's stays: that has to be what was pushed.
        exporters = [*(spec for spec, _ in streams), *keeps, *(spec for _, spec in pushes[:1])]
        async with AsyncExitStack() as stack:
            own = session
            receiving = receiver(streams)
            if receiving is not None:
                # Streams to this machine do not say which solve they belong to, so this solve gets a session of
                # its own for them; where the frontend can be told so, its directories still come from the shared one.
                own = await stack.enter_async_context(self._open_session(receiving))
            # A lone solve needs no other session, and what it is told is part of its provenance. For several there is
            # no way around that: what says which session has the directories is an argument of the frontend, which
            # daemons record; without it each solve would be sent the context again.
            shared = own is not session and len(self._plan.platforms) > 1
            work = self._plan.work(platform, directories_session=session.id if shared else "")
            caches = self._services.cache_exports(platform)
            first = self._request(work, exporters, platform, cache_exports=caches)

            async def attempt(failed: SolveError | None) -> tuple[SolveRequest, SolveResult]:
                request = replace(first, ref=new_ref())  # a daemon knows each ref once
                if failed is None:
                    try:
                        return request, await self._ask(request, own, platform)
                    except SolveError as error:
                        if receiving is None or receiving.failure is None:
                            raise
                        raise receiving.failure from error
                # What has come to this machine stays; by now nothing is left to run.
                request = replace(request, exporters=exporters[len(streams) :])
                result = await self._ask(request, own, platform)
                return request, replace(result, cached=failed.cached, total=failed.total)

            def may_repeat() -> bool:
                return bool(pushes) and (receiving is None or receiving.complete)

            request, result = await self._attempts.first(attempt, may_repeat=may_repeat)
            ended = time.monotonic()
        pushed: list[Pushed] = []
        for position, (push, exporter) in enumerate(pushes):
            if position:
                # Two images that are pushed by one solve cannot be told apart in its answer.
                again = functools.partial(self._push_again, session, platform, exporter, caches)
                result_of_push = await self._attempts.later(again)
            else:
                result_of_push = result
            pushed.append(await self._read_back(push, result_of_push, platform))
        return _Solved(platform=platform, request=request, result=result, ended=ended, pushed=tuple(pushed))

    async def _push_again(
        self, session: Session, platform: Platform | None, exporter: ExporterSpec, caches: Sequence[CacheSpec]
    ) -> SolveResult:
        """Push another image of what is solved already. An inline cache is part of it; other caches are written."""
        inline = [spec for spec in caches if spec.type == "inline"]
        request = self._request(
            self._plan.work(platform, directories_session=""), [exporter], platform, cache_exports=inline
        )
        return await self._ask_again(request, session, platform)

    async def _ask_again(self, request: SolveRequest, session: Session, platform: Platform | None) -> SolveResult:
        """Solve what is solved already, for one more image."""
        if not request.cache_exports:
            return await self._ask(request, session, platform)
        # Of steps that it still holds from a solve of the same session a daemon finds the layers of that solve's
        # image alone, none of which is in this one. To another session they come from its cache.
        async with self._open_session() as fresh:
            return await self._ask(request, fresh, platform)

    async def _solve_jointly(self, session: Session) -> None:
        """What a daemon has to put together itself: one more solve, of all platforms, with nothing left to run."""
        keeps = () if self._keeps is None else self._keeps.joint_exporters()
        if keeps:
            work = await asyncio.to_thread(self._plan.joint_work)
            caches = self._services.cache_exports(self._plan.platforms[0])
            request = self._request(work, keeps, None, [spec for spec in caches if spec.type == "inline"])
            self._joint = await self._ask_again(request, session, None)

    def _request(
        self,
        work: Work,
        exporters: Sequence[ExporterSpec],
        platform: Platform | None,
        cache_exports: Sequence[CacheSpec] = (),
    ) -> SolveRequest:
        attrs = work.attrs
        if work.frontend and self._client.address.startswith("docker://"):
            # What an engine has loaded is what FROM means there first. Source: docker buildx, the docker driver.
            attrs = {"image-resolve-mode": "local", **attrs}
        return SolveRequest(
            frontend=work.frontend,
            frontend_attrs=attrs,
            frontend_inputs=work.inputs,
            definition=work.definition,
            definitions=work.definitions,
            result_metadata=work.metadata,
            exporters=exporters,
            cache_imports=self._services.cache_imports(platform),
            cache_exports=cache_exports,
            entitlements=self._plan.entitlements,
            source_rules=self._plan.request.source_rules,
            label="" if platform is None else str(platform),
        )

    async def _ask(self, request: SolveRequest, session: Session, platform: Platform | None) -> SolveResult:
        on_status = self._on_status

        def labelled(update: StatusUpdate) -> None:
            for warning in update.warnings:
                self.warnings.setdefault(warning.anywhere, warning)
            if request.cache_imports:
                self._note_missing_cache(update)
            if on_status is not None:
                on_status(request.label, update)

        try:
            return await self._client.solve(request, session=session, on_status=labelled)
        except SolveError as error:
            from buildkit_py.builder.hints import check_exporters, hint_for

            check_exporters(error, self._client.address)
            error.hint = await hint_for(error, platform, self._client.workers)
            raise

    def _note_missing_cache(self, update: StatusUpdate) -> None:
        from buildkit_py.builder.hints import missing_cache

        if kind := missing_cache(update):
            note = (
                f"cache-from type={kind}: the daemon at {self._client.address} has no such caches, and builds without"
            )
            if note not in self.notes:
                self.notes.append(note)

    def _push_exporter(self, push: Push, platform: Platform | None) -> ExporterSpec:
        """Push by digest to untagged names: no tag exists before the whole index does."""
        attrs = {
            # An engine's embedded BuildKit writes Docker media types unless told otherwise.
            "oci-mediatypes": "true",
            **push.attrs,
            **push.annotations.of_image(platform),
            "name": ",".join(push.repositories),
            "push": "true",
            "push-by-digest": "true",
            # A daemon with an image store would keep each platform under the same name, the last one winning.
            "store": "false",
        }
        if push.insecure:
            attrs["registry.insecure"] = "true"
        return ExporterSpec(type="image", attrs=attrs)

    async def _read_back(self, push: Push, result: SolveResult, platform: Platform | None) -> Pushed:
        """Start as soon as this platform is done: only the slowest one's reading delays the tag."""
        root = result.descriptor
        if root is None:
            raise ProtocolError("the daemon pushed an image but did not say which: no containerimage.descriptor")
        from buildkit_py.builder.publish import collect

        return await collect(await self._registries.open(), push.repositories, root, platform)

    async def provenance(self, ref: str) -> Mapping[str, object] | None:
        """What the daemon recorded of a solve, if the request wants to know."""
        mode = self._plan.request.record_provenance
        if not mode:
            return None
        from buildkit_py.builder.provenance import recorded_provenance

        return await recorded_provenance(self._client, ref, mode)

    async def publish(self, solved: Sequence[_Solved]) -> Descriptor | None:
        """Files first, tags last: a build that cannot write its files moves no tag."""
        for entry in solved:
            await asyncio.to_thread(self._services.publish_caches, entry.platform, entry.result.response)
        order = [entry.platform for entry in solved]
        roots = [await self._outputs.publish(order)]
        if self._keeps is not None:
            roots.append(await self._keeps.publish(order))
        for position, push in enumerate(self._exports.pushes):
            from buildkit_py.builder.publish import push_root

            parts = [entry.pushed[position] for entry in solved]
            root = await push_root(await self._registries.open(), push, parts)
            roots.insert(position, root)
        found = next((root for root in roots if root is not None), None)
        if self._keeps is not None and not self._exports.pushes:
            self._kept = await self._keeps.index(found if self._joint is None else self._joint.descriptor)
        joined = solved[0].result if len(solved) == 1 else self._joint
        said = None if joined is None else joined.descriptor
        if found is None or said is None or found.digest != said.digest:
            return found or said
        # The daemon says more of the same root than a layout's index does.
        return said.with_annotations({**said.annotations, **found.annotations})

    async def platform_result(self, entry: _Solved) -> PlatformResult:
        """The public record of one platform."""
        from buildkit_py.digest import Digest

        pushed = entry.pushed[0] if entry.pushed else None
        image = pushed.images[0] if pushed is not None else None
        config = entry.result.response.get("containerimage.config.digest")
        root = entry.result.descriptor
        attestations = pushed.attestations if pushed is not None else ()
        if self._kept is not None and entry.platform is not None:
            root, attestations = _entries(self._kept, entry.platform)
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
            attestations=attestations,
            ref=entry.request.ref,
            node=self._client.address,
            seconds=entry.result.seconds,
            cached=entry.result.cached,
            total=entry.result.total,
            provenance=await self.provenance(entry.request.ref),
            response=entry.result.response,
        )


def _entries(index: Index, platform: Platform) -> tuple[Descriptor | None, tuple[Descriptor, ...]]:
    """The image of a platform, as it stands in an index, and what attests to it."""
    for image in index.images:
        if image.platform is not None and image.platform.normalized() == platform:
            attests = str(image.digest)
            return image, tuple([entry for entry in index.attestations if entry.attests == attests])
    return None, ()


def _joined(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """One error as itself, several as BuildErrors; what is not ours goes on as it is."""
    errors = leaves(group)
    if len(errors) == 1:
        return errors[0]
    ours = [error for error in errors if isinstance(error, BuildKitError)]
    if len(ours) != len(errors):
        return group
    # A daemon that goes away does so for every platform, and so does one that is too old.
    for kind in (ConnectionLost, UnsupportedByDaemon):
        if all(isinstance(error, kind) for error in ours):
            return ours[0]
    return BuildErrors(f"{len(ours)} platforms failed", ours)
