"""One image, which is opened on the first request that needs it.

The policy's verdict is asked for here and nowhere else, before anything of the image is released.
An image is opened once: its root document is fetched and verified, an index is walked, the manifest
for the platform chosen. What may be read of it from then on: `opened_image`.
"""

from __future__ import annotations

import math
from collections import deque
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from imgproxy.config import policy as policies
from imgproxy.errors import (
    HOST_FAILURES,
    AbsentError,
    AmbiguousError,
    DeniedError,
    Failure,
    NotFoundError,
    closing_on_error,
)
from imgproxy.host.blocking_calls import settle
from imgproxy.images.opened_image import OpenedImage
from imgproxy.images.selection import IndexWalk
from imgproxy.images.verified_source import VerifiedSource
from imgproxy.single_flight import SingleFlight
from imgproxy.specs.oci.manifest import Manifest
from imgproxy.transports import time_limit as time_limits
from imgproxy.transports.source import age
from imgproxy.verification.verified_blob import LargeBlobs

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from contextlib import AbstractContextManager

    from imgproxy.config.policy import Conditions, Policy
    from imgproxy.images.opened_image import Check, OpenForeign
    from imgproxy.images.selection import Wanted
    from imgproxy.specs.oci.digest import Digest
    from imgproxy.specs.oci.manifest import Index
    from imgproxy.transports.source import Source
    from imgproxy.verification.documents import VerifiedDocument


T = TypeVar("T")

# An image that is replaced is opened anew; the one before it is kept open as well.
_MAX_GENERATIONS = 2


class Image:
    """One image, opened when it is first needed and shared by all its users.

    `open_sources` returns the sources that may have it, in the order to try them, `load_policy` the
    policy that applies; `wanted` is what to choose, None where nothing is to be chosen from an
    index. `large_blobs` bounds the memory of its blobs; by default it has one of its own.
    `warn` takes lines about keys of the policy that are passed over. `time_limit` is in seconds:
    see `limited`.
    """

    time_limit = time_limits.TIME_LIMIT

    def __init__(
        self,
        open_sources: Callable[[], Awaitable[list[Source]]],
        load_policy: Callable[[], Policy],
        wanted: Wanted | None,
        open_foreign: OpenForeign,
        large_blobs: LargeBlobs | None = None,
        warn: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._open_sources = open_sources
        self._load_policy = load_policy
        self._wanted = wanted
        self._open_foreign = open_foreign
        self._large_blobs = large_blobs or LargeBlobs()
        self._warn = warn
        self._opened: OpenedImage | None = None
        self._sources: list[Source] = []
        self._opening = SingleFlight()

    def limited(
        self, *, retries: float = math.inf, connecting: float = math.inf
    ) -> AbstractContextManager[None]:
        """Return a block with the limits of what precedes a reply: `transports.time_limit`."""
        return time_limits.limited(self.time_limit, retries=retries, connecting=connecting)

    async def open(self) -> OpenedImage:
        """Return the opened image. Raises `Failure`; the next request tries again."""
        opened = self.opened
        if opened is not None:
            return opened
        return await self._opening.get(lambda: self.opened, self._open)

    @property
    def opened(self) -> OpenedImage | None:
        """The opened image, None before that and once it is replaced."""
        return None if self._opened is None or self._opened.is_replaced else self._opened

    async def candidates(self) -> tuple[list[dict[str, Any]], int | None]:
        """Return what could be chosen, in the form of `choices`, and `age`. Raises `Failure`."""
        policy = await settle(self._load_policy)
        source, found = await self._first(partial(self._candidates_at, policy=policy))
        source.close()
        return found, age(source)

    async def _candidates_at(self, source: Source, policy: Policy) -> list[dict[str, Any]]:
        _, walk = self._begin(source, policy)
        try:
            return await walk.candidates(await walk.root())
        except AmbiguousError as error:
            return list(error.detail["choices"])

    async def _open(self) -> OpenedImage:
        policy = await settle(self._load_policy)
        source, opened = await self._first(partial(self._open_at, policy=policy))
        self._opened = opened
        self._sources.append(source)  # the one before it stays open: its blobs may be in use
        while len(self._sources) > _MAX_GENERATIONS:
            self._sources.pop(0).close()
        return opened

    async def _first(self, attempt: Callable[[Source], Awaitable[T]]) -> tuple[Source, T]:
        """Return the first source with which an attempt does not fail, and what that returns."""
        failures: list[Failure] = []
        untried = deque(await self._open_sources())
        try:
            while untried:
                source = untried.popleft()
                try:
                    with closing_on_error(source):
                        return source, await attempt(source)
                except HOST_FAILURES:
                    raise  # an error of this host: another source cannot help
                except Failure as error:
                    failures.append(error)
            message = "; ".join(each.message for each in failures)
            raise failures[0] if len(failures) == 1 else failures[-1].merged(failures, message)
        finally:
            for source in untried:
                source.close()
            failures.clear()  # their tracebacks hold this frame, and whatever was parsed

    def _begin(self, source: Source, policy: Policy) -> tuple[Conditions, IndexWalk]:
        """Return what the policy demands, and the walk. Raises `DeniedError` if it rejects all."""
        transport, scopes, _ = source.identity
        conditions = policies.evaluate(policy, transport, scopes, source.name)
        wanted = self._wanted and self._wanted.conditions
        verified = VerifiedSource(source, self._large_blobs)
        # Where nothing is chosen, rights are given by name: to refer to an image gives none to it.
        leads_to_subjects = self._wanted is not None
        return conditions, IndexWalk(verified, wanted, leads_to_subjects=leads_to_subjects)

    async def _open_at(self, source: Source, policy: Policy) -> OpenedImage:
        conditions, walk = self._begin(source, policy)
        check = await settle(_policy_check, conditions, source, walk.indexes, self._warn)
        root = await walk.root()
        if isinstance(root.parsed, Manifest) or self._wanted is None:
            walk.check(root)
            rejection = await _rejection(check, root)
            return OpenedImage(walk, root, None, check, self._open_foreign, rejection)
        try:
            chosen = await walk.choose(root, self._wanted.platform)
        except AbsentError as error:  # the image is there, and something that it names is not
            raise NotFoundError(error.message, code=error.code, **error.detail) from None
        await check(*walk.way, chosen)
        return OpenedImage(walk, chosen, root, check, self._open_foreign)

    def close(self) -> None:
        """Close the sources. May be called again."""
        self._opened = None
        while self._sources:
            self._sources.pop(0).close()


def _policy_check(
    conditions: Conditions,
    source: Source,
    indexes: dict[Digest, Index],
    warn: Callable[[str], None],
) -> Check:
    """Return the check of documents, once the policy has not rejected the whole image."""
    if conditions.requirements:
        from imgproxy.verification.signatures.policy_check import PolicyCheck

        return PolicyCheck(conditions, source, indexes, warn).check
    return _accept


async def _rejection(check: Check, root: VerifiedDocument) -> Failure | None:
    """Return why an index is not accepted, which what it names may be all the same.

    Raises what the check raises, for a manifest its `DeniedError` as well.
    """
    try:
        await check(root)
    except DeniedError as error:
        if isinstance(root.parsed, Manifest):
            raise
        return error.copy()
    return None


async def _accept(*_: VerifiedDocument) -> None:
    """Accept any document: the policy requires no signatures."""
