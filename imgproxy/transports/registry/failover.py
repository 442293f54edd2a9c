"""Failover over several locations that should have the same content.

They are asked in their order: one that fails is passed over for the next. When all have failed and
one of the failures may be temporary, there is a pause, and they are asked once more. A location
that sent wrong bytes is not asked for the same thing again for a while, and one that could not be
reached a moment ago is not asked for anything, where that is remembered: see `outage`.
"""

from __future__ import annotations

import random
from functools import partial
from typing import TYPE_CHECKING, Generic, NamedTuple, Protocol, TypeVar

import trio

from imgproxy.errors import (
    HOST_FAILURES,
    DeniedError,
    Failure,
    NotFoundError,
    UnreachableError,
)
from imgproxy.specs.http import retry
from imgproxy.specs.oci.distribution import BlobPath
from imgproxy.transports.time_limit import TimeLimitError, max_retries, time_left, waiting

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Container, Mapping, Sequence

    from imgproxy.transports.registry.outage import Outage

T = TypeVar("T")

# In seconds: how long a location is not asked for something that was wrong there. A registry that
# has been repaired is used again, and one that has not costs a download every few minutes.
REJECTION_TIME = 300.0


class Location(Protocol):
    """A location to ask. `name` stands for it in messages; those with more `demerits` come last."""

    name: str
    demerits: int
    outage: Outage


class Refused(NamedTuple):
    """A location that must not be asked, listed in errors with the reason."""

    name: str
    reason: str


L = TypeVar("L", bound=Location)

# By what was asked for: when a location was last rejected for it, and all that were.
Rejected = dict[str, tuple[float, dict[L | Refused, Failure]]]


class Retries:
    """The tries that are left for one thing, and the pauses before them.

    `count` of them are left, again after each mebibyte of progress: `specs.http.retry` decides.
    `report` is told, once two tries have failed, that there will be more.
    """

    def __init__(self, count: int, report: Callable[[str], None] = lambda _: None) -> None:
        self._budget = retry.Budget(count)
        self._report = report

    async def pause(self, failures: Collection[Failure], offset: int = 0) -> bool:
        """Wait before the next try; return whether there is one, without a wait if there is none.

        There is none that would be asked for after the end of a time limit.

        `failures` happened at a byte `offset` of a blob. The shortest `retry_after` among
        them is the minimum of the wait.
        """
        left = self._budget.after_failure(offset)
        if left is None or left.spent > max_retries():
            return False
        self._budget = left
        waits = [each.retry_after for each in failures if each.retry_after is not None]
        requested = min(waits, default=None)
        if requested is not None and requested > time_left():
            return False
        pause = retry.delay(left.spent, random.random(), requested)  # noqa: S311
        reasons = "; ".join(each.message for each in failures)
        if left.spent == 2:
            self._report(
                f"{reasons}: tried twice, the next time in {pause:.0f} s, and at most"
                f" {left.retries + 1} times"
            )
        with waiting(lambda: f"the pause after {reasons}"):
            await trio.sleep(pause)
        return True


class Failover(Generic[L]):
    """Locations that should have the same content. `name` stands for them in messages.

    `retries` are the tries of all locations after the first; see `Retries` for `report`.
    `wrong_blobs` remembers the locations where blobs were wrong, by default for this object alone:
    what has a digest and is large should not be received once more by others.
    """

    def __init__(
        self,
        name: str,
        locations: Sequence[L | Refused],
        *,
        retries: int,
        report: Callable[[str], None] = lambda _: None,
        wrong_blobs: Rejected[L] | None = None,
    ) -> None:
        self.name = name
        self._retries = retries
        self._report = report
        self._all = locations
        self.locations = [each for each in locations if not isinstance(each, Refused)]
        self._refusals: dict[L | Refused, Failure] = {
            each: DeniedError(each.reason) for each in locations if isinstance(each, Refused)
        }
        self._rejected: Rejected[L] = {}
        self._wrong_blobs: Rejected[L] = {} if wrong_blobs is None else wrong_blobs

    def alone(self, location: L) -> Failover[L]:
        """Return a failover that has a single one of the locations."""
        return Failover(self.name, [location], retries=self._retries, report=self._report)

    def new_retries(self) -> Retries:
        """Return the retries for one thing, none of them used."""
        return Retries(self._retries, self._report)

    async def ask(
        self,
        what: object,
        attempt: Callable[[L], Awaitable[T]],
        retries: Retries | None = None,
        *,
        primary_decides: bool = False,
    ) -> T:
        """Return what `attempt` returns for the first location where it does not fail.

        `what` is the thing asked for, identified by `str(what)`. `retries` are those that are left
        for it where a part of it was received, by default new ones. `primary_decides`: if the
        primary location, which is the last, does not have it, there is no pause for the sake of a
        mirror. Raises `Failure`, which lists that of each location if there are several.
        """
        began = trio.current_time()
        kept = {**self._refusals, **self._rejections(what)}
        if retries is None:
            kept |= self._outages()
            retries = self.new_retries()
        failures = {each: failure.copy() for each, failure in kept.items()}
        while True:
            for location in sorted(self.locations, key=lambda each: each.demerits):
                if location in failures and not failures[location].is_transient:
                    continue
                try:
                    return await self._attempt(what, location, attempt, began)
                except HOST_FAILURES:
                    raise  # a mistake on this host, and not the location's
                except Failure as failure:
                    failures[location] = failure
                    location.demerits += failure.retryable
            transient = [failure for failure in failures.values() if failure.is_transient]
            if primary_decides and isinstance(failures[self._all[-1]], NotFoundError):
                transient = []
            if not transient or not await retries.pause(transient):
                self._note_outages(failures, kept, began)
                raise self._merged(failures)

    async def _attempt(
        self, what: object, location: L, attempt: Callable[[L], Awaitable[T]], began: float
    ) -> T:
        """Return what a location answers; that a time limit ends before counts against it."""
        try:
            with waiting(partial(self._described, what, location)):
                return await attempt(location)
        except TimeLimitError as error:
            location.demerits += 1
            location.outage.note(str(error), began)
            raise

    def _note_outages(
        self,
        failures: Mapping[L | Refused, Failure],
        kept: Container[L | Refused],
        began: float,
    ) -> None:
        """Note which locations could not be reached; those that are `kept` were not asked."""
        for location in self.locations:
            failure = failures[location]
            if isinstance(failure, UnreachableError) and location not in kept:
                location.outage.note(failure.message, began)

    def _outages(self) -> dict[L | Refused, Failure]:
        """Return the locations that could not be reached a moment ago."""
        found = {each: each.outage.current() for each in self.locations}
        return {each: failure for each, failure in found.items() if failure is not None}

    def _described(self, what: object, location: L) -> str:
        return f"{self.name}: {what} from {location.name}"

    def reject(self, what: object, locations: Collection[L], failure: Failure) -> bool:
        """Exclude locations for `what`, and return whether to ask for it again.

        True unless there is only one location: another one is asked then, or if none is left, the
        failure lists that of each.
        """
        rejections = {**self._rejections(what), **dict.fromkeys(locations, failure.copy())}
        rejected, now = self._rejected_for(what), trio.current_time()
        for each in [each for each, (last, _) in rejected.items() if now >= last + REJECTION_TIME]:
            del rejected[each]
        rejected[str(what)] = now, rejections
        return len(self._all) > 1

    def _rejected_for(self, what: object) -> Rejected[L]:
        return self._wrong_blobs if isinstance(what, BlobPath) else self._rejected

    def _rejections(self, what: object) -> dict[L | Refused, Failure]:
        """Return the locations that are not to be asked for something, and why.

        All are forgotten together, so that locations that are slow and wrong cannot take turns.
        """
        last, rejections = self._rejected_for(what).get(str(what), (0.0, {}))
        return rejections if trio.current_time() < last + REJECTION_TIME else {}

    def _merged(self, failures: dict[L | Refused, Failure]) -> Failure:
        """Return one failure for all; the primary location's decides its kind, if it was asked."""
        ordered = [(each, failures[each]) for each in self._all]
        asked = [failures[each] for each in self.locations]
        last = asked[-1] if asked else ordered[-1][1]
        if len(ordered) == 1:
            return last
        message = f"{self.name}: none of {len(ordered)} endpoints could serve it: " + "; ".join(
            f"[{each.name}] {failure.message}" for each, failure in ordered
        )
        details = [
            {
                "endpoint": each.name,
                "code": failure.code,
                "message": failure.message,
                **failure.outlook,
            }
            for each, failure in ordered
        ]
        return last.merged(failures.values(), message, endpoints=details)
