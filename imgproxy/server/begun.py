"""What is begun before somebody asks for it, and belongs to nobody until then."""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

import trio

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


class _Closeable(Protocol):
    def close(self) -> None:
        """Release what is held. May be called again."""


C = TypeVar("C", bound=_Closeable)


class Begun(Generic[C]):
    """The result of `make`, which `run` calls in a task of its own, and `go_on` with the result."""

    def __init__(
        self, make: Callable[[], Awaitable[C]], go_on: Callable[[C], Awaitable[None]]
    ) -> None:
        self._make = make
        self._go_on = go_on
        self._scope = trio.CancelScope()
        self._done = trio.Event()
        self._made: C | None = None
        self._error: Exception | None = None

    @property
    def is_done(self) -> bool:
        """Whether it is made, or has failed."""
        return self._done.is_set()

    async def run(self) -> None:
        """Make it; what is made when nobody wants it any more is closed."""
        with self._scope:
            try:
                self._made = await self._make()
            except Exception as error:  # noqa: BLE001  (raised when somebody asks)
                self._error = error
            finally:
                self._done.set()
            if self._made is not None:
                await self._go_on(self._made)
        if self._scope.cancel_called:
            self.drop()

    async def result(self) -> C:
        """Return what is made, which belongs to the caller then. Raises what `make` raises.

        To be called once. Where it is cancelled, nothing is left.
        """
        try:
            await self._done.wait()
        except BaseException:
            self.drop()
            raise
        if self._error is not None:
            raise self._error
        assert self._made is not None  # noqa: S101  (it is done)
        return self._made

    def drop(self) -> None:
        """Cancel what is under way, or close what has been made. May be called again."""
        self._scope.cancel()
        if self._made is not None:
            self._made.close()
