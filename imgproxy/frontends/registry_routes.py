"""The requests that a registry answers, as values: distribution specification, "API".

Names are matched on the path that was decoded once, so that no escape hides anything of it. What
cannot be a name or a digest is absent like any other that is not there: clients go on to the next
mirror then. Nothing here does I/O.
"""

from __future__ import annotations

import enum
import re
from typing import TYPE_CHECKING, NamedTuple, NoReturn
from urllib.parse import parse_qsl, unquote_to_bytes

from imgproxy.errors import BadRequestError, NotFoundError, clean
from imgproxy.server import request_target
from imgproxy.server.request_errors import MethodNotAllowedError
from imgproxy.specs.oci import digest as digests
from imgproxy.specs.oci import reference as references
from imgproxy.specs.oci import registry_name

if TYPE_CHECKING:
    from imgproxy.specs.oci.digest import Digest
    from imgproxy.specs.oci.reference import Reference

# What one list has at most, and by default.
MAX_LISTED = 1000

# Docker Hub, whatever it is called.
_HUB = "docker.io"

_METHODS = frozenset({b"GET", b"HEAD"})

# Escapes of what separates: two servers may differ in whether they are the character itself.
_HIDDEN = re.compile(rb"%(?:2f|5c|00|(?![0-9a-f]{2}))", re.IGNORECASE)

# The name is as long as possible: its components may be called as these are.
_ROUTE = re.compile(r"(.+)/(manifests|blobs|referrers|tags)/([^/]+)", re.ASCII)

_MAX_QUERY = 64  # members


class Fixed(enum.Enum):
    """A path without a name: whether this is a registry, whether it is ready, what it has done."""

    PING = "/v2/"
    HEALTH = "/healthz"
    METRICS = "/metrics"


class Page(NamedTuple):
    """Which part of a list is wanted: so many at most, after the one called `last`."""

    most: int = MAX_LISTED
    last: str = ""


class GetManifest(NamedTuple):
    """`/v2/<name>/manifests/<reference>`: by a tag or a digest, which the reference has."""

    reference: Reference
    namespace: str = ""


class GetBlob(NamedTuple):
    """`/v2/<name>/blobs/<digest>`."""

    repository: Reference
    digest: Digest
    namespace: str = ""


class GetTags(NamedTuple):
    """`/v2/<name>/tags/list`."""

    repository: Reference
    page: Page


class GetReferrers(NamedTuple):
    """`/v2/<name>/referrers/<digest>`, of one type of artifacts if that is not empty."""

    repository: Reference
    digest: Digest
    artifact_type: str


class GetCatalog(NamedTuple):
    """`/v2/_catalog`."""

    page: Page


# What is looked up, and any request.
LookedUp = GetManifest | GetBlob | GetTags | GetReferrers | GetCatalog
Request = Fixed | LookedUp


def parse(method: bytes, target: bytes, default_registry: str) -> Request:
    """Return what is asked for; `HEAD` asks for the same as `GET`.

    The registry is that of `ns`, else the first component of the name if it is a host, else the
    default. Raises `NotFoundError`, `MethodNotAllowedError`, and `BadRequestError` for a query that
    cannot be meant.
    """
    try:
        raw, raw_query = request_target.split(target)
    except ValueError:
        raise no_such_path(target.decode("latin-1")) from None
    path = _decoded(raw)
    if method not in _METHODS:
        raise MethodNotAllowedError(
            f"{clean(method.decode('latin-1'))} {clean(path)}: nothing can be changed here",
            code="UNSUPPORTED",
            allow="GET, HEAD",
        )
    query = _query(raw_query)
    if path == "/v2/_catalog":
        return GetCatalog(_page(query))
    return _FIXED.get(path) or _named(path, query, default_registry)


_FIXED = {"/v2": Fixed.PING, **{each.value: each for each in Fixed}}


def _named(path: str, query: dict[str, str], default_registry: str) -> Request:
    """Return what is asked of a repository."""
    match = _ROUTE.fullmatch(path.removeprefix("/v2/")) if path.startswith("/v2/") else None
    if match is None:
        raise no_such_path(path)
    name, kind, last = match.groups()
    namespace = query.get("ns", "")
    repository = _repository(name, namespace, default_registry)
    if kind == "manifests":
        return GetManifest(_reference(repository, last), namespace)
    if kind == "blobs":
        return GetBlob(repository, _digest(last, "BLOB_UNKNOWN"), namespace)
    if kind == "referrers":
        return GetReferrers(repository, _subject(last), query.get("artifactType", ""))
    if last != "list":
        raise no_such_path(path)
    return GetTags(repository, _page(query))


def no_such_path(path: str) -> NotFoundError:
    """Return the failure to find what a path could stand for."""
    return NotFoundError(f"no such path: {clean(path)}", code="NAME_UNKNOWN")


def _decoded(raw: bytes) -> str:
    if not _HIDDEN.search(raw):
        try:
            path = unquote_to_bytes(raw).decode("ascii")
        except UnicodeDecodeError:
            pass
        else:
            return path
    raise no_such_path(raw.decode("latin-1"))


def _query(raw: bytes) -> dict[str, str]:
    """Return the members of a query; those that mean nothing here are ignored."""
    try:
        members = parse_qsl(
            raw.decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=_MAX_QUERY
        )
    except ValueError:
        raise BadRequestError("the query is malformed") from None
    query = dict(members)
    if sum(key == "ns" for key, _ in members) > 1:
        raise BadRequestError("the query has ns more than once", code="NAME_INVALID")
    return query


def _page(query: dict[str, str]) -> Page:
    count, last = query.get("n"), query.get("last", "")
    if count is None:
        return Page(last=last)
    if not re.fullmatch("[0-9]{1,9}", count, re.ASCII):
        raise BadRequestError(f'n must be a number, not "{clean(count)}"')
    return Page(min(int(count), MAX_LISTED), last)


def _repository(name: str, namespace: str, default_registry: str) -> Reference:
    registry = namespace
    if not namespace and references.has_registry(name):
        registry, _, name = name.partition("/")
    registry = registry or default_registry
    if registry_name.place(registry) == _HUB:
        registry = _HUB
    try:
        # What has no dot is a host all the same.
        if not registry_name.is_registry(registry):
            _unknown(f"{registry}/{name}")
        return references.parse_parts(registry, name)
    except BadRequestError as error:
        raise NotFoundError(error.message, code="NAME_UNKNOWN") from None


def _unknown(name: str) -> NoReturn:
    raise NotFoundError(f"{clean(name)}: there can be no such name", code="NAME_UNKNOWN")


def _reference(repository: Reference, text: str) -> Reference:
    if ":" in text:
        return repository._replace(digest=_digest(text, "MANIFEST_UNKNOWN"))
    if not references.is_tag(text):
        raise NotFoundError(
            f'{repository}: there can be no tag "{clean(text)}"', code="MANIFEST_UNKNOWN"
        )
    return repository._replace(tag=text)


def _digest(text: str, code: str) -> Digest:
    try:
        return digests.parse(text)
    except ValueError as error:
        raise NotFoundError(str(error), code=code) from None


def _subject(text: str) -> Digest:
    """Return the digest whose referrers are asked for: a 404 would mean that there is no list."""
    try:
        return digests.parse(text)
    except ValueError as error:
        raise BadRequestError(str(error), code="DIGEST_INVALID") from None
