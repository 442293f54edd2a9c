"""The one limit for everything that precedes a reply, however a registry spends the time."""

from __future__ import annotations

import json
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import trio
from support.images import OCI_CONFIG, OCI_LAYER, OCI_MANIFEST, Json, digest_of, on
from support.registries import BASE, REFERENCE, WHERE, image_at, moved, place, unauthorized
from support.sigstores import Signer, b64
from support.sources import LINUX, MemorySource, Store, accept_anything, at, never
from support.streams import (
    END,
    SILENCE,
    Notes,
    Script,
    Step,
    answer,
    elapsing,
    head,
    real_time,
    refused,
    virtual_time,
)
from trio.testing import wait_all_tasks_blocked

from imgproxy.config import policy
from imgproxy.config.registries_d import Section
from imgproxy.errors import DeniedError, Failure, UnavailableError, UnreachableError
from imgproxy.frontends.single_image import SingleImage
from imgproxy.images.image import Image
from imgproxy.net.client import Client
from imgproxy.server.handler import Request
from imgproxy.specs.oci.reference import parse_reference
from imgproxy.transports.registry.failover import Failover
from imgproxy.transports.registry.lookaside import Lookaside
from imgproxy.transports.registry.plain_url import PlainUrl
from imgproxy.transports.source import SignaturePlace
from imgproxy.transports.time_limit import TIME_LIMIT, limited, waiting

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from support.registries import ImageWithClients

    from imgproxy.config.policy import Policy
    from imgproxy.server.handler import Reply
    from imgproxy.specs.http.url import Url
    from imgproxy.specs.oci.digest import Digest
    from imgproxy.specs.signing.signature import Signature
    from imgproxy.transports.registry.registry_image import RegistryImage

OVER = (504, "UNREACHABLE", True)
GIVEN_UP = f"given up after {TIME_LIMIT:g} s, which is the limit for everything that precedes a"


async def over(wait: Callable[[], Awaitable[object]], seconds: float = TIME_LIMIT) -> str:
    """Return the message of a wait that takes exactly the limit."""
    with elapsing(seconds), pytest.raises(UnreachableError) as raised, limited(seconds):
        await wait()
    assert refused(raised.value) == OVER
    return raised.value.message


# --- alone ----------------------------------------------------------------------------------------


@virtual_time
async def test_without_a_limit_nothing_is_limited() -> None:
    with waiting(lambda: "x"):
        await trio.sleep(5e4)


@virtual_time
async def test_several_waits_have_one_limit_together_and_the_last_one_is_named() -> None:
    async def wait() -> None:
        for n in range(100):
            with waiting(lambda: f"wait {n}"):  # noqa: B023  (called within the block)
                await trio.sleep(30)

    assert await over(wait, 100) == (
        "wait 3: given up after 100 s, which is the limit for everything that precedes a reply"
    )


@virtual_time
async def test_of_waits_in_one_another_the_outermost_and_the_innermost_are_named() -> None:
    async def wait() -> None:
        with waiting(lambda: "a"), waiting(lambda: "b"), waiting(lambda: "c"):
            await trio.sleep(SILENCE)

    assert await over(wait, 5) == (
        "a: given up after 5 s, which is the limit for everything that precedes a reply,"
        " while waiting for c"
    )


@virtual_time
async def test_what_waits_for_no_network_is_not_ended_but_what_follows_is() -> None:
    """A large archive is read through once, and that would be in vain."""

    async def wait() -> None:
        await trio.sleep(50)
        with waiting(lambda: "next"):
            await trio.sleep(1)

    with elapsing(50), pytest.raises(UnreachableError, match="next: given up"), limited(10):
        await wait()


@virtual_time
async def test_a_parent_that_is_gone_is_not_the_limit() -> None:
    with trio.move_on_after(5) as gone, limited(10), waiting(lambda: "x"):
        await trio.sleep(SILENCE)
    assert gone.cancelled_caught


@virtual_time
async def test_a_limit_ends_with_its_block_and_belongs_to_its_task() -> None:
    with limited(5):
        pass
    with waiting(lambda: "x"):
        await trio.sleep(10)

    async def beside() -> None:
        with limited(30), waiting(lambda: "x"):
            await trio.sleep(20)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(beside)
        await over(partial(_wait, 7), 5)


@virtual_time
async def test_a_limit_in_another_one_does_not_extend_it() -> None:
    with elapsing(5), limited(5):
        for seconds, most in ((2, 2), (20, 3), (20, 0)):
            message = f"given up after {most} s"
            with pytest.raises(UnreachableError, match=message), limited(seconds):
                await _wait(4)


async def _wait(seconds: float) -> None:
    with waiting(lambda: "x"):
        await trio.sleep(seconds)


# --- whatever a registry does ---------------------------------------------------------------------


class Servers(Script):
    """Servers that send the same to the same request, however often; `asked` has the URLs.

    `replies` are the steps by a part of the URL, of which the first that fits counts.
    """

    def __init__(self, **replies: tuple[Step, ...]) -> None:
        super().__init__()
        self.asked: list[str] = []
        self.replies = {each.replace("__", "/"): steps for each, steps in replies.items()}

    def play(self, origin: str, request: bytes, _: bytes) -> tuple[Step, ...]:
        url = origin + request.split(b" ", 2)[1].decode()
        self.asked.append(url)
        return next(steps for part, steps in self.replies.items() if part in url)


def image_from(
    servers: Servers,
    *mirrors: str,
    load: Callable[[], Policy] = accept_anything,
    **more: Any,  # noqa: ANN401  (see image_at)
) -> tuple[Image, ImageWithClients]:
    """Return an image at these servers, and its source, which is tried a thousand times."""
    places = [*(place(each, is_mirror=True) for each in mirrors), place()]
    source = image_at(servers, places, retries=1000, **more)
    return Image(at(source), load, LINUX, never), source


async def reply_to(image: Image, target: str = "/manifest") -> Reply:
    return await SingleImage(image).handle(Request(b"GET", target.encode()))


async def failure_of(image: Image, target: str = "/manifest") -> str:
    """Return the message of a request that takes exactly as long as the limit."""
    with elapsing(TIME_LIMIT), pytest.raises(Failure) as raised:
        await reply_to(image, target)
    assert refused(raised.value) == OVER
    return raised.value.message


def drip(every: float, size: int = 1 << 20) -> tuple[Step, ...]:
    """Return a reply that never comes to its end, and never stalls for a whole minute."""
    pieces: list[Step] = [every, bytes(1024)]
    return (head(200, content_length=str(size), content_type=OCI_MANIFEST), *pieces * 1000)


TOKENS = unauthorized('Bearer realm="https://tokens.test/get",service="x"')
MOVED = {"manifests": (59.0, moved("https://cdn.test/a")), "cdn": (59.0, answer(503))}
MANIFEST = f"docker://{REFERENCE}: manifest 1 from registry.test/acme/os: {GIVEN_UP} reply"


@pytest.mark.parametrize(
    ("replies", "message"),
    [
        (MOVED, f"{MANIFEST}, while waiting for GET {WHERE}"),
        ({"manifests": drip(50.0)}, MANIFEST),
        ({"manifests": (59.0, answer(503))}, f"{MANIFEST}, while waiting for GET {WHERE}"),
        (
            {"manifests": (SILENCE,)},
            f"the pause after GET {WHERE}: no answer for 60 s (--stall-timeout): {GIVEN_UP}",
        ),
        (
            {"manifests": (TOKENS,), "get": (59.0, answer(503))},
            f"{MANIFEST}, while waiting for GET https://tokens.test/get",
        ),
        ({"manifests": (TOKENS,), "get": drip(50.0)}, MANIFEST),
    ],
    ids=["redirects", "drips", "busy", "silence", "busy token server", "dripping token server"],
)
def test_a_manifest_takes_no_longer_than_the_limit(
    replies: dict[str, tuple[Step, ...]], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("random.random", lambda: 0.0)  # pauses are half of what they may be

    @virtual_time
    async def run() -> None:
        image, source = image_from(Servers(**replies))
        assert (await failure_of(image)).startswith(message)
        source.close()

    run()


@virtual_time
async def test_pauses_are_within_the_limit_and_name_what_they_follow() -> None:
    image, source = image_from(Servers(manifests=(answer(503, retry_after="60"),)))
    message = await failure_of(image)
    assert message.startswith(f"the pause after manifest 1: GET {WHERE}: 503")
    assert GIVEN_UP in message
    source.close()


@virtual_time
async def test_indexes_and_what_they_lead_to_have_one_limit_together() -> None:
    store = Store()
    image = on(store.image(b"x"), "linux/amd64")
    inner = [store.index(image, annotations={"n": str(n)}) for n in range(60)]
    root = store.index(*inner)

    def found(descriptor: Json) -> tuple[Step, ...]:
        raw = store.read(descriptor["digest"])
        return 50.0, answer(body=raw, content_type=descriptor["mediaType"])

    servers = Servers(manifests__1=found(root))
    servers.replies |= {each["digest"]: found(each) for each in (*inner, image)}
    opened, source = image_from(servers)
    message = await failure_of(opened)
    # 50 seconds for the first, and for each of the others 10 on the kept connection before that
    assert message.endswith(f", while waiting for GET {BASE}/manifests/{inner[13]['digest']}")
    source.close()


@virtual_time
async def test_a_mirror_that_used_up_the_time_is_tried_last_after_that() -> None:
    """Otherwise no request would ever come to the location that has the image."""
    found = answer(body=MANIFEST_OF_IMAGE, content_type=OCI_MANIFEST)
    servers = Servers(mirror=(59.0, moved("https://cdn.test/0")))
    for n in range(9):
        servers.replies[f"cdn.test/{n}"] = (59.0, moved(f"/{n + 1}"))
    servers.replies |= {"cdn.test/9": drip(50.0), "manifests": (found,)}
    image, source = image_from(servers, "mirror.test/cache/os:1")
    assert "from mirror.test/cache/os: given up" in await failure_of(image)
    with elapsing(0):
        assert (await reply_to(image)).body == MANIFEST_OF_IMAGE
    source.close()


# --- blobs ----------------------------------------------------------------------------------------

LAYER = bytes(range(256)) * (8 << 12)
CONFIG = b" " * (512 << 10) + b"{}"
MANIFEST_OF_IMAGE = json.dumps(
    {
        "config": {"mediaType": OCI_CONFIG, "digest": digest_of(CONFIG), "size": len(CONFIG)},
        "layers": [{"mediaType": OCI_LAYER, "digest": digest_of(LAYER), "size": len(LAYER)}],
    }
).encode()
FOUND = (answer(body=MANIFEST_OF_IMAGE, content_type=OCI_MANIFEST),)


@virtual_time
async def test_the_manifest_and_the_config_have_one_limit_together() -> None:
    slow = (TIME_LIMIT / 100, *FOUND)
    servers = Servers(manifests=slow, blobs=drip(10.0, len(CONFIG)))
    image, source = image_from(servers, "mirror.test/cache/os:1")
    message = await failure_of(image, "/config")
    assert f": blob {digest_of(CONFIG)} from mirror.test/cache/os: {GIVEN_UP}" in message
    servers.replies = {"mirror": (SILENCE,), "blobs": (answer(body=CONFIG),)}
    reply = await reply_to(image, "/config")  # the mirror comes last now
    assert not isinstance(reply.body, bytes)
    reply.body.close()
    source.close()


@virtual_time
async def test_the_head_of_a_blob_is_limited() -> None:
    image, source = image_from(Servers(manifests=FOUND, blobs=(SILENCE,)))
    message = await failure_of(image, f"/blobs/{digest_of(LAYER)}")
    assert f"blob {digest_of(LAYER)} from registry.test/acme/os: given up" in message or (
        "the pause after" in message
    )
    source.close()


@real_time
async def test_the_body_of_a_blob_is_not_limited() -> None:
    servers = Servers(manifests=FOUND)
    half = len(LAYER) // 2
    headed = head(200, content_length=str(len(LAYER))) + LAYER[:half]
    servers.replies["blobs"] = (headed, 0.5, LAYER[half:], END)
    image, source = image_from(servers)
    image.time_limit = 0.3
    reply = await reply_to(image, f"/blobs/{digest_of(LAYER)}")
    assert not isinstance(reply.body, bytes)
    received = 0
    while piece := await reply.body.read():
        received += len(piece)
    assert received == len(LAYER)
    reply.body.close()
    source.close()


# --- signatures -----------------------------------------------------------------------------------


def signed_by() -> Policy:
    requirement = {"type": "sigstoreSigned", "keyDatas": [b64(Signer().pem)]}
    return policy.parse(json.dumps({"default": [requirement]}).encode(), "/policy.json")


@virtual_time
async def test_signatures_are_within_the_limit() -> None:
    servers = Servers(manifests=FOUND, signature=(59.0, answer(body=b"\x90 something")))
    client = Client(servers, Notes(), stall_timeout=60, user_agent="test/1")

    def places(_: RegistryImage, digest: Digest) -> list[SignaturePlace]:
        def connect(base: Url) -> Failover[PlainUrl]:
            return Failover(str(base), [PlainUrl(base, client, allow_http=False)], retries=0)

        section = Section("https://lookaside.test/sigs")
        lookaside = Lookaside(section, parse_reference(REFERENCE), digest)
        return [SignaturePlace("there", lambda: lookaside.read(connect))]

    image, source = image_from(servers, load=signed_by, signatures=[places])
    message = await failure_of(image)
    assert GIVEN_UP in message
    assert "https://lookaside.test/" in message
    # 59 s for each would be 14 of them. The first ones come alone, and then six at a time.
    read = {each for each in servers.asked if "signature" in each}
    assert 25 < len(read) <= 129
    client.close()
    source.close()


# --- requests that wait for the same image --------------------------------------------------------


@virtual_time
async def test_a_request_that_is_cancelled_or_out_of_time_leaves_the_others_theirs() -> None:
    """Each request has its own limit, and no other one's failure where it has time left."""
    image, source = image_from(Servers(manifests=(SILENCE,)))
    handler = SingleImage(image)
    ended: dict[str, float] = {}

    async def request(name: str, start: float, end: float = SILENCE) -> None:
        await trio.sleep(start)
        with trio.CancelScope(deadline=end):
            with pytest.raises(UnreachableError, match=GIVEN_UP):
                await handler.handle(Request(b"GET", b"/manifest"))
            ended[name] = trio.current_time() - started

    started = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(request, "first", 0)
        nursery.start_soon(request, "gone", 10, started + 400)
        nursery.start_soon(request, "second", 100)
        nursery.start_soon(request, "third", 200)
    assert {name: round(end) for name, end in ended.items()} == {
        "first": TIME_LIMIT,
        "second": 100 + TIME_LIMIT,
        "third": 200 + TIME_LIMIT,
    }
    source.close()


@virtual_time
async def test_a_verdict_that_one_gave_up_waiting_for_is_found_by_the_next() -> None:
    store = Store()
    root = store.image(b"x")
    source = MemorySource(store, root)
    reading = 0

    async def read() -> list[Signature]:
        nonlocal reading
        reading += 1
        await trio.sleep(30)
        raise UnavailableError("not now") if reading == 1 else DeniedError("never")

    source.signed[root["digest"]] = [SignaturePlace("there", read)]
    image = Image(at(source), signed_by, LINUX, never)
    failures: list[Failure] = []

    async def ask() -> None:
        with pytest.raises(Failure) as raised:
            await reply_to(image)
        failures.append(raised.value)

    async with trio.open_nursery() as nursery:
        with trio.move_on_after(10):
            async with trio.open_nursery() as first:
                first.start_soon(ask)
                await wait_all_tasks_blocked()
                nursery.start_soon(ask)
    (failure,) = failures
    assert refused(failure) == (403, "DENIED", False)
    assert reading == 2


@real_time
async def test_a_small_limit_in_real_time() -> None:
    image, source = image_from(Servers(manifests=(SILENCE,)))
    image.time_limit = 0.2
    with pytest.raises(UnreachableError, match=r"given up after 0\.2 s"):
        await reply_to(image)
    source.close()
