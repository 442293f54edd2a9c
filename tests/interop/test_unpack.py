"""`unpack`: root file systems from layouts and registries, whole or not at all."""

from __future__ import annotations

import json
import os
import random
import stat
from typing import TYPE_CHECKING

import pytest
from support import forked, namespaces
from support.commands import run
from support.damage import flip
from support.home import REGISTRIES_CONF, mirror, table
from support.images import (
    OCI_MANIFEST,
    Json,
    Layout,
    digest_of,
    encode,
    named,
)
from support.networks import line_to
from support.parent import INSECURE
from support.servers import (
    docker_registry,
    put_image,
    skopeo_copy,
    stored_blob,
)
from support.unpacking import (
    BASE,
    END,
    IS_ROOT,
    UPPER,
    directory,
    entry,
    image,
    link,
    names,
    public_directory,
    tree,
    unpack_image,
)

from imgproxy.unpacking.destination import INCOMPLETE

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from support.filled import Registry
    from support.home import Home

MARK = os.fsdecode(INCOMPLETE)
AMD64 = "--platform=linux/amd64"


@pytest.fixture
def place() -> Iterator[Path]:
    with public_directory() as path:
        yield path


@pytest.fixture
def layout(place: Path) -> Layout:
    made = Layout(place / "layout")
    made.save(image(made, BASE, UPPER))
    return made


@pytest.fixture
def at(place: Path) -> Path:
    (place / "work").mkdir()
    return place / "work/tree"


def nothing_is_left(at: Path) -> bool:
    return os.listdir(at.parent) == []


def test_an_image_becomes_a_tree(layout: Layout, at: Path) -> None:
    done = unpack_image(layout, at, "--format=json")
    assert done.status == 0, done.stderr
    assert names(at) == ["bin", "etc", "etc/os", "sbin"]
    assert tree(at)["etc/os"] == ("file", 0o644, b"new" * 1000, 5)
    (descriptor,) = json.loads((layout.path / "index.json").read_bytes())["manifests"]
    size = sum(len(each + END) for each in (BASE, UPPER))
    assert done.json() == {
        "directory": str(at),
        "manifest": descriptor["digest"],
        "layers": 2,
        "files": 7,
        "size": size,
        "lost": {},
    }
    assert f"{at}: 7 files of 2 layers\n" in done.stderr
    assert len([line for line in done.stderr.splitlines() if "bytes" in line]) == 2
    assert unpack_image(layout, at.with_name("quiet"), "--quiet")[1:] == ("", "")


@pytest.mark.slow
def test_an_image_of_a_registry_becomes_a_tree(
    layout: Layout, registry: Registry, at: Path, home: Home
) -> None:
    skopeo_copy(f"oci:{layout.path}:v1", f"docker://{registry.address}/unpacked:1")
    options = (INSECURE, "--tls-verify=false", "--platform=linux/amd64")
    name = f"docker://{registry.address}/unpacked:1"
    done = run("unpack", *options, name, str(at), env=home.environment())
    assert done.status == 0, done.stderr
    other = at.with_name("other")
    assert unpack_image(layout, other).status == 0
    assert tree(at) == tree(other)


@pytest.mark.slow
def test_a_directory_that_is_empty_is_filled_in_place(layout: Layout, at: Path) -> None:
    at.mkdir()
    inode = at.stat().st_ino
    assert unpack_image(layout, at).status == 0
    assert at.stat().st_ino == inode
    assert "bin" in names(at)
    assert MARK not in names(at)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["full", "file", "link"])
def test_what_is_there_is_left_alone(layout: Layout, at: Path, kind: str) -> None:
    if kind == "full":
        at.mkdir()
        (at / "mine").write_text("mine")
    elif kind == "file":
        at.write_text("mine")
    else:
        at.symlink_to("elsewhere")
    before = tree(at.parent)
    done = unpack_image(layout, at, "--format=json")
    assert done.status == 6
    assert done.json()["errors"][0]["code"] == "DESTINATION"
    assert tree(at.parent) == before


@pytest.mark.slow
def test_the_config_is_written_beside_it(layout: Layout, at: Path) -> None:
    config = at.with_name("config.json")
    assert unpack_image(layout, at, "--config", str(config)).status == 0
    assert json.loads(config.read_bytes())["os"] == "linux"
    again = unpack_image(layout, at.with_name("2"), "--config", str(config))
    assert (again.status, f"{config} exists" in again.stderr) == (6, True)
    assert not at.with_name("2").exists()
    nowhere = unpack_image(layout, at.with_name("3"), "--config", str(at / "no/config"))
    assert (nowhere.status, f"{at}/no/config: No such" in nowhere.stderr) == (6, True)


@pytest.mark.slow
def test_the_policy_is_asked(layout: Layout, at: Path, home: Home) -> None:
    policy = home.write("reject.json", {"default": [{"type": "reject"}]})
    done = unpack_image(layout, at, policy=f"--policy={policy}")
    assert (done.status, "is rejected by the policy" in done.stderr) == (3, True), done.stderr
    assert nothing_is_left(at)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--owner=all"], "keep, me, record, or map"),
        (["--owner=map=0:0:0"], "a range is empty"),
        (["--max-files=many"], "is not a number"),
        (["--max-size=many"], "many"),
        (["--layer=offset=0"], "--layer"),
    ],
)
def test_mistakes_on_the_command_line_are_told(
    layout: Layout, at: Path, options: list[str], words: str
) -> None:
    done = unpack_image(layout, at, *options)
    assert (done.status, words in done.stderr) == (2, True), done.stderr
    named_image = run("unpack", INSECURE, f"oci:{layout.path}:v1", "oci:elsewhere")
    assert (named_image.status, "pull copies images" in named_image.stderr) == (2, True)
    output = run("unpack", INSECURE, f"oci:{layout.path}:v1", "-")
    assert (output.status, "./- is a directory" in output.stderr) == (2, True)


# --- what is wrong with an image ----------------------------------------------------------------


def rewritten(layout: Layout, descriptor: Json, **changes: object) -> None:
    """Save an image whose manifest is changed."""
    document = {**layout.document(descriptor), **changes}
    layout.save(named(layout.add(encode(document), OCI_MANIFEST), "v1"))


def refusal(layout: Layout, at: Path, status: int, *options: str) -> str:
    done = unpack_image(layout, at, *options)
    assert done.status == status, done.stderr
    assert nothing_is_left(at)
    return done.stderr


def test_a_blob_that_was_changed_is_refused(layout: Layout, at: Path) -> None:
    (descriptor,) = json.loads((layout.path / "index.json").read_bytes())["manifests"]
    last = layout.layers(descriptor)[-1]
    flip(layout.file(last["digest"]), -20)
    assert last["digest"] in refusal(layout, at, 4)


@pytest.mark.slow
def test_a_config_that_does_not_fit_is_refused(layout: Layout, at: Path) -> None:
    rootfs = {"type": "layers", "diff_ids": [digest_of(BASE + END)]}
    layout.save(image(layout, BASE, UPPER, rootfs=rootfs))
    assert "has 1 diff_ids, and the manifest 2 layers" in refusal(layout, at, 4)
    swapped = {"type": "layers", "diff_ids": [digest_of(UPPER + END), digest_of(BASE + END)]}
    layout.save(image(layout, BASE, UPPER, rootfs=swapped))
    assert "layer 0 (sha256:" in refusal(layout, at, 4)
    layout.save(image(layout, BASE, rootfs={"diff_ids": ["sha256:../../etc/passwd"]}))
    assert "is not a digest" in refusal(layout, at, 4)


@pytest.mark.slow
def test_an_artifact_is_no_root_file_system(layout: Layout, at: Path) -> None:
    descriptor = image(layout, BASE)
    config = layout.add(b"{}", "application/vnd.cncf.helm.config.v1+json")
    rewritten(layout, descriptor, config=config)
    assert "extract unpacks the archives in an artifact" in refusal(layout, at, 3)


@pytest.mark.slow
def test_limits_can_be_set(layout: Layout, at: Path) -> None:
    assert "--max-files sets another limit" in refusal(layout, at, 4, "--max-files=6")
    assert "--max-size sets another limit" in refusal(layout, at, 4, "--max-size=1000")
    assert unpack_image(layout, at, "--max-files=7", "--max-size=1M").status == 0


@pytest.mark.slow
def test_a_blob_that_is_a_fifo_is_no_blob(layout: Layout, at: Path) -> None:
    (descriptor,) = json.loads((layout.path / "index.json").read_bytes())["manifests"]
    blob = layout.file(layout.layers(descriptor)[0]["digest"])
    blob.unlink()
    os.mkfifo(blob)
    refusal(layout, at, 3)


@pytest.mark.slow
def test_what_is_wrong_in_a_mirror_is_unpacked_from_the_next(
    layout: Layout, at: Path, home: Home, tmp_path: Path
) -> None:
    """All of it anew: what wrong bytes have made is gone."""
    noise = random.Random(1).randbytes(3 << 20)
    descriptor = image(layout, BASE, entry("f", noise))
    with (
        docker_registry(tmp_path / "bad") as bad,
        docker_registry(tmp_path / "good") as good,
        line_to(bad) as line,
    ):
        for address in (bad, good):
            put_image(address, "app:v1", layout, descriptor)
        flip(stored_blob(tmp_path / "bad", layout.layers(descriptor)[1]["digest"]), -2000)
        insecure = "insecure = true"
        home.write(REGISTRIES_CONF, table("", good, insecure) + mirror(line.address, insecure))
        name = f"docker://{good}/app:v1"
        done = run("unpack", INSECURE, AMD64, name, str(at), env=home.environment())
    assert done.status == 0, done.stderr
    assert any("/blobs/" in each for each in line.paths())
    assert (at / "f").read_bytes() == noise
    assert os.listdir(at.parent) == ["tree"]


# --- owners -------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.skipif(not IS_ROOT, reason="only root may give files away")
def test_owners_are_kept_by_root(layout: Layout, at: Path) -> None:
    layout.save(image(layout, entry("f", mode=0o4755, uid=5, gid=7)))
    assert unpack_image(layout, at).status == 0
    state = (at / "f").stat()
    assert (state.st_uid, state.st_gid, stat.S_IMODE(state.st_mode)) == (5, 7, 0o4755)
    assert unpack_image(layout, at.with_name("me"), "--owner=me").status == 0
    assert (at.with_name("me") / "f").stat().st_uid == 0


@pytest.mark.skipif(not IS_ROOT, reason="only root can become another user")
def test_others_keep_records_in_a_directory_of_their_own(layout: Layout, at: Path) -> None:
    layers = entry("f", mode=0o4755, uid=5) + directory("d", mode=0) + entry("d/f")
    device = entry("null", kind="character", device=(1, 3))
    layout.save(image(layout, layers + device + directory(".", mode=0o777)))
    os.chown(at.parent, forked.NOBODY, forked.NOBODY)
    name = f"oci:{layout.path}:v1"
    done = forked.run("unpack", INSECURE, "--format=json", name, str(at), uid=forked.NOBODY)
    assert done.status == 0, done.stderr
    assert done.json()["lost"] == {"devices": 1}
    assert stat.S_IMODE(at.stat().st_mode) == 0o700
    assert stat.S_IMODE((at / "d").stat().st_mode) == 0
    assert os.getxattr(at / "f", "user.rootlesscontainers") == b"\x08\x05"


@pytest.mark.skipif(not IS_ROOT, reason="a range of numbers takes root, or newuidmap")
def test_in_a_user_namespace_owners_are_those_that_it_has(layout: Layout, at: Path) -> None:
    device = entry("null", kind="character", device=(1, 3))
    layout.save(image(layout, entry("f", uid=5, gid=7, mode=0o4755) + device))
    os.chown(at.parent, 100000, 100000)
    arguments = ("unpack", INSECURE, "--format=json", f"oci:{layout.path}:v1")
    done = namespaces.run(*arguments, str(at), first=100000, count=1000)
    if done.status == namespaces.UNAVAILABLE:
        pytest.skip("no user namespace can be made here")
    assert done.status == 0, done.stderr
    assert done.json()["lost"] == {"devices": 1}
    state = (at / "f").stat()
    assert (state.st_uid, state.st_gid, stat.S_IMODE(state.st_mode)) == (100005, 100007, 0o4755)
    layout.save(image(layout, entry("f", uid=5000)))
    done = namespaces.run(*arguments, str(at.with_name("2")), first=100000, count=1000)
    assert (done.status, "subuid(5)" in done.stderr) == (6, True), done.stderr
    assert os.listdir(at.parent) == ["tree"]


# --- many layers --------------------------------------------------------------------------------


def test_64_layers_with_whiteouts(layout: Layout, at: Path) -> None:
    layers = [directory("d") + b"".join(entry(f"d/{n}", b"%d" % n) for n in range(64))]
    for n in range(1, 64):
        change = entry(f"d/.wh.{n}") if n % 2 else link(f"d/link{n}", f"d/{n}")
        layers.append(entry(f"l{n:02}/f", b"x" * n, mtime=n) + change)
    layers.append(entry("l05/.wh..wh..opq") + entry("l05/new"))
    layout.save(image(layout, *layers))
    assert unpack_image(layout, at).status == 0
    found = names(at)
    assert [name for name in found if name.startswith("l05")] == ["l05", "l05/new"]
    kept = {f"d/{n}" for n in range(64) if n % 2 == 0} | {f"d/link{n}" for n in range(2, 64, 2)}
    assert {name for name in found if name.startswith("d/")} == kept
    assert (at / "d/2").samefile(at / "d/link2")
