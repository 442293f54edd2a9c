"""Files that come, change, go, are half-written, broken, or others' to change.

What counts is what lies there at the request. A file that is no image is a 502 where a pattern
leads to it, and is not served where its directory was named: others beside it still are.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest
from support import registry_doors
from support.archives import COMPRESSIONS, DIALECTS, gzipped, pack, packed, saved, write_file
from support.images import Layout, digest_of, encode, named
from support.parent import COMMAND, INSECURE, LIMIT, eventually
from support.registry_doors import REGISTRY, blob, manifest, path
from support.servers import skip

if TYPE_CHECKING:
    from pathlib import Path

    from support.registry_doors import Door

NAME = f"{REGISTRY}/app"
USAGE = 2


def archive(content: bytes, *names: str, dialect: str = "skopeo") -> bytes:
    return pack(DIALECTS[dialect](saved(content, tags=list(names))))


def layers_of(door: Door, target: str) -> list[str]:
    reply = door.ask(target)
    assert reply.status == 200, reply
    return [each["digest"] for each in reply.json()["layers"]]


def put(file: Path, content: bytes) -> None:
    """Write a file beside its place, and rename it: what is there appears at once."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.with_suffix(".part").write_bytes(content)
    file.with_suffix(".part").rename(file)


# --- come, change, go -----------------------------------------------------------------------------


def test_a_file_of_a_pattern_comes_changes_and_goes(tmp_path: Path) -> None:
    file = tmp_path / "at/app/1.tar"
    first, second = digest_of(b"first"), digest_of(b"second")
    with registry_doors.running("--sideload", f"{tmp_path}/at/<name>/<ref>.tar") as door:
        assert door.status(manifest(NAME, "1")) == 404
        put(file, archive(b"first"))
        assert layers_of(door, manifest(NAME, "1")) == [first]
        assert door.status(blob(NAME, first)) == 200
        put(file, archive(b"second"))
        assert layers_of(door, manifest(NAME, "1")) == [second]
        assert door.status(blob(NAME, second)) == 200
        assert door.status(blob(NAME, first)) == 404
        assert door.ask(path(NAME, "tags", "list")).json()["tags"] == ["1"]
        file.unlink()
        assert door.status(manifest(NAME, "1")) == 404
        assert door.status(blob(NAME, second)) == 404
        assert door.status(path(NAME, "tags", "list")) == 404


def test_files_in_a_directory_come_change_and_go(tmp_path: Path) -> None:
    images = tmp_path / "images"
    put(images / "a.tar", archive(b"of a", f"{NAME}:a"))
    with registry_doors.running("--images", str(images)) as door:
        assert layers_of(door, manifest(NAME, "a")) == [digest_of(b"of a")]
        assert door.status(manifest(NAME, "b")) == 404
        put(images / "b.tar", archive(b"of b", f"{NAME}:b"))
        assert layers_of(door, manifest(NAME, "b")) == [digest_of(b"of b")]
        assert door.ask(path(NAME, "tags", "list")).json()["tags"] == ["a", "b"]
        put(images / "b.tar", archive(b"new", f"{NAME}:b", f"{NAME}:c"))
        assert layers_of(door, manifest(NAME, "b")) == [digest_of(b"new")]
        assert door.ask(path(NAME, "tags", "list")).json()["tags"] == ["a", "b", "c"]
        (images / "b.tar").unlink()
        assert door.status(manifest(NAME, "b")) == 404
        assert layers_of(door, manifest(NAME, "a")) == [digest_of(b"of a")]


@pytest.mark.slow
def test_the_entries_of_a_layout_come_change_and_go(layout: Layout) -> None:
    one, two = layout.image(b"one"), layout.image(b"two")
    layout.save(named(one, f"{NAME}:1"))
    with registry_doors.running("--images", str(layout.path)) as door:
        assert layers_of(door, manifest(NAME, "1")) == [digest_of(b"one")]
        assert door.status(manifest(NAME, two["digest"])) == 404, "it has no name yet"
        layout.save(named(two, f"{NAME}:1"), named(one, f"{NAME}:2"))
        assert layers_of(door, manifest(NAME, "1")) == [digest_of(b"two")]
        assert layers_of(door, manifest(NAME, "2")) == [digest_of(b"one")]
        layout.save(named(two, f"{NAME}:1"))
        assert door.status(manifest(NAME, "2")) == 404
        assert door.status(manifest(NAME, one["digest"])) == 404


@pytest.mark.slow
def test_a_reply_under_way_is_that_of_the_file_it_began_with(tmp_path: Path) -> None:
    file = tmp_path / "at/app/1.tar"
    content = os.urandom(64 << 20)
    put(file, archive(content))
    with registry_doors.running("--sideload", f"{tmp_path}/at/<name>/<ref>.tar") as door:
        (digest,) = layers_of(door, manifest(NAME, "1"))
        client = door.connect()
        client.ask("GET", blob(NAME, digest))
        assert client.head().status == 200
        put(file, archive(b"another"))
        assert layers_of(door, manifest(NAME, "1")) == [digest_of(b"another")]
        assert digest_of(client.read(len(content))) == digest


# --- half-written, broken -------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("compression", [None, "gzip", "zstd", "xz"])
def test_a_file_that_is_being_written(tmp_path: Path, compression: str | None) -> None:
    whole = archive(os.urandom(100_000), f"{NAME}:1")
    if compression is not None:
        whole = COMPRESSIONS[compression](whole)
    file = tmp_path / "images/app/1.tar"
    write_file(tmp_path / "images/other.tar", archive(b"another", f"{REGISTRY}/other:1"))
    write_file(file, b"")
    options = ("--images", f"{tmp_path}/images", "--images", f"{tmp_path}/images/app")
    pattern = f"{tmp_path}/images/<basename>/<ref>.tar"
    with (
        registry_doors.running(*options) as by_name,
        registry_doors.running("--sideload", pattern) as by_path,
    ):
        for size in (0, 1, 512, 5000, len(whole) // 2, len(whole) - 1):
            file.write_bytes(whole[:size])
            assert by_name.status(manifest(NAME, "1")) in {404, 200 if size > 99_000 else 404}
            reply = by_path.ask(manifest(NAME, "1"))
            assert reply.status in {502, 200 if size > 99_000 else 502}, (size, reply)
            assert by_name.status(manifest(f"{REGISTRY}/other", "1")) == 200
        file.write_bytes(whole)
        for door in (by_name, by_path):
            (digest,) = layers_of(door, manifest(NAME, "1"))
            assert digest_of(door.ask(blob(NAME, digest)).body) == digest


BROKEN = {
    "empty": b"",
    "text": b"no image at all\n",
    "HTML": b"<html><body>404</body></html>",
    "random": os.urandom(10_000),
    "a tar of anything": pack([]),
    "gzip of nothing": gzipped(b""),
    "JSON that is no manifest": b'{"schemaVersion": 2}',
    "a list": b"[]",
    "schema 1": encode({"schemaVersion": 1, "name": "x", "fsLayers": [], "history": []}),
    "both shapes": encode({"schemaVersion": 2, "manifests": [], "config": {}, "layers": []}),
}


@pytest.mark.slow
def test_files_that_are_no_images(tmp_path: Path) -> None:
    images = tmp_path / "images"
    put(images / "good.tar", archive(b"good", f"{NAME}:good"))
    with (
        registry_doors.running("--images", str(images)) as by_name,
        registry_doors.running("--sideload", f"{images}/<ref>.<basename>") as by_path,
        registry_doors.running("--sideload", f"{tmp_path}/tree/<name>/manifests/<ref>") as tree,
    ):
        for n, (kind, content) in enumerate(BROKEN.items()):
            write_file(images / f"x{n}.app", content)
            write_file(tmp_path / f"tree/app/manifests/x{n}", content)
            for door in (by_path, tree):
                reply = door.ask(manifest(NAME, f"x{n}"))
                assert reply.status == 502, (kind, reply)
                assert reply.code in {"MANIFEST_INVALID", "UNSUPPORTED"}, (kind, reply)
                head = door.ask(manifest(NAME, f"x{n}"), method="HEAD")
                assert head.status == 502, kind
            assert layers_of(by_name, manifest(NAME, "good")) == [digest_of(b"good")]
            assert by_name.status(manifest(NAME, "absent")) == 404
        # Each broken file is told of once, whatever number of requests there were.
        for n in range(len(BROKEN)):
            told = [line for line in by_name.child.stderr.splitlines() if f"/x{n}.app" in line]
            assert len(told) == 1, told


@pytest.mark.slow
def test_paths_that_lead_to_no_file(tmp_path: Path) -> None:
    at = tmp_path / "at"
    (at / "directory.tar").mkdir(parents=True)
    (at / "dangling.tar").symlink_to("nothing")
    (at / "loop.tar").symlink_to("loop.tar")
    (at / "file").write_bytes(b"")
    os.mkfifo(at / "fifo.tar")
    write_file(tmp_path / "store/app.tar", archive(b"linked"))
    (at / "link.tar").symlink_to("../store/app.tar")
    patterns = (f"{at}/<ref>.<basename>", f"{at}/file/<ref>/<name>")
    options = [word for each in patterns for word in ("--sideload", each)]
    with registry_doors.running(*options) as door:
        name = f"{REGISTRY}/tar"
        for tag, statuses in (
            ("dangling", {404}),
            ("loop", {403, 404}),
            ("absent", {404}),
            ("directory", {404, 502}),
            ("fifo", {404, 502}),
            ("x" * 128, {404}),
        ):
            assert door.status(manifest(name, tag)) in statuses, tag
        assert layers_of(door, manifest(name, "link")) == [digest_of(b"linked")]


# --- two images of one name -----------------------------------------------------------------------


@pytest.mark.slow
def test_two_images_of_one_name(tmp_path: Path) -> None:
    images = tmp_path / "images"
    put(images / "a.tar", archive(b"one", f"{NAME}:1", f"{NAME}:a"))
    put(images / "b.tar", archive(b"two", f"{NAME}:1", f"{NAME}:b"))
    with registry_doors.running("--images", str(images)) as door:
        reply = door.ask(manifest(NAME, "1"))
        assert (reply.status, reply.code) == (404, "MANIFEST_UNKNOWN")
        digests = [
            str(door.ask(manifest(NAME, tag)).get("Docker-Content-Digest")) for tag in ("a", "b")
        ]
        assert sorted(each["digest"] for each in reply.error["detail"]["choices"]) == sorted(
            digests
        )
        for digest in digests:
            assert door.status(manifest(NAME, digest)) == 200
        # The same image twice is one.
        put(images / "b.tar", gzipped(archive(b"one", f"{NAME}:1")))
        assert layers_of(door, manifest(NAME, "1")) == [digest_of(b"one")]


@pytest.mark.slow
def test_a_second_image_of_a_name_counts_at_the_next_request(tmp_path: Path) -> None:
    images = tmp_path / "images"
    put(images / "a.tar", archive(b"one", f"{NAME}:1"))
    with registry_doors.running("--images", str(images)) as door:
        assert door.status(manifest(NAME, "1")) == 200
        put(images / "b.tar", archive(b"two", f"{NAME}:1"))
        assert door.status(manifest(NAME, "1")) == 404


# --- files that others may change -----------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("place", ["file", "directory", "above"])
def test_what_others_may_change_is_not_served(tmp_path: Path, place: str) -> None:
    file = tmp_path / "top/at/1.app"
    write_file(file, archive(b"x", f"{NAME}:1"))
    changed = {"file": file, "directory": file.parent, "above": file.parent.parent}[place]
    changed.chmod(changed.stat().st_mode | 0o022)
    sideload = ("--sideload", f"{tmp_path}/top/at/<ref>.<basename>")
    images = ("--images", str(file.parent))
    with registry_doors.running(*sideload) as door:
        for _ in range(3):
            assert door.status(manifest(NAME, "1")) == 404
        told = [line for line in door.child.stderr.splitlines() if "--trust-writable" in line]
        assert len(told) == 1, told
        assert str(changed) in told[0]
        changed.chmod(changed.stat().st_mode & ~0o022)
        assert door.status(manifest(NAME, "1")) == 200
        changed.chmod(changed.stat().st_mode | 0o002)
        assert door.status(manifest(NAME, "1")) == 404
        assert door.status(blob(NAME, digest_of(b"x"))) == 404
    for options in (sideload, images):
        with registry_doors.running(*options, "--trust-writable") as door:
            assert door.status(manifest(NAME, "1")) == 200
    if place == "file":  # the directory was named, and is nobody else's
        with registry_doors.running(*images) as door:
            assert door.status(manifest(NAME, "1")) == 404
    else:
        started = subprocess.run(
            [*COMMAND, "registry", INSECURE, "--listen", "127.0.0.1:0", *images],
            capture_output=True,
            text=True,
            timeout=LIMIT,
            check=False,
        )
        assert started.returncode == USAGE
        assert str(changed) in started.stderr


@pytest.mark.slow
def test_a_directory_in_which_nobody_may_replace_files(tmp_path: Path) -> None:
    """As /nix/store is: others may write it, and it is sticky."""
    file = tmp_path / "store/1.app"
    write_file(file, archive(b"x", f"{NAME}:1"))
    file.parent.chmod(0o1777)
    with registry_doors.running("--sideload", f"{tmp_path}/store/<ref>.<basename>") as door:
        assert door.status(manifest(NAME, "1")) == 200


@pytest.mark.slow
def test_what_belongs_to_another_user(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        skip("only root may give a file away")
    file = tmp_path / "at/1.app"
    write_file(file, archive(b"x", f"{NAME}:1"))
    os.chown(file, 65534, -1)
    with registry_doors.running("--sideload", f"{tmp_path}/at/<ref>.<basename>") as door:
        assert door.status(manifest(NAME, "1")) == 404
        assert "65534" in door.child.stderr


# --- damage ---------------------------------------------------------------------------------------

SMALL, LARGE = 100_000, 5 << 20


def damaged_layout(tmp_path: Path, size: int) -> tuple[list[str], Path, str, int]:
    layout = Layout(tmp_path / "images/layout")
    content = os.urandom(size)
    layout.save(named(layout.image(content, b"sound"), f"{NAME}:1"))
    return (
        ["--images", f"{tmp_path}/images"],
        layout.file(digest_of(content)),
        digest_of(content),
        9,
    )


def damaged_oci_archive(tmp_path: Path, size: int) -> tuple[list[str], Path, str, int]:
    layout = Layout(tmp_path / "layout")
    content = os.urandom(size)
    layout.save(named(layout.image(content, b"sound"), f"{NAME}:1"))
    file = tmp_path / "images/app.tar"
    file.parent.mkdir()
    file.write_bytes(packed(layout))
    place = file.read_bytes().index(content) + 9
    return ["--images", f"{tmp_path}/images"], file, digest_of(content), place


def damaged_tree(tmp_path: Path, size: int) -> tuple[list[str], Path, str, int]:
    from support.archives import write_registry_tree

    layout = Layout(tmp_path / "layout")
    content = os.urandom(size)
    image = layout.save_image(content, b"sound")
    write_registry_tree(tmp_path / "tree", "app", "1", layout, image)
    file = tmp_path / "tree/blobs" / digest_of(content)
    pattern = f"{tmp_path}/tree/<name>/manifests/<ref>"
    return ["--sideload", pattern], file, digest_of(content), 9


@pytest.mark.parametrize("size", [SMALL, LARGE])
@pytest.mark.parametrize("form", [damaged_layout, damaged_oci_archive, damaged_tree])
@pytest.mark.parametrize("by", ["flip", "end"])
def test_nothing_whole_arrives_of_a_damaged_blob(
    tmp_path: Path, size: int, form: object, by: str
) -> None:
    assert callable(form)
    options, file, digest, place = form(tmp_path, size)
    sound = file.read_bytes()
    place += size // 2 if by == "flip" else size - 10
    damaged = bytearray(sound)
    damaged[place] ^= 1
    file.write_bytes(damaged)
    with registry_doors.running(*options) as door:
        assert door.status(manifest(NAME, "1")) == 200
        for _ in range(3):
            reply = door.ask(blob(NAME, digest))
            if reply.status == 200:
                assert size == LARGE, "a small one is known before the head"
                assert len(reply.body) < size, "something is withheld"
                assert reply.ending == "end"
            else:
                assert reply.status in {404, 502}, reply
                assert reply.code in {"DIGEST_INVALID", "BLOB_UNKNOWN", "MANIFEST_INVALID"}
            # What clients ask next: containerd, regctl and Docker go on where it broke off.
            for wanted in (f"{len(reply.body)}-", "0-", "1-2", "-5"):
                rest = door.ask(blob(NAME, digest), f"Range: bytes={wanted}")
                assert rest.status != 206, wanted
                assert not (rest.status == 200 and rest.complete), wanted
        assert door.ask(blob(NAME, digest_of(b"sound"))).body == b"sound"
        file.write_bytes(sound)
        assert digest_of(door.ask(blob(NAME, digest)).body) == digest


@pytest.mark.slow
@pytest.mark.parametrize("what", ["manifest", "config"])
def test_nothing_arrives_of_a_damaged_document(layout: Layout, what: str) -> None:
    image = layout.image(b"x")
    layout.save(named(image, f"{NAME}:1"))
    digest = image["digest"] if what == "manifest" else layout.document(image)["config"]["digest"]
    file = layout.file(digest)
    file.write_bytes(file.read_bytes().replace(b": ", b":\t", 1))
    with registry_doors.running("--images", str(layout.path)) as door:
        target = manifest(NAME, "1") if what == "manifest" else blob(NAME, digest)
        reply = door.ask(target)
        assert (reply.status, reply.code) == (502, "DIGEST_INVALID")
        file.unlink()
        assert door.status(target) in {404, 502}


@pytest.mark.slow
def test_a_place_that_is_lost_while_the_registry_runs(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "images/layout")
    layout.save(named(layout.image(b"x"), f"{NAME}:1"))
    with registry_doors.running("--images", f"{tmp_path}/images") as door:
        assert door.status(manifest(NAME, "1")) == 200
        shutil.rmtree(tmp_path / "images")
        assert door.status(manifest(NAME, "1")) == 404
        assert door.status("/v2/") == 200
        assert eventually(lambda: door.child.running)


# --- what is known of archives --------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("is_usable", [True, False])
def test_a_cache_is_made_or_done_without(tmp_path: Path, *, is_usable: bool) -> None:
    put(tmp_path / "images/a.tar", archive(gzipped(b"one"), f"{NAME}:1"))
    cache = tmp_path / "cache"
    if not is_usable:
        cache.mkdir()
        (cache / ".imgproxy").write_bytes(b"no directory")
    for _ in range(2):
        options = ("--images", f"{tmp_path}/images", "--cache", str(cache))
        with registry_doors.running(*options) as door:
            (digest,) = layers_of(door, manifest(NAME, "1"))
            assert door.ask(blob(NAME, digest)).body == gzipped(b"one")
            said = "going on without a record of archives" in door.child.stderr
            assert said is not is_usable
    if is_usable:
        assert (cache / "oci-layout").exists()
