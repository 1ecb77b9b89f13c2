"""Caches: one for each platform by a name of its own, and what the environment adds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from buildkit_py.builder.caches import Caches, plan_caches
from buildkit_py.errors import InvalidOption
from buildkit_py.options import CacheSpec
from buildkit_py.platforms import parse_platforms

TWO = parse_platforms(["linux/amd64", "linux/arm/v7"])


def planned(
    imports: Sequence[str] = (),
    exports: Sequence[str] = (),
    *,
    environ: Mapping[str, str] | None = None,
    many: bool = True,
) -> Caches:
    return plan_caches(
        [CacheSpec.parse(text) for text in imports],
        [CacheSpec.parse(text) for text in exports],
        TWO if many else TWO[:1],
        environ=environ or {},
        warn=True,
    )


@pytest.mark.parametrize(
    ("text", "key", "names"),
    [
        ("type=registry,ref=r.example/a", "ref", ["r.example/a:latest-linux-amd64", "r.example/a:latest-linux-arm-v7"]),
        ("r.example:5000/a:c", "ref", ["r.example:5000/a:c-linux-amd64", "r.example:5000/a:c-linux-arm-v7"]),
        ("type=local,dest=.", "tag", ["latest-linux-amd64", "latest-linux-arm-v7"]),
        ("type=local,dest=.,tag=x", "tag", ["x-linux-amd64", "x-linux-arm-v7"]),
        ("type=s3,bucket=b,name=a;b", "name", ["a-linux-amd64;b-linux-amd64", "a-linux-arm-v7;b-linux-arm-v7"]),
        ("type=azblob,account_url=u", "name", ["buildkit-linux-amd64", "buildkit-linux-arm-v7"]),
        ("type=gha,token=t,url=u,scope=s", "scope", ["s-linux-amd64", "s-linux-arm-v7"]),
    ],
)
def test_each_of_several_platforms_exports_under_its_own_name(text: str, key: str, names: list[str]) -> None:
    """What else is said stays; an import means all of these, and the plain name first."""
    caches = planned(exports=[f"{text},mode=max" if "type" in text else text])
    assert [caches.exports[platform][0].attrs[key] for platform in TWO] == names
    if "type" in text:
        assert all(caches.exports[platform][0].attrs["mode"] == "max" for platform in TWO)
    spec = CacheSpec.parse(text.replace("dest=", "src="))
    imports = planned([text.replace("dest=", "src=")]).imports
    assert imports[0] == spec
    assert [found.attrs[key] for found in imports[1:]] == names
    one = planned(exports=[text], many=False)
    assert one.exports[TWO[0]] == (CacheSpec.parse(text),)
    assert planned([text.replace("dest=", "src=")], many=False).imports == (spec,)


def test_inline_caches_and_digests_are_as_they_are() -> None:
    """An image holds its own cache; a digest names one thing."""
    caches = planned(["a@sha256:" + "0" * 64, f"type=local,src=x,digest=sha256:{'0' * 64}"], ["type=inline"])
    assert len(caches.imports) == 2
    assert all(caches.exports[platform] == (CacheSpec(type="inline"),) for platform in TWO)


def test_an_import_that_comes_twice_is_asked_for_once() -> None:
    assert len(planned(["a:c", "a:c", "a:c-linux-amd64"]).imports) == 3


def test_exports_that_overwrite_each_other(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """In a registry the daemon refuses them; elsewhere the later one wins, and a warning says so."""
    with pytest.raises(InvalidOption, match=r"two exports have the name docker.io/library/a:c-linux-amd64"):
        planned(exports=["a:c", "docker.io/library/a:c"])
    planned(exports=["a:c", "a:d", f"type=local,dest={tmp_path}", f"type=local,dest={tmp_path},tag=x"])
    assert not caplog.records
    planned(exports=[f"type=local,dest={tmp_path}", f"type=local,dest={tmp_path},mode=max"])
    planned(exports=["type=s3,bucket=b,access_key_id=AKIA", "type=s3,bucket=b,name=a;buildkit,access_key_id=AKIA"])
    assert f"two exports go to type=local,dest={tmp_path},tag=latest-linux-amd64" in caplog.text
    assert "type=s3,bucket=b,name=buildkit-linux-amd64" in caplog.text
    assert "AKIA" not in caplog.text


def test_a_tag_has_a_longest_length() -> None:
    with pytest.raises(InvalidOption, match="more than 128 characters"):
        planned(exports=[f"a:{'c' * 120}"])


@pytest.mark.parametrize(
    ("imports", "exports", "why"),
    [
        (["type=local"], [], "cache-from type=local: src=DIRECTORY is missing"),
        ([], ["type=local,src=x"], "cache-to type=local: dest=DIRECTORY is missing"),
        ([], ["x/UPPER"], "cache-to type=registry: "),
        ([], ["a@sha256:" + "0" * 64], "has no digest"),
    ],
)
def test_bad_attributes(imports: list[str], exports: list[str], why: str) -> None:
    with pytest.raises(InvalidOption, match=why):
        planned(imports, exports)


RUNNER = {
    "ACTIONS_RUNTIME_TOKEN": "hunter2",
    "ACTIONS_RESULTS_URL": "https://results",
    "ACTIONS_CACHE_SERVICE_V2": "True",
}


@pytest.mark.parametrize(
    ("text", "environ", "expected"),
    [
        ("type=gha", {}, None),
        ("type=gha", {"ACTIONS_RUNTIME_TOKEN": "hunter2"}, None),
        ("type=gha,token=x,url=y", {}, {"token": "x", "url": "y"}),
        ("type=gha", RUNNER, {"token": "hunter2", "url": "https://results", "url_v2": "https://results"}),
        ("type=gha,version=1", RUNNER, {"token": "hunter2", "url": "https://results", "version": "1"}),
        (
            "type=gha,token=own",
            {"ACTIONS_RUNTIME_TOKEN": "t", "ACTIONS_CACHE_URL": "https://cache"},
            {"token": "own", "url": "https://cache"},
        ),
        (
            "type=s3,bucket=b",
            {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "hunter2", "AWS_SESSION_TOKEN": "t"},
            {"bucket": "b", "access_key_id": "a", "secret_access_key": "hunter2", "session_token": "t"},
        ),
        ("type=s3,bucket=b", {"AWS_ACCESS_KEY_ID": "a"}, {"bucket": "b"}),
        (
            "type=s3,access_key_id=x,secret_access_key=y",
            {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_SESSION_TOKEN": "t"},
            {"access_key_id": "x", "secret_access_key": "y"},
        ),
    ],
)
def test_what_the_environment_adds(
    text: str, environ: dict[str, str], expected: dict[str, str] | None, caplog: pytest.LogCaptureFixture
) -> None:
    """As docker buildx adds it, on both sides; no credentials show."""
    caches = planned([text], [text], environ=environ, many=False)
    found = [*caches.imports, *caches.exports[TWO[0]]]
    assert [dict(spec.attrs) for spec in found] == ([] if expected is None else [expected] * 2)
    assert "hunter2" not in repr(caches) + caplog.text


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, {"access_key_id": "a", "secret_access_key": "hunter2"}),
        ({"AWS_PROFILE": "other"}, {"access_key_id": "b", "secret_access_key": "hunter3", "session_token": "t"}),
        ({"AWS_PROFILE": "half"}, {}),
        ({"AWS_PROFILE": "none"}, {}),
        ({"AWS_ACCESS_KEY_ID": "e", "AWS_SECRET_ACCESS_KEY": "f"}, {"access_key_id": "e", "secret_access_key": "f"}),
    ],
)
def test_the_file_of_aws_credentials(tmp_path: Path, environ: dict[str, str], expected: dict[str, str]) -> None:
    """After the environment; of the profile that is named, else the default one."""
    (tmp_path / ".aws").mkdir()
    (tmp_path / ".aws" / "credentials").write_text(
        "[default]\naws_access_key_id = a\naws_secret_access_key = hunter2\n"
        "[other]\naws_access_key_id=b\naws_secret_access_key=hunter3\naws_session_token=t\n"
        "[half]\naws_access_key_id=c\n"
    )
    caches = planned(["type=s3,bucket=b"], environ={"HOME": str(tmp_path)} | environ, many=False)
    assert dict(caches.imports[0].attrs) == {"bucket": "b"} | expected


@pytest.mark.parametrize(
    ("environ", "said"),
    [
        ({"AWS_PROFILE": "login"}, "sso_session of profile login"),
        ({"AWS_PROFILE": "role"}, "role_arn of profile role"),
        ({"AWS_PROFILE": "none", "AWS_WEB_IDENTITY_TOKEN_FILE": "x"}, "AWS_WEB_IDENTITY_TOKEN_FILE"),
        ({"AWS_CONTAINER_CREDENTIALS_FULL_URI": "http://x"}, "AWS_CONTAINER_CREDENTIALS_FULL_URI"),
        ({}, ""),
        ({"AWS_PROFILE": "keys"}, ""),
        ({"AWS_PROFILE": "role", "AWS_ACCESS_KEY_ID": "e", "AWS_SECRET_ACCESS_KEY": "f"}, ""),
    ],
)
def test_aws_credentials_of_elsewhere(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, environ: dict[str, str], said: str
) -> None:
    """Keys in the file of settings are taken; what would have to be asked for is told of, once, with what to do."""
    (tmp_path / "config").write_text(
        "[profile login]\nsso_session = x\n[profile role]\nrole_arn=arn:aws:iam::1:role/x\n"
        "[profile keys]\naws_access_key_id=a\naws_secret_access_key=hunter2\n"
    )
    caches = plan_caches(
        [CacheSpec.parse("type=s3,bucket=b,region=r")],
        [],
        [],
        environ={"AWS_CONFIG_FILE": str(tmp_path / "config")} | environ,
        warn=True,
    )
    has_keys = {"access_key_id", "secret_access_key"} <= set(caches.imports[0].attrs)
    assert has_keys == ("AWS_ACCESS_KEY_ID" in environ or environ.get("AWS_PROFILE") == "keys")
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(warnings) == (1 if said else 0)
    assert all(f"credentials by {said} are not fetched here" in text for text in warnings)


def test_a_file_of_aws_credentials_that_is_none(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """None of its lines is shown."""
    caplog.set_level("DEBUG")
    (tmp_path / "file").write_text("hunter2\n")
    environ = {"AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "file")}
    assert dict(planned(["type=s3,bucket=b"], environ=environ, many=False).imports[0].attrs) == {"bucket": "b"}
    assert "cannot be read" in caplog.text
    assert "hunter2" not in caplog.text


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("type=registry", "ref=... is missing"),
        ("type=vault,token=hunter2", "unknown type 'vault'"),
        ("ref=a,token=hunter2", "type=... is missing"),
        ("type=gha,token=hunter2,scope", "field 3 is not key=value"),
        ("type=s3,secret_access_key=a,hunter2", "field 3 is not key=value"),
        ('type=s3,"secret_access_key=hunter2', "unexpected end of data"),
        ("type=s3,secret_access_key=a\nhunter2", "one line"),
        ("type=inline,mode=full", "mode=full: expected min or max"),
        ("type=s3,name=a,name=b,token=hunter2", "name is given twice"),
    ],
)
def test_bad_options_do_not_repeat_credentials(text: str, why: str) -> None:
    with pytest.raises(InvalidOption) as caught:
        CacheSpec.parse(text)
    assert why in str(caught.value)
    assert "hunter2" not in str(caught.value)
