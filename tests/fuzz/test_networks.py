"""Thousands of pulls over networks and from registries with every kind of fault.

Everything is in memory and on a virtual clock. In every case, content delivered as complete is
correct, errors are failures, no connection stays open, and no wait is endless.

IMGPROXY_FUZZ_PULLS=100000 makes a long campaign, IMGPROXY_FUZZ_SEED another one. A failing pull is
reported by its seed, and repeated alone by IMGPROXY_FUZZ_PULLS=1 and that seed.
"""

from __future__ import annotations

import email.utils
import os
import random
import re
from functools import partial
from typing import TYPE_CHECKING
from unittest.mock import patch

import trio
import trio.testing
from outcome import capture
from support.effort import rounds
from support.images import OCI_LAYER, OCI_MANIFEST, encode
from support.registries import Ring, described, image_at, place
from support.streams import END, SILENCE, MemoryStream, Notes, answer, head

from imgproxy.errors import Failure
from imgproxy.images.verified_source import VerifiedSource
from imgproxy.specs.http.credentials import Credentials
from imgproxy.verification import verified_blob
from imgproxy.verification.verified_blob import LargeBlobs

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from outcome import Outcome
    from support.streams import Step

    from imgproxy.net.streams import Buffer
    from imgproxy.net.tcp import Route
    from imgproxy.specs.http.url import Url
    from imgproxy.specs.oci.manifest import Descriptor
    from imgproxy.transports.registry.registry_image import RegistryImage
    from imgproxy.verification.documents import VerifiedDocument

PULLS = rounds("IMGPROXY_FUZZ_PULLS", slow=600, quick=200)
SEED = int(os.environ.get("IMGPROXY_FUZZ_SEED", "1"))

# In virtual seconds: each wait has a limit, and so has their number.
LONGEST = 6 * 3600.0

# In place of a mebibyte, so that small blobs count as large.
PIECE = 4096

RETRIES = 3
SECRET = "hunter2"
TOKEN_HOST = "https://tokens.test"
CDN = "https://cdn.test"

HEAD_FAULTS = ["garbage", "reset", "end", "silence", "half a head", "flood", "no length"]
STATUSES = [301, 302, 307, 308, 400, 401, 403, 404, 408, 416, 418, 429, 500, 502, 503, 504, 511]
RETRY_AFTER = [None, "0", "3", "600", "soon", "-1", "9" * 50]
BODY_FAULTS = ["cut", "reset", "stall", "trickle", "flip", "shorter", "longer", "wrong length"]
LOCATIONS = [
    f"{CDN}/x",
    "",
    "http://cdn.test/x",
    "//cdn.test",
    "/loop",
    "ftp://x",
    "https://[::1",
    "?",
]
RANGES = [
    "bytes 0-0/1",
    "bytes */5",
    "bytes 1-2/*",
    "items 1-2/3",
    "",
    "bytes 5-4/3",
    "bytes 0-99999/99999",
]


class World:
    """All servers of a pull, with their content; their behaviour is random."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        # Some pulls have hardly any fault: correct content must be delivered as well.
        self.malice = chance.choice([0.0, 0.05, 0.2, 0.5, 0.9])
        self.wants_token = chance.random() < 0.4
        self.redirects = chance.random() < 0.4
        self.ranges = chance.choice(["honoured", "ignored", "refused", "short"])
        self.contents: dict[str, bytes] = {}
        self.wires: list[ServedWire] = []
        self.requests = 0
        self.leaks: list[str] = []

    async def __call__(self, url: Url, _: Route) -> ServedWire:
        await trio.lowlevel.checkpoint()
        if self.happens():
            fault = self.chance.choice(["refused", "timeout", "slow"])
            if fault == "refused":
                raise ConnectionRefusedError(111, "Connection refused")
            await trio.sleep(SILENCE if fault == "timeout" else self.chance.uniform(0, 40))
        self.wires.append(ServedWire(self, f"{url.scheme}://{url.authority}"))
        return self.wires[-1]

    def happens(self) -> bool:
        return self.chance.random() < self.malice

    def answer(self, origin: str, target: str, fields: dict[str, str]) -> list[Step]:
        """Return the steps of the answer to a request."""
        self.requests += 1
        shown = fields.get("authorization", "")
        if "mirror" in origin or origin == CDN:
            self.leaks += [f"{origin} got {shown}"] if shown.startswith("Basic") else []
        if self.happens():
            return self.trouble()
        if origin == TOKEN_HOST:
            return [answer(body=b'{"token":"t%d","expires_in":60}' % self.requests)]
        if origin != CDN and self.wants_token and not shown.startswith("Bearer t"):
            challenge = f'Basic realm="x", Bearer realm="{TOKEN_HOST}/t",service="s"'
            if self.chance.random() < 0.5:
                challenge = challenge.partition(", ")[2]
            return [answer(401, www_authenticate=challenge)]
        name = target.partition("?")[0].rpartition("/")[2]
        if origin != CDN and self.redirects:
            return [answer(307, location=f"{CDN}/{name}?signature={SECRET}")]
        if name not in self.contents:
            return [answer(404)]
        return self.content(self.contents[name], fields.get("range"))

    def trouble(self) -> list[Step]:
        chance = self.chance
        fault = chance.choice([*HEAD_FAULTS, *["status"] * 6])
        if fault == "status":
            status = chance.choice(STATUSES)
            late = chance.choice([*RETRY_AFTER, email.utils.formatdate(chance.uniform(0, 2e9))])
            location = chance.choice(LOCATIONS)
            body = chance.choice([b"", b"<html>", b'{"errors":[{"code":"X","message":"no"}]}'])
            return [answer(status, body, retry_after=late, location=location)]
        last: Step = END if chance.random() < 0.5 else SILENCE
        faults: dict[str, list[Step]] = {
            "garbage": [chance.randbytes(chance.randrange(1, 200)), END],
            "reset": [ConnectionResetError(104, "Connection reset by peer")],
            "end": [END],
            "silence": [SILENCE],
            "half a head": [head(200)[: chance.randrange(1, 15)], last],
            "flood": [head(200, x="y" * 70_000)],
            "no length": [head(200), chance.randbytes(50), END],
        }
        return faults[fault]

    def content(self, content: bytes, wanted: str | None) -> list[Step]:
        """Return the steps of a reply with content, or a range of it, and its faults."""
        status, fields, body = 200, dict[str, str | None](), content
        match = re.fullmatch(r"bytes=([0-9]+)-([0-9]+)", wanted or "")
        assert wanted is None or match is not None, wanted
        if match is not None and self.ranges == "refused":
            return [answer(416, content_range=f"bytes */{len(content)}")]
        if match is not None and self.ranges != "ignored":
            first, last = int(match[1]), int(match[2])
            assert first <= last == len(content) - 1, wanted
            if self.ranges == "short":
                last = self.chance.randrange(first, last + 1)
            status, body = 206, content[first : last + 1]
            fields["content_range"] = f"bytes {first}-{last}/{len(content)}"
            if self.happens():
                fields["content_range"] = self.chance.choice(RANGES)
        if self.happens():
            fields["content_encoding"] = self.chance.choice(["gzip", "identity", ""])
        if self.happens():
            fields["docker_content_digest"] = self.chance.choice(["x", "sha256:" + "0" * 64, ""])
        if self.chance.random() < 0.2:
            size = self.chance.choice([7, 100, PIECE])
            pieces = [body[at : at + size] for at in range(0, len(body), size)]
            chunks = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in [*pieces, b""])
            return self.spoil(head(status, transfer_encoding="chunked", **fields), chunks)
        length = str(len(body))
        if self.happens():
            length = str(max(0, len(body) + self.chance.randrange(-5, 5)))
        return self.spoil(head(status, content_length=length, **fields), body)

    def spoil(self, begin: bytes, body: bytes) -> list[Step]:
        if not self.happens():
            return [begin, *([body] if body else [])]
        chance = self.chance
        at = chance.randrange(len(body) + 1)
        fault = chance.choice(BODY_FAULTS)
        flipped = bytearray(body)
        if flipped:
            flipped[at - 1] ^= 1 << chance.randrange(8)
        faults: dict[str, list[Step]] = {
            "cut": [body[:at], END],
            "reset": [body[:at], ConnectionResetError(104, "Connection reset by peer")],
            "stall": [body[:at], SILENCE],
            "trickle": [body[:at], 59.0, b"x", 59.0, b"x"],
            "flip": [bytes(flipped)],
            "shorter": [body[:-1], END],
            "longer": [body + b"surplus"],
            "wrong length": [body[:at], chance.uniform(0, 100), body[at:]],
        }
        return [begin, *(step for step in faults[fault] if step != b"" or step is END)]


class ServedWire(MemoryStream):
    """A connection to one of the servers of a world."""

    def __init__(self, world: World, origin: str) -> None:
        super().__init__()
        self._world = world
        self._origin = origin

    async def send(self, data: Buffer) -> None:
        await super().send(data)
        request, end, _ = bytes(self.sent).partition(b"\r\n\r\n")
        assert end
        self.sent.clear()
        lines = request.decode("ascii").split("\r\n")
        fields = {
            name.lower(): value for name, _, value in (each.partition(": ") for each in lines)
        }
        self.inbox.add(*self._world.answer(self._origin, lines[0].split(" ")[1], fields))


async def pull(source: RegistryImage, descriptor: Descriptor, *, pauses: bool) -> bytes:
    """Return a blob as a parent gets it, which may have something else to do."""
    blob = await VerifiedSource(source, LargeBlobs()).blob(descriptor)
    content = bytearray()
    try:
        while piece := await blob.read():
            if not content and pauses:
                await trio.sleep(1000)
            content += piece
    finally:
        blob.close()
    return bytes(content)


class Campaign:
    """Pull from one world after the other, and count the results."""

    def __init__(self) -> None:
        self.delivered = 0
        self.failures: list[Failure] = []

    async def attempt(self, seed: int) -> None:
        chance = random.Random(seed)
        world = World(chance)
        layer = chance.randbytes(chance.choice([0, 1, 100, PIECE, PIECE + 1, 5 * PIECE]))
        manifest = encode({"schemaVersion": 2, "mediaType": OCI_MANIFEST, **documents(layer)})
        blob, document = described(layer, OCI_LAYER), described(manifest)
        world.contents |= {str(blob.digest): layer, str(document.digest): manifest}
        ring = Ring(registry_test=Credentials("u", SECRET, "", "the file"))
        notes = Notes()
        at = [place(f"mirror{n}.test/a:1", is_mirror=True) for n in range(chance.randrange(3))]
        at.append(place("registry.test/a:1", insecure=chance.random() < 0.1))
        retries = chance.choice([0, RETRIES])
        # By digest: nobody can tell what a tag stands for.
        reference = f"registry.test/a@{document.digest}"
        source = image_at(world, at, reference, retries=retries, ring=ring, notes=notes)
        read_blob = partial(pull, source, blob, pauses=retries == 0)
        with trio.fail_after(LONGEST):
            with patch.object(random, "random", chance.random):
                await self.note(VerifiedSource(source, LargeBlobs()).root, manifest)
                async with trio.open_nursery() as nursery:
                    for _ in range(chance.choice([1, 1, 3])):
                        nursery.start_soon(self.note, read_blob, layer)
                    if chance.random() < 0.1:
                        await trio.sleep(chance.uniform(0, 30))
                        nursery.cancel_scope.cancel()
        source.close()
        assert [wire._origin for wire in world.wires if not wire.closed] == []
        assert world.leaks == []
        words = [*notes.details, *(failure.message for failure in self.failures)]
        self.failures = [*{failure.code: failure for failure in self.failures}.values()]
        assert not [each for each in words if SECRET in each or not each.isprintable()]

    async def note(
        self, get: Callable[[], Awaitable[bytes | VerifiedDocument]], wanted: bytes
    ) -> None:
        try:
            found = await get()
        except Failure as failure:
            self.failures.append(failure)
        else:
            assert (found if isinstance(found, bytes) else found.raw) == wanted
            self.delivered += 1


def documents(layer: bytes) -> dict[str, object]:
    def entry(content: bytes, kind: str) -> dict[str, object]:
        found = described(content)
        return {"mediaType": kind, "digest": str(found.digest), "size": found.size}

    config = entry(b"{}", "application/vnd.oci.image.config.v1+json")
    return {"config": config, "layers": [entry(layer, OCI_LAYER)]}


def at_once(function: Callable[[], object], deliver: Callable[[Outcome[object]], None]) -> None:
    """Replace a thread, for which a virtual clock does not wait."""
    deliver(capture(function))


def test_whatever_networks_do_what_is_delivered_is_right_and_all_ends() -> None:
    campaign = Campaign()
    with (
        patch.multiple(verified_blob, WHOLE=PIECE, CHUNK=PIECE),
        patch.object(trio.lowlevel, "start_thread_soon", at_once),
    ):
        for seed in range(SEED, SEED + PULLS):
            try:
                trio.run(campaign.attempt, seed, clock=trio.testing.MockClock(autojump_threshold=0))
            except BaseException as error:
                error.add_note(f"IMGPROXY_FUZZ_SEED={seed}")
                raise
    # Otherwise the campaign proves nothing.
    assert PULLS < 500 or campaign.delivered > PULLS / 2
    assert PULLS < 500 or len({failure.code for failure in campaign.failures}) >= 6
