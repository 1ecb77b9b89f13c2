"""What a daemon says of itself: version, workers, cache records."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from types import MappingProxyType
from typing import TYPE_CHECKING

from buildkit_py.platforms import Platform

if TYPE_CHECKING:
    from google.protobuf.timestamp_pb2 import Timestamp

    from buildkit_py.pb import control_pb2, worker_pb2


@dataclass(frozen=True, slots=True, kw_only=True)
class DaemonInfo:
    """Version of a daemon. An engine's embedded BuildKit may report a placeholder: test for features."""

    package: str
    version: str
    revision: str

    @classmethod
    def from_pb(cls, message: worker_pb2.BuildkitVersion) -> DaemonInfo:
        return cls(package=message.package, version=message.version, revision=message.revision)


@dataclass(frozen=True, slots=True, kw_only=True)
class GCRule:
    """One rule of a worker's garbage collection; sizes in bytes, 0 meaning no limit."""

    all: bool
    keep_seconds: float
    reserved_space: int
    max_used_space: int
    min_free_space: int
    filters: tuple[str, ...]

    @classmethod
    def from_pb(cls, message: worker_pb2.GCPolicy) -> GCRule:
        return cls(
            all=message.all,
            keep_seconds=message.keepDuration / 1e9,
            reserved_space=message.reservedSpace,
            max_used_space=message.maxUsedSpace,
            min_free_space=message.minFreeSpace,
            filters=tuple(message.filters),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Worker:
    """An executor inside a daemon. Only the first one of a daemon builds. Source: buildkit, worker/."""

    id: str
    labels: Mapping[str, str]
    platforms: tuple[Platform, ...]
    """What it can run, natively or by emulation, its own platform first."""
    gc_policy: tuple[GCRule, ...]
    version: DaemonInfo | None
    """None from daemons older than v0.11."""

    @classmethod
    def from_pb(cls, message: worker_pb2.WorkerRecord) -> Worker:
        version = message.BuildkitVersion if message.HasField("BuildkitVersion") else None
        return cls(
            id=message.ID,
            labels=MappingProxyType(dict(message.Labels)),
            # An engine leaves out the variant that its own builds have, and then lists its own platform twice.
            platforms=tuple(dict.fromkeys(Platform.from_pb(platform).normalized() for platform in message.platforms)),
            gc_policy=tuple(GCRule.from_pb(rule) for rule in message.GCPolicy),
            version=None if version is None else DaemonInfo.from_pb(version),
        )

    def emulation_hint(self, platform: Platform | None) -> str:
        """What to try after an ``exec format error``; "" where the worker can run programs of the platform.

        Engines before 27 leave out what containerd takes another platform to cover, such as linux/arm/v7 beside
        linux/arm64, so one that is not listed may run all the same.
        """
        if platform in self.platforms:
            return ""
        wanted = "what this step is for" if platform is None else str(platform)
        names = ", ".join(str(entry) for entry in self.platforms) or "none"
        return (
            f"the daemon does not say that it can run {wanted}; it says {names}. Emulators add more: install "
            "qemu-user-static and binfmt-support on the daemon's machine, then restart the daemon"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageRecord:
    """One record of the build cache."""

    id: str
    mutable: bool
    in_use: bool
    size: int
    """Bytes."""
    parents: tuple[str, ...]
    created_at: datetime | None
    last_used_at: datetime | None
    usage_count: int
    description: str
    record_type: str
    """Such as ``regular``, ``source.local`` or ``exec.cachemount``."""
    shared: bool

    @classmethod
    def from_pb(cls, message: control_pb2.UsageRecord) -> UsageRecord:
        parents = tuple(message.Parents) or ((message.Parent,) if message.Parent else ())
        return cls(
            id=message.ID,
            mutable=message.Mutable,
            in_use=message.InUse,
            size=message.Size,
            parents=parents,
            created_at=_time(message.CreatedAt if message.HasField("CreatedAt") else None),
            last_used_at=_time(message.LastUsedAt if message.HasField("LastUsedAt") else None),
            usage_count=message.UsageCount,
            description=message.Description,
            record_type=message.RecordType,
            shared=message.Shared,
        )


def _time(stamp: Timestamp | None) -> datetime | None:
    """Aware UTC time; Go's zero time, which some records carry, is no time."""
    if stamp is None or stamp.seconds < 0:
        return None
    return datetime.fromtimestamp(stamp.seconds + stamp.nanos / 1e9, tz=UTC)
