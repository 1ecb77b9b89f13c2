"""What is checked about TLS options before anybody is connected to."""

from __future__ import annotations

from pathlib import Path

import pytest
import trustme
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from buildkit_py.errors import InvalidOption
from buildkit_py.rpc import TLSConfig


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def leaf(authority: trustme.CA) -> trustme.LeafCert:
    return authority.issue_cert("client.test")


def test_bytes_and_paths_are_the_same(authority: trustme.CA, leaf: trustme.LeafCert, tmp_path: Path) -> None:
    ca, cert, key = authority.cert_pem.bytes(), leaf.cert_chain_pems[0].bytes(), leaf.private_key_pem.bytes()
    for name, data in (("ca.pem", ca), ("cert.pem", cert), ("key.pem", key)):
        (tmp_path / name).write_bytes(data)
    of_bytes = TLSConfig(ca=ca, cert=cert, key=key).load()
    assert (
        TLSConfig(ca=tmp_path / "ca.pem", cert=tmp_path / "cert.pem", key=str(tmp_path / "key.pem")).load() == of_bytes
    )
    assert TLSConfig.from_dir(tmp_path).load() == of_bytes
    assert of_bytes.context().get_ca_certs()


def test_the_other_names_of_a_folder(authority: trustme.CA, leaf: trustme.LeafCert, tmp_path: Path) -> None:
    (tmp_path / "ca.crt").write_bytes(authority.cert_pem.bytes())
    assert TLSConfig.from_dir(tmp_path).cert is None
    (tmp_path / "tls.crt").write_bytes(leaf.cert_chain_pems[0].bytes())
    with pytest.raises(InvalidOption, match=r"has no key\.pem or tls\.key"):
        TLSConfig.from_dir(tmp_path)
    (tmp_path / "tls.key").write_bytes(leaf.private_key_pem.bytes())
    config = TLSConfig.from_dir(tmp_path, server_name="x")
    assert (config.key, config.server_name) == (tmp_path / "tls.key", "x")


def test_a_folder_without_ca_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidOption, match=r"has no ca\.pem or ca\.crt"):
        TLSConfig.from_dir(tmp_path)


@pytest.mark.parametrize(("cert", "key"), [("c.pem", None), (None, "k.pem")])
def test_certificate_and_key_come_together(cert: str | None, key: str | None) -> None:
    with pytest.raises(InvalidOption, match="needs both"):
        TLSConfig(cert=cert, key=key)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidOption, match=r"TLS ca '.*/none\.pem': No such file"):
        TLSConfig(ca=tmp_path / "none.pem").load()


def test_a_certificate_wants_its_own_key(authority: trustme.CA, leaf: trustme.LeafCert) -> None:
    other = authority.issue_cert("other.test").private_key_pem.bytes()
    with pytest.raises(InvalidOption, match="do not belong together"):
        TLSConfig(ca=authority.cert_pem.bytes(), cert=leaf.cert_chain_pems[0].bytes(), key=other).load()


def test_a_key_with_a_passphrase_is_refused_and_nobody_asked(authority: trustme.CA, leaf: trustme.LeafCert) -> None:
    key = load_pem_private_key(leaf.private_key_pem.bytes(), None)
    locked = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"pw"))
    with pytest.raises(InvalidOption, match="passphrase"):
        TLSConfig(ca=authority.cert_pem.bytes(), cert=leaf.cert_chain_pems[0].bytes(), key=locked).load()


@pytest.mark.parametrize("what", ["ca", "cert", "key"])
def test_what_is_no_pem_is_named_and_not_quoted(what: str, authority: trustme.CA, leaf: trustme.LeafCert) -> None:
    given = {
        "ca": authority.cert_pem.bytes(),
        "cert": leaf.cert_chain_pems[0].bytes(),
        "key": leaf.private_key_pem.bytes(),
        what: b"-----BEGIN SECRET-----\nhunter2\n",
    }
    with pytest.raises(InvalidOption, match=f"TLS {what} holds no") as caught:
        TLSConfig(ca=given["ca"], cert=given["cert"], key=given["key"]).load()
    assert "hunter2" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_neither_key_nor_certificates_are_in_the_text(authority: trustme.CA, leaf: trustme.LeafCert) -> None:
    config = TLSConfig(
        ca=authority.cert_pem.bytes(), cert=leaf.cert_chain_pems[0].bytes(), key=leaf.private_key_pem.bytes()
    )
    assert repr(config) == "TLSConfig(server_name=None)"
    assert repr(config.load()) == "TLSMaterial(server_name=None)"


def test_a_file_that_is_too_large_is_not_read(authority: trustme.CA, tmp_path: Path) -> None:
    path = tmp_path / "ca.pem"
    path.write_bytes(authority.cert_pem.bytes() + b"\n" * (8 << 20))
    with pytest.raises(InvalidOption, match=r"TLS ca '.*/ca\.pem' is larger than"):
        TLSConfig(ca=path).load()
