"""What documents mention, of whatever kind they are."""

from __future__ import annotations

import json
from typing import Any

import pytest

from imgproxy.errors import InvalidError
from imgproxy.specs.oci import digest as digests
from imgproxy.specs.oci import media_type as types
from imgproxy.specs.oci import mentions

ONE, TWO, THREE = (str(digests.compute(bytes([n]))) for n in range(3))

# Each: a document, and the digests that it mentions, those in a list of manifests with a +.
DOCUMENTS: dict[str, tuple[Any, list[str]]] = {
    "nothing": ({}, []),
    "no object": ([1, "x", None], []),
    "manifest": ({"config": {"digest": ONE}, "layers": [{"digest": TWO}]}, [ONE, TWO]),
    "index": ({"manifests": [{"digest": ONE}, {"digest": TWO}]}, [f"+{ONE}", f"+{TWO}"]),
    "subject": ({"subject": {"digest": ONE}, "blobs": [{"digest": TWO}]}, [TWO]),
    "annotations": ({"annotations": {"digest": "x"}, "config": {"digest": ONE}}, [ONE]),
    "unknown members": ({"x": {"y": [[{"digest": ONE, "z": {"digest": TWO}}]]}}, [ONE, TWO]),
    "within an entry": ({"manifests": [{"digest": ONE, "x": {"digest": TWO}}]}, [f"+{ONE}", TWO]),
    "twice": ({"layers": [{"digest": ONE}, {"digest": ONE}]}, [ONE, ONE]),
}


@pytest.mark.parametrize("case", DOCUMENTS)
def test_every_object_with_a_digest_is_a_mention(case: str) -> None:
    document, wanted = DOCUMENTS[case]
    found = mentions.parse(json.dumps(document).encode(), "it")
    assert [f"{'+' * each.in_list}{each.digest}" for each in found] == wanted


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"{", "not JSON"),
        (b'{"digest":1}', "digest: expected a text"),
        (b'{"layers":[{"digest":"sha256:../x"}]}', '"sha256:../x" is not a digest'),
        (b'{"digest":"sha256:0"}', '"sha256:0": sha256 has 64 lower-case hex digits'),
    ],
)
def test_what_cannot_be_read_is_refused(raw: bytes, reason: str) -> None:
    with pytest.raises(InvalidError, match=f"^parsing it: {reason}"):
        mentions.parse(raw, "it")


@pytest.mark.parametrize("entry", [None, 1, "x", [], {}, {"digest": "x"}, {"digest": None}])
def test_an_entry_that_names_nothing_is_refused(entry: object) -> None:
    with pytest.raises(InvalidError, match=r"^entry 3: "):
        mentions.of_entry(entry, "entry 3")


@pytest.mark.parametrize(
    ("media_type", "in_list", "is_document", "may_be_opaque"),
    [
        (types.OCI_MANIFEST, False, True, False),
        (types.DOCKER_LIST, True, True, False),
        ("application/vnd.example+json", True, True, True),
        ("application/vnd.example+json", False, False, True),
        ("", True, True, True),
        (types.OCI_LAYER, False, False, True),
    ],
)
def test_documents_are_told_by_their_type_and_place(
    media_type: str,
    in_list: bool,  # noqa: FBT001
    is_document: bool,  # noqa: FBT001
    may_be_opaque: bool,  # noqa: FBT001
) -> None:
    key = "manifests" if in_list else "layers"
    document = {key: [{"digest": ONE, "mediaType": media_type, "size": 3}]}
    (found,) = mentions.parse(json.dumps(document).encode(), "it")
    assert (found.is_document, found.may_be_opaque) == (is_document, may_be_opaque)
    assert (found.size, found.is_elsewhere) == (3, False)


@pytest.mark.parametrize("more", [{"urls": ["https://x"]}, {"data": "eA=="}])
def test_what_is_embedded_or_has_urls_may_be_elsewhere(more: dict[str, Any]) -> None:
    found = mentions.of_entry({"digest": ONE, "size": "odd", "mediaType": 1, **more}, "it")
    assert (found.is_elsewhere, found.size, found.media_type) == (True, None, "")
    assert not mentions.of_entry({"digest": ONE, "urls": []}, "it").is_elsewhere
