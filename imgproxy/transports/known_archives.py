"""What was found out about Docker archives, for all who open the same file again."""

from __future__ import annotations

from collections import OrderedDict
from functools import partial
from typing import TYPE_CHECKING

from imgproxy.errors import Failure
from imgproxy.transports.local.docker_archive import Made

if TYPE_CHECKING:
    from collections.abc import Callable

    from imgproxy.host.files import FileState
    from imgproxy.store.archive_records import ArchiveRecords

# Archives, each with the manifests and configs of its images.
_MAX_ARCHIVES = 256


class KnownArchives:
    """What is known of archives, by the state of their files; in `records` also the next time.

    `report` takes a line where these cannot be written, once.
    """

    def __init__(
        self,
        records: ArchiveRecords | None = None,
        report: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._records = records
        self._report = report
        self._is_reported = False
        self._made: OrderedDict[FileState, Made] = OrderedDict()

    def made(self, state: FileState) -> Made:
        """Return what is known of an archive that is open, to be added to."""
        made = self._made.get(state)
        if made is None:
            made = Made()
            if self._records is not None:
                keep = partial(self._keep, self._records, state)
                made = Made(self._records.layers(state), keep)
            self._made[state] = made
        self._made.move_to_end(state)
        while len(self._made) > _MAX_ARCHIVES:
            self._made.popitem(last=False)
        return made

    def _keep(self, records: ArchiveRecords, state: FileState, made: Made) -> None:
        try:
            records.keep(state, made.hashed)
        except Failure as failure:
            if not self._is_reported:
                self._is_reported = True
                self._report(f"going on without a record of archives: {failure.message}")
