"""Writing layouts: errors of the disk as ours, files by rename, one process at a time."""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import time
from collections.abc import Generator
from pathlib import Path

from buildkit_py.errors import BuildKitError, DeadlineExceeded, ProtocolError

READ_SIZE = 1 << 20
LOCK_SECONDS = 10.0


@contextlib.contextmanager
def writing(where: Path) -> Generator[None]:
    """Failures of the disk as our errors."""
    try:
        yield
    except BuildKitError:
        raise  # DeadlineExceeded is an OSError too
    except OSError as error:
        path = error.filename or where
        raise BuildKitError(f"cannot write {path}: {error.strerror or error}") from error


@contextlib.contextmanager
def locked(directory: Path) -> Generator[None]:
    """Keep other processes of this library out while a layout is changed; waits for a bounded time."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        give_up = time.monotonic() + LOCK_SECONDS
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > give_up:
                    raise DeadlineExceeded(
                        f"layout {directory}: another process has kept it locked for {LOCK_SECONDS:.0f} s"
                    ) from None
                time.sleep(0.05)
        yield
    finally:
        os.close(descriptor)  # which also unlocks


def replace_file(path: Path, content: bytes) -> None:
    """Put a file in place by a rename."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def read_bounded(path: Path, max_bytes: int) -> bytes:
    """A small file; ProtocolError when it is larger than max_bytes."""
    with path.open("rb") as stream:
        raw = stream.read(max_bytes + 1)
    if len(raw) > max_bytes:
        raise ProtocolError(f"{path} is more than {max_bytes} bytes")
    return raw
