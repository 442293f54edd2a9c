"""Fixtures on top of `images` and `parent`: something to serve, and a program that serves it."""

from __future__ import annotations

import gc
import os
import signal
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import pytest
from support import parent, skopeo_client
from support.effort import SLOW, deselect
from support.home import Home
from support.images import Json, Layout

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path


# A shell ignores SIGINT for what it runs in the background, and children would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# A registry does not serve what others may write, whatever the user's umask is.
os.umask(0o022)


def pytest_report_header() -> str:
    return "slow tests: " + ("included" if SLOW else "left out; IMGPROXY_TEST_SLOW=1 includes them")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not SLOW:
        deselect(config, items, [item for item in items if item.get_closest_marker("slow")])


@pytest.fixture(autouse=True)
def collections() -> Iterator[None]:
    """Let garbage be collected as before a test that ran the program in this process."""
    yield
    gc.unfreeze()
    gc.enable()


@dataclass(frozen=True)
class Sample:
    """An image of two layers in a layout of its own."""

    layout: Layout
    descriptor: Json
    layers: tuple[bytes, ...]

    @property
    def name(self) -> str:
        return f"oci:{self.layout.path}"

    @property
    def manifest(self) -> bytes:
        return self.layout.read(self.descriptor["digest"])


class Serve(Protocol):
    """Start the program on so many socket pairs."""

    def __call__(
        self,
        image: str,
        *options: str,
        sockets: int = 1,
        policy: str | None = parent.INSECURE,
        env: Mapping[str, str] | None = None,
        files: Sequence[int] = (),
    ) -> parent.Child: ...


class Keep(Protocol):
    """Take a started program into care until the test's end."""

    def __call__(self, child: parent.Child) -> parent.Child: ...


class Listen(Protocol):
    """Start the program on a listening socket."""

    def __call__(self, image: str, *options: str, listener: socket.socket) -> parent.Child: ...


class Converse(Protocol):
    """Start a program that speaks skopeo's protocol, at home, and converse with it."""

    def __call__(
        self,
        *options: str,
        program: skopeo_client.Program = skopeo_client.OURS,
        before: Sequence[str] = (),
        by_option: bool = False,
        policy: str | None = parent.INSECURE,
        env: Mapping[str, str] | None = None,
        files: Sequence[int] = (),
    ) -> skopeo_client.Client: ...


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(tmp_path / "layout")


@pytest.fixture
def sample(layout: Layout) -> Sample:
    layers = (b"first layer" * 100, b"second layer" * 200)
    return Sample(layout, layout.save_image(*layers), layers)


@pytest.fixture
def keep() -> Iterator[Keep]:
    with ExitStack() as stack:
        yield lambda child: stack.enter_context(parent.closing(child))


@pytest.fixture
def serve(keep: Keep) -> Serve:
    return lambda image, *options, **named: keep(parent.start(image, *options, **named))


@pytest.fixture
def listen(keep: Keep) -> Listen:
    return lambda image, *options, listener: keep(parent.listen(image, *options, listener=listener))


@pytest.fixture
def converse(tmp_path: Path) -> Iterator[Converse]:
    home = Home(tmp_path / "home")

    def start(
        *options: str,
        program: skopeo_client.Program = skopeo_client.OURS,
        env: Mapping[str, str] | None = None,
        **named: Any,  # noqa: ANN401  (see Converse)
    ) -> skopeo_client.Client:
        program.require()
        environment = home.environment(**(env or {}))
        options = ("--override-os=linux", "--override-arch=amd64", *options)
        client = skopeo_client.start(*options, program=program, env=environment, **named)
        return stack.enter_context(skopeo_client.closing(client))

    with ExitStack() as stack:
        yield start
