"""A client of skopeo's protocol, `experimental-image-proxy`: one that insists.

It starts the program, or skopeo itself, as clients do, and takes replies apart to the letter: each
is one packet with all members and integers, a descriptor comes where it must and never with a
failure, and the ends of pipes block. Only the standard library is used, and nothing is shared with
the program. No wait is longer than `LIMIT`.
"""

from __future__ import annotations

import fcntl
import json
import os
import select
import socket
import stat
import subprocess
import time
from array import array
from contextlib import contextmanager, suppress
from typing import IO, TYPE_CHECKING, Any, NamedTuple

from support.parent import COMMAND, INSECURE, LIMIT, Child, environment
from support.servers import require

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

SUBCOMMAND = "experimental-image-proxy"

# In bytes: what clients receive into, and the room for control data that they give, which two
# descriptors fill.
MAX_PACKET = 32 * 1024
_ROOM = socket.CMSG_SPACE(4)

_MEMBERS = ["success", "value", "pipeid", "error_code", "error"]
_CODES = {"EPIPE", "retryable", "other"}

# The methods whose successful replies come with pipes, and how many.
_PIPES = {
    "GetManifest": 1,
    "GetConfig": 1,
    "GetFullConfig": 1,
    "GetLayerInfoPiped": 1,
    "GetBlob": 1,
    "GetRawBlob": 2,
}


class Program(NamedTuple):
    """A program that speaks the protocol; `is_old`: in a version before 0.2.8."""

    name: str
    command: tuple[str, ...]
    is_old: bool = False

    def __str__(self) -> str:
        return self.name

    def require(self) -> None:
        """Skip the test if the program is not installed."""
        require(self.command[0])


OURS = Program("imgproxy", COMMAND)
SKOPEO = Program("skopeo", ("skopeo",), is_old=True)
PROGRAMS = [OURS, SKOPEO]


class Reply(NamedTuple):
    """A reply; `fds` are the read ends that came with it, and are the receiver's to close."""

    success: bool
    value: Any
    pipe: int
    code: str
    words: str
    fds: tuple[int, ...] = ()


class Ended(Exception):
    """The conversation is over: there is no reply, and there will be none."""


class Client:
    """The client's end of a conversation; `child` is the program."""

    def __init__(self, sock: socket.socket, child: Child, program: Program = OURS) -> None:
        self.socket = sock
        self.child = child
        self.program = program
        sock.settimeout(LIMIT)

    # --- packets --------------------------------------------------------------------------------

    def send(self, packet: bytes) -> None:
        assert self.socket.send(packet) == len(packet)

    def receive(self) -> Reply:
        """Return the next reply. Raises `Ended`."""
        try:
            packet, control, flags, _ = self.socket.recvmsg(
                MAX_PACKET, _ROOM, socket.MSG_CMSG_CLOEXEC
            )
        except ConnectionResetError:
            raise Ended(self.child.stderr) from None
        if not packet:
            raise Ended(self.child.stderr)
        fds = array("i", b"".join(data for _, _, data in control))
        assert not flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC), "more than clients take"
        assert len(control) <= 1, "more than one control message"
        return self._reply(packet, tuple(fds))

    def _reply(self, packet: bytes, fds: tuple[int, ...]) -> Reply:
        document = json.loads(packet, parse_float=_refuse, parse_constant=_refuse)
        members = [name for name in _MEMBERS if name != "error_code" or not self.program.is_old]
        assert list(document) == members, packet
        success, pipe, words = (document[name] for name in ("success", "pipeid", "error"))
        code = document.get("error_code", "" if success else "other")
        assert isinstance(success, bool), packet
        assert isinstance(words, str), packet
        assert type(pipe) is int, packet
        assert 0 <= pipe < 1 << 32, packet
        if success:
            assert not words, packet
            assert not code, packet
        else:
            assert words, packet
            assert self.program.is_old or words.isprintable(), packet
            assert code in _CODES, packet
            assert document["value"] is None, packet
            assert not pipe, packet
            assert not fds, "a descriptor came with a failure"
        for fd in fds:
            flags = fcntl.fcntl(fd, fcntl.F_GETFL)
            assert flags & os.O_ACCMODE == os.O_RDONLY, flags
            assert not flags & os.O_NONBLOCK, "clients expect reading to block"
            assert stat.S_ISFIFO(os.fstat(fd).st_mode)
        return Reply(success, document["value"], pipe, code, words, fds)

    def request(self, packet: bytes) -> Reply:
        """Send whatever packet; return the reply. Raises `Ended`."""
        self.send(packet)
        return self.receive()

    # --- methods --------------------------------------------------------------------------------

    def ask(self, method: str, *arguments: object) -> None:
        """Send a request."""
        self.send(encode(method, *arguments))

    def call(self, method: str, *arguments: object) -> Reply:
        """Call a method; return the reply, which has as many pipes as the method promises."""
        self.ask(method, *arguments)
        return self.answer(method)

    def answer(self, method: str) -> Reply:
        """Return the reply to a call that has been sent."""
        reply = self.receive()
        count = _PIPES.get(method, 0) if reply.success else 0
        assert len(reply.fds) == count, f"{method}: {len(reply.fds)} descriptors"
        assert bool(reply.pipe) == (count == 1), f"{method}: {reply}"
        return reply

    def get(self, method: str, *arguments: object) -> Reply:
        """Call a method that must succeed."""
        reply = self.call(method, *arguments)
        assert reply.success, f"{method}{arguments}: {reply.words}"
        return reply

    def failure(self, method: str, *arguments: object) -> Reply:
        """Call a method that must fail."""
        reply = self.call(method, *arguments)
        for fd in reply.fds:
            os.close(fd)
        assert not reply.success, f"{method}{arguments}: {reply}"
        return reply

    def initialize(self) -> str:
        """Begin the conversation; return the version of the protocol."""
        version = self.get("Initialize").value
        assert isinstance(version, str)
        return version

    def open(self, reference: str) -> int:
        image = self.get("OpenImage", reference).value
        assert type(image) is int
        assert image > 0
        return image

    def finish(self, pipe: int) -> Reply:
        return self.call("FinishPipe", pipe)

    def content(self, method: str, *arguments: object) -> tuple[Reply, bytes, Reply]:
        """Call a method with one pipe: return its reply, what was read to the end, FinishPipe's."""
        reply = self.get(method, *arguments)
        self.ask("FinishPipe", reply.pipe)  # as clients do: while they read
        content = read_to_end(reply.fds[0])
        return reply, content, self.answer("FinishPipe")

    def document(self, method: str, *arguments: object) -> bytes:
        """Return what a method with one pipe delivers, which must succeed."""
        _, content, finished = self.content(method, *arguments)
        assert finished.success, finished.words
        return content

    def blob(self, image: int, descriptor: Mapping[str, Any]) -> bytes:
        """Return a blob, by GetBlob."""
        return self.document("GetBlob", image, descriptor["digest"], descriptor["size"])

    def raw_blob(self, image: int, digest: str) -> tuple[int, bytes, dict[str, str] | None]:
        """Return the size, the content, and what the second pipe says, if anything."""
        reply = self.get("GetRawBlob", image, digest)
        content, errors = map(read_to_end, reply.fds)
        return reply.value, content, json.loads(errors) if errors else None

    # --- the end --------------------------------------------------------------------------------

    def hang_up(self) -> None:
        self.socket.close()

    def shut_down(self) -> int:
        """Ask for the end; return the exit status. There must be no reply."""
        self.ask("Shutdown")
        assert self.is_over()
        return self.child.wait()

    def is_over(self) -> bool:
        """Wait for the end of the conversation; return whether that is what comes."""
        try:
            self.receive()
        except Ended:
            return True
        return False

    def finalize(self) -> int:
        """End as the Rust client does: Shutdown, close, wait; return the exit status."""
        with suppress(OSError):
            self.ask("Shutdown")
        self.hang_up()
        return self.child.wait()


def _refuse(text: str) -> None:
    raise AssertionError(f"{text}: the Rust client takes integers alone")


def encode(method: str, *arguments: object) -> bytes:
    """Return a request as a packet."""
    return json.dumps({"method": method, "args": arguments}, separators=(",", ":")).encode()


def read_to_end(fd: int, limit: float = LIMIT) -> bytes:
    """Read all that comes through a pipe, and close it."""
    content = b""
    with os.fdopen(fd, "rb", buffering=0) as pipe:
        while piece := read_some(pipe.fileno(), 1 << 20, limit):
            content += piece
    return content


def read_some(fd: int, most: int, limit: float = LIMIT) -> bytes:
    """Read once; a pipe that neither has anything nor ends within the limit fails the test."""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    assert poll.poll(limit * 1000), "the pipe has no end"
    return os.read(fd, most)


def read_exactly(fd: int, size: int) -> bytes:
    content = b""
    while len(content) < size:
        piece = read_some(fd, size - len(content))
        assert piece, f"the content ends after {len(content)} bytes of {size}"
        content += piece
    return content


def is_silent(fd: int, seconds: float = 0.1) -> bool:
    """Return whether a pipe has neither bytes nor an end for so long."""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return not poll.poll(seconds * 1000)


def start(
    *options: str,
    program: Program = OURS,
    before: Sequence[str] = (),
    by_option: bool = False,
    policy: str | None = INSECURE,
    env: Mapping[str, str] | None = None,
    files: Sequence[int] = (),
) -> Client:
    """Start a program as clients do: one half of a pair of sockets is its standard input.

    With `by_option` it is another descriptor, which --sockfd names. `before` are options before the
    word, `files` are descriptors that it inherits besides.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        words = [*program.command, *before, SUBCOMMAND, *options]
        if policy is not None:
            words.append(policy)
        stdin: int | IO[bytes] = theirs.fileno()
        if by_option:
            stdin = subprocess.DEVNULL
            words += ["--sockfd", str(theirs.fileno())]
            files = [*files, theirs.fileno()]
        child = Child(words, stdin=stdin, pass_fds=files, env=env or environment())
    return Client(ours, child, program)


@contextmanager
def closing(client: Client) -> Iterator[Client]:
    """Leave nothing of the program behind; it must not have said what it should not."""
    try:
        yield client
        assert not client.child.stdout
        assert client.program.is_old or "Traceback" not in client.child.stderr, client.child.stderr
    finally:
        client.hang_up()
        client.child.close()


def ends_within(client: Client, seconds: float) -> bool:
    """Return whether the program ends so soon, by itself."""
    deadline = time.monotonic() + seconds
    while client.child.running:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True
