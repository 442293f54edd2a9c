"""The network: all that reaches registries and web servers, by options and configuration.

Expensive objects are kept under their owner and shared by all images: connections by server, until
the last image that uses the server is closed, and tokens by repository. Most modules
are imported late, because a local image needs none.
"""

from __future__ import annotations

from collections import defaultdict
from functools import partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from imgproxy.config.endpoints import Endpoint
    from imgproxy.host.configuration import Configuration
    from imgproxy.host.diagnostics import Diagnostics
    from imgproxy.net.client import Client
    from imgproxy.net.preconnect import Preconnection
    from imgproxy.net.tls import Contexts
    from imgproxy.specs.http.proxy import Proxy
    from imgproxy.specs.http.url import Url
    from imgproxy.specs.oci.digest import Digest
    from imgproxy.specs.oci.reference import Reference
    from imgproxy.transports.registry.failover import Failover, Refused, Rejected
    from imgproxy.transports.registry.options import NetworkOptions
    from imgproxy.transports.registry.plain_url import PlainUrl
    from imgproxy.transports.registry.registry_host import RegistryHost
    from imgproxy.transports.registry.registry_image import RegistryImage
    from imgproxy.transports.registry.repository import Repository
    from imgproxy.transports.source import SignaturePlace


class Network:
    """Access to images, foreign layers and lookasides, with all its connections.

    `preconnection` is a connection that was begun at the start; the client for its origin uses it.
    """

    def __init__(
        self,
        options: NetworkOptions,
        configuration: Configuration,
        diagnostics: Diagnostics,
        preconnection: Preconnection | None = None,
    ) -> None:
        self.options = options
        self.configuration = configuration
        self._diagnostics = diagnostics
        self.report = diagnostics.failure
        self._preconnection = preconnection
        self._contexts: Contexts = preconnection.contexts if preconnection else {}
        self._clients: dict[tuple[str, str, bool], Client] = {}
        self._hosts: dict[tuple[str, bool], RegistryHost] = {}
        self._repositories: dict[tuple[RegistryHost, str, bool, bool], Repository] = {}
        self._wrong_blobs: defaultdict[tuple[Repository | Refused, ...], Rejected[Repository]]
        self._wrong_blobs = defaultdict(dict)
        self._users: defaultdict[RegistryHost | Client, set[object]] = defaultdict(set)

    def repository(self, reference: Reference) -> RegistryImage:
        """Return an image in the locations that registries.conf names, which are not asked yet.

        Raises `DeniedError` where all of them are blocked, and `ConfigurationError`.
        """
        from imgproxy.config import endpoints
        from imgproxy.transports.registry.failover import Failover
        from imgproxy.transports.registry.registry_image import RegistryImage

        found = endpoints.find(
            reference, self.configuration.registries.registries, mirrors=self.options.mirrors
        )
        if self.options.tls_verify is not None:
            insecure = not self.options.tls_verify
            found = [each._replace(insecure=insecure) for each in found]
        own = found[-1].reference.registry
        user = object()
        locations = [self._location(each, own, user) for each in found]
        return RegistryImage(
            reference,
            Failover(
                f"docker://{reference}",
                locations,
                retries=self.options.retries,
                report=self.report,
                wrong_blobs=self._wrong_blobs[tuple(locations)],
            ),
            [partial(self._signatures, each, user) for each in found if not each.refusal],
            partial(self._release, user),
        )

    def has_mirrors(self, reference: Reference) -> bool:
        """Return whether mirrors are asked for images of a repository."""
        from imgproxy.config import endpoints

        tables = self.configuration.registries.registries
        return self.options.mirrors and endpoints.has_mirrors(reference, tables)

    def urls(self, name: str, urls: Sequence[Url]) -> Failover[PlainUrl]:
        """Return the failover over URLs of the same content, which messages call `name`."""
        from imgproxy.transports.registry.failover import Failover
        from imgproxy.transports.registry.plain_url import PlainUrl

        insecure = self.options.tls_verify is False
        client = self._client(None, "", insecure=insecure)
        locations = [PlainUrl(url, client, allow_http=insecure) for url in urls]
        return Failover(name, locations, retries=self.options.retries, report=self.report)

    def lookaside(self, base: Url, *, insecure: bool, user: object) -> Failover[PlainUrl]:
        """Return the failover over the one web server that has files below the URL `base`.

        `user` is the image that uses it.
        """
        from imgproxy.transports.registry.failover import Failover
        from imgproxy.transports.registry.plain_url import PlainUrl

        client = self._client(base, base.authority, insecure=insecure)
        self._users[client].add(user)
        location = PlainUrl(base, client, allow_http=False)
        return Failover(
            location.name,
            [location],
            retries=self.options.retries,
            report=self.report,
        )

    def _signatures(
        self, endpoint: Endpoint, user: object, image: RegistryImage, digest: Digest
    ) -> list[SignaturePlace]:
        """Return where the signatures of a document at an endpoint are; `image` has it alone."""
        from imgproxy.transports.registry import attached_signatures

        sections = self.configuration.signatures
        if self.options.offline:
            return attached_signatures.places_offline(endpoint.reference, digest, sections)
        lookaside = partial(self.lookaside, insecure=endpoint.insecure, user=user)
        return attached_signatures.places(image, endpoint.reference, digest, sections, lookaside)

    def _location(self, endpoint: Endpoint, own: str, user: object) -> Repository | Refused:
        """Return the location of an image; `own` is the registry that its name leads to."""
        from imgproxy.transports.registry.failover import Refused

        if endpoint.refusal:
            return Refused(endpoint.reference.name, endpoint.refusal)
        host = self._host(endpoint.reference.registry, insecure=endpoint.insecure)
        self._users[host].add(user)
        is_own = endpoint.reference.registry == own
        key = host, endpoint.reference.repository, is_own, endpoint.is_mirror
        if key not in self._repositories:
            from imgproxy.host.credential_lookup import CredentialLookup
            from imgproxy.transports.registry.repository import Repository

            self._repositories[key] = Repository(
                host,
                endpoint.reference.repository,
                CredentialLookup(
                    self.configuration,
                    self._diagnostics.hide,
                    explicit=self.options.credentials,
                    anonymous=self.options.anonymous,
                    insecure=endpoint.insecure,
                ),
                is_own=is_own,
                is_mirror=endpoint.is_mirror,
                registry_token=self.options.registry_token,
            )
        return self._repositories[key]

    def _release(self, user: object) -> None:
        """Close the connections to servers that no other image uses than this one."""
        for server, users in self._users.items():
            if user in users:
                users.remove(user)
                if not users:
                    server.close()

    def _host(self, registry: str, *, insecure: bool) -> RegistryHost:
        key = registry, insecure
        if key not in self._hosts:
            from imgproxy.specs.oci import distribution
            from imgproxy.transports.registry.registry_host import RegistryHost
            from imgproxy.transports.registry.warnings import Warnings

            home = distribution.registry_url("https", registry, "", distribution.BasePath())
            client = self._client(home, registry, insecure=insecure)
            self._hosts[key] = RegistryHost(
                registry,
                client,
                insecure=insecure,
                warn=Warnings(self._diagnostics).report,
                outage_time=self.options.outage_time,
                via=self.options.via,
            )
        return self._hosts[key]

    def _client(self, home: Url | None, registry: str, *, insecure: bool) -> Client:
        """Return the client for a server, which certs.d calls `registry`, and its redirects.

        `home` is None where no configuration names a server; see `Dialer`.
        """
        key = home.host if home else "", registry, insecure
        if key not in self._clients:
            client = self._clients[key] = self._new_client(home, registry, insecure=insecure)
            if home and self._preconnection and self._preconnection.url.origin == home.origin:
                client.adopt(self._preconnection)
                self._preconnection = None
        return self._clients[key]

    def _new_client(self, home: Url | None, registry: str, *, insecure: bool) -> Client:
        from imgproxy.host import environment
        from imgproxy.net.client import Client
        from imgproxy.net.dialer import Dialer
        from imgproxy.net.request import USER_AGENT
        from imgproxy.specs.http import proxy, secrets

        if proxy.is_configured(environment.environment()):
            import imgproxy.net.nested_tls
            import imgproxy.net.socks  # noqa: F401

        def proxy_for(url: Url) -> Proxy | None:
            found = proxy.choose(url, environment.environment())
            if found is not None:
                self._diagnostics.hide(
                    [*secrets.of_authorization(found.authorization), found.password]
                )
            return found

        certificates = self.configuration.certificates
        dialer = Dialer(
            home,
            registry,
            certificates,
            proxy_for,
            verify=not insecure,
            contexts=self._contexts,
        )
        return Client(
            dialer,
            self._diagnostics,
            stall_timeout=self.options.stall_timeout,
            user_agent=f"{self.options.user_agent_prefix} {USER_AGENT}".lstrip(),
            proxy_for=dialer.forwarder,
            prepare=import_for_later,
        )

    def forget(self) -> None:
        """Make all anew for later images, as the configuration may be another one now.

        Images that are in use keep what they have.
        """
        self.close()
        self._clients, self._hosts, self._repositories, self._contexts = {}, {}, {}, {}
        self._wrong_blobs.clear()
        for server in [each for each, users in self._users.items() if not users]:
            del self._users[server]

    def close(self) -> None:
        """Close the connections that no request uses. May be called again."""
        if self._preconnection is not None:
            self._preconnection.close()
        for client in self._clients.values():
            client.close()


def import_for_later() -> None:
    """Import what later requests may need, when an upgrade may have replaced the files."""
    from datetime import datetime  # noqa: F401

    import imgproxy.host.masking
    import imgproxy.net.low_water
    import imgproxy.specs.http.refusal_body  # noqa: F401
    from imgproxy.config import auth_file, certs  # noqa: F401
