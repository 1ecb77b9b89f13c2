"""Listings of trees on disk, mostly against the packets that the original sender makes."""

from __future__ import annotations

import base64
import contextlib
import errno
import hashlib
import json
import os
import shutil
import socket
import stat
import tracemalloc
from collections.abc import Callable, Mapping
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
    Folder,
    MemoryTree,
    TreeEntry,
    WalkError,
    follow_paths,
    walk,
)
from tests.support.golden import GOLDEN

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


class Watched(DiskTree):
    """Tells of each directory by path, before it is opened, before it is read, and once it was read."""

    def __init__(self, root: Path, tell: Callable[[str, bytes], None]) -> None:
        super().__init__(root)
        self._tell = tell

    def open(self, path: bytes) -> Folder:
        self._tell("open", path)
        return WatchedFolder(super().open(path), path, self._tell)


class WatchedFolder:
    def __init__(self, folder: Folder, path: bytes, tell: Callable[[str, bytes], None]) -> None:
        self._folder = folder
        self._path = path
        self._tell = tell
        self.read_link, self.xattrs, self.close = folder.read_link, folder.xattrs, folder.close

    def open(self, name: bytes) -> Folder:
        path = self._path + b"/" + name if self._path else name
        self._tell("open", path)
        return WatchedFolder(self._folder.open(name), path, self._tell)

    def scan(self) -> list[TreeEntry]:
        self._tell("scan", self._path)
        found = self._folder.scan()
        self._tell("scanned", self._path)
        return found


def test_an_entry_that_vanishes_is_left_out_alone(tmp_path: Path) -> None:
    """Between the reading of its directory and its stat; what follows it is listed all the same."""
    for name in "abcd":
        (tmp_path / name).mkdir()
        (tmp_path / name / "f").write_bytes(b"")

    def vanish(moment: str, path: bytes) -> None:
        if (moment, path) == ("scanned", b""):
            (tmp_path / "b" / "f").unlink()
            (tmp_path / "b").rmdir()
        if (moment, path) == ("scanned", b"c"):
            (tmp_path / "c" / "f").unlink()

    assert paths(Watched(tmp_path, vanish)) == [b"a", b"a/f", b"c", b"d", b"d/f"]


@pytest.mark.parametrize("moment", ["open", "scan"])
def test_a_directory_that_vanishes_after_its_stat_is_empty(tmp_path: Path, moment: str) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").write_bytes(b"")

    def vanish(now: str, path: bytes) -> None:
        if (now, path) == (moment, b"a"):
            (tmp_path / "a").rmdir()

    assert paths(Watched(tmp_path, vanish)) == [b"a", b"b"]


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A directory beside the tree ``root``, whose ``dir`` has entries of the same names and of others."""
    root, outside = tmp_path / "root", tmp_path / "outside"
    for folder, size in ((root / "dir", 1), (outside, 1000)):
        (folder / "sub").mkdir(parents=True)
        for name in ("a", "sub/x"):
            (folder / name).write_bytes(bytes(size))
    (root / "dir" / "b").symlink_to("public")
    (outside / "b").symlink_to("secret")
    (outside / "other").write_bytes(b"")
    (outside / "sub" / "other").write_bytes(b"")
    with contextlib.suppress(OSError):  # not every file system has them
        os.setxattr(outside / "a", "user.secret", b"secret")
    return outside


@pytest.mark.parametrize("filters", [Filters(), Filters(exclude=("none",)), Filters(include=("dir/**",))])
@pytest.mark.parametrize(
    ("moment", "where", "expected"),
    [
        ("scanned", b"", [b"dir"]),  # a link now, as it would have been a moment earlier
        ("open", b"dir", [b"dir"]),
        ("scan", b"dir", [b"dir", b"dir/a", b"dir/b", b"dir/sub", b"dir/sub/x"]),
        ("scanned", b"dir", [b"dir", b"dir/a", b"dir/b", b"dir/sub", b"dir/sub/x"]),
        ("open", b"dir/sub", [b"dir", b"dir/a", b"dir/b", b"dir/sub", b"dir/sub/x"]),
    ],
)
def test_a_directory_that_becomes_a_link_shows_nothing_of_what_is_outside(
    tmp_path: Path, outside: Path, filters: Filters, moment: str, where: bytes, expected: list[bytes]
) -> None:
    """Whenever that happens: no name, size, link or attribute; what was opened before is listed to its end."""
    root = tmp_path / "root"

    def swap(now: str, path: bytes) -> None:
        if (now, path) == (moment, where):
            (root / "dir").rename(tmp_path / "away")
            (root / "dir").symlink_to(outside)

    found = stats(Watched(root, swap), filters)
    if filters.include and expected == [b"dir"]:
        expected = []  # the pattern is of what is below
    assert [entry.path for entry in found] == expected
    assert (root / "dir").is_symlink()
    for entry in found:
        assert entry.size < 1000
        assert entry.linkname in {b"", b"public"} or entry.path == b"dir"
        assert not entry.xattrs


def test_attributes_are_those_of_the_directory_that_was_opened(tmp_path: Path, outside: Path) -> None:
    """Where the path shows some, they are read again from what is open."""
    root = tmp_path / "root"
    try:
        os.setxattr(root / "dir" / "a", "user.public", b"public")
    except OSError:
        pytest.skip("no extended attributes here")

    def swap(now: str, path: bytes) -> None:
        if (now, path) == ("scanned", b"dir"):
            (root / "dir").rename(tmp_path / "away")
            (root / "dir").symlink_to(outside)

    found = {entry.path: entry.xattrs for entry in stats(Watched(root, swap))}
    assert found[b"dir/a"] == {b"user.public": b"public"}


def test_nothing_stays_open_of_a_directory_that_goes_when_it_is_opened_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some file systems tell of it only when its entries are read."""
    monkeypatch.setattr("buildkit_py.session.walk.OPEN_DIRECTORIES", 1)
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "c").write_bytes(b"")
    scans = 0

    def vanish(now: str, path: bytes) -> None:
        nonlocal scans
        if (now, path) == ("scan", b"a"):
            scans += 1
            if scans == 2:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))

    before = len(os.listdir("/proc/self/fd"))
    assert paths(Watched(tmp_path, vanish)) == [b"a", b"a/b"]
    assert scans == 2
    assert len(os.listdir("/proc/self/fd")) == before


def test_trees_may_be_deeper_than_directories_are_kept_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And deeper than a path may be long; a directory on the way back that has become a link ends there."""
    monkeypatch.setattr("buildkit_py.session.walk.OPEN_DIRECTORIES", 3)
    name, depth = b"d" * 100, 50
    handle = os.open(tmp_path, os.O_RDONLY)
    for _ in range(depth):
        for file in (b"a", b"z"):
            os.close(os.open(file, os.O_CREAT, dir_fd=handle))
        os.mkdir(name, dir_fd=handle)
        below = os.open(name, os.O_RDONLY, dir_fd=handle)
        os.close(handle)
        handle = below
    os.close(handle)
    whole = [b"/".join([name] * level) for level in range(1, depth + 1)]
    before, most = len(os.listdir("/proc/self/fd")), 0

    def look(moment: str, path: bytes) -> None:
        nonlocal most
        most = max(most, len(os.listdir("/proc/self/fd")))

    for filters in (EVERYTHING, Filters(exclude=("none",)), Filters(include=("**/z",))):
        files = (b"z",) if filters.include else (b"a", b"z")
        expected = {*(path for path in whole[: depth - bool(filters.include)])}
        expected |= {path + b"/" + file for path in whole[:-1] for file in files} | set(files)
        found = paths(Watched(tmp_path, look), filters)
        assert set(found) == expected
        assert len(found) == len(expected)
        assert found == sorted(found, key=lambda path: path.split(b"/"))
    assert most <= before + 6
    assert len(os.listdir("/proc/self/fd")) == before

    opened = 0

    def swap(moment: str, path: bytes) -> None:
        nonlocal opened
        opened += (moment, path) == ("open", whole[9])
        if opened == 2:  # on the way back
            opened += 1
            (tmp_path / os.fsdecode(name) / os.fsdecode(name)).rename(tmp_path / "away")
            (tmp_path / os.fsdecode(name) / os.fsdecode(name)).symlink_to("/")

    found = paths(Watched(tmp_path, swap))
    assert whole[1] + b"/z" not in found
    assert name + b"/z" in found
    assert not any(path.startswith(whole[1] + b"/etc") for path in found)
    shutil.rmtree(tmp_path)


def test_a_walk_that_is_given_up_closes_its_directories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("buildkit_py.session.walk.BATCH_ENTRIES", 1)
    (tmp_path / "a" / "b" / "c").mkdir(parents=True)
    before = os.listdir("/proc/self/fd")
    batches = walk(DiskTree(tmp_path), EVERYTHING)
    next(batches)
    next(batches)
    assert len(os.listdir("/proc/self/fd")) > len(before)
    batches.close()
    assert os.listdir("/proc/self/fd") == before


def locked(root: Path) -> DiskTree:
    """A tree with a directory that may not be read, for root too."""

    def refuse(moment: str, path: bytes) -> None:
        if path == b"locked":
            raise PermissionError(13, "Permission denied")

    return Watched(root, refuse)


def test_a_directory_that_cannot_be_read_ends_the_walk(tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir()
    with pytest.raises(WalkError, match="cannot list locked: Permission denied"):
        listing(locked(tmp_path))


def test_a_directory_that_is_filtered_out_may_be_unreadable(tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir()
    (tmp_path / "a").write_bytes(b"")
    assert paths(locked(tmp_path), Filters(exclude=("locked",))) == [b"a"]
    assert paths(locked(tmp_path), Filters(exclude=("locked", "!**/x"))) == [b"a"]
    assert paths(locked(tmp_path), Filters(include=("a*",))) == [b"a"]


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

    def note(moment: str, path: bytes) -> None:
        if moment == "scan":
            read.append(path)

    for name in ["node_modules/x", "src/x/y", "docs/api"]:
        (tmp_path / name).mkdir(parents=True)
    tree = Watched(tmp_path, note)
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


class Wide:
    """So many directories of so many files, which are made when they are asked for."""

    def __init__(self, directories: int, files: int) -> None:
        self._names = [
            [f"d{number:04}" for number in range(directories)],
            [f"f{number:06}.txt" for number in range(files)],
        ]

    def open(self, path: bytes) -> Folder:
        return WideFolder(self._names)


class WideFolder:
    def __init__(self, names: list[list[str]]) -> None:
        self._names = names

    def scan(self) -> list[TreeEntry]:
        kind = stat.S_IFREG | 0o644 if len(self._names) == 1 else stat.S_IFDIR | 0o755
        return [WideEntry(name, kind) for name in self._names[0]]

    def open(self, name: bytes) -> Folder:
        return WideFolder(self._names[1:])

    def read_link(self, name: bytes) -> bytes:
        raise AssertionError

    def xattrs(self, name: bytes) -> Mapping[bytes, bytes]:
        return {}

    def close(self) -> None:
        pass


class WideEntry:
    __slots__ = ("_mode", "name")

    def __init__(self, name: str, mode: int) -> None:
        self.name = name
        self._mode = mode

    def is_dir(self, *, follow_symlinks: bool = True) -> bool:
        return stat.S_ISDIR(self._mode)

    def stat(self, *, follow_symlinks: bool = True) -> os.stat_result:
        return os.stat_result((self._mode, 1, 1, 1, 0, 0, 7, 0, 0, 0))


@pytest.mark.parametrize(
    ("directories", "filters", "listed"),
    [
        (20, EVERYTHING, 20 * 1001),
        (20, Filters(exclude=("**/*9.txt", "d0001")), 19 * 901),
        (20, Filters(include=("**/*9.txt",)), 20 * 101),
        pytest.param(1000, EVERYTHING, 1000 * 1001, marks=pytest.mark.slow),
        pytest.param(1000, Filters(exclude=("**/*9.txt", "d0001")), 999 * 901, marks=pytest.mark.slow),
        pytest.param(1000, Filters(include=("**/*9.txt",)), 1000 * 101, marks=pytest.mark.slow),
    ],
)
@pytest.mark.timeout(600)
def test_memory_does_not_grow_with_the_tree(directories: int, filters: Filters, listed: int) -> None:
    """A million entries take what one of their directories takes."""
    count = 0
    list(walk(Wide(1, 1000), filters))  # what is kept once
    tracemalloc.start()
    try:
        for batch in walk(Wide(directories, 1000), filters):
            count += len(batch.packets)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert count == listed
    assert peak < 1_500_000


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
