"""Authorization of requests to one repository: Basic, and bearer tokens with their renewal.

Nothing is sent in advance: what is needed is in the challenge of the first response with status 401
(RFC 9110 section 11.6.1). A token is then kept and sent with every request until shortly before it
expires; one that is refused is replaced once. What to ask a token server for, and what its response
means, is decided in `specs.oci.token`.

The registry receives the token. So one with a public address cannot name a realm with an internal
one: what a server there says is not for the registry to know, nor for whoever reads messages.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, NamedTuple, Protocol

import trio

from imgproxy.single_flight import SingleFlight
from imgproxy.specs.http import challenge as challenges
from imgproxy.specs.oci import token as tokens
from imgproxy.transports.registry.redirects import discard, retry_after

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from imgproxy.net.response import Response
    from imgproxy.specs.http.challenge import Challenge
    from imgproxy.specs.http.credentials import Credentials
    from imgproxy.specs.http.url import Url

# A token is renewed this long before its end, so that it does not expire on the way.
_MARGIN = 5.0


class Send(Protocol):
    """How a request is sent: redirects are followed, `authorization` stays at the URL's origin."""

    async def __call__(
        self,
        url: Url,
        fields: dict[str, str],
        authorization: str,
        *,
        form: bytes | None = None,
        internal: bool = True,
    ) -> Response:
        """Return the response to a GET, or to a POST of a form. Raises `Failure`.

        `internal` false asks no server with an internal address.
        """


class _Demand(NamedTuple):
    """A challenge, and whether it came from an internal address."""

    challenge: Challenge
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
        self._demand: _Demand | None = None
        self._expires = float("inf")
        self._generation = 0
        self._scopes = [f"repository:{repository}:pull"]
        self._renewing = SingleFlight()

    async def request(self, url: Url, fields: dict[str, str]) -> tuple[Response, bytes]:
        """Return the response to a request, and the body of it if it is a final refusal (401).

        Raises `Failure`.
        """
        if self._demand is not None and trio.current_time() >= self._expires:
            await self._renew(url, self._demand, self._generation)
        value, generation, is_new = self._value, self._generation, False
        response = await self._send(url, fields, value)
        while response.status == 401 and response.url.origin == url.origin:
            body = await discard(response)
            challenge = self._acceptable_challenge(response, is_new=is_new)
            if challenge is None:
                return response, body
            refused = value
            demand = _Demand(challenge, response.is_internal)
            value = await self._renew(url, demand, generation)
            if value == refused:
                return response, body
            generation, is_new = self._generation, True
            response = await self._send(url, fields, value)
        return response, b""

    def _acceptable_challenge(self, refusal: Response, *, is_new: bool) -> Challenge | None:
        """Return the challenge to meet, None where nothing is left to try.

        A refused token that `is_new`, fetched for this very request, is not fetched again, unless
        the registry requires one scope more than it should (registry.suse.com does).
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

    async def _renew(self, url: Url, demand: _Demand, generation: int) -> str:
        """Return the value that replaces that of `generation`; tasks share one renewal."""
        return await self._renewing.get(
            lambda: None if self._generation == generation else self._value,
            partial(self._meet, url, demand),
        )

    async def _meet(self, url: Url, demand: _Demand) -> str:
        """Return the value that meets a challenge of `url`, and keep it for later requests."""
        challenge, internal = demand
        credentials = await self._find_credentials()
        self.source = "" if credentials is None else credentials.source
        if challenge.scheme == "basic":
            return self._value if credentials is None else self._keep(credentials.basic)
        request = tokens.request(
            url, challenge, self._scopes, credentials, allow_http=self._allow_http
        )
        response = await self._send(
            request.url, {}, request.authorization, form=request.form, internal=internal
        )
        if response.status != 200:
            body = await discard(response)
            raise tokens.failure(
                request.url, response.status, body, self.source, retry_after=retry_after(response)
            )
        token = tokens.parse(await response.read(tokens.MAX_REPLY_SIZE), request.url)
        self._demand = demand
        self._expires = trio.current_time() + token.lifetime - _MARGIN
        return self._keep(f"Bearer {token.value}")

    def _keep(self, value: str) -> str:
        self._value = value
        self._generation += 1
        return value


def _best_supported(response: Response) -> Challenge | None:
    """Return the challenge to meet: a token may be had with or without credentials."""
    offered = [
        challenge
        for header in response.headers("www-authenticate")
        for challenge in challenges.parse(header)
    ]
    by_scheme = {challenge.scheme: challenge for challenge in reversed(offered)}
    return by_scheme.get("bearer") or by_scheme.get("basic")
