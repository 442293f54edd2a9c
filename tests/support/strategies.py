"""Strategies for property tests: JSON, digests, manifests and indexes, valid and damaged."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from hypothesis import strategies as st

from imgproxy.specs.oci import media_type as types

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")
E = TypeVar("E", bound=Exception)
Json = dict[str, Any]


def attempt(function: Callable[..., T], *arguments: Any, expected: type[E]) -> T | E:  # noqa: ANN401  (the function's own)
    """Return the function's result, or the exception that it may raise."""
    try:
        return function(*arguments)
    except expected as error:
        return error


# Text that can be encoded, without lone surrogates.
TEXT = st.text(st.characters(codec="utf-8"), max_size=20)

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXT
)
JSON = st.recursive(
    SCALARS,
    lambda below: st.lists(below, max_size=4) | st.dictionaries(TEXT, below, max_size=4),
    max_leaves=20,
)

HEX_DIGITS = {"sha256": 64, "sha384": 96, "sha512": 128, "blake3": 64}


def digests() -> st.SearchStrategy[str]:
    registered = st.sampled_from(sorted(HEX_DIGITS)).flatmap(
        lambda name: st.text("0123456789abcdef", min_size=(n := HEX_DIGITS[name]), max_size=n).map(
            lambda digits: f"{name}:{digits}"
        )
    )
    return registered | st.from_regex(
        r"[a-z0-9]{1,5}([+._-][a-z0-9]{1,5})?:[a-zA-Z0-9=_-]{1,9}", fullmatch=True
    )


DOCKER_TYPES = [
    types.DOCKER_LAYER,
    f"{types.DOCKER_LAYER}.gzip",
    f"{types.DOCKER_FOREIGN}.gzip",
    "application/vnd.in-toto+json",
    types.OCI_LAYER,
]


def descriptors(*media_types: str) -> st.SearchStrategy[Json]:
    return st.fixed_dictionaries(
        {"digest": digests(), "size": st.integers(0, 2**63 - 1)},
        optional={
            "mediaType": st.sampled_from(media_types),
            "urls": st.lists(TEXT, max_size=2),
            "annotations": st.dictionaries(TEXT, TEXT, max_size=2),
            "data": st.sampled_from(["", "YWI="]),
            "platform": st.fixed_dictionaries(
                {"os": st.just("linux"), "architecture": st.sampled_from(["arm", "amd64"])},
                optional={"variant": st.sampled_from(["", "v7", "v8"])},
            ),
            "x": JSON,
        },
    )


def shuffled(documents: st.SearchStrategy[Json]) -> st.SearchStrategy[Json]:
    """Return the documents with their keys in any order."""
    return documents.flatmap(lambda document: st.permutations(list(document.items())).map(dict))


def manifests(media_type: str, config: str, layers: list[str]) -> st.SearchStrategy[Json]:
    return shuffled(
        st.fixed_dictionaries(
            {
                "schemaVersion": st.just(2),
                "mediaType": st.just(media_type),
                "config": descriptors(config, "application/octet-stream"),
                "layers": st.lists(descriptors(*layers), max_size=4),
            },
            optional={"x": JSON, "annotations": st.dictionaries(TEXT, TEXT, max_size=2)},
        )
    )


DOCKER = manifests(types.DOCKER_MANIFEST, types.DOCKER_CONFIG, DOCKER_TYPES)
OCI = manifests(types.OCI_MANIFEST, types.OCI_CONFIG, [types.OCI_LAYER])
INDEX = shuffled(
    st.fixed_dictionaries(
        {
            "schemaVersion": st.just(2),
            "mediaType": st.just(types.OCI_INDEX),
            "manifests": st.lists(descriptors(types.OCI_MANIFEST, types.OCI_INDEX), max_size=4),
        },
        optional={"x": JSON, "subject": descriptors(types.OCI_MANIFEST)},
    )
)

KEYS = [
    *("schemaVersion", "mediaType", "config", "layers", "manifests", "subject", "annotations"),
    *("digest", "size", "urls", "data", "platform", "os", "architecture", "variant"),
    *("fsLayers", "history", "signatures", "Layers", "SIZE", "artifactType"),
]


@st.composite
def damaged(draw: st.DrawFn, documents: st.SearchStrategy[Json]) -> Json:
    """Return a document with a few values removed, replaced or added."""
    document = draw(documents)
    for _ in range(draw(st.integers(1, 3))):
        place: Any = document
        while isinstance(place, dict | list) and place and draw(st.booleans()):
            below = list(place.values()) if isinstance(place, dict) else place
            inner = draw(st.sampled_from(below))
            if not isinstance(inner, dict | list):
                break
            place = inner
        damage(draw, place)
    return document


def damage(draw: st.DrawFn, place: Any) -> None:  # noqa: ANN401  (JSON is any)
    value = draw(JSON)
    if isinstance(place, list):
        place.insert(draw(st.integers(0, len(place))), value)
        return
    key = draw(st.sampled_from([*place, *KEYS]))
    if draw(st.booleans()):
        place[key] = value
    else:
        place.pop(key, None)
