"""What a document mentions by digest, whatever kind of document it is.

`manifest` reads what this program serves, strictly. Whoever must not lose what another program has
written cannot rely on a format: here every object with a `digest` counts, at any depth, also in
members and media types that no specification has yet.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from imgproxy.errors import InvalidError
from imgproxy.parsing import strict_json
from imgproxy.specs.oci import digest as digests
from imgproxy.specs.oci import media_type as types

if TYPE_CHECKING:
    from collections.abc import Iterator

    from imgproxy.specs.oci.digest import Digest

# What refers to an image does not need it: a signature is no reason to keep what it has signed.
# The values of annotations are texts, whatever their keys are.
_NO_MENTIONS = frozenset({"subject", "annotations"})


class Mention(NamedTuple):
    """An object with a digest. `size` is None where it has none, `media_type` empty likewise.

    `in_list` holds for an entry of an index, `is_elsewhere` for content that need not lie beside
    the document, as it is embedded or has URLs.
    """

    digest: Digest
    size: int | None
    media_type: str
    in_list: bool
    is_elsewhere: bool

    @property
    def is_document(self) -> bool:
        """Whether its content may mention more."""
        return self.in_list or self.media_type in types.KNOWN_DOCUMENTS

    @property
    def may_be_opaque(self) -> bool:
        """Whether its content may be something else than JSON."""
        return self.media_type not in types.KNOWN_DOCUMENTS


def parse(raw: bytes, name: str) -> list[Mention]:
    """Return what a document mentions; `name` stands for it in messages. Raises `InvalidError`."""
    try:
        return list(_within(strict_json.loads(raw), in_list=False))
    except ValueError as error:  # of JSON, or of a digest
        raise InvalidError(f"parsing {name}: {error}") from None


def of_entry(entry: object, name: str) -> Mention:
    """Return what an entry of an index stands for. Raises `InvalidError`."""
    try:
        found = _mention(entry, in_list=True) if isinstance(entry, dict) else None
    except ValueError as error:
        raise InvalidError(f"{name}: {error}") from None
    if found is None:
        raise InvalidError(f"{name}: it is no descriptor")
    return found


def _within(value: Any, *, in_list: bool) -> Iterator[Mention]:  # noqa: ANN401  (JSON)
    if isinstance(value, list):
        for item in value:
            yield from _within(item, in_list=in_list)
    elif isinstance(value, dict):
        found = _mention(value, in_list=in_list)
        if found is not None:
            yield found
        for key, item in value.items():
            if key not in _NO_MENTIONS:
                yield from _within(item, in_list=key == "manifests")


def _mention(value: dict[str, Any], *, in_list: bool) -> Mention | None:
    """Return the mention that an object is, None where it has no digest. Raises `ValueError`."""
    if "digest" not in value:
        return None
    digest, size, media_type = (value.get(key) for key in ("digest", "size", "mediaType"))
    if not isinstance(digest, str):
        raise ValueError("digest: expected a text")  # noqa: TRY004  (the document is wrong)
    return Mention(
        digests.parse(digest),
        size if isinstance(size, int) else None,
        media_type if isinstance(media_type, str) else "",
        in_list,
        bool(value.get("urls") or "data" in value),
    )
