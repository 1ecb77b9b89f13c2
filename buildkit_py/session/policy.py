"""Source policy: a function of ours decides, while a build runs, what it may take from outside.

Source: moby/buildkit v0.32, sourcepolicy/policysession and solver/llbsolver/policy.go.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Self, TypeAlias, assert_never, cast

from buildkit_py.errors import InvalidOption
from buildkit_py.platforms import Platform
from buildkit_py.session.attachable import CHECK_POLICY, Call, CallError, Code, Handler, only_message

if TYPE_CHECKING:
    from buildkit_py.pb import gateway_pb2, policysession_pb2

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceQuestion:
    """A source that a build is about to use. What is resolved of it is there once it was asked for."""

    identifier: str
    """With its scheme and normalised, such as ``docker-image://docker.io/library/alpine:latest``."""
    attrs: Mapping[str, str]
    platform: Platform | None
    resolved: bool = False
    """True when the daemon has resolved it, as Resolve wants it; only then the fields below mean something."""
    image_digest: str = ""
    image_config: bytes = field(default=b"", repr=False)
    git_commit: str = ""
    git_ref: str = ""
    http_digest: str = ""
    http_filename: str = ""


@dataclass(frozen=True, slots=True)
class Allow:
    """The build may use the source as it is."""


@dataclass(frozen=True, slots=True)
class Deny:
    """The build fails with a SourceDenied that has these messages."""

    messages: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Convert:
    """The build uses another source in its place, which is asked about in turn."""

    identifier: str
    attrs: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))


@dataclass(frozen=True, slots=True)
class Resolve:
    """The daemon resolves the source first, then asks again. For images, with the config where that is wanted."""

    image_config: bool = False


Verdict: TypeAlias = Allow | Deny | Convert | Resolve
SourceDecider: TypeAlias = Callable[[SourceQuestion], "Verdict | Awaitable[Verdict]"]
"""Decides about one source; a function that is not a coroutine runs in a thread. Daemons ask at most ten times about
a source, conversions included. What it raises fails the build."""


class SourcePolicy:
    """Asks a function about every source of the solves that name its session as their policy's."""

    def __init__(self, decide: SourceDecider) -> None:
        self._decide = decide
        self.questions = 0
        """How often the daemon has asked; none after a solve with sources means that it knows no such policies."""

    def methods(self) -> Mapping[str, Handler]:
        """See Attachable."""
        return {CHECK_POLICY: self._check}

    async def _check(self, call: Call) -> None:
        from buildkit_py.pb import policysession_pb2  # most builds have no policy

        request = policysession_pb2.CheckPolicyRequest.FromString(await only_message(call))
        self.questions += 1
        question = _question(request)
        try:
            direct = inspect.iscoroutinefunction(self._decide)
            given = self._decide(question) if direct else await asyncio.to_thread(self._decide, question)
            verdict = cast("object", await given if inspect.isawaitable(given) else given)
        except Exception as error:  # of the caller's function; its text would stand in the daemon's history
            _LOG.debug("the source policy failed on %s", question.identifier, exc_info=error)
            raise CallError(
                Code.UNKNOWN, f"the source policy failed on {question.identifier}: {type(error).__name__}"
            ) from error
        if not isinstance(verdict, Verdict):
            raise CallError(Code.UNKNOWN, f"the source policy gave {type(verdict).__name__}, expected a verdict")
        await call.send(_answer(verdict, request).SerializeToString(deterministic=True))


def _question(request: policysession_pb2.CheckPolicyRequest) -> SourceQuestion:
    source = request.Source
    operation = source.Source
    return SourceQuestion(
        identifier=operation.identifier,
        attrs=MappingProxyType(dict(operation.attrs)),
        platform=Platform.from_pb(request.Platform) if request.HasField("Platform") else None,
        resolved=any(source.HasField(name) for name in ("Image", "Git", "HTTP")),
        image_digest=source.Image.Digest,
        image_config=source.Image.Config,
        git_commit=source.Git.CommitChecksum or source.Git.Checksum,
        git_ref=source.Git.Ref,
        http_digest=source.HTTP.Checksum,
        http_filename=source.HTTP.Filename,
    )


def _answer(verdict: Verdict, request: policysession_pb2.CheckPolicyRequest) -> policysession_pb2.CheckPolicyResponse:
    from buildkit_py.pb import ops_pb2, policy_pb2, policysession_pb2

    match verdict:
        case Allow():
            decision = policysession_pb2.DecisionResponse(action=policy_pb2.ALLOW)
        case Deny(messages):
            decision = policysession_pb2.DecisionResponse(
                action=policy_pb2.DENY,
                denyMessages=[policysession_pb2.DenyMessage(message=text) for text in messages],
            )
        case Convert(identifier, attrs):
            update = ops_pb2.SourceOp(identifier=identifier, attrs=dict(attrs))
            decision = policysession_pb2.DecisionResponse(action=policy_pb2.CONVERT, update=update)
        case Resolve(image_config):
            return policysession_pb2.CheckPolicyResponse(request=_metadata_request(request, image_config))
        case _:
            assert_never(verdict)
    return policysession_pb2.CheckPolicyResponse(decision=decision)


def _metadata_request(
    request: policysession_pb2.CheckPolicyRequest, image_config: bool
) -> gateway_pb2.ResolveSourceMetaRequest:
    """Identifier and attributes have to be those of the question."""
    from buildkit_py.pb import gateway_pb2

    wanted = gateway_pb2.ResolveSourceMetaRequest(Source=request.Source.Source)
    if request.HasField("Platform"):
        wanted.Platform.CopyFrom(request.Platform)
    if request.Source.Source.identifier.startswith("docker-image://"):
        wanted.Image.NoConfig = not image_config
    return wanted


@dataclass(frozen=True, slots=True)
class SourceRules:
    """Rules about sources that the daemon goes by itself, as BuildKit's policy files have them."""

    policy: bytes
    """A serialised ``moby.buildkit.v1.sourcepolicy.Policy``."""

    @classmethod
    def parse(cls, data: bytes, name: str) -> Self:
        """Read a policy file, in JSON or as protobuf; raise InvalidOption, which calls it name, for anything else.

        A field that policies do not have is refused: what was meant with it would not be heeded.
        Source: docker/buildx, build/build.go, ReadSourcePolicy.
        """
        from google.protobuf import json_format
        from google.protobuf.message import DecodeError

        from buildkit_py.pb import policy_pb2

        policy = policy_pb2.Policy()
        try:
            json_format.Parse(data, policy)
        except (json_format.ParseError, UnicodeDecodeError) as error:
            if data.lstrip().startswith(b"{"):
                raise InvalidOption(f"{name}: is no source policy: {error}") from error
            try:
                policy.ParseFromString(data)
            except DecodeError:
                raise InvalidOption(f"{name}: is no source policy, in JSON or as protobuf") from error
        if policy.version != 1:
            raise InvalidOption(f"{name}: the source policy has version {policy.version}, not 1")
        return cls(policy.SerializeToString(deterministic=True))


__all__ = [
    "Allow",
    "Convert",
    "Deny",
    "Resolve",
    "SourceDecider",
    "SourcePolicy",
    "SourceQuestion",
    "SourceRules",
    "Verdict",
]
