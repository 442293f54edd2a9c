"""Manifests: damaged ones raise one of two errors, and conversion keeps all digests and sizes."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from support.strategies import DOCKER, INDEX, JSON, OCI, Json, attempt, damaged

from imgproxy.errors import Failure, InvalidError, UnsupportedFormatError
from imgproxy.specs.oci import convert
from imgproxy.specs.oci import media_type as types
from imgproxy.specs.oci.manifest import Descriptor, Manifest, parse

CLAIMS = st.sampled_from(["", "text/plain", *sorted(types.KNOWN_DOCUMENTS)])


def encoded(document: object) -> bytes:
    return json.dumps(document).encode()


def refused_or_sound(raw: bytes, claimed: str) -> None:
    document = attempt(parse, raw, claimed, "it", expected=Failure)
    if isinstance(document, Failure):
        assert type(document) in {InvalidError, UnsupportedFormatError}
        assert not {"\n", "\r", "\0", "\x1b", "\x9b"} & set(document.message)
        return
    named = (
        (document.config, *document.layers)
        if isinstance(document, Manifest)
        else document.manifests
    )
    for each in named:
        assert not each.media_type or types.is_valid(each.media_type)
        assert 0 <= each.size < 2**63


@given(damaged(st.one_of(DOCKER, OCI, INDEX)), CLAIMS)
def test_a_damaged_document_is_refused_or_still_sound(document: Json, claimed: str) -> None:
    refused_or_sound(encoded(document), claimed)


@given(JSON, CLAIMS)
def test_any_json_is_refused_or_sound(document: Any, claimed: str) -> None:  # noqa: ANN401  (JSON is any)
    refused_or_sound(encoded(document), claimed)


@given(st.binary(), CLAIMS)
def test_any_bytes_are_refused(raw: bytes, claimed: str) -> None:
    refused_or_sound(raw, claimed)


@given(st.one_of(DOCKER, OCI, INDEX))
def test_a_whole_document_is_read_whole(document: Json) -> None:
    parsed = parse(encoded(document), "", "it")
    assert parsed.media_type == document["mediaType"]
    if isinstance(parsed, Manifest):
        descriptors = [parsed.config, *parsed.layers]
        written = [document["config"], *document["layers"]]
    else:
        descriptors, written = [*parsed.manifests], document["manifests"]
    assert [(str(each.digest), each.size) for each in descriptors] == [
        (each["digest"], each["size"]) for each in written
    ]


def blobs(raw: bytes) -> list[Descriptor]:
    """Return the content of a manifest without media types."""
    manifest = parse(raw, types.OCI_MANIFEST if b"vnd.oci.image.manifest" in raw else "", "it")
    assert isinstance(manifest, Manifest)
    return [each._replace(media_type="") for each in (manifest.config, *manifest.layers)]


@given(DOCKER)
def test_conversion_keeps_every_blob_in_its_place(document: Json) -> None:
    assert blobs(convert.manifest(encoded(document))) == blobs(encoded(document))


@given(DOCKER)
def test_a_converted_manifest_has_nothing_left_to_convert(document: Json) -> None:
    converted = convert.manifest(encoded(document))
    assert convert.manifest(converted) == converted


@given(DOCKER)
def test_conversion_changes_labels_and_nothing_else(document: Json) -> None:
    converted = json.loads(convert.manifest(encoded(document)))
    for described in (document, document["config"], *document["layers"]):
        if "mediaType" in described:
            described["mediaType"] = convert.media_type(described["mediaType"])
    assert json.dumps(converted) == json.dumps(document)  # with the keys in their order


@given(DOCKER, st.sampled_from([None, 3]), st.booleans())
def test_conversion_does_not_depend_on_how_the_json_was_written(
    document: Json,
    indent: int | None,
    ascii_only: Any,  # noqa: ANN401  (json's own parameter)
) -> None:
    spelt = json.dumps(document, indent=indent, ensure_ascii=ascii_only).encode()
    assert convert.manifest(spelt) == convert.manifest(encoded(document))
