#!/usr/bin/env python3
"""A parent of imgproxy: list an image's layers, and save them. The standard library alone.

    parent.py IMAGE [DIRECTORY] [-- OPTIONS OF IMGPROXY]

imgproxy verifies: a reply that arrives whole is what its digest says. A large blob that turns out
not to be stays short, since it is verified while it is under way. So the one duty of a parent is
to count, and to take nothing for a blob before the last byte is there.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import subprocess
import sys
from pathlib import Path

IMGPROXY = "imgproxy"  # found on PATH

CHUNK = 1 << 20

ENDINGS = {
    0: "nothing was wrong with what it delivered",
    1: "a defect of imgproxy",
    2: "wrong usage",
    4: "a blob was not what its digest says",
    5: "the source was lost in the middle of a blob; worth another try",
}


class RequestFailedError(Exception):
    """A request was refused, or its reply is not whole."""


class Proxy:
    """An imgproxy process, and our end of the socket that it serves."""

    def __init__(self, image: str, options: list[str]) -> None:
        ours, theirs = socket.socketpair()
        with theirs:  # closed here once the child has it: each side shall see the other go
            self.process = subprocess.Popen(
                [IMGPROXY, f"--sockfd={theirs.fileno()}", *options, image],
                pass_fds=[theirs.fileno()],
            )
        self.connection = http.client.HTTPConnection("imgproxy")  # the name is for `Host` only
        self.connection.sock = ours
        self.connection.auto_open = 0  # once our socket is closed, do not dial a host of that name

    def get(self, path: str) -> http.client.HTTPResponse:
        """Give the reply to a request that succeeds; its body is still to be read."""
        self.connection.request("GET", path)
        reply = self.connection.getresponse()
        if reply.status != http.client.OK:
            error = json.loads(reply.read())["errors"][0]
            advice = " (worth another try)" if error["detail"]["retryable"] else ""
            raise RequestFailedError(
                f"{path}: {reply.status} {error['code']}{advice}: {error['message']}"
            )
        return reply

    def save_blob(self, digest: str, directory: Path) -> None:
        """Save a blob; the file has its name from when it is whole, and not before."""
        reply = self.get(f"/blobs/{digest}")
        # Safe as a name from here on: imgproxy would not have answered to one that is no digest.
        file = directory / digest.replace(":", "-")
        part = file.with_name(file.name + ".part")
        expected, received = int(reply.headers["Content-Length"]), 0
        try:
            with part.open("wb") as output:
                while chunk := reply.read(CHUNK):
                    received += output.write(chunk)
            # `read` with a size takes the end of the connection for the end of the body.
            if received != expected:
                raise RequestFailedError(
                    f"/blobs/{digest}: short body, {received} of {expected} bytes"
                )
            part.replace(file)
        finally:
            part.unlink(missing_ok=True)

    def quit(self) -> int:
        """End the process; give its exit status."""
        # A connection that is closed already, say after a short body, ends the process as well.
        with contextlib.suppress(OSError, http.client.HTTPException):
            self.connection.request("POST", "/quit")
            self.connection.getresponse().read()
        self.connection.close()
        return self.process.wait()


def show(proxy: Proxy, directory: Path | None) -> None:
    """Print what the image consists of; save its layers if there is a directory for them."""
    reply = proxy.get("/manifest")
    manifest = json.loads(reply.read())  # without a size, `read` raises if the body is short
    print(f"   manifest {reply.headers['Manifest-Digest']}")
    print(f"   config   {manifest['config']['digest']}")
    for layer in manifest["layers"]:
        if directory:
            proxy.save_blob(layer["digest"], directory)
        done = ", verified and saved" if directory else ""
        print(f"   layer    {layer['digest']}, {layer['size']} bytes{done}")


def main() -> int:
    """Do what the command line says; 0 if all of it was done."""
    words, options = sys.argv[1:], []
    if "--" in words:
        cut = words.index("--")
        words, options = words[:cut], words[cut + 1 :]
    match words:
        case [image]:
            directory = None
        case [image, name]:
            directory = Path(name)
            directory.mkdir(parents=True, exist_ok=True)
        case _:
            sys.exit("usage: parent.py IMAGE [DIRECTORY] [-- OPTIONS OF IMGPROXY]")

    try:
        proxy = Proxy(image, options)
    except OSError as error:
        sys.exit(f"cannot start {IMGPROXY}: {error.strerror}")
    failed = False
    try:
        show(proxy, directory)
    except (RequestFailedError, OSError, http.client.HTTPException) as error:
        print(f"   failed: {error}")
        failed = True
    status = proxy.quit()
    print(f"   imgproxy ended with exit status {status}: {ENDINGS.get(status, 'it was killed')}")
    return 1 if failed or status else 0


if __name__ == "__main__":
    sys.exit(main())
