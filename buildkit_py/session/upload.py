"""Upload: streams of this machine that a daemon reads as ``http://buildkit-session/...``, such as a tar on stdin.

Source: moby/buildkit v0.32, session/upload and source/http/transport.go.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import stat
import tempfile
import threading
import weakref
from collections.abc import Callable, Mapping
from typing import Protocol

from buildkit_py.session.attachable import Call, CallError, Code, Handler, metadata_values

PULL = "/moby.upload.v1.Upload/Pull"
URL_PREFIX = "http://buildkit-session/"

CHUNK_BYTES = 256 << 10
_PATH_HEADER = "urlpath"
_ID_BYTES = 12


class Readable(Protocol):
    """A binary stream, such as a file or ``sys.stdin.buffer``."""

    def read(self, size: int, /) -> bytes: ...


class Replay:
    """A stream that can be read once made one that can be read again: what came is kept in a file without a name.

    A file on disk is read where it is. Nothing is taken from the stream before the first read; from then on a thread
    takes all of it, which keeps no program from ending. For one event loop; does not close the stream.
    """

    def __init__(self, stream: Readable, *, what: str = "standard input") -> None:
        self.what = what
        """Names the stream in errors."""
        self.sent = 0
        """Bytes that went to daemons so far."""
        self._stream = stream
        self._start = self._size = 0
        self._ended = False
        self._error: OSError | None = None
        self._changed = asyncio.Event()
        self._thread: threading.Thread | None = None
        descriptor = _descriptor_of(stream)
        if descriptor is not None and stat.S_ISREG(os.fstat(descriptor).st_mode):
            tell: Callable[[], int] | None = getattr(stream, "tell", None)
            self._start = tell() if tell is not None else os.lseek(descriptor, 0, os.SEEK_CUR)
            self._size = max(0, os.fstat(descriptor).st_size - self._start)
            self._ended = True
            self._file = os.fdopen(os.dup(descriptor), "rb", buffering=0)
        else:
            self._file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115  # closed when this object goes
        weakref.finalize(self, self._file.close)

    async def read(self, offset: int, size: int) -> bytes:
        """Bytes from offset on, at most so many; b"" at the end. Raises OSError when the stream cannot be read."""
        while offset >= self._size and not self._ended:
            if self._thread is None:
                drain = (self._drain, (asyncio.get_running_loop(),))
                self._thread = threading.Thread(target=drain[0], args=drain[1], name="upload", daemon=True)
                self._thread.start()
            self._changed.clear()
            await self._changed.wait()
        if offset < self._size:
            return await asyncio.to_thread(os.pread, self._file.fileno(), size, self._start + offset)
        if self._error is not None:
            raise self._error
        return b""

    async def head(self, size: int) -> bytes:
        """The first bytes, as many as there are up to size; waits for them. Errors as read()."""
        parts = bytearray()
        while len(parts) < size and (data := await self.read(len(parts), size - len(parts))):
            parts += data
        return bytes(parts)

    def _drain(self, loop: asyncio.AbstractEventLoop) -> None:
        # A descriptor is read directly: a thread in the lock of sys.stdin would abort the interpreter at its end.
        descriptor = _descriptor_of(self._stream)
        try:
            while data := (
                os.read(descriptor, CHUNK_BYTES) if descriptor is not None else self._stream.read(CHUNK_BYTES)
            ):
                view = memoryview(data)
                while view:
                    view = view[self._file.write(view) :]
                self._size += len(data)
                self._tell(loop)
        except OSError as error:
            self._error = error
        except ValueError as error:  # of a file that somebody has closed
            self._error = OSError(0, str(error))
        self._ended = True
        self._tell(loop)

    def _tell(self, loop: asyncio.AbstractEventLoop) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(self._changed.set)


def _descriptor_of(stream: Readable) -> int | None:
    fileno: Callable[[], int] | None = getattr(stream, "fileno", None)
    try:
        return None if fileno is None else fileno()
    except OSError:  # as io.BytesIO has it
        return None


class Upload:
    """Serves streams under URLs that nobody can guess. Each may be read several times, also at once."""

    def __init__(self, streams: Mapping[str, Replay] | None = None) -> None:
        """streams by their URLs, which new_url() makes."""
        self._streams = {url.removeprefix(URL_PREFIX): stream for url, stream in (streams or {}).items()}

    def methods(self) -> Mapping[str, Handler]:
        """See Attachable."""
        return {PULL: self._pull}

    async def _pull(self, call: Call) -> None:
        from buildkit_py.pb import upload_pb2  # most builds upload nothing

        path = next(iter(metadata_values(call.metadata, _PATH_HEADER)), "")
        stream = self._streams.get(path.rpartition("/")[2])
        if stream is None:
            raise CallError(Code.NOT_FOUND, f"nothing is served at {path[:200]}")
        offset = 0
        try:
            while data := await stream.read(offset, CHUNK_BYTES):
                offset += len(data)
                stream.sent += len(data)
                await call.send(upload_pb2.BytesMessage(data=data).SerializeToString())
        except OSError as error:
            raise CallError(Code.UNKNOWN, f"{stream.what}: cannot be read: {error.strerror or error}") from error


def new_url() -> str:
    """A URL that this session's daemon, and nobody else, can read from."""
    return URL_PREFIX + secrets.token_hex(_ID_BYTES)


__all__ = ["Replay", "Upload", "new_url"]
