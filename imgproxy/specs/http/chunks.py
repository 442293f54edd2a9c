"""The content of a body in chunks: RFC 9112 section 7.1.

h11 returns an event for each chunk, which takes as long for one byte as for many kilobytes. This
fills a buffer with the content of all chunks that have been received.
"""

from __future__ import annotations

import re

# In bytes: the line before a chunk, and all trailer fields.
MAX_LINE = 16 * 1024
MAX_TRAILERS = 64 * 1024

# The end of the chunk before, and the size with what may follow it.
_START = re.compile(rb"\r\n([0-9A-Fa-f]{1,16})[ \t]*(?:;[^\r\n]*)?\r\n")


class Chunks:
    """The content of chunks that are received in pieces of any size."""

    def __init__(self) -> None:
        self._received = b"\r\n"  # as if there were a chunk before the first one
        self._at = 0  # where in it the next byte is
        self._left = 0  # of the chunk
        self._is_last = False
        self.has_ended = False

    @property
    def surplus(self) -> bytes:
        """What has been received and not taken; after the end it does not belong to the body."""
        return self._received[self._at :]

    def receive(self, data: bytes) -> None:
        """Add bytes that have been received."""
        self._received = self.surplus + data
        self._at = 0

    def take(self, buffer: memoryview) -> int:
        """Put content at the start of the buffer and return how much.

        Less than the buffer holds is all that has been received. Raises `ValueError` for what
        are no chunks.
        """
        received, at, left = self._received, self._at, self._left
        filled, room = 0, len(buffer)
        # Chunks may have one byte each, so that little is done for one.
        while filled < room and not self._is_last:
            if left == 0:
                start = _START.match(received, at)
                if start is None:
                    if filled == 0:  # what came before is taken first
                        self._check_line(received[at : at + MAX_LINE])
                    break
                at, left = start.end(), int(start[1], 16)
                if left == 0:
                    self._is_last = True
                    at -= 2  # an empty line ends the trailers, of which there may be none
                    break
            content = received[at : at + min(left, room - filled)]
            if not content:
                break
            count = len(content)
            buffer[filled : filled + count] = content
            filled, at, left = filled + count, at + count, left - count
        self._at, self._left = at, left
        if self._is_last and not self.has_ended:
            self._end(filled)
        return filled

    def _check_line(self, line: bytes) -> None:
        """Raise `ValueError` for what cannot become the start of a chunk."""
        if not b"\r\n".startswith(line[:2]):
            raise ValueError("a chunk is longer than its size")
        text, end, _ = line[2:].partition(b"\n")
        if end or len(line) == MAX_LINE:
            raise ValueError(f'a chunk begins with "{text.decode("latin-1").rstrip()}"')

    def _end(self, filled: int) -> None:
        """End the body if all of the trailer fields have been received; they are not used."""
        end = self._received.find(b"\r\n\r\n", self._at)
        if end >= 0:
            self._at = end + 4
            self.has_ended = True
        elif filled == 0 and len(self._received) - self._at > MAX_TRAILERS:
            raise ValueError(f"more than {MAX_TRAILERS} bytes of trailers")
