"""The parent's side for programs that run on trio."""

from __future__ import annotations

import subprocess
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import trio
from trio.lowlevel import ParkingLot, current_task, open_process

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
    import socket
    from collections.abc import AsyncIterator, Mapping, Sequence
    from typing import NoReturn

    from trio.socket import SocketType

    from imgproxy.specs.oci.digest import Digest
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
    """Run imgproxy on an image for the length of the block, as `imgproxy.parent.start` does.

    A block that is cancelled ends the child as well, and waits for that, which takes a second at
    most where the child is sound.
    """
    with planned(image, options, sockets, command, pass_fds) as plan:
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
    """An imgproxy that runs. Any task may ask; each socket answers one at a time.

    A request waits while all sockets carry blobs that others have open.
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

    async def manifest(self) -> Manifest:
        """Give the chosen manifest, as OCI. Raises `ParentError`, as everything here does."""
        return (await self._whole(MANIFEST)).manifest()

    async def config(self) -> Document:
        """Give the image's configuration."""
        return (await self._whole(CONFIG)).document()

    async def document(self, what: Descriptor | Digest | str) -> Document:
        """Give a manifest or an index by its digest, in its original bytes."""
        return (await self._whole(document_target(what))).document()

    async def blob(self, what: Descriptor | Digest | str) -> Blob:
        """Open a blob. Close it when done: it occupies a socket until its end, or until then."""
        exchange = Exchange(blob_target(what))
        return Blob(self, exchange, await self._ask(exchange))

    async def quit(self) -> Ending:
        """End the child with `POST /quit`, and give how it ended.

        Whoever still reads a blob is cut off; the end of the block does the same without a word.
        """
        await self._whole(QUIT, "POST")
        return await self.aclose()

    async def aclose(self) -> Ending:
        """End the child, by force if it must be, and give how it ended."""
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

    async def _whole(self, target: str, method: str = "GET") -> Exchange:
        """Ask, and read the whole reply."""
        exchange = Exchange(target, method)
        connection = await self._ask(exchange)
        try:
            await self._read_body(exchange, connection)
        except BaseException:
            self.lose(connection)
            raise
        self._give_back(connection, exchange)
        return exchange

    async def _ask(self, exchange: Exchange) -> SocketType:
        """Send a request and read the head of a 200; give the connection, which has the body."""
        connection = await self._take(exchange.target)
        try:
            await self._send(exchange, connection)
            while exchange.head is None:
                await self._feed(exchange, connection)
            if exchange.head.status != OK:
                await self._refuse(exchange, connection)
        except RefusedError:
            self._give_back(connection, exchange)
            raise
        except BaseException:
            self.lose(connection)
            raise
        return connection

    async def _send(self, exchange: Exchange, connection: SocketType) -> None:
        data = memoryview(exchange.request)
        try:
            with trio.move_on_after(self._timeout):
                while data:
                    data = data[await connection.send(data) :]
                return
        except (OSError, trio.ClosedResourceError):
            self.lose(connection)
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
        except CutOff:
            self.lose(connection)
            raise await self._cut(exchange) from None

    async def receive_into(
        self, buffer: memoryview, exchange: Exchange, connection: SocketType
    ) -> int:
        """Read some of a body; for `Blob` alone. Raises `ParentError`."""
        count = await self._received(buffer[: exchange.remaining], exchange, connection)
        try:
            exchange.passed(count)
        except CutOff:
            self.lose(connection)
            raise await self._cut(exchange) from None
        return count

    async def _received(
        self, buffer: memoryview, exchange: Exchange, connection: SocketType
    ) -> int:
        """Receive something; nothing is the end."""
        with trio.move_on_after(self._timeout):
            try:
                return await connection.recv_into(buffer)
            except (OSError, trio.ClosedResourceError):
                return 0
        self.lose(connection)
        raise StalledError(exchange.target, self._timeout)

    async def finish(self, exchange: Exchange, connection: SocketType) -> None:
        """Take back the connection of a blob that is closed; for `Blob` alone."""
        try:
            if exchange.remaining <= DISCARD:
                with trio.move_on_after(DISCARD_TIME):
                    while not exchange.is_whole:
                        exchange.feed(await connection.recv(CHUNK))
        except (CutOff, OSError, trio.ClosedResourceError, ParentError):
            pass  # nobody wants it any more
        finally:
            self._give_back(connection, exchange)

    def release(self, exchange: Exchange, connection: SocketType) -> None:
        """Take back the connection of a blob that has come to its end; for `Blob` alone."""
        self._give_back(connection, exchange)

    async def _take(self, target: str) -> SocketType:
        holder = current_task()
        while len(self._pool):
            connection = self._pool.take(holder, target)
            if connection is not None:
                return connection
            await self._waiting.park()
        raise await self._cut(Exchange(target))

    def _give_back(self, connection: SocketType, exchange: Exchange) -> None:
        if exchange.is_whole and exchange.stays:
            self._pool.give_back(connection)
            self._waiting.unpark_all()
        else:
            self.lose(connection)

    def lose(self, connection: SocketType) -> None:
        """Close a connection that cannot be used any more."""
        self._pool.lose(connection)
        connection.close()
        self._waiting.unpark_all()

    async def _cut(self, exchange: Exchange) -> HungUpError:
        """Give what is raised for a reply that does not come, or breaks off."""
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

    What is received is verified when the end is reached, and not before: of a blob that turns out
    to be wrong, or is cut off, `ShortBodyError` is raised in place of its end, and again each
    time. `size` is in bytes.
    """

    def __init__(self, child: Child, exchange: Exchange, connection: SocketType) -> None:
        self.size = exchange.remaining
        self.digest = digests.parse(exchange.target.rpartition("/")[2])
        self._child = child
        self._exchange = exchange
        self._connection: SocketType | None = connection
        self._failure: BaseException | None = None
        self._closed = False
        self._release_if_read()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Receive up to so many bytes; none is the end, verified. Raises `ParentError`."""
        buffer = bytearray(16 * CHUNK if max_bytes is None else max_bytes)
        return bytes(memoryview(buffer)[: await self.readinto(buffer)])

    async def readinto(self, buffer: bytearray | memoryview) -> int:
        """Receive into a buffer; 0 is the end, verified. Raises `ParentError`."""
        if self._closed:
            raise trio.ClosedResourceError
        if self._failure is not None:
            raise self._failure
        view = memoryview(buffer).cast("B")
        if not view or self._connection is None or self._exchange.has_pending:
            await trio.lowlevel.checkpoint()  # before anything is taken: it may be cancelled
            count = self._exchange.take_into(view)
        else:
            try:
                count = await self._child.receive_into(view, self._exchange, self._connection)
            except trio.Cancelled:
                raise  # nothing was received
            except BaseException as error:  # an interrupt too: how much was received is not known
                self._failure, connection, self._connection = error, self._connection, None
                self._child.lose(connection)
                raise
        self._release_if_read()
        return count

    async def aclose(self) -> None:
        """Let the socket carry something else: at once, if little is missing of the blob.

        A socket that carries more than a MiB yet is closed, and one less is left.
        """
        self._closed = True
        if self._connection is not None:
            connection, self._connection = self._connection, None
            await self._child.finish(self._exchange, connection)
        await trio.lowlevel.checkpoint()

    def _release_if_read(self) -> None:
        """Give the socket back as soon as all has come."""
        if self._connection is not None and self._exchange.is_whole:
            connection, self._connection = self._connection, None
            self._child.release(self._exchange, connection)
