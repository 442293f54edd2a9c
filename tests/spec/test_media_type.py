"""Media types: RFC 6838 section 4.2."""

from __future__ import annotations

import pytest

from imgproxy.spec import media_type as types
from imgproxy.spec.media_type import essence, is_valid

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


def test_known_documents_are_manifests_indexes_and_schema_1() -> None:
    assert {
        "application/vnd.oci.image.manifest.v1+json",
        "application/vnd.oci.image.index.v1+json",
        "application/vnd.docker.distribution.manifest.v2+json",
        "application/vnd.docker.distribution.manifest.list.v2+json",
        "application/vnd.docker.distribution.manifest.v1+json",
        "application/vnd.docker.distribution.manifest.v1+prettyjws",
    } == types.KNOWN_DOCUMENTS
    assert not types.MANIFESTS & types.INDEXES
    assert not types.SCHEMA1 & (types.MANIFESTS | types.INDEXES)
