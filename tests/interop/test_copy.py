"""`copy`: layers as files, from layouts, and from a real registry what real clients have made."""

from __future__ import annotations

import json
import os
import stat
from typing import TYPE_CHECKING

import pytest
from support import forked, packages, registry_clients
from support.archives import COMPRESSIONS
from support.canary import Canary, snapshot
from support.commands import run
from support.damage import flip
from support.effort import some
from support.images import Layout
from support.networks import line_to
from support.packages import Part, titled
from support.parent import INSECURE
from support.servers import docker_registry

if TYPE_CHECKING:
    from pathlib import Path

    from support.commands import Done
    from support.home import Home

HTTP = "--tls-verify=false"


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(tmp_path / "layout")


def copy(image: str, directory: Path | str, *options: str) -> Done:
    return forked.run("copy", INSECURE, image, str(directory), *options)


def contents(path: Path) -> dict[str, bytes]:
    return {
        str(each.relative_to(path)): each.read_bytes() for each in path.rglob("*") if each.is_file()
    }


def test_names_are_the_titles(layout: Layout, tmp_path: Path) -> None:
    image = packages.save(
        layout, titled("a.txt", b"one"), titled("sub/dir/b", b"two"), titled("./sub//c", b"")
    )
    done = copy(image, tmp_path / "out", "--format=json")
    assert done.status == 0, done.stderr
    assert contents(tmp_path / "out") == {"a.txt": b"one", "sub/dir/b": b"two", "sub/c": b""}
    told = done.json()
    assert told["directory"] == str(tmp_path / "out")
    assert [(each["name"], each["index"], each["size"]) for each in told["files"]] == [
        ("a.txt", 0, 3),
        ("sub/dir/b", 1, 3),
        ("sub/c", 2, 0),
    ]


@pytest.mark.slow
def test_names_are_utf_8_whatever_the_locale_has(layout: Layout, tmp_path: Path) -> None:
    image = packages.save(layout, titled("d\u00e9/\u4f60", b"x"))
    environment = {**os.environ, "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    done = run("copy", INSECURE, image, str(tmp_path / "out"), env=environment)
    assert done.status == 0, done.stderr
    assert os.listdir(os.fsencode(tmp_path / "out")) == ["d\u00e9".encode()]


def test_without_a_title_names_are_places_and_digests_with_an_extension(
    layout: Layout, tmp_path: Path
) -> None:
    tar = packages.tarball({"x": b"y" * 100_000})
    parts = [Part(COMPRESSIONS[each](tar)) for each in ("plain", "gzip", "zstd", "bzip2", "xz")]
    broken = COMPRESSIONS["xz"](tar)[:40]
    more = [Part(b"{}", "application/spdx+json"), Part(packages.MODULE, packages.WASM), Part(b"")]
    image = packages.save(layout, *parts, *more, Part(broken))
    done = copy(image, tmp_path / "out", "--format=json")
    assert done.status == 0, done.stderr
    assert [each["name"].partition("-")[2][12:] for each in done.json()["files"]] == [
        *(".tar", ".tar.gz", ".tar.zst", ".tar.bz2", ".tar.xz"),
        *(".json", ".wasm", ".bin", ".xz"),
    ]
    for number, each in enumerate(done.json()["files"]):
        assert each["name"].startswith(f"{number}-{each['digest'].partition(':')[2][:12]}")
    assert len(contents(tmp_path / "out")) == 9


def test_a_template_names_them(layout: Layout, tmp_path: Path) -> None:
    image = packages.timoni(layout)
    name = "{annotation:sh.timoni.content.type}/{index}{ext}"
    done = copy(image, tmp_path / "out", "--name", name)
    assert done.status == 0, done.stderr
    assert sorted(contents(tmp_path / "out")) == ["module/1.tar.gz", "module/vendor/0.tar.gz"]


def test_files_and_directories_have_the_modes_of_new_ones(layout: Layout, tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        assert copy(packages.save(layout, titled("d/f", b"x")), tmp_path / "out").status == 0
    finally:
        os.umask(before)
    modes = [stat.S_IMODE((tmp_path / each).stat().st_mode) for each in ("out", "out/d", "out/d/f")]
    assert modes == [0o750, 0o750, 0o640]


def test_one_layer_goes_to_standard_output(layout: Layout) -> None:
    image = packages.save(layout, titled("a", b"one"), titled("b", b"two\n"))
    done = copy(image, "-", "--layer=title=b")
    assert (done.status, done.stdout) == (0, "two\n")
    done = copy(image, "-")
    assert (done.status, done.stdout) == (3, "")
    assert '0 application/octet-stream "a" sha256:' in done.stderr
    assert copy(image, "-", "--format=json").status == 2


@pytest.mark.parametrize(
    ("titles", "options"),
    some(
        [
            (["a", "a"], []),
            (["a", "a/b"], []),
            (["a", "./a"], []),
            (["a", "b"], ["--name=x"]),
            (["a", "b"], ["--name=x{ext}"]),
        ]
    ),
)
def test_two_of_one_name_are_an_error_that_lists_them(
    titles: list[str], options: list[str], layout: Layout, tmp_path: Path
) -> None:
    image = packages.save(layout, *(titled(each, b"x") for each in titles))
    done = copy(image, tmp_path / "out", "--format=json", *options)
    assert done.status == 3
    (error,) = done.json()["errors"]
    assert error["code"] == "AMBIGUOUS"
    assert [each["title"] for each in error["detail"]["layers"]] == titles
    assert not (tmp_path / "out").exists()
    assert sorted(os.listdir(tmp_path)) == ["layout"]


TITLES = ["../victim", "/victim", "a/../../victim", "", ".", "..", "a\0b", "x" * 300, ".imgproxy-0"]


@pytest.mark.parametrize("title", some(TITLES))
def test_a_title_that_leads_outside_is_refused_with_the_way_out(
    title: str, layout: Layout, tmp_path: Path
) -> None:
    canary = Canary(tmp_path / "canary")
    image = packages.save(layout, titled(title, b"new"))
    done = copy(image, canary.path / "dir" / "out")
    assert done.status == 4
    assert "--name gives it another one" in done.stderr
    assert os.listdir(canary.path / "dir") == []
    named = copy(image, tmp_path / "out", "--name={index}")
    assert named.status == 0, named.stderr
    assert contents(tmp_path / "out") == {"0": b"new"}


def test_only_files_of_the_same_names_are_overwritten(layout: Layout, tmp_path: Path) -> None:
    out, canary = tmp_path / "out", Canary(tmp_path / "canary")
    image = packages.save(layout, titled("a", b"new"), titled("d/l", b"new"), titled("e/f", b"x"))
    (out / "d/kept").mkdir(parents=True)
    (out / "a").write_bytes(b"old")
    (out / "kept").write_bytes(b"old")
    (out / "d/l").symlink_to(canary.path / "victim")
    refused = copy(image, out)
    assert (refused.status, (out / "a").read_bytes()) == (6, b"old")
    assert copy(image, out, "--overwrite").status == 0
    canary.check()
    assert contents(out) == {"a": b"new", "d/l": b"new", "e/f": b"x", "kept": b"old"}
    assert sorted(os.listdir(out)) == ["a", "d", "e", "kept"]
    assert not (out / "d/l").is_symlink()
    assert (out / "d/kept").is_dir()


def directory_in_the_way(out: Path, _: Path) -> None:
    (out / "z").mkdir()


def link_outside(out: Path, canary: Path) -> None:
    (out / "z").symlink_to(canary)


def link_to_nothing(out: Path, canary: Path) -> None:
    (out / "z").symlink_to(canary / "dir/new")


def not_whole(out: Path, _: Path) -> None:
    (out / ".imgproxy-incomplete").write_text("")


@pytest.mark.parametrize(
    ("prepare", "title", "reason"),
    some(
        [
            (directory_in_the_way, "z", "z is a directory there"),
            (link_to_nothing, "z/victim", "leads out of it, by a symbolic link"),
            (not_whole, "z", "is not whole"),
            (link_outside, "z/victim", "leads out of it, by a symbolic link"),
        ]
    ),
)
def test_where_one_cannot_be_overwritten_none_is(
    prepare: object, title: str, reason: str, layout: Layout, tmp_path: Path
) -> None:
    out, canary = tmp_path / "out", Canary(tmp_path / "canary")
    out.mkdir()
    (out / "a").write_bytes(b"old")
    prepare(out, canary.path)  # type: ignore[operator]
    before = sorted(os.listdir(out))
    image = packages.save(layout, titled("a", b"new"), titled(title, b"new"))
    done = copy(image, out, "--overwrite")
    assert done.status == 6
    assert reason in done.stderr
    canary.check()
    assert (sorted(os.listdir(out)), (out / "a").read_bytes()) == (before, b"old")


def test_an_absent_directory_is_made_with_overwrite_as_well(layout: Layout, tmp_path: Path) -> None:
    image = packages.save(layout, titled("a", b"x"))
    assert copy(image, tmp_path / "out", "--overwrite").status == 0
    assert contents(tmp_path / "out") == {"a": b"x"}
    (tmp_path / "link").symlink_to("out")
    assert copy(image, tmp_path / "link", "--overwrite").status == 6


def test_nothing_is_chosen_in_silence(layout: Layout, tmp_path: Path) -> None:
    image = packages.save(layout, titled("a", b"x"))
    done = copy(image, tmp_path / "out", "--layer=title=b", "--format=json")
    assert done.status == 3
    assert [each["title"] for each in done.json()["errors"][0]["detail"]["layers"]] == ["a"]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "place", some(["oci:x", "docker://x", "dir:x", "docker-archive:x", "foo://x"])
)
def test_a_directory_that_looks_like_an_image_is_a_usage_error_that_names_pull(place: str) -> None:
    done = copy("oci:nothing", place)
    assert done.status == 2
    assert "pull copies images" in done.stderr


@pytest.mark.parametrize(
    ("options", "reason"),
    some(
        [
            (["--name={titel}"], 'column 1: "titel" is none of'),
            (["--max-files=many"], '"many" is not a number'),
            (["--max-size=1X"], "1X"),
            (["--layer=offset=2-1"], "column 8"),
            (["--strip=1"], "unknown option: --strip"),
            (["--creds=secret", "more"], "1 arguments more than copy takes"),
        ]
    ),
)
def test_a_wrong_option_is_a_usage_error(options: list[str], reason: str, tmp_path: Path) -> None:
    done = copy("oci:nothing", tmp_path / "out", *options)
    assert (done.status, reason in done.stderr) == (2, True), done.stderr
    assert not (tmp_path / "out").exists()


def test_more_than_a_limit_is_refused_before_anything_is_read(
    layout: Layout, tmp_path: Path
) -> None:
    image = packages.save(layout, titled("a", b"12345"), titled("b", b"67890"))
    for blob in layout.path.glob("blobs/*/*"):
        if blob.stat().st_size == 5:
            blob.unlink()
    for limit in ("--max-size=9", "--max-files=1"):
        done = copy(image, tmp_path / "out", limit)
        assert done.status == 4
        assert limit.partition("=")[0] in done.stderr
    assert sorted(os.listdir(tmp_path)) == ["layout"]


def test_wrong_bytes_leave_nothing(layout: Layout, tmp_path: Path) -> None:
    image = packages.save(layout, titled("a", b"good"), titled("b", b"x" * (3 << 20)))
    flip(
        layout.file(
            layout.layers(json.loads((layout.path / "index.json").read_text())["manifests"][0])[1][
                "digest"
            ]
        ),
        -1,
    )
    done = copy(image, tmp_path / "out", "--format=json")
    assert (done.status, done.json()["errors"][0]["code"]) == (4, "DIGEST_INVALID")
    assert sorted(os.listdir(tmp_path)) == ["layout"]
    assert copy(image, "-", "--layer=title=b").status == 4


def test_the_policy_is_asked(layout: Layout, tmp_path: Path) -> None:
    image = packages.save(layout, titled("a", b"good"))
    policy = tmp_path / "policy.json"
    policy.write_text('{"default": [{"type": "reject"}]}')
    done = forked.run("copy", f"--policy={policy}", image, str(tmp_path / "out"))
    assert done.status == 3
    assert not (tmp_path / "out").exists()


def test_data_in_a_descriptor_is_enough(layout: Layout, tmp_path: Path) -> None:
    content = b"x" * 20
    part = {**layout.add(content, "text/plain"), "data": "eHh4eHh4eHh4eHh4eHh4eHh4eHg="}
    layout.file(part["digest"]).unlink()
    image = packages.save(layout, layers=[part])
    done = copy(image, tmp_path / "out", "--name=x")
    assert done.status == 0, done.stderr
    assert contents(tmp_path / "out") == {"x": content}


@pytest.mark.slow
def test_only_what_is_chosen_is_fetched_and_a_cache_has_it(tmp_path: Path, home: Home) -> None:
    """What ORAS pushed to a real registry; the manifest, and the one blob."""
    oras = registry_clients.require("oras")
    home.write("a.json", b'{"a": 1}')
    home.write("b.txt", b"large" * 100_000)
    with docker_registry(tmp_path / "registry") as address, line_to(address) as line:
        pushed = registry_clients.run(
            [
                *(oras, "push", "--plain-http", f"{address}/app:v1"),
                *("--artifact-type=application/vnd.x", "a.json:application/json"),
                "b.txt:text/plain",
            ],
            home,
        )
        assert pushed.status == 0, pushed.output
        image = f"docker://{line.address}/app:v1"
        options = (INSECURE, HTTP, "--layer=type=application/json", f"--cache={tmp_path}/cache")
        done = run("copy", *options, image, str(tmp_path / "out"), env=home.environment())
        assert done.status == 0, done.stderr
        assert contents(tmp_path / "out") == {"a.json": b'{"a": 1}'}
        paths = [str(each) for each in line.asked]
        assert len(paths) == 2
        assert paths[0] == "GET /v2/app/manifests/v1"
        assert paths[1].startswith("GET /v2/app/blobs/sha256:")
        again = run(
            *("copy", *options, "--offline", image, str(tmp_path / "again"), "--format=json"),
            env=home.environment(),
        )
        assert again.status == 0, again.stderr
        assert again.json()["stale"] is True
        assert len(line.asked) == 2


@pytest.mark.slow
def test_what_regctl_made_without_titles_is_copied(tmp_path: Path, home: Home) -> None:
    regctl = registry_clients.require("regctl")
    home.write("sbom.json", b"{}")
    home.write("chart.tgz", COMPRESSIONS["gzip"](packages.tarball({"x": b"y"})))
    made = registry_clients.run(
        [
            *(regctl, "artifact", "put", "--artifact-type=application/vnd.x", "--file=sbom.json"),
            *("--file-media-type=application/spdx+json", "--file=chart.tgz"),
            *("--file-media-type=application/vnd.x.tar+gzip", "ocidir://layout:v1"),
        ],
        home,
    )
    assert made.status == 0, made.output
    done = copy(f"oci:{home.path}/layout:v1", tmp_path / "out")
    assert done.status == 0, done.stderr
    assert [each.partition(".")[2] for each in sorted(contents(tmp_path / "out"))] == [
        "json",
        "tar.gz",
    ]


def test_nothing_outside_is_touched_by_any_name(layout: Layout, tmp_path: Path) -> None:
    """All that is there before is there afterwards, and nothing else but DIR."""
    before = snapshot(tmp_path)
    image = packages.save(layout, *(titled(f"{'d/' * n}f{n}", b"x") for n in range(1, 9)))
    assert copy(image, tmp_path / "out").status == 0
    new = {each for each in snapshot(tmp_path) if each not in before}
    allowed = (os.fsencode(layout.path), os.fsencode(tmp_path / "out"))
    assert all(each.startswith(allowed) for each in new)
