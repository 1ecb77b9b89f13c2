"""Secrets: what is refused before any work, what a daemon is told, and that no value shows elsewhere."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from buildkit_py.errors import InvalidOption
from buildkit_py.options import SecretSpec
from buildkit_py.pb import secrets_pb2
from buildkit_py.session.attachable import CallError, Code
from buildkit_py.session.secrets import GET_SECRET, MAX_SECRET_BYTES, Secrets
from tests.support.calls import call_pair

VALUE = b"hunter2-\x00\xff\n"


async def ask(secrets: Secrets, name: str) -> bytes:
    """One call, as the daemon makes it."""
    ours, daemon = call_pair(GET_SECRET)
    await daemon.send(secrets_pb2.GetSecretRequest(ID=name).SerializeToString())
    daemon.end()
    await secrets.methods()[GET_SECRET](ours)
    answer = await daemon.receive()
    assert answer is not None
    return secrets_pb2.GetSecretResponse.FromString(answer).data


def of(environ: dict[str, str] | None = None, **fields: object) -> Secrets:
    return Secrets([SecretSpec(id="s", **fields)], environ=environ or {})  # type: ignore[arg-type]


async def test_bytes_files_and_variables_arrive_as_they_are(tmp_path: Path) -> None:
    """No trimming, no decoding."""
    file = tmp_path / "file"
    file.write_bytes(VALUE)
    assert await ask(of(value=VALUE), "s") == VALUE
    assert await ask(of(file=file), "s") == VALUE
    assert await ask(of({"NAME": "v\udcff"}, env="NAME"), "s") == b"v\xff"


async def test_a_file_is_read_when_the_daemon_asks(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("before")
    secrets = of(file=file)
    file.write_text("after")
    assert await ask(secrets, "s") == b"after"
    file.unlink()
    with pytest.raises(CallError, match="secret s: cannot be read: No such file"):
        await ask(secrets, "s")
    file.write_bytes(bytes(MAX_SECRET_BYTES + 1))
    with pytest.raises(CallError, match="too large"):
        await ask(secrets, "s")


async def test_without_a_place_the_variable_of_that_name_comes_before_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "s").write_text("file")
    assert await ask(of({"s": "variable"}), "s") == b"variable"
    assert await ask(of(), "s") == b"file"


async def test_a_variable_that_is_not_set_is_empty_and_told_of(caplog: pytest.LogCaptureFixture) -> None:
    """As docker buildx has it, so that a build with an optional token goes on."""
    assert await ask(of(env="NO_SUCH"), "s") == b""
    assert "NO_SUCH is not set" in caplog.text


async def test_functions_are_asked_each_time() -> None:
    """Blocking ones do not block the loop; both kinds may be asked at once."""
    count = 0

    def blocking() -> bytes:
        nonlocal count
        count += 1
        with pytest.raises(RuntimeError):
            asyncio.get_running_loop()
        return b"%d" % count

    async def waiting() -> bytes:
        await asyncio.sleep(0)
        return VALUE

    def late() -> Awaitable[bytes]:
        return waiting()

    functions: list[Callable[[], bytes | Awaitable[bytes]]] = [waiting, late]
    for function in functions:
        assert await ask(of(value=function), "s") == VALUE
    secrets = of(value=blocking)
    assert [await ask(secrets, "s"), await ask(secrets, "s")] == [b"1", b"2"]


@pytest.mark.parametrize("name", ["unknown", "", "GIT_AUTH_TOKEN"])
async def test_other_ids_are_not_found(name: str) -> None:
    """Daemons take this code alone as "there is none"."""
    with pytest.raises(CallError) as caught:
        await ask(of(value=VALUE), name)
    assert caught.value.code is Code.NOT_FOUND


async def test_what_a_function_raises_is_not_repeated(caplog: pytest.LogCaptureFixture) -> None:
    """Its text may hold the secret, and would stand in the daemon's history."""
    caplog.set_level(logging.DEBUG)

    def broken() -> bytes:
        raise ValueError("hunter2")

    with pytest.raises(CallError, match="secret s: its function raised ValueError") as caught:
        await ask(of(value=broken), "s")
    assert caught.value.__suppress_context__
    assert "hunter2" not in caplog.text

    with pytest.raises(CallError, match="its function gave str, not bytes"):
        await ask(of(value=lambda: "hunter2"), "s")
    with pytest.raises(CallError, match="too large, the limit is 500 KB"):
        await ask(of(value=lambda: bytes(MAX_SECRET_BYTES + 1)), "s")


async def test_a_pipe_is_read_once_and_remembered() -> None:
    """As a shell makes it of <(command); the daemon may ask again, and two solves at once."""
    reading, writing = os.pipe()
    try:
        os.write(writing, VALUE)
        os.close(writing)
        secrets = of(file=f"/dev/fd/{reading}")
        assert list(await asyncio.gather(ask(secrets, "s"), ask(secrets, "s"))) == [VALUE, VALUE]
        assert await ask(secrets, "s") == VALUE
    finally:
        os.close(reading)


async def test_a_pipe_that_drips_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """The time is that of the whole secret, or a step would wait as long as the other end likes."""
    monkeypatch.setattr("buildkit_py.session.secrets.PIPE_SECONDS", 0.2)
    reading, writing = os.pipe()
    ended = threading.Event()

    def drip() -> None:
        for _ in range(200):
            os.write(writing, b"x")
            if ended.wait(0.02):
                break
        os.close(writing)

    dripping = threading.Thread(target=drip)
    dripping.start()
    try:
        with pytest.raises(CallError, match="said nothing for"):
            await ask(of(file=f"/dev/fd/{reading}"), "s")
    finally:
        ended.set()
        dripping.join()
        os.close(reading)


async def test_a_pipe_that_says_nothing_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("buildkit_py.session.secrets.PIPE_SECONDS", 0.05)
    reading, writing = os.pipe()
    try:
        with pytest.raises(CallError, match="said nothing"):
            await ask(of(file=f"/dev/fd/{reading}"), "s")
    finally:
        os.close(reading)
        os.close(writing)


def test_the_limit_is_said_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(bytes(MAX_SECRET_BYTES + 1))
    (tmp_path / "just").write_bytes(bytes(MAX_SECRET_BYTES))
    of(file=tmp_path / "just")
    of(value=bytes(MAX_SECRET_BYTES))
    for place in ({"file": tmp_path / "large"}, {"value": bytes(MAX_SECRET_BYTES + 1)}):
        with pytest.raises(InvalidOption, match=r"512001 bytes, the limit is 500 KB \(512000 bytes\)"):
            of(**place)
    with pytest.raises(InvalidOption, match="the limit is 500 KB"):
        of({"BIG": "x" * (MAX_SECRET_BYTES + 1)}, env="BIG")


def test_files_that_cannot_be_read_are_refused_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(InvalidOption, match=r"missing does not exist$"):
        of(file=tmp_path / "missing")
    with pytest.raises(InvalidOption, match="secret s: s does not exist, and no environment variable s is set"):
        of()
    with pytest.raises(InvalidOption, match="is a directory"):
        of(file=tmp_path)
    with pytest.raises(InvalidOption, match="given twice"):
        Secrets([SecretSpec(id="s", value=b""), SecretSpec(id="s", value=b"")])
    with pytest.raises(InvalidOption, match="one place"):
        of(file=tmp_path, env="X")


def test_a_spec_does_not_show_its_value() -> None:
    assert "hunter2" not in repr(SecretSpec(id="s", value=VALUE))


@pytest.mark.parametrize(
    ("text", "file", "env"),
    [
        ("id=s", None, None),
        ("id=s,src=f", "f", None),
        ("id=s,source=f,type=file", "f", None),
        ("id=s,env=E", None, "E"),
        ("id=s,type=env,src=E", None, "E"),
        ("type=env,env=E,id=s", None, "E"),
        ('"id=s","src=a,b"', "a,b", None),
    ],
)
def test_the_command_line_is_read_as_buildx_reads_it(text: str, file: str | None, env: str | None) -> None:
    assert SecretSpec.parse(text) == SecretSpec(id="s", file=file, env=env)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("src=f", "id=... is missing"),
        ("id=", "id=... is missing"),
        ("s", "field 1: expected id="),
        ("id=s,value=hunter2", "field 2: expected id="),
        ("id=s,type=vault", "type=vault: expected file or env"),
        ("id=s,src=a,source=b", "src is given twice"),
        ("id=s,src=a,env=b", "one place"),
    ],
)
def test_bad_options(text: str, why: str) -> None:
    with pytest.raises(InvalidOption, match=why) as caught:
        SecretSpec.parse(text)
    assert "hunter2" not in str(caught.value)
