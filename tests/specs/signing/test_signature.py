"""The encodings in which signatures are stored."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from imgproxy.specs.signing.signature import (
    SignatureError,
    SigstoreSignature,
    SimpleSignature,
    decode,
    parse_extension_reply,
)

SIGSTORE = {"mimeType": "a/b", "payload": "e30=", "annotations": {"k": "v"}}


@pytest.mark.parametrize(
    "first",
    [*range(0xA0, 0xA4), 0xC8, *range(0x90, 0x93), 0xC4, *range(0x88, 0x8C), 0xC2],
)
def test_what_begins_as_openpgp_is_that(first: int) -> None:
    blob = bytes([first]) + b"more"
    assert decode(blob, "it") == SimpleSignature("it", blob)


def test_other_formats_have_their_names() -> None:
    assert decode(b"\0simple-signing\nany\nthing", "it") == SimpleSignature("it", b"any\nthing")
    for document in (SIGSTORE, {**SIGSTORE, "more": 1}):
        assert decode(b"\0sigstore-json\n" + json.dumps(document).encode(), "it") == (
            SigstoreSignature("it", "a/b", b"{}", {"k": "v"})
        )
    assert decode(b'\0sigstore-json\n{"mimeType":"a","payload":""}', "it") == (
        SigstoreSignature("it", "a", b"", {})
    )


@pytest.mark.parametrize(
    ("blob", "reason"),
    [
        (b"", "it is empty"),
        (b"\0", "it begins with 0x00, unlike any signature"),
        (b"{}", "it begins with 0x7b7d, unlike any signature"),
        (b"-----BEGIN PGP", "it begins with 0x2d2d2d2d2d424547, unlike any signature"),
        (b"\x3d", "it begins with 0x3d"),
        (b"\x8c", "it begins with 0x8c"),
        (b"\x93", "it begins with 0x93"),
        (b"\0simple-signing", "it begins with 0x00"),
        (b"\0simple signing\n", "it begins with 0x00"),
        (b"\0\n", "it begins with 0x00"),
        (b"\0simple-signing2\n", 'the format "simple-signing2" is unknown'),
        (b"\0sigstore-json\n", "not JSON: "),
        (b"\0sigstore-json\n[]", "the document: expected an object"),
        (b'\0sigstore-json\n{"payload":"e30="}', "mimeType: missing"),
        (b'\0sigstore-json\n{"mimeType":"a"}', "payload: missing"),
        (b'\0sigstore-json\n{"mimeType":"a","payload":"*"}', "payload: not base64"),
        (
            b'\0sigstore-json\n{"mimeType":"a","payload":"","annotations":{"k":1}}',
            "annotations.k: expected a string, got 1",
        ),
    ],
)
def test_anything_else_is_no_signature(blob: bytes, reason: str) -> None:
    with pytest.raises(SignatureError) as raised:
        decode(blob, "it")
    assert str(raised.value).startswith(reason)


def entry(**changes: object) -> dict[str, Any]:
    content = base64.b64encode(b"any").decode()
    known = {"schemaVersion": 2, "name": "x@y", "type": "atomic", "content": content}
    return {**known, **changes}


def test_the_extension_of_a_registry_gives_those_that_are_known() -> None:
    entries = [entry(), entry(schemaVersion=1), entry(type="x"), entry(content="")]
    raw = json.dumps({"signatures": entries}).encode()
    assert parse_extension_reply(raw, "there") == [
        SimpleSignature("there (1)", b"any"),
        SimpleSignature("there (2)", b""),
    ]
    assert parse_extension_reply(b"{}", "there") == []


@pytest.mark.parametrize(
    ("document", "reason"),
    [
        ([], "the document: expected an object"),
        ({"signatures": {}}, "signatures: expected an array"),
        ({"signatures": [entry(content="*")]}, "signatures[0].content: not base64"),
        ({"signatures": [entry(content=None)]}, "signatures[0].content: missing"),
        (
            {"signatures": [entry(schemaVersion="2")]},
            "signatures[0].schemaVersion: expected an int",
        ),
    ],
)
def test_the_extension_of_a_registry_is_read_strictly(document: object, reason: str) -> None:
    with pytest.raises(SignatureError) as raised:
        parse_extension_reply(json.dumps(document).encode(), "there")
    assert str(raised.value).startswith(reason)
