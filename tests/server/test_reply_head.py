"""The head of a reply; `test_http_connection` has whole replies."""

from __future__ import annotations

from http import HTTPStatus

import h11
import pytest
from support.parent import parse_head

from imgproxy.server import reply_head as module
from imgproxy.server.reply_head import reply_head

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


def test_nothing_gets_into_a_head_that_would_be_another_field() -> None:
    with pytest.raises(h11.LocalProtocolError):
        reply_head(200, 7, [("X", "y\r\nZ: z")], "")
