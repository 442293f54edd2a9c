"""`extract`: the archives in layers, merged or in a directory each."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

import pytest
from support import attacks, forked, packages, registry_clients
from support.archives import COMPRESSIONS, zstd_with_window
from support.commands import run
from support.damage import flip
from support.effort import some
from support.home import REGISTRIES_CONF, mirror, table
from support.images import Layout, named
from support.networks import line_to
from support.packages import Part, tarball, titled
from support.parent import INSECURE
from support.servers import docker_registry, put_image, stored_blob

if TYPE_CHECKING:
    from pathlib import Path

    from support.commands import Done
    from support.home import Home

HTTP = "--tls-verify=false"


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(tmp_path / "layout")


def extract(image: str, directory: Path | str, *options: str) -> Done:
    return forked.run("extract", INSECURE, image, str(directory), *options)


def contents(path: Path) -> dict[str, bytes]:
    files = (each for each in path.rglob("*") if each.is_file())
    return {str(each.relative_to(path)): each.read_bytes() for each in files}


@pytest.mark.parametrize("compression", some(list(COMPRESSIONS)))
def test_the_compression_is_told_by_the_content(
    compression: str, layout: Layout, tmp_path: Path
) -> None:
    files = {"a": b"x" * 200_000, "d/b": os.urandom(100_000), "d/c": b""}
    image = packages.save(layout, Part(COMPRESSIONS[compression](tarball(files)), "x/any"))
    done = extract(image, tmp_path / "out", "--format=json")
    assert done.status == 0, done.stderr
    assert contents(tmp_path / "out") == files
    told = done.json()
    assert (told["files"], told["size"]) == (4, len(tarball(files)))
    assert [each["files"] for each in told["layers"]] == [3]


def test_modes_and_times_are_those_in_the_archive(layout: Layout, tmp_path: Path) -> None:
    when = {136: b"%011o\0" % 86_400}
    archive = attacks.layer(
        attacks.directory(b"d/", 0o2710),
        attacks.file(b"d/s", mode=0o6755),
        attacks.file(b"r", mode=0o400, more={100: b"0000400\0", **when}),
        attacks.symlink(b"l", b"r", more=when),
        attacks.file(b"implied/f"),
    )
    before = os.umask(0o027)
    try:
        done = extract(packages.save(layout, Part(archive)), tmp_path / "out")
    finally:
        os.umask(before)
    assert done.status == 0, done.stderr
    names = ("", "d", "d/s", "r", "implied", "implied/f")
    modes = [stat.S_IMODE((tmp_path / "out" / each).stat().st_mode) for each in names]
    assert modes == [0o750, 0o710, 0o755, 0o400, 0o750, 0o644]
    for name in ("r", "l"):
        assert (tmp_path / "out" / name).lstat().st_mtime == 86_400
    assert (tmp_path / "out/r").stat().st_uid == os.geteuid()


def test_layers_are_merged(layout: Layout, tmp_path: Path) -> None:
    image = packages.timoni(layout)
    assert extract(image, tmp_path / "out").status == 0
    assert contents(tmp_path / "out") == {**packages.VENDOR_FILES, **packages.MODULE_FILES}


def test_the_same_path_in_two_layers_is_an_error_and_directories_may_meet(
    layout: Layout, tmp_path: Path
) -> None:
    image = packages.save(
        layout,
        Part(tarball({"d/": b"", "d/a": b"1", "f": b"first"})),
        Part(tarball({"d/": b"", "d/b": b"2", "f": b"second"})),
    )
    done = extract(image, tmp_path / "out", "--format=json")
    assert (done.status, done.json()["errors"][0]["code"]) == (3, "AMBIGUOUS")
    assert "f is in a layer before it as well; --merge=later" in done.stderr
    assert sorted(os.listdir(tmp_path)) == ["layout"]
    assert extract(image, tmp_path / "out", "--merge=later").status == 0
    assert contents(tmp_path / "out") == {"d/a": b"1", "d/b": b"2", "f": b"second"}


@pytest.mark.parametrize(
    ("first", "second"),
    some(
        [
            ({"a": b"file"}, {"a/": b""}),
            ({"a": b"file"}, {"a": b"file"}),
            ({"a/b": b"file"}, {"a": b"file"}),
        ]
    ),
)
def test_later_layers_win_over_other_kinds_as_well(
    first: dict[str, bytes], second: dict[str, bytes], layout: Layout, tmp_path: Path
) -> None:
    image = packages.save(layout, Part(tarball(first)), Part(tarball(second)))
    assert extract(image, tmp_path / "out").status == 3
    assert extract(image, tmp_path / "out", "--merge=later").status == 0
    assert sorted(os.listdir(tmp_path / "out")) == ["a"]
    assert (tmp_path / "out/a").is_dir() == ("a/" in second)


def test_a_link_into_another_layer_is_a_link(layout: Layout, tmp_path: Path) -> None:
    """There is one tree for all of them."""
    image = packages.save(
        layout,
        Part(attacks.layer(attacks.symlink(b"l", b"d/f"))),
        Part(tarball({"d/f": b"there"})),
    )
    assert extract(image, tmp_path / "out").status == 0
    assert (tmp_path / "out/l").read_bytes() == b"there"


def test_each_layer_has_a_directory(layout: Layout, tmp_path: Path) -> None:
    same = gzip = COMPRESSIONS["gzip"](tarball({"f": b"same"}))
    image = packages.save(layout, Part(same, annotations={"k": "one"}), titled("t", gzip))
    done = extract(image, tmp_path / "out", "--layer-per-dir", "--format=json")
    assert done.status == 0, done.stderr
    names = [each["directory"] for each in done.json()["layers"]]
    assert [each.partition("-")[0] for each in names] == ["0", "1"]
    assert contents(tmp_path / "out") == {f"{each}/f": b"same" for each in names}
    done = extract(image, tmp_path / "named", "--layer-per-dir=x/{offset}")
    assert contents(tmp_path / "named") == {"x/0/f": b"same", "x/1/f": b"same"}
    assert extract(image, tmp_path / "same", "--layer-per-dir=x").status == 3
    assert extract(image, tmp_path / "ext", "--layer-per-dir=x{ext}").status == 2
    assert extract(image, tmp_path / "bad", "--layer-per-dir=../{index}").status == 4


def test_a_link_stays_in_the_directory_of_its_layer(layout: Layout, tmp_path: Path) -> None:
    image = packages.save(
        layout, Part(tarball({"f": b""})), Part(attacks.layer(attacks.symlink(b"l", b"../0/f")))
    )
    assert extract(image, tmp_path / "out", "--layer-per-dir={index}").status == 4
    assert not (tmp_path / "out").exists()


def test_directories_are_taken_off_the_front(layout: Layout, tmp_path: Path) -> None:
    archive = attacks.layer(
        attacks.directory(b"./top/"),
        attacks.file(b"./top/d/f"),
        attacks.link(b"top/h", b"./top/d/f"),
        attacks.file(b"top/g"),
        attacks.file(b"lost"),
    )
    image = packages.save(layout, Part(archive))
    assert extract(image, tmp_path / "out", "--strip=1").status == 0
    assert contents(tmp_path / "out") == {"d/f": b"new", "h": b"new", "g": b"new"}
    assert (tmp_path / "out/h").stat().st_nlink == 2


def test_only_what_fits_a_pattern_is_extracted(layout: Layout, tmp_path: Path) -> None:
    image = packages.helm(layout)
    chart = f"--layer=type={packages.CHART}"
    done = extract(image, tmp_path / "out", chart, "--include=*.yaml", "--strip=1")
    assert sorted(contents(tmp_path / "out")) == ["Chart.yaml", "templates/x.yaml"]
    done = extract(image, tmp_path / "dir", chart, "--include=chart/templates", "--include=no")
    assert sorted(contents(tmp_path / "dir")) == ["chart/templates/x.yaml"]
    done = extract(image, tmp_path / "none", chart, "--include=nothing")
    assert (done.status, "fits --include nothing" in done.stderr) == (3, True)
    assert not (tmp_path / "none").exists()


def test_what_is_no_archive_is_an_error(layout: Layout, tmp_path: Path) -> None:
    image = packages.helm(layout)
    done = extract(image, tmp_path / "out")
    assert (done.status, "layer 1" in done.stderr) == (3, True)
    assert "--layer chooses others" in done.stderr
    for content, what in ((b"PK\x03\x04" + b"x" * 600, "a zip archive"), (b"", "no tar archive")):
        done = extract(packages.save(layout, Part(content)), tmp_path / "out")
        assert (done.status, what in done.stderr) == (3, True)
    assert sorted(os.listdir(tmp_path)) == ["layout"]


BOMB = COMPRESSIONS["gzip"](tarball({"zeros": bytes(2 << 20)}))


@pytest.mark.parametrize(
    ("content", "limit"),
    [
        (BOMB, "--max-size=1M"),
        (COMPRESSIONS["zstd"](tarball({"zeros": bytes(2 << 20)})), "--max-size=1M"),
        (tarball({f"f{n}": b"" for n in range(11)}), "--max-files=10"),
        (tarball({"/".join(["d"] * 11): b""}), "--max-files=10"),
    ],
    ids=["gzip", "zstd", "files", "directories"],
)
def test_the_limits_hold(content: bytes, limit: str, layout: Layout, tmp_path: Path) -> None:
    done = extract(packages.save(layout, Part(content)), tmp_path / "out", limit)
    assert (done.status, limit.partition("=")[0] in done.stderr) == (4, True), done.stderr
    assert sorted(os.listdir(tmp_path)) == ["layout"]


@pytest.mark.parametrize(
    "content",
    [BOMB[:-3], BOMB[: len(BOMB) // 2], zstd_with_window(tarball({"f": b"x"}), 41)],
    ids=["its end is lost", "half", "a window of 2 TiB"],
)
def test_a_broken_compression_leaves_nothing(
    content: bytes, layout: Layout, tmp_path: Path
) -> None:
    assert extract(packages.save(layout, Part(content)), tmp_path / "out").status == 4
    assert sorted(os.listdir(tmp_path)) == ["layout"]


def test_wrong_bytes_leave_nothing(layout: Layout, tmp_path: Path) -> None:
    """Though they are a good archive up to the last of them."""
    part = Part(tarball({"f": b"x" * (3 << 20)}) + bytes(1 << 20))
    descriptor = packages.add(layout, part)
    layout.save(named(descriptor, "v1"))
    flip(layout.file(layout.layers(descriptor)[0]["digest"]), -1)
    for out in ("absent", "empty"):
        (tmp_path / "empty").mkdir(exist_ok=True)
        done = extract(f"oci:{layout.path}:v1", tmp_path / out)
        assert done.status == 4
        assert sorted(os.listdir(tmp_path)) == ["empty", "layout"]
        assert os.listdir(tmp_path / "empty") == []


@pytest.mark.slow
def test_what_is_wrong_in_a_mirror_is_extracted_from_the_next(
    layout: Layout, tmp_path: Path, home: Home
) -> None:
    """All of it anew: what wrong bytes have made is gone."""
    parts = [Part(tarball({"f": b"x" * (3 << 20)})), Part(tarball({"g": b"y" * (3 << 20)}))]
    descriptor = packages.add(layout, *parts)
    with (
        docker_registry(tmp_path / "bad") as bad,
        docker_registry(tmp_path / "good") as good,
        line_to(bad) as line,
    ):
        for address in (bad, good):
            put_image(address, "app:v1", layout, descriptor)
        flip(stored_blob(tmp_path / "bad", layout.layers(descriptor)[1]["digest"]), -2000)
        insecure = "insecure = true"
        home.write(
            REGISTRIES_CONF,
            table("", good, insecure) + mirror(line.address, insecure),
        )
        done = run(
            *("extract", INSECURE, f"docker://{good}/app:v1", str(tmp_path / "out")),
            env=home.environment(),
        )
    assert done.status == 0, done.stderr
    assert any("/blobs/" in each for each in line.paths())
    assert contents(tmp_path / "out") == {"f": b"x" * (3 << 20), "g": b"y" * (3 << 20)}


@pytest.mark.slow
def test_only_what_is_chosen_is_fetched(tmp_path: Path, home: Home) -> None:
    """What ORAS pushed, of directories that it packs itself."""
    oras = registry_clients.require("oras")
    home.write("one/f", b"1")
    home.write("two/f", b"2")
    with docker_registry(tmp_path / "registry") as address, line_to(address) as line:
        pushed = registry_clients.run(
            [oras, "push", "--plain-http", f"{address}/app:v1", "one:x/one", "two:x/two"], home
        )
        assert pushed.status == 0, pushed.output
        image = f"docker://{line.address}/app:v1"
        options = (INSECURE, HTTP, "--layer=title=two")
        done = run("extract", *options, image, str(tmp_path / "out"), env=home.environment())
        assert done.status == 0, done.stderr
        assert contents(tmp_path / "out") == {"two/f": b"2"}
        assert [str(each).partition("sha256")[0] for each in line.asked] == [
            "GET /v2/app/manifests/v1",
            "GET /v2/app/blobs/",
        ]
