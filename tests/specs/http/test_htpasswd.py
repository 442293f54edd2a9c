from __future__ import annotations

import pytest

from imgproxy.errors import ConfigurationError
from imgproxy.specs.http import htpasswd

HASH = b"$2y$05$" + b"." * 53


def test_users_and_hashes_are_read() -> None:
    raw = b"# users\n\nann:%b\r\n  bob:%b  \n" % (HASH, HASH.replace(b"2y", b"2b"))
    users = htpasswd.parse(raw, "file")
    assert users == {b"ann": HASH, b"bob": HASH.replace(b"2y", b"2b")}
    assert htpasswd.cost(users[b"ann"]) == 5
    assert htpasswd.parse(b"", "file") == {}


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b"ann", "USER:HASH"),
        (b":" + HASH, "USER:HASH"),
        (b"ann:$apr1$salt$none", "bcrypt"),
        (b"ann:{SHA}none", "bcrypt"),
        (b"ann:secret", "bcrypt"),
        (b"ann:" + HASH + b"x", "bcrypt"),
        (b"ann:" + HASH.replace(b"05", b"03"), "bcrypt"),
        (b"ann:" + HASH.replace(b"05", b"17"), "cost of 4 to 16"),
        (b"bob:" + HASH, "twice"),
    ],
)
def test_a_line_that_cannot_be_is_named_and_not_shown(line: bytes, words: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        htpasswd.parse(b"bob:%b\n%b\n" % (HASH, line), "/etc/file")
    assert caught.value.message.startswith("/etc/file, line 2: ")
    assert words in caught.value.message
    assert "secret" not in caught.value.message
