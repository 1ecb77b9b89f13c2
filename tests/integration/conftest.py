"""Real servers for the tests of this folder. Fixtures hand out addresses; a test opens its own client.

Where a server is not to be had the test is skipped, and says why; under BUILDKIT_PY_REQUIRE_DAEMON=1 it fails.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from buildkit_py import connect
from tests.support import images, peers, servers


@contextmanager
def _available() -> Generator[None]:
    """Turn Unavailable into a skip, or into a failure where servers are required."""
    try:
        yield
    except servers.Unavailable as reason:
        if os.environ.get("BUILDKIT_PY_REQUIRE_DAEMON", "0") not in ("", "0"):
            pytest.fail(f"BUILDKIT_PY_REQUIRE_DAEMON is set, but: {reason}", pytrace=False)
        pytest.skip(str(reason))


@pytest.fixture(scope="session")
def daemon_address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A daemon for all tests: the one in $BUILDKIT_HOST, else one of our own."""
    if named := servers.daemon_host():
        yield named
        return
    with _available(), servers.run_daemon(tmp_path_factory.mktemp("daemon")) as private:
        yield private.address


@pytest.fixture(scope="session")
def capabilities(daemon_address: str) -> frozenset[str]:
    """What the daemon of all tests says that it can do; decides what tests expect of it."""

    async def ask() -> frozenset[str]:
        async with connect(daemon_address) as client:
            return await client.capabilities()

    return asyncio.run(ask())


@pytest.fixture(scope="session")
def secrets_as_variables(capabilities: frozenset[str]) -> bool:
    """Whether the daemon's own Dockerfile frontend is 1.10 or newer, and takes ``type=secret,env=``."""
    return "exec.validexitcode" in capabilities  # of BuildKit v0.17, the frontend came with v0.16


@pytest.fixture(scope="session")
def estargz(daemon_address: str, capabilities: frozenset[str]) -> bool:
    """Whether the daemon can write estargz. Debian's engine 28 panics and dies ("footer buffer = 48, not 51"), as it is
    built by a Go with another flate than that format relies on; its engine 26 does not."""
    return not daemon_address.startswith("docker:") or "exporter.session" not in capabilities


@pytest.fixture(scope="session")
def engine_address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A docker engine with containerd's image store, other than the daemon of all tests: ``docker:///path``."""
    with _available(), servers.run_daemon(tmp_path_factory.mktemp("engine"), kind="dockerd") as private:
        yield private.address


@pytest.fixture(scope="session")
def classic_engine_address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A docker engine with the classic image store."""
    with (
        _available(),
        servers.run_daemon(
            tmp_path_factory.mktemp("classic"),
            kind="dockerd",
            dockerd_settings={"features": {"containerd-snapshotter": False}},
        ) as private,
    ):
        yield private.address


@pytest.fixture(scope="module")
def permissive_daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A daemon that allows what it can be told to allow. It has the devices example.org/toy=one, which must be allowed
    too, and example.org/free=one, which need not."""
    specs = tmp_path_factory.mktemp("cdi")
    for name, notes in (("toy", {}), ("free", {"org.mobyproject.buildkit.device.autoallow": "true"})):
        edits = {"env": [f"DEVICE={name}"], "deviceNodes": [{"path": f"/dev/{name}", "hostPath": "/dev/null"}]}
        device = {"name": "one", "annotations": notes, "containerEdits": edits}
        spec = {"cdiVersion": "0.6.0", "kind": f"example.org/{name}", "devices": [device]}
        (specs / f"{name}.json").write_text(json.dumps(spec))
    entitlements = ("network.host", "security.insecure", "device")
    arguments = [word for name in entitlements for word in ("--allow-insecure-entitlement", name)]
    settings = {
        # dockerd has no setting that allows devices.
        "builder": {"entitlements": {"network-host": True, "security-insecure": True}},
        "features": {"containerd-snapshotter": True, "cdi": True},
        "cdi-spec-dirs": [str(specs)],
    }
    with (
        _available(),
        servers.run_daemon(
            tmp_path_factory.mktemp("permissive"),
            arguments=[*arguments, "--cdi-spec-dir", str(specs)],
            dockerd_settings=settings,
        ) as private,
    ):
        yield private.address


@pytest.fixture(scope="session")
def ancient_engine_address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Debian 12's engine 20.10, whose BuildKit is from before v0.9; of use for what it cannot do."""
    programs = peers.prefix().with_name(f"{peers.prefix().name}-ancient")
    if not (programs / "usr" / "sbin" / "dockerd").is_file():
        pytest.skip("no very old engine was fetched (make test-compat)")
    folder = tmp_path_factory.mktemp("ancient")
    with _available(), servers.run_daemon(folder, kind="dockerd", programs=programs) as private:
        yield private.address


@pytest.fixture
def fresh_daemon(tmp_path: Path) -> Iterator[servers.PrivateDaemon]:
    """A daemon of this test alone, which it may kill."""
    with _available(), servers.run_daemon(tmp_path) as private:
        yield private


@pytest.fixture(scope="session")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[servers.Registry]:
    """A registry for all tests: plain HTTP, no password. Each test uses repositories of its own."""
    with _available(), servers.run_registry(tmp_path_factory.mktemp("registry")) as server:
        yield server


@pytest.fixture(scope="session")
def auth_registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[servers.Registry]:
    """A registry that wants a password."""
    with _available(), servers.run_registry(tmp_path_factory.mktemp("auth"), password=True) as server:
        yield server


@pytest.fixture(scope="session")
def tls_registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[servers.Registry]:
    """A registry with TLS, signed by an authority that nobody else knows."""
    with _available(), servers.run_registry(tmp_path_factory.mktemp("tls"), tls=True) as server:
        yield server


@pytest.fixture
def fresh_registry(tmp_path: Path) -> Iterator[servers.Registry]:
    """A registry of this test alone, which it may stop."""
    with _available(), servers.run_registry(tmp_path / "registry") as server:
        yield server


@pytest.fixture(scope="session")
def emulators() -> None:
    """This machine's kernel runs programs for all platforms of the tests."""
    # A daemon named by $BUILDKIT_HOST may be elsewhere; then this machine's kernel says nothing.
    if servers.daemon_host() is None and (absent := servers.missing_emulators()):
        with _available():
            raise servers.Unavailable(f"no emulator {', '.join(absent)} (make servers)")


@pytest.fixture(scope="session")
def base_images(emulators: None, daemon_address: str, registry: servers.Registry) -> dict[str, str]:
    """Stand-ins for golang:alpine and alpine, as build contexts by those names."""
    with _available():
        images.rootfs()
    return asyncio.run(images.push_base_images(daemon_address, registry.host))


@pytest.fixture(scope="session")
def busybox() -> Path:
    """Root file system with a shell for the platform of this machine; serves as a local build context."""
    with _available():
        rootfs = images.rootfs()["alpine"] / "rootfs"
    machine = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm"}[os.uname().machine]
    return rootfs / machine
