"""The exchange of file trees with a daemon: packets as bytes, and each side's half as a state machine.

Nothing here does I/O. Packets are coded by hand and not with protobuf for two reasons: names are bytes that
need not be UTF-8, which protobuf's Python refuses, and a listing has one packet for each file.

The exchange: the sender lists its tree (one STAT for each entry, then an empty message) while the receiver
asks for files by their position in the listing (REQ) and gets them in chunks (DATA, an empty one last). When
it has all it wants it says FIN, which the sender repeats.

Source: tonistiigi/fsutil, types/wire.proto, types/stat.proto, send.go, receive.go, validator.go.
"""

from __future__ import annotations

import enum
import stat as _stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache, lru_cache
from types import MappingProxyType
from typing import Generic, NamedTuple, TypeAlias, TypeVar

from buildkit_py.errors import PeerError, ProtocolError

T = TypeVar("T")

MAX_ENTRIES = 5_000_000
"""Entries of one listing that a Receiver takes; it keeps a name for each of them."""
MAX_LISTING_BYTES = 1 << 30
"""Of all packets of such a listing: five million entries may not have the longest names there are, too."""
MAX_PATH_BYTES = 16 * 1024
MAX_NAME_BYTES = 255
"""Longest name that Linux file systems take."""
MAX_ERROR_BYTES = 4096

# Go's os.FileMode. Set-uid, set-gid and sticky are not where Unix has them.
MODE_DIR = 1 << 31
MODE_SYMLINK = 1 << 27
MODE_DEVICE = 1 << 26
MODE_NAMED_PIPE = 1 << 25
MODE_SOCKET = 1 << 24
MODE_SETUID = 1 << 23
MODE_SETGID = 1 << 22
MODE_CHAR_DEVICE = 1 << 21
MODE_STICKY = 1 << 20
MODE_IRREGULAR = 1 << 19
MODE_TYPE = MODE_DIR | MODE_SYMLINK | MODE_DEVICE | MODE_NAMED_PIPE | MODE_SOCKET | MODE_CHAR_DEVICE | MODE_IRREGULAR


class PacketType(enum.IntEnum):
    STAT = 0
    REQ = 1
    DATA = 2
    FIN = 3
    ERR = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Stat:
    """One entry of a listing."""

    path: bytes
    """Relative to the root of the tree, clean, separated by slashes."""
    mode: int
    """Go's os.FileMode bits; see go_mode."""
    uid: int = 0
    gid: int = 0
    size: int = 0
    mtime_ns: int = 0
    linkname: bytes = b""
    """Text of a symlink; for another entry that is not a directory, the path it is a hard link to."""
    devmajor: int = 0
    devminor: int = 0
    xattrs: Mapping[bytes, bytes] = field(default_factory=dict[bytes, bytes])

    @property
    def is_dir(self) -> bool:
        return bool(self.mode & MODE_DIR)

    @property
    def is_symlink(self) -> bool:
        return bool(self.mode & MODE_SYMLINK)

    @property
    def has_data(self) -> bool:
        """Whether the receiver may ask for its content."""
        return not self.mode & MODE_TYPE

    @property
    def is_hardlink(self) -> bool:
        return bool(self.linkname) and not self.mode & (MODE_DIR | MODE_SYMLINK)

    def encode(self) -> bytes:
        """The STAT packet."""
        owner = b""
        if self.uid:
            owner += b"\x18" + varint(self.uid)
        if self.gid:
            owner += b"\x20" + varint(self.gid)
        return encode_stat(
            self.path,
            mode_field(self.mode) + owner,
            self.size,
            self.mtime_ns,
            self.linkname,
            stat_extras(self.devmajor, self.devminor, self.xattrs),
        )


class Packet(NamedTuple):
    """One message of the exchange, decoded."""

    type: PacketType
    id: int = 0
    data: bytes = b""
    stat: Stat | None = None


END_OF_LISTING = b""
FIN = b"\x08\x03"


# --- encoding ----------------------------------------------------------------------------------------------


@cache
def _pairs() -> list[bytes]:
    """Every 14-bit number as two varint bytes that say that more follows."""
    return [bytes((value & 0x7F | 0x80, value >> 7 | 0x80)) for value in range(1 << 14)]


def varint(value: int) -> bytes:
    """Base-128 bytes of a number below 2**64; a negative one is taken as 64-bit two's complement."""
    if value < 0:
        value &= 0xFFFF_FFFF_FFFF_FFFF
    if value < 0x80:
        return bytes((value,))
    if value < 0x4000:
        return bytes((value & 0x7F | 0x80, value >> 7))
    pairs = _pairs()
    out = b""
    while value >= 0x4000:
        out += pairs[value & 0x3FFF]
        value >>= 14
    return out + (bytes((value,)) if value < 0x80 else bytes((value & 0x7F | 0x80, value >> 7)))


@cache
def mode_field(mode: int) -> bytes:
    """The mode of a STAT as its field; few modes occur, so each is coded once."""
    return b"\x10" + varint(mode) if mode else b""


def encode_stat(path: bytes, mode: bytes, size: int, mtime_ns: int, linkname: bytes, extras: bytes) -> bytes:
    """STAT packet of one entry; mode comes from mode_field and extras from stat_extras.

    Stat.encode says the same in a readable way; a walk of many files cannot afford it.
    """
    length = len(path)
    body = b"\x0a" + (bytes((length,)) if length < 0x80 else varint(length)) + path + mode
    if size:
        body += b"\x28" + varint(size)
    if mtime_ns:
        body += b"\x30" + varint(mtime_ns)
    if linkname:
        body += b"\x3a" + varint(len(linkname)) + linkname
    if extras:
        body += extras
    length = len(body)
    return (b"\x12" + (bytes((length,)) if length < 0x80 else varint(length))) + body


def stat_extras(devmajor: int, devminor: int, xattrs: Mapping[bytes, bytes]) -> bytes:
    """The fields of a STAT that most entries do not have."""
    out = b""
    if devmajor:
        out += b"\x40" + varint(devmajor)
    if devminor:
        out += b"\x48" + varint(devminor)
    for name in sorted(xattrs):
        value = xattrs[name]
        entry = b"\x0a" + varint(len(name)) + name + b"\x12" + varint(len(value)) + value
        out += b"\x52" + varint(len(entry)) + entry
    return out


def encode_request(file_id: int) -> bytes:
    return b"\x08\x01\x18" + varint(file_id) if file_id else b"\x08\x01"


def data_header(file_id: int, size: int) -> bytes:
    """What stands before the content in a DATA packet of size bytes."""
    return (b"\x08\x02\x18" + varint(file_id) if file_id else b"\x08\x02") + b"\x22" + varint(size)


def end_of_file(file_id: int) -> bytes:
    """The DATA packet that ends a file."""
    return b"\x08\x02\x18" + varint(file_id) if file_id else b"\x08\x02"


def encode_error(text: str) -> bytes:
    data = text.encode(errors="replace")[:MAX_ERROR_BYTES]
    return b"\x08\x04\x22" + varint(len(data)) + data


# --- decoding ----------------------------------------------------------------------------------------------


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    try:
        byte = data[at]
        if byte < 0x80:
            return byte, at + 1
        value = byte & 0x7F
        for shift in range(7, 70, 7):
            at += 1
            byte = data[at]
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value & 0xFFFF_FFFF_FFFF_FFFF, at + 1
    except IndexError:
        raise ProtocolError("a packet ends inside a number") from None
    raise ProtocolError("a packet has a number of more than ten bytes")


def _fields(data: bytes) -> Iterable[tuple[int, int | bytes]]:
    """(field number, value) of each field that is a number or bytes; others are skipped."""
    at, end = 0, len(data)
    while at < end:
        key, at = _read_varint(data, at)
        number, kind = key >> 3, key & 7
        if not number:
            raise ProtocolError("a packet has a field 0")
        match kind:
            case 0:
                value, at = _read_varint(data, at)
                yield number, value
            case 2:
                size, at = _read_varint(data, at)
                if size > end - at:
                    raise ProtocolError("a packet ends inside a field")
                yield number, data[at : at + size]
                at += size
            case 1 | 5:
                at += 8 if kind == 1 else 4
                if at > end:
                    raise ProtocolError("a packet ends inside a field")
            case _:
                raise ProtocolError(f"a packet has a field of wire type {kind}")


@lru_cache(maxsize=1024)
def _mode(value: int) -> int:
    """One object for each of the few modes that occur."""
    return value & 0xFFFF_FFFF


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


_NO_XATTRS: Mapping[bytes, bytes] = MappingProxyType({})  # what most of a million entries have


def decode_stat(data: bytes) -> Stat:
    numbers: dict[int, int] = {}
    texts: dict[int, bytes] = {}
    xattrs: dict[bytes, bytes] = {}
    for number, value in _fields(data):
        if isinstance(value, int):
            numbers[number] = value
        elif number == 10:
            entry = {key: part for key, part in _fields(value) if isinstance(part, bytes)}
            xattrs[entry.get(1, b"")] = entry.get(2, b"")
        else:
            texts[number] = value
    return Stat(
        path=texts.get(1, b""),
        mode=_mode(numbers.get(2, 0)),
        uid=numbers.get(3, 0) & 0xFFFF_FFFF,
        gid=numbers.get(4, 0) & 0xFFFF_FFFF,
        size=_signed(numbers.get(5, 0)),
        mtime_ns=_signed(numbers.get(6, 0)),
        linkname=texts.get(7, b""),
        devmajor=_signed(numbers.get(8, 0)),
        devminor=_signed(numbers.get(9, 0)),
        xattrs=xattrs or _NO_XATTRS,
    )


def decode_packet(message: bytes) -> Packet:
    """Raises ProtocolError for anything that is not a packet; unknown fields are skipped."""
    kind = file_id = 0
    data = b""
    stat: Stat | None = None
    for number, value in _fields(message):
        if isinstance(value, int):
            if number == 1:
                kind = value
            elif number == 3:
                file_id = value & 0xFFFF_FFFF
        elif number == 2:
            stat = decode_stat(value)
        elif number == 4:
            data = value
    if kind > PacketType.ERR:
        raise ProtocolError(f"unknown packet type {kind}")
    return Packet(PacketType(kind), file_id, data, stat)


def encode_bytes_message(data: bytes) -> bytes:
    """BytesMessage, the wrapper of raw streams: one field of bytes."""
    return b"\x0a" + varint(len(data)) + data if data else b""


def decode_bytes_message(message: bytes) -> bytes:
    """The data of a BytesMessage. Raises ProtocolError."""
    data = b""
    for number, value in _fields(message):
        if number == 1:
            if isinstance(value, int):
                raise ProtocolError("the data of a BytesMessage is a number")
            data = value
    return data


# --- modes -------------------------------------------------------------------------------------------------

_TYPES = {
    _stat.S_IFDIR: MODE_DIR,
    _stat.S_IFLNK: MODE_SYMLINK,
    _stat.S_IFBLK: MODE_DEVICE,
    _stat.S_IFCHR: MODE_DEVICE | MODE_CHAR_DEVICE,
    _stat.S_IFIFO: MODE_NAMED_PIPE,
    _stat.S_IFREG: 0,
    # The socket bit is never sent: a socket looks like an empty file.
    _stat.S_IFSOCK: 0,
}


@cache
def go_mode(st_mode: int) -> int:
    """os.FileMode bits, as they go into a STAT, of a Unix mode."""
    mode = st_mode & 0o777 | _TYPES.get(_stat.S_IFMT(st_mode), MODE_IRREGULAR)
    if st_mode & _stat.S_ISUID:
        mode |= MODE_SETUID
    if st_mode & _stat.S_ISGID:
        mode |= MODE_SETGID
    if st_mode & _stat.S_ISVTX:
        mode |= MODE_STICKY
    return mode


def unix_permissions(mode: int) -> int:
    """The low twelve bits of a Unix mode, from os.FileMode bits."""
    permissions = mode & 0o777
    if mode & MODE_SETUID:
        permissions |= _stat.S_ISUID
    if mode & MODE_SETGID:
        permissions |= _stat.S_ISGID
    if mode & MODE_STICKY:
        permissions |= _stat.S_ISVTX
    return permissions


# --- the two halves ----------------------------------------------------------------------------------------


class SendFile(NamedTuple, Generic[T]):
    """The receiver asks for the content of this file."""

    id: int
    file: T


@dataclass(frozen=True, slots=True)
class Finished:
    """The peer said FIN."""


class Sender(Generic[T]):
    """Sending half: requests in, events out. T is what the owner knows a file by.

    File ids are positions in the listing, from 0, and each may be requested once.
    """

    __slots__ = ("_files", "requests")

    def __init__(self) -> None:
        self._files: list[T | None] = []
        self.requests = 0

    @property
    def listed(self) -> int:
        """Entries listed so far; also the id of the next one."""
        return len(self._files)

    def announce(self, entries: Iterable[T | None]) -> None:
        """Take up the next entries, None for what has no content; before their packets are sent.

        A request may come as soon as a STAT is on its way.
        """
        self._files.extend(entries)

    def receive(self, message: bytes) -> SendFile[T] | Finished:
        """Raises ProtocolError, or PeerError when the receiver reports a failure."""
        # One request for each file: not worth a Packet.
        if message[:3] == b"\x08\x01\x18":
            file_id, end = _read_varint(message, 3)
            if end != len(message):
                file_id = decode_packet(message).id
        elif message == b"\x08\x01":
            file_id = 0
        else:
            packet = decode_packet(message)
            match packet.type:
                case PacketType.REQ:
                    file_id = packet.id
                case PacketType.FIN:
                    return Finished()
                case PacketType.ERR:
                    raise PeerError(f"error from receiver: {_text(packet.data)}")
                case PacketType.STAT | PacketType.DATA:
                    raise ProtocolError(f"a receiver sent a {packet.type.name} packet")
        file = self._files[file_id] if file_id < len(self._files) else None
        if file is None:
            raise ProtocolError(f"request for an invalid file id {file_id}")
        self._files[file_id] = None
        self.requests += 1
        return SendFile(file_id, file)


class Listed(NamedTuple):
    """An entry of the sender's tree; its parents came before it."""

    id: int
    stat: Stat


@dataclass(frozen=True, slots=True)
class ListingEnd:
    """The tree is listed completely."""


class Chunk(NamedTuple):
    """The next bytes of a requested file; never empty."""

    id: int
    data: bytes


class FileEnd(NamedTuple):
    """A requested file is complete."""

    id: int


ReceiverEvent: TypeAlias = Listed | ListingEnd | Chunk | FileEnd | Finished


class Receiver:
    """Receiving half. The sender is not trusted: paths, order, links and ids are checked here.

    An entry's path is relative and has no empty, ``.`` or ``..`` part, its parent was listed as a directory,
    siblings ascend by the bytes of their names, and a hard link points to an entry that was listed before.
    """

    __slots__ = ("_count", "_finishing", "_levels", "_listed_all", "_listed_bytes", "_open", "_plain", "_wanted")

    def __init__(self) -> None:
        self._count = 0
        self._listed_bytes = 0
        self._levels: list[tuple[bytes, bytes]] = [(b"", b"")]
        """(path with its slash, name of the last entry) of each directory that may get more entries."""
        self._plain: set[bytes] = set()
        self._wanted = bytearray()
        """By id: 1 if it may be requested."""
        self._open: set[int] = set()
        """Ids that were requested and are not complete."""
        self._listed_all = False
        self._finishing = False

    @property
    def complete(self) -> bool:
        """Whether the listing and every requested file are there."""
        return self._listed_all and not self._open

    @property
    def requested(self) -> int:
        """Files requested and not yet complete."""
        return len(self._open)

    def request(self, file_id: int) -> bytes:
        """The packet that asks for a listed file; once for each."""
        if not 0 <= file_id < self._count or not self._wanted[file_id] or self._finishing:
            raise ValueError(f"file {file_id} cannot be requested")
        self._wanted[file_id] = 0
        self._open.add(file_id)
        return encode_request(file_id)

    def finish(self) -> bytes:
        """The packet that says that nothing more is wanted."""
        if not self.complete:
            raise ValueError("the transfer is not complete")
        self._finishing = True
        return FIN

    def receive(self, message: bytes) -> ReceiverEvent:
        """Raises ProtocolError, or PeerError when the sender reports a failure."""
        packet = decode_packet(message)
        match packet.type:
            case PacketType.DATA:
                if packet.id not in self._open:
                    raise ProtocolError(f"data for file id {packet.id}, which was not requested")
                if packet.data:
                    return Chunk(packet.id, packet.data)
                self._open.discard(packet.id)
                return FileEnd(packet.id)
            case PacketType.STAT:
                if self._listed_all:
                    raise ProtocolError("a listing goes on after its end")
                if packet.stat is None:
                    self._listed_all = True
                    return ListingEnd()
                self._listed_bytes += len(message)
                return self._list(packet.stat)
            case PacketType.FIN:
                if not self._finishing:
                    raise ProtocolError("the sender finished before the receiver")
                return Finished()
            case PacketType.ERR:
                raise PeerError(f"error from sender: {_text(packet.data)}")
            case PacketType.REQ:
                raise ProtocolError("a sender sent a REQ packet")

    def _list(self, stat: Stat) -> Listed:
        path = stat.path
        parent, slash, name = path.rpartition(b"/")
        parent += slash
        check_name(name, path)
        if len(path) > MAX_PATH_BYTES:
            raise ProtocolError(f"a listed path has {len(path)} bytes")
        levels = self._levels
        while levels and levels[-1][0] != parent:
            levels.pop()
        if not levels or name <= levels[-1][1]:
            raise ProtocolError(f"changes out of order: {_text(path)!r}")
        levels[-1] = (parent, name)
        if stat.is_dir:
            levels.append((path + b"/", b""))
        elif stat.is_hardlink:
            if stat.linkname not in self._plain:
                raise ProtocolError(f"{_text(path)!r} links to {_text(stat.linkname)!r}, which was not listed")
        elif not stat.is_symlink:
            self._plain.add(path)
        elif not stat.linkname or b"\0" in stat.linkname:
            raise ProtocolError(f"the symlink {_text(path)!r} has no valid target")
        file_id = self._count
        self._count += 1
        if self._count > MAX_ENTRIES:
            raise ProtocolError(f"a listing has more than {MAX_ENTRIES} entries")
        if self._listed_bytes > MAX_LISTING_BYTES:
            raise ProtocolError(f"a listing has more than {MAX_LISTING_BYTES} bytes")
        self._wanted.append(stat.has_data)
        return Listed(file_id, stat)


def check_name(name: bytes, path: bytes) -> None:
    """Raise ProtocolError unless name, the last part of path, can name an entry of a directory."""
    if name in {b"", b".", b".."} or b"\0" in name or b"/" in name:
        raise ProtocolError(f"a listing has the invalid path {_text(path)!r}")
    if len(name) > MAX_NAME_BYTES:
        raise ProtocolError(f"a listing has a name of {len(name)} bytes: {_text(name[:40])!r}...")


def _text(data: bytes) -> str:
    return data[:MAX_ERROR_BYTES].decode(errors="backslashreplace")
