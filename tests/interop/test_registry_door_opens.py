"""What a registry opens: nothing outside of the patterns and the paths that it was given."""

from __future__ import annotations

import os
import random
import signal
import string
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from support import parent, registry_doors
from support.archives import DIALECTS, layer, pack, saved, write_file
from support.commands import run
from support.effort import rounds
from support.registry_doors import REGISTRY, manifest
from support.traced import Recorded, recording

if TYPE_CHECKING:
    from support.home import Home

pytestmark = pytest.mark.slow

PIECES = [
    *("..", ".", "/", "//", "%2e", "%2E%2e", "%2f", "%5c", "%00", "%", "%c3%a9", "%252e", "\\"),
    *("etc", "passwd", "secret", "app", "library", "1", "A", "-", "_", "__", "~", "*", "<ref>"),
    *("manifests", "blobs", "tags", "list", "referrers", "_catalog", "proc", "self", "environ"),
    *("sha256:" + "0" * 64, "sha256:..", "localhost", "docker.io", ":5000", "[::1]", "a" * 130),
    *string.ascii_lowercase,
]
QUERIES = [
    "",
    "?ns=..",
    "?ns=%2e%2e%2f",
    "?ns=/etc",
    f"?ns={REGISTRY}",
    "?ns=localhost",
    "?last=../",
]


def hostile(count: int) -> list[str]:
    """Return targets, the same ones in every run."""
    chance = random.Random(18)

    def text(most: int) -> str:
        return "".join(chance.choices(PIECES, k=chance.randint(1, most)))

    found = []
    for _ in range(count):
        kind = chance.choice(["manifests", "blobs", "tags", "referrers"])
        target = f"/v2/{text(6)}/{kind}/{text(3)}{chance.choice(QUERIES)}"
        found.append(target.replace("\0", ""))
    return found


def test_nothing_else_is_opened(tmp_path: Path, home: Home) -> None:
    secret, given = tmp_path / "secret", tmp_path / "given"
    archive = pack(DIALECTS["skopeo"](saved(layer("x"), tags=[f"{REGISTRY}/app:1"])))
    write_file(secret / "1.tar", archive)
    write_file(secret / "passwd", b"root")
    write_file(given / "at/registry.example/other/1.tar", archive)
    write_file(given / "store/1-app.tar", archive)
    write_file(given / "images/app.tar", archive)
    (given / "refs").mkdir()
    options = [
        *("--sideload", f"{given}/at/<registry>/<name>/<ref>.tar"),
        *("--sideload", f"{given}/store/<ref>-<basename>.tar"),
        *("--sideload", f"{given}/refs/<ref>/<name>"),
        *("--images", f"{given}/images"),
    ]
    log = tmp_path / "strace"
    environment = home.environment(PYTHONDONTWRITEBYTECODE="1", COVERAGE_PROCESS_START=None)
    count = rounds("IMGPROXY_TEST_NAMES", slow=2000, quick=200)
    door = registry_doors.start(*options, "--catalog", env=environment, around=recording(log))
    with parent.closing(door.child):
        assert door.status(manifest(f"{REGISTRY}/app", "1")) == 200
        client = door.connect()
        for target in hostile(count):
            status = client.get(target).status
            assert status in {200, 400, 404}, target
            if status == 200:  # what anybody may ask for
                assert "/referrers/" in target, target
        assert door.status("/v2/_catalog") == 200
        assert door.status(manifest(f"{REGISTRY}/other", "1")) == 200
        assert not [line for line in door.child.stderr.splitlines() if " 404 " in line]
        (traced,) = (
            Path(f"/proc/{door.child.pid}/task/{door.child.pid}/children").read_text().split()
        )
        os.kill(int(traced), signal.SIGTERM)  # strace keeps its own
        door.child.wait()
    recorded = Recorded(log)
    assert recorded.written == []
    above = {str(given), *map(str, given.parents)}  # whose owners are looked at
    outside = {
        each.path
        for each in recorded.calls
        if not each.path.startswith(f"{given}/") and each.path not in above
    }
    here = {each for each in outside if each.startswith(str(tmp_path))}
    assert all(each.startswith(str(home.path)) for each in here), here
    opened = {each.path for each in recorded.calls if each.opens and each.path in outside}
    assert not {each for each in opened if "passwd" in each or "secret" in each}, opened
    there = f"{given}/at/registry.example/other/1.tar"
    assert any(each.opens and each.path == there for each in recorded.calls)


PATTERNS = [
    "at/<name>/<ref>.tar",
    "/at/<ref>",
    "/at/<name>",
    "/at/<path>/<ref>",
    "/at/<name/<ref>",
    "<name>/<ref>",
    "",
]


def test_patterns_that_cannot_be_are_usage_errors() -> None:
    for pattern in PATTERNS:
        done = run("registry", parent.INSECURE, "--listen", "127.0.0.1:0", "--sideload", pattern)
        assert done.status == 2, (pattern, done)
        assert "--sideload" in done.stderr
