"""Many hosts behind one cache: distribution's registry in front of another, named as a mirror."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest
from support.damage import flip, respace
from support.home import REGISTRIES_CONF, mirror, table
from support.networks import line_to
from support.parent import eventually
from support.servers import docker_registry, stored_blob

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from interop.conftest import Pull
    from support.filled import Registry
    from support.home import Home
    from support.parent import Child

INSECURE = "insecure = true"
TAGS = ["latest", "large"]


class Fleet:
    """A cache in front of an origin; the lines to both, and what the cache keeps."""

    def __init__(self, directory: Path, registry: Registry) -> None:
        self.directory = directory
        self.registry = registry
        self.stack = ExitStack()
        self.origin = self.stack.enter_context(line_to(registry.address))
        self.behind = self.stack.enter_context(line_to(registry.address))
        cache = self.stack.enter_context(docker_registry(directory, origin=self.behind.address))
        self.cache = self.stack.enter_context(line_to(cache))

    def kept(self, tag: str) -> bool:
        """Return whether the cache has all of an image."""
        return all(stored_blob(self.directory, digest).exists() for digest in self.digests(tag))

    def digests(self, tag: str) -> list[str]:
        manifest = self.registry.layout.document(self.registry.images[tag])
        blobs = [each["digest"] for each in [manifest["config"], *manifest["layers"]]]
        return [self.registry.images[tag]["digest"], *blobs]


@pytest.fixture
def fleet(registry: Registry, tmp_path: Path) -> Iterator[Fleet]:
    fleet = Fleet(tmp_path / "cache", registry)
    with fleet.stack:
        yield fleet


@pytest.fixture
def pull_through(fleet: Fleet, pull: Pull, home: Home) -> Callable[..., Child]:
    """Pull an image of the origin whole, with the cache as its mirror; give the ended program."""

    def run(tag: str, *, status: int = 0) -> Child:
        home.write(
            REGISTRIES_CONF,
            table("", fleet.origin.address, INSECURE) + mirror(fleet.cache.address, INSECURE),
        )
        child = pull(fleet.registry.name(f":{tag}", fleet.origin.address), "--retries=0", sockets=2)
        manifest, *blobs = fleet.digests(tag)
        assert child.client.get("/manifest").body == fleet.registry.layout.read(manifest)
        for digest in blobs:
            reply = child.client.get(f"/blobs/{digest}")
            if status and not reply.complete:
                reply = child.clients[1].get(f"/blobs/{digest}")
            assert reply.status == 200, reply.body
            assert reply.body == fleet.registry.layout.read(digest)
        assert child.finish() == status
        return child

    return run


def warm(fleet: Fleet, pull_through: Callable[..., Child], tag: str) -> None:
    """Have the cache fetch an image, and forget what was asked for that."""
    pull_through(tag)
    assert eventually(lambda: fleet.kept(tag)), "the cache writes down what it has passed on"
    for line in (fleet.origin, fleet.behind, fleet.cache):
        line.asked.clear()


@pytest.mark.slow
@pytest.mark.parametrize("tag", TAGS)
def test_a_cold_cache_fetches_and_a_warm_one_keeps(
    tag: str, fleet: Fleet, pull_through: Callable[..., Child]
) -> None:
    pull_through(tag)
    assert fleet.origin.asked == [], "the origin is asked by its cache alone"
    assert len(fleet.behind.paths("/blobs/")) >= len(fleet.digests(tag)) - 1
    assert eventually(lambda: fleet.kept(tag))
    fleet.behind.asked.clear()
    pull_through(tag)
    assert fleet.origin.asked == []
    assert [
        each for each in fleet.behind.asked if each.method == "GET" and "/blobs/" in each.target
    ] == []


def test_a_dead_cache_is_passed_over(fleet: Fleet, pull_through: Callable[..., Child]) -> None:
    fleet.cache.dead = True
    child = pull_through("large")
    assert child.stderr == ""
    assert fleet.origin.paths("/blobs/")


def test_a_cache_that_lies_about_a_small_blob_is_passed_over(
    fleet: Fleet, pull_through: Callable[..., Child]
) -> None:
    warm(fleet, pull_through, "latest")
    _, _, bad, good = fleet.digests("latest")
    flip(stored_blob(fleet.directory, bad))
    pull_through("latest")
    assert fleet.origin.paths("/blobs/") == [f"/v2/images/all/blobs/{bad}"]
    assert len(fleet.cache.paths(good)) == 1


@pytest.mark.slow
def test_a_cache_that_lies_about_a_large_blob_is_asked_for_it_no_more(
    fleet: Fleet, pull_through: Callable[..., Child]
) -> None:
    warm(fleet, pull_through, "large")
    *_, bad = fleet.digests("large")
    flip(stored_blob(fleet.directory, bad))
    child = pull_through("large", status=4)
    assert fleet.origin.paths("/blobs/") == [f"/v2/images/all/blobs/{bad}"]
    assert f"{fleet.cache.address}/images/all" in child.stderr


@pytest.mark.slow
def test_a_cache_that_lies_about_a_manifest_is_passed_over(
    fleet: Fleet, pull_through: Callable[..., Child]
) -> None:
    warm(fleet, pull_through, "latest")
    respace(stored_blob(fleet.directory, fleet.digests("latest")[0]))
    pull_through("latest")
    assert fleet.origin.paths("/manifests/")


@pytest.mark.slow
@pytest.mark.parametrize("tag", TAGS)
def test_a_dead_origin_is_not_missed_while_its_cache_is_warm(
    tag: str, fleet: Fleet, pull_through: Callable[..., Child]
) -> None:
    warm(fleet, pull_through, tag)
    fleet.origin.dead = fleet.behind.dead = True
    pull_through(tag)
    assert fleet.origin.asked == []


def test_a_dead_origin_behind_a_cold_cache_is_an_error_that_names_both(
    fleet: Fleet, pull: Pull, home: Home
) -> None:
    fleet.origin.dead = fleet.behind.dead = True
    configuration = table("", fleet.origin.address, INSECURE)
    home.write(REGISTRIES_CONF, configuration + mirror(fleet.cache.address, INSECURE))
    child = pull(fleet.registry.name(":latest", fleet.origin.address), "--retries=0")
    reply = child.client.get("/manifest")
    assert reply.status in {503, 504}
    assert reply.error["detail"]["retryable"] is True
    assert fleet.origin.address in reply.message
    assert fleet.cache.address in reply.message
    assert child.finish() == 0
