"""Everything that ``imagetools`` does, as a user types it, against Distribution without authentication, with a
password, with tokens, and with TLS by a private authority; and next to skopeo and oras, which read what we write and
the reverse.
"""

from __future__ import annotations

import asyncio
import base64
import gzip
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from buildkit_py.cli.main import main
from buildkit_py.digest import Digest
from buildkit_py.errors import NotFound
from buildkit_py.layout.reading import open_layout
from buildkit_py.oci import DOCKER_CONFIG, DOCKER_INDEX, DOCKER_MANIFEST, OCI_INDEX, Index, Manifest
from buildkit_py.registry import DockerCredentials, Registry, RegistryConfig, StaticCredentials
from tests.support import peers, servers
from tests.support.contents import DOCKER_LAYER, Document, artifact, attestation, described, encode, image, index
from tests.support.token_server import run_token_registry

pytestmark = pytest.mark.daemon

_SECONDS = 60
KINDS = ["plain", "password", "tokens", "tls"]


@dataclass
class Place:
    """A registry, and a machine that is set up for it: docker's login, and a certs.d directory."""

    server: servers.Registry
    folder: Path
    capsys: pytest.CaptureFixture[str]
    err: str = ""
    """What the last command told."""

    @property
    def host(self) -> str:
        return self.server.host

    def name(self, repository: str) -> str:
        return f"{self.host}/{repository}"

    def run(self, *words: str, code: int = 0) -> str:
        """Stdout of ``buildkit-py imagetools``."""
        ended = main(["imagetools", *words])
        printed = self.capsys.readouterr()
        assert ended == code, printed.err
        self.err = printed.err
        return printed.out

    def push(self, document: Document, reference: str) -> Document:
        async def push() -> None:
            async with Registry() as registry:
                repository, _, tag = reference.rpartition(":")
                await document.push(registry, self.name(repository), tag)

        asyncio.run(push())
        return document

    def raw(self, reference: str) -> bytes:
        async def fetch() -> bytes:
            async with Registry() as registry:
                return (await registry.fetch_manifest(self.name(reference)))[0]

        return asyncio.run(fetch())

    def server_blob(self, digest: Digest, repository: str) -> Path:
        """The link by which a repository has a blob, in the registry's storage."""
        data = self.server.log.parent / "data" / "docker" / "registry" / "v2" / "repositories"
        return data / repository / "_layers" / digest.algorithm / digest.hex / "link"

    def peer(self, program: str | None, *words: str, code: int = 0) -> str:
        """Stdout of another program, which trusts and knows what we do."""
        if program is None:
            pytest.skip("a program to compare with is missing (make servers)")
        env = {"PATH": os.defpath, "HOME": str(self.folder), "DOCKER_CONFIG": str(self.folder / "docker")}
        if self.server.ca is not None:
            env["SSL_CERT_FILE"] = str(self.server.ca)
        done = subprocess.run(
            [program, *words], env=env, capture_output=True, text=True, timeout=_SECONDS, check=False, cwd=self.folder
        )
        assert done.returncode == code, done.stderr[-2000:]
        return done.stdout

    def skopeo(self, *words: str) -> str:
        return self.peer(peers.skopeo(), *words)

    def oras(self, *words: str) -> str:
        return self.peer(peers.oras(), *words)

    @property
    def skopeo_source(self) -> list[str]:
        return [] if self.server.ca else ["--src-tls-verify=false"]

    @property
    def skopeo_target(self) -> list[str]:
        return [] if self.server.ca else ["--dest-tls-verify=false"]

    @property
    def oras_plain(self) -> list[str]:
        return [] if self.server.ca else ["--plain-http"]


@pytest.fixture(params=KINDS)
def place(
    request: pytest.FixtureRequest,
    registry: servers.Registry,
    auth_registry: servers.Registry,
    tls_registry: servers.Registry,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Iterator[Place]:
    """Each of the four, with settings where a user's would be."""
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
    monkeypatch.setenv("BUILDKIT_PY_CERTS_D", str(tmp_path / "certs.d"))
    (tmp_path / "docker").mkdir()

    def made(server: servers.Registry) -> Place:
        if server.username:
            pair = base64.b64encode(f"{server.username}:{server.password}".encode()).decode()
            (tmp_path / "docker" / "config.json").write_text(json.dumps({"auths": {server.host: {"auth": pair}}}))
        if server.ca is not None:
            folder = tmp_path / "certs.d" / server.host
            folder.mkdir(parents=True)
            shutil.copy(server.ca, folder / "ca.crt")
        return Place(server, tmp_path, capsys)

    if request.param == "tokens":
        with run_token_registry(tmp_path / "tokens") as (server, _):
            yield made(server)
    else:
        yield made({"plain": registry, "password": auth_registry, "tls": tls_registry}[request.param])


@pytest.fixture
def team(place: Place, request: pytest.FixtureRequest) -> str:
    """A repository of this test alone."""
    name = re.sub(r"[^a-z0-9]+", "-", str(request.node.name).lower()).strip("-")
    return f"private/{name}"


AMD64, ARM64, ARMV7 = image("linux/amd64"), image("linux/arm64"), image("linux/arm/v7")


def attested(*platforms: str, text: str = "attested") -> Document:
    images = [image(platform, text=text) for platform in platforms]
    return index(*images, *(attestation(of) for of in images))


def test_create_inspect_verify(place: Place, team: str) -> None:
    """Two repositories are joined in a third; blobs come by mount; doing it again changes nothing."""
    place.push(AMD64, f"{team}/one:v1")
    place.push(ARM64, f"{team}/two:v1")
    words = [place.name(f"{team}/one:v1"), place.name(f"{team}/two:v1")]
    target = place.name(f"{team}/joined:v1")
    digest = place.run("create", "-t", target, "-t", f"{target}.0", *words).strip()
    assert "4 mounted, 0 present, 0 sent" in place.err
    assert f"{target}: written" in place.err
    raw = place.raw(f"{team}/joined:v1")
    assert (str(Digest.of(raw)), place.raw(f"{team}/joined:v1.0")) == (digest, raw)
    place.run("create", "-t", target, *words)
    assert f"{target}: was there already" in place.err
    assert f"Digest:    {digest}" in place.run("inspect", target)
    verified = json.loads(place.run("verify", "--json", "--full", target))
    assert (verified["ok"], verified["manifests"], verified["blobs"]) == (True, 3, 4)
    assert verified["pulls"]["linux/arm64"] == str(ARM64.digest)


def test_append_replaces_and_filters(place: Place, team: str) -> None:
    newer = image("linux/amd64", text="newer")
    place.push(attested("linux/amd64", "linux/arm64"), f"{team}:v1")
    place.push(newer, f"{team}:new")
    place.run("create", "--append", "-t", place.name(f"{team}:v1"), place.name(f"{team}:new"))
    found = Index.parse(place.raw(f"{team}:v1"))
    # The image that went took its attestation along.
    assert [str(entry.platform) for entry in found.images] == ["linux/amd64", "linux/arm64"]
    assert found.images[0].digest == newer.digest
    assert len(found.attestations) == 1
    place.run("create", "-p", "linux/arm64", "-t", place.name(f"{team}:arm"), place.name(f"{team}:v1"))
    kept = Index.parse(place.raw(f"{team}:arm"))
    assert [str(entry.platform) for entry in kept.manifests] == ["linux/arm64", "unknown/unknown"]


def test_copy_through_a_layout(place: Place, team: str, tmp_path: Path) -> None:
    """Registry to layout to registry: every byte, the attestations, and a signature that refers to the index."""
    made = place.push(attested("linux/amd64", "linux/arm64"), f"{team}:v1")
    signature = place.push(artifact("application/vnd.example.signature", subject=made), f"{team}:sig")
    asyncio.run(track(place, team, signature))
    layout = f"layout:{tmp_path / 'layout'}"
    assert place.run("copy", place.name(f"{team}:v1"), layout).strip() == str(made.digest)
    assert f"referrer {signature.digest}" in place.err
    assert json.loads(place.run("verify", "--json", "--full", layout))["ok"]
    with open_layout(tmp_path / "layout") as opened:
        assert opened.read(opened.resolve("v1")) == made.raw
    copied = place.name(f"{team}/copy:v2")
    assert place.run("copy", layout, copied).strip() == str(made.digest)
    assert place.raw(f"{team}/copy:v2") == made.raw
    assert json.loads(place.run("verify", "--json", "--full", copied))["ok"]

    async def referrers() -> list[Digest]:
        async with Registry() as registry:
            return [entry.digest for entry in await registry.referrers(place.name(f"{team}/copy"), made.digest)]

    assert asyncio.run(referrers()) == [signature.digest]
    place.run("copy", layout, copied)
    assert "was there already" in place.err


async def track(place: Place, repository: str, document: Document) -> None:
    """Let the registry's clients find it by its subject."""
    async with Registry() as registry:
        await registry.push_manifest(place.name(repository), document.raw, document.media_type)


@pytest.mark.parametrize("suffix", ["", ".tar"])
def test_copy_some_platforms(place: Place, team: str, tmp_path: Path, suffix: str) -> None:
    place.push(attested("linux/amd64", "linux/arm64"), f"{team}:v1")
    layout = f"layout:{tmp_path / f'some{suffix}'}"
    place.run("copy", "-p", "linux/arm64", place.name(f"{team}:v1"), layout)
    raw = place.run("inspect", "--raw", layout)
    assert [str(entry.platform) for entry in Index.parse(raw.encode()).manifests] == ["linux/arm64", "unknown/unknown"]
    place.run("copy", "--no-attestations", place.name(f"{team}:v1"), place.name(f"{team}/bare:v1"))
    assert len(Index.parse(place.raw(f"{team}/bare:v1")).manifests) == 2
    place.run("copy", "-p", "linux/s390x", place.name(f"{team}:v1"), place.name(f"{team}/bare:v2"), code=1)
    assert "there is no image for linux/s390x" in place.err


def test_edit(place: Place, team: str) -> None:
    made = place.push(attested("linux/amd64", "linux/arm64", "linux/arm/v7"), f"{team}:v1")
    reference = place.name(f"{team}:v1")
    printed = place.run("rm-platform", "--dry-run", reference, "linux/arm/v7")
    place.run("rm-platform", reference, "linux/arm/v7")
    assert place.raw(f"{team}:v1") == printed.removesuffix("\n").encode()
    assert len(Index.parse(printed.strip().encode()).manifests) == 4
    place.run("rm-platform", reference, "linux/s390x", code=1)
    words = ["--annotation", "index:a=1", "--annotation", "manifest-descriptor[linux/arm64]:b=2"]
    place.run("annotate", "-t", place.name(f"{team}/other:v1"), *words, reference)
    changed = Index.parse(place.raw(f"{team}/other:v1"))
    assert changed.annotations == {"a": "1"}
    assert [dict(entry.annotations) for entry in changed.images] == [{}, {"b": "2"}]
    assert {entry.digest for entry in changed.manifests} < {entry.digest for entry in Index.parse(made.raw).manifests}
    place.run("annotate", "--remove", "index:a", place.name(f"{team}/other:v1"))
    assert not Index.parse(place.raw(f"{team}/other:v1")).annotations


def test_digest_files_of_jobs(place: Place, team: str, tmp_path: Path) -> None:
    """Each job leaves a file; whoever has the files makes the index, and makes sure of the images."""
    files: list[str] = []
    for document, platform in ((AMD64, "linux/amd64"), (ARM64, "linux/arm64")):
        place.push(document, f"{team}:{platform.replace('/', '-')}")
        path = tmp_path / f"{platform.replace('/', '-')}.json"
        path.write_text(
            json.dumps(
                {
                    "containerimage.descriptor": document.entry,
                    "image.name": place.name(team),
                    "buildkit_py.platforms": {platform: {"manifest.digest": str(document.digest)}},
                }
            )
        )
        files.append(str(path))
    metadata = tmp_path / "metadata.json"
    first = place.run("create", "-t", place.name(f"{team}:v1"), "--metadata-file", str(metadata), *files)
    assert json.loads(metadata.read_text())["containerimage.descriptor"]["digest"] == first.strip()
    assert place.run("create", "-t", place.name(f"{team}:v1"), *files) == first
    assert "was there already" in place.err
    gone = never_pushed(files[0], ARMV7, place.name(team))
    place.run("create", "-t", place.name(f"{team}:v2"), files[0], str(gone), code=1)
    assert "is not there" in place.err
    with pytest.raises(NotFound):
        place.raw(f"{team}:v2")


def never_pushed(file: str, other: Document, name: str) -> Path:
    """A job's file that names an image that is nowhere."""
    path = Path(file).with_name("gone.json")
    path.write_text(json.dumps({"containerimage.descriptor": other.entry, "image.name": name}))
    return path


def test_verify_finds_what_is_missing(place: Place, team: str) -> None:
    """A blob that was deleted, which the index does not show."""
    made = place.push(attested("linux/amd64", "linux/arm64", text=team), f"{team}:v1")
    layer = Manifest.parse(made.below[0].raw).layers[0]
    place.server_blob(layer.digest, team).unlink()
    found = json.loads(place.run("verify", "--json", place.name(f"{team}:v1"), code=1))
    assert [item["severity"] for item in found["findings"]] == ["error"]
    assert f"blob {layer.digest} is not there" in found["findings"][0]["message"]
    place.run("copy", place.name(f"{team}:v1"), place.name(f"{team}/copy:v1"), code=1)
    with pytest.raises(NotFound):
        place.raw(f"{team}/copy:v1")


@pytest.mark.parametrize("place", ["password", "tokens"], indirect=True)
def test_without_credentials(place: Place, team: str, tmp_path: Path) -> None:
    """One line that says what to do, and nothing is written."""
    place.push(AMD64, f"{team}:v1")
    (tmp_path / "docker" / "config.json").unlink()
    for words in (
        ["inspect", place.name(f"{team}:v1")],
        ["create", "-t", place.name(f"{team}:v2"), place.name(f"{team}:v1")],
        ["verify", place.name(f"{team}:v1")],
    ):
        place.run(*words, code=1)
        assert f"no credentials are known for this registry: run `docker login {place.host}`" in place.err
        assert place.err.count("\n") == 1


@pytest.mark.parametrize("place", ["password"], indirect=True)
def test_credentials_of_podman(place: Place, team: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For one repository, from the file that podman login writes."""
    config = json.loads((tmp_path / "docker" / "config.json").read_text())
    place.push(AMD64, f"{team}:v1")
    (tmp_path / "docker" / "config.json").unlink()
    (entry,) = config["auths"].values()
    (tmp_path / "auth.json").write_text(json.dumps({"auths": {place.name(team): entry}}))
    monkeypatch.setenv("REGISTRY_AUTH_FILE", str(tmp_path / "auth.json"))
    assert place.run("inspect", "--raw", place.name(f"{team}:v1")) == AMD64.raw.decode()
    place.run("create", "-t", place.name(f"{team}:v2"), place.name(f"{team}:v1"))
    place.run("inspect", place.name("private/other:v1"), code=1)


@pytest.mark.parametrize("place", ["tls"], indirect=True)
def test_an_authority_in_hosts_toml(place: Place, team: str, tmp_path: Path) -> None:
    """What containerd reads: the file names the authority beside it."""
    folder = tmp_path / "certs.d" / place.host
    place.push(AMD64, f"{team}:v1")
    (folder / "ca.crt").rename(folder / "authority.pem")
    place.run("inspect", place.name(f"{team}:v1"), code=1)
    (folder / "hosts.toml").write_text(f'server = "https://{place.host}"\nca = "authority.pem"\n')
    assert place.run("inspect", "--raw", place.name(f"{team}:v1")) == AMD64.raw.decode()


# Others


def test_others_read_what_we_write(place: Place, team: str, tmp_path: Path) -> None:
    """skopeo and oras, bytes and blobs, of a join, of a copy, and of a layout."""
    place.push(attested("linux/amd64"), f"{team}/a:v1")
    place.push(attested("linux/arm64"), f"{team}/b:v1")
    ours = place.name(f"{team}:v1")
    digest = place.run("create", "-t", ours, place.name(f"{team}/a:v1"), place.name(f"{team}/b:v1")).strip()
    raw = place.raw(f"{team}:v1").decode()
    tls = [] if place.server.ca else ["--tls-verify=false"]
    assert place.skopeo("inspect", "--raw", *tls, f"docker://{ours}") == raw
    platform = ["--override-os", "linux", "--override-arch", "arm64"]
    chosen = json.loads(place.skopeo(*platform, "inspect", *tls, f"docker://{ours}"))
    assert chosen["Architecture"] == "arm64"
    place.skopeo(
        "copy", "--all", "--preserve-digests", *place.skopeo_source, f"docker://{ours}", f"oci:{tmp_path}/s:v1"
    )
    assert place.oras("manifest", "fetch", *place.oras_plain, ours).strip() == raw
    from_plain = [f"--from{word.removeprefix('-')}" for word in place.oras_plain]
    place.oras("cp", *from_plain, ours, "--to-oci-layout", f"{tmp_path}/o:v1")
    for copy in ("s", "o"):
        assert place.run("inspect", "--raw", f"layout:{tmp_path / copy}:v1") == raw
    # A layout of ours, read by both.
    place.run("copy", ours, f"layout:{tmp_path / 'mine'}:v1")
    assert place.oras("manifest", "fetch", "--oci-layout", f"{tmp_path}/mine:v1").strip() == raw
    # This skopeo's inspect wants one image; its copy takes them all.
    place.skopeo("copy", "--all", "--preserve-digests", f"oci:{tmp_path}/mine:v1", f"oci:{tmp_path}/again:v1")
    assert place.run("inspect", "--raw", f"layout:{tmp_path / 'again'}:v1") == raw
    assert digest == str(Digest.of(raw.encode()))


@pytest.mark.parametrize("place", ["plain"], indirect=True)
@pytest.mark.parametrize("suffix", ["", ".tar"])
def test_layouts_and_archives_of_each_other(place: Place, team: str, tmp_path: Path, suffix: str) -> None:
    """On disk, as a directory and as an archive: skopeo and oras copy what we wrote, and we what they wrote."""
    raw = place.push(attested("linux/amd64", "linux/arm64"), f"{team}:v1").raw.decode()
    source, mine = place.name(f"{team}:v1"), tmp_path / f"mine{suffix}"
    place.run("copy", source, f"layout:{mine}:v1")
    kind = "oci-archive" if suffix else "oci"
    place.skopeo(
        "copy", "--all", "--preserve-digests", *place.skopeo_target, f"{kind}:{mine}:v1", f"docker://{source}-skopeo"
    )
    place.oras("cp", "--from-oci-layout", f"{mine}:v1", *to(place.oras_plain), f"{source}-oras")
    for tag in ("skopeo", "oras"):
        assert place.raw(f"{team}:v1-{tag}").decode() == raw
        assert json.loads(place.run("verify", "--json", "--full", f"{source}-{tag}"))["ok"]

    theirs = tmp_path / f"skopeo{suffix}"
    place.skopeo(
        "copy", "--all", "--preserve-digests", *place.skopeo_source, f"docker://{source}", f"{kind}:{theirs}:v1"
    )
    assert place.run("inspect", "--raw", f"layout:{theirs}:v1") == raw
    place.run("copy", f"layout:{theirs}:v1", f"{source}-back")
    assert place.raw(f"{team}:v1-back").decode() == raw
    if not suffix:  # oras writes directories
        place.oras(
            "cp",
            *(f"--from{word.removeprefix('-')}" for word in place.oras_plain),
            source,
            "--to-oci-layout",
            f"{tmp_path}/oras:v1",
        )
        place.run("copy", f"layout:{tmp_path}/oras:v1", f"{source}-oras-back")
        assert place.raw(f"{team}:v1-oras-back").decode() == raw


def to(options: list[str]) -> list[str]:
    """Options of oras for where a copy goes."""
    return [f"--to{word.removeprefix('-')}" for word in options]


def test_we_read_what_others_write(place: Place, team: str, tmp_path: Path) -> None:
    """Docker's types from skopeo; an artifact, one that refers to it, and a nested index from oras."""
    place.push(index(AMD64, ARM64), f"{team}:v1")
    source, target = place.name(f"{team}:v1"), place.name(f"{team}/skopeo:v1")
    both = [*place.skopeo_source, *place.skopeo_target]
    place.skopeo("copy", "--all", "--format", "v2s2", *both, f"docker://{source}", f"docker://{target}")
    made = Index.parse(place.raw(f"{team}/skopeo:v1"))
    assert made.media_type == DOCKER_INDEX
    assert json.loads(place.run("verify", "--json", "--full", target))["ok"]
    place.run("copy", target, place.name(f"{team}/copy:v1"))
    assert place.raw(f"{team}/copy:v1") == made.raw
    assert "linux/arm64" in json.loads(place.run("inspect", "--format", "{{json .Image}}", target))

    (tmp_path / "file.txt").write_text("content")
    (tmp_path / "sbom.json").write_text("{}")
    pushed = place.name(f"{team}/artifact:v1")
    place.oras("push", *place.oras_plain, "--artifact-type", "application/vnd.example", pushed, "file.txt:text/plain")
    attach = ["attach", *place.oras_plain, "--artifact-type", "application/vnd.example.sbom", pushed, "sbom.json"]
    place.oras(*attach)
    assert "application/vnd.oci.image.manifest.v1+json" in place.run("inspect", pushed)
    assert json.loads(place.run("verify", "--json", "--full", pushed))["ok"]
    place.run("copy", pushed, place.name(f"{team}/artifact-copy:v1"))
    assert "application/vnd.example.sbom" in place.err
    # oras finds by our list what we copied.
    found = place.oras("discover", *place.oras_plain, "--format", "json", place.name(f"{team}/artifact-copy:v1"))
    assert [item["artifactType"] for item in json.loads(found)["referrers"]] == ["application/vnd.example.sbom"]

    place.oras("manifest", "index", "create", *place.oras_plain, place.name(f"{team}:nested"), "v1", str(AMD64.digest))
    nested = Index.parse(place.raw(f"{team}:nested"))
    assert nested.manifests[0].media_type == OCI_INDEX
    place.run("copy", place.name(f"{team}:nested"), f"layout:{tmp_path / 'nested'}")
    assert place.run("inspect", "--raw", f"layout:{tmp_path / 'nested'}").encode() == nested.raw
    assert json.loads(place.run("verify", "--json", place.name(f"{team}:nested")))["ok"]


@pytest.mark.parametrize("place", ["plain", "password", "tokens"], indirect=True)
def test_buildx_reads_what_we_write_and_the_reverse(place: Place, team: str, tmp_path: Path) -> None:
    """Not with TLS: it takes loopback addresses for plain HTTP."""
    place.push(attested("linux/amd64"), f"{team}/a:v1")
    place.push(ARM64, f"{team}/b:v1")
    sources = [place.name(f"{team}/a:v1"), place.name(f"{team}/b:v1")]
    place.run("create", "-t", place.name(f"{team}:ours"), *sources)
    place.peer(peers.buildx(), "imagetools", "create", "-t", place.name(f"{team}:theirs"), *sources)
    assert place.raw(f"{team}:ours") == place.raw(f"{team}:theirs")
    ours = place.peer(peers.buildx(), "imagetools", "inspect", "--raw", place.name(f"{team}:ours"))
    assert ours.encode() == place.raw(f"{team}:ours")
    assert json.loads(place.run("verify", "--json", "--full", place.name(f"{team}:theirs")))["ok"]


def test_the_settings_of_this_machine_are_the_default(place: Place) -> None:
    """What the library does without arguments is what the command does."""
    assert DockerCredentials().get(place.host).username == place.server.username
    assert RegistryConfig.of_system().scheme(place.host) == ("https" if place.server.ca else "http")


def test_images_of_schema_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """skopeo writes one; each command refuses it by that name, and none takes its digest for a forgery."""
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
    content, layer = bytes(10240), gzip.compress(bytes(10240), mtime=0)
    config = encode(
        {
            "architecture": "amd64",
            "os": "linux",
            "config": {},
            "rootfs": {"type": "layers", "diff_ids": [str(Digest.of(content))]},
            "history": [{"created": "2026-01-01T00:00:00Z", "created_by": "a test"}],
        }
    )
    raw = encode(
        {
            "schemaVersion": 2,
            "mediaType": DOCKER_MANIFEST,
            "config": described(DOCKER_CONFIG, config),
            "layers": [described(DOCKER_LAYER, layer)],
        }
    )
    document = Document(
        raw=raw, media_type=DOCKER_MANIFEST, entry=described(DOCKER_MANIFEST, raw), blobs=(config, layer)
    )
    with servers.run_registry(tmp_path / "registry", schema1=True) as server:
        asyncio.run(_push(server.host, document))
        old, new = f"{server.host}/old:v1", f"{server.host}/new:v1"
        plain = ["--src-tls-verify=false", "--dest-tls-verify=false"]
        skopeo = peers.skopeo()
        if skopeo is None:
            pytest.skip("no skopeo found (make servers)")
        subprocess.run(
            [skopeo, "copy", *plain, "--format", "v2s1", f"docker://{server.host}/new:v2", f"docker://{old}"],
            check=True,
            capture_output=True,
            timeout=60,
        )
        commands = [
            ["inspect", old],
            ["inspect", "--raw", old],
            ["create", "-t", new, old],
            ["copy", old, new],
            ["verify", old],
        ]
        for words in commands:
            assert main(["imagetools", *words]) == 1
            assert f"{old}: an image in Docker's schema 1" in capsys.readouterr().err, words


async def _push(host: str, document: Document) -> None:
    async with Registry(credentials=StaticCredentials({})) as registry:
        await document.push(registry, f"{host}/new", "v2")
