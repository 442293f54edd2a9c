"""The front-end that takes the place of `skopeo experimental-image-proxy`: imgproxy-skopeo(7).

Requests are answered strictly in their order. What they ask for arrives in pipes, each of which a
task of its own fills, beside the requests that follow; FinishPipe waits for that task. Everything
ends at once when the client is gone.
"""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Any, NamedTuple

import trio

from imgproxy.errors import (
    AbsentError,
    BadRequestError,
    DefectError,
    Failure,
    InvalidError,
    clean,
    closing_on_error,
    shortage,
)
from imgproxy.frontends import skopeo_messages as messages
from imgproxy.frontends.oci_manifest import oci_manifest
from imgproxy.frontends.skopeo_messages import Reply
from imgproxy.frontends.skopeo_transfer import Transfer
from imgproxy.images.next_layers import NextLayers
from imgproxy.server.pipes import Pipe
from imgproxy.server.shutdown import HangUp
from imgproxy.specs.oci import convert
from imgproxy.specs.oci import digest as digests
from imgproxy.specs.oci import media_type as types
from imgproxy.specs.oci.manifest import Manifest

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from typing import TypeAlias

    from imgproxy.frontends.skopeo_messages import Trouble
    from imgproxy.host.diagnostics import Diagnostics
    from imgproxy.images.image import Image
    from imgproxy.images.opened_image import OpenedImage
    from imgproxy.server.handler import Body
    from imgproxy.server.packet_socket import PacketSocket
    from imgproxy.specs.oci.manifest import Descriptor

    Arguments: TypeAlias = list[Any]

# Of OpenImage: clients try again themselves, and are not answered anything else meanwhile. In
# seconds, for connections that cannot be made.
OPENING_RETRIES = 1
CONNECTING = 5.0

# Layers that a client asks for in a row before the next is opened.
IN_A_ROW = 2

# In bytes. A larger blob gets a larger pipe, if it is one of a few: pipe(7) limits all pipes.
LARGE = 1024 * 1024
MAX_ENLARGED = 4


class _OpenImage:
    """An image that the client has opened.

    Its sources are closed with the last of its users: the client itself, and each transfer.
    """

    def __init__(self, image: Image, opened: OpenedImage, nursery: trio.Nursery) -> None:
        self._image = image
        self.opened = opened
        self._users = 1
        layers = self.manifest.layers
        self._layers = NextLayers(layers, self._blob_of_user, opened.held_ahead, nursery, IN_A_ROW)

    def share(self) -> None:
        """Add a user."""
        self._users += 1

    def close(self) -> None:
        """Remove a user."""
        self._users -= 1
        if self._users == 0:
            self._image.close()

    @property
    def manifest(self) -> Manifest:
        """The chosen manifest."""
        parsed = self.opened.manifest.parsed
        assert isinstance(parsed, Manifest)  # noqa: S101  (the walk made sure)
        return parsed

    async def blob(self, descriptor: Descriptor) -> Body:
        """Return a blob whose reply can be begun. Raises `Failure`."""
        with self._image.limited():
            return await self.opened.open_blob(descriptor)

    async def _blob_of_user(self, descriptor: Descriptor) -> Body:
        self.share()
        try:
            return await self.blob(descriptor)
        finally:
            self.close()

    async def layer(self, descriptor: Descriptor) -> Body:
        """Do the same for what is probably a layer, and look ahead to the next."""
        return await self._layers.blob(descriptor)

    def end(self) -> None:
        """Remove the client, and what was opened for it ahead."""
        self._layers.close()
        self.close()

    async def config(self) -> bytes:
        """Return the config of an image. Raises `Failure`, for an artifact too."""
        config = self.manifest.config
        if config.media_type not in types.CONFIGS:
            kind = clean(self.manifest.artifact_type or config.media_type)
            raise BadRequestError(
                f'unsupported image-specific operation on artifact with type "{kind}"'
            )
        body = await self.blob(self.opened.find_config())
        content = bytearray()
        try:
            while piece := await body.read():
                content += piece
        finally:
            body.close()
        return bytes(content)


class _Answer(NamedTuple):
    """A reply, with the pipes whose read ends go with it."""

    reply: Reply
    pipes: Sequence[Pipe] = ()


class SkopeoProxy:
    """A conversation after Initialize.

    `new_image` returns the image of a name, opened anew whatever else is open; close it once.
    """

    def __init__(
        self, packets: PacketSocket, new_image: Callable[[str], Image], diagnostics: Diagnostics
    ) -> None:
        self._packets = packets
        self._new_image = new_image
        self._diagnostics = diagnostics
        self._images: dict[int, _OpenImage] = {}
        self._transfers: dict[int, Transfer] = {}
        self._image_ids = count(1)
        self._pipe_ids = count(1)
        self._enlarged = 0
        self._nursery: trio.Nursery
        self._methods: dict[str, Callable[[Arguments], Awaitable[_Answer]]] = {
            "Initialize": self._initialize,
            "OpenImage": self._open_image,
            "OpenImageOptional": self._open_image_optional,
            "CloseImage": self._close_image,
            "GetManifest": self._get_manifest,
            "GetFullConfig": self._get_full_config,
            "GetConfig": self._get_config,
            "GetLayerInfo": self._get_layer_info,
            "GetLayerInfoPiped": self._get_layer_info_piped,
            "GetBlob": self._get_blob,
            "GetRawBlob": self._get_raw_blob,
            "FinishPipe": self._finish_pipe,
        }

    async def run(self) -> None:
        """Converse until Shutdown, or until the client is gone; transfers are cut off then."""
        hang_up = HangUp()
        async with trio.open_nursery() as self._nursery:
            self._nursery.start_soon(hang_up.watch, self._packets)
            with hang_up.interrupts(), suppress(OSError):  # from a client that is gone
                while await self._exchange():
                    pass
            for image in self._images.values():
                image.end()
            self._nursery.cancel_scope.cancel()

    async def _exchange(self) -> bool:
        """Answer the next request; return whether there may be another. Raises `OSError`."""
        name, answer = "a request", _Answer(Reply())
        try:
            packet = await self._receive()
        except BadRequestError as error:  # it did not fit
            await self._send(self._failed(name, error), ())
            return True
        if not packet:
            return False
        try:
            request = messages.parse(packet)
            if request.method == "Shutdown":
                return False
            messages.check_method(request)
            name = request.method
            messages.check_arguments(request)
            answer = await self._methods[name](request.arguments)
            reply = messages.encode(answer.reply)
        except Exception as error:  # noqa: BLE001  (a defect is reported as one)
            reply = self._failed(name, error)
        else:
            self._diagnostics.debug(f"{name}: answered")
        await self._send(reply, answer.pipes)
        return True

    async def _receive(self) -> bytes:
        """Return the next packet, nothing at the end. Raises `BadRequestError` and `OSError`."""
        while True:
            await trio.lowlevel.checkpoint()
            try:
                return self._packets.receive()
            except BlockingIOError:
                await trio.lowlevel.wait_readable(self._packets.fileno())

    async def _send(self, packet: bytes, pipes: Sequence[Pipe]) -> None:
        """Send a reply; only the client can read from its pipes then. Raises `OSError`."""
        descriptors = [pipe.read_fd for pipe in pipes]
        try:
            while True:
                try:
                    return self._packets.send(packet, descriptors)
                except BlockingIOError:
                    await trio.lowlevel.wait_writable(self._packets.fileno())
        finally:
            for pipe in pipes:
                pipe.close_read_end()

    def _failed(self, name: str, error: Exception) -> bytes:
        """Return the reply to a request that an exception ended."""
        return messages.encode(Reply(trouble=self._trouble(name, error)))

    def _trouble(self, name: str, error: Exception) -> Trouble:
        """Report an exception, and return what the client is told of it."""
        failure = error if isinstance(error, Failure) else shortage("answering it", error)
        if failure is None:
            self._diagnostics.defect(name, error)
            failure = DefectError("a defect of this program; --debug shows where, please report it")
        else:
            self._diagnostics.failure(f"{name}: {failure.message}")
        return messages.trouble(failure, self._diagnostics.masked(failure.message))

    # --- images ---------------------------------------------------------------------------------

    async def _initialize(self, _: Arguments) -> _Answer:
        raise BadRequestError("already initialized")

    async def _open_image(self, arguments: Arguments) -> _Answer:
        image = self._new_image(messages.text(arguments[0], "imageref"))
        limited = image.limited(retries=OPENING_RETRIES, connecting=CONNECTING)
        with closing_on_error(image), limited:
            opened = await image.open()
        image_id = next(self._image_ids)
        self._images[image_id] = _OpenImage(image, opened, self._nursery)
        return _Answer(Reply(image_id))

    async def _open_image_optional(self, arguments: Arguments) -> _Answer:
        try:
            return await self._open_image(arguments)
        except AbsentError:
            return _Answer(Reply(0))

    async def _close_image(self, arguments: Arguments) -> _Answer:
        self._image(arguments).end()
        del self._images[int(arguments[0])]
        return _Answer(Reply())

    def _image(self, arguments: Arguments) -> _OpenImage:
        image_id = messages.whole_number(arguments[0])
        if image_id == 0:
            raise BadRequestError("invalid imageid value of zero")
        if image_id not in self._images:
            raise BadRequestError(f"no image {image_id}")
        return self._images[image_id]

    # --- documents ------------------------------------------------------------------------------

    async def _get_manifest(self, arguments: Arguments) -> _Answer:
        original = self._image(arguments).opened.manifest
        return self._document(oci_manifest(original).raw, str(original.digest))

    async def _get_full_config(self, arguments: Arguments) -> _Answer:
        return self._document(await self._image(arguments).config())

    async def _get_config(self, arguments: Arguments) -> _Answer:
        return self._document(messages.inner_config(await self._image(arguments).config()))

    async def _get_layer_info(self, arguments: Arguments) -> _Answer:
        return _Answer(Reply(self._layers(arguments)))

    async def _get_layer_info_piped(self, arguments: Arguments) -> _Answer:
        return self._document(messages.encode_json(self._layers(arguments)))

    def _layers(self, arguments: Arguments) -> list[dict[str, str | int]]:
        """Return the layers, under the types that GetManifest gives them."""
        manifest = self._image(arguments).manifest
        is_docker = manifest.media_type == types.DOCKER_MANIFEST
        return [
            {
                "digest": str(each.digest),
                "size": each.size,
                "media_type": convert.media_type(each.media_type) if is_docker else each.media_type,
            }
            for each in manifest.layers
        ]

    def _document(self, content: bytes, value: str | None = None) -> _Answer:
        transfer = Transfer(Pipe())
        rest = transfer.pipe.fill(memoryview(content))
        if rest:
            self._nursery.start_soon(transfer.run, rest, None, partial(self._trouble, "a document"))
        else:
            transfer.end()
        return self._to_finish(transfer, value)

    def _to_finish(self, transfer: Transfer, value: str | int | None) -> _Answer:
        """Return the answer with a pipe that the client finishes."""
        pipe_id = next(self._pipe_ids)
        self._transfers[pipe_id] = transfer
        return _Answer(Reply(value, pipe_id), [transfer.pipe])

    async def _finish_pipe(self, arguments: Arguments) -> _Answer:
        pipe_id = messages.whole_number(arguments[0])
        transfer = self._transfers.pop(pipe_id, None)
        if transfer is None:
            raise messages.no_pipe(pipe_id)
        return _Answer(Reply(trouble=await transfer.finish()))

    # --- blobs ----------------------------------------------------------------------------------

    async def _get_blob(self, arguments: Arguments) -> _Answer:
        image, descriptor = self._find_blob(arguments)
        size = messages.whole_number(arguments[2])
        if size != descriptor.size:
            raise InvalidError(f"expected {size} bytes in blob, got {descriptor.size}")
        return self._to_finish(await self._transfer(image, descriptor), descriptor.size)

    async def _get_raw_blob(self, arguments: Arguments) -> _Answer:
        image, descriptor = self._find_blob(arguments)
        errors = Pipe()
        with closing_on_error(errors):
            transfer = await self._transfer(image, descriptor, errors)
        return _Answer(Reply(descriptor.size), [transfer.pipe, errors])

    def _find_blob(self, arguments: Arguments) -> tuple[_OpenImage, Descriptor]:
        image = self._image(arguments)
        text = messages.text(arguments[1], "blobid")
        try:
            return image, image.opened.find_blob(digests.parse(text))
        except ValueError as error:
            raise BadRequestError(str(error)) from None

    async def _transfer(
        self, image: _OpenImage, descriptor: Descriptor, errors: Pipe | None = None
    ) -> Transfer:
        """Return the transfer of a blob, which has begun. Raises `Failure`."""
        body = await image.layer(descriptor)
        with closing_on_error(body):
            transfer = Transfer(Pipe(), errors)
            if descriptor.size > LARGE and self._enlarged < MAX_ENLARGED:
                transfer.pipe.enlarge()
            first = memoryview(await body.read())
            rest = transfer.pipe.fill(first)
        if not rest and len(first) == descriptor.size:
            body.close()
            transfer.end()
        else:
            image.share()
            self._enlarged += transfer.pipe.is_large
            self._nursery.start_soon(self._fill, transfer, rest, body, image)
        return transfer

    async def _fill(
        self, transfer: Transfer, rest: memoryview, body: Body, image: _OpenImage
    ) -> None:
        try:
            await transfer.run(rest, body, partial(self._trouble, "a blob"))
        finally:
            body.close()
            image.close()
            self._enlarged -= transfer.pipe.is_large
