"""How much may come out of what is written: bytes, and files."""

from __future__ import annotations

from imgproxy.errors import InvalidError

# An image that is unpacked may come to this, if nothing else is said.
MAX_SIZE = 256 * 1024**3
MAX_FILES = 5_000_000


class Limits:
    """What is counted, of all layers together. Both methods raise `InvalidError` beyond a limit."""

    def __init__(self, max_size: int, max_files: int) -> None:
        self._max_size = max_size
        self._max_files = max_files
        self.size = 0
        self.files = 0

    def add_bytes(self, count: int, name: str) -> None:
        """Count bytes of a layer, which is called `name` in messages."""
        if self.size + count > self._max_size:
            raise InvalidError(
                f"{name}: with it, more than {self._max_size} bytes in all; --max-size sets"
                " another limit",
                code="SIZE_INVALID",
            )
        self.size += count

    def add_file(self, name: str) -> None:
        """Count a file of a layer, of whatever kind."""
        if self.files == self._max_files:
            raise InvalidError(
                f"{name}: with it, more than {self._max_files} files in all; --max-files sets"
                " another limit",
                code="SIZE_INVALID",
            )
        self.files += 1
