"""Where an image really is: what the tables of containers-registries.conf(5) say about one name.

The table with the longest prefix decides alone. Its mirrors come first, in their order, then the
primary location. What each of them is asked for is the reference with the prefix replaced.

A prefix is compared with the name alone, without tag and digest. It ends where the name does, or
before `/` or `:`; so `example.com` is a prefix of `example.com:5000/x` too, which the libraries
call unintended and leave as it is. A wildcard stands for a domain's subdomains and never for the
domain itself; what is replaced then is the host, and its port stays.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from imgproxy.config.registry_tables import DIGEST_ONLY, TAG_ONLY, Mirror, Registry
from imgproxy.errors import BadRequestError, ConfigurationError, DeniedError, clean
from imgproxy.specs.oci import reference as references

if TYPE_CHECKING:
    from collections.abc import Collection

    from imgproxy.specs.oci.reference import Reference


class Endpoint(NamedTuple):
    """A place to ask for the image.

    `reference` is what the image is called there: its registry and repository are where requests
    go, and what credentials and certificates are looked up for. `place` is where the configuration
    says so, empty if it says nothing. An endpoint with a `refusal` must not be asked, for this
    reason; it is listed because an error names every endpoint with its own cause.
    """

    reference: Reference
    insecure: bool = False
    is_mirror: bool = False
    place: str = ""
    refusal: str = ""


def find(
    reference: Reference, registries: Collection[Registry], *, mirrors: bool = True
) -> list[Endpoint]:
    """Give the endpoints of an image in the order in which to ask them, the primary one last.

    Raises `DeniedError` where every one of them is blocked, and `ConfigurationError` where a
    location does not make the name of an image.
    """
    table = _applicable(reference.name, registries)
    if table is None:
        return [Endpoint(reference)]
    rest = str(reference)[_matched(reference.name, table.prefix) :]
    endpoints = [
        _mirror(mirror, table.source, rest, reference)
        for mirror in table.mirrors
        if mirrors and _serves(mirror, reference)
    ]
    endpoints.append(_primary(table, rest, reference))
    endpoints = [each._replace(refusal=_refusal(each, table, registries)) for each in endpoints]
    if all(each.refusal for each in endpoints):
        raise DeniedError("; ".join(each.refusal for each in endpoints))
    return endpoints


def _applicable(name: str, registries: Collection[Registry]) -> Registry | None:
    """Give the table with the longest prefix.

    `*.example.com` and `a.example.com` are equally long; the one without a wildcard says more.
    """
    return max(
        (each for each in registries if _matched(name, each.prefix)),
        key=lambda each: (len(each.prefix), not each.is_wildcard),
        default=None,
    )


def _matched(name: str, prefix: str) -> int:
    """Give how much of a name the prefix stands for, 0 if it is none of this name."""
    if prefix.startswith("*."):
        domain = name.partition("/")[0].partition(":")[0]
        return len(domain) if domain.endswith(prefix[1:]) else 0
    ends = name[len(prefix) : len(prefix) + 1] in ("", "/", ":")
    return len(prefix) if ends and name.startswith(prefix) else 0


def _serves(mirror: Mirror, reference: Reference) -> bool:
    """Whether a mirror is for references like this; with tag and digest, the digest decides."""
    return mirror.pull != (TAG_ONLY if reference.digest else DIGEST_ONLY)


def _mirror(mirror: Mirror, source: str, rest: str, reference: Reference) -> Endpoint:
    place = f"{mirror.place} of {clean(source)}"
    physical = _rewritten(mirror.location + rest, reference, mirror.place, source)
    return Endpoint(physical, mirror.insecure, is_mirror=True, place=place)


def _primary(table: Registry, rest: str, reference: Reference) -> Endpoint:
    place = f"{table.place} of {clean(table.source)}"
    physical = (
        _rewritten(table.location + rest, reference, table.place, table.source)
        if table.location
        else reference
    )
    return Endpoint(physical, table.insecure, place=place)


def _rewritten(text: str, reference: Reference, place: str, source: str) -> Reference:
    """Give what the text names; it must be spelled in full, for nothing is added to locations."""
    try:
        physical = references.parse_reference(text)
    except BadRequestError as error:
        reason = error.message
    else:
        if str(physical) == text:
            return physical
        reason = f'"{clean(text)}" is not the full name of an image'
    raise ConfigurationError(
        f"{clean(source)}: {place}.location: rewriting {reference}: {reason}", file=source
    )


def _refusal(endpoint: Endpoint, table: Registry, registries: Collection[Registry]) -> str:
    """Give why an endpoint must not be asked, empty if it may be.

    What counts is whether the place itself is blocked. So a registry can be blocked and its mirrors
    be asked all the same: that is how a host is kept from ever leaving its network. A primary
    location somewhere else doesn't evade the block of its own table.
    """
    if endpoint.is_mirror or not table.blocked:
        physical = _applicable(endpoint.reference.name, registries)
        if physical is None or not physical.blocked:
            return ""
        table = physical
    return (
        f"{endpoint.reference}: the registry {clean(table.prefix)} is blocked by {table.place} of"
        f" {clean(table.source)}"
    )
