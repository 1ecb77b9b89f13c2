"""The compiled stubs say exactly what the table of BuildKit's wire definitions says."""

from __future__ import annotations

import importlib
import json
import pkgutil
from collections.abc import Iterator
from pathlib import Path
from typing import TypeAlias

import pytest
from google.protobuf import descriptor_pb2
from google.protobuf.message import Message

from buildkit_py import pb
from buildkit_py.pb import fsutil_bytes_pb2, fsutil_pb2

Facts: TypeAlias = dict[str, object]

TABLE: dict[str, Facts] = json.loads((Path(__file__).parents[1] / "data/wire/buildkit-v0.32.2.json").read_text())
OURS = "buildkit_py."
"""Packages that no daemon knows."""

Type = descriptor_pb2.FieldDescriptorProto
SCALARS = {number: name.removeprefix("TYPE_").lower() for name, number in Type.Type.items()}


def files() -> Iterator[descriptor_pb2.FileDescriptorProto]:
    """Descriptors of all stubs, as they are after import."""
    for module in pkgutil.iter_modules(pb.__path__):
        if module.name.endswith("_pb2"):
            file = descriptor_pb2.FileDescriptorProto()
            importlib.import_module(f"{pb.__name__}.{module.name}").DESCRIPTOR.CopyToProto(file)
            yield file


def type_of(field: descriptor_pb2.FieldDescriptorProto) -> str:
    return field.type_name.lstrip(".") or SCALARS[field.type]


def fields_of(name: str, message: descriptor_pb2.DescriptorProto) -> list[Facts]:
    entries = {f"{name}.{m.name}": m for m in message.nested_type if m.options.map_entry}
    facts = []
    for field in sorted(message.field, key=lambda f: f.number):
        fact: Facts = {"number": field.number, "name": field.name, "type": type_of(field)}
        if entry := entries.get(type_of(field)):
            key, value = sorted(entry.field, key=lambda f: f.number)
            fact["type"] = f"map<{type_of(key)},{type_of(value)}>"
        elif field.label == Type.LABEL_REPEATED:
            fact["repeated"] = True
        if field.HasField("oneof_index"):
            fact["oneof"] = message.oneof_decl[field.oneof_index].name
        facts.append(fact)
    return facts


def declared() -> dict[str, Facts]:
    """The stubs in the form of the table."""
    messages: Facts = {}
    enums: Facts = {}
    services: Facts = {}

    def add_enums(scope: str, declarations: Iterator[descriptor_pb2.EnumDescriptorProto]) -> None:
        for enum in declarations:
            enums[f"{scope}.{enum.name}"] = {value.name: value.number for value in enum.value}

    def add_message(scope: str, message: descriptor_pb2.DescriptorProto) -> None:
        name = f"{scope}.{message.name}"
        messages[name] = {"fields": fields_of(name, message)}
        add_enums(name, iter(message.enum_type))
        for nested in message.nested_type:
            if not nested.options.map_entry:
                add_message(name, nested)

    for file in files():
        if file.package.startswith(OURS):
            continue
        assert file.syntax == "proto3"
        add_enums(file.package, iter(file.enum_type))
        for message in file.message_type:
            add_message(file.package, message)
        for service in file.service:
            services[f"{file.package}.{service.name}"] = {
                method.name: {
                    "input": method.input_type.lstrip("."),
                    "output": method.output_type.lstrip("."),
                    "client_streaming": method.client_streaming,
                    "server_streaming": method.server_streaming,
                }
                for method in service.method
            }
    return {"messages": messages, "enums": enums, "services": services}


@pytest.mark.parametrize("kind", ["messages", "enums", "services"])
def test_the_stubs_and_the_table_agree_completely(kind: str) -> None:
    """No name, number, type, oneof or stream is missing, added or different."""
    ours, table = declared()[kind], TABLE[kind]
    assert len(table) > 10
    assert sorted(ours) == sorted(table)
    assert {name: fact for name, fact in ours.items() if fact != table[name]} == {}


def bytes_stat() -> fsutil_bytes_pb2.Stat:
    xattrs = [fsutil_bytes_pb2.Xattr(key=b"user.a", value=b"\xff\0")]
    return fsutil_bytes_pb2.Stat(
        path=b"a/b",
        mode=0o644,
        uid=1,
        gid=2,
        size=3,
        modTime=4,
        linkname=b"c",
        devmajor=5,
        devminor=6,
        xattrs=xattrs,
    )


def test_paths_as_bytes_are_the_same_on_the_wire() -> None:
    """fsutil_bytes.proto is a second form of fsutil.proto, field for field."""
    packet = fsutil_bytes_pb2.Packet(type=fsutil_pb2.Packet.PACKET_DATA, stat=bytes_stat(), ID=7, data=b"d")
    read = fsutil_pb2.Packet.FromString(packet.SerializeToString())

    stat = fsutil_pb2.Stat(
        path="a/b", mode=0o644, uid=1, gid=2, size=3, modTime=4, linkname="c", devmajor=5, devminor=6
    )
    stat.xattrs["user.a"] = b"\xff\0"
    assert read == fsutil_pb2.Packet(type=fsutil_pb2.Packet.PACKET_DATA, stat=stat, ID=7, data=b"d")
    assert fsutil_bytes_pb2.Packet.FromString(read.SerializeToString()) == packet
    assert all_set(packet)
    assert all_set(packet.stat)


def all_set(message: Message) -> bool:
    return len(message.ListFields()) == len(message.DESCRIPTOR.fields)


def test_paths_that_are_not_utf8_survive() -> None:
    stat = fsutil_bytes_pb2.Stat(path=b"caf\xe9")
    assert fsutil_bytes_pb2.Stat.FromString(stat.SerializeToString()).path == b"caf\xe9"
