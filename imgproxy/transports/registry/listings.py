"""What a registry lists of a repository: tags, and what refers to a digest. Lists come in pages."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from imgproxy.errors import BadUpstreamError, InvalidError, NotFoundError
from imgproxy.parsing import strict_json
from imgproxy.parsing.typed_fields import FieldError, Fields
from imgproxy.specs.oci import reference as references
from imgproxy.specs.signing import artifact
from imgproxy.transports.signature_files import readable

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from imgproxy.specs.oci.digest import Digest
    from imgproxy.specs.signing.artifact import Part
    from imgproxy.transports.registry.registry_image import RegistryImage

    # Returns a page and its `Link` field, for a query.
    GetPage = Callable[[str], Awaitable[tuple[bytes, str]]]

T = TypeVar("T")

# Pages of one list; each costs a request.
_MAX_PAGES = 8
_MAX_PAGES_OF_TAGS = 64


async def tags(image: RegistryImage) -> list[str]:
    """Return the tags of an image's repository; what cannot be a tag is none. Raises `Failure`."""

    async def page(query: str) -> tuple[bytes, str]:
        return await image.failover.ask(f"tags {query}", lambda location: location.tags(query))

    where = f"tags of {image.reference.name}"

    def parse(raw: bytes) -> list[str]:
        try:
            fields = Fields(strict_json.loads(raw))
            listed = fields.texts("tags")
        except (strict_json.JsonError, FieldError) as error:
            raise BadUpstreamError(f"{where}: {error}") from None
        return [each for each in listed if references.is_tag(each)]

    return await _all(where, page, parse, "", _MAX_PAGES_OF_TAGS)


async def referrers(image: RegistryImage, name: str, digest: Digest, query: str = "") -> list[Part]:
    """Return what refers to a document, by the registry's list or by the one under a tag.

    `name` is that of the repository in messages; `query` limits the list. Raises `Failure`.
    """
    where = f"referrers of {digest} at {name}"

    async def page(query: str) -> tuple[bytes, str]:
        return await image.failover.ask(
            f"referrers {query}", lambda location: location.referrers(digest, query)
        )

    def parse(raw: bytes) -> list[Part]:
        with readable(where):
            return artifact.manifests(raw)

    try:
        return await _all(where, page, parse, query, _MAX_PAGES)
    except (NotFoundError, BadUpstreamError):  # the registry is older than the list
        return await _tagged(image, digest)


async def _tagged(image: RegistryImage, digest: Digest) -> list[Part]:
    try:
        document = await image.tagged(artifact.referrers_tag(digest))
    except NotFoundError:
        return []
    with readable(document.name):
        return artifact.manifests(document.raw)


async def _all(
    where: str, get: GetPage, parse: Callable[[bytes], list[T]], query: str, most: int
) -> list[T]:
    """Return what all pages of a list have, the first of which `query` selects."""
    found: list[T] = []
    following: str | None = query
    for _ in range(most):
        raw, link = await get(following or "")
        found += parse(raw)
        following = artifact.next_query(link)
        if following is None:
            return found
    raise InvalidError(f"{where}: the list has more than {most} parts")
