"""No request that is not needed: how many there are in a pull, as a registry sees it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from support.home import REGISTRIES_CONF, mirror, table
from support.networks import line_to
from support.servers import docker_registry, token_service

if TYPE_CHECKING:
    from pathlib import Path

    from interop.conftest import Pull
    from support.filled import Registry
    from support.home import Home
    from support.parent import Child

PLAIN = "--tls-verify=false"


def pulled(child: Child) -> list[str]:
    """Read the manifest twice, and all that it names; give the names of the blobs."""
    reply = child.client.get("/manifest")
    assert reply.status == 200, reply.body
    assert child.client.get("/manifest").body == reply.body
    assert child.client.get("/config").status == 200
    manifest = reply.json()
    layers = [layer["digest"] for layer in manifest["layers"]]
    for digest in layers:
        assert child.client.get(f"/blobs/{digest}").status == 200
        assert child.client.request("HEAD", f"/blobs/{digest}").status == 200
    assert child.finish() == 0
    return [manifest["config"]["digest"], *layers]


def requests(manifests: list[str], blobs: list[str]) -> list[str]:
    return [
        *(f"GET /v2/images/all/manifests/{name}" for name in manifests),
        *(f"GET /v2/images/all/blobs/{digest}" for digest in blobs),
    ]


@pytest.mark.parametrize("tag", ["latest", "index", "nested-3"])
def test_an_anonymous_pull_takes_one_request_for_each_thing(
    tag: str, registry: Registry, pull: Pull
) -> None:
    """The first manifest takes one: no ping, no HEAD."""
    with line_to(registry.address) as line:
        child = pull(registry.name(f":{tag}", line.address), PLAIN)
        digests = pulled(child)
    descriptor, walked = registry.images[tag], []
    while tag != "latest" and "manifests" in registry.layout.document(descriptor):
        descriptor = registry.layout.document(descriptor)["manifests"][0]
        walked.append(descriptor["digest"])
    assert list(map(str, line.asked)) == requests([tag, *walked], digests)


def test_a_manifest_by_digest_takes_one_request(registry: Registry, pull: Pull) -> None:
    digest = registry.images["latest"]["digest"]
    with line_to(registry.address) as line:
        child = pull(registry.name(f":latest@{digest}", line.address), PLAIN)
        assert child.client.get("/manifest").status == 200
        assert child.finish() == 0
    assert list(map(str, line.asked)) == requests([digest], [])


def test_the_first_manifest_takes_three_with_a_token(
    registry: Registry, pull: Pull, tmp_path: Path
) -> None:
    """The refusal, the token, and the manifest; and whatever follows takes one."""
    with (
        token_service(tmp_path / "tokens") as tokens,
        docker_registry(registry.directory, auth=tokens) as guarded,
        line_to(guarded) as line,
    ):
        digests = pulled(pull(registry.name(":latest", line.address), PLAIN))
        assert len(tokens.scopes) == 1
    assert list(map(str, line.asked)) == requests(["latest", "latest"], digests)


def test_the_first_manifest_takes_two_with_a_password(registry: Registry, pull: Pull) -> None:
    from support.servers import PASSWORD, READER

    with docker_registry(registry.directory, auth="htpasswd") as guarded, line_to(guarded) as line:
        image = registry.name(":latest", line.address)
        digests = pulled(pull(image, PLAIN, f"--creds={READER}:{PASSWORD}"))
    assert list(map(str, line.asked)) == requests(["latest", "latest"], digests)


def test_a_mirror_that_serves_leaves_the_primary_alone(
    registry: Registry, pull: Pull, home: Home
) -> None:
    with line_to(registry.address) as line, line_to(registry.address) as primary:
        home.write(
            REGISTRIES_CONF,
            table("", primary.address, "insecure = true") + mirror(line.address, "insecure = true"),
        )
        digests = pulled(pull(registry.name(":latest", primary.address)))
    assert list(map(str, line.asked)) == requests(["latest"], digests)
    assert primary.asked == []


def test_connections_are_kept(registry: Registry, pull: Pull) -> None:
    """One for the probe that plain http costs, which speaks no HTTP; one for everything else."""
    with line_to(registry.address) as line:
        pulled(pull(registry.name(":latest", line.address), PLAIN))
    assert line.connections <= 2


def test_what_cannot_succeed_is_not_retried(registry: Registry, pull: Pull) -> None:
    with line_to(registry.address) as line:
        child = pull(registry.name(":no-such-tag", line.address), PLAIN, "--retries=5")
        assert child.client.get("/manifest").status == 404
        assert child.finish() == 0
    assert list(map(str, line.asked)) == requests(["no-such-tag"], [])
