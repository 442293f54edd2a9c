"""Several places that may have the same thing, asked in rounds.

They are asked in their order: one that fails is passed over for the next, and when all have failed
and one of them may do better, there is a pause and another round. One that gave wrong bytes is not
asked for the same thing again.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Protocol, TypeVar

import trio

from imgproxy.errors import ConfigurationError, Failure, NotFoundError
from imgproxy.specs.http import retry
from imgproxy.transports.registry.resumable_blob import Transfer

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence

    from imgproxy.net.response import Response
    from imgproxy.specs.oci.manifest import Descriptor
    from imgproxy.transports.source import Reader

T = TypeVar("T")


class Endpoint(Protocol):
    """A place to ask. `name` stands for it in messages; its `demerits` put it behind others.

    One with a `refusal` is not asked, for that reason.
    """

    name: str
    demerits: int
    refusal: str

    async def get(
        self, kind: str, name: str, fields: dict[str, str], *, wanted: Collection[int] = ...
    ) -> Response:
        """Give the reply with a `manifest` or a `blob`; other statuses than `wanted` are failures.

        Raises `Failure`.
        """

    def close(self) -> None:
        """Let go of connections."""


class Rounds:
    """Endpoints that may have the same. `name` stands for them in messages.

    `retries` are the rounds after the first; for a blob they count from the last progress.
    """

    def __init__(self, name: str, endpoints: Sequence[Endpoint], *, retries: int) -> None:
        self.name = name
        self.retries = retries
        self._endpoints = endpoints
        self._rejected: dict[str, dict[Endpoint, Failure]] = {}

    async def blob(self, descriptor: Descriptor) -> Reader:
        """Open a blob that one of them has; see `source.Source`."""
        digest = str(descriptor.digest)

        async def ask(endpoint: Endpoint) -> Response:
            return await endpoint.get("blob", digest, {})

        endpoint, response, _ = await self.ask(digest, ask, retry.Budget(self.retries))
        return Transfer(self, descriptor, endpoint, response)

    async def ask(
        self,
        what: str,
        attempt: Callable[[Endpoint], Awaitable[T]],
        budget: retry.Budget,
        *,
        primary_decides: bool = False,
    ) -> tuple[Endpoint, T, retry.Budget]:
        """Give what the first endpoint gives that gives anything, which it was, and what is left.

        `what` is the tag or digest that is asked for. `primary_decides`: where the primary
        location does not have it, a mirror that fails is not waited for. Raises `Failure`, with
        every endpoint's own where there are several.
        """
        failures = dict(self._rejected.get(what, {}))
        while True:
            for endpoint in sorted(self._endpoints, key=lambda each: each.demerits):
                if endpoint in failures and not failures[endpoint].is_transient:
                    continue
                try:
                    return endpoint, await attempt(endpoint), budget
                except ConfigurationError:
                    raise  # this host's, and not the endpoint's
                except Failure as failure:
                    failures[endpoint] = failure
                    endpoint.demerits += failure.retryable
            passing = [failure for failure in failures.values() if failure.is_transient]
            if primary_decides and isinstance(failures[self._endpoints[-1]], NotFoundError):
                passing = []
            left = budget.after_failure(0) if passing else None
            if left is None:
                raise self._together(failures)
            budget = left
            await self.pause(budget.spent, passing)

    async def pause(self, spent: int, failures: Iterable[Failure]) -> None:
        """Wait before a retry, as long as the registry that wants it shortest has asked for."""
        said = [each.retry_after for each in failures if each.retry_after is not None]
        await trio.sleep(retry.delay(spent, random.random(), min(said, default=None)))  # noqa: S311

    def reject(self, what: str, endpoints: Iterable[Endpoint], failure: Failure) -> bool:
        """Ask these endpoints no more for `what`; give whether there are others to ask."""
        rejected = self._rejected.setdefault(what, {})
        rejected.update(dict.fromkeys(endpoints, failure))
        return len(self._endpoints) > 1

    def _together(self, failures: dict[Endpoint, Failure]) -> Failure:
        """Give one failure for all; the primary's says what it is, unless it was not asked."""
        ordered = [(each, failures[each]) for each in self._endpoints]
        asked = [failure for each, failure in ordered if not each.refusal]
        last = asked[-1] if asked else ordered[-1][1]
        if len(ordered) == 1:
            return last
        failure = type(last)(
            f"{self.name}: none of {len(ordered)} endpoints could serve it: "
            + "; ".join(f"[{each.name}] {failure.message}" for each, failure in ordered),
            code=last.code,
            endpoints=[
                {
                    "endpoint": each.name,
                    "code": failure.code,
                    "message": failure.message,
                    "retryable": failure.retryable,
                }
                for each, failure in ordered
            ],
        )
        failure.retry_after = last.retry_after
        return failure

    def close(self) -> None:
        """Let go of connections."""
        for endpoint in self._endpoints:
            endpoint.close()
