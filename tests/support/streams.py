"""Byte streams in memory, a virtual clock, and registries that play a script.

Faults in time are tried without waiting for them: a `Step` of a stream may be bytes, a number of
seconds, or a failure. A script fails on the unexpected: a request that it does not have next, and
one that it has and nobody sent.
"""

from __future__ import annotations

import functools
import re
from collections import deque
from contextlib import asynccontextmanager, contextmanager
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
    from imgproxy.specs.http.url import Url

P = ParamSpec("P")

# Received, waited for, raised. Empty bytes are the end; seconds are a float.
Step = bytes | float | Exception
END = b""
SILENCE = float("inf")

# In virtual seconds: whoever waits for this waits for ever, and is found out at once.
_FOREVER = 1e6
# In real seconds: tells a hang from an answer.
_LIMIT = 30.0


def virtual_time(test: Callable[P, Awaitable[None]]) -> Callable[P, None]:
    """Run a test by a clock that jumps when all wait; what uses threads cannot be run by it."""
    return _run(test, lambda: trio.testing.MockClock(autojump_threshold=0), _FOREVER)


def real_time(test: Callable[P, Awaitable[None]]) -> Callable[P, None]:
    """Run a test that has to do with the system: sockets, files, threads."""
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
    """Assert that the block takes so long by the virtual clock."""
    started = trio.current_time()
    yield
    assert round(trio.current_time() - started, 6) == seconds


class Notes(Diagnostics):
    """Diagnostics, kept for the test."""

    def __init__(self) -> None:
        super().__init__(quiet=True)
        self.failures: list[str] = []
        self.details: list[str] = []

    def failure(self, message: str) -> None:
        self.failures.append(message)

    def debug(self, message: str) -> None:
        self.details.append(message)


class Inbox:
    """What there is to receive, as it comes: each piece by itself. Also a `Reader`."""

    def __init__(self, *steps: Step, size: int | None = None, name: str = "the blob") -> None:
        self.size = size
        self.name = name
        self.closed = 0
        self.rejected: list[Failure] = []
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

    def close(self) -> None:
        self.closed += 1


class MemoryStream:
    """A `ByteStream` whose other side is the test."""

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

    def stop_reading(self) -> None:
        """Let what is sent wait for room."""
        self._room = trio.Event()

    def read_on(self) -> None:
        self._room.set()

    def lose_reader(self) -> None:
        """Do as a pipe does that nobody reads any more, whoever may write into the other one."""
        self.broken = BrokenPipeError(32, "Broken pipe")
        self._gone.set()

    def hang_up(self) -> None:
        self.inbox.add(END)
        self.lose_reader()

    async def receive_into(self, buffer: memoryview) -> int:
        assert not self.closed
        return await self.inbox.receive_into(buffer)

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
    """Take what was sent apart: a reply for each request, and nothing besides.

    A body that is too short marks its reply by the `ending`.
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
        if methods[len(result)] != "HEAD":
            reply.body, rest = rest[: reply.length], rest[reply.length :]
            reply.ending = "open" if reply.complete else "end"
        reply.interim, interim = interim, []
        result.append(reply)
    assert len(result) == len(methods), result
    return result


# --- servers ------------------------------------------------------------------------------------


def head(status: int, **fields: str | None) -> bytes:
    """Give the head of a server's reply; underscores in names of fields stand for hyphens."""
    given = [(name.replace("_", "-"), value) for name, value in fields.items() if value is not None]
    lines = [f"HTTP/1.1 {status} Something", *(f"{name}: {value}" for name, value in given)]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


def answer(status: int = 200, body: bytes = b"", **fields: str | None) -> bytes:
    """Give a server's reply, with its length."""
    return head(status, content_length=str(len(body)), **fields) + body


def chunked(*pieces: bytes, **fields: str | None) -> bytes:
    """Give a server's reply in chunks."""
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in (*pieces, b""))
    return head(200, transfer_encoding="chunked", **fields) + chunks


class Exchange(NamedTuple):
    """A request that is expected and what comes back; a field that is None must be missing.

    With a `form` it is a POST of that.
    """

    url: str
    steps: tuple[Step, ...]
    fields: dict[str, str | None]
    form: bytes | None = None


def asked(url: str, *steps: Step, form: bytes | None = None, **fields: str | None) -> Exchange:
    given = {name.replace("_", "-"): value for name, value in fields.items()}
    return Exchange(url, steps, given, form)


class Script:
    """What all servers of a test play, in this order, on any connection; a `Dial`.

    `unreachable` says by prefix of the URL how dialling fails, or how long it takes. `streams` are
    the connections made.
    """

    def __init__(
        self, *exchanges: Exchange, unreachable: dict[str, float | Exception] | None = None
    ) -> None:
        self.exchanges = deque(exchanges)
        self.unreachable = unreachable or {}
        self.dialled: list[str] = []
        self.streams: list[ScriptedStream] = []
        self._failed = False

    async def __call__(self, url: Url) -> ScriptedStream:
        await trio.lowlevel.checkpoint()
        origin = f"{url.scheme}://{url.authority}"
        self.dialled.append(origin)
        for prefix, fault in self.unreachable.items():
            if origin.startswith(prefix):
                if isinstance(fault, Exception):
                    raise fault
                await trio.sleep(fault)
        self.streams.append(ScriptedStream(self, origin))
        return self.streams[-1]

    def play(self, origin: str, request: bytes, form: bytes) -> tuple[Step, ...]:
        """Give what is answered to a request, of which this is the head."""
        lines = request.decode("latin-1").split("\r\n")
        pairs = [line.split(": ", 1) for line in lines[1:]]
        fields = {name.lower(): value for name, value in pairs}
        method, target, version = lines[0].split(" ")
        self._failed = True  # until it is known to be what was expected
        assert (method, version) == ("POST" if form else "GET", "HTTP/1.1")
        assert len(fields) == len(pairs), request
        assert self.exchanges, f"an unexpected request: {lines[0]}"
        expected = self.exchanges.popleft()
        assert f"{origin}{target}" == expected.url
        assert form == (expected.form or b"")
        assert fields["host"] == origin.partition("://")[2]
        for name, value in expected.fields.items():
            assert fields.get(name) == value, (name, request)
        self._failed = False
        return expected.steps

    def check(self) -> None:
        """Assert that the script was played whole and that no connection is left open."""
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
            assert len(rest) == (int(length[1]) if length else 0)  # it is sent as one piece
            self.sent.clear()
            self.inbox.add(*self._script.play(self.origin, request, rest))


@asynccontextmanager
async def scripted(
    *exchanges: Exchange, unreachable: dict[str, float | Exception] | None = None
) -> AsyncIterator[tuple[Client, Script]]:
    """Give a client of scripted servers; afterwards all must have been asked and closed."""
    script = Script(*exchanges, unreachable=unreachable)
    client = Client(script, Notes(), stall_timeout=60, user_agent="test/1")
    yield client, script
    client.close()
    script.check()


def refused(error: Failure) -> tuple[int, str, bool]:
    """Give what a parent can tell a failure by."""
    return error.status, error.code, error.retryable
