"""The head of a response: h11, without the malformed lines that only advise.

h11 refuses the whole response for one of them.
"""

from __future__ import annotations

import re

import h11

from imgproxy.specs.http import header_lines

_END_OF_HEAD = re.compile(rb"\n\r?\n")
_INTERIM = re.compile(rb"HTTP/1\.[01] 1[0-9][0-9]")


class ResponseParser(h11.Connection):
    """A client's connection that receives the heads of interim responses and of a final one.

    A head may have `max_head` bytes. `method` is that of the request.
    """

    def __init__(self, max_head: int, method: str = "GET") -> None:
        super().__init__(h11.CLIENT, max_incomplete_event_size=max_head)
        self.method = method
        self._max_head = max_head
        self._head = bytearray()  # until it is complete
        self._is_final = False

    def receive_data(self, data: bytes) -> None:
        """See `h11.Connection`."""
        searched = max(len(self._head) - 2, 0)
        self._head += data
        while not self._is_final and (end := _END_OF_HEAD.search(self._head, searched)):
            self._is_final = _INTERIM.match(self._head) is None
            super().receive_data(header_lines.without_malformed(bytes(self._head[: end.end()])))
            del self._head[: end.end()]
            searched = 0
        # What cannot become a head is for h11 to refuse at once: TLS, for one, begins like this.
        is_none = len(self._head) > self._max_head or self._head[:1] < b"!"
        if self._head and (self._is_final or is_none or not data):
            super().receive_data(bytes(self._head))
            self._head.clear()
        if not data:
            super().receive_data(b"")

    @property
    def trailing_data(self) -> tuple[bytes, bool]:
        """See `h11.Connection`."""
        received, has_ended = super().trailing_data
        return received + self._head, has_ended
