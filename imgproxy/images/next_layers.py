"""The layers that will be wanted next, opened before they are.

Layers are read one after the other, in the manifest's order: by clients of skopeo's protocol, who
never ask ahead, and by commands that unpack. With each the next is opened, of small ones two, so
that the ways to the registry and back are gone while the layers before it are received. What was
opened in vain is dropped, and there is an end to it.
"""

from __future__ import annotations

from collections import deque
from functools import partial
from typing import TYPE_CHECKING, Generic, NamedTuple, TypeVar

from imgproxy.server.begun import Begun
from imgproxy.server.handler import Body, read_ahead

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    import trio

    from imgproxy.specs.oci.manifest import Descriptor

# In bytes: what may be received of an image in vain.
MAX_WASTE = 8 * 1024 * 1024

# In bytes: up to this a layer is small. It is there sooner than the next is opened, so that one
# layer ahead would not be enough.
SMALL = 1024 * 1024


B = TypeVar("B", bound=Body)


class _Next(NamedTuple, Generic[B]):
    """A layer that is opened ahead; so many bytes are `held` of it, in vain if it is dropped."""

    descriptor: Descriptor
    held: int
    body: Begun[B]


class NextLayers(Generic[B]):
    """The layers of an image, of which the next ones are opened ahead, in `nursery`.

    `held` returns how many bytes are received of a layer that is opened, None where that is no use.
    The first is opened ahead when so many have been wanted `in_a_row`. Close it before the image.
    """

    def __init__(
        self,
        layers: Sequence[Descriptor],
        open_blob: Callable[[Descriptor], Awaitable[B]],
        held: Callable[[Descriptor], int | None],
        nursery: trio.Nursery,
        in_a_row: int,
    ) -> None:
        self._layers = layers
        self._digests = [each.digest for each in layers]
        self._open_blob = open_blob
        self._held = held
        self._nursery = nursery
        self._least = in_a_row
        self._position = self._in_a_row = 0  # of the layer that comes next
        self._next: deque[_Next[B]] = deque()
        self._waste = 0

    async def blob(self, descriptor: Descriptor) -> B:
        """Return a blob whose reply can be begun. Raises `Failure`."""
        begun = self._turn_to(descriptor)
        while self._begin():
            pass
        return await (self._open_blob(descriptor) if begun is None else begun.result())

    def _turn_to(self, descriptor: Descriptor) -> Begun[B] | None:
        """Return the blob if it was begun, and make what follows it the next."""
        if self._digests[self._position : self._position + 1] == [descriptor.digest]:
            self._in_a_row += 1
            self._position += 1
            return self._next.popleft().body if self._next else None
        self.close()
        if descriptor.digest in self._digests:
            self._in_a_row, self._position = 1, self._digests.index(descriptor.digest) + 1
        else:
            self._in_a_row, self._position = 0, 0
        return None

    def _begin(self) -> bool:
        """Open one more layer, if those before it were wanted in their order; return whether."""
        position = self._position + len(self._next)
        if self._in_a_row < self._least or position >= len(self._layers):
            return False
        descriptor = self._layers[position]
        held = self._held(descriptor)
        if held is None or not self._has_room(descriptor, held):
            return False
        body = Begun(partial(self._open_blob, descriptor), read_ahead)
        self._next.append(_Next(descriptor, held, body))
        self._nursery.start_soon(body.run)
        return True

    def _has_room(self, descriptor: Descriptor, held: int) -> bool:
        """Return whether one more may be opened, which costs so much if it is not wanted."""
        are_small = all(
            each.size <= SMALL for each in (descriptor, *(each.descriptor for each in self._next))
        )
        most = 2 if are_small else 1
        waste = self._waste + sum(each.held for each in self._next)
        return len(self._next) < most and waste + held <= MAX_WASTE

    def close(self) -> None:
        """Drop what was opened ahead. May be called again."""
        while self._next:
            dropped = self._next.popleft()
            self._waste += dropped.held
            dropped.body.drop()
