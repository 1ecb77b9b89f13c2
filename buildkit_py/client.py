"""Client of one daemon: solves, their status, and the daemon's own state."""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import itertools
import json
import re
import secrets
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, TypeAlias

from buildkit_py import features, rpc
from buildkit_py.errors import (
    BuildKitError,
    ConnectionLost,
    InvalidDigest,
    InvalidOption,
    ProtocolError,
    RPCError,
    SessionClosed,
    SolveError,
    UnsupportedByDaemon,
    sole_error,
)
from buildkit_py.options import CacheSpec, ExporterSpec
from buildkit_py.pb import control_pb2, ops_pb2
from buildkit_py.progress import BuildProgress, StatusUpdate
from buildkit_py.session.attachable import CHECK_POLICY, FIND_EXPORTERS, Attachable
from buildkit_py.session.server import Session, open_session

if TYPE_CHECKING:
    from buildkit_py.digest import Digest
    from buildkit_py.features import Feature
    from buildkit_py.llb.definition import Definition
    from buildkit_py.oci import Descriptor
    from buildkit_py.records import DaemonInfo, UsageRecord, Worker
    from buildkit_py.session.policy import SourceRules

_REF_ALPHABET = "0123456789abcdefghijklmnopqrstuvwxyz"
_REF_LENGTH = 25  # as the Go client's random ids

# Source: buildkit, util/apicaps/caps.go, CapError; util/entitlements/entitlements.go, Parse.
_LACKING = re.compile(
    r"unknown API capability (?P<unknown>\S+)"
    r"|requested (?:\w+ )?feature (?P<known>\S+) .*(?:not supported|been disabled)"
    r"|unknown (?P<entitlement>entitlement [\w.]+)"
)
# Source: grpc-go, rpc_util.go.
_TOO_LARGE = re.compile(r"received message larger than max \((\d{1,12}) vs\. (\d{1,12})\)")

MAX_REQUEST_BYTES = 16 << 20
"""What daemons take as one message; those before v0.14 take 4 MiB, as they say when they refuse more.

Source: containerd, defaults/defaults.go; buildkitd has no option for it.
"""

STATUS_DRAIN_SECONDS = 5.0
"""How long after the end of a solve its status may be silent before it is given up."""
_FAILED_DRAIN_SECONDS = 1.0
# A daemon that loses the session often says why in the reply to the solve, a moment later.
_SESSION_GRACE_SECONDS = 2.0

StatusHandler: TypeAlias = Callable[[StatusUpdate], None]
"""Gets each update on the event loop; must not block. What it raises ends the solve."""


def new_ref() -> str:
    """A random id for one solve, which must never be used twice on a daemon."""
    return "".join(secrets.choice(_REF_ALPHABET) for _ in range(_REF_LENGTH))


@dataclass(frozen=True, slots=True, kw_only=True)
class SolveRequest:
    """What a daemon should solve: a frontend with its attributes, or a definition.

    Source: buildkit, api/services/control/control.proto, SolveRequest.
    """

    frontend: str = ""
    """``dockerfile.v0`` or ``gateway.v0``; empty when there is a definition."""
    frontend_attrs: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}), repr=False)
    definition: Definition | bytes | None = None
    """A graph, or a serialised ``pb.Definition``; with all else that is asked for at most 16 MiB, which is what daemons
    take."""
    definitions: Mapping[str, Definition | bytes] = field(default_factory=lambda: MappingProxyType({}))
    """In place of definition: those of one result of several platforms, by the ids that ``refs.platforms`` of
    result_metadata has. Each may be as large as a single one."""
    result_metadata: Mapping[str, bytes] = field(default_factory=lambda: MappingProxyType({}))
    """What the result of definitions says of itself, such as ``containerimage.config``; a frontend says it of its
    own."""
    frontend_inputs: Mapping[str, bytes] = field(default_factory=lambda: MappingProxyType({}))
    exporters: Sequence[ExporterSpec] = ()
    cache_imports: Sequence[CacheSpec] = ()
    cache_exports: Sequence[CacheSpec] = ()
    entitlements: Sequence[str] = ()
    source_rules: SourceRules | None = None
    """What the daemon itself decides about sources by."""
    internal: bool = False
    """True leaves no record in the daemon's build history."""
    ref: str = field(default_factory=new_ref)
    label: str = ""
    """Name of this solve among others in errors, such as its platform."""

    def check(self) -> None:
        """Raise InvalidOption for what no daemon could solve."""
        if sum((bool(self.frontend), self.definition is not None, bool(self.definitions))) != 1:
            raise InvalidOption("a solve needs exactly one of a frontend, a definition, and definitions by platform")
        if self.result_metadata and self.frontend:
            raise InvalidOption("result_metadata: needs a definition; a frontend says it itself")
        if self.definitions and "refs.platforms" not in self.result_metadata:
            raise InvalidOption("definitions: result_metadata must say which platforms they are, as refs.platforms")
        if not self.ref:
            raise InvalidOption("ref: must not be empty")
        for data in self._definitions().values():
            check_size("definition", len(data))

    def _definitions(self) -> dict[str, bytes]:
        """The serialised definitions, by platform; that of a result of one platform has the name ""."""
        given = {"": self.definition} if self.definition is not None else dict(self.definitions)
        return {name: made if isinstance(made, bytes) else made.to_bytes() for name, made in given.items()}

    def definitions_to_pb(self) -> dict[str, ops_pb2.Definition]:
        """Raise InvalidOption when one is not a valid protobuf message."""
        return {name: _definition(data) for name, data in self._definitions().items()}

    def to_pb(self, session: Session) -> control_pb2.SolveRequest:
        """Raise InvalidOption when the definition is not a valid protobuf message, or all of it is too large."""
        self.check()
        attrs = dict(self.frontend_attrs)
        imports = [_cache_to_pb(spec) for spec in self.cache_imports]
        if imports and self.frontend:
            # The frontend resolves these itself; the daemon does not hand them over.
            attrs["cache-imports"] = json.dumps(
                [{"Type": spec.type, "Attrs": dict(spec.attrs)} for spec in self.cache_imports]
            )
        message = control_pb2.SolveRequest(
            Ref=self.ref,
            Session=session.id,
            Frontend=self.frontend,
            FrontendAttrs=attrs,
            FrontendInputs={name: _definition(data) for name, data in self.frontend_inputs.items()},
            Cache=control_pb2.CacheOptions(
                Imports=imports, Exports=[_cache_to_pb(spec) for spec in self.cache_exports]
            ),
            Entitlements=list(self.entitlements),
            Internal=self.internal,
            SourcePolicySession=session.id if session.serves(CHECK_POLICY) else "",
            EnableSessionExporter=session.serves(FIND_EXPORTERS),
            Exporters=[control_pb2.Exporter(Type=spec.type, Attrs=dict(spec.attrs)) for spec in self.exporters],
        )
        if self.source_rules is not None:
            message.SourcePolicy.ParseFromString(self.source_rules.policy)
        if self.definition is not None:
            message.Definition.CopyFrom(self.definitions_to_pb()[""])
        if self.exporters:
            # Daemons before v0.13 know these two fields only.
            message.ExporterDeprecated = self.exporters[0].type
            message.ExporterAttrsDeprecated.update(self.exporters[0].attrs)
        check_size("request", message.ByteSize())
        return message


@dataclass(frozen=True, slots=True, kw_only=True)
class SolveResult:
    """What came of a solve that succeeded."""

    ref: str
    response: Mapping[str, str]
    """The exporters' answers, such as ``containerimage.digest``."""
    seconds: float
    """From the request to the reply."""
    cached: int
    """Vertexes that came from the cache."""
    total: int
    """Vertexes that the daemon reported."""

    @property
    def descriptor(self) -> Descriptor | None:
        """Root of the exported image, or None where no exporter made one; ProtocolError when unreadable."""
        from buildkit_py.oci import Descriptor

        text = self.response.get("containerimage.descriptor")
        if text is None:
            return None
        try:
            fields = json.loads(base64.b64decode(text, validate=True))
        except (binascii.Error, ValueError) as error:
            raise ProtocolError(f"the daemon's containerimage.descriptor is unreadable: {error}") from error
        return Descriptor.from_json(fields)


class Client:
    """One daemon, reached over one connection. Make it with :func:`connect`, which also closes it.

    Any number of calls may run at once. All of them raise ConnectionLost when the daemon goes away or the client
    is closed, and RPCError when it refuses.
    """

    def __init__(self, connection: rpc.Connection) -> None:
        self._connection = connection
        self._capabilities: frozenset[str] | None = None
        self._asking = asyncio.Lock()
        self._checks_versions: bool | None = None
        """Whether the daemon knows of versions of provenance; None until it was tried."""

    @property
    def address(self) -> str:
        """Where the daemon is, such as ``unix:///run/buildkit/buildkitd.sock``."""
        return str(self._connection.address)

    async def info(self) -> DaemonInfo | None:
        """Version of the daemon; None from one older than v0.11, which does not say."""
        from buildkit_py.records import DaemonInfo

        try:
            with rpc.mapped("ask for the version"):
                reply = await self._connection.control.Info(control_pb2.InfoRequest())
        except RPCError as error:
            if error.code == "UNIMPLEMENTED":
                return None
            raise
        return DaemonInfo.from_pb(reply.buildkitVersion)

    async def workers(self, filters: Sequence[str] = ()) -> tuple[Worker, ...]:
        """The daemon's workers, the one that builds first. Filters are containerd's, any of which may match."""
        from buildkit_py.records import Worker

        with rpc.mapped("list the workers"):
            reply = await self._connection.control.ListWorkers(control_pb2.ListWorkersRequest(filter=list(filters)))
        return tuple(Worker.from_pb(record) for record in reply.record)

    async def disk_usage(self, filters: Sequence[str] = ()) -> tuple[UsageRecord, ...]:
        """Records of the build cache of all workers, in the daemon's order."""
        from buildkit_py.records import UsageRecord

        with rpc.mapped("read the disk usage"):
            reply = await self._connection.control.DiskUsage(control_pb2.DiskUsageRequest(filter=list(filters)))
        return tuple(UsageRecord.from_pb(record) for record in reply.record)

    async def prune(
        self,
        filters: Sequence[str] = (),
        *,
        all: bool = False,
        keep_seconds: float = 0,
        reserved_space: int = 0,
        max_used_space: int = 0,
        min_free_space: int = 0,
    ) -> AsyncGenerator[UsageRecord, None]:
        """Delete cache records and yield each one deleted; sizes are in bytes, 0 sets no limit.

        With all, also internal and shared records go. Leaving the iteration early stops the pruning.
        UnsupportedByDaemon from one that would not heed a filter or a size.
        """
        from buildkit_py.records import UsageRecord

        request = control_pb2.PruneRequest(
            filter=list(filters),
            all=all,
            keepDuration=int(keep_seconds * 1e9),
            reservedSpace=reserved_space,
            maxUsedSpace=max_used_space,
            minFreeSpace=min_free_space,
        )
        await self._check(features.used_by_prune(request))
        call = self._connection.control.Prune(request)
        try:
            with rpc.mapped("prune the cache"):
                async for record in call:
                    yield UsageRecord.from_pb(record)
        finally:
            call.cancel()

    async def recorded_attestations(self, ref: str) -> tuple[Descriptor, ...]:
        """What the daemon's build history keeps about how a solve of one result was made; none before it has ended.

        Their blobs are there for read_blob(). RPCError with code UNIMPLEMENTED from a daemon older than v0.11.
        """
        from buildkit_py.digest import Digest
        from buildkit_py.oci import Descriptor

        call = self._connection.control.ListenBuildHistory(control_pb2.BuildHistoryRequest(Ref=ref, EarlyExit=True))
        found: tuple[Descriptor, ...] = ()
        try:
            with rpc.mapped(f"look for the record of solve {ref}"):
                async for event in call:
                    # A record that is still active may have a part of them.
                    if event.type == control_pb2.COMPLETE and event.record.Result.Attestations:
                        found = tuple(
                            Descriptor(
                                media_type=entry.media_type,
                                digest=Digest.parse(entry.digest),
                                size=entry.size,
                                annotations=dict(entry.annotations),
                            )
                            for entry in event.record.Result.Attestations
                        )
        finally:
            call.cancel()
        return found

    async def has_blob(self, digest: Digest) -> bool:
        """Whether the daemon's content store has a blob, now; RPCError from one older than v0.11."""
        from buildkit_py.pb import content_pb2

        try:
            with rpc.mapped("look for a blob"):
                await self._connection.content.Info(content_pb2.InfoRequest(digest=str(digest)))
        except RPCError as error:
            if error.code == "NOT_FOUND":
                return False
            raise
        return True

    async def read_blob(self, digest: Digest, max_bytes: int) -> bytes:
        """A blob of the daemon's content store, checked; ProtocolError when it is wrong, or more than max_bytes."""
        from buildkit_py.pb import content_pb2

        parts: list[bytes] = []
        call = self._connection.content.Read(content_pb2.ReadContentRequest(digest=str(digest)))
        try:
            with rpc.mapped(f"read blob {digest}"):
                async for part in call:
                    parts.append(part.data)
                    if sum(map(len, parts)) > max_bytes:
                        raise ProtocolError(f"blob {digest} is more than {max_bytes} bytes")
        finally:
            call.cancel()
        data = b"".join(parts)
        running = digest.new_hash()
        running.update(data)
        try:
            digest.verify_hash(running, "blob")
        except InvalidDigest as error:
            raise ProtocolError(str(error)) from error
        return data

    async def status(self, ref: str) -> AsyncGenerator[StatusUpdate, None]:
        """Follow one solve to its end, from its beginning; a recorded one is replayed.

        RPCError with code NOT_FOUND when there is no such solve and none appears within 6 seconds. A daemon before
        v0.11 records nothing: for a solve that has ended it may never say anything, and for none it says UNKNOWN.
        """
        call = self._connection.control.Status(control_pb2.StatusRequest(Ref=ref))
        try:
            with rpc.mapped(f"follow solve {ref}"):
                async for message in call:
                    yield StatusUpdate.from_pb(message)
        finally:
            call.cancel()

    def open_session(
        self, attachables: Sequence[Attachable] = (), *, shared_key: str = ""
    ) -> AbstractAsyncContextManager[Session]:
        """Serve attachables to this daemon while the context is open.

        Several solves may use one session, also at once, but not two that export to this machine: the
        daemon does not say which of them a stream belongs to. shared_key names the directories served; two
        different ones must never have the same key.
        """
        return open_session(self._connection, Session(attachables, shared_key=shared_key))

    async def solve(
        self,
        request: SolveRequest | Definition,
        *,
        session: Session | None = None,
        attachables: Sequence[Attachable] = (),
        on_status: StatusHandler | None = None,
    ) -> SolveResult:
        """Run one solve to its end on an open session, or on one of its own that serves attachables.

        A definition is solved for itself, with nothing exported.

        Raises SolveError when it fails, SessionClosed when the session ends before it, ConnectionLost when
        the daemon goes away. Cancelling the call cancels the solve on the daemon. There is no deadline:
        use ``asyncio.timeout``.

        Raises UnsupportedByDaemon instead where the daemon would leave out something of the request, or knows no
        such op. A SourcePolicy in the session decides about the solve's sources. Caches of type local are directories
        of this machine; on a session that is open already they are those that LocalCaches made of them, and serving
        and publishing them is the caller's.
        """
        if not isinstance(request, SolveRequest):
            request = SolveRequest(definition=request)
        request.check()
        if session is not None:
            return await self._checked_solve(request, session, on_status)
        caches = None
        if any(spec.type == "local" for spec in (*request.cache_imports, *request.cache_exports)):
            from buildkit_py.session.content import ContentStores
            from buildkit_py.session.localcache import LocalCaches

            caches = await asyncio.to_thread(LocalCaches, request.cache_imports, request.cache_exports)
            request = replace(request, cache_imports=caches.imports, cache_exports=caches.exports)
            attachables = [*attachables, ContentStores(caches.stores)]
        async with self.open_session(attachables) as own:
            result = await self._checked_solve(request, own, on_status)
        if caches is not None:
            await asyncio.to_thread(caches.publish, result.response)
        return result

    async def capabilities(self) -> frozenset[str]:
        """What the daemon can do for LLB and frontends, by name, such as "exporter.multiple"; asked once."""
        from buildkit_py.rpc import gateway

        async with self._asking:
            if self._capabilities is None:
                with rpc.mapped("ask for the capabilities"), sole_error():
                    self._capabilities = await gateway.capabilities(self._connection, new_ref())
            return self._capabilities

    async def supports(self, capability: str) -> bool:
        """Whether the daemon has a capability. Its version does not tell, as engines embed BuildKit without one."""
        return capability in await self.capabilities()

    async def _has(self, feature: Feature) -> bool:
        if feature.is_ancient and self._connection.says_version:
            return True
        if feature.capability:
            return await self.supports(feature.capability)
        if self._checks_versions is None:
            # Whoever knows about versions refuses one that does not exist; others solve this, which is nothing.
            attrs = {"attest:provenance": "version=none"}
            request = SolveRequest(definition=_empty_directory(), frontend_attrs=attrs, internal=True)
            try:
                async with self.open_session() as session:
                    await self._solve(request, request.to_pb(session), session, None)
            except SolveError:
                self._checks_versions = True
            else:
                self._checks_versions = False
        return self._checks_versions

    async def _message(self, request: SolveRequest, session: Session) -> control_pb2.SolveRequest:
        """What to send; UnsupportedByDaemon where the daemon would leave something of it out."""
        message = request.to_pb(session)
        definitions = request.definitions_to_pb().values() if request.definitions else ()
        used = [*features.used(message), *itertools.chain.from_iterable(map(features.used_by, definitions))]
        await self._check(used)
        return message

    async def _check(self, wanted: Iterable[Feature]) -> None:
        for feature in dict.fromkeys(wanted):
            if not await self._has(feature):
                able = f"BuildKit {feature.since} or newer can"
                raise UnsupportedByDaemon(f"{feature.name}: the daemon at {self.address} cannot do that; {able}")

    async def _checked_solve(
        self, request: SolveRequest, session: Session, on_status: StatusHandler | None
    ) -> SolveResult:
        message = await self._message(request, session)
        if not request.result_metadata:
            return await self._solve(request, message, session, on_status)
        from buildkit_py.rpc import gateway

        inners = {
            platform: gateway.graph_as_gateway(message, definition)
            for platform, definition in request.definitions_to_pb().items()
        }

        async def answer() -> None:
            await gateway.answer(self._connection, request.ref, inners, request.result_metadata)

        return await self._solve(request, message, session, on_status, frontend=answer)

    async def call_frontend(
        self,
        request: SolveRequest,
        *,
        session: Session,
        on_status: StatusHandler | None = None,
    ) -> Mapping[str, bytes]:
        """Run the frontend of a request, and nothing of what it plans; the metadata of its result.

        This is how subrequests are answered, which ``requestid`` of the attributes asks for. Raises what
        solve() raises. Source: buildkit, frontend/subrequests.
        """
        request.check()
        if not request.frontend:
            raise InvalidOption("a call needs a frontend")
        from buildkit_py.rpc import gateway

        message = await self._message(request, session)
        inner = gateway.as_gateway(message)
        found: dict[str, bytes] = {}

        async def answer() -> None:
            await gateway.forward(self._connection, request.ref, inner, found)

        await self._solve(request, message, session, on_status, frontend=answer)
        return MappingProxyType(found)

    async def read_file(
        self,
        definition: Definition,
        path: str,
        *,
        max_bytes: int,
        attachables: Sequence[Attachable] = (),
        source_rules: SourceRules | None = None,
        on_status: StatusHandler | None = None,
    ) -> bytes:
        """Solve a definition and read a file of its result, of a longer one the first max_bytes; no record is left.

        The daemon refuses more than fits into one message of 16 MiB. Raises what solve() raises.
        """
        from buildkit_py.rpc import gateway

        request = SolveRequest(definition=definition, internal=True, source_rules=source_rules)
        found = bytearray()
        async with self.open_session(attachables) as session:
            message = request.to_pb(session)
            inner = gateway.graph_as_gateway(message, message.Definition)

            async def answer() -> None:
                await gateway.read_file(self._connection, request.ref, inner, path, max_bytes, found)

            await self._solve(request, message, session, on_status, frontend=answer)
        return bytes(found)

    async def _solve(
        self,
        request: SolveRequest,
        message: control_pb2.SolveRequest,
        session: Session,
        on_status: StatusHandler | None,
        frontend: Callable[[], Awaitable[None]] | None = None,
    ) -> SolveResult:
        """frontend plays the part of one that the message does not name."""
        progress = BuildProgress()

        def fold(update: StatusUpdate) -> None:
            progress.update(request.label, update)
            if on_status is not None:
                on_status(update)

        started = time.monotonic()
        with sole_error():
            async with asyncio.TaskGroup() as tasks:
                solving = tasks.create_task(self._outcome(message))
                acting = [] if frontend is None else [tasks.create_task(_failure(frontend))]
                silence = _Silence()
                watching = tasks.create_task(self._watch(request.ref, fold, silence))
                dying = tasks.create_task(session.closed.wait())
                await asyncio.wait((solving, dying, *acting), return_when=asyncio.FIRST_COMPLETED)
                if not solving.done():
                    await asyncio.wait((solving,), timeout=_SESSION_GRACE_SECONDS)
                seconds = time.monotonic() - started
                answered = [task for task in (solving, *acting) if task.done()]
                outcome = answered[0].result() if answered else _session_failure(session)
                failed = isinstance(outcome, BuildKitError)
                await _drain(watching, silence, _FAILED_DRAIN_SECONDS if failed else STATUS_DRAIN_SECONDS)
                for task in (solving, watching, dying, *acting):
                    task.cancel()
        counts = progress.counts(request.label)
        if isinstance(outcome, RPCError):
            error = self._solve_error(outcome, request, progress)
            if isinstance(error, SolveError):
                error.cached, error.total = counts.cached, counts.total
            raise error from outcome
        if isinstance(outcome, BuildKitError):
            raise outcome
        return SolveResult(
            ref=request.ref,
            response=MappingProxyType(dict(outcome.ExporterResponse)),
            seconds=seconds,
            cached=counts.cached,
            total=counts.total,
        )

    async def _outcome(self, message: control_pb2.SolveRequest) -> control_pb2.SolveResponse | BuildKitError:
        """The reply or the error, so that an error does not cancel the reading of the status."""
        try:
            with rpc.mapped("solve"):
                return await self._connection.control.Solve(message)
        except BuildKitError as error:
            return error

    async def _watch(self, ref: str, fold: StatusHandler, silence: _Silence) -> None:
        try:
            async with aclosing(self.status(ref)) as updates:
                async for update in updates:
                    silence.broken()
                    fold(update)
        except (RPCError, BuildKitError):
            # The solve's own answer says what happened; the status only shows it.
            return

    def _solve_error(self, error: RPCError, request: SolveRequest, progress: BuildProgress) -> BuildKitError:
        if error.code == "RESOURCE_EXHAUSTED" and (sizes := _TOO_LARGE.search(error.message)):
            return _too_large("request", int(sizes[1]), int(sizes[2]))
        lacking = _LACKING.search(error.message)
        if lacking is not None:
            return UnsupportedByDaemon(
                f"the daemon at {self.address} lacks {lacking[lacking.lastgroup or 0]}: {error.message}"
            )
        failed = rpc.solve_error(error, ref=request.ref, platform=request.label)
        if not failed.vertex:
            return failed
        vertex = progress.vertex(request.label, failed.vertex)
        failed.vertex_name = failed.vertex_name or (vertex.name if vertex is not None else "")
        failed.log_tail = progress.log_tail(request.label, failed.vertex)
        return failed


async def _failure(frontend: Callable[[], Awaitable[None]]) -> BuildKitError:
    """Play the frontend; the error if it fails, of which the solve then knows or not. It never returns otherwise."""
    try:
        with rpc.mapped("answer as the frontend"):
            await frontend()
    except (RPCError, ConnectionLost) as error:
        return error
    never: asyncio.Future[BuildKitError] = asyncio.get_running_loop().create_future()
    return await never


class _Silence:
    """When the last status update came."""

    def __init__(self) -> None:
        self.since = time.monotonic()

    def broken(self) -> None:
        self.since = time.monotonic()


async def _drain(watching: asyncio.Task[None], silence: _Silence, limit: float) -> None:
    """Wait for the status to end, but not longer than limit seconds without an update."""
    silence.broken()
    while not watching.done():
        left = silence.since + limit - time.monotonic()
        if left <= 0:
            return
        await asyncio.wait((watching,), timeout=left)


def _session_failure(session: Session) -> BuildKitError:
    return session.failure or SessionClosed("the session with the daemon ended before the solve")


def check_size(name: str, size: int) -> None:
    """Raise InvalidOption for what is larger than a daemon takes, and say what to do."""
    if size > MAX_REQUEST_BYTES:
        raise _too_large(name, size, MAX_REQUEST_BYTES)


def _too_large(name: str, size: int, most: int) -> InvalidOption:
    who = "daemons take" if most == MAX_REQUEST_BYTES else "this daemon takes"
    return InvalidOption(
        f"{name}: has {size:,} bytes, and {who} at most {most:,} at once; content of files "
        "belongs into llb.local(), llb.http() or an image instead of mkfile(), marshal(source_map=False) leaves "
        "out the program's lines, and what is built and pushed by one build can be llb.image() of the next"
    )


def _cache_to_pb(spec: CacheSpec) -> control_pb2.CacheOptionsEntry:
    return control_pb2.CacheOptionsEntry(Type=spec.type, Attrs=dict(spec.attrs))


def _empty_directory() -> bytes:
    """Definition of something that is made without any files."""
    directory = ops_pb2.FileActionMkDir(path="/empty", mode=0o755, timestamp=-1)
    action = ops_pb2.FileAction(input=-1, secondaryInput=-1, output=0, mkdir=directory)
    operation = ops_pb2.Op(file=ops_pb2.FileOp(actions=[action])).SerializeToString(deterministic=True)
    digest = f"sha256:{hashlib.sha256(operation).hexdigest()}"
    root = ops_pb2.Op(inputs=[ops_pb2.Input(digest=digest)]).SerializeToString(deterministic=True)
    definition = ops_pb2.Definition()
    getattr(definition, "def").extend([operation, root])  # a word of Python's
    return definition.SerializeToString(deterministic=True)


def _definition(data: bytes) -> ops_pb2.Definition:
    try:
        return ops_pb2.Definition.FromString(data)
    except Exception as error:  # protobuf's DecodeError has no common home across its versions
        raise InvalidOption(f"definition: not a pb.Definition: {error}") from error


@asynccontextmanager
async def connect(
    address: str | None = None, *, tls: rpc.TLSConfig | None = None, dial_timeout: float = 10.0
) -> AsyncGenerator[Client, None]:
    """Connect to a daemon and close the connection at the end.

    Without an address: ``$BUILDKIT_HOST``, else the rootful socket, the rootless one, then docker's. Raises
    InvalidAddress, or ConnectFailed with every place that was tried and why it failed.
    """
    async with rpc.open_connection(address, tls=tls, dial_timeout=dial_timeout) as connection:
        yield Client(connection)
