#!/usr/bin/env python3
"""A parent of imgproxy: fetch every layer of an image, with the standard library alone.

    parent.py [--output DIR] IMAGE [OPTIONS OF IMGPROXY]

imgproxy verifies: a complete reply matches its digest. A large blob is verified while it is sent,
and its body is cut short if verification fails. So a parent must count the bytes, and must not use
a blob before the last byte has arrived. The digest that is computed here is a second opinion.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

IMGPROXY = os.environ.get("IMGPROXY", "imgproxy")
CHUNK = 1 << 20

SOURCE_LOST = 5  # exit status of imgproxy
TRY_AGAIN = 75  # exit status of this program: EX_TEMPFAIL of sysexits.h


class FailedError(Exception):
    """A request was refused, or its reply is incomplete."""

    def __init__(self, message: str, *, retryable: bool = False) -> None:
        super().__init__(message)
        self.retryable = retryable


class Proxy:
    """An imgproxy process, and our half of the socket pair that it serves."""

    def __init__(self, image: str, options: list[str]) -> None:
        ours, theirs = socket.socketpair()
        self.stderr = tempfile.TemporaryFile()  # noqa: SIM115  (it stays open until the end)
        with theirs:  # closed here after the start, so that each side notices the other's end
            command = [IMGPROXY, f"--sockfd={theirs.fileno()}", *options, image]
            try:
                self.process = subprocess.Popen(
                    command, pass_fds=[theirs.fileno()], stderr=self.stderr
                )
            except OSError:
                raise FailedError(f"cannot start {IMGPROXY}") from None
        self.connection = http.client.HTTPConnection("imgproxy")  # the name is only for `Host`
        self.connection.sock = ours
        self.connection.auto_open = 0  # never connect to a host of that name

    def ask(self, method: str, path: str) -> http.client.HTTPResponse:
        """Send a request, and return the reply, with its body unread, if it succeeds."""
        try:
            self.connection.request(method, path)
            reply = self.connection.getresponse()
        except (OSError, http.client.HTTPException):
            raise FailedError(f"{path}: no reply") from None
        if reply.status != http.client.OK:
            error = json.loads(reply.read())["errors"][0]
            message = f"{path}: {reply.status} {error['code']}: {error['message']}"
            raise FailedError(message, retryable=error["detail"]["retryable"])
        return reply

    def fetch(self, digest: str, directory: Path | None) -> int:
        """Hash a blob, save it if there is a directory, and return its size."""
        path = f"/blobs/{digest}"
        reply = self.ask("GET", path)
        expected, received = int(reply.headers["Content-Length"]), 0
        algorithm, hexadecimal = digest.split(":")
        hashed = hashlib.new(algorithm)
        # Safe as a file name from here on: imgproxy refuses a malformed digest.
        file = directory / f"{algorithm}-{hexadecimal}" if directory else Path(os.devnull)
        part = file.with_name(f"{file.name}.part") if directory else file
        try:
            with part.open("wb") as output:
                while chunk := receive(reply):
                    received += output.write(chunk)
                    hashed.update(chunk)
                    show_progress(f"{digest[:19]} {100 * received // expected} %")
            show_progress("")
            if received != expected:
                raise FailedError(f"{path}: short body, {received} of {expected} bytes")
            if hashed.hexdigest() != hexadecimal:
                raise FailedError(f"{path}: does not match its digest")
            if directory:
                part.replace(file)  # only a complete file gets its name
        finally:
            if directory:
                part.unlink(missing_ok=True)
        return received

    def end(self) -> tuple[int, str]:
        """Close the socket, which ends the process; return its exit status and its last line."""
        self.connection.close()
        status = self.process.wait()
        self.stderr.seek(0)
        lines = self.stderr.read().decode(errors="replace").splitlines()
        return status, lines[-1] if lines else ""


def receive(reply: http.client.HTTPResponse) -> bytes:
    """Return the next part of the body, empty at its end, which may be premature."""
    try:
        return reply.read(CHUNK)  # with a size, it does not report a short body
    except (OSError, http.client.HTTPException):
        return b""


def show_progress(line: str) -> None:
    """Replace the last line of a terminal."""
    if sys.stderr.isatty():
        print(f"\r\033[K{line}", end="", file=sys.stderr, flush=True)


def show(proxy: Proxy, directory: Path | None) -> None:
    """Print the parts of the image, and fetch its layers."""
    if directory:
        directory.mkdir(parents=True, exist_ok=True)
    reply = proxy.ask("GET", "/manifest")
    manifest = json.loads(reply.read())  # without a size, `read` raises if the body is short
    config = manifest["config"]
    print(f"manifest {reply.headers['Manifest-Digest']}")
    print(f"config {config['digest']} {config['size']} bytes")
    for layer in manifest["layers"]:
        size = proxy.fetch(layer["digest"], directory)
        print(f"layer {layer['digest']} {size} bytes", flush=True)
    proxy.ask("POST", "/quit").read()


def run(image: str, directory: Path | None, options: list[str]) -> int:
    """Fetch the image's layers, and return the exit status."""
    failure: Exception | None = None
    status, last_line = 0, ""
    try:
        proxy = Proxy(image, options)
        try:
            show(proxy, directory)
        finally:
            status, last_line = proxy.end()
    except (FailedError, OSError, http.client.HTTPException) as error:
        failure = error
        print(f"failed: {error}", file=sys.stderr)
    if status:
        how = f"exit status {status}" if status > 0 else f"killed by signal {-status}"
        print(f"imgproxy: {how}: {last_line}".removesuffix(": "), file=sys.stderr)
    if status == SOURCE_LOST or getattr(failure, "retryable", False):
        return TRY_AGAIN
    return 1 if failure or status else 0


def main() -> int:
    """Parse the command line, and run."""
    arguments, directory = sys.argv[1:], None
    if arguments[:1] == ["--output"] and len(arguments) > 1:
        directory, arguments = Path(arguments[1]), arguments[2:]
    if not arguments or arguments[0].startswith("-"):
        sys.exit("usage: parent.py [--output DIR] IMAGE [OPTIONS OF IMGPROXY]")
    return run(arguments[0], directory, arguments[1:])


if __name__ == "__main__":
    sys.exit(main())
