"""What the files are called that layers become."""

from __future__ import annotations

import gzip

import pytest

from imgproxy.errors import AmbiguousError, InvalidError
from imgproxy.specs import compression
from imgproxy.specs.oci import digest as digests
from imgproxy.specs.oci import layer_names
from imgproxy.specs.oci.layer_names import Names, extension, file_template, name, parse
from imgproxy.specs.oci.layer_selection import Layer
from imgproxy.specs.oci.manifest import Descriptor

TITLE = "org.opencontainers.image.title"
DIGEST = digests.parse(f"sha256:{'0123456789ab' + 'c' * 52}")


def layer(index: int = 3, offset: int = 1, **annotations: str) -> Layer:
    found = tuple((key.replace("title", TITLE), value) for key, value in annotations.items())
    return Layer(Descriptor("text/plain", DIGEST, 5, annotations=found), index, offset)


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("x", "x"),
        ("{title}", "t.txt"),
        ("{index}-{offset}", "3-1"),
        ("{digest}", DIGEST.encoded),
        ("{algorithm}/{short}{ext}", "sha256/0123456789ab.txt"),
        ("{annotation:k}{{}}", "v{}"),
        ("./a//{title}/", "a/t.txt"),
    ],
)
def test_a_template_is_filled(template: str, expected: str) -> None:
    assert name(parse(template), layer(title="t.txt", k="v"), ".txt") == expected


@pytest.mark.parametrize(
    ("text", "column", "reason"),
    [
        ("", 1, "empty"),
        ("a{", 2, '"{" alone is written "{{"'),
        ("a}b", 2, '"}" alone is written "}}"'),
        ("ab{titel}", 3, '"titel" is none of title, index'),
        ("{}", 1, "none of"),
        ("{annotation:}", 1, "none of"),
        ("{annotation}", 1, "none of"),
        ("{{{x{y}", 3, "alone"),
    ],
)
def test_a_mistake_in_a_template_has_its_column(text: str, column: int, reason: str) -> None:
    with pytest.raises(ValueError, match="column") as raised:
        parse(text)
    assert str(raised.value).startswith(f"column {column}: ")
    assert reason in str(raised.value)


def test_the_name_is_the_title_or_else_a_number() -> None:
    titled, untitled = layer(title="a/b.tgz"), layer()
    assert name(file_template(None, titled), titled, ".bin") == "a/b.tgz"
    assert name(file_template(None, untitled), untitled, ".bin") == "3-0123456789ab.bin"
    own = parse("own")
    assert file_template(own, titled) is own
    assert [file_template(None, each).needs_content for each in (titled, untitled)] == [False, True]


@pytest.mark.parametrize(
    ("title", "reason"),
    [
        ("", "is empty"),
        (".", "is empty"),
        ("/etc/passwd", "root of the file system"),
        ("../x", '".." in it'),
        ("a/../../x", '".." in it'),
        ("a\0b", "NUL"),
        ("\ud800", "is no text"),
        ("x" * 256, "longer than 255 bytes"),
        ("d/" * 2100, "4096 in all"),
        (".imgproxy-incomplete/x", "begins with .imgproxy-"),
        ("./.imgproxy-0", "begins with .imgproxy-"),
    ],
)
def test_a_title_that_leads_outside_is_refused_with_the_way_out(title: str, reason: str) -> None:
    with pytest.raises(InvalidError) as raised:
        name(file_template(None, layer(title=title)), layer(title=title))
    assert reason in raised.value.message
    assert "--name gives it another one" in raised.value.message


@pytest.mark.parametrize("title", ["..\\x", "C:\\x", "a\nb", "*", "-rf", "...", "a b", "é" * 127])
def test_an_odd_title_is_a_name(title: str) -> None:
    assert name(file_template(None, layer(title=title)), layer(title=title)) == title


def test_what_a_template_makes_is_looked_at_as_well() -> None:
    with pytest.raises(InvalidError, match=r'its name "a/\.\./x" has "\.\." in it$'):
        name(parse("a/{title}"), layer(title="../x"))
    with pytest.raises(InvalidError, match="has no annotation k, which"):
        name(parse("{annotation:k}"), layer())


@pytest.mark.parametrize(
    ("first", "second"), [("a", "a"), ("a", "a/b"), ("a/b", "a"), ("a/b/c", "a/b")]
)
def test_two_layers_of_one_name_are_ambiguous(first: str, second: str) -> None:
    names = Names()
    names.add("other", layer(0))
    names.add("a/other", layer(1)) if first != "a" else None
    names.add(first, layer(5))
    with pytest.raises(AmbiguousError, match="layers 5 and 7 would both") as raised:
        names.add(second, layer(7))
    assert [each["index"] for each in raised.value.detail["layers"]] == [5, 7]


GZIP = gzip.compress(b"x", mtime=0)


@pytest.mark.parametrize(
    ("media_type", "head", "inflated", "expected"),
    [
        ("text/plain", GZIP[:6], bytes(512), ".tar.gz"),
        ("application/json", GZIP[:6], b"{}", ".gz"),
        ("x/y", b"\x28\xb5\x2f\xfd", bytes(512), ".tar.zst"),
        ("x/y", b"BZh91A", b"", ".bz2"),
        ("x/y", b"\xfd7zXZ\0", bytes(512), ".tar.xz"),
        ("x/y.tar+gzip", b"\0" * 6, bytes(512), ".tar"),
        ("x/y.tar+gzip", b"nothing", b"nothing", ".bin"),
        ("x/y", b"PK\x03\x04..", b"PK\x03\x04..", ".zip"),
        ("x/y", b"\x04\x22\x4d\x18", b"", ".lz4"),
        ("application/wasm", b"\0asm", b"\0asm", ".wasm"),
        ("application/vnd.wasm.content.layer.v1+wasm", b"\0asm", b"\0asm", ".wasm"),
        ("application/spdx+json", b"{}", b"{}", ".json"),
        ("application/vnd.cncf.helm.chart.provenance.v1.prov", b"--", b"--", ".prov"),
        ("Text/Markdown", b"#", b"#", ".md"),
        ("text/x-unknown", b"", b"", ".txt"),
        ("application/octet-stream", b"", b"", ".bin"),
        ("", b"", b"", ".bin"),
    ],
)
def test_an_extension_is_told_by_content_and_then_by_the_media_type(
    media_type: str, head: bytes, inflated: bytes, expected: str
) -> None:
    assert extension(media_type, head, inflated) == expected


def test_every_compression_has_an_extension() -> None:
    names = {codec.name for codec in compression.CODECS.values()}
    assert names == set(layer_names._EXTENSIONS_OF_COMPRESSIONS)
    assert set(compression.UNSUPPORTED) <= set(layer_names._UNREAD)
