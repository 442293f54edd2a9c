"""A service for many clients, in a process of its own; its front-end makes up what it serves.

`python public_service.py ADDRESS…` listens there. `/blob/SIZE` is a body of so many bytes, pulled
in pieces; `/open` says how many bodies are open, `/small` is small.
"""

from __future__ import annotations

import sys
from contextlib import closing

import trio

from imgproxy.errors import NotFoundError
from imgproxy.host.diagnostics import Diagnostics
from imgproxy.server import listeners
from imgproxy.server.handler import Reply, Request
from imgproxy.server.inherited_sockets import InheritedSockets
from imgproxy.server.service import PUBLIC, Service

# As the pieces of a blob are where there are many.
PIECE = bytes(range(256)) * 256


class Generated:
    """A body of so many bytes."""

    opened = 0

    def __init__(self, size: int) -> None:
        self._left = size
        Generated.opened += 1

    async def read(self) -> memoryview:
        await trio.lowlevel.checkpoint()
        piece = memoryview(PIECE)[: min(self._left, len(PIECE))]
        self._left -= len(piece)
        return piece

    def close(self) -> None:
        Generated.opened -= 1


class FrontEnd:
    """A `Handler`."""

    async def handle(self, request: Request) -> Reply:
        _, name, *size = request.target.decode().split("/")
        if name == "blob":
            length = int(size[0])

            async def opened() -> Generated:
                return Generated(length)

            return Reply([], length, opened)
        if name == "open":
            content = b"%d" % Generated.opened
            return Reply([], len(content), content)
        if name == "small":
            return Reply([], 5, b"small")
        raise NotFoundError("no such path")


def main(*addresses: str) -> int:
    with closing(
        listeners.Listeners([*map(listeners.parse, addresses)], allow_remote=False)
    ) as listening:
        service = Service(FrontEnd(), Diagnostics(), limits=PUBLIC)
        return trio.run(service.run, InheritedSockets([], listening.sockets, shares_stderr=False))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
