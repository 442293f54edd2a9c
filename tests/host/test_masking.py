"""Secrets in text: masked however they are spelled, and nothing else.

A message quotes what a server answers, and a server may quote what it was sent. Standard error goes
into logs that more people read than may have the password.
"""

from __future__ import annotations

import pytest
from support.spellings import SPELLINGS

from imgproxy.errors import clean
from imgproxy.host import masking
from imgproxy.host.masking import Secrets

PASSWORD = 'Pa55 w/+"ö\\%25'
TOKEN = "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiIifQ.c2lnbmF0dXJl-_"


def masked(text: str, *secrets: str) -> str:
    known = Secrets()
    known.add(secrets)
    return known.mask(text)


@pytest.mark.parametrize("secret", [PASSWORD, TOKEN, "hunter2", "1234", "pässwörd", "🐳🐳🐳🐳"])
@pytest.mark.parametrize("spelling", SPELLINGS)
def test_a_secret_is_masked_however_it_is_spelled(spelling: str, secret: str) -> None:
    spelled = SPELLINGS[spelling](secret)
    shown = masked(f'it was "{spelled}", unknown', secret)
    assert shown.startswith('it was "')
    assert shown.endswith('", unknown')
    assert "***" in shown
    # In base64 of more than the secret, what is left has the rest of that, and some bits.
    assert len(shown.replace("***", "")) <= len('it was "", unknown') + len("bytearray(b'')") + 6


# Where a character may be an escape, one of them is longer, and half of the next one is left.
ONE_CHARACTER = dict.fromkeys(SPELLINGS, len("\\\\u1234\\\\u123")) | dict.fromkeys(
    ["plain", "base64", "base64 for URLs", "another case", "broken off"], 1
)


@pytest.mark.parametrize("secret", [PASSWORD, TOKEN, "hunter2"])
@pytest.mark.parametrize("spelling", sorted(SPELLINGS.keys() - {"base64 of more", "Python"}))
def test_the_beginning_of_a_secret_is_masked_where_the_rest_is_cut_off(
    spelling: str, secret: str
) -> None:
    """A message cuts what it quotes, wherever that is, also in the middle of an escape."""
    spelled = clean(SPELLINGS[spelling](secret))
    for kept in range(2, len(spelled)):
        left = masked(clean(f"{'.' * 20}{spelled}", 20 + kept), secret)
        left = left.removeprefix("." * 20).removesuffix("…").replace("***", "").strip("=")
        assert len(left) <= ONE_CHARACTER[spelling], (kept, left)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a tag and a manifest", "*** tag and *** manifest"),
        ("a: Basic YTph", "***: Basic YTph"),
        ("the manifest was not that", "the manifest was not that"),
    ],
)
def test_a_short_secret_is_masked_where_it_stands_alone(text: str, shown: str) -> None:
    """As a part of words it is there by chance; all would be masked, and give it away."""
    assert masked(text, "a") == shown


@pytest.mark.parametrize(
    "text",
    ["", "hunter", "hunter 3", "unter2", "h…", "aHVudGVy", "%", "\\", "a+b%zz\\u12", "\udcff"],
)
def test_other_text_is_left_as_it_is(text: str) -> None:
    assert masked(text, "hunter2") == text
    assert masked(text) == text


@pytest.mark.parametrize("empty", ["", " ", "\n\t"])
def test_nothing_is_no_secret(empty: str) -> None:
    assert masked("a b\n", empty) == "a b\n"


def test_secrets_that_overlap_are_masked_together() -> None:
    assert masked("abcdefgh, abcdef, efgh", "abcdef", "efgh", "cdef") == "***, ***, ***"


def test_a_token_that_was_replaced_is_still_masked() -> None:
    """A request with it may be under way."""
    assert masked("old-token new-token", "old-token", "new-token") == "*** ***"


def test_secrets_do_not_pile_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that runs for months gets a token every five minutes, and a URL for each blob."""
    monkeypatch.setattr(masking, "_MAX_SECRETS", 3)
    known = Secrets()
    known.add(["password", "token-1", "token-2"])
    known.add(["password"])  # which is sent again
    known.add(["token-3", "token-4"])
    assert known.mask("password token-1 token-2 token-3 token-4") == "*** token-1 token-2 *** ***"


def test_long_secrets_do_not_pile_up_either(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(masking, "_MAX_LENGTH", 10)
    known = Secrets()
    known.add(["first", "second"])
    assert known.mask("first second") == "first ***"
    known.add(["longer than all"])
    assert known.mask("second longer than all") == "second ***"
