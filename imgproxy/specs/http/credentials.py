"""What is shown to a server that asks who is there."""

from __future__ import annotations

from typing import NamedTuple

from imgproxy.specs.http import basic


class Credentials(NamedTuple):
    """What to show to a registry; one of the three at least is not empty.

    `source` says where they come from: the file and the key in it, a helper, or an option.
    """

    username: str
    password: str
    identity_token: str
    source: str

    @property
    def basic(self) -> str:
        """The value of `Authorization` in the Basic scheme."""
        return basic.authorization(self.username, self.password)

    def __repr__(self) -> str:
        return f"<Credentials from {self.source}>"
