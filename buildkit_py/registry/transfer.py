"""What a copy did: by mount, by streaming, or not at all because it was there."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from buildkit_py.oci import Descriptor


class Transfer(StrEnum):
    """How a blob came to be in a repository."""

    PRESENT = "present"
    """It was there already."""
    MOUNTED = "mounted"
    """The registry took it from another of its repositories; no byte was sent."""
    SENT = "sent"


@dataclass(frozen=True, slots=True, kw_only=True)
class CopyReport:
    """What a copy of a manifest, with everything below it, came to."""

    descriptor: Descriptor
    """Of the manifest or index that was copied; its bytes are those of the source."""
    manifests: int = 0
    """Manifests and indexes that were written."""
    manifests_present: int = 0
    """Those that were there already."""
    blobs: tuple[tuple[Descriptor, Transfer], ...] = ()
    """Each blob that was looked at, once."""
    tags: tuple[str, ...] = ()
    """Tags that were written, in this order."""

    @property
    def bytes_sent(self) -> int:
        """Bytes of blobs that went through this process."""
        return sum(blob.size for blob, transfer in self.blobs if transfer is Transfer.SENT)

    def count(self, transfer: Transfer) -> int:
        """Number of blobs that came this way."""
        return sum(how is transfer for _, how in self.blobs)


__all__ = ["CopyReport", "Transfer"]
