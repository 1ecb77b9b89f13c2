"""TLS and mutual TLS against a standalone buildkitd, with certificates that are right and wrong in every way."""

from __future__ import annotations

import datetime
import shutil
import socket
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import trustme

from buildkit_py import BuildRequest, ExporterSpec, TLSConfig, build, connect
from buildkit_py.daemon.launch import Layout
from buildkit_py.errors import ConnectFailed
from tests.support import servers
from tests.support.cli import CommandLine, refused

pytestmark = [
    pytest.mark.daemon,
    pytest.mark.skipif(shutil.which("buildkitd") is None, reason="no buildkitd on the PATH"),
]

LONG_AGO = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
DAY = datetime.timedelta(days=1)


class Pki:
    """An authority, another that nobody trusts, and what they signed; all of it in files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.authority, self.stranger = trustme.CA(), trustme.CA()
        self.ca = self._file("ca.pem", self.authority.cert_pem)
        self.wrong_ca = self._file("wrong.pem", self.stranger.cert_pem)
        self.server = self._pair("server", self.authority.issue_cert("localhost", "127.0.0.1"))
        self.old_server = self._pair(
            "old-server", self.authority.issue_cert("localhost", not_before=LONG_AGO, not_after=LONG_AGO + DAY)
        )
        self.client = self._pair("client", self.authority.issue_cert("client.test"))
        self.old_client = self._pair(
            "old-client", self.authority.issue_cert("client.test", not_before=LONG_AGO, not_after=LONG_AGO + DAY)
        )
        self.wrong_client = self._pair("wrong-client", self.stranger.issue_cert("client.test"))

    def _file(self, name: str, blob: trustme.Blob) -> Path:
        blob.write_to_path(self.folder / name)
        return self.folder / name

    def _pair(self, name: str, leaf: trustme.LeafCert) -> tuple[Path, Path]:
        return self._file(f"{name}.pem", leaf.cert_chain_pems[0]), self._file(f"{name}.key", leaf.private_key_pem)


@dataclass(frozen=True, slots=True, kw_only=True)
class Secured:
    """A buildkitd that listens on loopback."""

    address: str
    pki: Pki


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return Pki(tmp_path_factory.mktemp("pki"))


@contextmanager
def secured(pki: Pki, folder: Path, pair: tuple[Path, Path], *, mutual: bool) -> Generator[Secured]:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    private = Layout.of(folder / "daemon").socket("buildkitd")
    arguments = [
        *("--addr", f"unix://{private}", "--addr", f"tcp://127.0.0.1:{port}"),
        *("--tlscert", str(pair[0]), "--tlskey", str(pair[1])),
        *(("--tlscacert", str(pki.ca)) if mutual else ()),
    ]
    with servers.run_daemon(folder, kind="buildkitd", arguments=arguments):
        yield Secured(address=f"tcp://localhost:{port}", pki=pki)


@pytest.fixture(scope="module")
def mutual(pki: Pki, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    """Wants a certificate of its clients."""
    with secured(pki, tmp_path_factory.mktemp("mutual"), pki.server, mutual=True) as daemon:
        yield daemon


@pytest.fixture(scope="module")
def simple(pki: Pki, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    """Takes any client."""
    with secured(pki, tmp_path_factory.mktemp("simple"), pki.server, mutual=False) as daemon:
        yield daemon


@pytest.fixture
def cli(tmp_path: Path) -> CommandLine:
    return CommandLine(address=None, docker_config=tmp_path / "docker")


def flags(daemon: Secured, *, ca: Path | None = None, pair: tuple[Path, Path] | None = None) -> list[str | Path]:
    words: list[str | Path] = ["--addr", daemon.address]
    if ca is not None:
        words += ["--tlscacert", ca]
    if pair is not None:
        words += ["--tlscert", pair[0], "--tlskey", pair[1]]
    return words


def test_a_build_over_mutual_tls(mutual: Secured, cli: CommandLine, scratch: Path, tmp_path: Path) -> None:
    """Flags, a folder of certificates, and the host's number as well as its name; context and result cross."""
    pki = mutual.pki
    done = cli("build", scratch, "-q", "-o", tmp_path / "out", *flags(mutual, ca=pki.ca, pair=pki.client))
    assert (done.code, done.stderr) == (0, "")
    assert (tmp_path / "out" / "file").read_text() == "content"

    folder = tmp_path / "tls"
    folder.mkdir()
    for source, name in ((pki.ca, "ca.pem"), (pki.client[0], "cert.pem"), (pki.client[1], "key.pem")):
        shutil.copy(source, folder / name)
    number = mutual.address.replace("localhost", "127.0.0.1")
    assert cli("workers", "--addr", number, "--tlsdir", folder).code == 0


async def test_certificates_as_bytes(mutual: Secured, scratch: Path, tmp_path: Path) -> None:
    """Nothing needs to be a file. A large context, so that many records cross both ways."""
    pki = mutual.pki
    tls = TLSConfig(
        ca=pki.ca.read_bytes(), cert=pki.client[0].read_bytes(), key=pki.client[1].read_bytes(), server_name="localhost"
    )
    content = b"0123456789abcdef" * (1 << 20)
    (scratch / "file").write_bytes(content)
    async with connect(mutual.address.replace("localhost", "127.0.0.1"), tls=tls) as client:
        out = ExporterSpec(type="local", dest=str(tmp_path / "out"))
        await build(client, BuildRequest(context=scratch, outputs=[out]))
    assert (tmp_path / "out" / "file").read_bytes() == content


def test_tls_without_a_client_certificate(simple: Secured, cli: CommandLine, scratch: Path, tmp_path: Path) -> None:
    """A daemon that wants none gets none, and takes one that it did not ask for."""
    done = cli("build", scratch, "-q", "-o", tmp_path / "out", *flags(simple, ca=simple.pki.ca))
    assert (done.code, done.stderr) == (0, "")
    assert cli("info", *flags(simple, ca=simple.pki.ca, pair=simple.pki.wrong_client)).code == 0


@pytest.mark.parametrize(
    ("which", "said"),
    [
        ("none", "the daemon wants a client certificate"),
        ("other", "does not accept the client certificate (tlsv1 alert unknown ca)"),
        ("old", "does not accept the client certificate (sslv3 alert certificate expired)"),
    ],
)
def test_client_certificates_that_are_refused(
    mutual: Secured, cli: CommandLine, scratch: Path, which: str, said: str
) -> None:
    """None, one of another authority, one that has expired: one line within seconds, nothing sent."""
    pair = {"none": None, "other": mutual.pki.wrong_client, "old": mutual.pki.old_client}[which]
    done = cli("build", scratch, "-q", *flags(mutual, ca=mutual.pki.ca, pair=pair))
    line = refused(done, 1, mutual.address, "client certificate")
    assert done.stderr == f"{line}\n"
    assert said in line, line


@pytest.mark.parametrize("want", ["mutual", "simple"])
def test_servers_that_are_not_trusted(
    want: str, cli: CommandLine, scratch: Path, request: pytest.FixtureRequest
) -> None:
    """An authority that did not sign, the system's ones alone, another name, and no TLS at all."""
    daemon: Secured = request.getfixturevalue(want)
    pair = daemon.pki.client if want == "mutual" else None
    untrusted = "the daemon's certificate is not signed by a trusted CA"
    done = cli("build", scratch, "-q", *flags(daemon, ca=daemon.pki.wrong_ca, pair=pair))
    assert done.stderr == refused(done, 1, untrusted) + "\n"
    right = flags(daemon, ca=daemon.pki.ca, pair=pair)
    refused(cli("info", *right, "--tlsservername", "other.test"), 1, "certificate is not for 'other.test'")
    refused(cli("info", "--addr", daemon.address), 1, "the daemon expects TLS")
    refused(cli("info", "--addr", daemon.address, "--tlsservername", "localhost"), 1, untrusted)


def test_a_server_certificate_that_has_expired(pki: Pki, cli: CommandLine, scratch: Path, tmp_path: Path) -> None:
    with secured(pki, tmp_path / "expired", pki.old_server, mutual=False) as daemon:
        done = cli("build", scratch, "-q", *flags(daemon, ca=pki.ca))
        assert done.stderr == refused(done, 1, "the daemon's certificate has expired") + "\n"


async def test_errors_name_the_address_and_no_key(mutual: Secured) -> None:
    """As data, too."""
    tls = TLSConfig(ca=mutual.pki.wrong_ca, cert=mutual.pki.client[0], key=mutual.pki.client[1])
    with pytest.raises(ConnectFailed) as caught:
        async with connect(mutual.address, tls=tls):
            pass
    ((where, why),) = caught.value.attempts
    assert where == mutual.address
    assert "not signed by a trusted CA" in why
    assert "PRIVATE" not in repr(caught.value) + repr(tls)
