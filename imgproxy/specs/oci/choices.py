"""What there is to choose from where a name fits several images or none.

In messages for people, and in the `choices` of a failure's detail for programs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from imgproxy.errors import clean
from imgproxy.specs.oci import media_type as types

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from imgproxy.specs.oci.digest import Digest
    from imgproxy.specs.oci.manifest import Descriptor
    from imgproxy.specs.oci.platform import Platform

# A layout may have thousands of images; a message that lists all of them is of no use.
_MAX_SHOWN = 10


class Choice(NamedTuple):
    """An image, an index or an artifact that can be named by its position, a name or its digest.

    `digest` is that of its manifest or index, None where it could not be computed; `size` is that
    document's, in bytes. `artifact_type` is empty for what is no artifact, as far as that is known.
    `path` has the digests of the indexes that lead to it, the outermost first.
    """

    position: int
    names: Sequence[str]
    digest: Digest | None
    platform: Platform | None = None
    media_type: str = types.OCI_MANIFEST
    artifact_type: str = ""
    annotations: Sequence[tuple[str, str]] = ()
    size: int | None = None
    path: Sequence[Digest] = ()

    @property
    def kind(self) -> str:
        """What it is, in a word."""
        if self.artifact_type not in types.CONFIGS | {""}:
            return "artifact"
        return "index" if self.media_type in types.INDEXES else "image"


def of(position: int, entry: Descriptor) -> Choice:
    """Return an entry of an index as a choice."""
    names = dict.fromkeys(name for name in (entry.ref_name, entry.image_name) if name)
    return Choice(
        position,
        list(names),
        entry.digest,
        entry.platform,
        entry.media_type,
        entry.artifact_type,
        entry.annotations,
        entry.size,
    )


def detail(choices: Sequence[Choice]) -> list[dict[str, object]]:
    """Return the choices as the detail of a failure."""
    return [
        {
            "position": f"@{each.position}",
            "name": clean(each.names[0]) if each.names else None,
            "names": [clean(name) for name in each.names],
            "digest": str(each.digest) if each.digest else None,
            "kind": each.kind,
            "mediaType": clean(each.media_type),
            "artifactType": clean(each.artifact_type) or None,
            "platform": clean(str(each.platform)) if each.platform else None,
            "annotations": {clean(key): clean(value) for key, value in each.annotations},
            "size": each.size,
            "path": [str(index) for index in each.path],
        }
        for each in choices
    ]


def listed(choices: Sequence[Choice]) -> str:
    """Return the choices as a message lists those of a local name: by position and names."""
    return _joined(
        choices,
        lambda each: (
            f":@{each.position}"
            + _names(each)
            + (f" {each.digest}" if each.digest else "")
            + _described(each)
        ),
    )


def listed_by_digest(choices: Sequence[Choice]) -> str:
    """Return the choices as a message lists those in an index."""
    return _joined(choices, lambda each: f"@{each.digest}{_names(each)}{_described(each)}")


def _names(choice: Choice) -> str:
    return "".join(f" (:{clean(name)})" for name in choice.names[:_MAX_SHOWN])


def _described(choice: Choice) -> str:
    """Return what tells a choice from others, in parentheses."""
    kind = choice.kind if choice.kind != "artifact" else clean(choice.artifact_type)
    platform = clean(str(choice.platform)) if choice.platform else ""
    words = ", ".join(filter(None, ("" if kind == "image" else kind, platform)))
    return f" ({words})" if words else ""


def _joined(choices: Sequence[Choice], show: Callable[[Choice], str]) -> str:
    shown = [show(each) for each in choices[:_MAX_SHOWN]]
    more = len(choices) - len(shown)
    return (", ".join(shown) or "none") + (f" and {more} more" if more else "")
