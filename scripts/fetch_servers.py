#!/usr/bin/env python3
"""Fetch the servers, emulators, peers and base files that demo, tests and benchmarks use.

    fetch_servers.py [GROUP ...]      groups: daemon registry emulators images peers compat, or all

Everything comes from Debian's packages, with apt's own checks of signatures. Nearly all of it is only unpacked,
below the prefix (``$BUILDKIT_PY_PREFIX``, else ``.cache/prefix`` of this checkout); what must be part of the system
(runc, iptables, qemu's binfmt handlers) is installed, for which root is needed. A group that is there already costs
nothing and asks no server. Exit code 1, with a line for each thing missing, when something could not be had.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
CACHE = REPOSITORY / ".cache"
PREFIX = Path(os.environ.get("BUILDKIT_PY_PREFIX") or CACHE / "prefix")
APT = CACHE / "apt"
BINFMT = Path("/proc/sys/fs/binfmt_misc")

ENGINE_SUITE = "forky"  # its docker.io needs no newer libc than Debian 12 has
COMPAT_SUITE = "trixie"  # docker.io 26.1.5, an older BuildKit
BASE_SUITE = "bookworm"
ARCHITECTURES = ("amd64", "arm64", "armhf")
EMULATORS = ("qemu-aarch64", "qemu-arm")
ALL = ("daemon", "registry", "emulators", "images", "peers")

_SECONDS = 600  # for one run of apt or dpkg; a hanging mirror must not hang the build


class Missing(Exception):
    """Something could not be had; the text says what and what to do."""


@dataclass(frozen=True)
class Package:
    """A package of one suite and architecture, unpacked below the prefix."""

    name: str
    suite: str
    architecture: str = "amd64"

    def __str__(self) -> str:
        return f"{self.name}:{self.architecture}"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("groups", nargs="*", metavar="GROUP", help=f"{', '.join((*ALL, 'compat'))}, or all")
    groups = parser.parse_args(argv).groups or ["all"]
    wanted = list(dict.fromkeys(ALL if group == "all" else (group,) for group in groups))
    names = list(dict.fromkeys(name for entry in wanted for name in entry))
    for name in names:
        if name not in GROUPS:
            parser.error(f"unknown group {name!r}")
    failures = 0
    for name in names:
        try:
            GROUPS[name]()
        except Missing as missing:
            print(f"missing: {name}: {missing}", file=sys.stderr)
            failures += 1
    return 1 if failures else 0


def fetch_daemon() -> None:
    """An engine whose embedded BuildKit builds; not needed where there is a daemon already."""
    if os.environ.get("BUILDKIT_HOST") or shutil.which("buildkitd"):
        return
    unpack("daemon", [Package("docker.io", ENGINE_SUITE), Package("containerd", ENGINE_SUITE)], PREFIX)
    install({"runc": "runc", "iptables": "iptables"})


def fetch_registry() -> None:
    """CNCF Distribution 2.8."""
    unpack("registry", [Package("docker-registry", BASE_SUITE)], PREFIX)


def fetch_emulators() -> None:
    """Handlers with the flags P and F, so that they work inside containers."""
    if not any((BINFMT / name).exists() for name in ("register", "status")):
        if os.geteuid() != 0:
            raise Missing(
                "binfmt_misc is not mounted; as root: mount -t binfmt_misc binfmt_misc " + str(BINFMT)
            )
        run(["mount", "-t", "binfmt_misc", "binfmt_misc", str(BINFMT)])
    if all((BINFMT / name).exists() for name in EMULATORS):
        return
    install({"qemu-aarch64-static": "qemu-user-static", "update-binfmts": "binfmt-support"})
    for name in EMULATORS:
        if not (BINFMT / name).exists():
            run(["update-binfmts", "--enable", name])
    absent = [name for name in EMULATORS if not (BINFMT / name).exists()]
    if absent:
        raise Missing(f"the kernel took no handler for {', '.join(absent)}")


def fetch_images() -> None:
    """What the stand-ins for the alpine and golang images are made of, one tree per architecture."""
    for architecture in ARCHITECTURES:
        tree = PREFIX / "images" / architecture
        names = ("busybox-static", "libc6", "libgcc-s1", "golang-1.19-go")
        packages = [Package(name, BASE_SUITE, architecture) for name in names]
        unpack(f"images-{architecture}", [*packages, Package("golang-1.19-src", BASE_SUITE)], tree)


def fetch_peers() -> None:
    """What results and speed are compared with."""
    unpack("peers", [Package("docker-buildx", ENGINE_SUITE), Package("docker-cli", ENGINE_SUITE)], PREFIX)
    install({"skopeo": "skopeo"})


def fetch_compat() -> None:
    """An older engine, in a prefix of its own."""
    packages = [Package("docker.io", COMPAT_SUITE), Package("containerd", COMPAT_SUITE)]
    unpack("compat", packages, PREFIX.with_name("prefix-compat"))
    install({"runc": "runc", "iptables": "iptables"})


GROUPS: dict[str, Callable[[], None]] = {
    "daemon": fetch_daemon,
    "registry": fetch_registry,
    "emulators": fetch_emulators,
    "images": fetch_images,
    "peers": fetch_peers,
    "compat": fetch_compat,
}


def unpack(group: str, packages: Sequence[Package], root: Path) -> None:
    """Download packages and unpack them below root, unless the group's stamp says that they are there."""
    stamp = CACHE / "stamps" / f"{group}.json"
    content = json.dumps(
        {"root": str(root), "packages": [f"{package} {package.suite}" for package in packages]}
    )
    if stamp.is_file() and stamp.read_text() == content and root.is_dir():
        return
    for tool in ("apt-get", "dpkg-deb"):
        if shutil.which(tool) is None:
            raise Missing(
                f"{tool} is not here: this needs Debian; on another system install the servers yourself"
            )
    print(f"fetching {group}: {', '.join(str(package) for package in packages)}", file=sys.stderr)
    apt_update()
    archives = APT / "archives" / group
    archives.mkdir(parents=True, exist_ok=True)
    for suite in dict.fromkeys(package.suite for package in packages):
        names = [f"{package}/{suite}" for package in packages if package.suite == suite]
        apt(["download", *names], cwd=archives)
    root.mkdir(parents=True, exist_ok=True)
    for archive in sorted(archives.glob("*.deb")):
        run(["dpkg-deb", "-x", str(archive), str(root)])
    shutil.rmtree(archives)
    stamp.parent.mkdir(parents=True, exist_ok=True)
    fresh = stamp.with_suffix(".new")
    fresh.write_text(content)
    fresh.replace(stamp)


def install(packages: dict[str, str]) -> None:
    """Install system packages whose programs are not on the PATH: {program: package}."""
    path = os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/sbin", "/usr/bin"))
    absent = [package for program, package in packages.items() if shutil.which(program, path=path) is None]
    if not absent:
        return
    if shutil.which("apt-get") is None or os.geteuid() != 0:
        raise Missing(f"install {' '.join(absent)} (on Debian, as root: apt-get install {' '.join(absent)})")
    print(f"installing {', '.join(absent)}", file=sys.stderr)
    options = ["-q", "-y", "--no-install-recommends", "-o", f"DPkg::Lock::Timeout={_SECONDS}"]
    try:
        run(["apt-get", "install", *options, *absent])
    except Missing:
        # The lists of a fresh machine are empty or old.
        run(["apt-get", "update", "-q"])
        run(["apt-get", "install", *options, *absent])


@functools.cache
def apt_update() -> None:
    """Read the lists of the suites into folders of our own, once per run: old lists name packages that are gone."""
    for folder in ("lists/partial", "cache/archives/partial", "etc"):
        (APT / folder).mkdir(parents=True, exist_ok=True)
    (APT / "status").touch()
    keyring = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
    if not keyring.is_file():
        raise Missing("no Debian archive keyring on this machine: install debian-archive-keyring")
    site = mirror()
    base = ",".join(ARCHITECTURES)
    (APT / "etc" / "sources.list").write_text(
        f"deb [arch={base} signed-by={keyring}] {site} {BASE_SUITE} main\n"
        f"deb [arch=amd64 signed-by={keyring}] {site} {ENGINE_SUITE} main\n"
        f"deb [arch=amd64 signed-by={keyring}] {site} {COMPAT_SUITE} main\n"
    )
    apt(["update", "-q"], cwd=APT)


def mirror() -> str:
    """The mirror that this machine's own apt uses for Debian itself."""
    listed = run(["apt-get", "indextargets", "--format", "$(SITE) $(ORIGIN)", "Created-By: Packages"])
    for line in listed.splitlines():
        site, _, origin = line.partition(" ")
        if origin.strip() == "Debian":
            return site
    # Before the first update no origin is known: take what the machine is set to for its own release.
    listed = run(["apt-get", "indextargets", "--format", "$(SITE) $(RELEASE)", "Created-By: Packages"])
    for line in listed.splitlines():
        site, _, release = line.partition(" ")
        if release.strip() == BASE_SUITE:
            return site
    raise Missing("apt knows no Debian mirror on this machine")


def apt(arguments: Sequence[str], *, cwd: Path) -> str:
    """apt-get with lists, cache and sources of our own; the machine's are neither used nor changed."""
    settings = {
        "Dir::State": APT,
        "Dir::State::lists": APT / "lists",
        "Dir::State::status": APT / "status",
        "Dir::Cache": APT / "cache",
        "Dir::Etc::sourcelist": APT / "etc" / "sources.list",
        "Dir::Etc::sourceparts": "/dev/null",
        "Dir::Etc::preferencesparts": "/dev/null",
        "APT::Architecture": "amd64",
        "APT::Sandbox::User": "",
        "Acquire::Languages": "none",
        "Acquire::Retries": 3,
    }
    options = [part for key, value in settings.items() for part in ("-o", f"{key}={value}")]
    for architecture in ARCHITECTURES:
        options += ["-o", f"APT::Architectures::={architecture}"]
    return run(["apt-get", *options, *arguments], cwd=cwd)


def run(command: Sequence[str], *, cwd: Path | None = None) -> str:
    """Output of a command; Missing with its last lines when it fails."""
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C.UTF-8"}
    try:
        done = subprocess.run(
            command,
            cwd=cwd,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            check=False,
        )
    except FileNotFoundError:
        raise Missing(f"{command[0]} is not here") from None
    except subprocess.TimeoutExpired:
        raise Missing(f"{command[0]} did not end within {_SECONDS} seconds") from None
    if done.returncode:
        tail = " | ".join((done.stderr or done.stdout).strip().splitlines()[-3:])
        raise Missing(f"{' '.join(command[:1])} {command[-1]}: exit code {done.returncode}: {tail}")
    return done.stdout


if __name__ == "__main__":
    sys.exit(main())
