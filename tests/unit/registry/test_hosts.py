"""Settings that docker, podman and containerd keep in directories, and what mirrors do with them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from buildkit_py.digest import Digest
from buildkit_py.errors import InvalidOption, NotFound, RegistryError
from buildkit_py.oci import OCI_INDEX, Descriptor
from buildkit_py.registry import (
    Credentials,
    HostConfig,
    Mirror,
    RegistryConfig,
    RetryPolicy,
    StaticCredentials,
    Timeouts,
)
from buildkit_py.registry._http import Transport
from buildkit_py.registry.client import RegistryClient
from buildkit_py.registry.config import system_directories
from tests.support.fake_registry import Answer, FakeRegistry, Request, manifest_answer

INDEX = b'{"schemaVersion":2,"mediaType":"%s","manifests":[]}' % OCI_INDEX.encode()
BLOB = b"blob" * 1000
PASSWORD = "of home alone"


def directory(folder: Path, files: Mapping[str, str]) -> RegistryConfig:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return RegistryConfig(directories=[folder / "none", folder])


# What is read


def test_the_places_that_are_looked_into() -> None:
    found = system_directories({"HOME": "/home/u", "BUILDKIT_PY_CERTS_D": "/a:/b"})
    assert [str(path) for path in found] == [
        "/a",
        "/b",
        "/home/u/.config/containers/certs.d",
        "/home/u/.config/docker/certs.d",
        "/etc/containerd/certs.d",
        "/etc/containers/certs.d",
        "/etc/docker/certs.d",
    ]


def test_certificates_of_docker_and_podman(tmp_path: Path) -> None:
    """All authorities are trusted, and ours is shown with its key."""
    files = {"a.crt": "one", "b.crt": "two", "client.cert": "ours", "client.key": "key", "readme": "x"}
    config = directory(tmp_path, {f"r.example:5000/{name}": text for name, text in files.items()})
    folder = tmp_path / "r.example:5000"
    assert config.host("r.example:5000") == HostConfig(
        ca=b"one\ntwo", cert=folder / "client.cert", key=folder / "client.key"
    )
    assert config.host("r.example") == HostConfig()
    assert config.scheme("r.example:5000") == "https"


def test_a_certificate_without_its_key(tmp_path: Path) -> None:
    config = directory(tmp_path, {"r.example/client.cert": "ours"})
    for _ in range(2):  # the second time, too: never as if nothing had been said
        with pytest.raises(InvalidOption, match="there is no key"):
            config.host("r.example")


def test_settings_given_go_before_directories(tmp_path: Path) -> None:
    read = directory(tmp_path, {"r.example/a.crt": "one", "x.example/a.crt": "one"})
    config = RegistryConfig(hosts={"r.example": HostConfig(skip_verify=True)}, directories=read.directories)
    assert config.host("r.example") == HostConfig(skip_verify=True)
    assert config.host("x.example") == HostConfig(ca=b"one")


HOSTS = """
server = "https://r.example"
ca = "own.crt"

[host."http://mirror.local:5000"]
  capabilities = ["pull", "resolve"]
  dial_timeout = "1m0.5s"
  [host."http://mirror.local:5000".header]
    X-Team = "a"
    X-Both = ["b", "c"]

[host."https://cache.local/proxy/r"]
  capabilities = ["pull", "resolve"]
  override_path = true
  skip_verify = true
  client = [["c.cert", "c.key"]]
"""


def test_hosts_toml(tmp_path: Path) -> None:
    config = directory(tmp_path, {"r.example/hosts.toml": HOSTS, "r.example/own.crt": "one"})
    assert config.reading("r.example") == (
        Mirror("mirror.local:5000"),
        Mirror("cache.local", "/proxy/r"),
        Mirror("r.example"),
    )
    assert config.writing("r.example") == Mirror("r.example")
    assert config.host("r.example").ca == b"one"
    assert config.host("mirror.local:5000").headers == {"X-Team": "a", "X-Both": "b, c"}
    assert config.host("mirror.local:5000").connect_timeout == 60.5
    assert config.host("cache.local").skip_verify
    assert config.host("cache.local").key == tmp_path / "r.example" / "c.key"
    assert [config.scheme(host) for host in ("r.example", "mirror.local:5000")] == ["https", "http"]


def test_hosts_toml_of_hub_and_of_all(tmp_path: Path) -> None:
    reads = 'capabilities = ["pull", "resolve"]\n'
    files = {
        "docker.io/hosts.toml": f'server = "https://docker.io"\n[host."https://hub.local"]\n{reads}',
        "_default/hosts.toml": f'[host."http://all.local"]\n{reads}',
        "r.example_5000_/hosts.toml": 'server = "http://r.example:5000"\n',
    }
    config = directory(tmp_path, files)
    assert config.reading("docker.io") == (Mirror("hub.local"), Mirror("registry-1.docker.io"))
    assert config.reading("x.example") == (Mirror("all.local"), Mirror("x.example"))
    assert config.reading("r.example:5000") == (Mirror("r.example:5000"),)
    assert config.scheme("r.example:5000") == "http"


def test_hosts_toml_that_takes_pushes(tmp_path: Path) -> None:
    """A server that stands in for the registry altogether: the registry itself is not asked."""
    config = directory(tmp_path, {"r.example/hosts.toml": 'server = "https://inside.local"\n'})
    assert config.reading("r.example") == (Mirror("inside.local"),)
    assert config.writing("r.example") == Mirror("inside.local")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("server = ", "hosts.toml"),
        ("server = 5", "server holds something that is not text"),
        ('server = "ftp://r.example"', "not an http or https URL"),
        ('host = "x"', "host is not a table"),
        ('[host."https://a b"]', "is not the URL of a registry"),
        ('[host."https://a"]\ncapabilities = "pull"', "capabilities is not a list"),
        ('[host."https://a"]\nskip_verify = "yes"', "skip_verify is neither true nor false"),
        ('[host."https://a"]\nca = "none.crt"', "none.crt"),
        ('[host."https://a"]\ndial_timeout = 5', "dial_timeout holds something that is not text"),
        ('[host."https://a"]\ndial_timeout = "0s"', "is no duration"),
        ('[host."https://a"]\ndial_timeout = "-1s"', "is no duration"),
        ('[host."https://a".header]\nX = "a\\r\\nb"', "is not one"),
    ],
)
def test_hosts_toml_that_cannot_be_used(tmp_path: Path, text: str, complaint: str) -> None:
    """An error that names the file: without it, another trust would be used than was meant."""
    config = directory(tmp_path, {"r.example/hosts.toml": text})
    with pytest.raises(InvalidOption, match=complaint):
        config.host("r.example")


@pytest.mark.parametrize("text", ["", "host/", "a b", "host:99999"])
def test_mirrors_are_checked(text: str) -> None:
    with pytest.raises(InvalidOption):
        HostConfig(mirrors=[text])


def test_mirrors_as_buildkitd_has_them() -> None:
    assert Mirror.parse("mirror.local:5000/proxy/hub") == Mirror("mirror.local:5000", "/v2/proxy/hub")


# What mirrors do


@pytest.fixture
def home() -> Iterator[FakeRegistry]:
    with FakeRegistry() as server:
        yield server


@pytest.fixture
def mirror() -> Iterator[FakeRegistry]:
    with FakeRegistry() as server:
        yield server


def client(home: FakeRegistry, mirror: FakeRegistry, *, path: str = "") -> RegistryClient:
    config = RegistryConfig(hosts={home.host: HostConfig(mirrors=[f"{mirror.host}{path}"])})
    timeouts = Timeouts(connect=2, read=0.5, total=20, blob=20)
    transport = Transport(config, timeouts=timeouts, retry=RetryPolicy(), wait=lambda operation, seconds: None)
    credentials = StaticCredentials({home.host: Credentials("u", PASSWORD)})
    return RegistryClient(credentials=credentials, config=config, timeouts=timeouts, transport=transport)


def serve(server: FakeRegistry, prefix: str = "/v2") -> None:
    server.on("GET", f"{prefix}/a/b/manifests/v1", manifest_answer(INDEX, OCI_INDEX))
    server.on("HEAD", f"{prefix}/a/b/manifests/v1", manifest_answer(INDEX, OCI_INDEX, str(Digest.of(INDEX))))
    server.on("GET", f"{prefix}/a/b/blobs/.*", Answer(body=BLOB))


def test_reads_go_to_the_mirror(home: FakeRegistry, mirror: FakeRegistry) -> None:
    """With the name of the registry that it stands in for, and home is not asked."""
    serve(mirror, "/v2/proxy")
    with client(home, mirror, path="/proxy") as registry:
        assert registry.fetch_manifest(f"{home.host}/a/b:v1")[0] == INDEX
        assert registry.resolve(f"{home.host}/a/b:v1").digest == Digest.of(INDEX)
        blob = Descriptor.of(BLOB, "application/octet-stream")
        assert registry.fetch_blob_bytes(f"{home.host}/a/b", blob, 1 << 20) == BLOB
    assert not home.requests
    assert {request.parameters["ns"][0] for request in mirror.requests} == {home.host}


@pytest.mark.parametrize(
    "fault",
    [
        Answer(status=404),
        Answer(status=500),
        Answer(status=401, challenges=('Basic realm="mirror"',)),
        Answer(body=INDEX[:-5], length=len(INDEX), cut=True, headers={"Content-Type": OCI_INDEX}),
        manifest_answer(INDEX + b" ", OCI_INDEX, str(Digest.of(INDEX))),
        Answer(silent=True),
    ],
)
def test_a_mirror_that_fails_is_passed_over(home: FakeRegistry, mirror: FakeRegistry, fault: Answer) -> None:
    """Once, whatever it does; and it never sees what proves who we are at home."""
    serve(home)
    mirror.on("GET", ".*", fault)
    home.on(
        "GET",
        "/v2/a/b/manifests/v1",
        Answer(status=401, challenges=('Basic realm="home"',)),
        manifest_answer(INDEX, OCI_INDEX),
    )
    with client(home, mirror) as registry:
        assert registry.fetch_manifest(f"{home.host}/a/b:v1")[0] == INDEX
    assert len(mirror.requests) == 1
    assert mirror.requests[0].authorization is None
    assert home.requests[-1].authorization is not None


def test_a_blob_that_a_mirror_cuts_goes_on_at_home(home: FakeRegistry, mirror: FakeRegistry) -> None:
    def rest(request: Request) -> Answer:
        start = int(request.headers["range"].removeprefix("bytes=").removesuffix("-"))
        headers = {"Content-Range": f"bytes {start}-{len(BLOB) - 1}/{len(BLOB)}"}
        return Answer(status=206, body=BLOB[start:], headers=headers)

    mirror.on("GET", ".*", Answer(body=BLOB[:1000], length=len(BLOB), cut=True))
    home.on("GET", ".*/blobs/.*", rest)
    with client(home, mirror) as registry:
        blob = Descriptor.of(BLOB, "application/octet-stream")
        assert registry.fetch_blob_bytes(f"{home.host}/a/b", blob, 1 << 20) == BLOB


def test_writes_and_what_they_look_at_go_home(home: FakeRegistry, mirror: FakeRegistry) -> None:
    """A tag of yesterday at a mirror must not keep a new one from being written."""
    serve(mirror)
    home.on("PUT", ".*", Answer(status=201))
    with client(home, mirror) as registry:
        registry.push_manifest(f"{home.host}/a/b", INDEX, OCI_INDEX, ["v1"])
        with pytest.raises(NotFound):
            registry.resolve(f"{home.host}/a/b:v1", mirrors=False)
        assert not registry.exists(f"{home.host}/a/b", Digest.of(INDEX))
    assert not mirror.requests


def test_headers_go_to_their_host_alone(home: FakeRegistry, mirror: FakeRegistry) -> None:
    """Not along with a redirect, either."""
    home.on("GET", ".*/blobs/.*", Answer(status=307, headers={"Location": f"{mirror.url}/storage"}))
    mirror.on("GET", "/storage", Answer(body=BLOB))
    config = RegistryConfig(hosts={home.host: HostConfig(headers={"X-Key": "secret"})})
    with RegistryClient(credentials=StaticCredentials({}), config=config) as registry:
        blob = Descriptor.of(BLOB, "application/octet-stream")
        assert registry.fetch_blob_bytes(f"{home.host}/a/b", blob, 1 << 20) == BLOB
    assert home.requests[0].headers["x-key"] == "secret"
    assert "x-key" not in mirror.requests[0].headers
    assert "secret" not in repr(config)


def test_all_of_them_fail(home: FakeRegistry, mirror: FakeRegistry) -> None:
    """The error is that of home."""
    with client(home, mirror) as registry, pytest.raises(RegistryError) as caught:
        registry.fetch_manifest(f"{home.host}/a/b:v1")
    assert caught.value.host == home.host


def test_a_plain_mirror_without_certificates_to_check(tmp_path: Path) -> None:
    """Generators of these files write skip_verify for all; for http it means nothing, as in containerd."""
    text = '[host."http://mirror.local"]\n  skip_verify = true\n  capabilities = ["pull", "resolve"]\n'
    config = directory(tmp_path, {"r.example/hosts.toml": text})
    assert config.reading("r.example")[0] == Mirror("mirror.local")
    assert config.host("mirror.local") == HostConfig(plain_http=True)
