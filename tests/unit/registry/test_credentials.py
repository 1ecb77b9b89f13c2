"""Docker's credentials: where they come from, in which order, and that nothing of them leaks."""

from __future__ import annotations

import base64
import json
import logging
import stat
from pathlib import Path

import pytest

from buildkit_py.errors import Unauthorized
from buildkit_py.registry import Credentials, DockerCredentials, StaticCredentials
from buildkit_py.registry.credentials import ANONYMOUS, CACHE_SECONDS, look_up

HUB = "https://index.docker.io/v1/"
SECRET = "s3cr3t-value"


def auth(user: str, password: str) -> str:
    return base64.b64encode(f"{user}:{password}".encode()).decode()


def write_config(folder: Path, config: object) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps(config))
    return path


def store(folder: Path, config: object | None = None, **environ: str) -> DockerCredentials:
    if config is not None:
        write_config(folder, config)
    return DockerCredentials(
        environ={"DOCKER_CONFIG": str(folder), "HOME": str(folder), "PATH": str(folder / "bin"), **environ},
        helper_timeout=5,
        system="linux",
    )


def install_helper(folder: Path, name: str, script: str) -> None:
    path = folder / "bin" / f"docker-credential-{name}"
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


@pytest.mark.parametrize(
    ("host", "config", "expected"),
    [
        ("r.example", {"auths": {"r.example": {"auth": auth("u", "p")}}}, Credentials("u", "p")),
        ("r.example:5000", {"auths": {"r.example:5000": {"auth": auth("u", "p")}}}, Credentials("u", "p")),
        ("r.example:5000", {"auths": {"r.example": {"auth": auth("u", "p")}}}, ANONYMOUS),
        ("other.example", {"auths": {"r.example": {"auth": auth("u", "p")}}}, ANONYMOUS),
        ("docker.io", {"auths": {HUB: {"auth": auth("u", "p")}}}, Credentials("u", "p")),
        ("registry-1.docker.io", {"auths": {HUB: {"auth": auth("u", "p")}}}, Credentials("u", "p")),
        ("index.docker.io", {"auths": {HUB: {"auth": auth("u", "p")}}}, Credentials("u", "p")),
        ("r.example", {"auths": {"https://r.example/v1/": {"auth": auth("u", "p")}}}, Credentials("u", "p")),
        ("r.example", {"auths": {"http://r.example": {"auth": auth("u", "p")}}}, Credentials("u", "p")),
        ("r.example", {"auths": {"r.example": {"auth": auth("u", "p:q\0\0")}}}, Credentials("u", "p:q")),
        ("r.example", {"auths": {"r.example": {"username": "u", "password": "p"}}}, Credentials("u", "p")),
        (
            "r.example",
            {"auths": {"r.example": {"auth": auth("u", "p"), "username": "x", "password": "y"}}},
            Credentials("u", "p"),
        ),
        (
            "r.example",
            {"auths": {"r.example": {"auth": auth("u", "p"), "identitytoken": "id"}}},
            Credentials("u", "p", identity_token="id"),
        ),
        (
            "r.example",
            {"auths": {"r.example": {"registrytoken": "reg"}}},
            Credentials(registry_token="reg"),
        ),
        ("r.example", {"auths": {"r.example": {}}}, ANONYMOUS),
        ("r.example", {}, ANONYMOUS),
        ("r.example", {"auths": None, "credHelpers": []}, ANONYMOUS),
        ("r.example", None, ANONYMOUS),
    ],
)
def test_config_file(tmp_path: Path, host: str, config: object, expected: Credentials) -> None:
    """Keys, spellings and kinds of entries that docker's file may hold."""
    assert store(tmp_path, config).get(host) == expected


def test_a_missing_folder_is_an_empty_config(tmp_path: Path) -> None:
    assert store(tmp_path / "nowhere").get("r.example") == ANONYMOUS
    assert DockerCredentials(tmp_path / "x" / "y.json", environ={}).get("r.example") == ANONYMOUS


def test_home_is_used_without_docker_config(tmp_path: Path) -> None:
    folder = tmp_path / ".docker"
    folder.mkdir()
    write_config(folder, {"auths": {"r.example": {"auth": auth("u", "p")}}})
    assert DockerCredentials(environ={"HOME": str(tmp_path)}).get("r.example") == Credentials("u", "p")


@pytest.mark.parametrize("text", ["{", "[]", "nonsense " + SECRET, '{"auths": ' * 3000])
def test_a_broken_file_is_named_and_not_quoted(tmp_path: Path, text: str) -> None:
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(Unauthorized, match="not a JSON object") as caught:
        store(tmp_path).get("r.example")
    assert str(path) in str(caught.value)
    assert SECRET not in repr(caught.value)
    assert caught.value.__cause__ is None


@pytest.mark.parametrize("value", ["!!!", base64.b64encode(b"nocolon").decode(), auth("", "p")])
def test_a_malformed_auth_is_an_error(tmp_path: Path, value: str) -> None:
    with pytest.raises(Unauthorized, match="not base64 of user:password"):
        store(tmp_path, {"auths": {"r.example": {"auth": value}}}).get("r.example")


def test_helper_wins_over_the_file_and_reads_the_key(tmp_path: Path) -> None:
    """credHelpers, then credsStore, then the entry; Docker Hub is asked for by its old URL."""
    install_helper(tmp_path, "one", 'read key; echo "{\\"Username\\":\\"one\\",\\"Secret\\":\\"$key\\"}"')
    install_helper(tmp_path, "all", 'read key; echo "{\\"Username\\":\\"all\\",\\"Secret\\":\\"$key\\"}"')
    config = {
        "auths": {"r.example": {"auth": auth("file", "p"), "registrytoken": "reg"}},
        "credHelpers": {"r.example": "one"},
        "credsStore": "all",
    }
    credentials = store(tmp_path, config)
    assert credentials.get("r.example") == Credentials("one", "r.example", registry_token="reg")
    assert credentials.get("x.example") == Credentials("all", "x.example")
    assert credentials.get("docker.io") == Credentials("all", HUB)


def test_helper_identity_token(tmp_path: Path) -> None:
    install_helper(tmp_path, "h", 'echo \'{"ServerURL":"","Username":"<token>","Secret":"refresh"}\'')
    found = store(tmp_path, {"credsStore": "h"}).get("r.example")
    assert found == Credentials(identity_token="refresh")


def test_helper_knows_nothing(tmp_path: Path) -> None:
    """The agreed words on stdout mean no credentials, whatever the exit code says."""
    install_helper(tmp_path, "h", 'echo "credentials not found in native keychain"; exit 1')
    assert store(tmp_path, {"credsStore": "h"}).get("r.example") == ANONYMOUS


@pytest.mark.parametrize(
    ("script", "message"),
    [
        (f"echo {SECRET}; echo {SECRET} >&2; exit 3", "failed with exit code 3"),
        (f"echo '{SECRET}'", "did not answer with Username and Secret"),
        (f'echo \'{{"Username": 1, "Secret": "{SECRET}"}}\'', "did not answer with Username and Secret"),
    ],
)
def test_helper_failures_leak_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, script: str, message: str
) -> None:
    install_helper(tmp_path, "h", script)
    with caplog.at_level(logging.DEBUG), pytest.raises(Unauthorized, match=message) as caught:
        store(tmp_path, {"credsStore": "h"}).get("r.example")
    assert "docker-credential-h" in str(caught.value)
    assert SECRET not in repr(caught.value) + caplog.text


def test_helper_that_hangs(tmp_path: Path) -> None:
    """The wait ends, and what it printed so far stays out of the error."""
    install_helper(tmp_path, "h", f"echo {SECRET}; exec sleep 30")
    write_config(tmp_path, {"credsStore": "h"})
    credentials = DockerCredentials(
        environ={"DOCKER_CONFIG": str(tmp_path), "PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin"},
        helper_timeout=0.3,
    )
    with pytest.raises(Unauthorized, match=r"no answer within 0\.3 s") as caught:
        credentials.get("r.example")
    assert caught.value.__cause__ is None


def test_helper_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(Unauthorized, match="docker-credential-gone is not on PATH"):
        store(tmp_path, {"credHelpers": {"r.example": "gone"}}).get("r.example")


@pytest.mark.parametrize("name", ["../evil", "a b", "/bin/sh", "-x"])
def test_helper_names_are_names(tmp_path: Path, name: str) -> None:
    with pytest.raises(Unauthorized, match="not the name of a credential helper"):
        store(tmp_path, {"credsStore": name}).get("r.example")


def test_the_default_helper_is_optional(tmp_path: Path) -> None:
    """Nobody configured it: where it fails (no desktop session), there are no credentials."""
    install_helper(tmp_path, "secretservice", "exit 1")
    assert store(tmp_path, {"HttpHeaders": {}}).get("r.example") == ANONYMOUS
    install_helper(tmp_path, "secretservice", 'echo \'{"Username":"u","Secret":"p"}\'')
    assert store(tmp_path, {"HttpHeaders": {}}).get("r.example") == Credentials("u", "p")


def test_environment_comes_first_and_falls_through(tmp_path: Path) -> None:
    text = json.dumps({"auths": {"r.example": {"auth": auth("env", "p")}}})
    config = {"auths": {"r.example": {"auth": auth("file", "p")}, "x.example": {"auth": auth("x", "p")}}}
    credentials = store(tmp_path, config, DOCKER_AUTH_CONFIG=text)
    assert credentials.get("r.example") == Credentials("env", "p")
    assert credentials.get("x.example") == Credentials("x", "p")


@pytest.mark.parametrize(
    "text",
    [
        "not json " + SECRET,
        json.dumps({"auths": {"r.example": {"auth": auth("env", SECRET), "email": "x"}}}),
        json.dumps({"auths": {"r.example": {"auth": auth("env", SECRET)}}, "credsStore": "x"}),
        json.dumps({"auths": {"r.example": {"username": "u", "password": SECRET}}}),
        json.dumps({"auths": {"r.example": {"auth": "!" + SECRET}}}),
        json.dumps({"auths": {"r.example": {"auth": auth("env", SECRET)}}}) + "{}",
    ],
)
def test_a_malformed_environment_is_ignored_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, text: str
) -> None:
    config = {"auths": {"r.example": {"auth": auth("file", "p")}}}
    assert store(tmp_path, config, DOCKER_AUTH_CONFIG=text).get("r.example") == Credentials("file", "p")
    assert "DOCKER_AUTH_CONFIG is ignored" in caplog.text
    assert SECRET not in caplog.text
    assert auth("env", SECRET) not in caplog.text


def test_answers_are_kept_for_a_while(tmp_path: Path) -> None:
    now = 0.0
    path = write_config(tmp_path, {"auths": {"r.example": {"auth": auth("old", "p")}}})
    credentials = DockerCredentials(path, environ={}, clock=lambda: now)
    assert credentials.get("r.example").username == "old"
    write_config(tmp_path, {"auths": {"r.example": {"auth": auth("new", "p")}}})
    now = CACHE_SECONDS - 1
    assert credentials.get("r.example").username == "old"
    now = CACHE_SECONDS
    assert credentials.get("r.example").username == "new"


def test_values_given_win_and_others_fall_back(tmp_path: Path) -> None:
    fallback = store(tmp_path, {"auths": {"x.example": {"auth": auth("x", "p")}}})
    given = StaticCredentials({"docker.io": Credentials("hub", "p")}, fallback)
    assert given.get("registry-1.docker.io").username == "hub"
    assert given.get("x.example").username == "x"
    assert StaticCredentials({}).get("x.example") == ANONYMOUS


def test_repr_hides_secrets() -> None:
    shown = repr(Credentials("user", SECRET, SECRET, SECRET))
    assert "user" in shown
    assert SECRET not in shown


# Podman's files


def podman(folder: Path, files: dict[str, object], **environ: str) -> DockerCredentials:
    for name, config in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(config))
    return store(folder, XDG_RUNTIME_DIR=str(folder / "run"), **environ)


def entry(user: str, *keys: str) -> dict[str, object]:
    return {"auths": {key: {"auth": auth(user, "p")} for key in keys}}


RUNTIME, HOME = "run/containers/auth.json", ".config/containers/auth.json"


def test_podman_is_asked_after_docker(tmp_path: Path) -> None:
    files: dict[str, object] = {
        "config.json": entry("docker", "a.example"),
        RUNTIME: entry("run", "a.example", "b.example"),
        HOME: entry("home", "a.example", "b.example", "c.example"),
    }
    credentials = podman(tmp_path, files)
    found = [credentials.get(f"{name}.example").username for name in "abcd"]
    assert found == ["docker", "run", "home", ""]


def test_a_file_that_is_named_goes_first(tmp_path: Path) -> None:
    files: dict[str, object] = {
        "mine.json": entry("mine", "a.example"),
        "config.json": entry("docker", "a.example", "b.example"),
    }
    credentials = podman(tmp_path, files, REGISTRY_AUTH_FILE=str(tmp_path / "mine.json"))
    assert [credentials.get(f"{name}.example").username for name in "ab"] == ["mine", "docker"]


def test_podman_knows_repositories(tmp_path: Path) -> None:
    """The entry that is closest; of names, not of letters."""
    keys = {"r.example": "all", "r.example/team": "team", "r.example/team/app": "app"}
    auths = {key: {"auth": auth(user, "p")} for key, user in keys.items()}
    credentials = podman(tmp_path, {RUNTIME: {"auths": auths}})
    for repository, user in {
        "team/app": "app",
        "team/app/part": "app",
        "team/apple": "team",
        "team": "team",
        "teams": "all",
        "": "all",
    }.items():
        assert credentials.for_repository("r.example", repository).username == user
    assert credentials.get("r.example").username == "all"


@pytest.mark.parametrize("key", ["docker.io", HUB, "index.docker.io"])
def test_podman_calls_the_hub_by_its_name(tmp_path: Path, key: str) -> None:
    credentials = podman(tmp_path, {HOME: entry("u", key)})
    assert credentials.get("registry-1.docker.io").username == "u"


def test_podman_asks_its_helpers_first(tmp_path: Path) -> None:
    install_helper(tmp_path, "pod", 'read -r key; echo "{\\"Username\\":\\"$key\\",\\"Secret\\":\\"p\\"}"')
    config = {"credHelpers": {"r.example": "pod"}, **entry("file", "r.example")}
    assert podman(tmp_path, {HOME: config}).get("r.example").username == "r.example"


def test_podman_identity_tokens(tmp_path: Path) -> None:
    config = {"auths": {"r.example": {"auth": auth("u", "p"), "identitytoken": "refresh"}}}
    assert podman(tmp_path, {HOME: config}).get("r.example").identity_token == "refresh"


def test_a_path_given_is_the_only_file(tmp_path: Path) -> None:
    podman(tmp_path, {HOME: entry("u", "r.example"), "other.json": {}})
    credentials = DockerCredentials(tmp_path / "other.json", environ={"HOME": str(tmp_path)})
    assert credentials.get("r.example") == ANONYMOUS


def test_one_question_to_the_helper_serves_all_repositories(tmp_path: Path) -> None:
    log = tmp_path / "asked"
    install_helper(tmp_path, "one", f'echo asked >> {log}; echo \'{{"Username":"u","Secret":"p"}}\'')
    credentials = store(tmp_path, {"credsStore": "one"})
    for repository in ("", "a", "b/c"):
        assert credentials.for_repository("r.example", repository).username == "u"
    assert log.read_text() == "asked\n"


def test_values_given_pass_the_repository_on(tmp_path: Path) -> None:
    fallback = podman(tmp_path, {HOME: entry("u", "r.example/team")})
    given = StaticCredentials({"x.example": Credentials("x", "p")}, fallback)
    assert look_up(given, "r.example", "team/app").username == "u"
    assert look_up(given, "r.example").username == ""


def test_a_config_file_that_is_too_large(tmp_path: Path) -> None:
    """It is not read into memory, whatever was put in its place."""
    (tmp_path / "config.json").write_bytes(b"{}" + b" " * (16 << 20))
    with pytest.raises(Unauthorized, match="larger than"):
        look_up(store(tmp_path), "r.example")
