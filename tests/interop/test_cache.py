"""`--cache`: a real registry that goes away, children that are killed, files that rot."""

from __future__ import annotations

import json
import os
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, NamedTuple

import pytest
from support.commands import run
from support.damage import flip, lose, shorten
from support.images import digest_of
from support.networks import Line, line_to
from support.parent import INSECURE, eventually
from support.pulled import Pulled, pull_from, refused
from support.pulled import pull as pulled_by
from support.servers import certificates, docker_registry, http_server

from imgproxy.specs.oci import digest as digests

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from conftest import Converse
    from interop.conftest import Pull
    from support.filled import Registry
    from support.home import Home
    from support.parent import Client
    from support.servers import Answering

HTTP = "--tls-verify=false"
AMD64 = "--platform=linux/amd64"
STALE = "using what was there"

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount")


class Scene(NamedTuple):
    """A registry behind a line that can be cut, and a cache that is empty at first."""

    registry: Registry
    line: Line
    cache: Path
    start: Pull

    def name(self, reference: str) -> str:
        return self.registry.name(reference, self.line.address)

    def pull(self, reference: str, *options: str) -> Pulled:
        """Pull an image by HTTP, without a word on standard error."""
        return pull_from(self.start(self.name(reference), HTTP, f"--cache={self.cache}", *options))

    def pull_stale(self, reference: str, *options: str, lines: int = 1) -> Pulled:
        """Pull an image whose registry is not asked; the age is told."""
        child = self.start(self.name(reference), HTTP, f"--cache={self.cache}", *options)
        pulled = pulled_by(child.client)
        for target in ("/manifest", "/config"):
            reply = child.client.get(target)
            assert reply.get("Warning") == '110 imgproxy "Response is Stale"'
            assert int(reply.get("Age") or "") >= 0
        assert child.finish() == 0
        assert child.stderr.count("\n") == lines
        assert STALE in child.stderr
        return pulled

    def asked(self, kind: str) -> list[str]:
        """Return the requests for what is of a kind, and forget them."""
        found = self.line.paths(f"/{kind}/")
        self.line.asked.clear()
        return found

    def records(self, kind: str) -> list[Path]:
        return sorted(self.cache.glob(f".imgproxy/names/*/{kind}/*"))


@pytest.fixture
def scene(registry: Registry, tmp_path: Path, pull: Pull) -> Iterator[Scene]:
    with line_to(registry.address) as line:
        yield Scene(registry, line, tmp_path / "cache", pull)


def check_blobs(cache: Path) -> None:
    """Assert that all blobs in a cache are what their names say."""
    for file in cache.glob("blobs/*/*"):
        assert digests.compute(file.read_bytes(), file.parent.name).encoded == file.name


# --- what is asked for ------------------------------------------------------------------------


def test_digests_are_asked_for_once_and_tags_each_time(scene: Scene) -> None:
    first = scene.pull(":index")
    assert len(scene.asked("blobs")) == 2
    assert scene.pull(":index") == first
    assert scene.line.paths("/manifests/") == ["/v2/images/all/manifests/index"]
    assert scene.asked("blobs") == []
    check_blobs(scene.cache)
    assert scene.pull(":index", "--tag-ttl=600") == first
    digest = scene.registry.images["index"]["digest"]
    assert scene.pull(f"@{digest}") == first
    assert scene.line.asked == []


@pytest.mark.slow
def test_a_blob_of_another_image_is_not_asked_for_again(scene: Scene) -> None:
    first = scene.pull(":latest")
    scene.asked("blobs")
    other = "docker://" + scene.name(":latest").removeprefix("docker://").replace("all", "none")
    child = scene.start(other, HTTP, f"--cache={scene.cache}")
    assert child.client.get("/manifest").status == 404  # to have it gives no right to it
    digest = digest_of(first.raw)
    by_digest = scene.start(
        other.replace(":latest", f"@{digest}"), HTTP, f"--cache={scene.cache}", "--offline"
    )
    assert "is not in the cache" in by_digest.client.get("/manifest").message


@pytest.mark.slow
def test_a_child_that_was_killed_in_mid_blob_is_gone_on_with(scene: Scene) -> None:
    (layer,) = scene.registry.layers("large")
    child = scene.start(scene.name(":large"), HTTP, f"--cache={scene.cache}")
    child.client.ask("GET", f"/blobs/{layer['digest']}")
    assert child.client.head().status == 200
    child.client.read(layer["size"] // 4)
    (part,) = scene.cache.glob(".imgproxy/partial/*")
    child.process.kill()
    child.process.wait()
    kept = part.stat().st_size
    assert 0 < kept < layer["size"]
    scene.line.passed = 0
    assert len(scene.pull(":large").layers[0]) == layer["size"]
    assert scene.line.passed < layer["size"] - kept + 65536
    check_blobs(scene.cache)


@pytest.mark.slow
def test_two_processes_fetch_a_blob_once(scene: Scene) -> None:
    (layer,) = scene.registry.layers("large")
    children = [
        scene.start(scene.name(":large"), HTTP, f"--cache={scene.cache}", sockets=2)
        for _ in range(2)
    ]
    clients = [client for child in children for client in child.clients]
    for client in clients:
        client.ask("GET", f"/blobs/{layer['digest']}")

    def read(client: Client) -> str:
        assert client.head().status == 200
        return digest_of(client.read(layer["size"]))

    with ThreadPoolExecutor(len(clients)) as pool:
        assert set(pool.map(read, clients)) == {layer["digest"]}
    assert len(scene.line.paths("/blobs/")) == 1


# --- without the registry ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "options", [["--offline"], pytest.param(["--retries=0"], marks=pytest.mark.slow)]
)
def test_an_image_starts_without_its_registry(options: list[str], scene: Scene) -> None:
    first = scene.pull(":index")
    scene.line.dead = True
    before = scene.line.connections
    assert scene.pull_stale(":index", *options) == first
    assert (scene.line.connections == before) is ("--offline" in options)
    refused(
        scene.start(scene.name(":latest"), HTTP, f"--cache={scene.cache}", "--offline"),
        *(404, "is not in the cache", "--offline forbids asking the registry"),
    )


@pytest.mark.slow
def test_skopeos_protocol_has_it_too(scene: Scene, converse: Converse) -> None:
    options = (HTTP, f"--cache={scene.cache}")
    scene.pull(":index")
    scene.line.dead = True
    client = converse(*options, "--offline")
    client.initialize()
    image = client.open(scene.name(":index"))
    for layer in client.get("GetLayerInfo", image).value:
        assert digest_of(client.blob(image, layer)) == layer["digest"]
    assert client.finalize() == 0
    assert STALE in client.child.stderr


@pytest.mark.slow
def test_pull_has_it_too_and_says_so(scene: Scene, home: Home, tmp_path: Path) -> None:
    def copy(store: Path, *options: str) -> dict[str, object]:
        cache = f"--cache={scene.cache}"
        done = run(
            *("pull", INSECURE, HTTP, AMD64, cache, "--format=json", *options),
            *(scene.name(":index"), f"oci:{store}:os"),
            env=home.environment(),
        )
        assert done.status == 0, done.stderr
        found: dict[str, object] = done.json()
        return found

    first = copy(tmp_path / "one")
    assert "stale" not in first
    assert run("gc", f"oci:{scene.cache}", "--grace=0", "--format=json").json()["files"] == 0
    scene.line.dead = True
    again = copy(tmp_path / "two", "--offline")
    assert again["digest"] == first["digest"]
    assert again["stale"] is True
    assert isinstance(again["age"], int)
    assert copy(scene.cache, "--offline")["digest"] == first["digest"]  # the cache as a store
    check_blobs(scene.cache)


@pytest.mark.slow
def test_list_has_it_too_and_says_so(scene: Scene, home: Home) -> None:
    def listed(*options: str) -> dict[str, object]:
        cache = f"--cache={scene.cache}"
        done = run(
            *("list", HTTP, cache, "--format=json", *options, scene.name(":index")),
            env=home.environment(),
        )
        assert done.status == 0, done.stderr
        found: dict[str, object] = done.json()
        return found

    first = listed()
    assert "stale" not in first
    scene.line.dead = True
    again = listed("--offline")
    assert again["items"] == first["items"]
    assert (again["stale"], type(again["age"])) == (True, int)


@pytest.mark.slow
def test_what_is_too_old_does_not_serve(scene: Scene) -> None:
    scene.pull(":latest")
    scene.line.dead = True
    (tag,) = scene.records("tags")
    record = json.loads(tag.read_bytes())
    tag.write_text(json.dumps({**record, "asked": int(time.time()) - 8 * 86400}))
    start = scene.start(scene.name(":latest"), HTTP, f"--cache={scene.cache}", "--offline")
    refused(start, 404, "the cached one is 8 d old, and --max-stale is 7 d", "--offline")
    scene.pull_stale(":latest", "--offline", "--max-stale=9d")
    never = (HTTP, f"--cache={scene.cache}", "--max-stale=0", "--retries=0")
    refused(scene.start(scene.name(":latest"), *never), 504)


@pytest.mark.slow
def test_an_answer_counts_and_a_failure_does_not(
    registry: Registry, tmp_path: Path, pull: Pull
) -> None:
    """401, 403 and 404 say what the image is now; 5xx say nothing."""
    status = 200
    content = registry.layout.read(registry.images["latest"]["digest"])
    media_type = registry.images["latest"]["mediaType"]

    def answer(request: Answering) -> None:
        request.answer(status, content if status == 200 else b"", Content_Type=media_type)

    with http_server(answer) as address:
        options = (HTTP, f"--cache={tmp_path / 'cache'}", "--retries=0")
        image = f"docker://{address}/os:1"
        assert pull(image, *options).client.get("/manifest").status == 200
        for status in (500, 503, 501, 429):  # noqa: B007  (it is what is answered)
            reply = pull(image, *options).client.get("/manifest")
            assert (reply.status, reply.body) == (200, content)
            assert reply.get("Warning")
        for status, told in ((401, 403), (403, 403), (404, 404)):  # noqa: B007
            assert pull(image, *options).client.get("/manifest").status == told


@pytest.mark.slow
def test_what_came_without_verified_tls_serves_whoever_accepts_that(
    registry: Registry, tmp_path: Path, pull: Pull
) -> None:
    tls = certificates(tmp_path / "tls")
    env = {"SSL_CERT_FILE": str(tls.authority)}
    cache = f"--cache={tmp_path / 'cache'}"
    with docker_registry(registry.directory, tls=tls) as address:
        image = registry.name(":index", address)
        chosen = digest_of(pull_from(pull(image, HTTP, cache)).raw)
        pull_from(pull(image, HTTP, cache))
        by_digest = registry.name(f"@{chosen}", address)
        refused(pull(by_digest, cache, "--offline", env=env), 404, "without verified TLS")
        safe = pull(image, cache, "--offline", env=env)
        refused(safe, 404, "without verified TLS, which --tls-verify=false accepts", "--offline")
        assert pull(image, HTTP, cache, "--offline").client.get("/manifest").status == 200
        pull_from(pull(image, cache, env=env))
    assert pull(image, cache, "--offline", env=env).client.get("/manifest").status == 200


# --- what is broken ---------------------------------------------------------------------------

DAMAGES = {"flip": flip, "shorten": shorten, "lose": lose}


@pytest.mark.slow
@pytest.mark.parametrize("kind", DAMAGES)
def test_every_file_that_rots_is_fetched_again(kind: str, scene: Scene) -> None:
    first = scene.pull(":index")
    files = sorted(
        each for each in scene.cache.rglob("*") if each.is_file() and each.stat().st_size
    )
    assert len(files) >= 8
    for file in files:
        DAMAGES[kind](file)
        offline = scene.start(scene.name(":index"), HTTP, f"--cache={scene.cache}", "--offline")
        for target in ("/manifest", "/config", f"/blobs/{digest_of(first.layers[0])}"):
            reply = offline.client.get(target)
            if reply.status == 200:
                assert reply.body in (first.raw, first.config, first.layers[0])
            else:
                assert "--offline" in reply.message
        offline.finish()
        pulled = pulled_by(scene.start(scene.name(":index"), HTTP, f"--cache={scene.cache}").client)
        assert pulled == first, file
        again = scene.start(scene.name(":index"), HTTP, f"--cache={scene.cache}", "--offline")
        assert pulled_by(again.client) == first, file
    check_blobs(scene.cache)


@pytest.mark.slow
def test_rot_is_found_removed_and_fetched_again(scene: Scene) -> None:
    first = scene.pull(":latest")
    for file in scene.cache.glob("blobs/*/*"):
        flip(file)
    assert scene.pull(":latest") == first
    check_blobs(scene.cache)
    scene.pull_stale(":latest", "--offline")


@pytest.mark.slow
def test_rot_of_a_large_blob_breaks_one_reply_off(scene: Scene) -> None:
    (layer,) = scene.registry.layers("large")
    scene.pull(":large")
    flip(scene.cache / "blobs/sha256" / layer["digest"].removeprefix("sha256:"), 5_000_000)
    child = scene.start(scene.name(":large"), HTTP, f"--cache={scene.cache}")
    reply = child.client.get(f"/blobs/{layer['digest']}")
    assert (reply.status, reply.complete, reply.ending) == (200, False, "end")
    assert child.finish() == 4
    scene.pull(":large")
    check_blobs(scene.cache)


@contextmanager
def mounted(path: Path, *options: str) -> Iterator[None]:
    path.mkdir(exist_ok=True)
    subprocess.run(["mount", *options, str(path)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", str(path)], check=True)


@root_only
@pytest.mark.slow
def test_a_full_disk_fails_no_request(scene: Scene) -> None:
    with mounted(scene.cache, "-t", "tmpfs", "-o", "size=2m", "tmpfs"):
        child = scene.start(scene.name(":large"), HTTP, f"--cache={scene.cache}")
        first = pulled_by(child.client)
        assert child.client.get("/config").status == 200
        assert child.finish() == 0
        assert child.stderr.count("\n") == 1
        assert "the disk has room for" in child.stderr
        with (scene.cache / "full").open("wb", buffering=0) as file, suppress(OSError):
            while True:
                file.write(bytes(4096))
        full = scene.start(scene.name(":latest"), HTTP, f"--cache={scene.cache}")
        assert len(pulled_by(full.client).layers) == 2
        assert full.finish() == 0
        assert full.stderr.count("\n") == 1
        assert len(first.layers) == 1


@root_only
@pytest.mark.slow
def test_a_cache_that_cannot_be_written_is_read(scene: Scene) -> None:
    first = scene.pull(":index")
    with mounted(scene.cache, "--bind", str(scene.cache)):
        remount = ["mount", "-o", "remount,bind,ro", str(scene.cache)]
        subprocess.run(remount, check=True)
        scene.asked("blobs")
        for reference, blobs in ((":index", 0), (":latest", 3)):
            child = scene.start(scene.name(reference), HTTP, f"--cache={scene.cache}")
            pulled = pulled_by(child.client)
            assert child.finish() == 0
            assert child.stderr.count("\n") == 1
            assert "Read-only file system" in child.stderr
            assert len(scene.asked("blobs")) == blobs
            assert (pulled == first) is (reference == ":index")
        scene.pull_stale(":index", "--offline", lines=2)


@pytest.mark.slow
def test_a_directory_that_is_no_cache_is_left_alone(scene: Scene) -> None:
    scene.cache.mkdir()
    (scene.cache / "file").touch()
    child = scene.start(scene.name(":latest"), HTTP, f"--cache={scene.cache}")
    pulled_by(child.client)
    assert child.finish() == 0
    assert child.stderr.endswith("cache is neither an OCI layout nor empty\n")
    assert os.listdir(scene.cache) == ["file"]


# --- room -------------------------------------------------------------------------------------


@pytest.mark.slow
def test_what_was_used_last_stays(scene: Scene) -> None:
    scene.pull(":large")
    (large,) = scene.registry.layers("large")
    blob = scene.cache / "blobs/sha256" / large["digest"].removeprefix("sha256:")
    assert blob.exists()
    for record in scene.records("documents"):
        os.utime(record, (1, 1))
    latest = scene.pull(":latest", "--cache-size=1M")
    assert eventually(lambda: not blob.exists())
    assert len(scene.records("documents")) == len(scene.records("tags")) == 1
    scene.asked("blobs")
    assert scene.pull(":latest", "--cache-size=1M") == latest
    assert scene.asked("blobs") == []
    scene.pull(":large", "--cache-size=1M")  # it has no room at all
    assert not blob.exists()
