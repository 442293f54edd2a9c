"""A blob over broken connections: cut at every byte, stalled, resumed, skipped, lied about."""

from __future__ import annotations

import errno
import hashlib
from typing import TYPE_CHECKING, Any

import pytest
import trio
from support.images import digest_of
from support.opened import drained
from support.registries import described, place, read, registry
from support.streams import (
    END,
    SILENCE,
    Step,
    answer,
    asked,
    chunked,
    elapsing,
    head,
    refused,
    virtual_time,
)

from imgproxy.errors import BadUpstreamError, Failure, UnavailableError
from imgproxy.transports.registry.blob_part import Part
from imgproxy.transports.registry.resumable_blob import MIN_PART, UNREAD, ResumableBlob

if TYPE_CHECKING:
    from imgproxy.transports.registry.registry_image import RegistryImage

MIB = 1 << 20
CONTENT = bytes(range(40))
SIZE = len(CONTENT)
LARGE = hashlib.shake_128(b"noise").digest(4 * MIB)

BASE = "https://registry.test/v2/acme/os"
MIRROR = "https://mirror.test/v2/cache/os"
PLACES = [place("mirror.test/cache/os:1", is_mirror=True), place()]
RESET = ConnectionResetError(errno.ECONNRESET, "Connection reset by peer")

BAD_UPSTREAM = (502, "BAD_UPSTREAM", False)
CUT = (503, "UNAVAILABLE", True)
UNREACHABLE = (504, "UNREACHABLE", True)


def blob(*steps: Step, base: str = BASE, content: bytes = CONTENT, **fields: Any) -> Any:  # noqa: ANN401  (an exchange)
    return asked(f"{base}/blobs/{digest_of(content)}", *steps, **fields)


def whole(content: bytes = CONTENT) -> bytes:
    return answer(body=content)


def part(start: int, stop: int | None = None, content: bytes = CONTENT) -> bytes:
    """Return a 206 with a part of the content."""
    stop = len(content) if stop is None else stop
    said = f"bytes {start}-{stop - 1}/{len(content)}"
    return answer(206, content[start:stop], content_range=said)


def rest_of(start: int, *steps: Step, base: str = BASE, content: bytes = CONTENT) -> Any:  # noqa: ANN401  (an exchange)
    """Return the request for what is left after `start` bytes."""
    wanted = f"bytes={start}-{len(content) - 1}"
    return blob(
        *(steps or (part(start, content=content),)), base=base, content=content, range=wanted
    )


async def pull(source: RegistryImage, content: bytes = CONTENT, piece: int = 1 << 16) -> bytes:
    """Receive as many bytes as there are, as verification does it."""
    reader = await source.blob(described(content))
    received, buffer = bytearray(), memoryview(bytearray(piece))
    try:
        while len(received) < len(content):
            count = await reader.receive_into(buffer[: len(content) - len(received)])
            if count == 0:
                break
            received += buffer[:count]
        if reader.size is None:
            assert await reader.receive_into(buffer[:1]) == 0
    finally:
        reader.close()
    return bytes(received)


# --- cuts ---------------------------------------------------------------------------------------

FRAMINGS = {
    "length": whole(),
    "chunked": chunked(CONTENT[:7], CONTENT[7:8], CONTENT[8:]),
    "to the end": head(200) + CONTENT,
}
ENDINGS: dict[str, Step] = {"end": END, "reset": RESET, "stall": SILENCE}


def had(reply: bytes, framing: str) -> int:
    """Return how many bytes of the content a beginning of a reply holds."""
    body = reply.partition(b"\r\n\r\n")[2]
    if framing != "chunked":
        return len(body)
    count = 0
    for start, size in ((3, 7), (15, 1), (22, 32)):
        count += max(0, min(len(body) - start, size))
    return count


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("framing", FRAMINGS)
@virtual_time
async def test_a_body_that_is_cut_anywhere_is_gone_on_with(framing: str, ending: str) -> None:
    reply = FRAMINGS[framing]
    for at in range(reply.index(b"\r\n\r\n") + 4, len(reply)):
        count = had(reply[:at], framing)
        exchanges = [blob(reply[:at], ENDINGS[ending])]
        if count < SIZE:
            exchanges.append(rest_of(count))
        async with registry(*exchanges, retries=1) as (source, script):
            assert await pull(source) == CONTENT
            assert script.streams[0].closed


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("how", ["part", "part in chunks", "whole"])
@virtual_time
async def test_what_it_is_gone_on_with_may_be_cut_as_well(how: str, ending: str) -> None:
    said = f"bytes 10-{SIZE - 1}/{SIZE}"
    reply = {
        "part": part(10),
        "part in chunks": head(206, content_range=said, transfer_encoding="chunked")
        + b"1e\r\n"
        + CONTENT[10:]
        + b"\r\n0\r\n\r\n",
        "whole": whole(),
    }[how]
    start = reply.index(CONTENT[10:])
    for at in range(start - (10 if how == "whole" else 0), start + SIZE - 10):
        count = 10 + max(0, at - start)
        exchanges = [
            blob(whole()[: -(SIZE - 10)], END),
            rest_of(10, reply[:at], ENDINGS[ending]),
            rest_of(count),
        ]
        async with registry(*exchanges, retries=2) as (source, _):
            assert await pull(source) == CONTENT


@virtual_time
async def test_every_byte_may_take_a_connection_of_its_own() -> None:
    """If there are as many retries."""
    exchanges = [blob(whole()[: 1 - SIZE], END)]
    exchanges += [
        rest_of(at, part(at)[: len(part(at)) - SIZE + at + 1], END) for at in range(1, SIZE)
    ]
    exchanges[-1] = rest_of(SIZE - 1)
    async with registry(*exchanges, retries=SIZE) as (source, _):
        assert await pull(source) == CONTENT


@virtual_time
async def test_the_rest_is_asked_for_by_the_registry_s_own_url() -> None:
    """A signed location may have run out."""
    exchanges = [
        blob(answer(307, location="https://cdn.test/1")),
        asked("https://cdn.test/1", whole()[:-30], END, range=None),
        blob(answer(307, location="https://cdn.test/2"), range=f"bytes=10-{SIZE - 1}"),
        asked("https://cdn.test/2", part(10), range=f"bytes=10-{SIZE - 1}"),
    ]
    async with registry(*exchanges, retries=1) as (source, _):
        assert await pull(source) == CONTENT


@virtual_time
async def test_the_rest_may_take_a_token_once_more() -> None:
    challenge = 'Bearer realm="https://t.test/"'
    exchanges = [
        blob(whole()[:-30], END),
        rest_of(10, answer(401, www_authenticate=challenge)),
        asked(
            "https://t.test/?scope=repository%3Aacme%2Fos%3Apull", answer(body=b'{"token":"t1"}')
        ),
        rest_of(10),
    ]
    async with registry(*exchanges, retries=1) as (source, _):
        assert await pull(source) == CONTENT


# --- what stands in place of the rest -----------------------------------------------------------

LIES = {
    "another start": answer(206, CONTENT[9:], content_range=f"bytes 9-{SIZE - 1}/{SIZE}"),
    "another size": answer(206, CONTENT[10:], content_range=f"bytes 10-{SIZE - 1}/{SIZE + 1}"),
    "beyond the end": answer(206, bytes(99), content_range=f"bytes 10-108/{SIZE}"),
    "another length": answer(206, CONTENT[11:], content_range=f"bytes 10-{SIZE - 1}/{SIZE}"),
    "no range": answer(206, CONTENT[10:]),
    "two ranges": answer(206, b"", content_range="bytes 10-11/40\r\nContent-Range: bytes 12-39/40"),
    "another whole": answer(200, CONTENT + b"x"),
    "another size that is not satisfied": answer(416, content_range=f"bytes */{SIZE + 1}"),
    "encoded": answer(
        206, CONTENT[10:], content_range=f"bytes 10-{SIZE - 1}/{SIZE}", content_encoding="gzip"
    ),
    "not there": answer(404),
    "denied": answer(403),
    "a circle": answer(307, location="ftp://x"),
}


@pytest.mark.parametrize("lie", LIES)
@virtual_time
async def test_another_answer_is_refused_and_another_location_asked(lie: str) -> None:
    exchanges = [
        blob(whole()[:-30], END, base=MIRROR),
        rest_of(10, LIES[lie]),
        rest_of(10, base=MIRROR),
    ]
    async with registry(*exchanges, places=PLACES, retries=1) as (source, _):
        assert await pull(source) == CONTENT
    async with registry(blob(whole()[:-30], END), rest_of(10, LIES[lie]), retries=5) as (source, _):
        with elapsing(1), pytest.raises(Failure) as raised:
            await pull(source)
    assert not raised.value.retryable


def said_to_be(encoding: str, status: int = 200, start: int = 0) -> bytes:
    field = f"bytes {start}-{SIZE - 1}/{SIZE}" if status == 206 else None
    return answer(status, CONTENT[start:], content_range=field, content_encoding=encoding)


@pytest.mark.parametrize("encoding", ["gzip", "x-gzip", "zstd", "aws-chunked"])
@virtual_time
async def test_a_blob_that_is_only_said_to_be_encoded_is_received(encoding: str) -> None:
    """As by Apache, which tells a layer's by its first bytes: its digest decides."""
    reply = said_to_be(encoding)
    async with registry(blob(reply)) as (source, _):
        reader = await source.blob(described(CONTENT))
        assert reader.name.endswith(f", said to be encoded as {encoding}")
        reader.close()
    rest = said_to_be(encoding, 206, 10)
    async with registry(blob(reply[:-30], END), rest_of(10, rest), retries=1) as (source, _):
        assert await pull(source) == CONTENT


@pytest.mark.parametrize("said", ["bytes */40", None, "bytes */*", "nonsense"])
@virtual_time
async def test_a_server_without_ranges_is_skipped_through(said: str | None) -> None:
    exchanges = [
        blob(whole()[:-30], END),
        rest_of(10, answer(416, content_range=said)),
        blob(whole(), range=None),
    ]
    async with registry(*exchanges, retries=1) as (source, _):
        assert await pull(source) == CONTENT


@virtual_time
async def test_a_whole_that_ends_before_the_byte_reached_is_no_whole() -> None:
    """It has no length, so that this is only known when it has ended."""
    exchanges = [
        blob(whole()[:-30], END),
        rest_of(10, chunked(CONTENT[:5])),
        rest_of(10),
    ]
    async with registry(*exchanges, retries=2) as (source, _):
        assert await pull(source) == CONTENT


@pytest.mark.parametrize("framing", FRAMINGS)
@virtual_time
async def test_a_whole_in_place_of_a_part_is_skipped_through(framing: str) -> None:
    exchanges = [blob(whole()[:-30], END), rest_of(10, FRAMINGS[framing], END)]
    async with registry(*exchanges, retries=1) as (source, _):
        assert await pull(source) == CONTENT


@virtual_time
async def test_a_shorter_part_is_gone_on_with() -> None:
    exchanges = [blob(whole()[:-30], END), rest_of(10, part(10, 20)), rest_of(20)]
    async with registry(*exchanges, retries=2) as (source, _):
        assert await pull(source) == CONTENT


@virtual_time
async def test_parts_of_a_fair_size_cost_no_retries_and_no_pause() -> None:
    size = 64 * 1024
    content = LARGE[:MIB]
    exchanges = [blob(whole(content)[: size - MIB], END, content=content)]
    exchanges += [
        rest_of(at, part(at, min(at + size, MIB), content), content=content)
        for at in range(size, MIB, size)
    ]
    async with registry(*exchanges, retries=1) as (source, _):
        with elapsing(1):
            assert await pull(source, content) == content


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("count", [0, 1, 100_000])
@virtual_time
async def test_a_part_that_is_cut_is_no_part_of_a_fair_size(count: int, ending: str) -> None:
    """Or it would be asked for without a pause and without an end."""
    content = LARGE[:MIB]
    cut = part(10, content=content)
    cut = cut[: len(cut) - MIB + 10 + count]
    exchanges = [blob(whole(content)[: 10 - MIB], END, content=content)]
    at = 10
    for _ in range(3):
        exchanges.append(
            rest_of(at, part(at, content=content)[: cut.index(b"\r\n\r\n") + 4], content=content)
        )
        head_size = part(at, content=content).index(b"\r\n\r\n") + 4
        exchanges[-1] = rest_of(
            at, part(at, content=content)[: head_size + count], ENDINGS[ending], content=content
        )
        at += count
    async with registry(*exchanges, retries=3) as (source, _):
        with pytest.raises(Failure) as raised:
            await pull(source, content)
    assert refused(raised.value) == (UNREACHABLE if ending == "stall" else CUT)


# --- how long it is put up with -----------------------------------------------------------------


@virtual_time
async def test_pauses_double_while_there_is_no_progress() -> None:
    exchanges = [blob(whole()[:-30], END)]
    exchanges += [rest_of(10, answer(503)) for _ in range(3)]
    async with registry(*exchanges, retries=3) as (source, _):
        with elapsing(1 + 2 + 4), pytest.raises(Failure) as raised:
            await pull(source)
    assert refused(raised.value) == CUT


@pytest.mark.parametrize("ending", ENDINGS)
@virtual_time
async def test_retries_are_as_many_as_was_said_whatever_ends_a_try(ending: str) -> None:
    """Those of the head and those of the body are not multiplied."""
    retries = 4
    exchanges = [blob(answer(503)), blob(whole()[:-30], ENDINGS[ending])]
    for at in range(retries):
        steps = (answer(503),) if at % 2 else (part(10)[:-30], ENDINGS[ending])
        exchanges.append(rest_of(10, *steps))
    async with registry(*exchanges, retries=retries) as (source, _):
        with pytest.raises(Failure) as raised:
            await pull(source)
    assert raised.value.retryable


@virtual_time
async def test_without_retries_a_cut_is_the_end() -> None:
    async with registry(blob(whole()[:-30], END)) as (source, _):
        with elapsing(0), pytest.raises(Failure) as raised:
            await pull(source)
    assert refused(raised.value) == CUT


@virtual_time
async def test_each_mebibyte_starts_the_count_again() -> None:
    content = LARGE
    cuts = [MIB, 2 * MIB, 3 * MIB]
    exchanges = [blob(whole(content)[: cuts[0] - len(content)], END, content=content)]
    for at, until in zip(cuts, [*cuts[1:], len(content)], strict=True):
        reply = part(at, content=content)
        steps = (reply,) if until == len(content) else (reply[: until - len(content)], END)
        exchanges.append(rest_of(at, *steps, content=content))
    async with registry(*exchanges, retries=1) as (source, _):
        with elapsing(3):
            assert await pull(source, content) == content


@virtual_time
async def test_less_than_a_mebibyte_does_not() -> None:
    content = LARGE
    at = MIB // 2 - 1
    exchanges = [
        blob(whole(content)[: at - len(content)], END, content=content),
        rest_of(at, part(at, content=content)[: 2 * at - len(content)], END, content=content),
    ]
    async with registry(*exchanges, retries=1) as (source, _):
        with pytest.raises(Failure) as raised:
            await pull(source, content)
    assert refused(raised.value) == CUT


@pytest.mark.parametrize("said", ["30", "0"])
@virtual_time
async def test_a_retry_after_is_heeded_in_mid_blob(said: str) -> None:
    exchanges = [
        blob(whole()[:-30], END),
        rest_of(10, answer(429, retry_after=said)),
        rest_of(10),
    ]
    async with registry(*exchanges, retries=2) as (source, _):
        with elapsing(1 + int(said) + 1):
            assert await pull(source) == CONTENT


# --- ends ---------------------------------------------------------------------------------------


@virtual_time
async def test_an_early_end_that_was_meant_is_a_lie_and_no_loss() -> None:
    """Verification rejects it; the same location would send the same once more."""
    async with registry(blob(chunked(CONTENT[:10])), retries=5) as (source, _):
        with elapsing(0):
            assert await pull(source) == CONTENT[:10]


@pytest.mark.parametrize("ending", ENDINGS)
@virtual_time
async def test_an_end_that_does_not_come_is_no_loss(ending: str) -> None:
    """All bytes are there; verification compares them."""
    reply = chunked(CONTENT).removesuffix(b"0\r\n\r\n")
    async with registry(blob(reply, ENDINGS[ending])) as (source, _):
        assert await pull(source) == CONTENT


@virtual_time
async def test_a_size_is_told_before_anything_is_received() -> None:
    for reply, size in ((whole(), SIZE), (answer(body=b"x"), 1), (FRAMINGS["chunked"], None)):
        async with registry(blob(reply)) as (source, _):
            reader = await source.blob(described(CONTENT))
            assert reader.size == size
            reader.close()
            reader.close()


@virtual_time
async def test_a_connection_that_breaks_http_is_gone_on_with() -> None:
    broken = chunked(CONTENT[:10]).replace(b"0\r\n\r\n", b"x\r\n")
    async with registry(blob(broken), rest_of(10), retries=1) as (source, _):
        assert await pull(source) == CONTENT
    async with registry(blob(broken)) as (source, _):
        with pytest.raises(BadUpstreamError):
            await pull(source)


@pytest.mark.parametrize("when", ["pause", "head", "skip", "body"])
@virtual_time
async def test_a_cancelled_pull_leaves_no_connection_behind(when: str) -> None:
    steps: dict[str, tuple[Step, ...]] = {
        "pause": (),
        "head": (SILENCE,),
        "skip": (whole()[:-35], SILENCE),
        "body": (part(10)[:-5], SILENCE),
    }
    exchanges = [blob(whole()[:-30], END)]
    if when != "pause":
        exchanges.append(rest_of(10, *steps[when]))
    async with registry(*exchanges, retries=1) as (source, _):
        with trio.move_on_after(0.5 if when == "pause" else 10) as scope:
            await pull(source)
        assert scope.cancelled_caught


# --- whatever supplies it -----------------------------------------------------------------------


class Answer:
    """Stands for a response with a status, which ends by a failure if there is one."""

    def __init__(self, body: bytes, status: int = 200, failure: Failure | None = None) -> None:
        self.size: int | None = len(body)
        self.status = status
        self.ends_by_close = False
        self.closed = False
        self._body = body
        self._failure = failure

    async def receive_into(self, buffer: memoryview) -> int:
        await trio.lowlevel.checkpoint()
        if not self._body and self._failure is not None:
            raise self._failure
        count = min(len(buffer), len(self._body))
        buffer[:count], self._body = self._body[:count], self._body[count:]
        return count

    def close(self) -> None:
        self.closed = True


class Supplied:
    """A `Supply` of these parts, in this order; `asked` are the offsets and failures."""

    name = "the blob"

    def __init__(self, *parts: Part) -> None:
        self.parts = list(parts)
        self.asked: list[tuple[int, Failure | None]] = []
        self.rejected: list[Failure] = []

    async def rest(self, offset: int, failure: Failure | None) -> Part:
        await trio.lowlevel.checkpoint()
        self.asked.append((offset, failure))
        return self.parts.pop(0)

    def reject(self, failure: Failure) -> bool:
        self.rejected.append(failure)
        return True


@virtual_time
async def test_two_methods_are_all_that_it_takes() -> None:
    cut = UnavailableError("cut")
    first, second = Answer(CONTENT[:10], failure=cut), Answer(CONTENT[10:20], 206)
    third = Answer(LARGE[:MIN_PART], 206)
    fourth = Answer(CONTENT[20:], 206)
    length = SIZE + MIN_PART
    content = CONTENT[:20] + LARGE[:MIN_PART] + CONTENT[20:]
    supply = Supplied(Part(second, 10), Part(third, MIN_PART), Part(fourth, 20))  # type: ignore[arg-type]
    reader = ResumableBlob(supply, length, Part(first))  # type: ignore[arg-type]
    assert await read(reader) == content
    (one, two, three) = supply.asked
    assert one == (10, cut)
    # A morsel is a failure, a part of a fair size is none.
    assert two[0] == 20
    assert str(two[1]) == "the blob: ended after 20 bytes"
    assert three == (20 + MIN_PART, None)
    assert [each.closed for each in (first, second, third, fourth)] == [True] * 4
    assert reader.reject(cut)
    assert supply.rejected == [cut]


@virtual_time
@pytest.mark.parametrize(
    ("unread", "received", "is_excused"),
    [
        (UNREAD + 1, 0, True),
        (UNREAD + 1, 10, True),  # what was on its way is received first
        (UNREAD - 1, 0, False),
    ],
)
async def test_a_server_may_give_up_a_body_that_nobody_reads(
    unread: float,
    received: int,
    is_excused: bool,  # noqa: FBT001  (a parameter)
) -> None:
    cut = UnavailableError("cut")
    first, second = Answer(CONTENT[:10], failure=cut), Answer(CONTENT[10:], 206, failure=cut)
    supply = Supplied(Part(second, SIZE - 10), Part(Answer(b"", 206)))  # type: ignore[arg-type]
    reader = ResumableBlob(supply, SIZE, Part(first))  # type: ignore[arg-type]
    buffer = memoryview(bytearray(SIZE))
    found = 0
    while found < 10 - received:
        found += await reader.receive_into(buffer[found : 10 - received])
    await trio.sleep(unread)
    while found < SIZE:
        found += await reader.receive_into(buffer[found:])
    assert bytes(buffer) == CONTENT
    assert supply.asked == [(10, None if is_excused else cut)]


@virtual_time
async def test_it_may_do_so_once_each_time() -> None:
    cut = UnavailableError("cut")
    parts = [Part(Answer(b"", 206, failure=cut)), Part(Answer(CONTENT, 206))]
    supply = Supplied(*parts)  # type: ignore[arg-type]
    reader = ResumableBlob(supply, SIZE, Part(Answer(b"", failure=cut)))  # type: ignore[arg-type]
    await trio.sleep(UNREAD + 1)
    assert await reader.receive_into(memoryview(bytearray(SIZE))) == SIZE
    assert supply.asked == [(0, None), (0, cut)]


# --- parts --------------------------------------------------------------------------------------


def part_of(start: int, stop: int, *steps: Step) -> Any:  # noqa: ANN401  (an exchange)
    return blob(*(steps or (part(start, stop),)), range=f"bytes={start}-{stop - 1}")


@pytest.mark.parametrize(
    "exchanges",
    [
        [part_of(5, 20)],
        [part_of(5, 20, part(5, 20)[:-3], END), part_of(17, 20)],
        [part_of(5, 20, part(5, 8)), part_of(8, 20)],
        [part_of(5, 20, answer(200, CONTENT))],
        [part_of(5, 20, answer(416)), blob(answer(200, CONTENT), range=None)],
    ],
)
@virtual_time
async def test_a_part_is_asked_for_and_no_more_is_received(exchanges: list[Any]) -> None:
    async with registry(*exchanges, retries=1) as (source, _):
        reader = await source.blob(described(CONTENT), 5, 20)
        assert reader.size is None
        assert await drained(reader) == CONTENT[5:20]
        reader.close()


@virtual_time
async def test_a_server_that_sends_more_than_a_part_is_refused() -> None:
    async with registry(part_of(5, 20, part(5, 21)), retries=0) as (source, _):
        with pytest.raises(BadUpstreamError, match="asked for bytes 5-19 of"):
            await source.blob(described(CONTENT), 5, 20)
