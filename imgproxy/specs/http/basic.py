"""The Basic scheme: RFC 7617, towards registries, token servers and proxies alike."""

from __future__ import annotations

from binascii import b2a_base64


def authorization(username: str, password: str) -> str:
    """Give the value of `Authorization` or `Proxy-Authorization` for a user.

    RFC 7617 section 2 leaves the encoding open where the challenge names none; UTF-8 is what every
    other client sends.
    """
    return f"Basic {b2a_base64(f'{username}:{password}'.encode(), newline=False).decode()}"
