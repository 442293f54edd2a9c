"""Manifests and indexes: their parsing, and the refusal of ambiguous documents."""

from __future__ import annotations

import json
from typing import Any

import pytest

from imgproxy.errors import InvalidError, UnsupportedFormatError
from imgproxy.parsing.typed_fields import FieldError, Fields
from imgproxy.specs.oci import media_type as types
from imgproxy.specs.oci.digest import Digest
from imgproxy.specs.oci.manifest import (
    Descriptor,
    Index,
    Manifest,
    parse,
    parse_created,
    parse_descriptor,
    parse_index,
    parse_platform,
    refuse_lookalikes,
)
from imgproxy.specs.oci.platform import Platform

HEX = "0123456789abcdef" * 4
DIGEST = Digest("sha256", HEX)

Json = dict[str, Any]

BLOB: Json = {"digest": f"sha256:{HEX}", "size": 12}
CONFIG: Json = {**BLOB, "mediaType": types.OCI_CONFIG}
LAYER: Json = {**BLOB, "mediaType": types.OCI_LAYER}
ENTRY: Json = {**BLOB, "mediaType": types.OCI_MANIFEST}
MANIFEST: Json = {
    "schemaVersion": 2,
    "mediaType": types.OCI_MANIFEST,
    "config": CONFIG,
    "layers": [LAYER],
}
INDEX: Json = {"schemaVersion": 2, "mediaType": types.OCI_INDEX, "manifests": [ENTRY]}


def without(document: Json, *keys: str) -> Json:
    return {key: value for key, value in document.items() if key not in keys}


def read(document: object, claimed: str = "") -> Manifest | Index:
    return parse(json.dumps(document).encode(), claimed, "it")


def entry(**fields: Any) -> Descriptor:  # noqa: ANN401  (JSON is any)
    """Return the only entry of an index after parsing."""
    document = read({**INDEX, "manifests": [{**ENTRY, **fields}]})
    assert isinstance(document, Index)
    return document.manifests[0]


def refusal(document: object, claimed: str = "") -> str:
    with pytest.raises(InvalidError) as caught:
        read(document, claimed)
    assert (caught.value.status, caught.value.code) == (422, "MANIFEST_INVALID")
    assert caught.value.message.startswith("parsing it: ")
    return caught.value.message.removeprefix("parsing it: ")


# --- what a document holds --------------------------------------------------------------------


def test_a_manifest_has_a_config_and_layers_in_their_order() -> None:
    layers = [{**LAYER, "size": size} for size in (3, 1, 2)]
    assert read({**MANIFEST, "layers": layers}) == Manifest(
        types.OCI_MANIFEST,
        Descriptor(types.OCI_CONFIG, DIGEST, 12),
        tuple(Descriptor(types.OCI_LAYER, DIGEST, size) for size in (3, 1, 2)),
        None,
    )


def test_an_index_has_entries_in_their_order() -> None:
    entries = [{**ENTRY, "size": size} for size in (3, 1, 2)]
    assert read({**INDEX, "manifests": entries}) == Index(
        types.OCI_INDEX,
        tuple(Descriptor(types.OCI_MANIFEST, DIGEST, size) for size in (3, 1, 2)),
        None,
    )


def of_config(media_type: str | None) -> Json:
    return {"config": {**MANIFEST["config"], "mediaType": media_type}}


@pytest.mark.parametrize("document", [MANIFEST, INDEX], ids=["manifest", "index"])
def test_a_subject_is_read(document: Json) -> None:
    assert read({**document, "subject": ENTRY}).subject == entry()


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, ""),
        ({"artifactType": None}, ""),
        ({"artifactType": ""}, ""),
        ({"artifactType": "application/vnd.example+json"}, "application/vnd.example+json"),
        # go-containerregistry states it for images
        ({"artifactType": types.OCI_CONFIG}, ""),
        # Helm and others say it by the type of the config alone
        (
            of_config("application/vnd.cncf.helm.config.v1+json"),
            "application/vnd.cncf.helm.config.v1+json",
        ),
        (of_config(types.EMPTY), ""),
        (of_config(types.DOCKER_CONFIG), ""),
        (of_config(None), ""),
        ({**of_config(types.EMPTY), "artifactType": "application/x.y"}, "application/x.y"),
        (
            {**of_config("application/x.config"), "artifactType": "application/x.y"},
            "application/x.y",
        ),
        ({**of_config("application/x.config"), "artifactType": types.OCI_CONFIG}, ""),
    ],
    ids=str,
)
def test_an_artifact_says_its_type(fields: Json, expected: str) -> None:
    document = read({**MANIFEST, **fields})
    assert isinstance(document, Manifest)
    assert document.artifact_type == expected


@pytest.mark.parametrize("nothing", [{"layers": None}, {"layers": []}, {}], ids=str)
def test_a_manifest_may_have_no_layers(nothing: Json) -> None:
    document = read({**without(MANIFEST, "layers"), **nothing})
    assert isinstance(document, Manifest)
    assert document.layers == ()


@pytest.mark.parametrize("nothing", [{"manifests": None}, {"manifests": []}, {}], ids=str)
def test_an_index_may_have_no_entries(nothing: Json) -> None:
    document = read({**without(INDEX, "manifests"), **nothing})
    assert isinstance(document, Index)
    assert document.manifests == ()


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, {}),
        ({"mediaType": None}, {"media_type": ""}),
        ({"mediaType": "text/plain"}, {"media_type": "text/plain"}),
        ({"size": 0}, {"size": 0}),
        ({"size": 2**63 - 1}, {"size": 2**63 - 1}),
        ({"digest": "unheard-of:x"}, {"digest": Digest("unheard-of", "x")}),
        ({"data": "YWI="}, {"data": b"ab"}),
        ({"data": ""}, {"data": b""}),
        ({"urls": ["http://a", "b"]}, {"urls": ("http://a", "b")}),
        ({"artifactType": "a/b", "unheard-of": {}}, {"artifact_type": "a/b"}),
        ({"artifactType": None, "annotations": {}}, {}),
        ({"annotations": {"x": "v1", "y": ""}}, {"annotations": (("x", "v1"), ("y", ""))}),
        ({"platform": None}, {}),
        ({"platform": {}}, {}),
        ({"platform": {"os": "", "architecture": "", "variant": "v8"}}, {}),
        (
            {"platform": {"os": "linux", "architecture": "arm", "variant": "v7"}},
            {"platform": Platform("linux", "arm", "v7")},
        ),
        (
            {"platform": {"os": "linux", "architecture": "amd64", "os.version": "1", "x": 1}},
            {"platform": Platform("linux", "amd64")},
        ),
        ({"platform": {"architecture": "amd64"}}, {"platform": Platform("", "amd64")}),
        (
            {"platform": {"os": "linux", "architecture": "arm64", "os.features": ["nydus"]}},
            {"platform": Platform("linux", "arm64", "", ("nydus",))},
        ),
        (
            {"platform": {"os": "linux", "architecture": "unknown"}},
            {"platform": Platform("linux", "unknown")},
        ),
    ],
    ids=str,
)
def test_a_descriptor_says_what_it_names(fields: Json, expected: Json) -> None:
    plain = Descriptor(types.OCI_MANIFEST, DIGEST, 12)
    assert entry(**fields) == plain._replace(**expected)


def test_a_descriptor_has_the_names_of_an_image() -> None:
    annotations = {
        "io.containerd.image.name": "a/b:1",
        "org.opencontainers.image.ref.name": "1",
    }
    described = entry(annotations=annotations)
    assert (described.image_name, described.ref_name) == ("a/b:1", "1")
    assert (entry().image_name, entry().ref_name) == (None, None)


COSIGN = "dev.cosignproject.cosign"


@pytest.mark.parametrize(
    ("fields", "is_attestation", "is_companion"),
    [
        ({}, False, False),
        ({"platform": {"os": "linux", "architecture": "unknown"}}, False, False),
        ({"platform": {"os": "unknown", "architecture": "unknown"}}, True, True),
        ({"annotations": {"vnd.docker.reference.type": "attestation-manifest"}}, True, True),
        ({"annotations": {"vnd.docker.reference.digest": str(DIGEST)}}, False, False),
        ({"artifactType": "application/spdx+json"}, False, True),
        ({"artifactType": "no media type"}, False, True),
        ({"artifactType": ""}, False, False),
        # as go-containerregistry writes it
        ({"artifactType": types.OCI_CONFIG}, False, False),
        ({"artifactType": types.DOCKER_CONFIG}, False, False),
        ({"artifactType": types.EMPTY}, False, True),
        *(
            ({"annotations": {"kind": f"{COSIGN}/{kind}"}}, False, is_companion)
            for kind, is_companion in (
                ("image", False),
                ("imageIndex", False),
                ("sigs", True),
                ("atts", True),
                ("sboms", True),
            )
        ),
        ({"annotations": {"kind": "another"}}, False, False),
    ],
    ids=str,
)
def test_a_descriptor_says_whether_it_is_an_image(
    fields: Json,
    is_attestation: bool,  # noqa: FBT001  (a parameter)
    is_companion: bool,  # noqa: FBT001  (a parameter)
) -> None:
    described = entry(**fields)
    assert (described.is_attestation, described.is_companion) == (is_attestation, is_companion)


@pytest.mark.parametrize(
    ("document", "is_companion"),
    [
        (MANIFEST, False),
        (INDEX, False),
        ({**MANIFEST, "artifactType": types.OCI_CONFIG}, False),
        ({**MANIFEST, "artifactType": "application/x.y"}, True),
        ({**MANIFEST, **of_config("application/x.y")}, True),
        ({**MANIFEST, **of_config(types.EMPTY)}, True),
        ({**MANIFEST, "subject": ENTRY}, True),
        ({**INDEX, "subject": ENTRY}, True),
    ],
)
def test_a_document_says_whether_it_is_an_image(
    document: Json,
    is_companion: bool,  # noqa: FBT001  (a parameter)
) -> None:
    assert read(document).is_companion == is_companion


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"digest": None}, ".digest: missing (expected a string)"),
        ({"digest": 5}, ".digest: expected a string, got 5"),
        ({"digest": "latest"}, '.digest: "latest" is not a digest (algorithm:encoded)'),
        ({"digest": "sha256:AB"}, '.digest: "sha256:AB": sha256 has 64 lower-case hex digits'),
        ({"size": None}, ".size: missing (expected an integer)"),
        ({"size": "12"}, '.size: expected an integer, got "12"'),
        ({"size": 12.0}, ".size: expected an integer, got 12.0"),
        ({"size": -1}, ".size: expected a size, got -1"),
        ({"size": 2**63}, ".size: expected a size, got 9223372036854775808"),
        ({"mediaType": 5}, ".mediaType: expected a string, got 5"),
        ({"mediaType": "text"}, '.mediaType: "text" is not a media type'),
        ({"mediaType": "a/b\r\nX: y"}, '.mediaType: "a/b\\r\\nX: y" is not a media type'),
        ({"data": 5}, ".data: expected a string, got 5"),
        ({"data": "YWI"}, ".data: not base64"),
        ({"data": "YW I="}, ".data: not base64"),
        ({"data": "ä"}, ".data: not base64"),
        ({"urls": "http://a"}, '.urls: expected an array, got "http://a"'),
        ({"urls": [5]}, ".urls[0]: expected a string, got 5"),
        ({"annotations": []}, ".annotations: expected an object, got an array"),
        ({"annotations": {"a": 1}}, ".annotations.a: expected a string, got 1"),
        ({"platform": "linux"}, '.platform: expected an object, got "linux"'),
        ({"platform": {"os": 1}}, ".platform.os: expected a string, got 1"),
        ({"platform": {"architecture": []}}, ".platform.architecture: expected a string, got an"),
        # a case-insensitive reader would take these for the known keys
        ({"Digest": "sha256:x"}, ".Digest: ambiguous, keys are case-sensitive"),
        ({"SIZE": 13}, ".SIZE: ambiguous, keys are case-sensitive"),
        ({"url\u017f": []}, ".url\u017f: ambiguous, keys are case-sensitive"),
        ({"platform": {"OS": "linux"}}, ".platform.OS: ambiguous, keys are case-sensitive"),
    ],
)
@pytest.mark.parametrize(
    ("path", "document"),
    [
        ("manifests[1]", lambda descriptor: {**INDEX, "manifests": [ENTRY, descriptor]}),
        ("layers[0]", lambda descriptor: {**MANIFEST, "layers": [descriptor]}),
        ("config", lambda descriptor: {**MANIFEST, "config": descriptor}),
        ("subject", lambda descriptor: {**MANIFEST, "subject": descriptor}),
    ],
    ids=["entry", "layer", "config", "subject"],
)
def test_a_malformed_descriptor_is_refused_wherever_it_stands(
    path: str,
    document: Any,  # noqa: ANN401  (a function of the table)
    fields: Json,
    complaint: str,
) -> None:
    assert refusal(document({**ENTRY, **fields})).startswith(path + complaint)


# --- what a document is -----------------------------------------------------------------------

DOCKER_CONFIG: Json = {**BLOB, "mediaType": types.DOCKER_CONFIG}


@pytest.mark.parametrize(
    ("document", "claimed", "expected"),
    [
        pytest.param(MANIFEST, "", types.OCI_MANIFEST, id="says-manifest"),
        pytest.param(INDEX, "", types.OCI_INDEX, id="says-index"),
        pytest.param(
            {**MANIFEST, "mediaType": types.DOCKER_MANIFEST},
            "",
            types.DOCKER_MANIFEST,
            id="says-docker-manifest",
        ),
        pytest.param(
            {**INDEX, "mediaType": types.DOCKER_LIST}, "", types.DOCKER_LIST, id="says-docker-list"
        ),
        pytest.param(MANIFEST, types.OCI_MANIFEST, types.OCI_MANIFEST, id="both-agree"),
        pytest.param(
            MANIFEST, f"{types.OCI_MANIFEST}; charset=utf-8", types.OCI_MANIFEST, id="parameter"
        ),
        pytest.param(MANIFEST, types.OCI_MANIFEST.upper(), types.OCI_MANIFEST, id="case"),
        pytest.param(MANIFEST, "text/plain", types.OCI_MANIFEST, id="unknown-does-not-count"),
        pytest.param(
            without(MANIFEST, "mediaType"),
            types.DOCKER_MANIFEST,
            types.DOCKER_MANIFEST,
            id="only-claimed",
        ),
        pytest.param(
            {**MANIFEST, "mediaType": ""}, types.OCI_MANIFEST, types.OCI_MANIFEST, id="says-empty"
        ),
        pytest.param(
            without(MANIFEST, "mediaType", "schemaVersion"), "", types.OCI_MANIFEST, id="by-config"
        ),
        pytest.param({"config": DOCKER_CONFIG}, "", types.DOCKER_MANIFEST, id="by-docker-config"),
        pytest.param({"manifests": []}, "", types.OCI_INDEX, id="by-manifests"),
        pytest.param(
            {"config": CONFIG, "artifactType": "a/b"}, "", types.OCI_MANIFEST, id="artifact"
        ),
        pytest.param(
            {**MANIFEST, "schemaVersion": None}, "", types.OCI_MANIFEST, id="null-version"
        ),
        pytest.param({**MANIFEST, "unheard-of": 1}, "", types.OCI_MANIFEST, id="unknown-key"),
    ],
)
def test_a_document_is_what_it_says_or_came_as_or_looks_like(
    document: Json, claimed: str, expected: str
) -> None:
    parsed = read(document, claimed)
    assert parsed.media_type == expected
    assert isinstance(parsed, Index if expected in types.INDEXES else Manifest)


@pytest.mark.parametrize(
    ("document", "claimed", "complaint"),
    [
        pytest.param([], "", "the document: expected an object, got an array", id="array"),
        pytest.param({}, "", "mediaType: missing, and the keys match no known format", id="empty"),
        pytest.param(
            {"config": None, "manifests": None}, "", "mediaType: missing, and the", id="only-nulls"
        ),
        pytest.param({"layers": []}, "", "mediaType: missing, and the keys", id="only-layers"),
        pytest.param(
            MANIFEST,
            types.OCI_INDEX,
            f'mediaType: "{types.OCI_MANIFEST}", but the document was sent as {types.OCI_INDEX}',
            id="came-as-another",
        ),
        pytest.param(
            MANIFEST,
            types.DOCKER_SCHEMA1,
            f'mediaType: "{types.OCI_MANIFEST}", but the document was sent as',
            id="came-as-schema-1",
        ),
        pytest.param(
            without(INDEX, "mediaType"),
            types.OCI_MANIFEST,
            "manifests: ambiguous, does not belong into",
            id="index-that-came-as-a-manifest",
        ),
        pytest.param(
            without(MANIFEST, "mediaType"),
            types.OCI_INDEX,
            f"config, layers: ambiguous, does not belong into {types.OCI_INDEX}",
            id="manifest-that-came-as-an-index",
        ),
        pytest.param(
            {**MANIFEST, "manifests": []}, "", "manifests: ambiguous, does not", id="both"
        ),
        pytest.param(
            {**without(MANIFEST, "mediaType"), "manifests": []},
            "",
            "config, layers: ambiguous, does not belong into",
            id="both-without-a-type",
        ),
        pytest.param({**INDEX, "layers": []}, "", "layers: ambiguous", id="index-with-layers"),
        pytest.param({**MANIFEST, "history": []}, "", "history: ambiguous", id="history"),
        pytest.param({**MANIFEST, "fsLayers": []}, "", "fsLayers: ambiguous", id="fs-layers"),
        pytest.param(
            {**MANIFEST, "Layers": []},
            "",
            "Layers: ambiguous, keys are case-sensitive",
            id="layers-of-another-case",
        ),
        pytest.param(
            {**MANIFEST, "MEDIATYPE": "x"}, "", "MEDIATYPE: ambiguous, keys", id="type-by-case"
        ),
        pytest.param(
            {**MANIFEST, "FSLayers": []}, "", "FSLayers: ambiguous, keys", id="foreign-by-case"
        ),
        pytest.param(
            {**INDEX, "manifest\u017f": []}, "", "manifest\u017f: ambiguous, keys", id="long-s"
        ),
        pytest.param({**MANIFEST, "mediaType": 5}, "", "mediaType: expected a string", id="type"),
        pytest.param(
            {**MANIFEST, "schemaVersion": 3}, "", "schemaVersion: expected 2, got 3", id="version-3"
        ),
        pytest.param(
            {**MANIFEST, "schemaVersion": 1},
            "",
            "schemaVersion: expected 2, got 1",
            id="version-1-that-says-otherwise",
        ),
        pytest.param(
            {**MANIFEST, "schemaVersion": "2"},
            "",
            'schemaVersion: expected an integer, got "2"',
            id="version-as-text",
        ),
        pytest.param(without(MANIFEST, "config"), "", "config: missing", id="no-config"),
        pytest.param({**MANIFEST, "config": []}, "", "config: expected an object", id="config"),
        pytest.param({**MANIFEST, "layers": {}}, "", "layers: expected an array", id="layers"),
        pytest.param({**INDEX, "manifests": [5]}, "", "manifests[0]: expected an", id="entry"),
        pytest.param(
            {**MANIFEST, "artifactType": 5}, "", "artifactType: expected a string", id="artifact"
        ),
        pytest.param(
            {**MANIFEST, "artifactType": "a/b\r\nX: y"},
            "",
            'artifactType: "a/b\\r\\nX: y" is not a media type',
            id="artifact-with-a-header",
        ),
        pytest.param({**MANIFEST, "subject": 5}, "", "subject: expected an object", id="subject"),
    ],
)
def test_a_document_that_is_unclear_or_contradicts_itself_is_refused(
    document: Json, claimed: str, complaint: str
) -> None:
    assert refusal(document, claimed).startswith(complaint)


@pytest.mark.parametrize(
    ("raw", "complaint"),
    [
        (b"", "not JSON: "),
        (b"\xff", "not UTF-8 at byte 0"),
        (b'{"layers":[],"layers":[]}', 'the key "layers" occurs twice in one object'),
        (b"[" * 100, "not JSON: "),
        (b"[" * 100 + b"]" * 100, "nested deeper than 64"),
    ],
)
def test_what_is_no_clean_json_is_refused(raw: bytes, complaint: str) -> None:
    with pytest.raises(InvalidError) as caught:
        parse(raw, types.OCI_MANIFEST, "it")
    assert caught.value.message.startswith(f"parsing it: {complaint}")


SCHEMA1: Json = {
    "schemaVersion": 1,
    "name": "library/busybox",
    "tag": "latest",
    "architecture": "amd64",
    "fsLayers": [{"blobSum": f"sha256:{HEX}"}],
    "history": [{"v1Compatibility": "{}"}],
    "signatures": [],
}


@pytest.mark.parametrize(
    ("document", "claimed"),
    [
        pytest.param(SCHEMA1, "", id="by-its-version"),
        pytest.param(SCHEMA1, types.DOCKER_SCHEMA1_SIGNED, id="as-signed"),
        pytest.param(SCHEMA1, types.DOCKER_SCHEMA1, id="as-unsigned"),
        pytest.param(SCHEMA1, types.OCI_MANIFEST, id="as-something-else"),
        pytest.param({**SCHEMA1, "mediaType": types.DOCKER_SCHEMA1}, "", id="by-its-own-word"),
        pytest.param(without(SCHEMA1, "schemaVersion"), types.DOCKER_SCHEMA1, id="no-version"),
    ],
)
def test_docker_schema_1_is_not_read_and_the_way_out_is_said(document: Json, claimed: str) -> None:
    with pytest.raises(UnsupportedFormatError) as caught:
        read(document, claimed)
    assert caught.value.message == (
        "it is a Docker schema 1 manifest, which is not supported;"
        " push the image again with a current tool to convert it"
    )


def test_a_document_of_another_type_is_not_read() -> None:
    with pytest.raises(UnsupportedFormatError) as caught:
        read({**MANIFEST, "mediaType": "application/vnd.oci.artifact.manifest.v1+json\n"})
    assert caught.value.message == (
        'it has the media type "application/vnd.oci.artifact.manifest.v1+json\\n",'
        " which is not supported"
    )


def test_a_complaint_has_no_controls_from_the_document() -> None:
    message = refusal({**INDEX, "manifests": [{**ENTRY, "annotations": {"a\x1b[31m": 5}}]})
    assert message.isprintable()


# --- the index of a layout --------------------------------------------------------------------


@pytest.mark.parametrize(
    "document", [INDEX, without(INDEX, "mediaType"), {}], ids=["says-so", "says-nothing", "empty"]
)
def test_a_layout_s_index_need_not_say_what_it_is(document: Json) -> None:
    assert parse_index(json.dumps(document).encode(), "it").media_type == types.OCI_INDEX


@pytest.mark.parametrize(
    "document",
    [MANIFEST, without(MANIFEST, "mediaType"), {**INDEX, "mediaType": types.DOCKER_LIST}],
    ids=["manifest", "manifest-without-a-type", "docker-list"],
)
def test_a_layout_s_index_is_nothing_else(document: Json) -> None:
    with pytest.raises(InvalidError, match=r"^parsing it: "):
        parse_index(json.dumps(document).encode(), "it")


# --- pieces that other documents have too -----------------------------------------------------


def test_a_descriptor_may_stand_in_any_document() -> None:
    described = parse_descriptor(Fields({**LAYER, "urls": ["http://a"]}, "somewhere"))
    assert described == Descriptor(types.OCI_LAYER, DIGEST, 12, urls=("http://a",))
    with pytest.raises(FieldError, match=r"^somewhere\.size: expected a size, got -1$"):
        parse_descriptor(Fields({**LAYER, "size": -1}, "somewhere"))


@pytest.mark.parametrize("key", ["layers", "LAYERS", "layer\u017f", "other", ""])
def test_keys_that_some_take_for_others_are_refused(key: str) -> None:
    fields, known = Fields({key: None}, "images[0]"), frozenset({"layers", "Config"})
    if key in ("LAYERS", "layer\u017f"):
        with pytest.raises(FieldError) as caught:
            refuse_lookalikes(fields, known)
        assert str(caught.value) == f"images[0].{key}: ambiguous, keys are case-sensitive"
    else:
        refuse_lookalikes(fields, known)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"os": "linux", "architecture": "amd64"}, Platform("linux", "amd64")),
        (
            {"os": "linux", "architecture": "arm", "variant": "v7", "rootfs": {}},
            Platform("linux", "arm", "v7"),
        ),
        ({"os": "linux", "architecture": "arm", "variant": None}, Platform("linux", "arm")),
        ({"os": "linux"}, None),
        ({"architecture": "amd64"}, None),
        ({"os": "", "architecture": "amd64"}, None),
        ({"os": "linux", "architecture": 5}, None),
        ({}, None),
        ([], None),
    ],
    ids=str,
)
def test_a_config_says_its_platform_if_it_can_be_read(
    config: object, expected: Platform | None
) -> None:
    assert parse_platform(json.dumps(config).encode()) == expected


@pytest.mark.parametrize("raw", [b"", b"\xff", b'{"os":"linux","os":"linux","architecture":"a"}'])
def test_a_config_that_is_no_clean_json_says_nothing(raw: bytes) -> None:
    assert parse_platform(raw) is None
    assert parse_created(raw) == ""


@pytest.mark.parametrize(
    ("created", "expected"), [("2024-01-02", "2024-01-02"), (None, ""), (7, "")]
)
def test_a_config_says_when_it_was_created_if_it_does(created: object, expected: str) -> None:
    assert parse_created(json.dumps({"created": created}).encode()) == expected
