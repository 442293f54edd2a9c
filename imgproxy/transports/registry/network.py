"""What it takes to reach registries, put together from options and configuration."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from imgproxy.config import endpoints
from imgproxy.host import environment
from imgproxy.host.credential_lookup import CredentialLookup
from imgproxy.net.client import Client
from imgproxy.net.dialer import Dialer
from imgproxy.net.request import USER_AGENT
from imgproxy.specs.http import proxy
from imgproxy.specs.oci import distribution
from imgproxy.transports.registry.endpoint import Endpoint
from imgproxy.transports.registry.repository import Registry

if TYPE_CHECKING:
    from imgproxy.config.endpoints import Endpoint as Place
    from imgproxy.host.configuration import Configuration
    from imgproxy.host.diagnostics import Diagnostics
    from imgproxy.specs.http.url import Url
    from imgproxy.specs.oci.digest import Digest
    from imgproxy.specs.oci.reference import Reference
    from imgproxy.transports.registry.options import Access
    from imgproxy.transports.source import SignaturePlace


def open_registry(
    reference: Reference, access: Access, configuration: Configuration, diagnostics: Diagnostics
) -> Registry:
    """Give the registry that has an image, behind a real network. Raises `Failure`."""
    tables = configuration.registries.registries
    places = endpoints.find(reference, tables, mirrors=access.mirrors)
    if access.tls_verify is not None:
        places = [place._replace(insecure=not access.tls_verify) for place in places]
    credential_lookup = CredentialLookup(
        configuration, explicit=access.credentials, anonymous=access.anonymous
    )
    own = places[-1].reference.registry
    build = partial(
        _endpoint,
        access=access,
        configuration=configuration,
        diagnostics=diagnostics,
        credential_lookup=credential_lookup,
    )
    return Registry(
        reference,
        [build(place, is_own=place.reference.registry == own) for place in places],
        retries=access.retries,
        signatures=[
            partial(_signatures, place, access, configuration, diagnostics) for place in places
        ],
    )


def _signatures(
    place: Place,
    access: Access,
    configuration: Configuration,
    diagnostics: Diagnostics,
    registry: Registry,
    digest: Digest,
) -> list[SignaturePlace]:
    """Give where the signatures of a document at an endpoint are; `registry` has it alone."""
    from imgproxy.transports.registry import attached_signatures

    if access.offline:
        return attached_signatures.places_offline(place.reference, digest, configuration.signatures)

    def client(base: Url) -> Client:
        return _client(base, base.authority, place, access, configuration, diagnostics)

    return attached_signatures.places(
        registry, place.reference, digest, configuration.signatures, client
    )


def _endpoint(
    place: Place,
    *,
    is_own: bool,
    access: Access,
    configuration: Configuration,
    diagnostics: Diagnostics,
    credential_lookup: CredentialLookup,
) -> Endpoint:
    home = distribution.registry_url("https", place.reference, "base", "")
    client = _client(home, place.reference.registry, place, access, configuration, diagnostics)
    if access.early is not None and access.early.url.origin == home.origin:
        client.adopt(access.early)
    return Endpoint(
        place, client, credential_lookup, is_own=is_own, registry_token=access.registry_token
    )


def _client(
    home: Url,
    registry: str,
    place: Place,
    access: Access,
    configuration: Configuration,
    diagnostics: Diagnostics,
) -> Client:
    """Give a client for what an endpoint needs at a host, which certs.d calls `registry`."""
    proxy_for = partial(proxy.choose, environment=environment.environment())
    dialer = Dialer(
        home, registry, configuration.certificates, proxy_for, verify=not place.insecure
    )
    return Client(
        dialer,
        diagnostics,
        stall_timeout=access.stall_timeout,
        user_agent=USER_AGENT,
        proxy_for=proxy_for,
    )
