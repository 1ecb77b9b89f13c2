"""Platforms: operating system, CPU architecture and variant of an image.

Names, aliases and fallbacks are those of containerd/platforms, so that we and the daemon mean the same.
Two spellings of one platform are equal only after :meth:`Platform.normalized`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, cast
from urllib.parse import unquote_to_bytes

from buildkit_py.errors import InvalidPlatform

if TYPE_CHECKING:
    from buildkit_py.pb import ops_pb2

_OS_PART = re.compile(r"([A-Za-z0-9_-]+)(?:\(([A-Za-z0-9_.%-]*)((?:\+[A-Za-z0-9_.%-]+)*)\))?")
_PART = re.compile(r"[A-Za-z0-9_.-]+")
_PLAIN = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_.-")
_BAD_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")

# Go's lists: what a single word is recognised as.
_OS_NAMES = (
    "aix android darwin dragonfly freebsd hurd illumos ios js linux nacl netbsd openbsd plan9 solaris wasip1 "
    "windows zos"
)
_ARCHITECTURE_NAMES = (
    "386 amd64 amd64p32 arm armbe arm64 arm64be ppc64 ppc64le loong64 mips mipsle mips64 mips64le mips64p32 "
    "mips64p32le ppc riscv riscv64 s390 s390x sparc sparc64 wasm"
)
_KNOWN_OS = frozenset(_OS_NAMES.split())
_KNOWN_ARCHITECTURES = frozenset(_ARCHITECTURE_NAMES.split())

# What uname calls a machine, where that is neither Go's name nor one of containerd's aliases.
_MACHINES = {
    "i486": "386",
    "i586": "386",
    "i686": "386",
    "loongarch64": "loong64",
    "armv5l": "arm/v5",
    "armv5tel": "arm/v5",
    "armv6l": "arm/v6",
    "armv7l": "arm/v7",
    "armv8l": "arm/v8",
}


@dataclass(frozen=True, slots=True)
class Platform:
    """One platform as it is written somewhere; compare after normalized().

    Source: OCI image-spec v1.1, image-index.md, "platform".
    """

    os: str
    architecture: str
    variant: str = ""
    os_version: str = ""
    os_features: tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: str, default: Platform | None = None) -> Platform:
        """Read ``os/architecture[/variant]``, ``os(version+feature)/...``, or one half of it.

        The missing half comes from default; without one it is Linux, or this machine's architecture.
        Aliases such as x86_64 or macos are replaced, case does not matter. Raises InvalidPlatform.
        """
        if "*" in text:
            raise InvalidPlatform(f"platform {text!r}: wildcards are not supported")
        parts = text.split("/")
        if len(parts) > 3:
            raise InvalidPlatform(f"platform {text!r}: expected at most os/architecture/variant")
        os, os_version, os_features = _parse_os(parts[0], text)
        for part in parts[1:]:
            if not _PART.fullmatch(part):
                raise InvalidPlatform(
                    f"platform {text!r}: {part!r} is no architecture or variant; expected "
                    "os/architecture[/variant], such as linux/arm64"
                )
        if len(parts) == 1:
            return _complete(text, os, os_version, os_features, default)
        architecture, variant = _normal_architecture(parts[1], parts[2] if len(parts) == 3 else "")
        if len(parts) == 2 and (architecture, variant) == ("arm", "v7"):
            variant = ""  # the usual one is filled in by normalized()
        if len(parts) == 3 and architecture == "arm64" and not variant:
            variant = "v8"  # it was said, so it is kept
        return cls(os, architecture, variant, os_version, os_features)

    @classmethod
    def host(cls, system: str = "", machine: str = "") -> Platform:
        """Platform of a machine with these uname fields; by default of the one this runs on."""
        import platform as _machine

        system = (system or _machine.system()).lower()
        machine = (machine or _machine.machine()).lower()
        architecture, _, variant = _MACHINES.get(machine, machine).partition("/")
        return cls(system, architecture, variant).normalized()

    def normalized(self, default_os: str = "linux") -> Platform:
        """The one spelling that equal platforms share; an empty os becomes default_os."""
        architecture, variant = _normal_architecture(self.architecture, self.variant)
        return Platform(
            _normal_os(self.os) or default_os,
            architecture,
            variant,
            self.os_version,
            tuple(sorted(set(self.os_features))),
        )

    def matches(self, candidate: Platform) -> bool:
        """Whether an image for candidate is one for this platform, without falling back to older variants."""
        return only_strict(self).match(candidate)

    def format(self) -> str:
        """``os/architecture[/variant]`` without version and features; ``unknown`` for no os."""
        if not self.os:
            return "unknown"
        return "/".join(part for part in (self.os, self.architecture, self.variant) if part)

    def __str__(self) -> str:
        """As format(), with version and features when there are any: ``windows(10.0.17763+win32k)/amd64``."""
        if not self.os or not (self.os_version or self.os_features):
            return self.format()
        features = "".join(f"+{_escape(feature)}" for feature in sorted(set(self.os_features)))
        os = f"{self.os}({_escape(self.os_version)}{features})"
        return "/".join(part for part in (os, self.architecture, self.variant) if part)

    @property
    def local_name(self) -> str:
        """Name of this platform's directory in a local export, such as ``linux_arm_v7``."""
        return str(self).replace("/", "_")

    @property
    def is_unknown(self) -> bool:
        """Whether this is the ``unknown/unknown`` that entries carry which are not images to run."""
        return self.os == "unknown" and self.architecture == "unknown"

    def check_known(self) -> None:
        """Raise InvalidPlatform when Go knows no such operating system or architecture; a typo, most likely."""
        if self.os not in _KNOWN_OS:
            hint = f"; did you mean linux/{self.format()}?" if self.os in _KNOWN_ARCHITECTURES else ""
            raise InvalidPlatform(f"platform {self.format()}: unknown operating system {self.os!r}{hint}")
        if self.architecture not in _KNOWN_ARCHITECTURES:
            raise InvalidPlatform(f"platform {self.format()}: unknown architecture {self.architecture!r}")

    def to_oci(self) -> dict[str, object]:
        """JSON object with the keys in the order in which Go writes them."""
        fields: dict[str, object] = {"architecture": self.architecture, "os": self.os}
        if self.os_version:
            fields["os.version"] = self.os_version
        if self.os_features:
            fields["os.features"] = list(self.os_features)
        if self.variant:
            fields["variant"] = self.variant
        return fields

    @classmethod
    def from_oci(cls, fields: Mapping[str, object]) -> Platform:
        """Read the platform of a descriptor or an image config as it stands there; raises InvalidPlatform."""
        return cls(
            _text(fields, "os"),
            _text(fields, "architecture"),
            _text(fields, "variant"),
            _text(fields, "os.version"),
            _texts(fields, "os.features"),
        )

    def to_pb(self) -> ops_pb2.Platform:
        """The message; nothing is normalised."""
        from buildkit_py.pb import ops_pb2  # who inspects a registry has no use for protobuf

        return ops_pb2.Platform(
            OS=self.os,
            Architecture=self.architecture,
            Variant=self.variant,
            OSVersion=self.os_version,
            OSFeatures=self.os_features,
        )

    @classmethod
    def from_pb(cls, message: ops_pb2.Platform) -> Platform:
        """What the message says, as it stands; nothing is normalised."""
        return cls(message.OS, message.Architecture, message.Variant, message.OSVersion, tuple(message.OSFeatures))


def parse_platforms(given: str | Iterable[str | Platform], default: Platform | None = None) -> tuple[Platform, ...]:
    """Platforms of comma lists, normalised, in the order given; ``local`` stands for default.

    Raises InvalidPlatform for one that cannot be read and for one that is given twice, in any spelling.
    """
    spellings: dict[Platform, str] = {}
    for item in [given] if isinstance(given, str) else given:
        for spelling in item.split(",") if isinstance(item, str) else (item,):
            platform = spelling if isinstance(spelling, Platform) else _parse_item(spelling, default)
            platform = platform.normalized()
            written = str(spelling).strip()
            if platform in spellings:
                raise InvalidPlatform(_twice(platform, spellings[platform], written))
            spellings[platform] = written
    return tuple(spellings)


def _parse_item(text: str, default: Platform | None) -> Platform:
    text = text.strip()
    if not text:
        raise InvalidPlatform("empty platform; expected os/architecture[/variant], such as linux/arm64")
    if text == "local":
        return _or_this_machine(default)
    return Platform.parse(text, default)


def _twice(platform: Platform, first: str, second: str) -> str:
    if first == second:
        return f"platform {first} is given twice"
    return f"platforms {first} and {second} are the same ({platform}); give it once"


def _or_this_machine(default: Platform | None) -> Platform:
    # Daemons run Linux, whatever this machine runs.
    return replace(Platform.host(), os="linux") if default is None else default


@dataclass(frozen=True, slots=True)
class Matcher:
    """Which candidates will do, and which of them is better.

    Made by only(), only_strict(), only_os(), ordered() or any_of().
    """

    ranks: tuple[tuple[Platform, ...], ...]
    """Normalised platforms that will do, the best rank first; an empty architecture is any."""

    def match(self, candidate: Platform) -> bool:
        return self.key(candidate)[0] < len(self.ranks)

    def less(self, first: Platform, second: Platform) -> bool:
        """Whether first is strictly better than second."""
        return self.key(first) < self.key(second)

    def key(self, candidate: Platform) -> tuple[int, int]:
        """Sort key, best first; candidates that do not match are equal and come last."""
        normal = candidate.normalized()
        for rank, wanted in enumerate(self.ranks):
            if any(_covers(want, normal) for want in wanted):
                return rank, -len(normal.os_features)
        return len(self.ranks), 0

    def best(self, candidates: Sequence[Platform]) -> int | None:
        """Position of the best candidate, the first among equals; None when none will do."""
        matching = [position for position, candidate in enumerate(candidates) if self.match(candidate)]
        return min(matching, key=lambda position: self.key(candidates[position]), default=None)


def only(platform: Platform) -> Matcher:
    """What runs on platform: itself, then the older variants that its CPU runs too, best first."""
    return Matcher(tuple((candidate,) for candidate in _runnable(platform.normalized())))


def only_strict(platform: Platform) -> Matcher:
    """This very platform."""
    return Matcher(((platform.normalized(),),))


def only_os(platform: Platform) -> Matcher:
    """Anything for the same operating system, this very platform first."""
    normal = platform.normalized()
    return Matcher(((normal,), (replace(normal, architecture="", variant=""),)))


def ordered(*platforms: Platform) -> Matcher:
    """Any of these very platforms, earlier ones first."""
    return Matcher(tuple((platform.normalized(),) for platform in platforms))


def any_of(*platforms: Platform) -> Matcher:
    """Any of these very platforms, all alike."""
    return Matcher((tuple(platform.normalized() for platform in platforms),))


def _covers(want: Platform, have: Platform) -> bool:
    """Whether normalised have satisfies normalised want."""
    if want.os != have.os:
        return False
    if want.architecture and (want.architecture, want.variant) != (have.architecture, have.variant):
        return False
    if want.os == "windows" and not _windows_runs(want.os_version, have.os_version):
        return False
    return set(have.os_features) <= set(want.os_features)


def _windows_runs(host: str, image: str) -> bool:
    """Whether Windows of version host runs containers of version image. Source: containerd/platforms.

    Before build 20348 (Server 2022) builds have to be equal; since then a host also runs images back to the
    last long-term release before it.
    """
    if not host or not image:
        return True
    host_major, host_minor, host_build = _windows_version(host)
    image_major, image_minor, image_build = _windows_version(image)
    if (host_major, host_minor) != (image_major, image_minor):
        return False
    if host_build < _LTSC_BUILDS[0]:
        return host_build == image_build
    oldest = max(build for build in _LTSC_BUILDS if build <= host_build)
    return oldest <= image_build <= host_build


_LTSC_BUILDS = (20348, 26100)


def _windows_version(text: str) -> tuple[int, int, int]:
    numbers = [int(part) if part.isascii() and part.isdigit() else 0 for part in text[:64].split(".")]
    major, minor, build = (*numbers, 0, 0, 0)[:3]
    return major, minor, build


def _runnable(platform: Platform) -> list[Platform]:
    """A normalised platform and what its CPU runs besides, best first."""
    match platform.architecture:
        case "amd64":
            # Normalising wrote v1 as "".
            level = _number(platform.variant, "v") or 1
            older = [("amd64", "" if lower == 1 else f"v{lower}") for lower in range(level - 1, 0, -1)]
            others = [*older, ("386", "")]
        case "arm":
            level = _number(platform.variant, "v") or 0
            others = [("arm", f"v{lower}") for lower in range(level - 1, 4, -1)]
        case "arm64":
            others = [*_older_arm64(platform.variant), *(("arm", f"v{level}") for level in (8, 7, 6, 5))]
        case _:
            others = []
    return [
        platform,
        *(replace(platform, architecture=architecture, variant=variant) for architecture, variant in others),
    ]


def _older_arm64(variant: str) -> list[tuple[str, str]]:
    """Armv8.n runs all lower Armv8; Armv9.n runs lower Armv9 and Armv8.(n+5). Source: Arm ARM, A2.1."""
    if variant == "v9":
        variant = "v9.0"
    if (minor := _number(variant, "v9.")) is not None:
        nines = ["v9" if lower == 0 else f"v9.{lower}" for lower in range(minor - 1, -1, -1)]
        eights = range(minor + 5, -1, -1)
    elif (minor := _number(variant, "v8.")) is not None:
        nines, eights = [], range(minor - 1, -1, -1)
    else:
        return []
    return [
        *(("arm64", nine) for nine in nines),
        *(("arm64", "" if lower == 0 else f"v8.{lower}") for lower in eights),
    ]


def _number(text: str, prefix: str) -> int | None:
    """The number after prefix, if there is one of at most two digits and nothing else."""
    digits = text.removeprefix(prefix)
    return int(digits) if text.startswith(prefix) and re.fullmatch(r"[0-9]{1,2}", digits) else None


def _parse_os(part: str, text: str) -> tuple[str, str, tuple[str, ...]]:
    """Operating system, its version and features of the first part of a platform."""
    found = _OS_PART.fullmatch(part)
    if found is None:
        raise InvalidPlatform(
            f"platform {text!r}: {part!r} is no operating system; expected os/architecture[/variant], "
            "such as linux/arm64"
        )
    os, version, features = found[1], found[2] or "", found[3] or ""
    return (
        _normal_os(os),
        _unescape(version, text),
        tuple(_unescape(feature, text) for feature in features.split("+")[1:]),
    )


def _complete(text: str, os: str, os_version: str, os_features: tuple[str, ...], default: Platform | None) -> Platform:
    """Platform of a single word."""
    if os in _KNOWN_OS:
        other = _or_this_machine(default).normalized()
        variant = "" if (other.architecture, other.variant) == ("arm", "v7") else other.variant
        return Platform(os, other.architecture, variant, os_version, os_features)
    architecture, variant = _normal_architecture(text, "")
    if architecture not in _KNOWN_ARCHITECTURES:
        raise InvalidPlatform(
            f"platform {text!r}: unknown operating system or architecture; expected "
            "os/architecture[/variant], such as linux/arm64"
        )
    if (architecture, variant) == ("arm", "v7"):
        variant = ""
    return Platform(_or_this_machine(default).normalized().os, architecture, variant)


def _normal_os(os: str) -> str:
    os = os.lower()
    return "darwin" if os == "macos" else os


def _normal_architecture(architecture: str, variant: str) -> tuple[str, str]:
    architecture, variant = architecture.lower(), variant.lower()
    match architecture:
        case "i386":
            return "386", ""
        case "x86_64" | "x86-64" | "amd64":
            return "amd64", "" if variant == "v1" else variant
        case "aarch64" | "arm64":
            match variant:
                case "8" | "v8" | "v8.0":
                    return "arm64", ""
                case "9" | "9.0" | "v9.0":
                    return "arm64", "v9"
                case _:
                    return "arm64", variant
        case "armhf":
            return "arm", "v7"
        case "armel":
            return "arm", "v6"
        case "arm":
            match variant:
                case "" | "7":
                    return "arm", "v7"
                case "5" | "6" | "8":
                    return "arm", f"v{variant}"
                case _:
                    return "arm", variant
        case _:
            return architecture, variant


def _escape(text: str) -> str:
    """Percent-encode what parse() would not take as it is."""
    return "".join(chr(byte) if byte in _PLAIN else f"%{byte:02X}" for byte in text.encode())


def _unescape(text: str, whole: str) -> str:
    try:
        if _BAD_ESCAPE.search(text):
            raise ValueError(text)
        return unquote_to_bytes(text).decode()
    except ValueError:
        raise InvalidPlatform(f"platform {whole!r}: {text!r} is not percent-encoded UTF-8") from None


def _text(fields: Mapping[str, object], key: str) -> str:
    value = fields.get(key)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise InvalidPlatform(f"platform: {key} is not a string")
    return value


def _texts(fields: Mapping[str, object], key: str) -> tuple[str, ...]:
    value = fields.get(key)
    if value is None:
        return ()
    if not isinstance(value, list):
        raise InvalidPlatform(f"platform: {key} is not a list of strings")
    texts: list[str] = []
    for item in cast("list[object]", value):
        if not isinstance(item, str):
            raise InvalidPlatform(f"platform: {key} is not a list of strings")
        texts.append(item)
    return tuple(texts)


__all__ = ["Matcher", "Platform", "any_of", "only", "only_os", "only_strict", "ordered", "parse_platforms"]
