"""Packets and the two halves of the exchange, without any I/O."""

from __future__ import annotations

import random
import stat

import pytest
from hypothesis import given
from hypothesis import strategies as st

from buildkit_py.errors import BuildKitError, PeerError, ProtocolError
from buildkit_py.session.fsutil import (
    END_OF_LISTING,
    FIN,
    MAX_ERROR_BYTES,
    MODE_CHAR_DEVICE,
    MODE_DEVICE,
    MODE_DIR,
    MODE_NAMED_PIPE,
    MODE_SETGID,
    MODE_SETUID,
    MODE_STICKY,
    MODE_SYMLINK,
    Chunk,
    FileEnd,
    Finished,
    Listed,
    ListingEnd,
    Packet,
    PacketType,
    Receiver,
    Sender,
    SendFile,
    Stat,
    data_header,
    decode_bytes_message,
    decode_packet,
    encode_bytes_message,
    encode_error,
    encode_request,
    end_of_file,
    go_mode,
    unix_permissions,
    varint,
)

INT64 = st.integers(-(1 << 63), (1 << 63) - 1)
UINT32 = st.integers(0, (1 << 32) - 1)
STATS = st.builds(
    Stat,
    path=st.binary(max_size=200),
    mode=UINT32,
    uid=UINT32,
    gid=UINT32,
    size=INT64,
    mtime_ns=INT64,
    linkname=st.binary(max_size=20),
    devmajor=INT64,
    devminor=INT64,
    xattrs=st.dictionaries(st.binary(max_size=5), st.binary(max_size=200), max_size=3),
)


def data(file_id: int, content: bytes) -> bytes:
    return data_header(file_id, len(content)) + content


@given(STATS)
def test_a_stat_survives_a_round_trip(entry: Stat) -> None:
    assert decode_packet(entry.encode()) == Packet(PacketType.STAT, stat=entry)


@given(UINT32, st.binary(max_size=300))
def test_other_packets_survive_a_round_trip(file_id: int, content: bytes) -> None:
    assert decode_packet(encode_request(file_id)) == Packet(PacketType.REQ, file_id)
    assert decode_packet(end_of_file(file_id)) == Packet(PacketType.DATA, file_id)
    assert decode_packet(data(file_id, content)) == Packet(PacketType.DATA, file_id, content)
    assert decode_bytes_message(encode_bytes_message(content)) == content


def test_known_bytes() -> None:
    """Zeros are left out, so the first file's packets are the shortest."""
    assert encode_request(0) == b"\x08\x01"
    assert encode_request(300) == b"\x08\x01\x18\xac\x02"
    assert end_of_file(0) == b"\x08\x02"
    assert data(0, b"ab") == b"\x08\x02\x22\x02ab"
    assert data(1, b"ab") == b"\x08\x02\x18\x01\x22\x02ab"
    assert encode_error("no") == b"\x08\x04\x22\x02no"
    assert Stat(path=b"d", mode=MODE_DIR | 0o755).encode() == bytes.fromhex("12090a016410ed83808008")
    assert decode_packet(END_OF_LISTING) == Packet(PacketType.STAT)
    assert decode_packet(FIN) == Packet(PacketType.FIN)


@given(st.integers(0, (1 << 64) - 1))
def test_varints_are_the_shortest_form(value: int) -> None:
    encoded = varint(value)
    assert sum((byte & 0x7F) << 7 * place for place, byte in enumerate(encoded)) == value
    assert [byte >> 7 for byte in encoded] == [1] * (len(encoded) - 1) + [0]
    assert len(encoded) == max(1, -(-value.bit_length() // 7))


def test_unknown_fields_are_skipped() -> None:
    extra = b"\xf8\x01\x05" + b"\xf9\x01" + bytes(8) + b"\xfd\x01" + bytes(4) + b"\xfa\x01\x03abc"
    assert decode_packet(extra + encode_request(7) + extra) == Packet(PacketType.REQ, 7)
    entry = Stat(path=b"f", mode=0o644).encode()
    inner = entry[2:] + extra
    assert decode_packet(b"\x12" + varint(len(inner)) + inner).stat == Stat(path=b"f", mode=0o644)


@pytest.mark.parametrize(
    "message",
    [
        b"\x08",
        b"\x08\x80",
        b"\x08" + b"\xff" * 10 + b"\x01",
        b"\x22\x05abc",
        b"\x22" + b"\xff" * 9 + b"\x01",
        b"\x12\x02\x0a\x05",
        b"\x00\x01",
        b"\x0b",
        b"\x0f",
        b"\x08\x05",
        b"\xf9\x01abc",
        b"\x12\x04\x52\x02\x0a\x09",
    ],
)
def test_malformed_packets_are_refused(message: bytes) -> None:
    with pytest.raises(ProtocolError):
        decode_packet(message)


@given(st.binary(max_size=60))
def test_any_bytes_give_a_packet_or_a_protocol_error(message: bytes) -> None:
    for decode in (decode_packet, decode_bytes_message):
        try:
            decode(message)
        except BuildKitError as error:
            assert type(error) is ProtocolError  # noqa: PT017 - other errors fail by themselves


@given(st.lists(st.binary(max_size=12), max_size=8))
def test_any_messages_give_events_or_an_error_of_ours(messages: list[bytes]) -> None:
    """Whatever a hostile peer says."""
    sender: Sender[bytes] = Sender()
    sender.announce([b"a", None, b"b"])
    receiver = Receiver()
    for half in (sender.receive, receiver.receive):
        for message in messages:
            try:
                half(message)
            except (ProtocolError, PeerError):
                break


@pytest.mark.parametrize(
    ("unix", "go"),
    [
        (stat.S_IFREG | 0o644, 0o644),
        (stat.S_IFDIR | 0o755, MODE_DIR | 0o755),
        (stat.S_IFLNK | 0o777, MODE_SYMLINK | 0o777),
        (stat.S_IFIFO | 0o600, MODE_NAMED_PIPE | 0o600),
        (stat.S_IFBLK | 0o600, MODE_DEVICE | 0o600),
        (stat.S_IFCHR | 0o600, MODE_DEVICE | MODE_CHAR_DEVICE | 0o600),
        (stat.S_IFSOCK | 0o755, 0o755),
        (stat.S_IFREG | 0o7711, MODE_SETUID | MODE_SETGID | MODE_STICKY | 0o711),
    ],
)
def test_modes(unix: int, go: int) -> None:
    assert go_mode(unix) == go
    assert unix_permissions(go) == stat.S_IMODE(unix)


# --- sender -----------------------------------------------------------------------------------------------


def test_a_sender_gives_each_file_once() -> None:
    sender: Sender[str] = Sender()
    sender.announce(["a", None])
    assert sender.receive(encode_request(0)) == SendFile(0, "a")
    sender.announce(["c"])
    assert sender.listed == 3
    assert sender.receive(encode_request(2)) == SendFile(2, "c")
    assert sender.requests == 2
    assert sender.receive(FIN) == Finished()
    for file_id in (0, 1, 2, 3, (1 << 32) - 1):
        with pytest.raises(ProtocolError, match=f"invalid file id {file_id}"):
            sender.receive(encode_request(file_id))


def test_a_sender_reads_requests_in_any_encoding() -> None:
    """Fields may come in any order, and with others around them."""
    sender: Sender[str] = Sender()
    sender.announce(["a", "b", "c", "d"])
    assert sender.receive(b"\x18\x01\x08\x01") == SendFile(1, "b")
    assert sender.receive(b"\x08\x01\x18\x02\x22\x00") == SendFile(2, "c")
    assert sender.receive(b"\x08\x01\x18\x83\x80\x00") == SendFile(3, "d")
    assert sender.receive(b"\x08\x01\x18\x00") == SendFile(0, "a")


@pytest.mark.parametrize("message", [b"", end_of_file(0), Stat(path=b"a", mode=0).encode()])
def test_a_receiver_does_not_send_files(message: bytes) -> None:
    with pytest.raises(ProtocolError, match="a receiver sent a"):
        Sender[str]().receive(message)


def test_errors_of_the_peer_have_its_words() -> None:
    with pytest.raises(PeerError, match="error from receiver: disk full"):
        Sender[str]().receive(encode_error("disk full"))
    with pytest.raises(PeerError, match="error from sender: gone") as caught:
        Receiver().receive(encode_error("gone" + "!" * 10_000))
    assert len(str(caught.value)) < MAX_ERROR_BYTES + 100
    with pytest.raises(PeerError, match=r"\\xff"):
        Receiver().receive(b"\x08\x04\x22\x01\xff")


# --- receiver ---------------------------------------------------------------------------------------------


def test_a_receiver_follows_the_exchange() -> None:
    receiver = Receiver()
    directory, file = Stat(path=b"d", mode=MODE_DIR | 0o755), Stat(path=b"d/f", mode=0o644)
    assert receiver.receive(directory.encode()) == Listed(0, directory)
    assert receiver.receive(file.encode()) == Listed(1, file)
    assert receiver.request(1) == encode_request(1)
    assert receiver.receive(data(1, b"con")) == Chunk(1, b"con")
    assert receiver.receive(END_OF_LISTING) == ListingEnd()
    assert (receiver.complete, receiver.requested) == (False, 1)
    with pytest.raises(ValueError, match="not complete"):
        receiver.finish()
    assert receiver.receive(data(1, b"tent")) == Chunk(1, b"tent")
    assert receiver.receive(end_of_file(1)) == FileEnd(1)
    assert receiver.complete
    assert receiver.finish() == FIN
    assert receiver.receive(FIN) == Finished()


def test_a_receiver_asks_only_for_files_and_once() -> None:
    receiver = Receiver()
    receiver.receive(Stat(path=b"d", mode=MODE_DIR).encode())
    receiver.receive(Stat(path=b"f", mode=0o644).encode())
    receiver.request(1)
    for file_id in (0, 1, 2):
        with pytest.raises(ValueError, match="cannot be requested"):
            receiver.request(file_id)


@pytest.mark.parametrize(
    "paths",
    [
        [b"a", b"a/x", b"a.txt"],
        [b"a", b"a/b", b"a/b/c", b"a/d", b"b"],
        [b"\x01", b"A", b"a", b"\xff"],
    ],
)
def test_orders_that_are_right(paths: list[bytes]) -> None:
    receiver = Receiver()
    for path in paths:
        is_dir = any(other.startswith(path + b"/") for other in paths)
        receiver.receive(Stat(path=path, mode=MODE_DIR if is_dir else 0).encode())


@pytest.mark.parametrize(
    "paths",
    [
        [b"a", b"a.txt", b"a/x"],
        [b"b", b"a"],
        [b"a", b"a"],
        [b"a", b"a/x", b"b", b"a/y"],
        [b"a", b"a/c", b"a/b"],
        [b"x/y"],
        [b"a", b"ab/c"],
    ],
)
def test_orders_that_are_wrong(paths: list[bytes]) -> None:
    receiver = Receiver()
    for path in paths[:-1]:
        receiver.receive(Stat(path=path, mode=MODE_DIR).encode())
    with pytest.raises(ProtocolError, match="out of order"):
        receiver.receive(Stat(path=paths[-1], mode=0).encode())


def test_a_hard_link_points_to_what_was_listed() -> None:
    receiver = Receiver()
    receiver.receive(Stat(path=b"a", mode=0o644).encode())
    receiver.receive(Stat(path=b"b", mode=0o644, linkname=b"a").encode())
    receiver.receive(Stat(path=b"c", mode=MODE_SYMLINK, linkname=b"/anywhere").encode())
    for path, target in [(b"d", b"b"), (b"e", b"c"), (b"f", b"g"), (b"g", b"g")]:
        with pytest.raises(ProtocolError, match="which was not listed"):
            receiver.receive(Stat(path=path, mode=0o644, linkname=target).encode())


@pytest.mark.parametrize("extra", [END_OF_LISTING, Stat(path=b"z", mode=0).encode()])
def test_a_listing_ends_once(extra: bytes) -> None:
    receiver = Receiver()
    receiver.receive(END_OF_LISTING)
    with pytest.raises(ProtocolError, match="after its end"):
        receiver.receive(extra)


def test_a_listing_has_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each entry takes memory, and the peer decides how many there are."""
    monkeypatch.setattr("buildkit_py.session.fsutil.MAX_ENTRIES", 3)
    receiver = Receiver()
    for name in b"abc":
        receiver.receive(Stat(path=bytes([name]), mode=0).encode())
    with pytest.raises(ProtocolError, match="more than 3 entries"):
        receiver.receive(Stat(path=b"d", mode=0).encode())


def test_a_listing_has_a_limit_of_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever they are spent on."""
    monkeypatch.setattr("buildkit_py.session.fsutil.MAX_LISTING_BYTES", 1000)
    receiver = Receiver()
    receiver.receive(Stat(path=b"a", mode=0, xattrs={b"user.x": bytes(900)}).encode())
    with pytest.raises(ProtocolError, match="more than 1000 bytes"):
        receiver.receive(Stat(path=b"b" * 200, mode=0).encode())


# --- both -------------------------------------------------------------------------------------------------


@given(st.lists(st.binary(max_size=40), max_size=8), st.randoms(use_true_random=False))
def test_any_interleaving_brings_every_file(contents: list[bytes], choices: random.Random) -> None:
    """Listing, requests and chunks may overtake each other in every way that keeps one file's chunks in order."""
    choose = choices.choice
    sender: Sender[int] = Sender()
    receiver = Receiver()
    unlisted = [*range(len(contents)), None]
    may_request: list[int] = []
    to_sender: list[bytes] = []
    chunks: dict[int, list[bytes]] = {}
    received: dict[int, bytes] = dict.fromkeys(range(len(contents)), b"")
    ended: set[int] = set()

    def take(message: bytes) -> None:
        event = receiver.receive(message)
        match event:
            case Listed():
                may_request.append(event.id)
            case Chunk():
                received[event.id] += event.data
            case FileEnd():
                ended.add(event.id)
            case _:
                assert event == ListingEnd()

    while not receiver.complete or may_request:
        actions = [name for name, ready in _ready(unlisted, may_request, to_sender, chunks).items() if ready]
        match choose(actions):
            case "list":
                number = unlisted.pop(0)
                if number is None:
                    take(END_OF_LISTING)
                else:
                    sender.announce([number])
                    take(Stat(path=b"%03d" % number, mode=0o644).encode())
            case "request":
                to_sender.append(receiver.request(may_request.pop(choose(range(len(may_request))))))
            case "serve":
                event = sender.receive(to_sender.pop(0))
                assert isinstance(event, SendFile)
                content = contents[event.file]
                parts = [data(event.id, content[at : at + 7]) for at in range(0, len(content), 7)]
                chunks[event.id] = [*parts, end_of_file(event.id)]
            case _:
                file_id = choose(sorted(chunks))
                take(chunks[file_id].pop(0))
                if not chunks[file_id]:
                    del chunks[file_id]
    assert [received[number] for number in range(len(contents))] == contents
    assert ended == set(range(len(contents)))
    assert sender.receive(receiver.finish()) == Finished()


def _ready(unlisted: object, may_request: object, to_sender: object, chunks: object) -> dict[str, bool]:
    return {
        "list": bool(unlisted),
        "request": bool(may_request),
        "serve": bool(to_sender),
        "send": bool(chunks),
    }
