"""Listings of trees on disk, mostly against the packets that the original sender makes."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import socket
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from buildkit_py.session.fsutil import Stat, decode_packet
from buildkit_py.session.walk import (
    BATCH_ENTRIES,
    DiskTree,
    FileOpener,
    Filters,
    MemoryTree,
    WalkError,
    follow_paths,
    walk,
)

GOLDEN = Path(os.environ.get("BUILDKIT_PY_GOLDEN") or Path(__file__).parents[2] / "data" / "golden")
TREES: dict[str, dict[str, Any]] = {
    path.stem: json.loads(path.read_bytes())["tree"] for path in sorted((GOLDEN / "walk").glob("*.json"))
}
CASES = [(name, index) for name, tree in TREES.items() for index in range(len(tree["results"]))]
ROOT = os.geteuid() == 0


def make_tree(root: Path, entries: list[dict[str, Any]]) -> None:
    """Create a tree of the golden format."""
    for entry in entries:
        path = root / entry["path"]
        mode = int(entry.get("mode", "0644"), 8)
        match entry["type"]:
            case "dir":
                path.mkdir()
            case "file":
                path.write_bytes(content(entry))
            case "symlink":
                path.symlink_to(entry["target"])
            case "hardlink":
                path.hardlink_to(root / entry["of"])
            case "fifo":
                os.mkfifo(path)
            case "socket":
                with socket.socket(socket.AF_UNIX) as listener:
                    listener.bind(str(path))
            case "chardev" | "blockdev" as kind:
                device = os.makedev(entry["major"], entry["minor"])
                os.mknod(path, mode | (stat.S_IFCHR if kind == "chardev" else stat.S_IFBLK), device)
            case kind:
                raise AssertionError(kind)
        if ROOT and ("uid" in entry or "gid" in entry):
            os.chown(path, entry.get("uid", 0), entry.get("gid", 0), follow_symlinks=False)
        for name, value in entry.get("xattrs_base64", {}).items():
            os.setxattr(path, name, base64.b64decode(value), follow_symlinks=False)
        if entry["type"] not in {"symlink", "hardlink"}:
            path.chmod(mode)
    for entry in reversed(entries):
        if "mtime_ns" in entry and entry["type"] != "hardlink":
            times = (entry["mtime_ns"], entry["mtime_ns"])
            os.utime(root / entry["path"], ns=times, follow_symlinks=False)


def content(entry: Mapping[str, Any]) -> bytes:
    if "repeat" in entry:
        text, length = entry["repeat"]["text"].encode(), entry["repeat"]["length"]
        return bytes((text * (length // len(text) + 1))[:length])
    if "base64" in entry:
        return base64.b64decode(entry["base64"])
    return str(entry.get("text", "")).encode()


def filters_of(result: Mapping[str, Any]) -> Filters:
    return Filters(*(tuple(result.get(key, ())) for key in ("include", "exclude", "follow")))


def listing(tree: Path | DiskTree | MemoryTree, filters: Filters = Filters()) -> list[bytes]:
    """All STAT packets."""
    source = DiskTree(tree) if isinstance(tree, Path) else tree
    return [packet for batch in walk(source, filters) for packet in batch.packets]


def stats(tree: Path | DiskTree | MemoryTree, filters: Filters = Filters()) -> list[Stat]:
    found = [decode_packet(packet).stat for packet in listing(tree, filters)]
    assert None not in found
    return [entry for entry in found if entry is not None]


def paths(tree: Path | DiskTree | MemoryTree, filters: Filters = Filters()) -> list[bytes]:
    return [entry.path for entry in stats(tree, filters)]


@pytest.fixture(scope="module")
def golden_roots(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {}


@pytest.fixture
def golden_root(
    request: pytest.FixtureRequest, golden_roots: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The golden tree of this name, made once."""
    name = str(request.param)
    if TREES[name].get("needs_root") and not ROOT:
        pytest.skip("mknod and chown need root")
    if name not in golden_roots:
        golden_roots[name] = tmp_path_factory.mktemp(name)
        make_tree(golden_roots[name], TREES[name]["entries"])
    return golden_roots[name]


@pytest.mark.golden
@pytest.mark.parametrize(
    ("golden_root", "tree", "index"),
    [(name, name, index) for name, index in CASES],
    ids=[f"{name}-{TREES[name]['results'][index]['name']}" for name, index in CASES],
    indirect=["golden_root"],
)
def test_golden_packets(golden_root: Path, tree: str, index: int) -> None:
    """Every packet has the bytes that the original client sends, and every file its content."""
    result = TREES[tree]["results"][index]
    filters = filters_of(result)
    if "setup_error" in result or "walk_error" in result:
        with pytest.raises(WalkError) as caught:
            listing(golden_root, filters)
        assert str(caught.value) == result.get("setup_error", result.get("walk_error"))
        return
    batches = list(walk(DiskTree(golden_root), filters))
    packets = [packet for batch in batches for packet in batch.packets]
    files = [path for batch in batches for path in batch.files]
    expected = result.get("mapped_stats", [])
    assert [packet.hex() for packet in packets] == [entry["packet_hex"] for entry in expected]
    assert [position for position, path in enumerate(files) if path is not None] == [
        file["id"] for file in result.get("files", [])
    ]
    opener = FileOpener(os.fsencode(golden_root))
    for file in result.get("files", []):
        path = files[file["id"]]
        assert path == file["path"].encode()
        if file["bytes"]:
            fd, size = opener.open(path)
            with open(fd, "rb") as stream:
                data = stream.read()
            assert (len(data), size) == (file["bytes"], file["bytes"])
            assert hashlib.sha256(data).hexdigest() == file["sha256"]
    opener.close()


@pytest.mark.golden
@pytest.mark.parametrize(
    ("golden_root", "tree", "index"),
    [(name, name, i) for name, i in CASES if "follow" in TREES[name]["results"][i]],
    indirect=["golden_root"],
)
def test_golden_followed_paths(golden_root: Path, tree: str, index: int) -> None:
    result = TREES[tree]["results"][index]
    followed = follow_paths(DiskTree(golden_root), result["follow"])
    assert followed == result.get("follow_resolved", [])
    assert (followed == []) == result.get("follow_resolves_to_root", False)
