"""Conversations over a stream in memory, and a front-end for them that plays a script."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import trio
from support.streams import END, MemoryStream, Notes, Step, replies
from trio.testing import wait_all_tasks_blocked

from imgproxy.errors import NotFoundError
from imgproxy.server.handler import Reply
from imgproxy.server.http_connection import HttpConnection, Severity
from imgproxy.server.shutdown import Shutdown

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import TypeAlias

    from support.parent import Reply as Received

    from imgproxy.server.access import Access
    from imgproxy.server.handler import Handler, Request

    Answer: TypeAlias = bytes | Exception | Reply | tuple[Step, ...]


def ask(
    method: str = "GET",
    target: str = "/manifest",
    *fields: str,
    body: bytes = b"",
    version: str = "1.1",
) -> bytes:
    """Return a request; `fields` are whole lines."""
    lines = [f"{method} {target} HTTP/{version}", "Host: localhost", *fields]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


def chunks(*sizes: int) -> bytes:
    """Return a body in chunks."""
    return b"".join(b"%x\r\n%b\r\n" % (size, bytes(size)) for size in (*sizes, 0))


GET, QUIT = ask(), ask("POST", "/quit")


class Pulled:
    """A body that is pulled: pieces, waits and failures.

    `closed` counts how often it was, `ahead` how often it could be received before it was read.
    """

    def __init__(self, *steps: Step) -> None:
        self.closed = 0
        self.ahead = 0
        self._steps = iter(steps)

    async def read(self) -> bytes:
        for step in self._steps:
            if isinstance(step, Exception):
                raise step
            if not isinstance(step, float):
                return step
            await trio.sleep(step)
        return END

    async def read_ahead(self) -> None:
        self.ahead += 1

    def close(self) -> None:
        self.closed += 1


class FrontEnd:
    """A `Handler` that answers by target: with bytes, a failure, a reply, or a body's steps.

    `sizes` are the lengths of bodies that are not those of their steps. `gate` makes all answers
    wait but that to `POST /quit`, which ends the service.
    """

    def __init__(
        self,
        answers: Mapping[str, Answer] | None = None,
        sizes: dict[str, int] | None = None,
    ) -> None:
        self.answers: dict[str, Answer] = {
            "/manifest": b"the manifest",
            "/config": b"{}",
            **(answers or {}),
        }
        self.sizes = sizes or {}
        self.asked: list[Request] = []
        self.bodies: list[Pulled] = []
        self.gate = trio.Event()
        self.gate.set()

    async def handle(self, request: Request) -> Reply:
        self.asked.append(request)
        if request[:2] == (b"POST", b"/quit"):
            return Reply([], 0, b"", ends_service=True)
        await self.gate.wait()
        target = request.target.decode()
        answer = self.answers.get(target, NotFoundError(f"no such path: {target}"))
        if isinstance(answer, Exception):
            raise answer
        if isinstance(answer, Reply):
            return answer
        fields = [("Content-Type", "text/plain")]
        if isinstance(answer, bytes):
            return Reply(fields, len(answer), answer)
        self.bodies.append(Pulled(*answer))
        size = sum(len(step) for step in answer if isinstance(step, bytes))
        return Reply(fields, self.sizes.get(target, size), self.bodies[-1])


@dataclass
class Talk:
    """A conversation that has ended."""

    stream: MemoryStream
    notes: Notes
    severity: Severity

    def replies(self, *methods: str) -> list[Received]:
        return replies(self.stream.sent, *methods)

    def reply(self, method: str = "GET") -> Received:
        (reply,) = self.replies(method)
        return reply


async def hold(
    handler: Handler,
    stream: MemoryStream,
    *,
    shutdown: Shutdown | None = None,
    access: Access | None = None,
) -> Talk:
    """Hold a conversation to its end."""
    notes = Notes()
    shutdown = Shutdown() if shutdown is None else shutdown
    severity = await HttpConnection(stream, handler, shutdown, notes, access=access).run()
    assert stream.closed
    return Talk(stream, notes, severity)


async def talk(handler: Handler, *steps: Step) -> Talk:
    """Send these, and nothing after them; the sending side is shut down then."""
    return await hold(handler, MemoryStream(*steps, END))


async def started(
    nursery: trio.Nursery, handler: Handler, stream: MemoryStream, shutdown: Shutdown | None = None
) -> list[Talk]:
    """Hold a conversation in the background until it waits; return what it will have been."""
    ended: list[Talk] = []

    async def run() -> None:
        ended.append(await hold(handler, stream, shutdown=shutdown))

    nursery.start_soon(run)
    await wait_all_tasks_blocked()
    assert ended == []
    return ended


def fields_of(reply: Received) -> dict[str, str]:
    """Return the fields of a reply apart from the date, which must be one."""
    assert re.fullmatch(r"\w{3}, \d\d \w{3} \d{4} \d\d:\d\d:\d\d GMT", reply.get("Date") or "")
    assert len({name.lower() for name, _ in reply.fields}) == len(reply.fields)
    return {name: value for name, value in reply.fields if name != "Date"}
