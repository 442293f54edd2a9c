"""One real registry for the whole session, and a home of its own for each test."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Protocol, TypeVar

import pytest
from support.filled import Registry, filled_registry
from support.home import Home
from support.parent import INSECURE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from conftest import Serve
    from support.parent import Child


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


class Together(Protocol):
    """Try each case of a table in a home of its own, some at once; name those that fail."""

    def __call__(self, cases: Mapping[str, T], check: Callable[[T, Pull, Home], None]) -> None: ...


@pytest.fixture(scope="session")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    with filled_registry(tmp_path_factory.mktemp("registry")) as registry:
        yield registry


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
        homes = [Home(tmp_path / str(n)) for n in range(len(cases))]
        with ThreadPoolExecutor(WORKERS) as pool:
            running = [
                pool.submit(check, case, pull_at(home, serve), home)
                for case, home in zip(cases.values(), homes, strict=True)
            ]
        failures = []
        for name, future in zip(cases, running, strict=True):
            failure = future.exception()
            if failure is not None:
                failure.add_note(f"in the case of: {name}")
                failures.append(failure)
        if len(failures) == 1:
            raise failures[0]
        if failures:
            raise BaseExceptionGroup(f"{len(failures)} of {len(cases)} cases", failures)

    return run
