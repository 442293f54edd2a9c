"""Limits that move the same bytes: a bare loop in Python, and curl into openssl.

The loop receives (or reads), hashes and sends to a parent, one MiB at a time in one buffer, in one
thread: the cost of a program in Python that does nothing else, without trio and h11. It does not
compare the hash, and so verifies nothing.
"""

from __future__ import annotations

import shlex
import socket
import sys
import time
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from .child import BenchError, Child, Usage, run

if TYPE_CHECKING:
    from pathlib import Path

LOOP_NAME = "a bare loop in Python"
CURL = ("curl", "--silent", "--show-error", "--fail", "--insecure")
CURL_NAME = "curl \\| openssl dgst -sha256"

_LOOP = """
import hashlib, socket, sys
fd, scheme, host, port, path = sys.argv[1:]
parent = socket.socket(fileno=int(fd))
view = memoryview(bytearray(1 << 20))
if scheme == "file":
    receive = open(path, "rb", buffering=0).readinto
else:
    server = socket.create_connection((host, int(port)))
    if scheme == "https":
        import ssl
        context = ssl._create_unverified_context()
        server = context.wrap_socket(server)
    request = f"GET {path} HTTP/1.1\\r\\nHost: {host}:{port}\\r\\nConnection: close\\r\\n\\r\\n"
    server.sendall(request.encode())
    head = b""
    while not head.endswith(b"\\r\\n\\r\\n"):
        head += server.recv(1)
    receive = server.recv_into
hasher = hashlib.sha256()
while count := receive(view):
    hasher.update(view[:count])
    parent.sendall(view[:count])
"""

_buffer = memoryview(bytearray(1 << 20))


def loop(url: str, size: int) -> Usage:
    """Run the loop from start to end over the content of a `file:` or `http:` URL."""
    parts = urlsplit(url)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        fd = str(theirs.fileno())
        place = [parts.scheme, parts.hostname or "-", str(parts.port or 0), parts.path]
        with Child([sys.executable, "-c", _LOOP, fd, *place], fds=[theirs.fileno()]) as child:
            theirs.close()
            received = 0
            while count := ours.recv_into(_buffer):
                received += count
            usage = child.finish()
    if received < size:
        raise BenchError(f"{received} bytes, expected {size}")
    return usage


def file_url(path: Path) -> str:
    """Return the URL of a file that `loop` reads."""
    return f"file://{path}"


def piped_into_openssl(url: str) -> Usage:
    """Run curl into openssl over the content of a URL, from start to end."""
    return run(["sh", "-c", f"{shlex.join([*CURL, url])} | openssl dgst -sha256"])


def timed(size: int, start: Usage, whole: Usage) -> tuple[float, float]:
    """Return bytes per second and processor seconds, without those of the start."""
    return size / max(whole.wall - start.wall, time.get_clock_info("perf_counter").resolution), (
        whole.cpu - start.cpu
    )
