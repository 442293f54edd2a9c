"""Media types: RFC 6838 section 4.2."""

from __future__ import annotations

import pytest

from imgproxy.specs.oci import media_type as types
from imgproxy.specs.oci.media_type import essence, is_valid

NAMED = [getattr(types, name) for name in sorted(vars(types)) if name.startswith(("OCI", "DOCKER"))]


@pytest.mark.parametrize(
    "text",
    [
        *NAMED,
        "a/b",
        "0/9",
        "a!#$&-^_.+/0!#$&-^_.+",
        pytest.param("a" * 127 + "/" + "b" * 127, id="longest"),
    ],
)
def test_a_type_and_a_subtype_are_a_media_type(text: str) -> None:
    assert is_valid(text)


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("", id="nothing"),
        pytest.param("application", id="no-subtype"),
        pytest.param("application/", id="empty-subtype"),
        pytest.param("/json", id="empty-type"),
        pytest.param("a/b/c", id="two-slashes"),
        pytest.param("application/+json", id="begins-with-a-separator"),
        pytest.param("text/plain; charset=utf-8", id="parameter"),
        pytest.param("text/plain ", id="space"),
        pytest.param("text/plain\n", id="line-end"),
        pytest.param("text/plain\r\nSet-Cookie: a", id="header-injection"),
        pytest.param("*/*", id="wildcard"),
        pytest.param("text/pl\u00e4in", id="no-ascii"),
        pytest.param("a" * 128 + "/b", id="type-too-long"),
        pytest.param("a/" + "b" * 128, id="subtype-too-long"),
    ],
)
def test_anything_else_is_none(text: str) -> None:
    assert not is_valid(text)


@pytest.mark.parametrize(
    ("content_type", "expected"),
    [
        ("", ""),
        ("text/plain", "text/plain"),
        ("Text/PLAIN; charset=UTF-8", "text/plain"),
        (" text/plain ;a;b", "text/plain"),
        (";", ""),
    ],
)
def test_parameters_and_case_do_not_count(content_type: str, expected: str) -> None:
    assert essence(content_type) == expected


def test_the_names_are_those_of_the_specifications() -> None:
    names = {name: getattr(types, name) for name in vars(types) if name.startswith(("OC", "DOC"))}
    assert names == {
        "OCI_MANIFEST": "application/vnd.oci.image.manifest.v1+json",
        "OCI_INDEX": "application/vnd.oci.image.index.v1+json",
        "OCI_CONFIG": "application/vnd.oci.image.config.v1+json",
        "OCI_LAYER": "application/vnd.oci.image.layer.v1.tar",
        "OCI_NONDISTRIBUTABLE": "application/vnd.oci.image.layer.nondistributable.v1.tar",
        "DOCKER_MANIFEST": "application/vnd.docker.distribution.manifest.v2+json",
        "DOCKER_LIST": "application/vnd.docker.distribution.manifest.list.v2+json",
        "DOCKER_CONFIG": "application/vnd.docker.container.image.v1+json",
        "DOCKER_LAYER": "application/vnd.docker.image.rootfs.diff.tar",
        "DOCKER_FOREIGN": "application/vnd.docker.image.rootfs.foreign.diff.tar",
        "DOCKER_SCHEMA1": "application/vnd.docker.distribution.manifest.v1+json",
        "DOCKER_SCHEMA1_SIGNED": "application/vnd.docker.distribution.manifest.v1+prettyjws",
        "OCTET_STREAM": "application/octet-stream",
    }


def test_documents_are_manifests_indexes_or_schema_1() -> None:
    assert {types.OCI_MANIFEST, types.DOCKER_MANIFEST} == types.MANIFESTS
    assert {types.OCI_INDEX, types.DOCKER_LIST} == types.INDEXES
    assert {types.DOCKER_SCHEMA1, types.DOCKER_SCHEMA1_SIGNED} == types.SCHEMA1
    assert types.MANIFESTS | types.INDEXES | types.SCHEMA1 == types.KNOWN_DOCUMENTS
