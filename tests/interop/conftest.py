"""A real registry, filled once for all workers, and a home of its own for each test.

Nearly each row of a table here starts the program, which takes a fifth of a second of a processor.
Pure tests go through the same rows, so that the first and the last of each table are tried unless
IMGPROXY_TEST_SLOW=1.
"""

from __future__ import annotations

import os
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

import pytest
from support import registry_doors, slow_upstreams
from support.effort import deselect, some
from support.filled import Registry, filled_registry
from support.home import Home
from support.parent import INSECURE
from support.registry_clients import containerd
from support.registry_doors import Door, Stock

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager

    from conftest import Serve
    from support.networks import Cut
    from support.parent import Child
    from support.registry_clients import Containerd
    from support.slow_upstreams import Stage


T = TypeVar("T")
# A program that starts keeps a processor busy for a while and then waits for others.
WORKERS = 4


class Pull(Protocol):
    """Start the program at home on an image of whatever registry; `env` changes the environment."""

    def __call__(
        self,
        image: str,
        *options: str,
        sockets: int = 1,
        policy: str | None = INSECURE,
        files: Sequence[int] = (),
        env: Mapping[str, str] | None = None,
    ) -> Child: ...


class Stages(Protocol):
    """Run a registry behind a slow line with these cuts, for the block."""

    def __call__(self, *cuts: Cut) -> AbstractContextManager[Stage]: ...


class Together(Protocol):
    """Try the cases of a table in homes of their own, some at once; name those that fail."""

    def __call__(self, cases: Mapping[str, T], check: Callable[[T, Pull, Home], None]) -> None: ...


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    tables: dict[str, list[pytest.Item]] = defaultdict(list)
    for item in items:
        if item.path.parent == here:
            tables[item.nodeid.partition("[")[0]].append(item)
    unwanted = [row for rows in tables.values() for row in set(rows) - set(some(rows))]
    deselect(config, items, unwanted)


@pytest.fixture(scope="session")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    with filled_registry(tmp_path_factory.mktemp("registry"), shared / "filled") as registry:
        yield registry


@pytest.fixture(scope="session")
def slow_registry(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    return slow_upstreams.fill(tmp_path_factory.mktemp("slow"))


@pytest.fixture(scope="session")
def daemon_in_chunks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Containerd]:
    with containerd(Home(tmp_path_factory.mktemp("c")), 2, in_chunks=True) as daemon:
        yield daemon


@pytest.fixture
def stages(slow_registry: Registry, daemon_in_chunks: Containerd, tmp_path: Path) -> Stages:
    return partial(slow_upstreams.staged, slow_registry, daemon_in_chunks, tmp_path)


@pytest.fixture
def stage(stages: Stages) -> Iterator[Stage]:
    with stages() as stage:
        yield stage


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")


@pytest.fixture
def pull(serve: Serve, home: Home) -> Pull:
    return pull_at(home, serve)


def pull_at(home: Home, serve: Serve) -> Pull:
    def start(
        image: str,
        *options: str,
        sockets: int = 1,
        policy: str | None = INSECURE,
        files: Sequence[int] = (),
        env: Mapping[str, str] | None = None,
    ) -> Child:
        environment = home.environment(**(env or {}))
        options = ("--platform=linux/amd64", *options)
        return serve(image, *options, sockets=sockets, policy=policy, env=environment, files=files)

    return start


@pytest.fixture
def together(serve: Serve, tmp_path: Path) -> Together:
    def run(cases: Mapping[str, T], check: Callable[[T, Pull, Home], None]) -> None:
        names = some(list(cases))
        homes = [Home(tmp_path / str(n)) for n in range(len(names))]
        with ThreadPoolExecutor(WORKERS) as pool:
            running = [
                pool.submit(check, cases[name], pull_at(home, serve), home)
                for name, home in zip(names, homes, strict=True)
            ]
        failures = []
        for name, future in zip(names, running, strict=True):
            failure = future.exception()
            if failure is not None:
                failure.add_note(f"in the case of: {name}")
                failures.append(failure)
        if len(failures) == 1:
            raise failures[0]
        if failures:
            raise BaseExceptionGroup(f"{len(failures)} of {len(names)} cases", failures)

    return run


@pytest.fixture(scope="module")
def stock(tmp_path_factory: pytest.TempPathFactory) -> Stock:
    """Return a layout with every kind of content."""
    return Stock(tmp_path_factory.mktemp("stock") / "layout")


@pytest.fixture(scope="module")
def door(stock: Stock) -> Iterator[Door]:
    """Return a registry over the stock."""
    with registry_doors.running("--images", str(stock.layout.path), "--catalog") as door:
        yield door
