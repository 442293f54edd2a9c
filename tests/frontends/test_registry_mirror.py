"""Which of two front-ends has a request, and that the second one sends nobody back."""

from __future__ import annotations

import pytest
from support.streams import virtual_time

from imgproxy.errors import UnaskedError
from imgproxy.frontends.registry_mirror import MirrorApi, WithMirror
from imgproxy.server.handler import Reply, Request
from imgproxy.specs.http import via


class Front:
    def __init__(self, name: bytes) -> None:
        self.name = name

    async def handle(self, _: Request) -> Reply:
        return Reply([], len(self.name), self.name)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ([], b"registry"),
        ([(b"host", via.VALUE.encode()), (b"via", b"1.1 squid")], b"registry"),
        ([(b"via", b"1.1 squid"), (b"via", via.VALUE.encode())], b"mirror"),
        ([(b"via", b"1.1 caf\xe9, " + via.VALUE.encode())], b"mirror"),
    ],
)
@virtual_time
async def test_a_registry_is_told_by_via(
    fields: list[tuple[bytes, bytes]], expected: bytes
) -> None:
    handler = WithMirror(Front(b"registry"), Front(b"mirror"))
    reply = await handler.handle(Request(b"GET", b"/v2/", fields))
    assert reply.body == expected


def test_what_was_not_asked_for_is_a_404() -> None:
    assert MirrorApi.answered(UnaskedError("x", code="BLOB_UNKNOWN")).status == 404
