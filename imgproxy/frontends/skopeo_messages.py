"""The messages of skopeo's protocol as values: imgproxy-skopeo(7).

Each message is one packet, one JSON object. Nothing here does I/O.
"""

from __future__ import annotations

import json
import re

from imgproxy.errors import BadRequestError, InvalidError, clean
from imgproxy.parsing import strict_json

TYPE_CHECKING = False  # `typing` would take a tenth of the time until Initialize is answered
if TYPE_CHECKING:
    from typing import Any, NoReturn

    from imgproxy.errors import Failure

# What a client is told, and decides by what to ask for. The Rust client takes 0.2.9 for a protocol
# that no released skopeo has.
VERSION = "0.2.8"

# In bytes, of requests and replies: clients and skopeo receive into buffers of this size.
MAX_PACKET = 32 * 1024

# In characters, of which each may take four bytes: a packet has room for these words.
_MAX_WORDS = 6 * 1024

# Numbers are doubles: what they cannot tell apart is refused.
_MAX_NUMBER = 2**53 - 1

_SURROGATE = re.compile("[\ud800-\udfff]")

# What types are called in the errors of a server written in Go.
_TYPES: dict[type, str] = {
    bool: "bool",
    int: "float64",
    float: "float64",
    str: "string",
    list: "[]interface {}",
    dict: "map[string]interface {}",
    type(None): "<nil>",
}


# The methods: how many arguments each has, and what is said of another number of `{}`.
_ONE = 1, "invalid request, expecting one argument"
_IMAGE_ID = 1, "invalid request, expecting: [imgid]"
_LAYERS = 1, "found {} args, expecting (imgid)"
METHODS = {
    "Initialize": (0, "invalid request, expecting zero arguments"),
    "OpenImage": _ONE,
    "OpenImageOptional": _ONE,
    "CloseImage": _ONE,
    "GetManifest": _ONE,
    "GetConfig": _IMAGE_ID,
    "GetFullConfig": _IMAGE_ID,
    "GetLayerInfo": _LAYERS,
    "GetLayerInfoPiped": _LAYERS,
    "GetBlob": (3, "found {} args, expecting (imgid, digest, size)"),
    "GetRawBlob": (2, "found {} args, expecting (imgid, digest)"),
    "FinishPipe": (1, "found {} args, expecting (pipeid)"),
    "Shutdown": (0, ""),
}

# The methods that take more arguments than they use.
_LENIENT = frozenset({"FinishPipe", "Shutdown"})


class Request:
    """A call of a method."""

    def __init__(self, method: str, arguments: list[Any]) -> None:
        self.method = method
        self.arguments = arguments


class Trouble:
    """Why a request, or a pipe, failed: `code` is for a program, `words` are for a person."""

    def __init__(self, code: str, words: str) -> None:
        self.code = code
        self.words = words

    def document(self) -> bytes:
        """Return what is written into the second pipe of GetRawBlob."""
        return encode_json({"code": self.code, "message": self.words})


class Reply:
    """The reply to a request; a `pipe_id` other than 0 is that of a pipe to finish."""

    def __init__(
        self,
        value: Any = None,  # noqa: ANN401  (JSON)
        pipe_id: int = 0,
        trouble: Trouble | None = None,
    ) -> None:
        self.value = value
        self.pipe_id = pipe_id
        self.trouble = trouble


# The end of the words is compared by ostree-ext, in lower case.
BROKEN_PIPE = Trouble("EPIPE", "write: broken pipe")


def parse(packet: bytes) -> Request:
    """Return the request in a packet. Raises `BadRequestError`.

    Members without a meaning are ignored, and text that is not UTF-8 is replaced. The Go client
    sends null where there are no arguments.
    """
    try:
        document = strict_json.loads_tolerant(packet)
    except strict_json.JsonError as error:
        _refuse(str(error))
    if not isinstance(document, dict | None):
        _refuse(f"expected an object, not {_type(document)}")
    method, arguments = ((document or {}).get(key) for key in ("method", "args"))
    if not isinstance(method, str | None):
        _refuse(f"method: expected string, not {_type(method)}")
    if not isinstance(arguments, list | None):
        _refuse(f"args: expected an array, not {_type(arguments)}")
    return Request(method or "", arguments or [])


def _refuse(reason: str) -> NoReturn:
    raise BadRequestError(f"invalid request: {reason}")


def check_method(request: Request) -> None:
    """Raise `BadRequestError` where there is no such method."""
    if request.method not in METHODS:
        raise BadRequestError(f"unknown method: {clean(request.method)}")


def check_arguments(request: Request) -> None:
    """Raise `BadRequestError` where a method that exists does not have as many arguments."""
    wanted, words = METHODS[request.method]
    found = len(request.arguments)
    if found < wanted or (found > wanted and request.method not in _LENIENT):
        raise BadRequestError(words.format(found))


def no_pipe(pipe_id: int) -> BadRequestError:
    """Return the failure to finish a pipe that there is not, or is no more."""
    return BadRequestError(f"finishpipe: no active pipe {pipe_id}")


def text(value: Any, name: str) -> str:  # noqa: ANN401  (JSON)
    """Return an argument that must be text. Raises `BadRequestError`.

    Lone surrogates, which are no text, are replaced, as bytes are that are no UTF-8.
    """
    if not isinstance(value, str):
        raise BadRequestError(f"expecting string {name}, not {_type(value)}")
    return _SURROGATE.sub("\ufffd", value)


def whole_number(value: Any) -> int:  # noqa: ANN401  (JSON)
    """Return an argument that must be a whole number. Raises `BadRequestError`."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise BadRequestError(f"expecting numeric, not {_type(value)}")
    if abs(value) > _MAX_NUMBER:
        raise BadRequestError(f"out of range integer for numeric {clean(str(value), 32)}")
    if value != int(value):
        raise BadRequestError(f"expecting a whole number, not {value}")
    return int(value)


def _type(value: Any) -> str:  # noqa: ANN401  (JSON)
    return _TYPES.get(type(value), "a member that occurs twice")


def trouble(failure: Failure, words: str) -> Trouble:
    """Return a failure as the client is told of it; `words` are its message without secrets."""
    return Trouble("retryable" if failure.retryable else "other", clean(words, _MAX_WORDS))


def encode(reply: Reply) -> bytes:
    """Return a reply as a packet. Raises `BadRequestError` for one that does not fit.

    All members are there always, and all numbers are integers: the Rust client insists.
    """
    trouble = reply.trouble or Trouble("", "")
    packet = encode_json(
        {
            "success": reply.trouble is None,
            "value": reply.value,
            "pipeid": reply.pipe_id,
            "error_code": trouble.code,
            "error": trouble.words,
        }
    )
    if len(packet) > MAX_PACKET:
        raise BadRequestError(
            f"the reply has {len(packet)} bytes, and clients receive {MAX_PACKET};"
            " GetLayerInfoPiped has no such limit"
        )
    return packet


def inner_config(config: bytes) -> bytes:
    """Return the member `config` of an image's config, an empty object where there is none.

    Raises `InvalidError`.
    """
    try:
        inner = _object(strict_json.loads_tolerant(config)).get("config")
        return encode_json({} if inner is None else _object(inner))
    except (TypeError, ValueError) as error:  # no object, or a key in it occurs twice
        raise InvalidError(f"parsing the config: {error}") from None


def _object(value: Any) -> dict[str, Any]:  # noqa: ANN401  (JSON)
    if not isinstance(value, dict):
        raise TypeError(f"expected an object, not {_type(value)}")
    return value


def encode_json(value: Any) -> bytes:  # noqa: ANN401  (JSON)
    """Return a value as compact JSON."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
