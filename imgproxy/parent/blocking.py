"""The library for parents with blocking I/O, in one thread or several."""

from __future__ import annotations

import io
import subprocess
import threading
from contextlib import closing, contextmanager, suppress
from typing import TYPE_CHECKING, Any

from imgproxy.parent import failures
from imgproxy.parent.connection import Connection
from imgproxy.parent.exchange import (
    CANDIDATES,
    CONFIG,
    MANIFEST,
    OK,
    QUIT,
    Document,
    Exchange,
    IncompleteReplyError,
    Manifest,
    Pipeline,
    blob_target,
    document_target,
    layer_target,
    layers_target,
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
    COMMAND,
    DISCARD,
    DISCARD_TIME,
    GRACE,
    MOMENT,
    TIMEOUT,
    Diagnostics,
    prepare,
)

if TYPE_CHECKING:
    import socket
    from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
    from typing import NoReturn

    from _typeshed import WriteableBuffer

    from imgproxy.specs.oci.digest import Digest
    from imgproxy.specs.oci.layer_selection import Layer
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
    """Run imgproxy on an image until the end of the block.

    `options` are those of imgproxy(1), such as `"--offline"`. Each of the `sockets` carries one
    blob at a time. `timeout` is for how many seconds the child may send nothing, None for no
    limit. `env` and `pass_fds` are as for `subprocess.Popen`.

    At the end of the block the child is ended in every case, and `Child.ending` remains
    available. Raises `OSError` where it cannot be started; wrong options make the first request
    fail.
    """
    with prepare(image, options, sockets, command, pass_fds) as plan:
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


class Child:
    """A running imgproxy. It may be used by any thread; each socket carries one reply at a time.

    A request waits while all sockets carry blobs that other threads have open.
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
        self._pool = Pool([Connection(each, timeout) for each in sockets])
        self._changed = threading.Condition()
        self._closed = False

    @property
    def pid(self) -> int:
        """The process ID."""
        return self._process.pid

    @property
    def ending(self) -> Ending | None:
        """How the child ended, None while it runs."""
        status = self._process.poll()
        return None if status is None else failures.ending(status, self.diagnostics)

    @property
    def diagnostics(self) -> tuple[str, ...]:
        """The last lines of the child's standard error so far."""
        return self._diagnostics.lines()

    def manifest(self) -> Manifest:
        """Return the chosen manifest, as OCI. Raises `ParentError`, like all requests."""
        return self._request(MANIFEST).manifest()

    def config(self) -> Document:
        """Return the image's configuration."""
        return self._request(CONFIG).document()

    def document(self, what: Descriptor | Digest | str) -> Document:
        """Return a manifest or an index by its digest, in its original bytes."""
        return self._request(document_target(what)).document()

    def blob(self, what: Descriptor | Digest | str) -> Blob:
        """Open a blob. It occupies a socket until it is read to its end or closed."""
        return self._open(blob_target(what))

    def candidates(self) -> list[dict[str, Any]]:
        """Return what could be chosen, also where the choice is ambiguous."""
        return self._request(CANDIDATES).candidates()

    def layers(
        self,
        *,
        media_type: str | None = None,
        title: str | None = None,
        annotations: Mapping[str, str] | None = None,
        offset: int | str | None = None,
    ) -> list[Layer]:
        """Return the chosen layers, or those of them that fulfil the conditions.

        `title` may have wildcards, `offset` is a number or a range `"N-M"`: imgproxy(1), SELECTION.
        """
        target = layers_target(media_type, title, annotations, offset)
        return self._request(target).layers()

    def layer(self, offset: int) -> Blob:
        """Open the chosen layer with this `offset`, like a blob."""
        return self._open(layer_target(offset))

    @contextmanager
    def blobs(self, wanted: Iterable[Descriptor | Digest | str]) -> Iterator[Iterator[Blob]]:
        """Return an iterator of blobs for the block, in this order.

        Several are requested ahead, on one socket: the child opens the next ones while one is read,
        which saves the waits for a registry. Each is closed when the next is asked for. At the end
        of the block, replies that are still to come are read and dropped if they have 1 MiB at
        most; otherwise the socket is closed, and the child has one less. It is so after a failure
        as well.
        """
        with closing(self._blobs(wanted)) as blobs:
            yield blobs

    def _blobs(self, wanted: Iterable[Descriptor | Digest | str]) -> Generator[Blob, None, None]:
        pipeline = Pipeline(map(blob_target, wanted))
        requests = pipeline.requests()
        if not requests:
            return
        connection = self._take(pipeline.target)
        try:
            while (exchange := pipeline.next()) is not None:
                self._read_head(exchange, connection, requests)
                with Blob(self, exchange, connection, keeps=True) as blob:
                    yield blob
                requests = pipeline.requests()
        finally:
            self._end_pipeline(pipeline, connection)

    def quit(self) -> Ending:
        """End the child with `POST /quit`, and return how it ended.

        Blobs that are still open are cut off, as at the end of the block.
        """
        self._request(QUIT, "POST")
        return self.close()

    def close(self) -> Ending:
        """End the child, by force if necessary, and return how it ended."""
        with self._changed:
            self._closed = True
            connections = self._pool.empty()
            self._changed.notify_all()
        for connection in connections:
            connection.close()
        try:
            status = self._process.wait(GRACE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            status = self._process.wait()
        except BaseException:  # an interrupt must not wait any longer
            self._process.kill()
            self._process.wait()
            raise
        finally:
            self._diagnostics.close()
        return failures.ending(status, self.diagnostics)

    def _open(self, target: str) -> Blob:
        exchange = Exchange(target)
        connection = self._start(exchange)
        with self._discarding_on_error(connection, exchange):
            return Blob(self, exchange, connection)

    def _request(self, target: str, method: str = "GET") -> Exchange:
        """Send a request, and read the whole reply."""
        exchange = Exchange(target, method)
        connection = self._start(exchange)
        with self._discarding_on_error(connection, exchange):
            self._read_body(exchange, connection)
        self._release(connection, exchange)
        return exchange

    def _start(self, exchange: Exchange) -> Connection:
        """Send a request, read the head of a 200, and return the connection with the body."""
        connection = self._take(exchange.target)
        with self._discarding_on_error(connection, exchange):
            self._read_head(exchange, connection, exchange.request)
        return connection

    def _read_head(self, exchange: Exchange, connection: Connection, requests: bytes) -> None:
        """Send requests, and read the head of a 200."""
        with self._translated(exchange, connection):
            if requests:
                connection.send(requests)
            while exchange.head is None:
                exchange.feed(connection.receive())
        if exchange.head.status != OK:
            self._refuse(exchange, connection)

    def _end_pipeline(self, pipeline: Pipeline, connection: Connection) -> None:
        """Release the connection after all replies that are under way, or close it."""
        try:
            connection.set_timeout(DISCARD_TIME)
            for exchange in pipeline.rest(DISCARD):
                exchange.feed(connection.receive())
            connection.set_timeout(self._timeout)
        except (IncompleteReplyError, OSError, ParentError):
            self._discard(connection)
        else:
            self._release(connection, pipeline.present)

    def _refuse(self, exchange: Exchange, connection: Connection) -> NoReturn:
        self._read_body(exchange, connection)
        raise exchange.refusal()

    def _read_body(self, exchange: Exchange, connection: Connection) -> None:
        exchange.expect_document()
        with self._translated(exchange, connection):
            while not exchange.is_whole:
                exchange.feed(connection.receive())

    def receive_into(self, buffer: memoryview, exchange: Exchange, connection: Connection) -> int:
        """Read a part of a body; only for `Blob`. Raises `ParentError`."""
        try:
            with self._translated(exchange, connection):
                count = connection.receive_into(buffer[: exchange.remaining])
                exchange.count_received(count)
        except BaseException:  # after an interrupt, the received number is unknown
            self._discard(connection)
            raise
        return count

    def finish(self, exchange: Exchange, connection: Connection, *, keeps: bool) -> None:
        """Release the connection of a blob that is closed; only for `Blob`.

        `keeps`: it is kept for the next reply, if the whole of this one has been received.
        """
        try:
            if exchange.remaining <= DISCARD:
                connection.set_timeout(DISCARD_TIME)
                while not exchange.is_whole:
                    exchange.feed(connection.receive())
                connection.set_timeout(self._timeout)
        except (IncompleteReplyError, OSError, ParentError):
            pass  # the rest of the blob is not needed
        finally:
            if not (keeps and exchange.is_whole):
                self._release(connection, exchange)

    def _take(self, target: str) -> Connection:
        holder = threading.get_ident()
        with self._changed:
            while len(self._pool):
                connection = self._pool.take(holder, target)
                if connection is not None:
                    return connection
                self._changed.wait()
        raise self._cut(Exchange(target))

    def _release(self, connection: Connection, exchange: Exchange) -> None:
        if not (exchange.is_whole and exchange.is_reusable):
            self._discard(connection)
            return
        with self._changed:
            self._pool.release(connection)
            self._changed.notify()

    def _discard(self, connection: Connection) -> None:
        with self._changed:
            self._pool.discard(connection)
            self._changed.notify_all()
        connection.close()

    @contextmanager
    def _discarding_on_error(self, connection: Connection, exchange: Exchange) -> Iterator[None]:
        """Discard the connection if the block fails, but release it after an error reply."""
        try:
            yield
        except RefusedError:
            self._release(connection, exchange)
            raise
        except BaseException:
            self._discard(connection)
            raise

    @contextmanager
    def _translated(self, exchange: Exchange, connection: Connection) -> Iterator[None]:
        """Translate timeouts and the end of the connection to `ParentError`."""
        try:
            yield
        except TimeoutError:
            raise StalledError(exchange.target, self._timeout or 0) from None
        except (IncompleteReplyError, OSError):
            self._discard(connection)  # the child does not end before
            raise self._cut(exchange) from None

    def _cut(self, exchange: Exchange) -> HungUpError:
        """Return the error for a reply that is missing or incomplete."""
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
    """A blob as a file, to be read once and forwards.

    The content is verified when the end is reached, not before: for a blob that is wrong or cut
    off, `ShortBodyError` is raised in place of the end of file, by every method and each time.
    `size` is in bytes. For many small reads wrap it in `io.BufferedReader`.
    """

    def __init__(
        self, child: Child, exchange: Exchange, connection: Connection, *, keeps: bool = False
    ) -> None:
        super().__init__()
        self.size = exchange.remaining
        self.digest = exchange.blob_digest()
        self._child = child
        self._exchange = exchange
        self._keeps = keeps
        self._connection: Connection | None = connection
        self._failure: BaseException | None = None
        self._release_if_read()

    def readable(self) -> bool:
        """Return True: a blob can be read, but not written or positioned."""
        return True

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        """Read into a buffer; 0 bytes mean the verified end. Raises `ParentError`."""
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
        """Read to the verified end. Raises `ParentError`."""
        self._check()
        content = bytearray(self._exchange.remaining)
        view = memoryview(content)
        while view:
            view = view[self.readinto(view) :]
        view.release()
        return bytes(content)

    def close(self) -> None:
        """Release the socket: for other requests, if at most 1 MiB of the blob is missing.

        Otherwise the socket is closed, and the child has one less.
        """
        if self._connection is not None:
            connection, self._connection = self._connection, None
            self._child.finish(self._exchange, connection, keeps=self._keeps)
        super().close()

    def _check(self) -> None:
        if self.closed:
            raise ValueError("I/O operation on a closed blob")
        if self._failure is not None:
            raise self._failure

    def _release_if_read(self) -> None:
        """Release the socket as soon as the whole body has been received."""
        if self._connection is not None and self._exchange.is_whole:
            connection, self._connection = self._connection, None
            self._child.finish(self._exchange, connection, keeps=self._keeps)
