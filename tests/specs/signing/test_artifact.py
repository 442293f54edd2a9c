"""Artifacts of an image: names of tags, lists, layers."""

from __future__ import annotations

import json

import pytest
from support.images import digest_of

from imgproxy.specs.oci import digest as digests
from imgproxy.specs.oci.manifest import Descriptor
from imgproxy.specs.signing import artifact
from imgproxy.specs.signing.artifact import Part
from imgproxy.specs.signing.signature import BUNDLE, SignatureError

DIGEST = digests.parse("sha256:" + "a" * 64)
PART = digests.parse(digest_of(b"x"))


def test_tags_are_made_of_the_digest() -> None:
    assert artifact.attachments_tag(DIGEST) == f"sha256-{'a' * 64}.sig"
    assert artifact.referrers_tag(DIGEST) == f"sha256-{'a' * 64}"
    assert artifact.referrers_query(BUNDLE) == (
        "artifactType=application%2Fvnd.dev.sigstore.bundle.v0.3%2Bjson"
    )


@pytest.mark.parametrize(
    ("link", "query"),
    [
        ("", None),
        ('</v2/x/referrers/y?n=2&last=z>; rel="next"', "n=2&last=z"),
        ("<https://elsewhere.test/v2/x?last=z>;rel=next", "last=z"),
        ('</v2/x?a=b>; rel="prev", </v2/x?c=d>; rel="next"', "c=d"),
        ('</v2/x?a=b>; rel="prev"', None),
        ("</v2/x>; rel=next", None),
        ("rubbish", None),
    ],
)
def test_a_list_goes_on_as_the_registry_says(link: str, query: str | None) -> None:
    assert artifact.next_query(link) == query


DESCRIPTOR = {"mediaType": "a/b", "digest": str(PART), "size": 1}
EXPECTED = Descriptor("a/b", PART, 1)


def test_layers_and_manifests_are_parts() -> None:
    layer = {**DESCRIPTOR, "annotations": {"k": "v"}}
    raw = json.dumps({"layers": [layer, DESCRIPTOR]}).encode()
    assert artifact.layers(raw) == [Part(EXPECTED, "a/b", {"k": "v"}), Part(EXPECTED, "a/b", {})]
    raw = json.dumps({"manifests": [{**DESCRIPTOR, "artifactType": "c/d"}, DESCRIPTOR]}).encode()
    assert artifact.manifests(raw) == [Part(EXPECTED, "c/d", {}), Part(EXPECTED, "", {})]
    assert artifact.manifests(b'{"manifests":[]}') == []


@pytest.mark.parametrize(
    ("document", "reason"),
    [
        ([], "the document: expected an object"),
        ({}, "expected a document with layers"),
        ({"manifests": []}, "expected a document with layers"),
        ({"layers": {}}, "layers: expected an array"),
        ({"layers": [{**DESCRIPTOR, "digest": "x"}]}, '"x" is not a digest'),
        ({"layers": [{**DESCRIPTOR, "size": "1"}]}, "layers[0].size: expected an integer"),
        ({"layers": [{**DESCRIPTOR, "size": -1}]}, "layers[0].size: expected a size, got -1"),
        ({"layers": [{**DESCRIPTOR, "mediaType": None}]}, "layers[0].mediaType: missing"),
        (
            {"layers": [{**DESCRIPTOR, "annotations": {"k": 1}}]},
            "layers[0].annotations.k: expected",
        ),
    ],
)
def test_anything_else_is_none(document: object, reason: str) -> None:
    with pytest.raises(SignatureError) as raised:
        artifact.layers(json.dumps(document).encode())
    assert str(raised.value).startswith(reason)


def test_json_must_be_that() -> None:
    with pytest.raises(SignatureError, match="not JSON"):
        artifact.layers(b"{")
