"""Which features a request relies on. What daemons then do with them is for the integration tests."""

from __future__ import annotations

import re
from collections.abc import Mapping

import pytest

from buildkit_py import features, llb
from buildkit_py.features import Feature, used, used_by_prune
from buildkit_py.pb import control_pb2, ops_pb2, policy_pb2

ALL = [value for value in vars(features).values() if isinstance(value, Feature)]


def of_attrs(**attrs: str) -> control_pb2.SolveRequest:
    attrs = {key if ":" in key else key.replace("_", "-"): value for key, value in attrs.items()}
    return control_pb2.SolveRequest(FrontendAttrs=attrs)


def of_exporters(*attrs: Mapping[str, str]) -> control_pb2.SolveRequest:
    return control_pb2.SolveRequest(Exporters=[control_pb2.Exporter(Type="image", Attrs=entry) for entry in attrs])


def of_cache(kind: str, attrs: Mapping[str, str]) -> control_pb2.SolveRequest:
    return control_pb2.SolveRequest(
        Cache=control_pb2.CacheOptions(Exports=[control_pb2.CacheOptionsEntry(Type=kind, Attrs=attrs)])
    )


def of_graph(state: llb.State) -> control_pb2.SolveRequest:
    return control_pb2.SolveRequest(Definition=ops_pb2.Definition.FromString(llb.marshal(state).to_bytes()))


def copied(**options: object) -> control_pb2.SolveRequest:
    return of_graph(llb.scratch().copy(llb.scratch().mkfile("/f", "x"), "/", "/", **options))  # type: ignore[arg-type]


REQUESTS: list[tuple[control_pb2.SolveRequest, set[Feature]]] = [
    (control_pb2.SolveRequest(SourcePolicySession="s"), {features.SOURCE_POLICY}),
    (control_pb2.SolveRequest(EnableSessionExporter=True), {features.LATE_EXPORTERS}),
    (of_exporters({}), set()),
    (of_exporters({}, {}), {features.SEVERAL_OUTPUTS}),
    (of_exporters({"annotation.a": "b"}), {features.ANNOTATIONS}),
    (of_exporters({"annotation-manifest[linux/arm64].a": "b"}), {features.ANNOTATIONS}),
    (of_exporters({"rewrite-timestamp": "true"}), {features.REWRITE_TIMESTAMP}),
    (of_exporters({"rewrite-timestamp": ""}), {features.REWRITE_TIMESTAMP}),
    (of_exporters({"rewrite-timestamp": "false"}), set()),
    (of_exporters({"oci-artifact": "1"}), {features.OCI_ARTIFACT}),
    (of_exporters({"danging-name-empty-only": "t"}), {features.DANGLING_EMPTY_ONLY}),
    (of_attrs(target="x", platform="linux/arm64", no_cache=""), set()),
    (of_attrs(shm_size="1"), {features.SHM_SIZE}),
    (of_attrs(ulimit="nofile=1:1"), {features.ULIMIT}),
    (of_attrs(cgroup_parent="x"), {features.CGROUP_PARENT}),
    (of_attrs(**{"build-arg:SOURCE_DATE_EPOCH": "0"}), {features.SOURCE_DATE_EPOCH}),
    (of_attrs(**{"build-arg:BUILDKIT_MULTI_PLATFORM": "1"}), {features.MULTI_PLATFORM_ARG}),
    (of_attrs(**{"build-arg:BUILDKIT_SANDBOX_HOSTNAME": "x"}), {features.HOSTNAME_ARG}),
    (of_attrs(**{"build-arg:OTHER": "x"}), set()),
    (of_exporters({"compression": "gzip", "compression-level": "9"}), {features.COMPRESSION_LEVEL}),
    (of_exporters({"force-compression": "true"}), {features.FORCE_COMPRESSION}),
    (of_exporters({"prefer-nondist-layers": "true"}), {features.FOREIGN_LAYERS}),
    (of_exporters({"platform-split": "true"}), {features.PLATFORM_SPLIT}),
    (of_exporters({"platform-split": "false"}), set()),
    (of_attrs(**{"context:base": "local:base"}), {features.NAMED_CONTEXTS}),
    (of_attrs(**{"attest:provenance": "mode=min,inline-only=true"}), {features.ATTESTATIONS}),
    (of_attrs(**{"attest:provenance": "version=v0.2"}), {features.ATTESTATIONS}),
    (of_attrs(**{"attest:provenance": "version=v1"}), {features.ATTESTATIONS, features.PROVENANCE_VERSION}),
    (
        of_attrs(**{"attest:provenance": "complete-materials=true"}),
        {features.ATTESTATIONS, features.COMPLETE_MATERIALS},
    ),
    (control_pb2.SolveRequest(SourcePolicy=policy_pb2.Policy(version=1)), {features.SOURCE_RULES}),
    (of_attrs(**{"attest:sbom": ""}), {features.ATTESTATIONS}),
    (of_attrs(**{"attest:sbom": "generator=x"}), {features.ATTESTATIONS}),
    (of_attrs(**{"attest:sbom": "type=sbom,generator=x"}), {features.ATTESTATIONS}),
    (of_attrs(**{"attest:sbom": "generator=x,LEVEL=1"}), {features.ATTESTATIONS, features.SBOM_PARAMETERS}),
    (of_cache("registry", {"ref": "x", "image-manifest": "true"}), {features.CACHE_MANIFEST}),
    (of_cache("registry", {"ref": "x", "image-manifest": "false"}), set()),
    (of_cache("registry", {"ref": "x", "ignore-error": "true"}), {features.IGNORED_CACHE_ERROR}),
    (of_cache("local", {"compression": "zstd"}), {features.CACHE_COMPRESSION}),
    (of_cache("local", {"force-compression": "true", "compression-level": "1"}), {features.CACHE_COMPRESSION}),
    (of_cache("gha", {"url": "x"}), set()),
    (of_cache("gha", {"url_v2": "x"}), {features.GITHUB_CACHE_V2}),
    (of_cache("gha", {"url": "x", "ghtoken": "x"}), {features.GITHUB_REPOSITORY}),
    (of_cache("gha", {"url": "x", "repository": "x"}), {features.GITHUB_REPOSITORY}),
    (of_graph(llb.scratch().symlink("a", "/b")), {features.SYMLINK}),
    (copied(), set()),
    (copied(mode=0o644), set()),
    (copied(mode="u+x"), {features.MODE_IN_WORDS}),
    (copied(always_replace_existing_dest_paths=True), {features.REPLACED_DESTINATION}),
    (copied(include_patterns=["f"]), {features.COPY_PATTERNS}),
    (copied(exclude_patterns=["f"]), {features.COPY_PATTERNS}),
    (copied(include_patterns=["f"], required_paths=["f"]), {features.COPY_PATTERNS, features.REQUIRED_PATHS}),
    (
        of_graph(llb.image("x", platform="linux/amd64").run(["true"], cgroup_parent="x", platform="linux/amd64")),
        {features.CGROUP_PARENT},
    ),
]


@pytest.mark.parametrize(("message", "expected"), REQUESTS, ids=[str(index) for index in range(len(REQUESTS))])
def test_what_a_request_relies_on(message: control_pb2.SolveRequest, expected: set[Feature]) -> None:
    assert set(used(message)) == expected


PRUNES: list[tuple[control_pb2.PruneRequest, set[Feature]]] = [
    (control_pb2.PruneRequest(filter=["id==x"], keepDuration=1, reservedSpace=1), set()),
    (control_pb2.PruneRequest(filter=["id==x", "type==regular,description~=y"]), {features.PRUNE_BY_DESCRIPTION}),
    (control_pb2.PruneRequest(maxUsedSpace=1), {features.PRUNE_BY_SPACE}),
    (control_pb2.PruneRequest(minFreeSpace=1), {features.PRUNE_BY_SPACE}),
]


@pytest.mark.parametrize(("message", "expected"), PRUNES, ids=[str(index) for index in range(len(PRUNES))])
def test_what_pruning_relies_on(message: control_pb2.PruneRequest, expected: set[Feature]) -> None:
    assert set(used_by_prune(message)) == expected


def test_the_whole_table_is_looked_for() -> None:
    """An entry that no request leads to would never be refused."""
    assert {feature for _, expected in (*REQUESTS, *PRUNES) for feature in expected} == set(ALL)


def test_an_op_that_cannot_be_read_is_left_to_the_daemon() -> None:
    definition = ops_pb2.Definition()
    getattr(definition, "def").append(b"\xff\xff")
    assert list(used(control_pb2.SolveRequest(Definition=definition))) == []


def test_the_table_is_in_the_order_of_releases() -> None:
    releases = [tuple(map(int, re.findall(r"\d+", feature.since))) for feature in ALL]
    assert releases == sorted(releases)
