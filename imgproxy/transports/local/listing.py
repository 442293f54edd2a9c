"""The images to choose from where a name fits several or none: in messages, and for programs."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from imgproxy.errors import clean

if TYPE_CHECKING:
    from collections.abc import Sequence

    from imgproxy.specs.oci.digest import Digest
    from imgproxy.specs.oci.platform import Platform

# A layout may have thousands of images; a message that lists all of them is of no use.
_MAX_SHOWN = 20


class Choice(NamedTuple):
    """An image that can be named by its position or by one of its names.

    `digest` is that of its manifest or index, None where it could not be computed.
    """

    position: int
    names: Sequence[str]
    digest: Digest | None
    platform: Platform | None = None


def detail(choices: Sequence[Choice]) -> list[dict[str, object]]:
    """Return the choices as the detail of a failure."""
    return [
        {
            "position": f"@{each.position}",
            "name": clean(each.names[0]) if each.names else None,
            "names": [clean(name) for name in each.names],
            "digest": str(each.digest) if each.digest else None,
            "platform": str(each.platform) if each.platform else None,
        }
        for each in choices
    ]


def listed(choices: Sequence[Choice]) -> str:
    """Return the choices as a message lists them."""
    shown = [
        f":@{each.position}"
        + "".join(f" (:{clean(name)})" for name in each.names[:_MAX_SHOWN])
        + (f" {each.digest}" if each.digest else "")
        for each in choices[:_MAX_SHOWN]
    ]
    more = len(choices) - len(shown)
    return (", ".join(shown) or "none") + (f" and {more} more" if more else "")
