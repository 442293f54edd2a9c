"""The Rust library of bootc, rpm-ostree and composefs, containers-image-proxy, as it is released.

The client in tests/clients/skopeo_rust asks in the order and in the ways of those programs, and
prints what arrived. The library's own tests are those of its package, built with the client's
Cargo.lock. Both start this program by a link called skopeo.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
import tomllib
from base64 import b64encode
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from support.archives import (
    DIALECTS,
    Member,
    gzipped,
    layer,
    pack,
    saved,
    stored,
    write_archive,
    write_dir,
    write_oci_archive,
)
from support.filled import MIB, as_directory, noise
from support.images import OCI_MANIFEST, Json, Layout, digest_of
from support.parent import LIMIT, ROOT
from support.servers import (
    PASSWORD,
    READER,
    Answering,
    docker_registry,
    free_port,
    http_server,
    relay,
    require,
    skip,
    skopeo_copy,
    stored_blob,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from support.filled import Registry
    from support.home import Home

pytestmark = pytest.mark.slow  # a minute and more to build, where nothing has been built yet

CLIENT = ROOT / "tests/clients/skopeo_rust"
BUILT = ROOT / "build/clients"
LIBRARY = "containers-image-proxy"
PROGRAM = Path(sys.executable).with_name("imgproxy")
BUILDING = 600.0

# The user's own, as compilers have their settings and caches there.
BUILDER = {
    "CARGO_HOME": str(Path.home() / ".cargo"),
    "RUSTUP_HOME": str(Path.home() / ".rustup"),
    **os.environ,
    "CARGO_TARGET_DIR": str(BUILT / "target"),
    "CARGO_PROFILE_DEV_DEBUG": "0",
}

# The ways in which the client fetches each layer, and how often it does so at once.
WAYS = ("blob", "taken", "raw", "stream")
AT_ONCE = 4

# The first does not fit into any pipe, so that it is noticed when its reader leaves.
TARS = (pack([Member("usr/large", noise(5 * MIB // 2))]), layer("small"))
LAYERS = (*TARS, gzipped(layer("compressed", 9999)), b"")

ACCEPTED = "--insecure-policy"
PLAIN = "--insecure"
LEFT = "failed to invoke method FinishPipe: write: broken pipe"


# --- what is built ----------------------------------------------------------------------------


def cargo(*words: str, directory: Path, env: dict[str, str] | None = None) -> str:
    """Run cargo, and return what it prints. Raises `RuntimeError` with all of it."""
    result = subprocess.run(
        ["cargo", *words],
        cwd=directory,
        env=BUILDER if env is None else env,
        capture_output=True,
        text=True,
        timeout=BUILDING,
        check=False,
    )
    if result.returncode:
        raise RuntimeError(f"cargo {' '.join(words)}: {result.stdout}{result.stderr}")
    return result.stdout


def lacking() -> str:
    """Return why nothing can be built here, empty if it can; fetch the crates."""
    wanted = tomllib.loads((CLIENT / "Cargo.toml").read_text())["package"]["rust-version"]
    found = re.findall(r"\d+", cargo("--version", directory=CLIENT))
    if [int(part) for part in found[:2]] < [int(part) for part in wanted.split(".")]:
        return f"cargo {'.'.join(found[:3])} is older than {wanted}"
    try:
        cargo("fetch", "--locked", directory=CLIENT)
    except RuntimeError as error:
        return f"cannot fetch the crates: {error}"
    return ""


@pytest.fixture(scope="module", autouse=True)
def _client() -> None:
    """Build the client; skip the tests where nothing can be built."""
    require("cargo")
    if reason := lacking():
        skip(reason)
    cargo("build", "--locked", "--quiet", directory=CLIENT)


def library_source() -> Path:
    """Return a copy of the library's package, with the versions of the client's Cargo.lock.

    Cargo does not run the tests of packages that are not in a workspace of one's own.
    """
    metadata = cargo("metadata", "--locked", "--format-version=1", directory=CLIENT)
    (package,) = [each for each in json.loads(metadata)["packages"] if each["name"] == LIBRARY]
    assert package["source"].startswith("registry+"), package
    copy = BUILT / LIBRARY
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(Path(package["manifest_path"]).parent, copy)
    shutil.copy(CLIENT / "Cargo.lock", copy)
    return copy


def packages(lock: Path) -> set[tuple[str, str, str]]:
    """Return the packages of a Cargo.lock that come from a registry: name, version, checksum."""
    listed = tomllib.loads(lock.read_text())["package"]
    return {(p["name"], p["version"], p["checksum"]) for p in listed if "checksum" in p}


# --- how it is run ----------------------------------------------------------------------------


@pytest.fixture
def home(home: Home) -> Home:
    """Return a home in which this program is found as skopeo, and accepts any image."""
    link = home.path / "bin/skopeo"
    link.parent.mkdir(parents=True)
    link.symlink_to(PROGRAM)
    accepting = {"default": [{"type": "insecureAcceptAnything"}]}
    home.write(".config/containers/policy.json", accepting)
    return home


def run(home: Home, *words: str) -> Json:
    """Run the client to its end, and return what it prints."""
    result = subprocess.run(
        [str(BUILT / "target/debug/skopeo-client"), *words],
        env=home.environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (result.returncode, result.stderr) == (0, ""), result
    printed: Json = json.loads(result.stdout)
    assert printed["protocol"] == "0.2.8"
    return printed


def run_one(home: Home, *words: str) -> Json:
    """Run the client on one image, and return what it prints of that."""
    (image,) = run(home, *words)["images"]
    return dict(image)


# --- what arrives -----------------------------------------------------------------------------


class Image(NamedTuple):
    """An image as the client names it, and what must arrive of it.

    `digests` are those of the manifest that may be chosen for this host, None where the manifest is
    made by this program; `is_docker` if GetManifest gives another document.
    """

    reference: str
    layers: Sequence[bytes]
    config: bytes | None
    digests: Sequence[str] | None = None
    is_docker: bool = False


def image_of(reference: str, layout: Layout, descriptor: Json, **fields: Any) -> Image:  # noqa: ANN401  (see Image)
    document = layout.document(descriptor)
    layers = [layout.read(each["digest"]) for each in document["layers"]]
    config = layout.read(document["config"]["digest"])
    return Image(reference, layers, config, [descriptor["digest"]], **fields)


def oci(directory: Path, _: Registry) -> Image:
    layout = Layout(directory)
    return image_of(f"oci:{directory}", layout, layout.save_image(*LAYERS))


def oci_archive(directory: Path, _: Registry) -> Image:
    layout = Layout(directory)
    descriptor = layout.save_image(*LAYERS)
    write_oci_archive(directory / "image.tar", layout, bytes)
    return image_of(f"oci-archive:{directory}/image.tar", layout, descriptor)


def docker_archive(directory: Path, _: Registry) -> Image:
    image = saved(*TARS, tags=["acme/os:1"])
    file = write_archive(
        directory / "image.tar.gz", *DIALECTS["docker 24"](image), compress=gzipped
    )
    return Image(f"docker-archive:{file}:acme/os:1", image.layers, image.config)


def docker_archive_of_compressed_layers(directory: Path, _: Registry) -> Image:
    image = saved(*TARS)
    file = write_archive(directory / "image.tar", *DIALECTS["ggcr"](image))
    layers = [stored("ggcr", each) for each in image.layers]
    return Image(f"docker-archive:{file}", layers, image.config)


def in_directory(directory: Path, _: Registry, *, is_docker: bool = False) -> Image:
    layout = Layout(directory)
    descriptor = layout.save_image(*LAYERS, docker=is_docker)
    write_dir(directory / "dir", layout, descriptor)
    return image_of(f"dir:{directory}/dir", layout, descriptor, is_docker=is_docker)


def docker_in_directory(directory: Path, registry: Registry) -> Image:
    return in_directory(directory, registry, is_docker=True)


def in_registry(directory: Path, registry: Registry, *, is_docker: bool = False) -> Image:
    layout = Layout(directory)
    descriptor = layout.save_image(*TARS, LAYERS[2], docker=is_docker)
    reference = f"docker://{registry.address}/images/rust:{directory.name}"
    source = as_directory(layout, descriptor, directory / "dir")
    skopeo_copy(source, reference, "--preserve-digests")
    return image_of(reference, layout, descriptor, is_docker=is_docker)


def docker_in_registry(directory: Path, registry: Registry) -> Image:
    return in_registry(directory, registry, is_docker=True)


def by_tag_and_digest(directory: Path, registry: Registry) -> Image:
    image = in_registry(directory, registry)
    assert image.digests
    return image._replace(reference=f"{image.reference}@{image.digests[0]}")


def index_in_registry(_: Path, registry: Registry) -> Image:
    """Return an image whose layer is that of this host's platform."""
    entries = registry.layout.document(registry.images["index"])["manifests"]
    machine = os.uname().machine
    names = {"x86_64": "amd64", "aarch64": "arm64"}
    (entry,) = [e for e in entries if e["platform"]["architecture"] == names.get(machine, "arm")]
    return image_of(registry.name(":index"), registry.layout, entry)


KINDS: dict[str, Callable[[Path, Registry], Image]] = {
    "oci": oci,
    "oci-archive": oci_archive,
    "docker-archive, gzip": docker_archive,
    "docker-archive of gzip": docker_archive_of_compressed_layers,
    "dir": in_directory,
    "dir, Docker": docker_in_directory,
    "docker": in_registry,
    "docker, Docker": docker_in_registry,
    "docker, tag and digest": by_tag_and_digest,
    "docker, index": index_in_registry,
}


def make(kind: str, directory: Path, registry: Registry) -> Image:
    place = directory / kind.replace(" ", "-").replace(",", "")
    place.mkdir()
    return KINDS[kind](place, registry)


def whole(content: bytes) -> Json:
    """Return what the client says of a blob that has arrived."""
    return {
        "failed": None,
        "size": len(content),
        "sha256": digest_of(content).removeprefix("sha256:"),
    }


def check_documents(found: Json, image: Image) -> None:
    manifest = json.loads(found["manifest"])
    if image.digests is not None:
        assert found["digest"] in image.digests
    if not image.is_docker:
        assert digest_of(found["manifest"].encode()) == found["digest"]
    assert manifest["mediaType"] == OCI_MANIFEST
    config = found["config"].encode()
    assert config == image.config
    assert digest_of(config) == manifest["config"]["digest"]
    assert found["config_blob"] == whole(config)
    assert found["diff_ids"] == json.loads(config)["rootfs"]["diff_ids"]
    assert [each["digest"] for each in manifest["layers"]] == list(map(digest_of, image.layers))
    assert found["layer_info"] == [
        {"digest": each["digest"], "size": each["size"], "media_type": each["mediaType"]}
        for each in manifest["layers"]
    ]
    assert found["optional"] == {"failed": None}


def check(found: Json, image: Image) -> None:
    """See that all of an image has arrived, byte for byte, in all ways."""
    check_documents(found, image)
    for way in WAYS:
        assert found["layers"][way] == list(map(whole, image.layers)), way
    for content, abandoned in zip(image.layers, found["abandoned"], strict=True):
        assert abandoned["raw"] == {"failed": None}
        assert abandoned["blob"]["failed"] == (LEFT if len(content) > MIB else None)


@pytest.mark.parametrize("kind", KINDS)
def test_every_byte_of_an_image(kind: str, home: Home, registry: Registry, tmp_path: Path) -> None:
    image = make(kind, tmp_path, registry)
    printed = run(home, ACCEPTED, PLAIN, image.reference)
    (found,) = printed["images"]
    check(found, image)
    at_once = [whole(content) for content in image.layers for _ in WAYS]
    assert printed["together"] == at_once * AT_ONCE


def test_all_images_in_one_process_at_once(home: Home, registry: Registry, tmp_path: Path) -> None:
    """Named by `skopeo_cmd`, and not by the link."""
    images = [make(kind, tmp_path, registry) for kind in KINDS]
    references = [image.reference for image in images]
    printed = run(home, "--program", str(PROGRAM), ACCEPTED, PLAIN, *references)
    for found, image in zip(printed["images"], images, strict=True):
        check(found, image)
    at_once = [whole(each) for image in images for each in image.layers for _ in WAYS]
    assert printed["together"] == at_once * AT_ONCE


# --- what does not arrive ---------------------------------------------------------------------


def test_an_absent_image(home: Home, registry: Registry, tmp_path: Path) -> None:
    image = make("oci", tmp_path, registry)
    absent = [
        f"{image.reference}:absent",
        f"oci-archive:{tmp_path}/absent.tar",
        registry.name(":absent"),
    ]
    for found in run(home, PLAIN, *absent)["images"]:
        assert found["optional"] == "absent"
        assert found["failed"].startswith("failed to invoke method OpenImage: ")
        assert found["retryable"] is False


def test_a_registry_that_nobody_runs_is_worth_another_try(home: Home) -> None:
    began = time.monotonic()
    found = run_one(home, PLAIN, f"docker://127.0.0.1:{free_port()}/no/body:1")
    assert time.monotonic() - began < LIMIT
    assert found["retryable"] is True
    assert found["optional"]["retryable"] is True


def test_no_wrong_byte_arrives_as_right(home: Home, registry: Registry, tmp_path: Path) -> None:
    """Neither from a layout nor from a registry; the process ends well all the same."""
    images = [make(kind, tmp_path, registry) for kind in ("oci", "docker")]
    content = bytearray(TARS[0])
    content[-1] ^= 1
    Layout(tmp_path / "oci").file(digest_of(TARS[0])).write_bytes(content)
    stored_blob(registry.directory, digest_of(TARS[0])).write_bytes(content)
    try:
        found = run(home, PLAIN, *(image.reference for image in images))["images"]
    finally:
        stored_blob(registry.directory, digest_of(TARS[0])).write_bytes(TARS[0])
    for image, each in zip(images, found, strict=True):
        check_documents(each, image)
        for way in WAYS:
            failed, *others = each["layers"][way]
            assert digest_of(TARS[0]) in failed["failed"], failed
            assert failed["retryable"] is False
            assert failed["size"] < len(TARS[0])
            assert others == list(map(whole, image.layers[1:]))


def test_the_policy_rejects(home: Home, registry: Registry, tmp_path: Path) -> None:
    image = make("oci", tmp_path, registry)
    policy = home.write("reject.json", {"default": [{"type": "reject"}]})
    home.program("rejecting", f'exec {PROGRAM} --policy {policy} "$@"')
    found = run_one(home, "--program", "rejecting", image.reference)
    assert "reject" in found["failed"]
    assert found["retryable"] is False


# --- how the library calls --------------------------------------------------------------------


def test_credentials_by_descriptor(home: Home, registry: Registry, tmp_path: Path) -> None:
    """As bootc hands them over: a file at its end, without a name, for as long as the process."""
    with docker_registry(registry.directory, auth="htpasswd") as guarded:
        entry = {"auth": b64encode(f"{READER}:{PASSWORD}".encode()).decode()}
        file = home.write("elsewhere/auth.json", {"auths": {guarded: entry}})
        image = make("docker", tmp_path, registry)
        reference = image.reference.replace(registry.address, guarded)
        found = run_one(home, PLAIN, "--auth-data", str(file), reference)
        check(found, image)
        for options in ([], ["--anonymous"]):
            refused = run_one(home, PLAIN, *options, reference)
            assert refused["failed"].startswith("failed to invoke method OpenImage: ")
            assert refused["retryable"] is False


def test_a_user_agent(home: Home) -> None:
    agents = set()

    def get(request: Answering) -> None:
        agents.add(request.headers["User-Agent"])
        request.answer(404, b"")

    with http_server(get) as address:
        run(home, PLAIN, "--user-agent-prefix", "bootc/1.2", f"docker://{address}/a/b:1")
    (agent,) = agents
    assert agent.startswith("bootc/1.2 imgproxy/")


def test_a_proxy_that_is_dropped(home: Home, registry: Registry, tmp_path: Path) -> None:
    """The library waits for the process without a limit, though the registry has stalled."""
    image = make("docker", tmp_path, registry)
    with relay(registry.address, after=MIB, fate="stall") as stalling:
        reference = image.reference.replace(registry.address, stalling)
        began = time.monotonic()
        found = run_one(home, PLAIN, "--drop", reference)
        assert time.monotonic() - began < LIMIT / 2
    check_documents(found, image)


# --- the library's own tests ------------------------------------------------------------------


def test_the_tests_of_the_library(home: Home) -> None:
    """All of them: one is ignored as skopeo fails it."""
    source = library_source()
    # In an environment in which cargo alone finds the user's own files.
    env = {
        **home.environment(),
        **{name: value for name, value in BUILDER.items() if name.startswith(("CARGO", "RUSTUP"))},
        "EXPECT_BLOB_STREAM_SOURCE": "GetRawBlob",  # which Debian's skopeo does not have
    }
    cargo("test", "--offline", "--no-run", "--quiet", directory=source)
    assert packages(source / "Cargo.lock") < packages(CLIENT / "Cargo.lock")
    printed = cargo("test", "--offline", "--", "--include-ignored", directory=source, env=env)
    results = re.findall(r"test result: ok\. (\d+) passed; (\d+) failed; (\d+) ignored;", printed)
    assert [each[1:] for each in results] == [("0", "0")] * len(results), printed
    assert sum(int(passed) for passed, _, _ in results) == printed.count(" ... ok\n"), printed
    for name in ("test_get_blob_stream_oci_dir", "test_open_image_retryable", "test_open_optional"):
        assert f"test tests::{name} ... ok\n" in printed
