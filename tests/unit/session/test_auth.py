"""The Auth service: what a daemon is told about registries, and what it is not."""

from __future__ import annotations

import asyncio
import base64
import fcntl
import hashlib
import hmac
import json
import os
import stat
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qs

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from buildkit_py.errors import Unauthorized
from buildkit_py.pb import auth_pb2
from buildkit_py.registry import Credentials, HostConfig, RegistryConfig, StaticCredentials
from buildkit_py.session.attachable import CallError, Code
from buildkit_py.session.auth import Auth
from buildkit_py.session.auth_service import Seeds
from tests.support.calls import call_pair
from tests.support.fake_registry import Answer, FakeRegistry

SERVICE = "/moby.filesync.v1.Auth/"
SALT = bytes(range(32))
SECRET = "hunter2-secret"


class BrokenStore:
    def get(self, host: str, /) -> Credentials:
        raise Unauthorized(f"credentials for {host}: docker-credential-x failed with exit code 1")


async def ask(auth: Auth, method: str, request: bytes) -> bytes:
    """One unary call, as the daemon makes it."""
    handler_end, daemon_end = call_pair(SERVICE + method)
    await daemon_end.send(request)
    daemon_end.end()
    await auth.methods()[SERVICE + method](handler_end)
    answer = await daemon_end.receive()
    assert answer is not None
    return answer


def auth_of(
    folder: Path, credentials: dict[str, Credentials] | None = None, config: RegistryConfig | None = None
) -> Auth:
    return Auth(StaticCredentials(credentials or {}), config, seeds=folder / ".token_seed", environ={})


async def credentials_of(auth: Auth, host: str) -> tuple[str, str]:
    request = auth_pb2.CredentialsRequest(Host=host).SerializeToString()
    answer = auth_pb2.CredentialsResponse.FromString(await ask(auth, "Credentials", request))
    return answer.Username, answer.Secret


async def token_of(auth: Auth, server: FakeRegistry, *scopes: str) -> auth_pb2.FetchTokenResponse:
    request = auth_pb2.FetchTokenRequest(
        ClientID="buildkit-client",
        Host=server.host,
        Realm=f"{server.url}/token",
        Service="svc",
        Scopes=scopes,
    )
    return auth_pb2.FetchTokenResponse.FromString(await ask(auth, "FetchToken", request.SerializeToString()))


async def key_of(auth: Auth, host: str, salt: bytes = SALT) -> bytes:
    request = auth_pb2.GetTokenAuthorityRequest(Host=host, Salt=salt).SerializeToString()
    answer = await ask(auth, "GetTokenAuthority", request)
    return auth_pb2.GetTokenAuthorityResponse.FromString(answer).PublicKey


async def signed_by(auth: Auth, host: str, payload: bytes, salt: bytes = SALT) -> bytes:
    request = auth_pb2.VerifyTokenAuthorityRequest(Host=host, Salt=salt, Payload=payload)
    answer = await ask(auth, "VerifyTokenAuthority", request.SerializeToString())
    return auth_pb2.VerifyTokenAuthorityResponse.FromString(answer).Signed


@pytest.fixture
def server() -> Iterator[FakeRegistry]:
    with FakeRegistry() as fake:
        fake.on("GET", "/token", Answer(body=b'{"token": "tok", "expires_in": 300, "issued_at": "garbage"}'))
        fake.on("POST", "/token", Answer(body=b'{"access_token": "traded"}'))
        yield fake


async def test_credentials(tmp_path: Path) -> None:
    """A password, an identity token without a user, and nothing at all, which is no error."""
    known = {
        "r.example": Credentials("user", SECRET),
        "id.example": Credentials("user", SECRET, identity_token="refresh"),
        "docker.io": Credentials("hub", "p"),
    }
    auth = auth_of(tmp_path, known)
    assert await credentials_of(auth, "r.example") == ("user", SECRET)
    assert await credentials_of(auth, "id.example") == ("", "refresh")
    assert await credentials_of(auth, "registry-1.docker.io") == ("hub", "p")
    assert await credentials_of(auth, "other.example") == ("", "")


async def test_credentials_of_the_settings_come_first(tmp_path: Path) -> None:
    config = RegistryConfig(hosts={"r.example": HostConfig(credentials=Credentials("mine", "p"))})
    auth = auth_of(tmp_path, {"r.example": Credentials("docker", "p")}, config)
    assert await credentials_of(auth, "r.example") == ("mine", "p")


async def test_token_for_nobody(tmp_path: Path, server: FakeRegistry) -> None:
    answer = await token_of(auth_of(tmp_path), server, "repository:a:pull", "repository:b:pull")
    # IssuedAt stays 0, which is "now": a daemon whose clock is ahead would keep the token for ever.
    assert (answer.Token, answer.ExpiresIn, answer.IssuedAt) == ("tok", 300, 0)
    (request,) = server.requests
    assert request.parameters["scope"] == ["repository:a:pull", "repository:b:pull"]
    assert request.authorization is None


async def test_token_for_a_password(tmp_path: Path, server: FakeRegistry) -> None:
    auth = auth_of(tmp_path, {server.host: Credentials("user", SECRET)})
    assert (await token_of(auth, server, "repository:a:pull,push")).Token == "tok"
    (request,) = server.requests
    expected = base64.b64encode(f"user:{SECRET}".encode()).decode()
    assert request.authorization == f"Basic {expected}"
    assert request.parameters["client_id"] == ["buildkit-client"]


async def test_token_for_an_identity_token(tmp_path: Path, server: FakeRegistry) -> None:
    auth = auth_of(tmp_path, {server.host: Credentials(identity_token="refresh")})
    answer = await token_of(auth, server, "repository:a:pull")
    assert (answer.Token, answer.ExpiresIn) == ("traded", 60)
    form = parse_qs(server.requests[0].body.decode())
    assert form["grant_type"] == ["refresh_token"]
    assert form["client_id"] == ["buildkit-client"]


async def test_a_registry_token_is_given_as_it_is(tmp_path: Path, server: FakeRegistry) -> None:
    auth = auth_of(tmp_path, {server.host: Credentials(registry_token="static")})
    answer = await token_of(auth, server)
    assert (answer.Token, answer.ExpiresIn) == ("static", 60)
    assert server.requests == []


async def test_passing_failures_of_the_token_server(tmp_path: Path, server: FakeRegistry) -> None:
    server.on("GET", "/token", Answer(status=503), Answer(body=b'{"token": "late"}'))
    assert (await token_of(auth_of(tmp_path), server)).Token == "late"


async def test_refusals_reach_the_user_without_secrets(tmp_path: Path, server: FakeRegistry) -> None:
    server.on("GET", "/token", Answer(status=401, body=SECRET.encode()))
    auth = auth_of(tmp_path, {server.host: Credentials("user", SECRET)})
    with pytest.raises(CallError, match=f"docker login {server.host}") as caught:
        await token_of(auth, server, "repository:a:pull")
    assert caught.value.code is Code.UNAUTHENTICATED
    assert SECRET not in caught.value.message


async def test_a_daemon_cannot_send_credentials_just_anywhere(tmp_path: Path, server: FakeRegistry) -> None:
    """The realm is the daemon's word: no plain HTTP for a registry that is not, nothing on this machine."""
    auth = auth_of(tmp_path, {"r.example": Credentials("user", SECRET)})
    for realm in (f"{server.url}/token", "http://auth.example/token", "file:///etc/passwd"):
        request = auth_pb2.FetchTokenRequest(Host="r.example", Realm=realm)
        with pytest.raises(CallError, match=r"registry r\.example") as caught:
            await ask(auth, "FetchToken", request.SerializeToString())
        assert caught.value.code is Code.UNAUTHENTICATED
    assert server.requests == []


async def test_odd_requests(tmp_path: Path) -> None:
    auth = auth_of(tmp_path)
    request = auth_pb2.FetchTokenRequest(Host="a/b?c", Realm="http://auth.example/")
    with pytest.raises(CallError, match="registry host") as caught:
        await ask(auth, "FetchToken", request.SerializeToString())
    assert caught.value.code is Code.INVALID_ARGUMENT
    handler_end, daemon_end = call_pair()
    daemon_end.end()
    with pytest.raises(CallError, match="no request"):
        await auth.methods()[SERVICE + "Credentials"](handler_end)


async def test_a_broken_store(tmp_path: Path, server: FakeRegistry, caplog: pytest.LogCaptureFixture) -> None:
    """It stops what cannot work without credentials, and says why; public pulls go on, with a warning."""
    auth = Auth(BrokenStore(), seeds=tmp_path / ".token_seed", environ={})
    for attempt in (credentials_of(auth, server.host), token_of(auth, server, "repository:a:pull,push")):
        with pytest.raises(CallError, match="docker-credential-x failed") as caught:
            await attempt
        assert caught.value.code is Code.UNAUTHENTICATED
    assert len(await key_of(auth, server.host)) == 32
    assert (await token_of(auth, server, "repository:a:pull")).Token == "tok"
    assert server.requests[0].authorization is None
    assert "going on without credentials" in caplog.text


async def test_authority_of_nobody_is_shared(tmp_path: Path) -> None:
    """All clients without credentials have one key, made of the salt alone."""
    expected = Ed25519PrivateKey.from_private_bytes(hmac.digest(SALT, b"", hashlib.sha256)).public_key()
    assert await key_of(auth_of(tmp_path), "r.example") == expected.public_bytes_raw()
    assert await key_of(auth_of(tmp_path), "other.example") == expected.public_bytes_raw()
    assert await key_of(auth_of(tmp_path), "r.example", b"other salt") != expected.public_bytes_raw()
    assert list(tmp_path.iterdir()) == []


async def test_authority_with_credentials(tmp_path: Path) -> None:
    """The key is that of the seed file: the same for this user's other clients, for each host another."""
    known = {"r.example": Credentials("u", "one"), "x.example": Credentials("u", "p")}
    first = auth_of(tmp_path, known)
    key = await key_of(first, "r.example")
    entries = json.loads((tmp_path / ".token_seed").read_text())
    seed = base64.b64decode(entries["r.example"]["Seed"])
    assert len(seed) == 16
    expected = Ed25519PrivateKey.from_private_bytes(hmac.digest(SALT, seed, hashlib.sha256)).public_key()
    assert key == expected.public_bytes_raw()
    # Another password is no other authority; another host is.
    second = auth_of(tmp_path, {"r.example": Credentials("u", "two"), "x.example": Credentials("u", "p")})
    assert await key_of(second, "r.example") == key
    assert await key_of(second, "x.example") != key
    assert stat.S_IMODE((tmp_path / ".token_seed").stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / ".token_seed.lock").stat().st_mode) == 0o600
    assert sorted(os.listdir(tmp_path)) == [".token_seed", ".token_seed.lock"]


async def test_signature(tmp_path: Path) -> None:
    """64 bytes of signature, then the payload; by the key that GetTokenAuthority gives."""
    auth = auth_of(tmp_path, {"r.example": Credentials("u", "p")})
    payload = os.urandom(32)
    signed = await signed_by(auth, "r.example", payload)
    assert (len(signed), signed[64:]) == (96, payload)
    key = Ed25519PublicKey.from_public_bytes(await key_of(auth, "r.example"))
    key.verify(signed[:64], payload)
    other = Ed25519PublicKey.from_public_bytes(await key_of(auth, "nobody.example"))
    with pytest.raises(InvalidSignature):
        other.verify(signed[:64], payload)


@pytest.mark.parametrize("value", ["1", "true", "TRUE"])
async def test_token_authority_can_be_switched_off(tmp_path: Path, value: str) -> None:
    """The daemon then asks for credentials, and fetches tokens itself."""
    environ = {"BUILDKIT_NO_CLIENT_TOKEN": value}
    auth = Auth(StaticCredentials({}), seeds=tmp_path / ".token_seed", environ=environ)
    for attempt in (key_of(auth, "r.example"), signed_by(auth, "r.example", b"x")):
        with pytest.raises(CallError) as caught:
            await attempt
        assert caught.value.code is Code.UNAVAILABLE


def test_seeds_keep_other_entries_and_survive_rubbish(tmp_path: Path) -> None:
    path = tmp_path / "deep" / ".token_seed"
    first = Seeds(path).get("a")
    second = Seeds(path).get("b")
    assert (Seeds(path).get("a"), Seeds(path).get("b")) == (first, second)
    for rubbish in ("", "[]", "{", '{"a": 1}', '{"a": {"Seed": "!"}}', '{"a": {"Seed": ""}}'):
        path.write_text(rubbish)
        made = Seeds(path).get("a")
        assert len(made) == 16
        assert Seeds(path).get("a") == made


def test_seeds_where_nothing_can_be_written(tmp_path: Path) -> None:
    """A file in the way of the folder: also root cannot write there. The seed lasts as long as the object."""
    (tmp_path / "file").write_text("")
    seeds = Seeds(tmp_path / "file" / ".token_seed")
    assert seeds.get("a") == seeds.get("a")
    assert seeds.get("a") != seeds.get("b")


def test_a_lock_that_is_never_released(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The wait for another process ends, and what the file holds is used."""
    monkeypatch.setattr("buildkit_py.session.auth_service._LOCK_SECONDS", 0.1)
    path = tmp_path / ".token_seed"
    known = Seeds(path).get("a")
    with (tmp_path / ".token_seed.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert Seeds(path).get("a") == known
        assert len(Seeds(path).get("b")) == 16
    assert "b" not in json.loads(path.read_text())


async def test_docker_config_is_the_default(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(
        json.dumps({"auths": {"r.example": {"auth": base64.b64encode(b"u:p").decode()}}})
    )
    auth = Auth(environ={"DOCKER_CONFIG": str(tmp_path)})
    assert await credentials_of(auth, "r.example") == ("u", "p")
    await key_of(auth, "r.example")
    assert (tmp_path / ".token_seed").exists()


async def test_the_loop_is_not_blocked_by_a_slow_store(tmp_path: Path) -> None:
    """A helper may take long: lookups run in threads, and the loop goes on meanwhile."""
    started, release = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    class SlowStore:
        def get(self, host: str, /) -> Credentials:
            loop.call_soon_threadsafe(started.set)
            release.wait(10)
            return Credentials("u", "p")

    auth = Auth(SlowStore(), seeds=tmp_path / ".token_seed", environ={})
    task = asyncio.create_task(credentials_of(auth, "r.example"))
    await asyncio.wait_for(started.wait(), 5)
    release.set()
    assert await task == ("u", "p")
