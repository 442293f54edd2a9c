"""`pull`: images into a store, from a real registry and from local places."""

from __future__ import annotations

import json
import os
import subprocess
from typing import TYPE_CHECKING

import pytest
from support.archives import COMPRESSIONS, DIALECTS, pack, saved
from support.commands import Done, run
from support.damage import flip
from support.images import OCI_INDEX, Json, Layout, named
from support.parent import COMMAND, INSECURE
from support.servers import relay, skopeo_copy

from imgproxy.specs.oci import digest as digests

if TYPE_CHECKING:
    from pathlib import Path

    from support.filled import Registry
    from support.home import Home

HTTP = "--tls-verify=false"
AMD64 = "--platform=linux/amd64"


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "store"


def pull(image: str, store: Path, *options: str, home: Home, policy: str = INSECURE) -> Done:
    return run("pull", policy, HTTP, AMD64, *options, image, f"oci:{store}", env=home.environment())


def entries(store: Path) -> list[Json]:
    found: list[Json] = json.loads((store / "index.json").read_bytes())["manifests"]
    return found


def check_blobs(store: Path) -> set[str]:
    """Return the digests of all blobs, each of which has the bytes that its name says."""
    found = set()
    for file in store.glob("blobs/*/*"):
        digest = digests.compute(file.read_bytes(), file.parent.name)
        assert digest.encoded == file.name
        found.add(str(digest))
    assert not list(store.glob(".imgproxy/partial/*"))
    return found


def blobs_of(layout: Layout, descriptor: Json) -> set[str]:
    document = layout.document(descriptor)
    inner = [document["config"], *document["layers"]] if "layers" in document else []
    deeper = [blobs_of(layout, each) for each in document.get("manifests", ())]
    return {descriptor["digest"], *(each["digest"] for each in inner)}.union(*deeper)


@pytest.mark.parametrize(
    "tag",
    ["latest", *(pytest.param(each, marks=pytest.mark.slow) for each in ("docker", "large"))],
)
def test_an_image_of_a_registry_is_all_there(
    tag: str, registry: Registry, store: Path, home: Home
) -> None:
    done = pull(registry.name(f":{tag}"), store, "--format=json", home=home)
    assert done.status == 0, done.stderr
    descriptor = registry.images[tag]
    assert check_blobs(store) == blobs_of(registry.layout, descriptor)
    (entry,) = entries(store)
    name = registry.name(f":{tag}").removeprefix("docker://")
    assert entry["digest"] == done.json()["digest"] == descriptor["digest"]
    assert entry["annotations"] == {
        "org.opencontainers.image.ref.name": name,
        "io.containerd.image.name": name,
    }
    again = pull(registry.name(f":{tag}"), store, "--format=json", home=home)
    assert (again.json()["blobs"], again.json()["bytes"]) == (0, 0)
    assert entries(store) == [entry]


@pytest.mark.slow
def test_of_an_index_one_platform_or_all_are_copied(
    registry: Registry, store: Path, home: Home
) -> None:
    index = registry.images["index"]
    one, *_ = registry.layout.document(index)["manifests"]
    assert pull(registry.name(":index"), store, home=home).status == 0
    assert check_blobs(store) == {index["digest"], *blobs_of(registry.layout, one)}
    assert [entry["digest"] for entry in entries(store)] == [one["digest"]]
    assert pull(registry.name(":index"), store, "--all-platforms", home=home).status == 0
    assert check_blobs(store) == blobs_of(registry.layout, index)
    assert [(each["digest"], each["mediaType"]) for each in entries(store)] == [
        (index["digest"], OCI_INDEX)
    ]


@pytest.mark.slow
def test_what_was_pulled_is_read_by_skopeo_and_pulled_again(
    registry: Registry, store: Path, home: Home, tmp_path: Path
) -> None:
    done = run(
        *("pull", INSECURE, HTTP, registry.name(":latest"), f"oci:{store}:os"),
        env=home.environment(),
    )
    assert done.status == 0, done.stderr
    skopeo_copy(f"oci:{store}:os", f"dir:{tmp_path / 'copy'}")
    again = run("pull", INSECURE, f"oci:{store}:os", f"oci:{tmp_path / 'other'}")
    assert again.status == 0, again.stderr
    assert check_blobs(tmp_path / "other") == check_blobs(store)
    assert entries(tmp_path / "other") == entries(store)


@pytest.mark.parametrize("compression", ["plain", pytest.param("gzip", marks=pytest.mark.slow)])
def test_a_docker_archive_is_copied_by_the_manifest_that_is_made_of_it(
    compression: str, tmp_path: Path, store: Path, home: Home
) -> None:
    file = tmp_path / "archive"
    image = saved(b"the layer" * 1000, tags=["acme/os:1"])
    file.write_bytes(COMPRESSIONS[compression](pack(DIALECTS["nix layered"](image))))
    done = run(
        *("pull", INSECURE, f"docker-archive:{file}:acme/os:1", f"oci:{store}"),
        env=home.environment(),
    )
    assert done.status == 0, done.stderr
    check_blobs(store)
    (entry,) = entries(store)
    assert entry["annotations"]["org.opencontainers.image.ref.name"] == "docker.io/acme/os:1"


def test_a_pull_that_was_killed_goes_on(registry: Registry, store: Path, home: Home) -> None:
    """What had arrived is not asked for again."""
    (layer,) = registry.layers("large")
    size, part = layer["size"], store / ".imgproxy/partial" / layer["digest"].replace(":", "-")
    with relay(registry.address, after=size // 2, fate="stall") as address:
        child = subprocess.Popen(
            [*COMMAND, "pull", INSECURE, HTTP, registry.name(":large", address), f"oci:{store}:os"],
            env=home.environment(),
            stderr=subprocess.PIPE,
        )
        with child:
            grown = 0
            while grown < size // 4:
                grown = part.stat().st_size if part.exists() else 0
                assert child.poll() is None
            child.kill()
    assert not entries(store)
    with relay(registry.address, after=size - grown + 65536, fate="reset") as address:
        name = registry.name(":large", address)
        done = run("pull", INSECURE, HTTP, "--retries=0", name, f"oci:{store}:os")
    assert done.status == 0, done.stderr
    assert check_blobs(store) == blobs_of(registry.layout, registry.images["large"])


def test_a_beginning_that_is_wrong_is_thrown_away_once(
    registry: Registry, store: Path, home: Home
) -> None:
    (layer,) = registry.layers("large")
    part = store / ".imgproxy/partial" / layer["digest"].replace(":", "-")
    part.parent.mkdir(parents=True)
    part.write_bytes(os.urandom(1000))
    done = pull(registry.name(":large"), store, home=home)
    assert done.status == 0, done.stderr
    check_blobs(store)


def test_wrong_bytes_get_no_name(store: Path, tmp_path: Path) -> None:
    layout = Layout(tmp_path / "layout")
    descriptor = layout.save_image(b"one" * 1000, os.urandom(2_000_000))
    flip(layout.file(layout.layers(descriptor)[1]["digest"]))
    done = run("pull", INSECURE, f"oci:{layout.path}", f"oci:{store}:os", "--format=json")
    assert done.status == 4
    assert done.json()["errors"][0]["code"] == "DIGEST_INVALID"
    assert not entries(store)
    check_blobs(store)


REFUSED = {
    "absent": ("docker://{address}/images/all:absent", [], 3, "MANIFEST_UNKNOWN"),
    "rejected": ("docker://{address}/images/all:latest", ["reject"], 3, "DENIED"),
    "no name": ("docker://{address}/Images", [], 2, "NAME_INVALID"),
    "nobody": ("docker://127.0.0.1:9/os:1", ["--retries=0"], 5, "UNREACHABLE"),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_had_is_told_with_its_status(
    case: str, registry: Registry, store: Path, home: Home
) -> None:
    image, options, status, code = REFUSED[case]
    policy = home.write("reject.json", {"default": [{"type": "reject"}]})
    rejected = "reject" in options
    done = pull(
        image.format(address=registry.address),
        store,
        "--format=json",
        *([] if rejected else options),
        home=home,
        policy=f"--policy={policy}" if rejected else INSECURE,
    )
    assert (done.status, done.json()["errors"][0]["code"]) == (status, code)
    assert done.stderr.startswith("imgproxy: pull: ")
    assert not store.exists() or not entries(store)


USAGE = [
    (["oci:a"], "the following arguments are required"),
    (["oci:a", "dir:b"], "expected oci:DIR[:REF], got dir:b"),
    (["oci:a", "oci:b:@1"], "expected oci:DIR[:REF], got oci:b:@1"),
    (["oci:a", "oci:b", "c"], "1 arguments more than pull takes"),
    (["oci:a", "oci:b", "--sockfd=3"], "unknown option: --sockfd"),
]


@pytest.mark.parametrize(("arguments", "words"), USAGE)
def test_a_wrong_command_line_is_a_line(arguments: list[str], words: str) -> None:
    done = run("pull", *arguments)
    assert done.status == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert words in done.stderr


def test_a_directory_with_other_files_is_left_alone(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "layout")
    layout.save(named(layout.image(b"x"), "os"))
    (tmp_path / "other").mkdir()
    (tmp_path / "other/file").touch()
    done = run("pull", INSECURE, f"oci:{layout.path}:os", f"oci:{tmp_path / 'other'}")
    assert (done.status, done.stdout) == (6, "")
    assert done.stderr.endswith("other is neither an OCI layout nor empty\n")
    assert os.listdir(tmp_path / "other") == ["file"]
