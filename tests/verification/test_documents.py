"""No document that contradicts a digest or a size counts as verified."""

from __future__ import annotations

import pytest
from support.blobs import NO_ALGORITHM, RAW, WRONG_DIGEST, WRONG_SIZE, described, found
from support.images import OCI_INDEX, OCI_LAYER, OCI_MANIFEST, digest_of
from support.streams import refused

from imgproxy.errors import Failure
from imgproxy.specs.oci import digest as digests
from imgproxy.specs.oci import manifest as manifests
from imgproxy.specs.oci.manifest import Descriptor, Manifest
from imgproxy.verification import documents
from imgproxy.verification.documents import VerifiedDocument


@pytest.mark.parametrize("size", [None, len(RAW)])
@pytest.mark.parametrize(
    "named",
    [
        (),
        (digest_of(RAW),),
        (digest_of(RAW, "sha512"),),
        (digest_of(RAW, "sha384"), digest_of(RAW)),
    ],
)
def test_a_document_that_agrees_with_all_who_named_it_is_verified(
    named: tuple[str, ...], size: int | None
) -> None:
    document = documents.verify(found(*named, size=size))
    assert document.raw == RAW
    assert str(document.digest) == (named[0] if named else digest_of(RAW))
    assert document.media_type == OCI_MANIFEST
    assert isinstance(document.parsed, Manifest)


OTHER = digest_of(b"other")
DOCUMENTS = {
    "another digest": (found(OTHER), WRONG_DIGEST),
    "another digest after a right one": (found(digest_of(RAW), OTHER), WRONG_DIGEST),
    "another digest before a right one": (found(OTHER, digest_of(RAW)), WRONG_DIGEST),
    "another size": (found(digest_of(RAW), size=len(RAW) + 1), WRONG_SIZE),
    "no algorithm": (found("blake3:" + "0" * 64), NO_ALGORITHM),
    "no document": (found(raw=b"{}"), (422, "MANIFEST_INVALID", False)),
}


@pytest.mark.parametrize("case", DOCUMENTS)
def test_a_document_that_does_not_agree_is_refused(case: str) -> None:
    document, wanted = DOCUMENTS[case]
    with pytest.raises(Failure) as raised:
        documents.verify(document)
    assert refused(raised.value) == wanted
    assert "the document" in raised.value.message or wanted == NO_ALGORITHM


EMBEDDED = {
    "right": (described(b"data")._replace(data=b"data"), b"data"),
    "empty": (described(b"")._replace(data=b""), b""),
    "by another algorithm": (described(b"data", "sha512")._replace(data=b"data"), b"data"),
    "none": (described(b"data"), None),
    "another size": (described(b"data", size=5)._replace(data=b"data"), None),
    "another digest": (described(b"atad")._replace(data=b"data"), None),
    "no algorithm": (
        Descriptor(OCI_LAYER, digests.parse("blake3:" + "0" * 64), 4, b"data"),
        None,
    ),
}


@pytest.mark.parametrize("case", EMBEDDED)
def test_embedded_content_counts_if_it_is_what_the_descriptor_says(case: str) -> None:
    descriptor, wanted = EMBEDDED[case]
    assert documents.embedded(descriptor) == wanted


def test_a_document_may_be_named_by_several_digests() -> None:
    raw = b'{"schemaVersion":2,"manifests":[]}'
    parsed = manifests.parse(raw, OCI_INDEX, "it")
    document = VerifiedDocument(raw, digests.compute(raw), parsed)
    for algorithm in ("sha256", "sha384", "sha512"):
        assert documents.has_digest(document, digests.compute(raw, algorithm))
        assert not documents.has_digest(document, digests.compute(b"else", algorithm))
    assert not documents.has_digest(document, digests.parse("blake3:" + "0" * 64))
