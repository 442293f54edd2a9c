"""The parent's side for programs that wait by blocking, in one thread or several."""

from __future__ import annotations

import io
import socket
import subprocess
import threading
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from imgproxy.parent import failures
from imgproxy.parent.exchange import (
    CONFIG,
    MANIFEST,
    OK,
    QUIT,
    CutOff,
    Document,
    Exchange,
    Manifest,
    blob_target,
    document_target,
)
from imgproxy.parent.failures import (
    Ending,
    HungUpError,
    ParentError,
    RefusedError,
    ShortBodyError,
    StalledError,
)
from imgproxy.parent.pool import Pool
from imgproxy.parent.process import (
    CHUNK,
    COMMAND,
    DISCARD,
    DISCARD_TIME,
    GRACE,
    MOMENT,
    TIMEOUT,
    Diagnostics,
    planned,
)
from imgproxy.specs.oci import digest as digests

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from typing import NoReturn

    from _typeshed import WriteableBuffer

    from imgproxy.specs.oci.digest import Digest
    from imgproxy.specs.oci.manifest import Descriptor


@contextmanager
def start(
    image: str,
    *options: str,
    sockets: int = 1,
    timeout: float | None = TIMEOUT,
    command: Sequence[str] = COMMAND,
    env: Mapping[str, str] | None = None,
    pass_fds: Sequence[int] = (),
) -> Iterator[Child]:
    """Run imgproxy on an image for the length of the block.

    `options` are those of imgproxy(1), such as `"--offline"`. So many `sockets` carry so many
    blobs at the same time. `timeout` is how many seconds the child may send nothing: None waits
    for ever. `env` and `pass_fds` are as for `subprocess.Popen`.

    At the end of the block the child has ended, whatever happened, and nothing is left of it but
    `Child.ending`. Raises `OSError` where it cannot be started; that an option is wrong turns out
    with the first request.
    """
    with planned(image, options, sockets, command, pass_fds) as plan:
        process = subprocess.Popen(  # noqa: S603  (the command is the caller's)
            plan.arguments,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=plan.diagnostics.write_fd,
            pass_fds=plan.fds,
            env=env,
        )
    child = Child(process, plan.sockets, plan.diagnostics, timeout)
    try:
        yield child
    finally:
        child.close()


class _Connection:
    """Our half of a socket. It is closed when nobody is inside of a call."""

    def __init__(self, sock: socket.socket, timeout: float | None) -> None:
        sock.settimeout(timeout)
        self._socket = sock
        self._lock = threading.RLock()  # a signal's handler may close the child

    def send(self, data: bytes) -> None:
        with self._lock:
            self._socket.sendall(data)

    def receive(self) -> bytes:
        with self._lock:
            return self._socket.recv(CHUNK)

    def receive_into(self, buffer: memoryview) -> int:
        with self._lock:
            return self._socket.recv_into(buffer)

    def hurry(self, timeout: float | None) -> None:
        self._socket.settimeout(timeout)

    def hang_up(self) -> None:
        with suppress(OSError):  # closed already, or the child is gone
            self._socket.shutdown(socket.SHUT_RDWR)  # wakes who waits for it
        with self._lock:
            self._socket.close()


class Child:
    """An imgproxy that runs. Any thread may ask; each socket answers one at a time.

    A request waits while all sockets carry blobs that others have open.
    """

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        sockets: list[socket.socket],
        diagnostics: Diagnostics,
        timeout: float | None,
    ) -> None:
        self._process = process
        self._diagnostics = diagnostics
        self._timeout = timeout
        self._pool = Pool([_Connection(each, timeout) for each in sockets])
        self._changed = threading.Condition()
        self._closed = False

    @property
    def pid(self) -> int:
        """The number of the process."""
        return self._process.pid

    @property
    def ending(self) -> Ending | None:
        """How the child ended; None while it runs."""
        status = self._process.poll()
        return None if status is None else failures.ending(status, self.diagnostics)

    @property
    def diagnostics(self) -> tuple[str, ...]:
        """The last lines of the child's standard error so far."""
        return self._diagnostics.lines()

    def manifest(self) -> Manifest:
        """Give the chosen manifest, as OCI. Raises `ParentError`, as everything here does."""
        return self._whole(MANIFEST).manifest()

    def config(self) -> Document:
        """Give the image's configuration."""
        return self._whole(CONFIG).document()

    def document(self, what: Descriptor | Digest | str) -> Document:
        """Give a manifest or an index by its digest, in its original bytes."""
        return self._whole(document_target(what)).document()

    def blob(self, what: Descriptor | Digest | str) -> Blob:
        """Open a blob. Close it when done: it occupies a socket until its end, or until then."""
        exchange = Exchange(blob_target(what))
        return Blob(self, exchange, self._ask(exchange))

    def quit(self) -> Ending:
        """End the child with `POST /quit`, and give how it ended.

        Whoever still reads a blob is cut off; the end of the block does the same without a word.
        """
        self._whole(QUIT, "POST")
        return self.close()

    def close(self) -> Ending:
        """End the child, by force if it must be, and give how it ended."""
        with self._changed:
            self._closed = True
            connections = self._pool.empty()
            self._changed.notify_all()
        for connection in connections:
            connection.hang_up()
        try:
            status = self._process.wait(GRACE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            status = self._process.wait()
        except BaseException:  # an interrupt: no patience now
            self._process.kill()
            self._process.wait()
            raise
        finally:
            self._diagnostics.close()
        return failures.ending(status, self.diagnostics)

    def _whole(self, target: str, method: str = "GET") -> Exchange:
        """Ask, and read the whole reply."""
        exchange = Exchange(target, method)
        connection = self._ask(exchange)
        try:
            self._read_body(exchange, connection)
        except BaseException:
            self._lose(connection)
            raise
        self._give_back(connection, exchange)
        return exchange

    def _ask(self, exchange: Exchange) -> _Connection:
        """Send a request and read the head of a 200; give the connection, which has the body."""
        connection = self._take(exchange.target)
        try:
            with self._translated(exchange, connection):
                connection.send(exchange.request)
                while exchange.head is None:
                    exchange.feed(connection.receive())
            if exchange.head.status != OK:
                self._refuse(exchange, connection)
        except RefusedError:
            self._give_back(connection, exchange)
            raise
        except BaseException:
            self._lose(connection)
            raise
        return connection

    def _refuse(self, exchange: Exchange, connection: _Connection) -> NoReturn:
        self._read_body(exchange, connection)
        raise exchange.refusal()

    def _read_body(self, exchange: Exchange, connection: _Connection) -> None:
        exchange.expect_document()
        with self._translated(exchange, connection):
            while not exchange.is_whole:
                exchange.feed(connection.receive())

    def receive_into(self, buffer: memoryview, exchange: Exchange, connection: _Connection) -> int:
        """Read some of a body; for `Blob` alone. Raises `ParentError`."""
        try:
            with self._translated(exchange, connection):
                count = connection.receive_into(buffer[: exchange.remaining])
                exchange.passed(count)
        except BaseException:  # an interrupt too: how much was received is not known then
            self._lose(connection)
            raise
        return count

    def finish(self, exchange: Exchange, connection: _Connection) -> None:
        """Take back the connection of a blob that is closed; for `Blob` alone."""
        try:
            if exchange.remaining <= DISCARD:
                connection.hurry(DISCARD_TIME)
                while not exchange.is_whole:
                    exchange.feed(connection.receive())
                connection.hurry(self._timeout)
        except (CutOff, OSError, ParentError):
            pass  # nobody wants it any more
        finally:
            self._give_back(connection, exchange)

    def _take(self, target: str) -> _Connection:
        holder = threading.get_ident()
        with self._changed:
            while len(self._pool):
                connection = self._pool.take(holder, target)
                if connection is not None:
                    return connection
                self._changed.wait()
        raise self._cut(Exchange(target))

    def _give_back(self, connection: _Connection, exchange: Exchange) -> None:
        if not (exchange.is_whole and exchange.stays):
            self._lose(connection)
            return
        with self._changed:
            self._pool.give_back(connection)
            self._changed.notify()

    def _lose(self, connection: _Connection) -> None:
        with self._changed:
            self._pool.lose(connection)
            self._changed.notify_all()
        connection.hang_up()

    @contextmanager
    def _translated(self, exchange: Exchange, connection: _Connection) -> Iterator[None]:
        """Raise what the end of a connection, or silence, means."""
        try:
            yield
        except TimeoutError:
            raise StalledError(exchange.target, self._timeout or 0) from None
        except (CutOff, OSError):
            self._lose(connection)  # the child waits for this before it ends
            raise self._cut(exchange) from None

    def _cut(self, exchange: Exchange) -> HungUpError:
        """Give what is raised for a reply that does not come, or breaks off."""
        target = exchange.target
        if self._closed:
            return HungUpError(target, "the child has been closed", None, self.ending)
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(MOMENT if len(self._pool) else GRACE)
        reason = failures.reason_for(target, self.diagnostics)
        if exchange.head is None:
            return HungUpError(target, "no reply", reason, self.ending)
        return ShortBodyError(target, exchange.counts, reason, self.ending)


class Blob(io.RawIOBase):
    """A blob as a file to read from, once and forwards.

    What is read is verified when the end is reached, and not before: of a blob that turns out to
    be wrong, or is cut off, `ShortBodyError` is raised in place of its end, for every reader and
    again each time. `size` is in bytes. For many small reads wrap it in `io.BufferedReader`.
    """

    def __init__(self, child: Child, exchange: Exchange, connection: _Connection) -> None:
        super().__init__()
        self.size = exchange.remaining
        self.digest = digests.parse(exchange.target.rpartition("/")[2])
        self._child = child
        self._exchange = exchange
        self._connection: _Connection | None = connection
        self._failure: BaseException | None = None
        self._release_if_read()

    def readable(self) -> bool:
        """Say that it can be read, and nothing else."""
        return True

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        """Read up to so many bytes; none is the end, verified. Raises `ParentError`."""
        self._check()
        view = memoryview(buffer).cast("B")
        if not view or not self._exchange.remaining:
            return 0
        count = self._exchange.take_into(view)
        if not count and self._connection is not None:
            try:
                count = self._child.receive_into(view, self._exchange, self._connection)
            except BaseException as error:
                self._failure, self._connection = error, None
                raise
        self._release_if_read()
        return count

    def readall(self) -> bytes:
        """Read to the end, verified."""
        self._check()
        content = bytearray(self._exchange.remaining)
        view = memoryview(content)
        while view:
            view = view[self.readinto(view) :]
        view.release()
        return bytes(content)

    def close(self) -> None:
        """Let the socket carry something else: at once, if little is missing of the blob.

        A socket that carries more than a MiB yet is closed, and one less is left.
        """
        if self._connection is not None:
            connection, self._connection = self._connection, None
            self._child.finish(self._exchange, connection)
        super().close()

    def _check(self) -> None:
        if self.closed:
            raise ValueError("I/O operation on a closed blob")
        if self._failure is not None:
            raise self._failure

    def _release_if_read(self) -> None:
        """Give the socket back as soon as all has come."""
        if self._connection is not None and self._exchange.is_whole:
            connection, self._connection = self._connection, None
            self._child.finish(self._exchange, connection)
