"""One real registry for the whole session."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from filled import Registry, filled_registry

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="session")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    with filled_registry(tmp_path_factory.mktemp("registry")) as registry:
        yield registry
