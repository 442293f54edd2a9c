"""The endpoints of an image: the tables of containers-registries.conf(5), applied to one name.

Only the table with the longest prefix applies. Its mirrors come first, in their order, then the
primary location. Each of them has the reference with the prefix replaced by its location.

A prefix is compared with the name alone, without tag and digest, both as `registry_name.place`
has them. It ends where the name does, or before `/` or `:`; so `example.com` is a prefix of
`example.com:5000/x` too, which the libraries call unintended and leave unchanged. A wildcard
matches a domain's subdomains, never the domain itself; its match, which is replaced, is the host
without the port.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from imgproxy.config.registry_tables import DIGEST_ONLY, TAG_ONLY, Mirror, Registry
from imgproxy.errors import BadRequestError, ConfigurationError, DeniedError, clean
from imgproxy.specs.oci import reference as references
from imgproxy.specs.oci import registry_name

if TYPE_CHECKING:
    from collections.abc import Sequence

    from imgproxy.specs.oci.reference import Reference


class Endpoint(NamedTuple):
    """A registry that may have the image: a mirror or the primary location.

    `reference` is the name of the image there: requests, credentials and certificates are for its
    registry and repository. `source` is the table that configures the endpoint and its file, empty
    if there is none. An endpoint with a `refusal` must not be contacted, for this reason; it is
    listed because an error lists every endpoint with its cause.
    """

    reference: Reference
    insecure: bool = False
    is_mirror: bool = False
    source: str = ""
    refusal: str = ""


def find(
    reference: Reference, registries: Sequence[Registry], *, mirrors: bool = True
) -> list[Endpoint]:
    """Return the endpoints of an image in the order of failover, the primary one last.

    Raises `DeniedError` where all of them are blocked, and `ConfigurationError` where a rewritten
    reference is malformed.
    """
    table = _applicable(reference, registries)
    if table is None:
        return [Endpoint(reference)]
    place = _place(reference)
    rest = str(place)[_matched(place.name, table.prefix) :]
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


def has_mirrors(reference: Reference, registries: Sequence[Registry]) -> bool:
    """Return whether there are mirrors for images of a repository, be it only for some of them."""
    table = _applicable(reference, registries)
    return table is not None and bool(table.mirrors)


def _applicable(reference: Reference, registries: Sequence[Registry]) -> Registry | None:
    """Return the table with the longest prefix, None where no prefix matches.

    `*.example.com` and `a.example.com` are equally long; the one without a wildcard is preferred.
    Of several spellings of one prefix, the table that forbids more is, and then the later one: so
    no table lifts what another one forbids under another spelling.
    """
    name = _place(reference).name
    return max(
        (each for each in reversed(registries) if _matched(name, each.prefix)),
        key=lambda each: (
            len(registry_name.place(each.prefix)),
            not each.is_wildcard,
            each.blocked,
            not each.insecure,
        ),
        default=None,
    )


def _place(reference: Reference) -> Reference:
    return reference._replace(registry=registry_name.place(reference.registry))


def _matched(name: str, written: str) -> int:
    """Return the length of a name's part that the prefix matches, 0 where it does not match."""
    prefix = registry_name.place(written)
    if prefix.startswith("*."):
        domain = name.partition("/")[0].partition(":")[0]
        return len(domain) if domain.endswith(prefix[1:]) else 0
    has_port = registry_name.split(written.partition("/")[0])[1]
    ends = name[len(prefix) : len(prefix) + 1] in (("", "/") if has_port else ("", "/", ":"))
    return len(prefix) if ends and name.startswith(prefix) else 0


def _serves(mirror: Mirror, reference: Reference) -> bool:
    """Return whether a mirror serves such a reference; with tag and digest, the digest decides."""
    return mirror.pull != (TAG_ONLY if reference.digest else DIGEST_ONLY)


def _mirror(mirror: Mirror, source: str, rest: str, reference: Reference) -> Endpoint:
    physical = _rewritten(mirror.location + rest, reference, mirror.field_path, source)
    shown = f"{mirror.field_path} of {clean(source)}"
    return Endpoint(physical, mirror.insecure, is_mirror=True, source=shown)


def _primary(table: Registry, rest: str, reference: Reference) -> Endpoint:
    physical = (
        _rewritten(table.location + rest, reference, table.field_path, table.source)
        if table.location
        else reference
    )
    shown = f"{table.field_path} of {clean(table.source)}"
    return Endpoint(physical, table.insecure, source=shown)


def _rewritten(text: str, reference: Reference, field_path: str, source: str) -> Reference:
    """Parse a rewritten reference; it must be in full form, as no defaults apply to locations.

    One that is only spelled in another way is not rewritten: by plain http, `host` is elsewhere
    than `host:443`.
    """
    try:
        physical = references.parse_reference(text)
    except BadRequestError as error:
        reason = error.message
    else:
        if str(physical) == registry_name.normal(text):
            return reference if physical == _place(reference) else physical
        reason = f'"{references.shown(text)}" is not the full name of an image'
    raise ConfigurationError(
        f"{clean(source)}: {field_path}.location: rewriting {reference}: {reason}", file=source
    )


def _refusal(endpoint: Endpoint, table: Registry, registries: Sequence[Registry]) -> str:
    """Return the reason why an endpoint must not be contacted, empty if it may be.

    A mirror is refused if its own location is blocked. So a registry can be blocked while its
    mirrors are used, which keeps a host from ever leaving its network. The primary location is
    refused by its own table too, even if it is elsewhere.
    """
    if endpoint.is_mirror or not table.blocked:
        physical = _applicable(endpoint.reference, registries)
        if physical is None or not physical.blocked:
            return ""
        table = physical
    return (
        f"{endpoint.reference}: the registry {clean(table.prefix)} is blocked by"
        f" {table.field_path} of {clean(table.source)}"
    )
