"""The images that sideload patterns lead to."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

import pytest
from support.archives import (
    layer,
    nix_layered,
    pack,
    saved,
    skopeo,
    write_file,
    write_registry_tree,
)
from support.local_places import files, name, shown
from support.streams import real_time

from imgproxy.config import sideload_pattern
from imgproxy.host import files as host_files
from imgproxy.transports import sideload_places
from imgproxy.transports.sideload_places import SideloadPlace

if TYPE_CHECKING:
    from pathlib import Path

    from support.images import Layout

    from imgproxy.specs.oci.reference import Reference
    from imgproxy.transports.source import Source

IMAGE = saved(layer("first"), tags=["example:latest"])
HASH = "fq1rv0zqd1y3rl5wrl1xyfl4ck9dbzaq"
DIGEST = f"sha256:{'0' * 64}"


def place(pattern: str, said: list[str] | None = None, default: str = "docker.io") -> SideloadPlace:
    def nothing(_: Reference) -> Source:
        raise AssertionError("no registry is asked")

    return SideloadPlace(sideload_pattern.parse(pattern), files(said), nothing, default)


@real_time
async def test_a_file_in_the_store_of_nix_is_an_image(tmp_path: Path) -> None:
    write_file(tmp_path / f"{HASH}-example.tar", pack(nix_layered(IMAGE)))
    write_file(tmp_path / f"{HASH}-other-example.tar", pack(nix_layered(IMAGE)))
    write_file(tmp_path / f"{HASH}-example.tar.drv", b"")
    nix = place(f"{tmp_path}/<ref>-<basename>.tar")
    (found,) = await nix.find(name(f"quay.io/acme/example:{HASH}"))
    source = await found.open_source()
    assert source.identity.reference == name(f"quay.io/acme/example:{HASH}")
    source.close()
    everything = await nix.everything(name("example"))
    # A name with a dash cannot be told from a tag with one; both find their file.
    assert shown(everything) == [
        f"docker.io/library/example:{HASH}",
        f"docker.io/library/example:{HASH}-other",
    ]
    assert await nix.find(name(f"example:{HASH}-other")) != []
    assert await nix.everything(name("nothing")) == await nix.find(name("example:x")) == []
    assert await nix.repositories() == []


@real_time
async def test_a_candidate_is_another_one_after_a_change(tmp_path: Path) -> None:
    path = tmp_path / "example" / "1.tar"
    write_file(path, pack(skopeo(IMAGE)))
    opt = place(f"{tmp_path}/<basename>/<ref>.tar")
    (first,) = await opt.find(name("example:1"))
    (again,) = await opt.everything(name("example"))
    assert first == again
    assert hash(first) == hash(again)
    write_file(path, pack(skopeo(IMAGE)) + bytes(512))
    assert await opt.find(name("example:1")) not in ([], [first])
    path.unlink()
    assert await opt.find(name("example:1")) == await opt.everything(name("example")) == []


@real_time
@pytest.mark.parametrize("directory", ["busybox", "library/busybox"])
async def test_the_default_namespace_of_the_hub_may_be_left_out(
    tmp_path: Path, directory: str
) -> None:
    write_file(tmp_path / directory / "1.tar", pack(skopeo(IMAGE)))
    opt = place(f"{tmp_path}/<name>/<ref>.tar")
    assert shown(await opt.find(name("busybox:1"))) == ["docker.io/library/busybox:1"]
    assert shown(await opt.everything(name("busybox"))) == ["docker.io/library/busybox:1"]
    assert list(await opt.repositories()) == [name("busybox")]
    assert (await opt.find(name("quay.io/busybox:1")) != []) is (directory == "busybox")


@real_time
async def test_a_tree_has_digests_and_many_repositories(layout: Layout, tmp_path: Path) -> None:
    image = layout.save_image(b"a layer")
    for each in ("quay.io/acme/os", "quay.io/acme/os/tools", "ghcr.io/x"):
        registry, _, repository = each.partition("/")
        write_registry_tree(tmp_path / registry, repository, "1", layout, image)
    tree = place(f"{tmp_path}/<registry>/<name>/manifests/<ref>")
    named = await tree.everything(name("quay.io/acme/os"))
    assert f"quay.io/acme/os@{image['digest']}" in shown(named)
    assert "quay.io/acme/os:1" in shown(named)
    (by_digest,) = await tree.find(name(f"quay.io/acme/os@{image['digest']}"))
    assert by_digest in named
    assert await tree.find(name(f"quay.io/acme/os@{DIGEST}")) == []
    found = sorted(map(str, await tree.repositories()))
    assert found == ["ghcr.io/x", "quay.io/acme/os", "quay.io/acme/os/tools"]
    assert await tree.has_registry("any.example")


@real_time
async def test_a_tree_without_registries_is_of_the_default_one(
    layout: Layout, tmp_path: Path
) -> None:
    write_registry_tree(tmp_path, "acme/os", "1", layout, layout.save_image(b"a layer"))
    (tmp_path / "link").symlink_to(tmp_path)  # no way without an end
    (tmp_path / "Upper" / "manifests").mkdir(parents=True)
    tree = place(f"{tmp_path}/<name>/manifests/<ref>", default="quay.io")
    assert list(await tree.repositories()) == [name("quay.io/acme/os")]
    assert list(await place(f"{tmp_path}/absent/<name>/<ref>").repositories()) == []
    assert list(await place(f"{tmp_path}/<ref>/<name>/x").repositories()) == []


@real_time
async def test_a_reference_may_stand_twice_in_a_path(tmp_path: Path) -> None:
    write_file(tmp_path / "v1-os" / "v1.tar", pack(skopeo(IMAGE)))
    twice = place(f"{tmp_path}/<ref>-<basename>/<ref>.tar")
    assert shown(await twice.everything(name("quay.io/os"))) == ["quay.io/os:v1"]


@real_time
async def test_what_others_may_change_is_not_there_and_said_once(tmp_path: Path) -> None:
    path = tmp_path / "os" / "1.tar"
    write_file(path, pack(skopeo(IMAGE)))
    path.chmod(0o666)
    said: list[str] = []
    opt = place(f"{tmp_path}/<name>/<ref>.tar", said)
    for _ in range(2):
        assert (
            await opt.find(name("quay.io/os:1")) == await opt.everything(name("quay.io/os")) == []
        )
    assert said == [
        f"{path} is not served: others may write {path}, so that its images could be anybody's;"
        " --trust-writable permits it"
    ]
    path.chmod(0o644)
    assert len(await opt.find(name("quay.io/os:1"))) == 1


@real_time
@pytest.mark.parametrize(
    ("pattern", "path"),
    [
        ("at/../in/<name>/<ref>.tar", "in/acme/os/1.tar"),
        ("in/<name>/<name>/<ref>.tar", "in/acme/os/acme/os/1.tar"),
        ("in/<name>/of/<name>.<ref>", "in/acme/os/of/acme/os.1"),
    ],
)
async def test_a_name_twice_and_a_way_back(tmp_path: Path, pattern: str, path: str) -> None:
    write_file(tmp_path / path, pack(skopeo(IMAGE)))
    (tmp_path / "at").mkdir()
    opt, image = place(f"{tmp_path}/{pattern}", default="quay.io"), name("quay.io/acme/os:1")
    assert shown(await opt.find(image)) == shown(await opt.everything(image)) == [str(image)]
    assert name("quay.io/acme/os") in list(await opt.repositories())
    assert await opt.find(name("quay.io/acme:1")) == []


@real_time
@pytest.mark.parametrize("is_old", [False, True])
async def test_a_directory_is_listed_again_when_it_has_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, is_old: bool
) -> None:
    listed: list[object] = []
    listdir = os.listdir

    def noting(path: str) -> list[str]:
        listed.append(path)
        return listdir(path)

    monkeypatch.setattr(os, "listdir", noting)
    if is_old:
        monkeypatch.setattr(host_files, "_TICK", -(10**12))
    nix = place(f"{tmp_path}/<ref>-<basename>.tar")
    for n, each in enumerate(("a", "b")):
        write_file(tmp_path / f"{each}-os.tar", pack(skopeo(IMAGE)))
        os.utime(tmp_path, (0, time.time() + 100 + n))  # later than any change
        listed.clear()
        for repository in ("os", "os", "tools", "absent"):
            found = await nix.everything(name(f"x.io/{repository}"))
            expected = ["a", "b"][: n + 1] if repository == "os" else []
            assert sorted(str(each.reference.tag) for each in found) == expected
        # What may have changed in the same moment is listed each time.
        assert len(listed) == (1 if is_old else 4)


@real_time
async def test_the_names_that_are_remembered_are_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host_files, "_TICK", -1)
    monkeypatch.setattr(sideload_places, "_MAX_NAMES", 5)
    opt = place(f"{tmp_path}/<basename>/<ref>")
    for n in range(8):
        for k in range(n):
            write_file(tmp_path / f"os{n}/{k}", b"")
        assert len(await opt.everything(name(f"x.io/os{n}"))) == n
    remembered = opt._directories._listed
    assert [len(names) for _, names in remembered.values()] == [4]
    for n in range(8):
        assert len(await opt.everything(name(f"x.io/os{n}"))) == n
