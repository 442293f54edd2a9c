"""What may be had under a name."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing
from support.archives import (
    control,
    layer,
    of_directory,
    pack,
    packed,
    saved,
    skopeo,
    write_file,
)
from support.damage import flip
from support.images import Layout, digest_of, named, on
from support.local_places import Shelf, files, image_files, name, repositories
from support.opened import refusing
from support.sigstores import PAYLOAD, Signer, annotated, b64, payload
from support.sources import MemorySource, Store, digest, layer_of, several
from support.streams import real_time, virtual_time

from imgproxy.config import policy as policies
from imgproxy.config import sideload_pattern
from imgproxy.errors import (
    AmbiguousError,
    DeniedError,
    InvalidError,
    NotFoundError,
    ReplacedError,
)
from imgproxy.specs.oci.manifest import Index, Manifest
from imgproxy.specs.signing.signature import SigstoreSignature
from imgproxy.transports import image_files as image_files_module
from imgproxy.transports.local.tar_archive import Archive, open_archive
from imgproxy.transports.sideload_places import SideloadPlace
from imgproxy.transports.source import SignaturePlace, docker_identity

if TYPE_CHECKING:
    from pathlib import Path

    from support.images import Json

    from imgproxy.config.policy import Policy
    from imgproxy.images.repositories import Repositories
    from imgproxy.specs.oci.digest import Digest
    from imgproxy.specs.oci.reference import Reference
    from imgproxy.specs.signing.signature import Signature
    from imgproxy.transports.places import Candidate, Place
    from imgproxy.transports.source import Source

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


@virtual_time
async def test_what_nobody_asks_for_is_closed_after_its_time() -> None:
    store = Store()
    image = store.image(b"a layer")
    source, lasting = MemorySource(store, image), MemorySource(store, image)
    shelf = Shelf({name("x.io/os:1"): source}, idle_time=30)
    async with repositories([shelf, Shelf({name("x.io/os:2"): lasting})]) as served:
        for _ in range(3):  # each in time for the next
            assert await served.manifest(name("x.io/os:1"))
            assert await served.manifest(name("x.io/os:2"))
            await trio.sleep(25)
        assert source.closed == 0
        body = await served.open_blob(name("x.io/os"), layer_of(store, image))
        await trio.sleep(40)
        assert source.closed == 0, "it is being sent"
        body.close()
        assert (source.closed, lasting.closed) == (1, 0)
        assert await served.manifest(name("x.io/os:1"))
        for _ in range(2):
            await trio.sleep(20)
            with pytest.raises(NotFoundError):  # for which it is looked through
                await served.blob(name("x.io/os"), ABSENT)
        assert (source.closed, lasting.closed) == (2, 0)


def policy_of(kind: str) -> Policy:
    return policies.parse(json.dumps({"default": [{"type": kind}]}).encode(), "/p.json")


@real_time
@pytest.mark.parametrize("is_passing", [False, True])
async def test_a_verdict_of_a_policy_that_has_changed_meanwhile_is_not_kept(
    layout: Layout, *, is_passing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = layout.image(b"a layer")
    layout.save(named(image, "x.io/os:1"))
    stages = ["insecureAcceptAnything", "reject"]

    def policy() -> Policy:
        if len(stages) == 1:
            return policy_of(stages[0])
        served.forget()
        return policy_of(stages.pop(0))

    async with image_files(layout.path) as place, repositories([place], policy) as served:
        found = await place.find(name("x.io/os:1"))
        found[0].is_passing = is_passing

        async def find(_: Reference) -> list[Candidate]:
            return found

        monkeypatch.setattr(place, "find", find)
        with pytest.raises(DeniedError):
            await served.manifest(name("x.io/os:1"))


@real_time
async def test_what_is_read_goes_on_when_images_are_judged_anew(layout: Layout) -> None:
    image = layout.image(b"a layer")
    layout.save(named(image, "x.io/os:1"))
    kinds = ["insecureAcceptAnything"]
    layer_digest = digest(layout.layers(image)[0])
    async with (
        image_files(layout.path) as place,
        repositories([place], lambda: policy_of(kinds[0])) as served,
    ):
        body = await served.open_blob(name("x.io/os"), layer_digest)
        kinds[0] = "reject"
        served.forget()
        with pytest.raises(DeniedError):
            await served.open_blob(name("x.io/os"), layer_digest)
        assert await body.read() == b"a layer"
        body.close()


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
async def test_a_digest_is_absent_only_when_all_files_have_been_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for n in ("1", "2"):
        layout = Layout(tmp_path / "layouts" / n)
        image = layout.image(f"{n}".encode())
        layout.save(named(image, f"x.io/os:{n}"))
        write_file(tmp_path / "images" / f"{n}.tar", packed(layout))
    may_go_on, got = trio.Event(), list[str]()

    async def wait(path: str) -> Archive:
        if path.endswith("2.tar"):
            await may_go_on.wait()
        return await open_archive(path)

    monkeypatch.setattr(image_files_module, "open_archive", wait)
    monkeypatch.setattr(image_files_module, "_MOMENT", 0)
    async with image_files(tmp_path / "images") as place, repositories([place]) as served:

        async def ask() -> None:
            found = await served.manifest(name(f"x.io/os@{image['digest']}"))
            got.append(str(found.digest))

        assert await served.manifest(name("x.io/os:1"))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            await trio.testing.wait_all_tasks_blocked()
            may_go_on.set()
        assert got == [image["digest"]]
        with pytest.raises(NotFoundError):
            await served.manifest(name(f"x.io/os@{ABSENT}"))


@real_time
async def test_one_name_for_several_platforms_in_an_archive_of_docker_is_an_index(
    tmp_path: Path,
) -> None:
    platforms = ("linux/amd64", "linux/arm64")
    images = [saved(layer(each), tags=["x.io/os:1"], platform=each) for each in platforms]
    write_file(tmp_path / "a.tar", pack(skopeo(*images)))
    async with image_files(tmp_path / "a.tar") as place, repositories([place]) as served:
        root = await served.manifest(name("x.io/os:1"))
        assert isinstance(root.parsed, Index)
        assert [str(each.platform) for each in root.parsed.manifests] == list(platforms)
        for each, image in zip(root.parsed.manifests, images, strict=True):
            child = await served.manifest(name(f"x.io/os@{each.digest}"))
            assert isinstance(child.parsed, Manifest)
            blob = child.parsed.layers[0].digest
            assert await content(served, "x.io/os", blob) == image.layers[0]
    # The same one after a restart, by a digest alone.
    async with image_files(tmp_path / "a.tar") as place, repositories([place]) as served:
        assert await content(served, "x.io/os", blob) == images[1].layers[0]
        assert (await served.manifest(name("x.io/os:1"))).digest == root.digest
    for tags, others in ((["x.io/os:1"], [saved(layer("x"), tags=["x.io/os:1"])]), ([], [])):
        same = [saved(layer("y"), tags=tags), *others, images[0]]
        write_file(tmp_path / "a.tar", pack(skopeo(*same)))
        async with image_files(tmp_path / "a.tar") as place, repositories([place]) as served:
            if tags:
                with pytest.raises(AmbiguousError) as caught:
                    await served.manifest(name("x.io/os:1"))
                assert len(caught.value.detail["choices"]) == 3
            else:
                assert isinstance((await served.manifest(name("x.io/os:1"))).parsed, Manifest)


@real_time
async def test_an_archive_of_docker_with_an_index_of_its_own_has_that_one(
    layout: Layout, tmp_path: Path
) -> None:
    platforms = ("linux/amd64", "linux/arm64")
    images = [layout.image(layer(each), platform=each) for each in platforms]
    index = layout.index(*map(on, images, platforms))
    layout.save(named(index, "x.io/os:1"))
    items = [
        {
            "Config": f"blobs/sha256/{layout.document(each)['config']['digest'][7:]}",
            "RepoTags": ["x.io/os:1"],
            "Layers": [f"blobs/sha256/{one['digest'][7:]}" for one in layout.layers(each)],
        }
        for each in images
    ]
    members = [*of_directory(layout.path), control("manifest.json", items)]
    write_file(tmp_path / "a.tar", pack(members))
    async with image_files(tmp_path / "a.tar") as place, repositories([place]) as served:
        assert (await served.manifest(name("x.io/os:1"))).raw == layout.read(index["digest"])


@real_time
async def test_who_refers_to_an_image_has_no_right_to_it(layout: Layout) -> None:
    private = layout.image(b"private")
    note = layout.image(b"a note", subject=private, artifactType="a/b")
    listed = layout.index(note, subject=private)
    layout.save(
        named(private, "x.io/private:1"), named(note, "x.io/open:1"), named(listed, "x.io/open:2")
    )
    (secret,) = layout.layers(private)
    for is_first in (True, False):
        async with image_files(layout.path) as place, repositories([place]) as served:
            if is_first:
                assert await content(served, "x.io/private", digest(secret)) == b"private"
            assert (await served.manifest(name(f"x.io/open@{note['digest']}"))).raw
            found = await served.referrers(name("x.io/open"), digest(private))
            assert {each.digest for each in found} == {digest(note), digest(listed)}
            with pytest.raises(NotFoundError):
                await served.manifest(name(f"x.io/open@{private['digest']}"))
            with pytest.raises(NotFoundError):
                await content(served, "x.io/open", digest(secret))
            assert await served.manifest(name(f"x.io/private@{private['digest']}"))
    layout.save(named(private, "x.io/open:3"), named(note, "x.io/open:1"))
    async with image_files(layout.path) as place, repositories([place]) as served:
        assert await content(served, "x.io/open", digest(secret)) == b"private"


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


# --- policies that demand signatures --------------------------------------------------------------

SIGNER = Signer()


def no_registry(_: Reference) -> Source:
    raise AssertionError("no registry is asked")


def signatures_demanded() -> Policy:
    requirement = {"type": "sigstoreSigned", "keyData": b64(SIGNER.pem)}
    return policies.parse(json.dumps({"default": [requirement]}).encode(), "/p.json")


def signed(document: Json, *, for_name: str) -> list[SignaturePlace]:
    """Return a place with a signature of a document for a name."""
    content = payload(document["digest"], for_name)

    async def read() -> list[Signature]:
        await trio.lowlevel.checkpoint()
        return [SigstoreSignature("a signature", PAYLOAD, content, annotated(content, SIGNER))]

    return [SignaturePlace("there", read)]


def source_of(store: Store, root: Json, text: str) -> MemorySource:
    source = MemorySource(store, root)
    source.identity = docker_identity(name(text))
    return source


@real_time
@pytest.mark.parametrize("is_warm", [False, True])
async def test_a_child_that_is_signed_needs_no_index_that_is(*, is_warm: bool) -> None:
    store, text = Store(), "x.io/os:1"
    images = several(store, "linux/amd64", "linux/arm64")
    inner = store.index(images["linux/arm64"])
    index = store.index(images["linux/amd64"], inner)
    source = source_of(store, index, text)
    wanted = images["linux/arm64"]
    source.signed[wanted["digest"]] = signed(wanted, for_name=text)
    shelf = Shelf({name(text): source})
    async with repositories([shelf], signatures_demanded) as served:

        async def assert_denied(*documents: Json) -> None:
            for each in documents:
                with pytest.raises(DeniedError):
                    await served.manifest(name(f"x.io/os@{each['digest']}"))
            with pytest.raises(DeniedError):
                await served.manifest(name(text))
            with pytest.raises((DeniedError, NotFoundError)):
                await served.blob(name("x.io/os"), layer_of(store, images["linux/amd64"]))

        if is_warm:
            await assert_denied(index, images["linux/amd64"])
        if is_warm:  # the nested index that leads to it is not signed
            with pytest.raises((DeniedError, NotFoundError)):
                await served.blob(name("x.io/os"), layer_of(store, wanted))
        await assert_denied(index, images["linux/amd64"], inner)
        source.signed[inner["digest"]] = signed(inner, for_name=text)
        assert await served.blob(name("x.io/os"), layer_of(store, wanted))
        assert await served.manifest(name(f"x.io/os@{wanted['digest']}"))
        await assert_denied(index, images["linux/amd64"])
        source.signed[index["digest"]] = signed(index, for_name=text)
        assert (await served.manifest(name(text))).digest == digest(index)
        assert await served.blob(name("x.io/os"), layer_of(store, images["linux/amd64"]))


@real_time
@pytest.mark.parametrize("first", [1, 2])
async def test_a_tag_that_is_rejected_beside_one_that_is_accepted(first: int) -> None:
    store = Store()
    image, other = store.image(b"signed"), store.image(b"for another tag")
    note = store.image(b"a note", subject=image, artifactType="a/b")
    sources = {
        name(f"x.io/os:{n}"): source_of(store, root, f"x.io/os:{n}")
        for n, root in ((1, image), (2, other), (3, note), (4, image))
    }
    for source in sources.values():
        for each in (image, other, note):
            source.signed[each["digest"]] = signed(each, for_name="x.io/os:1")
    note_tag = sources[name("x.io/os:3")]
    note_tag.signed[note["digest"]] = signed(note, for_name="x.io/os:3")
    async with repositories([Shelf(sources)], signatures_demanded) as served:
        for n in (first, 1, 2, 4):
            if n == 1:
                assert await served.manifest(name("x.io/os:1"))
                assert await served.blob(name("x.io/os"), layer_of(store, image))
                found = await served.referrers(name("x.io/os"), digest(image))
                assert [each.digest for each in found] == [digest(note)]
                continue
            with pytest.raises(DeniedError):
                await served.manifest(name(f"x.io/os:{n}"))
            with pytest.raises(DeniedError):
                await served.manifest(name(f"x.io/os@{other['digest']}"))
            with pytest.raises(DeniedError):
                await served.blob(name("x.io/os"), layer_of(store, other))


# --- what is broken, or replaced ------------------------------------------------------------------


@real_time
async def test_a_child_that_is_broken_hides_no_other(layout: Layout) -> None:
    images = [layout.image(each) for each in (b"one", b"two", b"three")]
    index = layout.index(*(on(each, "linux/amd64") for each in images))
    layout.save(named(index, "x.io/os:1"))
    broken, whole, missing = images
    layers = [layer_of(layout, each) for each in images]
    sound = [layout.read(each["digest"]) for each in images]
    flip(layout.file(broken["digest"]), 20)
    layout.file(missing["digest"]).unlink()
    async with image_files(layout.path) as place, repositories([place]) as served:
        for _ in range(2):  # cold and warm
            assert await served.blob(name("x.io/os"), layers[1])
            assert await served.manifest(name(f"x.io/os@{whole['digest']}"))
            with pytest.raises(InvalidError):
                await served.manifest(name(f"x.io/os@{broken['digest']}"))
            with pytest.raises(InvalidError):  # what is broken may lead to it
                await served.blob(name("x.io/os"), layers[0])
            with pytest.raises(InvalidError):
                await served.manifest(name(f"x.io/os@{missing['digest']}"))
            assert await served.referrers(name("x.io/os"), digest(whole)) == []
        for each, content in zip(images, sound, strict=True):
            layout.file(each["digest"]).write_bytes(content)
        for each in layers:
            assert await served.blob(name("x.io/os"), each)


@real_time
@pytest.mark.parametrize("kind", ["layout", "archive", "pattern"])
async def test_what_is_replaced_as_it_is_opened_is_not_served(tmp_path: Path, kind: str) -> None:
    """Another image of the file might be served under the name, and be kept."""
    file = tmp_path / "at/os-1.tar"
    layout = Layout(tmp_path / "layout")

    def write(content: bytes) -> None:
        layout.save(named(layout.image(content), "x.io/os:1"))
        write_file(file, pack(skopeo(saved(content, tags=["x.io/os:1"]))))

    write(b"one")
    pattern = sideload_pattern.parse(f"{tmp_path}/at/<basename>-<ref>.tar")
    async with image_files(layout.path if kind == "layout" else file) as images:
        place: Place = images
        if kind == "pattern":
            place = SideloadPlace(pattern, files(), no_registry, "x.io")
        async with repositories([place]) as served:
            (before,) = await place.find(name("x.io/os:1"))
            write(b"the other")
            with pytest.raises(ReplacedError, match="replaced"):
                async with served._opened(before):
                    pass
            document = await served.manifest(name("x.io/os:1"))
            assert isinstance(document.parsed, Manifest)
            assert document.parsed.layers[0].size == len(b"the other")
