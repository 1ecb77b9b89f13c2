#!/usr/bin/env python3
"""Generate buildkit_py/pb from proto/, with exactly pinned tools.

    gen_protos.py            rewrite the stubs
    gen_protos.py --check    exit 1 and name the files that differ from what proto/ says

The tools live in .cache/gen-venv, made when first needed, and not in the project's own environment: generated
code refuses a protobuf older than its generator, so the generator stays at the oldest one that we support.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROTO = ROOT / "proto"
STUBS = Path("buildkit_py/pb")
"""Below proto/ as below the root: protoc makes the import path from the file's path."""

TOOLS = (
    "grpcio-tools==1.75.1",  # protoc 31.1, which writes code for protobuf 6.31.1 and later
    "grpcio==1.75.1",
    "protobuf==6.32.1",  # what the plugin below needs; says nothing about the code that protoc writes
    "setuptools==80.9.0",
    "mypy-protobuf==5.1.0",
    "types-protobuf==7.35.1.20260906",
    "typing_extensions==4.16.0",
    "googleapis-common-protos==1.70.0",  # google/rpc/status.proto
)
GENERATED = ("*_pb2.py", "*_pb2.pyi", "*_pb2_grpc.py", "*_pb2_grpc.pyi")


def tools(cache: Path) -> Path:
    """Return the python of an environment that holds TOOLS, made anew unless it holds just these."""
    home = cache / "gen-venv"
    python, stamp = home / "bin/python", home / "tools.txt"
    wanted = "\n".join(TOOLS)
    if not stamp.is_file() or stamp.read_text() != wanted:
        print(f"gen_protos: installing the generator into {home}", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(home)], check=True)
        install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*install, "--no-deps", *TOOLS], check=True)
        stamp.write_text(wanted)
    return python


def protos() -> list[Path]:
    """Our .proto files, relative to proto/."""
    return sorted(path.relative_to(PROTO) for path in (PROTO / STUBS).glob("*.proto"))


def generate(python: Path, target: Path) -> None:
    """Write the stubs of all protos below target."""
    where = "import grpc_tools, google.rpc; print(grpc_tools.__path__[0]); print(google.rpc.__path__[0])"
    found = subprocess.run([str(python), "-c", where], check=True, capture_output=True, text=True).stdout
    grpc_tools, google_rpc = map(Path, found.splitlines())
    files = protos()
    protoc = [
        str(python),
        "-m",
        "grpc_tools.protoc",
        f"--proto_path={PROTO}",
        f"--proto_path={google_rpc.parent.parent}",
        f"--proto_path={grpc_tools / '_proto'}",
        f"--plugin=protoc-gen-mypy={python.parent / 'protoc-gen-mypy'}",
        f"--plugin=protoc-gen-mypy_grpc={python.parent / 'protoc-gen-mypy_grpc'}",
    ]
    outputs = [f"--python_out={target}", f"--mypy_out=quiet:{target}"]
    subprocess.run([*protoc, *outputs, *map(str, files)], check=True)
    # Only files with a service get a gRPC stub; the plugin would write empty ones for the others.
    services = [str(f) for f in files if "\nservice " in (PROTO / f).read_text()]
    outputs = [f"--grpc_python_out={target}", f"--mypy_grpc_out=quiet:{target}"]
    subprocess.run([*protoc, *outputs, *services], check=True)


def stubs(folder: Path) -> dict[str, bytes]:
    """Content of the generated files in a folder, by name."""
    return {path.name: path.read_bytes() for pattern in GENERATED for path in folder.glob(pattern)}


def main() -> int:
    parser = argparse.ArgumentParser(description="Generate the protobuf and gRPC stubs of buildkit_py.")
    parser.add_argument("--check", action="store_true", help="compare with the committed stubs")
    args = parser.parse_args()
    python = tools(ROOT / ".cache")
    with tempfile.TemporaryDirectory(prefix="gen-protos-") as folder:
        generate(python, Path(folder))
        new, old = stubs(Path(folder) / STUBS), stubs(ROOT / STUBS)
        changed = sorted(name for name in new.keys() | old.keys() if new.get(name) != old.get(name))
        if args.check:
            for name in changed:
                print(f"{STUBS / name}: not what proto/ generates; run `make gen`")
            return 1 if changed else 0
        for name in changed:
            if name in new:
                shutil.copyfile(Path(folder) / STUBS / name, ROOT / STUBS / name)
            else:
                (ROOT / STUBS / name).unlink()
            print(STUBS / name)
    return 0


if __name__ == "__main__":
    sys.exit(main())
