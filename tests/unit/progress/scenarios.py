"""Constructed streams: (seconds, label, update)."""

from __future__ import annotations

from typing import TypeAlias

from buildkit_py.progress import ProgressGroup, StatusUpdate, VertexWarning
from tests.unit.progress.streams import digest, log, status, update, vertex

Stream: TypeAlias = list[tuple[float, str, StatusUpdate]]

ARM64, AMD64 = "linux/arm64", "linux/amd64"
_DEFINITION = "[internal] load build definition from Dockerfile"
_CONTEXT = "[internal] load build context"
_BASE = "[build 1/3] FROM docker.io/library/golang:alpine"
_GROUP = ProgressGroup("g1", "[auth] credentials for registry.example")


def two_platforms() -> Stream:
    """Reads and a base stage in common, a RUN for each, a group, a warning, pulls, an export for each."""
    layer = "sha256:" + "ab" * 32
    stream: Stream = []
    for label in (ARM64, AMD64):
        begin = 0.0 if label == ARM64 else 0.02
        stream += [
            (begin, label, update(vertex(_DEFINITION), vertex(_DEFINITION, 0.0))),
            (
                begin + 0.04,
                label,
                update(
                    vertex(_DEFINITION, 0.0, 0.03),
                    status(
                        _DEFINITION,
                        "transferring dockerfile:",
                        0.03,
                        current=532,
                        started=0.0,
                        completed=0.03,
                    ),
                    VertexWarning(digest(_DEFINITION), 1, b"FromAsCasing: 'as' and 'FROM' casing do not match"),
                ),
            ),
            (
                begin + 0.10,
                label,
                update(
                    vertex(_CONTEXT),
                    vertex("token", 0.05, 0.09, key=f"token {label}", group=_GROUP),
                    vertex(_BASE, inputs=(digest(_CONTEXT),)),
                    vertex("[build 2/3] RUN go build", key=f"run {label}", inputs=(digest(_BASE),)),
                    vertex("[stage-1 2/2] COPY --from=build /out /", key=f"copy {label}"),
                ),
            ),
            (begin + 0.15, label, update(vertex(_CONTEXT, 0.12), vertex(_BASE, 0.12))),
            (
                begin + 0.30,
                label,
                update(
                    vertex(_CONTEXT, 0.12, 0.25),
                    status(
                        _CONTEXT,
                        "transferring context:",
                        0.25,
                        current=2_000_000,
                        started=0.12,
                        completed=0.25,
                    ),
                    status(_BASE, layer, 0.30, current=1_000_000, total=2_811_000, started=0.15),
                ),
            ),
            (
                begin + 0.90,
                label,
                update(
                    vertex(_BASE, 0.12, 0.90),
                    status(_BASE, layer, 0.7, current=2_811_000, total=2_811_000, started=0.15, completed=0.7),
                    status(_BASE, f"extracting {layer}", 0.88, started=0.7, completed=0.88),
                ),
            ),
            (begin + 1.0, label, update(vertex("[build 2/3] RUN go build", 0.95, key=f"run {label}"))),
        ]
    for second in range(1, 9):
        for label in (ARM64, AMD64):
            lines = "".join(f"{label} compiles package {second}.{part}\n" for part in range(2))
            stream.append((second + 0.5, label, update(log(f"run {label}", second + 0.5, lines))))
    stream.append((9.0, AMD64, update(vertex("[build 2/3] RUN go build", 0.95, 9.0, key=f"run {AMD64}"))))
    stream.append((9.1, ARM64, update(log(f"run {ARM64}", 9.1, "almost ", 2))))
    for moment in (14.0, 19.0):
        stream.append((moment, ARM64, update(log(f"run {ARM64}", moment, "there "))))
    stream.append((20.0, ARM64, update(vertex("[build 2/3] RUN go build", 0.95, 20.0, key=f"run {ARM64}"))))
    for label, done in ((AMD64, 20.2), (ARM64, 20.4)):
        copy = vertex("[stage-1 2/2] COPY --from=build /out /", done, done, key=f"copy {label}", cached=True)
        export = "exporting to image"
        stream += [
            (done, label, update(copy)),
            (done, label, update(vertex(export, done))),
            (
                done + 0.5,
                label,
                update(
                    vertex(export, done, done + 0.5),
                    status(export, "exporting layers", done + 0.2, started=done, completed=done + 0.2),
                    status(export, "pushing layers", done + 0.5, started=done + 0.2, completed=done + 0.5),
                ),
            ),
        ]
    return sorted(stream, key=lambda entry: entry[0])


def failing() -> Stream:
    """One RUN fails, its sibling is cancelled, the cache import had failed before without harm."""
    return [
        (0.0, "", update(vertex("importing cache manifest from registry.example/cache", 0.0))),
        (
            0.5,
            "",
            update(
                vertex(
                    "importing cache manifest from registry.example/cache",
                    0.0,
                    0.5,
                    error="not found: \x1b[2Jcache",
                ),
                vertex("[2/3] RUN make"),
                vertex("[other 1/1] RUN sleep 60"),
                vertex("[3/3] RUN never"),
            ),
        ),
        (0.6, "", update(vertex("[2/3] RUN make", 0.6), vertex("[other 1/1] RUN sleep 60", 0.6))),
        (1.0, "", update(log("[2/3] RUN make", 1.0, b"caf\xc3"))),
        (
            1.1,
            "",
            update(log("[2/3] RUN make", 1.1, b"\xa9\n10%\r20%\r\n\x1b[31mred\n\x1b[2J\x1b]0;title\x07gone\n")),
        ),
        (
            2.0,
            "",
            update(*(log("[2/3] RUN make", 2.0 + n / 100, f"error {n}\n", 2) for n in range(12))),
        ),
        (
            13.0,
            "",
            update(
                vertex("[2/3] RUN make", 0.6, 13.0, error='process "make" did not complete: exit code: 2'),
                vertex("[other 1/1] RUN sleep 60", 0.6, 13.0, error="context canceled"),
            ),
        ),
    ]
