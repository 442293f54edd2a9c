"""Content on its way to a client of skopeo's protocol: imgproxy-skopeo(7), "Pipes"."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

import trio

from imgproxy.frontends.skopeo_messages import BROKEN_PIPE
from imgproxy.server.shutdown import HangUp

if TYPE_CHECKING:
    from collections.abc import Callable

    from imgproxy.frontends.skopeo_messages import Trouble
    from imgproxy.server.handler import Body
    from imgproxy.server.pipes import Pipe

    # Returns what the client is told of an exception.
    Describe = Callable[[Exception], Trouble]


class Transfer:
    """Content on its way to the client through a pipe.

    `errors` is the second pipe of GetRawBlob, where the content ends with the transfer. Without it
    the content ends at FinishPipe, so that nobody takes for whole what has not been verified. What
    cannot become whole ends at once.
    """

    def __init__(self, pipe: Pipe, errors: Pipe | None = None) -> None:
        self.pipe = pipe
        self._errors = errors
        self._trouble: Trouble | None = None
        self._done = trio.Event()

    async def run(self, rest: memoryview, body: Body | None, describe: Describe) -> None:
        """Write `rest` and what remains of `body`, until it is done or nobody reads it any more."""
        gone = HangUp()
        trouble: Trouble | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(gone.watch, self.pipe)
            with gone.interrupts() as scope:
                trouble = await self._write(rest, body, describe)
            nursery.cancel_scope.cancel()
        self.end(BROKEN_PIPE if scope.cancelled_caught else trouble)

    async def _write(
        self, rest: memoryview, body: Body | None, describe: Describe
    ) -> Trouble | None:
        """Return what went wrong, None if nothing did."""
        try:
            await self.pipe.write(rest)
            while body is not None and (piece := await body.read()):
                await self.pipe.write(piece)
        except BrokenPipeError:
            return BROKEN_PIPE
        except Exception as error:  # noqa: BLE001  (a defect is reported as one)
            return describe(error)
        return None

    def end(self, trouble: Trouble | None = None) -> None:
        """End the transfer: `trouble` is what went wrong, None if nothing did."""
        self._trouble = trouble
        if self._errors is not None:
            if trouble is not None:
                with suppress(OSError):  # nobody reads it
                    self._errors.fill(memoryview(trouble.document()))
            self._errors.close_write_end()
        if self._errors is not None or trouble is not None:
            self.pipe.close_write_end()
        self._done.set()

    async def finish(self) -> Trouble | None:
        """Wait for the transfer, end the content, and return what went wrong, if anything did."""
        await self._done.wait()
        self.pipe.close_write_end()
        return self._trouble
