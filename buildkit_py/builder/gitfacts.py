"""What git knows of a context: commit and remote, for the provenance and the labels of its image.

Source: docker/buildx, build/git.go and util/gitutil.
"""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from urllib.parse import urlsplit

from buildkit_py.builder.request import BuildRequest

_LOG = logging.getLogger(__name__)

_SECONDS = 10.0
# Neither of them may have a program of the repository's choice run.
_SETTINGS = ("-c", "log.showSignature=false", "-c", "core.fsmonitor=false")

REVISION_LABEL = "org.opencontainers.image.revision"
SOURCE_LABEL = "org.opencontainers.image.source"
ENTRYPOINT_LABEL = "com.docker.image.source.entrypoint"


@dataclass(frozen=True, slots=True, kw_only=True)
class GitOptions:
    """What to ask git for."""

    provenance: bool = True
    """True tells the daemon, which writes it into the provenance."""
    labels: bool = False
    """True labels the image with it; these labels go before others of the same names."""
    check_dirty: bool = False
    """True marks a commit with ``-dirty`` when the tree has something else than the commit, ignored files included."""


def with_git_facts(
    request: BuildRequest, directories: Mapping[str, Path], options: GitOptions = GitOptions()
) -> BuildRequest:
    """The request with what git says of its context; as it is where that is no directory of a git work tree.

    directories are those of the request's plan, by name. Runs git, which is not waited for without end; where it
    fails there is less to say, and a warning if the context itself is a repository. Passwords in the remote's URL are
    left out.
    """
    context = request.context
    if "context" not in directories or not isinstance(context, (str, os.PathLike)):
        return request
    if not (options.provenance or options.labels):
        return request
    where = Path(os.path.abspath(os.fspath(context)))  # noqa: PTH100 - links stay, as they are in a Dockerfile's path
    if not _is_below_repository(where):
        return request
    git = _Git(where)
    root = git.ask("rev-parse", "--show-toplevel") if git.ask("rev-parse", "--is-inside-work-tree") == "true" else ""
    if not root:
        if (where / ".git").is_dir():
            _LOG.warning("the provenance has no commit of %s: git is not there, or does not trust the directory", where)
        return request
    revision = git.ask("rev-parse", "--verify", "--quiet", "HEAD^{commit}")
    if revision and options.check_dirty and git.is_dirty():
        revision += "-dirty"
    found = {"revision": revision, "source": _remote(git)}
    vcs = {key: value for key, value in found.items() if value} if options.provenance else {}
    labels: dict[str, str] = {}
    if options.labels:
        named = {REVISION_LABEL: revision, SOURCE_LABEL: found["source"]}
        dockerfile = where / "Dockerfile" if request.dockerfile is None else request.dockerfile
        if isinstance(dockerfile, (str, os.PathLike)):
            named[ENTRYPOINT_LABEL] = _below(root, os.path.abspath(os.fspath(dockerfile)))  # noqa: PTH100
        labels = {key: value for key, value in named.items() if value}
    if options.provenance:
        places = {name: _below(root, os.path.realpath(path)) for name, path in directories.items()}
        vcs |= {f"localdir:{name}": place for name, place in places.items() if place}
    return replace(request, vcs=MappingProxyType(vcs), labels=MappingProxyType({**request.labels, **labels}))


class _Git:
    """Runs git in one directory."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._program = shutil.which("git")

    def ask(self, *words: str) -> str:
        """The first line that it prints; "" if it fails."""
        printed = self._run(*words)
        return "" if printed is None else printed.partition("\n")[0].strip()

    def is_dirty(self) -> bool:
        printed = self._run("status", "--porcelain", "--ignored")
        return printed is None or printed.strip() != ""

    def _run(self, *words: str) -> str | None:
        if self._program is None:
            return None
        try:
            done = subprocess.run(
                [self._program, *_SETTINGS, *words],
                cwd=self._directory,
                env={**os.environ, "LC_ALL": "C"},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                check=False,
                timeout=_SECONDS,
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.decode(errors="replace") if done.returncode == 0 else None


def _is_below_repository(directory: Path) -> bool:
    """Whether it is worth to ask: most programs that build have nothing of git around them."""
    if "GIT_DIR" in os.environ:
        return True
    real = directory.resolve()
    return any((parent / ".git").exists() for parent in (real, *real.parents))


def _remote(git: _Git) -> str:
    """URL of the remote that the branch follows, else of origin, else of upstream."""
    branch = git.ask("symbolic-ref", "-q", "HEAD")
    followed = git.ask("for-each-ref", "--format=%(upstream:remotename)", branch) if branch else ""
    for name in (followed, "origin", "upstream"):
        if name and (url := git.ask("remote", "get-url", name)):
            return _without_credentials(url)
    return ""


def _without_credentials(url: str) -> str:
    parts = urlsplit(url) if "://" in url else None
    if parts is None or "@" not in parts.netloc:
        return url
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def _below(root: str, path: str) -> str:
    """Where it is from the root; "" for what is elsewhere."""
    relative = os.path.relpath(path, root)
    return "" if relative.startswith("..") else relative
