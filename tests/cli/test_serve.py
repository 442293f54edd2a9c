"""Serving one image, in this process: sockets, warnings, and what is closed at the end."""

from __future__ import annotations

import socket
import sys
import warnings
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest
from support.conversations import GET, QUIT, ask
from support.home import Home
from support.images import Layout
from support.parent import INSECURE, LIMIT
from support.streams import replies

from imgproxy.cli import options, runtime, serve
from imgproxy.errors import UsageError
from imgproxy.images.image import Image
from imgproxy.server.service import Service

if TYPE_CHECKING:
    from pathlib import Path

    from imgproxy.server.inherited_sockets import InheritedSockets


@pytest.fixture
def layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Layout:
    """Return an image in a layout, and a host without configuration."""
    for name, value in Home(tmp_path / "home").environment().items():
        monkeypatch.setenv(name, value)
    saved = Layout(tmp_path / "layout")
    saved.save_image(b"a layer")
    return saved


@pytest.fixture
def closed(monkeypatch: pytest.MonkeyPatch) -> list[Image]:
    """Return the images that have been closed."""
    images: list[Image] = []
    close = Image.close

    def noted(image: Image) -> None:
        images.append(image)
        close(image)

    monkeypatch.setattr(Image, "close", noted)
    return images


def served(layout: Layout, *requests: bytes) -> tuple[int, list[bytes]]:
    """Serve the image to parents that have asked already; give the status and what each got."""
    with ExitStack() as stack:
        pairs = [socket.socketpair() for _ in requests]
        for (theirs, _), request in zip(pairs, requests, strict=True):
            stack.enter_context(theirs)
            theirs.settimeout(LIMIT)
            theirs.sendall(request)
            theirs.shutdown(socket.SHUT_WR)
        sockets = [f"--sockfd={ours.detach()}" for _, ours in pairs]
        status = serve.run(options.parse([INSECURE, *sockets, f"oci:{layout.path}"]))
        received = []
        for theirs, _ in pairs:
            with theirs.makefile("rb") as file:
                received.append(file.read())
        return status, received


def test_an_image_is_served_on_each_descriptor_and_closed_at_the_end(
    layout: Layout, closed: list[Image]
) -> None:
    status, received = served(layout, GET, GET + ask("HEAD"), GET)
    assert status == 0
    bodies = set()
    for sent, methods in zip(received, (["GET"], ["GET", "HEAD"], ["GET"]), strict=True):
        first, *rest = replies(sent, *methods)
        assert [first.status, *(each.status for each in rest)] == [200] * len(methods)
        bodies.add(first.body)
    assert len(bodies) == 1
    assert len(closed) == 1


def test_an_image_is_closed_after_a_quit(layout: Layout, closed: list[Image]) -> None:
    status, (received,) = served(layout, GET + QUIT)
    assert status == 0
    assert [reply.status for reply in replies(received, "GET", "POST")] == [200, 200]
    assert len(closed) == 1


def test_an_image_is_closed_after_a_defect(
    layout: Layout,
    closed: list[Image],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    async def run(_: Service, inherited: InheritedSockets) -> int:
        for each in inherited.connected:
            assert isinstance(each, socket.socket)
            each.recv(len(GET))
            each.close()
        raise ZeroDivisionError

    monkeypatch.setattr(Service, "run", run)
    assert served(layout, GET) == (1, [b""])
    assert len(closed) == 1
    assert capfd.readouterr().err == (
        "imgproxy: serving: a defect of this program: ZeroDivisionError()\n"
    )


def test_a_file_that_cannot_be_read_is_a_usage_error_before_a_descriptor_is_taken(
    layout: Layout,
) -> None:
    ours, theirs = socket.socketpair()
    arguments = ["--policy=/nowhere", f"--sockfd={ours.fileno()}", f"oci:{layout.path}"]
    with ours, theirs:
        with pytest.raises(UsageError, match=r"^--policy /nowhere: No such file or directory"):
            serve.run(options.parse(arguments))
        assert ours.getsockname() is not None


@pytest.mark.parametrize(("options_", "shown"), [([], []), (["always"], ["advice"])])
def test_warnings_of_libraries_are_shown_only_if_asked_for(
    monkeypatch: pytest.MonkeyPatch, options_: list[str], shown: list[str]
) -> None:
    monkeypatch.setattr(sys, "warnoptions", options_)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        runtime.ignore_warnings()
        warnings.warn("advice", UserWarning, stacklevel=1)
    assert [str(each.message) for each in caught] == shown
