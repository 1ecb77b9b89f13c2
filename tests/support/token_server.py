"""A token server for a real registry: what Docker Hub and most hosted registries authenticate with."""

from __future__ import annotations

import base64
import datetime
import json
import os
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import parse_qs

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.x509.oid import NameOID

from tests.support import servers
from tests.support.fake_registry import Answer, FakeRegistry, Request

_LEEWAY_SECONDS = 60
"""How much longer than it is good for the registry takes a token. Source: distribution, registry/auth/token."""


@contextmanager
def run_token_registry(
    folder: Path, *, seconds: float = 300.0, refresh_token: str = ""
) -> Generator[tuple[servers.Registry, FakeRegistry]]:
    """A registry with token authentication, and its token server.

    The registry takes a token for so many seconds, whatever the token server says of its life. With a refresh_token
    that is traded for one, too. servers.USERNAME may push and pull in any repository, others may pull from
    ``public/*``. Source: distribution, docs/content/spec/auth/token.md and jwt.md.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = _self_signed(key)
    folder.mkdir(parents=True, exist_ok=True)
    bundle = folder / "token.pem"
    bundle.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    wanted = "Basic " + base64.b64encode(f"{servers.USERNAME}:{servers.PASSWORD}".encode()).decode()

    def give(request: Request) -> Answer:
        form = {key: values[0] for key, values in parse_qs(request.body.decode()).items()}
        traded = bool(refresh_token) and form.get("refresh_token") == refresh_token
        if request.authorization not in {None, wanted} or (request.method == "POST" and not traded):
            return Answer(status=401)
        known = traded or request.authorization is not None
        asked = form["scope"].split() if "scope" in form else request.parameters.get("scope", [])
        access: list[dict[str, object]] = []
        for scope in asked:
            kind, _, rest = scope.partition(":")
            name, _, actions = rest.rpartition(":")
            may = {"pull", "push", "*"} if known else set[str]()
            may |= {"pull"} if name.startswith("public/") else set()
            access.append({"type": kind, "name": name, "actions": sorted(may & set(actions.split(",")))})
        now = int(time.time())
        claims = {
            "iss": "tests",
            "sub": servers.USERNAME if known else "",
            "aud": form.get("service") or request.parameters["service"][0],
            "exp": now + int(seconds) - _LEEWAY_SECONDS,
            "nbf": now - 10,
            "iat": now - 10,
            "jti": os.urandom(8).hex(),
            "access": access,
        }
        return Answer(body=json.dumps({"token": _jwt(claims, key, certificate), "expires_in": 300}).encode())

    with FakeRegistry() as tokens:
        tokens.on("GET", "/token", give)
        tokens.on("POST", "/token", give)
        settings = {
            "realm": f"{tokens.url}/token",
            "service": "test registry",
            "issuer": "tests",
            "rootcertbundle": str(bundle),
        }
        with servers.run_registry(folder, token=settings) as registry:
            registry.username, registry.password = servers.USERNAME, servers.PASSWORD
            yield registry, tokens


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
