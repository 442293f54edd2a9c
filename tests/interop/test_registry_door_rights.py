"""What may be had under a name: what that name leads to, if the policy accepts it.

To have bytes gives nobody a right to them. The same content lies here under several names, some of
which the policy rejects; requests come in every order, and after a restart.
"""

from __future__ import annotations

import json
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

import pytest
from support import registry_doors
from support.archives import DIALECTS, pack, saved, write_file, write_registry_tree
from support.images import Layout, digest_of, named
from support.registry_doors import REGISTRY, blob, manifest, path
from support.sigstores import Signer

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from support.images import Json
    from support.registry_doors import Door

OPEN, CLOSED = (f"{REGISTRY}/{each}" for each in ("open", "closed"))
SHARED, ONLY_OPEN, ONLY_CLOSED = b"in both", b"in the open one", b"in the closed one"

POLICY = {
    "default": [{"type": "insecureAcceptAnything"}],
    "transports": {"docker": {CLOSED: [{"type": "reject"}]}},
}


class Shelf(NamedTuple):
    """A layout with one image under an open and a closed name, and one under each alone."""

    layout: Layout
    both: Json
    opened: Json
    closed: Json

    def layer(self, content: bytes) -> str:
        (digest,) = {
            each["digest"]
            for image in (self.both, self.opened, self.closed)
            for each in self.layout.layers(image)
            if self.layout.read(each["digest"]) == content
        }
        return digest


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Shelf:
    layout = Layout(tmp_path_factory.mktemp("shelf") / "layout")
    both, opened, closed = (layout.image(SHARED, own) for own in (b"both", ONLY_OPEN, ONLY_CLOSED))
    layout.save(
        named(both, f"{OPEN}:both"),
        named(both, f"{CLOSED}:both"),
        named(opened, f"{OPEN}:1"),
        named(closed, f"{CLOSED}:1"),
    )
    return Shelf(layout, both, opened, closed)


@contextmanager
def guarded(directory: Path, *options: str, policy: Json = POLICY) -> Iterator[Door]:
    """Run a registry with a policy, written into the directory."""
    file = directory / "policy.json"
    file.write_text(json.dumps(policy))
    with registry_doors.running(*options, policy=f"--policy={file}") as door:
        yield door


def rows(shelf: Shelf) -> dict[str, int]:
    """Return requests with the status that each has, whatever was asked before."""
    both, opened, closed = (each["digest"] for each in (shelf.both, shelf.opened, shelf.closed))
    shared, only_open, only_closed = map(shelf.layer, (SHARED, ONLY_OPEN, ONLY_CLOSED))
    return {
        manifest(OPEN, "both"): 200,
        manifest(OPEN, both): 200,
        manifest(OPEN, opened): 200,
        manifest(OPEN, closed): 404,
        manifest(f"{REGISTRY}/another", both): 404,
        manifest("library/open", both): 404,
        blob(OPEN, shared): 200,
        blob(OPEN, only_open): 200,
        blob(OPEN, only_closed): 404,
        blob(f"{REGISTRY}/another", shared): 404,
        manifest(CLOSED, "both"): 403,
        manifest(CLOSED, "1"): 403,
        manifest(CLOSED, both): 403,
        manifest(CLOSED, closed): 403,
        blob(CLOSED, shared): 403,
        blob(CLOSED, only_closed): 403,
        blob(CLOSED, only_open): 403,
    }


def assert_statuses(door: Door, expected: dict[str, int], *fields: str) -> None:
    client = door.connect()
    for target, status in expected.items():
        for method in ("HEAD", "GET"):
            reply = client.request(method, target, *fields)
            assert reply.status == status, (method, target, reply)
            assert reply.get("WWW-Authenticate") is None


def test_the_name_that_was_asked_for_decides(shelf: Shelf, tmp_path: Path) -> None:
    expected = rows(shelf)
    backwards = dict(reversed(expected.items()))
    for order in (expected, backwards):  # cold, then warm, and after a restart
        with guarded(tmp_path, "--images", str(shelf.layout.path)) as door:
            for each in (order, expected, backwards):
                assert_statuses(door, each)


@pytest.mark.slow
def test_the_first_request_of_all_decides_nothing(shelf: Shelf, tmp_path: Path) -> None:
    for target, status in rows(shelf).items():
        with guarded(tmp_path, "--images", str(shelf.layout.path)) as door:
            assert door.status(target) == status, target


@pytest.mark.slow
def test_a_condition_or_a_range_does_not_get_around_it(shelf: Shelf, tmp_path: Path) -> None:
    refused = {target: status for target, status in rows(shelf).items() if status != 200}
    with guarded(tmp_path, "--images", str(shelf.layout.path)) as door:
        for field in ("If-None-Match: *", "Range: bytes=0-", "Range: bytes=1-1"):
            assert_statuses(door, refused, field)


@pytest.mark.slow
def test_lists_tell_nothing_of_what_others_have(shelf: Shelf, tmp_path: Path) -> None:
    with guarded(tmp_path, "--images", str(shelf.layout.path)) as door:
        assert door.ask(path(OPEN, "tags", "list")).json()["tags"] == ["1", "both"]
        reply = door.ask(path(OPEN, "referrers", shelf.closed["digest"]))
        assert reply.json()["manifests"] == []


@pytest.mark.slow
@pytest.mark.parametrize("first", [("open", "closed"), ("closed", "open")])
def test_files_of_two_names_with_the_same_layer(tmp_path: Path, first: tuple[str, str]) -> None:
    """Patterns, in either order of the requests; a Docker archive each."""
    for name, own in (("open", ONLY_OPEN), ("closed", ONLY_CLOSED)):
        image = saved(SHARED, own, tags=[f"{REGISTRY}/{name}:1"])
        write_file(tmp_path / f"at/{name}/1.tar", pack(DIALECTS["skopeo"](image)))
    shared, only_open, only_closed = map(digest_of, (SHARED, ONLY_OPEN, ONLY_CLOSED))
    expected = {
        "open": {manifest(OPEN, "1"): 200, blob(OPEN, shared): 200, blob(OPEN, only_closed): 404},
        "closed": {
            manifest(CLOSED, "1"): 403,
            blob(CLOSED, shared): 403,
            blob(CLOSED, only_closed): 403,
            blob(CLOSED, only_open): 403,
        },
    }
    with guarded(tmp_path, "--sideload", f"{tmp_path}/at/<name>/<ref>.tar") as door:
        for each in (*first, *first):
            assert_statuses(door, expected[each])


@pytest.mark.slow
def test_a_tree_that_keeps_all_blobs_in_one_directory(shelf: Shelf, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    for name, tag, image in (
        (OPEN, "both", shelf.both),
        (OPEN, "1", shelf.opened),
        (CLOSED, "both", shelf.both),
        (CLOSED, "1", shelf.closed),
    ):
        write_registry_tree(tree, name, tag, shelf.layout, image)
    pattern = f"{tree}/<registry>/<name>/manifests/<ref>"
    with guarded(tmp_path, "--sideload", pattern) as door:
        assert_statuses(door, rows(shelf))


@pytest.mark.slow
def test_unsigned_content_of_a_name_that_demands_signatures(shelf: Shelf, tmp_path: Path) -> None:
    (tmp_path / "key.pub").write_bytes(Signer().pem)
    policy = {
        "default": [{"type": "insecureAcceptAnything"}],
        "transports": {
            "docker": {OPEN: [{"type": "sigstoreSigned", "keyPath": f"{tmp_path}/key.pub"}]}
        },
    }
    with guarded(tmp_path, "--images", str(shelf.layout.path), policy=policy) as door:
        for target in (
            blob(OPEN, shelf.layer(SHARED)),
            manifest(OPEN, shelf.both["digest"]),
            manifest(OPEN, "both"),
        ):
            assert door.status(target) == 403, target
        assert door.status(blob(CLOSED, shelf.layer(SHARED))) == 200
