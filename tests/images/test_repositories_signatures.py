"""Signatures that lie in the layout of an image count for its name in a registry."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from support.archives import layer, pack, packed, saved, skopeo, write_file
from support.images import OCI_INDEX, OCI_MANIFEST, Layout, named, on
from support.local_places import files, image_files, name, repositories
from support.sigstores import (
    BUNDLE,
    PAYLOAD,
    Signer,
    annotated,
    b64,
    compact,
    enveloped,
    payload,
    statement,
)
from support.sources import digest
from support.streams import real_time

from imgproxy.config import policy as policies
from imgproxy.config import sideload_pattern
from imgproxy.errors import DeniedError
from imgproxy.transports.sideload_places import SideloadPlace

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from support.images import Json

    from imgproxy.config.policy import Policy
    from imgproxy.specs.oci.reference import Reference
    from imgproxy.transports.source import Source

SIGNER, OTHER = Signer(), Signer()
NAME = "x.io/os:1"


def demanded() -> Policy:
    requirement = {
        "type": "sigstoreSigned",
        "keyData": b64(SIGNER.pem),
        "signedIdentity": {"type": "matchRepository"},
    }
    return policies.parse(json.dumps({"default": [requirement]}).encode(), "/p.json")


def attached(layout: Layout, image: Json, signer: Signer = SIGNER, for_name: str = NAME) -> Json:
    """Write what cosign 1 and 2 attach; return its descriptor."""
    content = payload(image["digest"], for_name)
    signed = layout.add(content, PAYLOAD, annotations=annotated(content, signer))
    config = layout.add(b"{}", "application/vnd.oci.image.config.v1+json")
    manifest = {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": [signed]}
    return layout.add(compact(manifest), OCI_MANIFEST)


def referring(layout: Layout, image: Json, signer: Signer = SIGNER) -> Json:
    """Write what cosign 3 attaches; return its descriptor."""
    content = compact(enveloped(statement(image["digest"]), signer))
    manifest = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "artifactType": BUNDLE,
        "config": layout.add(b"{}", "application/vnd.oci.empty.v1+json"),
        "layers": [layout.add(content, BUNDLE)],
        "subject": image,
    }
    return layout.add(compact(manifest), OCI_MANIFEST)


def tag_of(image: Json) -> str:
    return str(image["digest"]).replace(":", "-")


def listed(layout: Layout, image: Json, *entries: Json) -> Json:
    """Write the list of referrers for registries that do not list them."""
    index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": list(entries)}
    return named(layout.add(compact(index), OCI_INDEX), tag_of(image))


# What tools write beside an image.
WAYS: dict[str, Callable[[Layout, Json, Signer], Json]] = {
    "the tag alone": lambda layout, image, signer: named(
        attached(layout, image, signer), f"{tag_of(image)}.sig"
    ),
    "the whole name": lambda layout, image, signer: named(
        attached(layout, image, signer), f"x.io/os:{tag_of(image)}.sig"
    ),
    "cosign save": lambda layout, image, signer: {
        **attached(layout, image, signer),
        "annotations": {"kind": "dev.cosignproject.cosign/sigs"},
    },
    "a referrer": referring,
    "listed under a tag": lambda layout, image, signer: listed(
        layout, image, referring(layout, image, signer)
    ),
}


def no_registry(_: Reference) -> Source:
    raise AssertionError("no registry is asked")


@real_time
@pytest.mark.parametrize("way", WAYS)
async def test_a_signature_beside_an_image_counts(layout: Layout, tmp_path: Path, way: str) -> None:
    image = layout.image(b"a layer")
    for signer in (SIGNER, OTHER):
        layout.save(named(image, NAME), WAYS[way](layout, image, signer))
        write_file(tmp_path / "a.tar", packed(layout))
        for path in (layout.path, tmp_path / "a.tar"):
            async with image_files(path) as place, repositories([place], demanded) as served:
                if signer is SIGNER:
                    assert (await served.manifest(name(NAME))).digest == digest(image)
                    continue
                with pytest.raises(DeniedError) as caught:
                    await served.manifest(name(NAME))
                assert "there is no signature" not in caught.value.message


@real_time
async def test_the_signature_of_an_index_counts_for_what_it_names(layout: Layout) -> None:
    child = layout.image(b"a layer")
    index = layout.index(on(child, "linux/amd64"))
    layout.save(named(index, NAME), WAYS["a referrer"](layout, index, SIGNER))
    async with image_files(layout.path) as place, repositories([place], demanded) as served:
        assert await served.manifest(name(f"x.io/os@{child['digest']}"))
        assert (await served.manifest(name(NAME))).digest == digest(index)


@real_time
async def test_signatures_of_another_name_or_image_do_not_count(layout: Layout) -> None:
    image, other = layout.image(b"a layer"), layout.image(b"another")
    theirs = attached(layout, image, for_name="x.io/other:1")
    tag = f"{tag_of(image)}.sig"
    for beside in (
        named(theirs, tag),
        named(attached(layout, image), f"x.io/other:{tag}"),  # the tag of another repository
        named(attached(layout, other), tag),
        referring(layout, other),
        named(image, tag),  # no signature at all
        named({**image, "digest": f"sha256:{'0' * 64}"}, tag),  # which is not there
    ):
        layout.save(named(image, NAME), beside)
        async with image_files(layout.path) as place, repositories([place], demanded) as served:
            with pytest.raises(DeniedError):
                await served.manifest(name(NAME))


@real_time
async def test_the_layout_at_a_path_of_a_pattern_has_them_too(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "os-1")
    image = layout.image(b"a layer")
    pattern = sideload_pattern.parse(f"{tmp_path}/<basename>-<ref>")
    place = SideloadPlace(pattern, files(), lambda _: _Nowhere(), "x.io")  # type: ignore[arg-type, return-value]
    for is_signed in (True, False):
        beside = [WAYS["the tag alone"](layout, image, SIGNER)] if is_signed else []
        layout.save(named(image, "1"), *beside)
        async with repositories([place], demanded) as served:
            if is_signed:
                assert await served.manifest(name(NAME))
            else:
                with pytest.raises(DeniedError):
                    await served.manifest(name(NAME))


class _Nowhere:
    """A registry's image that has no signatures."""

    def signatures(self, _: object) -> list[object]:
        return []

    def close(self) -> None:
        pass


@real_time
async def test_an_archive_of_docker_has_none(tmp_path: Path) -> None:
    write_file(tmp_path / "a.tar", pack(skopeo(saved(layer("x"), tags=[NAME]))))
    async with (
        image_files(tmp_path / "a.tar") as place,
        repositories([place], demanded) as served,
    ):
        with pytest.raises(DeniedError, match="there is no signature"):
            await served.manifest(name(NAME))
