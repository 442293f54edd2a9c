"""The contract between the server and a front-end.

The server reads requests and sends replies and failures; a front-end decides what a request means.
A reply is what was asked for, statuses 200, 206 and 304; everything else is a `Failure` that the
front-end raises, whose `header_fields` the reply has then.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from typing import TypeAlias, TypeGuard

    from imgproxy.errors import Failure
    from imgproxy.net.streams import Buffer

    Opener: TypeAlias = "Callable[[], Awaitable[Body]]"

# Its agent is a name that nobody else knows.
_STALE = '110 imgproxy "Response is Stale"'

PARTIAL_CONTENT = 206
NOT_MODIFIED = 304


class Request(NamedTuple):
    """A request as a front-end receives it: method and target as they were sent.

    `fields` are its header fields, in their order, with names in lower case.
    """

    method: bytes
    target: bytes
    fields: Sequence[tuple[bytes, bytes]] = ()

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


async def read_ahead(body: Body) -> None:
    """Receive more of a body until it is read, if it has `read_ahead` for that."""
    if hasattr(body, "read_ahead"):
        await body.read_ahead()


class Reply(NamedTuple):
    """A reply that is no failure: of status 200, 206 or 304.

    `fields` are its header fields apart from those that every reply has; `Accept-Ranges` is "none"
    where they do not have it. `size` is the length of the body in bytes. For `HEAD` and with 304
    the body is not sent, and may be left out. The server closes a pulled body in any case. A
    function as the body opens it: it is called only where the body is sent, when there is a place
    for one more, and may raise a `Failure`, which is the answer then.
    `ends_service`: no more requests are taken, on any connection.
    """

    fields: list[tuple[str, str]]
    size: int
    body: bytes | Body | Opener
    ends_service: bool = False
    status: int = 200

    async def read_ahead(self) -> None:
        """Receive more of a pulled body until it is read."""
        if not isinstance(self.body, bytes) and not callable(self.body):
            await read_ahead(self.body)

    def close(self) -> None:
        """Close a pulled body that is not sent."""
        if not isinstance(self.body, bytes) and not callable(self.body):
            self.body.close()

    def has_body(self, request: Request) -> bool:
        """Return whether the body is sent: RFC 9110 sections 9.3.2 and 15.4.5."""
        return not request.is_head and self.status != NOT_MODIFIED


def stale_fields(age: int | None) -> list[tuple[str, str]]:
    """Return the fields of an answer that was had so many seconds ago, none if it is not old.

    RFC 7234 sections 5.1 and 5.5.1.
    """
    return [] if age is None else [("Age", str(age)), ("Warning", _STALE)]


class Handler(Protocol):
    """A front-end."""

    async def handle(self, request: Request) -> Reply:
        """Return the reply to a request. Raises `Failure`."""


def tell_refused(handler: Handler, failure: Failure) -> None:
    """Tell a front-end what was refused before it had a request, if it has `refused` for that."""
    refused = getattr(handler, "refused", None)
    if refused is not None:
        refused(failure)


# Replies that are begun before their turn in one conversation, and in all together: each takes a
# connection or two.
MAX_BEGUN = 7
MAX_BEGUN_IN_ALL = 16

# In bytes: what they may hold in memory, together; and how large the bodies of one conversation may
# be together before no more is begun behind them. While large ones are sent, there is time enough
# to begin the next, and fewer connections have to find out how fast they can be.
MAX_HELD = 8 * 1024 * 1024
MAX_BEGUN_SIZE = 8 * 1024 * 1024


class Weight(NamedTuple):
    """How many bytes the body of a reply has, and how many it holds in memory once it is begun."""

    size: int
    held: int


class Room:
    """What all conversations with one handler may begin before its turn: see `server.ahead`."""

    def __init__(self) -> None:
        self.conversations = 0
        self.held = 0

    @property
    def share(self) -> int:
        """How many replies one conversation may begin."""
        return min(MAX_BEGUN, MAX_BEGUN_IN_ALL // max(self.conversations, 1))

    def has(self, weight: Weight) -> bool:
        """Return whether so much more may be held."""
        return self.held + weight.held <= MAX_HELD


class AheadHandler(Handler, Protocol):
    """A front-end that can begin replies before their turn, as far as there is `room`."""

    room: Room

    def waits(self) -> bool:
        """Return whether what it gives out has to be waited for."""

    def weight_ahead(self, request: Request) -> Weight | None:
        """Return the weight of a reply that may be begun early, None for any other.

        Only what may be given out by now, and has to be waited for, is begun early.
        """


def can_begin(handler: Handler) -> TypeGuard[AheadHandler]:
    """Return whether a front-end can begin replies before their turn."""
    return hasattr(handler, "weight_ahead")
