"""Digests: parsing and formatting are inverse, and only `ValueError` is raised."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from support.strategies import attempt, digests

from imgproxy.specs.oci.digest import compute, parse


@given(digests())
def test_a_digest_is_written_as_it_was_read(text: str) -> None:
    digest = parse(text)
    assert str(digest) == text
    assert parse(str(digest)) == digest


@given(st.text() | st.from_regex(r"[a-z0-9+._-]*:[a-zA-Z0-9=_/.-]*"))
def test_text_is_a_digest_or_a_value_error(text: str) -> None:
    digest = attempt(parse, text, expected=ValueError)
    if isinstance(digest, ValueError):
        assert type(digest) is ValueError
    else:
        assert str(digest) == text
        assert not set("/\\\0 ") & set(text)
        assert ".." not in digest.encoded


@given(st.binary(), st.sampled_from(["sha256", "sha384", "sha512"]))
def test_a_computed_digest_can_be_read(content: bytes, algorithm: str) -> None:
    digest = compute(content, algorithm)
    assert parse(str(digest)) == digest
    assert digest.encoded == hashlib.new(algorithm, content).hexdigest()


@given(digests(), st.integers(0, 30), st.characters())
def test_no_other_spelling_is_the_same_digest(text: str, at: int, letter: str) -> None:
    changed = text[:at] + letter + text[at + 1 :]
    assume(changed != text)
    assert attempt(parse, changed, expected=ValueError) != parse(text)


@given(st.sampled_from(["sha256", "sha384", "sha512"]), st.text("0123456789ABCDEFabcdef"))
def test_a_registered_algorithm_takes_nothing_but_its_form(algorithm: str, digits: str) -> None:
    size = hashlib.new(algorithm).digest_size * 2
    assume(len(digits) != size or digits != digits.lower())
    with pytest.raises(ValueError, match=rf"{algorithm} has {size} |is not a digest"):
        parse(f"{algorithm}:{digits}")
