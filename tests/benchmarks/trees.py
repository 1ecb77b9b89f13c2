"""Build contexts, made once and kept below ``.cache/bench``."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

_REPOSITORY = Path(__file__).resolve().parents[2]
CACHE = _REPOSITORY / ".cache" / "bench"
HELLO_ARCH = _REPOSITORY / "examples" / "hello-arch"

_COPY_ALL = "FROM scratch\nCOPY . /\n"


@dataclass(frozen=True)
class Tree:
    """A build context."""

    path: Path
    files: int
    size: int
    """Bytes in files."""

    def __str__(self) -> str:
        size = f"{self.size / 2**20:,.0f} MiB" if self.size >= 1 << 20 else f"{self.size / 2**10:,.1f} KiB"
        return f"{self.files:,} files, {size}"


def plain() -> Tree:
    """What a small project looks like, without a base image."""
    return _tree("plain", lambda root: _small_files(root, 10))


def small_files(number: int = 50_000) -> Tree:
    """Files of 0 to 2.5 KB, 100 to a directory."""
    return _tree(f"files-{number}", lambda root: _small_files(root, number))


def one_file(size: int = 1 << 30) -> Tree:
    """One file that does not compress."""
    return _tree(f"one-{size}", lambda root: _one_file(root, size))


def changing(owner: str, number: int = 50_000) -> Tree:
    """The same files for one who changes them; see change()."""
    return _tree(f"changing-{owner}-{number}", lambda root: _small_files(root, number))


def change(tree: Tree, every: int = 100) -> None:
    """Give one file of so many new content of the same size."""
    for number, path in enumerate(sorted(tree.path.glob("d*/e*/*"))):
        if not number % every:
            path.write_bytes(random.randbytes(max(64, path.stat().st_size)))


def ignored(number: int = 200_000) -> Tree:
    """Very small files, of which a pattern drops nine of ten, in every directory."""
    return _tree(f"ignored-{number}", lambda root: _ignored(root, number))


def hello_arch() -> Tree:
    """The example of the project."""
    return _measured(HELLO_ARCH)


def _tree(name: str, fill: Callable[[Path], None]) -> Tree:
    path = CACHE / name
    if not path.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        partial = CACHE / f"{name}.{os.getpid()}"
        partial.mkdir()
        try:
            fill(partial)
            (partial / "Dockerfile").write_text(_COPY_ALL)
            partial.rename(path)
        except BaseException:
            shutil.rmtree(partial)
            raise
    return _measured(path)


def _measured(path: Path) -> Tree:
    sizes = [os.lstat(os.path.join(folder, name)).st_size for folder, _, names in os.walk(path) for name in names]
    return Tree(path, len(sizes), sum(sizes))


def _small_files(root: Path, number: int) -> None:
    source = random.Random(0)
    for start in range(0, number, 100):
        folder = root / f"d{start // 2500:02}" / f"e{start // 100:03}"
        folder.mkdir(parents=True)
        for position in range(start, min(start + 100, number)):
            (folder / f"file{position:05}.txt").write_bytes(source.randbytes(64 * (position % 40)))


def _ignored(root: Path, number: int) -> None:
    for start in range(0, number, 100):
        folder = root / f"d{start // 5000:02}" / f"e{start // 100:04}"
        folder.mkdir(parents=True)
        for position in range(100):
            name = f"file{position:02}.{'txt' if position < 10 else 'log'}"
            (folder / name).write_bytes(b"x" * (position % 10))
    (root / ".dockerignore").write_text("# nothing that a log is worth\n**/*.log\n!important.log\n")


def _one_file(root: Path, size: int) -> None:
    source = random.Random(1)
    with (root / "file").open("wb") as file:
        for start in range(0, size, 1 << 20):
            file.write(source.randbytes(min(1 << 20, size - start)))
