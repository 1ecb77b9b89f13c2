"""Directories that exporters send, beyond names and places: private ones, holes, attributes, and very many entries."""

from __future__ import annotations

import os
import stat
import subprocess
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest

from buildkit_py.errors import ProtocolError
from buildkit_py.session import directory
from buildkit_py.session.directory import DirectoryTarget, DirectoryWriter, ExportError, apply_modes
from buildkit_py.session.fsutil import (
    END_OF_LISTING,
    FIN,
    MODE_DEVICE,
    MODE_DIR,
    MODE_IRREGULAR,
    MODE_NAMED_PIPE,
    MODE_SETGID,
    MODE_SETUID,
    MODE_STICKY,
    MODE_SYMLINK,
    Stat,
    data_header,
    end_of_file,
)
from buildkit_py.session.walk import DirectoryHandles

ROOT = os.geteuid() == 0
TIME = 1_600_000_000_000_000_001


def entry(path: bytes, mode: int = 0o644, **fields: object) -> Stat:
    return Stat(path=path, mode=mode, mtime_ns=TIME, **fields)  # type: ignore[arg-type]  # what Stat takes


def data(file_id: int, content: bytes) -> bytes:
    return data_header(file_id, len(content)) + content


def receive(target: DirectoryTarget, listed: list[Stat], contents: dict[int, bytes]) -> None:
    """A whole export; contents by position in the listing."""
    writer = DirectoryWriter(target)
    try:
        replies = writer.process([*(stat_.encode() for stat_ in listed), END_OF_LISTING])
        for file_id, content in contents.items():
            replies += writer.process([data(file_id, content)] if content else [])
            replies += writer.process([end_of_file(file_id)])
        assert replies[-1] == FIN
        assert writer.process([FIN]) == []
        assert writer.finished
    finally:
        writer.close()


@pytest.fixture
def xattrs(tmp_path: Path) -> None:
    try:
        os.setxattr(tmp_path, "user.probe", b"")
        os.removexattr(tmp_path, "user.probe")
    except OSError as error:
        pytest.skip(f"no extended attributes here: {error.strerror}")


# --- private directories -----------------------------------------------------------------------------------


def test_a_private_directory_has_no_temporary_names_and_open_directories(tmp_path: Path) -> None:
    """Its owner moves it when it is complete, and sets the modes then."""
    target = DirectoryTarget(tmp_path / "new" / "tree", private=True)
    writer = DirectoryWriter(target)
    listed = [entry(b"d", MODE_DIR | 0o555), entry(b"d/f", 0o400), entry(b"l", MODE_SYMLINK | 0o777, linkname=b"d/f")]
    writer.process([*(stat_.encode() for stat_ in listed), END_OF_LISTING, data(1, b"half")])
    root = tmp_path / "new" / "tree"
    assert sorted(str(path.relative_to(root)) for path in root.rglob("*")) == ["d", "d/f", "l"]
    assert writer.process([data(1, b" whole"), end_of_file(1)]) == [FIN]
    writer.process([FIN])
    assert (root / "d" / "f").read_bytes() == b"half whole"
    assert [stat.S_IMODE((root / name).stat().st_mode) for name in (".", "d", "d/f")] == [0o700, 0o700, 0o400]
    assert target.directories == {b"d": (0o555, TIME)}
    handles = DirectoryHandles(root)
    apply_modes(handles, target.directories)
    handles.close()
    info = (root / "d").stat()
    assert (stat.S_IMODE(info.st_mode), info.st_mtime_ns) == (0o555, TIME)


def test_a_private_directory_below_another(tmp_path: Path) -> None:
    """As one of several platforms: the one above is for its owner alone."""
    above = tmp_path / "above"
    for name in ("one", "two"):
        receive(DirectoryTarget(above / name, private=True, above=above), [entry(b"f")], {0: b"x"})
    assert stat.S_IMODE(above.stat().st_mode) == 0o700
    assert sorted(str(path.relative_to(above)) for path in above.rglob("*")) == ["one", "one/f", "two", "two/f"]


@pytest.mark.parametrize(
    "again",
    [
        entry(b"x"),
        entry(b"x", MODE_DIR | 0o755),
        entry(b"x", MODE_SYMLINK | 0o777, linkname=b"y"),
        entry(b"x", MODE_NAMED_PIPE | 0o600),
        entry(b"x", linkname=b"a"),
    ],
    ids=["file", "directory", "symlink", "pipe", "link"],
)
@pytest.mark.parametrize("first", ["file", "directory", "symlink"])
def test_a_name_that_is_taken_is_an_error(tmp_path: Path, first: str, again: Stat) -> None:
    """By another platform, or by the same name in other letters; what was first stays as it is."""
    root = tmp_path / "tree"
    root.mkdir()
    match first:
        case "file":
            (root / "x").write_bytes(b"first")
        case "directory":
            (root / "x").mkdir()
        case _:
            (root / "x").symlink_to("/nowhere")
    with pytest.raises(ExportError, match="cannot write 'x': the export has another entry of this name"):
        receive(DirectoryTarget(root, private=True), [entry(b"a"), again], {0: b"", 1: b"y"})
    assert (root / "x").is_dir() == (first == "directory")
    assert (root / "x").is_symlink() == (first == "symlink")
    assert not (root / "x").is_file() or (root / "x").read_bytes() == b"first"


@pytest.fixture
def caseless(tmp_path: Path) -> Iterator[Path]:
    """A directory for which ``a`` and ``A`` are one name."""
    folder = tmp_path / "caseless"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "casefold", "tmpfs", folder], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("this kernel has no file system that folds case")
    try:
        (folder / "d").mkdir()
        subprocess.run(["chattr", "+F", folder / "d"], check=True)
        yield folder / "d"
    finally:
        subprocess.run(["umount", folder], check=True)


def test_names_that_differ_in_case_only(caseless: Path) -> None:
    writer = DirectoryWriter(DirectoryTarget(caseless, private=True))
    with pytest.raises(ExportError, match="in other letters"):
        writer.process([entry(b"A").encode(), entry(b"a", MODE_DIR | 0o755).encode(), END_OF_LISTING, end_of_file(0)])
    writer.close()


def test_streams_that_share_a_private_directory(tmp_path: Path) -> None:
    """Directories in common are fine, files are not."""
    target = DirectoryTarget(tmp_path / "tree", private=True)
    one, two = DirectoryWriter(target), DirectoryWriter(target)
    common = entry(b"usr", MODE_DIR | 0o755).encode()
    one.process([common, entry(b"usr/a").encode(), END_OF_LISTING])
    two.process([common, entry(b"usr/a").encode(), END_OF_LISTING])
    assert one.process([data(1, b"one"), end_of_file(1)]) == [FIN]
    with pytest.raises(ExportError, match="'usr/a'"):
        two.process([data(1, b"two")])
    two.close()
    assert (tmp_path / "tree" / "usr" / "a").read_bytes() == b"one"
    assert target.directories == {b"usr": (0o755, TIME)}


def test_a_private_export_that_breaks_off_leaves_no_half_file(tmp_path: Path) -> None:
    target = DirectoryTarget(tmp_path / "tree", private=True)
    writer = DirectoryWriter(target)
    writer.process([entry(b"done").encode(), entry(b"half").encode(), END_OF_LISTING, end_of_file(0), data(1, b"x")])
    writer.close()
    assert os.listdir(tmp_path / "tree") == ["done"]


# --- content -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("chunks", "allocated"),
    [
        ([b"x" * 5000, bytes(65536), bytes(65536), b"y"], 32768),
        ([bytes(65536)] * 16, 8192),
        ([bytes(65535) + b"x"], None),
        ([b"x" + bytes(65535)], None),
        ([bytes(4095)], None),
        ([bytes(131072)], None),
        ([bytes(65536), b"x" * 10, bytes(65536)], 16384),
    ],
    ids=["middle", "all", "last byte", "first byte", "short", "long chunk", "both ends"],
)
def test_zeros_become_holes(tmp_path: Path, chunks: list[bytes], allocated: int | None) -> None:
    """The content is the same; the disk need not hold it."""
    writer = DirectoryWriter(DirectoryTarget(tmp_path / "tree"))
    writer.process([entry(b"f").encode(), END_OF_LISTING, *(data(0, chunk) for chunk in chunks)])
    assert writer.process([end_of_file(0)]) == [FIN]
    assert (tmp_path / "tree" / "f").read_bytes() == b"".join(chunks)
    if allocated is not None:
        assert (tmp_path / "tree" / "f").stat().st_blocks * 512 <= allocated


def test_a_file_of_more_than_4_gib(tmp_path: Path) -> None:
    """Sizes are counted in more than 32 bits."""
    chunk = data(0, bytes(65536))
    writer = DirectoryWriter(DirectoryTarget(tmp_path / "tree"))
    writer.process([entry(b"f", size=(4 << 30) + 65537).encode(), END_OF_LISTING])
    for _ in range(64):
        writer.process([chunk] * 1024)
    writer.process([chunk, data(0, b"!")])
    assert writer.process([end_of_file(0)]) == [FIN]
    assert (tmp_path / "tree" / "f").stat().st_size == (4 << 30) + 65537
    with (tmp_path / "tree" / "f").open("rb") as file:
        file.seek(4 << 30)
        assert file.read() == bytes(65536) + b"!"


# --- modes, attributes, kinds ------------------------------------------------------------------------------


@pytest.mark.parametrize("private", [False, True])
def test_set_uid_set_gid_and_sticky_are_kept(tmp_path: Path, private: bool) -> None:
    """In a directory that only its owner can enter: a program of root's from an image is nobody else's business."""
    bits = {b"s": (MODE_SETUID, stat.S_ISUID), b"t": (MODE_STICKY, stat.S_ISVTX), b"u": (MODE_SETGID, stat.S_ISGID)}
    target = DirectoryTarget(tmp_path / "tree", private=private)
    receive(target, [entry(name, go | 0o755) for name, (go, _) in bits.items()], dict.fromkeys(range(3), b"x"))
    for name, (_, unix) in bits.items():
        assert stat.S_IMODE((tmp_path / "tree" / os.fsdecode(name)).stat().st_mode) == unix | 0o755
    assert stat.S_IMODE((tmp_path / "tree").stat().st_mode) == 0o700


@pytest.mark.usefixtures("xattrs")
def test_attributes_are_kept_and_never_fatal(tmp_path: Path) -> None:
    """Of files and directories; those that nobody may set, or that no file system has, are left out."""
    given = {b"user.a": b"1", b"user.b": b"\0\xff", b"bogus.name": b"x", b"user." + b"n" * 300: b"x", b"": b"x"}
    listed = [entry(b"d", MODE_DIR | 0o555, xattrs=given), entry(b"f", 0o400, xattrs=given)]
    receive(DirectoryTarget(tmp_path / "tree"), listed, {1: b"x"})
    for name in ("d", "f"):
        path = tmp_path / "tree" / name
        assert {key: os.getxattr(path, key) for key in os.listxattr(path)} == {"user.a": b"1", "user.b": b"\0\xff"}


@pytest.mark.usefixtures("xattrs")
@pytest.mark.skipif(not ROOT, reason="trusted attributes are root's")
def test_attributes_of_a_symlink_are_not_its_targets(tmp_path: Path) -> None:
    (tmp_path / "victim").write_bytes(b"")
    link = entry(b"l", MODE_SYMLINK | 0o777, linkname=os.fsencode(tmp_path / "victim"), xattrs={b"trusted.x": b"1"})
    pipe = entry(b"p", MODE_NAMED_PIPE | 0o640, xattrs={b"trusted.x": b"2"})
    receive(DirectoryTarget(tmp_path / "tree"), [link, pipe], {})
    assert os.listxattr(tmp_path / "victim") == []
    assert os.getxattr(tmp_path / "tree" / "l", "trusted.x", follow_symlinks=False) == b"1"
    info = (tmp_path / "tree" / "p").stat()
    assert (stat.S_ISFIFO(info.st_mode), stat.S_IMODE(info.st_mode), info.st_mtime_ns) == (True, 0o640, TIME)


def test_kinds_that_cannot_be_made_are_left_out_and_told(tmp_path: Path) -> None:
    """An entry of no kind that we know, and a link to it; the rest arrives."""
    odd = entry(b"odd", MODE_IRREGULAR | 0o644)
    target = DirectoryTarget(tmp_path / "tree")
    receive(target, [odd, entry(b"plain"), entry(b"z", MODE_IRREGULAR | 0o644, linkname=b"odd")], {1: b"x"})
    assert os.listdir(tmp_path / "tree") == ["plain"]
    assert [text.partition(":")[0] for text in target.export.warnings] == ["'odd' was left out", "'z' was left out"]


def test_only_the_first_hundred_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A tree may have any number of what cannot be made: neither the result nor a log is filled with it."""
    target = DirectoryTarget(tmp_path / "tree")
    receive(target, [entry(b"%03d" % number, MODE_IRREGULAR | 0o644) for number in range(150)], {})
    assert [text[1:4] for text in target.export.warnings] == [f"{number:03}" for number in range(100)]
    assert len(caplog.records) == 100


@pytest.mark.parametrize(("major", "minor"), [(-1, 0), (1 << 32, 0), (0, -5), (1, 1 << 60)])
@pytest.mark.parametrize("kind", [MODE_DEVICE, MODE_NAMED_PIPE])
def test_device_numbers_that_cannot_be(tmp_path: Path, kind: int, major: int, minor: int) -> None:
    writer = DirectoryWriter(DirectoryTarget(tmp_path / "tree"))
    with pytest.raises(ProtocolError, match="'dev' has the device number"):
        writer.process([entry(b"dev", kind | 0o600, devmajor=major, devminor=minor).encode()])
    writer.close()
    assert os.listdir(tmp_path / "tree") == []


# --- races -------------------------------------------------------------------------------------------------


def test_an_entry_swapped_for_a_link_before_its_mode_is_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody who may write here cannot make us change a file elsewhere."""
    victim = tmp_path / "victim"
    victim.write_bytes(b"")
    victim.chmod(0o600)
    real = os.mknod

    def swapped(path: bytes, mode: int, device: int, *, dir_fd: int) -> None:
        real(path, mode, device, dir_fd=dir_fd)
        os.unlink(path, dir_fd=dir_fd)
        os.symlink(victim, path, dir_fd=dir_fd)

    monkeypatch.setattr(os, "mknod", swapped)
    receive(DirectoryTarget(tmp_path / "tree"), [entry(b"p", MODE_NAMED_PIPE | 0o777)], {})
    info = victim.stat()
    assert stat.S_IMODE(info.st_mode) == 0o600
    assert info.st_mtime_ns != TIME


def test_a_directory_swapped_for_a_link_before_the_modes_are_set(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir(mode=0o700)
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "d").symlink_to(outside)
    handles = DirectoryHandles(tmp_path / "tree")
    with pytest.raises(NotADirectoryError):
        apply_modes(handles, {b"d": (0o777, 1)})
    handles.close()
    assert stat.S_IMODE(outside.stat().st_mode) == 0o700


# --- very many ---------------------------------------------------------------------------------------------


def test_a_deep_path_is_longer_than_the_system_takes_at_once(tmp_path: Path) -> None:
    """Directories are entered one after the other, so that no call gets the whole path."""
    parts = [b"d" * 200] * 60
    listed = [entry(b"/".join(parts[: count + 1]), MODE_DIR | 0o755) for count in range(len(parts))]
    listed.append(entry(b"/".join([*parts, b"file"])))
    target = DirectoryTarget(tmp_path / "tree")
    receive(target, listed, {len(parts): b"deep"})
    assert target.export.files == 1
    handles = DirectoryHandles(tmp_path / "tree")
    fd = os.open(b"file", os.O_RDONLY, dir_fd=handles.open(b"/".join(parts)))
    assert os.read(fd, 10) == b"deep"
    os.close(fd)
    handles.close()
    subprocess.run(["rm", "-r", tmp_path / "tree"], check=True)


def test_memory_does_not_grow_with_what_is_complete(tmp_path: Path) -> None:
    """Of a file that is there nothing is kept but its name, against links to what was never listed."""
    writer = DirectoryWriter(DirectoryTarget(tmp_path / "tree"))
    for number in range(500):
        writer.process([entry(b"f%06d" % number).encode(), data(number, b"x"), end_of_file(number)])
    assert writer._files == {}
    assert not writer._waiting
    assert directory.MAX_OPEN_REQUESTS > writer._receiver.requested == 0
    writer.close()


def test_files_that_wait_take_little_memory(tmp_path: Path) -> None:
    """A million of them do when a daemon lists faster than it sends: 275 bytes for each with names as long as here."""
    writer = DirectoryWriter(DirectoryTarget(tmp_path / "tree"))
    packets = [entry(b"d", MODE_DIR | 0o755).encode()]
    packets += [entry(b"d/file%06d.txt" % number).encode() for number in range(20_000)]
    writer.process(packets[:1000])
    tracemalloc.start()
    try:
        writer.process(packets[1000:])
        taken, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    writer.close()
    assert taken < 19_000 * 350
