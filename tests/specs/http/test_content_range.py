from __future__ import annotations

import pytest

from imgproxy.errors import BadUpstreamError
from imgproxy.specs.http import content_range
from imgproxy.specs.http import url as urls
from imgproxy.specs.http.content_range import Range, Rest

URL = urls.parse("https://h/v2/a/blobs/sha256:0?signature=secret")
WANTED = Range(100, 1000, 1000)


def test_one_closed_range_is_asked_for() -> None:
    assert WANTED.field == "bytes=100-999"
    assert Range(0, 1, 1).field == "bytes=0-0"
    assert Range(3, 5, 9).field == "bytes=3-4"


@pytest.mark.parametrize(
    ("status", "fields", "length", "rest"),
    [
        (206, ["bytes 100-999/1000"], 900, Rest(0, 900)),
        (206, ["bytes 100-999/1000"], None, Rest(0, 900)),
        (206, ["bytes 100-999/*"], 900, Rest(0, 900)),
        (206, ["Bytes 100-999/1000"], 900, Rest(0, 900)),
        (206, ["bytes 100-100/1000"], 1, Rest(0, 1)),
        (206, ["bytes 100-500/1000"], None, Rest(0, 401)),
        (200, [], 1000, Rest(100, 900)),
        (200, [], None, Rest(100, 900)),
        (200, ["bytes 5-6/7"], 1000, Rest(100, 900)),  # without meaning in a 200: section 14.4
        (416, [], None, None),
        (416, ["bytes */1000"], None, None),
        (416, ["bytes */x"], None, None),
        (416, ["bytes */7", "bytes */8"], None, None),
    ],
)
def test_what_a_reply_is_good_for(
    status: int, fields: list[str], length: int | None, rest: Rest | None
) -> None:
    assert content_range.read_reply(URL, WANTED, status, fields, length) == rest


@pytest.mark.parametrize(
    ("status", "fields", "length", "words"),
    [
        (206, [], 900, "not one range of bytes: none"),
        (206, ["bytes 100-999/1000"] * 2, 900, 'bytes: "bytes 100-999/1000" and "bytes'),
        (206, ["bytes 100-999/1000, bytes 0-1/1000"], 900, "not one range of bytes"),
        (206, ["bytes=100-999/1000"], 900, "not one range of bytes"),
        (206, ["bytes 100-999"], 900, "not one range of bytes"),
        (206, ["bytes 100-/1000"], 900, "not one range of bytes"),
        (206, ["bytes */1000"], 900, "not one range of bytes"),
        (206, ["bytes +100-999/1000"], 900, "not one range of bytes"),
        (206, ["bytes 100-999/1000\n"], 900, "not one range of bytes"),
        (206, ["bytes ¹00-999/1000"], 900, "not one range of bytes"),
        (206, [f"bytes 100-{'9' * 5000}/*"], 900, "not one range of bytes"),
        (206, ["items 100-999/1000"], 900, "not one range of bytes"),
        (206, ["bytes 99-999/1000"], 901, 'is "bytes 99-999/1000"'),
        (206, ["bytes 101-999/1000"], 899, 'is "bytes 101-999/1000"'),
        (206, ["bytes 0-999/1000"], 1000, 'is "bytes 0-999/1000"'),
        (206, ["bytes 100-99/1000"], 0, 'is "bytes 100-99/1000"'),
        (206, ["bytes 100-1000/1000"], 901, 'is "bytes 100-1000/1000"'),
        (206, ["bytes 100-1000/*"], 901, 'is "bytes 100-1000/*"'),
        (206, ["bytes 100-999/1001"], 900, 'is "bytes 100-999/1001"'),
        (206, ["bytes 100-899/900"], 800, 'is "bytes 100-899/900"'),
        (206, ["bytes 100-999/1000"], 899, "its length 899"),
        (206, ["bytes 100-999/1000"], 1000, "its length 1000"),
        (200, [], 900, "a whole of 900 bytes"),
        (200, [], 0, "a whole of 0 bytes"),
        (416, ["bytes */999"], None, "there are 999 bytes"),
        (204, [], 0, "the answer is 204"),
        (304, [], 0, "the answer is 304"),
    ],
)
def test_what_is_about_other_bytes_is_refused(
    status: int, fields: list[str], length: int | None, words: str
) -> None:
    with pytest.raises(BadUpstreamError) as refused:
        content_range.read_reply(URL, WANTED, status, fields, length)
    message = refused.value.message
    assert message.startswith(
        "GET https://h/v2/a/blobs/sha256:0?…: asked for bytes 100-999 of 1000"
    )
    assert words in message
    assert "secret" not in message
    assert len(message) < 1000
