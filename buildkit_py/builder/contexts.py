"""Where a Dockerfile build takes its files from: the context, the Dockerfile, and contexts by name."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, TypeAlias, TypeGuard
from urllib.parse import urlsplit

from buildkit_py.errors import InvalidOption, InvalidReference
from buildkit_py.reference import Reference

if TYPE_CHECKING:
    from buildkit_py.session.upload import Readable, Replay

_URL = re.compile(r"(?:https?|git|ssh)://|[A-Za-z0-9_-]+@[A-Za-z0-9.-]+:|github\.com/")
_GIT_SSH = re.compile(r"ssh://|(?:git|[A-Za-z0-9_-]+)@[A-Za-z0-9.-]+:")
_IMAGE = "docker-image://"
_LAYOUT = "oci-layout://"
_GITHUB = "github.com/"
_MISSING = (errno.ENOENT, errno.ENOTDIR)

Context: TypeAlias = "str | os.PathLike[str] | bytes | Readable | Replay | None"
DockerfileSource: TypeAlias = "str | os.PathLike[str] | bytes | Readable | None"


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientSources:
    """What the session serves besides the directories of a build."""

    files: Mapping[str, Mapping[str, bytes]] = field(default_factory=lambda: MappingProxyType({}))
    """Directories that exist in memory alone, by the name that the daemon asks for: content by path."""
    uploads: Mapping[str, Replay] = field(default_factory=lambda: MappingProxyType({}))
    """Streams by the URL that the daemon reads."""
    layouts: Mapping[str, Path] = field(default_factory=lambda: MappingProxyType({}))
    """OCI layouts, directories or tar archives, by the id of their content store."""


@dataclass(slots=True)
class DockerfileSources:
    """What a Dockerfile build is told of its files, and what must be served for it."""

    attrs: dict[str, str] = field(default_factory=dict[str, str])
    """Attributes of the frontend."""
    directories: dict[str, Path] = field(default_factory=dict[str, Path])
    files: dict[str, Mapping[str, bytes]] = field(default_factory=dict[str, Mapping[str, bytes]])
    uploads: dict[str, Replay] = field(default_factory=dict[str, "Replay"])
    layouts: dict[str, Path] = field(default_factory=dict[str, Path])
    inputs: dict[str, bytes] = field(default_factory=dict[str, bytes])
    """Definitions that the frontend takes for named contexts."""

    def served(self) -> ClientSources:
        """All but the directories."""
        return ClientSources(
            files=MappingProxyType(self.files),
            uploads=MappingProxyType(self.uploads),
            layouts=MappingProxyType(self.layouts),
        )


def plan_sources(context: Context, dockerfile: DockerfileSource, named: Mapping[str, str]) -> DockerfileSources:
    """Check where all files come from; raise InvalidOption for the first that does not exist or makes no sense.

    Streams must have been opened: context is a path, a URL, an archive as a Replay, or None; dockerfile a path,
    a URL or its content.
    """
    found = DockerfileSources()
    _add_context(found, context, dockerfile)
    for name, value in named.items():
        _add_named(found, name, value)
    return found


def has_streams(context: Context, dockerfile: DockerfileSource) -> bool:
    """Whether they have to be opened before they are planned with."""
    return not (
        (context is None or isinstance(context, os.PathLike) or (isinstance(context, str) and context != "-"))
        and (
            dockerfile is None
            or isinstance(dockerfile, (bytes, os.PathLike))
            or (isinstance(dockerfile, str) and dockerfile != "-")
        )
    )


def is_web(dockerfile: DockerfileSource) -> TypeGuard[str]:
    """Whether the daemon has to fetch the Dockerfile."""
    return isinstance(dockerfile, str) and dockerfile.startswith(("http://", "https://"))


def is_git_over_ssh(context: Context) -> bool:
    """Whether the daemon needs an ssh agent to fetch the context."""
    return isinstance(context, str) and not Path(context).is_dir() and _GIT_SSH.match(context) is not None


def _add_context(found: DockerfileSources, context: Context, dockerfile: DockerfileSource) -> None:
    inline = dockerfile if isinstance(dockerfile, bytes) else None
    if is_web(dockerfile):
        inline = dockerfile.encode(errors="surrogateescape")  # in place of what is fetched when all else is right
    path = None if dockerfile is None or inline is not None else os.fspath(_path_like(dockerfile, "dockerfile"))
    if path == "":
        raise InvalidOption("dockerfile: must not be empty")
    found.attrs["filename"] = "Dockerfile"
    if inline is not None:
        if not inline.strip():
            raise InvalidOption("dockerfile: its content is empty")
        found.files["dockerfile"] = {"Dockerfile": inline}
    if context is None:
        if inline is None:
            raise InvalidOption("context: none is given, so the Dockerfile must be given as its content")
        found.files["context"] = {}
        return
    if isinstance(context, (str, os.PathLike)):
        text = os.fspath(context)
        if not text:
            raise InvalidOption("context: must not be empty; '.' is this directory")
        if not _URL.match(text) or Path(text).is_dir():
            root = found.directories["context"] = checked_directory(text, "context")
            if inline is None:
                _add_dockerfile(found, Path(path) if path is not None else _default_dockerfile(root))
            return
        found.attrs["context"] = text
    else:
        from buildkit_py.session.upload import Replay, new_url

        if not isinstance(context, Replay):
            raise TypeError("streams are opened before they are planned with")
        url = new_url()
        found.uploads[url] = context
        found.attrs["context"] = url
    # The daemon unpacks the context, and looks for the Dockerfile in it unless told of another place.
    if path is not None and Path(path).is_absolute():
        _add_dockerfile(found, Path(path))
    elif path is not None:
        found.attrs["filename"] = path
    if "dockerfile" in found.directories or inline is not None:
        found.attrs["dockerfilekey"] = "dockerfile"


def _path_like(value: object, option: str) -> str | os.PathLike[str]:
    if isinstance(value, (str, os.PathLike)):
        return value  # pyright: ignore[reportUnknownVariableType]  # of str, as all paths here are
    raise TypeError(f"{option}: streams are opened before they are planned with")


def _add_dockerfile(found: DockerfileSources, path: Path) -> None:
    path = _checked_dockerfile(path)
    found.directories["dockerfile"] = path.parent
    found.attrs["filename"] = path.name


def _add_named(found: DockerfileSources, name: str, value: str) -> None:
    key = _context_name(name)
    option = f"build context {name}"
    if not value:
        raise InvalidOption(f"{option}: must not be empty; '.' is this directory")
    if value.startswith(_LAYOUT):
        found.attrs[f"context:{key}"] = _layout_context(found, value.removeprefix(_LAYOUT), option)
    elif value.startswith((_IMAGE, "input:")) or _URL.match(value):
        if value.startswith(_IMAGE) and value != f"{_IMAGE}scratch":
            try:
                Reference.parse_normalized(value.removeprefix(_IMAGE))
            except InvalidReference as error:
                raise InvalidOption(f"{option}: {error}") from error
        definition = None
        if _is_file(value):
            # Frontends as of v0.25 take every URL here for that of a repository, and fail.
            definition = _file(value, name)
        elif _GIT_SSH.match(value):
            value, definition = _over_ssh(value, name)
        elif value.startswith(_GITHUB):
            value = _with_scheme(value)
        if definition is not None:
            found.inputs[key] = definition
            value = f"input:{key}"
        found.attrs[f"context:{key}"] = value
    elif "://" in value:
        raise InvalidOption(
            f"{option}: unknown scheme in {value!r}; expected a directory, docker-image://, oci-layout:// or a URL"
        )
    else:
        local = f"named-{key}" if key in {"context", "dockerfile"} else key
        found.directories[local] = checked_directory(value, option)
        found.attrs[f"context:{key}"] = f"local:{local}"


def _is_file(url: str) -> bool:
    """Whether the URL is that of a file, not of a repository. Source: moby/buildkit, frontend/dockerfile/dfgitutil."""
    parts = urlsplit(url)
    return parts.scheme in {"http", "https"} and not parts.path.endswith(".git")


def _file(url: str, name: str) -> bytes:
    """Definition of a directory with the file, which is called ``context`` there."""
    from buildkit_py import llb  # hardly any build needs it

    parts = urlsplit(url)
    shown = f"[context {name}] {parts.scheme}://{parts.hostname}{parts.path}"
    return llb.marshal(llb.http(url, filename="context", custom_name=shown), source_map=False).to_bytes()


def _with_scheme(url: str) -> str:
    """A repository of GitHub as frontends know it by name, too."""
    where, mark, fragment = url.partition("#")
    return f"https://{where.removesuffix('/').removesuffix('.git')}.git{mark}{fragment}"


def _over_ssh(url: str, name: str) -> tuple[str, bytes | None]:
    """The URL of a repository as frontends know it by name, or the definition of it where there is no such form.

    They know git@HOST:PATH alone, and learn the host's key when they first connect. For everything else its key has
    to be known here. Source: moby/buildkit v0.32, frontend/dockerui/namedcontext.go.
    """
    from buildkit_py import llb
    from buildkit_py.builder.knownhosts import known_hosts

    where, mark, fragment = url.partition("#")
    if not where.startswith("ssh://"):
        if where.startswith("git@"):
            return url, None
        host, port = where.partition("@")[2].partition(":")[0], None
    else:
        try:
            parts = urlsplit(where)
            host, port = parts.hostname or "", parts.port
        except ValueError as error:
            raise InvalidOption(f"build context {name}: {error}") from error
        if parts.query:
            raise InvalidOption(f"build context {name}: {url!r}: a query is not supported over ssh; use #REF:SUBDIR")
        if parts.username == "git" and port in {None, 22} and not parts.password and ":" not in host:
            return f"git@{host}:{parts.path}{mark}{fragment}", None
    hosts = known_hosts(host, port)
    if not hosts:
        raise InvalidOption(
            f"build context {name}: no known_hosts file has a key of {host}{f', port {port}' if port else ''}; connect "
            "to it once (ssh), so that the key can be checked"
        )
    state = llb.git(where, fragment=fragment, known_ssh_hosts=hosts, custom_name=f"[context {name}] git over ssh")
    return url, llb.marshal(state, source_map=False).to_bytes()


def _layout_context(found: DockerfileSources, text: str, option: str) -> str:
    """``PATH[:TAG][@DIGEST]`` as the daemon gets it: the id of a store, and a digest in any case."""
    import secrets

    from buildkit_py.digest import Digest
    from buildkit_py.errors import BuildKitError, InvalidDigest
    from buildkit_py.layout.reading import open_layout

    where, _, digest = text.rpartition("@")
    try:
        wanted = Digest.parse(digest) if where else None
    except InvalidDigest:
        wanted = None
    where = where if wanted is not None else text
    path, colon, tag = where.rpartition(":")
    if not colon or "/" in tag or not tag:
        path, tag = where, ""
    root = _checked_layout(path, option)
    try:
        with open_layout(root) as layout:
            if wanted is None:
                entries = layout.index.manifests
                named = tag or ("latest" if len({entry.digest for entry in entries}) > 1 else None)
                if len(entries) == 1 and not entries[0].annotations:
                    named = None  # other tools write layouts whose only image has no name, which any tag stands for
                wanted = layout.resolve(named).digest
            elif not layout.has(wanted):
                raise InvalidOption(f"layout {root}: has no {wanted}")
    except InvalidOption as error:
        raise InvalidOption(f"{option}: {error}") from error
    except BuildKitError as error:
        raise InvalidOption(f"{option}: {error}") from error
    store = secrets.token_hex(8)
    found.layouts[store] = root
    return f"{_LAYOUT}{store}{f':{tag}' if tag else ''}@{wanted}"


def _checked_layout(text: str, option: str) -> Path:
    """The directory or archive, without symlinks."""
    path = Path(text)
    return path.resolve() if path.is_file() else checked_directory(text, option)


def _context_name(name: str) -> str:
    """The name that the frontend looks for: familiar, without ``:latest``. Names of stages are references, too."""
    if not name:
        raise InvalidOption("build context: the name must not be empty")
    try:
        reference = Reference.parse_normalized(name)
    except InvalidReference as error:
        raise InvalidOption(f"build context {name!r}: not a name that FROM could use, in lower case") from error
    return reference.familiar.removesuffix(":latest")


def checked_directory(text: str, option: str) -> Path:
    """The directory without symlinks; option names it in the InvalidOption for one that cannot be used."""
    path = Path(text)
    try:
        resolved = path.resolve(strict=True)
        if not resolved.is_dir():
            raise InvalidOption(f"{option}: {text} is not a directory")
    except OSError as error:
        what = "does not exist" if error.errno in _MISSING else f"cannot be read: {error.strerror}"
        raise InvalidOption(f"{option}: {text} {what}") from error
    return resolved


def _default_dockerfile(context: Path) -> Path:
    lower = context / "dockerfile"
    path = context / "Dockerfile"
    return lower if not path.exists() and lower.exists() else path


def _checked_dockerfile(path: Path) -> Path:
    try:
        if path.is_file():
            with path.open("rb"):
                path = path.absolute()
                # Symlinks are not followed out of what is served, so a link to elsewhere is served from there.
                target = path.resolve()
                return path if target.is_relative_to(path.parent.resolve()) else target
        why = "is not a file" if path.exists() else "does not exist"
    except OSError as error:
        why = f"cannot be read: {error.strerror}"
    raise InvalidOption(f"Dockerfile: {path} {why}; name another with --file (dockerfile=...)")
