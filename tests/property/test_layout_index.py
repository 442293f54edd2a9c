"""Changes of a layout's index: what they do not name stays as it is, where it is."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as some

from imgproxy.specs.oci import digest as digests
from imgproxy.specs.oci import layout_index
from imgproxy.specs.oci.layout_index import IMAGE_NAME, REF_NAME

DIGESTS = [digests.compute(bytes([n])) for n in range(3)]
NAMES = ["a", "b", "quay.io/acme/os:1"]

# A lone surrogate is refused by the parser.
_texts = some.text(some.characters(exclude_categories=["Cs"]), max_size=5)
_scalars = some.none() | some.booleans() | some.integers(-(2**53), 2**53) | _texts
_json = some.recursive(
    _scalars,
    lambda inner: some.lists(inner, max_size=3) | some.dictionaries(_texts, inner, max_size=3),
    max_leaves=6,
)
_members = some.dictionaries(_texts.filter(lambda key: key != "manifests"), _json, max_size=3)


def _entry(digest: str, name: str | None, members: dict[str, Any]) -> dict[str, Any]:
    known = {"mediaType": "x/y", "digest": digest, "size": 1}
    annotations = {**members, **({} if name is None else {REF_NAME: name})}
    return {**members, **known, "annotations": annotations}


_ours = some.builds(
    _entry,
    some.sampled_from([*map(str, DIGESTS)]),
    some.none() | some.sampled_from(NAMES),
    _members,
)
_documents = some.builds(
    lambda members, entries: {**members, "manifests": entries},
    _members,
    some.lists(_ours | _json, max_size=6),
)


def name_of(entry: Any) -> Any:  # noqa: ANN401  (JSON)
    annotations = entry.get("annotations") if isinstance(entry, dict) else None
    return annotations.get(REF_NAME) if isinstance(annotations, dict) else None


def digest_of(entry: Any) -> Any:  # noqa: ANN401  (JSON)
    return entry.get("digest") if isinstance(entry, dict) else None


def parsed(document: Any) -> layout_index.LayoutIndex:  # noqa: ANN401  (JSON)
    return layout_index.parse(json.dumps(document).encode(), "it")


@given(_documents)
def test_what_is_not_changed_is_written_as_it_was_read(document: dict[str, Any]) -> None:
    after = json.loads(parsed(document).encode())
    assert after == document
    assert [*after] == [*document]


@given(_documents, some.sampled_from(NAMES), _ours)
def test_a_name_stands_for_one_image_at_the_place_that_it_had(
    document: dict[str, Any], name: str, entry: dict[str, Any]
) -> None:
    after = json.loads(parsed(document).with_name(name, entry).encode())
    entries = document["manifests"]
    others = [each for each in entries if name_of(each) != name]
    places = [n for n, each in enumerate(entries) if name_of(each) == name]
    place = places[0] if places else len(others)
    new = after["manifests"].pop(place)
    assert after == {**document, "manifests": others}
    has_registry = name == NAMES[2]
    assert new.pop("annotations") == {
        **{key: value for key, value in entry.pop("annotations").items() if key != IMAGE_NAME},
        REF_NAME: name,
        **({IMAGE_NAME: name} if has_registry else {}),
    }
    assert new == entry


@given(_documents, some.sampled_from(NAMES), some.sampled_from(DIGESTS))
def test_a_removal_leaves_all_others(
    document: dict[str, Any], name: str, digest: digests.Digest
) -> None:
    entries = document["manifests"]
    after = json.loads(parsed(document).without_name(name).encode())
    assert after == {**document, "manifests": [e for e in entries if name_of(e) != name]}
    after = json.loads(parsed(document).without_digest(digest).encode())
    assert after == {**document, "manifests": [e for e in entries if digest_of(e) != str(digest)]}
