"""The conditions for a manifest: what descriptors say, and what manifests do."""

from __future__ import annotations

import json
from typing import Any

import pytest

from imgproxy.errors import InvalidError
from imgproxy.specs.oci import digest as digests
from imgproxy.specs.oci import manifest as manifests
from imgproxy.specs.oci import media_type as types
from imgproxy.specs.oci.manifest import Descriptor, Manifest
from imgproxy.specs.oci.manifest_selection import (
    ManifestConditions,
    parse_annotation,
    parse_artifact_type,
)
from imgproxy.specs.oci.platform import Platform

HELM, SPDX = "application/vnd.cncf.helm.config.v1+json", "application/spdx+json"
DIGEST = digests.compute(b"x")


def entry(artifact_type: str = "", **annotations: str) -> Descriptor:
    return Descriptor(
        types.OCI_MANIFEST,
        DIGEST,
        1,
        artifact_type=artifact_type,
        annotations=tuple(annotations.items()),
    )


def on(artifact_type: str = "", *, annotations: str = "") -> ManifestConditions:
    """Return conditions: of annotations as the options have them, with blanks between."""
    return ManifestConditions(
        artifact_type, tuple(parse_annotation(each) for each in annotations.split())
    )


UNKNOWN = entry()._replace(platform=Platform("unknown", "unknown"))


@pytest.mark.parametrize(
    ("conditions", "descriptor", "said"),
    [
        (on(HELM), entry(HELM), True),
        (on(HELM), entry(SPDX), False),
        (on(HELM), entry(types.OCI_CONFIG), False),
        (on(HELM), entry(), None),
        (on(HELM), UNKNOWN, None),
        (on("image"), entry(), None),
        (on("image"), entry(types.OCI_CONFIG), None),
        (on("image"), entry(HELM), False),
        (on("image"), UNKNOWN, False),
        (on("image"), entry(**{"vnd.docker.reference.type": "attestation-manifest"}), False),
        (on("image"), entry(kind="dev.cosignproject.cosign/sigs"), False),
        (on(annotations="a"), entry(a=""), True),
        (on(annotations="a="), entry(a=""), True),
        (on(annotations="a=1"), entry(a="1"), True),
        (on(annotations="a=1"), entry(a="2"), False),
        (on(annotations="a=1"), entry(b="1"), None),
        (on(annotations="a=1 b"), entry(a="1", b="2"), True),
        (on(annotations="a=1 b"), entry(a="1"), None),
        (on(annotations="a=1 b"), entry(a="2"), False),
        (on(HELM, annotations="a"), entry(HELM), None),
        (on(HELM, annotations="a"), entry(SPDX), False),
        (on(HELM, annotations="a"), entry(HELM, a="1"), True),
        (on(), entry(), True),
    ],
)
def test_descriptors_are_asked_first(
    conditions: ManifestConditions,
    descriptor: Descriptor,
    said: bool | None,  # noqa: FBT001  (a parameter)
) -> None:
    assert conditions.say(descriptor) is said


@pytest.mark.parametrize(
    ("own", "around", "said"),
    [
        ({}, [{"a": "1"}], True),
        ({}, [{"a": "2"}, {"a": "1"}], True),
        ({"a": "2"}, [{"a": "1"}], True),
        ({}, [{"a": "2"}], None),
        ({"a": "2"}, [{"a": "2"}], False),
    ],
)
def test_an_annotation_of_an_index_is_one_of_all_that_it_names(
    own: dict[str, str],
    around: list[dict[str, str]],
    said: bool | None,  # noqa: FBT001  (a parameter)
) -> None:
    conditions = on(annotations="a=1")
    assert conditions.say(entry(**own), [entry(**each) for each in around]) is said


def written(config: str = types.EMPTY, **fields: object) -> tuple[Manifest, bytes]:
    descriptor = {"mediaType": config, "digest": str(DIGEST), "size": 2}
    document: dict[str, Any] = {"schemaVersion": 2, "config": descriptor, "layers": [], **fields}
    raw = json.dumps(document).encode()
    parsed = manifests.parse(raw, types.OCI_MANIFEST, "manifest")
    assert isinstance(parsed, Manifest)
    return parsed, raw


SUBJECT = {"mediaType": types.OCI_MANIFEST, "digest": str(DIGEST), "size": 1}
IMAGE = written(types.OCI_CONFIG)
CHART = written(HELM, annotations={"a": "1"})
SBOM = written(artifactType=SPDX)
SIGNATURE = written(types.OCI_CONFIG, subject=SUBJECT)


@pytest.mark.parametrize(
    ("conditions", "descriptor", "found", "is_so"),
    [
        (on(HELM), entry(), CHART, True),
        (on(HELM), entry(HELM), CHART, True),
        (on(HELM), entry(), SBOM, False),
        (on(HELM), entry(), IMAGE, False),
        (on(SPDX), entry(), SBOM, True),
        (on(SPDX), entry(SPDX), written(), True),
        (on(SPDX), entry(SPDX), SIGNATURE, True),
        (on(HELM), entry(SPDX), written(), False),
        (on("image"), entry(), IMAGE, True),
        (on("image"), entry(types.OCI_CONFIG), IMAGE, True),
        (on("image"), entry(), written(types.DOCKER_CONFIG), True),
        (on("image"), entry(types.OCI_CONFIG), written(types.DOCKER_CONFIG), True),
        (on("image"), entry(), CHART, False),
        (on("image"), entry(), written(), False),
        (on("image"), entry(), SIGNATURE, False),
        (on("image"), entry(types.OCI_CONFIG), SIGNATURE, False),
        (on(annotations="a=1"), entry(), CHART, True),
        (on(annotations="a=2"), entry(), CHART, False),
        (on(annotations="a=2"), entry(a="2"), CHART, True),
        (on(annotations="a=1"), entry(a="2"), CHART, False),
        (on(annotations="b"), entry(), CHART, False),
        (on(HELM, annotations="a b"), entry(b=""), CHART, True),
        (on(HELM, annotations="a"), entry(), written(HELM, annotations={"a": 1}), False),
    ],
)
def test_the_manifest_says_the_rest(
    conditions: ManifestConditions,
    descriptor: Descriptor,
    found: tuple[Manifest, bytes],
    is_so: bool,  # noqa: FBT001  (a parameter)
) -> None:
    assert conditions.hold(descriptor, [], *found, "image") is is_so


def test_what_an_index_has_is_not_contradicted_by_the_manifest() -> None:
    conditions = on(annotations="a=9")
    assert conditions.hold(entry(), [entry(a="9")], *CHART, "image")


@pytest.mark.parametrize(
    ("stated", "found", "own"),
    [
        (SPDX, CHART, HELM),
        (types.OCI_CONFIG, CHART, HELM),
        (SPDX, IMAGE, "image"),
    ],
)
def test_two_types_are_a_contradiction_where_the_type_matters(
    stated: str, found: tuple[Manifest, bytes], own: str
) -> None:
    for wanted in (SPDX, HELM, "image"):
        with pytest.raises(InvalidError) as caught:
            on(wanted).hold(entry(stated), [], *found, "os:1")
        assert caught.value.code == "MANIFEST_INVALID"
        assert caught.value.message == (
            f"os:1: {DIGEST} is of the type {own}, but the index that names it says {stated}"
        )
    assert not on(annotations="x").hold(entry(stated), [], *found, "os:1")


def test_a_condition_is_shown_as_it_is_typed() -> None:
    conditions = on(HELM, annotations="a=1 b c=")
    assert (
        str(conditions) == f"--artifact-type {HELM} --annotation a=1 --annotation b --annotation c="
    )
    assert str(on(annotations="\x1bx")) == "--annotation  x"


@pytest.mark.parametrize(
    ("text", "wanted"),
    [("image", "image"), (HELM, HELM), (types.OCI_CONFIG, "image"), (types.DOCKER_CONFIG, "image")],
)
def test_an_artifact_type_is_a_media_type_or_image(text: str, wanted: str) -> None:
    assert parse_artifact_type(text) == wanted
    assert on(wanted).is_for_images == (wanted == "image")


@pytest.mark.parametrize("text", ["", "chart", "a/b;c=d", "Image", "a/b\n"])
def test_other_text_is_no_artifact_type(text: str) -> None:
    with pytest.raises(ValueError, match="a media type, or image"):
        parse_artifact_type(text)


def test_an_annotation_has_a_key() -> None:
    assert parse_annotation("a=b=c") == ("a", "b=c")
    for text in ("", "=", "=b"):
        with pytest.raises(ValueError, match="KEY=VALUE"):
            parse_annotation(text)
