"""Registries that play a script: repositories, and several of them for one image."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
import trio
from support.images import OCI_MANIFEST, digest_of
from support.streams import Exchange, Notes, Script, Step, answer, asked

from imgproxy.config.endpoints import Endpoint
from imgproxy.errors import Failure
from imgproxy.host.configuration import Configuration, Overrides
from imgproxy.net.client import Client
from imgproxy.specs.oci import digest as digests
from imgproxy.specs.oci.manifest import Descriptor
from imgproxy.specs.oci.reference import parse_reference
from imgproxy.transports.registry.failover import Failover, Refused
from imgproxy.transports.registry.network import Network
from imgproxy.transports.registry.options import NetworkOptions
from imgproxy.transports.registry.registry_host import RegistryHost
from imgproxy.transports.registry.registry_image import FindSignatures, RegistryImage
from imgproxy.transports.registry.repository import Repository

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from imgproxy.net.client import Dial
    from imgproxy.specs.http.credentials import Credentials
    from imgproxy.specs.http.url import Url
    from imgproxy.transports.source import Reader

REFERENCE = "registry.test/acme/os:1"
BASE = "https://registry.test/v2/acme/os"
WHERE = f"{BASE}/manifests/1"
MANIFEST = b'{"schemaVersion":2,"a":"manifest"}'
DIGEST = digest_of(MANIFEST)
LAYER = bytes(range(256))
BLOB = f"{BASE}/blobs/{digest_of(LAYER)}"

FOUND = answer(body=MANIFEST, content_type=OCI_MANIFEST)
FOUND_BLOB = answer(body=LAYER, content_type="application/octet-stream")

REALM = "https://tokens.test/get"
SCOPE = "scope=repository%3Aacme%2Fos%3Apull"
TOKENS = f"{REALM}?service=registry.test&{SCOPE}"
CHALLENGE = f'Bearer realm="{REALM}",service="registry.test",scope="repository:other:pull"'

# Virtual seconds; what a request may take at most is not what is tried here.
STALL = 60.0


class Ring:
    """A lookup with these credentials by registry; `asked` has what was looked up, in order."""

    def __init__(self, **credentials: Credentials) -> None:
        self.credentials = {name.replace("_", "."): value for name, value in credentials.items()}
        self.asked: list[tuple[str, str, bool]] = []

    async def find(self, registry: str, repository: str, *, is_own: bool) -> Credentials | None:
        await trio.lowlevel.checkpoint()
        self.asked.append((registry, repository, is_own))
        return self.credentials.get(registry)

    async def places(self) -> list[str]:
        return ["/a/auth.json", "/b/config.json"]


def described(content: bytes, media_type: str = OCI_MANIFEST) -> Descriptor:
    return Descriptor(media_type, digests.parse(digest_of(content)), len(content))


def unauthorized(challenge: str | None, body: bytes = b"", **fields: str) -> bytes:
    return answer(401, body, www_authenticate=challenge, **fields)


def token(value: str, **fields: object) -> bytes:
    return answer(body=json.dumps({"token": value, **fields}).encode())


def moved(location: str | None, status: int = 307) -> bytes:
    return answer(status, b"<a>Moved</a>", location=location)


def place(
    reference: str = REFERENCE,
    *,
    insecure: bool = False,
    is_mirror: bool = False,
    refusal: str = "",
) -> Endpoint:
    return Endpoint(
        parse_reference(reference), insecure=insecure, is_mirror=is_mirror, refusal=refusal
    )


class ImageWithClients(RegistryImage):
    """An image with connections of its own, which are closed with it."""

    clients: list[Client]

    def close(self) -> None:
        for client in self.clients:
            client.close()


def location(
    client: Client, at: Endpoint, *, ring: Ring | None = None, registry_token: str = ""
) -> Repository | Refused:
    if at.refusal:
        return Refused(at.reference.name, at.refusal)
    return Repository(
        RegistryHost(at.reference.registry, client, insecure=at.insecure),
        at.reference.repository,
        ring or Ring(),  # type: ignore[arg-type]
        is_own=not at.is_mirror,
        is_mirror=at.is_mirror,
        registry_token=registry_token,
    )


def image_at(
    dial: Dial,
    places: list[Endpoint],
    reference: str = REFERENCE,
    *,
    retries: int = 0,
    notes: Notes | None = None,
    signatures: Sequence[FindSignatures] = (),
    **of_locations: Any,  # noqa: ANN401  (see location)
) -> ImageWithClients:
    """Return an image at these places, the last of which is at the registry of its name."""
    clients = [
        Client(dial, notes or Notes(), stall_timeout=STALL, user_agent="test/1") for _ in places
    ]
    pairs = zip(clients, places, strict=True)
    locations = [location(client, at, **of_locations) for client, at in pairs]
    parsed = parse_reference(reference)
    failover = Failover(f"docker://{parsed}", locations, retries=retries)
    image = ImageWithClients(parsed, failover, signatures)
    image.clients = clients
    return image


MIRROR = "https://mirror.test/v2/cache/os"
OTHER = "https://other.test/v2/acme/os"
PLACES = [
    place("mirror.test/cache/os:1", is_mirror=True),
    place("other.test/acme/os:1", is_mirror=True),
    place(),
]
BUSY = answer(503)
GONE = answer(404)


def manifest(base: str, *steps: Step, **fields: Any) -> Exchange:  # noqa: ANN401  (see asked)
    return asked(f"{base}/manifests/1", *steps, **fields)


def blob(base: str, *steps: Step, **fields: Any) -> Exchange:  # noqa: ANN401  (see asked)
    return asked(f"{base}/blobs/{digest_of(LAYER)}", *steps, **fields)


@asynccontextmanager
async def registry(
    *exchanges: Exchange,
    reference: str = REFERENCE,
    places: list[Endpoint] | None = None,
    unreachable: dict[str, float | Exception] | None = None,
    **of_image: Any,  # noqa: ANN401  (see image_at)
) -> AsyncIterator[tuple[ImageWithClients, Script]]:
    """Yield an image at these places; all must be asked as written."""
    script = Script(*exchanges, unreachable=unreachable)
    source = image_at(script, places or [place(reference)], reference, **of_image)
    try:
        yield source, script
    finally:
        source.close()
    script.check()


class ScriptedNetwork(Network):
    """A network whose servers play a script, by a registries.conf and options.

    `servers` are those that clients were made for, as `Network` calls them.
    """

    def __init__(self, script: Script, registries: str = "", **options: Any) -> None:  # noqa: ANN401  (see NetworkOptions)
        chosen = Overrides(registries=(registries.encode(), "registries.conf"))
        configuration = Configuration(chosen, Notes())
        super().__init__(NetworkOptions(**options), configuration, Notes())
        self.servers: list[tuple[str, str, bool]] = []
        self._script = script

    def _new_client(self, home: Url | None, registry: str, *, insecure: bool) -> Client:
        self.servers.append((home.host if home else "", registry, insecure))
        return Client(self._script, Notes(), stall_timeout=STALL, user_agent="test/1")


@asynccontextmanager
async def network(
    *exchanges: Exchange,
    registries: str = "",
    unreachable: dict[str, float | Exception] | None = None,
    **options: Any,  # noqa: ANN401  (see NetworkOptions)
) -> AsyncIterator[tuple[ScriptedNetwork, Script]]:
    """Yield a network without retries; all must be asked as written, and all is closed with it."""
    script = Script(*exchanges, unreachable=unreachable)
    opened = ScriptedNetwork(script, registries, **{"retries": 0, **options})
    try:
        yield opened, script
    finally:
        opened.close()
    script.check()


async def failure_of(*exchanges: Exchange, **options: Any) -> Failure:  # noqa: ANN401  (see registry)
    """Return the failure of asking for the manifest."""
    async with registry(*exchanges, **options) as (source, _):
        with pytest.raises(Failure) as raised:
            await source.root()
    return raised.value


async def read(reader: Reader, piece: int = 1 << 16) -> bytes:
    """Receive to the end, in pieces; the reader is closed in any case."""
    content, buffer = bytearray(), memoryview(bytearray(piece))
    try:
        while count := await reader.receive_into(buffer):
            content += buffer[:count]
    finally:
        reader.close()
    return bytes(content)


async def read_blob(source: RegistryImage, content: bytes = LAYER) -> bytes:
    return await read(await source.blob(described(content)))
