"""TLS for tcp:// addresses: what the user gives, checked before any connection is made."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from buildkit_py.errors import InvalidOption

if TYPE_CHECKING:
    import ssl

Pem: TypeAlias = "str | os.PathLike[str] | bytes"
"""A path, or PEM itself as bytes."""

_MAX_PEM_BYTES = 4 << 20
_SYSTEM_ROOTS = (
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TLSConfig:
    """How to trust the daemon, and who to be to it. Each of ca, cert and key is a path, or PEM as bytes."""

    ca: Pem | None = field(default=None, repr=False)
    """Certificates to trust; those of the system when None."""
    cert: Pem | None = field(default=None, repr=False)
    """Our certificate, followed by intermediate ones; for daemons that ask for one."""
    key: Pem | None = field(default=None, repr=False)
    """Private key of cert, without passphrase."""
    server_name: str | None = None
    """Name that the daemon's certificate must have; the address's host when None."""

    def __post_init__(self) -> None:
        if (self.cert is None) != (self.key is None):
            given, missing = ("cert", "key") if self.key is None else ("key", "cert")
            raise InvalidOption(f"TLS {given} is given without {missing}: a client certificate needs both")
        if self.server_name == "":
            raise InvalidOption("TLS server_name is empty: expected a host name")

    @classmethod
    def from_dir(cls, path: str | os.PathLike[str], *, server_name: str | None = None) -> TLSConfig:
        """Read a folder laid out as buildctl's ``--tlsdir`` wants it.

        ca.pem or ca.crt; cert.pem or tls.crt; key.pem or tls.key. The last two may be missing together.
        Raises InvalidOption when the folder has no CA or only one of the pair.
        """
        folder = Path(path)
        ca = _first(folder, "ca.pem", "ca.crt")
        cert = _first(folder, "cert.pem", "tls.crt")
        key = _first(folder, "key.pem", "tls.key")
        if ca is None:
            raise InvalidOption(f"TLS folder {str(folder)!r} has no ca.pem or ca.crt")
        if (cert is None) != (key is None):
            missing = "cert.pem or tls.crt" if cert is None else "key.pem or tls.key"
            raise InvalidOption(f"TLS folder {str(folder)!r} has no {missing}: a client certificate needs both")
        return cls(ca=ca, cert=cert, key=key, server_name=server_name)

    @classmethod
    def of_docker(cls, env: Mapping[str, str]) -> TLSConfig | None:
        """What docker's CLI would use across a network; None without ``DOCKER_TLS_VERIFY``.

        Raises InvalidOption when ``DOCKER_CERT_PATH`` (by default docker's configuration) has no ca.pem.
        """
        if not env.get("DOCKER_TLS_VERIFY"):
            return None
        folder = env.get("DOCKER_CERT_PATH") or env.get("DOCKER_CONFIG") or "~/.docker"
        return cls.from_dir(Path(folder).expanduser())

    def load(self) -> TLSMaterial:
        """Read and check everything. Blocks; raises InvalidOption, which never quotes any of the content."""
        ca = _system_roots() if self.ca is None else _read("ca", self.ca)
        cert = None if self.cert is None else _read("cert", self.cert)
        key = None if self.key is None else _read("key", self.key)
        material = TLSMaterial(ca=ca, cert=cert, key=key, server_name=self.server_name)
        material.check()
        return material


@dataclass(frozen=True, slots=True)
class TLSMaterial:
    """The content behind a TLSConfig, in PEM."""

    ca: bytes = field(repr=False)
    cert: bytes | None = field(repr=False)
    key: bytes | None = field(repr=False)
    server_name: str | None

    def check(self) -> None:
        """Raise InvalidOption unless this can be used for a handshake."""
        # Imported here, as it takes longer than all the rest and most connections need no TLS.
        from cryptography import x509
        from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

        try:
            x509.load_pem_x509_certificates(self.ca)
        except ValueError:
            raise InvalidOption("TLS ca holds no certificate in PEM form") from None
        if self.cert is None or self.key is None:
            return
        try:
            leaf = x509.load_pem_x509_certificates(self.cert)[0]
        except ValueError:
            raise InvalidOption("TLS cert holds no certificate in PEM form") from None
        try:
            key = load_pem_private_key(self.key, None)
        except TypeError:
            raise InvalidOption("TLS key is protected by a passphrase: give one that is not") from None
        except Exception:
            # Not chained: what the parser says may quote what it read.
            raise InvalidOption("TLS key holds no private key in PEM form that can be used") from None
        form = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        if key.public_key().public_bytes(*form) != leaf.public_key().public_bytes(*form):
            raise InvalidOption("TLS cert and key do not belong together")

    def context(self, *, http2: bool = True) -> ssl.SSLContext:
        """The same for Python's own TLS, for HTTP/2, or for docker's API."""
        import ssl

        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        if http2:
            context.set_alpn_protocols(["h2"])
        context.load_verify_locations(cadata=self.ca.decode("ascii", "ignore"))
        if self.cert is not None and self.key is not None:
            with _private_file(self.cert + b"\n" + self.key) as path:
                context.load_cert_chain(path)
        return context


def _first(folder: Path, *names: str) -> Path | None:
    return next((folder / name for name in names if (folder / name).is_file()), None)


def _read(what: str, source: Pem) -> bytes:
    if isinstance(source, bytes):
        return source
    try:
        with Path(source).open("rb") as file:
            data = file.read(_MAX_PEM_BYTES + 1)
    except OSError as error:
        raise InvalidOption(f"TLS {what} {os.fspath(source)!r}: {error.strerror or error}") from None
    if len(data) > _MAX_PEM_BYTES:
        raise InvalidOption(f"TLS {what} {os.fspath(source)!r} is larger than {_MAX_PEM_BYTES} bytes")
    return data


def _system_roots() -> bytes:
    """The system's certificates, so that gRPC (which brings its own) trusts what all other programs trust."""
    import ssl

    # The first is empty where OpenSSL was built for another system, which its stubs do not know.
    for path in (ssl.get_default_verify_paths().cafile or "", *_SYSTEM_ROOTS):
        if Path(path).is_file():
            return _read("ca", path)
    raise InvalidOption("TLS ca is not given, and this system has no file of trusted certificates")


@contextlib.contextmanager
def _private_file(data: bytes) -> Generator[str, None, None]:
    """A path under which only this process's user finds data, for an API that takes nothing but paths."""
    if hasattr(os, "memfd_create"):
        fd = os.memfd_create("tls", os.MFD_CLOEXEC)
        try:
            os.write(fd, data)
            yield f"/proc/self/fd/{fd}"
        finally:
            os.close(fd)
    else:
        import tempfile

        with tempfile.NamedTemporaryFile() as file:  # made with mode 0600
            file.write(data)
            file.flush()
            yield file.name
