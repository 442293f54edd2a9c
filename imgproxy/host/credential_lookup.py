"""Credentials for a repository: from options, from files, from helpers.

containers-auth.json(5) and containers-registries.conf(5) (`credential-helpers`) say where to look,
the protocol of docker-credential-helpers how to ask a helper.
"""

from __future__ import annotations

import subprocess
from contextlib import suppress
from typing import TYPE_CHECKING

import trio

from imgproxy.config import credential_helpers as helpers
from imgproxy.config.registries_conf import AUTH_FILES
from imgproxy.errors import ConfigurationError, clean

if TYPE_CHECKING:
    from trio.abc import ReceiveStream

    from imgproxy.config.credential_helpers import Helper
    from imgproxy.host.configuration import Configuration
    from imgproxy.specs.http.credentials import Credentials

# A helper may ask a server of its own; a person is not expected to be there.
HELPER_TIMEOUT = 30.0

# What it has said is in the pipe when it has ended.
_LAST_WORDS = 0.5


class CredentialLookup:
    """All credentials of this process. `explicit` ones, from an option, are the only ones then.

    `anonymous`: there are none at all, and nothing is looked at. Nothing is kept: what a helper
    gives may be good for some hours only.
    """

    def __init__(
        self,
        configuration: Configuration,
        *,
        explicit: Credentials | None = None,
        anonymous: bool = False,
    ) -> None:
        self._configuration = configuration
        self._explicit = explicit
        self._anonymous = anonymous

    async def find(self, registry: str, repository: str, *, is_own: bool) -> Credentials | None:
        """Give the credentials for a repository, None where nobody has any.

        `is_own`: it is at the registry that the image's name leads to; explicit credentials are
        for nobody else. Raises `ConfigurationError` for files and helpers that are broken.
        """
        if self._anonymous or self._explicit is not None:
            return self._explicit if is_own else None
        return await self._look(registry, repository)

    async def _look(self, registry: str, repository: str) -> Credentials | None:
        """Ask one after the other; a failure counts only if nobody has what was looked for."""
        failures: list[ConfigurationError] = []
        for name in self._configuration.registries.credential_helpers:
            try:
                if name == AUTH_FILES:
                    found = await self._look_in_files(registry, repository)
                else:
                    source = "credential-helpers in registries.conf"
                    found = await _ask(helpers.make_helper(name, (registry,), source))
            except ConfigurationError as error:
                failures.append(error)
                continue
            if found is not None:
                return found
        if failures:
            raise failures[0]
        return None

    async def _look_in_files(self, registry: str, repository: str) -> Credentials | None:
        for file in self._configuration.auth_files():
            found = file.find(registry, repository)
            if isinstance(found, helpers.Helper):
                found = await _ask(found)
            if found is not None:
                return found
        return None


async def _ask(helper: Helper) -> Credentials | None:
    """Ask a helper under each name that it may know the registry by."""
    for server in helper.servers:
        argv, question = helpers.make_request(helper, server)
        try:
            with trio.fail_after(HELPER_TIMEOUT):
                status, output = await _run(argv, question)
        except FileNotFoundError:
            if helper.is_required:
                raise helpers.helper_error(helper, "is not in $PATH") from None
            return None  # a store that was configured for other registries' sake
        except OSError as error:
            raise helpers.helper_error(helper, f"cannot be run: {error.strerror}") from None
        except trio.TooSlowError:
            raise helpers.helper_error(
                helper, f"gave no answer for {clean(server)} in {HELPER_TIMEOUT:g} s"
            ) from None
        found = helpers.parse_reply(helper, server, status, output)
        if found is not None:
            return found
    return None


async def _run(argv: list[str], question: bytes) -> tuple[int, bytes]:
    """Run a program without a shell; give its exit status and what it said, within a limit."""
    process = await trio.lowlevel.open_process(
        argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    output = bytearray()
    heard = trio.Event()

    async def listen(stdout: ReceiveStream) -> None:
        async for chunk in stdout:
            output.extend(chunk)
            if len(output) > helpers.MAX_HELPER_OUTPUT:
                process.kill()
                break
        heard.set()

    assert process.stdin is not None  # noqa: S101  (both were asked for)
    assert process.stdout is not None  # noqa: S101
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(listen, process.stdout)
            with suppress(trio.BrokenResourceError):  # it may answer without having read
                await process.stdin.send_all(question)
            await process.stdin.aclose()
            status = await process.wait()
            # A child that it leaves behind, an agent perhaps, may hold its output open.
            with trio.move_on_after(_LAST_WORDS):
                await heard.wait()
            nursery.cancel_scope.cancel()
        return status, bytes(output)
    finally:
        if process.returncode is None:
            process.kill()
        with trio.CancelScope(shield=True):
            await process.stdin.aclose()
            await process.stdout.aclose()
            await process.wait()
