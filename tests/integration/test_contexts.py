"""Where a build takes its files from, on a real daemon: every kind of context, and what of it crosses."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from buildkit_py import BuildRequest, BuildResult, ExporterSpec, SecretSpec, TransferCounts, build, connect
from buildkit_py.errors import SolveError
from tests.support.git_server import Server, find_git_server, git, serve_directory
from tests.support.servers import Registry as RegistryServer

pytestmark = pytest.mark.daemon

DOCKERFILE = b"FROM scratch\nCOPY file /\n"


class Builds:
    """Builds and gives the files of the result."""

    def __init__(self, address: str, folder: Path) -> None:
        self.address = address
        self._folder = folder
        self._count = 0

    async def __call__(self, **fields: object) -> dict[str, bytes]:
        files, _ = await self.with_result(**fields)
        return files

    async def with_result(self, **fields: object) -> tuple[dict[str, bytes], BuildResult]:
        self._count += 1
        out = self._folder / f"out{self._count}"
        output = ExporterSpec(type="local", dest=str(out))
        request = BuildRequest(outputs=[output], attestations={}, **fields)  # type: ignore[arg-type]
        async with connect(self.address) as client:
            result = await build(client, request)
        files = {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()}
        return files, result


@pytest.fixture
def builds(daemon_address: str, tmp_path: Path) -> Builds:
    return Builds(daemon_address, tmp_path)


def tar_of(files: dict[str, bytes], mode: str = "w") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:  # type: ignore[call-overload]
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
async def test_an_archive_as_a_stream(builds: Builds, mode: str) -> None:
    """Plain and compressed, of several platforms, with a Dockerfile of another name in it."""
    archive = tar_of({"sub/Other": DOCKERFILE, "file": b"content"}, mode)
    files = await builds(context=io.BytesIO(archive), dockerfile="sub/Other", platforms=["amd64", "arm64"])
    assert files == {"linux_amd64/file": b"content", "linux_arm64/file": b"content"}


async def test_a_large_archive_through_a_pipe(builds: Builds) -> None:
    """It is read once, and served to both solves."""
    content = os.urandom(8 << 20)
    reading, writing = os.pipe()
    archive = tar_of({"Dockerfile": DOCKERFILE, "file": content})
    feeding = subprocess.Popen(
        [sys.executable, "-c", "import sys,shutil; shutil.copyfileobj(sys.stdin.buffer, sys.stdout.buffer)"],
        stdin=subprocess.PIPE,
        stdout=writing,
    )
    os.close(writing)
    assert feeding.stdin is not None
    with os.fdopen(reading, "rb") as stream:
        feeder = threading.Thread(target=lambda pipe: (pipe.write(archive), pipe.close()), args=(feeding.stdin,))
        feeder.start()
        files = await builds(context=stream, platforms=["amd64", "arm64"])
        feeder.join()
    assert feeding.wait(10) == 0
    assert files == {"linux_amd64/file": content, "linux_arm64/file": content}


async def test_a_dockerfile_alone(builds: Builds) -> None:
    """As bytes, or as a stream that is no archive: the context is empty."""
    dockerfile = b"FROM scratch\nCOPY . /all/\nCOPY <<EOF /made\nhere\nEOF\n"
    assert await builds(context=None, dockerfile=dockerfile) == {"made": b"here\n"}
    assert await builds(context=io.BytesIO(dockerfile)) == {"made": b"here\n"}
    with pytest.raises(SolveError, match="/file"):
        await builds(context=DOCKERFILE)


async def test_a_dockerfile_beside_a_directory(builds: Builds, tmp_path: Path) -> None:
    """Its content as bytes; the .dockerignore of the context counts. Two builds do not mix their Dockerfiles up."""
    context = tmp_path / "context"
    context.mkdir()
    (context / "file").write_text("content")
    (context / "ignored").write_text("x")
    (context / ".dockerignore").write_text("ignored\n")
    assert await builds(context=context, dockerfile=b"FROM scratch\nCOPY . /a/\n") == {
        "a/file": b"content",
        "a/.dockerignore": b"ignored\n",
    }
    assert await builds(context=context, dockerfile=b"FROM scratch\nCOPY f* /b/\n") == {"b/file": b"content"}


async def test_a_dockerfile_outside_of_the_context(builds: Builds, tmp_path: Path) -> None:
    """With a .dockerignore of its own, which comes before that of the context; also where it is a symlink."""
    context, outside, linked = tmp_path / "context", tmp_path / "outside", tmp_path / "linked"
    for folder in (context, outside, linked):
        folder.mkdir()
    for name in ("file", "other"):
        (context / name).write_text(name)
    (context / ".dockerignore").write_text("file\n")
    (outside / "My.Dockerfile").write_text("FROM scratch\nCOPY . /\n")
    (outside / "My.Dockerfile.dockerignore").write_text("other\n.dockerignore\n")
    (linked / "Dockerfile").symlink_to(outside / "My.Dockerfile")
    for path in (outside / "My.Dockerfile", linked / "Dockerfile"):
        assert await builds(context=context, dockerfile=path) == {"file": b"file"}


async def test_only_what_is_copied_crosses(builds: Builds, tmp_path: Path) -> None:
    """A megabyte beside the file that the Dockerfile wants is not sent, nor read."""
    context = tmp_path / "context"
    (context / "wanted").mkdir(parents=True)
    (context / "Dockerfile").write_text("FROM scratch\nCOPY wanted/file /\n")
    (context / "wanted" / "file").write_bytes(b"x" * 1000)
    (context / "wanted" / "beside").write_bytes(os.urandom(1 << 20))
    (context / "large").write_bytes(os.urandom(1 << 20))
    files, result = await builds.with_result(context=context)
    assert files == {"file": b"x" * 1000}
    sent = {transfer.name: transfer for transfer in result.transfers if transfer.bytes_sent}
    assert sent["context"].bytes_sent == 1000
    assert sent["context"].files_sent == 1
    assert sum(transfer.bytes_sent for transfer in result.transfers) < 1200


async def test_counts_are_told_while_files_cross(builds: Builds, tmp_path: Path) -> None:
    """They grow, and end with what the result says; both platforms share one transfer."""
    context = tmp_path / "context"
    context.mkdir()
    (context / "Dockerfile").write_text("FROM scratch\nCOPY . /\n")
    for number in range(2000):
        (context / f"file{number}").write_bytes(os.urandom(4000))
    (context / "large").write_bytes(os.urandom(32 << 20))
    told: list[TransferCounts] = []
    request = BuildRequest(context=context, platforms=["amd64", "arm64"], attestations={})
    async with connect(builds.address) as client:
        result = await build(client, request, on_transfer=told.append)
    counts = [transfer for transfer in told if transfer.name == "context" and transfer.listed > 1]
    assert len(counts) > 1, "nothing was told before the end"
    for field in ("visited", "listed", "requested", "files_sent", "bytes_sent"):
        values = [getattr(transfer, field) for transfer in counts]
        assert values == sorted(values)
    last = counts[-1]
    assert last.done
    assert last in result.transfers
    assert last.files_sent == last.requested == 2002
    assert last.listed == last.visited == 2002
    assert last.bytes_sent > 40_000_000
    assert sum(transfer.bytes_sent > 1000 for transfer in result.transfers) == 1


@pytest.fixture
def web(tmp_path: Path) -> Iterator[Server]:
    """A server of files on loopback."""
    root = tmp_path / "web"
    root.mkdir()
    with serve_directory(root) as server:
        yield server


async def test_an_archive_from_the_web(builds: Builds, web: Server) -> None:
    (web.root / "context.tar.gz").write_bytes(tar_of({"Dockerfile": DOCKERFILE, "file": b"web"}, "w:gz"))
    assert await builds(context=f"{web.url}/context.tar.gz") == {"file": b"web"}
    own = b"FROM scratch\nCOPY file /own\n"
    assert await builds(context=f"{web.url}/context.tar.gz", dockerfile=own) == {"own": b"web"}


async def test_a_dockerfile_of_this_machine_for_an_archive_from_the_web(
    builds: Builds, web: Server, tmp_path: Path
) -> None:
    """Its path is absolute; a relative one would be looked for in the archive."""
    (web.root / "context.tar").write_bytes(tar_of({"file": b"web"}))
    (tmp_path / "Own").write_text("FROM scratch\nCOPY file /own\n")
    assert await builds(context=f"{web.url}/context.tar", dockerfile=tmp_path / "Own") == {"own": b"web"}


@pytest.fixture
def repository(web: Server) -> str:
    """URL of a repository with a branch, a tag and a subdirectory."""
    if find_git_server() is None:
        pytest.skip("git cannot serve repositories here")
    work = web.root / "work"
    (work / "sub").mkdir(parents=True)
    (work / "Dockerfile").write_bytes(DOCKERFILE)
    (work / "file").write_text("main")
    (work / "sub" / "Dockerfile").write_bytes(DOCKERFILE)
    (work / "sub" / "file").write_text("sub")
    git(work, "init", "-q", "-b", "main")
    git(work, "add", "-A")
    git(work, "commit", "-q", "-m", "one")
    git(work, "tag", "v1")
    (work / "file").write_text("branch")
    git(work, "checkout", "-q", "-b", "other")
    git(work, "commit", "-q", "-a", "-m", "two")
    git(work, "clone", "-q", "--bare", str(work), str(web.root / "repo.git"))
    git(web.root / "repo.git", "symbolic-ref", "HEAD", "refs/heads/main")
    return f"{web.url}/repo.git"


@pytest.mark.parametrize(
    ("fragment", "content"),
    [("", "main"), ("#other", "branch"), ("#v1", "main"), ("#main:sub", "sub"), ("#:sub", "sub")],
)
async def test_git_repositories(builds: Builds, repository: str, fragment: str, content: str) -> None:
    assert await builds(context=repository + fragment) == {"file": content.encode()}


async def test_a_private_repository_is_logged_in_to_with_a_secret(builds: Builds, repository: str, web: Server) -> None:
    web.authorization = "Basic b3Blbi1zZXNhbWU="
    with pytest.raises(SolveError):
        await builds(context=repository, no_cache=True)
    secret = SecretSpec(id="GIT_AUTH_HEADER", value=b"basic b3Blbi1zZXNhbWU=")
    web.authorization = "basic b3Blbi1zZXNhbWU="
    assert await builds(context=repository, secrets=[secret]) == {"file": b"main"}


async def test_named_contexts_of_every_kind(
    builds: Builds, repository: str, tmp_path: Path, registry: RegistryServer
) -> None:
    """An image, three ways of an OCI layout, a directory, and a repository."""
    source = tmp_path / "source"
    source.mkdir()
    (source / "Dockerfile").write_text("FROM scratch\nCOPY file /\n")
    (source / "file").write_text("image")
    image = f"{registry.host}/contexts/named:1"
    layout = tmp_path / "layout"
    outputs = [ExporterSpec(type="oci", dest=f"{layout}/")]
    async with connect(builds.address) as client:
        await build(client, BuildRequest(context=source, tags=[image], push=True, attestations={}, outputs=outputs))
        (source / "file").write_text("other")
        other = await build(client, BuildRequest(context=source, tags=["other:2"], attestations={}, outputs=outputs))
    assert other.descriptor is not None
    with tarfile.open(tmp_path / "layout.tar", "w") as archive:
        archive.add(layout, ".")
    named = {
        "image": f"docker-image://{image}",
        "layout": f"oci-layout://{layout}:1",
        "digest": f"oci-layout://{layout}@{other.descriptor.digest}",
        "archive": f"oci-layout://{tmp_path}/layout.tar:2",
        "directory": str(source),
        "git": f"{repository}#other",
        "nothing": "docker-image://scratch",
    }
    dockerfile = (
        b"FROM image AS base\nFROM nothing\n"
        b"COPY --from=base /file /image\nCOPY --from=layout /file /layout\nCOPY --from=digest /file /digest\n"
        b"COPY --from=archive /file /archive\n"
        b"COPY --from=directory /file /directory\nCOPY --from=git /file /git\n"
    )
    files = await builds(context=None, dockerfile=dockerfile, build_contexts=named, platforms=["amd64"])
    assert files == {
        "image": b"image",
        "layout": b"image",
        "digest": b"other",
        "archive": b"other",
        "directory": b"other",
        "git": b"branch",
    }


async def test_a_file_from_the_web_as_a_named_context(builds: Builds, web: Server) -> None:
    (web.root / "plain").write_text("from the web")
    files = await builds(
        context=None,
        dockerfile=b"FROM scratch\nCOPY --from=web / /web/\n",
        build_contexts={"web": f"{web.url}/plain"},
        platforms=["amd64", "arm64"],
    )
    assert files == {f"linux_{arch}/web/context": b"from the web" for arch in ("amd64", "arm64")}
    assert len([line for line in web.requests if "GET /plain" in line]) == 1


@pytest.mark.parametrize("archive", [False, True])
async def test_a_layout_is_a_base_image_for_two_platforms(builds: Builds, tmp_path: Path, archive: bool) -> None:
    """From one index, of which each solve takes what it needs; from a directory, and from what ``type=oci`` writes."""
    source = tmp_path / "source"
    source.mkdir()
    (source / "Dockerfile").write_text("FROM scratch\nARG TARGETARCH\nCOPY ${TARGETARCH} /file\n")
    for arch in ("amd64", "arm64"):
        (source / arch).write_text(arch)
    layout = tmp_path / "layout"
    async with connect(builds.address) as client:
        output = ExporterSpec(type="oci", dest=str(layout) if archive else f"{layout}/")
        request = BuildRequest(context=source, platforms=["amd64", "arm64"], outputs=[output])
        await build(client, request)
    files = await builds(
        context=None,
        dockerfile=b"FROM base\nCOPY <<EOF /own\nown\nEOF\n",
        build_contexts={"base": f"oci-layout://{layout}"},
        platforms=["amd64", "arm64"],
    )
    assert files["linux_amd64/file"] == b"amd64"
    assert files["linux_arm64/file"] == b"arm64"
