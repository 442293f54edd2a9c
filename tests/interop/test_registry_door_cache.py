"""The cache of `imgproxy registry --upstream`: several processes, death, rot, full disks, outages.

Real clients pull, and verify what they have.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
from support import registry_doors, upstreams
from support.commands import run
from support.damage import flip
from support.parent import INSECURE, eventually
from support.registry_doors import assert_is_refused, blob, manifest, path
from support.servers import PASSWORD, READER, certificates, docker_registry
from support.slow_upstreams import HANGING, SIZE
from support.upstreams import HTTP

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from support.filled import Registry
    from support.home import Home
    from support.slow_upstreams import Stage

pytestmark = pytest.mark.slow

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount")


def blob_file(stage: Stage, digest: str) -> Path:
    return stage.scene.cache / "blobs" / digest.replace(":", "/")


# --- several processes ----------------------------------------------------------------------------


def test_a_registry_that_is_killed_is_gone_on_from(stage: Stage) -> None:
    line = stage.scene.line
    with stage.door() as door, ThreadPoolExecutor(1) as pool:
        pulling = pool.submit(stage.pull, door, "containerd")
        assert eventually(lambda: stage.kept() > SIZE // 3, HANGING)
        door.child.process.send_signal(signal.SIGKILL)
        door.child.process.wait()
        pulling.result(HANGING)
    kept = stage.kept()
    stage.begin_anew()
    with stage.door() as door:
        stage.assert_pulled(stage.pull(door, "containerd"))
    assert line.passed < stage.size - kept + SIZE // 16
    assert stage.kept() >= stage.size


def test_two_registries_and_a_pull_with_one_cache(stage: Stage, home: Home) -> None:
    name = f"docker://{stage.scene.line.address}/team/app:1"
    options = [INSECURE, HTTP, f"--cache={stage.scene.cache}", "--platform=linux/amd64"]
    home.path.mkdir()
    with stage.door() as one, stage.door() as two, ThreadPoolExecutor(3) as pool:
        copying = pool.submit(
            run, "pull", *options, name, f"oci:{home.path}/copy:x", env=home.environment()
        )
        by_one = pool.submit(stage.pull, one, "containerd", "skopeo")
        by_two = pool.submit(stage.pull, two, "podman", "crane")
        assert copying.result(HANGING).status == 0, copying.result().stderr
        stage.assert_pulled(by_one.result(HANGING))
        stage.assert_pulled(by_two.result(HANGING))
    for digest in stage.layers:
        copied = home.path / "copy/blobs" / digest.replace(":", "/")
        assert copied.read_bytes() == stage.layout.read(digest)
        assert blob_file(stage, digest).read_bytes() == stage.layout.read(digest)
    stage.assert_asked_once()


# --- disks ----------------------------------------------------------------------------------------


def test_what_rots_is_fetched_again_and_given_to_nobody(stage: Stage) -> None:
    with stage.door() as door:
        stage.assert_pulled(stage.pull(door, "crane"))
    for digest in stage.layers[:3]:
        blob_file(stage, digest).chmod(0o600)
        flip(blob_file(stage, digest), -5)
    stage.begin_anew()
    with stage.door() as door:
        # Some see a blob break off at its end, and say so; what they have taken is right.
        for client, result in stage.pull(door).items():
            if result.status == 0:
                stage.assert_pulled({client: result})
        stage.assert_pulled(stage.pull(door))
        for digest in stage.layers:
            assert blob_file(stage, digest).read_bytes() == stage.layout.read(digest)
    assert {*map(tuple, stage.asked_from().values())} == {(0,)}


@contextmanager
def small_disk(path: Path, size: int) -> Iterator[None]:
    path.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", path], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", path], check=True)


@root_only
def test_a_disk_that_is_too_small_fails_nobody(stage: Stage) -> None:
    with small_disk(stage.scene.cache, SIZE // 2), stage.door() as door:
        stage.assert_pulled(stage.pull(door))
        assert "going on without the cache" in door.child.stderr
        assert not blob_file(stage, stage.layers[0]).exists()


@root_only
def test_a_disk_that_fills_up_on_the_way_fails_nobody(stage: Stage) -> None:
    """There was room when the blob was begun; others have taken it since."""
    disk = stage.size + SIZE // 4
    with (
        small_disk(stage.scene.cache, disk),
        stage.door() as door,
        ThreadPoolExecutor(1) as pool,
    ):
        pulling = pool.submit(stage.pull, door)
        assert eventually(lambda: stage.kept() > SIZE // 8, HANGING)
        other = stage.scene.cache / "other"
        with other.open("wb", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(1 << 20))
            except OSError:
                pass
        stage.assert_pulled(pulling.result(HANGING))
        other.unlink()
        stage.begin_anew()
        stage.assert_pulled(stage.pull(door))


# --- filled by others -----------------------------------------------------------------------------


def test_what_came_by_a_login_serves_nobody_without(registry: Registry, tmp_path: Path) -> None:
    """Else everybody on the host would have what the login of another run may fetch."""
    login, shared = f"--creds={READER}:{PASSWORD}", "--share-credentials"
    digest, layer = registry.images["latest"]["digest"], registry.layers("latest")[0]["digest"]
    with docker_registry(registry.directory, auth="htpasswd") as guarded:
        options = [HTTP, f"--cache={tmp_path / 'cache'}", f"--upstream={guarded}", "--retries=0"]
        name = f"{guarded}/images/all"
        documents = [manifest(name, "latest"), manifest(name, digest)]
        tags = path(name, "tags", "list")
        with registry_doors.running(*options, login, shared) as door:
            assert [door.status(each) for each in (*documents, blob(name, layer))] == [200] * 3
        with registry_doors.running(*options, "--no-creds") as door:
            for target in (*documents, tags):
                assert_is_refused(door.ask(target), 403, "DENIED")
            assert door.status(blob(name, layer)) in {403, 404}
    for option in ("--no-creds", "--no-creds --offline"):
        with registry_doors.running(*options, *option.split()) as door:
            for target in (*documents, tags):
                assert_is_refused(door.ask(target), 504, "UNSUPPORTED")
            assert door.status(blob(name, layer)) in {404, 504}
    with registry_doors.running(*options, login, shared) as door:
        assert door.ask(tags).json()["tags"] == ["latest"]
        assert [door.status(each) for each in (*documents, blob(name, layer))] == [200] * 3


def test_what_came_without_tls_serves_nobody_who_wants_it(
    registry: Registry, tmp_path: Path
) -> None:
    files = certificates(tmp_path / "tls")
    digest, layer = registry.images["latest"]["digest"], registry.layers("latest")[0]["digest"]
    with docker_registry(registry.directory, tls=files) as secure:
        options = [f"--cache={tmp_path / 'cache'}", f"--upstream={secure}", "--no-creds"]
        options += ["--retries=0"]
        name = f"{secure}/images/all"
        targets = [manifest(name, "latest"), manifest(name, digest)]
        with registry_doors.running(*options, HTTP) as door:
            assert [door.status(each) for each in (*targets, blob(name, layer))] == [200] * 3
        with registry_doors.running(*options) as door:  # the authority is not trusted
            assert [door.status(each) for each in targets] == [502] * 2
            assert door.status(blob(name, layer)) in {404, 502}
    with registry_doors.running(*options, "--offline") as door:
        assert [door.status(each) for each in targets] == [504] * 2
    with registry_doors.running(*options, "--offline", HTTP) as door:
        assert [door.status(each) for each in (*targets, blob(name, layer))] == [200] * 3


def test_what_another_policy_accepted_is_judged_by_this_one(
    registry: Registry, tmp_path: Path
) -> None:
    digest, layer = registry.images["latest"]["digest"], registry.layers("latest")[0]["digest"]
    policy = tmp_path / "policy.json"
    policy.write_text('{"default": [{"type": "reject"}]}')
    with upstreams.scene(registry, tmp_path) as scene:
        targets = [manifest(scene.name, each) for each in ("latest", digest)]
        targets.append(blob(scene.name, layer))
        with scene.door() as door:
            assert [door.status(each) for each in targets] == [200] * 3
        scene.asked()
        for options in ((), ("--offline",)):
            with scene.door(*options, policy=f"--policy={policy}") as door:
                assert [door.status(each) for each in targets[:2]] == [403] * 2
                assert door.status(targets[2]) in {403, 404}
        assert scene.asked() == []


# --- without the registry -------------------------------------------------------------------------


def test_what_was_pulled_before_comes_without_the_registry(stage: Stage) -> None:
    with stage.door() as door:
        stage.assert_pulled(stage.pull(door, "crane"))
        stage.scene.line.dead = True
        stage.begin_anew()
        stage.assert_pulled(stage.pull(door))
    for option in ("--retries=0", "--offline"):
        stage.begin_anew()
        with stage.door(option) as door:  # nothing of it is in memory
            stage.assert_pulled(stage.pull(door))
    assert stage.scene.line.passed == 0


def test_a_tag_serves_without_the_registry_as_long_as_it_may(stage: Stage) -> None:
    with stage.door() as door:
        stage.assert_pulled(stage.pull(door, "crane"))
    (tag,) = stage.scene.cache.glob(".imgproxy/names/*/tags/*")
    stage.scene.line.dead = True
    name = f"{stage.scene.line.address}/team/app"
    a_week_ago = int(time.time()) - 8 * 86400
    text = tag.read_text()
    before, _, rest = text.partition('"asked":')
    tag.write_text(f'{before}"asked":{a_week_ago}{rest.lstrip("0123456789")}')
    for option, status in (("--max-stale=7d", 504), ("--max-stale=9d", 200)):
        stage.begin_anew()
        with stage.door("--retries=0", option) as door:
            assert door.status(manifest(name, "1")) == status
            pulled = stage.pull(door)
            if status == 200:
                stage.assert_pulled(pulled)
            else:
                stage.assert_failed(pulled)
            # What is named by its digest is never too old.
            assert door.status(manifest(name, stage.image["digest"])) == 200
