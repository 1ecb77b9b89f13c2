"""Files that the command line writes: whole or not at all, and never in place of a device."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from buildkit_py.cli.files import check_writable, write_text
from buildkit_py.errors import InvalidOption


def test_a_file_is_replaced_also_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").write_text("old")
    (tmp_path / "link").symlink_to("real")
    check_writable(tmp_path / "link")
    write_text(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_text() == "new"
    umask = os.umask(0)
    os.umask(umask)
    assert (tmp_path / "real").stat().st_mode & 0o777 == 0o666 & ~umask
    assert sorted(os.listdir(tmp_path)) == ["link", "real"]


def test_a_pipe_is_written_to(tmp_path: Path) -> None:
    """As /dev/stdout may be one."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    read: list[str] = []
    reading = threading.Thread(target=lambda: read.append(pipe.read_text()))
    reading.start()
    write_text(pipe, "text")
    reading.join(10)
    assert read == ["text"]
    assert pipe.is_fifo()


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("none/file", "its directory does not exist"),
        ("", "is a directory"),
        ("/proc/file", "its directory is not writable"),
        ("/proc/self/none", "its directory is not writable"),
    ],
)
def test_where_nothing_can_be_written(tmp_path: Path, path: str, why: str) -> None:
    """Also where permissions would allow it, as /proc's do for root."""
    with pytest.raises(InvalidOption, match=why):
        check_writable(tmp_path / path)
    assert os.listdir(tmp_path) == []
