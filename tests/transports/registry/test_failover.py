"""Several locations for one thing: their order, pauses, retries, and the one failure for all."""

from __future__ import annotations

import errno
import traceback
from typing import TYPE_CHECKING, Any

import pytest
import trio
from support.images import OCI_LAYER, OCI_MANIFEST, digest_of
from support.registries import (
    BASE,
    BLOB,
    BUSY,
    FOUND,
    FOUND_BLOB,
    GONE,
    LAYER,
    MANIFEST,
    MIRROR,
    OTHER,
    PLACES,
    WHERE,
    blob,
    described,
    manifest,
    place,
    read_blob,
    registry,
    token,
    unauthorized,
)
from support.streams import END, SILENCE, Step, answer, asked, elapsing, head, refused, virtual_time

from imgproxy.errors import (
    ConfigurationError,
    DeniedError,
    Failure,
    InvalidError,
    NotFoundError,
    ShortageError,
    UnavailableError,
)
from imgproxy.images.verified_source import VerifiedSource
from imgproxy.specs.oci import distribution
from imgproxy.specs.oci.manifest import MAX_DOCUMENT_SIZE
from imgproxy.transports.registry.failover import REJECTION_TIME, Failover, Refused
from imgproxy.transports.registry.outage import Outage
from imgproxy.verification.verified_blob import LargeBlobs

if TYPE_CHECKING:
    from imgproxy.specs.oci.manifest import Descriptor
    from imgproxy.transports.registry.registry_image import RegistryImage

BAD_UPSTREAM = (502, "BAD_UPSTREAM", False)
UNAVAILABLE = (503, "UNAVAILABLE", True)
WRONG_DIGEST = (422, "DIGEST_INVALID", False)


RESET = ConnectionResetError(errno.ECONNRESET, "Connection reset by peer")


# --- alone ---------------------------------------------------------------------------------------


class Place:
    """A location that answers with its name, or fails in this order; `asked` counts."""

    def __init__(self, name: str, *failures: Failure, seconds: float = 0.0) -> None:
        self.name = name
        self.demerits = 0
        self.outage = Outage(seconds)
        self.asked = 0
        self._failures = list(failures)

    async def answer(self) -> str:
        await trio.lowlevel.checkpoint()
        self.asked += 1
        if self._failures:
            raise self._failures.pop(0)
        self.outage.answered()
        return self.name


def over(*locations: Place | Refused, retries: int = 0) -> Failover[Place]:
    return Failover("the image", locations, retries=retries)


@virtual_time
async def test_the_first_that_answers_is_asked_alone() -> None:
    one, two = Place("one"), Place("two")
    assert await over(one, two).ask("x", Place.answer) == "one"
    assert (one.asked, two.asked) == (1, 0)


@virtual_time
async def test_what_was_rejected_is_rejected_for_the_same_thing_alone() -> None:
    one, two = Place("one"), Place("two")
    failover = over(one, two)
    assert failover.reject("x", [one], InvalidError("wrong"))
    assert await failover.ask("x", Place.answer) == "two"
    assert await failover.ask("y", Place.answer) == "one"
    assert (one.demerits, two.demerits) == (0, 0)


@virtual_time
async def test_things_of_different_kinds_are_different_though_their_digest_is_one() -> None:
    one, two = Place("one"), Place("two")
    failover = over(one, two)
    digest = described(MANIFEST).digest
    failover.reject(distribution.BlobPath(digest), [one], InvalidError("wrong"))
    assert await failover.ask(distribution.BlobPath(digest), Place.answer) == "two"
    assert await failover.ask(distribution.SignaturesPath(digest), Place.answer) == "one"
    assert await failover.ask(distribution.ManifestPath(str(digest)), Place.answer) == "one"


@virtual_time
async def test_when_all_are_rejected_none_is_asked_and_each_is_named() -> None:
    one, two = Place("one"), Place("two")
    failover = over(one, two, retries=5)
    for place_ in (one, two):
        assert failover.reject("x", [place_], InvalidError(f"{place_.name} is wrong"))
    with elapsing(0), pytest.raises(InvalidError) as raised:
        await failover.ask("x", Place.answer)
    assert raised.value.message == (
        "the image: none of 2 endpoints could serve it: [one] one is wrong; [two] two is wrong"
    )
    assert (one.asked, two.asked) == (0, 0)


@virtual_time
async def test_the_only_one_that_is_rejected_is_not_worth_asking_again() -> None:
    only = Place("only")
    failover = over(only)
    wrong = InvalidError("wrong")
    assert not failover.reject("x", [only], wrong)
    with pytest.raises(InvalidError) as raised:
        await failover.ask("x", Place.answer)
    assert raised.value.message == wrong.message
    assert only.asked == 0


@virtual_time
async def test_a_location_that_was_rejected_is_asked_again_after_a_while() -> None:
    """It may have been repaired."""
    one, two = Place("one"), Place("two")
    failover = over(one, two)
    failover.reject("x", [one], InvalidError("wrong"))
    await trio.sleep(REJECTION_TIME - 1)
    assert await failover.ask("x", Place.answer) == "two"
    await trio.sleep(1)
    assert await failover.ask("x", Place.answer) == "one"


@virtual_time
async def test_locations_that_are_slow_and_wrong_do_not_take_turns() -> None:
    """The first is not asked again because the second took so long."""
    one, two = Place("one"), Place("two")
    failover = over(one, two)
    failover.reject("x", [one], InvalidError("wrong"))
    await trio.sleep(REJECTION_TIME - 1)
    failover.reject("x", [two], InvalidError("wrong as well"))
    await trio.sleep(REJECTION_TIME - 1)
    with pytest.raises(InvalidError, match=r"wrong; .* wrong as well"):
        await failover.ask("x", Place.answer)
    assert (one.asked, two.asked) == (0, 0)


@pytest.mark.parametrize("locations", [1, 2])
@virtual_time
async def test_a_failure_that_is_kept_does_not_grow_with_each_request(locations: int) -> None:
    """An exception that is raised again has the tracebacks of all times, and their memory."""
    every = [Place(str(n)) for n in range(locations)]
    failover = over(*every)
    failover.reject("x", every, InvalidError("wrong"))
    lengths = set()
    for _ in range(20):
        with pytest.raises(InvalidError) as raised:
            await failover.ask("x", Place.answer)
        lengths.add(len(list(traceback.walk_tb(raised.value.__traceback__))))
    assert len(lengths) == 1


@virtual_time
async def test_what_is_kept_of_a_failure_does_not_keep_frames() -> None:
    """Their variables are buffers of a blob, for example."""
    only = Place("only")
    failover = over(only)
    try:
        raise InvalidError("wrong")  # noqa: TRY301  (it gets a traceback)
    except InvalidError as error:
        failover.reject("x", [only], error)
    kept = [each for _, every in failover._rejected.values() for each in every.values()]
    assert [each.__traceback__ for each in kept] == [None]


@virtual_time
async def test_one_failure_for_all_keeps_what_each_says_of_another_try() -> None:
    one = Place("one", UnavailableError("busy", retry_after=7))
    two = Place("two", UnavailableError("busy", retry_after=3))
    three = Place("three", NotFoundError("gone", code="BLOB_UNKNOWN", kept=True))
    with pytest.raises(NotFoundError) as raised:
        await over(one, two, three).ask("x", Place.answer)
    failure = raised.value
    assert refused(failure) == (404, "BLOB_UNKNOWN", False)
    assert (failure.retry_after, failure.is_transient, failure.detail["kept"]) == (3, True, True)
    assert [each["endpoint"] for each in failure.detail["endpoints"]] == ["one", "two", "three"]


@virtual_time
async def test_a_location_that_must_not_be_asked_is_named_with_its_reason() -> None:
    refused_, two = Refused("one", "blocked"), Place("two", NotFoundError("gone"))
    with pytest.raises(NotFoundError) as raised:
        await over(refused_, two, retries=3).ask("x", Place.answer)
    assert raised.value.message.endswith(": [one] blocked; [two] gone")
    assert await over(refused_, two).ask("x", Place.answer) == "two"
    with pytest.raises(DeniedError, match=r"^blocked$"):
        await over(refused_).ask("x", Place.answer)


@virtual_time
async def test_retries_that_are_handed_in_are_used_up() -> None:
    busy = [UnavailableError("busy") for _ in range(3)]
    failover = over(Place("one", *busy), retries=2)
    retries = failover.new_retries()
    with elapsing(1):
        assert await retries.pause(busy[:1])
    with elapsing(2), pytest.raises(UnavailableError):
        await failover.ask("x", Place.answer, retries)
    with elapsing(0):
        assert not await retries.pause(busy)
    with elapsing(1):  # a mebibyte of progress
        assert await retries.pause(busy, 1 << 20)


@virtual_time
async def test_one_of_the_locations_may_be_asked_alone() -> None:
    one, two = Place("one"), Place("two", NotFoundError("gone"))
    alone = over(one, two).alone(two)
    assert (alone.name, alone.locations) == ("the image", [two])
    with pytest.raises(NotFoundError, match=r"^gone$"):
        await alone.ask("x", Place.answer)
    assert one.asked == 0


# --- what is asked, and in which order --------------------------------------------------------


PASSED_OVER: dict[str, tuple[Step, ...]] = {
    "404": (GONE,),
    "403": (answer(403),),
    "401": (unauthorized(None),),
    "500": (answer(500),),
    "429": (answer(429, retry_after="60"),),
    "a reset": (RESET,),
    "the end": (END,),
    "half a head": (FOUND[:20], END),
    "half a body": (FOUND[:-5], END),
    "garbage": (b"SSH-2.0\r\n\r\n",),
    "encoded": (answer(body=bytes(9), content_encoding="br"),),
    "too large": (head(200, content_length=str(MAX_DOCUMENT_SIZE + 1)),),
    "a redirect to nowhere": (answer(307, location="ftp://x"),),
    "a circle": (),
}


@pytest.mark.parametrize("fault", PASSED_OVER)
@virtual_time
async def test_an_endpoint_that_fails_is_passed_over_at_once(fault: str) -> None:
    steps = PASSED_OVER[fault]
    bad = [manifest(MIRROR, *steps)]
    if fault == "a circle":
        circle = answer(307, location=f"{MIRROR}/manifests/1")
        bad = [manifest(MIRROR, circle)] * (distribution.MAX_REDIRECTS + 1)
    async with registry(*bad, manifest(OTHER, FOUND), places=PLACES) as (source, _):
        with elapsing(0):
            document = await source.root()
        assert document.raw == MANIFEST
        assert document.name.endswith(": manifest 1 from other.test/acme/os")


@pytest.mark.parametrize("fault", [SILENCE, ConnectionRefusedError(111, "Connection refused")])
@virtual_time
async def test_an_endpoint_that_cannot_be_dialled_is_passed_over(fault: float | Exception) -> None:
    async with registry(
        manifest(OTHER, FOUND), places=PLACES, unreachable={"https://mirror": fault}
    ) as (source, script):
        with elapsing(30 if fault is SILENCE else 0):
            await source.root()
        assert script.dialled == ["https://mirror.test", "https://other.test"]


@virtual_time
async def test_a_busy_location_is_asked_last_the_next_time() -> None:
    exchanges = [
        manifest(MIRROR, BUSY),
        manifest(OTHER, GONE),
        asked(WHERE, FOUND),
        blob(OTHER, FOUND_BLOB),
    ]
    async with registry(*exchanges, places=PLACES) as (source, _):
        await source.root()
        assert await read_blob(source) == LAYER


@virtual_time
async def test_pauses_double_and_end_with_the_retries() -> None:
    """A location whose failure is permanent is asked only once."""
    exchanges = [manifest(MIRROR, BUSY), manifest(OTHER, answer(403)), asked(WHERE, BUSY)]
    for _ in range(3):
        exchanges += [manifest(MIRROR, BUSY), asked(WHERE, BUSY)]
    async with registry(*exchanges, places=PLACES, retries=3) as (source, _):
        with elapsing(1 + 2 + 4), pytest.raises(Failure) as raised:
            await source.root()
    assert refused(raised.value) == UNAVAILABLE


@virtual_time
async def test_a_success_is_the_last_try() -> None:
    exchanges = [asked(WHERE, BUSY), asked(WHERE, BUSY), asked(WHERE, FOUND)]
    async with registry(*exchanges, retries=5) as (source, _):
        with elapsing(1 + 2):
            assert (await source.root()).raw == MANIFEST


@pytest.mark.parametrize("status", [400, 401, 403, 404, 416, 418, 501, 505])
@virtual_time
async def test_what_cannot_succeed_is_not_tried_again(status: int) -> None:
    async with registry(asked(WHERE, answer(status)), retries=5) as (source, _):
        with elapsing(0), pytest.raises(Failure) as raised:
            await source.root()
    assert not raised.value.retryable


AGAIN: dict[str, tuple[list[Any], float]] = {
    "manifest": ([asked(WHERE, BUSY)], 1.0),
    "manifest that is cut": ([asked(WHERE, FOUND[:-1], END)], 1.0),
    "manifest that stalls": ([asked(WHERE, FOUND[:-1], SILENCE)], 61.0),
    "head that stalls": ([asked(WHERE, SILENCE)], 61.0),
    "token": (
        [
            asked(WHERE, unauthorized('Bearer realm="https://t.test/"')),
            asked("https://t.test/?scope=repository%3Aacme%2Fos%3Apull", BUSY),
        ],
        1.0,
    ),
    "token that is cut": (
        [
            asked(WHERE, unauthorized('Bearer realm="https://t.test/"')),
            asked("https://t.test/?scope=repository%3Aacme%2Fos%3Apull", token("t")[:-1], END),
        ],
        1.0,
    ),
    "redirect's end": (
        [
            asked(WHERE, answer(307, location="https://cdn.test/x")),
            asked("https://cdn.test/x", answer(502)),
        ],
        1.0,
    ),
}


@pytest.mark.parametrize("what", AGAIN)
@virtual_time
async def test_what_may_pass_is_tried_again(what: str) -> None:
    failing, seconds = AGAIN[what]
    async with registry(*failing, asked(WHERE, FOUND), retries=1) as (source, _):
        with elapsing(seconds):
            assert (await source.root()).raw == MANIFEST


@pytest.mark.parametrize(
    ("said", "seconds"), [("0", 1), ("7", 8), ("59", 60), ("60", 60), ("soon", 1)]
)
@virtual_time
async def test_a_registry_decides_how_long_the_pause_is(said: str, seconds: float) -> None:
    late = answer(429, retry_after=said)
    async with registry(asked(WHERE, late), asked(WHERE, FOUND), retries=1) as (source, _):
        with elapsing(seconds):
            await source.root()


@pytest.mark.parametrize("said", ["61", "3600"])
@pytest.mark.parametrize("status", [429, 503])
@virtual_time
async def test_a_pause_that_is_too_long_is_not_made_but_told(status: int, said: str) -> None:
    late = answer(status, retry_after=said)
    refusals = [
        [asked(WHERE, late)],
        [
            asked(WHERE, unauthorized('Bearer realm="https://t.test/"')),
            asked("https://t.test/?scope=repository%3Aacme%2Fos%3Apull", late),
        ],
    ]
    for exchanges in refusals:
        async with registry(*exchanges, retries=5) as (source, _):
            with elapsing(0), pytest.raises(Failure) as raised:
                await source.root()
        assert raised.value.status == 503
        assert raised.value.outlook == {"retryable": True, "retry_after": int(said)}
        assert f"it may be asked again in {said} s, which is too long" in raised.value.message


@virtual_time
async def test_one_that_asks_for_a_long_pause_is_passed_over_while_others_are_tried_again() -> None:
    exchanges = [
        manifest(MIRROR, answer(429, retry_after="3600")),
        manifest(OTHER, GONE),
        asked(WHERE, BUSY),
        asked(WHERE, FOUND),
    ]
    async with registry(*exchanges, places=PLACES, retries=1) as (source, _):
        with elapsing(1):
            await source.root()


@virtual_time
async def test_an_error_says_of_each_endpoint_when_it_may_be_asked_again() -> None:
    exchanges = [
        manifest(MIRROR, answer(429, retry_after="3600")),
        manifest(OTHER, GONE),
        asked(WHERE, answer(503, retry_after="1800")),
    ]
    async with registry(*exchanges, places=PLACES, retries=5) as (source, _):
        with elapsing(0), pytest.raises(Failure) as raised:
            await source.root()
    assert raised.value.outlook == {"retryable": True, "retry_after": 1800}
    waits = [each.get("retry_after") for each in raised.value.detail["endpoints"]]
    assert waits == [3600, None, 1800]


@virtual_time
async def test_what_is_tried_a_third_time_is_reported_once_before() -> None:
    busy = [UnavailableError(f"busy {count}") for count in range(6)]
    reports: list[str] = []
    failover = Failover("the image", [Place("one", *busy)], retries=5, report=reports.append)
    with pytest.raises(UnavailableError):
        await failover.ask("x", Place.answer)
    assert reports == ["busy 1: tried twice, the next time in 2 s, and at most 6 times"]
    for few in (0, 1):
        failover = Failover("the image", [Place("one", *busy)], retries=few, report=reports.append)
        with pytest.raises(UnavailableError):
            await failover.alone(failover.locations[0]).ask("x", Place.answer)
    assert len(reports) == 1


@virtual_time
async def test_of_several_the_shortest_pause_counts() -> None:
    exchanges = [
        manifest(MIRROR, answer(429, retry_after="40")),
        manifest(OTHER, answer(503, retry_after="5")),
        asked(WHERE, GONE.replace(b"404", b"403")),
        manifest(MIRROR, FOUND),
    ]
    async with registry(*exchanges, places=PLACES, retries=1) as (source, _):
        with elapsing(6):
            await source.root()


@virtual_time
async def test_what_the_primary_does_not_have_is_not_waited_for() -> None:
    exchanges = [manifest(MIRROR, BUSY), manifest(OTHER, GONE), asked(WHERE, GONE)]
    async with registry(*exchanges, places=PLACES, retries=5) as (source, _):
        with elapsing(0), pytest.raises(Failure) as raised:
            await source.root()
    assert refused(raised.value) == (404, "MANIFEST_UNKNOWN", False)


@virtual_time
async def test_a_blob_that_a_mirror_may_have_is_waited_for() -> None:
    """The origin may be gone, or deny it, and the cache be warm."""
    exchanges = [
        blob(MIRROR, BUSY),
        blob(OTHER, GONE),
        asked(BLOB, GONE),
        blob(MIRROR, FOUND_BLOB),
    ]
    async with registry(*exchanges, places=PLACES, retries=5) as (source, _):
        with elapsing(1):
            assert await read_blob(source) == LAYER


@virtual_time
async def test_conversations_that_end_while_pausing_leave_nothing_behind() -> None:
    async with registry(asked(WHERE, BUSY), retries=5) as (source, script):
        with trio.move_on_after(0.5) as scope:
            await source.root()
        assert scope.cancelled_caught
        assert len(script.streams) == 1


# --- one failure for all ------------------------------------------------------------------------


@virtual_time
async def test_an_error_lists_every_endpoint_with_its_own_cause() -> None:
    exchanges = [manifest(MIRROR, RESET), manifest(OTHER, answer(403)), asked(WHERE, GONE)]
    async with registry(*exchanges, places=PLACES) as (source, _):
        with pytest.raises(Failure) as raised:
            await source.root()
    failure = raised.value
    assert refused(failure) == (404, "MANIFEST_UNKNOWN", False)
    assert failure.message.startswith(
        "docker://registry.test/acme/os:1: none of 3 endpoints could serve it: "
        f"[mirror.test/cache/os] GET {MIRROR}/manifests/1: "
    )
    assert f"; [other.test/acme/os] manifest 1: GET {OTHER}/manifests/1: 403" in failure.message
    assert failure.message.endswith(f"; [registry.test/acme/os] manifest 1: GET {WHERE}: 404")
    listed = failure.detail["endpoints"]
    assert [(each["endpoint"], each["code"], each["retryable"]) for each in listed] == [
        ("mirror.test/cache/os", "UNREACHABLE", True),
        ("other.test/acme/os", "DENIED", False),
        ("registry.test/acme/os", "MANIFEST_UNKNOWN", False),
    ]
    assert all(each["message"] in failure.message for each in listed)


@virtual_time
async def test_with_one_endpoint_its_error_is_the_error() -> None:
    async with registry(asked(WHERE, GONE)) as (source, _):
        with pytest.raises(Failure) as raised:
            await source.root()
    assert raised.value.message == f"manifest 1: GET {WHERE}: 404"
    assert "endpoints" not in raised.value.detail


BLOCKED = "registry.test/acme/os:1: the registry registry.test is blocked by [[registry]][0]"


@virtual_time
async def test_a_blocked_endpoint_is_listed_and_never_asked() -> None:
    places = [*PLACES[:2], place(refusal=BLOCKED)]
    exchanges = [manifest(MIRROR, GONE), manifest(OTHER, BUSY)]
    async with registry(*exchanges, places=places) as (source, script):
        with pytest.raises(Failure) as raised:
            await source.root()
        assert script.dialled == ["https://mirror.test", "https://other.test"]
    # The failure is that of the last location that was asked.
    assert refused(raised.value) == UNAVAILABLE
    assert f"[registry.test/acme/os] {BLOCKED}" in raised.value.message


@virtual_time
async def test_where_all_are_blocked_it_is_denied() -> None:
    async with registry(places=[place(refusal=BLOCKED)], retries=5) as (source, _):
        with elapsing(0), pytest.raises(Failure) as raised:
            await source.root()
    assert refused(raised.value) == (403, "DENIED", False)
    assert raised.value.message == BLOCKED


@virtual_time
async def test_a_mirror_of_a_blocked_registry_serves() -> None:
    places = [PLACES[0], place(refusal=BLOCKED)]
    async with registry(manifest(MIRROR, FOUND), places=places) as (source, _):
        assert (await source.root()).raw == MANIFEST


OF_THIS_HOST = [ConfigurationError("a broken file"), ShortageError("Too many open files")]


@pytest.mark.parametrize("failure", OF_THIS_HOST)
@virtual_time
async def test_what_is_wrong_on_this_host_is_not_passed_over(failure: Failure) -> None:
    unreachable: dict[str, float | Exception] = {"https://mirror": failure}
    async with registry(places=PLACES, retries=5, unreachable=unreachable) as (source, script):
        with elapsing(0), pytest.raises(type(failure)):
            await source.root()
        assert script.dialled == ["https://mirror.test"]


@pytest.mark.parametrize("failure", OF_THIS_HOST)
@pytest.mark.parametrize("scheme", ["https", "http"])
@virtual_time
async def test_what_is_wrong_on_this_host_is_no_reason_for_plain_http(
    scheme: str, failure: Failure
) -> None:
    unreachable: dict[str, float | Exception] = {
        f"{scheme}://registry": failure,
        "https://registry.test": RESET if scheme == "http" else failure,
    }
    places = [place(insecure=True)]
    async with registry(places=places, retries=5, unreachable=unreachable) as (source, _):
        with elapsing(0), pytest.raises(type(failure)):
            await source.root()


# --- wrong bytes --------------------------------------------------------------------------------

WRONG = MANIFEST.replace(b"2", b"3")


def verified(source: RegistryImage) -> VerifiedSource:
    return VerifiedSource(source, LargeBlobs())


async def opened(source: RegistryImage, descriptor: Descriptor) -> bytes:
    """Return a blob as verified."""
    found = await verified(source).blob(descriptor)
    content = b""
    while piece := await found.read():
        content += piece
    found.close()
    return content


@virtual_time
async def test_an_endpoint_with_wrong_bytes_is_not_asked_again_for_the_same() -> None:
    lie = answer(body=LAYER[::-1])
    exchanges = [
        blob(MIRROR, lie),
        blob(OTHER, FOUND_BLOB),
        blob(OTHER, FOUND_BLOB),
        manifest(MIRROR, FOUND),  # for anything else it may be good
    ]
    async with registry(*exchanges, places=PLACES) as (source, _):
        for _ in range(2):
            assert await opened(source, described(LAYER, OCI_LAYER)) == LAYER
        await source.root()


@virtual_time
async def test_where_all_send_wrong_bytes_each_is_named() -> None:
    lies = [blob(base, answer(body=LAYER[::-1])) for base in (MIRROR, OTHER, BASE)]
    async with registry(*lies, places=PLACES, retries=5) as (source, _):
        for _ in range(2):
            with elapsing(0), pytest.raises(Failure) as raised:
                await opened(source, described(LAYER, OCI_LAYER))
            assert refused(raised.value) == WRONG_DIGEST
            for name in ("mirror.test/cache/os", "other.test/acme/os", "registry.test/acme/os"):
                assert f"[{name}] docker://registry.test/acme/os:1: blob " in raised.value.message
                assert f" from {name}: its bytes do not have the digest" in raised.value.message


@pytest.mark.parametrize("lie", [b"<html>", WRONG, MANIFEST[:-1], MANIFEST + b" "])
@virtual_time
async def test_a_manifest_by_digest_with_wrong_bytes_is_fetched_from_another_location(
    lie: bytes,
) -> None:
    raw = (
        b'{"schemaVersion":2,"manifests":[],"mediaType":"application/vnd.oci.image.index.v1+json"}'
    )
    where = f"/manifests/{digest_of(raw)}"
    exchanges = [
        asked(f"{MIRROR}{where}", answer(body=lie)),
        asked(f"{OTHER}{where}", answer(body=raw, content_type=OCI_MANIFEST)),
    ]
    reference = f"registry.test/acme/os@{digest_of(raw)}"
    async with registry(*exchanges, places=PLACES, reference=reference) as (source, _):
        kind = "application/vnd.oci.image.index.v1+json"
        document = await verified(source).document(described(raw, kind))
        assert document.raw == raw


PORTAL = answer(body=b"<html>log in</html>", content_type="text/html")


@virtual_time
async def test_a_page_in_place_of_a_manifest_is_passed_over() -> None:
    raw = b'{"schemaVersion":2,"manifests":[]}'
    kind = "application/vnd.oci.image.index.v1+json"
    exchanges = [manifest(MIRROR, PORTAL), manifest(OTHER, answer(body=raw, content_type=kind))]
    async with registry(*exchanges, places=PLACES) as (source, _):
        assert (await verified(source).root()).raw == raw
