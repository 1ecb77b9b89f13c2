"""What to build, checked and turned into what each platform's solve is asked. No daemon is asked here."""

from __future__ import annotations

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal

from buildkit_py.builder.annotations import Annotations
from buildkit_py.builder.contexts import ClientSources, Context, DockerfileSource, is_git_over_ssh, plan_sources
from buildkit_py.builder.exports import Exports, plan_exports
from buildkit_py.builder.services import check_services
from buildkit_py.builder.steps import step_attrs, step_entitlements
from buildkit_py.errors import InvalidOption
from buildkit_py.options import CacheSpec, ExporterSpec, SecretSpec, SSHSpec, parse_fields
from buildkit_py.platforms import Platform, parse_platforms

if TYPE_CHECKING:
    from buildkit_py.session.policy import SourceDecider, SourceRules

DEFAULT_PROVENANCE = "mode=min,inline-only=true"
"""What docker buildx asks for when nobody says anything."""

_ATTESTATIONS = frozenset({"provenance", "sbom"})
_ENTITLEMENTS = frozenset({"network.host", "security.insecure", "device"})


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
    """Caches to use. For several platforms each means that of every platform beside the one it names."""
    cache_to: Sequence[CacheSpec] = ()
    """Caches to write. For several platforms each has its own: a tag, name or scope with the platform appended, such
    as ``:cache-linux-arm64``."""
    secrets: Sequence[SecretSpec] = ()
    """What steps may mount, and what git and http sources log in with, such as ``GIT_AUTH_TOKEN``."""
    ssh: Sequence[SSHSpec] = ()
    """Agents and keys that steps and git sources may sign with."""
    source_policy: SourceDecider | None = None
    """Decides about every source of the build. A daemon that cannot ask it is refused."""
    source_rules: SourceRules | None = None
    """What the daemon itself decides about sources by, before source_policy is asked."""
    allow: Sequence[str] = ()
    """Entitlements, such as ``network.host``."""
    record_provenance: Literal["", "min", "max"] = ""
    """Which provenance to read from the daemon's build history into the result, whatever attestations there are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildRequest(CommonRequest):
    """A Dockerfile build for one platform or many."""

    context: Context = "."
    """Directory, or the URL of a git repository (``URL#ref:subdir``) or tarball, which the daemon fetches. Also bytes
    or a binary stream, and ``-`` for standard input: a tar archive, or a Dockerfile without a context. None is an
    empty directory."""
    dockerfile: DockerfileSource = None
    """Path of the Dockerfile; within a context that is no directory a relative one is looked for there. Also an http
    or https URL, which the daemon fetches. Bytes or a binary stream, and ``-`` for standard input, are its content.
    Default: ``Dockerfile`` in the context."""
    target: str = ""
    """Stage to build; empty is the last one."""
    build_args: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}), repr=False)
    build_contexts: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    """Named contexts by the name that FROM uses: a directory, ``docker-image://REFERENCE``,
    ``oci-layout://PATH[:TAG][@DIGEST]`` (a directory or a tar archive), or the URL of a git repository or file."""
    labels: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    vcs: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    """What the provenance tells of the repository that the context is of: ``source``, ``revision``, and
    ``localdir:NAME`` for where in it a directory is."""
    no_cache: bool = False
    no_cache_filter: Sequence[str] = ()
    """Stages whose steps run again."""
    pull: bool = False
    """True asks the registries for newer base images."""
    add_hosts: Sequence[str] = ()
    """``NAME:ADDRESS`` for the hosts file of steps; ``host-gateway`` is the machine that an engine runs on."""
    network: str = ""
    """What steps are connected to: ``default``, ``host`` (which needs to be allowed by the daemon) or ``none``."""
    shm_size: int = 0
    """Bytes of ``/dev/shm``; 0 leaves it to the daemon."""
    ulimits: Sequence[str] = ()
    """``NAME=SOFT[:HARD]``, such as ``nofile=1024:4096``."""
    cgroup_parent: str = ""
    """Control group that those of the steps are made in."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What a daemon is asked to solve: a frontend with its attributes, a definition, or several for one result."""

    frontend: str = ""
    attrs: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    """Attributes of the frontend; attestations are asked for here too where there is none."""
    inputs: Mapping[str, bytes] = field(default_factory=lambda: MappingProxyType({}))
    """Definitions for the frontend, by name."""
    definition: bytes | None = None
    definitions: Mapping[str, bytes] = field(default_factory=lambda: MappingProxyType({}))
    """In place of definition, by platform."""
    metadata: Mapping[str, bytes] = field(default_factory=lambda: MappingProxyType({}))
    """What the result of definitions says of itself: platforms, and how a container of the image starts."""


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
    entitlements: Sequence[str]
    """What the solves ask to be allowed."""
    sources: ClientSources = field(default_factory=ClientSources)
    """What else of this machine the session serves."""

    @abstractmethod
    def work(self, platform: Platform | None, *, directories_session: str) -> Work:
        """What makes the result for one platform; the session named has the directories, "" if it is the solve's."""

    @abstractmethod
    def joint_work(self) -> Work:
        """What makes one result of all platforms, which the daemon then joins. It runs nothing that has been run."""

    def shared_key(self, node_id: str) -> str:
        """Differs wherever a directory served differs: the daemon trusts what it has under the same key.

        node_id tells this machine from others that build on the same daemon.
        """
        # What is in memory alone is as old as its build, and is sent each time.
        places = {**dict.fromkeys(self.sources.files, ""), **self.directories}
        served = "\0".join([node_id, *(f"{name}={path}" for name, path in sorted(places.items()))])
        return hashlib.sha256(served.encode(errors="surrogateescape")).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class DockerfilePlan(Plan):
    """A build by the Dockerfile frontend."""

    inputs: Mapping[str, bytes] = field(default_factory=lambda: MappingProxyType({}))
    """Definitions of named contexts."""

    def work(self, platform: Platform | None, *, directories_session: str) -> Work:
        attrs = dict(self.attrs)
        if platform is not None:
            attrs["platform"] = str(platform)
        if directories_session:
            names = (*self.directories, *self.sources.files)
            attrs |= {f"local-sessionid:{name}": directories_session for name in names}
        return Work(frontend="dockerfile.v0", attrs=attrs, inputs=self.inputs)

    def joint_work(self) -> Work:
        attrs = {**self.attrs, "platform": ",".join(map(str, self.platforms))}
        attrs.pop("no-cache", None)  # whose steps have just been run
        return Work(frontend="dockerfile.v0", attrs=attrs, inputs=self.inputs)


@dataclass(frozen=True, slots=True, kw_only=True)
class Common:
    """The parts of a plan that are the same for every kind of build."""

    platforms: tuple[Platform, ...]
    exports: Exports
    attrs: Mapping[str, str]


def plan(request: BuildRequest) -> DockerfilePlan:
    """Check a request; raise InvalidOption, InvalidPlatform or InvalidReference for the first thing wrong.

    Its streams must have been opened, see open_streams().
    """
    if not request.ssh and is_git_over_ssh(request.context) and os.environ.get("SSH_AUTH_SOCK"):
        request = replace(request, ssh=(SSHSpec(),))
    common = plan_common(request)
    sources = plan_sources(request.context, request.dockerfile, request.build_contexts)
    attrs = sources.attrs
    attrs |= {f"build-arg:{name}": value for name, value in request.build_args.items()}
    attrs |= {f"label:{name}": value for name, value in request.labels.items()}
    attrs |= {f"vcs:{name}": value for name, value in request.vcs.items()}
    if request.target:
        attrs["target"] = request.target
    attrs |= step_attrs(request)
    if request.pull:
        attrs["image-resolve-mode"] = "pull"
    return DockerfilePlan(
        request=request,
        platforms=common.platforms,
        exports=common.exports,
        directories=MappingProxyType(sources.directories),
        attrs=MappingProxyType({**attrs, **common.attrs}),
        sources=sources.served(),
        entitlements=step_entitlements(request),
        inputs=MappingProxyType(sources.inputs),
    )


def plan_common(request: CommonRequest) -> Common:
    """Check what every kind of build may ask for; raise as plan() does."""
    platforms = parse_platforms(request.platforms)
    for platform in platforms:
        platform.check_known()
    annotations = Annotations.parse(request.annotations, platforms)
    exports = plan_exports(
        request.outputs,
        tags=request.tags,
        push=request.push,
        load=request.load,
        annotations=annotations,
        platforms=platforms,
    )
    attrs: dict[str, str] = {}
    for kind, parameters in request.attestations.items():
        if kind not in _ATTESTATIONS:
            raise InvalidOption(f"attestation {kind!r}: expected provenance or sbom")
        if kind == "provenance":
            _check_provenance(parameters)
        attrs[f"attest:{kind}"] = parameters
    for name in request.allow:
        if name.partition("=")[0] not in _ENTITLEMENTS:
            known = ", ".join(sorted(_ENTITLEMENTS))
            raise InvalidOption(f"allow {name!r}: no entitlement of BuildKit; expected one of {known}")
    if request.cache_from or request.cache_to:
        from buildkit_py.builder.caches import plan_caches  # many builds have none

        plan_caches(request.cache_from, request.cache_to, platforms)
    check_services(request.secrets, request.ssh)
    return Common(platforms=platforms, exports=exports, attrs=attrs)


def _check_provenance(parameters: str) -> None:
    """A daemon would say it when all is built."""
    mode = dict(parse_fields(parameters, option="attestation provenance")).get("mode", "min") if parameters else "min"
    if mode not in {"min", "max"}:
        raise InvalidOption(f"attestation provenance: mode={mode}: expected min or max")
