"""Option strings: what they mean, and what is refused."""

from __future__ import annotations

import pytest

from buildkit_py.errors import InvalidOption
from buildkit_py.options import CacheSpec, ExporterSpec, parse_fields


def test_fields_are_one_csv_record() -> None:
    """Quotes protect commas; keys are lower-cased; a bare word has no value."""
    assert parse_fields('type=image,"name=a,b",Push', option="output") == [
        ("type", "image"),
        ("name", "a,b"),
        ("Push", None),
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("out", ExporterSpec(type="local", dest="out")),
        ("-", ExporterSpec(type="tar", dest="-")),
        ("type=oci,dest=a.tar", ExporterSpec(type="oci", dest="a.tar")),
        ("type=oci,tar=false,dest=d", ExporterSpec(type="oci", attrs={"tar": "false"}, dest="d")),
        ("type=registry,name=x", ExporterSpec(type="image", attrs={"push": "true", "name": "x"})),
        ("TYPE=tar,dest=-", ExporterSpec(type="tar", dest="-")),
        ("type=tar", ExporterSpec(type="tar", dest="-")),
        ("type=oci,tar=true", ExporterSpec(type="oci", attrs={"tar": "true"}, dest="-")),
        ("type=docker", ExporterSpec(type="docker")),
    ],
)
def test_outputs(text: str, expected: ExporterSpec) -> None:
    """The forms of docker buildx build --output."""
    assert ExporterSpec.parse(text) == expected


@pytest.mark.parametrize(
    ("text", "needle"),
    [
        ("", "expected one line"),
        ("type=oci,tar=false", "dest is missing"),
        ("type=local", "dest is missing"),
        ("type=nope,dest=x", "unknown type 'nope'"),
        ("dest=x", "unknown type ''"),
        ("type=oci,dest=", "dest is empty"),
        ("type=oci,dest=a,dest=b", "'dest' is given twice"),
        ("type=oci,x", "'x' is not key=value"),
        ("type=image,dest=x", "dest is not used"),
        ("type=local,dest=-", "must be a directory"),
        ('type=oci,"dest=x', "output"),
        ("a\nb", "one line"),
    ],
)
def test_bad_outputs_name_what_is_wrong(text: str, needle: str) -> None:
    """Each refusal quotes the text and says what was expected."""
    with pytest.raises(InvalidOption, match=needle):
        ExporterSpec.parse(text)


def test_caches() -> None:
    """A bare reference is a registry cache."""
    assert CacheSpec.parse("localhost:5000/c") == CacheSpec(type="registry", attrs={"ref": "localhost:5000/c"})
    assert CacheSpec.parse("type=inline") == CacheSpec(type="inline")
    for bad in ("", "type=nope", "type=registry,ref"):
        with pytest.raises(InvalidOption):
            CacheSpec.parse(bad)


def test_caches_as_lists_of_references() -> None:
    """Where nothing has a ``=``, each field is a reference."""
    specs = CacheSpec.parse_all(["a:1,b", "type=local,src=x", "c"])
    assert [dict(spec.attrs) for spec in specs] == [{"ref": "a:1"}, {"ref": "b"}, {"src": "x"}, {"ref": "c"}]
    with pytest.raises(InvalidOption):
        CacheSpec.parse_all(["a,,b"])
