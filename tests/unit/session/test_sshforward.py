"""SSH forwarding: which questions pass, which keys sign, and what is refused before any work."""

from __future__ import annotations

import asyncio
import base64
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeAlias

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from buildkit_py.errors import InvalidOption
from buildkit_py.options import SSHSpec
from buildkit_py.pb import ssh_pb2
from buildkit_py.session.attachable import CallError, Code
from buildkit_py.session.sshforward import CHECK_AGENT, FORWARD_AGENT, MAX_MESSAGE_BYTES, SSHForward
from buildkit_py.session.sshkeys import MAX_KEY_FILE_BYTES
from tests.support.calls import MemoryCall, call_pair

LIST = b"\x00\x00\x00\x01\x0b"
REFUSED = b"\x00\x00\x00\x01\x05"
ED25519 = ed25519.Ed25519PrivateKey.generate()
P256, P521 = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP521R1())
RSA = rsa.generate_private_key(65537, 2048)

PrivateKey: TypeAlias = ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
KEYS: list[PrivateKey] = [ED25519, P256, RSA]
PROTECTED = """\
-----BEGIN OPENSSH PRIVATE KEY-----
b3BlbnNzaC1rZXktdjEAAAAACmFlczI1Ni1jdHIAAAAGYmNyeXB0AAAAGAAAABC0bpUVU7
0qu2NsmZKTW3pIAAAAEAAAAAEAAAAzAAAAC3NzaC1lZDI1NTE5AAAAILfWnY/cJZz/uuuv
NbOyWuzOoyCnXBUSD+gMXGMMrvXMAAAAkB/4Ar10InqWvgTaBogHluqQqPNrjdfdHZE07k
YPildw3Pc3Sn9WaIkiP19Zz9CfDrfQZw+A5T1xBOzoJcZe2g6ETK30RiAruew3v7R/Qc0F
GQmkqzO/lOBcGxFjxUjyxtfb8I0vvIG5bvviAGKkb/o+EQ+WoOPYvQ1HFn2zHsfj0S9VHk
3ZBK9AvAJRMxQD9w==
-----END OPENSSH PRIVATE KEY-----
"""
"""Made by ssh-keygen 9.2 -t ed25519, with a passphrase; of no use to anyone."""


def write_key(path: Path, key: PrivateKey) -> Path:
    path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()))
    return path


def string(data: bytes) -> bytes:
    return struct.pack(">L", len(data)) + data


def strings(data: bytes) -> list[bytes]:
    found: list[bytes] = []
    while data:
        (size,) = struct.unpack_from(">L", data)
        found.append(data[4 : 4 + size])
        data = data[4 + size :]
    return found


def question(kind: int, body: bytes = b"") -> bytes:
    return string(bytes([kind]) + body)


class Forwarded:
    """A step's connection to its agent."""

    def __init__(self, call: MemoryCall) -> None:
        self.call = call
        self._buffer = b""

    async def write(self, data: bytes) -> None:
        await self.call.send(ssh_pb2.BytesMessage(data=data).SerializeToString())

    async def read(self, size: int) -> bytes:
        while len(self._buffer) < size:
            message = await self.call.receive()
            assert message is not None
            self._buffer += ssh_pb2.BytesMessage.FromString(message).data
        data, self._buffer = self._buffer[:size], self._buffer[size:]
        return data

    async def ask(self, message: bytes) -> bytes:
        await self.write(message)
        (size,) = struct.unpack(">L", await self.read(4))
        return await self.read(size)


async def _run(forward: SSHForward, call: MemoryCall) -> None:
    await forward.methods()[FORWARD_AGENT](call)


@asynccontextmanager
async def forwarded(forward: SSHForward, name: str | None = None) -> AsyncIterator[Forwarded]:
    """Afterwards the handler has ended without an error."""
    headers = () if name is None else (("buildkit.ssh.id", name),)
    ours, daemon = call_pair(FORWARD_AGENT, headers)
    async with asyncio.TaskGroup() as tasks:
        serving = tasks.create_task(_run(forward, ours))
        yield Forwarded(daemon)
        daemon.end()
        async with asyncio.timeout(5):
            await serving


async def check(forward: SSHForward, name: str) -> None:
    ours, daemon = call_pair(CHECK_AGENT)
    await daemon.send(ssh_pb2.CheckAgentRequest(ID=name).SerializeToString())
    daemon.end()
    await forward.methods()[CHECK_AGENT](ours)
    assert await daemon.receive() == b""


def keys_of(*paths: Path, name: str = "default") -> SSHForward:
    return SSHForward([SSHSpec(id=name, paths=paths)], environ={})


class FakeAgent:
    """An agent that repeats the question; notes all bytes that reach it."""

    def __init__(self) -> None:
        self.received = bytearray()
        self.connections = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        while data := await reader.read(65536):
            self.received += data
            writer.write(data)
            await writer.drain()
        writer.close()


@asynccontextmanager
async def agent_at(path: Path) -> AsyncIterator[FakeAgent]:
    agent = FakeAgent()
    server = await asyncio.start_unix_server(agent.serve, path)
    async with server:
        yield agent


async def test_check_agent_knows_the_ids(tmp_path: Path) -> None:
    """The empty id is the default one; an unknown one is told with what to do."""
    forward = keys_of(write_key(tmp_path / "k", ED25519))
    await check(forward, "default")
    await check(forward, "")
    with pytest.raises(CallError, match=r"no ssh agent or key was given for id other \(--ssh\)") as caught:
        await check(forward, "other")
    assert caught.value.code is not Code.UNIMPLEMENTED


async def test_keys_are_listed_without_a_word_of_where_they_come_from(tmp_path: Path) -> None:
    paths = [write_key(tmp_path / str(number), key) for number, key in enumerate(KEYS)]
    async with forwarded(keys_of(*paths)) as step:
        answer = await step.ask(LIST)
    assert answer[0] == 12
    assert struct.unpack(">L", answer[1:5]) == (3,)
    listed = strings(answer[5:])
    assert listed[1::2] == [b"", b"", b""]
    for blob, key in zip(listed[::2], KEYS, strict=True):
        line = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
        assert base64.b64decode(line.split()[1]) == blob


async def sign(step: Forwarded, blob: bytes, flags: int = 0) -> tuple[bytes, bytes]:
    """(algorithm, signature) of b"data"."""
    answer = await step.ask(question(13, string(blob) + string(b"data") + struct.pack(">L", flags)))
    assert answer[0] == 14, answer
    (signature,) = strings(answer[1:])
    algorithm, value = strings(signature)
    return algorithm, value


async def only_key(step: Forwarded) -> bytes:
    return strings((await step.ask(LIST))[5:])[0]


async def test_ed25519_signs(tmp_path: Path) -> None:
    async with forwarded(keys_of(write_key(tmp_path / "k", ED25519))) as step:
        algorithm, value = await sign(step, await only_key(step))
    assert algorithm == b"ssh-ed25519"
    ED25519.public_key().verify(value, b"data")
    with pytest.raises(InvalidSignature):
        ED25519.public_key().verify(value, b"other")


@pytest.mark.parametrize(
    ("key", "algorithm", "digest"),
    [(P256, b"ecdsa-sha2-nistp256", hashes.SHA256()), (P521, b"ecdsa-sha2-nistp521", hashes.SHA512())],
)
async def test_ecdsa_signs(
    tmp_path: Path, key: ec.EllipticCurvePrivateKey, algorithm: bytes, digest: hashes.HashAlgorithm
) -> None:
    """Often enough to meet numbers with and without their highest bit set."""
    async with forwarded(keys_of(write_key(tmp_path / "k", key))) as step:
        blob = await only_key(step)
        for _ in range(16):
            said, value = await sign(step, blob)
            assert said == algorithm
            r, s = (int.from_bytes(number, "big", signed=True) for number in strings(value))
            key.public_key().verify(encode_dss_signature(r, s), b"data", ec.ECDSA(digest))


@pytest.mark.parametrize(
    ("flags", "algorithm", "digest"),
    [
        (0, b"ssh-rsa", hashes.SHA1()),
        (2, b"rsa-sha2-256", hashes.SHA256()),
        (4, b"rsa-sha2-512", hashes.SHA512()),
        (6, b"rsa-sha2-512", hashes.SHA512()),
    ],
)
async def test_rsa_signs_as_the_flags_say(
    tmp_path: Path, flags: int, algorithm: bytes, digest: hashes.HashAlgorithm
) -> None:
    path = tmp_path / "k"
    path.write_bytes(RSA.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption()))
    async with forwarded(keys_of(path)) as step:
        said, value = await sign(step, await only_key(step), flags)
    assert said == algorithm
    RSA.public_key().verify(value, b"data", padding.PKCS1v15(), digest)


@pytest.mark.parametrize(
    "message",
    [
        question(17, b"add identity"),
        question(18),
        question(19),
        question(22, string(b"lock")),
        question(27, string(b"session-bind@openssh.com")),
        question(13),
        question(13, string(b"nobody's key") + string(b"data") + bytes(4)),
        question(13, b"\xff\xff\xff\xff"),
        question(255),
    ],
)
async def test_keys_refuse_everything_else_and_go_on(tmp_path: Path, message: bytes) -> None:
    async with forwarded(keys_of(write_key(tmp_path / "k", ED25519))) as step:
        await step.write(message)
        assert await step.read(5) == REFUSED
        assert (await step.ask(LIST))[0] == 12


async def test_an_agents_socket_gets_only_what_a_step_may_ask(tmp_path: Path) -> None:
    """Bytes come in any split, several questions at once; each connection is one of its own."""
    async with agent_at(tmp_path / "agent") as agent:
        forward = SSHForward([SSHSpec(id="x", paths=[tmp_path / "agent"])])
        allowed = [LIST, question(13, b"sign")]
        async with forwarded(forward, "x") as step, forwarded(forward, "x") as second:
            stream = allowed[0] + question(17, b"add") + allowed[1] + question(19)
            for position in range(len(stream)):
                await step.write(stream[position : position + 1])
            expected = allowed[0] + REFUSED + allowed[1] + REFUSED
            assert await step.read(len(expected)) == expected
            await second.write(stream)
            assert await second.read(len(expected)) == expected
        assert bytes(agent.received) == b"".join(allowed) * 2
        assert agent.connections == 2


async def test_an_agent_of_the_environment(tmp_path: Path) -> None:
    async with agent_at(tmp_path / "agent"):
        forward = SSHForward([SSHSpec()], environ={"SSH_AUTH_SOCK": str(tmp_path / "agent")})
        async with forwarded(forward) as step:
            assert await step.ask(LIST) == LIST[4:]


async def test_raw_passes_all_bytes_and_the_end(tmp_path: Path) -> None:
    async with agent_at(tmp_path / "socket") as agent:
        forward = SSHForward([SSHSpec.parse(f"raw={tmp_path / 'socket'},raw=true")])
        data = bytes(range(256)) * 1024
        async with forwarded(forward, "raw") as step:
            await step.write(data)
            assert await step.read(len(data)) == data
        assert agent.received == data


async def test_messages_of_no_sensible_size_end_the_call(tmp_path: Path) -> None:
    forward = keys_of(write_key(tmp_path / "k", ED25519))
    for size in (0, MAX_MESSAGE_BYTES + 1):
        ours, daemon = call_pair(FORWARD_AGENT)
        await daemon.send(ssh_pb2.BytesMessage(data=struct.pack(">L", size)).SerializeToString())
        with pytest.raises(CallError, match="no sensible size"):
            await forward.methods()[FORWARD_AGENT](ours)


@pytest.mark.parametrize("size", [0, MAX_MESSAGE_BYTES + 1])
async def test_an_agent_whose_answer_is_of_no_sensible_size(tmp_path: Path, size: int) -> None:
    """It is not waited for, nor kept in memory."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(struct.pack(">L", size) + bytes(size))
        writer.close()

    async with await asyncio.start_unix_server(serve, tmp_path / "agent"):
        forward = SSHForward([SSHSpec(paths=[tmp_path / "agent"])])
        ours, daemon = call_pair(FORWARD_AGENT)
        await daemon.send(ssh_pb2.BytesMessage(data=LIST).SerializeToString())
        with pytest.raises(CallError, match="the ssh agent sent a message of no sensible size"):
            await forward.methods()[FORWARD_AGENT](ours)


def test_a_file_that_is_too_large_for_a_key(tmp_path: Path) -> None:
    """Not all of it is read, whatever it begins with."""
    path = write_key(tmp_path / "k", ED25519)
    path.write_bytes(path.read_bytes() + b"\n" * MAX_KEY_FILE_BYTES)
    with pytest.raises(InvalidOption, match="is neither the socket of an agent nor a private key"):
        keys_of(path)


async def test_an_agent_that_does_not_take_the_connection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The daemon is told, instead of waiting with the step that wants a key."""

    async def hang(path: Path) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(asyncio, "open_unix_connection", hang)
    monkeypatch.setattr("buildkit_py.session.sshforward.CONNECT_SECONDS", 0.05)
    async with agent_at(tmp_path / "agent"):
        forward = SSHForward([SSHSpec(paths=[tmp_path / "agent"])])
        ours, _ = call_pair(FORWARD_AGENT)
        with pytest.raises(CallError, match="no answer") as caught:
            await asyncio.wait_for(forward.methods()[FORWARD_AGENT](ours), 10)
    assert caught.value.code is Code.UNAVAILABLE


async def test_an_agent_that_is_gone(tmp_path: Path) -> None:
    """Before the connection and in the middle of it."""
    path = tmp_path / "agent"
    async with agent_at(path):
        forward = SSHForward([SSHSpec(paths=[path])])
    ours, _ = call_pair(FORWARD_AGENT)
    with pytest.raises(CallError, match="cannot connect to the ssh agent"):
        await forward.methods()[FORWARD_AGENT](ours)

    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.close()

    path.unlink(missing_ok=True)
    async with await asyncio.start_unix_server(hang_up, path):
        ours, daemon = call_pair(FORWARD_AGENT)
        await daemon.send(ssh_pb2.BytesMessage(data=LIST).SerializeToString())
        with pytest.raises(CallError, match="closed the connection"):
            await forward.methods()[FORWARD_AGENT](ours)


async def test_a_call_that_is_cancelled_drops_the_connection(tmp_path: Path) -> None:
    gone = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await reader.read(1024):
                pass
        except OSError:
            pass
        gone.set()
        writer.close()

    async with await asyncio.start_unix_server(serve, tmp_path / "agent"):
        forward = SSHForward([SSHSpec(paths=[tmp_path / "agent"])])
        ours, daemon = call_pair(FORWARD_AGENT)
        calling = asyncio.ensure_future(forward.methods()[FORWARD_AGENT](ours))
        await daemon.send(ssh_pb2.BytesMessage(data=LIST).SerializeToString())
        await asyncio.sleep(0)
        calling.cancel()
        with pytest.raises(asyncio.CancelledError):
            await calling
        async with asyncio.timeout(5):
            await gone.wait()


def test_what_is_refused_before_any_work(tmp_path: Path) -> None:
    key = write_key(tmp_path / "key", ED25519)
    protected, pem, dsa_key = tmp_path / "protected", tmp_path / "pem", tmp_path / "dsa"
    password = BestAvailableEncryption(b"open sesame")
    protected.write_text(PROTECTED)
    pem.write_bytes(RSA.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, password))
    dsa_key.write_bytes(dsa.generate_private_key(1024).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    public = tmp_path / "key.pub"
    public.write_bytes(ED25519.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH))
    broken = tmp_path / "broken"
    broken.write_bytes(key.read_bytes()[:120] + b"\n-----END OPENSSH PRIVATE KEY-----\n")
    for paths, why in (
        ([protected], r"protected by a passphrase: add it to an agent \(ssh-add\)"),
        ([pem], "protected by a passphrase"),
        ([dsa_key], "expected an Ed25519, ECDSA or RSA key"),
        ([public], "the private one is wanted"),
        ([broken], "cannot be read"),
        ([tmp_path], "Is a directory"),
        ([tmp_path / "none"], "none: No such file"),
    ):
        with pytest.raises(InvalidOption, match=why):
            keys_of(*paths)
    with pytest.raises(InvalidOption, match="SSH_AUTH_SOCK is not set"):
        keys_of()
    with pytest.raises(InvalidOption, match="raw=true needs a socket"):
        SSHForward([SSHSpec(paths=[key], raw=True)])
    with pytest.raises(InvalidOption, match="given twice"):
        SSHForward([SSHSpec(paths=[key]), SSHSpec(paths=[key])])


async def test_sockets_and_keys_do_not_mix(tmp_path: Path) -> None:
    async with agent_at(tmp_path / "agent"):
        with pytest.raises(InvalidOption, match="expected one socket, or keys alone"):
            keys_of(tmp_path / "agent", write_key(tmp_path / "key", ED25519))


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("default", SSHSpec()),
        ("x=/a", SSHSpec(id="x", paths=("/a",))),
        ("x=/a,/b", SSHSpec(id="x", paths=("/a", "/b"))),
        ("x=/a,raw=true", SSHSpec(id="x", paths=("/a",), raw=True)),
        ("x=raw=false,/a", SSHSpec(id="x", paths=("/a",))),
    ],
)
def test_the_command_line_is_read_as_buildx_reads_it(text: str, spec: SSHSpec) -> None:
    assert SSHSpec.parse(text) == spec


@pytest.mark.parametrize("text", ["", "=/a", "x=", "x=/a,,/b", "x=/a,raw=maybe", "x=raw=true", "x=/a,/b,raw=true"])
def test_bad_options(text: str) -> None:
    with pytest.raises(InvalidOption):
        SSHSpec.parse(text)
