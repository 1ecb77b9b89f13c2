"""What steps of a build ask of this machine through the session: secrets and ssh agents."""

from __future__ import annotations

import tarfile
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest

from buildkit_py import BuildRequest, SecretSpec, SolveRequest, SSHSpec, build, connect, features
from buildkit_py.client import SolveResult
from buildkit_py.errors import SolveError, SourceDenied, UnsupportedByDaemon
from buildkit_py.layout.editing import put_entry, remove_unreachable
from buildkit_py.layout.reading import open_layout
from buildkit_py.oci import Manifest
from buildkit_py.options import ExporterSpec
from buildkit_py.session.attachable import Attachable
from buildkit_py.session.content import BlobStore, ContentStores
from buildkit_py.session.directory import DirectoryTarget
from buildkit_py.session.exporter import SessionExporter
from buildkit_py.session.filesend import FileSend, FileTarget
from buildkit_py.session.filesync import FileSync, LocalDir
from buildkit_py.session.policy import Allow, Convert, Deny, Resolve, SourcePolicy, SourceQuestion, Verdict
from buildkit_py.session.secrets import Secrets
from buildkit_py.session.sshforward import SSHForward
from tests.support import openssh
from tests.support.servers import Registry as RegistryServer

pytestmark = pytest.mark.daemon


class Builder:
    """Builds the text of a Dockerfile over busybox, and keeps the files of the last stage."""

    def __init__(self, address: str, busybox: Path, folder: Path) -> None:
        self._address = address
        self._busybox = busybox
        self.context = folder / "context"
        self.context.mkdir()
        self.out = folder / "out"

    async def __call__(self, dockerfile: str, *attachables: Attachable) -> SolveResult:
        (self.context / "Dockerfile").write_text(dockerfile)
        sources = {"context": self.context, "dockerfile": self.context, "busybox": self._busybox}
        request = SolveRequest(
            frontend="dockerfile.v0",
            frontend_attrs={"context:busybox": "local:busybox", "no-cache": ""},
            exporters=[ExporterSpec(type="local")],
        )
        async with connect(self._address) as client:
            return await client.solve(
                request,
                attachables=[
                    FileSync({name: LocalDir(path) for name, path in sources.items()}),
                    FileSend({0: DirectoryTarget(self.out)}),
                    *attachables,
                ],
            )


@pytest.fixture
def builder(daemon_address: str, busybox: Path, tmp_path: Path) -> Builder:
    return Builder(daemon_address, busybox, tmp_path)


async def test_secrets_of_all_kinds(builder: Builder, tmp_path: Path, secrets_as_variables: bool) -> None:
    """As files and as variables of the step; what is stored of the build holds none of them."""
    (tmp_path / "file").write_bytes(b"from a file\n")

    async def function() -> bytes:
        return b"from a function"

    secrets = Secrets(
        [
            SecretSpec(id="file", file=tmp_path / "file"),
            SecretSpec(id="env", env="NAME"),
            SecretSpec(id="bytes", value=b"\x00\xff"),
            SecretSpec(id="function", value=function),
        ],
        environ={"NAME": "from the environment"},
    )
    place, read = "env=TOKEN", "true"
    if not secrets_as_variables:
        with pytest.raises(SolveError, match="unexpected key 'env'"):
            await builder(f"FROM busybox\nRUN --mount=type=secret,id=env,{place} true\n", secrets)
        place, read = "target=/t", "TOKEN=$(cat /t)"
    await builder(
        "FROM busybox AS build\n"
        f"RUN --mount=type=secret,id=file --mount=type=secret,id=bytes --mount=type=secret,id=env,{place} "
        "--mount=type=secret,id=function,target=/f --mount=type=secret,id=absent "
        f"{read} && mkdir /o && cp /run/secrets/file /o/file && cp /run/secrets/bytes /o/bytes && cp /f /o/function "
        '&& printf "%s" "$TOKEN" > /o/env && ls /run/secrets > /o/list\n'
        "FROM scratch\nCOPY --from=build /o /\n",
        secrets,
    )
    found = {path.name: path.read_bytes() for path in builder.out.iterdir()}
    assert found == {
        "file": b"from a file\n",
        "bytes": b"\x00\xff",
        "function": b"from a function",
        "env": b"from the environment",
        "list": b"bytes\nfile\n",
    }


async def test_a_secret_that_is_required_and_not_there(builder: Builder) -> None:
    with pytest.raises(SolveError, match=r"absent: not found"):
        await builder("FROM busybox\nRUN --mount=type=secret,id=absent,required true\n", Secrets([]))


async def test_a_function_that_fails_fails_the_step(builder: Builder) -> None:
    def broken() -> bytes:
        raise RuntimeError("hunter2")

    with pytest.raises(SolveError, match="secret s: its function raised RuntimeError") as caught:
        await builder("FROM busybox\nRUN --mount=type=secret,id=s true\n", Secrets([SecretSpec(id="s", value=broken)]))
    assert "hunter2" not in str(caught.value)


def signing(id: str) -> str:
    """A Dockerfile of which a step signs with an agent."""
    return (
        f"FROM busybox AS build\nCOPY tools /\nRUN --mount=type=ssh,id={id} {openssh.SIGN}\n"
        "FROM scratch\nCOPY --from=build /o /\n"
    )


@pytest.mark.parametrize("kind", ["ed25519", "ecdsa", "rsa"])
async def test_key_files_sign_in_a_step(builder: Builder, tmp_path: Path, kind: str) -> None:
    """OpenSSH in the step lists the keys, signs with one of them and cannot remove them."""
    openssh.copy_programs(builder.context / "tools")
    keys = [openssh.new_key(tmp_path / "one", kind), openssh.new_key(tmp_path / "two")]
    forward = SSHForward([SSHSpec(id="keys", paths=[tmp_path / "one", tmp_path / "two"])])
    await builder(signing("keys"), forward)
    openssh.verify(builder.out, keys)


async def test_an_agent_signs_in_a_step(builder: Builder, tmp_path: Path) -> None:
    """OpenSSH's agent; another id beside it."""
    openssh.copy_programs(builder.context / "tools")
    key = openssh.new_key(tmp_path / "one")
    openssh.new_key(tmp_path / "other")
    with openssh.run_agent(tmp_path / "agent.sock", [tmp_path / "one"]) as environ:
        forward = SSHForward([SSHSpec(), SSHSpec(id="other", paths=[tmp_path / "other"])], environ=environ)
        await builder(signing("default"), forward)
    openssh.verify(builder.out, [key])


async def test_an_ssh_id_that_was_not_given(builder: Builder) -> None:
    step = "FROM busybox\nRUN --mount=type=ssh,id=absent,required true\n"
    with pytest.raises(SolveError, match="absent"):
        await builder(step, SSHForward([]))
    with pytest.raises(SolveError, match="absent"):
        await builder(step)
    await builder('FROM busybox\nRUN --mount=type=ssh,id=absent test ! -e "$SSH_AUTH_SOCK"\n', SSHForward([]))


async def _policy_works(address: str) -> bool:
    async with connect(address) as client:
        return await client.supports("source.policy.session")


async def test_a_policy_decides_about_sources(daemon_address: str, builder: Builder) -> None:
    """A daemon that cannot ask is refused; one that can asks again once it has resolved what we want to know."""
    if not await _policy_works(daemon_address):
        with pytest.raises(UnsupportedByDaemon, match="a source policy, which would not be asked"):
            await builder("FROM scratch\nCOPY Dockerfile /\n", SourcePolicy(lambda question: Allow()))
        return
    asked: list[str] = []

    def decide(question: SourceQuestion) -> Verdict:
        asked.append(question.identifier)
        if question.identifier.startswith("https://denied.example/"):
            return Deny(("not from there", "ask the security team"))
        return Allow()

    await builder("FROM scratch\nCOPY Dockerfile /\n", SourcePolicy(decide))
    assert any(identifier.startswith("local://") for identifier in asked)
    with pytest.raises(SourceDenied, match="not from there; ask the security team") as caught:
        await builder("FROM scratch\nADD https://denied.example/x /\n", SourcePolicy(decide))
    assert caught.value.source == "https://denied.example/x"
    assert caught.value.reasons == ("not from there", "ask the security team")


async def test_a_policy_replaces_a_source_and_looks_at_it(
    daemon_address: str, builder: Builder, registry: RegistryServer
) -> None:
    if not await _policy_works(daemon_address):
        pytest.skip("the daemon has no source.policy.session, and is refused")
    image = f"{registry.host}/policy/base:1"
    async with connect(daemon_address) as client:
        (builder.context / "Dockerfile").write_text("FROM scratch\nCOPY Dockerfile /base\n")
        await build(client, BuildRequest(context=builder.context, tags=[image], push=True, attestations={}))
    seen: list[SourceQuestion] = []

    def decide(question: SourceQuestion) -> Verdict:
        if question.identifier == "docker-image://docker.io/library/alpine:latest":
            return Convert(f"docker-image://{image}")
        if question.identifier == f"docker-image://{image}":
            if not question.resolved:
                return Resolve(image_config=True)
            seen.append(question)
        return Allow()

    await builder("FROM alpine\nCOPY Dockerfile /own\n", SourcePolicy(decide))
    assert (builder.out / "base").exists()
    assert seen
    assert seen[0].image_digest.startswith("sha256:")
    assert b"rootfs" in seen[0].image_config


async def test_a_policy_of_a_build_for_two_platforms(daemon_address: str, builder: Builder) -> None:
    """Asked for each, also where each exports to this machine over a session of its own; one denial ends all."""
    (builder.context / "Dockerfile").write_text("FROM scratch\nCOPY Dockerfile /\n")
    platforms: set[str] = set()

    async def decide(question: SourceQuestion) -> Verdict:
        platforms.add(str(question.platform))
        return Allow()

    request = BuildRequest(
        context=builder.context,
        platforms=["amd64", "arm64"],
        attestations={},
        source_policy=decide,
        outputs=[ExporterSpec(type="local", dest=str(builder.out))],
    )
    async with connect(daemon_address) as client:
        if not await client.supports("source.policy.session"):
            with pytest.raises(UnsupportedByDaemon, match="a source policy"):
                await build(client, request)
            return
        await build(client, request)
        assert platforms
        assert (builder.out / "linux_arm64" / "Dockerfile").exists()
        with pytest.raises(SourceDenied, match="no local files"):
            await build(client, replace(request, source_policy=lambda question: Deny(("no local files",))))


async def test_exporters_chosen_when_the_result_is_known(
    daemon_address: str, builder: Builder, tmp_path: Path, capabilities: frozenset[str]
) -> None:
    """A second export, whose place is after those of the request; a daemon that would not ask is refused."""
    out = tmp_path / "files.tar"
    seen: list[Mapping[str, bytes]] = []

    def choose(metadata: Mapping[str, bytes], refs: Sequence[str]) -> Sequence[ExporterSpec]:
        seen.append(metadata)
        assert len(refs) == 1
        return [ExporterSpec(type="tar")]

    exporter = SessionExporter(choose)
    known = features.LATE_EXPORTERS.capability in capabilities
    (builder.context / "Dockerfile").write_text("FROM scratch\nCOPY Dockerfile /file\n")
    directory = LocalDir(builder.context)
    target = FileTarget(out)
    async with connect(daemon_address) as client:
        expected = nullcontext() if known else pytest.raises(UnsupportedByDaemon, match=r"BuildKit v0\.21")
        with expected:
            await client.solve(
                SolveRequest(frontend="dockerfile.v0", exporters=[ExporterSpec(type="local")]),
                attachables=[
                    FileSync({"context": directory, "dockerfile": directory}),
                    FileSend({0: DirectoryTarget(builder.out), 1: target}),
                    exporter,
                ],
            )
    if not known:
        assert not builder.out.exists()
        return
    await target.commit()
    assert (builder.out / "file").exists()
    with tarfile.open(out) as archive:
        assert "file" in archive.getnames()
    assert b"rootfs" in seen[0]["containerimage.config"]
    if await _policy_works(daemon_address):  # of the same age as this part
        assert exporter.response is not None


async def test_an_export_into_a_content_store(daemon_address: str, builder: Builder, tmp_path: Path) -> None:
    """The oci exporter without a tar writes its blobs into the store called export; all of the image is there."""
    (builder.context / "Dockerfile").write_text("FROM scratch\nCOPY Dockerfile /file\n")
    directory = LocalDir(builder.context)
    store = BlobStore(tmp_path / "layout", writable=True)
    async with connect(daemon_address) as client:
        result = await client.solve(
            SolveRequest(
                frontend="dockerfile.v0", exporters=[ExporterSpec(type="oci", attrs={"tar": "false", "name": "x/y:1"})]
            ),
            attachables=[
                FileSync({"context": directory, "dockerfile": directory}),
                ContentStores({"export": store}),
            ],
        )
    assert result.descriptor is not None
    put_entry(store.root, result.descriptor, "1")
    with open_layout(store.root) as layout:
        root = layout.resolve("1")
        manifest = Manifest.parse(layout.read(root), root.media_type)
        assert [len(layout.read(blob)) for blob in manifest.blobs] == [blob.size for blob in manifest.blobs]
    assert remove_unreachable(store.root) == 0
