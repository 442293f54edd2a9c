"""Imgproxy and skopeo behind one interface, and the limits they are compared with."""

from __future__ import annotations

import json
import shutil
import socket
import sys
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from .child import FAULTS, BenchError, Child, Usage, capture, describe
from .loops import CURL_NAME
from .wire import BUFFER, HttpParent, PipeParent

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager

    from support.images import Json

OURS = "imgproxy"
BEFORE = "before"
PROBE = 20.0  # seconds for a program to say its version

# The limits: lower bounds for a program in Python on these libraries, or one that verifies.
BARE = (sys.executable, "-c", "pass")
BARE_NAME = "python -c pass"
LIBRARIES = (sys.executable, "-c", "import trio, h11")
LIBRARIES_NAME = "python -c 'import trio, h11'"
OPENSSL = ("openssl", "dgst", "-sha256")
OPENSSL_NAME = " ".join(OPENSSL)


class Session(Protocol):
    """One child that serves one image, and its parent."""

    @property
    def child(self) -> Child:
        """The program that serves."""

    def manifest(self) -> Json:
        """Open the image and read its manifest."""

    def blob(self, descriptor: Json) -> None:
        """Read a blob to its end and drop it."""

    def first_byte(self, descriptor: Json) -> None:
        """Request a blob and wait for its first byte; the session cannot be used after that."""

    def quit(self) -> Usage:
        """End the child, and reap it."""


class Contender(Protocol):
    """A program that serves images."""

    @property
    def name(self) -> str:
        """The title of its column."""

    def session(self, image: str, authority: Path | None = None) -> AbstractContextManager[Session]:
        """Spawn it for this image; `authority` is the trusted certificate, if it verifies any."""


def _insecure(image: str, authority: Path | None) -> list[str]:
    """Return the option for the registries of the bench: no TLS, or its own certificate."""
    return ["--tls-verify=false"] if image.startswith("docker://") and not authority else []


def trusting(authority: Path | None) -> dict[str, str]:
    """Return the variables from which OpenSSL and Go take an authority."""
    return {"SSL_CERT_FILE": str(authority)} if authority else {}


@contextmanager
def _spawn(
    argv: Sequence[str], kind: int, env: Mapping[str, str]
) -> Iterator[tuple[Child, socket.socket]]:
    """Start a child on one half of a socket pair, in place of `FD`; return the other half."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, kind)
    with ours, theirs:
        words = [str(theirs.fileno()) if word == "FD" else word for word in argv]
        with Child(words, fds=[theirs.fileno()], env=env) as child:
            theirs.close()  # otherwise the child's end would not be an end of file
            yield child, ours


@dataclass(frozen=True)
class Imgproxy:
    """The program of this repository, over HTTP."""

    command: tuple[str, ...]
    version: str
    name: str = OURS

    def in_place_of_skopeo(self) -> Skopeo:
        """Return the same program behind skopeo's protocol."""
        return Skopeo(self.command, self.name)

    @contextmanager
    def session(self, image: str, authority: Path | None = None) -> Iterator[Session]:
        options = ["--insecure-policy", *_insecure(image, authority), "--sockfd", "FD"]
        argv = [*self.command, *options, image]
        with _spawn(argv, socket.SOCK_STREAM, trusting(authority)) as (child, sock):
            yield _HttpSession(child, HttpParent(sock))

    @contextmanager
    def crowd(
        self, image: str, count: int, authority: Path | None = None
    ) -> Iterator[tuple[Child, list[HttpParent]]]:
        """Spawn it with several conversations, each with a parent that can run in a thread."""
        with ExitStack() as stack:
            pairs = [socket.socketpair() for _ in range(count)]
            for sock in (half for pair in pairs for half in pair):
                stack.enter_context(sock)
            fds = [theirs.fileno() for _, theirs in pairs]
            options = ["--insecure-policy", *_insecure(image, authority)]
            options += [f"--sockfd={fd}" for fd in fds]
            argv = [*self.command, *options, image]
            with Child(argv, fds=fds, env=trusting(authority)) as child:
                for _, theirs in pairs:
                    theirs.close()
                yield child, [HttpParent(ours, bytearray(BUFFER)) for ours, _ in pairs]


@dataclass(frozen=True)
class _HttpSession:
    child: Child
    parent: HttpParent

    def manifest(self) -> Json:
        document: Json = json.loads(self.parent.fetch("/manifest"))
        return document

    def blob(self, descriptor: Json) -> None:
        self.parent.blob("", descriptor)

    def first_byte(self, descriptor: Json) -> None:
        self.parent.first_byte("", descriptor)

    def quit(self) -> Usage:
        self.parent.quit()
        return self.child.finish()


@dataclass(frozen=True)
class Skopeo:
    """The peer: `skopeo experimental-image-proxy`, or a program with the same command line.

    If only an old one is available, `peer/main.go` replaces a current one, with its library behind
    the same protocol; in that folder it is built by `CGO_ENABLED=0 go build -tags
    containers_image_openpgp,exclude_graphdriver_btrfs -o PATH`.
    """

    command: tuple[str, ...]
    name: str

    @contextmanager
    def session(self, image: str, authority: Path | None = None) -> Iterator[PipeSession]:
        with self.proxy(_insecure(image, authority), authority) as (child, parent):
            yield PipeSession(child, parent, image)

    @contextmanager
    def proxy(
        self, options: Sequence[str] = (), authority: Path | None = None
    ) -> Iterator[tuple[Child, PipeParent]]:
        """Spawn it, and wait for its answer to `Initialize`."""
        proxy = ["experimental-image-proxy", *options, "--sockfd", "FD"]
        argv = [*self.command, "--insecure-policy", *proxy]
        with _spawn(argv, socket.SOCK_SEQPACKET, trusting(authority)) as (child, sock):
            yield child, PipeParent(sock)


class PipeSession:
    """One child with one image open, behind skopeo's protocol."""

    def __init__(self, child: Child, parent: PipeParent, image: str) -> None:
        self.child = child
        self._parent = parent
        self._image = parent.call("OpenImage", image)

    def manifest(self) -> Json:
        document: Json = json.loads(self._parent.fetch("GetManifest", self._image))
        return document

    def blob(self, descriptor: Json) -> None:
        digest, size = descriptor["digest"], descriptor["size"]
        self._parent.discard(size, "GetBlob", self._image, digest, size)

    def first_byte(self, descriptor: Json) -> None:
        digest, size = descriptor["digest"], descriptor["size"]
        self._parent.first_byte("GetBlob", self._image, digest, size)

    def layer_info(self) -> list[Json]:
        """Request digest, size and media type of all layers."""
        layers: list[Json] = json.loads(self._parent.fetch("GetLayerInfoPiped", self._image))
        return layers

    def quit(self) -> Usage:
        self._parent.quit()
        return self.child.finish()


def find_imgproxy(command: Sequence[str], name: str = OURS) -> Imgproxy:
    """Return the program if it runs; raise `BenchError` if it does not."""
    argv = (_locate(command[0]), *command[1:])
    return Imgproxy(argv, capture([*argv, "--version"], PROBE), name)


def find_skopeo(path: str, taken: Sequence[str]) -> Skopeo:
    """Return the peer at this path, under an unused name."""
    found = _locate(path)
    name = capture([found, "--version"], PROBE).replace(" version", "")
    namesakes = sum(other.startswith(name) for other in taken)
    return Skopeo((found,), f"{name} ({namesakes + 1})" if namesakes else name)


def find_limits() -> tuple[list[str], list[str]]:
    """Return the names of the available limits, and notes on the others."""
    found, missing = [], []
    for name, argv in [
        (LIBRARIES_NAME, LIBRARIES),
        (OPENSSL_NAME, (*OPENSSL, "/dev/null")),
        (CURL_NAME, ("curl", "--version")),
    ]:
        try:
            capture(argv, PROBE)
        except FAULTS as error:
            missing.append(f"No limit `{name}`: {describe(error)}.")
        else:
            found.append(name)
    return found, missing


def _locate(program: str) -> str:
    """Return the program's absolute path, since children start in another directory."""
    found = shutil.which(program)
    if found is None:
        raise BenchError("not found")
    return str(Path(found).absolute())
