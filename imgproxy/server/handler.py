"""The contract between the server and a front-end.

The server reads requests and sends replies and failures; a front-end decides what a request means.
Replies are of status 200; everything else is a `Failure` that the front-end raises.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from imgproxy.net.streams import Buffer


class Request(NamedTuple):
    """A request as a front-end receives it: method and target as they were sent."""

    method: bytes
    target: bytes

    @property
    def is_head(self) -> bool:
        """Return whether only the head of the reply is asked for."""
        return self.method == b"HEAD"


class Body(Protocol):
    """The body of a reply, pulled in pieces."""

    async def read(self) -> Buffer:
        """Return the next piece, empty at the end; it is used until the next call.

        Raises `Failure` where the rest cannot be had: the reply stays short of its length then,
        and the connection is closed.
        """

    def close(self) -> None:
        """Close what the body is read from."""


class Reply(NamedTuple):
    """A reply of status 200.

    `fields` are its header fields apart from those that every reply has, `size` is the length of
    the body in bytes. For `HEAD` the body is not sent, and may be left out. The server closes a
    pulled body in any case. `ends_service`: no more requests are taken, on any connection.
    """

    fields: list[tuple[str, str]]
    size: int
    body: bytes | Body
    ends_service: bool = False


class Handler(Protocol):
    """A front-end."""

    async def handle(self, request: Request) -> Reply:
        """Return the reply to a request. Raises `Failure`."""
