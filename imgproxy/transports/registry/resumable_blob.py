"""A blob on its way from a registry, over whatever breaks.

A body that is cut off or stalls is gone on with at the byte reached, at the same endpoint or
another, by the registry's own URL, so that a redirect is a fresh one. Nothing is verified here;
what was received stays as it is, so whoever hashes it goes on hashing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from imgproxy.errors import Failure, UnavailableError
from imgproxy.specs.http import content_range, retry
from imgproxy.specs.http.content_range import Range, Rest

if TYPE_CHECKING:
    from imgproxy.net.response import Response
    from imgproxy.specs.oci.manifest import Descriptor
    from imgproxy.transports.registry.failover import Endpoint, Rounds

_WITH_RANGE = frozenset({200, 206, 416})

_SKIPPED = 256 * 1024

# A server may give less than it was asked for, and be asked for the next part; but not by morsels.
MIN_PART = 64 * 1024


class Transfer:
    """A blob being received; it began with the `response` of an `endpoint`. See `Reader`."""

    def __init__(
        self, rounds: Rounds, descriptor: Descriptor, endpoint: Endpoint, response: Response
    ) -> None:
        self.size = response.size
        self._rounds = rounds
        self._descriptor = descriptor
        self._response = response
        self._endpoint = endpoint
        self._givers = [endpoint]
        self._position = self._promised = 0
        self._budget = retry.Budget(rounds.retries)

    @property
    def name(self) -> str:
        """What stands for the blob in messages, with all who gave a part of it."""
        places = dict.fromkeys(giver.name for giver in self._givers)
        blob = f"{self._rounds.name}: blob {self._descriptor.digest}"
        return f"{blob} from {' and '.join(places)}"

    async def receive_into(self, buffer: memoryview) -> int:
        """See `Reader`. Raises `Failure` only when all retries are used up."""
        while True:
            try:
                count = await self._response.receive_into(buffer)
            except Failure as failure:
                if self._position >= self._descriptor.size:
                    return 0  # all bytes are there; whether they are right, the digest tells
                await self._go_on(failure)
                continue
            if count == 0 and self._is_early_end():
                if self._promised >= MIN_PART:
                    await self._ask_for_rest()
                else:
                    words = f"{self.name}: ended after {self._position} bytes"
                    await self._go_on(UnavailableError(words))
                continue
            self._position += count
            return count

    def _is_early_end(self) -> bool:
        """Whether an end is that of a part or of the connection; else a short reply is a lie."""
        is_part = self._response.status == 206 or self._response.ends_by_close
        return is_part and self._position < self._descriptor.size

    async def _go_on(self, failure: Failure) -> None:
        """Find somebody who has the rest; raises `Failure` when nobody is left to be asked."""
        self._response.close()
        self._endpoint.demerits += 1
        budget = self._budget.after_failure(self._position)
        if budget is None:
            raise failure
        self._budget = budget
        await self._rounds.pause(budget.spent, [failure])
        await self._ask_for_rest()

    async def _ask_for_rest(self) -> None:
        self._endpoint, self._response, self._budget = await self._rounds.ask(
            str(self._descriptor.digest), self._rest, self._budget
        )
        self._givers.append(self._endpoint)

    async def _rest(self, endpoint: Endpoint) -> Response:
        """Give a reply that is positioned at the byte reached."""
        wanted = Range(self._position, self._descriptor.size)
        digest = str(self._descriptor.digest)
        response = await endpoint.get("blob", digest, {"Range": wanted.field}, wanted=_WITH_RANGE)
        try:
            rest = content_range.read_reply(
                response.url,
                wanted,
                response.status,
                response.headers("content-range"),
                response.size,
            )
            if rest is None:  # it has no ranges, but may have the whole
                response.close()
                response = await endpoint.get("blob", digest, {})
                rest = Rest(self._position, wanted.size - wanted.offset)
            await _skip(response, rest.skip)
            self._promised = rest.length
        except BaseException:
            response.close()
            raise
        return response

    def reject(self, failure: Failure) -> bool:
        """See `Reader`. Everybody who gave a part of it is suspect."""
        return self._rounds.reject(str(self._descriptor.digest), self._givers, failure)

    def close(self) -> None:
        """See `Reader`."""
        self._response.close()


async def _skip(response: Response, count: int) -> None:
    """Receive what was had before from a server that knows no ranges."""
    scratch = memoryview(bytearray(min(count, _SKIPPED)))
    while count:
        received = await response.receive_into(scratch[:count])
        if received == 0:
            raise UnavailableError(f"GET {response.url}: ended before the byte that was reached")
        count -= received
