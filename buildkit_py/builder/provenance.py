"""What a daemon's build history tells of how a build was made.

Source: docker buildx, build/provenance.go; buildkit, solver/llbsolver/provenance/types (ConvertToSLSA02).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal, TypeAlias, cast

from buildkit_py.digest import Digest
from buildkit_py.errors import ProtocolError, RPCError
from buildkit_py.jsonfields import object_at, objects_at

if TYPE_CHECKING:
    from buildkit_py.client import Client

Mode: TypeAlias = Literal["min", "max"]

_PREDICATE = "in-toto.io/predicate-type"
_SLSA = "https://slsa.dev/provenance/"
_BUILD_TYPE = "https://mobyproject.org/buildkit@v1"
_MAX_BYTES = 64 << 20


async def recorded_provenance(client: Client, ref: str, mode: Mode = "min") -> dict[str, object] | None:
    """Provenance of a solve, as a SLSA v0.2 predicate; None where the daemon keeps no record of it.

    With min it is without the definition and what the daemon did.
    """
    try:
        attestations = await client.recorded_attestations(ref)
    except RPCError as error:
        if error.code in {"UNIMPLEMENTED", "NOT_FOUND"}:
            return None
        raise
    for entry in attestations:
        kind = entry.annotations.get(_PREDICATE, "")
        if entry.media_type == "application/vnd.in-toto+json" and kind.startswith(_SLSA):
            raw = await client.read_blob(Digest.parse(str(entry.digest)), _MAX_BYTES)
            try:
                found: object = json.loads(raw)
            except ValueError as error:
                raise ProtocolError(f"solve {ref}: its provenance is no JSON") from error
            if not isinstance(found, dict):
                raise ProtocolError(f"solve {ref}: its provenance is no object")
            predicate = cast("dict[str, object]", found)
            if kind == f"{_SLSA}v1":
                predicate = _version_02(predicate)
            if mode == "min":
                predicate = {key: value for key, value in predicate.items() if key not in ("buildConfig", "metadata")}
            return predicate
    return None


def _version_02(predicate: Mapping[str, object]) -> dict[str, object]:
    """The same in the words of the older format, which is what tools read."""
    definition, details = object_at(predicate, "buildDefinition"), object_at(predicate, "runDetails")
    outer, inner = object_at(definition, "externalParameters"), object_at(definition, "internalParameters")
    source = object_at(outer, "configSource")
    environment = {key: value for key, value in inner.items() if key not in ("buildConfig", "builderPlatform")}
    if "builderPlatform" in inner:
        environment["platform"] = inner["builderPlatform"]
    return _without_empty(
        {
            "builder": object_at(details, "builder") or {"id": ""},
            "buildType": _BUILD_TYPE,
            "materials": [
                {key: entry[key] for key in ("uri", "digest") if key in entry}
                for entry in objects_at(definition, "resolvedDependencies")
            ],
            "invocation": {
                "configSource": _without_empty(
                    {"uri": source.get("uri"), "digest": source.get("digest"), "entryPoint": source.get("path")}
                ),
                "parameters": object_at(outer, "request"),
                "environment": environment,
            },
            "buildConfig": inner.get("buildConfig"),
            "metadata": _metadata_02(object_at(details, "metadata")),
        }
    )


def _metadata_02(metadata: Mapping[str, object]) -> dict[str, object]:
    complete = object_at(metadata, "buildkit_completeness")
    return _without_empty(
        {
            "buildInvocationID": metadata.get("invocationID") or metadata.get("invocationId"),
            "buildStartedOn": metadata.get("startedOn"),
            "buildFinishedOn": metadata.get("finishedOn"),
            "completeness": {
                "parameters": bool(complete.get("request")),
                "environment": True,
                "materials": bool(complete.get("resolvedDependencies")),
            },
            "reproducible": bool(metadata.get("buildkit_reproducible")),
            f"{_BUILD_TYPE}#hermetic": metadata.get("buildkit_hermetic"),
            f"{_BUILD_TYPE}#metadata": metadata.get("buildkit_metadata"),
        }
    )


def _without_empty(fields: Mapping[str, object]) -> dict[str, object]:
    return {key: value for key, value in fields.items() if value not in (None, {}, [], "")}
