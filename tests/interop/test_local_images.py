"""Images as they lie on this host, written by the ecosystem's own tools and read in every way."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import socket
import subprocess
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest
from support.archives import (
    BLOB_PATHS,
    COMPRESSIONS,
    DIALECTS,
    WITH_INDEX,
    Member,
    Saved,
    copy_layout,
    layer,
    pack,
    replaced,
    saved,
    saved_from,
    stored,
    write_dir,
    write_oci_archive,
    write_registry_tree,
)
from support.filled import MIB, noise
from support.images import OCI_LAYER, Layout, named
from support.parent import INSECURE, Child, Client, Incomplete, command, environment
from support.pulled import pull, pull_from, refused
from support.servers import docker_registry, require, skopeo_copy
from support.traced import Trace

if TYPE_CHECKING:
    from conftest import Keep, Serve
    from support.home import Home
    from support.images import Json

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
    """Return the config and the layers as skopeo has them; still compressed."""
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_what_skopeo_has_synchronized_is_read(made: Made, serve: Serve, tmp_path: Path) -> None:
    """Whose directories are called by the whole reference, port and tag included."""
    with docker_registry(tmp_path / "registry") as address:
        skopeo_copy(f"oci:{made.layout.path}", f"docker://{address}/acme/app:1.36")
        options = ("--src=docker", "--src-tls-verify=false", "--dest=dir", "--scoped")
        names = (f"{address}/acme/app", str(tmp_path))
        run(require("skopeo"), "--insecure-policy", "sync", *options, *names)
    image = f"dir:{tmp_path}/{address}/acme/app:1.36"
    assert pull_from(serve(image)).content == read_by_skopeo(image, tmp_path / "read")


@pytest.mark.slow
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


@pytest.mark.slow
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


# What is changed in a config, and into what.
CONFIGS: dict[str, tuple[bytes, bytes]] = {
    "Latin-1": (b'"config": {}', b'"config": {}, "author": "J\xf6rg"'),
    "a lone surrogate": (b'"config": {}', b'"config": {"Labels": {"a": "\\ud800"}}'),
    "a label twice": (b'"config": {}', b'"config": {"Labels": {"a": "1", "a": "2"}}'),
    "keys in another case": (b"diff_ids", b"DIFF_IDS"),
}


@pytest.mark.parametrize("oddity", CONFIGS)
def test_a_config_is_read_for_its_layers_alone(
    oddity: str, made: Made, serve: Serve, tmp_path: Path
) -> None:
    """What else it says is served as it is, as it is from a layout; skopeo reads all of these."""
    config = made.saved.config.replace(*CONFIGS[oddity])
    assert config != made.saved.config
    image = made.saved._replace(config=config)
    file = tmp_path / "image.tar"
    file.write_bytes(pack(DIALECTS["skopeo"](image)))
    pulled = pull_from(serve(f"docker-archive:{file}"))
    assert pulled.content == (config, list(image.layers))
    assert pulled.content == read_by_skopeo(f"docker-archive:{file}", tmp_path / "read")


@pytest.mark.parametrize("spell", ["lower", "upper", "swapcase"])
def test_keys_of_manifest_json_may_be_in_any_case(
    spell: str, made: Made, serve: Serve, tmp_path: Path
) -> None:
    """As skopeo reads them; nobody else sees this file."""
    members = DIALECTS["skopeo"](made.saved)
    (control,) = (each for each in members if each.name == "manifest.json")
    items = [
        {getattr(key, spell)(): value for key, value in each.items()}
        for each in json.loads(control.content)
    ]
    changed = control._replace(content=json.dumps(items).encode())
    file = tmp_path / "image.tar"
    file.write_bytes(pack(replaced(members, "manifest.json", changed)))
    pulled = pull_from(serve(f"docker-archive:{file}"))
    assert (
        pulled.content
        == made.content
        == read_by_skopeo(f"docker-archive:{file}", tmp_path / "read")
    )


@pytest.mark.slow
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
    """Return the same as something that a pattern finds."""

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
    **{f"oci-archive, {each}": oci_archive(each) for each in ("plain", "zstd")},
    "docker-archive": docker_archive("plain"),  # the others: PACKERS, and test_local_edge_cases
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


@pytest.mark.slow
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


# --- archives that come through descriptors ----------------------------------------------------


@pytest.fixture(scope="module")
def packed(made: Made) -> bytes:
    """Write the image as Nix does: gzip, what is asked for first at the end."""
    return gzip.compress(pack(DIALECTS["nix layered"](made.saved)), 1)


def feed(file: int | socket.socket, content: bytes, piece: int) -> None:
    """Write what somebody is going to read, in pieces, and close."""

    def write() -> None:
        fd = file if isinstance(file, int) else file.detach()
        with suppress(BrokenPipeError), open(fd, "wb", buffering=0) as stream:
            for at in range(0, len(content), piece):
                rest = memoryview(content[at : at + piece])
                while rest:
                    rest = rest[stream.write(rest) :]

    threading.Thread(target=write, daemon=True).start()


@pytest.mark.parametrize("kind", ["pipe", "pipe that does not block", "socket", "file"])
def test_an_archive_comes_through_a_descriptor(
    kind: str, made: Made, packed: bytes, serve: Serve, tmp_path: Path
) -> None:
    """And what comes through a pipe is kept without a name, and answers for ever."""
    file = tmp_path / "image"
    file.write_bytes(packed)
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    if kind == "socket":
        ours, theirs = socket.socketpair()
        inherited = theirs.detach()
    elif kind == "file":
        inherited = os.open(file, os.O_RDONLY)
        os.lseek(inherited, 1000, os.SEEK_SET)  # where others have read to does not matter
    else:
        inherited, theirs_end = os.pipe()
        os.set_blocking(inherited, kind == "pipe")
    name = f"/dev/fd/{inherited}"
    env = environment(TMPDIR=str(temporary))
    child = serve(f"docker-archive:{name}", env=env, files=[inherited], sockets=2)
    os.close(inherited)
    if kind != "file":
        feed(ours if kind == "socket" else theirs_end, packed, 100_000)
    assert pull(child.client).content == made.content
    assert not list(temporary.iterdir()), "it has no name"
    open_files = [os.readlink(each) for each in Path(f"/proc/{child.pid}/fd").iterdir()]
    spooled = [each for each in open_files if each.startswith(f"{temporary}/")]
    assert bool(spooled) == (kind != "file")
    assert pull(child.clients[1]).content == made.content
    assert child.finish() == 0


@pytest.mark.parametrize("path", ["/dev/stdin", "-"])
def test_standard_input(path: str, made: Made, packed: bytes, keep: Keep) -> None:
    """`zcat … | imgproxy`; and another request after a failure finds the same."""
    ours, theirs = socket.socketpair()
    reading, writing = os.pipe()
    with theirs, open(reading, "rb", buffering=0) as stdin:
        fd = theirs.fileno()
        arguments = command(f"docker-archive:{path}:no/such", INSECURE, fds=[fd])
        child = keep(Child(arguments, pass_fds=[fd], stdin=stdin))
    child.clients.append(Client(ours))
    feed(writing, packed, MIB)
    for _ in range(2):
        reply = child.client.get("/manifest")
        assert reply.status == 404
        assert made.saved.tags[0] in reply.message
    assert child.finish() == 0


def test_a_file_as_standard_input(made: Made, packed: bytes, keep: Keep, tmp_path: Path) -> None:
    file = tmp_path / "image"
    file.write_bytes(packed)
    ours, theirs = socket.socketpair()
    with theirs, file.open("rb") as stdin:
        fd = theirs.fileno()
        child = keep(Child(command("/dev/stdin", INSECURE, fds=[fd]), pass_fds=[fd], stdin=stdin))
    child.clients.append(Client(ours))
    assert pull_from(child).content == made.content


@pytest.mark.parametrize("spelled", ["/dev/fd/{}", "docker-archive:/proc/self/fd/{}:@0"])
def test_the_descriptor_that_is_served_is_no_image(spelled: str, keep: Keep) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        fd = theirs.fileno()
        child = keep(Child(command(spelled.format(fd), INSECURE, fds=[fd]), pass_fds=[fd]))
        assert child.wait() == 2
    assert str(fd) in child.stderr
    assert child.stderr.count("\n") == 1


def test_standard_input_that_is_served_is_no_image(keep: Keep) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        child = keep(Child(command("oci-archive:/dev/stdin", INSECURE), stdin=theirs.fileno()))
        assert child.wait() == 2
    assert "/dev/stdin" in child.stderr


# --- what is no file ---------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["FIFO", "device", "directory"])
def test_what_is_no_regular_file_is_not_opened(
    kind: str, home: Home, keep: Keep, tmp_path: Path
) -> None:
    path = tmp_path / "image"
    if kind == "FIFO":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        path.mkdir()
    trace = Trace(tmp_path / "trace", home, f"docker-archive:{path}")
    keep(trace.child)
    refused(trace.child, 415, str(path), kind)
    assert trace.read <= set()
    assert trace.written == []
    assert any(call.path == str(path) for call in trace.calls), "it has been looked at"


@pytest.mark.parametrize("where", ["index.json", "a layer"])
def test_a_fifo_in_a_layout_is_not_waited_for(
    where: str, made: Made, serve: Serve, tmp_path: Path
) -> None:
    layout = copy_layout(made.layout, tmp_path / "layout")
    digest = layout.layers(made.descriptor)[0]["digest"]
    place = layout.path / "index.json" if where == "index.json" else layout.file(digest)
    place.unlink()
    os.mkfifo(place)
    child = serve(f"oci:{layout.path}")
    reply = child.client.get("/manifest" if where == "index.json" else f"/blobs/{digest}")
    assert reply.status == 415
    assert "FIFO" in reply.message
    assert child.finish() == 0


# --- what changes under us ---------------------------------------------------------------------


ANOTHER = b"a layer of another image"


def truncate(file: Path) -> None:
    os.truncate(file, 100_000)


def rewrite(file: Path) -> None:
    """Write other bytes into the same file, as many as there are."""
    with file.open("r+b") as stream:
        stream.write(bytes(file.stat().st_size))


def replace(file: Path) -> None:
    """Put another archive in its place, as anybody should."""
    other = file.with_suffix(".new")
    other.write_bytes(pack(DIALECTS["skopeo"](saved(ANOTHER))))
    other.replace(file)


# What is done; the exit statuses that tell of a body that was cut short, because the source is lost
# or what it gave is not what it was; what the archive is when it is opened anew. A file that has
# been replaced is read to its end.
CHANGES: dict[str, tuple[Callable[[Path], None], set[int], int]] = {
    "truncated": (truncate, {5}, 422),
    "rewritten": (rewrite, {4, 5}, 415),
    "replaced": (replace, {0}, 200),
}


@pytest.mark.parametrize("compression", ["plain", "gzip"])
@pytest.mark.parametrize("change", CHANGES)
def test_an_archive_that_changes_is_never_mixed(
    change: str, compression: str, serve: Serve, tmp_path: Path
) -> None:
    """During a body, and before the next one."""
    spoil, statuses, status = CHANGES[change]
    large, small = noise(12 * MIB), noise(300_000)
    content = pack(DIALECTS["skopeo"](saved(large, small)))
    file = tmp_path / "image"
    file.write_bytes(gzip.compress(content, 1) if compression == "gzip" else content)
    child = serve(f"docker-archive:{file}", sockets=2)
    first, second = child.clients
    digests = [each["digest"] for each in first.get("/manifest").json()["layers"]]
    first.ask("GET", f"/blobs/{digests[0]}")
    assert first.head().length == len(large)
    begun = first.read(100_000)
    spoil(file)
    try:
        body, is_whole = begun + first.read(len(large) - len(begun)), True
    except Incomplete as stop:
        body, is_whole = begun + stop.part, False
    assert is_whole == (statuses == {0})
    assert is_whole == (body == large)
    if change == "truncated":
        assert large.startswith(body)
    reply = second.get(f"/blobs/{digests[1]}")
    assert (reply.status, reply.error["detail"]["retryable"]) == (503, True), reply.message
    assert str(file) in reply.message
    reply = second.get("/manifest")  # of what is there now
    assert reply.status == status
    if status == 200:
        assert pull(second).layers == [ANOTHER]
    assert child.finish() in statuses


def test_an_archive_that_is_replaced_before_it_is_opened_is_the_other(
    serve: Serve, tmp_path: Path
) -> None:
    file = tmp_path / "image"
    file.write_bytes(pack(DIALECTS["skopeo"](saved(b"an image"))))
    child = serve(f"docker-archive:{file}")
    replace(file)
    assert pull_from(child).layers == [ANOTHER]


# --- what is opened, and that nothing is written -----------------------------------------------


@pytest.mark.parametrize("road", ["dir", "oci-archive, zstd", "docker-archive"])
def test_serving_opens_the_image_alone_and_writes_nothing(
    road: str, made: Made, home: Home, keep: Keep, tmp_path: Path
) -> None:
    image, *options = ROADS[road](made, tmp_path)
    trace = Trace(tmp_path / "trace", home, image, *options)
    keep(trace.child)
    assert pull_from(trace.child).content == made.content
    path = str(tmp_path / "image")
    assert trace.written == []
    assert {each for each in trace.read if not each.startswith(path)} == set()
    assert trace.touched >= {path}


def test_only_what_comes_through_a_pipe_is_written_and_has_no_name(
    made: Made, packed: bytes, home: Home, keep: Keep, tmp_path: Path
) -> None:
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    reading, writing = os.pipe()
    with open(reading, "rb", buffering=0) as stdin:
        trace = Trace(tmp_path / "trace", home, "/dev/stdin", stdin=stdin, TMPDIR=str(temporary))
    keep(trace.child)
    feed(writing, packed, MIB)
    assert pull_from(trace.child).content == made.content
    assert trace.written, "it is kept"
    assert {call.path.startswith(str(temporary)) for call in trace.written} == {True}
    assert {each for each in trace.read if not each.startswith(str(temporary))} == set()
