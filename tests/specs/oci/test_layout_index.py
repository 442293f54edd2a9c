"""The index of a layout, and what becomes of it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as some

from imgproxy.errors import InvalidError
from imgproxy.specs.oci import layout_index
from imgproxy.specs.oci.digest import Digest
from imgproxy.specs.oci.layout_index import EMPTY, IMAGE_NAME, REF_NAME, LayoutIndex

DIGEST = Digest("sha256", "0123456789abcdef" * 4)
OTHER = Digest("sha512", "0123456789abcdef" * 8)

Json = dict[str, Any]


def entry(digest: Digest = DIGEST, name: str | None = None, **more: object) -> Json:
    annotations = {"annotations": {REF_NAME: name, "a": "b"}} if name is not None else {}
    return {"mediaType": "x/y", "digest": str(digest), "size": 1, **annotations, **more}


def index(*entries: object, **more: object) -> LayoutIndex:
    return layout_index.parse(
        json.dumps({"schemaVersion": 2, "manifests": entries, **more}).encode(), "it"
    )


def decoded(found: LayoutIndex) -> Any:  # noqa: ANN401  (JSON)
    return json.loads(found.encode())


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"{", "not JSON"),
        (b"[]", "expected an object"),
        (b'{"manifests":{}}', "manifests: expected an array"),
        (b'{"manifests":[],"manifests":[]}', 'the key "manifests" occurs twice in one object'),
    ],
)
def test_what_is_no_index_is_refused(raw: bytes, reason: str) -> None:
    with pytest.raises(InvalidError, match=f"^parsing it: {reason}"):
        layout_index.parse(raw, "it")


@pytest.mark.parametrize("raw", [b"{}", b'{"manifests":null}', b'{"manifests":[]}'])
def test_an_index_may_have_no_entries(raw: bytes) -> None:
    assert layout_index.parse(raw, "it").entries == []


def test_an_empty_one_is_as_the_specification_has_it() -> None:
    assert decoded(EMPTY) == {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [],
    }


def test_a_new_name_comes_last_with_the_annotations_that_it_had() -> None:
    before = index(entry(name="a"), entry(), "odd", 1, foreign=[1.5, None])
    after = before.with_name("b", entry(OTHER, platform={"os": "linux"}))
    assert decoded(after) == {
        **decoded(before),
        "manifests": [
            *decoded(before)["manifests"],
            {**entry(OTHER, platform={"os": "linux"}), "annotations": {REF_NAME: "b"}},
        ],
    }
    assert (before.names, after.names) == (["a"], ["a", "b"])


def test_a_name_that_is_there_is_moved_and_stands_once() -> None:
    before = index(entry(name="a"), entry(name="b"), entry(OTHER, "b"), entry(name="c"))
    after = before.with_name("b", entry(OTHER, "x"))
    assert after.names == ["a", "b", "c"]
    assert after.named("b") == [entry(OTHER, "b")]


def test_a_name_or_an_image_is_removed() -> None:
    whole = index(entry(name="a"), entry(name="b"), entry(OTHER, "a"), entry(), "odd")
    assert whole.without_name("a").entries == [entry(name="b"), entry(), "odd"]
    assert whole.without_digest(DIGEST).entries == [entry(OTHER, "a"), "odd"]
    assert whole.without_name("x").entries == whole.without_digest(DIGEST._replace()).entries or (
        len(whole.without_name("x").entries) == len(whole.entries)
    )


@pytest.mark.parametrize(
    "odd", ["x", None, {}, {"annotations": []}, {"annotations": {REF_NAME: 1}}, entry()]
)
def test_entries_without_a_name_are_kept(odd: object) -> None:
    found = index(odd, entry(name="a"))
    assert found.names == ["a"]
    assert found.with_name("a", entry(OTHER)).entries[0] == odd
    assert found.without_name("a").entries == [odd]


_names = some.sampled_from(["a", "b", "c"])
_digests = some.sampled_from([DIGEST, OTHER])
_entries = some.one_of(
    some.builds(entry, _digests, some.one_of(some.none(), _names)),
    some.sampled_from(["odd", 1, None, {"annotations": {REF_NAME: 2}}]),
)
_changes = some.one_of(
    some.tuples(some.just("with"), _names, _digests),
    some.tuples(some.just("without name"), _names, _digests),
    some.tuples(some.just("without digest"), _names, _digests),
)


@given(some.lists(_entries, max_size=6), some.lists(_changes, max_size=8))
def test_changes_touch_what_they_name_and_nothing_else(
    entries: list[object], changes: list[tuple[str, str, Digest]]
) -> None:
    found = index(*entries)
    for change, name, digest in changes:
        before = found
        if change == "with":
            found = before.with_name(name, entry(digest))
            assert [each["digest"] for each in found.named(name)] == [str(digest)]
        elif change == "without name":
            found = before.without_name(name)
            assert found.named(name) == []
        else:
            found = before.without_digest(digest)
            assert not [
                e for e in found.entries if isinstance(e, dict) and e.get("digest") == str(digest)
            ]
        others = [each for each in before.entries if each in found.entries]
        kept = [each for each in found.entries if each in before.entries]
        assert others == kept
        assert layout_index.parse(found.encode(), "it").entries == found.entries


def test_entries_are_found_by_their_digest_and_have_a_whole_name_twice() -> None:
    named = EMPTY.with_name("quay.io/acme/os:1", entry())
    assert named.named("quay.io/acme/os:1")[0]["annotations"] == {
        REF_NAME: "quay.io/acme/os:1",
        IMAGE_NAME: "quay.io/acme/os:1",
    }
    both = index(entry(), entry(OTHER), 1, entry(name="x"))
    assert both.with_digest(DIGEST) == [entry(), entry(name="x")]
    assert both.with_digest(Digest("sha256", "0" * 64)) == []
