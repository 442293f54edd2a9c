"""Credentials for registries, as values."""

from __future__ import annotations

from typing import NamedTuple

from imgproxy.specs.http import basic


class Credentials(NamedTuple):
    """Credentials for a registry; at least one of the fields other than `source` is not empty.

    `source` is their origin, for messages: the file and the key in it, a helper, or an option. A
    `registry_token` is a bearer token, sent as it is and in place of all others.
    """

    username: str
    password: str
    identity_token: str
    source: str
    registry_token: str = ""

    @property
    def basic(self) -> str:
        """The value of the `Authorization` field in the Basic scheme."""
        return basic.authorization(self.username, self.password)

    def __repr__(self) -> str:
        return f"<Credentials from {self.source}>"
