"""Docker archives: the generated manifest depends on the image's content alone."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from support.strategies import JSON, TEXT, attempt, damaged, descriptors, digests

from imgproxy.errors import Failure, InvalidError
from imgproxy.specs.oci import media_type as types
from imgproxy.specs.oci.digest import parse as parse_digest
from imgproxy.specs.oci.docker_archive import Item, make_manifest, parse, parse_diff_ids
from imgproxy.specs.oci.manifest import Descriptor, Manifest
from imgproxy.specs.oci.manifest import parse as parse_manifest

Json = dict[str, Any]

DESCRIPTORS = st.builds(
    lambda suffix, digest, size, urls: Descriptor(
        types.OCI_LAYER + suffix, parse_digest(digest), size, urls=tuple(urls)
    ),
    st.sampled_from(["", "+gzip", "+zstd"]),
    digests(),
    st.integers(0, 2**63 - 1),
    st.lists(TEXT, max_size=2),
)
IMAGES = st.tuples(DESCRIPTORS, st.lists(DESCRIPTORS, max_size=5))


@given(IMAGES)
def test_the_made_manifest_says_what_the_image_is(
    image: tuple[Descriptor, list[Descriptor]],
) -> None:
    config, layers = image
    config = config._replace(media_type=types.OCI_CONFIG)
    parsed = parse_manifest(make_manifest(config, layers), types.OCI_MANIFEST, "it")
    assert parsed == Manifest(types.OCI_MANIFEST, config, tuple(layers), None)


@given(IMAGES)
def test_the_made_manifest_has_one_form(image: tuple[Descriptor, list[Descriptor]]) -> None:
    raw = make_manifest(*image)
    again = json.loads(raw)
    assert json.dumps(again, ensure_ascii=False, separators=(",", ":")).encode() == raw
    assert list(again) == ["schemaVersion", "mediaType", "config", "layers"]
    for each in (again["config"], *again["layers"]):
        assert list(each) == ["mediaType", "digest", "size", "urls"][: len(each)]


@given(IMAGES, DESCRIPTORS)
def test_another_image_has_another_manifest(
    image: tuple[Descriptor, list[Descriptor]], other: Descriptor
) -> None:
    config, layers = image
    others = [make_manifest(config, layers), make_manifest(config, [*layers, other])]
    if other != config:
        others.append(make_manifest(other, layers))
    assert len(set(others)) == len(others)


ITEMS = st.lists(
    st.fixed_dictionaries(
        {"Config": TEXT, "Layers": st.lists(TEXT, max_size=3)},
        optional={
            "RepoTags": st.none() | st.lists(TEXT, max_size=3),
            "Parent": TEXT,
            "LayerSources": st.dictionaries(digests(), descriptors(types.DOCKER_LAYER), max_size=2),
            "x": JSON,
        },
    ),
    max_size=3,
)


def encoded(document: object) -> bytes:
    return json.dumps(document, ensure_ascii=False).encode()


@given(ITEMS)
def test_a_whole_document_is_read_whole(items: list[Json]) -> None:
    found = parse(encoded(items), "it")
    assert [(each.config, list(each.layers), list(each.repo_tags)) for each in found] == [
        (each["Config"], each["Layers"], each.get("RepoTags") or []) for each in items
    ]
    assert [set(each.sources) for each in found] == [
        set(each.get("LayerSources", {})) for each in items
    ]


@given(damaged(st.fixed_dictionaries({"images": ITEMS})) | JSON | ITEMS)
def test_a_damaged_document_is_refused_or_read(document: object) -> None:
    if isinstance(document, dict) and "images" in document:
        document = document["images"]
    raw = encoded(document)
    found = attempt(parse, raw, "it", expected=Failure)
    if isinstance(found, list):
        assert all(isinstance(each, Item) for each in found)
    else:
        assert type(found) is InvalidError
        assert not {"\n", "\r", "\0", "\x1b"} & set(found.message)


@given(st.binary() | JSON.map(encoded))
def test_any_config_names_layers_or_is_refused(raw: bytes) -> None:
    for read in (parse, parse_diff_ids):
        found: object = attempt(read, raw, "it", expected=Failure)
        assert found is None or type(found) in (InvalidError, list, tuple)


@given(st.lists(digests(), max_size=4), st.dictionaries(TEXT, JSON, max_size=3))
def test_a_config_names_its_layers_in_their_order(layers: list[str], more: Json) -> None:
    more = {key: value for key, value in more.items() if key.casefold() != "rootfs"}
    config = {**more, "rootfs": {"type": "layers", "diff_ids": layers}}
    found = parse_diff_ids(encoded(config), "it")
    assert found is not None
    assert list(map(str, found)) == layers
