"""Images of every kind through skopeo's protocol: which open, which are absent, what they deliver.

What skopeo does not read, or not by the digest that the manifest names, is had as well.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from typing import TYPE_CHECKING

import pytest
from support.archives import (
    DIALECTS,
    gzipped,
    layer,
    plain,
    saved,
    stored,
    write_archive,
    write_dir,
    write_oci_archive,
)
from support.images import (
    DOCKER_LAYER,
    OCI_CONFIG,
    OCI_INDEX,
    OCI_LAYER,
    OCI_MANIFEST,
    Json,
    Layout,
    digest_of,
    encode,
    named,
    on,
)
from support.sigstores import b64, ed25519_signer
from support.skopeo_client import OURS, PROGRAMS, Client, Program

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import Converse
    from support.filled import Registry
    from support.home import Home

NOWHERE = "sha256:" + "0" * 64
PLATFORM = "linux/amd64"


def begun(converse: Converse, *options: str, program: Program = OURS, **named: object) -> Client:
    client = converse(*options, program=program, **named)  # type: ignore[arg-type]
    client.initialize()
    return client


def delivered(client: Client, reference: str) -> tuple[Json, list[bytes]]:
    """Open an image, and take all of it in every way; return the manifest and its layers."""
    image = client.open(reference)
    manifest = json.loads(client.document("GetManifest", image))
    config = client.blob(image, manifest["config"])
    assert digest_of(config) == manifest["config"]["digest"]
    assert client.document("GetFullConfig", image) == config
    info = client.get("GetLayerInfo", image).value
    assert info == json.loads(client.document("GetLayerInfoPiped", image))
    assert info == [
        {"digest": each["digest"], "size": each["size"], "media_type": each["mediaType"]}
        for each in manifest["layers"]
    ]
    layers = [client.blob(image, each) for each in manifest["layers"]]
    for each, content in zip(manifest["layers"], layers, strict=True):
        assert client.raw_blob(image, each["digest"]) == (len(content), content, None)
        assert digest_of(content) == each["digest"]
    client.get("CloseImage", image)
    return manifest, layers


# --- absent or broken ---------------------------------------------------------------------------


def write_everything(directory: Path) -> None:
    """Write images that are there, that are absent, and of which a part is missing."""
    layout = Layout(directory / "layout")
    image = layout.image(layer("first"))
    foreign = on(layout.image(layer("other"), platform="linux/s390x"), "linux/s390x")
    childless = layout.index(on({**foreign, "digest": NOWHERE}, PLATFORM))
    without_config = layout.image(layer("no config"), annotations={"a": "b"})
    config = layout.document(without_config)["config"]
    lost = layout.add(
        encode({**layout.document(without_config), "config": {**config, "digest": NOWHERE}}),
        OCI_MANIFEST,
    )
    layout.save(
        named(image, "there"),
        named(layout.index(foreign), "foreign"),
        named(childless, "childless"),
        named({**image, "digest": NOWHERE}, "lost"),
        named(lost, "without-config"),
    )
    write_oci_archive(directory / "layout.tar", layout, plain)
    write_oci_archive(directory / "layout.tar.gz", layout, gzipped)
    docker = DIALECTS["skopeo"](saved(layer("docker"), tags=("acme/os:1",)))
    write_archive(directory / "docker.tar", *docker)
    write_archive(directory / "docker.tar.gz", *docker, compress=gzipped)
    write_dir(directory / "dir", layout, image)
    (directory / "empty").mkdir()
    (directory / "junk").write_bytes(b"junk" * 1000)
    (directory / "cut.tar").write_bytes((directory / "layout.tar").read_bytes()[:700])
    Layout(directory / "nothing").save()


# References below a directory, and if they are there: an image, no image, or a failure. Where the
# image is what is missing, that is no failure; where something that it needs is, it is one.
THERE, ABSENT, FAILURE = "an image", "no image", "a failure"
LOCAL = {
    "oci:{}/layout:there": THERE,
    "oci:{}/layout:@0": THERE,
    "oci:{}/layout:without-config": THERE,
    "oci-archive:{}/layout.tar:there": THERE,
    "oci-archive:{}/layout.tar.gz:there": THERE,
    "docker-archive:{}/docker.tar": THERE,
    "docker-archive:{}/docker.tar:acme/os:1": THERE,
    "docker-archive:{}/docker.tar.gz:acme/os:1": THERE,
    "dir:{}/dir": THERE,
    "{}/layout:there": THERE,
    "oci:{}/layout:none": ABSENT,
    "oci:{}/layout:@99": ABSENT,
    "oci:{}/nothing": ABSENT,
    "oci:{}/nothing:x": ABSENT,
    "oci:{}/nowhere": ABSENT,
    "oci:{}/nowhere:x": ABSENT,
    "oci:{}/nowhere/below:x": ABSENT,
    "oci-archive:{}/layout.tar:none": ABSENT,
    "oci-archive:{}/layout.tar.gz:none": ABSENT,
    "oci-archive:{}/layout.tar:@99": ABSENT,
    "oci-archive:{}/nowhere.tar": ABSENT,
    "oci-archive:{}/nowhere/below.tar:x": ABSENT,
    "docker-archive:{}/docker.tar:acme/os:2": ABSENT,
    "docker-archive:{}/docker.tar:@9": ABSENT,
    "docker-archive:{}/docker.tar.gz:acme/os:2": ABSENT,
    "docker-archive:{}/nowhere.tar": ABSENT,
    "dir:{}/nowhere": ABSENT,
    "{}/nowhere": ABSENT,
    "oci:{}/layout": FAILURE,  # it fits several
    "oci:{}/layout:foreign": FAILURE,
    "oci:{}/layout:childless": FAILURE,
    "oci:{}/layout:lost": FAILURE,
    "oci:{}/empty": FAILURE,
    "oci:{}/junk": FAILURE,
    "oci-archive:{}/layout.tar:foreign": FAILURE,
    "oci-archive:{}/layout.tar:lost": FAILURE,
    "oci-archive:{}/cut.tar": FAILURE,
    "oci-archive:{}/junk": FAILURE,
    "oci-archive:{}/empty": FAILURE,
    "docker-archive:{}/junk": FAILURE,
    "dir:{}/empty": FAILURE,
    "dir:{}/junk": FAILURE,
    "containers-storage:x": FAILURE,
    "docker-daemon:x:1": FAILURE,
    "oci:": FAILURE,
}


@pytest.mark.parametrize("policy", ["insecure", pytest.param("reject", marks=pytest.mark.slow)])
def test_an_image_that_is_absent_is_no_failure(
    policy: str, converse: Converse, home: Home, tmp_path: Path
) -> None:
    """Absence is found before the policy is asked, as in skopeo, but where a name is rejected."""
    write_everything(tmp_path)
    rejecting = home.write("policy.json", {"default": [{"type": "reject"}]})
    options = [] if policy == "insecure" else ["--policy", str(rejecting)]
    client = begun(converse, *options, policy=None if options else "--insecure-policy")
    failures = []
    for name, expected in LOCAL.items():
        reference = name.format(tmp_path)
        reply = client.call("OpenImageOptional", reference)
        found = FAILURE if not reply.success else THERE if reply.value else ABSENT
        if policy == "reject":
            if reply.success and reply.value:
                failures.append(f"{name}: opened against the policy")
            continue
        if found != expected:
            failures.append(f"{name}: expected {expected}, got {reply}")
        if expected == ABSENT and client.call("OpenImage", reference).success:
            failures.append(f"{name}: OpenImage succeeds")
    assert not failures, "\n".join(failures)
    assert client.finalize() == 0


# --- what is delivered --------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("compress", [plain, gzipped])
@pytest.mark.parametrize("dialect", DIALECTS)
def test_docker_archives(
    dialect: str, compress: object, converse: Converse, tmp_path: Path
) -> None:
    """Layers are named by the bytes that are delivered, under the type that is true of them."""
    contents = [layer("first"), layer("second", 200_000)]
    members = DIALECTS[dialect](saved(*contents, tags=("acme/os:1",)))
    write_archive(tmp_path / "image.tar", *members, compress=compress)  # type: ignore[arg-type]
    client = begun(converse)
    for name in ("", ":acme/os:1", ":@0"):
        manifest, layers = delivered(client, f"docker-archive:{tmp_path}/image.tar{name}")
        assert layers == [stored(dialect, each) for each in contents]
        expected = OCI_LAYER + ("+gzip" if layers[0][:2] == b"\x1f\x8b" else "")
        assert {each["mediaType"] for each in manifest["layers"]} == {expected}
    assert client.finalize() == 0


@pytest.mark.parametrize(
    "is_list",
    [
        pytest.param(False, id="alone", marks=pytest.mark.slow),
        pytest.param(True, id="in a list"),
    ],
)
def test_docker_images_are_delivered_as_oci(
    layout: Layout, converse: Converse, tmp_path: Path, *, is_list: bool
) -> None:
    """The config is had by the digest that the manifest names, which skopeo replaces."""
    entry = layout.image(layer("first"), layer("second"), docker=True)
    original = layout.document(entry)
    assert original["layers"][0]["mediaType"] == DOCKER_LAYER
    root = layout.index(on(entry, PLATFORM), docker=True) if is_list else entry
    write_dir(tmp_path / "dir", layout, root)
    client = begun(converse)
    image = client.open(f"dir:{tmp_path}/dir")
    reply, _, _ = client.content("GetManifest", image)
    assert reply.value == entry["digest"], "that of the original, and not of the list"
    manifest, layers = delivered(client, f"dir:{tmp_path}/dir")
    assert manifest["mediaType"] == OCI_MANIFEST
    assert manifest["config"] == {**original["config"], "mediaType": OCI_CONFIG}
    assert {each["mediaType"] for each in manifest["layers"]} == {OCI_LAYER}
    assert layers == [layout.read(each["digest"]) for each in original["layers"]]
    assert client.finalize() == 0


@pytest.mark.slow
@pytest.mark.parametrize("program", PROGRAMS, ids=str)
def test_a_registry_delivers(program: Program, registry: Registry, converse: Converse) -> None:
    client = begun(converse, "--tls-verify=false", program=program)
    for tag in ("latest", "docker", "large", "index", "list", "converted-v2s2"):
        image = client.open(registry.name(f":{tag}"))
        reply, content, finished = client.content("GetManifest", image)
        assert finished.success
        manifest = json.loads(content)
        assert "oci" in manifest["config"]["mediaType"]
        if tag in registry.images:
            chosen = registry.images[tag]
            document = registry.layout.document(chosen)
            if "manifests" in document:
                chosen = document["manifests"][0]
            assert reply.value == chosen["digest"]
        for each in manifest["layers"]:
            assert digest_of(client.blob(image, each)) == each["digest"]
        if not program.is_old:
            delivered(client, registry.name(f":{tag}"))
    assert client.finalize() == 0


@pytest.mark.slow
def test_tag_and_digest_together(registry: Registry, converse: Converse) -> None:
    """The digest decides, as in a reference without a tag; skopeo refuses such references."""
    client = begun(converse, "--tls-verify=false")
    latest = registry.images["latest"]["digest"]
    for reference in (f":latest@{latest}", f"@{latest}", f":no-such-tag@{latest}"):
        reply, _, _ = client.content("GetManifest", client.open(registry.name(reference)))
        assert reply.value == latest
    # by the index, whose digest is not that of the manifest
    index = registry.images["index"]
    reply, _, _ = client.content("GetManifest", client.open(registry.name(f"@{index['digest']}")))
    assert reply.value == registry.layout.document(index)["manifests"][0]["digest"]
    assert client.call("OpenImageOptional", registry.name(f":latest@{NOWHERE}")).value == 0
    assert client.finalize() == 0


@pytest.mark.slow
def test_platforms_are_chosen_by_options(registry: Registry, converse: Converse) -> None:
    manifests = registry.layout.document(registry.images["index"])["manifests"]
    for options, place in (
        ([], 0),
        (["--override-arch=arm64"], 1),
        (["--override-arch=arm", "--override-variant=v7"], 2),
        (["--override-arch", "arm", "--override-os", "linux"], 2),
        (["--override-arch=s390x"], None),
        (["--override-os=windows"], None),
    ):
        client = begun(converse, "--tls-verify=false", *options)
        for method in ("OpenImage", "OpenImageOptional"):
            if place is None:
                reply = client.failure(method, registry.name(":index"))
                assert "arm64" in reply.words, "what there is"
                assert reply.code == "other"
            else:
                image = client.get(method, registry.name(":index")).value
                assert client.content("GetManifest", image)[0].value == manifests[place]["digest"]
        assert client.finalize() == 0


@pytest.mark.slow
def test_sideload_patterns(converse: Converse, tmp_path: Path) -> None:
    contents = [layer("first"), layer("second")]
    members = DIALECTS["nix layered"](saved(*contents, tags=("os:1",)))
    write_archive(tmp_path / "1-os.tar.gz", *members, compress=gzipped)
    client = begun(converse, f"--sideload={tmp_path}/<ref>-<basename>.tar.gz", "--offline")
    _, layers = delivered(client, "docker://registry.invalid/acme/os:1")
    assert layers == contents
    for method in ("OpenImage", "OpenImageOptional"):
        assert client.failure(method, "docker://registry.invalid/acme/os:2").code == "other"
    assert client.finalize() == 0


@pytest.mark.slow
@pytest.mark.parametrize("program", PROGRAMS, ids=str)
def test_artifacts_have_no_config(program: Program, layout: Layout, converse: Converse) -> None:
    manifest = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "artifactType": "application/vnd.acme.thing",
        "config": layout.add(b"{}", "application/vnd.oci.empty.v1+json"),
        "layers": [layout.add(b"a thing", "application/vnd.acme.part")],
    }
    layout.save(layout.add(encode(manifest), OCI_MANIFEST))
    client = begun(converse, program=program)
    image = client.open(f"oci:{layout.path}")
    assert json.loads(client.document("GetManifest", image)) == manifest
    assert client.blob(image, manifest["layers"][0]) == b"a thing"  # type: ignore[index]
    assert client.blob(image, manifest["config"]) == b"{}"  # type: ignore[arg-type]
    if not program.is_old:
        for method in ("GetConfig", "GetFullConfig"):
            reply = client.failure(method, image)
            assert reply.words.startswith("unsupported image-specific operation on artifact")
            assert '"application/vnd.acme.thing"' in reply.words
            assert reply.code == "other"
        (part,) = client.get("GetLayerInfo", image).value
        assert part["media_type"] == "application/vnd.acme.part"
    assert client.finalize() == 0


@pytest.mark.slow
def test_manifests_that_are_not_read(layout: Layout, converse: Converse) -> None:
    schema1 = {"schemaVersion": 1, "name": "x", "tag": "1", "fsLayers": [], "history": []}
    documents = {
        "schema1": (encode(schema1), "application/vnd.docker.distribution.manifest.v1+json"),
        "no-json": (b"not JSON", OCI_MANIFEST),
        "twice": (b'{"schemaVersion":2,"schemaVersion":2}', OCI_MANIFEST),
        "empty-index": (encode({"schemaVersion": 2, "manifests": []}), OCI_INDEX),
    }
    layout.save(*(named(layout.add(*each), name) for name, each in documents.items()))
    client = begun(converse)
    for name in documents:
        for method in ("OpenImage", "OpenImageOptional"):
            assert client.failure(method, f"oci:{layout.path}:{name}").code == "other"
    assert client.finalize() == 0


@pytest.mark.slow
def test_configs_that_are_none(layout: Layout, converse: Converse) -> None:
    """GetFullConfig passes the bytes; GetConfig needs an object, whose member is one."""
    cases: dict[str, tuple[bytes, bytes | None]] = {
        "empty": (b"{}", b"{}"),
        "null": (b'{"config":null}', b"{}"),
        "some": ('{"config":{"Env":["a=ü"]}}'.encode(), '{"Env":["a=ü"]}'.encode()),
        "a-list": (b"[]", None),
        "pairs": (b'[["config",{}]]', None),
        "a-list-within": (b'{"config":[]}', None),
        "a-string": (b'{"config":"x"}', None),
        "no-json": (b"config", None),
        "twice": (b'{"config":{"a":1,"a":2}}', None),
        "a-surrogate": (rb'{"config":{"a":"\ud800"}}', None),
    }
    entries = []
    for name, (content, _) in cases.items():
        document = {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": layout.add(content, OCI_CONFIG),
            "layers": [],
        }
        entries.append(named(layout.add(encode(document), OCI_MANIFEST), name))
    layout.save(*entries)
    client = begun(converse)
    for name, (content, inner) in cases.items():
        image = client.open(f"oci:{layout.path}:{name}")
        assert client.document("GetFullConfig", image) == content, name
        if inner is None:
            assert client.failure("GetConfig", image).code == "other", name
        else:
            assert client.document("GetConfig", image) == inner, name
    assert client.finalize() == 0


@pytest.mark.slow
def test_images_do_not_come_through_the_socket(converse: Converse, tmp_path: Path) -> None:
    """Nor through descriptors of the program; through one that it has inherited, they do."""
    write_archive(tmp_path / "image.tar", *DIALECTS["skopeo"](saved(layer("first"))))
    with (
        (tmp_path / "image.tar").open("rb") as whole,
        subprocess.Popen(["cat", whole.name], stdout=subprocess.PIPE) as piped,
    ):
        assert piped.stdout
        files = [whole.fileno(), piped.stdout.fileno()]
        client = begun(converse, files=files)
        pid = client.child.pid
        own = {int(fd) for fd in os.listdir(f"/proc/{pid}/fd")} - {1, 2, *files}
        for path in ("-", "/dev/stdin", *(f"/dev/fd/{fd}" for fd in own)):
            for transport in ("oci-archive:", "docker-archive:", "dir:", "oci:", ""):
                assert client.failure("OpenImage", transport + path).code == "other"
        for fd in files:
            image = client.open(f"docker-archive:/proc/self/fd/{fd}")
            assert len(client.get("GetLayerInfo", image).value) == 1
        assert client.finalize() == 0


# --- policy -------------------------------------------------------------------------------------

REQUIREMENTS = {
    "reject": ([{"type": "reject"}], "reject"),
    "signature": (
        [{"type": "sigstoreSigned", "keyData": b64(ed25519_signer().pem)}],
        "signature",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("requirement", REQUIREMENTS)
def test_policies_are_asked(
    requirement: str, layout: Layout, converse: Converse, home: Home
) -> None:
    """The Go suite looks for these words."""
    layout.save_image(layer("first"))
    requirements, word = REQUIREMENTS[requirement]
    policy = home.write("policy.json", {"default": requirements})
    client = begun(converse, f"--policy={policy}", policy=None)
    for method in ("OpenImage", "OpenImageOptional"):
        reply = client.failure(method, f"oci:{layout.path}")
        assert word in reply.words
        assert reply.code == "other"
    assert client.finalize() == 0


@pytest.mark.slow
def test_broken_policies_are_told(layout: Layout, converse: Converse, home: Home) -> None:
    layout.save_image(layer("first"))
    for content in ("{", '{"default":[]}', '{"default":[{"type":"nothing"}]}'):
        policy = home.write("policy.json", content)
        client = begun(converse, f"--policy={policy}", policy=None)
        reply = client.failure("OpenImage", f"oci:{layout.path}")
        assert re.search("policy", reply.words)
        assert reply.code == "other"
        assert client.finalize() == 0
    client = begun(converse, "--require-signed", f"--policy={accepting(home)}", policy=None)
    assert "signature" in client.failure("OpenImage", f"oci:{layout.path}").words
    client = begun(converse, f"--policy={accepting(home)}", policy=None)
    assert client.open(f"oci:{layout.path}")


def accepting(home: Home) -> str:
    return str(home.write("accepting.json", {"default": [{"type": "insecureAcceptAnything"}]}))
