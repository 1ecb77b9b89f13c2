"""Caches of a build in S3, in Azure's blob storage, and in that of GitHub's runners: written, lost, read."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from buildkit_py import BuildRequest, CacheSpec, ExporterSpec, build, connect, features
from buildkit_py.errors import UnsupportedByDaemon
from tests.integration.test_caches import PLATFORMS, Project
from tests.support import cache_services, servers
from tests.support.cli import CommandLine
from tests.support.servers import PrivateDaemon

pytestmark = pytest.mark.daemon


@pytest.fixture
def project(fresh_daemon: PrivateDaemon, tmp_path: Path) -> Project:
    """A project and a daemon that may forget what it knows."""
    return Project(fresh_daemon.address, tmp_path)


def service(run: Callable[[Path], AbstractContextManager[str]], folder: Path) -> Iterator[str]:
    try:
        with run(folder) as url:
            yield url
    except servers.Unavailable as reason:
        pytest.skip(str(reason))  # also where a daemon is required: nothing but these tests needs them


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    yield from service(cache_services.run_s3, tmp_path_factory.mktemp("s3") / "data")


@pytest.fixture(scope="module")
def azurite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    yield from service(cache_services.run_azurite, tmp_path_factory.mktemp("azurite") / "data")


@pytest.fixture
def runner(monkeypatch: pytest.MonkeyPatch) -> Iterator[cache_services.ActionsCache]:
    """The cache of GitHub's runners, which nothing in the environment names yet."""
    for name in ("ACTIONS_RUNTIME_TOKEN", "ACTIONS_CACHE_URL", "ACTIONS_RESULTS_URL", "ACTIONS_CACHE_SERVICE_V2"):
        monkeypatch.delenv(name, raising=False)
    with cache_services.ActionsCache() as actions:
        yield actions


async def written_and_read(project: Project, text: str, platforms: Sequence[str], out: Path) -> None:
    """Every step comes from the cache when the daemon has forgotten all, the early stage's as well."""
    outputs = [ExporterSpec(type="local", dest=str(out))]
    await project.build(platforms, cache_to=[CacheSpec.parse(f"{text},mode=max")], outputs=outputs)
    await project.forget()
    cached = await project.build(platforms, cache_from=[CacheSpec.parse(text)], outputs=outputs)
    assert len(cached) == 3 * max(1, len(platforms))
    assert all(cached.values()), cached


def s3_cache(url: str, prefix: str) -> str:
    return (
        f"type=s3,bucket={cache_services.BUCKET},region=us-east-1,endpoint_url={url},use_path_style=true,"
        f"prefix={prefix}/"
    )


def needs_buildkitd(project: Project) -> None:
    if project.address.startswith("docker:"):
        pytest.skip("an engine has no such caches; test_what_an_engine_does_not_have shows what is said")


@pytest.mark.parametrize("platforms", [(), PLATFORMS], ids=["one", "two"])
async def test_s3(
    project: Project, s3: str, platforms: Sequence[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the credentials of the environment; two platforms have an object each."""
    needs_buildkitd(project)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", cache_services.S3_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", cache_services.S3_KEY)
    await written_and_read(project, s3_cache(s3, f"n{len(platforms)}"), platforms, tmp_path / "out")


async def test_s3_by_the_file_of_credentials(
    project: Project, s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A profile of ~/.aws/credentials, as docker buildx reads it."""
    needs_buildkitd(project)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_ACCESS_KEY", "AWS_SECRET_ACCESS_KEY", "AWS_SECRET_KEY"):
        monkeypatch.delenv(name, raising=False)
    key = cache_services.S3_KEY
    (tmp_path / "credentials").write_text(f"[builds]\naws_access_key_id = {key}\naws_secret_access_key = {key}\n")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_PROFILE", "builds")
    await written_and_read(project, s3_cache(s3, "file"), (), tmp_path / "out")


@pytest.mark.parametrize("platforms", [(), PLATFORMS], ids=["one", "two"])
async def test_azblob(project: Project, azurite: str, platforms: Sequence[str], tmp_path: Path) -> None:
    needs_buildkitd(project)
    text = (
        f"type=azblob,account_url={azurite},account_name={cache_services.AZURE_ACCOUNT},"
        f"secret_access_key={cache_services.AZURE_KEY},prefix=n{len(platforms)}"
    )
    await written_and_read(project, text, platforms, tmp_path / "out")


@pytest.mark.parametrize("version", ["1", "2"])
@pytest.mark.parametrize("platforms", [(), PLATFORMS], ids=["one", "two"])
async def test_a_runner_of_githubs(
    project: Project,
    runner: cache_services.ActionsCache,
    version: str,
    platforms: Sequence[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """With token and address of the environment, by either protocol, and every platform in a scope of its own.

    A daemon that knows the first one alone is refused for the second, where GitHub has taken the first out of service.
    """
    caplog.set_level(logging.DEBUG, logger="buildkit_py")
    monkeypatch.setenv("ACTIONS_RUNTIME_TOKEN", runner.token)
    if version == "2":
        monkeypatch.setenv("ACTIONS_CACHE_SERVICE_V2", "True")
        monkeypatch.setenv("ACTIONS_RESULTS_URL", f"{runner.url}/")
    else:
        monkeypatch.setenv("ACTIONS_CACHE_URL", f"{runner.url}/")
    if version == "2":
        async with connect(project.address) as client:
            known = await client.supports(features.GITHUB_CACHE_V2.capability)
        if not known:
            with pytest.raises(UnsupportedByDaemon, match="cache type=gha of version 2"):
                await written_and_read(project, "type=gha,scope=app", platforms, tmp_path / "out")
            assert not runner.asked()
            return
    await written_and_read(project, "type=gha,scope=app", platforms, tmp_path / "out")
    assert bool(runner.asked(path="^/twirp/")) == (version == "2")
    indexes = sorted(key.split("-1-")[0] for key in runner.entries if key.startswith("index-"))
    assert indexes == [f"index-app{suffix}" for suffix in (("-linux-amd64", "-linux-arm64") if platforms else ("",))]
    assert runner.token not in caplog.text


def test_the_command_on_a_runner(
    fresh_daemon: PrivateDaemon, runner: cache_services.ActionsCache, tmp_path: Path
) -> None:
    """The token goes to the daemon and nowhere else: not into words, metadata, or what --debug tells."""
    project = Project(fresh_daemon.address, tmp_path)
    cli = CommandLine(address=fresh_daemon.address, docker_config=tmp_path / "docker")
    env = {"ACTIONS_RUNTIME_TOKEN": runner.token, "ACTIONS_CACHE_URL": f"{runner.url}/"}
    words = ("build", "--cache-to", "type=gha,mode=max", "--cache-from", "type=gha", "--debug", "--progress=rawjson")
    metadata = tmp_path / "metadata.json"
    done = cli(*words, "--metadata-file", metadata, "-o", tmp_path / "out", project.context, env=env)
    assert done.code == 0, done.stderr
    assert any(key.startswith("index-buildkit-") for key in runner.entries)
    assert runner.token not in done.stderr + done.stdout + metadata.read_text()


CACHES: Mapping[str, str] = {
    "s3": "type=s3,bucket=b,region=r,endpoint_url=http://127.0.0.1:1,access_key_id=hunter2,secret_access_key=hunter2",
    "azblob": "type=azblob,account_url=http://127.0.0.1:1/x,account_name=x,secret_access_key=aHVudGVyMg==",
}


@pytest.mark.parametrize("kind", CACHES)
async def test_what_an_engine_does_not_have(engine_address: str, scratch: Path, kind: str) -> None:
    """Named: an export is refused, an import is told of, since the build is right without it."""
    spec = CacheSpec.parse(CACHES[kind])
    async with connect(engine_address) as client:
        with pytest.raises(UnsupportedByDaemon, match=f"cache-to type={kind}: the daemon at .* has no such caches"):
            await build(client, BuildRequest(context=scratch, cache_to=[spec], attestations={}))
        result = await build(client, BuildRequest(context=scratch, cache_from=[spec], attestations={}))
    (note,) = result.notes
    assert note.startswith(f"cache-from type={kind}: ")
    assert "hunter2" not in note
