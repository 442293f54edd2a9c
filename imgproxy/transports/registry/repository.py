"""A repository at a registry: requests for what it has, and what the responses hold.

What to ask for and what an answer means is decided by `specs.oci.distribution`. A request is sent
once: trying again, and at another location, is up to `failover`.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from imgproxy.errors import BadUpstreamError, DeniedError, clean
from imgproxy.net.request import GET, HEAD
from imgproxy.specs.http import retry
from imgproxy.specs.oci import distribution
from imgproxy.specs.oci import media_type as types
from imgproxy.specs.oci.distribution import (
    BasePath,
    BlobPath,
    ManifestPath,
    ReferrersPath,
    SignaturesPath,
    TagsPath,
)
from imgproxy.specs.oci.manifest import MAX_DOCUMENT_SIZE
from imgproxy.transports.registry.authorization import Authorization, offered
from imgproxy.transports.registry.blob_part import open_part
from imgproxy.transports.registry.redirects import OK, discard, read_json, retry_after

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from imgproxy.errors import Failure
    from imgproxy.host.credential_lookup import CredentialLookup
    from imgproxy.net.request import Method
    from imgproxy.net.response import Response
    from imgproxy.specs.http.content_range import Range
    from imgproxy.specs.http.credentials import Credentials
    from imgproxy.specs.http.url import Url
    from imgproxy.specs.oci.digest import Digest
    from imgproxy.specs.oci.distribution import ApiPath
    from imgproxy.transports.registry.blob_part import Part
    from imgproxy.transports.registry.registry_host import RegistryHost

# Other registries that redirects lead to, whose tokens are kept. One is usual.
_MAX_OTHERS = 16

# The header field that announces the extension counts in a refusal as well.
_ANY_STATUS = range(100, 600)


class FoundManifest(NamedTuple):
    """A manifest or an index as a registry sent it.

    `digests` are those of `Docker-Content-Digest`.
    """

    raw: bytes
    media_type: str
    digests: tuple[Digest, ...]


class Repository:
    """A repository at a registry, with its authorization; a location of `failover`.

    `is_own`: it is at the registry that the image's name leads to, which is the only one to receive
    credentials that options give; `registry_token` is such a one, empty for none. `is_mirror` is
    for debug messages, and for those mirrors that are told who asks. All methods raise `Failure`.
    """

    def __init__(
        self,
        host: RegistryHost,
        repository: str,
        credential_lookup: CredentialLookup,
        *,
        is_own: bool,
        is_mirror: bool = False,
        registry_token: str = "",
    ) -> None:
        self.name = f"{host.registry}/{repository}"
        self.demerits = 0
        self.outage = host.outage
        self.is_insecure = host.insecure
        self._host = host
        self._repository = repository
        self._credential_lookup = credential_lookup
        self._kind = "mirror" if is_mirror else "registry"
        self._via = {"Via": host.via} if is_mirror and host.via else {}
        self._authorization: Authorization = Authorization(
            repository,
            partial(credential_lookup.find, host.registry, repository, is_own=is_own),
            partial(self._send, lambda: self._authorization.source),
            allow_http=host.insecure,
            registry_token=registry_token if is_own else "",
        )
        # By origin and repository at other registries that redirects led to.
        self._anonymous: dict[tuple[object, str], Authorization] = {}

    @property
    def has_login(self) -> bool:
        """Whether credentials have been sent to the registry."""
        return bool(self._authorization.source)

    async def manifest(self, name: str) -> FoundManifest:
        """Return a manifest or an index by a tag or a digest."""
        response = await self._get(ManifestPath(name), {"Accept": distribution.ACCEPT_MANIFESTS})
        named = distribution.content_digests(response.headers("docker-content-digest"))
        raw = await read_json(response, MAX_DOCUMENT_SIZE)
        if raw.lstrip()[:1] == b"<":
            raise _page(response, raw)
        return FoundManifest(raw, response.header("content-type"), named)

    async def has_manifest(self, name: str, digest: Digest) -> bool:
        """Return whether the registry says, without sending it, that a tag stands for a digest.

        Where it says nothing of digests, or does not support HEAD, False is no answer.
        """
        path = ManifestPath(name)
        url = await self._host.url(self._repository, path)
        fields = {"Accept": distribution.ACCEPT_MANIFESTS}
        response, _ = await self._request(url, fields, HEAD)
        await discard(response)
        if retry.is_transient_status(response.status):
            message = f"{path}: HEAD {response.url}: {response.status}"
            raise distribution.refusal(message, response.status, retry_after=retry_after(response))
        named = distribution.content_digests(response.headers("docker-content-digest"))
        return response.status in OK and named == (digest,)

    async def blob(self, digest: Digest, wanted: Range | None = None) -> Part:
        """Return the response with a blob, or with the wanted rest of it, to be read."""
        path = BlobPath(digest)

        async def get(fields: dict[str, str], *, wanted: Collection[int] = OK) -> Response:
            return await self._get(path, fields, wanted=wanted)

        return await open_part(get, wanted)

    async def referrers(self, digest: Digest, query: str) -> tuple[bytes, str]:
        """Return a page of the list of what refers to a digest, and its `Link` field."""
        response = await self._get(ReferrersPath(digest, query), {"Accept": types.OCI_INDEX})
        return await read_json(response, MAX_DOCUMENT_SIZE), response.header("link")

    async def tags(self, query: str) -> tuple[bytes, str]:
        """Return a page of the list of tags, and its `Link` field."""
        response = await self._get(TagsPath(query), {"Accept": "application/json"})
        return await read_json(response, MAX_DOCUMENT_SIZE), response.header("link")

    async def has_signatures(self) -> bool:
        """Return whether the registry announces the extension for signatures."""
        response = await self._get(BasePath(), {}, wanted=_ANY_STATUS)
        await discard(response)
        return response.header("x-registry-supports-signatures") == "1"

    async def signatures(self, digest: Digest, limit: int) -> bytes:
        """Return the signatures that the extension has, at most `limit` bytes of them."""
        response = await self._get(SignaturesPath(digest), {})
        return await read_json(response, limit)

    async def _get(
        self, path: ApiPath, fields: dict[str, str], *, wanted: Collection[int] = OK
    ) -> Response:
        """Return the response; a status that is not `wanted` raises `Failure`."""
        url = await self._host.url(self._repository, path)
        response, body = await self._request(url, fields)
        is_own = distribution.is_authorized(response.url, url)
        if response.status in distribution.STORE_REFUSALS and not is_own:
            await discard(response)
            response, body = await self._request(url, fields)
        if response.status not in wanted:
            raise await self._failure(response, body, url, path)
        return response

    async def _request(
        self, url: Url, fields: dict[str, str], method: Method = GET
    ) -> tuple[Response, bytes]:
        """Return the response at the end of all redirects, with what was read of a refusal's body.

        Another registry that they lead to gets a token without credentials: those in use are not
        for it. If it redirects to a third one, that gets none.
        """
        response, body = await self._authorization.request(url, fields, method)
        name = distribution.repository_of(response.url)
        if response.status != 401 or response.url.origin == url.origin or not name:
            return response, body
        key = response.url.origin, name
        if key not in self._anonymous:
            if len(self._anonymous) == _MAX_OTHERS:
                self._anonymous.clear()
            send = partial(self._send, str)
            self._anonymous[key] = Authorization(
                name, _find_none, send, allow_http=self._host.insecure
            )
        return await self._anonymous[key].resume(response, fields, method)

    async def _send(
        self,
        find_source: Callable[[], str],
        url: Url,
        fields: dict[str, str],
        authorization: str,
        *,
        method: Method = GET,
        internal: bool = True,
    ) -> Response:
        source = find_source()
        shown = f", credentials from {source}" if source else ""
        note = f" ({self._kind} {self.name}{shown})"
        return await self._host.get(
            url,
            {**fields, **self._via},
            authorization,
            method=method,
            note=note,
            internal=internal,
        )

    async def _failure(self, response: Response, body: bytes, url: Url, path: ApiPath) -> Failure:
        body = body or await discard(response)
        wait = retry_after(response)
        failure = distribution.failure(response.url, response.status, body, path, retry_after=wait)
        if response.status != 401:
            return failure
        reason = await self._why_refused(response, url)
        return DeniedError(f"{failure.message}: {reason}", code=failure.code, retry_after=wait)

    async def _why_refused(self, response: Response, url: Url) -> str:
        """Return why there was no more to try after a 401, and the way out."""
        source = self._authorization.source
        schemes = [challenge.scheme for challenge in offered(response)]
        if not distribution.is_authorized(response.url, url):
            return f"{self.name} redirects there, where its credentials are not sent"
        if source:
            return f"the credentials from {source} were refused; {distribution.WITHOUT_LOGIN}"
        if not {"bearer", "basic"}.intersection(schemes):
            asked = f"offers {clean(', '.join(schemes))} alone" if schemes else "offers no scheme"
            return f"no credentials were sent, as it {asked}, and Basic and Bearer are supported"
        places = ", ".join(await self._credential_lookup.places())
        or_absent = ", or it does not exist" if self._authorization.has_anonymous_token else ""
        return f"there are no credentials for {self.name} (looked for in: {places}){or_absent}"


async def _find_none() -> Credentials | None:
    """Return that there are no credentials."""
    return None


def _page(response: Response, raw: bytes) -> Failure:
    """Return the failure for markup in place of a manifest, such as the page of a login."""
    from imgproxy.specs.http import refusal_body

    said = clean(response.header("content-type")) or "no type", refusal_body.parse(raw).summary
    return BadUpstreamError(
        f"GET {response.url}: a page, and no manifest ({': '.join(filter(None, said))});"
        " there is no registry at this URL, or a proxy or a login stands before it"
    )
