"""The client's calls on a real daemon."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from buildkit_py import SolveRequest, connect, sync
from buildkit_py.client import new_ref
from buildkit_py.digest import Digest
from buildkit_py.errors import ConnectionLost, InvalidOption, RPCError, SolveError
from buildkit_py.options import ExporterSpec
from buildkit_py.pb import ops_pb2
from buildkit_py.progress import StatusUpdate
from buildkit_py.session.filesend import FileSend, FileTarget
from buildkit_py.session.filesync import FileSync, LocalDir

pytestmark = pytest.mark.daemon


def mkfile(path: str, data: bytes) -> bytes:
    """A definition that makes one file."""
    make = ops_pb2.Op(
        file=ops_pb2.FileOp(
            actions=[
                ops_pb2.FileAction(
                    input=-1,
                    secondaryInput=-1,
                    output=0,
                    mkfile=ops_pb2.FileActionMkFile(path=path, mode=0o644, data=data, timestamp=-1),
                )
            ]
        )
    ).SerializeToString(deterministic=True)
    last = ops_pb2.Op(inputs=[ops_pb2.Input(digest=str(Digest.of(make)), index=0)])
    definition = ops_pb2.Definition()
    getattr(definition, "def").extend([make, last.SerializeToString(deterministic=True)])
    return definition.SerializeToString(deterministic=True)


def dockerfile(context: Path, **attrs: str) -> SolveRequest:
    return SolveRequest(frontend="dockerfile.v0", frontend_attrs={"filename": "Dockerfile", **attrs})


def sources(context: Path) -> FileSync:
    return FileSync({"context": LocalDir(context), "dockerfile": LocalDir(context)})


async def test_the_daemon_describes_itself(daemon_address: str) -> None:
    """Version, workers with platforms, and cache records."""
    async with connect(daemon_address) as client:
        info = await client.info()
        workers = await client.workers()
        usage = await client.disk_usage()
    assert info is not None
    assert info.package
    assert "linux" in {platform.os for platform in workers[0].platforms}
    assert workers[0].id
    assert all(record.size >= 0 and record.id for record in usage)


async def test_filters_choose_workers(daemon_address: str) -> None:
    """They are the daemon's to judge."""
    async with connect(daemon_address) as client:
        assert await client.workers(["id==nobody"]) == ()


async def test_solving_a_definition(daemon_address: str, tmp_path: Path) -> None:
    """No frontend, no context: a graph in, a file out."""
    target = FileTarget(tmp_path / "out.tar")
    request = SolveRequest(definition=mkfile("/made", b"by us"), exporters=[ExporterSpec(type="tar", dest="out.tar")])
    async with connect(daemon_address) as client:
        result = await client.solve(request, attachables=[FileSend({0: target})])
        await target.commit()
    assert result.ref == request.ref
    assert result.total >= 1
    assert b"by us" in (tmp_path / "out.tar").read_bytes()


async def test_status_of_a_finished_solve_is_replayed(daemon_address: str, scratch: Path) -> None:
    """From its beginning, to its end, by whoever knows the ref."""
    live: list[StatusUpdate] = []
    request = dockerfile(scratch)
    async with connect(daemon_address) as client:
        result = await client.solve(request, attachables=[sources(scratch)], on_status=live.append)
        replayed = [update async for update in client.status(result.ref)]
    names = {vertex.name for update in live for vertex in update.vertexes}
    assert any("load build definition" in name for name in names)
    assert names == {vertex.name for update in replayed for vertex in update.vertexes}
    assert all(time is None or time > 0 for update in live for v in update.vertexes for time in (v.started_ns,))


async def test_status_of_no_solve(daemon_address: str) -> None:
    """The daemon waits a few seconds for it, then says so."""
    async with connect(daemon_address) as client:
        with pytest.raises(RPCError) as caught:
            async for _ in client.status(new_ref()):
                pass
    assert caught.value.code == "NOT_FOUND"


async def test_a_failing_run_says_what_and_where(
    daemon_address: str, base_images: dict[str, str], tmp_path: Path
) -> None:
    """Vertex, exit code, log tail and the line of the Dockerfile."""
    (tmp_path / "Dockerfile").write_text("FROM alpine\nENV A=1\nRUN echo before && echo why >&2 && exit 7\n")
    request = dockerfile(tmp_path, **{f"context:{name}": value for name, value in base_images.items()})
    async with connect(daemon_address) as client:
        with pytest.raises(SolveError) as caught:
            await client.solve(request, attachables=[sources(tmp_path)])
    error = caught.value
    assert error.exit_code == 7
    assert error.vertex.startswith("sha256:")
    assert "RUN echo before" in error.vertex_name
    assert set(error.log_tail) >= {"before", "why"}
    assert error.sources[0].ranges == ((3, 3),)
    assert ">>> RUN echo before" in error.sources[0].excerpt()
    assert error.ref == request.ref


async def test_a_broken_dockerfile_says_where(daemon_address: str, tmp_path: Path) -> None:
    """No vertex failed; the source is known all the same."""
    (tmp_path / "Dockerfile").write_text("FROM scratch\nCOPPY a b\n")
    async with connect(daemon_address) as client:
        with pytest.raises(SolveError) as caught:
            await client.solve(dockerfile(tmp_path), attachables=[sources(tmp_path)])
    assert "COPPY" in str(caught.value)
    assert caught.value.exit_code is None
    assert caught.value.sources[0].ranges[0][0] == 2


async def test_cancelling_a_solve_cancels_it_on_the_daemon(
    daemon_address: str, base_images: dict[str, str], tmp_path: Path
) -> None:
    """The running process is ended, no task stays here, and the client goes on working."""
    (tmp_path / "Dockerfile").write_text(f"FROM alpine\nRUN echo {new_ref()} && sleep 600\n")
    request = dockerfile(tmp_path, **{f"context:{name}": value for name, value in base_images.items()})
    running = asyncio.Event()

    def watch(update: StatusUpdate) -> None:
        if update.logs:
            running.set()

    async with connect(daemon_address) as client:
        before = asyncio.all_tasks()
        solving = asyncio.create_task(client.solve(request, attachables=[sources(tmp_path)], on_status=watch))
        async with asyncio.timeout(60):
            await running.wait()
            solving.cancel()
            with pytest.raises(asyncio.CancelledError):
                await solving
        assert asyncio.all_tasks() == before
        async with asyncio.timeout(30):
            ended = [v for update in [u async for u in client.status(request.ref)] for v in update.vertexes]
        assert any("sleep 600" in vertex.name and "context canceled" in vertex.error for vertex in ended)
        assert await client.workers()


async def test_two_solves_share_a_session(daemon_address: str, scratch: Path) -> None:
    """Read-only services serve both at once."""
    async with connect(daemon_address) as client, client.open_session([sources(scratch)]) as session:
        first, second = await asyncio.gather(
            client.solve(dockerfile(scratch), session=session),
            client.solve(dockerfile(scratch), session=session),
        )
        assert first.ref != second.ref
        assert session.calls["/moby.filesync.v1.FileSync/DiffCopy"] >= 1


async def test_a_directory_that_is_not_served(daemon_address: str, scratch: Path) -> None:
    """The daemon asks, is refused, and says which."""
    async with connect(daemon_address) as client:
        with pytest.raises(SolveError, match="dockerfile"):
            await client.solve(dockerfile(scratch), attachables=[FileSync({"context": LocalDir(scratch)})])


async def test_an_exception_of_the_status_handler_ends_the_solve(daemon_address: str, scratch: Path) -> None:
    """As itself, with nothing left behind."""

    class Odd(Exception):
        pass

    def fail(update: StatusUpdate) -> None:
        raise Odd

    async with connect(daemon_address) as client:
        before = asyncio.all_tasks()
        with pytest.raises(Odd):
            await client.solve(dockerfile(scratch), attachables=[sources(scratch)], on_status=fail)
        assert asyncio.all_tasks() == before


async def test_prune_yields_what_it_deletes(daemon_address: str, scratch: Path) -> None:
    """Each record once, gone afterwards."""
    (scratch / "file").write_text(new_ref())
    async with connect(daemon_address) as client:
        await client.solve(dockerfile(scratch), attachables=[sources(scratch)])
        before = {record.id for record in await client.disk_usage(["type==source.local"])}
        pruned = [record.id async for record in client.prune(["type==source.local"])]
        after = {record.id for record in await client.disk_usage(["type==source.local"])}
    assert before
    assert len(pruned) == len(set(pruned))
    assert not set(pruned) & after


@pytest.mark.parametrize(
    "request_",
    [
        SolveRequest(),
        SolveRequest(frontend="dockerfile.v0", definition=b""),
        SolveRequest(definition=b"\xff\xff"),
        SolveRequest(frontend="dockerfile.v0", ref=""),
    ],
)
async def test_requests_that_no_daemon_gets(daemon_address: str, request_: SolveRequest) -> None:
    """A definition and a frontend, or neither, and bytes that are no definition."""
    async with connect(daemon_address) as client:
        with pytest.raises(InvalidOption):
            await client.solve(request_)


def test_the_blocking_face(daemon_address: str, scratch: Path) -> None:
    """The same calls, results and errors without asyncio."""
    with sync.connect(daemon_address) as client:
        assert client.info() is not None
        assert client.workers()
        result = client.solve(dockerfile(scratch), attachables=[sources(scratch)])
        assert json.dumps(dict(result.response)) is not None
        assert any(update.vertexes for update in client.status(result.ref))
        for _ in client.status(result.ref):
            break
        with pytest.raises(SolveError):
            client.solve(dockerfile(scratch, target="nope"), attachables=[sources(scratch)])
        assert client.disk_usage()


async def test_a_client_that_is_closed(daemon_address: str, scratch: Path) -> None:
    """Whatever is asked of it."""
    async with connect(daemon_address) as client:
        pass
    with pytest.raises(ConnectionLost, match="is closed"):
        await client.info()
    with pytest.raises(ConnectionLost, match="is closed"):
        await client.solve(dockerfile(scratch), attachables=[sources(scratch)])
    with pytest.raises(ConnectionLost, match="is closed"):
        await anext(client.status(new_ref()))
    with pytest.raises(ConnectionLost, match="is closed"):
        await client.has_blob(Digest.of(b""))


def test_a_blocking_client_that_is_closed(daemon_address: str, scratch: Path) -> None:
    with sync.connect(daemon_address) as client:
        ref = client.solve(dockerfile(scratch), attachables=[sources(scratch)]).ref
        updates = client.status(ref)
        next(updates)
    with pytest.raises(ConnectionLost, match="is closed"):
        client.info()
    with pytest.raises(ConnectionLost, match="is closed"):
        next(updates)


def test_a_callback_cannot_wait_for_its_own_client(daemon_address: str, scratch: Path) -> None:
    """It is called on the thread that would do the work."""
    with sync.connect(daemon_address) as client:

        def on_status(update: StatusUpdate) -> None:
            client.info()

        with pytest.raises(RuntimeError, match="callback"):
            client.solve(dockerfile(scratch), attachables=[sources(scratch)], on_status=on_status)
        assert client.info() is not None


_FORKING = """
import os, sys
from buildkit_py import sync
from buildkit_py.errors import ConnectFailed

def in_child(work):
    child = os.fork()
    if child == 0:
        os._exit(work())
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

def fresh():
    with sync.connect(sys.argv[1]) as client:
        client.info()
    return 5

def inherited():
    try:
        client.info()
    except RuntimeError as error:
        return 6 if "fork" in str(error) else 1

def again():
    try:
        return fresh()
    except ConnectFailed as error:
        return 7 if "fork" in str(error) else 1

print(in_child(fresh))
with sync.connect(sys.argv[1]) as client:
    print(in_child(inherited), in_child(again))
    client.info()
"""


def test_forks(daemon_address: str) -> None:
    """A process that was forked before the first connection has its own; after that it is told why it cannot."""
    done = subprocess.run(
        [sys.executable, "-c", _FORKING, daemon_address],
        # gRPC's own care for forks aborts a child every now and then, before it has run a line.
        env={**os.environ, "GRPC_ENABLE_FORK_SUPPORT": "0"},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (done.returncode, done.stdout.split(), done.stderr) == (0, ["5", "6", "7"], "")


_ON_UVLOOP = """
import asyncio, sys, uvloop
from buildkit_py import BuildRequest, build, connect

async def main():
    async with connect(sys.argv[1]) as client:
        await build(client, BuildRequest(context=sys.argv[2]))
        try:
            async with asyncio.timeout(0.02):
                await build(client, BuildRequest(context=sys.argv[2], no_cache=True))
        except TimeoutError:
            pass
    return len(asyncio.all_tasks())

uvloop.install()
print(asyncio.run(main()))
"""


def test_another_event_loop(daemon_address: str, scratch: Path) -> None:
    """Services often run on uvloop, whose transports are not asyncio's by their class."""
    if importlib.util.find_spec("uvloop") is None:
        pytest.skip("uvloop is not installed")
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "ignore::DeprecationWarning", "-c", _ON_UVLOOP, daemon_address, scratch],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "1\n", "")
