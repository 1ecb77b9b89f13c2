"""How errors read on a terminal."""

from __future__ import annotations

from buildkit_py.errors import BuildKitError, SolveError


def error_text(error: BuildKitError, *, logs_shown: bool = False) -> str:
    """The error in one line; a failed solve is preceded by where in the source it is.

    Its last log lines come before that, unless the progress display has shown them already.
    """
    if not isinstance(error, SolveError):
        return f"error: {error}"
    parts: list[str] = []
    where = f"{error.platform}: " if error.platform else ""
    if error.log_tail and not logs_shown:
        name = error.vertex_name or error.vertex
        parts += ["------", f" > {name}:", *error.log_tail, "------"]
    parts += [snippet.excerpt() for snippet in error.sources]
    parts.append(f"error: {where}{error}")
    if error.hint:
        parts.append(f"hint: {error.hint}")
    return "\n".join(part.rstrip("\n") for part in parts)
