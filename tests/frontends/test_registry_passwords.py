"""Passwords before a front-end, with bcrypt itself; how often it is asked is counted."""

from __future__ import annotations

import threading
from base64 import b64encode

import bcrypt
import pytest
import trio
from support.streams import real_time
from trio.testing import MockClock

from imgproxy.errors import ConfigurationError
from imgproxy.frontends import registry_passwords
from imgproxy.frontends.registry_passwords import (
    NoPasswordError,
    UnauthorizedError,
    WithPasswords,
)
from imgproxy.server.handler import Reply, Request

LONG = "p" * 100
USERS = {
    user.encode(): bcrypt.hashpw(password.encode()[:72], bcrypt.gensalt(4))
    for user, password in (("ann", "one"), ("bob", "zwei:ü"), ("long", LONG), ("empty", ""))
}
BEHIND = Reply([], 0, b"")


class Guarded(WithPasswords):
    """Passwords before a front-end that answers everything."""

    def __init__(self) -> None:
        super().__init__(self, self.load, self.count)  # type: ignore[arg-type]
        self.users = USERS
        self.failure: ConfigurationError | None = None
        self.checks = self.now = self.most = 0
        self.meeting: threading.Barrier | None = None  # where checks under way wait for others
        self._lock = threading.Lock()
        self._handler = self.Behind()

    class Behind:
        async def handle(self, _: Request) -> Reply:
            return BEHIND

    async def load(self) -> dict[bytes, bytes]:
        if self.failure is not None:
            raise self.failure
        return self.users

    def count(self, password: bytes, hashed: bytes) -> bool:
        with self._lock:
            self.checks += 1
            self.now += 1
            self.most = max(self.most, self.now)
        try:
            if self.meeting is not None:
                self.meeting.wait(10)
            return bcrypt.checkpw(password, hashed)
        finally:
            with self._lock:
                self.now -= 1

    async def ask(self, user: str = "", password: str = "", target: bytes = b"/v2/") -> Reply:
        return await self.ask_with(basic(f"{user}:{password}"), target=target)

    async def ask_with(self, *values: bytes, target: bytes = b"/v2/") -> Reply:
        fields = [(b"authorization", value) for value in values]
        return await self.handle(Request(b"GET", target, fields))


def basic(text: str) -> bytes:
    return b"Basic " + b64encode(text.encode())


@real_time
async def test_the_right_password_opens() -> None:
    guarded = Guarded()
    for user, password in (("ann", "one"), ("bob", "zwei:ü"), ("long", LONG), ("empty", "")):
        assert await guarded.ask(user, password) is BEHIND
    assert await guarded.ask_with(basic("ann:one").replace(b"Basic", b"bASIC")) is BEHIND
    assert await guarded.ask_with(target=b"/healthz") is BEHIND


@pytest.mark.parametrize(
    ("user", "password"),
    [("ann", "two"), ("ann", ""), ("nobody", "one"), ("ann", "one\0"), ("Ann", "one")],
)
@real_time
async def test_a_wrong_one_does_not(user: str, password: str) -> None:
    guarded = Guarded()
    with pytest.raises(UnauthorizedError) as caught:
        await guarded.ask(user, password)
    assert (caught.value.status, caught.value.code) == (401, "UNAUTHORIZED")
    assert dict(caught.value.header_fields)["WWW-Authenticate"].startswith("Basic realm=")
    assert not caught.value.is_miss
    assert guarded.checks == 1, "whether the user exists or not"


@pytest.mark.parametrize(
    "values",
    [
        [],
        [b""],
        [b"Basic"],
        [b"Basic " + b64encode(b"ann")],
        [
            basic(":"),
        ],
        [basic(":one")],
        [b"Basic !" + b64encode(b"ann:one")],
        [b"Bearer " + b64encode(b"ann:one")],
        [basic("ann:one"), basic("ann:one")],
    ],
)
@pytest.mark.parametrize("target", [b"/v2/", b"/metrics", b"/healthz/", b"/healthz?x", b"/nothing"])
@real_time
async def test_without_one_there_is_a_challenge(values: list[bytes], target: bytes) -> None:
    with pytest.raises(NoPasswordError) as caught:
        await Guarded().ask_with(*values, target=target)
    assert caught.value.is_miss
    assert "WWW-Authenticate" in dict(caught.value.header_fields)


@real_time
async def test_what_was_right_is_checked_once_for_many_at_once() -> None:
    guarded = Guarded()
    async with trio.open_nursery() as nursery:
        for _ in range(100):
            nursery.start_soon(guarded.ask, "ann", "one")
    assert guarded.checks <= 2, "the first two begin together"
    assert all(b"one" not in key for key in guarded._remembered)
    with pytest.raises(UnauthorizedError):
        await guarded.ask("ann", "two")
    with pytest.raises(UnauthorizedError):
        await guarded.ask("ann:one"[:4], "one:")


@real_time
async def test_two_are_checked_at_a_time_and_wrong_ones_each_time() -> None:
    guarded = Guarded()
    guarded.meeting = threading.Barrier(2)

    async def fail(number: int) -> None:
        with pytest.raises(UnauthorizedError):
            await guarded.ask("ann", f"wrong {number % 2}")

    async with trio.open_nursery() as nursery:
        for number in range(20):
            nursery.start_soon(fail, number)
    assert (guarded.checks, guarded.most) == (20, 2)


def test_after_a_minute_it_is_checked_again() -> None:
    clock = MockClock()

    async def main() -> None:
        guarded = Guarded()
        for passed, checks in ((0, 1), (59, 1), (2, 2), (59, 2)):
            clock.jump(passed)
            await guarded.ask("ann", "one")
            assert guarded.checks == checks, passed

    trio.run(main, clock=clock)


@real_time
async def test_a_file_that_changes_counts_at_once() -> None:
    guarded = Guarded()
    await guarded.ask("ann", "one")
    guarded.users = {b"ann": USERS[b"bob"]}
    with pytest.raises(UnauthorizedError):
        await guarded.ask("ann", "one")
    assert await guarded.ask("ann", "zwei:ü") is BEHIND
    guarded.users = {}
    with pytest.raises(UnauthorizedError):
        await guarded.ask("ann", "zwei:ü")
    guarded.failure = ConfigurationError("broken", file="file")
    with pytest.raises(ConfigurationError):
        await guarded.ask("ann", "one")
    assert await guarded.ask_with(target=b"/healthz") is BEHIND


@real_time
async def test_the_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry_passwords, "_MOST_REMEMBERED", 2)
    guarded = Guarded()
    for user, password in (("ann", "one"), ("bob", "zwei:ü"), ("empty", "")):
        await guarded.ask(user, password)
    await guarded.ask("bob", "zwei:ü")
    assert guarded.checks == 3
    await guarded.ask("ann", "one")
    assert guarded.checks == 4
