"""Turns of the event loop, in which other tasks run."""

from __future__ import annotations

import time

from trio.lowlevel import cancel_shielded_checkpoint

# How long tasks may run without a turn of the event loop, in seconds, while no operation has to
# wait. A turn for each operation would be a twentieth of the processor time of a small response.
_TURN = 0.001
_last_turn = 0.0


async def yield_to_others() -> None:
    """Let other tasks run, unless the event loop has just had a turn. Cannot be cancelled."""
    global _last_turn  # noqa: PLW0603  (of all tasks: there is one event loop)
    before = _last_turn
    if time.monotonic() - before >= _TURN:
        await cancel_shielded_checkpoint()
        if _last_turn == before:  # otherwise each of many tasks would have as long for itself
            _last_turn = time.monotonic()
