"""OpenSSH's server on loopback, one process for each connection, with a host key and a login of its own."""

from __future__ import annotations

import os
import platform
import pwd
import shlex
import shutil
import socket
import subprocess
import threading
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.support import guardian
from tests.support.peers import prefix
from tests.support.servers import Unavailable

_SECONDS = 10.0
_ROOT = os.geteuid() == 0
LOGIN = "git" if _ROOT else pwd.getpwuid(os.geteuid()).pw_name


def new_key(path: Path, kind: str = "ed25519", passphrase: str = "") -> str:
    """Make a key, and the public one beside it; that in the form of an authorized_keys file."""
    command = ["ssh-keygen", "-q", "-t", kind, "-N", passphrase, "-C", "", "-f", str(path)]
    subprocess.run(command, check=True, timeout=60)
    return path.with_suffix(".pub").read_text().strip()


class Server:
    """Lets in who has one of the keys; knows how often it was asked."""

    def __init__(self, folder: Path, keys: Sequence[str]) -> None:
        """keys are lines of an authorized_keys file."""
        sshd, libraries = _find()
        folder.mkdir()
        self.host_key = new_key(folder / "host")
        self.log = folder / "log"
        (folder / "keys").write_text("".join(f"{key}\n" for key in keys))
        (folder / "config").write_text(
            f"HostKey {folder}/host\nAuthorizedKeysFile {folder}/keys\nPidFile none\nUsePAM no\nStrictModes no\n"
            "PasswordAuthentication no\nKbdInteractiveAuthentication no\nLogLevel VERBOSE\n"
        )
        self._environ = {**os.environ, "LD_LIBRARY_PATH": libraries}
        self._command = [sshd, "-i", "-e", "-f", str(folder / "config")]
        if _ROOT:
            self._command = _as_root(folder, self._command)
        subprocess.run([*self._command, "-t"], env=self._environ, check=True, timeout=60)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._running: list[subprocess.Popen[bytes]] = []
        self._thread = threading.Thread(target=self._accept, name="ssh server")
        self._thread.start()

    @property
    def port(self) -> int:
        return int(self._listener.getsockname()[1])

    @property
    def known_host(self) -> str:
        """Line of a known_hosts file."""
        return f"[127.0.0.1]:{self.port} {self.host_key}"

    def url(self, path: Path) -> str:
        """Of a repository."""
        return f"ssh://{LOGIN}@127.0.0.1:{self.port}{path}"

    def logins(self) -> int:
        """How often somebody got in with a key."""
        return self.log.read_text(errors="replace").count("Accepted publickey for")

    def close(self) -> None:
        """End, with what is still connected."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()
        for process in self._running:
            process.terminate()
            process.wait(_SECONDS)

    def _accept(self) -> None:
        with self.log.open("ab") as log:
            while True:
                try:
                    connection, _ = self._listener.accept()
                except OSError:
                    return  # closed
                with connection:
                    process = subprocess.Popen(
                        self._command,
                        stdin=connection.fileno(),
                        stdout=connection.fileno(),
                        stderr=log,
                        env=self._environ,
                    )
                self._running = [*(other for other in self._running if other.poll() is None), process]


def _find() -> tuple[str, str]:
    """sshd, and where its libraries are."""
    path = os.pathsep.join((str(prefix() / "usr" / "sbin"), os.environ.get("PATH", os.defpath), "/usr/sbin"))
    found = shutil.which("sshd", path=path)
    if found is None or shutil.which("ssh-keygen") is None:
        raise Unavailable("no sshd or ssh-keygen found (make servers, or apt-get install openssh-server)")
    return found, str(prefix() / "usr" / "lib" / f"{platform.machine()}-linux-gnu")


def _as_root(folder: Path, command: Sequence[str]) -> list[str]:
    """Root's sshd wants users and a directory that the machine need not have: it gets them, and nobody else does."""
    own = f"{LOGIN}:x:0:0::{folder}:/bin/sh\nsshd:x:65534:65534::/run/sshd:/usr/sbin/nologin\n"
    (folder / "passwd").write_text(own + Path("/etc/passwd").read_text())
    script = (
        f"mount --bind {shlex.quote(str(folder / 'passwd'))} /etc/passwd && mount -t tmpfs tmpfs /run && "
        'mkdir -m 0755 /run/sshd && exec "$@"'
    )
    wrapped = ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh"]
    if (
        shutil.which("unshare") is None
        or subprocess.run([*wrapped, "true"], check=False, capture_output=True).returncode
    ):
        raise Unavailable("this process may not make a mount namespace, which root's sshd needs here")
    return [*wrapped, *command]


@contextmanager
def serve_ssh(folder: Path, keys: Sequence[str]) -> Generator[Server]:
    """A server of its own for the time of the body; Unavailable where there is no sshd."""
    server = Server(folder, keys)
    try:
        yield server
    finally:
        server.close()


@contextmanager
def run_agent(socket_path: Path, *keys: Path) -> Generator[dict[str, str]]:
    """OpenSSH's agent with these keys: the environment that leads to it."""
    command = ["ssh-agent", "-D", "-a", str(socket_path)]
    agent = subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True)
    guardian.watch_group(agent.pid)
    environ = {"SSH_AUTH_SOCK": str(socket_path)}
    try:
        assert agent.stdout is not None
        agent.stdout.readline()  # it has said where it listens
        subprocess.run(["ssh-add", "-q", *map(str, keys)], env=environ, check=True, timeout=20)
        yield environ
    finally:
        agent.terminate()
        agent.communicate(timeout=20)
        guardian.forget_group(agent.pid)
