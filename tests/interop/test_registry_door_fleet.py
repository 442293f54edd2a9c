"""Registries of ours that are mirrors of one another, before a registry."""

from __future__ import annotations

import shutil
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest
from support import registry_clients, registry_doors, upstreams
from support.damage import flip
from support.filled import MIB
from support.home import REGISTRIES_CONF, Home, mirror, table
from support.images import Layout, named
from support.networks import Cut, line_to
from support.parent import eventually
from support.registry_doors import ABSENT, Door, assert_is_refused, blob, manifest, path
from support.servers import docker_registry, free_port, stored_blob

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from support.filled import Registry
    from support.networks import Line
    from support.registry_clients import Pulled
    from support.registry_doors import Door

INSECURE = "insecure = true"
NAME = "images/all"


class Fleet:
    """Nodes, each with the lines to all others as its mirrors, and the line to the origin."""

    def __init__(self, registry: Registry, directory: Path, stack: ExitStack) -> None:
        self.registry = registry
        self.origin = stack.enter_context(line_to(registry.address))
        self.nodes: list[Door] = []
        self.lines: list[Line] = []
        self._directory = directory
        self._stack = stack

    def start(self, count: int, *others: str) -> None:
        """Start nodes that have `others` as their first mirrors, and one another after those."""
        ports = [free_port() for _ in range(count)]
        self.lines = [self._stack.enter_context(line_to(f"127.0.0.1:{each}")) for each in ports]
        addresses = [each.address for each in self.lines]
        for number, port in enumerate(ports):
            mirrors = [*others, *(each for each in addresses if each != addresses[number])]
            self.nodes.append(self.node(str(number), mirrors, port))

    def node(self, name: str, mirrors: Sequence[str], port: int = 0, *options: str) -> Door:
        """Start a registry before the origin, with such mirrors."""
        home = Home(self._directory / name)
        tables = [table("", self.origin.address, INSECURE)]
        tables += [mirror(each, INSECURE) for each in mirrors]
        home.write(REGISTRIES_CONF, "".join(tables))
        chosen = [f"--upstream={self.origin.address}", f"--cache={self._directory / name}/cache"]
        chosen += [f"--default-registry={self.origin.address}", "--no-creds"]
        environment = home.environment()
        node = registry_doors.running(*chosen, *options, env=environment, port=port)
        return self._stack.enter_context(node)

    def pull(self, node: Door, tag: str) -> None:
        """Pull an image, whose bytes are right."""
        image, layout = self.registry.images[tag], self.registry.layout
        assert node.ask(manifest(NAME, tag)).body == layout.read(image["digest"])
        for each in [layout.document(image)["config"], *self.registry.layers(tag)]:
            assert node.ask(blob(NAME, each["digest"])).body == layout.read(each["digest"])

    def asked(self, kind: str = "/v2/images") -> list[str]:
        """Return what the origin was asked for, and forget it; what the nodes were asked too."""
        found = self.origin.paths(kind)
        for each in (self.origin, *self.lines):
            each.asked.clear()
        return found


@pytest.fixture
def fleet(registry: Registry, tmp_path: Path) -> Iterator[Fleet]:
    with ExitStack() as stack:
        yield Fleet(registry, tmp_path, stack)


def test_what_nobody_has_is_not_asked_for_in_circles(fleet: Fleet) -> None:
    fleet.start(2)
    layer = fleet.registry.layers("latest")[0]["digest"]
    for target, code in [
        (manifest(NAME, "absent"), "MANIFEST_UNKNOWN"),
        (manifest(NAME, ABSENT), "MANIFEST_UNKNOWN"),
        (blob(NAME, layer), "BLOB_UNKNOWN"),  # no manifest of the name has been asked for
        (path("images/none", "tags", "list"), "NAME_UNKNOWN"),
    ]:
        assert_is_refused(fleet.nodes[0].ask(target), 404, code)
        assert fleet.lines[0].paths() == [], "nobody asks back"
        assert len(fleet.lines[1].paths()) <= 1
        assert len(fleet.asked()) <= 1


@pytest.mark.slow
def test_what_nobody_has_while_the_origin_is_away_is_no_404(fleet: Fleet) -> None:
    fleet.origin.dead = True
    fleet.start(3)
    for reference in ("latest", ABSENT):
        reply = fleet.nodes[0].ask(manifest(NAME, reference))
        assert_is_refused(reply, 504, "UNSUPPORTED")
    assert fleet.lines[0].paths() == []


@pytest.mark.slow
def test_a_fleet_asks_for_a_blob_once(fleet: Fleet) -> None:
    fleet.start(3)
    for number, node in enumerate(fleet.nodes):
        fleet.pull(node, "large")
        assert len(fleet.asked("/blobs/")) == (0 if number else 2)
    tags = fleet.nodes[0].ask(path(NAME, "tags", "list")).json()["tags"]
    assert {*fleet.registry.images} <= {*tags}, "those of the origin"
    fleet.origin.dead = True
    image = fleet.registry.images["large"]["digest"]
    fleet.nodes[0].child.stop()
    late = fleet.node("late", [each.address for each in fleet.lines])
    layout = fleet.registry.layout
    assert late.ask(manifest(NAME, image)).body == layout.read(image)
    for each in fleet.registry.layers("large"):
        assert late.ask(blob(NAME, each["digest"])).body == layout.read(each["digest"])


@pytest.mark.slow
def test_nodes_that_are_asked_at_once_do_not_wait_for_each_other(fleet: Fleet) -> None:
    """Each would wait for what the other has asked it for, and neither would get it."""
    fleet.start(3)
    nodes = list(fleet.nodes)
    upstreams.all_at_once(len(nodes), lambda: fleet.pull(nodes.pop(), "large"))
    asked = fleet.asked("/blobs/")
    assert 2 <= len(asked) <= 2 * len(fleet.nodes), asked


@pytest.mark.slow
def test_what_a_node_has_of_its_own_and_tags_that_it_asked_a_moment_ago(
    fleet: Fleet, tmp_path: Path
) -> None:
    layout = Layout(tmp_path / "images")
    own = layout.image(b"a layer of its own")
    layout.save(named(own, f"{fleet.origin.address}/{NAME}:own"))
    nowhere = f"127.0.0.1:{free_port()}"
    first = fleet.node("first", [nowhere], 0, "--images", str(layout.path), "--tag-ttl=600")
    second = fleet.node("second", [first.address])
    assert first.status(manifest(NAME, "latest")) == 200
    fleet.origin.dead = True
    assert second.ask(manifest(NAME, "own")).body == layout.read(own["digest"])
    for each in layout.layers(own):
        assert second.ask(blob(NAME, each["digest"])).body == layout.read(each["digest"])
    assert second.status(manifest(NAME, "latest")) == 200
    # What the second one would still give to clients may not be what it stands for by now.
    third = fleet.node("third", [second.address])
    assert third.status(manifest(NAME, "latest")) == 504
    assert second.status(manifest(NAME, "latest")) == 200


@pytest.mark.slow
def test_a_node_is_not_waited_for_while_it_waits(fleet: Fleet) -> None:
    """What another node is fetching is not there yet, however long that takes."""
    fleet.start(2)
    layer = fleet.registry.layers("large")[0]["digest"]
    first, second = fleet.nodes
    assert first.status(manifest(NAME, "large")) == 200
    fleet.origin.cuts.append(Cut(fleet.origin.passed + MIB, "stall"))
    client = first.connect()
    client.ask("GET", blob(NAME, layer))
    assert client.head().status == 200
    assert eventually(lambda: fleet.origin.broken == 1)
    fleet.pull(second, "large")
    assert fleet.lines[0].paths(layer) == [f"/v2/{NAME}/blobs/{layer}"], "it was asked"


@pytest.mark.slow
@pytest.mark.parametrize("client", [registry_clients.skopeo, registry_clients.crane])
@pytest.mark.parametrize("tag", ["latest", "large"])
def test_one_lies_and_one_is_dead(
    fleet: Fleet, client: Callable[[str, Home], Pulled], tag: str, tmp_path: Path
) -> None:
    """A client gets what is right from each node, whatever these are told."""
    shutil.copytree(fleet.registry.directory, tmp_path / "liar")
    image = fleet.registry.images[tag]
    wrong = fleet.registry.layers(tag)[0]["digest"]
    flip(stored_blob(tmp_path / "liar", wrong))
    with docker_registry(tmp_path / "liar") as address, line_to(address) as liar:
        fleet.start(2, liar.address, f"127.0.0.1:{free_port()}")
        for number, node in enumerate(fleet.nodes):
            home = Home(tmp_path / f"client-{number}")
            home.path.mkdir()
            for _ in range(2):  # what is found wrong in the end is cut short, and had anew
                pulled = client(f"{node.address}/{NAME}:{tag}", home)
                if pulled.status == 0:
                    break
            assert pulled.status == 0, (pulled.output, node.child.stderr)
            layout = next(home.path.glob("*/blobs/sha256"))
            for each in (image, *fleet.registry.layers(tag)):
                name = each["digest"].partition(":")[2]
                assert (layout / name).read_bytes() == fleet.registry.layout.read(each["digest"])
            assert fleet.asked(wrong) == ([] if number else [f"/v2/{NAME}/blobs/{wrong}"])
            assert liar.paths(wrong) == [f"/v2/{NAME}/blobs/{wrong}"], "it was asked first"
            liar.asked.clear()


@pytest.mark.slow
def test_a_mirror_without_mirrors_fetches_for_all(fleet: Fleet) -> None:
    """It is asked by registries as by clients, and asks the origin once."""
    rack = fleet.node("rack", [])
    nodes = [fleet.node(str(number), [rack.address]) for number in range(3)]
    waiting = list(nodes)
    upstreams.all_at_once(len(nodes), lambda: fleet.pull(waiting.pop(), "large"))
    asked = fleet.asked("/blobs/")
    assert len(asked) == 2, asked
    assert nodes[0].status(manifest(NAME, "absent")) == 404
    assert len(fleet.asked("absent")) <= 2  # by the rack, and by the node itself
    rack.child.stop()
    assert eventually(lambda: nodes[0].status(manifest(NAME, "latest")) == 200)
