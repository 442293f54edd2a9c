"""Images as they lie on this host, written by the ecosystem's own tools and read in every way."""

from __future__ import annotations

import gzip
import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest
from archives import (
    BLOB_PATHS,
    COMPRESSIONS,
    DIALECTS,
    SUFFIXES,
    WITH_INDEX,
    Member,
    Saved,
    copy_layout,
    layer,
    pack,
    saved,
    saved_from,
    stored,
    write_dir,
    write_oci_archive,
    write_registry_tree,
)
from filled import MIB, noise
from images import OCI_LAYER, Layout, named
from pulled import pull_from, refused
from servers import docker_registry, require, skopeo_copy

if TYPE_CHECKING:
    from conftest import Serve
    from images import Json

# What administrators pack archives with: the program and its arguments, from stdin to stdout.
PACKERS = {
    "gzip": ["gzip", "-c"],
    "pigz": ["pigz", "-nTRc"],
    "zstd": ["zstd", "-q", "-c"],
    "zstd, long": ["zstd", "-q", "-c", "--long=27"],
    "bzip2": ["bzip2", "-c"],
    "xz": ["xz", "-c"],
    "xz, several blocks": ["xz", "-c", "-T2", "--block-size=1MiB"],
}


def run(*arguments: str, stdin: bytes = b"", cwd: Path | None = None) -> bytes:
    """Run a tool; what it prints is shown if it fails."""
    result = subprocess.run(
        arguments, input=stdin, capture_output=True, timeout=60, check=False, cwd=cwd
    )
    assert result.returncode == 0, result.stderr.decode()
    return result.stdout


def read_by_skopeo(source: str, directory: Path) -> tuple[bytes, list[bytes]]:
    """Give the config and the layers as skopeo has them; it leaves them compressed as they are."""
    skopeo_copy(source, f"dir:{directory}")
    manifest = json.loads((directory / "manifest.json").read_bytes())
    config, *layers = (
        (directory / each["digest"].partition(":")[2]).read_bytes()
        for each in [manifest["config"], *manifest["layers"]]
    )
    return config, layers


# --- archives that the tools have written ------------------------------------------------------


class Made(NamedTuple):
    """One image: in `layout` and as it is going to be saved; other forms of it go below `at`."""

    at: Path
    layout: Layout
    descriptor: Json
    saved: Saved

    @property
    def content(self) -> tuple[bytes, list[bytes]]:
        return self.saved.config, list(self.saved.layers)


NAME = "registry.example/team/os"
TAG = "1.0"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    at = tmp_path_factory.mktemp("made")
    layout = Layout(at / "layout")
    layers = (
        layer("the first layer, which compresses well", 200_000),
        pack([Member("noise", noise(MIB))]),
        layer("the last one"),
    )
    descriptor = layout.image(*layers)
    layout.save(named(descriptor, f"{NAME}:{TAG}"))
    return Made(at, layout, descriptor, saved_from(layout, descriptor, f"{NAME}:{TAG}"))


Write = Callable[[Made, Path], str]


def docker_archive_by_skopeo(made: Made, directory: Path) -> str:
    image = f"docker-archive:{directory}/skopeo.tar"
    skopeo_copy(f"oci:{made.layout.path}", f"{image}:{NAME}:{TAG}")
    return image


def oci_archive_by_skopeo(made: Made, directory: Path) -> str:
    image = f"oci-archive:{directory}/skopeo.tar"
    skopeo_copy(f"oci:{made.layout.path}", f"{image}:{NAME}:{TAG}")
    return image


def directory_by_skopeo(made: Made, directory: Path) -> str:
    image = f"dir:{directory}/skopeo"
    skopeo_copy(f"oci:{made.layout.path}", image)
    return image


def by_buildah(directory: Path, transport: str, form: str) -> str:
    """Commit a container made from nothing with two layers, and push it to an archive."""
    storage = ["--storage-driver=vfs", f"--root={directory}/root", f"--runroot={directory}/run"]
    buildah = [require("buildah"), *storage]
    (directory / "file").write_bytes(b"copied" * 10_000)
    container = run(*buildah, "from", "scratch").decode().strip()
    run(*buildah, "copy", container, str(directory / "file"), "/file")
    run(*buildah, "config", "--cmd=/file", container)
    run(*buildah, "commit", f"--format={form}", container, "base")
    container = run(*buildah, "from", "localhost/base").decode().strip()
    run(*buildah, "copy", container, str(directory / "file"), "/another")
    run(*buildah, "commit", f"--format={form}", container, "image")
    image = f"{transport}:{directory}/buildah.tar"
    run(*buildah, "push", "image", f"{image}:{NAME}:{TAG}")
    return image


def docker_archive_by_buildah(_: Made, directory: Path) -> str:
    return by_buildah(directory, "docker-archive", "docker")


def oci_archive_by_buildah(_: Made, directory: Path) -> str:
    return by_buildah(directory, "oci-archive", "oci")


def oci_archive_by_umoci_and_tar(_: Made, directory: Path) -> str:
    """Insert two files into an image of umoci's, and tar the layout as one types it."""
    umoci = require("umoci")
    layout = directory / "umoci"
    run(umoci, "init", "--layout", str(layout))
    run(umoci, "new", "--image", f"{layout}:one")
    for name in ("first", "second"):
        (directory / name).write_bytes(name.encode() * 10_000)
        options = ("--rootless", "--image", f"{layout}:one")
        run(umoci, "insert", *options, str(directory / name), f"/{name}")
    run("tar", "-cf", f"{directory}/umoci.tar", ".", cwd=layout)
    return f"oci-archive:{directory}/umoci.tar"


WRITERS: list[Write] = [
    docker_archive_by_skopeo,
    oci_archive_by_skopeo,
    directory_by_skopeo,
    docker_archive_by_buildah,
    oci_archive_by_buildah,
    oci_archive_by_umoci_and_tar,
]


@pytest.mark.parametrize("write", WRITERS)
def test_what_a_tool_wrote_is_read_as_skopeo_reads_it(
    write: Write, made: Made, serve: Serve, tmp_path: Path
) -> None:
    image = write(made, tmp_path)
    pulled = pull_from(serve(image))
    assert pulled.content == read_by_skopeo(image, tmp_path / "read")
    assert len(pulled.layers) >= 2
    if image.startswith("docker-archive:"):
        # skopeo calls them tar+gzip, which they are not
        types = {each["mediaType"] for each in pulled.manifest["layers"]}
        assert types == {OCI_LAYER}
    path = image.partition(":")[2]
    assert pull_from(serve(path)) == pulled, "by its path alone"


@pytest.mark.parametrize("packer", PACKERS)
def test_an_archive_packed_by_hand_is_the_same_image(
    packer: str, made: Made, serve: Serve, tmp_path: Path
) -> None:
    program, *options = PACKERS[packer]
    if program == "pigz" and shutil.which(program) is None:
        pytest.skip("pigz is not installed; the format is that of gzip")
    content = pack(DIALECTS["skopeo"](made.saved))
    file = tmp_path / "image.tar"  # a suffix means nothing
    file.write_bytes(run(require(program), *options, stdin=content))
    assert file.read_bytes()[:4] != content[:4]
    assert pull_from(serve(f"docker-archive:{file}")).content == made.content


# --- docker's and Nix's archives, member by member ---------------------------------------------


@pytest.mark.parametrize("dialect", DIALECTS)
def test_every_dialect_of_docker_archives_is_read(
    dialect: str, made: Made, serve: Serve, tmp_path: Path
) -> None:
    file = tmp_path / "image.tar.gz"
    file.write_bytes(gzip.compress(pack(DIALECTS[dialect](made.saved)), 1))
    expected = made.saved.config, [stored(dialect, each) for each in made.saved.layers]
    assert pull_from(serve(f"docker-archive:{file}")).content == expected
    if dialect in WITH_INDEX:
        assert pull_from(serve(str(file))).content == expected, "by its index.json"


def test_images_that_nix_has_merged_are_told_apart(serve: Serve, tmp_path: Path) -> None:
    """Layers that they share stand in the archive more than once (nixpkgs #214434)."""
    base = layer("glibc", 5000)
    images = [
        saved(base, base, layer(name), tags=[f"{name}:hash-of-its-config"])
        for name in ("one", "two")
    ]
    content = pack([*DIALECTS["nix layered"](images[0])[:2], *DIALECTS["nix layered"](*images)])
    file = tmp_path / "merged.tar.zst"
    file.write_bytes(COMPRESSIONS["zstd"](content))
    refused(serve(str(file)), 409, "one:hash-of-its-config", "two:hash-of-its-config", ":@1")
    for position, image in enumerate(images):
        expected = image.config, list(image.layers)
        assert pull_from(serve(f"{file}:{image.tags[0]}")).content == expected
        assert pull_from(serve(f"{file}:@{position}")).content == expected


# --- one image, by every road ------------------------------------------------------------------

Road = Callable[[Made, Path], list[str]]


def docker_archive(compression: str) -> Road:
    def write(made: Made, at: Path) -> list[str]:
        content = pack(DIALECTS["docker 24"](made.saved))
        (at / "image").write_bytes(COMPRESSIONS[compression](content))
        return [f"docker-archive:{at}/image"]

    return write


def oci_archive(compression: str) -> Road:
    def write(made: Made, at: Path) -> list[str]:
        write_oci_archive(at / "image", made.layout, COMPRESSIONS[compression])
        return [f"oci-archive:{at}/image:{NAME}:{TAG}"]

    return write


def image_directory(made: Made, at: Path) -> list[str]:
    write_dir(at / "image", made.layout, made.descriptor)
    return [f"dir:{at}/image"]


def sideloaded(write: Road) -> Road:
    """Give the same as something that a pattern finds."""

    def sideload(made: Made, at: Path) -> list[str]:
        write(made, at)
        (at / "image").rename(at / f"os-{TAG}")
        return [f"docker://{NAME}:{TAG}", "--offline", f"--sideload={at}/<basename>-<ref>"]

    return sideload


def registry_tree(blobs: str) -> Road:
    def write(made: Made, at: Path) -> list[str]:
        write_registry_tree(at, "team/os", TAG, made.layout, made.descriptor, blobs=blobs)
        pattern = f"--sideload={at}/<name>/manifests/<ref>"
        return [f"docker://{NAME}:{TAG}", "--offline", pattern]

    return write


def plain_layout(made: Made, at: Path) -> list[str]:
    copy_layout(made.layout, at / "image")
    return [f"oci:{at}/image"]


ROADS: dict[str, Road] = {
    "oci": plain_layout,
    "dir": image_directory,
    **{f"oci-archive, {each}": oci_archive(each) for each in SUFFIXES},
    "docker-archive": docker_archive("plain"),  # the others: PACKERS, and row E21 to E23
    "sideloaded layout": sideloaded(plain_layout),
    "sideloaded dir": sideloaded(image_directory),
    "sideloaded OCI archive": sideloaded(oci_archive("plain")),
    "sideloaded Docker archive": sideloaded(docker_archive("gzip")),
    **{f"registry tree, blobs {each}": registry_tree(each) for each in BLOB_PATHS},
}


@pytest.mark.parametrize("road", ROADS)
def test_the_same_image_by_every_road(road: str, made: Made, serve: Serve, tmp_path: Path) -> None:
    image, *options = ROADS[road](made, tmp_path)
    assert pull_from(serve(image, *options)).content == made.content


def test_the_same_image_from_a_registry(made: Made, serve: Serve, tmp_path: Path) -> None:
    with docker_registry(tmp_path) as address:
        image = f"docker://{address}/team/os:{TAG}"
        skopeo_copy(f"oci:{made.layout.path}", image, "--preserve-digests")
        pulled = pull_from(serve(image, "--tls-verify=false"))
    assert pulled.content == made.content
    assert pulled.raw == made.layout.read(made.descriptor["digest"])


def test_a_made_manifest_depends_on_the_content_alone(
    made: Made, serve: Serve, tmp_path: Path
) -> None:
    """Who wrote the archive, how it is compressed, what the image is called: nothing of it."""
    renamed = made.saved._replace(tags=("another:name",))
    manifests = set()
    for dialect, compression, image in [
        ("docker 24", "plain", made.saved),
        ("nix plain", "gzip", renamed),
        ("skopeo", "zstd", made.saved),
    ]:
        file = tmp_path / dialect
        file.write_bytes(COMPRESSIONS[compression](pack(DIALECTS[dialect](image))))
        manifests.add(pull_from(serve(f"docker-archive:{file}")).raw)
    assert len(manifests) == 1
