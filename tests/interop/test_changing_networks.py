"""Networks that go away and come back, and hosts whose addresses change, in mid-blob."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
from support import parent
from support.effort import rounds
from support.filled import MIB, as_directory, noise
from support.hosts import NAME, PROGRAM, SERVER, Hosts, hosts
from support.images import Layout
from support.servers import docker_registry, require, skopeo_copy

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from conftest import Keep
    from support.home import Home
    from support.parent import Child

# More than the buffers of four sockets hold, so that the program is in the middle when it is read.
SIZE = 48 * MIB
READ = 8 * MIB
PORT = 5000
DOWN = rounds("IMGPROXY_TEST_LINK_DOWN", slow=30, quick=3)


@pytest.fixture
def joined(tmp_path: Path) -> Iterator[Hosts]:
    require("docker-registry")
    with hosts(tmp_path) as joined:
        yield joined


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    """Return what the registry over `data` has as `acme/os`."""
    layout = Layout(tmp_path / "layout")
    descriptor = layout.image(noise(SIZE))
    with docker_registry(tmp_path / "data") as address:
        source = as_directory(layout, descriptor, tmp_path / "source")
        skopeo_copy(source, f"docker://{address}/acme/os:latest", "--preserve-digests")
    return layout


@dataclass
class Begun:
    """A program in the middle of a blob, and what the blob has to be."""

    child: Child
    content: bytes

    def __post_init__(self) -> None:
        self.start = self.child.client.read(READ)

    def check(self) -> None:
        """Read the rest."""
        rest = self.child.client.read(SIZE - READ)
        assert hash(self.start + rest) == hash(self.content)
        assert self.child.finish() == 0


@pytest.fixture
def begun(
    request: pytest.FixtureRequest,
    joined: Hosts,
    layout: Layout,
    home: Home,
    keep: Keep,
    tmp_path: Path,
) -> Iterator[Begun]:
    """Yield a blob that is on its way between the two hosts; the parameter is an option."""
    with docker_registry(tmp_path / "data", port=PORT, around=joined.server.entered):
        options = ("--platform=linux/amd64", "--tls-verify=false", request.param)
        name = f"docker://{NAME}:{PORT}/acme/os"
        around = joined.program.entered
        child = keep(parent.start(name, *options, env=home.environment(), around=around))
        (layer,) = child.client.get("/manifest").json()["layers"]
        child.client.ask("GET", f"/blobs/{layer['digest']}")
        assert child.client.head().length == SIZE
        yield Begun(child, layout.read(layer["digest"]))


@pytest.mark.slow
@pytest.mark.parametrize("begun", ["--stall-timeout=60"], indirect=True)
def test_a_link_that_was_down_costs_its_time_and_nothing_else(begun: Begun, joined: Hosts) -> None:
    """A cable that was put back in before the registry was given up: the connection goes on.

    The sender waits twice as long from try to try, and so may come back late.
    """
    begun.child.client.socket.settimeout(2 * DOWN + parent.LIMIT)
    with ThreadPoolExecutor() as pool:
        joined.pull_out()
        rest = pool.submit(begun.check)
        time.sleep(DOWN)
        assert not rest.done()
        joined.plug_in()
        rest.result()


@pytest.mark.slow
@pytest.mark.parametrize("begun", ["--stall-timeout=2"], indirect=True)
def test_the_rest_comes_from_where_the_registry_has_moved(begun: Begun, joined: Hosts) -> None:
    """Its name is looked up anew, and nobody answers at the old address, not even with a reset."""
    joined.move(joined.server, f"{SERVER}00")
    begun.check()


@pytest.mark.slow
@pytest.mark.parametrize("begun", ["--stall-timeout=2"], indirect=True)
def test_the_rest_comes_to_where_the_program_s_host_has_moved(begun: Begun, joined: Hosts) -> None:
    """As a laptop that leaves one network for another: the old connection is never told."""
    joined.move(joined.program, f"{PROGRAM}00")
    begun.check()
