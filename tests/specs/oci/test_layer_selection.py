"""The choice of layers by SPEC."""

from __future__ import annotations

import json
import re

import pytest

from imgproxy.errors import InvalidError, NotFoundError
from imgproxy.specs.oci import digest as digests
from imgproxy.specs.oci import media_type as types
from imgproxy.specs.oci.layer_selection import (
    Layer,
    LayerSpec,
    Offsets,
    at,
    choose,
    detail,
    narrow,
    of_query,
    parse,
    parse_detail,
)
from imgproxy.specs.oci.manifest import Descriptor

TEXT, TAR = "text/plain", "application/x-tar"
TITLE = "org.opencontainers.image.title"
D = [digests.compute(b"%d" % n) for n in range(5)]


def layer(n: int, media_type: str, **annotations: str) -> Descriptor:
    named = {TITLE if key == "title" else key: value for key, value in annotations.items()}
    return Descriptor(media_type, D[n], n, annotations=tuple(named.items()))


LAYERS = [
    layer(0, TEXT, title="a.txt", k="v"),
    layer(1, TAR, title="dir/b.tar"),
    layer(2, TAR, k="v,=\\"),
    layer(3, TAR, title="c.tar", k="v", j=""),
]


def chosen(*specs: str) -> list[int]:
    return [each.index for each in choose([parse(each) for each in specs], LAYERS, "image")]


@pytest.mark.parametrize(
    ("specs", "indexes"),
    [
        ([], [0, 1, 2, 3]),
        ([f"type={TAR}"], [1, 2, 3]),
        (["title=*"], [0, 1, 3]),
        (["title=*.tar"], [1, 3]),
        (["title=?.t*"], [0, 3]),
        (["title=[ab].*"], [0]),
        (["annotation:k=v"], [0, 3]),
        ([r"annotation:k=v\,\=\\"], [2]),
        (["annotation:k=v,annotation:j="], [3]),
        (["annotation:j="], [3]),
        ([f"digest={D[2]}"], [2]),
        (["offset=0"], [0]),
        (["offset=-1"], [3]),
        (["offset=1-2"], [1, 2]),
        (["offset=-2--1"], [2, 3]),
        (["offset=1--1"], [1, 2, 3]),
        (["offset=-4-0"], [0]),
        (["offset=2-999999999"], [2, 3]),
        (["offset=-9-0"], [0]),
        ([f"offset=-1,type={TAR}"], [3]),
        ([f"type={TAR},offset=0"], [1]),
        ([f"type={TAR},title=*,offset=1"], [3]),
        ([f"type={TAR},offset=0", f"type={TEXT}"], [0, 1]),
        (["offset=3", "offset=0", "offset=0"], [0, 3]),
        (["title=absent", "offset=0"], [0]),
    ],
)
def test_layers_are_chosen(specs: list[str], indexes: list[int]) -> None:
    assert chosen(*specs) == indexes


@pytest.mark.parametrize("name", [f"{types.DOCKER_LAYER}.gzip", f"{types.OCI_LAYER}+gzip"])
def test_a_layer_of_docker_has_the_type_of_oci_as_well(name: str) -> None:
    layers = [layer(0, f"{types.DOCKER_LAYER}.gzip"), layer(1, types.DOCKER_LAYER)]
    assert [each.index for each in choose([parse(f"type={name}")], layers, "image")] == [0]


def test_each_has_its_place_in_the_manifest_and_among_the_chosen() -> None:
    (first, second) = choose([parse("title=*.tar")], LAYERS, "image")
    assert first == Layer(LAYERS[1], 1, 0)
    assert second == Layer(LAYERS[3], 3, 1)
    assert narrow([parse("offset=-1")], [first, second], "image") == [second]


@pytest.mark.parametrize(
    "spec",
    [
        "type=text/html",
        "title=",
        "title=*.TXT",
        "annotation:x=",
        "annotation:k=V",
        f"digest={D[4]}",
        "offset=4",
        "offset=-5",
        "offset=-9--5",
        "offset=3--3",
        "title=c.tar,offset=1",
        f"type={TEXT},title=c.tar",
    ],
)
def test_what_fits_nothing_is_a_failure_with_what_is_there(spec: str) -> None:
    with pytest.raises(NotFoundError) as caught:
        choose([parse(spec)], LAYERS, "image")
    assert caught.value.message == (
        f'image has no layer with {parse(spec)} (there are: 0 {TEXT} "a.txt" {D[0]} (0 bytes),'
        f' 1 {TAR} "dir/b.tar" {D[1]} (1 bytes), 2 {TAR} {D[2]} (2 bytes),'
        f' 3 {TAR} "c.tar" {D[3]} (3 bytes))'
    )
    assert caught.value.code == "BLOB_UNKNOWN"
    assert [each["digest"] for each in caught.value.detail["layers"]] == list(map(str, D[:4]))


def test_no_more_are_listed_than_help() -> None:
    many = [Descriptor("", D[0], 1)] * 12
    with pytest.raises(NotFoundError, match=r"9 \? sha256:\w+ \(1 bytes\) and 2 more\)") as caught:
        choose([parse("offset=12")], many, "image")
    assert len(caught.value.detail["layers"]) == 12
    with pytest.raises(NotFoundError, match="there are: none"):
        choose([parse("offset=0"), parse("title=x")], [], "image")
    assert choose([], [], "image") == []


def test_a_failure_has_no_text_that_acts_on_a_terminal() -> None:
    odd = [layer(0, TEXT, title="\x1b[31m", k="\n")]
    with pytest.raises(NotFoundError) as caught:
        choose([parse("title=\x1b")], odd, "image")
    assert caught.value.message.isprintable()
    assert caught.value.detail["layers"][0]["title"] == "[31m"
    (told,) = detail(choose([], odd, "image"))
    assert told == {
        "index": 0,
        "offset": 0,
        "mediaType": TEXT,
        "digest": str(D[0]),
        "size": 0,
        "title": "\x1b[31m",
        "annotations": {TITLE: "\x1b[31m", "k": "\n"},
    }


def test_a_spec_is_a_value() -> None:
    text = rf"type={TEXT},title=a\,b,annotation:x\=y=\\,digest={D[0]},offset=1-2"
    assert parse(text) == LayerSpec(TEXT, "a,b", (("x=y", "\\"),), D[0], Offsets(1, 2))
    assert str(parse(text)) == text
    assert str(parse("offset=-1--1")) == "offset=-1"


@pytest.mark.parametrize(
    ("text", "column", "reason"),
    [
        ("", 1, '"=" is missing; a condition is one of type, title, annotation:KEY, digest,'),
        ("type", 5, '"=" is missing'),
        ("title=a,", 9, '"=" is missing'),
        (",title=a", 1, '"=" is missing'),
        ("kind=x", 1, '"kind" is none of type, title, annotation:KEY, digest, offset'),
        ("title=a,Type=x/y", 9, '"Type" is none of'),
        ("=x", 1, '"" is none of'),
        ("annotation=x", 1, '"annotation" is none of'),
        ("annotation:=x", 1, "the key of an annotation is missing"),
        ("annotation:k", 13, '"=" is missing'),
        ("type=x", 6, '"x" is not a media type'),
        ("type=a/b,type=a/b", 10, '"type" is given twice'),
        ("annotation:k=1,annotation:k=2", 16, '"annotation:k" is given twice'),
        ("title=a=b", 8, r'an "=" in a value is written "\="'),
        (r"title=a\b", 8, r'"\" stands before ",", "=" and "\" alone'),
        ("title=a\\", 8, r'"\" stands before'),
        (r"ti\tle=a", 3, r'"\" stands before'),
        ("digest=sha256:x", 8, "sha256 has 64 lower-case hex digits"),
        ("digest=x", 8, "is not a digest"),
        ("title=a,offset=", 16, '"" is not an offset N or a range N-M of offsets'),
        ("offset=1-", 8, "is not an offset"),
        ("offset=+1", 8, "is not an offset"),
        ("offset=1-2-3", 8, "is not an offset"),
        ("offset=1234567890", 8, "is not an offset"),
        ("offset=\u0661", 8, "is not an offset"),
        ("offset=2-1", 8, '"2-1" is reversed; write 1-2'),
        ("offset=-1--2", 8, '"-1--2" is reversed; write -2--1'),
    ],
)
def test_a_mistake_has_its_column(text: str, column: int, reason: str) -> None:
    with pytest.raises(ValueError, match=r"^column ") as caught:
        parse(text)
    assert str(caught.value).startswith(f"column {column}: ")
    assert reason in str(caught.value)


def test_a_query_states_the_same() -> None:
    query = [("type", TEXT), ("title", "a,b=\\"), ("annotation", "k=a=b"), ("offset", "0-1")]
    assert of_query([*query, ("annotation", "j=")]) == LayerSpec(
        TEXT, "a,b=\\", (("k", "a=b"), ("j", "")), offsets=Offsets(0, 1)
    )


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("kind", "x", '"kind" is none of type, title, annotation, offset'),
        ("digest", str(D[0]), '"digest" is none of type, title, annotation, offset'),
        ("annotation:k", "v", '"annotation:k" is none of type, title, annotation, offset'),
        ("annotation", "k", '"k" is not an annotation KEY=VALUE'),
        ("annotation", "=v", "the key of an annotation is missing"),
        ("type", "x", '"x" is not a media type'),
        ("offset", "2-1", '"2-1" is reversed; write 1-2'),
    ],
)
def test_a_query_has_no_columns(key: str, value: str, reason: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(reason)}$"):
        of_query([(key, value)])


def test_a_layer_is_found_at_its_offset() -> None:
    layers = choose([parse("title=*.tar")], LAYERS, "image")
    assert at(1, layers, "image") == layers[1]
    with pytest.raises(
        NotFoundError, match=r"image has no layer with offset 2 \(there are: 0 "
    ) as e:
        at(2, layers, "image")
    assert e.value.code == "BLOB_UNKNOWN"
    assert len(e.value.detail["layers"]) == 2


def test_a_description_is_read_again() -> None:
    layers = choose([parse("offset=1-2")], LAYERS, "image")
    assert parse_detail(json.dumps(detail(layers)).encode(), "the layers") == layers
    assert parse_detail(b"[]", "the layers") == []


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"no", "parsing the layers: not JSON"),
        (b"{}", "parsing the layers: layers: expected an array"),
        (b"[1]", "parsing the layers: layers[0]: expected an object"),
        (b'[{"mediaType": "a/b", "size": 1}]', "layers[0].digest: missing"),
    ],
)
def test_another_description_is_refused(raw: bytes, reason: str) -> None:
    with pytest.raises(InvalidError) as caught:
        parse_detail(raw, "the layers")
    assert reason in caught.value.message
