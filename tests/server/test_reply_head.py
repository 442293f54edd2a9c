"""The head of a reply; `test_http_connection` has whole replies."""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING

import h11
import pytest
from support.parent import parse_head

from imgproxy.server import reply_head as module
from imgproxy.server.reply_head import reply_head

if TYPE_CHECKING:
    from collections.abc import Callable

# RFC 9110 renamed some, which older versions of Python have under their former names.
RENAMED = {413: "Content Too Large", 416: "Range Not Satisfiable", 422: "Unprocessable Content"}


@pytest.mark.parametrize("status", module._REASONS)
def test_a_status_has_the_phrase_that_belongs_to_it(status: int) -> None:
    head = parse_head(reply_head(status, 7, [("X", "y")], "").removesuffix(b"\r\n\r\n"))
    assert (head.status, head.reason) == (status, RENAMED.get(status) or HTTPStatus(status).phrase)
    assert (head.length, head.get("X"), head.get("Connection")) == (7, "y", None)
    assert head.get("Accept-Ranges") == "none"


def test_a_reply_says_for_itself_which_ranges_it_has() -> None:
    head = parse_head(reply_head(206, 7, [("ACCEPT-RANGES", "bytes")], "close")[:-4])
    assert (head.get("Accept-Ranges"), head.get("Connection")) == ("bytes", "close")


NAMES = ["X", "x-y", "", "X Y", "X:", "X\n", "X\r\nY: y\r\nZ", "\xe9", "(", "X\0"]
VALUES = [
    *("y", "", "a b", "a \t b", " a", "a ", "a\x01b", "a\x7fb", "a\x0bb", "a\0b", "\xe9", "\u20ac"),
    *("y\r\nZ: z", "y\nZ: z", "y\rZ: z", "y\r\n\r\nz", "y\r\n", "y\n", "\r\n z"),
]


def is_possible(write: Callable[[], object]) -> bool:
    try:
        write()
    except (h11.LocalProtocolError, ValueError):
        return False
    return True


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("value", VALUES)
def test_nothing_gets_into_a_head_that_h11_would_refuse(name: str, value: str) -> None:
    """What would be another field, for one."""
    by_h11 = is_possible(lambda: h11.Response(status_code=200, headers=[(name, value)]))
    assert is_possible(lambda: reply_head(200, 7, [(name, value)], "")) == by_h11
