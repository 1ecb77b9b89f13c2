"""Real servers on loopback and unix sockets: started for a test, waited for, ended with all that they started."""

from __future__ import annotations

import asyncio
import functools
import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import trustme

from buildkit_py import daemon
from buildkit_py.daemon import launch
from buildkit_py.errors import BuildKitError, ConnectFailed
from tests.support import guardian
from tests.support.peers import engine_prefix, prefix

USERNAME = "tester"
PASSWORD = "correct horse"
# bcrypt, the only kind that the registry reads, at its lowest cost.
_HTPASSWD = f"{USERNAME}:$2y$04$2LemDu.5qlE0Gr0qVgdxveGhQ26T5SubDX5QIve7lDQ.bKmkDSkEi\n"

_READY_SECONDS = 20.0
_STOP_SECONDS = 5.0
_POLL_SECONDS = 0.02
_ACCESS = re.compile(rb'"([A-Z]+) (/[^" ]*) HTTP/1\.1" (\d{3})')
_LISTENING = re.compile(rb"listening on 127\.0\.0\.1:(\d+)")


class Unavailable(Exception):
    """A server that this machine does not have; the text says how to get it."""


class Request(NamedTuple):
    """What a registry was asked for, and what it answered."""

    method: str
    target: str
    status: int

    @property
    def mounted(self) -> bool:
        """Whether it brought a blob from another repository."""
        return self.method == "POST" and "mount=" in self.target and self.status == 201

    @property
    def uploaded(self) -> bool:
        """Whether it ended the upload of a blob."""
        return self.method == "PUT" and "/blobs/uploads/" in self.target and self.status == 201


@dataclass(kw_only=True)
class Registry:
    """A running CNCF Distribution. Its port was free when it started; nothing but its log tells more."""

    host: str
    """127.0.0.1:port."""
    log: Path
    process: subprocess.Popen[bytes] = field(repr=False)
    ca: Path | None = None
    """Certificate authority of a registry with TLS, as a PEM file."""
    username: str = ""
    password: str = field(default="", repr=False)

    def requests(self) -> list[Request]:
        """All requests that were answered so far; of a registry with an access log."""
        found = _ACCESS.findall(self.log.read_bytes())
        return [Request(method.decode(), target.decode(), int(status)) for method, target, status in found]

    def asked(self) -> Counter[str]:
        """How many of them there were of each method."""
        return Counter(request.method for request in self.requests())

    @property
    def url(self) -> str:
        return f"{'https' if self.ca else 'http'}://{self.host}"

    def stop(self) -> None:
        """End it, with its connections; not an error when it has ended."""
        end_group(self.process)

    def kill(self) -> None:
        """End it at once, as a crash would."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(_STOP_SECONDS)


@dataclass(kw_only=True)
class PrivateDaemon:
    """A daemon of one test, which may do with it what it likes."""

    address: str
    pid: int
    kind: str
    state_dir: Path
    log: Path
    options: daemon.DaemonOptions = field(repr=False)

    def kill(self) -> None:
        """End the daemon's process at once, as a crash would; what it started is cleared by stop()."""
        os.kill(self.pid, signal.SIGKILL)

    async def stop(self) -> None:
        """End it and clear what it leaves; not an error when it has ended."""
        await daemon.stop(self.state_dir, timeout=_STOP_SECONDS)

    async def restart(self) -> None:
        """Start it again, with its data; the address stays."""
        self.pid = _pid(await daemon.start(self.options))


def daemon_host() -> str | None:
    """The daemon that the environment names for the tests."""
    return os.environ.get("BUILDKIT_HOST") or None


@contextmanager
def run_daemon(
    folder: Path,
    *,
    kind: Literal["auto", "buildkitd", "dockerd"] = "auto",
    arguments: Sequence[str] = (),
    dockerd_settings: Mapping[str, object] | None = None,
    programs: Path | None = None,
) -> Generator[PrivateDaemon]:
    """A daemon with its data below folder: buildkitd where there is one, else dockerd; Unavailable without either.

    Where the environment names an engine for the tests, "auto" means that one; programs is a prefix with another.
    dockerd_settings go over those of a dockerd's configuration file, and arguments are for a buildkitd then. Runs its
    coroutines in loops of its own, so it is for fixtures, not for coroutines.
    """
    if kind == "auto" and engine_prefix() != prefix():
        kind = "dockerd"
    options = daemon.DaemonOptions(
        state_dir=folder / "daemon", prefix=programs or engine_prefix(), kind=kind, arguments=tuple(arguments)
    )
    guardian.watch_daemon(folder / "daemon")
    try:
        if dockerd_settings and launch.find_daemon(options)[0] == "dockerd":
            settings = json.loads(launch.dockerd_config(launch.Layout.of(options.state_dir), ()))
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "dockerd.json").write_text(json.dumps({**settings, **dockerd_settings}))
            options = replace(options, arguments=("--config-file", str(folder / "dockerd.json")))
        status = asyncio.run(daemon.start(options))
    except ConnectFailed as error:
        raise Unavailable(f"{error} (make servers)") from error
    assert status.kind is not None
    private = PrivateDaemon(
        address=status.address,
        pid=_pid(status),
        kind=status.kind,
        state_dir=status.state_dir,
        log=status.log,
        options=options,
    )
    try:
        yield private
    finally:
        try:
            asyncio.run(daemon.stop(options.state_dir, timeout=_STOP_SECONDS))
        finally:
            guardian.discard_daemon(folder / "daemon")


@contextmanager
def run_registry(
    folder: Path,
    *,
    password: bool = False,
    tls: bool = False,
    token: Mapping[str, str] | None = None,
    access_log: bool = False,
    cache_of: str = "",
    client_ca: Path | None = None,
    prefix: str = "",
    deletes: bool = True,
    schema1: bool = False,
) -> Generator[Registry]:
    """A registry with its data below folder; Unavailable where there is no docker-registry.

    token holds the settings of authentication by a token server. With access_log its log has a line for each request.
    cache_of is the URL of a registry that it pulls through, client_ca the authority of those that it talks to, prefix
    the path that stands before its /v2/, deletes whether manifests may be deleted, schema1 whether it takes such.
    """
    binary = find_registry()
    if binary is None:
        raise Unavailable("no docker-registry found (make servers, or apt-get install docker-registry)")
    folder.mkdir(parents=True, exist_ok=True)
    http: dict[str, Any] = {"addr": "127.0.0.1:0", "secret": "of no use: there is one instance"}
    auth: dict[str, object] = {}
    ca = make_certificates(folder) if tls else None
    if ca:
        http["tls"] = {"certificate": str(folder / "server.pem"), "key": str(folder / "server.key")}
        if client_ca:
            http["tls"] = {**http["tls"], "clientcas": [str(client_ca)]}
    if prefix:
        http["prefix"] = f"{prefix}/"
    if password:
        (folder / "htpasswd").write_text(_HTPASSWD)
        auth = {"auth": {"htpasswd": {"realm": "tests", "path": str(folder / "htpasswd")}}}
    if token is not None:
        auth = {"auth": {"token": dict(token)}}
    config = {
        "version": "0.1",
        "log": {"level": "info", "accesslog": {"disabled": not access_log}},  # info: the port is told at that level
        "storage": {
            "filesystem": {"rootdirectory": str(folder / "data")},
            "delete": {"enabled": deletes},
            "maintenance": {"uploadpurging": {"enabled": False}},
        },
        "http": http,
        **({"proxy": {"remoteurl": cache_of}} if cache_of else {}),
        "compatibility": {"schema1": {"enabled": schema1}},
        **auth,
    }
    (folder / "config.yml").write_text(json.dumps(config))  # JSON is YAML
    log = folder / "registry.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [binary, "serve", str(folder / "config.yml")],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            # Its tracing, once configured by the caller's environment, would report to the caller's collector.
            env={**os.environ, "OTEL_TRACES_EXPORTER": "none"},
        )
    guardian.watch_group(process.pid)
    try:
        registry = Registry(host=f"127.0.0.1:{_port(process, log)}", log=log, process=process, ca=ca)
        if password:
            registry.username, registry.password = USERNAME, PASSWORD
        yield registry
    finally:
        end_group(process)


@functools.cache
def find_registry() -> str | None:
    """CNCF Distribution, under Debian's name or its own."""
    path = os.pathsep.join((str(prefix() / "usr" / "bin"), os.environ.get("PATH", os.defpath)))
    return shutil.which("docker-registry", path=path) or shutil.which("registry", path=path)


def make_certificates(folder: Path) -> Path:
    """A certificate for loopback and a name that nobody resolves, server.pem and server.key; returns who signed it."""
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1", "localhost", "registry.invalid")
    certificate.private_key_pem.write_to_path(folder / "server.key")
    chain = b"".join(blob.bytes() for blob in certificate.cert_chain_pems)
    (folder / "server.pem").write_bytes(chain)
    authority.cert_pem.write_to_path(folder / "ca.pem")
    return folder / "ca.pem"


def end_group(process: subprocess.Popen[bytes]) -> None:
    """Ask the process group that process leads to end, and kill it when it does not."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
    process.wait(_STOP_SECONDS)
    guardian.forget_group(process.pid)


def missing_emulators() -> list[str]:
    """Handlers that this machine's kernel lacks for the platforms of the tests; it runs its own without one."""
    machine = os.uname().machine
    wanted = {"x86_64": "qemu-x86_64", "aarch64": "qemu-aarch64", "armv7l": "qemu-arm"}
    handlers = Path("/proc/sys/fs/binfmt_misc")
    return [name for own, name in wanted.items() if own != machine and not _is_enabled(handlers / name)]


def _is_enabled(handler: Path) -> bool:
    """Whether the handler is on, and opened its interpreter beforehand: only such work inside containers."""
    try:
        lines = handler.read_text().splitlines()
    except OSError:
        return False
    return "enabled" in lines and any(line.startswith("flags:") and "F" in line[6:] for line in lines)


def _port(process: subprocess.Popen[bytes], log: Path) -> int:
    """Wait until the registry says on which port it listens."""
    deadline = time.monotonic() + _READY_SECONDS
    while time.monotonic() < deadline:
        if found := _LISTENING.search(log.read_bytes()):
            return int(found[1])
        if process.poll() is not None:
            break
        time.sleep(_POLL_SECONDS)
    raise RuntimeError(f"the registry does not listen; its log:\n{log.read_text(errors='replace')[-2000:]}")


def _pid(status: daemon.DaemonStatus) -> int:
    if status.pid is None:
        raise BuildKitError(f"no daemon runs in {status.state_dir}")
    return status.pid
