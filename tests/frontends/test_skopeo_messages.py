"""The messages of skopeo's protocol as values: imgproxy-skopeo(7)."""

from __future__ import annotations

import json
from typing import Any

import pytest

from imgproxy.errors import (
    BadRequestError,
    Failure,
    InvalidError,
    NotFoundError,
    UnavailableError,
    UnreachableError,
)
from imgproxy.frontends import skopeo_messages as messages
from imgproxy.frontends.skopeo_messages import BROKEN_PIPE, MAX_PACKET, Reply, Request, Trouble


def words(function: Any, *arguments: Any) -> str:  # noqa: ANN401  (any of the module's)
    with pytest.raises(BadRequestError) as raised:
        function(*arguments)
    return raised.value.message


# --- requests -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("packet", "request_"),
    [
        (b'{"method":"OpenImage","args":["x"]}', ("OpenImage", ["x"])),
        (b'{"args":[1,2.5,true,null,[],{}],"method":"m"}', ("m", [1, 2.5, True, None, [], {}])),
        (b'{"method":"m","args":null}', ("m", [])),
        (b'{"method":"m"}', ("m", [])),
        (b' {"method" : "m"}\n', ("m", [])),
        (b'{"method":"m","x":1,"x":2,"y":{}}', ("m", [])),
        (b'{"method":"\xff"}', ("\ufffd", [])),
        (rb'{"method":"\ud800"}', ("\ud800", [])),
        (b'{"METHOD":"m","Args":[1]}', ("", [])),
        (b'{"method":null,"args":[1]}', ("", [1])),
        (b"{}", ("", [])),
        (b"null", ("", [])),
    ],
)
def test_requests_are_parsed(packet: bytes, request_: tuple[str, list[Any]]) -> None:
    parsed = messages.parse(packet)
    assert (parsed.method, parsed.arguments) == request_


@pytest.mark.parametrize(
    ("packet", "reason"),
    [
        (b"[]", "expected an object, not []interface {}"),
        (b"1", "expected an object, not float64"),
        (b"1.5", "expected an object, not float64"),
        (b"true", "expected an object, not bool"),
        (b'"x"', "expected an object, not string"),
        (b'{"method":1}', "method: expected string, not float64"),
        (b'{"method":["m"]}', "method: expected string, not []interface {}"),
        (b'{"method":{}}', "method: expected string, not map[string]interface {}"),
        (b'{"method":"a","method":"b"}', "method: expected string, not a member that occurs twice"),
        (b'{"args":{}}', "args: expected an array, not map[string]interface {}"),
        (b'{"args":"x"}', "args: expected an array, not string"),
        (b'{"args":[NaN]}', "NaN is not JSON"),
        (b'{"args":[1e400]}', "a number is out of range"),
        (b"[" * 100 + b"]" * 100, "nested deeper than 64"),
        (b"[" * MAX_PACKET, "nested deeper than 64"),
    ],
)
def test_what_is_no_request_is_refused(packet: bytes, reason: str) -> None:
    assert words(messages.parse, packet) == f"invalid request: {reason}"


@pytest.mark.parametrize("packet", [b"", b"x", b"{", b"{}{}", b"{} x", b"\0", b"\xef\xbb\xbf{}"])
def test_what_is_no_json_is_refused(packet: bytes) -> None:
    assert words(messages.parse, packet).startswith("invalid request: not JSON: ")


def test_a_packet_is_refused_at_every_byte_where_it_is_cut() -> None:
    packet = json.dumps({"method": "GetBlob", "args": [1, "sha256:\u00fc", 2.5, None]}).encode()
    assert messages.parse(packet).method == "GetBlob"
    for size in range(len(packet)):
        assert words(messages.parse, packet[:size]).startswith("invalid request: ")


COUNTS = {
    "Initialize": (0, "invalid request, expecting zero arguments"),
    "OpenImage": (1, "invalid request, expecting one argument"),
    "OpenImageOptional": (1, "invalid request, expecting one argument"),
    "CloseImage": (1, "invalid request, expecting one argument"),
    "GetManifest": (1, "invalid request, expecting one argument"),
    "GetConfig": (1, "invalid request, expecting: [imgid]"),
    "GetFullConfig": (1, "invalid request, expecting: [imgid]"),
    "GetLayerInfo": (1, "found {} args, expecting (imgid)"),
    "GetLayerInfoPiped": (1, "found {} args, expecting (imgid)"),
    "GetBlob": (3, "found {} args, expecting (imgid, digest, size)"),
    "GetRawBlob": (2, "found {} args, expecting (imgid, digest)"),
}


@pytest.mark.parametrize("method", COUNTS)
def test_methods_have_so_many_arguments(method: str) -> None:
    wanted, said = COUNTS[method]
    messages.check_method(Request(method, []))
    for count in range(5):
        request = Request(method, ["x"] * count)
        if count == wanted:
            messages.check_arguments(request)
        else:
            assert words(messages.check_arguments, request) == said.format(count)


def test_some_methods_take_more_arguments() -> None:
    for count in range(4):
        messages.check_arguments(Request("Shutdown", ["x"] * count))
        if count:
            messages.check_arguments(Request("FinishPipe", [1] * count))
    said = words(messages.check_arguments, Request("FinishPipe", []))
    assert said == "found 0 args, expecting (pipeid)"


@pytest.mark.parametrize("method", ["Nope", "initialize", "OPENIMAGE", "OpenVarlinkSocket", "m\0n"])
def test_unknown_methods_are_named(method: str) -> None:
    shown = method.replace("\0", " ")
    assert words(messages.check_method, Request(method, [])) == f"unknown method: {shown}"


def test_long_names_of_methods_are_cut() -> None:
    assert len(words(messages.check_method, Request("x" * 30_000, []))) < 300


# --- arguments ----------------------------------------------------------------------------------

TYPES: list[tuple[object, str]] = [
    (None, "<nil>"),
    (True, "bool"),
    (False, "bool"),
    ([], "[]interface {}"),
    ({}, "map[string]interface {}"),
]


def test_text_is_text() -> None:
    assert messages.text("x", "imageref") == "x"
    assert messages.text("", "imageref") == ""
    assert messages.text("a\ud800b\udfffc\U0001f4a9", "imageref") == "a\ufffdb\ufffdc\U0001f4a9"


@pytest.mark.parametrize(("value", "kind"), [*TYPES, (1, "float64"), (1.5, "float64")])
def test_text_is_nothing_else(value: object, kind: str) -> None:
    assert words(messages.text, value, "imageref") == f"expecting string imageref, not {kind}"


@pytest.mark.parametrize(
    ("value", "number"),
    [(0, 0), (1, 1), (-1, -1), (2.0, 2), (-0.0, 0), (2**53 - 1, 2**53 - 1), (1 - 2**53,) * 2],
)
def test_numbers_are_whole(value: float, number: int) -> None:
    found = messages.whole_number(value)
    assert found == number
    assert type(found) is int


@pytest.mark.parametrize(("value", "kind"), [*TYPES, ("1", "string")])
def test_numbers_are_nothing_else(value: object, kind: str) -> None:
    assert words(messages.whole_number, value) == f"expecting numeric, not {kind}"


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (1.5, "expecting a whole number, not 1.5"),
        (-0.25, "expecting a whole number, not -0.25"),
        (2**53, "out of range integer for numeric 9007199254740992"),
        (-(2**53), "out of range integer for numeric -9007199254740992"),
        (1e300, "out of range integer for numeric 1e+300"),
        (10**99, f"out of range integer for numeric 1{'0' * 31}…"),
    ],
)
def test_numbers_have_a_range(value: float, said: str) -> None:
    assert words(messages.whole_number, value) == said


def test_pipes_that_there_are_not_are_named() -> None:
    assert messages.no_pipe(7).message == "finishpipe: no active pipe 7"


# --- replies ------------------------------------------------------------------------------------


def test_replies_have_all_members_in_their_order() -> None:
    assert messages.encode(Reply()) == (
        b'{"success":true,"value":null,"pipeid":0,"error_code":"","error":""}'
    )
    assert messages.encode(Reply("0.2.8", 7)) == (
        b'{"success":true,"value":"0.2.8","pipeid":7,"error_code":"","error":""}'
    )
    assert messages.encode(Reply(trouble=Trouble("other", "a <b> ü"))) == (
        '{"success":false,"value":null,"pipeid":0,"error_code":"other","error":"a <b> ü"}'.encode()
    )


def test_the_version_is_one_that_clients_take() -> None:
    """The Rust client takes 0.2.9 for a protocol that no skopeo has."""
    assert messages.VERSION == "0.2.8"


def test_a_reply_fits_into_what_clients_receive() -> None:
    size = len(messages.encode(Reply("")))
    assert len(messages.encode(Reply("x" * (MAX_PACKET - size)))) == MAX_PACKET
    said = words(messages.encode, Reply("x" * (MAX_PACKET - size + 1)))
    assert said == (
        "the reply has 32769 bytes, and clients receive 32768; GetLayerInfoPiped has no such limit"
    )


@pytest.mark.parametrize("character", ["x", "ü", "€", "\U0001f4a9", '"', "\\"])
def test_the_longest_words_fit(character: str) -> None:
    trouble = messages.trouble(NotFoundError("x"), character * 100_000)
    assert len(messages.encode(Reply(trouble=trouble))) <= MAX_PACKET


@pytest.mark.parametrize(
    ("failure", "code"),
    [
        (NotFoundError("no"), "other"),
        (BadRequestError("no"), "other"),
        (InvalidError("no"), "other"),
        (UnavailableError("no"), "retryable"),
        (UnreachableError("no"), "retryable"),
        (UnreachableError("no", retryable=False), "other"),
    ],
)
def test_a_failure_has_a_code(failure: Failure, code: str) -> None:
    trouble = messages.trouble(failure, "a *** word")
    assert (trouble.code, trouble.words) == (code, "a *** word")


def test_words_are_one_line() -> None:
    assert messages.trouble(NotFoundError("x"), "a\n\x1b[1m\u202e\ud800b").words == "a [1m b"


def test_a_broken_pipe_is_what_clients_compare() -> None:
    assert BROKEN_PIPE.code == "EPIPE"
    assert BROKEN_PIPE.words.endswith("broken pipe")
    document = json.loads(BROKEN_PIPE.document())
    assert document == {"code": "EPIPE", "message": BROKEN_PIPE.words}
    assert list(document) == ["code", "message"]


# --- configs ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "inner"),
    [
        (b"{}", b"{}"),
        (b'{"config":null}', b"{}"),
        (b'{"config":{}}', b"{}"),
        (b'{"config":{"Env":["a=b"],"User":""}}', b'{"Env":["a=b"],"User":""}'),
        ('{"config":{"Cmd":["ü"]}}'.encode(), '{"Cmd":["ü"]}'.encode()),
        (b'{"x":1,"x":2,"config":{"a":1.0}}', b'{"a":1.0}'),
    ],
)
def test_the_inner_config_is_a_member(config: bytes, inner: bytes) -> None:
    assert messages.inner_config(config) == inner


@pytest.mark.parametrize(
    "config",
    [
        b"",
        b"x",
        b"[]",
        b"null",
        b'[["config",{}]]',
        b'{"config":[]}',
        b'{"config":"x"}',
        b'{"config":0}',
        b'{"config":{},"config":{}}',
        b'{"config":{"a":1,"a":2}}',
        rb'{"config":{"a":"\ud800"}}',
    ],
)
def test_an_inner_config_that_is_none_is_refused(config: bytes) -> None:
    with pytest.raises(InvalidError, match="parsing the config: "):
        messages.inner_config(config)
