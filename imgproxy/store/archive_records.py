"""What is known of archives, in `.imgproxy/archives/`: one file for each state of an archive.

The digests of layers that are stored compressed, by their offsets; to find them out, the archive is
read as far as it has such layers. They are no verdict: what is served is verified by them. What
cannot be read is not there.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from typing import TYPE_CHECKING

from imgproxy.parsing import strict_json
from imgproxy.parsing.typed_fields import FieldError, Fields
from imgproxy.specs.oci import digest as digests
from imgproxy.store.files import read, using, write

if TYPE_CHECKING:
    from imgproxy.host.files import FileState
    from imgproxy.specs.oci.digest import Digest

_MAX_RECORD = 256 * 1024
_MAX_RECORDS = 4096

_PRIVATE = 0o700
_MODE = 0o600


class ArchiveRecords:
    """The records of the store in a directory."""

    def __init__(self, store: str) -> None:
        self._path = f"{store}/.imgproxy/archives"

    def layers(self, state: FileState) -> dict[int, Digest]:
        """Return the digests of the layers of an archive by their offsets, as far as known."""
        with suppress(OSError, ValueError, FieldError, strict_json.JsonError):
            raw, _ = read(self._record(state), _MAX_RECORD)
            record = Fields(strict_json.loads(raw))
            if record.text("file") == _shown(state):
                return {
                    layer.integer("offset"): digests.parse(layer.text("digest"))
                    for layer in record.objects("layers")
                }
        return {}

    def keep(self, state: FileState, layers: dict[int, Digest]) -> None:
        """Record the digests of layers. Raises `Failure`."""
        if not state.is_settled:
            return
        known = [{"offset": offset, "digest": str(each)} for offset, each in layers.items()]
        record = {"file": _shown(state), "layers": known}
        with using(self._path):
            os.makedirs(self._path, _PRIVATE, exist_ok=True)
            write(self._record(state), json.dumps(record).encode(), _MODE)
            self._bound()

    def _bound(self) -> None:
        """Remove the records that were written first, where there are too many."""
        with os.scandir(self._path) as entries:
            found = [(each.stat().st_mtime_ns, each.path) for each in entries]
        for _, path in sorted(found)[:-_MAX_RECORDS]:
            with suppress(FileNotFoundError):
                os.unlink(path)

    def _record(self, state: FileState) -> str:
        return f"{self._path}/{digests.compute(_shown(state).encode()).encoded}"


def _shown(state: FileState) -> str:
    return " ".join(map(str, state))
