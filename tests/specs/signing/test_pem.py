"""PEM: RFC 7468."""

from __future__ import annotations

import pytest

from imgproxy.specs.signing.pem import blocks, single_block


def block(label: str, content: str = "AAAA\n") -> bytes:
    return f"-----BEGIN {label}-----\n{content}-----END {label}-----\n".encode()


def test_a_text_has_one_block_or_several() -> None:
    assert blocks(block("A B")) == [("A B", b"\0\0\0")]
    assert blocks(b"\n " + block("A") + b"\r\n\n" + block("B", "AA\r\nAA\r\nAQ==\r\n").strip()) == [
        ("A", b"\0\0\0"),
        ("B", b"\0\0\0\1"),
    ]
    assert single_block(block("KEY"), "X", "KEY") == b"\0\0\0"


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"  \n",
        b"rubbish",
        block("A") + b"rubbish",
        b"rubbish" + block("A"),
        block("A", "AAA\n"),
        block("A", "A*AA\n"),
        block("A", ""),
        block("A", "A=AA\n"),
        block("a"),
        b"-----BEGIN A-----\nAAAA\n-----END B-----\n",
        b"-----BEGIN A-----\nProc-Type: 4,ENCRYPTED\n\nAAAA\n-----END A-----\n",
    ],
)
def test_anything_else_is_none(text: bytes) -> None:
    with pytest.raises(ValueError, match="not PEM"):
        blocks(text)


@pytest.mark.parametrize("text", [block("A") + block("A"), block("B"), block("A") + block("B")])
def test_one_block_is_not_several_nor_another(text: bytes) -> None:
    with pytest.raises(ValueError, match="expected one block of A or C, got "):
        single_block(text, "A", "C")
