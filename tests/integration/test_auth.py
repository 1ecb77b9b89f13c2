"""A real daemon asks for credentials through the session, of registries with passwords and with tokens."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from buildkit_py.builder.build import build
from buildkit_py.builder.request import BuildRequest
from buildkit_py.client import connect
from buildkit_py.errors import BuildKitError
from buildkit_py.registry import Credentials, DockerCredentials, StaticCredentials
from tests.support import servers
from tests.support.fake_registry import FakeRegistry
from tests.support.token_server import run_token_registry

pytestmark = pytest.mark.daemon


@pytest.fixture
def tokened(tmp_path: Path, registry: servers.Registry) -> Iterator[tuple[servers.Registry, FakeRegistry]]:
    """Asks for the plain one as well, which skips where there is no registry at all."""
    with run_token_registry(tmp_path / "tokened") as found:
        yield found


def docker_login(folder: Path, server: servers.Registry) -> DockerCredentials:
    """What ``docker login`` leaves behind."""
    pair = base64.b64encode(f"{server.username}:{server.password}".encode()).decode()
    (folder / "config.json").write_text(json.dumps({"auths": {server.host: {"auth": pair}}}))
    return DockerCredentials(environ={"DOCKER_CONFIG": str(folder)})


def context(folder: Path, *dockerfile: str) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "Dockerfile").write_text("\n".join((*dockerfile, "COPY Dockerfile /here", "")))
    return folder


async def push_and_build_on_it(address: str, server: servers.Registry, tmp_path: Path) -> None:
    """Push two platforms to a private repository, then build from it: the daemon pushes and pulls."""
    credentials = docker_login(tmp_path, server)
    base, derived = f"{server.host}/private/base:v1", f"{server.host}/private/derived:v1"
    platforms = ("linux/amd64", "linux/arm64")
    async with connect(address) as client:
        first = BuildRequest(
            context=context(tmp_path / "a", "FROM scratch"), platforms=platforms, tags=[base], push=True
        )
        assert (await build(client, first, credentials=credentials)).descriptor is not None
        second = BuildRequest(
            context=context(tmp_path / "b", f"FROM {base}"), platforms=platforms, tags=[derived], push=True
        )
        assert (await build(client, second, credentials=credentials)).descriptor is not None


async def test_a_registry_with_a_password(daemon_address: str, auth_registry: servers.Registry, tmp_path: Path) -> None:
    await push_and_build_on_it(daemon_address, auth_registry, tmp_path)


async def test_a_registry_with_tokens(
    daemon_address: str, tokened: tuple[servers.Registry, FakeRegistry], tmp_path: Path
) -> None:
    """The daemon accepts our authority: every token is fetched from here, under the daemon's client id too."""
    server, tokens = tokened
    await push_and_build_on_it(daemon_address, server, tmp_path)
    clients = {request.parameters["client_id"][0] for request in tokens.requests}
    assert clients == {"buildkit-client", "buildkit-py"}


@pytest.mark.parametrize("password", ["", "wrong guess"])
async def test_a_push_without_the_right_credentials(
    daemon_address: str,
    auth_registry: servers.Registry,
    tokened: tuple[servers.Registry, FakeRegistry],
    tmp_path: Path,
    password: str,
) -> None:
    """One error that names the registry, and no secret in it."""
    async with connect(daemon_address) as client:
        for server in (auth_registry, tokened[0]):
            given = {server.host: Credentials(server.username, password)} if password else {}
            request = BuildRequest(
                context=context(tmp_path / "context", "FROM scratch"),
                platforms=["linux/amd64"],
                tags=[f"{server.host}/private/refused:v1"],
                push=True,
            )
            with pytest.raises(BuildKitError) as caught:
                await build(client, request, credentials=StaticCredentials(given))
            assert server.host in str(caught.value)
            assert not password or password not in repr(caught.value)
