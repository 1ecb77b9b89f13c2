"""FileSend: what exporters send to this machine, as one stream of bytes or as a directory.

Which of the two an exporter speaks follows from its type, so each target speaks one.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import MappingProxyType
from typing import BinaryIO, Protocol, TypeAlias

from buildkit_py.errors import InvalidOption, ProtocolError, SessionClosed
from buildkit_py.session.attachable import Call, CallError, Code, Handler, metadata_values
from buildkit_py.session.directory import DirectoryTarget, DirectoryWriter, ExportError
from buildkit_py.session.fsutil import decode_bytes_message
from buildkit_py.session.walk import printable

_log = logging.getLogger(__name__)

DIFF_COPY = "/moby.filesync.v1.FileSend/DiffCopy"

_EXPORTER_ID = "buildkit-attachable-exporter-id"
_MULTI_PLATFORM = "buildkit-exporter-multi-platform"
_METADATA_PREFIX = "exporter-md-"

QUEUED_BYTES = 4 << 20
"""Received and not yet written, for each call; the daemon waits when it is more."""
WRITE_BYTES = 1 << 20
"""Of a stream, written in one go."""
_MESSAGE_BYTES = 64
"""What a message takes beside its content; there are empty ones too."""
CLOSE_SECONDS = 5.0
"""How long a call that has failed waits for what it is just writing."""


class StreamSink(Protocol):
    """Where one stream goes. Ends with one call of close() or abort()."""

    async def write(self, chunk: bytes) -> None: ...

    async def close(self) -> None:
        """The stream is complete. Failing here fails the export."""
        ...

    async def abort(self) -> None:
        """The stream broke off; must not raise."""
        ...


class StreamTarget(Protocol):
    """Takes the output of an exporter that sends one file: tar, oci and docker."""

    async def open(self, metadata: Mapping[str, str]) -> StreamSink:
        """metadata is what the exporter says of it, such as ``containerimage.digest``; oci and docker do."""
        ...


Target: TypeAlias = StreamTarget | DirectoryTarget


class FileSend:
    """Receives exports. Keys of targets are positions in the solve's list of exporters."""

    def __init__(self, targets: Mapping[int, Target]) -> None:
        self.targets = MappingProxyType(dict(targets))
        self.failure: ExportError | None = None
        """What the disk did to an export; the daemon may tell less of it, or nothing."""
        self._arrived: set[int] = set()

    @property
    def complete(self) -> bool:
        """True once something has arrived whole at every target."""
        return self._arrived >= self.targets.keys()

    def methods(self) -> Mapping[str, Handler]:
        return {DIFF_COPY: self._diff_copy}

    async def _diff_copy(self, call: Call) -> None:
        exporter = _exporter_id(call.metadata)
        target = self.targets.get(exporter)
        if target is None:
            raise CallError(Code.UNKNOWN, f"exporter {exporter} not found")
        try:
            if isinstance(target, DirectoryTarget):
                await _receive_directory(call, target, lambda: self._arrived.add(exporter))
            else:
                await _receive_stream(call, target)
                self._arrived.add(exporter)
        except OSError as error:
            named = error.filename
            if named is None and isinstance(target, DirectoryTarget | FileTarget):
                named = target.path  # a write does not say where
            where = "" if named is None else f" {printable(os.fsdecode(named))!r}"
            self.failure = ExportError(f"cannot write{where}: {error.strerror or error}")
            raise CallError(Code.UNKNOWN, str(self.failure)) from error


def _exporter_id(metadata: Sequence[tuple[str, str]]) -> int:
    """0 when the header is absent or no number, as from daemons before v0.13."""
    text = next(iter(metadata_values(metadata, _EXPORTER_ID)), "")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else 0


def exporter_metadata(metadata: Sequence[tuple[str, str]]) -> dict[str, str]:
    """What an exporter says of its output; repeated values are joined with commas."""
    found: dict[str, str] = {}
    for key, value in metadata:
        if key.startswith(_METADATA_PREFIX):
            name = key.removeprefix(_METADATA_PREFIX)
            found[name] = f"{found[name]},{value}" if name in found else value
    return found


class _Inbox:
    """Messages of a call, fetched ahead up to a bound, so that they can be handled many at a time."""

    def __init__(self, call: Call) -> None:
        self._call = call
        self._messages: deque[bytes] = deque()
        self._size = 0
        self._ended = False
        self._changed = asyncio.Event()

    async def fetch(self) -> None:
        """Until the daemon half-closes. Raises what receive() raises."""
        while (message := await self._call.receive()) is not None:
            self._messages.append(message)
            self._size += len(message) + _MESSAGE_BYTES
            self._changed.set()
            while self._size > QUEUED_BYTES:
                await self._wait()
        self.end()

    def end(self) -> None:
        """Nothing more comes."""
        self._ended = True
        self._changed.set()

    async def take(self, at_least: int = 1) -> list[bytes]:
        """Everything fetched so far, at least so many bytes unless the daemon has half-closed.

        Nothing once it has half-closed and everything is taken.
        """
        while self._size < at_least and not self._ended:
            await self._wait()
        messages = list(self._messages)
        self._messages.clear()
        self._size = 0
        self._changed.set()
        return messages

    async def _wait(self) -> None:
        self._changed.clear()
        await self._changed.wait()


# --- one file ----------------------------------------------------------------------------------------------


async def _receive_stream(call: Call, target: StreamTarget) -> None:
    sink = await target.open(MappingProxyType(exporter_metadata(call.metadata)))
    inbox = _Inbox(call)
    try:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(inbox.fetch())
            # Messages hold 4 to 32 KiB, and nobody waits for them one by one.
            while messages := await inbox.take(WRITE_BYTES):
                await sink.write(b"".join(map(decode_bytes_message, messages)))
        await sink.close()
    except BaseExceptionGroup as group:
        await sink.abort()
        cause = group.exceptions[0]
        raise cause from cause.__cause__
    except BaseException:
        await sink.abort()
        raise


class FileTarget:
    """Writes an export to a file, which appears under its name when commit() is called and not before.

    The owner calls commit() after the solve succeeded, and abort() in every other case.
    """

    def __init__(self, path: Path | str) -> None:
        """Raises InvalidOption if the directory of the file does not exist, or path is a directory."""
        # Through a symbolic link to what it names, as a plain open would.
        self.path = Path(os.path.realpath(path))
        self.metadata: Mapping[str, str] = MappingProxyType({})
        """What the exporter said of the file; there once it has begun to send."""
        self.bytes = 0
        """Written so far."""
        self._temporary: Path | None = None
        self._complete = False
        if not self.path.parent.is_dir():
            raise InvalidOption(f"cannot write {str(path)!r}: {str(self.path.parent)!r} is not a directory")
        if self.path.is_dir():
            raise InvalidOption(f"cannot write {str(path)!r}: it is a directory")

    async def open(self, metadata: Mapping[str, str]) -> StreamSink:
        if self._temporary is not None:
            raise ExportError(f"{str(self.path)!r} is exported twice")
        self.metadata = metadata
        self._temporary = self.path.with_name(f".{self.path.name[:100]}.{secrets.token_hex(8)}.tmp")
        fd = os.open(self._temporary, _CREATE_FLAGS, 0o666)  # less the umask
        return _FileSink(self, os.fdopen(fd, "wb", buffering=0))

    def wrote(self, size: int) -> None:
        self.bytes += size

    def completed(self) -> None:
        self._complete = True

    async def commit(self) -> None:
        """Publish the file. Raises ExportError if it did not arrive completely."""
        if self._temporary is None or not self._complete:
            raise ExportError(f"the daemon did not export {str(self.path)!r} completely")
        self._temporary.replace(self.path)
        self._temporary = None

    async def abort(self) -> None:
        """Remove what was written, if anything; the target may then be used again."""
        if self._temporary is not None:
            self._temporary.unlink(missing_ok=True)
        self._temporary = None
        self._complete = False
        self.bytes = 0


class _FileSink:
    def __init__(self, target: FileTarget, file: BinaryIO) -> None:
        self._target = target
        self._writing = _Writing(file)

    async def write(self, chunk: bytes) -> None:
        await self._writing.write(chunk)
        self._target.wrote(len(chunk))

    async def close(self) -> None:
        await self._writing.close()
        self._target.completed()

    async def abort(self) -> None:
        await self._writing.close()
        await self._target.abort()


class WriterTarget:
    """Writes an export to a binary file that is open, such as standard output. It stays open."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.metadata: Mapping[str, str] = MappingProxyType({})
        self._used = False

    async def open(self, metadata: Mapping[str, str]) -> StreamSink:
        if self._used:
            raise ExportError("a stream can take one export only")
        self._used = True
        self.metadata = metadata
        return _WriterSink(self._file)


class _WriterSink:
    def __init__(self, file: BinaryIO) -> None:
        self._writing = _Writing(file)

    async def write(self, chunk: bytes) -> None:
        await self._writing.write(chunk)

    async def close(self) -> None:
        await self._writing.flush()

    async def abort(self) -> None:
        """What was written cannot be taken back, and a write may hang for as long as its reader does."""


class _Writing:
    """Writes to a file in a thread, one write after the other."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._lock = threading.Lock()

    async def write(self, chunk: bytes) -> None:
        await asyncio.to_thread(self._write, chunk)

    def _write(self, chunk: bytes) -> None:
        rest = memoryview(chunk)
        with self._lock:
            while rest:
                # A raw file may take a part only.
                rest = rest[self._file.write(rest) :]

    async def flush(self) -> None:
        await asyncio.to_thread(self._flush)

    def _flush(self) -> None:
        with self._lock:
            self._file.flush()

    async def close(self) -> None:
        """After a cancelled write, which goes on in its thread, this waits until that is over."""
        await asyncio.to_thread(self._close)

    def _close(self) -> None:
        with self._lock:
            self._file.close()


# --- a directory -------------------------------------------------------------------------------------------


async def _receive_directory(call: Call, target: DirectoryTarget, arrived: Callable[[], None]) -> None:
    """arrived is called once all is written, even where the daemon then ends the call without a last word."""
    if target.delete and "1" not in metadata_values(call.metadata, _MULTI_PLATFORM):
        # Each platform would delete what the other one wrote.
        raise CallError(
            Code.FAILED_PRECONDITION,
            "mode=delete needs a daemon that sends all platforms in one stream (BuildKit v0.31)",
        )
    inbox = _Inbox(call)
    # One thread: what arrives is written in order.
    threads = ThreadPoolExecutor(1, thread_name_prefix="filesend")
    loop = asyncio.get_running_loop()
    writer = DirectoryWriter(target)
    try:
        async with asyncio.TaskGroup() as tasks:
            fetching = tasks.create_task(_fetch(inbox, writer))
            while not writer.finished:
                messages = await inbox.take()
                if not messages:
                    if writer.written:
                        break  # gone without a last word, after it had all of ours
                    raise ProtocolError("the daemon left an export before its end")
                replies = await loop.run_in_executor(threads, writer.process, messages)
                if replies:
                    await _reply(call, writer, replies)
            fetching.cancel()
    except BaseExceptionGroup as group:
        cause = group.exceptions[0]
        raise cause from cause.__cause__
    finally:
        # In its turn behind a write that still goes on in the thread. Waited for, so that whoever clears the
        # directory after a failure finds nobody writing into it.
        closing = asyncio.wrap_future(threads.submit(writer.close))
        threads.shutdown(wait=False)
        if writer.written:
            arrived()
        await asyncio.wait((closing,), timeout=CLOSE_SECONDS)


async def _fetch(inbox: _Inbox, writer: DirectoryWriter) -> None:
    try:
        await inbox.fetch()
    except SessionClosed:
        if not writer.written:
            raise
        inbox.end()


async def _reply(call: Call, writer: DirectoryWriter, replies: Sequence[bytes]) -> None:
    try:
        await call.send(*replies)
    except SessionClosed:
        if not writer.written:
            raise


_CREATE_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
