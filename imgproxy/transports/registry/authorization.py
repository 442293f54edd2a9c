"""Authorization of requests to one repository: Basic, and bearer tokens with their renewal.

Nothing is sent in advance: what is needed is in the challenge of the first response with status 401
(RFC 9110 section 11.6.1). A token is then kept and sent with every request until shortly before it
expires; one that is refused is replaced once. What to ask a token server for, and what its response
means, is decided in `specs.oci.token`; which URLs get the value, in `specs.oci.distribution`.

The registry receives the token. So one with a public address cannot name a realm with an internal
one: what a server there says is not for the registry to know, nor for whoever reads messages.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, NamedTuple, Protocol

import trio

from imgproxy.errors import HOST_FAILURES, Failure, UnreachableError
from imgproxy.net.request import GET, post
from imgproxy.single_flight import SingleFlight
from imgproxy.specs.http import challenge as challenges
from imgproxy.specs.oci import distribution
from imgproxy.specs.oci import token as tokens
from imgproxy.transports.registry.redirects import discard, retry_after

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from imgproxy.net.request import Method
    from imgproxy.net.response import Response
    from imgproxy.specs.http.challenge import Challenge
    from imgproxy.specs.http.credentials import Credentials
    from imgproxy.specs.http.url import Url
    from imgproxy.specs.oci.token import Token

# Refusals that are verdicts, and for some registries also what a token gets that has ended.
_VERDICTS = frozenset({400, 403})

# A token is renewed this long before its end, so that it does not expire on the way.
_MARGIN = 5.0


class Send(Protocol):
    """How a request is sent: redirects are followed, `authorization` stays at the registry."""

    async def __call__(
        self,
        url: Url,
        fields: dict[str, str],
        authorization: str,
        *,
        method: Method = GET,
        internal: bool = True,
    ) -> Response:
        """Return the response to a request. Raises `Failure`.

        `internal` false asks no server with an internal address.
        """


class _Demand(NamedTuple):
    """What a refusal asks for: a token, Basic, or either, and whether an internal address asked."""

    bearer: Challenge | None
    basic: Challenge | None
    internal: bool


class Authorization:
    """The value of `Authorization` for requests to one repository, shared by all of them.

    `find_credentials` returns those for it, or None. `registry_token` is a token that an option
    gives, empty for none; no other one is requested then. `allow_http`: a token may be fetched over
    plain http. `source` is where the credentials in use come from, empty for none.
    """

    def __init__(
        self,
        repository: str,
        find_credentials: Callable[[], Awaitable[Credentials | None]],
        send: Send,
        *,
        allow_http: bool,
        registry_token: str = "",
    ) -> None:
        self._find_credentials = find_credentials
        self._send = send
        self._allow_http = allow_http
        self._value = f"Bearer {registry_token}" if registry_token else ""
        self._is_given = bool(registry_token)
        self.source = "--registry-token" if registry_token else ""
        # What the token that is kept was requested for, None where none is kept.
        self._demand: _Demand | None = None
        # Why there is no token, where Basic is in its place.
        self._failure: Failure | None = None
        self._expires = float("inf")
        self._generation = 0
        # The generation of the value that was last seen to work.
        self._accepted = -1
        self._scopes = [f"repository:{repository}:pull"]
        self._renewing = SingleFlight()

    @property
    def has_anonymous_token(self) -> bool:
        """Whether there is a token that was given without credentials."""
        return bool(self._value) and not self.source

    async def request(
        self, url: Url, fields: dict[str, str], method: Method = GET
    ) -> tuple[Response, bytes]:
        """Return the response to a request, and what was read of the body of a final refusal.

        Raises `Failure`.
        """
        if self._demand is not None and self._is_over:
            await self._renew(url, self._demand, self._generation)
        value, generation = self._value, self._generation
        send = partial(self._send, url, fields, method=method)
        return await self._insist(url, send, await send(value), value, generation)

    async def resume(
        self, refusal: Response, fields: dict[str, str], method: Method = GET
    ) -> tuple[Response, bytes]:
        """Return what `request` would, where a request without a value has been refused."""
        send = partial(self._send, refusal.url, fields, method=method)
        return await self._insist(refusal.url, send, refusal, "", 0)

    async def _insist(
        self,
        url: Url,
        send: Callable[[str], Awaitable[Response]],
        response: Response,
        value: str,
        generation: int,
    ) -> tuple[Response, bytes]:
        """Meet what refusals of `url` ask for; `generation` is that of the value that was sent."""
        is_new = False
        while demand := self._demand_of(response, url, generation, is_new=is_new):
            body = await discard(response)
            refused, value = value, await self._renew(url, demand, generation)
            if value == refused:
                self._raise_failure()
                return response, body
            generation, is_new = self._generation, True
            response = await send(value)
        if response.status < 400 or not distribution.is_authorized(response.url, url):
            self._accepted = generation
        elif response.status == 401:
            body = await discard(response)
            self._raise_failure()
            return response, body
        return response, b""

    def _demand_of(
        self, response: Response, url: Url, generation: int, *, is_new: bool
    ) -> _Demand | None:
        """Return what to meet for another response, None where this one is final.

        A token that was accepted before and no longer is, has been revoked or has expired, for
        which some registries answer 400 or 403. A refused token that `is_new`, fetched for this
        very request, is not fetched again, unless the registry requires one scope more than it
        should (registry.suse.com does).
        """
        if self._is_given or not distribution.is_authorized(response.url, url):
            return None
        if response.status in _VERDICTS:
            return None if is_new or self._accepted != generation else self._demand
        if response.status != 401:
            return None
        demand = _demand(response)
        if not is_new or demand is None:
            return demand
        scope = demand.bearer.parameters.get("scope", "") if demand.bearer else ""
        if scope in ("", *self._scopes) or len(self._scopes) > 1:
            return None
        self._scopes.append(scope)
        return demand

    @property
    def _is_over(self) -> bool:
        return trio.current_time() >= self._expires

    async def _renew(self, url: Url, demand: _Demand, generation: int) -> str:
        """Return the value that replaces that of `generation`; tasks share one renewal."""
        return await self._renewing.get(
            lambda: None if self._generation == generation or self._is_over else self._value,
            partial(self._meet, url, demand),
        )

    async def _meet(self, url: Url, demand: _Demand) -> str:
        """Return the value that meets a demand of `url`, and keep it for later requests.

        Where no token can be had, it is Basic if the registry offers that as well.
        """
        credentials = await self._find_credentials()
        self.source = "" if credentials is None else credentials.source
        if credentials is not None and credentials.registry_token:
            return self._keep(f"Bearer {credentials.registry_token}")
        if demand.bearer is None:
            return self._value if credentials is None else self._keep(credentials.basic)
        try:
            token = await self._fetch(url, demand.bearer, credentials, internal=demand.internal)
        except Failure as failure:
            if isinstance(failure, HOST_FAILURES) or not (
                demand.basic and credentials and credentials.username
            ):
                raise
            return self._keep(credentials.basic, failure=failure)
        expires = trio.current_time() + token.lifetime - _MARGIN
        return self._keep(f"Bearer {token.value}", demand, expires)

    async def _fetch(
        self, url: Url, challenge: Challenge, credentials: Credentials | None, *, internal: bool
    ) -> Token:
        """Return a token from the realm that a challenge of `url` names."""
        request = tokens.request(
            url, challenge, self._scopes, credentials, allow_http=self._allow_http
        )
        method = GET if request.form is None else post(request.form)
        try:
            response = await self._send(
                request.url, {}, request.authorization, method=method, internal=internal
            )
        except UnreachableError as error:
            raise error.merged([error], f"{error.message} (the token server of {url})") from error
        if response.status != 200:
            body = await discard(response)
            raise tokens.failure(
                request.url, response.status, body, self.source, retry_after=retry_after(response)
            )
        return tokens.parse(await response.read(tokens.MAX_REPLY_SIZE), request.url)

    def _keep(
        self,
        value: str,
        demand: _Demand | None = None,
        expires: float = float("inf"),
        failure: Failure | None = None,
    ) -> str:
        self._value, self._demand, self._expires, self._failure = value, demand, expires, failure
        self._generation += 1
        return value

    def _raise_failure(self) -> None:
        """Raise the failure to get a token, if what was tried in its place was refused too."""
        if self._failure is not None:
            raise self._failure.copy()


def offered(response: Response) -> list[Challenge]:
    """Return the ways to authenticate that a refusal offers."""
    fields = response.headers("www-authenticate")
    return [challenge for field in fields for challenge in challenges.parse(field)]


def _demand(response: Response) -> _Demand | None:
    """Return what a refusal asks for: a token may be had with or without credentials."""
    by_scheme = {challenge.scheme: challenge for challenge in reversed(offered(response))}
    bearer, basic = by_scheme.get("bearer"), by_scheme.get("basic")
    return _Demand(bearer, basic, response.is_internal) if bearer or basic else None
