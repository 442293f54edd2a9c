"""Digests: OCI image specification, descriptor.md, "Digests"."""

from __future__ import annotations

import hashlib

import pytest

from imgproxy.errors import NotImplementedByUsError
from imgproxy.specs.oci.digest import Digest, compute, hasher, is_available, parse

# Of the empty string, from FIPS 180-4's own examples and `sha*sum </dev/null`.
EMPTY = {
    "sha256": "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "sha384": "38b060a751ac96384cd9327eb1b1e36a21fdb71114be07434c0cc7bf63f6e1da"
    "274edebfe76f65fbd51ad2f14898b95b",
    "sha512": "cf83e1357eefb8bdf1542850d66d8007d620e4050b5715dc83f4a921d36ce9ce"
    "47d0d13c5d85f2b0ff8318d2877eec2f63b931bd47417a81a538327af927da3e",
}


@pytest.mark.parametrize(
    "text",
    [
        *(f"{algorithm}:{encoded}" for algorithm, encoded in EMPTY.items()),
        pytest.param("blake3:" + "0" * 64, id="registered-and-not-available"),
        pytest.param("sha256+b64u:LCa0a2j_xo_5m0U8HTBBNBNCLXBkg7-g-YpeiGJm564", id="plus"),
        pytest.param("multihash+base58:QmRZxt2b1FVZPNqd8hsiykDL3TdBDeTSPX9Kv46HmX4Gx8", id="case"),
        pytest.param("a.b_c-d+e:=", id="every-separator"),
        pytest.param("a:" + "0" * 253, id="longest"),
    ],
)
def test_a_digest_is_what_it_is_written_as(text: str) -> None:
    digest = parse(text)
    assert f"{digest.algorithm}:{digest.encoded}" == text
    assert str(digest) == text


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("", id="nothing"),
        pytest.param("sha256", id="no-colon"),
        pytest.param("sha256:", id="nothing-encoded"),
        pytest.param(":abc", id="no-algorithm"),
        pytest.param("SHA256:" + "0" * 64, id="upper-case-algorithm"),
        pytest.param("a++b:c", id="two-separators"),
        pytest.param("+a:b", id="leading-separator"),
        pytest.param("a+:b", id="trailing-separator"),
        pytest.param("a:b:c", id="two-colons"),
        pytest.param("a:b/c", id="slash"),
        pytest.param("a:b.c", id="dot"),
        pytest.param("../a:b", id="path"),
        pytest.param("a:b\n", id="line-end"),
        pytest.param("a:ä", id="no-ascii"),
        pytest.param("a:\uff10", id="digit-of-another-script"),
        pytest.param("a:" + "0" * 254, id="too-long"),
    ],
)
def test_what_breaks_the_grammar_is_no_digest(text: str) -> None:
    with pytest.raises(ValueError, match=r'^".*" is not a digest \(algorithm:encoded\)$') as caught:
        parse(text)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("algorithm", "digits"), [("sha256", 64), ("sha384", 96), ("sha512", 128), ("blake3", 64)]
)
@pytest.mark.parametrize(
    ("digit", "difference"),
    [("0", -1), ("0", 1), ("A", 0), ("g", 0), ("=", 0)],
    ids=["short", "long", "upper-case", "no-hex", "base64"],
)
def test_a_registered_algorithm_has_one_form(
    algorithm: str, digits: int, digit: str, difference: int
) -> None:
    with pytest.raises(ValueError, match=f'^".*": {algorithm} has {digits} lower-case hex digits$'):
        parse(f"{algorithm}:{digit * (digits + difference)}")


@pytest.mark.parametrize("algorithm", EMPTY)
def test_an_available_algorithm_computes(algorithm: str) -> None:
    digest = Digest(algorithm, EMPTY[algorithm])
    assert is_available(digest)
    assert compute(b"", algorithm) == digest
    hashing = hasher(digest)
    hashing.update(b"ab")
    hashing.update(b"c")
    assert hashing.hexdigest() == hashlib.new(algorithm, b"abc").hexdigest()


def test_sha256_is_computed_where_nothing_else_is_said() -> None:
    assert compute(b"") == Digest("sha256", EMPTY["sha256"])


@pytest.mark.parametrize("algorithm", ["blake3", "md5", "unheard-of"])
def test_an_algorithm_that_is_not_available_fails_only_when_it_is_needed(algorithm: str) -> None:
    digest = parse(f"{algorithm}:" + "0" * 64)
    assert not is_available(digest)
    with pytest.raises(NotImplementedByUsError) as caught:
        hasher(digest)
    assert caught.value.message == (
        f"verifying {digest}: the algorithm {algorithm} is not available"
        " (available: sha256, sha384, sha512)"
    )
