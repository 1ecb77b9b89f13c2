"""References: where an image is, written ``registry/repository[:tag][@digest]``."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from buildkit_py.digest import Digest
from buildkit_py.errors import InvalidDigest, InvalidReference, without_credentials

DEFAULT_DOMAIN = "docker.io"
DEFAULT_TAG = "latest"

_OFFICIAL = "library"
_OLD_DEFAULT_DOMAIN = "index.docker.io"
_MAX_NAME = 255
_MAX_TEXT = 1024  # more than name, tag and the longest digest together; also keeps the patterns below cheap

_LABEL = r"[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?"
_DOMAIN = rf"(?:{_LABEL}(?:\.{_LABEL})*|\[[a-fA-F0-9:]+\])(?::[0-9]+)?"
_COMPONENT = r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*"
_PATH = rf"{_COMPONENT}(?:/{_COMPONENT})*"
_TAG = r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}"
_DIGEST = r"[A-Za-z][A-Za-z0-9]*(?:[+._-][A-Za-z][A-Za-z0-9]*)*:[0-9a-fA-F]{32,}"

_REFERENCE = re.compile(rf"(?:({_DOMAIN})/)?({_PATH})(?::({_TAG}))?(?:@({_DIGEST}))?")
_TAG_ONLY = re.compile(_TAG)
_IDENTIFIER = re.compile(r"[0-9a-f]{64}")

_EXPECTED = "expected [registry/]repository[:tag][@digest]"
_PASSWORD = re.compile(r"\A[^/@]*:[^/@]*@(?!sha\d+:)")
"""What somebody may have put before the registry, as in a URL."""


@dataclass(frozen=True, slots=True)
class Reference:
    """An image name, taken apart. Source: distribution/reference, which daemons and registries use."""

    domain: str
    """Registry host and port; empty for a name that has none."""
    path: str
    """Repository inside the registry, such as ``library/alpine``."""
    tag: str | None = None
    digest: Digest | None = None

    @classmethod
    def parse(cls, text: str) -> Reference:
        """Read a reference that is written in full; raises InvalidReference.

        Nothing is filled in: of ``a/b`` the registry is ``a``. What people type goes to parse_normalized.
        """
        return _read(text, text)

    @classmethod
    def parse_normalized(cls, text: str) -> Reference:
        """Read a reference as people write it; raises InvalidReference.

        ``alpine`` is ``docker.io/library/alpine``. The part before the first slash names a registry if it is
        ``localhost`` or has a dot, a colon or an upper-case letter in it. No tag is added.
        """
        if _IDENTIFIER.fullmatch(text):
            raise InvalidReference(f"reference {text!r}: 64 hex digits alone are an identifier, not a name")
        domain, rest = _split_domain(text)
        repository = rest.partition(":")[0].partition("@")[0]
        if repository != repository.lower():
            raise InvalidReference(
                f"reference {text!r}: repository name must be in lower case, such as {repository.lower()!r}"
            )
        return _read(f"{domain}/{rest}", text)

    @property
    def name(self) -> str:
        """Registry and repository."""
        return f"{self.domain}/{self.path}" if self.domain else self.path

    @property
    def familiar(self) -> str:
        """As people write it: without docker.io and library where parse_normalized puts them back."""
        text = f"{self.familiar_name}{self._suffix}"
        return str(self) if _IDENTIFIER.fullmatch(text) else text

    @property
    def familiar_name(self) -> str:
        """Name part of familiar."""
        if self.domain != DEFAULT_DOMAIN:
            return self.name
        head, slash, tail = self.path.partition("/")
        short = tail if head == _OFFICIAL and slash and "/" not in tail else self.path
        # A first part that looks like a registry would be read as one.
        reads_back = f"{DEFAULT_DOMAIN}/{self.path}" == "/".join(_split_domain(short))
        return short if reads_back else self.name

    @property
    def tag_or_latest(self) -> str:
        """The tag, or ``latest`` where there is none."""
        return self.tag or DEFAULT_TAG

    @property
    def api_host(self) -> str:
        """Host and port that answer for this registry; raises InvalidReference when it names none."""
        if not self.domain:
            raise InvalidReference(f"reference {str(self)!r}: names no registry that could be asked")
        return "registry-1.docker.io" if self.domain == DEFAULT_DOMAIN else self.domain

    def with_tag(self, tag: str) -> Reference:
        """The same name with this tag and no digest; raises InvalidReference."""
        if not _TAG_ONLY.fullmatch(tag):
            raise InvalidReference(
                f"tag {tag[:140]!r}: expected 1 to 128 of letters, digits, '_', '.' and '-', the first not '.' or '-'"
            )
        return replace(self, tag=tag, digest=None)

    def with_digest(self, digest: Digest) -> Reference:
        """The same name, by this digest alone."""
        return replace(self, tag=None, digest=digest)

    def with_default_tag(self) -> Reference:
        """Itself, with the tag ``latest`` where neither tag nor digest says which image."""
        return self if self.tag or self.digest else replace(self, tag=DEFAULT_TAG)

    def without_tag(self) -> Reference:
        """The repository alone: neither tag nor digest."""
        return replace(self, tag=None, digest=None)

    def __str__(self) -> str:
        return f"{self.name}{self._suffix}"

    @property
    def _suffix(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        return f"{tag}@{self.digest}" if self.digest else tag


def _read(text: str, given: str) -> Reference:
    """The reference in text; errors show what was given."""
    if len(given) > _MAX_TEXT:
        raise InvalidReference(f"reference {given[:64]!r}...: {len(given)} characters are too long; {_EXPECTED}")
    found = _REFERENCE.fullmatch(text)
    if found is None:
        shown = _PASSWORD.sub("***@", without_credentials(given))
        raise InvalidReference(f"reference {shown!r}: {_what_is_wrong(given)}")
    domain, path, tag, digest = found[1] or "", found[2], found[3], found[4]
    reference = Reference(domain, path, tag, None if digest is None else _read_digest(digest, given))
    if len(reference.name) > _MAX_NAME:
        raise InvalidReference(f"reference {given[:64]!r}...: name is longer than {_MAX_NAME} characters")
    return reference


def _split_domain(text: str) -> tuple[str, str]:
    """Registry and the rest of a reference as people write it."""
    head, slash, tail = text.partition("/")
    is_domain = slash and (head == "localhost" or "." in head or ":" in head or head != head.lower())
    domain, rest = (head, tail) if is_domain else (DEFAULT_DOMAIN, text)
    if domain == _OLD_DEFAULT_DOMAIN:
        domain = DEFAULT_DOMAIN
    if domain == DEFAULT_DOMAIN and "/" not in rest:
        rest = f"{_OFFICIAL}/{rest}"
    return domain, rest


def _read_digest(text: str, whole: str) -> Digest:
    try:
        return Digest.parse(text)
    except InvalidDigest as error:
        raise InvalidReference(f"reference {whole!r}: {error}") from error


def _what_is_wrong(text: str) -> str:
    """The likeliest reason why text is no reference."""
    if "://" in text:
        return f"a URL scheme does not belong here; {_EXPECTED}"
    if any(character.isspace() for character in text):
        return f"has white space in it; {_EXPECTED}"
    if _REFERENCE.fullmatch(text.lower()):
        return "repository name must be in lower case"
    return f"not valid; {_EXPECTED}"


__all__ = ["DEFAULT_DOMAIN", "DEFAULT_TAG", "Reference"]
