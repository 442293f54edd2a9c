"""What people see of a pull: bars on a terminal, lines elsewhere, nothing if they want nothing."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

import pytest
from support.images import Layout, named
from support.parent import COMMAND, INSECURE, environment

if TYPE_CHECKING:
    from pathlib import Path

# What a terminal is told to draw a bar over the one before.
UP = b"\x1b[1A"
HIDDEN = b"\x1b[?25l"


@pytest.fixture
def image(tmp_path: Path) -> tuple[str, list[str]]:
    """Return an image, and the digests of its blobs."""
    layout = Layout(tmp_path / "layout")
    descriptor = layout.image(os.urandom(3_000_000), os.urandom(2_000_000), b"small")
    layout.save(named(descriptor, "os"))
    document = layout.document(descriptor)
    blobs = [document["config"], *document["layers"]]
    return f"oci:{layout.path}", [each["digest"] for each in blobs]


def on_a_terminal(*arguments: str, **variables: str) -> tuple[int, bytes]:
    """Run a command whose standard error is a terminal; return its status, and what that got."""
    ours, theirs = os.openpty()
    env = {**environment(), "TERM": "xterm", "COLUMNS": "120", **variables}
    with subprocess.Popen([*COMMAND, *arguments], stderr=theirs, env=env) as child:
        os.close(theirs)
        seen = b""
        try:
            while piece := os.read(ours, 1 << 16):
                seen += piece
        except OSError:  # how a terminal ends
            pass
        os.close(ours)
    return child.returncode, seen


def test_a_terminal_gets_bars(image: tuple[str, list[str]], tmp_path: Path) -> None:
    name, digests = image
    status, seen = on_a_terminal("pull", INSECURE, name, f"oci:{tmp_path / 'store'}")
    assert status == 0
    assert UP in seen
    assert HIDDEN not in seen  # a signal would leave it so
    assert "━".encode() in seen
    for digest in digests:
        assert f"imgproxy: {digest}: ".encode() in seen


def lines(seen: bytes) -> list[str]:
    """Return what each line is of, which are the blobs in any order and the name at the end."""
    *blobs, name = [line.split(": ")[1] for line in seen.decode().splitlines()]
    return [*sorted(blobs), name]


@pytest.mark.slow
def test_without_rich_a_terminal_gets_lines(image: tuple[str, list[str]], tmp_path: Path) -> None:
    name, digests = image
    (tmp_path / "absent").mkdir()
    (tmp_path / "absent/rich.py").write_text("raise ImportError")
    pull = ("pull", INSECURE, name, f"oci:{tmp_path / 'store'}")
    status, seen = on_a_terminal(*pull, PYTHONPATH=str(tmp_path / "absent"))
    assert (status, lines(seen)) == (0, [*sorted(digests), "os"])


@pytest.mark.slow
def test_a_terminal_that_cannot_draw_gets_lines(
    image: tuple[str, list[str]], tmp_path: Path
) -> None:
    name, digests = image
    status, seen = on_a_terminal("pull", INSECURE, name, f"oci:{tmp_path / 'store'}", TERM="dumb")
    assert (status, lines(seen)) == (0, [*sorted(digests), "os"])


@pytest.mark.slow
def test_what_fails_before_any_blob_is_one_line(tmp_path: Path) -> None:
    status, seen = on_a_terminal("pull", INSECURE, f"oci:{tmp_path}", f"oci:{tmp_path / 'store'}")
    assert (status, seen.count(b"\n"), seen[:10]) == (3, 1, b"imgproxy: ")


@pytest.mark.slow
def test_nobody_else_gets_bars(image: tuple[str, list[str]], tmp_path: Path) -> None:
    name, digests = image
    command = [*COMMAND, "pull", INSECURE, name, f"oci:{tmp_path / 'store'}"]
    done = subprocess.run(command, capture_output=True, check=True)
    assert lines(done.stderr) == [*sorted(digests), "os"]


@pytest.mark.slow
@pytest.mark.parametrize("option", ["--quiet", "-q"])
def test_a_quiet_pull_says_nothing(
    option: str, image: tuple[str, list[str]], tmp_path: Path
) -> None:
    pull = ("pull", INSECURE, option, image[0], f"oci:{tmp_path / 'store'}")
    assert on_a_terminal(*pull) == (0, b"")


@pytest.mark.slow
def test_a_failure_is_a_line_below_the_bars(image: tuple[str, list[str]], tmp_path: Path) -> None:
    name, digests = image
    path = name.removeprefix("oci:") + "/blobs/" + digests[1].replace(":", "/")
    os.truncate(path, 2_900_000)
    status, seen = on_a_terminal("pull", INSECURE, name, f"oci:{tmp_path / 'store'}")
    assert status == 4
    assert seen.rpartition(b"imgproxy: ")[2].startswith(b"pull: ")
