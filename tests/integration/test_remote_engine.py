"""A docker engine across a network, as DOCKER_HOST, DOCKER_TLS_VERIFY and DOCKER_CERT_PATH name it."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import trustme

from buildkit_py import BuildRequest, ExporterSpec, TLSConfig, build, connect
from buildkit_py.daemon import launch
from buildkit_py.engine import find_engine
from buildkit_py.errors import ConnectFailed, InvalidOption
from tests.support import servers
from tests.support.cli import CommandLine

pytestmark = pytest.mark.daemon


@dataclass(frozen=True, kw_only=True)
class Remote:
    """An engine that wants a client's certificate."""

    port: int
    certificates: Path
    """ca.pem, cert.pem and key.pem, as docker's CLI wants them."""
    stranger: Path
    """The same, signed by somebody whom the engine does not know, who does know the engine."""


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def _folder(folder: Path, ca: trustme.CA, signer: trustme.CA) -> Path:
    folder.mkdir()
    leaf = signer.issue_cert("client.test")
    ca.cert_pem.write_to_path(folder / "ca.pem")
    leaf.cert_chain_pems[0].write_to_path(folder / "cert.pem")
    leaf.private_key_pem.write_to_path(folder / "key.pem")
    return folder


@pytest.fixture(scope="module")
def remote(engine_address: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Remote]:
    """Where an engine can be started at all, as the fixture before finds out."""
    del engine_address
    folder = tmp_path_factory.mktemp("remote")
    authority = trustme.CA()
    server = authority.issue_cert("localhost", "127.0.0.1")
    server.cert_chain_pems[0].write_to_path(folder / "server.pem")
    server.private_key_pem.write_to_path(folder / "server.key")
    certificates = _folder(folder / "client", authority, authority)
    port = _free_port()
    settings = json.loads(launch.dockerd_config(launch.Layout.of(folder / "daemon"), ()))
    settings["hosts"].append(f"tcp://127.0.0.1:{port}")
    settings |= {
        "tls": True,
        "tlsverify": True,
        "tlscacert": str(certificates / "ca.pem"),
        "tlscert": str(folder / "server.pem"),
        "tlskey": str(folder / "server.key"),
    }
    (folder / "settings.json").write_text(json.dumps(settings))
    arguments = ("--config-file", str(folder / "settings.json"))
    with servers.run_daemon(folder, kind="dockerd", arguments=arguments):
        yield Remote(
            port=port,
            certificates=certificates,
            stranger=_folder(folder / "stranger", authority, trustme.CA()),
        )


@pytest.fixture
def docker(remote: Remote, monkeypatch: pytest.MonkeyPatch) -> Remote:
    """The environment of docker's CLI."""
    monkeypatch.setenv("DOCKER_HOST", f"tcp://127.0.0.1:{remote.port}")
    monkeypatch.setenv("DOCKER_TLS_VERIFY", "1")
    monkeypatch.setenv("DOCKER_CERT_PATH", str(remote.certificates))
    return remote


@pytest.fixture
def context(tmp_path: Path) -> Path:
    folder = tmp_path / "context"
    folder.mkdir()
    (folder / "Dockerfile").write_text("FROM scratch\nCOPY big /\n")
    (folder / "big").write_bytes(bytes(range(256)) * (16 << 10))
    return folder


async def test_a_build_and_its_load(docker: Remote, context: Path, tmp_path: Path) -> None:
    """4 MiB cross to the engine and come back, and the image is in its store."""
    request = BuildRequest(
        context=context,
        attestations={},
        load=True,
        tags=["remote/test:1"],
        outputs=[ExporterSpec(type="local", dest=str(tmp_path / "out"))],
    )
    async with connect("docker://") as client:
        assert client.address == f"docker://127.0.0.1:{docker.port}"
        await build(client, request)
    assert (tmp_path / "out" / "big").read_bytes() == (context / "big").read_bytes()
    assert (await find_engine().image_digest("remote/test:1")).startswith("sha256:")


async def test_certificates_given_by_hand(remote: Remote, monkeypatch: pytest.MonkeyPatch) -> None:
    """A TLSConfig comes before the environment."""
    monkeypatch.setenv("DOCKER_TLS_VERIFY", "1")
    monkeypatch.setenv("DOCKER_CERT_PATH", "/nowhere")
    async with connect(f"docker://localhost:{remote.port}", tls=TLSConfig.from_dir(remote.certificates)) as client:
        assert (await client.workers())[0].platforms


def test_the_command_line(docker: Remote, tmp_path: Path) -> None:
    cli = CommandLine(address="docker://", docker_config=tmp_path / "none")
    names = {"DOCKER_HOST": f"tcp://127.0.0.1:{docker.port}", "DOCKER_TLS_VERIFY": "1"}
    done = cli("info", env={**names, "DOCKER_CERT_PATH": str(docker.certificates)})
    assert done.code == 0, done.stderr
    assert f"docker://127.0.0.1:{docker.port}" in done.stdout


async def test_what_is_wrong_is_said(docker: Remote, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No TLS, an authority that did not sign, a client that is not known, a folder that holds nothing."""

    async def refused(match: str, kind: type[Exception] = ConnectFailed) -> None:
        with pytest.raises(kind, match=match):
            async with connect("docker://"):
                pass

    monkeypatch.setenv("DOCKER_CERT_PATH", str(docker.stranger))
    await refused("TLS: .*(certificate|unknown ca)")
    other = _folder(tmp_path / "other", trustme.CA(), trustme.CA())
    monkeypatch.setenv("DOCKER_CERT_PATH", str(other))
    await refused("TLS: .*certificate")
    monkeypatch.setenv("DOCKER_CERT_PATH", str(tmp_path))
    await refused(r"has no ca\.pem", InvalidOption)
    monkeypatch.delenv("DOCKER_TLS_VERIFY")
    await refused("it expects TLS")
