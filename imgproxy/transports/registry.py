"""`docker://`: a registry, by the OCI distribution specification.

One endpoint, anonymous access. What to ask and what an answer means is decided by
`spec.distribution`; here it is done. There is no ping: the answer to the first request tells the
same. A registry that wants a token gets asked again with one, and the token is shared by all
requests until it is refused.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from imgproxy import __version__
from imgproxy.client import Client, Dialer
from imgproxy.config.policy import docker_scopes
from imgproxy.errors import BadUpstreamError, Failure, UnreachableError, clean
from imgproxy.shared import SharedAttempt
from imgproxy.spec import challenge as challenges
from imgproxy.spec import digest as digests
from imgproxy.spec import distribution
from imgproxy.spec.manifest import MAX_DOCUMENT_SIZE
from imgproxy.transports.source import Document, Identity

if TYPE_CHECKING:
    from imgproxy.client import Response
    from imgproxy.spec.challenge import Challenge
    from imgproxy.spec.digest import Digest
    from imgproxy.spec.manifest import Descriptor
    from imgproxy.spec.reference import Reference
    from imgproxy.spec.url import Url
    from imgproxy.system import Reporter
    from imgproxy.transports import Network
    from imgproxy.transports.source import Reader


class Registry:
    """A repository at a registry. `tls_verify` false allows plain http as well. See `Source`."""

    def __init__(self, reference: Reference, client: Client, *, tls_verify: bool) -> None:
        self.name = f"docker://{reference}"
        suffix = f"@{reference.digest}" if reference.digest else f":{reference.tag}"
        scopes = docker_scopes(reference.registry, reference.repository, suffix)
        self.identity = Identity("docker", scopes)
        self._reference = reference
        self._client = client
        self._tls_verify = tls_verify
        self._scheme = "https" if tls_verify else ""
        self._token = ""
        self._probing = SharedAttempt()
        self._asking = SharedAttempt()

    @classmethod
    def over_network(cls, reference: Reference, network: Network, reporter: Reporter) -> Registry:
        """Give the registry behind a real network."""
        client = Client(
            Dialer(tls_verify=network.tls_verify),
            reporter,
            stall_timeout=network.stall_timeout,
            user_agent=f"imgproxy/{__version__}",
        )
        return cls(reference, client, tls_verify=network.tls_verify)

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
        return await self._get("blob", str(descriptor.digest), {})

    async def _document(self, name: str, digest: Digest | None, size: int | None) -> Document:
        accept = {"Accept": distribution.ACCEPT_MANIFESTS}
        response = await self._get("manifest", name, accept)
        media_type = response.header("content-type")
        said = _content_digest(response)
        raw = await response.read(MAX_DOCUMENT_SIZE)
        named = tuple(each for each in (digest, said) if each is not None)
        return Document(raw, media_type, named, size, f"{self.name}: manifest {name}")

    async def _get(self, kind: str, name: str, headers: dict[str, str]) -> Response:
        """Give the reply that has what was asked for, past tokens and redirects."""
        url = distribution.registry_url(await self._choose_scheme(), self._reference, kind, name)
        token = self._token
        response = await self._follow(url, headers, token)
        body = b""
        if response.status == 401:
            body = await _discard(response)
            token = await self._fresh_token(url, response, token)
            if token:
                response, body = await self._follow(url, headers, token), b""
        if response.status == 200:
            encoding = response.header("content-encoding").lower()
            if encoding in ("", "identity"):
                return response
            response.close()
            raise BadUpstreamError(
                f"GET {response.url}: the reply is encoded ({clean(encoding)}), though nobody"
                " asked for that"
            )
        body = body or await _discard(response)
        raise distribution.failure(response.url, response.status, body, kind, name)

    async def _follow(self, url: Url, headers: dict[str, str], token: str) -> Response:
        """Send a request, and after it whatever redirects it gets; the token stays at home."""
        origin = url.origin
        for _ in range(distribution.MAX_REDIRECTS + 1):
            at_home = token and url.origin == origin
            authorization = {"Authorization": f"Bearer {token}"} if at_home else {}
            response = await self._client.get(url, {**headers, **authorization})
            if response.status not in distribution.REDIRECTS:
                return response
            await _discard(response)
            location = response.header("location")
            url = distribution.redirect(url, location, allow_http=not self._tls_verify)
        raise BadUpstreamError(
            f"GET {url}: redirected more than {distribution.MAX_REDIRECTS} times"
        )

    async def _choose_scheme(self) -> str:
        """Give https, or where certificates are not verified whatever the registry speaks."""
        return self._scheme or await self._probing.get(lambda: self._scheme or None, self._probe)

    async def _probe(self) -> str:
        """Dial, and leave the connection for the request that follows."""
        try:
            await self._connect("https")
            self._scheme = "https"
        except Failure as error:
            try:
                await self._connect("http")
            except Failure as second:
                raise UnreachableError(f"{error.message}; {second.message}") from None
            self._scheme = "http"
        return self._scheme

    async def _connect(self, scheme: str) -> None:
        await self._client.connect(distribution.registry_url(scheme, self._reference, "blob", ""))

    async def _fresh_token(self, url: Url, refusal: Response, refused: str) -> str:
        """Give a token in place of the refused one, empty if the registry wants something else."""
        challenge = _bearer(refusal)
        if challenge is None or refusal.url.origin != url.origin:
            return ""
        return await self._asking.get(
            lambda: None if self._token == refused else self._token,
            partial(self._ask_for_token, url, challenge),
        )

    async def _ask_for_token(self, url: Url, challenge: Challenge) -> str:
        where = distribution.token_url(
            url, challenge, self._reference, allow_http=not self._tls_verify
        )
        response = await self._client.get(where, {})
        if response.status != 200:
            body = await _discard(response)
            raise distribution.token_failure(where, response.status, body)
        body = await response.read(distribution.MAX_TOKEN_SIZE)
        self._token = distribution.parse_token(body, where)
        return self._token

    def close(self) -> None:
        """See `Source`."""
        self._client.close()


def _bearer(response: Response) -> Challenge | None:
    offered = [
        challenge
        for header in response.headers("www-authenticate")
        for challenge in challenges.parse(header)
    ]
    return next((each for each in offered if each.scheme == "bearer"), None)


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


async def _discard(response: Response) -> bytes:
    """Read a reply that is not what was wanted, so that its connection can be used again."""
    try:
        return await response.read(distribution.MAX_ERROR_SIZE)
    except Failure:
        return b""
