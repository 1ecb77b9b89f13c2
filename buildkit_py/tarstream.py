"""Tar streams as they come: bytes in, events out, no I/O, bounded memory.

Reads ustar, GNU and PAX archives. Source: POSIX.1-2017, pax; GNU tar manual, "Basic Tar Format".
"""

from __future__ import annotations

import enum
import re
import tarfile
from dataclasses import dataclass
from typing import TypeAlias

from buildkit_py.errors import ProtocolError

BLOCK = 512

_ZEROS = bytes(BLOCK)
_MAX_EXTENSION_BYTES = 1 << 20
_MAX_SIZE = (1 << 63) - 1
_OCTAL = re.compile(rb"[0-7]*")
_PAX_RECORD = re.compile(rb"([1-9][0-9]{0,6}) ([^=\n]+)=")


class Kind(enum.Enum):
    """What an entry of an archive is."""

    FILE = "file"
    DIRECTORY = "directory"
    OTHER = "link or device"


@dataclass(frozen=True, slots=True)
class Entry:
    """An entry begins; Content of size bytes follows, then EntryEnd."""

    name: str
    kind: Kind
    size: int


@dataclass(frozen=True, slots=True)
class Content:
    """A piece of the current entry's content; a view of the bytes that were fed."""

    data: memoryview


@dataclass(frozen=True, slots=True)
class EntryEnd:
    """The current entry is complete."""


Event: TypeAlias = Entry | Content | EntryEnd


class TarReader:
    """Turns the bytes of a tar stream, in chunks of any size, into events.

    Whatever is not a tar stream raises ProtocolError; the reader is of no use afterwards.
    """

    def __init__(self) -> None:
        self._block = bytearray()
        self._left = 0  # bytes of content still to come
        self._padding = 0
        self._extension = b""  # type flag of the extension header whose content is being collected
        self._collected = bytearray()
        self._name: str | None = None  # what an extension header says of the next entry
        self._size: int | None = None
        self._zero_blocks = 0

    @property
    def content_left(self) -> int:
        """Bytes that skip() may pass over: the rest of the current entry's content."""
        return 0 if self._extension else self._left

    @property
    def wanted(self) -> int:
        """Bytes up to where the next thing begins; fed with so many at a time, it never sees beyond."""
        return self._left or self._padding or BLOCK - len(self._block)

    def skip(self, count: int) -> list[Event]:
        """Take count bytes of content as read, for callers that can seek."""
        if not 0 < count <= self.content_left:
            raise ValueError(f"cannot skip {count} of {self.content_left} bytes")
        self._left -= count
        return [] if self._left else [EntryEnd()]

    def feed(self, data: bytes | bytearray | memoryview) -> list[Event]:
        """Events that these bytes complete."""
        events: list[Event] = []
        view = memoryview(data).cast("B")
        at = 0
        while at < len(view):
            if self._left:
                piece = view[at : at + self._left]
                self._content(piece, events)
                at += len(piece)
            elif self._padding:
                step = min(self._padding, len(view) - at)
                self._padding -= step
                at += step
            else:
                piece = view[at : at + BLOCK - len(self._block)]
                self._block += piece
                at += len(piece)
                if len(self._block) == BLOCK:
                    block = bytes(self._block)
                    self._block.clear()
                    self._header(block, events)
        return events

    def close(self) -> None:
        """Say that the stream ends here; raise ProtocolError if it was cut."""
        # One zero block is the end too: some writers leave the second one out.
        if self._left or self._padding or self._block or not self._zero_blocks:
            raise ProtocolError("the tar stream was cut short")

    def _content(self, piece: memoryview, events: list[Event]) -> None:
        self._left -= len(piece)
        if self._extension:
            self._collected += piece
        else:
            events.append(Content(piece))
        if not self._left:
            self._end_of_content(events)

    def _end_of_content(self, events: list[Event]) -> None:
        if not self._extension:
            events.append(EntryEnd())
            return
        flag, content = self._extension, bytes(self._collected)
        self._extension = b""
        self._collected.clear()
        if flag == b"L":
            self._name = _text(content.rstrip(b"\0"))
        elif flag == b"x":
            self._pax(content)
        # What is left, long link names and defaults for all entries, says nothing that is used here.

    def _header(self, block: bytes, events: list[Event]) -> None:
        if block == _ZEROS:
            self._zero_blocks += 1
            return
        if self._zero_blocks:
            raise ProtocolError("tar stream: something follows its end")
        _check_sum(block)
        flag = block[156:157]
        size = _number(block[124:136])
        if flag in (b"x", b"g", b"L", b"K"):
            if size > _MAX_EXTENSION_BYTES:
                raise ProtocolError(f"tar stream: extension header of {size} bytes")
            self._extension = flag
        else:
            name = self._name if self._name is not None else _header_name(block)
            size = self._size if self._size is not None else size
            self._name = self._size = None
            kind = _kind(flag, name)
            if kind is not Kind.FILE and flag in b"123456":
                size = 0  # such entries have no content, whatever their size says
            events.append(Entry(name, kind, size))
        self._left = size
        self._padding = -size % BLOCK
        if not size:
            self._end_of_content(events)

    def _pax(self, content: bytes) -> None:
        """Records of the form ``length key=value\\n``, each as long as it says."""
        at = 0
        while at < len(content):
            found = _PAX_RECORD.match(content, at)
            end = at + int(found[1]) if found else 0
            if found is None or not found.end() < end <= len(content) or content[end - 1 : end] != b"\n":
                raise ProtocolError("tar stream: malformed PAX header")
            key, value = found[2], content[found.end() : end - 1]
            if key == b"path":
                self._name = _text(value)
            elif key == b"size":
                self._size = _decimal(value)
            elif key.startswith(b"GNU.sparse."):
                raise ProtocolError("tar stream: sparse files are not supported")
            at = end


def _check_sum(block: bytes) -> None:
    """Raise ProtocolError unless the header's checksum is right, by either of the two ways to count."""
    said = _number(block[148:156])
    counted = block[:148] + b" " * 8 + block[156:]
    unsigned = sum(counted)
    # Ancient writers summed signed characters.
    if said not in (unsigned, unsigned - 256 * sum(byte > 127 for byte in counted)):
        raise ProtocolError("tar stream: wrong checksum in a header; this is no tar archive, or a damaged one")


def _header_name(block: bytes) -> str:
    name = block[:100].split(b"\0", 1)[0]
    if block[257:263] == b"ustar\0":
        prefix = block[345:500].split(b"\0", 1)[0]
        if prefix:
            name = prefix + b"/" + name
    return _text(name)


def _kind(flag: bytes, name: str) -> Kind:
    match flag:
        case b"0" | b"\0" | b"7":
            # Before ustar a directory was a file with a slash at its end.
            return Kind.DIRECTORY if flag == b"\0" and name.endswith("/") else Kind.FILE
        case b"5":
            return Kind.DIRECTORY
        case b"S":
            raise ProtocolError("tar stream: sparse files are not supported")
        case _:
            return Kind.OTHER


def _number(field: bytes) -> int:
    """A number field: octal digits, or GNU's base 256 for what these cannot hold."""
    if field[0] & 0x80:
        value = int.from_bytes(field, "big") & ~(0x80 << 8 * (len(field) - 1))
        if field[0] & 0x40 or value > _MAX_SIZE:
            raise ProtocolError("tar stream: number out of range in a header")
        return value
    digits = field.strip(b" \0")
    if not _OCTAL.fullmatch(digits):
        raise ProtocolError("tar stream: malformed number in a header")
    return int(digits or b"0", 8)


def _decimal(value: bytes) -> int:
    if not re.fullmatch(rb"[0-9]{1,19}", value) or int(value) > _MAX_SIZE:
        raise ProtocolError("tar stream: malformed size in a PAX header")
    return int(value)


def _text(name: bytes) -> str:
    try:
        text = name.decode()
    except UnicodeDecodeError:
        text = ""
    if not text or "\0" in text:
        raise ProtocolError("tar stream: an entry's name is empty or not UTF-8")
    return text


def header(name: str, size: int = 0, *, directory: bool = False, writable: bool = False) -> bytes:
    """Header of an entry that is the same whenever and by whomever it is written: no owner, no time."""
    info = tarfile.TarInfo(name)
    info.size = size
    info.mode = 0o755 if directory else 0o644 if writable else 0o444
    info.type = tarfile.DIRTYPE if directory else tarfile.REGTYPE
    raw = bytearray(info.tobuf(tarfile.PAX_FORMAT))
    # Go fills in the device numbers of what is no device, Python leaves them empty.
    block = raw[-BLOCK:]
    block[329:345] = b"0000000\0" * 2
    block[148:156] = b"%06o\0 " % sum(block[:148] + b" " * 8 + block[156:])
    raw[-BLOCK:] = block
    return bytes(raw)


def padding(size: int) -> bytes:
    """What follows content of this size, up to the next block."""
    return bytes(-size % BLOCK)


END = bytes(2 * BLOCK)
"""What an archive ends with."""


__all__ = [
    "BLOCK",
    "END",
    "Content",
    "Entry",
    "EntryEnd",
    "Event",
    "Kind",
    "TarReader",
    "header",
    "padding",
]
