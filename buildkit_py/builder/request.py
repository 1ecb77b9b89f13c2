"""What to build, checked and turned into what each platform's solve is asked. No daemon is asked here."""

from __future__ import annotations

import errno
import hashlib
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

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
    outputs: Sequence[ExporterSpec] = ()
    """Further outputs; ``type=image,push=true`` with a name counts as push with that tag."""
    annotations: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    """Annotations of the index."""
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
    references: tuple[Reference, ...]
    """What to push, each with a tag."""
    outputs: tuple[ExporterSpec, ...]
    """All outputs but the pushed image."""
    directories: Mapping[str, Path]
    """What the session serves, by the name that the daemon asks for."""
    attrs: Mapping[str, str]
    """Frontend attributes that all platforms share."""

    @abstractmethod
    def work(self, platform: Platform | None, *, directories_session: str) -> Work:
        """What makes the result for one platform; the session named has the directories, "" if it is the solve's."""

    @property
    def repositories(self) -> tuple[str, ...]:
        """Names to push to, without tags, none twice."""
        return tuple(dict.fromkeys(reference.name for reference in self.references))

    def names_of(self, spec: ExporterSpec) -> tuple[Reference, ...]:
        """Names to write into an OCI layout: the output's own, else the tags of the build."""
        own = [name for name in spec.attrs.get("name", "").split(",") if name]
        return tuple(dict.fromkeys(_tagged(name) for name in own or self.request.tags))

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Common:
    """The parts of a plan that are the same for every kind of build."""

    platforms: tuple[Platform, ...]
    references: tuple[Reference, ...]
    outputs: tuple[ExporterSpec, ...]
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
        references=common.references,
        outputs=common.outputs,
        directories=MappingProxyType(directories),
        attrs=MappingProxyType({**attrs, **common.attrs}),
    )


def plan_common(request: CommonRequest) -> Common:
    """Check what every kind of build may ask for; raise as plan() does."""
    platforms = parse_platforms(request.platforms)
    for platform in platforms:
        platform.check_known()
    references, outputs = _destinations(request)
    attrs: dict[str, str] = {}
    for kind, parameters in request.attestations.items():
        if kind not in _ATTESTATIONS:
            raise InvalidOption(f"attestation {kind!r}: expected provenance or sbom")
        attrs[f"attest:{kind}"] = parameters
    _check_outputs(outputs, platforms)
    if len(platforms) > 1 and any(spec.type != "inline" for spec in request.cache_to):
        raise InvalidOption("cache-to: for several platforms only type=inline is supported yet; others would overwrite")
    return Common(platforms=platforms, references=references, outputs=outputs, attrs=attrs)


def _destinations(request: CommonRequest) -> tuple[tuple[Reference, ...], tuple[ExporterSpec, ...]]:
    tags = [_tagged(tag) for tag in request.tags]
    references = list(tags) if request.push else []
    outputs: list[ExporterSpec] = []
    for spec in request.outputs:
        spec.check()
        if spec.type != "image":
            outputs.append(spec)
            continue
        names = [name for name in spec.attrs.get("name", "").split(",") if name]
        named = [_tagged(name) for name in names] or tags
        if not _true(spec.attrs.get("push")):
            outputs.append(spec)
            continue
        unknown = sorted(set(spec.attrs) - {"name", "push", "oci-mediatypes"})
        if unknown:
            raise InvalidOption(f"output type=image,push=true: {unknown[0]} is not supported yet")
        if not named:
            raise InvalidOption("output type=image,push=true: needs name=... or a tag")
        references += named
    if request.push and not tags:
        raise InvalidOption("push: needs at least one tag")
    return tuple(dict.fromkeys(references)), tuple(outputs)


def _tagged(text: str) -> Reference:
    reference = Reference.parse_normalized(text)
    if reference.digest is not None:
        raise InvalidReference(f"tag {text!r}: a name to write cannot have a digest")
    return reference.with_tag(reference.tag_or_latest)


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


def _check_outputs(outputs: Sequence[ExporterSpec], platforms: Sequence[Platform]) -> None:
    destinations = [spec.dest for spec in outputs if spec.dest is not None]
    for dest in destinations:
        if destinations.count(dest) > 1:
            raise InvalidOption(f"output dest={dest}: two outputs have the same destination")
    for spec in outputs:
        if spec.type == "docker" and spec.dest is None:
            raise InvalidOption("output type=docker: dest is missing; loading into an engine is not supported yet")
        if spec.type in {"docker", "tar"} and len(platforms) > 1:
            raise InvalidOption(
                f"output type={spec.type}: holds one platform, {len(platforms)} were asked for; "
                "use type=oci or type=local"
            )


def _true(value: str | None) -> bool:
    """Go's notion of an exporter's flag: present and empty is true."""
    return value is not None and value in {"", "1", "t", "T", "true", "TRUE", "True"}
