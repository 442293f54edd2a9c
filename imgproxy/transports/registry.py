"""`docker://`: an image at a registry, or wherever the configuration says that it is.

containers-registries.conf(5) gives the endpoints: mirrors in their order, then the primary
location. They are asked in rounds: one that fails is passed over for the next, and when all have
failed and one of them may do better, there is a pause and another round. One that gave wrong bytes
is not asked for the same thing again.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, TypeVar

import trio

from imgproxy.config.policy import docker_scopes
from imgproxy.errors import BadUpstreamError, ConfigurationError, Failure, NotFoundError
from imgproxy.spec import digest as digests
from imgproxy.spec import distribution, retry
from imgproxy.spec.manifest import MAX_DOCUMENT_SIZE
from imgproxy.transports.source import Document, Identity
from imgproxy.transports.transfer import Transfer

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Sequence

    from imgproxy.response import Response
    from imgproxy.spec.digest import Digest
    from imgproxy.spec.manifest import Descriptor
    from imgproxy.spec.reference import Reference
    from imgproxy.transports.endpoint import Endpoint
    from imgproxy.transports.source import Reader

T = TypeVar("T")


class Registry:
    """An image by its logical reference, at these endpoints. See `Source`.

    `retries` are the rounds after the first; for a blob they count from the last progress.
    """

    def __init__(
        self, reference: Reference, endpoints: Sequence[Endpoint], *, retries: int
    ) -> None:
        self.name = f"docker://{reference}"
        suffix = f"@{reference.digest}" if reference.digest else f":{reference.tag}"
        scopes = docker_scopes(reference.registry, reference.repository, suffix)
        self.identity = Identity("docker", scopes)
        self.retries = retries
        self._reference = reference
        self._endpoints = endpoints
        self._condemned: dict[str, dict[Endpoint, Failure]] = {}

    async def root(self) -> Document:
        """See `Source`."""
        return await self._document(self._reference.manifest, self._reference.digest, None)

    async def document(self, descriptor: Descriptor) -> Document:
        """See `Source`."""
        document = await self._document(str(descriptor.digest), descriptor.digest, descriptor.size)
        # The index is trusted, the header of the reply is not.
        return document._replace(media_type=descriptor.media_type or document.media_type)

    async def blob(self, descriptor: Descriptor) -> Reader:
        """See `Source`."""
        digest = str(descriptor.digest)

        async def ask(endpoint: Endpoint) -> Response:
            return await endpoint.get("blob", digest, {})

        endpoint, response, _ = await self.ask(digest, ask, retry.Budget(self.retries))
        return Transfer(self, descriptor, endpoint, response)

    async def _document(self, name: str, digest: Digest | None, size: int | None) -> Document:
        async def ask(endpoint: Endpoint) -> tuple[bytes, str, Digest | None]:
            accept = {"Accept": distribution.ACCEPT_MANIFESTS}
            response = await endpoint.get("manifest", name, accept)
            said = _content_digest(response)
            raw = await response.read(MAX_DOCUMENT_SIZE)
            return raw, response.header("content-type"), said

        budget = retry.Budget(self.retries)
        endpoint, found, _ = await self.ask(name, ask, budget, primary_decides=True)
        raw, media_type, said = found
        named = tuple(each for each in (digest, said) if each is not None)
        where = f"{self.name}: manifest {name} from {endpoint.name}"
        return Document(
            raw,
            media_type,
            named,
            size,
            where,
            lambda failure: self.condemn(name, [endpoint], failure),
        )

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
        failures = dict(self._condemned.get(what, {}))
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

    def condemn(self, what: str, endpoints: Iterable[Endpoint], failure: Failure) -> bool:
        """Ask these endpoints no more for `what`; give whether there are others to ask."""
        condemned = self._condemned.setdefault(what, {})
        condemned.update(dict.fromkeys(endpoints, failure))
        return len(self._endpoints) > 1

    def _together(self, failures: dict[Endpoint, Failure]) -> Failure:
        """Give one failure for all; the primary's says what it is, unless it was not asked."""
        ordered = [(each, failures[each]) for each in self._endpoints]
        asked = [failure for each, failure in ordered if not each.place.refusal]
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
        """See `Source`."""
        for endpoint in self._endpoints:
            endpoint.close()


def _content_digest(response: Response) -> Digest | None:
    """Give the digest that the registry says the manifest has.

    One by an algorithm that is not available is merely mentioned, and no obstacle.
    """
    text = response.header("docker-content-digest")
    if not text:
        return None
    try:
        digest = digests.parse(text)
    except ValueError as error:
        response.close()
        raise BadUpstreamError(
            f"GET {response.url}: its Docker-Content-Digest is unusable: {error}"
        ) from None
    return digest if digests.is_available(digest) else None
