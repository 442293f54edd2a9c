"""Credentials for a repository: from options, from files, from helpers.

containers-auth.json(5) and containers-registries.conf(5) (`credential-helpers`) define where they
are looked up, the protocol of docker-credential-helpers how a helper is run.
"""

from __future__ import annotations

import os
import signal
import subprocess
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

import trio

from imgproxy.config import credential_helpers as helpers
from imgproxy.config.registries_conf import AUTH_FILES
from imgproxy.errors import ConfigurationError, clean, shortage
from imgproxy.host.blocking_calls import settle
from imgproxy.specs.http.secrets import of_credentials
from imgproxy.specs.oci import registry_name

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable

    from trio.abc import ReceiveStream

    from imgproxy.config.credential_helpers import Helper
    from imgproxy.host.configuration import Configuration
    from imgproxy.specs.http.credentials import Credentials

# Seconds. A helper may contact a server of its own; it cannot wait for a person.
HELPER_TIMEOUT = 30.0

# Seconds. The output of a helper is in the pipe when it has ended.
_REMAINING_OUTPUT = 0.5

# Kills its process group when its standard input ends: this program holds the other end of that
# pipe alone, so that no signal which ends this program leaves a helper or a child of one behind. It
# is the first in the group, whose number therefore means this group as long as it runs. What a
# terminal sends to the group must not stop it.
_GUARD = ("/bin/sh", "-c", "trap '' HUP INT TERM TSTP TTIN TTOU; read -r _; kill -9 0")


class CredentialLookup:
    """The lookup of credentials. `explicit` ones, from an option, are for one registry.

    `anonymous`: there are none, and nothing is looked up. `insecure`: they may be sent by plain
    http. `hide` takes the secrets that are found, to be masked in messages. Nothing is cached,
    because credentials of a helper may be valid for some hours only.
    """

    def __init__(
        self,
        configuration: Configuration,
        hide: Callable[[Iterable[str]], None],
        *,
        explicit: Credentials | None = None,
        anonymous: bool = False,
        insecure: bool = False,
    ) -> None:
        self._configuration = configuration
        self._hide = hide
        self._explicit = explicit
        self._anonymous = anonymous
        self._insecure = insecure

    async def find(self, registry: str, repository: str, *, is_own: bool) -> Credentials | None:
        """Return the credentials for a repository, None where there are none.

        `is_own`: the repository is at the registry that the image's name leads to; explicit
        credentials are used for that, in place of all others, and for no other one. Raises
        `ConfigurationError` for files and helpers that are broken.
        """
        if self._anonymous:
            return None
        if self._explicit is not None and is_own:
            return self._explicit
        found = await self._look(registry, repository)
        if found is not None:
            self._hide(of_credentials(found))
        return found

    async def places(self) -> list[str]:
        """Return where credentials are looked for, in the words of messages."""
        if self._anonymous:
            return ["nowhere, because of --no-creds"]
        registries = await settle(lambda: self._configuration.registries)
        found: list[str] = []
        for name in registries.credential_helpers:
            found += (
                self._configuration.auth_paths() if name == AUTH_FILES else [f"the helper {name}"]
            )
        return list(map(clean, found))

    async def _look(self, registry: str, repository: str) -> Credentials | None:
        """Try one after the other; a failure is raised only if none of them has credentials."""
        failures: list[ConfigurationError] = []
        registries = await settle(lambda: self._configuration.registries)
        for name in registries.credential_helpers:
            try:
                if name == AUTH_FILES:
                    found = await self._look_in_files(registry, repository)
                else:
                    source = "credential-helpers in registries.conf"
                    place = registry_name.place(registry, tls=not self._insecure)
                    servers = tuple(dict.fromkeys((registry, place)))
                    found = await _ask(helpers.make_helper(name, servers, source))
            except ConfigurationError as error:
                failures.append(error)
                continue
            if found is not None:
                return found
        if failures:
            raise failures[0]
        return None

    async def _look_in_files(self, registry: str, repository: str) -> Credentials | None:
        for file in await settle(self._configuration.auth_files):
            found = file.find(registry, repository, insecure=self._insecure)
            if isinstance(found, helpers.Helper):
                found = await _ask(found)
            if found is not None:
                return found
        return None


async def _ask(helper: Helper) -> Credentials | None:
    """Run a helper for each name under which it may have credentials for the registry."""
    for server in helper.servers:
        argv, question = helpers.make_request(helper, server)
        try:
            with trio.fail_after(HELPER_TIMEOUT):
                status, output = await _run(argv, question)
        except FileNotFoundError:
            if helper.is_required:
                raise helpers.helper_error(helper, "is not in $PATH") from None
            return None  # a store that is configured for all registries, not for this one
        except OSError as error:
            raise shortage(f"running {helper.program}", error) or helpers.helper_error(
                helper, f"cannot be run: {error.strerror}"
            ) from None
        except trio.TooSlowError:
            raise helpers.helper_error(
                helper, f"gave no answer for {clean(server)} in {HELPER_TIMEOUT:g} s"
            ) from None
        found = helpers.parse_reply(helper, server, status, output)
        if found is not None:
            return found
    return None


async def _run(argv: list[str], question: bytes) -> tuple[int, bytes]:
    """Run a program without a shell; return its exit status and its output, within a limit.

    If it has to be ended, its children are, too. One that it leaves behind at its own end, such as
    an agent, goes on.
    """
    async with _process_group() as group:
        process = await trio.lowlevel.open_process(
            argv,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            process_group=group,
        )
        output = bytearray()
        finished = trio.Event()

        async def receive(stdout: ReceiveStream) -> None:
            async for chunk in stdout:
                output.extend(chunk)
                if len(output) > helpers.MAX_HELPER_OUTPUT:
                    os.killpg(group, signal.SIGKILL)
                    break
            finished.set()

        assert process.stdin is not None  # noqa: S101  (both are pipes)
        assert process.stdout is not None  # noqa: S101
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(receive, process.stdout)
                with suppress(trio.BrokenResourceError):  # it may answer without reading its input
                    await process.stdin.send_all(question)
                await process.stdin.aclose()
                status = await process.wait()
                # A child process that it leaves behind may keep its output open.
                with trio.move_on_after(_REMAINING_OUTPUT):
                    await finished.wait()
                nursery.cancel_scope.cancel()
            return status, bytes(output)
        finally:
            if process.returncode is None:
                os.killpg(group, signal.SIGKILL)
            with trio.CancelScope(shield=True):
                await process.stdin.aclose()
                await process.stdout.aclose()
                await process.wait()


@asynccontextmanager
async def _process_group() -> AsyncIterator[int]:
    """Return the number of a new process group, which is killed when this program ends.

    After the block, it is not any more. Raises `OSError`.
    """
    try:
        guard = await trio.lowlevel.open_process(
            _GUARD,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            process_group=0,
        )
    except FileNotFoundError:
        raise OSError(
            None, f"{_GUARD[0]}, which is to end it with this program, is missing"
        ) from None
    assert guard.stdin is not None  # noqa: S101  (it is a pipe)
    try:
        yield guard.pid
    finally:
        guard.kill()
        with trio.CancelScope(shield=True):
            await guard.stdin.aclose()
            await guard.wait()
