"""Serve images as a registry, and pull one from it as container runtimes do.

`registry.py PATH IMAGE [OPTIONS]` starts `imgproxy registry --images PATH OPTIONS` on a socket of
its own, asks for IMAGE, an index with its registry and tag (quay.io/acme/os:1), and compares the
digest of everything that arrives. `imgproxy` is found on PATH, or by the variable IMGPROXY.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import socket
import subprocess
import sys
from http import HTTPStatus
from typing import Any

ACCEPT = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json"


class Client:
    """A client of a repository, which tells a mirror the registry by `?ns=`, as containerd does."""

    def __init__(self, port: int, registry: str, repository: str) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port)
        self._path, self._query = f"/v2/{repository}", f"?ns={registry}"

    def get(self, path: str, **fields: str) -> tuple[http.client.HTTPResponse, bytes]:
        """Return a reply and its body, which is short where it does not verify."""
        headers = {"Accept": ACCEPT, **fields}
        self._connection.request("GET", f"{self._path}/{path}{self._query}", headers=headers)
        reply = self._connection.getresponse()
        content = reply.read()  # raises an exception for a body that is short
        if reply.status not in (HTTPStatus.OK, HTTPStatus.PARTIAL_CONTENT):
            sys.exit(f"failed: {path}: {reply.status} {content.decode()}")
        return reply, content

    def verified(self, path: str) -> bytes:
        """Return a document or a blob whose path has its digest."""
        content = self.get(path)[1]
        if f"sha256:{hashlib.sha256(content).hexdigest()}" != path.rpartition("/")[2]:
            sys.exit(f"failed: {path} does not match its digest")
        return content


def pull(client: Client, tag: str) -> None:
    """Pull the first image of an index, and half of its largest layer once more."""
    print("tags", ", ".join(json.loads(client.get("tags/list")[1])["tags"]))
    reply, content = client.get(f"manifests/{tag}")
    print("index", reply.headers["Docker-Content-Digest"])
    first = json.loads(content)["manifests"][0]["digest"]
    manifest: dict[str, Any] = json.loads(client.verified(f"manifests/{first}"))
    print("manifest", first)
    blobs = {
        each["digest"]: client.verified(f"blobs/{each['digest']}")
        for each in [manifest["config"], *manifest["layers"]]
    }
    for digest, blob in blobs.items():
        print("blob", digest, len(blob), "bytes")
    digest, blob = max(blobs.items(), key=lambda each: len(each[1]))
    half = len(blob) // 2
    reply, rest = client.get(f"blobs/{digest}", Range=f"bytes={half}-")
    if rest != blob[half:]:
        sys.exit(f"failed: the second half of {digest} is not that of the whole")
    print("part", reply.status, reply.headers["Content-Range"])


def main() -> None:
    """Serve, pull, and end the registry."""
    path, image, *options = sys.argv[1:]
    registry, _, name = image.partition("/")
    repository, _, tag = name.rpartition(":")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        fd, port = listener.fileno(), listener.getsockname()[1]
        program = os.environ.get("IMGPROXY", "imgproxy")
        command = [program, "registry", "--quiet", f"--images={path}", f"--sockfd={fd}", *options]
        server = subprocess.Popen(command, pass_fds=[fd])
    try:
        pull(Client(port, registry, repository), tag)
    except (OSError, http.client.HTTPException) as error:
        sys.exit(f"failed: {error!r}")
    finally:
        server.terminate()
        server.wait()


if __name__ == "__main__":
    main()
