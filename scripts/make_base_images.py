#!/usr/bin/env python3
"""Make build contexts of stand-ins for the images alpine and golang:alpine, where there is no hub to pull from.

    make_base_images.py        writes .cache/images/alpine and .cache/images/golang, and prints where they are

Needs what ``fetch_servers.py images`` unpacks. Each context builds for linux/amd64, linux/arm64 and linux/arm/v7:
Debian's static busybox with all its applets and, for golang, Debian's Go 1.19 with the libc that it needs.
Nothing is done when they are there already.
"""

from __future__ import annotations

import fcntl
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
CACHE = REPOSITORY / ".cache"
PREFIX = Path(os.environ.get("BUILDKIT_PY_PREFIX") or CACHE / "prefix")
IMAGES = CACHE / "images"

TREES = {"amd64": "amd64", "arm64": "arm64", "arm": "armhf"}
"""Debian's name of an architecture by BuildKit's TARGETARCH."""

_MACHINES = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "armhf"}
_GO = "usr/lib/go-1.19"
_GO_SHARE = "usr/share/go-1.19"
_TOOLS = frozenset({"asm", "compile", "link", "buildid"})  # what go build calls where cgo is off
# Of the compiled library only what nearly every program imports; go build compiles the rest from source when asked.
_COMPILED = {
    *("bufio", "bytes", "context", "errors", "flag", "fmt", "internal", "io", "log", "math", "os", "path"),
    *("reflect", "runtime", "sort", "strconv", "strings", "sync", "syscall", "time", "unicode"),
}
_LIBRARIES = ("ld-linux*", "libc.so.*", "libgcc_s.so.*", "libresolv.so.*", "libpthread.so.*", "libdl.so.*")

_ALPINE = """\
FROM scratch
ARG TARGETARCH
COPY rootfs/${TARGETARCH}/ /
ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
CMD ["/bin/sh"]
"""
_GOLANG = f"""\
FROM scratch
ARG TARGETARCH
COPY common/ /
COPY rootfs/${{TARGETARCH}}/ /
ENV PATH=/go/bin:/{_GO}/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \\
    GOROOT=/{_GO} GOPATH=/go CGO_ENABLED=0 GOFLAGS=-buildvcs=false
WORKDIR /go
CMD ["/bin/sh"]
"""
_FILES = {
    "etc/passwd": "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n",
    "etc/group": "root:x:0:\nnogroup:x:65534:\n",
}
_FOLDERS = {"tmp": 0o1777, "var/tmp": 0o1777, "root": 0o700, "etc": 0o755, "home": 0o755, "usr/local/bin": 0o755}


def main() -> int:
    absent = [tree for tree in TREES.values() if not (PREFIX / "images" / tree / "bin" / "busybox").is_file()]
    if absent:
        print(
            f"missing: images: nothing unpacked for {', '.join(absent)} in {PREFIX / 'images'}:"
            " run scripts/fetch_servers.py images",
            file=sys.stderr,
        )
        return 1
    # A symbolic link may lead to a larger disk, or to what several checkouts share: that is where it all happens.
    place = IMAGES.resolve()
    place.parent.mkdir(parents=True, exist_ok=True)
    with place.with_name(f"{place.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not is_current():
            make(place)
    print(IMAGES / "alpine")
    print(IMAGES / "golang")
    return 0


def is_current() -> bool:
    """Whether the contexts were made by this script from what is unpacked now."""
    try:
        return (IMAGES / "stamp.json").read_text() == stamp()
    except OSError:
        return False


def stamp() -> str:
    busyboxes = [(PREFIX / "images" / tree / "bin" / "busybox").stat() for tree in TREES.values()]
    return json.dumps(
        {
            "script": Path(__file__).read_text(),
            "from": str(PREFIX),
            "inodes": [[stat.st_ino, stat.st_ctime_ns] for stat in busyboxes],
        }
    )


def make(place: Path) -> None:
    """Make both contexts aside and put them in place at once."""
    print("making base images", file=sys.stderr)
    # Readable by all whatever the caller's umask: in the images these are the system's directories.
    os.umask(0o022)
    fresh = place.with_name(f"{place.name}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    applets = list_applets()
    golang = fresh / "golang"
    for architecture, tree in TREES.items():
        source = PREFIX / "images" / tree
        make_busybox(fresh / "alpine" / "rootfs" / architecture, source, applets)
        make_busybox(golang / "rootfs" / architecture, source, applets)
        make_go(golang / "rootfs" / architecture, source)
    source = PREFIX / "images" / TREES["amd64"] / _GO_SHARE
    # The sources are the same for all architectures: they cross to the daemon once.
    link_tree(source, golang / "common" / _GO_SHARE, keep_source)
    (fresh / "alpine" / "Dockerfile").write_text(_ALPINE)
    (golang / "Dockerfile").write_text(_GOLANG)
    (fresh / "stamp.json").write_text(stamp())
    old = place.with_name(f"{place.name}.old")
    if old.is_symlink():  # left by earlier versions of this script
        old.unlink()
    shutil.rmtree(old, ignore_errors=True)
    if place.exists():
        place.rename(old)
    fresh.rename(place)
    shutil.rmtree(old, ignore_errors=True)


def list_applets() -> list[str]:
    """Paths of busybox's applets, as the one that runs here tells; all have the same."""
    tree = _MACHINES.get(platform.machine(), "amd64")
    command = [str(PREFIX / "images" / tree / "bin" / "busybox"), "--list-full"]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=30).stdout.split()


def make_busybox(root: Path, source: Path, applets: list[str]) -> None:
    """A root directory with busybox under all its names, and what programs expect of a system."""
    for name, mode in _FOLDERS.items():
        (root / name).mkdir(parents=True, exist_ok=True)
        (root / name).chmod(mode)
    for name, text in _FILES.items():
        (root / name).write_text(text)
    link_tree(source / "bin", root / "bin", lambda path: path.name == "busybox")
    for applet in applets:
        path = root / applet
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            path.symlink_to("/bin/busybox")


def make_go(root: Path, source: Path) -> None:
    """Go without what ``go build`` does not use, and the libc of its own tools."""
    link_tree(source / _GO, root / _GO, keep_go)
    (root / "go").mkdir()
    for folder in ("lib", "lib64"):
        if (source / folder).is_dir():
            link_tree(source / folder, root / folder, keep_library)


def keep_go(path: Path) -> bool:
    """Of the tree of one architecture: the go command, the tools that it calls, the compiled library."""
    match path.parts:
        case ("bin", *rest):
            return rest in ([], ["go"])
        case ("pkg", "tool", _, name):
            return name in _TOOLS
        case ("pkg", _, name, *_):
            return name.removesuffix(".a") in _COMPILED or path.parts[1] in {"tool", "include"}
        case (name, *_):
            return name in {"pkg", "src", "VERSION"}
        case _:
            return False


def keep_source(path: Path) -> bool:
    """Of what all architectures share: headers for assembly, and the library's sources without its tests."""
    if path.parts[0] != "src":
        return path.parts[0] == "pkg"
    return path.parts[1:2] != ("cmd",) and path.name != "testdata" and not path.name.endswith("_test.go")


def keep_library(path: Path) -> bool:
    is_folder = "." not in path.name
    return is_folder or any(path.match(pattern) for pattern in _LIBRARIES)


def link_tree(source: Path, target: Path, keep: Callable[[Path], bool]) -> None:
    """The tree's directories and symlinks, and hard links to its files: no space, no time.

    keep is asked about every path, relative to source; below a directory that is not kept nothing is.
    """
    target.mkdir(parents=True, exist_ok=True)
    for entry in sorted(source.rglob("*")):
        relative = entry.relative_to(source)
        if not all(keep(part) for part in (relative, *relative.parents[:-1])):
            continue
        place = target / relative
        if entry.is_symlink():
            place.symlink_to(entry.readlink())
        elif entry.is_dir():
            place.mkdir(exist_ok=True)
        else:
            try:
                os.link(entry, place)
            except OSError:  # another file system, or one without links
                shutil.copy2(entry, place)


if __name__ == "__main__":
    sys.exit(main())
