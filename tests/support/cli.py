"""The command as a user has it: a process of its own, its exit code, stdout and stderr."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.support.servers import Registry

SECONDS = 60.0
"""No command of the tests takes longer."""
_ROOT = Path(__file__).resolve().parents[2]
_COMMAND = (sys.executable, "-m", "buildkit_py")
# What would make a run differ from machine to machine.
_CLEARED = ("BUILDKIT_HOST", "BUILDKIT_PROGRESS", "BUILDKIT_COLORS", "NO_COLOR", "DOCKER_HOST", "DOCKER_CONFIG")


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """How a command ended."""

    code: int
    out: bytes
    stderr: str

    @property
    def stdout(self) -> str:
        return self.out.decode()


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandLine:
    """Runs the command with a daemon, and with a docker configuration that no user of this machine has written."""

    address: str | None
    """None for no daemon in the environment."""
    docker_config: Path

    def environment(self, extra: Mapping[str, str] | None = None) -> dict[str, str]:
        env = {name: value for name, value in os.environ.items() if name not in _CLEARED}
        # A crash below Python would else tell nothing but its signal.
        env |= {"PYTHONPATH": str(_ROOT), "DOCKER_CONFIG": str(self.docker_config), "PYTHONFAULTHANDLER": "1"}
        if self.address is not None:
            env["BUILDKIT_HOST"] = self.address
        return env | dict(extra or {})

    def __call__(
        self,
        *args: str | Path,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        stdin: bytes | None = None,
    ) -> Done:
        """Run to the end, with stdin through a pipe where it is given; fails the test when that takes too long."""
        done = subprocess.run(
            [*_COMMAND, *map(str, args)],
            env=self.environment(env),
            cwd=cwd,
            input=stdin or b"",
            capture_output=True,
            check=False,
            timeout=SECONDS,
        )
        return Done(code=done.returncode, out=done.stdout, stderr=done.stderr.decode())

    def start(
        self, *args: str | Path, stderr: int = subprocess.PIPE, env: Mapping[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        """Start it and return; the caller ends it."""
        return subprocess.Popen(
            [*_COMMAND, *map(str, args)],
            env=self.environment(env),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=stderr,
        )

    def logged_in(self, server: Registry, password: str | None = None) -> CommandLine:
        """The same after ``docker login``, with the server's password or another one."""
        pair = base64.b64encode(f"{server.username}:{password or server.password}".encode()).decode()
        self.docker_config.mkdir(parents=True, exist_ok=True)
        (self.docker_config / "config.json").write_text(json.dumps({"auths": {server.host: {"auth": pair}}}))
        return self


def refused(done: Done, code: int, *needles: str) -> str:
    """The one line that says what is wrong; nothing on stdout, no traceback."""
    assert (done.code, done.stdout) == (code, ""), done.stderr
    assert "Traceback" not in done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    for needle in needles:
        assert needle in line
    return line
