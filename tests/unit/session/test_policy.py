"""The source policy and the choice of exporters: what a daemon is answered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest

from buildkit_py.options import ExporterSpec
from buildkit_py.pb import exporter_pb2, gateway_pb2, ops_pb2, policy_pb2, policysession_pb2
from buildkit_py.session.attachable import CHECK_POLICY, FIND_EXPORTERS, CallError
from buildkit_py.session.exporter import FINALIZE_EXPORT, SessionExporter
from buildkit_py.session.policy import (
    Allow,
    Convert,
    Deny,
    Resolve,
    SourceDecider,
    SourcePolicy,
    SourceQuestion,
    Verdict,
)
from tests.support.calls import call_pair

ALPINE = "docker-image://docker.io/library/alpine:latest"


async def ask(decide: SourceDecider, **fields: object) -> policysession_pb2.CheckPolicyResponse:
    source = gateway_pb2.ResolveSourceMetaResponse(
        Source=ops_pb2.SourceOp(identifier=ALPINE, attrs={"k": "v"}),
        **fields,  # type: ignore[arg-type]
    )
    request = policysession_pb2.CheckPolicyRequest(
        Platform=ops_pb2.Platform(OS="linux", Architecture="arm", Variant="v7"), Source=source
    )
    ours, daemon = call_pair(CHECK_POLICY)
    await daemon.send(request.SerializeToString())
    daemon.end()
    policy = SourcePolicy(decide)
    await policy.methods()[CHECK_POLICY](ours)
    assert policy.questions == 1
    answer = await daemon.receive()
    assert answer is not None
    return policysession_pb2.CheckPolicyResponse.FromString(answer)


async def test_verdicts_as_the_daemon_reads_them() -> None:
    """A decision of nothing at all means ALLOW, so a denial must never look like it."""

    async def deny(question: SourceQuestion) -> Verdict:
        return Deny(("no", "never"))

    answer = await ask(lambda question: Allow())
    assert answer.WhichOneof("result") == "decision"
    assert answer.decision.action == policy_pb2.ALLOW

    answer = await ask(deny)
    assert answer.decision.action == policy_pb2.DENY
    assert [message.message for message in answer.decision.denyMessages] == ["no", "never"]
    assert (await ask(lambda question: Deny())).decision.action == policy_pb2.DENY

    answer = await ask(lambda question: Convert("docker-image://other", {"a": "b"}))
    assert answer.decision.action == policy_pb2.CONVERT
    assert (answer.decision.update.identifier, dict(answer.decision.update.attrs)) == (
        "docker-image://other",
        {"a": "b"},
    )


async def test_what_is_asked_and_what_may_be_asked_back() -> None:
    seen: list[SourceQuestion] = []

    def decide(question: SourceQuestion) -> Verdict:
        seen.append(question)
        return Allow() if question.resolved else Resolve(image_config=True)

    answer = await ask(decide)
    assert answer.request.Source.identifier == ALPINE
    assert dict(answer.request.Source.attrs) == {"k": "v"}
    assert answer.request.Platform.Architecture == "arm"
    assert not answer.request.Image.NoConfig
    image = gateway_pb2.ResolveSourceImageResponse(Digest="sha256:x", Config=b"{}")
    assert (await ask(decide, Image=image)).decision.action == policy_pb2.ALLOW
    first, second = seen
    assert (first.identifier, str(first.platform), first.resolved) == (ALPINE, "linux/arm/v7", False)
    assert (second.image_digest, second.image_config, second.resolved) == ("sha256:x", b"{}", True)


async def test_a_policy_that_fails_does_not_allow() -> None:
    def broken(question: SourceQuestion) -> Verdict:
        raise ValueError("inner words")

    with pytest.raises(CallError, match=r"the source policy failed on docker-image:.*: ValueError") as caught:
        await ask(broken)
    assert "inner words" not in caught.value.message

    def nothing(question: SourceQuestion) -> Verdict:
        return None  # type: ignore[return-value]

    with pytest.raises(CallError, match="the source policy gave NoneType, expected a verdict"):
        await ask(nothing)


async def test_exporters_are_chosen_and_their_answer_is_kept() -> None:
    asked: list[tuple[Mapping[str, bytes], Sequence[str]]] = []

    def choose(metadata: Mapping[str, bytes], refs: Sequence[str]) -> Sequence[ExporterSpec]:
        asked.append((metadata, refs))
        return [ExporterSpec(type="image", attrs={"name": "x"})]

    exporter = SessionExporter(choose)
    ours, daemon = call_pair(FIND_EXPORTERS)
    await daemon.send(exporter_pb2.FindExportersRequest(metadata={"k": b"v"}, refs=["r"]).SerializeToString())
    await exporter.methods()[FIND_EXPORTERS](ours)
    answer = await daemon.receive()
    assert answer is not None
    (chosen,) = exporter_pb2.FindExportersResponse.FromString(answer).exporters
    assert (chosen.Type, dict(chosen.Attrs)) == ("image", {"name": "x"})
    assert asked == [({"k": b"v"}, ("r",))]

    ours, daemon = call_pair(FINALIZE_EXPORT)
    await daemon.send(exporter_pb2.FinalizeExportRequest(exporter_response={"a": "b"}).SerializeToString())
    await exporter.methods()[FINALIZE_EXPORT](ours)
    assert exporter.response == {"a": "b"}
