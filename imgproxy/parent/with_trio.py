"""The library for parents that run on trio."""

from __future__ import annotations

import subprocess
from contextlib import aclosing, asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any

import trio
from trio.lowlevel import ParkingLot, current_task, open_process

from imgproxy.parent import failures
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
    CHUNK,
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
    from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Iterator, Mapping, Sequence
    from typing import NoReturn

    from trio.socket import SocketType

    from imgproxy.specs.oci.digest import Digest
    from imgproxy.specs.oci.layer_selection import Layer
    from imgproxy.specs.oci.manifest import Descriptor

_FOREVER = float("inf")


@asynccontextmanager
async def start(
    image: str,
    *options: str,
    sockets: int = 1,
    timeout: float | None = TIMEOUT,  # noqa: ASYNC109  (of each wait, not of the call)
    command: Sequence[str] = COMMAND,
    env: Mapping[str, str] | None = None,
    pass_fds: Sequence[int] = (),
) -> AsyncIterator[Child]:
    """Run imgproxy on an image until the end of the block, as `imgproxy.parent.start` does.

    A cancelled block ends the child as well, and waits for that, which takes a second at most
    unless the child has to be killed.
    """
    with prepare(image, options, sockets, command, pass_fds) as plan:
        process = await open_process(
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
        with trio.CancelScope(shield=True):
            await child.aclose()


class Child:
    """A running imgproxy. It may be used by any task; each socket carries one reply at a time.

    A request waits while all sockets carry blobs that other tasks have open.
    """

    def __init__(
        self,
        process: trio.Process,
        sockets: list[socket.socket],
        diagnostics: Diagnostics,
        timeout: float | None,
    ) -> None:
        self._process = process
        self._diagnostics = diagnostics
        self._timeout = _FOREVER if timeout is None else timeout
        self._pool = Pool([trio.socket.from_stdlib_socket(each) for each in sockets])
        self._waiting = ParkingLot()
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

    async def manifest(self) -> Manifest:
        """Return the chosen manifest, as OCI. Raises `ParentError`, like all requests."""
        return (await self._request(MANIFEST)).manifest()

    async def config(self) -> Document:
        """Return the image's configuration."""
        return (await self._request(CONFIG)).document()

    async def document(self, what: Descriptor | Digest | str) -> Document:
        """Return a manifest or an index by its digest, in its original bytes."""
        return (await self._request(document_target(what))).document()

    async def blob(self, what: Descriptor | Digest | str) -> Blob:
        """Open a blob. It occupies a socket until it is read to its end or closed."""
        return await self._open(blob_target(what))

    async def candidates(self) -> list[dict[str, Any]]:
        """Return what could be chosen, also where the choice is ambiguous."""
        return (await self._request(CANDIDATES)).candidates()

    async def layers(
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
        return (await self._request(target)).layers()

    async def layer(self, offset: int) -> Blob:
        """Open the chosen layer with this `offset`, like a blob."""
        return await self._open(layer_target(offset))

    @asynccontextmanager
    async def blobs(
        self, wanted: Iterable[Descriptor | Digest | str]
    ) -> AsyncIterator[AsyncIterator[Blob]]:
        """Return an iterator of blobs for the block, as `imgproxy.parent.Child.blobs` does."""
        async with aclosing(self._blobs(wanted)) as blobs:
            yield blobs

    async def _blobs(
        self, wanted: Iterable[Descriptor | Digest | str]
    ) -> AsyncGenerator[Blob, None]:
        pipeline = Pipeline(map(blob_target, wanted))
        requests = pipeline.requests()
        if not requests:
            return
        connection = await self._take(pipeline.target)
        try:
            while (exchange := pipeline.next()) is not None:
                await self._read_head(exchange, connection, requests)
                async with Blob(self, exchange, connection, keeps=True) as blob:
                    yield blob
                requests = pipeline.requests()
        finally:
            await self._end_pipeline(pipeline, connection)

    async def quit(self) -> Ending:
        """End the child with `POST /quit`, and return how it ended.

        Blobs that are still open are cut off, as at the end of the block.
        """
        await self._request(QUIT, "POST")
        return await self.aclose()

    async def aclose(self) -> Ending:
        """End the child, by force if necessary, and return how it ended."""
        self._closed = True
        for connection in self._pool.empty():
            connection.close()
        self._waiting.unpark_all()
        try:
            with trio.move_on_after(GRACE):
                await self._process.wait()
        finally:
            if self._process.poll() is None:
                self._process.kill()
            with trio.CancelScope(shield=True):
                status = await self._process.wait()
            self._diagnostics.close()
        return failures.ending(status, self.diagnostics)

    async def _open(self, target: str) -> Blob:
        exchange = Exchange(target)
        connection = await self._start(exchange)
        with self._discarding_on_error(connection, exchange):
            return Blob(self, exchange, connection)

    async def _request(self, target: str, method: str = "GET") -> Exchange:
        """Send a request, and read the whole reply."""
        exchange = Exchange(target, method)
        connection = await self._start(exchange)
        with self._discarding_on_error(connection, exchange):
            await self._read_body(exchange, connection)
        self._release(connection, exchange)
        return exchange

    async def _start(self, exchange: Exchange) -> SocketType:
        """Send a request, read the head of a 200, and return the connection with the body."""
        connection = await self._take(exchange.target)
        with self._discarding_on_error(connection, exchange):
            await self._read_head(exchange, connection, exchange.request)
        return connection

    async def _read_head(self, exchange: Exchange, connection: SocketType, requests: bytes) -> None:
        """Send requests, and read the head of a 200."""
        await self._send(requests, exchange, connection)
        while exchange.head is None:
            await self._feed(exchange, connection)
        if exchange.head.status != OK:
            await self._refuse(exchange, connection)

    async def _end_pipeline(self, pipeline: Pipeline, connection: SocketType) -> None:
        """Release the connection after all replies that are under way, or close it."""
        is_free = False
        try:
            with trio.move_on_after(DISCARD_TIME):
                for exchange in pipeline.rest(DISCARD):
                    exchange.feed(await connection.recv(CHUNK))
                is_free = True
        except (IncompleteReplyError, OSError, trio.ClosedResourceError, ParentError):
            pass  # what is still to come is not needed
        finally:
            if is_free:
                self._release(connection, pipeline.present)
            else:
                self.discard(connection)

    async def _send(self, requests: bytes, exchange: Exchange, connection: SocketType) -> None:
        data = memoryview(requests)
        try:
            with trio.move_on_after(self._timeout):
                while data:
                    data = data[await connection.send(data) :]
                return
        except (OSError, trio.ClosedResourceError):
            self.discard(connection)
            raise await self._cut(exchange) from None
        raise StalledError(exchange.target, self._timeout)

    async def _refuse(self, exchange: Exchange, connection: SocketType) -> NoReturn:
        await self._read_body(exchange, connection)
        raise exchange.refusal()

    async def _read_body(self, exchange: Exchange, connection: SocketType) -> None:
        exchange.expect_document()
        while not exchange.is_whole:
            await self._feed(exchange, connection)

    async def _feed(self, exchange: Exchange, connection: SocketType) -> None:
        buffer = bytearray(CHUNK)
        count = await self._received(memoryview(buffer), exchange, connection)
        try:
            exchange.feed(bytes(buffer[:count]))
        except IncompleteReplyError:
            self.discard(connection)
            raise await self._cut(exchange) from None

    async def receive_into(
        self, buffer: memoryview, exchange: Exchange, connection: SocketType
    ) -> int:
        """Read a part of a body; only for `Blob`. Raises `ParentError`."""
        count = await self._received(buffer[: exchange.remaining], exchange, connection)
        try:
            exchange.count_received(count)
        except IncompleteReplyError:
            self.discard(connection)
            raise await self._cut(exchange) from None
        return count

    async def _received(
        self, buffer: memoryview, exchange: Exchange, connection: SocketType
    ) -> int:
        """Receive some bytes, and return their number; 0 is the end of the connection."""
        with trio.move_on_after(self._timeout):
            try:
                return await connection.recv_into(buffer)
            except (OSError, trio.ClosedResourceError):
                return 0
        self.discard(connection)
        raise StalledError(exchange.target, self._timeout)

    async def finish(self, exchange: Exchange, connection: SocketType, *, keeps: bool) -> None:
        """Release the connection of a blob that is closed; only for `Blob`.

        `keeps`: it is kept for the next reply, if the whole of this one has been received.
        """
        try:
            if exchange.remaining <= DISCARD:
                with trio.move_on_after(DISCARD_TIME):
                    while not exchange.is_whole:
                        exchange.feed(await connection.recv(CHUNK))
        except (IncompleteReplyError, OSError, trio.ClosedResourceError, ParentError):
            pass  # the rest of the blob is not needed
        finally:
            self.release(exchange, connection, keeps=keeps)

    def release(self, exchange: Exchange, connection: SocketType, *, keeps: bool) -> None:
        """Do the same where nothing is left to be received; only for `Blob`."""
        if not (keeps and exchange.is_whole):
            self._release(connection, exchange)

    async def _take(self, target: str) -> SocketType:
        holder = current_task()
        while len(self._pool):
            connection = self._pool.take(holder, target)
            if connection is not None:
                return connection
            await self._waiting.park()
        raise await self._cut(Exchange(target))

    def _release(self, connection: SocketType, exchange: Exchange) -> None:
        if exchange.is_whole and exchange.is_reusable:
            self._pool.release(connection)
            self._waiting.unpark_all()
        else:
            self.discard(connection)

    @contextmanager
    def _discarding_on_error(self, connection: SocketType, exchange: Exchange) -> Iterator[None]:
        """Discard the connection if the block fails, but release it after an error reply."""
        try:
            yield
        except RefusedError:
            self._release(connection, exchange)
            raise
        except BaseException:
            self.discard(connection)
            raise

    def discard(self, connection: SocketType) -> None:
        """Close a connection that cannot be used any more."""
        self._pool.discard(connection)
        connection.close()
        self._waiting.unpark_all()

    async def _cut(self, exchange: Exchange) -> HungUpError:
        """Return the error for a reply that is missing or incomplete."""
        target = exchange.target
        if self._closed:
            return HungUpError(target, "the child has been closed", None, self.ending)
        with trio.move_on_after(MOMENT if len(self._pool) else GRACE):
            await self._process.wait()
        reason = failures.reason_for(target, self.diagnostics)
        if exchange.head is None:
            return HungUpError(target, "no reply", reason, self.ending)
        return ShortBodyError(target, exchange.counts, reason, self.ending)


class Blob(trio.abc.ReceiveStream):
    """A blob as a stream to receive from.

    The content is verified when the end is reached, not before: for a blob that is wrong or cut
    off, `ShortBodyError` is raised in place of the end, each time. `size` is in bytes.
    """

    def __init__(
        self, child: Child, exchange: Exchange, connection: SocketType, *, keeps: bool = False
    ) -> None:
        self.size = exchange.remaining
        self.digest = exchange.blob_digest()
        self._child = child
        self._exchange = exchange
        self._keeps = keeps
        self._connection: SocketType | None = connection
        self._failure: BaseException | None = None
        self._closed = False
        self._release_if_read()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Receive at most `max_bytes`; no bytes mean the verified end. Raises `ParentError`."""
        buffer = bytearray(16 * CHUNK if max_bytes is None else max_bytes)
        return bytes(memoryview(buffer)[: await self.readinto(buffer)])

    async def readinto(self, buffer: bytearray | memoryview) -> int:
        """Receive into a buffer; 0 bytes mean the verified end. Raises `ParentError`."""
        if self._closed:
            raise trio.ClosedResourceError
        if self._failure is not None:
            raise self._failure
        view = memoryview(buffer).cast("B")
        if not view or self._connection is None or self._exchange.has_pending:
            await trio.lowlevel.checkpoint()  # before any bytes are taken: it may be cancelled
            count = self._exchange.take_into(view)
        else:
            try:
                count = await self._child.receive_into(view, self._exchange, self._connection)
            except trio.Cancelled:
                raise  # nothing was received
            except BaseException as error:  # after an interrupt, the received number is unknown
                self._failure, connection, self._connection = error, self._connection, None
                self._child.discard(connection)
                raise
        self._release_if_read()
        return count

    async def aclose(self) -> None:
        """Release the socket: for other requests, if at most 1 MiB of the blob is missing.

        Otherwise the socket is closed, and the child has one less.
        """
        self._closed = True
        if self._connection is not None:
            connection, self._connection = self._connection, None
            await self._child.finish(self._exchange, connection, keeps=self._keeps)
        await trio.lowlevel.checkpoint()

    def _release_if_read(self) -> None:
        """Release the socket as soon as the whole body has been received."""
        if self._connection is not None and self._exchange.is_whole:
            connection, self._connection = self._connection, None
            self._child.release(self._exchange, connection, keeps=self._keeps)
