"""Diagnostics on standard error, written so that they can never block, and without secrets."""

from __future__ import annotations

import os
import select
import stat

from imgproxy.errors import clean

TYPE_CHECKING = False  # `typing` would take a fifth of the time of a usage error
if TYPE_CHECKING:
    from collections.abc import Iterable

    from imgproxy.host.masking import Secrets

# A pipe that poll(2) calls writable takes this many bytes at once; a longer line could block.
_PIPE_BUF = select.PIPE_BUF

_STDERR = 2


class Diagnostics:
    """Diagnostics on standard error, one line each.

    `quiet` drops all of them, `debug` adds those of `--debug`. A line that would block is dropped,
    so that a parent that does not read its child's standard error does not stop the child.

    Secrets are masked in all of them. Messages quote what servers answer, and those may quote what
    they were sent.
    """

    def __init__(self, *, quiet: bool = False, debug: bool = False) -> None:
        self._quiet = quiet or not _is_open(_STDERR)
        self._debug = debug and not self._quiet
        self._secrets: Secrets | None = None

    def hide(self, secrets: Iterable[str]) -> None:
        """Mask these secrets from now on; empty ones are none."""
        secrets = [each for each in secrets if each]
        if secrets and self._secrets is None:
            from imgproxy.host.masking import Secrets  # most local images do without

            self._secrets = Secrets()
        if self._secrets is not None:
            self._secrets.add(secrets)

    def masked(self, text: str) -> str:
        """Return a text with all secrets masked, as everything that leaves the process must be."""
        return text if self._secrets is None else self._secrets.mask(text)

    def failure(self, message: str) -> None:
        """Report a failure."""
        if not self._quiet:
            _write(self.masked(message))

    def progress(self, message: str) -> None:
        """Report something that has been done."""
        self.failure(message)

    def debug(self, message: str) -> None:
        """Report a detail, with `--debug` only."""
        if self._debug:
            _write(self.masked(message))

    def defect(self, what: str, error: Exception) -> None:
        """Report a defect of this program, which `what` was interrupted by."""
        import traceback

        self.failure(f"{what}: a defect of this program: {error!r}")
        for line in traceback.format_exception(error):
            self.debug(line)


def super_server() -> bool:
    """Return whether one socket is standard error and another standard stream, as under inetd."""
    try:
        socket = stat.S_ISSOCK(os.fstat(_STDERR).st_mode)
        return socket and any(os.path.sameopenfile(fd, _STDERR) for fd in (0, 1))
    except OSError:
        return False


def _is_open(fd: int) -> bool:
    """Return whether a descriptor is open. The number of a closed one is used for the next file."""
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def _write(message: str) -> None:
    line = f"imgproxy: {clean(message, _PIPE_BUF)}".encode()[: _PIPE_BUF - 1]
    poll = select.poll()
    poll.register(_STDERR, select.POLLOUT)
    try:
        if poll.poll(0) == [(_STDERR, select.POLLOUT)]:
            os.write(_STDERR, line.decode(errors="ignore").encode() + b"\n")
    except OSError:
        pass  # there is no other way to report it
