"""What is measured, and what each measurement aims at."""

from __future__ import annotations

import asyncio
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Literal, TypeAlias

from buildkit_py import connect
from tests.benchmarks import trees
from tests.benchmarks.contenders import CLI, Buildx, Contender, Fresh, Job, Sample, Warm
from tests.support import images

Metric: TypeAlias = Literal["wall", "cpu", "peak", "publish"]

PLATFORMS = ("linux/amd64", "linux/arm64", "linux/arm/v7")
AT_ONCE = 32
_CONTEXTS = ("type==source.local",)
_PRUNE_SECONDS = 30.0
_SETTLE_SECONDS = 1.0


@dataclass(frozen=True, kw_only=True)
class Aim:
    """What the median of one contender should not exceed."""

    contender: str
    metric: Metric
    limit: float
    of_peer: bool = True
    """True: limit is a multiple of the peer's median. False: seconds or bytes."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One thing to measure."""

    name: str
    title: str
    job: Job
    contenders: Sequence[Contender]
    aims: Sequence[Aim]
    repeats: int
    prepare: Callable[[Job], None] | None = None
    """Called before every build, outside the measurement."""
    contexts: Mapping[str, Path] = field(default_factory=lambda: MappingProxyType({}))
    """By contender, where each has its own."""
    rehearse: Sequence[str] | None = None
    """Who builds once before anything counts; all of them unless said."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """All samples of one case, by contender."""

    case: Case
    samples: dict[str, list[Sample]]


class Bench:
    """The servers and contenders of one run."""

    def __init__(self, address: str, registry: str, warm: Warm, fresh: Fresh, cli: CLI, buildx: Buildx) -> None:
        self._address = address
        self._registry = registry
        self._warm = warm
        self._fresh = fresh
        self._cli = cli
        self._buildx = buildx
        self._base: dict[str, str] | None = None

    def cases(self) -> dict[str, Callable[[], Case]]:
        """Makers by name, in order; making one may take time, and may raise Unavailable."""
        return {
            "noop": self._noop,
            "push": self._push,
            "publish": self._publish,
            "files-unchanged": self._files_unchanged,
            "files-cold": self._files_cold,
            "one-file-cold": self._one_file_cold,
            "files-changed": self._files_changed,
            "files-ignored": self._files_ignored,
            "export-files": self._export_files,
            "export-one-file": self._export_one_file,
            "at-once": self._at_once,
        }

    def _noop(self) -> Case:
        tree = trees.plain()
        return Case(
            name="noop",
            title=f"one platform, all cached; context of {tree}",
            job=Job(context=tree.path),
            contenders=(self._warm, self._cli, self._buildx),
            aims=_quick(),
            repeats=15,
        )

    def _push(self) -> Case:
        return Case(
            name="push",
            title=f"three platforms, all cached, with push; hello-arch, {trees.hello_arch()}",
            job=self._hello(),
            contenders=(self._warm, self._cli, self._buildx),
            aims=_quick(),
            repeats=15,
        )

    def _publish(self) -> Case:
        return Case(
            name="publish",
            title="three platforms: from the end of the slowest solve to the tag written",
            job=self._hello(),
            contenders=(self._warm, self._fresh),
            aims=[
                Aim(contender=name, metric="publish", limit=0.1, of_peer=False)
                for name in (self._warm.name, self._fresh.name)
            ],
            repeats=9,
        )

    def _files_unchanged(self) -> Case:
        tree = trees.small_files()
        return Case(
            name="files-unchanged",
            title=f"context of {tree}: the daemon has it all",
            job=Job(context=tree.path),
            contenders=(self._warm, self._cli, self._buildx),
            aims=_transfer(),
            repeats=5,
        )

    def _files_cold(self) -> Case:
        tree = trees.small_files()
        return Case(
            name="files-cold",
            title=f"context of {tree}: the daemon has none of it",
            job=Job(context=tree.path),
            contenders=(self._warm, self._cli, self._buildx),
            aims=_transfer(),
            repeats=5,
            prepare=lambda _: self._forget(tree),
            rehearse=(self._buildx.name,),
        )

    def _one_file_cold(self) -> Case:
        tree = trees.one_file()
        return Case(
            name="one-file-cold",
            title=f"context of {tree}: the daemon has none of it",
            job=Job(context=tree.path),
            contenders=(self._warm, self._cli, self._buildx),
            aims=_transfer(),
            repeats=5,
            prepare=lambda _: self._forget(tree),
            rehearse=(self._buildx.name,),
        )

    def _files_changed(self) -> Case:
        """Each contender has files of its own: a daemon keeps what it got from each."""
        contenders = (self._warm, self._cli, self._buildx)
        owned = {contender.name: trees.changing(contender.name.lower()) for contender in contenders}
        by_path = {tree.path: tree for tree in owned.values()}
        tree = owned[self._buildx.name]
        return Case(
            name="files-changed",
            title=f"context of {tree}: one of 100 has changed",
            job=Job(context=tree.path),
            contenders=contenders,
            aims=_transfer(),
            repeats=5,
            prepare=lambda job: trees.change(by_path[job.context]),
            contexts={name: tree.path for name, tree in owned.items()},
        )

    def _files_ignored(self) -> Case:
        tree = trees.ignored()
        return Case(
            name="files-ignored",
            title=f"context of {tree}, of which .dockerignore drops nine of ten: the daemon has the rest",
            job=Job(context=tree.path),
            contenders=(self._warm, self._cli, self._buildx),
            aims=_transfer(),
            repeats=5,
        )

    def _export_files(self) -> Case:
        return self._export("export-files", trees.small_files())

    def _export_one_file(self) -> Case:
        return self._export("export-one-file", trees.one_file())

    def _export(self, name: str, tree: trees.Tree) -> Case:
        for old in trees.CACHE.glob("export*"):
            shutil.rmtree(old)
        return Case(
            name=name,
            title=f"the result's files to a new directory: {tree}; all cached",
            job=Job(context=tree.path, files_to=trees.CACHE / "export"),
            contenders=(self._warm, self._cli, self._buildx),
            aims=_transfer(),
            repeats=5,
            prepare=lambda job: _put_aside(job.files_to),
        )

    def _at_once(self) -> Case:
        tree = trees.plain()
        return Case(
            name="at-once",
            title=f"{AT_ONCE} builds at once, all cached: one process of ours, {AT_ONCE} of buildx; context of {tree}",
            job=Job(context=tree.path, at_once=AT_ONCE),
            contenders=(self._warm, self._buildx),
            aims=[
                Aim(contender=self._warm.name, metric="wall", limit=1.0),
                Aim(contender=self._warm.name, metric="cpu", limit=0.5),
                Aim(contender=self._warm.name, metric="peak", limit=1.0),
            ],
            repeats=9,
        )

    def _hello(self) -> Job:
        if self._base is None:
            self._base = asyncio.run(images.push_base_images(self._address, self._registry))
        return Job(
            context=trees.HELLO_ARCH,
            platforms=PLATFORMS,
            push_to=f"{self._registry}/bench/hello",
            build_contexts=self._base,
        )

    def _forget(self, tree: trees.Tree) -> None:
        """Prune what contexts left on the daemon. Results stay cached, so that a COPY after the transfer is, too."""

        async def prune() -> None:
            end = time.monotonic() + _PRUNE_SECONDS
            async with connect(self._address) as client:
                while time.monotonic() < end:
                    async for _ in client.prune(_CONTEXTS, all=True):
                        pass
                    # The last build may not have let go of its own yet, and other clients may have theirs in use.
                    if all(record.size < tree.size / 2 for record in await client.disk_usage(_CONTEXTS)):
                        return
                    await asyncio.sleep(_SETTLE_SECONDS)
            raise RuntimeError(f"the daemon does not let go of {tree.path}")

        asyncio.run(prune())
        # What the last run and the pruning left to be written must not slow the next.
        os.sync()
        time.sleep(_SETTLE_SECONDS)


def measure(case: Case, repeats: int | None, note: Callable[[str], None]) -> Outcome:
    """Run the contenders in turns, each time with another one first."""
    contenders = list(case.contenders)
    for contender in contenders:
        if case.rehearse is None or contender.name in case.rehearse:
            contender.run(_prepared(case, contender))
    samples: dict[str, list[Sample]] = {contender.name: [] for contender in contenders}
    for turn in range(repeats or case.repeats):
        note(f"{case.name}: turn {turn + 1} of {repeats or case.repeats}")
        for position in range(len(contenders)):
            contender = contenders[(turn + position) % len(contenders)]
            samples[contender.name].append(contender.run(_prepared(case, contender)))
    return Outcome(case=case, samples=samples)


def _prepared(case: Case, contender: Contender) -> Job:
    """Each pushes to a name of its own, so that nobody finds what another one wrote."""
    job = replace(case.job, context=case.contexts.get(contender.name, case.job.context))
    if job.push_to is not None:
        job = replace(job, push_to=f"{job.push_to}-{contender.name.lower()}")
    if case.prepare is not None:
        case.prepare(job)
    return job


def _put_aside(folder: Path | None) -> None:
    """Make room for the next result, and let the disk come to rest.

    Removed at the next run only: for minutes ext4 looks past the inodes of files that were just deleted, one by one,
    which makes new ones twenty times as slow.
    """
    if folder is not None and folder.exists():
        folder.rename(folder.with_name(f"{folder.name}-{time.monotonic_ns()}"))
    os.sync()
    time.sleep(_SETTLE_SECONDS)


def _quick() -> list[Aim]:
    return [
        Aim(contender="warm", metric="wall", limit=0.7),
        Aim(contender="CLI", metric="wall", limit=1.3),
    ]


def _transfer() -> list[Aim]:
    return [
        aim
        for name in ("warm", "CLI")
        for aim in (
            Aim(contender=name, metric="wall", limit=1.0),
            Aim(contender=name, metric="cpu", limit=1.2),
            Aim(contender=name, metric="peak", limit=150e6, of_peer=False),
        )
    ]
