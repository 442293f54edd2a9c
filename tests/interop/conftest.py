"""One real registry for the whole session, and a home of its own for each test."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import pytest
from filled import Registry, filled_registry
from home import Home

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from conftest import Serve
    from parent import Child


class Pull(Protocol):
    """Start the program at home on an image of whatever registry; `env` changes the environment."""

    def __call__(
        self,
        image: str,
        *options: str,
        sockets: int = 1,
        files: Sequence[int] = (),
        env: Mapping[str, str] | None = None,
    ) -> Child: ...


@pytest.fixture(scope="session")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    with filled_registry(tmp_path_factory.mktemp("registry")) as registry:
        yield registry


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")


@pytest.fixture
def pull(serve: Serve, home: Home) -> Pull:
    def start(
        image: str,
        *options: str,
        sockets: int = 1,
        files: Sequence[int] = (),
        env: Mapping[str, str] | None = None,
    ) -> Child:
        environment = home.environment(**(env or {}))
        options = ("--platform=linux/amd64", *options)
        return serve(image, *options, sockets=sockets, env=environment, files=files)

    return start
