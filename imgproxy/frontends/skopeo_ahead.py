"""The layer that a client of skopeo's protocol will ask for next, opened before it does.

Its clients ask for one layer after the other, in the manifest's order, and never ahead. After two
in a row the next is opened with each, so that the ways to the registry and back are gone while the
layer before it is received. What was opened in vain is dropped, and there is an end to it.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from imgproxy.server.begun import Begun

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    import trio

    from imgproxy.server.handler import Body
    from imgproxy.specs.oci.manifest import Descriptor

# Layers that a client asks for in a row before the next is opened.
IN_A_ROW = 2

# In bytes: what may be received of an image in vain.
MAX_WASTE = 8 * 1024 * 1024


class NextLayer:
    """The layers of an image, of which the next is opened ahead, in `nursery`.

    `held` returns how many bytes are received of a layer that is opened, None where that is no use.
    Close it before the image.
    """

    def __init__(
        self,
        layers: Sequence[Descriptor],
        open_blob: Callable[[Descriptor], Awaitable[Body]],
        held: Callable[[Descriptor], int | None],
        nursery: trio.Nursery,
    ) -> None:
        self._layers = layers
        self._digests = [each.digest for each in layers]
        self._open_blob = open_blob
        self._held = held
        self._nursery = nursery
        self._position = self._in_a_row = 0  # of the layer that comes next
        self._next: Begun[Body] | None = None
        self._weight = self._waste = 0

    async def blob(self, descriptor: Descriptor) -> Body:
        """Return a blob whose reply can be begun. Raises `Failure`."""
        begun = self._turn_to(descriptor)
        self._begin()
        return await (self._open_blob(descriptor) if begun is None else begun.result())

    def _turn_to(self, descriptor: Descriptor) -> Begun[Body] | None:
        """Return the blob if it was begun, and make what follows it the next."""
        if self._digests[self._position : self._position + 1] == [descriptor.digest]:
            begun, self._next = self._next, None
            self._in_a_row += 1
            self._position += 1
            return begun
        self.close()
        if descriptor.digest in self._digests:
            self._in_a_row, self._position = 1, self._digests.index(descriptor.digest) + 1
        else:
            self._in_a_row, self._position = 0, 0
        return None

    def _begin(self) -> None:
        """Open the next layer, if the client seems to go on in the same order."""
        if self._in_a_row < IN_A_ROW or self._position >= len(self._layers):
            return
        descriptor = self._layers[self._position]
        held = self._held(descriptor)
        if held is None or self._waste + held > MAX_WASTE:
            return
        self._weight = held
        self._next = Begun(partial(self._open_blob, descriptor))
        self._nursery.start_soon(self._next.run)

    def close(self) -> None:
        """Drop what was opened ahead. May be called again."""
        if self._next is not None:
            self._waste += self._weight
            self._next.drop()
            self._next = None
