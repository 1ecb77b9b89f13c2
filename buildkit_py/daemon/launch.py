"""Start, find and stop a private daemon."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import hashlib
import ipaddress
import json
import os
import re
import shutil
import signal
import sys
from collections.abc import AsyncGenerator, Generator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal, TypeAlias, cast

from buildkit_py.daemon import network
from buildkit_py.daemon.processes import (
    MARK,
    Process,
    forget_containers,
    kill_marked,
    remove_cgroups,
    run,
    spawn,
    unmount_below,
    wait_gone,
)
from buildkit_py.errors import BuildKitError, ConnectFailed, DeadlineExceeded, InvalidOption

DaemonKind: TypeAlias = Literal["buildkitd", "dockerd"]

SYSTEM_PATH = ("/usr/local/sbin", "/usr/sbin", "/usr/bin", "/sbin", "/bin")
"""Searched after PATH, which often lacks the directories of root's programs."""

_RUNTIME = Path("/run/buildkit-py")
_POLL_SECONDS = 0.05
_ANSWER_SECONDS = 5.0
_KILL_SECONDS = 10.0
_CGROUP_SECONDS = 3.0
_DISK_ERRORS = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO))
_LOG_TAIL_BYTES = 16384
_LOG_TAIL_LINES = 12
# What a daemon needs besides itself, in the words of what to install.
_HELPERS: Mapping[DaemonKind, tuple[tuple[str, ...], ...]] = {
    "buildkitd": (("buildkit-runc", "runc"),),
    "dockerd": (("containerd",), ("runc",)),
}
# The rest of the environment stays here: it may hold secrets, and settings meant for this process.
_PASSED_ON = frozenset(
    (
        *("HOME", "LANG", "TZ", "TMPDIR", "SSL_CERT_FILE", "SSL_CERT_DIR"),
        *("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy"),
    )
)
_FRAME = re.compile(r"\s+\S+\.(go|s):\d+(\s\+0x[0-9a-f]+)?")  # a file and line of a Go stack
# What it has in its state directory; the lock is last, so that what is left of a removal is known for a daemon's.
_OWN = (
    *("buildkitd", "dockerd", "buildkitd.toml", "dockerd.json", "containerd.toml"),
    *("daemon.json", "daemon.new", "daemon.log", "daemon.log.1", "daemon.lock"),
)
_REGISTRY = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9_.-]+)(:[0-9]{1,5})?")


@dataclass(frozen=True, slots=True, kw_only=True)
class DaemonOptions:
    """What to start, and where."""

    state_dir: Path | None = None
    """Directory for all that the daemon has; None is default_state_dir()."""
    kind: Literal["auto", "buildkitd", "dockerd"] = "auto"
    """auto takes buildkitd where there is one, else dockerd."""
    insecure_registries: tuple[str, ...] = ()
    """Registries (host, host:port, for dockerd also networks) that are spoken to without TLS, or without proof.

    Those on the loopback network always are.
    """
    timeout: float = 60.0
    """Seconds until the daemon must answer."""
    arguments: tuple[str, ...] = ()
    """Further arguments for the daemon's command line."""
    prefix: Path | None = None
    """Directory whose bin directories are searched before PATH; None is $BUILDKIT_PY_PREFIX."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DaemonStatus:
    """A private daemon, as it is now."""

    running: bool
    state_dir: Path
    log: Path
    """What the daemon printed; kept after it has ended."""
    pid: int | None = None
    kind: DaemonKind | None = None
    address: str = ""
    """What ``connect()`` and ``$BUILDKIT_HOST`` take; "" when it does not run."""
    version: str = ""
    """What the binary says of itself; "" when it does not run."""


@dataclass(frozen=True, slots=True)
class _Record:
    """What is written down about a daemon that was started."""

    pid: int
    started: str
    kind: DaemonKind
    address: str
    version: str
    insecure_registries: tuple[str, ...] = field(default=())
    helper: Process | None = None
    """The containerd of a dockerd."""

    @property
    def process(self) -> Process:
        return Process(self.pid, self.started)

    def alive(self) -> bool:
        """Whether all of it still runs."""
        return self.process.alive() and (self.helper is None or self.helper.alive())


@dataclass(frozen=True, slots=True)
class Layout:
    """Where one daemon's things are; all names follow from its state directory."""

    state: Path
    tag: str
    """Name of its bridge and cgroup; 15 characters, the most that an interface's name may have."""

    @classmethod
    def of(cls, state_dir: Path | None) -> Layout:
        state = (state_dir or default_state_dir()).expanduser().resolve()
        return cls(state, "bkpy-" + hashlib.sha256(os.fsencode(state)).hexdigest()[:10])

    @property
    def runtime(self) -> Path:
        return _RUNTIME / self.tag

    def data(self, kind: DaemonKind) -> Path:
        return self.state / kind

    @property
    def lock(self) -> Path:
        """Held while the daemon is started or stopped; it also marks the directory as a daemon's."""
        return self.state / "daemon.lock"

    @property
    def log(self) -> Path:
        return self.state / "daemon.log"

    @property
    def record(self) -> Path:
        return self.state / "daemon.json"

    def socket(self, kind: DaemonKind) -> Path:
        return self.runtime / ("docker.sock" if kind == "dockerd" else "buildkitd.sock")

    @property
    def containerd_socket(self) -> Path:
        return self.runtime / "containerd.sock"

    def address(self, kind: DaemonKind) -> str:
        return f"{'docker' if kind == 'dockerd' else 'unix'}://{self.socket(kind)}"


def default_state_dir() -> Path:
    """``$XDG_STATE_HOME/buildkit-py/daemon``, by default below ``~/.local/state``."""
    base = os.environ.get("XDG_STATE_HOME", "")
    # Source: XDG Base Directory specification: relative paths are invalid and ignored.
    root = Path(base) if Path(base).is_absolute() else Path.home() / ".local" / "state"
    return root / "buildkit-py" / "daemon"


def find_daemon(options: DaemonOptions) -> tuple[DaemonKind, Path]:
    """Kind and path of the daemon that the options mean; raise ConnectFailed when there is none to start."""
    path = _search_path(options)
    kinds: tuple[DaemonKind, ...] = ("buildkitd", "dockerd") if options.kind == "auto" else (options.kind,)
    attempts: list[tuple[str, str]] = []
    for kind in kinds:
        found = shutil.which(kind, path=path)
        if found is None:
            attempts.append((kind, "not found"))
            continue
        absent = [names[-1] for names in _HELPERS[kind] if not any(shutil.which(n, path=path) for n in names)]
        if not absent:
            return kind, Path(found)
        attempts.append((found, f"needs {' and '.join(absent)}, not found"))
    detail = "; ".join(f"{name}: {reason}" for name, reason in attempts)
    raise ConnectFailed(
        f"no daemon to start ({detail}); looked in {path}. Install one, or set BUILDKIT_HOST to one elsewhere",
        attempts,
    )


async def start(options: DaemonOptions | None = None) -> DaemonStatus:
    """Start the daemon and wait until it answers; one that runs already is left as it is.

    Raise InvalidOption for settings that cannot be, or that a running one does not have; ConnectFailed when it
    cannot be started or ends at once; DeadlineExceeded when it does not answer in time. The last two come with
    the end of its log, and like cancelling leave nothing running.
    """
    options = options or DaemonOptions()
    with _named_place(options.state_dir):
        return await _start(options)


async def _start(options: DaemonOptions) -> DaemonStatus:
    if options.timeout <= 0:
        raise InvalidOption(f"timeout {options.timeout}: expected more than 0 seconds")
    for registry in options.insecure_registries:
        _check_registry(registry, options.kind)
    layout = Layout.of(options.state_dir)
    _check_ours(layout)
    _require_root()
    _make_private(layout.state)
    async with _locked(layout, options.timeout):
        record = _read_record(layout)
        if record is not None and record.alive():
            _check_same(record, options, layout)
            await _answering(record, layout, options.timeout)
            return _status(layout)
        kind, binary = find_daemon(options)
        for registry in options.insecure_registries:
            _check_registry(registry, kind)
        path = _search_path(options)
        await _clear(layout, path)
        try:
            record = await _launch(layout, options, kind, binary, path)
            await _answering(record, layout, options.timeout)
        except BaseException:
            await _end(layout, path, grace=0)
            raise
        return _status(layout)


async def status(state_dir: Path | None = None) -> DaemonStatus:
    """What is known of the daemon with this state directory, without asking it."""
    return _status(Layout.of(state_dir))


async def stop(state_dir: Path | None = None, *, timeout: float = 10.0, remove: bool = False) -> DaemonStatus:
    """End the daemon and all that it started; its data stays, for the next start, unless remove is set.

    It is asked first and killed after timeout seconds: a build that runs is no reason to wait for ever. What an
    earlier, killed daemon left behind is cleared too. Not an error when none runs. Files in the state directory that
    are not the daemon's are never touched.
    """
    layout = Layout.of(state_dir)
    with _named_place(layout.state):
        if layout.lock.exists():
            _require_root()
            async with _locked(layout, timeout + _KILL_SECONDS):
                await _end(layout, _search_path(DaemonOptions()), grace=timeout)
                if remove:
                    await asyncio.to_thread(_remove, layout)
        return _status(layout)


async def _launch(layout: Layout, options: DaemonOptions, kind: DaemonKind, binary: Path, path: str) -> _Record:
    """Start the process and write down that it runs."""
    code, version = await run([str(binary), "--version"])
    if code:
        raise ConnectFailed(f"{binary} does not run here: {version}", [(str(binary), version)])
    for folder in (_RUNTIME, layout.runtime, layout.data(kind)):
        _make_private(folder)
    command = [str(binary), "--config-file" if kind == "dockerd" else "--config"]
    if kind == "dockerd":
        try:
            subnet = network.make_bridge(layout.tag)
        except OSError as error:
            raise ConnectFailed(f"cannot make a network bridge for {binary}: {error}") from error
        await network.add_rules(layout.tag, subnet, path)
        config, text = layout.state / "dockerd.json", dockerd_config(layout, options.insecure_registries)
    else:
        config, text = layout.state / "buildkitd.toml", buildkitd_config(layout, options.insecure_registries)
    config.write_text(text)
    with contextlib.suppress(FileNotFoundError):
        layout.log.replace(layout.log.with_suffix(".log.1"))
    helper = _spawn_containerd(layout, path) if kind == "dockerd" else None
    process = _spawn([*command, str(config), *options.arguments], layout, path)
    registries = tuple(sorted(options.insecure_registries))
    record = _Record(process.pid, process.started, kind, layout.address(kind), version, registries, helper)
    _write_record(layout, record)
    return record


def _spawn_containerd(layout: Layout, path: str) -> Process:
    """Start dockerd's containerd: left to itself dockerd takes the machine's, where there is one."""
    config = layout.state / "containerd.toml"
    config.write_text(containerd_config(layout))
    # find_daemon() has found it on this path.
    return _spawn([shutil.which("containerd", path=path) or "containerd", "--config", str(config)], layout, path)


def _spawn(command: Sequence[str], layout: Layout, path: str) -> Process:
    env = {name: value for name, value in os.environ.items() if name in _PASSED_ON}
    try:
        process = spawn(command, env={**env, "PATH": path, MARK: layout.tag}, log=layout.log)
    except OSError as error:
        raise ConnectFailed(f"cannot start {command[0]}: {error.strerror}") from error
    if process is None:
        raise _ended(layout, Path(command[0]).name)
    return process


def containerd_config(layout: Layout) -> str:
    """Text of the configuration file of dockerd's containerd. A JSON string is a TOML basic string too."""
    lines = [
        "version = 2",
        # Kubernetes' interface, and a plugin that writes to /opt.
        'disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.internal.v1.opt"]',
        f"root = {json.dumps(str(layout.data('dockerd') / 'containerd' / 'daemon'))}",
        f"state = {json.dumps(str(layout.runtime / 'exec' / 'containerd'))}",
        "[grpc]",
        f"  address = {json.dumps(str(layout.containerd_socket))}",
        "[debug]",
        '  level = "warn"',  # at each start it tells of a hundred plugins
    ]
    return "\n".join(lines) + "\n"


def dockerd_config(layout: Layout, insecure_registries: tuple[str, ...]) -> str:
    """Text of dockerd's configuration file."""
    return json.dumps(
        {
            "data-root": str(layout.data("dockerd")),
            "exec-root": str(layout.runtime / "exec"),
            "pidfile": str(layout.runtime / "docker.pid"),
            "hosts": [f"unix://{layout.socket('dockerd')}"],
            "group": "root",
            "containerd": str(layout.containerd_socket),
            "features": {"containerd-snapshotter": True},
            "insecure-registries": list(insecure_registries),
            # Its own chains in the machine's firewall would disturb other engines: see network.py.
            "bridge": layout.tag,
            "iptables": False,
            "ip6tables": False,
            "userland-proxy": False,
            # Containers are found by their cgroup when the daemon was killed and cannot end them.
            "cgroup-parent": f"/{layout.tag}",
            "exec-opts": ["native.cgroupdriver=cgroupfs"],
            "shutdown-timeout": 5,
        },
        indent=2,
    )


def buildkitd_config(layout: Layout, insecure_registries: tuple[str, ...]) -> str:
    """Text of buildkitd's configuration file. A JSON string is a TOML basic string too."""
    socket = f"unix://{layout.socket('buildkitd')}"
    lines = [
        f"root = {json.dumps(str(layout.data('buildkitd')))}",
        "[grpc]",
        f"  address = [{json.dumps(socket)}]",
        "[otel]",
        f"  socketPath = {json.dumps(str(layout.runtime / 'otel.sock'))}",
        "[worker.containerd]",
        "  enabled = false",
        "[worker.oci]",
        "  enabled = true",
        f"  defaultCgroupParent = {json.dumps(f'/{layout.tag}')}",
    ]
    for registry in insecure_registries:
        if "/" not in registry:  # networks are of the loopback, which buildkitd trusts by itself
            lines += [f"[registry.{json.dumps(registry)}]", "  http = true", "  insecure = true"]
    return "\n".join(lines) + "\n"


async def _answering(record: _Record, layout: Layout, timeout: float) -> None:
    """Wait until the daemon answers on its socket."""
    socket = str(layout.socket(record.kind))
    answers = _docker_answers if record.kind == "dockerd" else _http2_answers
    try:
        async with asyncio.timeout(timeout):
            while not await answers(socket):
                if not record.alive():
                    raise _ended(layout, record.kind)
                await asyncio.sleep(_POLL_SECONDS)
    except TimeoutError:
        raise DeadlineExceeded(
            f"{record.kind} did not answer on {socket} within {timeout:g} seconds; {_log_tail(layout)}"
        ) from None


async def _docker_answers(socket: str) -> bool:
    request = b"GET /_ping HTTP/1.1\r\nHost: docker\r\nConnection: close\r\n\r\n"
    answer = await _exchange(socket, request, len(b"HTTP/1.1 200"))
    return answer.endswith(b" 200")


async def _http2_answers(socket: str) -> bool:
    # Connection preface and an empty SETTINGS frame; the server's first frame must be SETTINGS (type 4).
    # Source: RFC 9113, 3.4 and 6.5.
    request = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
    answer = await _exchange(socket, request, 9)
    return answer[3:4] == b"\x04"


async def _exchange(socket: str, request: bytes, size: int) -> bytes:
    """First bytes of the answer to a request; b"" when nobody answers."""
    writer: asyncio.StreamWriter | None = None
    try:
        async with asyncio.timeout(_ANSWER_SECONDS):
            reader, writer = await asyncio.open_unix_connection(socket)
            writer.write(request)
            return await reader.readexactly(size)
    except (OSError, asyncio.IncompleteReadError):  # TimeoutError is an OSError
        return b""
    finally:
        if writer is not None:
            writer.close()


async def _end(layout: Layout, path: str, *, grace: float) -> None:
    """End the daemon, asking first when there is a grace period, and clear what it leaves."""
    record = _read_record(layout)
    if record is not None and grace > 0:
        # The daemon before its containerd, which it needs for its own end.
        for process in filter(None, (record.process, record.helper)):
            await _ask_to_end(process, grace)
    await _clear(layout, path)


async def _ask_to_end(process: Process, grace: float) -> None:
    if process.alive():
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        await wait_gone(process, grace)


def _remove(layout: Layout) -> None:
    """Remove what a daemon has in its state directory, and the directory unless others have put something there."""
    for name in _OWN:
        path = layout.state / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        layout.state.rmdir()


async def _clear(layout: Layout, path: str) -> None:
    """Remove processes, mounts and network of a daemon; its data and log stay."""
    if not await kill_marked(layout.tag, _KILL_SECONDS):
        raise DeadlineExceeded(f"processes of the daemon in {layout.state} do not end, killed though they are")
    busy = unmount_below(layout.state, layout.runtime)
    if busy:
        raise BuildKitError(f"cannot unmount {busy[0]}")
    await network.remove_rules(layout.tag, path)
    try:
        network.remove_bridge(layout.tag)
    except OSError as error:
        raise BuildKitError(f"cannot remove the bridge {layout.tag}: {error.strerror}") from error
    await remove_cgroups(layout.tag, _CGROUP_SECONDS)
    forget_containers(layout.state)
    if layout.runtime.exists():
        shutil.rmtree(layout.runtime)
    layout.record.unlink(missing_ok=True)


@contextlib.asynccontextmanager
async def _locked(layout: Layout, timeout: float) -> AsyncGenerator[None]:
    """Exclude other starts and stops of the same daemon, in this process and in others."""
    with contextlib.ExitStack() as stack:
        try:
            async with asyncio.timeout(timeout):
                while not _lock(layout.lock, stack):  # noqa: ASYNC110  # the holder may be another process
                    await asyncio.sleep(_POLL_SECONDS)
        except TimeoutError:
            raise DeadlineExceeded(
                f"{layout.state} is being started or stopped by another process for {timeout:g} seconds"
            ) from None
        yield


def _lock(path: Path, stack: contextlib.ExitStack) -> bool:
    """Whether the lock was taken; the stack releases it."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with contextlib.ExitStack() as attempt:
        lock = attempt.enter_context(path.open("w"))
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(lock.fileno()).st_ino != path.stat().st_ino:
                return False  # another stop removed the directory with the lock meanwhile
        except (BlockingIOError, FileNotFoundError):
            return False
        stack.push(attempt.pop_all())
    return True


def _status(layout: Layout) -> DaemonStatus:
    stopped = DaemonStatus(running=False, state_dir=layout.state, log=layout.log)
    record = _read_record(layout)
    if record is None or not record.alive():
        return stopped
    return replace(
        stopped,
        running=True,
        pid=record.pid,
        kind=record.kind,
        address=record.address,
        version=record.version,
    )


def _read_record(layout: Layout) -> _Record | None:
    """The record; None when there is none, or when it is of no use."""
    try:
        values: object = json.loads(layout.record.read_bytes())
    except PermissionError as error:
        raise ConnectFailed(f"cannot read {layout.record}: run as root, who started the daemon") from error
    except (OSError, ValueError):
        return None
    fields = cast("dict[str, object]", values) if isinstance(values, dict) else {}
    kind, registries = fields.get("kind"), fields.get("insecure_registries")
    pid, started, address, version = (fields.get(name) for name in ("pid", "started", "address", "version"))
    if not (isinstance(pid, int) and isinstance(started, str) and isinstance(registries, list)):
        return None
    if not (isinstance(address, str) and isinstance(version, str) and kind in ("buildkitd", "dockerd")):
        return None
    names = tuple(str(name) for name in cast("list[object]", registries))
    match fields.get("helper"):
        case {"pid": int() as helper, "started": str() as helper_started}:
            return _Record(pid, started, kind, address, version, names, Process(helper, helper_started))
        case _:
            return _Record(pid, started, kind, address, version, names)


def _write_record(layout: Layout, record: _Record) -> None:
    fresh = layout.record.with_suffix(".new")
    fresh.write_text(json.dumps(asdict(record)))
    fresh.replace(layout.record)


def _check_same(record: _Record, options: DaemonOptions, layout: Layout) -> None:
    """Raise InvalidOption when the running daemon is not what was asked for."""
    if options.kind not in ("auto", record.kind):
        raise InvalidOption(
            f"a {record.kind} runs in {layout.state}, not a {options.kind}: stop it first, or use another directory"
        )
    missing = set(options.insecure_registries) - set(record.insecure_registries)
    if missing:
        raise InvalidOption(
            f"the daemon in {layout.state} runs without {min(missing)!r} as an insecure registry: stop it first"
        )


def _check_registry(text: str, kind: str) -> None:
    """Raise InvalidOption unless the text names a registry, or a network where the daemon takes networks."""
    if "/" in text:
        try:
            loopback = ipaddress.ip_network(text).is_loopback
        except ValueError as error:
            raise InvalidOption(f"insecure registry {text!r}: {error}") from error
        if kind == "buildkitd" and not loopback:
            raise InvalidOption(f"insecure registry {text!r}: buildkitd takes host:port, not networks")
    elif not _REGISTRY.fullmatch(text):
        raise InvalidOption(f"insecure registry {text!r}: expected host, host:port or a network")


def _check_ours(layout: Layout) -> None:
    """Raise InvalidOption for a directory that holds something else: a daemon's files are deleted by their names."""
    try:
        others = not layout.lock.exists() and any(layout.state.iterdir())
    except FileNotFoundError:
        return
    except OSError as error:
        raise InvalidOption(f"state directory {layout.state}: {error.strerror}") from error
    if others:
        raise InvalidOption(f"state directory {layout.state}: it is not empty, and holds no daemon; name another one")


@contextlib.contextmanager
def _named_place(state_dir: Path | None) -> Generator[None]:
    """What cannot be written or removed, as on a full or a read-only disk, is an error of ours."""
    try:
        yield
    except OSError as error:
        if isinstance(error, BuildKitError) or (error.filename is None and error.errno not in _DISK_ERRORS):
            raise
        place = state_dir if error.filename is None else os.fsdecode(error.filename)
        raise ConnectFailed(f"cannot use {place or default_state_dir()}: {error.strerror}") from error


def _require_root() -> None:
    if sys.platform != "linux":
        raise ConnectFailed("a private daemon runs on Linux only; set BUILDKIT_HOST to one elsewhere")
    if os.geteuid() != 0:
        raise ConnectFailed(
            "a private daemon needs root to start and to stop; use sudo, or set BUILDKIT_HOST to another daemon"
        )


def _make_private(folder: Path) -> None:
    """Make a directory that is root's alone; raise ConnectFailed when it is not, or cannot be made."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if folder.stat().st_uid != os.geteuid():
            raise ConnectFailed(f"cannot use {folder}: it belongs to another user")
        folder.chmod(0o700)
    except OSError as error:
        raise ConnectFailed(f"cannot use {folder}: {error.strerror}") from error


def _search_path(options: DaemonOptions) -> str:
    """PATH for finding programs and for the daemon: the prefix first, and where the system keeps root's programs."""
    prefix = options.prefix or (Path(value) if (value := os.environ.get("BUILDKIT_PY_PREFIX")) else None)
    own = [str(prefix.absolute() / name) for name in ("usr/local/bin", "usr/sbin", "usr/bin")] if prefix else []
    system = [*os.environ.get("PATH", "").split(os.pathsep), *SYSTEM_PATH]
    # Relative entries would mean another place to the daemon.
    return os.pathsep.join(dict.fromkeys([*own, *(entry for entry in system if entry.startswith("/"))]))


def _ended(layout: Layout, kind: str) -> ConnectFailed:
    return ConnectFailed(f"{kind} ended before it answered; {_log_tail(layout)}")


def _log_tail(layout: Layout) -> str:
    """Where the log is, and its last lines."""
    try:
        with layout.log.open("rb") as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - _LOG_TAIL_BYTES))
            lines = without_frames(log.read().decode(errors="replace").splitlines())[-_LOG_TAIL_LINES:]
    except OSError:
        lines = []
    if not lines:
        return f"its log {layout.log} is empty"
    shown = ("".join(c if c.isprintable() else " " for c in line) for line in lines)
    return f"the end of its log {layout.log}:" + "".join(f"\n  {line}" for line in shown)


def without_frames(lines: Sequence[str]) -> list[str]:
    """The lines less Go's stack frames, each two lines: buildkitd prints its error first, then many of those."""
    kept: list[str] = []
    for line in lines:
        if _FRAME.fullmatch(line):
            del kept[-1:]  # the function, named above
        else:
            kept.append(line)
    return kept
