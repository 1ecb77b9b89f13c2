"""Trees on their way through a real daemon: odd names, kinds, modes and sizes in a context and in a local export."""

from __future__ import annotations

import os
import shutil
import socket
import stat
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from buildkit_py import BuildRequest, ExporterSpec, build, connect
from buildkit_py.builder import BuildResult
from buildkit_py.client import new_ref
from buildkit_py.errors import BuildKitError, InvalidOption, SolveError
from buildkit_py.session.walk import FileOpener
from tests.support.cli import CommandLine, Done, refused

pytestmark = pytest.mark.daemon

ROOT = os.geteuid() == 0


@pytest.fixture
def context(tmp_path: Path) -> Path:
    """Copies everything but the Dockerfile."""
    folder = tmp_path / "context"
    (folder / "tree").mkdir(parents=True)
    (folder / "Dockerfile").write_text("FROM scratch\nCOPY tree /\n")
    return folder


async def export(
    address: str, context: Path, dest: Path, *, attrs: Mapping[str, str] | None = None, **fields: object
) -> BuildResult:
    spec = ExporterSpec(type="local", dest=str(dest), attrs=attrs or {})
    async with connect(address) as client:
        request = BuildRequest(context=context, outputs=[spec], attestations={}, **fields)  # type: ignore[arg-type]
        return await build(client, request)


def names(root: Path) -> set[bytes]:
    """Every path below, as bytes."""
    return {os.fsencode(path.relative_to(root)) for path in root.rglob("*")}


async def test_odd_names_survive(daemon_address: str, context: Path, tmp_path: Path) -> None:
    """Names of 255 bytes, white space, patterns, case, both forms of an accent, what looks like a temporary file."""
    odd = [b"x" * 255, b" ", b"a\nb", b"*?[", b"Case", b"case", b"CASE", b"-rf", b".tmp.0",
           "é".encode(), "e\u0301".encode(), b"back\\slash", b"%41+%2F"]  # fmt: skip
    tree = os.fsencode(context / "tree")
    for number, name in enumerate(odd):
        with open(os.path.join(tree, name), "wb") as file:
            file.write(b"%d" % number)
    out = tmp_path / "out"
    await export(daemon_address, context, out)
    assert names(out) == set(odd)
    for number, name in enumerate(odd):
        with open(os.path.join(os.fsencode(out), name), "rb") as file:
            assert file.read() == b"%d" % number


async def test_names_that_are_no_text_survive(daemon_address: str, context: Path, tmp_path: Path) -> None:
    """Or the daemon, if it is older, is said not to take them."""
    tree = os.fsencode(context / "tree")
    os.mkdir(os.path.join(tree, b"dir\xe9"))
    os.symlink(b"\xff/\xfe", os.path.join(tree, b"dir\xe9", b"link\xe9"))
    with open(os.path.join(tree, b"\xff\xfe"), "wb") as file:
        file.write(b"content")
    out = tmp_path / "out"
    refused_by: SolveError | None = None
    try:
        await export(daemon_address, context, out)
    except SolveError as error:
        refused_by = error
    if refused_by is not None:
        assert "invalid UTF-8" in str(refused_by)
        assert "this daemon does not take names that are not UTF-8" in refused_by.hint
        assert not out.exists()
        return
    assert names(out) == {b"\xff\xfe", b"dir\xe9", b"dir\xe9/link\xe9"}
    assert os.readlink(os.path.join(os.fsencode(out), b"dir\xe9", b"link\xe9")) == b"\xff/\xfe"


async def test_links_modes_times_and_attributes_survive(daemon_address: str, context: Path, tmp_path: Path) -> None:
    """Symlinks as they are written, wherever they lead; hard links as links; the special bits; user attributes."""
    tree = context / "tree"
    (tree / "dir").mkdir()
    (tree / "file").write_text(new_ref())  # a daemon that has the same content gives the times of that
    (tree / "dir" / "hard").hardlink_to(tree / "file")
    for name, target in {"out": "/etc/passwd", "up": "../../..", "loop": "loop", "in": "dir/hard"}.items():
        (tree / name).symlink_to(target)
    os.mkfifo(tree / "pipe")
    for name, mode in {"suid": 0o4755, "sgid": 0o2755, "none": 0o000, "all": 0o777}.items():
        (tree / name).write_text(name)
        (tree / name).chmod(mode)
    try:
        os.setxattr(tree / "all", "user.note", b"\0\xff")
    except OSError:
        pytest.skip("no extended attributes here")
    (tree / "sticky").mkdir()
    (tree / "sticky").chmod(0o1777)
    (tree / "closed").mkdir()
    (tree / "closed" / "f").write_text("")
    (tree / "closed").chmod(0o500)
    for path in tree.rglob("*"):
        os.utime(path, ns=(1, 1_500_000_000_123_456_789), follow_symlinks=False)
    out = tmp_path / "out"
    await export(daemon_address, context, out)
    assert names(out) == names(tree)
    for path in sorted(tree.rglob("*")):
        ours, theirs = path.lstat(), (out / path.relative_to(tree)).lstat()
        assert theirs.st_mode == ours.st_mode, path
        assert theirs.st_mtime_ns == ours.st_mtime_ns, path
    assert (out / "file").stat().st_ino == (out / "dir" / "hard").stat().st_ino
    assert os.readlink(out / "out") == "/etc/passwd"
    assert os.getxattr(out / "all", "user.note") == b"\0\xff"
    assert stat.S_IMODE(out.stat().st_mode) == 0o700


@pytest.mark.skipif(not ROOT, reason="needs root")
async def test_devices_survive_for_root(daemon_address: str, context: Path, tmp_path: Path) -> None:
    os.mknod(context / "tree" / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    await export(daemon_address, context, tmp_path / "out")
    for name in ("null",):
        ours, theirs = (context / "tree" / name).stat(), (tmp_path / "out" / name).stat()
        assert (theirs.st_mode | 0o777, theirs.st_rdev) == (ours.st_mode | 0o777, ours.st_rdev)


async def test_a_sparse_file_stays_small(daemon_address: str, context: Path, tmp_path: Path) -> None:
    with (context / "tree" / "sparse").open("wb") as file:
        file.seek(256 << 20)
        file.write(b"end")
    await export(daemon_address, context, tmp_path / "out")
    info = (tmp_path / "out" / "sparse").stat()
    assert info.st_size == (256 << 20) + 3
    assert info.st_blocks * 512 < 1 << 20
    with (tmp_path / "out" / "sparse").open("rb") as file:
        file.seek((256 << 20) - 1)
        assert file.read() == b"\0end"


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_file_of_more_than_4_gib(daemon_address: str, context: Path, tmp_path: Path) -> None:
    """Crosses both ways whole, without holding it in memory; a tar of it says its size as tools read it."""
    size = (4 << 30) + 12345
    with (context / "tree" / "large").open("wb") as file:
        for position in (0, (4 << 30) - 2, size - 6):
            file.seek(position)
            file.write(b"marker")
    cli = CommandLine(address=daemon_address, docker_config=tmp_path / "docker")
    command = [sys.executable, "-m", "buildkit_py", "build", str(context), "--progress", "quiet"]
    for output in ("local", "tar"):
        dest = tmp_path / output
        process = subprocess.Popen([*command, "-o", f"type={output},dest={dest}"], env=cli.environment())
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        assert process.returncode == 0
        assert usage.ru_maxrss < 150_000  # in KiB
        if output == "local":
            made = dest / "large"
        else:
            subprocess.run(["tar", "--sparse", "-xf", dest, "-C", tmp_path, "large"], check=True)
            made = tmp_path / "large"
        assert made.stat().st_size == size
        assert made.stat().st_blocks * 512 < 1 << 20 or output == "tar"
        with made.open("rb") as file:
            for position in (0, (4 << 30) - 2, size - 6):
                file.seek(position)
                assert file.read(6) == b"marker"
        made.unlink()
        if output == "tar":
            dest.unlink()


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_a_million_files(daemon_address: str, context: Path, tmp_path: Path) -> None:
    """A thousand directories of a thousand files, sent as a context and exported, then sent unchanged.

    What a client must remember of a listing grows with it: for what it sends the name of a file that the daemon has
    not asked for yet, for what it receives that of one that it has not asked for. Content and stats do not.
    """
    tree = context / "tree"
    for folder in range(1000):
        (tree / f"directory-{folder:03}").mkdir()
        handle = os.open(tree / f"directory-{folder:03}", os.O_RDONLY)
        for number in range(1000):
            file = os.open(f"file-{number:03}.txt", os.O_WRONLY | os.O_CREAT, 0o644, dir_fd=handle)
            os.write(file, b"%d/%d" % (folder, number))
            os.close(file)
        os.close(handle)
    out = tmp_path / "out"
    cli = CommandLine(address=daemon_address, docker_config=tmp_path / "docker")
    command = [sys.executable, "-m", "buildkit_py", "build", str(context), "--progress", "quiet"]
    peaks: dict[str, int] = {}
    for name, words in {"cold": ["-o", f"type=local,dest={out}"], "unchanged": ["-o", "type=cacheonly"]}.items():
        process = subprocess.Popen([*command, *words], env=cli.environment())
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        assert process.returncode == 0
        peaks[name] = usage.ru_maxrss // 1024
        print(f"{name}: {peaks[name]} MiB, {usage.ru_utime + usage.ru_stime:.0f} s of CPU")
    assert len(os.listdir(out)) == 1000
    for folder in range(1000):
        found = out / f"directory-{folder:03}"
        handle = os.open(found, os.O_RDONLY)
        assert sorted(os.listdir(handle)) == [f"file-{number:03}.txt" for number in range(1000)]
        for number in range(0, 1000, 37):
            file = os.open(f"file-{number:03}.txt", os.O_RDONLY, dir_fd=handle)
            assert os.read(file, 100) == b"%d/%d" % (folder, number)
            os.close(file)
        os.close(handle)
    assert peaks["cold"] < 500
    assert peaks["unchanged"] < 500


async def test_files_that_change_while_they_are_sent(
    daemon_address: str, context: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the listing and the reading of each: what is there then arrives, and what is gone arrives empty."""
    tree, outside = context / "tree", tmp_path / "outside"
    outside.mkdir()
    (outside / "linked").write_text("secret")
    (outside / "f").write_text("secret")
    (tree / "moved").mkdir()
    for name in ("grown", "shrunk", "vanished", "linked", "rewritten", "pipe", "moved/f"):
        (tree / name).write_text(new_ref() * 100)

    def change(path: bytes) -> None:
        place = context / os.fsdecode(path)
        match place.name:
            case "grown":
                with place.open("a") as file:
                    file.write("more" * 1000)
            case "shrunk":
                os.truncate(place, 10)
            case "rewritten":
                place.write_text("new")
            case "vanished":
                place.unlink()
            case "linked":
                place.unlink()
                place.symlink_to(outside / "linked")
            case "pipe":
                place.unlink()
                os.mkfifo(place)
            case "f":
                place.parent.rename(tmp_path / "away")
                place.parent.symlink_to(outside)
            case _:
                pass

    opening = FileOpener.open

    def opened(self: FileOpener, path: bytes) -> tuple[int, int]:
        change(path)
        return opening(self, path)

    monkeypatch.setattr(FileOpener, "open", opened)
    before = {name: (tree / name).read_bytes() for name in ("grown", "shrunk")}
    out = tmp_path / "out"
    result = await export(daemon_address, context, out)
    files = {os.fsdecode(name): (out / os.fsdecode(name)).read_bytes() for name in names(out) if name != b"moved"}
    assert files == {
        "grown": before["grown"] + b"more" * 1000,
        "shrunk": before["shrunk"][:10],
        "rewritten": b"new",
        **dict.fromkeys(("vanished", "linked", "pipe", "moved/f"), b""),
    }
    assert sum(transfer.files_sent for transfer in result.transfers if transfer.name == "context") == 7


async def test_a_socket_is_an_empty_file(daemon_address: str, context: Path, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        os.symlink(context / "tree", tmp_path / "t")  # a socket's path is short
        listener.bind(str(tmp_path / "t" / "s"))
        await export(daemon_address, context, tmp_path / "out")
    assert (tmp_path / "out" / "s").read_bytes() == b""


# Destinations that hold something


async def test_what_is_there_is_kept_and_replaced(daemon_address: str, context: Path, tmp_path: Path) -> None:
    """Also where the kinds differ; a link that leads out is replaced, and what it leads to stays."""
    tree, out, outside = context / "tree", tmp_path / "out", tmp_path / "outside"
    (tree / "d").mkdir()
    (tree / "d" / "f").write_text("new")
    (tree / "was-dir").write_text("new")
    (tree / "was-link").write_text("new")
    (tree / "link-to-dir").mkdir()
    (tree / "link-to-dir" / "f").write_text("new")
    outside.mkdir()
    (outside / "f").write_text("untouched")
    (out / "d").mkdir(parents=True)
    (out / "d" / "kept").write_text("mine")
    (out / "was-dir" / "sub").mkdir(parents=True)
    (out / "was-link").symlink_to(outside / "f")
    (out / "link-to-dir").symlink_to(outside)
    await export(daemon_address, context, out)
    assert names(out) == {b"d", b"d/f", b"d/kept", b"was-dir", b"was-link", b"link-to-dir", b"link-to-dir/f"}
    assert not (out / "was-link").is_symlink()
    assert not (out / "link-to-dir").is_symlink()
    assert (outside / "f").read_text() == "untouched"
    assert names(outside) == {b"f"}

    await export(daemon_address, context, out, attrs={"mode": "delete"})
    assert names(out) == names(tree)


async def test_a_platforms_directory_that_is_a_link(daemon_address: str, scratch: Path, tmp_path: Path) -> None:
    """As an earlier export of one platform may have left it."""
    out, outside = tmp_path / "out", tmp_path / "outside"
    outside.mkdir()
    out.mkdir()
    (out / "linux_arm64").symlink_to(outside)
    await export(daemon_address, scratch, out, platforms=["amd64", "arm64"])
    assert names(out) == {b"linux_amd64", b"linux_amd64/file", b"linux_arm64", b"linux_arm64/file"}
    assert not (out / "linux_arm64").is_symlink()
    assert os.listdir(outside) == []
    assert [(out / name).stat().st_mtime_ns for name in ("linux_amd64", "linux_arm64")] == [0, 0]


@pytest.mark.parametrize("existing", [False, True])
async def test_a_failed_platform_changes_nothing(
    daemon_address: str, base_images: Mapping[str, str], tmp_path: Path, existing: bool
) -> None:
    """The other platform's files have come by then."""
    (tmp_path / "Dockerfile").write_text(
        "FROM alpine AS base\nARG TARGETARCH\nRUN test $TARGETARCH = amd64 || { sleep 1; exit 1; }\n"
        "FROM scratch\nCOPY --from=base /bin/busybox /new\n"
    )
    out = tmp_path / "out"
    if existing:
        out.mkdir()
        (out / "old").write_text("old")
    with pytest.raises(SolveError):
        await export(daemon_address, tmp_path, out, platforms=["amd64", "arm64"], build_contexts=base_images)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["Dockerfile", *(["out"] if existing else [])]
    assert not existing or names(out) == {b"old"}


async def test_one_directory_for_two_platforms(daemon_address: str, scratch: Path, tmp_path: Path) -> None:
    """Where no two files are of one name; else it is an error, as it is for the daemon, and nothing is written."""
    (scratch / "Dockerfile").write_text("FROM scratch\nARG TARGETARCH\nCOPY file /common/$TARGETARCH\n")
    split = {"platform-split": "false"}
    await export(daemon_address, scratch, tmp_path / "out", attrs=split, platforms=["amd64", "arm64"])
    assert names(tmp_path / "out") == {b"common", b"common/amd64", b"common/arm64"}
    (scratch / "Dockerfile").write_text("FROM scratch\nCOPY file /\n")
    with pytest.raises(BuildKitError, match="another entry of this name"):
        await export(daemon_address, scratch, tmp_path / "none", attrs=split, platforms=["amd64", "arm64"])
    assert not (tmp_path / "none").exists()


async def test_delete_never_takes_the_root(daemon_address: str, scratch: Path) -> None:
    with pytest.raises(InvalidOption, match="the root of the file system"):
        await export(daemon_address, scratch, Path("/"), attrs={"mode": "delete"})


@pytest.mark.parametrize("output", ["type=local,dest=out", "type=oci,dest=out.tar", "type=oci,dest=out/"])
def test_an_output_inside_the_context(daemon_address: str, context: Path, tmp_path: Path, output: str) -> None:
    """Nothing of it is there while the context is read, so that a second build finds everything cached."""
    (context / "Dockerfile").write_text("FROM scratch\nCOPY . /\n")
    (context / ".dockerignore").write_text("out*\n")  # of the first build
    cli = CommandLine(address=daemon_address, docker_config=tmp_path / "docker")
    first, second = (cli("build", ".", "--progress", "plain", "-o", output, cwd=context) for _ in range(2))
    assert (first.code, second.code) == (0, 0), first.stderr + second.stderr
    assert "COPY . /" in first.stderr
    assert "CACHED" in second.stderr
    left = {path.name for path in context.iterdir()} - {"Dockerfile", ".dockerignore", "tree"}
    assert len(left) == 1


# What cannot be read


@pytest.fixture
def unprivileged(daemon_address: str, tmp_path: Path) -> Callable[..., Done]:
    """The command line as a process that permissions hold for, as they do for an ordinary user."""
    cli = CommandLine(address=daemon_address, docker_config=tmp_path / "docker")
    if not ROOT:
        return cli
    if shutil.which("setpriv") is None:
        pytest.skip("no setpriv to give up a part of root's rights with")
    rights = "-dac_override,-dac_read_search"
    command = ["setpriv", "--inh-caps", rights, "--bounding-set", rights, sys.executable, "-m", "buildkit_py"]

    def run(*args: str | Path) -> Done:
        done = subprocess.run(
            [*command, *args], env=cli.environment(), capture_output=True, text=True, timeout=60, check=False
        )
        return Done(code=done.returncode, out=done.stdout.encode(), stderr=done.stderr)

    return run


@pytest.mark.parametrize("progress", ["quiet", "plain"])
def test_an_unreadable_file_is_told(
    unprivileged: Callable[..., Done], context: Path, tmp_path: Path, progress: str
) -> None:
    """The protocol lets it arrive empty, as from every client; here the user is warned, once."""
    (context / "tree" / "secret").write_text("secret")
    (context / "tree" / "secret").chmod(0)
    (context / "tree" / "open").write_text("open")
    done = unprivileged("build", context, "--progress", progress, "-o", tmp_path / "out")
    assert (done.code, done.stdout) == (0, ""), done.stderr
    warning = "warning: directory 'context': tree/secret was sent empty: Permission denied"
    assert [line for line in done.stderr.splitlines() if "secret" in line] == [warning]
    assert done.stderr.splitlines()[-1] == warning
    assert (tmp_path / "out" / "secret").read_bytes() == b""
    assert (tmp_path / "out" / "open").read_bytes() == b"open"


def test_a_directory_that_cannot_be_listed(unprivileged: Callable[..., Done], context: Path, tmp_path: Path) -> None:
    """Ends the build, by name; not where .dockerignore leaves it out."""
    (context / "tree" / "closed").mkdir()
    (context / "tree" / "closed" / "f").write_text("")
    (context / "tree" / "open").write_text("open")
    (context / "tree" / "closed").chmod(0)
    try:
        done = unprivileged("build", context, "--progress", "quiet", "-o", tmp_path / "out")
        refused(done, 1, "cannot list tree/closed: Permission denied")
        assert not (tmp_path / "out").exists()
        (context / ".dockerignore").write_text("tree/closed\n")
        done = unprivileged("build", context, "--progress", "quiet", "-o", tmp_path / "out")
        assert done.code == 0, done.stderr
        assert names(tmp_path / "out") == {b"open"}
    finally:
        (context / "tree" / "closed").chmod(0o700)


def test_a_tree_too_deep_for_the_daemon(daemon_address: str, tmp_path: Path) -> None:
    """It can be listed here, and is nothing that a daemon has room for."""
    cli = CommandLine(address=daemon_address, docker_config=tmp_path / "docker")
    deep = tmp_path / "context"
    deep.mkdir()
    (deep / "Dockerfile").write_text("FROM scratch\nCOPY . /\n")
    handle = os.open(deep, os.O_RDONLY)
    try:
        for _ in range(30):
            os.mkdir(b"d" * 200, dir_fd=handle)
            below = os.open(b"d" * 200, os.O_RDONLY, dir_fd=handle)
            os.close(handle)
            handle = below
    finally:
        os.close(handle)
    done = cli("build", deep, "--progress", "quiet", "-o", "type=tar,dest=/dev/null")
    refused(done, 1, "file name too long")
    subprocess.run(["rm", "-r", deep], check=True)
