"""What was probably meant, where a path has no image: hints for messages."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from imgproxy.errors import AbsentError, NotFoundError, clean

if TYPE_CHECKING:
    from collections.abc import Container

    from imgproxy.transports.local.tar_archive import Archive

# What the root of a system has; a Docker archive has none of it.
_SYSTEM = ("bin", "etc", "usr")


def absent(path: str, error: NotFoundError) -> NotFoundError:
    """Return the failure as that of an absent image if there is nothing at its path.

    There is a hint if the path goes on with a colon.
    """
    if os.path.lexists(path):
        return error
    directory, name = os.path.split(path)
    try:
        found = [each for each in os.listdir(directory or ".") if each.startswith(f"{name}:")]
    except OSError:
        found = []
    hint = ""
    if found:
        hint = (
            f"; there is {clean(os.path.join(directory, min(found)))}, but what follows a colon is"
            " no part of the path: make a link without a colon, or use dir:, which takes colons"
        )
    return AbsentError(f"{error.message}{hint}", code=error.code)


def backslashes(path: str, names: Container[str], error: NotFoundError) -> NotFoundError:
    """Return the failure, with a hint if the path is there with backslashes for slashes."""
    if "/" not in path or path.replace("/", "\\") not in names:
        return error
    return NotFoundError(
        f"{error.message}, but with backslashes in its name: it was packed on Windows, pack the"
        " files again with a program that writes /",
        code=error.code,
    )


def no_image(archive: Archive) -> str:
    """Return a hint for an archive without manifest.json and index.json, empty for none."""
    for control in ("manifest.json", "index.json"):
        for name in archive:
            directory, slash, rest = name.partition("/")
            if slash and rest == control:
                return (
                    f"; it has {clean(name)}: it was packed with its directory, pack it again with"
                    f" tar -C {clean(directory)} -cf FILE ."
                )
    if ".dockerenv" in archive or all(each in archive for each in _SYSTEM):
        return (
            "; it looks like the files of a container, which docker export writes: docker save"
            " writes an image"
        )
    return ""
