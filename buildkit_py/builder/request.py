"""What to build, checked and turned into what each platform's solve is asked. No daemon is asked here."""

from __future__ import annotations

import errno
import hashlib
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType

from buildkit_py.builder.annotations import Annotations
from buildkit_py.builder.exports import Exports, plan_exports
from buildkit_py.errors import InvalidOption, InvalidReference
from buildkit_py.options import CacheSpec, ExporterSpec
from buildkit_py.platforms import Platform, parse_platforms
from buildkit_py.reference import Reference

DEFAULT_PROVENANCE = "mode=min,inline-only=true"
"""What docker buildx asks for when nobody says anything."""

_URL = re.compile(r"(?:https?|git|ssh)://|git@|github\.com/")
_NAMED_CONTEXT_SCHEMES = ("docker-image://", "http://", "https://", "git://", "git@", "ssh://", "input:")
_ATTESTATIONS = frozenset({"provenance", "sbom"})
_MISSING = (errno.ENOENT, errno.ENOTDIR)


@dataclass(frozen=True, slots=True, kw_only=True)
class CommonRequest:
    """What every build may ask for, whatever it is made from. Paths are of this machine."""

    platforms: Sequence[Platform | str] = ()
    """Target platforms, in the order of the index; none means the daemon's own."""
    tags: Sequence[str] = ()
    """References to write, such as ``registry.example/team/app:1.2``; a missing tag is ``latest``."""
    push: bool = False
    """True pushes the image or index to every one of tags."""
    load: bool = False
    """True loads the image into a docker engine: the one that builds, else the one of the environment."""
    outputs: Sequence[ExporterSpec] = ()
    """Further outputs. Images, layouts and archives get the names in tags, or their own where there are none."""
    annotations: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    """By ``KEY`` for the manifests of the images, or ``LEVEL:KEY`` with the levels ``manifest``, ``index``,
    ``manifest-descriptor`` and ``index-descriptor``; the first and the third with ``[PLATFORM]`` if wanted."""
    attestations: Mapping[str, str] = field(
        default_factory=lambda: MappingProxyType({"provenance": DEFAULT_PROVENANCE})
    )
    """Parameters by attestation type, ``provenance`` or ``sbom``."""
    cache_from: Sequence[CacheSpec] = ()
    cache_to: Sequence[CacheSpec] = ()
    allow: Sequence[str] = ()
    """Entitlements, such as ``network.host``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildRequest(CommonRequest):
    """A Dockerfile build for one platform or many."""

    context: str | os.PathLike[str] = "."
    """Directory, or the URL of a git repository or tarball, which the daemon fetches."""
    dockerfile: str | os.PathLike[str] | None = None
    """Path of the Dockerfile; within the context of a URL it is relative to that. Default: ``Dockerfile`` in
    the context."""
    target: str = ""
    """Stage to build; empty is the last one."""
    build_args: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    build_contexts: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    """Named contexts: a directory, ``docker-image://REFERENCE`` or a URL, by the name that FROM uses."""
    labels: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    no_cache: bool = False
    pull: bool = False
    """True asks the registries for newer base images."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What a daemon is asked to solve for one platform: a frontend with its attributes, or a definition."""

    frontend: str = ""
    attrs: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    """Attributes of the frontend; attestations are asked for here too where there is none."""
    definition: bytes | None = None
    metadata: Mapping[str, bytes] = field(default_factory=lambda: MappingProxyType({}))
    """What the result of a definition says of itself: platform, and how a container of the image starts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan(ABC):
    """A request whose every word has been checked. What is solved is for the subclass to say."""

    request: CommonRequest
    platforms: tuple[Platform, ...]
    """Normalised, none twice; empty for the daemon's own."""
    exports: Exports
    """What becomes of the result."""
    directories: Mapping[str, Path]
    """What the session serves, by the name that the daemon asks for."""
    attrs: Mapping[str, str]
    """Frontend attributes that all platforms share."""

    @abstractmethod
    def work(self, platform: Platform | None, *, directories_session: str) -> Work:
        """What makes the result for one platform; the session named has the directories, "" if it is the solve's."""

    def joint_work(self) -> Work | None:
        """What makes one result of all platforms, which the daemon then joins; None where there is no such thing."""
        return None

    @property
    def entitlements(self) -> Sequence[str]:
        """What the solves ask to be allowed."""
        return self.request.allow

    def shared_key(self, node_id: str) -> str:
        """Differs wherever a directory served differs: the daemon trusts what it has under the same key.

        node_id tells this machine from others that build on the same daemon.
        """
        served = "\0".join([node_id, *(f"{name}={path}" for name, path in sorted(self.directories.items()))])
        return hashlib.sha256(served.encode(errors="surrogateescape")).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class DockerfilePlan(Plan):
    """A build by the Dockerfile frontend."""

    def work(self, platform: Platform | None, *, directories_session: str) -> Work:
        attrs = dict(self.attrs)
        if platform is not None:
            attrs["platform"] = str(platform)
        if directories_session:
            attrs |= {f"local-sessionid:{name}": directories_session for name in self.directories}
        return Work(frontend="dockerfile.v0", attrs=attrs)

    def joint_work(self) -> Work | None:
        work = self.work(None, directories_session="")
        return replace(work, attrs={**work.attrs, "platform": ",".join(map(str, self.platforms))})


@dataclass(frozen=True, slots=True, kw_only=True)
class Common:
    """The parts of a plan that are the same for every kind of build."""

    platforms: tuple[Platform, ...]
    exports: Exports
    attrs: Mapping[str, str]


def plan(request: BuildRequest) -> DockerfilePlan:
    """Check a request; raise InvalidOption, InvalidPlatform or InvalidReference for the first thing wrong."""
    common = plan_common(request)
    attrs, directories = _sources(request)
    attrs |= {f"build-arg:{name}": value for name, value in request.build_args.items()}
    attrs |= {f"label:{name}": value for name, value in request.labels.items()}
    if request.target:
        attrs["target"] = request.target
    if request.no_cache:
        attrs["no-cache"] = ""
    if request.pull:
        attrs["image-resolve-mode"] = "pull"
    return DockerfilePlan(
        request=request,
        platforms=common.platforms,
        exports=common.exports,
        directories=MappingProxyType(directories),
        attrs=MappingProxyType({**attrs, **common.attrs}),
    )


def plan_common(request: CommonRequest) -> Common:
    """Check what every kind of build may ask for; raise as plan() does."""
    platforms = parse_platforms(request.platforms)
    for platform in platforms:
        platform.check_known()
    annotations = Annotations.parse(request.annotations, platforms)
    exports = plan_exports(
        request.outputs, tags=request.tags, push=request.push, load=request.load, annotations=annotations
    )
    attrs: dict[str, str] = {}
    for kind, parameters in request.attestations.items():
        if kind not in _ATTESTATIONS:
            raise InvalidOption(f"attestation {kind!r}: expected provenance or sbom")
        attrs[f"attest:{kind}"] = parameters
    if len(platforms) > 1 and any(spec.type != "inline" for spec in request.cache_to):
        raise InvalidOption("cache-to: for several platforms only type=inline is supported yet; others would overwrite")
    return Common(platforms=platforms, exports=exports, attrs=attrs)


def _sources(request: BuildRequest) -> tuple[dict[str, str], dict[str, Path]]:
    """Attributes and served directories for the context, the Dockerfile and the named contexts."""
    attrs: dict[str, str] = {}
    directories: dict[str, Path] = {}
    context = os.fspath(request.context)
    if not context:
        raise InvalidOption("context: must not be empty; '.' is this directory")
    if _URL.match(context):
        attrs["context"] = context
        attrs["filename"] = os.fspath(request.dockerfile) if request.dockerfile else "Dockerfile"
    else:
        root = checked_directory(context, "context")
        directories["context"] = root
        path = Path(request.dockerfile) if request.dockerfile else _default_dockerfile(root)
        directories["dockerfile"] = _checked_dockerfile(path).parent
        attrs["filename"] = path.name
    for name, value in request.build_contexts.items():
        key = _context_name(name)
        if value.startswith(_NAMED_CONTEXT_SCHEMES):
            attrs[f"context:{key}"] = value
        elif value.startswith("oci-layout://"):
            raise InvalidOption(f"build context {name}: oci-layout:// is not supported yet")
        elif "://" in value:
            raise InvalidOption(f"build context {name}: unknown scheme in {value!r}")
        else:
            local = f"named-{key}" if key in {"context", "dockerfile"} else key
            directories[local] = checked_directory(value, f"build context {name}")
            attrs[f"context:{key}"] = f"local:{local}"
    return attrs, directories


def _context_name(name: str) -> str:
    """The name that the frontend looks for: familiar, without ``:latest``; a stage name stays as it is."""
    if not name:
        raise InvalidOption("build context: the name must not be empty")
    try:
        reference = Reference.parse_normalized(name)
    except InvalidReference:
        return name
    return reference.familiar.removesuffix(":latest")


def checked_directory(text: str, option: str) -> Path:
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
                return path.absolute()
        why = "is not a file" if path.exists() else "does not exist"
    except OSError as error:
        why = f"cannot be read: {error.strerror}"
    raise InvalidOption(f"Dockerfile: {path} {why}; name another with --file (dockerfile=...)")
