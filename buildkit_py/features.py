"""What not every daemon can do, and how to tell.

A daemon takes what it does not know for nothing: a build on an older one would succeed without it. So all that is
asked for outside of the ops of a graph is in this table, and looked for before it is used. An op that needs a
capability says so itself, and daemons heed that, except for the actions on files, which are here for that reason.
Left out is what only makes a build faster or is only shown, and what newer Dockerfile frontends make of build
arguments without the daemon: a Dockerfile may bring such a frontend along.

A version tells nothing, as engines embed BuildKit without one. The list of capabilities does, which grows with the
releases. For a feature that has none of its own, or one that daemons forget to list (file.copy.modestring), another
capability of the same release stands.

Source: buildkit, git history of solver/pb/caps.go and of what implements each feature.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from google.protobuf.message import DecodeError

from buildkit_py.pb import ops_pb2

if TYPE_CHECKING:
    from buildkit_py.pb import control_pb2


@dataclass(frozen=True, slots=True)
class Feature:
    """Something that daemons before a release of BuildKit cannot do."""

    name: str
    """In the words that ask for it."""
    since: str
    """The first release with it."""
    capability: str
    """What daemons with the feature list, and those without it do not; "" where there is no such capability."""

    @property
    def is_ancient(self) -> bool:
        """Whether every daemon has it that says what its version is, as all do since v0.11."""
        return self.since in {"v0.9", "v0.10", "v0.11"}


COPY_PATTERNS = Feature("copy include_patterns or exclude_patterns", "v0.9", "file.copy.includeexcludepatterns")
NAMED_CONTEXTS = Feature("contexts by name", "v0.10", "mergeop")
SHM_SIZE = Feature("shm-size", "v0.10", "exec.mount.tmpfs.size")
ULIMIT = Feature("ulimit", "v0.10", "exec.meta.ulimit")
CGROUP_PARENT = Feature("cgroup-parent", "v0.10", "exec.meta.cgroup.parent")
COMPRESSION_LEVEL = Feature("compression-level", "v0.10", "mergeop")
FORCE_COMPRESSION = Feature("force-compression=true", "v0.10", "mergeop")
CACHE_COMPRESSION = Feature("compression of a cache", "v0.10", "mergeop")
FOREIGN_LAYERS = Feature("prefer-nondist-layers=true", "v0.10", "mergeop")
MULTI_PLATFORM_ARG = Feature("build argument BUILDKIT_MULTI_PLATFORM", "v0.10", "mergeop")
HOSTNAME_ARG = Feature("build argument BUILDKIT_SANDBOX_HOSTNAME", "v0.10", "mergeop")
ATTESTATIONS = Feature("attestations (--provenance=false builds without)", "v0.11", "exporter.image.attestations")
ANNOTATIONS = Feature("annotations", "v0.11", "exporter.image.annotations")
SOURCE_DATE_EPOCH = Feature("SOURCE_DATE_EPOCH", "v0.11", "exporter.sourcedateepoch")
IGNORED_CACHE_ERROR = Feature("cache ignore-error=true", "v0.11", "exporter.image.annotations")
SOURCE_RULES = Feature("a file of source policies", "v0.11", "source.policy")
CACHE_MANIFEST = Feature("cache image-manifest=true", "v0.12", "gateway.exec.secretenv")
PLATFORM_SPLIT = Feature("output platform-split=true without a platform", "v0.12", "gateway.exec.secretenv")
SEVERAL_OUTPUTS = Feature("several outputs of one solve", "v0.13", "exporter.multiple")
REWRITE_TIMESTAMP = Feature("output rewrite-timestamp=true", "v0.13", "exporter.multiple")
REPLACED_DESTINATION = Feature(
    "copy always_replace_existing_dest_paths", "v0.14", "file.copy.alwaysreplaceexistingdestpaths"
)
GITHUB_REPOSITORY = Feature(
    "cache type=gha with repository or ghtoken", "v0.14", "file.copy.alwaysreplaceexistingdestpaths"
)
PRUNE_BY_DESCRIPTION = Feature("pruning by description", "v0.14", "file.copy.alwaysreplaceexistingdestpaths")
PRUNE_BY_SPACE = Feature("pruning to a used or free space", "v0.17", "gc.freespacefilter")
SBOM_PARAMETERS = Feature("sbom parameters for the scanner", "v0.17", "exec.validexitcode")
MODE_IN_WORDS = Feature("copy with a mode in words", "v0.17", "exec.validexitcode")
OCI_ARTIFACT = Feature("output oci-artifact=true", "v0.19", "file.symlink.create")
SYMLINK = Feature("making a symlink", "v0.19", "file.symlink.create")
GITHUB_CACHE_V2 = Feature("cache type=gha of version 2", "v0.20", "exec.meta.cdi")
LATE_EXPORTERS = Feature("exporters chosen when the result is known", "v0.21", "exporter.session")
DANGLING_EMPTY_ONLY = Feature("output danging-name-empty-only=true", "v0.21", "exporter.session")
PROVENANCE_VERSION = Feature("provenance version=v1", "v0.23", "")
REQUIRED_PATHS = Feature("copy required_paths", "v0.26", "file.copy.requiredpaths")
SOURCE_POLICY = Feature("a source policy, which would not be asked,", "v0.26", "source.policy.session")
COMPLETE_MATERIALS = Feature("provenance complete-materials", "v0.31", "passthroughop")

_OF_ATTRS = {
    "shm-size": SHM_SIZE,
    "ulimit": ULIMIT,
    "cgroup-parent": CGROUP_PARENT,
    "build-arg:SOURCE_DATE_EPOCH": SOURCE_DATE_EPOCH,
    "build-arg:BUILDKIT_MULTI_PLATFORM": MULTI_PLATFORM_ARG,
    "build-arg:BUILDKIT_SANDBOX_HOSTNAME": HOSTNAME_ARG,
}
_OF_EXPORTERS = {
    "force-compression": FORCE_COMPRESSION,
    "prefer-nondist-layers": FOREIGN_LAYERS,
    "platform-split": PLATFORM_SPLIT,
    "rewrite-timestamp": REWRITE_TIMESTAMP,
    "oci-artifact": OCI_ARTIFACT,
    "danging-name-empty-only": DANGLING_EMPTY_ONLY,
}
_OF_GITHUB = {"url_v2": GITHUB_CACHE_V2, "repository": GITHUB_REPOSITORY, "ghtoken": GITHUB_REPOSITORY}
_FALSE = frozenset({"0", "f", "F", "false", "FALSE", "False"})


def used(message: control_pb2.SolveRequest) -> Iterator[Feature]:
    """What a solve relies on and daemons without it would leave out; some may come twice."""
    if message.HasField("SourcePolicy"):
        yield SOURCE_RULES
    if message.SourcePolicySession:
        yield SOURCE_POLICY
    if message.EnableSessionExporter:
        yield LATE_EXPORTERS
    if len(message.Exporters) > 1:
        yield SEVERAL_OUTPUTS
    for exporter in message.Exporters:
        yield from _of_exporter(exporter.Attrs)
    yield from _of_attrs(message.FrontendAttrs)
    for cache in message.Cache.Exports:
        if _is_on(cache.Attrs, "image-manifest"):
            yield CACHE_MANIFEST
        if _is_on(cache.Attrs, "ignore-error"):
            yield IGNORED_CACHE_ERROR
        if any("compression" in key for key in cache.Attrs):
            yield CACHE_COMPRESSION
    for cache in (*message.Cache.Exports, *message.Cache.Imports):
        if cache.Type == "gha":
            yield from (feature for key, feature in _OF_GITHUB.items() if key in cache.Attrs)
    yield from used_by(message.Definition)


def used_by(definition: ops_pb2.Definition) -> Iterator[Feature]:
    """What a graph relies on and daemons without it would leave out; some may come twice."""
    for operation in getattr(definition, "def"):  # a word of Python's
        yield from _of_operation(operation)


def used_by_prune(message: control_pb2.PruneRequest) -> Iterator[Feature]:
    """What a request to delete relies on; daemons without it would delete nothing, or too much."""
    if any("description" in text for text in message.filter):
        yield PRUNE_BY_DESCRIPTION
    if message.maxUsedSpace or message.minFreeSpace:
        yield PRUNE_BY_SPACE


def _of_exporter(attrs: Mapping[str, str]) -> Iterator[Feature]:
    for key, feature in _OF_EXPORTERS.items():
        if _is_on(attrs, key):
            yield feature
    if "compression-level" in attrs:
        yield COMPRESSION_LEVEL
    if any(key.startswith("annotation") for key in attrs):
        yield ANNOTATIONS


def _of_attrs(attrs: Mapping[str, str]) -> Iterator[Feature]:
    for key, value in attrs.items():
        if key in _OF_ATTRS:
            yield _OF_ATTRS[key]
        elif key.startswith("context:"):
            yield NAMED_CONTEXTS
        elif key.startswith("attest:"):
            yield from _of_attestation(key.removeprefix("attest:"), value.split(","))


def _of_attestation(kind: str, parameters: Sequence[str]) -> Iterator[Feature]:
    yield ATTESTATIONS
    names = {parameter.partition("=")[0] for parameter in parameters if parameter}
    if kind == "sbom" and names - {"type", "generator"}:
        yield SBOM_PARAMETERS
    if kind == "provenance" and "version=v1" in parameters:
        yield PROVENANCE_VERSION
    if kind == "provenance" and "complete-materials" in names:
        yield COMPLETE_MATERIALS


def _of_operation(data: bytes) -> Iterator[Feature]:
    try:
        operation = ops_pb2.Op.FromString(data)
    except DecodeError:
        return  # the daemon says so
    if operation.exec.meta.cgroupParent:
        yield CGROUP_PARENT
    for action in operation.file.actions:
        if action.HasField("symlink"):
            yield SYMLINK
        elif action.HasField("copy"):
            if action.copy.include_patterns or action.copy.exclude_patterns:
                yield COPY_PATTERNS
            if action.copy.alwaysReplaceExistingDestPaths:
                yield REPLACED_DESTINATION
            if action.copy.modeStr:
                yield MODE_IN_WORDS
            if action.copy.required_paths:
                yield REQUIRED_PATHS


def _is_on(attrs: Mapping[str, str], key: str) -> bool:
    """Go's notion of a flag: present and empty is true."""
    return attrs.get(key, "false") not in _FALSE
