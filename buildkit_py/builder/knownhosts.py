"""Host keys that this user's ssh trusts. Source: sshd(8), "SSH_KNOWN_HOSTS FILE FORMAT"."""

from __future__ import annotations

import base64
import binascii
import contextlib
import hashlib
import hmac
import re
from collections.abc import Iterable
from pathlib import Path

MAX_BYTES = 16 << 20
_MARKERS = frozenset({"@cert-authority", "@revoked"})
_PORT = 22


def known_hosts(host: str, port: int | None = None, *, files: Iterable[Path] | None = None) -> list[str]:
    """Lines of a known_hosts file for one host, which name no other; files default to ssh's own. Blocks."""
    name = host.lower() if port in {None, _PORT} else f"[{host.lower()}]:{port}"
    lines: list[str] = []
    for path in _files() if files is None else files:
        with contextlib.suppress(OSError), path.open("rb") as file:
            lines += file.read(MAX_BYTES).decode(errors="replace").splitlines()
    return [found for line in lines if (found := _line(line, name)) is not None]


def _files() -> list[Path]:
    user = Path.home() / ".ssh"
    return [user / "known_hosts", user / "known_hosts2", Path("/etc/ssh/ssh_known_hosts")]


def _line(line: str, name: str) -> str | None:
    words = line.split()
    marker = [words.pop(0)] if words and words[0] in _MARKERS else []
    if len(words) < 3 or words[0].startswith("#") or not _matches(words[0], name):
        return None
    return " ".join([*marker, name, words[1], words[2]])


def _matches(patterns: str, name: str) -> bool:
    if patterns.startswith("|"):
        return _is_hash_of(patterns, name)
    found = False
    for pattern in patterns.lower().split(","):
        if re.fullmatch(_regex(pattern.removeprefix("!")), name):
            if pattern.startswith("!"):
                return False
            found = True
    return found


def _regex(pattern: str) -> str:
    return "".join({"*": ".*", "?": "."}.get(char, re.escape(char)) for char in pattern)


def _is_hash_of(text: str, name: str) -> bool:
    try:
        _, kind, salt, digest = text.split("|")
        found = hmac.new(base64.b64decode(salt), name.encode(), hashlib.sha1).digest()
        return kind == "1" and hmac.compare_digest(found, base64.b64decode(digest))
    except (ValueError, binascii.Error):
        return False
