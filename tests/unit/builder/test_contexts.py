"""Contexts: what a daemon is told of each kind, and what is refused before any daemon is asked."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pytest

from buildkit_py import llb
from buildkit_py.builder.request import BuildRequest, DockerfilePlan, plan
from buildkit_py.builder.streams import MAX_DOCKERFILE_BYTES, is_archive, open_streams
from buildkit_py.errors import InvalidOption
from buildkit_py.layout.editing import put_entry
from buildkit_py.oci import OCI_MANIFEST, Descriptor
from buildkit_py.options import SSHSpec
from buildkit_py.session.content import BlobStore
from buildkit_py.session.upload import Replay
from tests.unit.builder.archives import ARCHIVES

DOCKERFILE = b"FROM scratch\n"


@pytest.fixture
def context(tmp_path: Path) -> Path:
    (tmp_path / "Dockerfile").write_bytes(DOCKERFILE)
    return tmp_path


async def opened(**fields: object) -> DockerfilePlan:
    return plan(await open_streams(BuildRequest(**fields)))  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ARCHIVES)
async def test_an_archive_becomes_an_upload(kind: str) -> None:
    """Under a URL that the daemon reads and unpacks; the Dockerfile is looked for in it."""
    checked = await opened(context=io.BytesIO(ARCHIVES[kind]), dockerfile="sub/Other")
    ((url, stream),) = checked.sources.uploads.items()
    assert checked.attrs["context"] == url
    assert checked.attrs["filename"] == "sub/Other"
    assert "dockerfilekey" not in checked.attrs
    assert not checked.directories
    assert await stream.head(10 << 20) == ARCHIVES[kind]


async def test_a_dockerfile_comes_with_an_empty_context() -> None:
    for source in (io.BytesIO(DOCKERFILE), DOCKERFILE):
        checked = await opened(context=source)
        assert checked.sources.files == {"context": {}, "dockerfile": {"Dockerfile": DOCKERFILE}}
        assert checked.attrs["filename"] == "Dockerfile"
        assert not checked.directories


async def test_standard_input(context: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``-`` as the context, and as the Dockerfile beside a directory."""

    class Stdin:
        def __init__(self, content: bytes) -> None:
            self.buffer = io.BytesIO(content)

    monkeypatch.setattr("sys.stdin", Stdin(ARCHIVES["plain"]))
    assert (await opened(context="-")).sources.uploads
    monkeypatch.setattr("sys.stdin", Stdin(DOCKERFILE))
    checked = await opened(context=context, dockerfile="-")
    assert checked.directories == {"context": context.resolve()}
    assert checked.sources.files == {"dockerfile": {"Dockerfile": DOCKERFILE}}
    monkeypatch.setattr("sys.stdin", Stdin(b""))
    with pytest.raises(InvalidOption, match="standard input is empty"):
        await opened(context="-")
    with pytest.raises(InvalidOption, match="both the context and the Dockerfile"):
        await opened(context="-", dockerfile="-")


async def test_streams_that_make_no_sense(context: Path) -> None:
    class Broken(io.RawIOBase):
        def read(self, size: int = -1, /) -> bytes:
            raise OSError(5, "Input/output error")

    for fields, why in (
        ({"context": DOCKERFILE, "dockerfile": "Other"}, "no tar archive but a Dockerfile too"),
        ({"context": context, "dockerfile": b""}, "is empty"),
        ({"context": io.BytesIO(b" \n\n")}, "is empty"),
        ({"context": context, "dockerfile": io.BytesIO(bytes(MAX_DOCKERFILE_BYTES + 1).replace(b"\0", b"#"))}, "more"),
        ({"context": Broken()}, "cannot be read: Input/output error"),
        ({"context": context, "dockerfile": Broken()}, "cannot be read: Input/output error"),
        ({"context": None}, "must be given as its content"),
        ({"context": context, "dockerfile": ""}, "must not be empty"),
    ):
        with pytest.raises(InvalidOption, match=why):
            await opened(**fields)


async def test_a_request_without_streams_stays_as_it_is(context: Path) -> None:
    request = BuildRequest(context=context, dockerfile=DOCKERFILE)
    assert await open_streams(request) is request
    checked = plan(request)
    assert checked.sources.files == {"dockerfile": {"Dockerfile": DOCKERFILE}}
    assert plan(BuildRequest(context=None, dockerfile=DOCKERFILE)).shared_key("a") != checked.shared_key("a")


async def test_an_opened_request_may_be_opened_again() -> None:
    """The command checks a request before build() does."""
    request = await open_streams(BuildRequest(context=ARCHIVES["plain"]))
    assert isinstance(request.context, Replay)
    assert await open_streams(request) is request


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        (b"", False),
        (DOCKERFILE, False),
        (bytes(1024), False),
        (b"#" * 1024, False),
        (b"\x1f\x8b\x08", True),
        (b"BZh9", True),
        (b"\xfd7zXZ\x00", True),
        (ARCHIVES["plain"][:512], True),
        (ARCHIVES["plain"][:511], False),
        (ARCHIVES["pax"][:1024], True),
    ],
)
def test_what_is_an_archive(head: bytes, expected: bool) -> None:
    assert is_archive(head) is expected


@pytest.mark.parametrize(
    "url",
    [
        "https://example.com/repo.git#main:sub",
        "git://example.com/repo",
        "git@example.com:team/repo.git",
        "someone@example.com:repo.git#v1",
        "ssh://git@example.com/repo.git",
        "github.com/moby/buildkit",
    ],
)
def test_urls_are_the_daemons_business(url: str) -> None:
    """The Dockerfile is looked for in them, unless it is one of ours."""
    checked = plan(BuildRequest(context=url, dockerfile="a/b"))
    assert checked.attrs["context"] == url
    assert checked.attrs["filename"] == "a/b"
    assert not checked.directories


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://example.com/repo.git#main:sub", "https://example.com/repo.git#main:sub"),
        ("git://example.com/repo", "git://example.com/repo"),
        ("git@example.com:team/repo.git#v1", "git@example.com:team/repo.git#v1"),
        ("ssh://git@example.com/team/repo.git#v1:sub", "git@example.com:/team/repo.git#v1:sub"),
        ("ssh://git@example.com:22/repo", "git@example.com:/repo"),
        ("github.com/moby/buildkit#master:frontend", "https://github.com/moby/buildkit.git#master:frontend"),
        ("github.com/moby/buildkit.git", "https://github.com/moby/buildkit.git"),
    ],
)
def test_repositories_by_name(context: Path, url: str, expected: str) -> None:
    """In the one form of each that frontends know where they do not stand for the whole context."""
    checked = plan(BuildRequest(context=context, build_contexts={"other": url}))
    assert checked.attrs["context:other"] == expected


@pytest.mark.parametrize(
    ("url", "fullurl", "identifier", "host"),
    [
        ("me@example.com:x/y.git#v1:sub", "me@example.com:x/y.git", "git://example.com/x/y.git#v1:sub", "example.com"),
        ("ssh://git@e.com:2222/y#v1", "ssh://git@e.com:2222/y", "git://e.com:2222/y#v1", "[e.com]:2222"),
        ("ssh://me@example.com/y", "ssh://me@example.com/y", "git://example.com/y", "example.com"),
    ],
)
def test_repositories_that_frontends_do_not_know_by_name(
    context: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str, fullurl: str, identifier: str, host: str
) -> None:
    """They become definitions, with the host's key as this user's ssh knows it."""
    monkeypatch.setenv("HOME", str(tmp_path))
    request = BuildRequest(context=context, build_contexts={"other": url})
    with pytest.raises(InvalidOption, match="build context other: no known_hosts file has a key of"):
        plan(request)
    (tmp_path / ".ssh").mkdir()
    (tmp_path / ".ssh" / "known_hosts").write_text(f"elsewhere ssh-rsa AAAA\n{host},elsewhere ssh-ed25519 BBBB me\n")
    checked = plan(request)
    assert checked.attrs["context:other"] == "input:other"
    definition = llb.Definition.parse(checked.inputs["other"])
    (source,) = [
        definition.op(digest).source
        for digest in definition.walk()
        if definition.op(digest).WhichOneof("op") == "source"
    ]
    assert source.identifier == identifier
    assert source.attrs["git.fullurl"] == fullurl
    assert source.attrs["git.knownsshhosts"] == f"{host} ssh-ed25519 BBBB\n"


def test_a_dockerfile_of_ours_for_a_url(context: Path) -> None:
    """Given as its content or by an absolute path."""
    checked = plan(BuildRequest(context="https://example.com/x.git", dockerfile=DOCKERFILE))
    assert checked.attrs["dockerfilekey"] == "dockerfile"
    assert checked.attrs["filename"] == "Dockerfile"
    assert set(checked.sources.files) == {"dockerfile"}
    checked = plan(BuildRequest(context="https://example.com/x.git", dockerfile=context / "Dockerfile"))
    assert checked.attrs["dockerfilekey"] == "dockerfile"
    assert checked.directories == {"dockerfile": context}


def test_a_directory_that_looks_like_a_url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "me@here:x").mkdir()
    (tmp_path / "me@here:x" / "Dockerfile").write_bytes(DOCKERFILE)
    monkeypatch.chdir(tmp_path)
    assert set(plan(BuildRequest(context="me@here:x")).directories) == {"context", "dockerfile"}


def test_a_repository_over_ssh_gets_the_agent_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """As docker buildx does, unless agents are named."""
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    assert plan(BuildRequest(context="git@example.com:x.git")).request.ssh == ()
    monkeypatch.setenv("SSH_AUTH_SOCK", "/dev/null/agent")
    for url in ("git@example.com:x.git", "ssh://example.com/x"):
        with pytest.raises(InvalidOption, match="ssh default: /dev/null/agent"):
            plan(BuildRequest(context=url))
    assert plan(BuildRequest(context="https://example.com/x.git")).request.ssh == ()
    with pytest.raises(InvalidOption, match="ssh other"):
        plan(BuildRequest(context="git@example.com:x.git", ssh=[SSHSpec(id="other", paths=["/none"])]))


def test_a_link_to_a_dockerfile_elsewhere_is_served_from_there(context: Path, tmp_path: Path) -> None:
    """Links are not followed out of what is served; within it the name stays."""
    inside, outside = context / "inside", tmp_path / "folder"
    inside.symlink_to("Dockerfile")
    assert plan(BuildRequest(context=context, dockerfile=inside)).attrs["filename"] == "inside"
    outside.mkdir()
    (outside / "link").symlink_to(context / "Dockerfile")
    checked = plan(BuildRequest(context=context, dockerfile=outside / "link"))
    assert checked.directories["dockerfile"] == context.resolve()
    assert checked.attrs["filename"] == "Dockerfile"


def make_layout(root: Path, *tags: str) -> list[str]:
    digests: list[str] = []
    root.mkdir()
    for tag in tags:
        raw = json.dumps({"schemaVersion": 2, "tag": tag}).encode()
        descriptor = Descriptor.of(raw, OCI_MANIFEST)
        path = BlobStore(root).path(descriptor.digest)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(raw)
        put_entry(root, descriptor, tag)
        digests.append(str(descriptor.digest))
    return digests


def test_layouts_by_tag_by_digest_and_alone(context: Path, tmp_path: Path) -> None:
    """The daemon gets a digest in any case, and the id of a store instead of a path."""
    one, two = make_layout(tmp_path / "two", "latest", "v2")
    (only,) = make_layout(tmp_path / "on:e", "odd")
    for text, root, rest in (
        (f"{tmp_path}/two", "two", f"@{one}"),
        (f"{tmp_path}/two:v2", "two", f":v2@{two}"),
        (f"{tmp_path}/two@{two}", "two", f"@{two}"),
        (f"{tmp_path}/two:latest@{two}", "two", f":latest@{two}"),
        (f"{tmp_path}/on:e/", "on:e", f"@{only}"),
    ):
        checked = plan(BuildRequest(context=context, build_contexts={"base": f"oci-layout://{text}"}))
        ((store, path),) = checked.sources.layouts.items()
        assert path == (tmp_path / root).resolve()
        assert checked.attrs["context:base"] == f"oci-layout://{store}{rest}"
        assert str(tmp_path) not in checked.attrs["context:base"]


def test_layouts_in_archives(context: Path, tmp_path: Path) -> None:
    """By the same words; what is no such archive is told of before any work."""
    one, two = make_layout(tmp_path / "two", "latest", "v2")
    with tarfile.open(tmp_path / "two.tar", "w") as archive:
        archive.add(tmp_path / "two", ".")
    (tmp_path / "link").symlink_to("two.tar")
    for text, rest in (("two.tar", f"@{one}"), ("two.tar:v2", f":v2@{two}"), (f"link@{two}", f"@{two}")):
        checked = plan(BuildRequest(context=context, build_contexts={"base": f"oci-layout://{tmp_path}/{text}"}))
        ((store, path),) = checked.sources.layouts.items()
        assert path == (tmp_path / "two.tar").resolve()
        assert checked.attrs["context:base"] == f"oci-layout://{store}{rest}"
    (tmp_path / "text").write_text("no archive " * 100)
    with tarfile.open(tmp_path / "other.tar", "w") as archive:
        archive.add(tmp_path / "text", "text")
    with tarfile.open(tmp_path / "two.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "two", ".")
    for text, why in (
        ("text", "text: .*tar"),
        ("other.tar", "this is no OCI layout"),
        ("two.tar:v3", "has no such image; it has latest"),
        ("two.tar.gz", "two.tar.gz: .*tar"),
    ):
        with pytest.raises(InvalidOption, match=f"build context base: .*{why}"):
            plan(BuildRequest(context=context, build_contexts={"base": f"oci-layout://{tmp_path}/{text}"}))


def test_a_layout_whose_only_image_has_no_name(context: Path, tmp_path: Path) -> None:
    """Whatever tag is given is that one, as it is for docker buildx."""
    (only,) = make_layout(tmp_path / "one", "gone")
    index = json.loads((tmp_path / "one" / "index.json").read_text())
    del index["manifests"][0]["annotations"]
    (tmp_path / "one" / "index.json").write_text(json.dumps(index))
    for tag in ("", ":any"):
        checked = plan(BuildRequest(context=context, build_contexts={"base": f"oci-layout://{tmp_path}/one{tag}"}))
        assert checked.attrs["context:base"].endswith(f"{tag}@{only}")


def test_layouts_that_cannot_be_used(context: Path, tmp_path: Path) -> None:
    make_layout(tmp_path / "two", "a", "b")
    (tmp_path / "empty").mkdir()
    for text, why in (
        ("two", "has no such image; it has a, b"),
        ("two:c", "has no such image"),
        ("two@sha256:" + "0" * 64, "has no sha256:0000"),
        ("empty", "this is no OCI layout"),
        ("none", "does not exist"),
    ):
        with pytest.raises(InvalidOption, match=f"build context base: .*{why}"):
            plan(BuildRequest(context=context, build_contexts={"base": f"oci-layout://{tmp_path}/{text}"}))


def test_an_image_name_is_checked(context: Path) -> None:
    with pytest.raises(InvalidOption, match=r"build context base: .*UPPER"):
        plan(BuildRequest(context=context, build_contexts={"base": "docker-image://x/UPPER"}))
    named = {"base": "docker-image://scratch"}
    assert plan(BuildRequest(context=context, build_contexts=named)).attrs["context:base"] == "docker-image://scratch"


def test_a_file_from_the_web_by_name_is_an_input(context: Path) -> None:
    """Unless it is called like a repository; credentials do not show in the name of the vertex."""
    url = "https://me:hunter2@example.com/dir/file.txt?token=hunter2"
    checked = plan(BuildRequest(context=context, build_contexts={"web": url, "repo": "https://example.com/r.git"}))
    assert checked.attrs["context:web"] == "input:web"
    assert checked.attrs["context:repo"] == "https://example.com/r.git"
    (vertex,) = [vertex for vertex in llb.Definition.parse(checked.inputs["web"]).vertexes if vertex.kind == "source"]
    assert vertex.name == "[context web] https://example.com/dir/file.txt"
    assert set(checked.work(None, directories_session="").inputs) == {"web"}
