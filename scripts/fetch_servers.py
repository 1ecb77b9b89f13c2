#!/usr/bin/env python3
"""Fetch the servers, emulators, peers and base files that demo, tests and benchmarks use.

    fetch_servers.py [GROUP ...]      groups: daemon registry ssh emulators images peers compat caches, or all
    fetch_servers.py --check ...      only says for which of them root is needed and not there

Nearly everything comes from Debian's packages, with apt's own checks of signatures; the services for caches come from
npm. all leaves compat out, and tries caches where a daemon of one's own could use them and npm is there. Nearly all of
it is only unpacked, below the prefix (``$BUILDKIT_PY_PREFIX``, else ``.cache/prefix`` of this checkout); what must be
part of the system (runc, iptables, qemu's binfmt handlers) is installed, for which root is needed. A group that is
there already costs nothing and asks no server. Exit code 1, with a line for each thing missing, when something could
not be had.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import functools
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
CACHE = REPOSITORY / ".cache"
PREFIX = Path(os.environ.get("BUILDKIT_PY_PREFIX") or CACHE / "prefix")
APT = CACHE / "apt"
BINFMT = Path("/proc/sys/fs/binfmt_misc")
SYSTEM_PATH = os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/sbin", "/usr/bin"))

ENGINE_SUITE = "forky"  # its docker.io needs no newer libc than Debian 12 has
COMPAT_SUITE = "trixie"  # docker.io 26.1.5, an older BuildKit
BASE_SUITE = "bookworm"  # its docker.io is 20.10.24, with a BuildKit of 2021
DEBIAN_SUITES = {"bookworm", "trixie", "forky", "sid", "oldstable", "stable", "testing", "unstable"}
ARCHITECTURES = ("amd64", "arm64", "armhf")
# Of this machine; what runs here is fetched for it.
NATIVE = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "armhf"}.get(platform.machine(), "amd64")
EMULATORS = {"amd64": "qemu-x86_64", "arm64": "qemu-aarch64", "armhf": "qemu-arm"}
ALL = ("daemon", "registry", "ssh", "emulators", "images", "peers")

# Stand-ins for S3 and Azure's blob storage, by which caches of daemons there are shown.
CACHE_SERVICES = ("s3rver@3.7.1", "azurite@3.35.0")

_SECONDS = 600  # for one run of apt or dpkg; a hanging mirror must not hang the build


class Missing(Exception):
    """Something could not be had; the text says what and what to do."""


@dataclass(frozen=True)
class Package:
    """A package of one suite and architecture, unpacked below the prefix."""

    name: str
    suite: str
    architecture: str = NATIVE

    def __str__(self) -> str:
        return f"{self.name}:{self.architecture}"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("groups", nargs="*", metavar="GROUP", help=f"{', '.join((*ALL, 'compat', 'caches'))}, or all")
    parser.add_argument("--check", action="store_true", help="only say what needs root, before anything is downloaded")
    args = parser.parse_args(argv)
    groups = args.groups or ["all"]
    wanted = list(dict.fromkeys(ALL if group == "all" else (group,) for group in groups))
    names = list(dict.fromkeys(name for entry in wanted for name in entry))
    tried = (
        {"caches"} - set(names) if "all" in groups and has_standalone_daemon() and shutil.which("npm") else set[str]()
    )
    names += tried
    for name in names:
        if name not in GROUPS:
            parser.error(f"unknown group {name!r}")
    failures = 0
    try:
        with contextlib.nullcontext() if args.check else exclusive():
            for name in names:
                try:
                    check_root(name)
                    if not args.check:
                        GROUPS[name]()
                except Missing as missing:
                    print(f"missing: {name}: {missing}", file=sys.stderr)
                    failures += name not in tried
    except OSError as error:
        print(f"error: cannot write {error.filename}: {error.strerror}", file=sys.stderr)
        return 1
    return 1 if failures else 0


@contextlib.contextmanager
def exclusive() -> Generator[None]:
    """Wait for another run on this checkout: both would write the same files."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "fetch.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("waiting for another fetch_servers.py", file=sys.stderr)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def check_root(group: str) -> None:
    """Raise Missing where nothing that could be downloaded helps a user who is not root.

    A daemon of $BUILDKIT_HOST needs neither: emulators are a matter of the machine that it is on.
    """
    if os.geteuid() == 0 or os.environ.get("BUILDKIT_HOST"):
        return
    if group == "daemon":
        raise Missing("a private daemon needs root to start: run this as root, or set BUILDKIT_HOST to another daemon")
    if group == "emulators" and (names := absent_emulators()):
        raise Missing(f"no emulator for {', '.join(names)}: run this as root, or docker run tonistiigi/binfmt")


def has_standalone_daemon() -> bool:
    """Whether tests find a daemon without one of ours. Caches in S3 and Azure are nothing that an engine has."""
    return bool(os.environ.get("BUILDKIT_HOST") or shutil.which("buildkitd"))


def fetch_daemon() -> None:
    """An engine whose embedded BuildKit builds; not needed where there is a daemon already."""
    if has_standalone_daemon():
        return
    packages = [Package("docker.io", ENGINE_SUITE), Package("containerd", ENGINE_SUITE)]
    unpack("daemon", packages, PREFIX, programs=("usr/sbin/dockerd", "usr/bin/containerd"))
    install({"runc": "runc", "iptables": "iptables"})


def fetch_registry() -> None:
    """CNCF Distribution 2.8."""
    if shutil.which("docker-registry") is None:
        packages = [Package("docker-registry", BASE_SUITE)]
        unpack("registry", packages, PREFIX, programs=("usr/bin/docker-registry",))


def fetch_ssh() -> None:
    """OpenSSH's server, for repositories that are reached over ssh, and its client, which the daemon runs."""
    if shutil.which("sshd", path=SYSTEM_PATH) is None:
        packages = [Package(name, BASE_SUITE) for name in ("openssh-server", "libwrap0")]
        unpack("ssh", packages, PREFIX)
    install({"ssh": "openssh-client", "git": "git"})


def fetch_emulators() -> None:
    """Handlers for the platforms that this machine does not run itself, with the flag F: containers have those too."""
    wanted = absent_emulators()
    if not wanted or os.geteuid() != 0:
        return
    if not (BINFMT / "register").exists():
        run(["mount", "-t", "binfmt_misc", "binfmt_misc", str(BINFMT)])
    install({"qemu-aarch64-static": "qemu-user-static", "update-binfmts": "binfmt-support"})
    for name in wanted:
        # A handler that is there but of no use in containers is replaced.
        run(["update-binfmts", "--disable", name], may_fail=True)
        run(["update-binfmts", "--enable", name], may_fail=True)
    if absent := absent_emulators():
        raise Missing(f"the kernel took no handler for {', '.join(absent)}")


def absent_emulators() -> list[str]:
    """Of the platforms that this machine does not run itself, those without a handler."""
    return [name for arch, name in EMULATORS.items() if arch != NATIVE and not is_enabled(name)]


def is_enabled(name: str) -> bool:
    """Whether the kernel has the handler, with the flag F: it opened the emulator when it was registered."""
    try:
        lines = (BINFMT / name).read_text().splitlines()
    except OSError:
        return False
    return "enabled" in lines and any(line.startswith("flags:") and "F" in line[6:] for line in lines)


def fetch_images() -> None:
    """What the stand-ins for the alpine and golang images are made of, one tree per architecture."""
    for architecture in ARCHITECTURES:
        names = ("busybox-static", "libc6", "libgcc-s1", "golang-1.19-go")
        packages = [Package(name, BASE_SUITE, architecture) for name in names]
        if architecture == ARCHITECTURES[0]:  # the sources are the same for all
            packages.append(Package("golang-1.19-src", BASE_SUITE, architecture))
        unpack("images", packages, PREFIX / "images" / architecture)


def fetch_peers() -> None:
    """What results and speed are compared with."""
    packages = [Package(name, ENGINE_SUITE) for name in ("docker-buildx", "docker-cli", "oras")]
    unpack("peers", packages, PREFIX, programs=("usr/bin/docker",))
    install({"skopeo": "skopeo"})


def fetch_compat() -> None:
    """An older engine and a very old one, each in a prefix of its own."""
    for name, suite in (("compat", COMPAT_SUITE), ("ancient", BASE_SUITE)):
        packages = [Package("docker.io", suite), Package("containerd", suite)]
        root = PREFIX.with_name(f"{PREFIX.name}-{name}")
        unpack(name, packages, root, programs=("usr/sbin/dockerd", "usr/bin/containerd"))
    install({"runc": "runc", "iptables": "iptables"})


def fetch_caches() -> None:
    """Services that daemons can keep caches in; some 200 MB, of which tests say by name when they lack them."""
    folder = PREFIX / "caches"
    stamp = PREFIX / ".stamps" / "caches.json"
    with contextlib.suppress(OSError, ValueError):
        if json.loads(stamp.read_text()) == list(CACHE_SERVICES):
            return
    if shutil.which("npm") is None:
        raise Missing("npm is not here: install Node.js (on Debian: apt-get install npm)")
    print(f"fetching caches: {', '.join(CACHE_SERVICES)}", file=sys.stderr)
    stamp.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".new-", dir=PREFIX) as name:
        # Nothing of these packages has to run in order to be installed.
        quiet = ["--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]
        run(["npm", "install", "--prefix", name, *quiet, *CACHE_SERVICES])
        for program in ("s3rver", "azurite-blob"):
            run([str(Path(name, "node_modules", ".bin", program)), "--version"])
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        for entry in Path(name).iterdir():
            entry.replace(folder / entry.name)
        fresh = Path(name, "stamp")
        fresh.write_text(json.dumps(list(CACHE_SERVICES)) + "\n")
        fresh.replace(stamp)


GROUPS: dict[str, Callable[[], None]] = {
    "daemon": fetch_daemon,
    "registry": fetch_registry,
    "ssh": fetch_ssh,
    "emulators": fetch_emulators,
    "images": fetch_images,
    "peers": fetch_peers,
    "compat": fetch_compat,
    "caches": fetch_caches,
}


def unpack(group: str, packages: Sequence[Package], root: Path, *, programs: Sequence[str] = ()) -> None:
    """Download packages and unpack them below root, unless the group's stamp there says that this was done.

    programs are paths below root that must run here afterwards: a newer suite may need a newer libc.
    """
    stamp = root / ".stamps" / f"{group}.json"
    wanted = [f"{package} {package.suite}" for package in packages]
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        if json.loads(stamp.read_text())["wanted"] == wanted:
            return
    for tool in ("apt-get", "dpkg-deb"):
        if shutil.which(tool) is None:
            raise Missing(f"{tool} is not here: not Debian: set BUILDKIT_HOST, and put docker-registry on the PATH")
    print(f"fetching {group}: {', '.join(str(package) for package in packages)}", file=sys.stderr)
    apt_update()
    stamp.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".new-", dir=root) as folder:
        archives, tree = Path(folder, "archives"), Path(folder, "tree")
        archives.mkdir()
        apt(["download", *(f"{package}/{package.suite}" for package in packages)], cwd=archives)
        versions: list[str] = []
        for archive in sorted(archives.glob("*.deb")):
            run(["dpkg-deb", "-x", str(archive), str(tree)])
            versions.append(" ".join(run(["dpkg-deb", "--show", str(archive)]).split()))
        for program in programs:
            run([str(tree / program), "--version"])
        move_into(tree, root)
        fresh = Path(folder, "stamp")
        fresh.write_text(json.dumps({"wanted": wanted, "versions": versions}, indent=2) + "\n")
        fresh.replace(stamp)


def move_into(tree: Path, root: Path) -> None:
    """Move a tree's files to the same places below root, each by one rename: a server may run from there."""
    for entry in sorted(tree.rglob("*")):
        place = root / entry.relative_to(tree)
        if entry.is_dir() and not entry.is_symlink():
            place.mkdir(exist_ok=True)
            place.chmod(0o755)
        else:
            entry.replace(place)


def install(packages: dict[str, str]) -> None:
    """Install system packages whose programs are not on the PATH: {program: package}."""
    absent = [package for program, package in packages.items() if shutil.which(program, path=SYSTEM_PATH) is None]
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
        for last in (False, False, True):
            with contextlib.nullcontext() if last else contextlib.suppress(Missing):
                run(["apt-get", "update", "-q"])
                break
            time.sleep(5)  # another apt may hold the lock of the lists, for which no option waits
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
    base = ",".join(dict.fromkeys((*ARCHITECTURES, NATIVE)))
    sources = APT / "etc" / "sources.list"
    sources.touch(mode=0o600)  # the mirror's address may hold a password
    sources.write_text(
        f"deb [arch={base} signed-by={keyring}] {site} {BASE_SUITE} main\n"
        f"deb [arch={NATIVE} signed-by={keyring}] {site} {ENGINE_SUITE} main\n"
        f"deb [arch={NATIVE} signed-by={keyring}] {site} {COMPAT_SUITE} main\n"
    )
    # Without the option, lists that cannot be had are a warning, and the packages then seem not to exist.
    apt(["update", "-q", "-o", "APT::Update::Error-Mode=any"], cwd=APT)


def mirror() -> str:
    """The mirror that this machine's own apt uses for Debian itself."""
    listed = run(["apt-get", "indextargets", "--format", "$(SITE) $(ORIGIN)", "Created-By: Packages"])
    for line in listed.splitlines():
        site, _, origin = line.partition(" ")
        if origin.strip() == "Debian":
            return site
    # Before the first update apt lists no index: ask what it would download. Debian's own archive has the plain
    # name of a release as its suite; those of security fixes and others have more to it.
    for uri in re.findall(r"^'([^']+)'", run(["apt-get", "update", "--print-uris"]), re.MULTILINE):
        site, found, suite = uri.removesuffix("/InRelease").partition("/dists/")
        if found and suite in DEBIAN_SUITES:
            return str(site)
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
        "APT::Architecture": NATIVE,
        "APT::Sandbox::User": "",
        "Acquire::Languages": "none",
        "Acquire::Retries": 3,
    }
    options = [part for key, value in settings.items() for part in ("-o", f"{key}={value}")]
    for architecture in ARCHITECTURES:
        options += ["-o", f"APT::Architectures::={architecture}"]
    return run(["apt-get", *options, *arguments], cwd=cwd)


def run(command: Sequence[str], *, cwd: Path | None = None, may_fail: bool = False) -> str:
    """Output of a command; Missing with its last lines when it fails, unless it may."""
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
    if done.returncode and not may_fail:
        raise Missing(f"{describe(command)}: exit code {done.returncode}: {reason(done.stderr or done.stdout)}")
    return done.stdout


def describe(command: Sequence[str]) -> str:
    """A command without its options."""
    skipped = {index + 1 for index, word in enumerate(command) if word == "-o"}
    words = [word for index, word in enumerate(command) if index not in skipped and not word.startswith("-")]
    return " ".join([Path(words[0]).name, *words[1:]])


def reason(output: str) -> str:
    """The lines that matter of what a failed program printed, without passwords of mirrors."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith(("E:", "Err:"))] or lines
    text = re.sub(r"//[^/@\s]*@", "//", " | ".join(errors[-2:]))
    network = ("Could not resolve", "Temporary failure", "Could not connect", "Failed to fetch", "Connection")
    if any(word in output for word in network):
        text += " (is the network, and the mirror of this machine's apt, within reach?)"
    return text


if __name__ == "__main__":
    sys.exit(main())
