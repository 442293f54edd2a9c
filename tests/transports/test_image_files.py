"""Images by the names inside of layouts and archives."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing
from support.archives import (
    docker_containerd,
    gzipped,
    layer,
    nix_layered,
    pack,
    packed,
    saved,
    skopeo,
    write_file,
    zstd_compressed,
)
from support.images import Layout, named
from support.local_places import image_files, name, shown
from support.opened import open_descriptors
from support.streams import real_time

from imgproxy.transports import image_files as image_files_module
from imgproxy.transports.local.tar_archive import Archive, open_archive

if TYPE_CHECKING:
    from pathlib import Path

ONE = saved(layer("one"), tags=["quay.io/acme/one:1", "one:latest"])
TWO = saved(layer("two"), tags=["quay.io/acme/two:2"])
BUNDLE = pack(skopeo(ONE, TWO))


@real_time
@pytest.mark.parametrize("compress", [bytes, gzipped, zstd_compressed])
async def test_a_bundle_has_several_images(tmp_path: Path, compress: object) -> None:
    write_file(tmp_path / "images" / "k3s.tar.zst", compress(BUNDLE))  # type: ignore[operator]
    write_file(tmp_path / "images" / ".cache.json", b"{}")
    before = open_descriptors()
    async with image_files(tmp_path / "images") as place:
        assert shown(await place.find(name("quay.io/acme/one:1"))) == ["quay.io/acme/one:1"]
        assert shown(await place.find(name("one:latest"))) == ["docker.io/library/one:latest"]
        assert await place.find(name("quay.io/acme/two:1")) == []
        assert shown(await place.everything(name("quay.io/acme/two"))) == ["quay.io/acme/two:2"]
        assert sorted(map(str, await place.repositories())) == [
            "docker.io/library/one",
            "quay.io/acme/one",
            "quay.io/acme/two",
        ]
        (found,) = await place.find(name("quay.io/acme/two:2"))
        source = await found.open_source()
        assert source.identity.reference == name("quay.io/acme/two:2")
        source.close()
        source.close()
        assert await place.has_registry("quay.io")
        assert not await place.has_registry("ghcr.io")
        other = pack(skopeo(saved(layer("one"), tags=["ghcr.io/acme/one:1"])))
        write_file(tmp_path / "images" / "another.tar", other)
        assert await place.has_registry("ghcr.io")
    assert open_descriptors() == before


@real_time
async def test_a_layout_and_an_archive_of_one(layout: Layout, tmp_path: Path) -> None:
    image = layout.image(b"a layer")
    full = {"io.containerd.image.name": "quay.io/acme/os:2"}
    both = {**named(image, "2"), "annotations": {**named(image, "2")["annotations"], **full}}
    layout.save(named(image, "quay.io/acme/os:1"), both, image, named(image, "NOT A NAME"))
    write_file(tmp_path / "archive.tar", packed(layout))
    for path in (layout.path, tmp_path / "archive.tar"):
        async with image_files(path) as place:
            everything = await place.everything(name("quay.io/acme/os"))
            assert shown(everything) == ["quay.io/acme/os:1", "quay.io/acme/os:2"]
            assert list(await place.repositories()) == [name("quay.io/acme/os")] * 2
            for each in everything:
                source = await each.open_source()
                assert (await source.root()).digests[0].encoded in image["digest"]
                source.close()


@real_time
async def test_an_archive_of_docker_has_whole_names(tmp_path: Path) -> None:
    write_file(tmp_path / "x.tar", pack(docker_containerd(TWO)))
    async with image_files(tmp_path / "x.tar") as place:
        assert list(await place.repositories()) == [name("quay.io/acme/two")]


@real_time
async def test_what_has_no_name_is_told_of_once(layout: Layout, tmp_path: Path) -> None:
    directory = tmp_path / "images"
    layout.save(layout.image(b"a layer"))
    write_file(directory / "a.tar", packed(layout))
    write_file(directory / "b.tar", pack(skopeo(saved(layer("three"), tags=[]))))
    said: list[str] = []
    async with image_files(directory, said=said) as place:
        assert [await place.repositories() for _ in range(2)] == [[], []]
        assert sorted(said) == [
            f"{directory}/{each}.tar has no name for an image, such as quay.io/acme/os:1;"
            " until that changes, it is not served"
            for each in "ab"
        ]
        layout.save()  # nothing that could have a name
        write_file(directory / "a.tar", packed(layout))
        assert await place.repositories() == []
        assert len(said) == 2


@real_time
async def test_files_come_change_and_go(tmp_path: Path) -> None:
    said: list[str] = []
    directory = tmp_path / "images"
    directory.mkdir()
    path = directory / "a.tar"
    wanted = name("quay.io/acme/one:1")
    async with image_files(directory, said=said) as place:
        assert await place.find(wanted) == []
        write_file(path, BUNDLE[: len(BUNDLE) // 2])  # half of it has been written
        assert await place.find(wanted) == await place.find(wanted) == []
        assert len(said) == 1
        assert said[0].endswith("; until that changes, it is not served")
        write_file(path, BUNDLE)
        (first,) = await place.find(wanted)
        assert await place.find(wanted) == [first]
        os.utime(path, ns=(1, 1))
        (other,) = await place.find(wanted)
        assert other != first
        write_file(directory / "b.tar", pack(nix_layered(ONE)))
        assert len(await place.find(wanted)) == 2
        for each in directory.iterdir():
            each.unlink()
        assert await place.find(wanted) == []


@real_time
async def test_what_is_no_image_does_no_harm_to_those_beside_it(tmp_path: Path) -> None:
    said: list[str] = []
    directory = tmp_path / "images"
    write_file(directory / "images.txt", b"quay.io/acme/one:1\n")
    write_file(directory / "b.tar", BUNDLE)
    (directory / "dir").mkdir()
    os.mkfifo(directory / "pipe")
    (directory / "dangling").symlink_to("nothing")
    async with image_files(directory, said=said) as place:
        assert len(await place.find(name("quay.io/acme/one:1"))) == 1
        assert await place.find(name("quay.io/acme/one:2")) == []
    assert [line for line in said if "images.txt" not in line] == []
    assert len(said) == 1


@real_time
async def test_an_archive_that_nobody_reads_is_closed_after_others(tmp_path: Path) -> None:
    for n in range(40):
        write_file(
            tmp_path / "images" / f"{n}.tar",
            pack(skopeo(saved(layer(f"{n}"), tags=[f"x.io/a:{n}"]))),
        )
    before = len(open_descriptors())
    async with image_files(tmp_path / "images") as place:
        assert len(await place.everything(name("x.io/a"))) == 40
        assert len(open_descriptors()) - before <= 33  # and one of the event loop's threads
        (first,) = await place.find(name("x.io/a:0"))
        source = await first.open_source()
        await source.root()
        source.close()


@real_time
async def test_what_lies_in_the_directories_of_a_directory(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "images/team/layout")
    layout.save(named(layout.image(b"x"), "quay.io/acme/os:1"))
    write_file(tmp_path / "images/team/two.tar", pack(skopeo(TWO)))
    write_file(tmp_path / "images/team/deep/one.tar", pack(skopeo(ONE)))
    async with image_files(tmp_path / "images") as place:
        assert sorted(map(str, await place.repositories())) == [
            "quay.io/acme/os",
            "quay.io/acme/two",
        ]


@real_time
@pytest.mark.parametrize("failing", ["scandir", "lstat"])
async def test_a_directory_that_cannot_be_read_hides_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    write_file(tmp_path / "images/closed/one.tar", pack(skopeo(ONE)))
    write_file(tmp_path / "images/two.tar", pack(skopeo(TWO)))
    function, said = getattr(os, failing), []
    closed = {"scandir": "closed", "lstat": "one.tar"}[failing]

    def refuse(path: object, *arguments: object, **options: object) -> object:
        if str(path).endswith(closed) and is_closed:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        return function(path, *arguments, **options)

    is_closed = True
    monkeypatch.setattr(os, failing, refuse)
    async with image_files(tmp_path / "images", said=said) as place:
        for _ in range(2):
            assert await place.find(name("quay.io/acme/two:2"))
            assert await place.find(name("quay.io/acme/one:1")) == []
        assert len(said) == 1
        assert closed in said[0]
        is_closed = False
        assert await place.find(name("quay.io/acme/one:1"))


@real_time
async def test_a_name_that_is_known_does_not_wait_for_a_file_that_is_being_prepared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = pack(skopeo(saved(layer("other"), tags=["quay.io/acme/one:1"]), TWO))
    write_file(tmp_path / "images" / "fast.tar", pack(skopeo(ONE)))
    write_file(tmp_path / "images" / "slow.tar", both)
    may_go_on, found = trio.Event(), list[str]()

    async def wait(path: str) -> Archive:
        if path.endswith("slow.tar"):
            await may_go_on.wait()
        return await open_archive(path)

    monkeypatch.setattr(image_files_module, "open_archive", wait)
    monkeypatch.setattr(image_files_module, "_MOMENT", 0)
    async with image_files(tmp_path / "images") as place:
        for _ in range(2):
            assert len(await place.find(name("quay.io/acme/one:1"))) == 1

        async def find_what_only_the_slow_one_has() -> None:
            found.extend(shown(await place.find(name("quay.io/acme/two:2"))))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(find_what_only_the_slow_one_has)
            await trio.testing.wait_all_tasks_blocked()
            assert found == []
            may_go_on.set()
        assert found == ["quay.io/acme/two:2"]
        assert len(await place.find(name("quay.io/acme/one:1"))) == 2
