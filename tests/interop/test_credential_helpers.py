"""How credential helpers live and end: not longer than the program, and no shorter."""

from __future__ import annotations

import os
import signal
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from support.parent import INSECURE, Child, Client, command, eventually
from support.servers import PASSWORD, READER, docker_registry

if TYPE_CHECKING:
    from collections.abc import Iterator

    from conftest import Keep
    from interop.conftest import Pull
    from support.filled import Registry
    from support.home import Home

PLAIN = "--tls-verify=false"

ANSWER = f"""printf '{{"Username": "{READER}", "Secret": "{PASSWORD}"}}'"""

# What helpers do in place of an answer. Each notes the processes there are.
HANGING = {
    "it waits": "note $$; exec sleep 100",
    "children": "sleep 100 & note $$ $!; sleep 100",
    "children that are deaf to signals": """
        sh -c "trap '' HUP INT TERM; sleep 100; sleep 100" & note $$ $!
        trap '' HUP INT TERM; sleep 100; sleep 100""",
    "a pipeline": "note $$; sleep 100 | sh -c 'note $$; exec sleep 100'",
    "orphans": "(sleep 100 & note $$ $!) ; (nohup sleep 100 & note $!); exec sleep 100",
    "it is stopped": "sleep 100 & note $$ $!; kill -STOP $$",
    "it has closed everything": "sleep 100 & note $$ $!; exec <&- >&- 2>&-; wait",
}
SECONDS = 5.0  # tells what has ended with the program from what goes on


@pytest.fixture(scope="module")
def guarded(registry: Registry) -> Iterator[str]:
    """Return the address of the registry, for whoever has the password."""
    with docker_registry(registry.directory, auth="htpasswd") as address:
        yield address


def install(home: Home, registry: str, script: str) -> Path:
    """Install a helper, and return the file with the processes that it notes."""
    file = home.path / "pids"
    home.program("note", f'echo "$*" >> {file}')
    home.program("docker-credential-test", script)
    home.write(".config/containers/auth.json", {"credHelpers": {registry: "test"}})
    return file


def running(file: Path) -> list[int]:
    """Return which of the processes that were noted have not ended."""
    pids = [int(pid) for pid in file.read_text().split()] if file.exists() else []
    return [pid for pid in pids if _state(pid) not in {"", "Z"}]


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return ""


def wait_noted(file: Path, script: str) -> None:
    """Wait until a helper has started all that it notes."""
    wanted = script.count("$$") - script.count("-STOP $$") + script.count("$!")
    assert eventually(lambda: len(running(file)) == wanted)


@pytest.mark.parametrize("ending", ["SIGKILL", "SIGTERM", "SIGINT", "hang-up"])
@pytest.mark.parametrize("how", HANGING)
def test_a_helper_ends_with_the_program_and_its_children_do(
    how: str, ending: str, pull: Pull, home: Home, registry: Registry, guarded: str
) -> None:
    file = install(home, guarded, HANGING[how])
    child = pull(registry.name(":latest", guarded), PLAIN)
    child.client.ask("GET", "/manifest")
    wait_noted(file, HANGING[how])
    if ending == "hang-up":
        child.client.close()
        assert child.wait() == 0
    else:
        number = signal.Signals[ending]
        child.process.send_signal(number)
        assert child.wait() == -number
    assert eventually(lambda: not running(file), SECONDS), running(file)


def test_a_helper_that_wants_a_terminal_ends_with_the_program(
    keep: Keep, home: Home, registry: Registry, guarded: str
) -> None:
    """The terminal belongs to another process group, so that the kernel stops the helper."""
    script = "trap '' HUP; note $$; read -r answer < /dev/tty"
    file = install(home, guarded, script)
    master, terminal = os.openpty()
    ours, theirs = socket.socketpair()
    with theirs:
        fds = [theirs.fileno()]
        program = command(registry.name(":latest", guarded), INSECURE, PLAIN, fds=fds)
        on_terminal = ["setsid", "--ctty", *program]
        child = keep(Child(on_terminal, stdin=terminal, pass_fds=fds, env=home.environment()))
    child.clients.append(Client(ours))
    child.client.ask("GET", "/manifest")
    wait_noted(file, script)
    assert eventually(lambda: [_state(pid) for pid in running(file)] == ["T"])
    child.process.kill()
    child.wait()
    assert eventually(lambda: not running(file), SECONDS), running(file)
    os.close(master)
    os.close(terminal)


@pytest.mark.slow
def test_a_helper_may_take_its_time(
    pull: Pull, home: Home, registry: Registry, guarded: str
) -> None:
    """Threads that start a process end when they have been idle for some time; it must not."""
    install(home, guarded, f"sleep 26; {ANSWER}")
    child = pull(registry.name(":latest", guarded), PLAIN)
    child.client.socket.settimeout(60)
    started = time.monotonic()
    assert child.client.get("/manifest").status == 200
    assert time.monotonic() - started > 25
    assert child.finish() == 0


def test_nothing_stays_of_a_helper_that_has_answered(
    pull: Pull, home: Home, registry: Registry, guarded: str
) -> None:
    """Neither itself nor what would have ended it; what it leaves behind on purpose does."""
    file = install(home, guarded, f"sleep 100 >/dev/null & note $$ $!; {ANSWER}")
    child = pull(registry.name(":latest", guarded), PLAIN)
    assert child.client.get("/manifest").status == 200
    children = Path(f"/proc/{child.pid}/task/{child.pid}/children")
    assert children.read_text() == ""
    assert child.finish() == 0
    (agent,) = running(file)
    os.kill(agent, signal.SIGKILL)
