"""Byte streams in memory, a virtual clock, and registries that play a script.

Faults in time are tested without waiting for them: a `Step` of a stream may be bytes, a number of
seconds, or a failure. A script fails on a request that is not the next one it expects, and on an
expected one that was not sent.
"""

from __future__ import annotations

import functools
import re
from collections import deque
from contextlib import asynccontextmanager, contextmanager
from socket import AF_INET
from typing import TYPE_CHECKING, NamedTuple, ParamSpec

import trio
import trio.testing
from support.parent import Reply, parse_head

from imgproxy.host.diagnostics import Diagnostics
from imgproxy.net.client import Client

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

    from trio.abc import Clock

    from imgproxy.errors import Failure
    from imgproxy.net.streams import Buffer
    from imgproxy.net.tcp import Route
    from imgproxy.specs.http.url import Url

P = ParamSpec("P")

# What is received, waited for or raised. Empty bytes are the end; seconds are a float.
Step = bytes | float | Exception
END = b""
SILENCE = float("inf")

# In virtual seconds: a test that waits for this long waits for ever, and fails at once.
_FOREVER = 1e6
# In real seconds: a test that takes longer hangs.
_LIMIT = 30.0


def virtual_time(test: Callable[P, Awaitable[None]]) -> Callable[P, None]:
    """Run a test by a clock that jumps when all tasks wait; the test must not use threads."""
    return _run(test, lambda: trio.testing.MockClock(autojump_threshold=0), _FOREVER)


def real_time(test: Callable[P, Awaitable[None]]) -> Callable[P, None]:
    """Run a test that uses the system: sockets, files, threads."""
    return _run(test, lambda: None, _LIMIT)


def _run(
    test: Callable[P, Awaitable[None]], new_clock: Callable[[], Clock | None], limit: float
) -> Callable[P, None]:
    @functools.wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        async def main() -> None:
            with trio.fail_after(limit):
                await test(*args, **kwargs)

        trio.run(main, clock=new_clock())

    return run


@contextmanager
def elapsing(seconds: float) -> Iterator[None]:
    """Assert that the block takes so many seconds by the virtual clock."""
    started = trio.current_time()
    yield
    assert round(trio.current_time() - started, 6) == seconds


class Notes(Diagnostics):
    """Diagnostics that keep their messages for the test."""

    def __init__(self) -> None:
        super().__init__(quiet=True)
        self.failures: list[str] = []
        self.details: list[str] = []

    def failure(self, message: str) -> None:
        self.failures.append(message)

    def debug(self, message: str) -> None:
        self.details.append(message)


class Inbox:
    """Steps that are received one at a time. Also a `Reader`."""

    origin = None

    def __init__(self, *steps: Step, size: int | None = None, name: str = "the blob") -> None:
        self.size = size
        self.name = name
        self.closed = 0
        self.rejected: list[Failure] = []
        self.accepted = 0
        self._steps = deque(steps)
        self._changed = trio.Event()

    def add(self, *steps: Step) -> None:
        self._steps.extend(steps)
        self._changed.set()
        self._changed = trio.Event()

    @property
    def is_quiet(self) -> bool:
        return not self._steps or isinstance(self._steps[0], float)

    async def receive_into(self, buffer: memoryview) -> int:
        await trio.lowlevel.checkpoint()
        while True:
            if not self._steps:
                await self._changed.wait()
                continue
            step = self._steps[0]
            if isinstance(step, Exception):
                raise step
            if not isinstance(step, float):
                break
            self._steps.popleft()
            await trio.sleep(step)
        return self.receive_now(buffer)

    def receive_now(self, buffer: memoryview) -> int:
        if self.is_quiet:
            raise BlockingIOError
        step = self._steps[0]
        if isinstance(step, Exception):
            raise step
        assert not isinstance(step, float)
        count = min(len(buffer), len(step))
        buffer[:count] = step[:count]
        if step[count:]:
            self._steps[0] = step[count:]
        elif step:
            self._steps.popleft()
        return count

    def reject(self, failure: Failure) -> bool:
        self.rejected.append(failure)
        return False

    def accept(self) -> None:
        self.accepted += 1

    def close(self) -> None:
        self.closed += 1


class MemoryStream:
    """A `ByteStream` whose other side is the test."""

    peer = ""

    def __init__(self, *steps: Step) -> None:
        self.inbox = Inbox(*steps)
        self.sent = bytearray()
        self.sizes: list[int] = []
        self.broken: OSError | None = None
        self.finished: tuple[int, float] | None = None
        self.closed = False
        self._gone = trio.Event()
        self._room = trio.Event()
        self._room.set()

    @property
    def sent_bytes(self) -> int:
        return len(self.sent)

    def stop_reading(self) -> None:
        """Make `send` wait until `read_on`."""
        self._room = trio.Event()

    def read_on(self) -> None:
        self._room.set()

    def lose_reader(self) -> None:
        """Act as a pair of pipes of which only the one that is sent to has lost its reader."""
        self.broken = BrokenPipeError(32, "Broken pipe")
        self._gone.set()

    def hang_up(self) -> None:
        self.inbox.add(END)
        self.lose_reader()

    async def receive_into(self, buffer: memoryview) -> int:
        assert not self.closed
        return await self.inbox.receive_into(buffer)

    def receive_now(self, buffer: memoryview) -> int:
        assert not self.closed
        return self.inbox.receive_now(buffer)

    async def send(self, data: Buffer) -> None:
        assert not self.closed
        assert self.finished is None
        await trio.lowlevel.checkpoint()
        await self._room.wait()
        if self.broken is not None:
            raise self.broken
        self.sizes.append(len(data))
        self.sent += data

    async def finish(self, limit: int, patience: float) -> None:
        self.finished = (limit, patience)
        if self.broken is not None:
            return
        buffer = memoryview(bytearray(limit))
        with trio.move_on_after(patience):
            while buffer and (count := await self.receive_into(buffer)):
                buffer = buffer[count:]

    async def wait_hung_up(self) -> None:
        await self._gone.wait()

    def is_quiet(self) -> bool:
        return not self.closed and self.inbox.is_quiet

    def close(self) -> None:
        self.closed = True


def replies(sent: Buffer, *methods: str) -> list[Reply]:
    """Parse all that was sent into one reply for each request.

    The `ending` of a reply tells whether its body is complete.
    """
    result: list[Reply] = []
    rest, interim = bytes(sent), list[int]()
    while rest:
        head, end, rest = rest.partition(b"\r\n\r\n")
        assert end, head
        reply = parse_head(head)
        if reply.status < 200:
            interim.append(reply.status)
            continue
        assert reply.length is not None, head
        if methods[len(result)] != "HEAD" and reply.status != 304:
            reply.body, rest = rest[: reply.length], rest[reply.length :]
            reply.ending = "open" if reply.complete else "end"
        reply.interim, interim = interim, []
        result.append(reply)
    assert len(result) == len(methods), result
    return result


# --- servers ------------------------------------------------------------------------------------


def head(status: int, **fields: str | None) -> bytes:
    """Return the head of a server's reply; underscores in names of fields stand for hyphens."""
    given = [(name.replace("_", "-"), value) for name, value in fields.items() if value is not None]
    lines = [f"HTTP/1.1 {status} Something", *(f"{name}: {value}" for name, value in given)]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


def answer(status: int = 200, body: bytes = b"", **fields: str | None) -> bytes:
    """Return a server's reply, with its length."""
    return head(status, content_length=str(len(body)), **fields) + body


def chunked(*pieces: bytes, **fields: str | None) -> bytes:
    """Return a server's reply in chunks."""
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in (*pieces, b""))
    return head(200, transfer_encoding="chunked", **fields) + chunks


class Exchange(NamedTuple):
    """An expected request and the steps of its reply; a field that is None must be missing.

    With a `form` it is a POST of that.
    """

    url: str
    steps: tuple[Step, ...]
    fields: dict[str, str | None]
    form: bytes | None = None
    method: str = "GET"


def asked(
    url: str, *steps: Step, form: bytes | None = None, method: str = "GET", **fields: str | None
) -> Exchange:
    given = {name.replace("_", "-"): value for name, value in fields.items()}
    return Exchange(url, steps, given, form, method)


class Script:
    """The exchanges of all servers of a test, in this order, on any connection; a `Dial`.

    `unreachable` holds, by prefix of the URL, how dialling fails or how many seconds it takes.
    `streams` are the connections made; `peers` has the addresses of their servers, by origin,
    separated by spaces; the first one in the order of the route accepts.
    """

    def __init__(
        self, *exchanges: Exchange, unreachable: dict[str, float | Exception] | None = None
    ) -> None:
        self.exchanges = deque(exchanges)
        self.unreachable = unreachable or {}
        self.dialled: list[str] = []
        self.streams: list[ScriptedStream] = []
        self.peers: dict[str, str] = {}
        self._failed = False

    async def __call__(self, url: Url, route: Route) -> ScriptedStream:
        await trio.lowlevel.checkpoint()
        origin = f"{url.scheme}://{url.authority}"
        self.dialled.append(origin)
        given = self.peers.get(origin, "")
        targets = [(AF_INET, (each,)) for each in given.split()]
        route.addresses = [address[0] for _, address in route.ordered(targets)[:1]]
        for prefix, fault in self.unreachable.items():
            if origin.startswith(prefix):
                if isinstance(fault, Exception):
                    raise fault
                await trio.sleep(fault)
        self.streams.append(ScriptedStream(self, origin))
        self.streams[-1].peer = "".join(route.addresses)
        return self.streams[-1]

    def play(self, origin: str, request: bytes, form: bytes) -> tuple[Step, ...]:
        """Return the reply to a request with this head and body."""
        lines = request.decode("latin-1").split("\r\n")
        pairs = [line.split(": ", 1) for line in lines[1:]]
        fields = {name.lower(): value for name, value in pairs}
        method, target, version = lines[0].split(" ")
        self._failed = True  # until the request has proven to be the expected one
        assert version == "HTTP/1.1"
        assert len(fields) == len(pairs), request
        assert self.exchanges, f"an unexpected request: {lines[0]}"
        expected = self.exchanges.popleft()
        assert f"{origin}{target}" == expected.url
        assert method == ("POST" if expected.form else expected.method)
        assert form == (expected.form or b"")
        assert fields["host"] == origin.partition("://")[2]
        for name, value in expected.fields.items():
            assert fields.get(name) == value, (name, request)
        self._failed = False
        return expected.steps

    def check(self) -> None:
        """Assert that all exchanges took place and that no connection is left open."""
        assert not self._failed
        assert not self.exchanges, f"never asked: {self.exchanges}"
        assert [stream.origin for stream in self.streams if not stream.closed] == []


class ScriptedStream(MemoryStream):
    """A connection to a server that plays the script."""

    def __init__(self, script: Script, origin: str) -> None:
        super().__init__()
        self.origin = origin
        self._script = script

    async def send(self, data: Buffer) -> None:
        await super().send(data)
        request, end, rest = bytes(self.sent).partition(b"\r\n\r\n")
        if end:
            length = re.search(rb"\r\nContent-Length: ([0-9]+)", request)
            assert len(rest) == (
                int(length[1]) if length else 0
            )  # head and body are sent as one piece
            self.sent.clear()
            self.inbox.add(*self._script.play(self.origin, request, rest))


@asynccontextmanager
async def scripted(
    *exchanges: Exchange, unreachable: dict[str, float | Exception] | None = None
) -> AsyncIterator[tuple[Client, Script]]:
    """Yield a client of scripted servers; then check that all was requested and closed."""
    script = Script(*exchanges, unreachable=unreachable)
    client = Client(script, Notes(), stall_timeout=60, user_agent="test/1")
    yield client, script
    client.close()
    script.check()


def refused(error: Failure) -> tuple[int, str, bool]:
    """Return what identifies a failure to a parent: status, code, whether to retry."""
    return error.status, error.code, error.retryable
