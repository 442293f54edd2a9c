"""Keyrings, split into keys that a library reads one by one."""

from __future__ import annotations

import base64

import pytest

from imgproxy.specs.signing.keyring import Part, split
from imgproxy.specs.signing.packets import framed


def packets(user: str = "", version: int = 4, *, tag: int = 6) -> list[bytes]:
    """Return what looks like a key: with a user, a signature, and a subkey."""
    parts = [(tag, bytes([version]) + b"key"), (2, b"\4s"), (14, b"\4subkey"), (2, b"\4t")]
    if user:
        parts.insert(1, (13, user.encode()))
    return [framed(*each) for each in parts]


def key(user: str = "", version: int = 4, *, tag: int = 6) -> bytes:
    return b"".join(packets(user, version, tag=tag))


def armor(content: bytes, *headers: str, newline: str = "\n", kind: str = "PUBLIC") -> bytes:
    text = base64.b64encode(content).decode()
    lines = [text[n : n + 64] for n in range(0, len(text), 64)]
    block = f"PGP {kind} KEY BLOCK-----"
    every = [f"-----BEGIN {block}", *headers, "", *lines, "=abcd", f"-----END {block}", ""]
    return newline.join(every).encode()


A, B = key("a <a@x>"), key("b")
PART_A = Part("key 1 of version 4 (a <a@x>)", packets("a <a@x>"))
PART_B = Part("key 2 of version 4 (b)", packets("b"))


@pytest.mark.parametrize(
    "raw",
    [
        A + B,
        armor(A + B),
        armor(A) + armor(B),
        armor(A, "Version: GnuPG v2", "Comment: a: b") + b"\n\n" + armor(B, newline="\r\n"),
        b"The following key\npub 4096R/1\n\n" + armor(A) + b"another one:\n" + armor(B) + b"end",
        armor(A).replace(b"\n", b"\n    ") + armor(B).replace(b"=abcd\n", b""),
        armor(A).replace(b"\n\n", b"\n \t\n") + armor(B),
        armor(A) + armor(B).replace(b"KEY BLOCK-----\n", b"KEY BLOCK----- \n"),
    ],
    ids=range(8),
)
def test_a_keyring_has_several_keys(raw: bytes) -> None:
    assert split(raw) == [PART_A, PART_B]


def test_a_key_has_a_name_for_messages() -> None:
    (unnamed,) = split(key())
    assert unnamed.name == "key 1 of version 4"
    assert split(key("x", 6))[0].name == "key 1 of version 6 (x)"
    assert split(key("x", tag=5))[0].name == "key 1 of version 4 (x)"
    assert split(framed(6, b""))[0] == Part("key 1", [framed(6, b"")])
    assert split(key("a\x1b[31m\n" + "b" * 100))[0].name == (
        f"key 1 of version 4 (a [31m {'b' * 57}…)"
    )
    assert split(framed(6, b"\4") + framed(13, b"\xff"))[0].name == "key 1 of version 4 (\ufffd)"


CUT, NO_PACKET = "it ends in the middle of a packet", "what follows is no packet"


@pytest.mark.parametrize(
    ("raw", "names", "problem"),
    [
        (A + B[:-1], ["key 1 of version 4 (a <a@x>)", "key 2 of version 4 (b)"], CUT),
        (A + B[:3], ["key 1 of version 4 (a <a@x>)", "key 2"], CUT),
        (A + B[:1], ["key 1 of version 4 (a <a@x>)", "key 2"], CUT),
        (A + B + b"\0", ["key 1 of version 4 (a <a@x>)", "key 2 of version 4 (b)"], NO_PACKET),
        (A[:-1], ["key 1 of version 4 (a <a@x>)"], CUT),
        (A[:1], ["key 1"], CUT),
        (A + armor(B), ["key 1 of version 4 (a <a@x>)"], NO_PACKET),
    ],
    ids=range(7),
)
def test_what_cannot_be_split_takes_the_key_before_it_along(
    raw: bytes, names: list[str], problem: str
) -> None:
    """It may be the revocation of that key, which must not be lost."""
    *whole, last = split(raw)
    assert [each.name for each in (*whole, last)] == names
    assert last.problem == problem
    # What there is of it shows which key is not whole.
    there = b"".join(last.packets)
    assert raw[sum(len(b"".join(each.packets)) for each in whole) :].startswith(there)
    assert whole == [PART_A][: len(whole)]


def test_what_is_before_the_first_key_is_for_the_library_to_judge() -> None:
    assert split(framed(12, b"trust") + A) == [
        Part("what is before its first key", [framed(12, b"trust")]),
        PART_A._replace(name="key 2 of version 4 (a <a@x>)"),
    ]


@pytest.mark.parametrize(
    ("broken", "problem"),
    [
        (b"-----BEGIN PGP PUBLIC KEY BLOCK-----\n\nmQINBF", "it has no end"),
        (armor(B).replace(b"\n\n", b"\n\n!", 1), "its base64 is broken"),
        (armor(B).replace(b"\n\n", b"\n\nA", 1), "its base64 is broken"),
        (armor(b""), "it is empty"),
    ],
    ids=["end", "alphabet", "length", "empty"],
)
def test_a_block_that_is_broken_leaves_the_others(broken: bytes, problem: str) -> None:
    first, second = split(armor(A) + broken)
    assert (first, second) == (PART_A, Part("block 2", [], problem))
    first, second = split(broken + armor(A))
    assert first == Part("block 1", [], problem)
    assert second == PART_A._replace(name="key 2 of version 4 (a <a@x>)")


@pytest.mark.parametrize("raw", [b"", b"rubbish", b"{}", b"-----BEGIN CERTIFICATE-----\n"])
def test_what_is_no_keyring_has_no_keys(raw: bytes) -> None:
    with pytest.raises(ValueError, match="there is no key in it"):
        split(raw)


def test_a_keybox_is_known_and_the_way_out_is_said() -> None:
    raw = bytes.fromhex("00000020010100024b42586600000000") + bytes(16)
    with pytest.raises(ValueError, match=r"a keybox .*made by: gpg --export KEY > FILE"):
        split(raw)
