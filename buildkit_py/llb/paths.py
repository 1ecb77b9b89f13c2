"""Paths inside a build: slash-separated and cleaned by Go's rules, which the daemon's digests were made with."""

from __future__ import annotations

import posixpath


def clean(path: str) -> str:
    """The shortest path that names the same place; "." for nothing. Source: Go path.Clean."""
    cleaned = posixpath.normpath(path)
    # POSIX keeps a leading "//" as special; Go does not.
    return cleaned[1:] if cleaned.startswith("//") else cleaned


def join(*parts: str) -> str:
    """Parts joined and cleaned; empty ones are left out. Source: Go path.Join."""
    return clean("/".join([part for part in parts if part]))


def absolute(base: str, path: str) -> str:
    """Where path is, seen from base."""
    path = clean(path)
    return path if path.startswith("/") else join("/", base, path)


def absolute_target(base: str, path: str) -> str:
    """As absolute, keeping what tells a directory: a trailing "/" or "/."."""
    cleaned = absolute(base, path)
    if path.endswith("/"):
        return cleaned if cleaned.endswith("/") else cleaned + "/"
    if path.endswith("/."):
        return cleaned + "." if cleaned == "/" else cleaned + "/."
    return cleaned


def change_dir(cwd: str, path: str) -> str:
    """The working directory after changing to path; an absolute one is taken as it is written."""
    return path if path.startswith("/") else join(cwd or "/", path)
