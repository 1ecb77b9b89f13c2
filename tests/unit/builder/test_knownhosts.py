"""Host keys as OpenSSH's own files have them."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from buildkit_py.builder.knownhosts import known_hosts

FILE = """\
# comment
host.example ssh-ed25519 ONE comment
other.example,HOST.example,10.0.0.1 ssh-rsa TWO
*.example,!host.example ssh-rsa THREE
[host.example]:2222 ssh-rsa FOUR
@cert-authority *.exa?ple ssh-rsa FIVE
@revoked host.example ssh-rsa SIX
host.example ssh-rsa
|1|broken|= ssh-rsa SEVEN
|1|nothing ssh-rsa EIGHT

"""


@pytest.mark.parametrize(
    ("host", "port", "expected"),
    [
        (
            "host.example",
            None,
            [
                "host.example ssh-ed25519 ONE",
                "host.example ssh-rsa TWO",
                "@cert-authority host.example ssh-rsa FIVE",
                "@revoked host.example ssh-rsa SIX",
            ],
        ),
        ("Host.Example", 2222, ["[host.example]:2222 ssh-rsa FOUR"]),
        ("10.0.0.1", 22, ["10.0.0.1 ssh-rsa TWO"]),
        ("more.example", None, ["more.example ssh-rsa THREE", "@cert-authority more.example ssh-rsa FIVE"]),
        ("unknown", None, []),
    ],
)
def test_lines_for_a_host(tmp_path: Path, host: str, port: int | None, expected: list[str]) -> None:
    """None of them says which other hosts the user knows."""
    (tmp_path / "known_hosts").write_text(FILE)
    assert known_hosts(host, port, files=[tmp_path / "known_hosts", tmp_path / "none"]) == expected


@pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="no ssh-keygen to hash names with")
def test_hashed_names(tmp_path: Path) -> None:
    path = tmp_path / "known_hosts"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", str(tmp_path / "key")], check=True)
    key = (tmp_path / "key.pub").read_text().strip()
    path.write_text(f"host.example {key}\n[host.example]:2222 {key}\n")
    subprocess.run(["ssh-keygen", "-q", "-H", "-f", str(path)], check=True, capture_output=True)
    assert "host.example" not in path.read_text()
    assert known_hosts("host.example", files=[path]) == [f"host.example {key}"]
    assert known_hosts("host.example", 2222, files=[path]) == [f"[host.example]:2222 {key}"]
    assert known_hosts("other.example", files=[path]) == []
