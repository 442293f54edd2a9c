"""What may be had under a name."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from support.archives import layer, pack, saved, skopeo, write_file
from support.images import Layout, digest_of, named, on
from support.local_places import image_files, name, repositories
from support.opened import refusing
from support.sources import digest
from support.streams import real_time

from imgproxy.config import policy as policies
from imgproxy.errors import AmbiguousError, DeniedError, NotFoundError

if TYPE_CHECKING:
    from pathlib import Path

    from imgproxy.config.policy import Policy
    from imgproxy.images.repositories import Repositories
    from imgproxy.specs.oci.digest import Digest
    from imgproxy.specs.oci.reference import Reference
    from imgproxy.transports.places import Candidate

ABSENT = digest({"digest": f"sha256:{'0' * 64}"})


async def content(served: Repositories, repository: str, wanted: Digest) -> bytes:
    blob = await served.open_blob(name(repository), wanted)
    content = b""
    while piece := await blob.read():
        content += piece
    blob.close()
    blob.close()
    return content


@real_time
async def test_an_index_is_given_whole_and_all_that_it_names_by_digest(layout: Layout) -> None:
    amd64, arm64 = (
        layout.image(each, platform=f"linux/{each.decode()}") for each in (b"amd64", b"arm64")
    )
    inner = layout.index(on(arm64, "linux/arm64"))
    index = layout.index(on(amd64, "linux/amd64"), inner)
    layout.save(named(index, "quay.io/acme/os:1"))
    async with image_files(layout.path) as place, repositories([place]) as served:
        document = await served.manifest(name("quay.io/acme/os:1"))
        assert document.digest == digest(index)
        blob = digest(layout.layers(arm64)[0])
        # The blob is asked for first, as after a restart.
        assert await content(served, "quay.io/acme/os", blob) == b"arm64"
        assert (await served.blob(name("quay.io/acme/os"), blob)).size == 5
        for each in (index, inner, arm64, amd64):
            found = await served.manifest(name(f"quay.io/acme/os@{each['digest']}"))
            assert found.raw == layout.read(each["digest"])
        assert await served.tags(name("quay.io/acme/os")) == ["1"]
        assert await served.names() == [name("quay.io/acme/os")]


@real_time
async def test_bytes_that_lie_here_are_not_everybodys(layout: Layout) -> None:
    """Two names share a layer, and only one of them leads to the other one's manifest."""
    one, two = layout.image(b"shared", b"one"), layout.image(b"shared", b"two")
    layout.save(named(one, "x.io/one:1"), named(two, "x.io/two:1"))
    shared = digest(layout.layers(one)[0])
    async with image_files(layout.path) as place, repositories([place]) as served:
        for _ in range(2):  # cold and warm
            assert await content(served, "x.io/one", shared) == b"shared"
            assert await content(served, "x.io/two", shared) == b"shared"
            with pytest.raises(NotFoundError):
                await served.manifest(name(f"x.io/one@{two['digest']}"))
            with pytest.raises(NotFoundError):
                await served.open_blob(name("x.io/one"), digest(layout.layers(two)[1]))
            with pytest.raises(NotFoundError):
                await served.blob(name("x.io/three"), shared)


@real_time
@pytest.mark.parametrize("first", ["one", "two"])
async def test_the_policy_decides_by_the_name_that_is_asked_for(layout: Layout, first: str) -> None:
    image = layout.image(b"shared")
    layout.save(named(image, "x.io/one:1"), named(image, "x.io/two:1"))
    document = {
        "default": [{"type": "insecureAcceptAnything"}],
        "transports": {"docker": {"x.io/two": [{"type": "reject"}]}},
    }

    def policy() -> Policy:
        return policies.parse(json.dumps(document).encode(), "/p.json")

    shared = digest(layout.layers(image)[0])
    async with image_files(layout.path) as place, repositories([place], policy) as served:
        for each in sorted(["one", "two"] * 2, key=lambda each: each != first):
            if each == "one":
                assert await content(served, "x.io/one", shared) == b"shared"
                continue
            for ask in (
                served.manifest(name("x.io/two:1")),
                served.manifest(name(f"x.io/two@{image['digest']}")),
                served.blob(name("x.io/two"), shared),
                served.open_blob(name("x.io/two"), shared),
            ):
                with pytest.raises(DeniedError):
                    await ask


@real_time
async def test_two_different_images_of_one_name_are_none(tmp_path: Path) -> None:
    one, two = (saved(layer(text), tags=["x.io/os:1"]) for text in ("one", "two"))
    for n, image in enumerate((one, one, two)):
        write_file(tmp_path / "images" / f"{n}.tar", pack(skopeo(image)))
    async with image_files(tmp_path / "images") as place, repositories([place]) as served:
        with pytest.raises(AmbiguousError) as caught:
            await served.manifest(name("x.io/os:1"))
        assert len(caught.value.detail["choices"]) == 2
        (tmp_path / "images" / "2.tar").unlink()
        assert await served.manifest(name("x.io/os:1"))


@real_time
async def test_a_broken_file_does_not_hide_a_whole_one(tmp_path: Path) -> None:
    good, bad = Layout(tmp_path / "good"), Layout(tmp_path / "bad")
    image = good.image(b"a layer")
    good.save(named(image, "x.io/os:1"))
    bad.save(named({**image, "digest": digest_of(b"other")}, "x.io/os:1"))
    async with image_files(bad.path, good.path) as place, repositories([place]) as served:
        assert (await served.manifest(name("x.io/os:1"))).digest == digest(image)
    async with image_files(bad.path) as place, repositories([place]) as served:
        with pytest.raises(NotFoundError):
            await served.manifest(name("x.io/os:1"))


@real_time
async def test_the_first_place_that_has_a_tag_decides(tmp_path: Path) -> None:
    layouts = [Layout(tmp_path / text) for text in ("one", "two")]
    images = [each.image(each.path.name.encode()) for each in layouts]
    for each, image in zip(layouts, images, strict=True):
        each.save(named(image, "x.io/os:1"))
    async with (
        image_files(layouts[0].path) as one,
        image_files(layouts[1].path) as two,
        repositories([one, two]) as served,
    ):
        assert (await served.manifest(name("x.io/os:1"))).digest == digest(images[0])
        # What another place has may be had all the same, by its digest.
        assert await served.manifest(name(f"x.io/os@{images[1]['digest']}"))


@real_time
async def test_what_refers_to_an_image_is_found_beside_it(layout: Layout) -> None:
    image, other = layout.image(b"a layer"), layout.image(b"another")
    referrers = [
        layout.image(text, subject=subject, artifactType="a/b")
        for text, subject in ((b"one", image), (b"two", image), (b"three", other))
    ]
    second = layout.image(b"of a referrer", subject=referrers[0])
    layout.save(named(image, "x.io/os:1"), *referrers, second)
    async with image_files(layout.path) as place, repositories([place]) as served:
        found = await served.referrers(name("x.io/os"), digest(image))
        assert {each.digest for each in found} == {digest(each) for each in referrers[:2]}
        assert len(await served.referrers(name("x.io/os"), digest(referrers[0]))) == 1
        assert await served.manifest(name(f"x.io/os@{referrers[0]['digest']}"))
        with pytest.raises(NotFoundError):  # its subject is another image
            await served.manifest(name(f"x.io/os@{referrers[2]['digest']}"))
        assert await served.referrers(name("x.io/os"), ABSENT) == []
        assert await served.referrers(name("x.io/nothing"), digest(image)) == []


@real_time
async def test_a_blob_of_an_open_image_is_found_without_a_list_until_its_file_changes(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = layout.image(b"layer")
    layout.save(named(image, "quay.io/acme/os:1"))
    repository, blob = name("quay.io/acme/os"), digest(layout.layers(image)[0])
    async with image_files(layout.path) as place, repositories([place]) as served:
        await served.manifest(name("quay.io/acme/os:1"))
        listed, everything = [], place.everything

        async def counted(each: Reference) -> list[Candidate]:
            listed.append(each)
            return await everything(each)

        monkeypatch.setattr(place, "everything", counted)
        assert (await served.blob(repository, blob)).size == 5
        assert listed == []
        layout.save(named(layout.image(b"another"), "quay.io/acme/os:1"))
        with pytest.raises(NotFoundError):
            await served.blob(repository, blob)
        assert listed == [repository._replace(tag=None)]


@real_time
async def test_what_is_not_here(layout: Layout) -> None:
    layout.save(named(layout.image(b"a layer"), "x.io/os:1"))
    async with image_files(layout.path) as place, repositories([place]) as served:
        for ask, code in (
            (served.manifest(name("x.io/os:2")), "MANIFEST_UNKNOWN"),
            (served.manifest(name("y.io/os:1")), "MANIFEST_UNKNOWN"),
            (served.manifest(name(f"x.io/os@{ABSENT}")), "MANIFEST_UNKNOWN"),
            (served.blob(name("x.io/os"), ABSENT), "BLOB_UNKNOWN"),
            (served.open_blob(name("x.io/os"), ABSENT), "BLOB_UNKNOWN"),
            (served.tags(name("x.io/nothing")), "NAME_UNKNOWN"),
        ):
            with refusing((404, code)):
                await ask
