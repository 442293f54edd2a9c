"""How long a client has made its conversation wait."""

from __future__ import annotations

import pytest
import trio
from support.streams import MemoryStream, virtual_time

from imgproxy.server.patience import IDLE_LIMIT, REQUEST_LIMIT, STALL_LIMIT, Patience


@pytest.mark.parametrize("limit", [IDLE_LIMIT, REQUEST_LIMIT, STALL_LIMIT])
@virtual_time
async def test_a_client_is_overdue_when_its_limit_is_over(limit: float) -> None:
    patience = Patience(MemoryStream())
    patience.allow(limit)
    await trio.sleep(limit - 1)
    assert not patience.is_overdue()
    await trio.sleep(1)
    assert patience.is_overdue()
    assert patience.awaits_request() == (limit != STALL_LIMIT)


@virtual_time
async def test_a_client_is_not_overdue_while_something_else_is_awaited() -> None:
    patience = Patience(MemoryStream())
    patience.pause()
    await trio.sleep(10_000)
    assert not patience.is_overdue()
    assert not patience.awaits_request()


@pytest.mark.parametrize("limit", [STALL_LIMIT, REQUEST_LIMIT])
@virtual_time
async def test_what_is_read_of_a_reply_is_progress(limit: float) -> None:
    stream = MemoryStream()
    patience = Patience(stream)
    patience.allow(limit)
    await trio.sleep(limit)
    await stream.send(b"x")
    assert patience.is_overdue() == (limit != STALL_LIMIT)
    await trio.sleep(limit)
    assert patience.is_overdue()
