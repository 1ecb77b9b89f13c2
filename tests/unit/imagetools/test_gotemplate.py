"""The template language, by what Go's text/template gives for the same."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from buildkit_py.errors import BuildKitError, ImageError, InvalidOption
from buildkit_py.imagetools.gotemplate import GoTemplate
from buildkit_py.imagetools.govalues import NIL_MAP, NIL_POINTER, Field, Record

DATA = Record(
    {
        "name": "app",
        "map": {"b": 2, "a": "one", "nested": {"x": [1, 2.5, True, None]}},
        "list": [{"n": "p"}, {"n": "q"}],
        "text": "<é&>",
        "number": 7,
        "float": 3.0,
    },
    {
        "Name": Field("name"),
        "Map": Field("map"),
        "List": Field("list"),
        "Text": Field("text"),
        "Number": Field("number"),
        "Float": Field("float"),
        "Empty": Field("empty"),
        "NoMap": Field("no_map", NIL_MAP),
        "Pointer": Field("pointer", NIL_POINTER),
    },
)


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("plain }} text", "plain }} text"),
        ("{{.Name}}/{{ .Number }}", "app/7"),
        ("{{.Float}} {{.Empty}}|{{.NoMap}}|{{.Pointer}}", "3 |map[]|<nil>"),
        ("{{.Map.a}} {{.Map.none}} {{.Map.none.deeper}}", "one <no value> <no value>"),
        ("{{.Map}}", "map[a:one b:2 nested:map[x:[1 2.5 true <no value>]]]"),
        ("{{json .Text}} {{json .NoMap}} {{json .Map.none}}", '"\\u003cé\\u0026\\u003e" null null'),
        ("{{json .Map.nested.x}}", "[\n  1,\n  2.5,\n  true,\n  null\n]"),
        ("{{.List | json}}", '[\n  {\n    "n": "p"\n  },\n  {\n    "n": "q"\n  }\n]'),
        ('{{index .Map "a"}} {{(index .List 1).n}} {{index .Map.nested.x 1}}', "one q 2.5"),
        ("{{range .List}}{{.n}},{{end}}", "p,q,"),
        ("{{range $i, $e := .List}}{{if $i}}, {{end}}{{$i}}={{$e.n}}{{end}}", "0=p, 1=q"),
        ("{{range $k, $v := .Map}}{{$k}} {{end}}", "a b nested "),
        ("{{range .NoMap}}x{{else}}none{{end}}", "none"),
        ("{{range $e := .List}}{{$e.n}}{{$.Name}}{{end}}", "pappqapp"),
        ("{{if .Empty}}a{{else if .Name}}b{{else}}c{{end}}", "b"),
        ("{{if not .Empty}}a{{end}}{{if and .Name .Empty}}b{{end}}{{if or .Empty .Name}}c{{end}}", "ac"),
        ("{{with .Map.nested}}{{len .x}}{{end}}{{with .Empty}}x{{else}}{{.Name}}{{end}}", "4app"),
        ("{{$x := .Name}}{{$x}}{{$x = .Number}}{{$x}}", "app7"),
        ("{{$x := 1}}{{if true}}{{$x = 2}}{{end}}{{$x}}", "2"),
        ('{{printf "%s@%v %q %5s|%-5s|%03d %%" .Name .Number .Name "a" "b" 7}}', 'app@7 "app"     a|b    |007 %'),
        ('{{println .Name .Number}}{{print "a" 1 2 "b"}}', "app 7\na1 2b"),
        (
            "{{eq .Name `app`}} {{ne .Number 7}} {{lt 1 2}} {{ge .Number 8}} {{eq .Number 1 7}}",
            "true false true false true",
        ),
        ('{{ "a\\tb" }}', "a\tb"),
        ("a {{- .Name -}} b{{/* nothing */}}{{- /* nor this */ -}} c", "aappbc"),
        ("{{len .Name}} {{len .NoMap}} {{len .List}}", "3 0 2"),
        ("{{and .Empty .Nothing}}", ""),
    ],
)
def test_what_go_gives(template: str, expected: str) -> None:
    assert GoTemplate.parse(template).fill(DATA) == expected


@pytest.mark.parametrize(
    "template",
    [
        "{{.Name",
        "{{}}",
        "{{end}}",
        "{{if .Name}}",
        "{{else}}",
        "{{range .List}}{{else range .List}}{{end}}",
        "{{nofunction .Name}}",
        "{{(.Name}}",
        "{{.Name)}}",
        "{{.Name | }}",
        "{{!}}",
        "{{template `x`}}",
        "{{'x'}}",
        "{{(" * 200,
        "{{if true}}" * 200,
        "{{" + "(" * 300 + "1" + ")" * 300 + "}}",
    ],
)
def test_what_is_no_template(template: str) -> None:
    with pytest.raises(InvalidOption, match="format"):
        GoTemplate.parse(template)


@pytest.mark.parametrize(
    ("template", "complaint"),
    [
        ("{{.Nmae}}", "there is no field Nmae; there are Name"),
        ("{{.Name.x}}", "has no field x"),
        ("{{.Pointer.x}}", "has no field x"),
        ("{{$x}}", "no variable"),
        ("{{.Name 1}}", "no function is given arguments"),
        ("{{index .List 9}}", "out of range"),
        ('{{index .List "a"}}', "can't index"),
        ("{{range .Name}}{{end}}", "can't iterate"),
        ("{{len .Number}}", "has no length"),
        ("{{lt .Name 1}}", "cannot be compared"),
        ('{{printf "%x" 1}}', "printf knows"),
        ('{{printf "%99999s" 1}}', "up to 1000"),
        ("{{json}}", "cannot take 0"),
        ("{{eq 1}}", "needs two"),
    ],
)
def test_what_cannot_be_filled(template: str, complaint: str) -> None:
    with pytest.raises(ImageError, match=complaint):
        GoTemplate.parse(template).fill(DATA)


def test_output_is_bounded() -> None:
    big = Record({"list": [0] * 1000}, {"List": Field("list")})
    loops = "{{range $.List}}" * 4 + "x" * 1000 + "{{end}}" * 4
    with pytest.raises(ImageError, match="more than"):
        GoTemplate.parse(loops).fill(big)


def test_the_fields_that_are_asked_for() -> None:
    template = '{{if eq .A.B 1}}{{json (index .C "x").D}}{{end}}{{range $k, $v := .E}}{{$v.Z}}{{$.F}}{{end}}'
    assert GoTemplate.parse(template).fields() == {"A", "C", "E", "F"}
    assert GoTemplate.parse("{{json .}}").fields() == {""}


@given(st.text(alphabet='{}().|$,:=-/*"`% abN0rangeifwthlsdjo\n', max_size=60))
def test_any_text_is_a_template_or_refused(text: str) -> None:
    with contextlib.suppress(BuildKitError):
        GoTemplate.parse(text).fill(DATA)
