"""Trees that are moved to their place: at once, or merged into what is there."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from collections.abc import Mapping
from pathlib import Path

import pytest

from buildkit_py.session.placing import place_tree

ROOT = os.geteuid() == 0


def make(root: Path, tree: Mapping[str, str | None]) -> Path:
    """Files with their text, directories as None, and symlinks as ``->target``."""
    root.mkdir(exist_ok=True)
    for name, text in tree.items():
        if text is None:
            (root / name).mkdir(mode=0o700)
        elif text.startswith("->"):
            (root / name).symlink_to(text[2:])
        else:
            (root / name).write_text(text)
    return root


def found(root: Path) -> dict[str, str | None]:
    return {
        str(path.relative_to(root)): f"->{os.readlink(path)}"
        if path.is_symlink()
        else None
        if path.is_dir()
        else path.read_text()
        for path in sorted(root.rglob("*"))
    }


def test_where_nothing_is_the_whole_tree_appears(tmp_path: Path) -> None:
    source = make(tmp_path / "source", {"d": None, "d/f": "x"})
    inode = (source / "d" / "f").stat().st_ino
    place_tree(source, tmp_path / "new" / "place", {b"d": (0o555, 7)})
    assert found(tmp_path / "new" / "place") == {"d": None, "d/f": "x"}
    info = (tmp_path / "new" / "place" / "d").stat()
    assert (stat.S_IMODE(info.st_mode), info.st_mtime_ns) == (0o555, 7)
    assert (tmp_path / "new" / "place" / "d" / "f").stat().st_ino == inode
    assert not source.exists()


@pytest.mark.parametrize("delete", [False, True])
def test_what_is_there_is_replaced_kept_or_deleted(tmp_path: Path, delete: bool) -> None:
    """Whatever kind each side is of; the source may lie inside of the destination."""
    there = {
        "same": None, "same/kept": "k", "same/file": "old",
        "file": None, "file/in": "way",
        "dir": "in the way",
        "link": "old",
        "kept": None, "kept/f": "k",
        "kept-link": "->kept",
    }  # fmt: skip
    here = {
        "same": None, "same/file": "new", "same/more": None, "same/more/f": "m",
        "file": "new",
        "dir": None, "dir/f": "n",
        "link": "->nowhere",
    }  # fmt: skip
    place = make(tmp_path / "place", there)
    source = make(place / ".staging", here)
    place_tree(source, place, {b"same": (0o750, 5), b"same/more": (0o700, 6), b"dir": (0o700, 7)}, delete=delete)
    kept = {"same/kept": "k", "kept": None, "kept/f": "k", "kept-link": "->kept"}
    assert found(place) == (here if delete else here | kept)
    info = (place / "same").stat()
    assert (stat.S_IMODE(info.st_mode), info.st_mtime_ns) == (0o750, 5)


def test_links_in_the_place_lead_nowhere(tmp_path: Path) -> None:
    """A directory of the export takes the place of a link of the same name; nothing goes through it."""
    outside = make(tmp_path / "outside", {"f": "untouched"})
    outside.chmod(0o711)
    place = make(tmp_path / "place", {"linux_arm64": f"->{outside}", "f": f"->{outside}/f", "gone": f"->{outside}"})
    source = make(tmp_path / "source", {"linux_arm64": None, "linux_arm64/f": "new", "f": "new"})
    place_tree(source, place, {b"linux_arm64": (0o755, 1)}, delete=True)
    assert found(place) == {"linux_arm64": None, "linux_arm64/f": "new", "f": "new"}
    assert found(outside) == {"f": "untouched"}
    assert stat.S_IMODE(outside.stat().st_mode) == 0o711


def test_hard_links_stay_links(tmp_path: Path) -> None:
    source = make(tmp_path / "source", {"a": "x"})
    (source / "b").hardlink_to(source / "a")
    place = make(tmp_path / "place", {"a": "old", "other": "o"})
    (place / "c").hardlink_to(place / "a")
    place_tree(source, place, {})
    assert (place / "a").stat().st_ino == (place / "b").stat().st_ino
    assert found(place) == {"a": "x", "b": "x", "c": "old", "other": "o"}


@pytest.mark.skipif(not ROOT, reason="gives up root's rights, which ignore modes")
def test_modes_do_not_stop_an_ordinary_user() -> None:
    """Directories that are there and closed even to their owner are entered, and closed again at the end."""
    root = Path(tempfile.mkdtemp(prefix="placing-"))
    try:
        os.chown(root, 65534, 65534)
        os.seteuid(65534)
        try:
            place = make(root / "place", {"d": None, "d/f": "old"})
            (place / "d").chmod(0)
            source = make(root / "source", {"d": None, "d/f": "new", "e": None, "e/f": "new"})
            place_tree(source, place, {b"d": (0o400, 1), b"e": (0, 1)})
        finally:
            os.seteuid(0)
        assert found(place) == {"d": None, "d/f": "new", "e": None, "e/f": "new"}
        assert [stat.S_IMODE((place / name).stat().st_mode) for name in ("d", "e")] == [0o400, 0]
    finally:
        shutil.rmtree(root)
