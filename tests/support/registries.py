"""Registries that play a script: endpoints, and several of them for one image."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import trio
from support.images import OCI_MANIFEST, digest_of
from support.streams import Exchange, Notes, Script, Step, answer, asked

from imgproxy.config.endpoints import Endpoint as Place
from imgproxy.net.client import Client
from imgproxy.specs.oci import digest as digests
from imgproxy.specs.oci.manifest import Descriptor
from imgproxy.specs.oci.reference import parse_reference
from imgproxy.transports.registry.endpoint import Endpoint
from imgproxy.transports.registry.repository import Registry

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from imgproxy.net.client import Dial
    from imgproxy.specs.http.credentials import Credentials
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

# Virtual seconds; what a request may take at most is not what is tried here.
STALL = 60.0


class Ring:
    """A keyring with these credentials by registry; `asked` says who was asked for, in order."""

    def __init__(self, **credentials: Credentials) -> None:
        self.credentials = {name.replace("_", "."): value for name, value in credentials.items()}
        self.asked: list[tuple[str, str, bool]] = []

    async def find(self, registry: str, repository: str, *, is_own: bool) -> Credentials | None:
        await trio.lowlevel.checkpoint()
        self.asked.append((registry, repository, is_own))
        return self.credentials.get(registry)


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
) -> Place:
    return Place(
        parse_reference(reference), insecure=insecure, is_mirror=is_mirror, refusal=refusal
    )


def endpoint(
    dial: Dial,
    at: Place,
    ring: Ring | None = None,
    *,
    notes: Notes | None = None,
    is_own: bool = True,
    registry_token: str = "",
) -> Endpoint:
    client = Client(dial, notes or Notes(), stall_timeout=STALL, user_agent="test/1")
    credential_lookup = ring or Ring()
    return Endpoint(at, client, credential_lookup, is_own=is_own, registry_token=registry_token)  # type: ignore[arg-type]


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
    places: list[Place] | None = None,
    retries: int = 0,
    unreachable: dict[str, float | Exception] | None = None,
    **of_endpoints: Any,  # noqa: ANN401  (see endpoint)
) -> AsyncIterator[tuple[Registry, Script]]:
    """Give an image at these places, the last of which is its own; all must be asked as written."""
    script = Script(*exchanges, unreachable=unreachable)
    places = places or [place(reference)]
    endpoints = [endpoint(script, at, is_own=not at.is_mirror, **of_endpoints) for at in places]
    source = Registry(parse_reference(reference), endpoints, retries=retries)
    try:
        yield source, script
    finally:
        source.close()
    script.check()


async def read(reader: Reader, piece: int = 1 << 16) -> bytes:
    """Receive to the end, in pieces; the reader is closed in any case."""
    content, buffer = bytearray(), memoryview(bytearray(piece))
    try:
        while count := await reader.receive_into(buffer):
            content += buffer[:count]
    finally:
        reader.close()
    return bytes(content)


async def read_blob(source: Registry, content: bytes = LAYER) -> bytes:
    return await read(await source.blob(described(content)))
