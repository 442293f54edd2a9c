"""Docker archives: their manifest.json, and the manifest that is generated from it."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest

from imgproxy.errors import InvalidError
from imgproxy.specs.oci import media_type as types
from imgproxy.specs.oci.choices import Choice
from imgproxy.specs.oci.digest import Digest
from imgproxy.specs.oci.docker_archive import (
    Item,
    foreign_type,
    layer_type,
    make_index,
    make_manifest,
    parse,
    parse_diff_ids,
)
from imgproxy.specs.oci.manifest import Descriptor, Manifest, parse_index
from imgproxy.specs.oci.manifest import parse as parse_manifest
from imgproxy.specs.oci.platform import Platform

HEX = "0123456789abcdef" * 4
SHA256 = f"sha256:{HEX}"
DIGEST = Digest("sha256", HEX)

Json = dict[str, Any]

ITEM: Json = {"Config": "c.json", "RepoTags": ["os:1"], "Layers": ["a/layer.tar", "b.tar"]}


def read(*items: object) -> list[Item]:
    return parse(json.dumps(items).encode(), "it")


def item(**fields: object) -> Item:
    (read_item,) = read({**ITEM, **fields})
    return read_item


def refusal(raw: object) -> str:
    with pytest.raises(InvalidError) as caught:
        parse(raw if isinstance(raw, bytes) else json.dumps(raw).encode(), "it")
    assert (caught.value.status, caught.value.code) == (422, "MANIFEST_INVALID")
    assert caught.value.message.startswith("parsing it: ")
    return caught.value.message.removeprefix("parsing it: ")


# --- manifest.json ------------------------------------------------------------------------------


def test_an_image_is_a_config_layers_and_what_it_is_called() -> None:
    assert item() == Item("c.json", ("os:1",), ("a/layer.tar", "b.tar"), {})


def test_images_are_read_in_their_order() -> None:
    items = [{**ITEM, "Config": name} for name in "cab"]
    assert [each.config for each in read(*items)] == ["c", "a", "b"]
    assert read() == []


@pytest.mark.parametrize("nothing", [None, []])
@pytest.mark.parametrize("key", ["RepoTags", "Layers"])
def test_an_image_may_have_no_names_and_no_layers(key: str, nothing: object) -> None:
    field = {"RepoTags": "repo_tags", "Layers": "layers"}[key]
    assert item(**{key: nothing}) == item()._replace(**{field: ()})
    without = {name: value for name, value in ITEM.items() if name != key}
    assert read(without) == [item()._replace(**{field: ()})]


def test_a_layer_may_stand_twice() -> None:
    assert item(Layers=["a", "b", "a"]).layers == ("a", "b", "a")


def test_layers_may_have_sources_by_their_diff_id() -> None:
    source = {"mediaType": types.DOCKER_FOREIGN, "digest": SHA256, "size": 5, "urls": ["http://a"]}
    assert item(LayerSources={SHA256: source}).sources == {
        SHA256: Descriptor(types.DOCKER_FOREIGN, DIGEST, 5, urls=("http://a",))
    }
    assert item(LayerSources=None).sources == item(LayerSources={}).sources == {}


@pytest.mark.parametrize("spell", ["lower", "upper", "swapcase"])
def test_a_key_that_stands_once_may_be_in_any_case(spell: str) -> None:
    written = {getattr(key, spell)(): value for key, value in {**ITEM, "LayerSources": {}}.items()}
    assert read(written) == [item(LayerSources={})]


@pytest.mark.parametrize("more", [{"Parent": "sha256:x"}, {"unheard-of": 1}, {"": None}])
def test_what_else_is_said_of_an_image_does_not_matter(more: Json) -> None:
    assert item(**more) == item()


@pytest.mark.parametrize(
    ("raw", "complaint"),
    [
        (b"", "not JSON: "),
        (b"\xef\xbb\xbf[]", "not JSON: "),
        (b"\xff", "not UTF-8 at byte 0"),
        (b'[{"Layers":[],"Layers":[]}]', 'the key "Layers" occurs twice in one object'),
        (b"[NaN]", "NaN is not JSON"),
        (b"[" * 10_000 + b"]" * 10_000, "nested deeper than 64"),
        ({}, "images: expected an array, got an object"),
        ("x", 'images: expected an array, got "x"'),
        ([5], "images[0]: expected an object, got 5"),
        ([ITEM, None], "images[1]: expected an object, got null"),
        ([{}], "images[0].Config: missing (expected a string)"),
        ([{**ITEM, "Config": None}], "images[0].Config: missing (expected a string)"),
        ([{**ITEM, "Config": 5}], "images[0].Config: expected a string, got 5"),
        ([{**ITEM, "RepoTags": "os"}], 'images[0].RepoTags: expected an array, got "os"'),
        ([{**ITEM, "RepoTags": [None]}], "images[0].RepoTags[0]: expected a string, got null"),
        ([{**ITEM, "Layers": ["a", 5]}], "images[0].Layers[1]: expected a string, got 5"),
        ([{**ITEM, "LayerSources": []}], "images[0].LayerSources: expected an object, got an"),
        (
            [{**ITEM, "LayerSources": {"x": None}}],
            "images[0].LayerSources.x: missing (expected an object)",
        ),
        (
            [{**ITEM, "LayerSources": {"x": {"digest": SHA256}}}],
            "images[0].LayerSources.x.size: missing (expected an integer)",
        ),
        # readers that take both for one key do not agree on which of them counts
        *(
            (
                [{**ITEM, "LayerSources": {}, key: value}],
                f"images[0].{known}: ambiguous, there in two spellings",
            )
            for known, key, value in (
                ("Layers", "layers", []),
                ("Config", "CONFIG", "d"),
                ("RepoTags", "repotags", []),
                ("RepoTags", "REPOTAGS", None),
                ("LayerSources", "layerSources", {"x": {}}),
                ("Layers", "layer\u017f", []),
            )
        ),
        (
            [{**ITEM, "LayerSources": {"x": {"Digest": SHA256}}}],
            "images[0].LayerSources.x.Digest: ambiguous, keys",
        ),
    ],
)
def test_what_is_unclear_is_refused(raw: object, complaint: str) -> None:
    assert refusal(raw).startswith(complaint)


# --- configs ------------------------------------------------------------------------------------


def diff_ids(config: object) -> tuple[Digest, ...] | None:
    return parse_diff_ids(json.dumps(config).encode(), "it")


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"rootfs": {"type": "layers", "diff_ids": [SHA256, SHA256]}}, (DIGEST, DIGEST)),
        ({"rootfs": {"diff_ids": [f"sha512:{HEX}{HEX}"]}}, (Digest("sha512", HEX * 2),)),
        ({"rootfs": {"diff_ids": ["unheard-of:x"]}}, (Digest("unheard-of", "x"),)),
        ({"rootfs": {"diff_ids": []}}, ()),
        ({"rootfs": {"diff_ids": None}}, ()),
        ({"rootfs": {}}, ()),
        ({"rootfs": None}, None),
        ({}, None),
        ({"Config": {}, "architecture": 5, "mediaType": []}, None),
    ],
    ids=str,
)
def test_a_config_names_the_layers_or_is_no_image_s(
    config: Json, expected: tuple[Digest, ...] | None
) -> None:
    assert diff_ids(config) == expected


@pytest.mark.parametrize(
    "others",
    [
        b'"author":"J\xf6rg"',
        b'"comment":"\\ud800"',
        b'"config":{"Labels":{"a":"1","a":"2"}}',
        b'"os":5,"architecture":[]',
    ],
)
@pytest.mark.parametrize("key", [b"rootfs", b"RootFS"])
def test_what_is_no_layer_s_matters_to_those_who_run_the_image(others: bytes, key: bytes) -> None:
    raw = b'{%s,"%s":{"type":"layers","diff_ids":["%s"]}}' % (others, key, SHA256.encode())
    assert parse_diff_ids(raw, "it") == (DIGEST,)


@pytest.mark.parametrize(
    ("raw", "complaint"),
    [
        (b"", "not JSON: "),
        (b"\xff", "not JSON: "),
        (b"[]", "the document: expected an object, got an array"),
        (b'{"rootfs":1}', "rootfs: expected an object, got 1"),
        (b'{"rootfs":{},"RootFS":{}}', "rootfs: ambiguous, there in two spellings"),
        (b'{"rootfs":{},"rootfs":{}}', "rootfs: expected an object, got two values"),
        (
            b'{"rootfs":{"diff_ids":[],"DIFF_IDS":[]}}',
            "rootfs.diff_ids: ambiguous, there in two spellings",
        ),
        (
            b'{"rootfs":{"diff_ids":[],"diff_ids":[]}}',
            "rootfs.diff_ids: expected an array, got two values",
        ),
        (b'{"rootfs":{"diff_ids":["sha256:\xff"]}}', '"sha256:\ufffd"'),
        (b'{"rootfs":{"diff_ids":{}}}', "rootfs.diff_ids: expected an array, got an object"),
        (b'{"rootfs":{"diff_ids":[5]}}', "rootfs.diff_ids[0]: expected a string, got 5"),
        (b'{"rootfs":{"diff_ids":["x"]}}', '"x" is not a digest (algorithm:encoded)'),
        (b'{"rootfs":{"diff_ids":["sha256:AB"]}}', '"sha256:AB": sha256 has 64 lower-case'),
    ],
)
def test_a_config_that_is_unclear_is_refused(raw: bytes, complaint: str) -> None:
    with pytest.raises(InvalidError) as caught:
        parse_diff_ids(raw, "it")
    assert (caught.value.status, caught.value.code) == (422, "MANIFEST_INVALID")
    assert caught.value.message.startswith(f"parsing it: {complaint}")


# --- media types --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("head", "suffix"),
    [
        (b"\x1f\x8b\x08\0\0\0", "+gzip"),
        (b"\x28\xb5\x2f\xfd\0\0", "+zstd"),
        (b"BZh91A", "+bzip2"),
        (b"\xfd7zXZ\0", "+xz"),
        (b"etc/pa", ""),
        (bytes(16), ""),
        (b"", ""),
        (b"\x1f\x8a", ""),
        (b"BZ0", ""),
    ],
)
def test_a_layer_is_labelled_with_what_is_true_of_it(head: bytes, suffix: str) -> None:
    assert layer_type(head) == f"application/vnd.oci.image.layer.v1.tar{suffix}"


@pytest.mark.parametrize(
    ("media_type", "suffix"),
    [
        ("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", "+gzip"),
        ("application/vnd.docker.image.rootfs.foreign.diff.tar", ""),
        ("application/vnd.docker.image.rootfs.diff.tar.zstd", "+zstd"),
        ("application/vnd.oci.image.layer.nondistributable.v1.tar+gzip", "+gzip"),
        ("application/vnd.oci.image.layer.v1.tar", ""),
        ("", ""),
    ],
)
def test_a_layer_that_is_elsewhere_is_not_distributable(media_type: str, suffix: str) -> None:
    wanted = f"application/vnd.oci.image.layer.nondistributable.v1.tar{suffix}"
    assert foreign_type(media_type) == wanted


# --- the manifest that is made ------------------------------------------------------------------

CONFIG = Descriptor(types.OCI_CONFIG, DIGEST, 1234)
LAYER = Descriptor(types.OCI_LAYER, Digest("sha256", HEX[::-1]), 56)
FOREIGN = Descriptor(
    f"{types.OCI_NONDISTRIBUTABLE}+gzip",
    Digest("sha512", HEX * 2),
    2**40,
    urls=("https://a.test/ä?b=c&d", 'http://"quoted"/'),
)

SUFFIXES = ("", "+gzip", "+zstd", "+bzip2", "+xz")

# Parents store the digests of these manifests; a change here is a change of every image that was
# ever served from a Docker archive. None of them may be adapted to the program.
GOLDEN = {
    "no layers": (
        (CONFIG, ()),
        "sha256:0d17d32c7aa36a09ba00f26368d2c47ae977b12432e6a5fbc6899ac44d357ee6",
    ),
    "one": (
        (CONFIG, (LAYER,)),
        "sha256:9eb708ec6fa4dae9e5c0a79bae61baf365e31f2a2053c8b60d63aff3009ff778",
    ),
    "the same twice": (
        (CONFIG, (LAYER, LAYER)),
        "sha256:fb20305a945558e87c8e3da43488a97ac4c24104d3bed5acc07eb4b6421b6841",
    ),
    "compressed": (
        (CONFIG, tuple(LAYER._replace(media_type=types.OCI_LAYER + each) for each in SUFFIXES)),
        "sha256:1c327ed35b1fb289d1eeee1ee3488ad03090b306b5fcccd5c571f0880495b48b",
    ),
    "elsewhere": (
        (CONFIG, (LAYER, FOREIGN)),
        "sha256:bf132449656bcce30849f79d462d44e87f54c8cdfe04021fea634d0708bf545c",
    ),
    "five hundred": (
        (CONFIG, tuple(LAYER._replace(size=size) for size in range(500))),
        "sha256:47e9f98bc2f0ef900eb755bbe4161f2f9a789e83f3d40c513236d4d307f8bc68",
    ),
}


@pytest.mark.parametrize("case", GOLDEN)
def test_the_form_of_the_manifest_is_frozen(case: str) -> None:
    (config, layers), wanted = GOLDEN[case]
    assert f"sha256:{hashlib.sha256(make_manifest(config, layers)).hexdigest()}" == wanted


def test_the_manifest_is_compact_and_in_the_order_of_the_specification() -> None:
    assert make_manifest(CONFIG, [LAYER, FOREIGN]).decode() == (
        '{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json",'
        '"config":{"mediaType":"application/vnd.oci.image.config.v1+json",'
        f'"digest":"{SHA256}","size":1234}},'
        '"layers":[{"mediaType":"application/vnd.oci.image.layer.v1.tar",'
        f'"digest":"sha256:{HEX[::-1]}","size":56}},'
        '{"mediaType":"application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",'
        f'"digest":"sha512:{HEX * 2}","size":1099511627776,'
        '"urls":["https://a.test/ä?b=c&d","http://\\"quoted\\"/"]}]}'
    )


def test_what_else_a_descriptor_has_is_left_out() -> None:
    """The annotations describe the source in the registry, not the layer."""
    more = LAYER._replace(data=b"x", annotations=(("a", "b"),), artifact_type="a/b")
    assert make_manifest(CONFIG, [more]) == make_manifest(CONFIG, [LAYER])


@pytest.mark.parametrize("case", GOLDEN)
def test_the_manifest_is_one(case: str) -> None:
    (config, layers), _ = GOLDEN[case]
    raw = make_manifest(config, layers)
    assert parse_manifest(raw, types.OCI_MANIFEST, "it") == Manifest(
        types.OCI_MANIFEST, config, layers, None
    )


# --- the index of an archive of several images -------------------------------------------------


def test_the_index_is_compact_and_names_platforms_whole() -> None:
    platforms = [
        Platform("linux", "amd64"),
        Platform("linux", "arm", "v7", ("nydus.remoteimage.v1",)),
        None,
    ]
    raw = make_index([Choice(0, ["os:1"], DIGEST, each, size=5) for each in platforms])
    entry = f'{{"mediaType":"{types.OCI_MANIFEST}","digest":"{SHA256}","size":5,"platform":'
    assert raw.decode() == (
        f'{{"schemaVersion":2,"mediaType":"{types.OCI_INDEX}","manifests":['
        f'{entry}{{"architecture":"amd64","os":"linux"}}}},'
        f'{entry}{{"architecture":"arm","os":"linux",'
        '"os.features":["nydus.remoteimage.v1"],"variant":"v7"}}]}'
    )
    assert [each.platform for each in parse_index(raw, "it").manifests] == platforms[:2]
