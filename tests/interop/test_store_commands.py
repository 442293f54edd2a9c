"""`tag`, `rm`, `gc` and `verify`, as processes, on stores and on layouts of other programs."""

from __future__ import annotations

import json
import os
import subprocess
from typing import TYPE_CHECKING

import pytest
from support.commands import run
from support.damage import flip, lose, shorten
from support.images import OCI_MANIFEST, REF_NAME, Json, Layout, digest_of, named
from support.servers import require, skopeo_copy

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

NAME = "quay.io/acme/os:1"


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    """Return a layout of two images, which no program of ours has written."""
    made = Layout(tmp_path / "layout")
    made.save(
        named(made.image(b"a layer" * 99, b"shared" * 99), "a"),
        named(made.image(b"another" * 99, b"shared" * 99), "b"),
    )
    return made


def entries(layout: Layout) -> list[Json]:
    found: list[Json] = json.loads((layout.path / "index.json").read_bytes())["manifests"]
    return found


def names(layout: Layout) -> list[tuple[str | None, str]]:
    return [(each.get("annotations", {}).get(REF_NAME), each["digest"]) for each in entries(layout)]


def blobs(layout: Layout) -> set[str]:
    return {f"{f.parent.name}:{f.name}" for f in layout.path.glob("blobs/*/*")}


def test_names_come_and_go_and_gc_removes_what_is_left(layout: Layout) -> None:
    store, ((_, a), (_, b)) = f"oci:{layout.path}", names(layout)
    done = run("tag", f"{store}:a", NAME, "--format=json")
    assert (done.status, done.json()) == (
        0,
        {"name": NAME, "digest": a, "mediaType": OCI_MANIFEST},
    )
    assert names(layout) == [("a", a), ("b", b), (NAME, a)]
    assert entries(layout)[2]["annotations"]["io.containerd.image.name"] == NAME
    done = run("tag", f"{store}:@{b}", "a")
    assert (done.status, done.stdout, done.stderr) == (0, "", f"imgproxy: a: {b}\n")
    assert names(layout) == [("a", b), ("b", b), (NAME, a)]
    done = run("rm", f"{store}:@{b}", f"{store}:@{b}", "--format=json", "--quiet")
    gone = [{"store": str(layout.path), "name": each, "digest": b} for each in ("a", "b")]
    assert (done.status, done.json(), done.stderr) == (0, {"removed": gone}, "")
    assert names(layout) == [(NAME, a)]
    before = blobs(layout)
    young = run("gc", store, "--format=json").json()
    assert (young["blobs"], young["young"], young["needed"]) == ([], 3, 4)
    planned = run("gc", store, "--grace=0", "--dry-run", "--format=json").json()
    assert blobs(layout) == before
    done = run("gc", store, "--grace=0", "--format=json")
    assert done.json() == {**planned, "dryRun": False}
    assert set(planned["blobs"]) == before - blobs(layout)
    assert done.stderr.count("imgproxy: removed: sha256:") == len(planned["blobs"]) == 3
    assert f"3 files removed, {planned['bytes']} bytes" in done.stderr.splitlines()[-1]
    done = run("verify", store, "--format=json")
    assert (done.status, done.json()["blobs"]) == (0, 4)


def test_a_name_of_an_image_without_one(layout: Layout) -> None:
    descriptor = layout.image(b"unnamed")
    layout.save(descriptor)
    assert run("tag", f"oci:{layout.path}:@{descriptor['digest']}", "os").status == 0
    assert names(layout) == [(None, descriptor["digest"]), ("os", descriptor["digest"])]
    skopeo_copy(f"oci:{layout.path}:os", f"dir:{layout.path}/../copy")


ABSENT = {
    "tag a name": ["tag", "{store}:x", "y"],
    "rm a name": ["rm", "{store}:a", "{store}:x"],
    "rm a digest": ["rm", "{store}:@" + digest_of(b"x"), "{store}:a"],
    "tag nowhere": ["tag", "{store}2:x", "y"],
    "rm nowhere": ["rm", "{store}2:x"],
    "gc nowhere": ["gc", "{store}2"],
    "gc of a file": ["gc", "{store}/index.json"],
    "verify nowhere": ["verify", "{store}2"],
}


@pytest.mark.parametrize("case", ABSENT)
def test_what_is_not_there_is_told_and_nothing_is_changed(case: str, layout: Layout) -> None:
    before = names(layout)
    done = run(*(each.format(store=f"oci:{layout.path}") for each in ABSENT[case]))
    assert (done.status, done.stdout, done.stderr.count("\n")) == (3, "", 1)
    told = "is no OCI layout" if case.endswith(("nowhere", "file")) else "that there are: a, b)"
    assert told in done.stderr
    assert names(layout) == before
    assert not os.path.exists(f"{layout.path}2")


@pytest.mark.slow
def test_a_name_that_two_images_have_is_ambiguous(layout: Layout) -> None:
    one, other = entries(layout)
    layout.save(one, named(other, "a"))
    done = run("tag", f"oci:{layout.path}:a", "x", "--format=json")
    assert (done.status, done.json()["errors"][0]["code"]) == (3, "AMBIGUOUS")
    choices = done.json()["errors"][0]["detail"]["choices"]
    assert choices == [{"digest": one["digest"]}, {"digest": other["digest"]}]
    assert run("rm", f"oci:{layout.path}:a", "-q").status == 0
    assert names(layout) == []


USAGE = [
    (["tag", "oci:x", "y"], "expected oci:DIR:REF or oci:DIR:@DIGEST, got oci:x"),
    (["tag", "oci:x:y"], "the following arguments are required"),
    (["tag", "oci:x:y", "a b"], '"a b" cannot be a name in a store'),
    (["tag", "oci:x:y", "@1"], '"@1" cannot be a name in a store'),
    (["tag", "oci:x:y", "oci:/x:z"], "cannot be a name in a store, such as 1 or quay.io/acme/os:1"),
    (["rm", "oci:x:@1"], '"1" is not a digest'),
    (["rm"], "the following arguments are required"),
    (["gc", "oci:x:y"], "expected oci:DIR, without a name, got oci:x:y"),
    (["gc", "dir:x"], "expected oci:DIR[:REF], got dir:x"),
    (["gc", "oci:x", "--grace=1w"], '"1w" is not a duration, as 90s, 12h and 7d are'),
    (["verify", "oci:x", "--grace=1h"], "unknown option: --grace"),
    (["verify", "/srv/x"], "expected oci:DIR[:REF], got /srv/x; write oci:/srv/x"),
    (["registry", "/srv/x"], "it takes no IMAGE: --images PATH names what is to be served"),
    (
        ["registry", "--images=oci:/no"],
        "--images oci:/no: No such file or directory; give the path",
    ),
    (["verify", "oci:x", "oci:y"], "1 arguments more than verify takes"),
]


@pytest.mark.parametrize(("arguments", "words"), USAGE)
def test_a_wrong_command_line_is_a_line(arguments: list[str], words: str) -> None:
    done = run(*arguments)
    assert (done.status, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert words in done.stderr


def test_what_is_no_descriptor_gets_no_name(layout: Layout) -> None:
    layout.save(named({"digest": "sha256:../../../etc/passwd"}, "odd"))
    before = entries(layout)
    done = run("tag", f"oci:{layout.path}:odd", "b")
    assert (done.status, "is not a digest (algorithm:encoded)" in done.stderr) == (4, True)
    assert entries(layout) == before


def test_an_option_before_the_command_has_its_value(layout: Layout) -> None:
    done = run("--grace", "0", "--format", "json", "gc", f"oci:{layout.path}")
    assert (done.status, done.json()["blobs"]) == (0, [])


def changed_layer(layout: Layout) -> tuple[str, str, list[str]]:
    digest = layout.layers(entries(layout)[0])[1]["digest"]
    flip(layout.file(digest))
    return digest, "DIGEST_INVALID", ["a", "b"]


def short_layer(layout: Layout) -> tuple[str, str, list[str]]:
    digest = layout.layers(entries(layout)[0])[0]["digest"]
    shorten(layout.file(digest))
    return digest, "DIGEST_INVALID", ["a"]


def changed_manifest(layout: Layout) -> tuple[str, str, list[str]]:
    digest = entries(layout)[1]["digest"]
    flip(layout.file(digest), 3)
    return digest, "DIGEST_INVALID", ["b"]


def no_config(layout: Layout) -> tuple[str, str, list[str]]:
    digest = layout.document(entries(layout)[1])["config"]["digest"]
    lose(layout.file(digest))
    return digest, "BLOB_UNKNOWN", ["b"]


def no_manifest(layout: Layout) -> tuple[str, str, list[str]]:
    digest = entries(layout)[0]["digest"]
    lose(layout.file(digest))
    return digest, "BLOB_UNKNOWN", ["a"]


def fifo(layout: Layout) -> tuple[str, str, list[str]]:
    digest = entries(layout)[0]["digest"]
    lose(layout.file(digest))
    os.mkfifo(layout.file(digest))
    return digest, "MANIFEST_INVALID", ["a"]


def wrong_size(layout: Layout) -> tuple[str, str, list[str]]:
    a, b = entries(layout)
    layout.save(a, {**b, "size": 1})
    return b["digest"], "SIZE_INVALID", ["b"]


def no_manifest_at_all(layout: Layout) -> tuple[str, str, list[str]]:
    a, b = entries(layout)
    layout.save(a, b, named(layout.add(b"{", OCI_MANIFEST), "c"))
    return entries(layout)[2]["digest"], "MANIFEST_INVALID", ["c"]


def unnamed(layout: Layout) -> tuple[str, str, list[str]]:
    digest: str = layout.add(b"unnamed", "x/y", algorithm="sha512")["digest"]
    flip(layout.file(digest))
    return digest, "DIGEST_INVALID", []


def odd_entry(layout: Layout) -> tuple[None, str, list[str]]:
    layout.save(*entries(layout), {"digest": "sha256:x"})
    return None, "MANIFEST_INVALID", []


DAMAGE = [
    *(changed_layer, short_layer, changed_manifest, no_config, no_manifest, wrong_size),
    *(no_manifest_at_all, unnamed, odd_entry, fifo),
]


@pytest.mark.slow
@pytest.mark.parametrize("damage", DAMAGE, ids=lambda each: each.__name__)
def test_what_does_not_verify_is_told_with_what_names_it(
    damage: Callable[[Layout], tuple[str | None, str, list[str]]], layout: Layout
) -> None:
    digest, code, by = damage(layout)
    done = run("verify", f"oci:{layout.path}", "--format=json")
    assert done.status == 4
    (wrong,) = done.json()["errors"][0]["detail"]["wrong"]
    assert (wrong["digest"], wrong["code"], wrong["names"]) == (digest, code, by)
    line, *_, last = done.stderr.splitlines()
    assert wrong["message"] in line
    assert digest is None or line.endswith(f"(named by {', '.join(by) or 'nothing'})")
    assert "1 of its blobs and entries are wrong or missing" in last
    assert not (layout.path / ".imgproxy").exists()


@pytest.mark.slow
def test_what_may_be_elsewhere_need_not_be_there(layout: Layout) -> None:
    """Layers with URLs and embedded content, and what an artifact refers to."""
    absent = {"mediaType": "x/y", "digest": digest_of(b"absent"), "size": 6}
    more = {"x": [{**absent, "urls": ["https://x/"]}, {**absent, "data": "YWJzZW50"}]}
    image = layout.image(b"a", subject={**absent, "mediaType": OCI_MANIFEST}, **more)
    layout.save(image)
    assert run("verify", f"oci:{layout.path}").status == 0
    layout.save(layout.image(b"a", x=absent))
    assert run("verify", f"oci:{layout.path}").status == 4


@pytest.mark.slow
def test_the_layouts_of_others_are_changed_so_that_they_read_them(
    layout: Layout, tmp_path: Path
) -> None:
    theirs = Layout(tmp_path / "theirs")
    skopeo_copy(f"oci:{layout.path}:a", f"oci:{theirs.path}:one")
    skopeo_copy(f"oci:{layout.path}:b", f"oci:{theirs.path}:two")
    store = f"oci:{theirs.path}"
    assert run("tag", f"{store}:one", "three").status == 0
    assert run("rm", f"{store}:two").status == 0
    assert run("gc", store, "--grace=0").status == 0
    assert run("verify", store).status == 0
    skopeo_copy(f"{store}:three", f"dir:{tmp_path / 'copy'}")
    umoci = [require("umoci"), "ls", "--layout", str(theirs.path)]
    listed = subprocess.run(umoci, capture_output=True, text=True, check=True)
    assert listed.stdout.split() == ["one", "three"]
