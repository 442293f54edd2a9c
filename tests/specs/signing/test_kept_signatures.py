"""Signatures as a cache keeps them."""

from __future__ import annotations

import pytest

from imgproxy.specs.signing import kept_signatures
from imgproxy.specs.signing.signature import BundleSignature, SigstoreSignature, SimpleSignature

PLACES = {
    "https://lookaside.example": [SimpleSignature("one", b"\x90"), SimpleSignature("two", b"")],
    "attached to quay.io/acme/os": [SigstoreSignature("three", "a/b", b"{}", {"key": "value"})],
    "bundles at quay.io/acme/os": [BundleSignature("four", b"{}")],
    "nowhere": [],
}


def test_signatures_are_read_as_they_were_kept() -> None:
    assert kept_signatures.decode(kept_signatures.encode(PLACES)) == PLACES


@pytest.mark.parametrize(
    "raw",
    [b"", b"[]", b'{"a":1}', b'{"a":[{}]}', b'{"a":[{"name":"x","content":"!"}]}', b'{"a":[1]}'],
)
def test_what_cannot_be_read_is_no_signature(raw: bytes) -> None:
    assert kept_signatures.decode(raw) == {}
