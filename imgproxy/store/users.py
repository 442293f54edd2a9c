"""The blobs that processes rely on and that no name reaches yet.

Each process that pulls has a file `.imgproxy/users/<id>`, which it keeps locked, with the digests
that it relies on, one a line. `gc` reads the files that are locked, so that a pull may take as
long as it wants without that `gc` has to wait for its end, or that it loses a blob to `gc`.

Both take `.imgproxy/lock`, and only for moments: shared, to add digests; exclusive, to read the
files and to remove a few blobs. What was added before is therefore not removed, and what was
removed is not there when the process looks for it after it has added it.
"""

from __future__ import annotations

import os
import secrets
from contextlib import suppress
from typing import TYPE_CHECKING

from imgproxy.store import locks

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Self

    from imgproxy.specs.oci.digest import Digest


class User:
    """A process that relies on blobs. Its methods raise `OSError`."""

    def __init__(self, directory: str) -> None:
        self._path = f"{directory}/{os.getpid()}-{secrets.token_hex(8)}"
        file = locks.try_lock(self._path, locks.EXCLUSIVE)
        if file is None:  # nobody else can have guessed the name
            raise FileExistsError(self._path)
        self._file = file

    def add(self, digests: Iterable[Digest]) -> None:
        """Rely on blobs from now on; `.imgproxy/lock` is held."""
        rest = memoryview("".join(f"{each}\n" for each in digests).encode())
        while rest:
            rest = rest[os.write(self._file.fd, rest) :]

    def close(self) -> None:
        """Rely on nothing any more."""
        with suppress(OSError):
            os.unlink(self._path)
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def relied_on(directory: str) -> set[str]:
    """Return the digests that processes rely on; `.imgproxy/lock` is held exclusively.

    Those of processes that were killed are none. Raises `OSError`.
    """
    found: set[str] = set()
    for name in os.listdir(directory):
        path = f"{directory}/{name}"
        with suppress(FileNotFoundError):  # it has come to its end
            if locks.is_locked(path):
                with open(path, encoding="ascii", errors="replace") as lines:
                    found.update(lines.read().split())
    return found
