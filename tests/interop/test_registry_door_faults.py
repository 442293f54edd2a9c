"""Real clients before `imgproxy registry --upstream` whose upstream is slow and fails.

A pull has the right bytes or fails, and never hangs: clients are given a limit. The upstream sends
each byte once, whatever happens.
"""

from __future__ import annotations

import subprocess
import threading
from typing import TYPE_CHECKING

import pytest
from support import registry_clients
from support.damage import flip
from support.filled import MIB
from support.networks import Cut
from support.parent import eventually
from support.slow_upstreams import HANGING, SIZE, SLACK

if TYPE_CHECKING:
    from interop.conftest import Stages
    from support.slow_upstreams import Stage

pytestmark = pytest.mark.slow


def test_all_clients_at_once_before_a_slow_registry(stage: Stage) -> None:
    with stage.door() as door:
        stage.assert_pulled(stage.pull(door))
    stage.assert_asked_once()


def test_the_first_client_is_killed(stage: Stage) -> None:
    with stage.door() as door:
        home = stage.home("killed")
        command = [registry_clients.require("skopeo"), "--insecure-policy", "copy"]
        command += ["--src-tls-verify=false", f"docker://{door.address}/team/app:1", "oci:x:1"]
        first = subprocess.Popen(command, cwd=home.path, env=home.environment())
        assert eventually(lambda: stage.scene.line.passed > MIB)
        first.kill()
        first.wait()
        stage.assert_pulled(stage.pull(door))
    stage.assert_asked_once()


def test_a_registry_that_dies_in_the_middle(stages: Stages) -> None:
    with stages(Cut(SIZE // 2, "die")) as stage:
        with stage.door("--retries=1") as door:
            stage.assert_failed(stage.pull(door))
            stage.assert_failed(stage.pull(door, "skopeo"))
            stage.scene.line.dead = False
            assert eventually(lambda: stage.pull(door, "skopeo")["skopeo"].status == 0, HANGING)
            stage.assert_pulled(stage.pull(door))
        stage.assert_gone_on_with()


def test_a_registry_that_dies_and_comes_back(stages: Stages) -> None:
    with (
        stages(Cut(SIZE // 2, "die")) as stage,
        stage.door() as door,
    ):
        line = stage.scene.line

        def come_back() -> None:
            assert eventually(lambda: line.dead, HANGING)
            tried = line.connections
            assert eventually(lambda: line.connections > tried)
            line.dead = False

        returning = threading.Thread(target=come_back)
        returning.start()
        pulled = stage.pull(door)
        returning.join()
        stage.assert_pulled(pulled)
        stage.assert_gone_on_with()


def test_a_registry_that_lies(stage: Stage) -> None:
    (file,) = stage.scene.registry.directory.rglob(f"{stage.layers[0].partition(':')[2]}/data")
    flip(file, SIZE // 2)
    try:
        with stage.door("--retries=1") as door:
            stage.assert_failed(stage.pull(door))
            assert "DIGEST" in door.child.stderr.upper()
            # It is not asked again for what was wrong, for some minutes.
            stage.assert_failed(stage.pull(door, "skopeo", "containerd"))
            assert len(stage.asked_from()[stage.layers[0]]) == 1
    finally:
        flip(file, SIZE // 2)
    with stage.door() as door:
        stage.assert_pulled(stage.pull(door))


@pytest.mark.parametrize("status", [401, 403, 404, 429, 500])
@pytest.mark.parametrize("kind", ["/manifests/", "/blobs/"])
def test_a_registry_that_refuses(stage: Stage, kind: str, status: int) -> None:
    line = stage.scene.line
    with stage.door("--retries=0") as door:
        line.refusals[kind] = status
        stage.assert_failed(stage.pull(door))
        del line.refusals[kind]
        stage.assert_pulled(stage.pull(door))
    assert line.passed < stage.size + SLACK


@pytest.mark.parametrize("status", [401, 403, 404, 429, 500])
def test_a_registry_that_refuses_the_rest(stages: Stages, status: int) -> None:
    with stages(Cut(SIZE // 2, "end")) as stage, stage.door("--retries=1") as door:
        stage.scene.line.refusals["bytes="] = status
        stage.assert_failed(stage.pull(door))
        stage.scene.line.refusals.clear()
        stage.assert_pulled(stage.pull(door))
        stage.assert_gone_on_with()
