"""Images of registries that lie on this host: patterns of paths, before any registry is asked."""

from __future__ import annotations

import os
import socket
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
from support.archives import (
    COMPRESSIONS,
    DIALECTS,
    Saved,
    copy_layout,
    pack,
    saved,
    write_dir,
    write_oci_archive,
    write_registry_tree,
)
from support.images import OCI_MANIFEST, Layout, digest_of, encode, named, on
from support.parent import INSECURE, Child, Client, command
from support.pulled import pull_from, refused
from support.servers import address_of, require, silent_server
from support.traced import Trace

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from conftest import Keep, Serve
    from interop.conftest import Pull
    from support.filled import Registry
    from support.home import Home
    from support.images import Json

NAME = "registry.example/team/os"
LAYER = b"the layer of a sideloaded image" * 50
IMAGE = saved(LAYER, tags=["a-name:that-nobody-asks-for"])
OTHER = saved(b"of another image", tags=["another:image"])
WRONG = digest_of(b"another manifest")


@dataclass(frozen=True)
class Host:
    """A directory with images for patterns that begin there."""

    path: Path
    serve: Serve

    def archive(self, name: str, *images: Saved, compression: str = "plain") -> Path:
        """Write a Docker archive as Nix does."""
        file = self.path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(COMPRESSIONS[compression](pack(DIALECTS["nix layered"](*images))))
        return file

    def layout(self, name: str = "layout") -> Layout:
        return Layout(self.path / name)

    def image(self, image: str, *patterns: str, options: tuple[str, ...] = ("--offline",)) -> Child:
        """Serve an image with patterns relative to the directory."""
        sideload = [f"--sideload={self.path}/{pattern}" for pattern in patterns]
        return self.serve(image, "--platform=linux/amd64", *sideload, *options)


def assert_not_asked(server: socket.socket) -> None:
    server.settimeout(0)
    with pytest.raises(BlockingIOError):
        server.accept()


@pytest.fixture
def host(tmp_path: Path, serve: Serve) -> Host:
    return Host(tmp_path / "host", serve)


# --- which path ---------------------------------------------------------------------------------


def test_what_nix_has_built_is_found(host: Host) -> None:
    """The path says which tag it is; what Nix calls the image inside is no obstacle."""
    host.archive("nix/store/0123abcd-os.tar.gz", IMAGE, compression="gzip")
    pattern = "nix/store/<ref>-<basename>.tar.gz"
    for name in (f"docker://{NAME}:0123abcd", f"{NAME}:0123abcd"):
        assert pull_from(host.image(name, pattern)).layers == [LAYER]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("image", "pattern", "path"),
    [
        (NAME, "<name>/<ref>.tar", "team/os/latest.tar"),
        (f"{NAME}:1", "<registry>/<name>-<ref>", "registry.example/team/os-1"),
        ("localhost:5000/os:1", "<registry>/<basename>/<ref>", "localhost:5000/os/1"),
        ("docker://busybox:1", "<registry>/<name>:<ref>", "docker.io/library/busybox:1"),
        (f"{NAME}:{'a' * 64}", "<basename>/<ref>", f"os/{'a' * 64}"),
    ],
)
def test_placeholders_become_the_parts_of_the_name(
    image: str, pattern: str, path: str, host: Host
) -> None:
    """Slashes become directories, and a tag may look like anything."""
    host.archive(path, IMAGE)
    assert pull_from(host.image(image, pattern)).layers == [LAYER]


def test_the_first_path_that_exists_wins(host: Host) -> None:
    host.archive("second/os/1", IMAGE)
    host.archive("third/os/1", OTHER)
    dangling = host.path / "first/os"
    dangling.mkdir(parents=True)
    (dangling / "1").symlink_to("/nonexistent")
    patterns = [f"{each}/<basename>/<ref>" for each in ("absent", "first", "second", "third")]
    with silent_server() as server:
        child = host.image(f"docker://{address_of(server)}/team/os:1", *patterns, options=())
        assert pull_from(child).layers == [LAYER]
        assert_not_asked(server)


def test_nothing_found_leads_to_the_registry(registry: Registry, host: Host) -> None:
    options = ("--tls-verify=false",)
    child = host.image(registry.name(":latest"), "<name>/<ref>", options=options)
    expected = registry.layout.read(registry.images["latest"]["digest"])
    assert pull_from(child).raw == expected


def test_offline_nothing_found_is_told_with_the_paths(host: Host) -> None:
    with silent_server() as server:
        image = f"docker://{address_of(server)}/team/os:1"
        child = host.image(image, "<name>/<ref>", "<basename>-<ref>")
        paths = [f"{host.path}/team/os/1", f"{host.path}/os-1"]
        assert refused(child, 404, *paths, "--offline")["code"] == "MANIFEST_UNKNOWN"
        assert refused(host.image(image), 404, "--offline")["detail"]["retryable"] is False
        assert_not_asked(server)


def test_links_are_followed(host: Host) -> None:
    host.archive("store/image", IMAGE)
    (host.path / "link").symlink_to("store")
    (host.path / "os-1").symlink_to("link/image")
    assert pull_from(host.image(f"{NAME}:1", "<basename>-<ref>")).layers == [LAYER]


def test_short_names_are_looked_for_under_all_that_they_may_mean(
    pull: Pull, home: Home, tmp_path: Path
) -> None:
    """Registries in the order of registries.conf."""
    file = tmp_path / "second.example/os/1"
    file.parent.mkdir(parents=True)
    file.write_bytes(pack(DIALECTS["skopeo"](IMAGE)))
    registries = 'unqualified-search-registries = ["first.example", "second.example"]\n'
    home.write(
        ".config/containers/registries.conf", registries + 'short-name-mode = "permissive"\n'
    )
    pattern = f"--sideload={tmp_path}/<registry>/<name>/<ref>"
    assert pull_from(pull("os:1", pattern, "--offline")).layers == [LAYER]
    paths = [f"{tmp_path}/{each}.example/os/2" for each in ("first", "second")]
    refused(pull("os:2", pattern, "--offline"), 404, *paths)


# --- what is not passed over --------------------------------------------------------------------


def no_image(path: Path) -> None:
    path.write_bytes(b"no image" * 100)


def loop(path: Path) -> None:
    path.symlink_to(path.name)


def loop_of_two(path: Path) -> None:
    other = path.with_name("other")
    path.symlink_to(other)
    other.symlink_to(path)


def loop_in_a_directory(path: Path) -> None:
    """Lead through the link itself to a place below."""
    path.symlink_to(f"{path.name}/below")


def empty_directory(path: Path) -> None:
    path.mkdir()


def broken(path: Path) -> None:
    path.write_bytes(COMPRESSIONS["gzip"](pack(DIALECTS["skopeo"](IMAGE)))[:-5])


@pytest.mark.parametrize(
    ("make", "status"),
    [
        *((no_image, 415), (empty_directory, 415), (broken, 422)),
        *((loop, 422), (loop_of_two, 422), (loop_in_a_directory, 422)),
    ],
)
def test_what_is_there_and_no_image_is_answered(
    make: Callable[[Path], None], status: int, host: Host
) -> None:
    """Neither the next pattern nor the registry is tried."""
    host.archive("next/os-1", IMAGE)
    make(host.path / "os-1")
    with silent_server() as server:
        image = f"docker://{address_of(server)}/team/os:1"
        child = host.image(image, "<basename>-<ref>", "next/<basename>-<ref>", options=())
        refused(child, status, f"{host.path}/os-1")
        assert_not_asked(server)


# To read some of these has effects, waits for ever or never ends; some say they are plain files.
LINKS = {
    "/dev/zero": 415,
    "/dev/full": 415,
    "/dev/random": 415,
    "/dev/tty": 415,
    "/proc": 415,
    "/proc/kmsg": 415,
    "/proc/self/mem": 503,
    "/proc/self/environ": 415,
    "/proc/self/maps": 415,
    "/proc/self/root": 415,
    "/proc/self/fd/0": 415,
    "/sys": 415,
}


@pytest.mark.parametrize("target", LINKS)
def test_a_link_out_of_the_files_is_answered_at_once(target: str, host: Host) -> None:
    """It is named by the path of the pattern, and its content is not shown."""
    host.path.mkdir()
    (host.path / "os-1").symlink_to(target)
    child = host.image(f"docker://{NAME}:1", "<basename>-<ref>")
    refused(child, LINKS[target], f"{host.path}/os-1")
    assert len(child.stderr.splitlines()) == 1


def test_a_fifo_is_not_opened(home: Home, keep: Keep, tmp_path: Path) -> None:
    """In the place of a manifest of a registry's tree as well."""
    place = tmp_path / "os/manifests/1"
    place.parent.mkdir(parents=True)
    os.mkfifo(place)
    pattern = f"--sideload={tmp_path}/<basename>/manifests/<ref>"
    trace = Trace(tmp_path / "trace", home, f"docker://{NAME}:1", pattern, "--offline")
    keep(trace.child)
    refused(trace.child, 415, str(place), "FIFO")
    assert str(place) in trace.touched
    assert trace.read == set()
    assert trace.written == []


@pytest.mark.parametrize("where", ["file", "directory", "layout"])
def test_what_may_not_be_read_is_a_403(where: str, host: Host, keep: Keep) -> None:
    """As it is for a user, and for root without the capabilities that pass over permissions."""
    if where == "layout":  # whose content says what it is, and cannot be looked at
        locked = host.layout("locked/os-1").path
        file = locked / "index.json"
    else:
        file = host.archive("locked/os-1", IMAGE)
        locked = file if where == "file" else file.parent
    locked.chmod(0)
    patterns = [f"--sideload={host.path}/{each}/<basename>-<ref>" for each in ("locked", "next")]
    host.archive("next/os-1", IMAGE)
    ours, theirs = socket.socketpair()
    with theirs:
        fd = theirs.fileno()
        arguments = command(f"docker://{NAME}:1", INSECURE, "--offline", *patterns, fds=[fd])
        if os.getuid() == 0:
            dropped = "--bounding-set=-dac_override,-dac_read_search"
            arguments = [require("setpriv"), dropped, *arguments]
        child = keep(Child(arguments, pass_fds=[fd]))
    child.clients.append(Client(ours))
    try:
        error = refused(child, 403, str(file), "Permission denied")
        assert error["code"] == "DENIED"
    finally:
        locked.chmod(0o700)


def test_policy_is_that_of_the_registrys_name(host: Host, tmp_path: Path) -> None:
    host.archive("os-1", IMAGE)
    host.archive("other-1", IMAGE)
    policy = tmp_path / "policy.json"
    scopes = {"registry.example/team/os": [{"type": "reject"}]}
    accept = [{"type": "insecureAcceptAnything"}]
    policy.write_bytes(
        encode(
            {
                "default": [{"type": "reject"}],
                "transports": {
                    "docker": {**scopes, "registry.example": accept},
                    "docker-archive": {"": accept},
                },
            }
        )
    )
    options = (f"--policy={policy}", "--offline", f"--sideload={host.path}/<basename>-<ref>")
    child = host.serve(f"docker://{NAME}:1", *options, policy=None)
    refused(child, 403, "registry.example/team/os")
    child = host.serve("docker://registry.example/team/other:1", *options, policy=None)
    assert pull_from(child).layers == [LAYER]


# --- digests ------------------------------------------------------------------------------------


def as_layout(path: Path, layout: Layout, descriptor: Json) -> None:
    layout.save(named(layout.image(b"something else"), "else"), named(descriptor, "1"))
    copy_layout(layout, path)


def as_oci_archive(path: Path, layout: Layout, descriptor: Json) -> None:
    layout.save(descriptor)
    write_oci_archive(path, layout, COMPRESSIONS["zstd"])


def as_tree(path: Path, layout: Layout, descriptor: Json) -> None:
    """Write a tree whose manifests are known by their tag alone."""
    tag = write_registry_tree(path.parent / "tree", "team/os", "1", layout, descriptor)
    content = tag.read_bytes()
    tag.unlink()
    tag.write_bytes(content)


KINDS: dict[str, Callable[[Path, Layout, Json], None]] = {
    "layout": as_layout,
    "OCI archive": as_oci_archive,
    "dir": write_dir,
    "tree": as_tree,
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_digest_is_sought_in_what_is_found(kind: str, host: Host) -> None:
    """The digest of the index or of the manifest in it; any other is a 422 with both."""
    layout = Layout(host.path / "source")
    image = on(layout.image(LAYER), "linux/amd64")
    index = layout.index(on(layout.image(b"elsewhere"), "linux/arm64"), image)
    KINDS[kind](host.path / "os-1", layout, index)
    pattern = "tree/<name>/manifests/<ref>" if kind == "tree" else "<basename>-<ref>"
    for digest, around in ((image["digest"], None), (index["digest"], index["digest"])):
        child = host.image(f"{NAME}:1@{digest}", pattern)
        reply = child.client.get("/manifest")
        assert reply.get("Manifest-Digest") == image["digest"]
        assert reply.get("Index-Digest") == around
        assert pull_from(child).layers == [LAYER]
    reply = host.image(f"{NAME}:1@{WRONG}", pattern).client.get("/manifest")
    assert (reply.status, reply.code) == (422, "DIGEST_INVALID")
    assert WRONG in reply.message
    assert reply.message.count("sha256:") >= 2


@pytest.mark.slow
def test_a_digest_of_a_docker_archive_is_that_of_the_manifest_that_is_made(host: Host) -> None:
    host.archive("os-1", IMAGE)
    digest = digest_of(pull_from(host.image(f"{NAME}:1", "<basename>-<ref>")).raw)
    assert pull_from(host.image(f"{NAME}:1@{digest}", "<basename>-<ref>")).layers == [LAYER]
    child = host.image(f"{NAME}:1@{WRONG}", "<basename>-<ref>")
    assert refused(child, 422, WRONG, digest)["code"] == "DIGEST_INVALID"


@pytest.mark.slow
def test_an_archive_of_several_images(host: Host) -> None:
    """By its name, else by its digest; neither is a question."""
    called = IMAGE._replace(tags=(f"{NAME}:1",))
    host.archive("os-1", OTHER, called)
    host.archive("os-2", OTHER, called)
    pulled = pull_from(host.image(f"{NAME}:1", "<basename>-<ref>"))
    assert pulled.layers == [LAYER]
    digest = digest_of(pulled.raw)
    error = refused(host.image(f"{NAME}:2", "<basename>-<ref>"), 409, digest, *OTHER.tags)
    assert [each["digest"] for each in error["detail"]["choices"]][1] == digest
    assert pull_from(host.image(f"{NAME}:2@{digest}", "<basename>-<ref>")).raw == pulled.raw
    refused(host.image(f"{NAME}:2@{WRONG}", "<basename>-<ref>"), 422, WRONG, digest)


@pytest.mark.slow
def test_the_path_with_the_digest_comes_first(host: Host) -> None:
    layout = host.layout("source")
    descriptor = layout.image(LAYER)
    layout.save(descriptor)
    write_oci_archive(host.path / f"os-{descriptor['digest']}", layout, COMPRESSIONS["plain"])
    host.archive("os-1", OTHER)
    for reference in (f"@{descriptor['digest']}", f":1@{descriptor['digest']}"):
        assert pull_from(host.image(NAME + reference, "<basename>-<ref>")).layers == [LAYER]
    refused(host.image(f"{NAME}@{WRONG}", "<basename>-<ref>"), 404, f"os-{WRONG}")


# --- trees of a registry ------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("registry", "unsaid"),
    [("", ""), ("registry.k8s.io", "mediaType")],
    ids=["without the host", "with the host, and without mediaType"],
)
def test_a_tree_that_k3s_tooling_wrote(registry: str, unsaid: str, host: Host) -> None:
    layout = host.layout("source")
    document = layout.document(layout.image(LAYER, b"second"))
    document.pop(unsaid, None)
    image = on(layout.add(encode(document), OCI_MANIFEST), "linux/amd64")
    index = layout.index(on(layout.image(b"arm", platform="linux/arm64"), "linux/arm64"), image)
    repository = "/".join(filter(None, [registry, "pause/nested"]))
    write_registry_tree(host.path / "registry", repository, "3.9", layout, index)
    pattern = f"registry/{'<registry>/' * bool(registry)}<name>/manifests/<ref>"
    name = "registry.k8s.io/pause/nested"
    for reference in (
        ":3.9",
        f"@{index['digest']}",
        f":3.9@{image['digest']}",
    ):
        child = host.image(name + reference, pattern)
        assert child.client.get("/manifest").get("Manifest-Digest") == image["digest"]
        assert pull_from(child).layers == [LAYER, b"second"]


@pytest.mark.slow
def test_a_tree_that_lacks_a_blob_says_where_it_was_sought(host: Host) -> None:
    layout = host.layout("source")
    descriptor = layout.image(LAYER)
    tag = write_registry_tree(host.path / "registry", "pause", "1", layout, descriptor)
    digest = digest_of(LAYER)
    (host.path / "registry/blobs" / digest).unlink()
    child = host.image("registry.k8s.io/pause:1", "registry/<name>/manifests/<ref>")
    reply = child.client.get(f"/blobs/{digest}")
    assert (reply.status, reply.code) == (404, "BLOB_UNKNOWN")
    hexadecimal = digest.partition(":")[2]
    for place in (digest, f"sha256/{hexadecimal}", f"sha256/{hexadecimal[:2]}/{hexadecimal}/data"):
        assert f"{host.path}/registry/pause/blobs/{place}" in reply.message
    (host.path / "registry/blobs" / digest).write_bytes(b"x" * len(LAYER))
    assert child.client.get(f"/blobs/{digest}").status == 422
    assert child.finish() == 0
    tag.with_name(descriptor["digest"]).write_bytes(encode({"not": "it"}))
    child = host.image("registry.k8s.io/pause:1", "registry/<name>/manifests/<ref>")
    refused(child, 422, descriptor["digest"])  # the link says what it has to be


# --- names and patterns that are none -----------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", ["registry.example/a/../os:1", "registry.example/a/%2e%2e/os:1"])
def test_a_name_that_is_none_never_reaches_the_file_system(
    name: str, home: Home, keep: Keep, tmp_path: Path
) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "os").mkdir()
    (tmp_path / "os/1").write_bytes(pack(DIALECTS["skopeo"](IMAGE)))
    pattern = f"--sideload={tmp_path}/<name>/<ref>"
    trace = Trace(tmp_path / "trace", home, f"docker://{name}", pattern, "--offline")
    keep(trace.child)
    assert refused(trace.child, 400)["code"] == "NAME_INVALID"
    paths = {call.path for call in trace.calls if call.path.startswith(str(tmp_path))}
    assert {path for path in paths if not path.startswith(str(home.path))} == set()


@pytest.mark.parametrize(
    ("pattern", "column"),
    [
        ("relative/<name>/<ref>", 1),
        ("/opt/<name>/<tag>", 13),
        ("/opt/<name>/<basename>/<ref>", 13),
        ("/opt/<name>", 12),
        ("/opt/<ref>", 11),
    ],
)
def test_a_faulty_pattern_is_a_usage_error_that_points_at_the_column(
    pattern: str, column: int
) -> None:
    result = subprocess.run(
        command(f"docker://{NAME}", f"--sideload={pattern}"),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=10,
        check=False,
    )
    assert (result.returncode, result.stdout) == (2, "")
    assert f"column {column}:" in result.stderr
    assert pattern in result.stderr
    assert result.stderr.count("\n") == 1


# --- what is opened -----------------------------------------------------------------------------


def test_sideloading_looks_at_the_patterns_and_opens_what_it_finds(
    home: Home, keep: Keep, tmp_path: Path
) -> None:
    layout = Layout(tmp_path / "source")
    descriptor = layout.image(LAYER)
    tag = write_registry_tree(tmp_path / "registry", "team/os", "1", layout, descriptor)
    patterns = [f"{tmp_path}/opt/<basename>-<ref>", f"{tmp_path}/registry/<name>/manifests/<ref>"]
    options = [f"--sideload={each}" for each in patterns]
    image = f"docker://{NAME}:1@{descriptor['digest']}"
    trace = Trace(tmp_path / "trace", home, image, *options, "--offline")
    keep(trace.child)
    assert pull_from(trace.child).layers == [LAYER]
    assert trace.written == []
    root = f"{tmp_path}/registry/team/os/"
    assert {each for each in trace.read if not each.startswith((root, str(home.path)))} == set()
    looked_at = {call.path for call in trace.calls if call.path.startswith(f"{tmp_path}/opt")}
    assert looked_at == {f"{tmp_path}/opt/os-{each}" for each in (descriptor["digest"], "1")}
    assert tag.parent.exists()
