"""What other registries may have of images, where this one has mirrors and where it has none."""

from __future__ import annotations

from typing import Any, cast

import pytest
from support.images import digest_of
from support.streams import virtual_time

from imgproxy.errors import NotFoundError
from imgproxy.specs.oci.digest import Digest, parse
from imgproxy.specs.oci.reference import Reference, parse_reference
from imgproxy.transports.mirror_place import MirrorPlace

NAME = parse_reference("registry.example/app")
DIGEST = parse(digest_of(b""))


class Asked:
    """A place that answers with its name, and the name that it was asked for."""

    def __init__(self, name: str) -> None:
        self.name = name

    async def find(self, reference: Reference) -> list[str]:
        return [self.name, str(reference)]

    everything = tags = find

    async def referrers(self, repository: Reference, digest: Digest) -> list[str]:
        return [self.name, str(repository), str(digest)]

    async def repositories(self) -> list[str]:
        return [self.name]

    def has_registry(self, registry: str) -> bool:
        return registry == "registry.example"


def place(*, has_mirrors: bool) -> Any:  # noqa: ANN401  (a place of names)
    upstream, kept = (cast("Any", Asked(name)) for name in ("upstream", "kept"))
    return MirrorPlace(
        upstream, kept, lambda reference: has_mirrors and reference.name == NAME.name
    )


@virtual_time
async def test_with_mirrors_it_is_what_is_here() -> None:
    mirrored = place(has_mirrors=True)
    for ask in (mirrored.find, mirrored.everything):
        assert await ask(NAME) == ["kept", str(NAME)]
    for lists in (mirrored.tags(NAME), mirrored.referrers(NAME, DIGEST)):
        with pytest.raises(NotFoundError, match="has mirrors") as raised:
            await lists
        assert raised.value.code == "NAME_UNKNOWN"


@virtual_time
async def test_without_mirrors_it_is_what_everybody_gets() -> None:
    alone = place(has_mirrors=False)
    for ask in (alone.find, alone.everything, alone.tags):
        assert await ask(NAME) == ["upstream", str(NAME)]
    assert await alone.referrers(NAME, DIGEST) == ["upstream", str(NAME), str(DIGEST)]
    assert await alone.repositories() == ["upstream"]
    assert (alone.has_registry("registry.example"), alone.has_registry("other")) == (True, False)
