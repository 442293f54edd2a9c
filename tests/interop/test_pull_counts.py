"""What a pull into a store costs, counted: requests, and calls that wait for the disk."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from support import commands
from support.disk_calls import Forks
from support.images import OCI_MANIFEST
from support.networks import line_to
from support.parent import INSECURE
from support.servers import (
    certificates,
    docker_registry,
    layout_as_registry,
    nginx,
    token_service,
)

if TYPE_CHECKING:
    from pathlib import Path

    from support.filled import Registry

PLAIN = "--tls-verify=false"

# Of three blobs and a manifest, into a new layout. Each blob is written to the disk once
# (fdatasync), as are the manifest, oci-layout, and index.json, empty and not (fsync); the names in
# blobs, blobs/sha256 and the layout are, before and after the image has its name.
FIRST = {"fdatasync": 3, "fsync": 4 + 3, "rename": 3 + 3, "link": 1}
# The names alone: that of a process that was killed may not be on the disk yet.
AGAIN = {"fdatasync": 0, "fsync": 3, "rename": 0, "link": 0}


def test_a_pull_asks_for_each_thing_once_and_waits_for_the_disk_once_for_each(
    registry: Registry, tmp_path: Path
) -> None:
    manifest = registry.layout.document(registry.images["latest"])
    digests = [each["digest"] for each in (manifest["config"], *manifest["layers"])]
    with (
        Forks(tmp_path / "forks") as forks,
        token_service(tmp_path / "tokens") as tokens,
        docker_registry(registry.directory, auth=tokens) as guarded,
        line_to(guarded) as line,
    ):
        image = registry.name(":latest", line.address)
        pull = ("pull", INSECURE, PLAIN, image, f"oci:{tmp_path}/store:os")
        first = forks.run(*pull)
        assert first.status == 0, first.stderr
        asked, line.asked[:] = list(map(str, line.asked)), []
        assert sorted(asked) == sorted(
            # the first has no token yet
            ["GET /v2/images/all/manifests/latest"] * 2
            + [f"GET /v2/images/all/blobs/{each}" for each in digests]
        )
        assert {name: first.calls.get(name, 0) for name in FIRST} == FIRST
        again = forks.run(*pull)
        assert again.status == 0, again.stderr
        assert list(map(str, line.asked)) == ["GET /v2/images/all/manifests/latest"] * 2
        assert len(tokens.scopes) == 2
        assert {name: again.calls.get(name, 0) for name in AGAIN} == AGAIN


@pytest.mark.slow
def test_an_anonymous_pull_of_what_is_there_takes_one_request(
    registry: Registry, tmp_path: Path
) -> None:
    with Forks(tmp_path / "forks") as forks, line_to(registry.address) as line:
        image = registry.name(":latest", line.address)
        pull = ("pull", INSECURE, PLAIN, image, f"oci:{tmp_path}/store:os")
        assert forks.run(*pull).status == 0
        line.asked.clear()
        assert forks.run(*pull).status == 0
        assert list(map(str, line.asked)) == ["GET /v2/images/all/manifests/latest"]


@pytest.mark.slow
def test_a_pull_over_tls_asks_on_the_connection_that_was_begun_while_it_started(
    registry: Registry, tmp_path: Path
) -> None:
    tls = certificates(tmp_path / "tls")
    front = tmp_path / "front"
    config = layout_as_registry(registry.layout.path, OCI_MANIFEST)
    image = f"x@{registry.images['latest']['digest']}"
    with nginx(front, config, tls=tls) as address, line_to(address) as line:
        for connections in (3, 1):
            line.connections = 0
            (front / "access.log").write_text("")
            done = commands.run(
                *("pull", INSECURE, f"docker://{line.address}/{image}", f"oci:{tmp_path}/store:os"),
                env={"SSL_CERT_FILE": str(tls.authority)},
            )
            assert done.status == 0, done.stderr
            assert line.connections <= connections
            assert (front / "access.log").read_text().count("/manifests/") == 1


@pytest.mark.parametrize(
    "words",
    [
        ("pull", "--all-platforms", "--artifact-type=a/b", "IMAGE", "oci:new"),
        ("copy", "--format=json", "IMAGE", "-"),
    ],
    ids=lambda words: words[0],
)
def test_nobody_is_asked_where_options_contradict_each_other(
    words: tuple[str, ...], registry: Registry
) -> None:
    with line_to(registry.address) as line:
        image = registry.name(":latest", line.address)
        name, *arguments = (image if each == "IMAGE" else each for each in words)
        done = commands.run(name, INSECURE, *arguments)
    assert done.status == 2, done.stderr
    assert line.connections == 0
