"""Listings of trees on disk, mostly against the packets that the original sender makes."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import socket
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
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
EVERYTHING = Filters()


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


def listing(tree: Path | DiskTree | MemoryTree, filters: Filters = EVERYTHING) -> list[bytes]:
    """All STAT packets."""
    source = DiskTree(tree) if isinstance(tree, Path) else tree
    return [packet for batch in walk(source, filters) for packet in batch.packets]


def stats(tree: Path | DiskTree | MemoryTree, filters: Filters = EVERYTHING) -> list[Stat]:
    found = [decode_packet(packet).stat for packet in listing(tree, filters)]
    assert None not in found
    return [entry for entry in found if entry is not None]


def paths(tree: Path | DiskTree | MemoryTree, filters: Filters = EVERYTHING) -> list[bytes]:
    return [entry.path for entry in stats(tree, filters)]


@pytest.fixture(scope="module")
def golden_roots() -> dict[str, Path]:
    """Trees made so far."""
    return {}


@pytest.fixture
def golden_root(
    request: pytest.FixtureRequest, golden_roots: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The golden tree of this name, made once."""
    name = str(request.param)
    if not ROOT and (TREES[name].get("needs_root") or name == "modes"):
        pytest.skip("needs root, for mknod and chown or to list what is closed to its owner")
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


# --- the disk ---------------------------------------------------------------------------------------------


def test_names_are_listed_as_bytes(tmp_path: Path) -> None:
    """Not as text: a name that is not UTF-8 sorts by its bytes, and every name is sent as it is."""
    names = [b"a", b"a.txt", b"\xe9", "\u00e9".encode(), "\U0001f680".encode(), "\ufffd".encode(), b"\xff"]
    for name in names:
        with open(os.path.join(os.fsencode(tmp_path), name), "wb"):
            pass
    assert paths(tmp_path) == sorted(names)


def test_an_entry_that_vanishes_is_left_out_alone(tmp_path: Path) -> None:
    """Between the reading of its directory and its stat; what follows it is listed all the same."""
    for name in "abcd":
        (tmp_path / name).mkdir()
        (tmp_path / name / "f").write_bytes(b"")

    class Vanishing(DiskTree):
        def scan(self, path: bytes) -> Sequence[os.DirEntry[bytes]]:
            found = super().scan(path)
            if not path:
                (tmp_path / "b" / "f").unlink()
                (tmp_path / "b").rmdir()
            if path == b"c":
                (tmp_path / "c" / "f").unlink()
            return found

    assert paths(Vanishing(tmp_path)) == [b"a", b"a/f", b"c", b"d", b"d/f"]


def test_a_directory_that_vanishes_after_its_stat_is_empty(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").write_bytes(b"")

    class Vanishing(DiskTree):
        def scan(self, path: bytes) -> Sequence[os.DirEntry[bytes]]:
            if path == b"a":
                (tmp_path / "a").rmdir()
            return super().scan(path)

    assert paths(Vanishing(tmp_path)) == [b"a", b"b"]


class Locked(DiskTree):
    """A tree with a directory that may not be read, for root too."""

    def scan(self, path: bytes) -> Sequence[os.DirEntry[bytes]]:
        if path == b"locked":
            raise PermissionError(13, "Permission denied")
        return super().scan(path)


def test_a_directory_that_cannot_be_read_ends_the_walk(tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir()
    with pytest.raises(WalkError, match="cannot list locked: Permission denied"):
        listing(Locked(tmp_path))


def test_a_directory_that_is_filtered_out_may_be_unreadable(tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir()
    (tmp_path / "a").write_bytes(b"")
    assert paths(Locked(tmp_path), Filters(exclude=("locked",))) == [b"a"]
    assert paths(Locked(tmp_path), Filters(exclude=("locked", "!**/x"))) == [b"a"]
    assert paths(Locked(tmp_path), Filters(include=("a*",))) == [b"a"]


def test_a_reserved_name_is_not_listed(tmp_path: Path) -> None:
    """The daemon would not count it, and every later file would get another one's content."""
    (tmp_path / "sub").mkdir()
    for name in [".fsutil-metadata", "a", "sub/.fsutil-metadata"]:
        (tmp_path / name).write_bytes(b"")
    assert paths(tmp_path) == [b"a", b"sub", b"sub/.fsutil-metadata"]


def test_batches_are_bounded_and_complete(tmp_path: Path) -> None:
    for number in range(3 * BATCH_ENTRIES + 5):
        (tmp_path / f"{number:04}").write_bytes(b"")
    batches = list(walk(DiskTree(tmp_path), EVERYTHING))
    assert all(len(batch.packets) == len(batch.files) <= BATCH_ENTRIES for batch in batches)
    assert sum(batch.visited for batch in batches) == 3 * BATCH_ENTRIES + 5


def test_a_walk_that_finds_nothing_can_be_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("buildkit_py.session.walk.BATCH_VISITED", 3)
    for name in "abcdefg":
        (tmp_path / name).write_bytes(b"")
    batches = list(walk(DiskTree(tmp_path), Filters(include=("nothing",))))
    assert [batch.visited for batch in batches] == [3, 3, 1]


def test_pruned_directories_are_not_read(tmp_path: Path) -> None:
    """A context with a large ignored directory must not cost a walk of it."""
    read: list[bytes] = []

    class Recording(DiskTree):
        def scan(self, path: bytes) -> Sequence[os.DirEntry[bytes]]:
            read.append(path)
            return super().scan(path)

    for name in ["node_modules/x", "src/x/y", "docs/api"]:
        (tmp_path / name).mkdir(parents=True)
    tree = Recording(tmp_path)
    listing(tree, Filters(exclude=("node_modules", "docs", "!docs/api")))
    assert read == [b"", b"docs", b"docs/api", b"src", b"src/x", b"src/x/y"]
    read.clear()
    listing(tree, Filters(include=("src/x/y",)))
    assert read == [b"", b"src", b"src/x", b"src/x/y"]


def test_the_root_may_be_a_symlink_and_must_be_a_directory(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "f").write_bytes(b"")
    (tmp_path / "link").symlink_to("real")
    assert paths(tmp_path / "link") == [b"f"]
    for name in ["real/f", "missing"]:
        with pytest.raises(OSError):
            DiskTree(tmp_path / name)


def test_links_are_never_followed_out_of_the_root(tmp_path: Path) -> None:
    """What followed paths resolve to stays inside, whatever links and dots say."""
    root = tmp_path / "root"
    root.mkdir()
    (tmp_path / "secret").symlink_to("elsewhere")
    (root / "up").symlink_to("../../secret")
    (root / "abs").symlink_to(f"{tmp_path}/secret")
    tree = DiskTree(root)
    inside = f"{tmp_path}/secret".removeprefix("/")
    assert follow_paths(tree, ["../secret", "up", "abs"]) == sorted(["secret", "up", "abs", inside])


def test_opening_follows_no_symlink(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    (root / "a" / "b").mkdir(parents=True)
    outside.mkdir()
    (outside / "f").write_bytes(b"secret")
    (root / "a" / "b" / "f").write_bytes(b"public")
    (root / "link").symlink_to(outside)
    (root / "a" / "l").symlink_to(outside / "f")
    opener = FileOpener(os.fsencode(root))
    fd, size = opener.open(b"a/b/f")
    os.close(fd)
    assert size == 6
    for path in [b"link/f", b"a/l", b"a/b", b"a/b/none", b"a/b/f/x"]:
        with pytest.raises(OSError):
            opener.open(path)
    opener.close()


def test_many_directories_share_a_few_descriptors(tmp_path: Path) -> None:
    names = [f"{number:02}/{'/'.join('abcdefghij')}" for number in range(40)]
    for name in names:
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "f").write_bytes(name.encode())
    before = len(os.listdir("/proc/self/fd"))
    opener = FileOpener(os.fsencode(tmp_path))
    for name in [*names, *reversed(names)]:
        fd, size = opener.open(f"{name}/f".encode())
        assert os.read(fd, size) == name.encode()
        os.close(fd)
        assert len(os.listdir("/proc/self/fd")) < before + 30
    opener.close()
    assert len(os.listdir("/proc/self/fd")) == before


# --- laws -------------------------------------------------------------------------------------------------

NAMES = st.sampled_from([b"a", b"a.b", b"a-", b"b", b"\xff", b"\xc3\xa9", b"ab"])
PATHS = st.lists(NAMES, min_size=1, max_size=4).map(b"/".join)


@given(st.sets(PATHS, max_size=12))
def test_entries_come_in_the_order_of_their_parts(files: set[bytes]) -> None:
    """Not in the order of their paths as strings, and parents before children."""
    # A name cannot be a file and a directory.
    files = {path for path in files if not any(other.startswith(path + b"/") for other in files)}
    found = paths(MemoryTree(dict.fromkeys(files, b""), 1))
    assert found == sorted(found, key=lambda path: path.split(b"/"))
    assert files <= set(found)
    for path in found:
        parent = path.rpartition(b"/")[0]
        assert not parent or found.index(parent) < found.index(path)


@given(
    st.sets(PATHS, max_size=12),
    st.lists(st.sampled_from(["a", "!a/b", "**/b", "a/*", "a.b/**", "!**/ab", "*", "b"]), max_size=4),
)
def test_skipping_directories_changes_no_result(files: set[bytes], patterns: list[str]) -> None:
    """With and without a pattern that switches skipping off and matches nothing."""
    files = {path for path in files if not any(other.startswith(path + b"/") for other in files)}
    tree = MemoryTree(dict.fromkeys(files, b""), 1)
    exclude = tuple(patterns)
    assert paths(tree, Filters(exclude=exclude)) == paths(tree, Filters(exclude=(*exclude, "!z?")))
    positive = tuple(pattern for pattern in patterns if not pattern.startswith("!"))
    if positive:
        assert paths(tree, Filters(include=positive)) == paths(tree, Filters(include=(*positive, "z?")))
