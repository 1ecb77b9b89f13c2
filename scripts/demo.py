#!/usr/bin/env python3
"""Build, push, inspect and run examples/hello-arch for three platforms, with the command line that users have.

    demo.py        the daemon of $BUILDKIT_HOST, else a private one; always a registry of its own

Every command is printed before it runs. Exit code 0 when all of them worked and each platform said hello; the servers
are ended in any case, on Ctrl-C too.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
CACHE = REPOSITORY / ".cache"
PREFIX = Path(os.environ.get("BUILDKIT_PY_PREFIX") or CACHE / "prefix")
EXAMPLE = Path("examples/hello-arch")

PLATFORMS = "linux/arm/v7,linux/arm64,linux/amd64"
BASES = {"alpine": "alpine", "golang": "golang:alpine"}
"""Name in FROM, by the name of the directory that stands in for it."""
STEPS = 4 * 3
"""ADD, WORKDIR, RUN and COPY of the example, on each platform."""
EXPECTED = ["Hello, arm!", "Hello, arm64!", "Hello, amd64!"]

_READY_SECONDS = 20.0
_STOP_SECONDS = 5.0
_COMMAND_SECONDS = 900.0
_LISTENING = re.compile(rb"listening on (127\.0\.0\.1:\d+)")


class Failed(Exception):
    """The demo cannot go on; the text says why."""


@dataclass(frozen=True)
class Built:
    """What one build said of itself."""

    seconds: float
    cached: int

    def __str__(self) -> str:
        return f"{self.seconds:5.1f} s, {self.cached} of {STEPS} steps from the cache"


def main() -> int:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    os.chdir(REPOSITORY)  # so that the command lines shown are short, and can be repeated by hand
    os.environ["BUILDKIT_PY_PREFIX"] = str(PREFIX)
    try:
        with contextlib.ExitStack() as servers:
            folder = Path(servers.enter_context(tempfile.TemporaryDirectory(prefix="buildkit-py-demo-")))
            demonstrate(servers, folder)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 128 + signal.SIGINT
    except Failed as reason:
        print(f"demo: {reason}", file=sys.stderr)
        return 1
    return 0


def demonstrate(servers: contextlib.ExitStack, folder: Path) -> None:
    contexts = base_contexts()
    host = servers.enter_context(run_registry(folder / "registry"))
    if not os.environ.get("BUILDKIT_HOST"):
        os.environ["BUILDKIT_HOST"] = servers.enter_context(run_daemon(folder / "daemon"))
    title("Stand-ins for golang:alpine and alpine, since there is no hub here")
    named: list[str] = []
    for directory, context in contexts.items():
        image = f"{host}/{BASES[directory]}"
        arguments = ["--platform", PLATFORMS, "--provenance", "false", "--push", "-q"]
        buildkit_py("build", "-t", image, *arguments, str(context))
        named += ["--build-context", f"{BASES[directory]}=docker-image://{image}"]

    image = f"{host}/hello-arch"
    build = ["build", "-t", image, "--platform", PLATFORMS, *named, "--push", str(EXAMPLE)]
    title("One Dockerfile, three platforms, one index")
    first = timed_build(build, folder)
    title("What the registry has now")
    buildkit_py("imagetools", "inspect", image)
    title("Each platform, run by digest")
    check_greetings(buildkit_py("run", image))
    title("The same build again")
    again = timed_build(build, folder)
    if again.cached != STEPS:
        raise Failed(f"the second build took {again.cached} steps from the cache, expected {STEPS}")
    title("Done")
    print(f"first build:  {first}\nsecond build: {again}")


def base_contexts() -> dict[str, Path]:
    """Directories to build the stand-ins from, by their names."""
    done = subprocess.run(
        [sys.executable, str(REPOSITORY / "scripts" / "make_base_images.py")],
        stdout=subprocess.PIPE,
        text=True,
        timeout=_COMMAND_SECONDS,
        check=False,
    )
    if done.returncode:
        raise Failed("there is nothing to build the base images from")
    paths = [Path(line) for line in done.stdout.splitlines()]
    return {path.name: path.relative_to(REPOSITORY) for path in paths}


def timed_build(arguments: Sequence[str], folder: Path) -> Built:
    """Build, and read from the metadata file how much of it the daemon had already."""
    metadata = folder / "metadata.json"
    start = time.monotonic()
    buildkit_py(*arguments, hidden=("--metadata-file", str(metadata)))
    seconds = time.monotonic() - start
    platforms = json.loads(metadata.read_text())["buildkit_py.platforms"].values()
    return Built(seconds, sum(entry["vertexes.cached"] for entry in platforms))


def check_greetings(output: str) -> None:
    greetings = output.split("\n")
    absent = [greeting for greeting in EXPECTED if greeting not in greetings]
    if absent:
        raise Failed(f"nobody said {' or '.join(map(repr, absent))}")


def buildkit_py(*arguments: str, hidden: Sequence[str] = ()) -> str:
    """Run the product's own command as a user would, showing it and its output; what it wrote to stdout.

    hidden arguments are for this script alone and not shown.
    """
    print(f"$ buildkit-py {shlex.join(arguments)}", flush=True)
    command = [sys.executable, "-m", "buildkit_py", arguments[0], *hidden, *arguments[1:]]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, timeout=_COMMAND_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        raise Failed(f"buildkit-py {arguments[0]} did not end within {_COMMAND_SECONDS:g} seconds") from None
    print(done.stdout, end="", flush=True)
    if done.returncode:
        raise Failed(f"buildkit-py {arguments[0]} ended with exit code {done.returncode}")
    return done.stdout


@contextlib.contextmanager
def run_daemon(state_dir: Path) -> Generator[str]:
    """A private daemon with an empty cache; its address."""
    title("A private daemon")
    arguments = ("--state-dir", str(state_dir))
    try:
        yield buildkit_py("daemon", "start", *arguments).strip()
    finally:
        # In a session of its own, so that a second Ctrl-C does not end it half-way.
        subprocess.run(
            [sys.executable, "-m", "buildkit_py", "daemon", "stop", *arguments, "--remove"],
            start_new_session=True,
            timeout=_COMMAND_SECONDS,
            check=False,
        )


@contextlib.contextmanager
def run_registry(folder: Path) -> Generator[str]:
    """CNCF Distribution on a free port of the loopback interface; its host:port."""
    path = os.pathsep.join((str(PREFIX / "usr" / "bin"), os.environ.get("PATH", os.defpath)))
    binary = shutil.which("docker-registry", path=path) or shutil.which("registry", path=path)
    if binary is None:
        raise Failed("no docker-registry found: run scripts/fetch_servers.py registry, or install one")
    folder.mkdir()
    config = {
        "version": "0.1",
        "log": {"level": "info", "accesslog": {"disabled": True}},  # info: the port is told at that level
        "storage": {"filesystem": {"rootdirectory": str(folder / "data")}},
        "http": {"addr": "127.0.0.1:0", "secret": "of no use: there is one instance"},
    }
    (folder / "config.yml").write_text(json.dumps(config))  # JSON is YAML
    log = folder / "registry.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [binary, "serve", str(folder / "config.yml")],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env={**os.environ, "OTEL_TRACES_EXPORTER": "none"},
            start_new_session=True,  # Ctrl-C is for the client; the registry ends last
        )
    try:
        yield listening(process, log)
    finally:
        process.terminate()
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def listening(process: subprocess.Popen[bytes], log: Path) -> str:
    """Wait until the registry says where it listens."""
    deadline = time.monotonic() + _READY_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        if found := _LISTENING.search(log.read_bytes()):
            return found[1].decode()
        time.sleep(0.02)
    raise Failed(f"the registry does not listen; its log:\n{log.read_text(errors='replace')[-2000:]}")


def title(text: str) -> None:
    print(f"\n== {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
