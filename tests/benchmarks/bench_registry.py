"""Copies and joins of images, next to oras, skopeo and docker buildx: ``python -m tests.benchmarks.bench_registry``.

Every contender is a process of its own for each run, and they run in turns, each time with another one first; ``warm``
is the same command in a process that has been used before, as a service has it. Each run writes to a repository or a
directory of its own (a join to a tag of its own, in the repository of the images), and what is pushed is new in each
run: skopeo remembers where blobs are. A contender that cannot do a job is not in that case; a run of a peer that fails
is told and not counted. The registry is started for this run; through a proxy it looks as if it were 40 ms away. What
it was asked for is what its own log says of the last run of each.
Aims: wall at most that of the fastest peer, memory below 60 MB, and no blob sent where it can be mounted.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from buildkit_py.digest import Digest
from buildkit_py.oci import OCI_MANIFEST
from buildkit_py.registry import Registry, StaticCredentials
from tests.benchmarks import report
from tests.benchmarks.contenders import Process, Sample, Spawner, environment
from tests.support import peers, servers
from tests.support.contents import described, encode, image, index

MIB = 1 << 20
BIG = 500 * MIB
SMALL, SMALL_BYTES = 200, 20 << 10
MILLISECONDS = 40
MEMORY = 60e6
OURS, WARM = "CLI", "warm"


@dataclass(frozen=True, kw_only=True)
class Case:
    """One job; the commands get a name that no run has used before."""

    name: str
    title: str
    commands: Mapping[str, Callable[[str], Sequence[str]]]
    repeats: int
    renew: Path | None = None
    """A layout that gets new content before each run."""
    mounts: bool = False
    """Whether the registry has all blobs, so that none needs to be sent."""
    settle: bool = False
    """Whether so much is written that the next run must not pay for it."""


@dataclass(kw_only=True)
class Result:
    case: Case
    samples: dict[str, list[Sample]] = field(default_factory=dict[str, list[Sample]])
    requests: dict[str, Sequence[servers.Request]] = field(default_factory=dict[str, Sequence[servers.Request]])
    """Of the last run of each."""
    failures: Counter[str] = field(default_factory=Counter)
    """Runs of peers that did not do the job; their time is not counted."""


class Tools:
    """Command lines of all contenders for the same things."""

    def __init__(self, folder: Path) -> None:
        script = Path(sys.executable).with_name("buildkit-py")
        self.ours = [str(script)] if script.exists() else [sys.executable, "-m", "buildkit_py"]
        self.oras, self.skopeo, self.buildx = peers.oras(), peers.skopeo(), peers.buildx()
        self.folder = folder

    def versions(self) -> dict[str, str]:
        found: dict[str, str] = {}
        for name, argv in (("oras", [self.oras, "version"]), ("skopeo", [self.skopeo, "--version"])):
            if argv[0]:
                found[name] = " ".join(_output([str(word) for word in argv]).split("\n")[0].split()[-1:])
        if self.buildx:
            found["buildx"] = _output([self.buildx, "version"]).split()[1]
        return found

    def copy(self, source: str, target: str) -> dict[str, Callable[[str], Sequence[str]]]:
        """An image of a layout or repository to another; {} in target is what is new in each run."""
        commands: dict[str, Callable[[str], Sequence[str]]] = {
            OURS: lambda new: [*self.ours, "imagetools", "copy", source, target.format(new)]
        }
        if self.oras:
            commands["oras"] = lambda new: [
                str(self.oras),
                "cp",
                *_oras(source, "from"),
                *_oras(target.format(new), "to"),
            ]
        if self.skopeo:
            commands["skopeo"] = lambda new: [
                str(self.skopeo),
                "copy",
                "--all",
                "--preserve-digests",
                "--src-tls-verify=false",
                "--dest-tls-verify=false",
                _skopeo(source),
                _skopeo(target.format(new)),
            ]
        return commands

    def create(self, target: str, sources: Sequence[str], *, oras: bool) -> dict[str, Callable[[str], Sequence[str]]]:
        """One index of the sources; oras only where they are in the target's repository, which must not be new."""
        commands: dict[str, Callable[[str], Sequence[str]]] = {
            OURS: lambda new: [*self.ours, "imagetools", "create", "-t", target.format(new), *sources]
        }
        if self.buildx:
            commands["buildx"] = lambda new: [
                str(self.buildx), "imagetools", "create", "-t", target.format(new), *sources
            ]  # fmt: skip
        if self.oras and oras:
            tags = [source.rpartition(":")[2] for source in sources]
            commands["oras"] = lambda new: [
                str(self.oras), "manifest", "index", "create", "--plain-http", target.format(new), *tags
            ]  # fmt: skip
        return commands


def _output(argv: Sequence[str]) -> str:
    return subprocess.run(argv, capture_output=True, text=True, check=True, timeout=60).stdout.strip()


def _oras(place: str, side: str) -> list[str]:
    if place.startswith("layout:"):
        return [f"--{side}-oci-layout", place.removeprefix("layout:")]
    return [f"--{side}-plain-http", place]


def _skopeo(place: str) -> str:
    return f"oci:{place.removeprefix('layout:')}" if place.startswith("layout:") else f"docker://{place}"


def make_layout(folder: Path, layers: Sequence[Path]) -> str:
    """An OCI layout of one image with these layers, which are moved into it."""
    blobs = folder / "blobs" / "sha256"
    blobs.mkdir(parents=True, exist_ok=True)
    entries: list[dict[str, object]] = []
    for path in layers:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        size = path.stat().st_size
        path.rename(blobs / digest)
        kind = "application/vnd.oci.image.layer.v1.tar"
        entries.append({"mediaType": kind, "digest": f"sha256:{digest}", "size": size})
    config = encode(
        {
            "architecture": "amd64",
            "os": "linux",
            "config": {},
            "rootfs": {"type": "layers", "diff_ids": [entry["digest"] for entry in entries]},
        }
    )
    manifest = encode(
        {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": described("application/vnd.oci.image.config.v1+json", config),
            "layers": entries,
        }
    )
    for raw in (config, manifest):
        (blobs / Digest.of(raw).hex).write_bytes(raw)
    root = described(OCI_MANIFEST, manifest, annotations={"org.opencontainers.image.ref.name": "v1"})
    (folder / "index.json").write_bytes(encode({"schemaVersion": 2, "manifests": [root]}))
    (folder / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    return f"layout:{folder}:v1"


def renew(folder: Path) -> None:
    """Change the first bytes of every layer of a layout, and all digests accordingly."""
    index = json.loads((folder / "index.json").read_text())
    blobs = folder / "blobs" / "sha256"
    manifest = json.loads((blobs / index["manifests"][0]["digest"].removeprefix("sha256:")).read_text())
    layers: list[Path] = []
    for layer in manifest["layers"]:
        path = blobs / layer["digest"].removeprefix("sha256:")
        with path.open("r+b") as file:
            file.write(os.urandom(16))
        layers.append(path.rename(folder / path.name))
    shutil.rmtree(folder / "blobs")
    make_layout(folder, layers)


def random_files(folder: Path, count: int, size: int) -> list[Path]:
    folder.mkdir()
    for number in range(count):
        with (folder / str(number)).open("wb") as file:
            for start in range(0, size, MIB):
                file.write(os.urandom(min(MIB, size - start)))
    return [folder / str(number) for number in range(count)]


async def fill(host: str) -> None:
    """What is joined and copied: ten images of ten platforms, and an index of three with layers of 4 MiB."""
    async with Registry(credentials=StaticCredentials({})) as registry:
        for number in range(10):
            await image(f"linux/arch{number}").push(registry, f"{host}/bench/children", f"c{number}")
        platforms = ("linux/amd64", "linux/arm64", "linux/arm/v7")
        images = [image(name, layers=[os.urandom(4 * MIB) for _ in range(3)]) for name in platforms]
        await index(*images).push(registry, f"{host}/bench/three", "v1")


@contextmanager
def far_away(port: int) -> Generator[str]:
    """host:port of a proxy that delays."""
    argv = [sys.executable, "-m", "tests.benchmarks.delay", str(port), str(MILLISECONDS)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            yield f"127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.stdin.close()


def make_cases(tools: Tools, near: str, far: str) -> dict[str, Callable[[], Case]]:
    """Makers by name; making one may write files."""
    folder = tools.folder

    def big() -> str:
        made = folder / "big"
        if not made.exists():
            make_layout(made, random_files(folder / "big-files", 1, BIG))
        return f"layout:{made}:v1"

    def small() -> str:
        made = folder / "small"
        if not made.exists():
            make_layout(made, random_files(folder / "small-files", SMALL, SMALL_BYTES))
        return f"layout:{made}:v1"

    def push_big() -> Case:
        commands = tools.copy(big(), near + "/bench/big-{}:v1")
        title = "one blob of 500 MiB, pushed"
        return Case(
            name="push-big",
            title=title,
            commands=commands,
            repeats=5,
            settle=True,
            renew=folder / "big",
        )

    def pull_big() -> Case:
        subprocess.run(
            [*tools.ours, "imagetools", "copy", big(), f"{near}/bench/big:v1"], check=True, stderr=-3, stdout=-3
        )
        commands = tools.copy(f"{near}/bench/big:v1", f"layout:{folder}/pulled-{{}}:v1")
        return Case(name="pull-big", title="one blob of 500 MiB, pulled", commands=commands, repeats=5, settle=True)

    def push_small() -> Case:
        commands = tools.copy(small(), near + "/bench/small-{}:v1")
        title = f"{SMALL} blobs of 20 KiB, pushed"
        return Case(name="push-small", title=title, commands=commands, repeats=5, renew=folder / "small")

    def push_small_far() -> Case:
        commands = tools.copy(small(), far + "/bench/far-{}:v1")
        title = f"200 blobs of 20 KiB, pushed to a registry {MILLISECONDS} ms away"
        return Case(name="push-small-far", title=title, commands=commands, repeats=3, renew=folder / "small")

    def create_ten(host: str, name: str, title: str) -> Case:
        sources = [f"{host}/bench/children:c{number}" for number in range(10)]
        commands = tools.create(f"{host}/bench/children:{name}-{{}}", sources, oras=True)
        return Case(name=name, title=title, commands=commands, repeats=9)

    def copy_three(host: str, name: str, title: str) -> Case:
        source = f"{host}/bench/three:v1"
        commands = dict(tools.copy(source, f"{host}/bench/{name}-{{}}:v1"))
        joined = tools.create(f"{host}/bench/{name}-{{}}:v1", [source], oras=False)
        commands |= {key: value for key, value in joined.items() if key == "buildx"}
        return Case(name=name, title=title, commands=commands, repeats=7, mounts=True)

    away = f"registry {MILLISECONDS} ms away"
    return {
        "push-big": push_big,
        "pull-big": pull_big,
        "push-small": push_small,
        "push-small-far": push_small_far,
        "create-ten": lambda: create_ten(near, "create-ten", "an index of ten images of one repository"),
        "create-ten-far": lambda: create_ten(far, "create-ten-far", f"an index of ten images, {away}"),
        "copy-three": lambda: copy_three(
            near, "copy-three", "three platforms (9 layers of 4 MiB) to another repository"
        ),
        "copy-three-far": lambda: copy_three(far, "copy-three-far", f"three platforms to another repository, {away}"),
    }


class Runner:
    def __init__(
        self, spawner: Spawner, process: Process, registry: servers.Registry, env: Mapping[str, str], folder: Path
    ) -> None:
        self._spawner = spawner
        self._process = process
        self._registry = registry
        self._env = env
        self._folder = folder
        self._number = 0

    def measure(self, case: Case, repeats: int | None) -> Result:
        names = [OURS, WARM, *(name for name in case.commands if name != OURS)]
        result = Result(case=case, samples={name: [] for name in names})
        for turn in range(-1, repeats or case.repeats):
            for position in range(len(names)):
                name = names[(turn + position) % len(names)]
                sample = self._one(case, name, result)
                if sample is None:
                    result.failures[name] += 1
                elif turn >= 0:  # the first of each is a rehearsal
                    result.samples[name].append(sample)
        return result

    def _warm(self, argv: Sequence[str]) -> Sample:
        words = list(argv[argv.index("imagetools") :])
        answer = self._process.ask({"argv": words})
        if answer.pop("code"):
            raise RuntimeError(f"warm: {' '.join(words)} failed")
        return Sample(**answer)

    def _one(self, case: Case, name: str, result: Result) -> Sample | None:
        """None where a peer fails; what is ours must not."""
        self._number += 1
        if case.renew is not None:
            renew(case.renew)
        if case.settle:
            os.sync()
        before = len(self._asked())
        argv = case.commands[OURS if name == WARM else name](f"{name.lower()}-{self._number}")
        try:
            if name == WARM:
                return self._warm(argv)
            return self._spawner.run(argv, self._env)
        except RuntimeError as error:
            if name in (OURS, WARM):
                raise
            print(f"{name}: {error}", file=sys.stderr)
            return None
        finally:
            result.requests[name] = self._asked()[before:]
            for pulled in self._folder.glob("pulled-*"):
                shutil.rmtree(pulled)

    def _asked(self) -> Sequence[servers.Request]:
        """All requests so far; the registry logs a request a moment after it has answered."""
        asked = self._registry.requests()
        while True:
            time.sleep(0.05)
            before, asked = asked, self._registry.requests()
            if len(asked) == len(before):
                return asked


def summary(requests: Sequence[servers.Request]) -> str:
    """How many of each method, and what became of blobs."""
    methods = Counter(request.method for request in requests)
    listed = ", ".join(f"{count} {method}" for method, count in sorted(methods.items()))
    mounted, uploaded = sum(r.mounted for r in requests), sum(r.uploaded for r in requests)
    return f"{listed} ({mounted} blobs mounted, {uploaded} sent)"


def table(result: Result) -> str:
    """Medians with their range, what was asked of the registry, and whether the aims are met."""
    lines = [f"{result.case.name}: {result.case.title}"]
    for name, samples in result.samples.items():
        if not samples:
            lines.append(f"  {name:7} failed in all of {result.failures[name]} runs")
            continue
        walls = [sample.wall for sample in samples]
        failed = f"; {result.failures[name]} more FAILED" if result.failures[name] else ""
        asked = summary(result.requests[name])
        lines.append(
            f"  {name:7} wall {median(walls):6.3f} s ({min(walls):.3f} to {max(walls):.3f}, {len(walls)} runs), "
            f"cpu {_median(samples, 'cpu'):.3f} s, peak {max(s.peak for s in samples) / 1e6:.0f} MB; "
            f"requests: {asked}{failed}"
        )
    for name in (OURS, WARM):
        ratio, peer = against_peers(result, name)
        peak = max(sample.peak for sample in result.samples[name])
        sent = sum(request.uploaded for request in result.requests[name])
        lines.append(
            f"  {name}: wall {ratio:.2f}x of {peer} {'met' if ratio <= 1.0 else 'MISSED'}, "
            f"memory {peak / 1e6:.0f} MB {'met' if peak < MEMORY else 'MISSED'}"
            + (f", {sent} blobs sent {'MISSED' if sent else 'met'}" if result.case.mounts else "")
        )
    return "\n".join(lines)


def against_peers(result: Result, name: str) -> tuple[float, str]:
    """Our median wall as a multiple of the fastest peer's, and who that is; infinite without any peer."""
    walls = {who: _median(samples, "wall") for who, samples in result.samples.items() if samples}
    peers_ = [who for who in walls if who not in (OURS, WARM)]
    if not peers_:
        return float("inf"), "nobody"
    peer = min(peers_, key=lambda who: walls[who])
    return walls[name] / walls[peer], peer


def _median(samples: Sequence[Sample], what: str) -> float:
    return float(median(getattr(sample, what) for sample in samples))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="CASE")
    parser.add_argument("--repeat", type=int, metavar="N", help="runs of each contender (default: the case's own)")
    options = parser.parse_args(arguments)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="buildkit-py-bench-")))
        try:
            registry = stack.enter_context(servers.run_registry(folder / "registry", access_log=True))
        except servers.Unavailable as reason:
            print(f"error: {reason}", file=sys.stderr)
            return 1
        far = stack.enter_context(far_away(int(registry.host.rpartition(":")[2])))
        tools = Tools(folder)
        print(
            report.header(report.machine() | tools.versions() | {"load before": f"{os.getloadavg()[0]:.2f}"}),
            flush=True,
        )
        asyncio.run(fill(registry.host))
        env = environment(folder) | {"DOCKER_HOST": f"unix://{folder}/none.sock", "HOME": str(folder)}
        warm = Process([sys.executable, "-m", "tests.benchmarks.warm_cli"], env, folder / "warm.log")
        spawner = stack.enter_context(Spawner(folder))
        runner = Runner(spawner, stack.enter_context(warm), registry, env, folder)
        makers = make_cases(tools, registry.host, far)
        if unknown := [name for name in options.names if name not in makers]:
            parser.error(f"no case is called {unknown[0]}; there are {', '.join(makers)}")
        results: list[Result] = []
        for name in options.names or makers:
            results.append(runner.measure(makers[name](), options.repeat))
            print(f"\n{table(results[-1])}", flush=True)
    for name in (OURS, WARM):
        met = sum(against_peers(result, name)[0] <= 1.0 for result in results)
        print(f"\n{name}: {met} of {len(results)} at most as long as the fastest peer", end="")
    print()
    return 0


if __name__ == "__main__":
    sys.exit(main())
