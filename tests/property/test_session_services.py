"""Whatever a daemon sends to a service of the session has an answer or an error; nothing is written outside."""

from __future__ import annotations

import asyncio
import io
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path

from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st

from buildkit_py.errors import BuildKitError
from buildkit_py.options import ExporterSpec, SecretSpec, SSHSpec
from buildkit_py.pb import content_pb2, policysession_pb2, secrets_pb2, ssh_pb2
from buildkit_py.session.attachable import Attachable
from buildkit_py.session.content import STORE_HEADER, BlobStore, ContentStores
from buildkit_py.session.exporter import SessionExporter
from buildkit_py.session.policy import Allow, SourcePolicy
from buildkit_py.session.secrets import Secrets
from buildkit_py.session.sshforward import SSHForward
from buildkit_py.session.sshkeys import Key, KeyAgent
from buildkit_py.session.upload import Replay, Upload, new_url
from tests.support.calls import MemoryCall, call_pair

HEADERS = [(STORE_HEADER, "s"), ("buildkit.ssh.id", "default"), ("urlpath", "/x")]

_DIGESTS = st.sampled_from(["", "sha256:" + "0" * 64, "sha512:x", "../../etc/passwd", "sha256:../../../x"]) | st.text()
_ACTIONS = st.sampled_from([0, 1, 2])
_OFFSETS = st.integers(-2, 9)
MESSAGES = st.one_of(
    st.binary(max_size=64),
    st.builds(content_pb2.InfoRequest, digest=_DIGESTS),
    st.builds(content_pb2.ReadContentRequest, digest=_DIGESTS, offset=_OFFSETS, size=_OFFSETS),
    st.builds(
        content_pb2.WriteContentRequest,
        action=_ACTIONS,
        ref=st.sampled_from(["r", "", "../r"]),
        total=_OFFSETS,
        expected=_DIGESTS,
        offset=_OFFSETS,
        data=st.binary(max_size=8),
    ),
    st.builds(secrets_pb2.GetSecretRequest, ID=st.text()),
    st.builds(ssh_pb2.BytesMessage, data=st.binary(max_size=64)),
    st.builds(ssh_pb2.BytesMessage, data=st.binary(max_size=8).map(lambda data: bytes([0, 0, 0, len(data)]) + data)),
    st.builds(policysession_pb2.CheckPolicyRequest),
).map(lambda message: message if isinstance(message, bytes) else message.SerializeToString())


def forward() -> SSHForward:
    service = SSHForward([])
    key = Key(b"public", lambda data, flags: b"signature")
    service._sources["default"] = KeyAgent([key])
    return service


def services(root: Path) -> list[Attachable]:
    return [
        ContentStores({"s": BlobStore(root / "store", writable=True)}),
        Secrets([SecretSpec(id="s", value=b"v")]),
        forward(),
        Upload({new_url(): Replay(io.BytesIO(b"x"))}),
        SourcePolicy(lambda question: Allow()),
        SessionExporter(lambda metadata, refs: [ExporterSpec(type="image")]),
    ]


async def run(handler: Callable[[MemoryCall], Awaitable[None]], method: str, messages: list[bytes]) -> None:
    ours, daemon = call_pair(method, HEADERS)
    await daemon.send(*messages)
    daemon.end()
    async with asyncio.timeout(5):
        try:
            await handler(ours)
        except (BuildKitError, DecodeError):
            return


@settings(max_examples=60)
@given(st.lists(MESSAGES, max_size=5))
def test_any_messages_end_in_an_answer_or_an_error(messages: list[bytes]) -> None:
    async def ask_all(root: Path) -> None:
        for service in services(root):
            for method, handler in service.methods().items():
                await run(handler, method, messages)

    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        asyncio.run(ask_all(root))
        written = [path for path in root.rglob("*") if path.is_file()]
        assert all(path.parent == root / "store" / "blobs" / path.parent.name for path in written)


@given(st.text())
def test_any_option_is_read_or_refused(text: str) -> None:
    for parse in (SecretSpec.parse, SSHSpec.parse):
        try:
            parse(text)
        except BuildKitError:
            continue
