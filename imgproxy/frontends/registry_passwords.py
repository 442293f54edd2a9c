"""The passwords of a registry: Basic authentication, RFC 7617, before anything else is answered."""

from __future__ import annotations

import binascii
import hmac
import secrets
from functools import partial
from typing import TYPE_CHECKING

import trio

from imgproxy.errors import Failure
from imgproxy.specs.http import htpasswd

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from imgproxy.server.handler import Handler, Reply, Request

# Where a supervisor looks without a password.
_OPEN = b"/healthz"

# Each check is work by design: two at a time leave the rest of a host to others.
_CHECKS = 2

# Seconds for which a password that was right is known, and how many are at the same time.
_REMEMBERED = 60.0
_MOST_REMEMBERED = 1024

# What bcrypt looks at. Newer versions of the library refuse more, older ones and htpasswd cut it.
_MOST_BYTES = 72


class UnauthorizedError(Failure):
    """The request has a wrong user or password."""

    status = 401
    default_code = "UNAUTHORIZED"
    header_fields = (("WWW-Authenticate", 'Basic realm="imgproxy", charset="UTF-8"'),)


class NoPasswordError(UnauthorizedError):
    """The request has no user and password. Most clients ask so before they ask with them."""

    is_miss = True


class WithPasswords:
    """A `Handler` that passes on what comes with a user and a password, and `/healthz`.

    `load_users` returns the hashes by user; see `htpasswd.parse`. `verify` returns whether a
    password has a hash, and is called in a thread.
    """

    def __init__(
        self,
        handler: Handler,
        load_users: Callable[[], Awaitable[dict[bytes, bytes]]],
        verify: Callable[[bytes, bytes], bool],
    ) -> None:
        self._handler = handler
        self._load_users = load_users
        self._verify = verify
        self._turns = trio.CapacityLimiter(_CHECKS)
        self._key = secrets.token_bytes(32)
        self._users: dict[bytes, bytes] = {}
        self._remembered: dict[bytes, float] = {}  # until when, by a keyed hash

    async def handle(self, request: Request) -> Reply:
        """Return the reply to a request. Raises `Failure`."""
        if request.target != _OPEN:
            await self._check(request)
        return await self._handler.handle(request)

    async def _check(self, request: Request) -> None:
        """Raise `UnauthorizedError` unless the request has a user and the password of that user."""
        users = await self._load_users()
        if users is not self._users:
            self._users = users
            self._remembered.clear()
        given = _credentials(request)
        if given is None:
            raise NoPasswordError("this registry wants a user and a password")
        key = hmac.digest(self._key, given, "sha256")
        if self._is_remembered(key):
            return
        async with self._turns:
            if self._is_remembered(key):  # by one of many requests that came at once
                return
            user, _, password = given.partition(b":")
            is_right = await trio.to_thread.run_sync(partial(self._is_right, users, user, password))
        if not is_right:
            raise UnauthorizedError("the user or the password is wrong")
        if users is self._users:
            self._remember(key)

    def _is_right(self, users: dict[bytes, bytes], user: bytes, password: bytes) -> bool:
        """Return whether a password is a user's; for an unknown user in the same time."""
        hashed = users.get(user)
        if hashed is None:
            cost = max(map(htpasswd.cost, users.values()), default=10)
            self._verify(password[:_MOST_BYTES], b"$2b$%02d$%b" % (cost, b"." * 53))
            return False
        return self._verify(password[:_MOST_BYTES], hashed)

    def _is_remembered(self, key: bytes) -> bool:
        return self._remembered.get(key, 0.0) > trio.current_time()

    def _remember(self, key: bytes) -> None:
        self._remembered.pop(key, None)  # so that the first is the oldest
        self._remembered[key] = trio.current_time() + _REMEMBERED
        if len(self._remembered) > _MOST_REMEMBERED:
            del self._remembered[next(iter(self._remembered))]


def _credentials(request: Request) -> bytes | None:
    """Return the `user:password` of a request, None where it has none or several."""
    values = [value for name, value in request.fields if name == b"authorization"]
    scheme, _, encoded = values[0].partition(b" ") if len(values) == 1 else (b"", b"", b"")
    if scheme.lower() != b"basic":
        return None
    try:
        given = binascii.a2b_base64(encoded.strip(), strict_mode=True)
    except binascii.Error:
        return None
    user, separator, _ = given.partition(b":")
    return given if user and separator else None  # skopeo sends empty ones where it has none
