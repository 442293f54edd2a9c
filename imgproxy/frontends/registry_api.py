"""A read-only registry: the distribution specification's pull and discovery parts.

What may be had is decided by `images.repositories`; here requests become lookups, and what is found
becomes replies. All bytes are the originals.
"""

from __future__ import annotations

import json
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from imgproxy.errors import Failure, NotFoundError
from imgproxy.frontends import registry_routes as routes
from imgproxy.frontends.registry_failures import as_registry
from imgproxy.server.handler import NOT_MODIFIED, PARTIAL_CONTENT, Reply, stale_fields
from imgproxy.server.request_errors import RangeNotSatisfiableError
from imgproxy.specs.http import ranges
from imgproxy.specs.http.ranges import Unsatisfiable
from imgproxy.specs.oci import media_type as types
from imgproxy.specs.oci.manifest import Manifest

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from imgproxy.frontends.registry_metrics import Metrics
    from imgproxy.frontends.registry_routes import (
        GetBlob,
        GetCatalog,
        GetManifest,
        GetReferrers,
        GetTags,
        LookedUp,
        Page,
    )
    from imgproxy.images.repositories import Repositories
    from imgproxy.server.handler import Body, Request
    from imgproxy.specs.http.ranges import Part
    from imgproxy.specs.oci.digest import Digest
    from imgproxy.specs.oci.manifest import Descriptor
    from imgproxy.verification.documents import VerifiedDocument

_JSON = "application/json"
_API_VERSION = ("Docker-Distribution-Api-Version", "registry/2.0")

# A browser must not run what it is given, whatever it takes it for.
_NO_SNIFFING = ("X-Content-Type-Options", "nosniff")

# What is told of every reply below `/v2/`.
_COMMON = [_API_VERSION, _NO_SNIFFING]


class RegistryApi:
    """A `Handler` that serves repositories.

    `default_registry` is that of a name that has none. `report` takes a line for each image that is
    served. `has_catalog`: the repositories may be listed. `renew` is called before each request and
    makes what has changed count. `metrics` has what is told under `/metrics`.
    """

    # Returns a failure as it is answered.
    answered = staticmethod(as_registry)

    def __init__(
        self,
        repositories: Repositories,
        *,
        default_registry: str,
        has_catalog: bool,
        report: Callable[[str], None],
        renew: Callable[[], Awaitable[None]],
        metrics: Metrics,
    ) -> None:
        self._repositories = repositories
        self._default_registry = default_registry
        self._has_catalog = has_catalog
        self._report = report
        self._renew = renew
        self._metrics = metrics

    async def handle(self, request: Request) -> Reply:
        """Return the reply to a request. Raises `Failure`."""
        try:
            asked = routes.parse(request.method, request.target, self._default_registry)
            if isinstance(asked, routes.Fixed):
                return await self._fixed(asked)
            await self._renew()
            with self._repositories.limited():
                return await self._found(asked, request)
        except Failure as failure:
            raise self.answered(failure) from None

    async def _found(self, asked: LookedUp, request: Request) -> Reply:
        match asked:
            case routes.GetManifest():
                return await self._manifest(asked, request)
            case routes.GetBlob():
                return await self._blob(asked, request)
            case routes.GetTags():
                return await self._tags(asked)
            case routes.GetReferrers():
                return await self._referrers(asked)
            case routes.GetCatalog():
                return await self._catalog(asked)

    async def _fixed(self, asked: routes.Fixed) -> Reply:
        if asked is routes.Fixed.METRICS:
            return _text(*await self._metrics.text())
        return _json({}) if asked is routes.Fixed.PING else _text("text/plain", b"ready\n")

    async def _manifest(self, asked: GetManifest, request: Request) -> Reply:
        document = await self._repositories.manifest(asked.reference)
        fields = [
            *_content_fields(document.media_type, document.digest, asked.namespace),
            *stale_fields(document.age),
        ]
        if _is_known(request, document.digest):
            return _not_modified(fields)
        if asked.reference.digest is None and not request.is_head:
            self._metrics.images += 1
            self._report(f"{asked.reference}: {document.digest}")
        return Reply(fields, len(document.raw), document.raw)

    async def _blob(self, asked: GetBlob, request: Request) -> Reply:
        descriptor = await self._repositories.blob(asked.repository, asked.digest)
        fields = [
            *_content_fields(types.OCTET_STREAM, asked.digest, asked.namespace),
            ("Accept-Ranges", "bytes"),
        ]
        if _is_known(request, asked.digest):
            return _not_modified(fields)
        part = None if request.is_head else self._part(descriptor, request)
        body = partial(self._open, asked, part)
        if part is None:
            return Reply(fields, descriptor.size, body)
        fields.append(("Content-Range", part.field))
        return Reply(fields, part.length, body, status=PARTIAL_CONTENT)

    def _part(self, descriptor: Descriptor, request: Request) -> Part | None:
        """Return the part of a blob that is asked for, None for the whole.

        A range from the beginning need not wait until the blob has been verified: what it begins
        is the whole, whose end is withheld until then. Raises `RangeNotSatisfiableError`.
        """
        part = ranges.requested_part(
            _values(request, b"range"),
            _values(request, b"if-range"),
            str(descriptor.digest),
            descriptor.size,
        )
        if isinstance(part, Unsatisfiable):
            raise RangeNotSatisfiableError(
                f"blob {descriptor.digest}: the range begins beyond its {part.size} bytes",
                size=part.size,
            )
        if part is None or (part.start == 0 and not self._repositories.is_ready(descriptor)):
            return None
        return part

    async def _open(self, asked: GetBlob, part: Part | None) -> Body:
        try:
            with self._repositories.limited():
                return await self._repositories.open_blob(asked.repository, asked.digest, part)
        except Failure as failure:
            raise self.answered(failure) from None

    async def _tags(self, asked: GetTags) -> Reply:
        repository = asked.repository
        tags = await self._repositories.tags(repository)
        path = f"/v2/{self._path(repository.registry, repository.repository)}/tags/list"
        return _listed(path, "tags", tags, asked.page, name=repository.repository)

    async def _referrers(self, asked: GetReferrers) -> Reply:
        found = await self._repositories.referrers(asked.repository, asked.digest)
        entries = [_entry(each) for each in found]
        fields = [*_COMMON, ("Content-Type", types.OCI_INDEX)]
        if asked.artifact_type:
            entries = [each for each in entries if each.get("artifactType") == asked.artifact_type]
            fields.append(("OCI-Filters-Applied", "artifactType"))
        index = {"schemaVersion": 2, "mediaType": types.OCI_INDEX, "manifests": entries}
        body = _encoded(index)
        return Reply(fields, len(body), body)

    async def _catalog(self, asked: GetCatalog) -> Reply:
        if not self._has_catalog:
            raise NotFoundError(
                "/v2/_catalog lists the repositories only where imgproxy registry has --catalog",
                code="NAME_UNKNOWN",
            )
        names = {
            self._path(each.registry, each.repository) for each in await self._repositories.names()
        }
        return _listed("/v2/_catalog", "repositories", sorted(names), asked.page)

    def _path(self, registry: str, repository: str) -> str:
        """Return a name as the path of a request has it."""
        return repository if registry == self._default_registry else f"{registry}/{repository}"


def _content_fields(media_type: str, digest: Digest, namespace: str = "") -> list[tuple[str, str]]:
    fields = [
        *_COMMON,
        ("Content-Type", media_type),
        ("Docker-Content-Digest", str(digest)),
        ("ETag", ranges.entity_tag(str(digest))),
    ]
    return [*fields, ("OCI-Namespace", namespace)] if namespace else fields


def _is_known(request: Request, digest: Digest) -> bool:
    return ranges.is_known(_values(request, b"if-none-match"), str(digest))


def _values(request: Request, name: bytes) -> Sequence[str]:
    return [value.decode("latin-1") for key, value in request.fields if key == name]


def _not_modified(fields: list[tuple[str, str]]) -> Reply:
    return Reply(fields, 0, b"", status=NOT_MODIFIED)


def _listed(path: str, key: str, names: list[str], page: Page, **members: str) -> Reply:
    """Return one page of a list, with a link to the next where there is one."""
    left = [each for each in names if each > page.last] if page.last else names
    shown = left[: page.most]
    fields = []
    if shown and len(left) > len(shown):
        query = urlencode({"n": page.most, "last": shown[-1]})
        fields.append(("Link", f'<{path}?{query}>; rel="next"'))
    return _json({**members, key: shown}, *fields)


def _entry(document: VerifiedDocument) -> dict[str, Any]:
    """Return the descriptor of a referrer: distribution specification, "Listing Referrers"."""
    entry: dict[str, Any] = {
        "mediaType": document.media_type,
        "digest": str(document.digest),
        "size": len(document.raw),
    }
    if isinstance(document.parsed, Manifest):
        entry["artifactType"] = document.parsed.artifact_type or document.parsed.config.media_type
    annotations = json.loads(document.raw).get("annotations")
    if annotations:
        entry["annotations"] = annotations
    return entry


def _json(value: object, *fields: tuple[str, str]) -> Reply:
    body = _encoded(value)
    return Reply([*_COMMON, ("Content-Type", _JSON), *fields], len(body), body)


def _text(media_type: str, body: bytes) -> Reply:
    return Reply([_NO_SNIFFING, ("Content-Type", media_type)], len(body), body)


def _encoded(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
