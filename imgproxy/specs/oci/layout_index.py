"""The `index.json` of an OCI layout, and what becomes of it: image-layout.md.

An entry stands for one name of an image, or for an image without one. What is not understood is
kept: foreign entries, foreign members, and the order of both.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from imgproxy.errors import InvalidError
from imgproxy.parsing import strict_json
from imgproxy.specs.oci import media_type as types
from imgproxy.specs.oci import reference as references

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from imgproxy.specs.oci.digest import Digest

    Entry = Mapping[str, Any]

LAYOUT = b'{"imageLayoutVersion":"1.0.0"}'

REF_NAME = "org.opencontainers.image.ref.name"
IMAGE_NAME = "io.containerd.image.name"


class LayoutIndex:
    """The entries of an `index.json`, never changed: what changes them returns another one."""

    def __init__(self, document: Mapping[str, Any]) -> None:
        self._document = document
        self.entries: list[Entry] = list(document["manifests"])

    @property
    def names(self) -> list[str]:
        """The names of images, in the order of their entries."""
        return [name for name in map(name_of, self.entries) if name is not None]

    def named(self, name: str) -> list[Entry]:
        """Return the entries that have a name; readers take more than one for an ambiguity."""
        return [entry for entry in self.entries if name_of(entry) == name]

    def with_digest(self, digest: Digest) -> list[Entry]:
        """Return the entries of an image, whatever their names are."""
        return [entry for entry in self.entries if _digest_of(entry) == str(digest)]

    def with_name(self, name: str, entry: Entry) -> LayoutIndex:
        """Return the index in which a name stands for an image, and for no other one.

        The image takes the place of the one that had the name before. `entry` is a descriptor, and
        may be that of another name. A whole reference is also what containerd and docker load by.
        """
        annotations = {**(entry.get("annotations") or {}), REF_NAME: name}
        annotations.pop(IMAGE_NAME, None)
        if references.has_registry(name):
            annotations[IMAGE_NAME] = name
        named = {**entry, "annotations": annotations}
        places = [n for n, each in enumerate(self.entries) if name_of(each) == name]
        others = self._without(lambda each: name_of(each) == name).entries
        place = places[0] if places else len(others)
        return self._having([*others[:place], named, *others[place:]])

    def without_name(self, name: str) -> LayoutIndex:
        """Return the index without a name."""
        return self._without(lambda entry: name_of(entry) == name)

    def without_digest(self, digest: Digest) -> LayoutIndex:
        """Return the index without an image, whatever its names are."""
        return self._without(lambda entry: _digest_of(entry) == str(digest))

    def _without(self, is_removed: Callable[[Entry], bool]) -> LayoutIndex:
        return self._having([each for each in self.entries if not is_removed(each)])

    def _having(self, entries: list[Entry]) -> LayoutIndex:
        return LayoutIndex({**self._document, "manifests": entries})

    def encode(self) -> bytes:
        """Return the content of the file."""
        return json.dumps(self._document, ensure_ascii=False, separators=(",", ":")).encode()


EMPTY = LayoutIndex({"schemaVersion": 2, "mediaType": types.OCI_INDEX, "manifests": []})


def parse(raw: bytes, name: str) -> LayoutIndex:
    """Return the index in `raw`; `name` stands for it in messages.

    Entries are not looked into. Raises `InvalidError` for what is no index.
    """
    try:
        document = strict_json.loads(raw)
    except strict_json.JsonError as error:
        raise InvalidError(f"parsing {name}: {error}") from None
    if not isinstance(document, dict):
        raise InvalidError(f"parsing {name}: expected an object")
    entries = document.get("manifests")
    if not isinstance(entries, list | None):
        raise InvalidError(f"parsing {name}: manifests: expected an array")
    return LayoutIndex({**document, "manifests": entries or []})


def name_of(entry: object) -> str | None:
    """Return the name that an entry gives its image, None where it gives none."""
    annotations = entry.get("annotations") if isinstance(entry, dict) else None
    name = annotations.get(REF_NAME) if isinstance(annotations, dict) else None
    return name if isinstance(name, str) else None


def _digest_of(entry: Entry) -> object:
    return entry.get("digest") if isinstance(entry, dict) else None
