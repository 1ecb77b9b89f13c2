"""How errors read on a terminal."""

from __future__ import annotations

from buildkit_py.errors import BuildKitError, SolveError


def error_text(error: BuildKitError) -> str:
    """The error in one line; a failed solve is preceded by what it printed and where in the source it is."""
    if not isinstance(error, SolveError):
        return f"error: {error}"
    parts: list[str] = []
    where = f"{error.platform}: " if error.platform else ""
    if error.log_tail:
        name = error.vertex_name or error.vertex
        parts += ["------", f" > {name}:", *error.log_tail, "------"]
    parts += [snippet.excerpt() for snippet in error.sources]
    parts.append(f"error: {where}{error}")
    if error.hint:
        parts.append(f"hint: {error.hint}")
    return "\n".join(part.rstrip("\n") for part in parts)
