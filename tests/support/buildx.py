"""docker-buildx on the daemon of the tests, as a process."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

from tests.support import peers
from tests.support.cli import SECONDS, Done
from tests.support.servers import Unavailable

_BUILDER = "tests"
_FOREIGN = ("DOCKER_", "BUILDX_", "BUILDKIT_", "OTEL_", "SOURCE_DATE_EPOCH")


class Buildx:
    """Runs ``docker-buildx build`` with a configuration of its own; Unavailable where there is none."""

    def __init__(self, address: str, folder: Path) -> None:
        binary = peers.buildx()
        if binary is None:
            raise Unavailable("no docker-buildx found (make servers)")
        self.env = {name: value for name, value in os.environ.items() if not name.startswith(_FOREIGN)}
        # Reading git's state is something that nobody asked for here.
        self.env |= {
            "DOCKER_CONFIG": str(folder / "docker"),
            "BUILDX_CONFIG": str(folder / "buildx"),
            "BUILDX_GIT_INFO": "false",
        }
        self._command = [binary]
        if address.startswith("docker://"):
            self.env["DOCKER_HOST"] = f"unix://{address.removeprefix('docker://')}"
        else:
            create = [binary, "create", "--name", _BUILDER, "--driver", "remote", address]
            subprocess.run(create, env=self.env, check=True, capture_output=True, timeout=SECONDS)
            self._command += ["--builder", _BUILDER]

    def build(
        self,
        *args: str | Path,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        stdin: bytes = b"",
    ) -> Done:
        """Run to the end."""
        done = subprocess.run(
            [*self._command, "build", *map(str, args)],
            env=self.env | dict(env or {}),
            cwd=cwd,
            input=stdin,
            capture_output=True,
            check=False,
            timeout=SECONDS,
        )
        return Done(code=done.returncode, out=done.stdout, stderr=done.stderr.decode())
