"""Who this machine is to a daemon that keeps the directories it once sent."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

_ID_BYTES = 16


def node_id() -> str:
    """A random id of this user on this machine, made at the first call and kept in a file.

    Where no file can be kept the id is of this call only: contexts are then sent whole each time. Blocks
    for a small file.
    """
    state = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    path = Path(state).expanduser() / "buildkit-py" / "node-id"
    fresh = secrets.token_hex(_ID_BYTES)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f"{path.name}.{fresh}")
        if not path.exists():
            temporary.write_text(fresh)
            try:
                # Unlike a rename, a link never replaces the id that another process has just made.
                os.link(temporary, path)
            except FileExistsError:
                pass
            finally:
                temporary.unlink()
        return path.read_text().strip() or fresh
    except OSError:
        return fresh
