"""One place to ask for an image: a repository at a registry, with its scheme, tokens, redirects.

What to ask and what an answer means is decided by `spec.distribution` and `spec.token`; here it is
done, once: trying again, and elsewhere, is `registry`'s. There is no ping: the answer to the first
request tells the same.
"""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING

import trio

from imgproxy.errors import (
    BadUpstreamError,
    ConfigurationError,
    DeniedError,
    Failure,
    UnreachableError,
    clean,
)
from imgproxy.single_flight import SingleFlight
from imgproxy.specs.http import challenge as challenges
from imgproxy.specs.http import retry
from imgproxy.specs.oci import distribution
from imgproxy.specs.oci import token as tokens

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection

    from imgproxy.config.endpoints import Endpoint as Place
    from imgproxy.host.credential_lookup import CredentialLookup
    from imgproxy.net.client import Client
    from imgproxy.net.response import Response
    from imgproxy.specs.http.challenge import Challenge
    from imgproxy.specs.http.url import Url

OK = frozenset({200})

# A token is renewed this long before its end, so that it does not end on the way.
_MARGIN = 5.0


class Endpoint:
    """A place that the configuration names, and the connections and tokens for it.

    `is_own`: it is at the registry that the image's name leads to, which is the only one to be
    shown credentials that options give. `registry_token` is such a one, empty for none.
    """

    def __init__(
        self,
        place: Place,
        client: Client,
        credential_lookup: CredentialLookup,
        *,
        is_own: bool,
        registry_token: str = "",
    ) -> None:
        self.place = place
        self.name = place.reference.name
        self.demerits = 0
        self.refusal = place.refusal
        self._reference = place.reference
        self._insecure = place.insecure
        self._client = client
        self._credential_lookup = credential_lookup
        self._is_own = is_own
        self._scheme = "" if place.insecure else "https"
        self._authorization = f"Bearer {registry_token}" if registry_token and is_own else ""
        self._is_given = bool(self._authorization)
        self._source = "--registry-token" if self._is_given else ""
        self._ends = float("inf")
        self._generation = 0
        self._challenge: Challenge | None = None
        self._scopes = [f"repository:{place.reference.repository}:pull"]
        self._probing = SingleFlight()
        self._asking = SingleFlight()

    async def get(
        self,
        kind: str,
        name: str,
        fields: dict[str, str],
        *,
        wanted: Collection[int] = OK,
    ) -> Response:
        """Give the reply with something of a kind, such as a `blob`, past tokens and redirects.

        The kinds are those of `distribution.registry_url`; `wanted` are the statuses that are no
        failure. Raises `Failure`.
        """
        if self.refusal:
            raise DeniedError(self.refusal)
        url = distribution.registry_url(await self._choose_scheme(), self._reference, kind, name)
        response, body = await self._authorized(url, fields)
        if response.status not in wanted:
            raise await self._failure(response, body, kind, name)
        check_encoding(response)
        return response

    async def _authorized(self, url: Url, fields: dict[str, str]) -> tuple[Response, bytes]:
        """Give the reply after what authorization it took, and the body of a final refusal."""
        if self._challenge is not None and trio.current_time() >= self._ends:
            await self._renew(url, self._challenge, self._generation)
        authorization, generation, is_new = self._authorization, self._generation, False
        response = await self._follow(url, fields, authorization)
        while response.status == 401 and response.url.origin == url.origin:
            body = await discard(response)
            challenge = self._to_meet(response, is_new=is_new)
            if challenge is None:
                return response, body
            refused = authorization
            authorization = await self._renew(url, challenge, generation)
            if authorization == refused:
                return response, body
            generation, is_new = self._generation, True
            response = await self._follow(url, fields, authorization)
        return response, b""

    def _to_meet(self, refusal: Response, *, is_new: bool) -> Challenge | None:
        """Give the challenge to meet, None where nothing is left to be tried.

        What was refused and `is_new`, made for this very request, is not made again, unless the
        registry wants one more scope than it should (registry.suse.com does).
        """
        challenge = _best_supported(refusal)
        if challenge is None or self._is_given:
            return None
        if not is_new:
            return challenge
        scope = challenge.parameters.get("scope", "")
        insufficient = challenge.parameters.get("error") == "insufficient_scope"
        if insufficient and scope not in ("", *self._scopes) and len(self._scopes) == 1:
            self._scopes.append(scope)
            return challenge
        return None

    async def _renew(self, url: Url, challenge: Challenge, generation: int) -> str:
        """Give the authorization after that of a generation; all who need one get the same."""
        return await self._asking.get(
            lambda: None if self._generation == generation else self._authorization,
            partial(self._authorize, url, challenge),
        )

    async def _authorize(self, url: Url, challenge: Challenge) -> str:
        """Find out what meets the challenge, and keep it for later requests."""
        credentials = await self._credential_lookup.find(
            self._reference.registry, self._reference.repository, is_own=self._is_own
        )
        self._source = "" if credentials is None else credentials.source
        if challenge.scheme == "basic":
            return self._authorization if credentials is None else self._keep(credentials.basic)
        request = tokens.request(
            url, challenge, self._scopes, credentials, allow_http=self._insecure
        )
        response = await self._follow(request.url, {}, request.authorization, form=request.form)
        if response.status != 200:
            body = await discard(response)
            failure = tokens.failure(request.url, response.status, body, self._source)
            raise _with_retry_after(failure, response)
        token = tokens.parse(await response.read(tokens.MAX_REPLY_SIZE), request.url)
        self._challenge = challenge
        self._ends = trio.current_time() + token.lifetime - _MARGIN
        return self._keep(f"Bearer {token.value}")

    def _keep(self, authorization: str) -> str:
        self._authorization = authorization
        self._generation += 1
        return authorization

    async def _follow(
        self, url: Url, fields: dict[str, str], authorization: str, *, form: bytes | None = None
    ) -> Response:
        """Send a request, and after it whatever redirects it gets; credentials stay at home.

        A form holds credentials, and is not sent on.
        """
        origin = url.origin
        at_home = {"Authorization": authorization} if authorization else {}

        def headers(url: Url) -> dict[str, str]:
            return {**fields, **(at_home if url.origin == origin else {})}

        get = partial(self._client.get, form=form, note=self._note)
        if form is not None:
            return await get(url, headers(url))
        return await follow(get, url, headers, allow_http=self._insecure)

    async def _failure(self, response: Response, body: bytes, kind: str, name: str) -> Failure:
        body = body or await discard(response)
        failure = distribution.failure(response.url, response.status, body, kind, name)
        if response.status == 401:
            had = f"the credentials from {self._source} were" if self._source else "there are no"
            why = f"{had} refused" if self._source else f"{had} credentials for {self.name}"
            failure = DeniedError(f"{failure.message}: {why}", code=failure.code)
        return _with_retry_after(failure, response)

    @property
    def _note(self) -> str:
        """What `--debug` adds to the line of a request."""
        kind = "mirror" if self.place.is_mirror else "registry"
        source = f", credentials from {self._source}" if self._source else ""
        return f" ({kind} {self.name}{source})"

    async def _choose_scheme(self) -> str:
        """Give https, or where the endpoint is insecure whatever the registry speaks."""
        return self._scheme or await self._probing.get(lambda: self._scheme or None, self._probe)

    async def _probe(self) -> str:
        """Dial, and leave the connection for the request that follows."""
        try:
            await self._connect("https")
            self._scheme = "https"
        except ConfigurationError:
            raise  # this host's, and no reason to do without TLS
        except Failure as error:
            try:
                await self._connect("http")
            except ConfigurationError:
                raise
            except Failure as second:
                failure = UnreachableError(f"{error.message}; {second.message}")
                failure.is_transient = error.is_transient or second.is_transient
                raise failure from None
            self._scheme = "http"
        return self._scheme

    async def _connect(self, scheme: str) -> None:
        await self._client.connect(distribution.registry_url(scheme, self._reference, "blob", ""))

    def close(self) -> None:
        """Let go of connections."""
        self._client.close()


def _best_supported(response: Response) -> Challenge | None:
    """Give the challenge to meet: a token can be had without credentials as well as with them."""
    offered = [
        challenge
        for header in response.headers("www-authenticate")
        for challenge in challenges.parse(header)
    ]
    by_scheme = {challenge.scheme: challenge for challenge in reversed(offered)}
    return by_scheme.get("bearer") or by_scheme.get("basic")


def _with_retry_after(failure: Failure, response: Response) -> Failure:
    failure.retry_after = retry.retry_after(response.header("retry-after"), time.time())
    return failure


async def follow(
    get: Callable[[Url, dict[str, str]], Awaitable[Response]],
    url: Url,
    headers: Callable[[Url], dict[str, str]],
    *,
    allow_http: bool,
) -> Response:
    """Give the reply at the end of whatever redirects there are; `headers` are those for each URL.

    `allow_http`: even from https. Raises `Failure`.
    """
    for _ in range(distribution.MAX_REDIRECTS + 1):
        response = await get(url, headers(url))
        if response.status not in distribution.REDIRECTS:
            return response
        await discard(response)
        url = distribution.redirect(url, response.header("location"), allow_http=allow_http)
    raise BadUpstreamError(f"GET {url}: redirected more than {distribution.MAX_REDIRECTS} times")


def check_encoding(response: Response) -> None:
    """Raise `BadUpstreamError` for a reply whose bytes are not those that were asked for."""
    encoding = response.header("content-encoding").lower()
    if encoding not in ("", "identity"):
        response.close()
        raise BadUpstreamError(
            f"GET {response.url}: the reply is encoded ({clean(encoding)}), though nobody asked for"
            " that"
        )


async def discard(response: Response) -> bytes:
    """Read a reply that is not what was wanted, so that its connection can be used again."""
    try:
        return await response.read(distribution.MAX_ERROR_SIZE)
    except Failure:
        return b""
