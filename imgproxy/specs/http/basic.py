"""The Basic authentication scheme, RFC 7617: for registries, token servers and proxies."""

from __future__ import annotations

from binascii import b2a_base64


def authorization(username: str, password: str) -> str:
    """Return the value of `Authorization` or `Proxy-Authorization` for a user.

    RFC 7617 section 2 leaves the encoding open where the challenge names none; every other client
    sends UTF-8.
    """
    return f"Basic {b2a_base64(f'{username}:{password}'.encode(), newline=False).decode()}"
