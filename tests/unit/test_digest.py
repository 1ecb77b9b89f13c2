"""Digests: text form, and the bytes they stand for."""

from __future__ import annotations

import contextlib
import hashlib
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from buildkit_py.digest import Digest, new_hash
from buildkit_py.errors import BuildKitError, InvalidDigest

EMPTY_JSON = "sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"
EMPTY_JSON_512 = (
    "sha512:27c74670adb75075fad058d5ceaf7b20c4e7786c83bae8a32f626f9782af34c9"
    "a33c2046ef60fd2a7878d378e29fec851806bbd9a67878f3a9f1cda4830763fd"
)


@pytest.mark.parametrize(("algorithm", "text"), [("sha256", EMPTY_JSON), ("sha512", EMPTY_JSON_512)])
def test_the_empty_json_object_has_its_published_digest(algorithm: str, text: str) -> None:
    """Values from OCI image-spec v1.1, manifest.md."""
    assert str(Digest.of(b"{}", algorithm)) == text
    assert Digest.parse(text) == Digest.of(b"{}", algorithm)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "expected algorithm:hex"),
        ("a" * 64, "expected algorithm:hex"),
        ("md5:" + "a" * 32, "unknown algorithm"),
        ("SHA256:" + "a" * 64, "unknown algorithm"),
        ("sha256:" + "a" * 63, "63 characters"),
        ("sha256:" + "a" * 65, "65 characters"),
        ("sha256:" + "A" * 64, "lower-case hex"),
        ("sha256:" + "g" * 64, "lower-case hex"),
        ("sha256:" + "a" * 63 + "\n", "lower-case hex"),
        ("sha256:../" + "a" * 61, "lower-case hex"),
        ("sha512:" + "a" * 64, "expected 128"),
    ],
)
def test_anything_else_is_refused_with_what_was_expected(text: str, expected: str) -> None:
    with pytest.raises(InvalidDigest, match=expected):
        Digest.parse(text)


def test_a_digest_cannot_be_made_wrong_without_parsing_either() -> None:
    with pytest.raises(InvalidDigest):
        Digest("sha256", "../../etc/passwd")


def test_verify_names_what_differs() -> None:
    digest = Digest.of(b"right")
    digest.verify(b"right")
    with pytest.raises(InvalidDigest, match=f"layer 3 has digest {Digest.of(b'wrong')}, expected {digest}"):
        digest.verify(b"wrong", "layer 3")


def test_unknown_algorithms_have_no_hash() -> None:
    with pytest.raises(InvalidDigest, match="md5"):
        new_hash("md5")


@given(st.lists(st.binary(max_size=200)), st.sampled_from(["sha256", "sha384", "sha512"]))
def test_chunks_streams_and_bytes_agree(chunks: list[bytes], algorithm: str) -> None:
    whole = b"".join(chunks)
    digest = Digest.of(whole, algorithm)
    assert digest.hex == hashlib.new(algorithm, whole).hexdigest()
    assert Digest.of_chunks(chunks, algorithm) == digest
    assert Digest.of_stream(io.BytesIO(whole), algorithm) == digest
    running = digest.new_hash()
    for chunk in chunks:
        running.update(chunk)
    digest.verify_hash(running)
    assert Digest.parse(str(digest)) == digest


@given(st.text())
def test_any_text_parses_or_is_refused(text: str) -> None:
    with contextlib.suppress(BuildKitError):
        assert str(Digest.parse(text)) == text
