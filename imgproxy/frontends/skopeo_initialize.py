"""The beginning of skopeo's protocol: imgproxy-skopeo(7), "Initialize".

It is answered before the event loop and all that needs it are imported: a client waits for it
before it says which image it wants.
"""

from __future__ import annotations

import select

from imgproxy.errors import BadRequestError, Failure
from imgproxy.frontends import skopeo_messages as messages
from imgproxy.frontends.skopeo_messages import Reply

TYPE_CHECKING = False  # `typing` would take a tenth of the time until Initialize is answered
if TYPE_CHECKING:
    from collections.abc import Callable

    from imgproxy.server.packet_socket import PacketSocket

# In seconds: how soon a client that has its answer asks for an image.
_MOMENT = 0.01


def initialize(packets: PacketSocket, contradiction: str, masked: Callable[[str], str]) -> bool:
    """Answer requests until Initialize succeeds; return False if the conversation ends before.

    `contradiction` is what Initialize fails with, however often it is called, empty where the
    options do not contradict each other. `masked` returns a text without secrets.
    """
    try:
        while True:
            try:
                packet = _receive(packets)
                if not packet:
                    return False
                request = messages.parse(packet)
                if request.method == "Shutdown":
                    return False
                _check(request, contradiction)
            except Failure as failure:
                trouble = messages.trouble(failure, masked(failure.message))
                _send(packets, messages.encode(Reply(trouble=trouble)))
            else:
                _send(packets, messages.encode(Reply(messages.VERSION)))
                return True
    except OSError:  # the client is gone
        return False


def next_image(packets: PacketSocket) -> str:
    """Return the image that the next request opens, empty where that is not known yet.

    The request stays where it is.
    """
    try:
        request = messages.parse(packets.peek(_MOMENT))
    except (Failure, OSError):
        return ""
    is_opening = request.method in {"OpenImage", "OpenImageOptional"} and request.arguments
    name = request.arguments[0] if is_opening else ""
    return name if isinstance(name, str) else ""


def _check(request: messages.Request, contradiction: str) -> None:
    """Raise `BadRequestError` for anything but a call of Initialize that succeeds."""
    messages.check_method(request)
    if request.method not in {"FinishPipe", "Initialize"}:
        raise BadRequestError("client error: must invoke Initialize")
    messages.check_arguments(request)
    if request.method == "FinishPipe":
        raise messages.no_pipe(messages.whole_number(request.arguments[0]))
    if contradiction:
        raise BadRequestError(contradiction)


def _receive(packets: PacketSocket) -> bytes:
    while True:
        try:
            return packets.receive()
        except BlockingIOError:
            packets.wait(select.POLLIN)


def _send(packets: PacketSocket, packet: bytes) -> None:
    while True:
        try:
            return packets.send(packet)
        except BlockingIOError:
            packets.wait(select.POLLOUT)
