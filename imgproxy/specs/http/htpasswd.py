"""Users and the hashes of their passwords, as htpasswd(1) writes them; bcrypt alone is read.

The other kinds of hashes are broken in seconds.
"""

from __future__ import annotations

import re

from imgproxy.errors import ConfigurationError, clean

# 4 to 31 is bcrypt's own range of costs. The longest check is one of some seconds.
_HASH = re.compile(rb"\$2[aby]\$(?P<cost>0[4-9]|1[0-6])\$[./A-Za-z0-9]{53}")


def parse(raw: bytes, source: str) -> dict[bytes, bytes]:
    """Return the hashes of passwords by user; empty lines and comments are passed over.

    Raises `ConfigurationError` with the number of the line, and nothing that stands in it.
    """
    users: dict[bytes, bytes] = {}
    for number, line in enumerate(raw.splitlines(), 1):
        user, separator, hashed = line.strip().partition(b":")
        if (not user and not separator) or user.startswith(b"#"):
            continue
        problem = ""
        if not user or not separator:
            problem = "expected USER:HASH"
        elif _HASH.fullmatch(hashed) is None:
            problem = "expected a bcrypt hash with a cost of 4 to 16, as htpasswd -B writes it"
        elif user in users:
            problem = "this user is in the file twice"
        if problem:
            raise ConfigurationError(f"{clean(source)}, line {number}: {problem}", file=source)
        users[user] = hashed
    return users


def cost(hashed: bytes) -> int:
    """Return the cost of a hash: each one more doubles the time of a check."""
    return int(hashed[4:6])
