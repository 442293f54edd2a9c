"""`extract` and `unpack` ask for the next layer while one is on its way, and for none in vain."""

from __future__ import annotations

import json
import threading
from typing import TYPE_CHECKING

import pytest
from support import commands
from support.images import OCI_MANIFEST, Layout
from support.parent import INSECURE
from support.real_trees import image
from support.servers import http_server
from support.unpacking import END, entry

if TYPE_CHECKING:
    from pathlib import Path

    from support.servers import Answering

PLAIN = "--tls-verify=false"
PATIENCE = 20.0  # seconds, before the test fails


@pytest.mark.parametrize("command", ["extract", "unpack"])
@pytest.mark.parametrize("is_broken", [False, True], ids=["whole", "broken"])
def test_the_next_layer_is_asked_for_before_the_one_before_it_is_there(
    command: str,
    is_broken: bool,  # noqa: FBT001  (a parameter)
    tmp_path: Path,
) -> None:
    """Where the first one fails, what was asked for ahead is dropped without a word."""
    layout = Layout(tmp_path / "layout")
    names = [f"file{number}" for number in range(4)]
    image(layout, *(entry(name, name.encode()) + END for name in names))
    descriptor = json.loads((layout.path / "index.json").read_bytes())["manifests"][0]
    layers = [each["digest"] for each in layout.layers(descriptor)]
    asked: list[str] = []
    next_is_asked_for = threading.Event()

    def get(request: Answering) -> None:
        wanted = request.path.rpartition("/")[2]
        content = (layout.path / "blobs/sha256" / wanted.partition(":")[2]).read_bytes()
        if "/manifests/" in request.path:
            request.answer(200, content, Content_Type=OCI_MANIFEST)
            return
        asked.append(wanted)
        if wanted == layers[1]:
            next_is_asked_for.set()
        if wanted == layers[0]:
            assert next_is_asked_for.wait(PATIENCE)
            content = content[:-1] + b"x" if is_broken else content
        request.answer(200, content)

    with http_server(get) as address:
        name = f"docker://{address}/x@{descriptor['digest']}"
        done = commands.run(command, INSECURE, PLAIN, name, str(tmp_path / "tree"))
    if is_broken:
        assert done.status == 4, done.stderr
        assert not (tmp_path / "tree").exists()
        assert layers[3] not in asked
    else:
        assert done.status == 0, done.stderr
        assert sorted(each.name for each in (tmp_path / "tree").iterdir()) == names
        assert sorted(set(layers) & set(asked)) == sorted(layers)
    assert len(asked) == len(set(asked))
    assert "Traceback" not in done.stderr
