"""The collection of what no name reaches, and of nothing else."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import pytest
from support.damage import flip, lose
from support.images import OCI_INDEX, OCI_MANIFEST, Json, Layout, encode, named

from imgproxy.errors import Failure
from imgproxy.specs.oci import digest as digests
from imgproxy.store import locks
from imgproxy.store.collection import Collection
from imgproxy.store.content_store import ContentStore
from imgproxy.store.reachability import Documents
from imgproxy.store.users import User
from imgproxy.verification.documents import compare

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

UNKNOWN = "application/vnd.example+json"


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    made = Layout(tmp_path / "layout")
    made.save()
    ContentStore(str(made.path)).open()
    return made


def collection(layout: Layout, grace: float = 0) -> Collection:
    store = ContentStore(str(layout.path))
    return Collection(store, Documents(store, compare), grace)


def collect(layout: Layout, grace: float = 0) -> set[str]:
    """Collect, and return the digests that were removed."""
    it = collection(layout, grace)
    found = it.find()
    removed = list(it.remove(found))
    assert not any(os.path.exists(each.path) for each in removed)
    return {str(each.digest) for each in removed}


def blobs(layout: Layout) -> set[str]:
    return {f"{f.parent.name}:{f.name}" for f in layout.path.glob("blobs/*/*")}


# --- what names reach -------------------------------------------------------------------------


def plain(layout: Layout) -> list[Json]:
    return [named(layout.image(b"a", b"b"), "a"), named(layout.image(b"a", b"c", docker=True), "b")]


def nested(layout: Layout) -> list[Json]:
    inner = layout.index(layout.image(b"a"), layout.image(b"b"))
    return [layout.index(layout.index(inner), layout.image(b"c"), docker=True)]


def without_types(layout: Layout) -> list[Json]:
    # the entries of indexes need not say what they are
    index = layout.index({**layout.image(b"a"), "mediaType": None})
    return [{"digest": index["digest"]}]


def other_algorithms(layout: Layout) -> list[Json]:
    return [layout.image(b"a", algorithm="sha512"), layout.image(b"b", algorithm="sha384")]


def unknown_kinds(layout: Layout) -> list[Json]:
    # what a later specification may name, and in what
    parts = [layout.add(each, "x/y") for each in (b"1", b"2", b"3")]
    document = {"blobs": [parts[0]], "more": {"of": [[parts[1]]], "them": parts[2]}}
    return [layout.add(encode(document), UNKNOWN), layout.add(b"\xff no JSON", "x/z")]


def sparse(layout: Layout) -> list[Json]:
    # of an index, a part may be there
    absent = {"mediaType": OCI_MANIFEST, "digest": str(digests.compute(b"absent")), "size": 6}
    return [layout.index(layout.image(b"there"), absent)]


def signatures(layout: Layout) -> list[Json]:
    # what refers to an image is listed beside it, without a name, also after the image is gone
    subject = layout.image(b"an image that is gone")
    signature = layout.image(b"signature", subject=subject)
    for each in (subject, *layout.layers(subject), layout.document(subject)["config"]):
        lose(layout.file(each["digest"]))
    return [signature]


def layer_and_document(layout: Layout) -> list[Json]:
    # a manifest that is a layer is content; named as a manifest elsewhere, it is one
    inner = layout.image(b"inner")
    document = {"layers": [{**inner, "mediaType": "x/y"}], "config": layout.add(b"{}", "x/c")}
    return [layout.add(encode({**document, "mediaType": OCI_MANIFEST}), OCI_MANIFEST), inner]


NAMED = [plain, nested, without_types, other_algorithms, unknown_kinds, sparse, signatures]


@pytest.mark.parametrize("make", [*NAMED, layer_and_document])
def test_what_names_reach_is_kept_and_nothing_else(
    make: Callable[[Layout], list[Json]], layout: Layout
) -> None:
    layout.save(*make(layout))
    kept = blobs(layout)
    dead = layout.index(layout.image(b"dead 1"), layout.image(b"dead 2", algorithm="sha512"))
    others = blobs(layout) - kept
    assert dead["digest"] in others
    assert collect(layout) == others
    assert blobs(layout) == kept
    assert collect(layout) == set()


def test_what_an_image_refers_to_is_not_kept_by_that(layout: Layout) -> None:
    image = layout.image(b"image")
    before = blobs(layout)
    layout.save(layout.image(b"signature", subject=image))
    assert collect(layout) == before


def test_the_grace_period_keeps_what_is_young(layout: Layout) -> None:
    layout.image(b"a", b"b")
    config, *rest = sorted(layout.path.glob("blobs/sha256/*"))
    old = os.stat(config).st_mtime - 3700
    os.utime(config, (old, old))
    it = collection(layout, 3600)
    assert [each.path for each in it.find()] == [str(config)]
    assert (it.young, it.kept) == (len(rest), 0)
    assert collect(layout, 3600) == {f"sha256:{config.name}"}
    assert len(collect(layout)) == len(rest)


# --- what is not understood -------------------------------------------------------------------


def test_what_is_no_blob_is_left_alone(layout: Layout) -> None:
    left = [
        layout.path / "oci-put-blob123",
        layout.path / "ingest/abc_1",
        layout.path / "blobs/blake3" / ("0" * 64),
        layout.path / "blobs/file",
        layout.path / "blobs/sha256/README",
        layout.path / "blobs/sha256" / ("A" * 64),
        layout.path / "blobs/sha256" / ("f" * 63),
    ]
    for each in left:
        each.parent.mkdir(parents=True, exist_ok=True)
        each.touch()
    (layout.path / "blobs/sha256" / ("0" * 64)).mkdir()
    (layout.path / "blobs/sha256" / ("1" * 64)).symlink_to("README")
    layout.add(b"dead", "x/y")
    it = collection(layout)
    assert len(list(it.remove(it.find()))) == 1
    assert all(each.exists() for each in left)
    names = {os.path.relpath(each, layout.path) for each in it.unknown}
    assert names == {
        *("blobs/blake3", "blobs/file", "blobs/sha256/README"),
        *(f"blobs/sha256/{name}" for name in ("A" * 64, "f" * 63, "0" * 64, "1" * 64)),
    }


def entry_without_a_digest(layout: Layout) -> None:
    layout.save(layout.image(b"a"), {"mediaType": OCI_MANIFEST})


def odd_entry(layout: Layout) -> None:
    layout.save("odd")  # type: ignore[arg-type]


def broken_manifest(layout: Layout) -> None:
    layout.save(layout.add(b"{", OCI_MANIFEST))


def changed_manifest(layout: Layout) -> None:
    descriptor = layout.image(b"a")
    layout.save(descriptor)
    flip(layout.file(descriptor["digest"]), -3)


def wrong_digest_in_an_index(layout: Layout) -> None:
    layout.save(layout.index({"digest": "sha256:x"}))


def absent_manifest(layout: Layout) -> None:
    descriptor = layout.image(b"a")
    layout.save(named(descriptor, "os"))
    lose(layout.file(descriptor["digest"]))


def huge_manifest(layout: Layout) -> None:
    layout.save(layout.add(b" " * (5 << 20), OCI_MANIFEST))


def directory_for_a_manifest(layout: Layout) -> None:
    descriptor = layout.image(b"a")
    layout.save(descriptor)
    lose(layout.file(descriptor["digest"]))
    layout.file(descriptor["digest"]).mkdir()


def fifo_for_a_manifest(layout: Layout) -> None:
    descriptor = layout.image(b"a")
    layout.save(descriptor)
    lose(layout.file(descriptor["digest"]))
    os.mkfifo(layout.file(descriptor["digest"]))


def fifo_for_the_index(layout: Layout) -> None:
    (layout.path / "index.json").unlink()
    os.mkfifo(layout.path / "index.json")


def broken_index(layout: Layout) -> None:
    (layout.path / "index.json").write_text("{")


def later_version(layout: Layout) -> None:
    (layout.path / ".imgproxy/trees").mkdir()


UNREADABLE = {
    entry_without_a_digest: "entry 1: it is no descriptor; nothing is removed",
    odd_entry: "entry 0: it is no descriptor; nothing is removed",
    broken_manifest: "not JSON",
    changed_manifest: "its bytes do not have the digest",
    wrong_digest_in_an_index: '"sha256:x": sha256 has 64',
    absent_manifest: "os stands for sha256:[0-9a-f]*, which is not there",
    huge_manifest: "5242880 bytes are more than a document has; nothing is removed",
    directory_for_a_manifest: "sha256:[0-9a-f]*: not a regular file; nothing is removed",
    fifo_for_a_manifest: "sha256:[0-9a-f]*: not a regular file; nothing is removed",
    fifo_for_the_index: "index.json: not a regular file",
    broken_index: "parsing .*index.json",
    later_version: "has trees, which this version of imgproxy does not know; nothing is removed",
}


@pytest.mark.parametrize("damage", UNREADABLE, ids=lambda each: each.__name__)
def test_where_it_is_not_known_what_is_named_nothing_is_removed(
    damage: Callable[[Layout], None], layout: Layout
) -> None:
    layout.add(b"dead", "x/y")
    damage(layout)
    before = blobs(layout)
    with pytest.raises(Failure, match=UNREADABLE[damage]):
        collect(layout)
    assert blobs(layout) == before


# --- other processes --------------------------------------------------------------------------


def test_what_a_process_relies_on_is_kept_until_it_ends(layout: Layout) -> None:
    dead, used = (layout.add(each, "x/y")["digest"] for each in (b"dead", b"used"))
    store = ContentStore(str(layout.path))
    with store.using():
        store.use([digests.parse(used)])
        assert collect(layout) == {dead}
    assert collect(layout) == {used}


def test_what_a_killed_process_has_relied_on_is_not_kept(layout: Layout) -> None:
    used = layout.add(b"used", "x/y")["digest"]
    store = ContentStore(str(layout.path))
    user = User(store.users)
    user.add([digests.parse(used)])
    user._file.close()
    assert len(os.listdir(store.users)) == 1
    assert collect(layout) == {used, "None"}
    assert os.listdir(store.users) == []


def test_what_is_named_or_relied_on_after_the_search_is_kept(layout: Layout) -> None:
    """Between the search and the removal, others go on."""
    (layer,) = layout.layers(image := layout.image(b"image"))
    used = layout.add(b"used", "x/y")["digest"]
    dead = layout.add(b"dead", "x/y")["digest"]
    it = collection(layout)
    found = it.find()
    assert {image["digest"], layer["digest"], used, dead} < {str(each.digest) for each in found}
    layout.save(named(image, "os"))
    store = ContentStore(str(layout.path))
    with store.using():
        store.use([digests.parse(used)])
        assert [str(each.digest) for each in it.remove(found)] == [dead]


def test_what_was_begun_and_abandoned_is_removed(layout: Layout) -> None:
    store = ContentStore(str(layout.path))
    (layout.path / "blobs/sha256").mkdir(exist_ok=True)
    names = [
        "index.json.imgproxy-1-2",
        "oci-layout.imgproxy-1-2",
        f"blobs/sha256/{'0' * 64}.imgproxy-12-34",
        f".imgproxy/partial/sha256-{'0' * 64}",
    ]
    for name in names:
        (layout.path / name).write_text("begun")
    assert collect(layout, 3600) == set()
    it = collection(layout)
    found = it.find()
    assert len(found) == len(names)
    locked = [locks.try_lock(each, locks.EXCLUSIVE) for each in (store.index_lock, found[0].path)]
    only = [str(layout.path / names[2])]
    assert [each.path for each in it.find()] == only
    assert [each.path for each in it.remove(found)] == only
    for each in locked:
        assert each is not None
        each.close()
    it = collection(layout)
    assert len(list(it.remove(it.find()))) == 3
    assert not [name for name in names if (layout.path / name).exists()]
    assert (layout.path / "index.json").exists()


def test_what_others_removed_meanwhile_is_no_failure(layout: Layout) -> None:
    layout.image(b"a", b"b")
    it = collection(layout)
    found = it.find()
    lose(layout.file(str(found[0].digest)))
    assert len(list(it.remove(found))) == len(found) - 1


def test_an_entry_may_stand_for_a_foreign_index(layout: Layout) -> None:
    """Members that are no descriptors do not matter."""
    index = {"mediaType": OCI_INDEX, "manifests": ["odd", 1, None, {"platform": {}}], "x": 1.5}
    layout.save(layout.add(json.dumps(index).encode(), OCI_INDEX))
    assert collect(layout) == set()
