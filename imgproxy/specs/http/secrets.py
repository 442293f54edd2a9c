"""What is secret in a request: credentials in its fields, its query and its form."""

from __future__ import annotations

import re
from binascii import a2b_base64
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl

if TYPE_CHECKING:
    from collections.abc import Iterator

    from imgproxy.specs.http.credentials import Credentials

# What may be a token wherever it stands: long, without blanks, and with a digit.
TOKEN = re.compile(r"(?=[A-Za-z+/_=~-]*[0-9])[A-Za-z0-9+/_=~-]{20,}")

# The names under which queries and forms have keys, tokens and signatures: those of AWS, Azure,
# Google, CloudFront, Cloudflare and Akamai, and of OAuth2. X-Amz-SignedHeaders is none of them.
_NAMES = re.compile(r"(?i)sig(?!ned)|token|cred|secret|pass|auth|key|jwt|verify|policy|hmac|hdn")

# A shorter value of a query says yes, or how often; nothing can be kept from anybody by it.
_MIN_VALUE = 4


def of_credentials(credentials: Credentials) -> Iterator[str]:
    """Yield what is secret in credentials."""
    yield from filter(None, (credentials.identity_token, credentials.registry_token))
    yield from of_authorization(credentials.basic)


def of_authorization(value: str) -> Iterator[str]:
    """Yield what is secret in the value of `Authorization` or `Proxy-Authorization`.

    A user name is, if there is no password, or if it looks like a token, which some registries take
    in its place.
    """
    scheme, _, credentials = value.partition(" ")
    yield credentials
    if scheme == "Basic":
        user, _, password = a2b_base64(credentials).decode().partition(":")
        yield password
        if not password or TOKEN.fullmatch(user):
            yield user


def of_query(text: str) -> Iterator[str]:
    """Yield what is secret in the query of a URL, or in a form.

    That are the values that have a telling name, and those that look like a token; the others are
    times, media types, names of repositories.
    """
    for name, value in parse_qsl(text, errors="replace"):
        if (_NAMES.search(name) and len(value) >= _MIN_VALUE) or TOKEN.fullmatch(value):
            yield value
