"""OpenSSH of this machine: its programs inside a build, its agent, and what it says of a signature."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support import guardian

_SECONDS = 20

SIGN = (
    "mkdir -p /o && ssh-add -L > /o/keys && cut -d' ' -f1,2 /o/keys | head -n 1 > /o/key.pub && echo data > /o/data "
    "&& ssh-keygen -q -Y sign -n test -f /o/key.pub /o/data && { ssh-add -D 2>/dev/null && exit 1 || true; } "
    "&& ssh-add -L > /o/after"
)
"""A script that lists the keys of an agent, signs with the first, and tries to remove them; it leaves files in /o."""


def copy_programs(root: Path) -> None:
    """Copy ssh-add and ssh-keygen to a directory, and the libraries that they need."""
    for program in ("ssh-add", "ssh-keygen"):
        found = shutil.which(program)
        if found is None or shutil.which("ldd") is None:
            pytest.skip(f"no {program} or no ldd on this machine")
        listed = subprocess.run(["ldd", found], capture_output=True, text=True, check=True).stdout
        for path in [found, *re.findall(r"(/\S+) \(0x", listed)]:
            target = root / path.lstrip("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)


def new_key(path: Path, kind: str = "ed25519") -> str:
    """Make a key file; its public key in base64."""
    subprocess.run(["ssh-keygen", "-q", "-t", kind, "-N", "", "-C", "", "-f", str(path)], check=True)
    return path.with_suffix(".pub").read_text().split()[1]


@contextmanager
def run_agent(socket: Path, keys: Sequence[Path]) -> Generator[dict[str, str]]:
    """An ssh-agent with these keys; the environment that leads to it."""
    environment = {"SSH_AUTH_SOCK": str(socket)}
    command = ["ssh-agent", "-D", "-a", str(socket)]
    agent = subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True)
    guardian.watch_group(agent.pid)
    try:
        assert agent.stdout is not None
        agent.stdout.readline()  # it has said where it listens
        for key in keys:
            subprocess.run(["ssh-add", "-q", str(key)], env=environment, check=True, timeout=_SECONDS)
        yield environment
    finally:
        agent.terminate()
        agent.communicate(timeout=_SECONDS)
        guardian.forget_group(agent.pid)


def verify(folder: Path, keys: Sequence[str]) -> None:
    """Check what SIGN left: all keys were listed, the first one has signed, and none was removed."""
    assert [line.split()[1] for line in (folder / "keys").read_text().splitlines()] == list(keys)
    assert (folder / "after").read_text() == (folder / "keys").read_text(), "a step removed keys"
    (folder / "signers").write_text(f"me {(folder / 'key.pub').read_text()}")
    command = ["ssh-keygen", "-Y", "verify", "-n", "test", "-I", "me", "-f", "signers", "-s", "data.sig"]
    subprocess.run(command, cwd=folder, input=(folder / "data").read_bytes(), check=True, capture_output=True)
