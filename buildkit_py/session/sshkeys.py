"""An ssh agent of key files: lists their public halves and signs.

Source: draft-ietf-sshm-ssh-agent; RFC 4253, 5656, 8332 and 8709 for the formats of keys and signatures.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import struct
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
    load_ssh_private_key,
)

from buildkit_py.errors import InvalidOption
from buildkit_py.session.sshforward import FAILURE, REQUEST_IDENTITIES, SIGN_REQUEST, Agent

MAX_KEY_FILE_BYTES = 100 << 10

_IDENTITIES_ANSWER, _SIGN_RESPONSE = 12, 14
_RSA_SHA2_256, _RSA_SHA2_512 = 2, 4  # flags of a sign request
_OPENSSH_HEADER = b"-----BEGIN OPENSSH PRIVATE KEY-----"
_CURVE_HASHES: dict[str, type[hashes.SHA256 | hashes.SHA384 | hashes.SHA512]] = {
    "nistp256": hashes.SHA256,
    "nistp384": hashes.SHA384,
    "nistp521": hashes.SHA512,
}

_PrivateKey: TypeAlias = ed25519.Ed25519PrivateKey | rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey


@dataclass(frozen=True, slots=True)
class Key:
    """A private key, known by its public half."""

    public: bytes
    """As it stands in an authorized_keys file, decoded."""
    sign: Callable[[bytes, int], bytes] = field(repr=False)
    """Signature of data, in the format of the protocol, with the flags of the request."""


class KeyAgent:
    """Signs with keys in memory. Agent and AgentSource in one: connections have nothing of their own."""

    def __init__(self, keys: Sequence[Key]) -> None:
        self._keys = {key.public: key for key in keys}

    @contextlib.asynccontextmanager
    async def connect(self) -> AsyncGenerator[Agent]:
        """See AgentSource."""
        yield self

    async def ask(self, message: bytes) -> bytes:
        """See Agent. What cannot be answered is a failure, as with any agent."""
        try:
            if message[0] == REQUEST_IDENTITIES:
                listed = b"".join(_string(public) + _string(b"") for public in self._keys)
                return bytes([_IDENTITIES_ANSWER]) + struct.pack(">L", len(self._keys)) + listed
            if message[0] == SIGN_REQUEST:
                public, rest = _take(message[1:])
                data, rest = _take(rest)
                (flags,) = struct.unpack(">L", rest)
                signature = await asyncio.to_thread(self._keys[public].sign, data, flags)
                return bytes([_SIGN_RESPONSE]) + _string(signature)
        except (struct.error, KeyError, ValueError, UnsupportedAlgorithm):
            pass
        return FAILURE[4:]


def load_key(path: Path, *, what: str) -> Key:
    """Load a private key in OpenSSH's or a PEM format; what names the option in errors. Blocks.

    Raises InvalidOption for a file that is none, and for a key with a passphrase.
    """
    what = f"{what}: {path}"
    try:
        with path.open("rb") as file:
            data = file.read(MAX_KEY_FILE_BYTES + 1)
    except OSError as error:
        raise InvalidOption(f"{what}: {error.strerror}") from error
    if len(data) > MAX_KEY_FILE_BYTES or b"PRIVATE KEY-----" not in data:
        hint = ": the private one is wanted" if data.startswith((b"ssh-", b"ecdsa-", b"sk-")) else ""
        raise InvalidOption(f"{what} is neither the socket of an agent nor a private key{hint}")
    try:
        load = load_ssh_private_key if data.lstrip().startswith(_OPENSSH_HEADER) else load_pem_private_key
        key = load(data, None)
    except TypeError:
        raise InvalidOption(
            f"{what} is protected by a passphrase: add it to an agent (ssh-add), and forward that"
        ) from None
    except (ValueError, UnsupportedAlgorithm):
        # What the library says of a broken key may quote it.
        raise InvalidOption(f"{what} is a private key that cannot be read: damaged, or of an unknown kind") from None
    if not isinstance(key, _PrivateKey):
        raise InvalidOption(f"{what}: expected an Ed25519, ECDSA or RSA key")
    return _key_of(key)


def _key_of(key: _PrivateKey) -> Key:
    line = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    kind, encoded = line.split()[:2]
    return Key(base64.b64decode(encoded), lambda data, flags: _signature(key, kind, data, flags))


def _signature(key: _PrivateKey, kind: bytes, data: bytes, flags: int) -> bytes:
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return _string(kind) + _string(key.sign(data))
    if isinstance(key, ec.EllipticCurvePrivateKey):
        algorithm = _CURVE_HASHES[kind.decode().rpartition("-")[2]]()
        r, s = decode_dss_signature(key.sign(data, ec.ECDSA(algorithm)))
        return _string(kind) + _string(_mpint(r) + _mpint(s))
    if flags & _RSA_SHA2_512:
        return _string(b"rsa-sha2-512") + _string(key.sign(data, padding.PKCS1v15(), hashes.SHA512()))
    if flags & _RSA_SHA2_256:
        return _string(b"rsa-sha2-256") + _string(key.sign(data, padding.PKCS1v15(), hashes.SHA256()))
    # Servers that know no better ask for this one.
    return _string(b"ssh-rsa") + _string(key.sign(data, padding.PKCS1v15(), hashes.SHA1()))  # noqa: S303


def _string(data: bytes) -> bytes:
    return struct.pack(">L", len(data)) + data


def _mpint(number: int) -> bytes:
    return _string(number.to_bytes(number.bit_length() // 8 + 1, "big"))


def _take(data: bytes) -> tuple[bytes, bytes]:
    """A string and what follows it; struct.error when it is cut off."""
    (size,) = struct.unpack_from(">L", data)
    if len(data) < 4 + size:
        raise struct.error("cut off")
    return data[4 : 4 + size], data[4 + size :]
