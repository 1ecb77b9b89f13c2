"""Why gRPC could not connect, in words that a user can act upon.

gRPC tells of a failed handshake in the words of its TLS library, and often not at all. After a failure we
therefore connect once more by ourselves, with the same certificates, and look how far that goes.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncGenerator

from buildkit_py.rpc.address import Address
from buildkit_py.rpc.tls import TLSMaterial

PROBE_SECONDS = 3.0
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"  # and empty SETTINGS
_SETTINGS = 4

# Source: OpenSSL, include/openssl/x509_vfy.h (X509_V_ERR_...).
_NOT_YET_VALID, _EXPIRED = 9, 10
_UNKNOWN_CA = {2, 18, 19, 20, 21}
_WRONG_NAME = {62, 64}


async def diagnose(address: Address, tls: TLSMaterial | None) -> str | None:
    """Reason why a daemon cannot be reached, or None where nothing is wrong, or too much time passes."""
    if address.scheme == "docker":
        return None  # the bridge has said what there is to say
    try:
        async with asyncio.timeout(PROBE_SECONDS):
            return await (_diagnose_plain(address) if tls is None else _diagnose_tls(address, tls))
    except TimeoutError:
        return None
    except socket.gaierror as error:
        return f"host {address.host!r} cannot be resolved: {error.strerror}"
    except ConnectionRefusedError:
        return f"connection refused: nothing listens on port {address.port}"
    except OSError as error:
        return error.strerror or str(error)


async def _diagnose_plain(address: Address) -> str | None:
    async with _connect(address) as (reader, writer):
        answer = await _first_bytes(reader, writer)
    if _is_settings(answer):
        return None
    if answer.startswith(b"HTTP/1"):
        return "what answers speaks HTTP/1, not gRPC"
    if answer[:2] == b"\x15\x03" or (address.scheme == "tcp" and not answer and await _speaks_tls(address)):
        return "the daemon expects TLS: give the TLS options that it needs (ca, and cert and key)"
    return "what answers does not speak gRPC" if answer else "the connection is closed by the other side"


async def _diagnose_tls(address: Address, tls: TLSMaterial) -> str | None:
    context = await asyncio.to_thread(tls.context)
    name = tls.server_name or address.host
    try:
        async with _connect(address, context, name) as (reader, writer):
            # A server that refuses our certificate says so only after the handshake (TLS 1.3).
            answer = await _first_bytes(reader, writer)
    except ssl.SSLCertVerificationError as error:
        return _verification_reason(error, name)
    except ssl.SSLError as error:
        return _alert_reason(error, has_cert=tls.cert is not None)
    except ConnectionResetError:
        if await _speaks_tls(address):
            return "the daemon ended the TLS handshake"
        return "the daemon does not speak TLS on this port: leave the TLS options out, or use another port"
    if not answer:
        if tls.cert is None:
            return "the daemon closed the connection: it may want a client certificate (TLS cert and key)"
        return "the daemon closed the connection: it may not accept the client certificate"
    return None if _is_settings(answer) else "what answers does not speak gRPC"


def _verification_reason(error: ssl.SSLCertVerificationError, name: str) -> str:
    match error.verify_code:
        case code if code in _UNKNOWN_CA:
            return "the daemon's certificate is not signed by a trusted CA (TLS ca)"
        case 10:
            return "the daemon's certificate has expired"
        case 9:
            return "the daemon's certificate is not valid yet"
        case code if code in _WRONG_NAME:
            return f"the daemon's certificate is not for {name!r}; TLS server_name can name another"
        case _:
            return f"the daemon's certificate cannot be verified: {error.verify_message}"


def _alert_reason(error: ssl.SSLError, *, has_cert: bool) -> str:
    reason = (error.reason or "").upper()
    if "CERTIFICATE_REQUIRED" in reason or ("HANDSHAKE_FAILURE" in reason and not has_cert):
        return "the daemon wants a client certificate (TLS cert and key)"
    if "ALERT" in reason and has_cert and any(word in reason for word in ("CERT", "UNKNOWN_CA", "DECRYPT_ERROR")):
        return f"the daemon does not accept the client certificate ({_words(reason)})"
    if reason in {
        "WRONG_VERSION_NUMBER",
        "RECORD_LAYER_FAILURE",
        "UNEXPECTED_MESSAGE",
        "HTTP_REQUEST",
        "PACKET_LENGTH_TOO_LONG",
    }:
        return "the daemon does not speak TLS on this port: leave the TLS options out, or use another port"
    return f"the TLS handshake failed ({_words(reason) or 'no reason given'})"


def _words(reason: str) -> str:
    return reason.replace("_", " ").lower()


async def _speaks_tls(address: Address) -> bool:
    """True when a handshake that trusts anybody gets anywhere; nothing is sent over it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    try:
        async with _connect(address, context, address.host):
            return True
    except ssl.SSLError as error:
        return "ALERT" in (error.reason or "").upper()
    except OSError:
        return False


@contextlib.asynccontextmanager
async def _connect(
    address: Address, context: ssl.SSLContext | None = None, name: str | None = None
) -> AsyncGenerator[tuple[asyncio.StreamReader, asyncio.StreamWriter], None]:
    if address.scheme == "unix":
        reader, writer = await asyncio.open_unix_connection(address.path)
    else:
        reader, writer = await asyncio.open_connection(
            address.host, address.port, ssl=context, server_hostname=name if context else None
        )
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


async def _first_bytes(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
    """What an HTTP/2 server says first; b"" when it hangs up."""
    writer.write(_PREFACE)
    try:
        await writer.drain()
        return await reader.read(64)
    except ssl.SSLError:
        raise
    except ConnectionError:
        return b""


def _is_settings(data: bytes) -> bool:
    return len(data) >= 4 and data[3] == _SETTINGS and not data.startswith(b"HTTP")
