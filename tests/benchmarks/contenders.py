"""Who is measured: the library in a warm process, its command line, and docker buildx, all on one daemon."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Protocol, Self, cast

from tests.support import peers
from tests.support.servers import Unavailable

LIMIT_SECONDS = 180.0
"""For one build."""
_SPAWN = Path(__file__).with_name("spawn.py")
_REPOSITORY = Path(__file__).resolve().parents[2]
_BUILDER = "bench"
_FOREIGN = ("DOCKER_", "BUILDX_", "BUILDKIT_", "OTEL_", "COMPOSE_")


@dataclass(frozen=True, kw_only=True)
class Job:
    """A build, in words that all contenders know. Attestations are what both default to."""

    context: Path
    platforms: tuple[str, ...] = ()
    push_to: str | None = None
    build_contexts: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    files_to: Path | None = None
    """Directory for the files of the result."""
    at_once: int = 1
    """So many builds at the same time; programs run as so many processes."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One build."""

    wall: float
    cpu: float
    """User and system seconds of the client's process."""
    peak: float
    """Bytes of memory that the client's process held at most."""
    publish: float | None = None
    """From the slowest solve to the tag; only the library says so."""


class Contender(Protocol):
    """Something that builds."""

    name: str

    def run(self, job: Job) -> Sample:
        """Build; RuntimeError with the end of its output when that fails."""
        ...


class Process:
    """A process that answers every line of JSON on its stdin with another on its stdout."""

    def __init__(self, argv: Sequence[str], env: Mapping[str, str], log: Path) -> None:
        self._log = log
        with log.open("wb") as stderr:
            self._process = subprocess.Popen(
                argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, env=dict(env), cwd=_REPOSITORY
            )

    def ask(self, question: Mapping[str, object]) -> dict[str, float]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(question).encode() + b"\n")
        self._process.stdin.flush()
        ready, _, _ = select.select([self._process.stdout], [], [], LIMIT_SECONDS + 10)
        line = self._process.stdout.readline() if ready else b""
        if not line:
            raise RuntimeError(f"no answer: {_tail(self._log)}")
        return cast("dict[str, float]", json.loads(line))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()


class Spawner:
    """Runs programs from a process so small that it does not blur what theirs cost."""

    def __init__(self, folder: Path) -> None:
        self._log = folder / "program.log"
        self._process = Process([sys.executable, "-I", "-S", str(_SPAWN)], {}, folder / "spawn.log")

    def run(self, argv: Sequence[str], env: Mapping[str, str], at_once: int = 1) -> Sample:
        answer = self._process.ask(
            {
                "argv": list(argv),
                "env": dict(env),
                "log": str(self._log),
                "seconds": LIMIT_SECONDS,
                "at_once": at_once,
            }
        )
        if answer["code"]:
            raise RuntimeError(f"{argv[0]}: exit code {answer['code']}: {_tail(self._log)}")
        return Sample(wall=answer["wall"], cpu=answer["cpu"], peak=answer["peak"])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.__exit__()


class Warm:
    """The library in a process that lives on, connected."""

    name = "warm"

    def __init__(self, address: str, folder: Path) -> None:
        argv = [sys.executable, "-m", "tests.benchmarks.warm", address]
        self._process = Process(argv, environment(folder), folder / "warm.log")

    def run(self, job: Job) -> Sample:
        return Sample(**self._process.ask(_request(job)))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.__exit__()


class Fresh:
    """The library in a new process for each build; only publish and peak mean something here."""

    name = "fresh"

    def __init__(self, address: str, folder: Path) -> None:
        self._address = address
        self._folder = folder

    def run(self, job: Job) -> Sample:
        with Warm(self._address, self._folder) as once:
            return once.run(job)


class CLI:
    """A ``buildkit-py`` process for each build."""

    name = "CLI"

    def __init__(self, address: str, folder: Path, spawner: Spawner) -> None:
        script = Path(sys.executable).with_name("buildkit-py")
        self._argv = [str(script)] if script.exists() else [sys.executable, "-m", "buildkit_py"]
        self._address = address
        self._env = environment(folder)
        self._spawner = spawner

    def run(self, job: Job) -> Sample:
        argv = [*self._argv, "build", "--addr", self._address, *_arguments(job)]
        return self._spawner.run(argv, self._env, job.at_once)


class Buildx:
    """A ``docker-buildx`` process for each build."""

    name = "buildx"

    def __init__(self, address: str, folder: Path, spawner: Spawner) -> None:
        binary = peers.buildx()
        if binary is None:
            raise Unavailable("no docker-buildx found (make servers)")
        self._spawner = spawner
        # Reading git's state is work that nobody asked for here.
        self._env = environment(folder) | {"BUILDX_GIT_INFO": "false"}
        self._argv = [binary]
        if address.startswith("docker://"):
            self._env["DOCKER_HOST"] = f"unix://{address.removeprefix('docker://')}"
        else:
            spawner.run([binary, "create", "--name", _BUILDER, "--driver", "remote", address], self._env)
            self._argv += ["--builder", _BUILDER]
        version = subprocess.run([binary, "version"], capture_output=True, text=True, check=True, env=self._env)
        self.version = " ".join(version.stdout.split()[:2])

    def run(self, job: Job) -> Sample:
        # Where nothing is pushed nothing is exported: the docker driver would by default, the others not.
        output = [] if job.push_to or job.files_to else ["--output", "type=cacheonly"]
        return self._spawner.run([*self._argv, "build", *output, *_arguments(job)], self._env, job.at_once)


def environment(folder: Path) -> dict[str, str]:
    """The caller's, without what steers docker or BuildKit, and with configuration of its own.

    Python may keep its bytecode, as it is kept for a package that pip has installed: a process that compiles all it
    imports measures the compiler.
    """
    foreign = (*_FOREIGN, "PYTHONDONTWRITEBYTECODE")
    env = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    return env | {"DOCKER_CONFIG": str(folder / "docker"), "BUILDX_CONFIG": str(folder / "buildx")}


def open_all(stack: ExitStack, address: str, folder: Path) -> tuple[Warm, CLI, Buildx]:
    """A warm process, and two that are new for each build."""
    spawner = stack.enter_context(Spawner(folder))
    return (
        stack.enter_context(Warm(address, folder)),
        CLI(address, folder, spawner),
        Buildx(address, folder, spawner),
    )


def _arguments(job: Job) -> list[str]:
    """Of ``build``: both programs spell them alike."""
    arguments = [f"--platform={','.join(job.platforms)}"] if job.platforms else []
    arguments += [f"--build-context={name}={value}" for name, value in job.build_contexts.items()]
    if job.push_to:
        arguments += ["--push", f"--tag={job.push_to}"]
    if job.files_to:
        arguments += [f"--output=type=local,dest={job.files_to}"]
    return [*arguments, str(job.context)]


def _request(job: Job) -> dict[str, object]:
    return {
        "context": str(job.context),
        "platforms": list(job.platforms),
        "tags": [job.push_to] if job.push_to else [],
        "push": job.push_to is not None,
        "build_contexts": dict(job.build_contexts),
        "outputs": [f"type=local,dest={job.files_to}"] if job.files_to else [],
        "at_once": job.at_once,
    }


def _tail(log: Path) -> str:
    return log.read_text(errors="replace")[-1000:].strip()
