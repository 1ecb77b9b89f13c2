"""A real registry (CNCF Distribution) on loopback: plain, with a password, with TLS, or with tokens."""

from __future__ import annotations

import base64
import datetime
import json
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.x509.oid import NameOID

from tests.support.fake_registry import Answer, FakeRegistry, Request

USERNAME = "tester"
PASSWORD = "open sesame"
# bcrypt, the only kind that the registry reads, at the lowest cost
_HTPASSWD = f"{USERNAME}:$2b$04$rGIIFiqPPcMj.OLpTMoPreqiuKgO5OkKUiRDEgCXgeV/5UQ8pTuW6\n"
_PREFIX = Path(__file__).parents[2] / ".cache" / "prefix" / "usr" / "bin"
_READY_SECONDS = 20.0


def find_registry() -> str | None:
    """The program, from PATH or from where ``make servers`` puts it."""
    return shutil.which("docker-registry") or shutil.which("docker-registry", path=str(_PREFIX))


@contextmanager
def run_registry(folder: Path, **sections: object) -> Generator[str]:
    """host:port of a registry with these sections in its configuration besides storage and log.

    A test that wants it to die finds its process id in the file ``pid`` of the folder.
    """
    binary = find_registry()
    assert binary is not None, "docker-registry is not installed"
    port = _free_port()
    http: dict[str, object] = {"addr": f"127.0.0.1:{port}", "secret": "for tests"}
    http.update(sections.pop("http", {}))  # type: ignore[call-overload]
    config = {
        "version": "0.1",
        "log": {"level": "error", "accesslog": {"disabled": True}},
        "storage": {"filesystem": {"rootdirectory": str(folder / "data")}, "delete": {"enabled": True}},
        "http": http,
        **sections,
    }
    path = folder / "config.yml"
    path.write_text(json.dumps(config))  # JSON is YAML, too
    log = folder / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [binary, "serve", str(path)],
            stdout=output,
            stderr=output,
            start_new_session=True,
            env={**os.environ, "OTEL_TRACES_EXPORTER": "none"},
        )
    (folder / "pid").write_text(str(process.pid))
    try:
        _wait(process, port, log)
        yield f"127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _wait(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + _READY_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.02)
    raise AssertionError(f"docker-registry did not come up: {log.read_text()}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def run_password_registry(folder: Path) -> Generator[str]:
    """Wants Basic authentication as USERNAME with PASSWORD."""
    htpasswd = folder / "htpasswd"
    htpasswd.write_text(_HTPASSWD)
    with run_registry(folder, auth={"htpasswd": {"realm": "tests", "path": str(htpasswd)}}) as host:
        yield host


@contextmanager
def run_tls_registry(folder: Path) -> Generator[tuple[str, bytes]]:
    """host:port and the CA (PEM) that signed its certificate."""
    ca = trustme.CA()
    issued = ca.issue_cert("localhost", "127.0.0.1")
    certificate, key = folder / "server.pem", folder / "server.key"
    issued.cert_chain_pems[0].write_to_path(certificate)
    issued.private_key_pem.write_to_path(key)
    tls = {"certificate": str(certificate), "key": str(key)}
    with run_registry(folder, http={"tls": tls}) as host:
        yield host, ca.cert_pem.bytes()


@contextmanager
def run_token_registry(folder: Path) -> Generator[tuple[str, FakeRegistry]]:
    """host:port of a registry with token authentication, and its token server.

    USERNAME may push and pull in any repository, others may pull from ``public/*``. Source: distribution,
    docs/content/spec/auth/token.md and jwt.md.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = _self_signed(key)
    bundle = folder / "token.pem"
    bundle.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    wanted = "Basic " + base64.b64encode(f"{USERNAME}:{PASSWORD}".encode()).decode()

    def give(request: Request) -> Answer:
        if request.authorization not in {None, wanted}:
            return Answer(status=401)
        access: list[dict[str, object]] = []
        for scope in request.parameters.get("scope", []):
            kind, _, rest = scope.partition(":")
            name, _, actions = rest.rpartition(":")
            may = {"pull", "push", "*"} if request.authorization else set[str]()
            may |= {"pull"} if name.startswith("public/") else set()
            access.append({"type": kind, "name": name, "actions": sorted(may & set(actions.split(",")))})
        now = int(time.time())
        claims = {
            "iss": "tests",
            "sub": USERNAME if request.authorization else "",
            "aud": request.parameters["service"][0],
            "exp": now + 300,
            "nbf": now - 10,
            "iat": now,
            "jti": os.urandom(8).hex(),
            "access": access,
        }
        return Answer(body=json.dumps({"token": _jwt(claims, key, certificate), "expires_in": 300}).encode())

    with FakeRegistry() as tokens:
        tokens.on("GET", "/token", give)
        settings = {
            "realm": f"{tokens.url}/token",
            "service": "test registry",
            "issuer": "tests",
            "rootcertbundle": str(bundle),
        }
        with run_registry(folder, auth={"token": settings}) as host:
            yield host, tokens


def _self_signed(key: ec.EllipticCurvePrivateKey) -> x509.Certificate:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "tokens for tests")])
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .sign(key, hashes.SHA256())
    )


def _jwt(claims: dict[str, object], key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate) -> str:
    der = certificate.public_bytes(serialization.Encoding.DER)
    header = {"typ": "JWT", "alg": "ES256", "x5c": [base64.b64encode(der).decode()]}
    signed = ".".join(_base64url(json.dumps(part).encode()) for part in (header, claims))
    r, s = decode_dss_signature(key.sign(signed.encode(), ec.ECDSA(hashes.SHA256())))
    return f"{signed}.{_base64url(r.to_bytes(32, 'big') + s.to_bytes(32, 'big'))}"


def _base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
