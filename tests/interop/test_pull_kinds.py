"""`pull`: names for what has none given, conversion, artifacts, and content of odd kinds."""

from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING

import pytest
from support.archives import DIALECTS, copy_layout, pack, saved, write_dir
from support.commands import Done, run
from support.damage import lose
from support.images import (
    DOCKER_MANIFEST,
    OCI_CONFIG,
    OCI_INDEX,
    OCI_MANIFEST,
    Json,
    Layout,
    digest_of,
    encode,
    named,
    on,
)
from support.parent import INSECURE
from support.servers import Answering, http_server

if TYPE_CHECKING:
    from pathlib import Path

    from support.filled import Registry
    from support.home import Home

HTTP = "--tls-verify=false"
AMD64 = "--platform=linux/amd64"
EMPTY = "application/vnd.oci.empty.v1+json"


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(tmp_path / "layout")


@pytest.fixture
def store(tmp_path: Path) -> Layout:
    """Return the store; what is written to it by this object is nothing."""
    return Layout(tmp_path / "store")


def pull(image: str, store: Layout, *options: str, home: Home | None = None) -> Done:
    env = None if home is None else home.environment()
    arguments = ["pull", INSECURE, AMD64, "--format=json", *options, image, f"oci:{store.path}"]
    return run(*arguments, env=env)


def entry(store: Layout) -> Json:
    (only,) = json.loads((store.path / "index.json").read_bytes())["manifests"]
    return dict(only)


def check_whole(store: Layout, descriptor: Json) -> None:
    """Fail where something that a document names is not there, or is something else."""
    content = store.read(descriptor["digest"])
    assert digest_of(content) == descriptor["digest"]
    document = json.loads(content) if descriptor["mediaType"].endswith("+json") else {}
    inner = [*document.get("layers", ()), *filter(None, [document.get("config")])]
    for each in (*inner, *document.get("manifests", ())):
        check_whole(store, each)


@pytest.mark.slow
def test_a_registry_s_image_is_called_by_its_whole_name(
    registry: Registry, store: Layout, home: Home
) -> None:
    digest = registry.images["latest"]["digest"]
    name = registry.name().removeprefix("docker://")
    for reference, expected in {
        f":latest@{digest}": f"{name}:latest",
        f"@{digest}": f"{name}@{digest}",
    }.items():
        done = pull(registry.name(reference), store, HTTP, home=home)
        assert (done.status, done.json()["name"]) == (0, expected), done.stderr
        listed = run("list", f"oci:{store.path}:{expected}")
        assert listed.status == 0, listed.stderr


LOCAL = {
    "a ref": ("oci:{layout}:os", "os"),
    "a position": ("oci:{layout}:@0", "os"),
    "the only one": ("oci:{layout}", "os"),
    "a path": ("{layout}", "os"),
    "the containerd name": ("oci:{other}", "quay.io/acme/os:1"),
    "a docker archive": ("docker-archive:{archive}", "docker.io/acme/os:1"),
    "a position there": ("docker-archive:{archive}:@0", "docker.io/acme/os:1"),
    "another tag there": ("docker-archive:{archive}:acme/os:2", "docker.io/acme/os:2"),
}


@pytest.mark.parametrize("case", LOCAL)
def test_a_local_image_keeps_its_own_name(
    case: str, layout: Layout, store: Layout, tmp_path: Path
) -> None:
    image, expected = LOCAL[case]
    layout.save(named(layout.image(b"1"), "os"))
    other, archive = copy_layout(layout, tmp_path / "other"), tmp_path / "archive"
    containerd = {"io.containerd.image.name": "quay.io/acme/os:1"}
    other.save({**other.image(b"1"), "annotations": containerd})
    archive.write_bytes(pack(DIALECTS["skopeo"](saved(b"1", tags=["acme/os:1", "acme/os:2"]))))
    done = pull(image.format(layout=layout.path, other=other.path, archive=archive), store)
    assert (done.status, done.json()["name"]) == (0, expected), done.stderr


@pytest.mark.slow
def test_what_has_no_name_wants_one(layout: Layout, store: Layout, tmp_path: Path) -> None:
    write_dir(tmp_path / "dir", layout, layout.image(b"1"))
    done = pull(f"dir:{tmp_path / 'dir'}", store)
    assert (done.status, "give one: oci:DIR:REF" in done.stderr) == (2, True)


@pytest.mark.slow
@pytest.mark.parametrize(("tag", "every"), [("docker", False), ("list", True), ("latest", False)])
def test_docker_s_types_are_converted(
    tag: str,
    every: bool,  # noqa: FBT001  (a parameter)
    registry: Registry,
    store: Layout,
    home: Home,
) -> None:
    original = registry.images[tag]
    options = [HTTP, "--convert=oci", *(["--all-platforms"] if every else [])]
    done = pull(registry.name(f":{tag}"), store, *options, home=home)
    assert done.status == 0, done.stderr
    only = entry(store)
    check_whole(store, only)
    assert only["mediaType"] == (OCI_INDEX if every else OCI_MANIFEST)
    assert (only["digest"] == original["digest"]) == (tag == "latest")
    assert done.json()["original"] == original["digest"]
    documents = [only, *store.document(only).get("manifests", ())]
    assert len(documents) == (4 if every else 1)
    assert b"docker" not in b"".join(store.read(each["digest"]) for each in documents)
    again = pull(registry.name(f":{tag}"), store, *options, home=home)
    assert (again.json()["blobs"], entry(store)) == (0, only)


@pytest.mark.slow
def test_what_descriptors_embed_is_in_the_store_too(layout: Layout, store: Layout) -> None:
    """As oras writes the empty config of an artifact; nobody need have it but in this form."""
    empty = {"data": base64.b64encode(b"{}").decode()}
    artifact = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "artifactType": "application/vnd.acme",
        "config": layout.add(b"{}", EMPTY, **empty),
        "layers": [layout.add(b"text", "text/plain"), layout.add(b"", "application/x-empty")],
    }
    descriptor = layout.add(encode(artifact), OCI_MANIFEST)
    data = base64.b64encode(layout.read(descriptor["digest"])).decode()
    layout.save(named(layout.index({**descriptor, "data": data}), "acme"))
    lose(layout.file(digest_of(b"{}")))
    lose(layout.file(descriptor["digest"]))
    done = pull(f"oci:{layout.path}", store, "--all-platforms")
    assert done.status == 0, done.stderr
    check_whole(store, entry(store))
    done = pull(f"oci:{store.path}@0".replace("@", ":@"), Layout(layout.path.parent / "third"))
    assert done.status == 0, done.stderr
    assert entry(Layout(layout.path.parent / "third"))["artifactType"] == "application/vnd.acme"


def test_an_index_of_everything_is_copied_but_for_what_is_no_document(
    layout: Layout, store: Layout
) -> None:
    image = layout.image(b"1")
    attestation = on(
        {
            **layout.image(b"{}"),
            "annotations": {"vnd.docker.reference.type": "attestation-manifest"},
        },
        "unknown/unknown",
    )
    nested = layout.index(on(layout.image(b"2"), "linux/arm64"), on(image, "linux/amd64"))
    odd = layout.add(b"<a/>", "application/xml")
    entries = (on(image, "linux/amd64"), attestation, nested, nested, odd)
    layout.save(named(layout.index(*entries), "all"))
    done = pull(f"oci:{layout.path}", store, "--all-platforms")
    assert (done.status, done.json()["omitted"]) == (0, [odd["digest"]]), done.stderr
    for each in entries[:-1]:
        check_whole(store, each)
    assert not store.file(odd["digest"]).exists()


@pytest.mark.slow
def test_indexes_in_one_another_have_an_end(layout: Layout, store: Layout) -> None:
    index = on(layout.index(layout.image(b"1")), "linux/arm64")
    for _ in range(4):
        index = on(layout.index(index), "linux/arm64")
    layout.save(named(layout.index(on(layout.image(b"1"), "linux/amd64"), index), "all"))
    done = pull(f"oci:{layout.path}", store, "--all-platforms")
    assert (done.status, "indexes in one another" in done.stderr) == (4, True)


@pytest.mark.slow
def test_foreign_layers_are_kept(layout: Layout, store: Layout, home: Home) -> None:
    """Where they may be fetched; the next time nobody is asked."""
    content, asked = b"foreign" * 100_000, []

    def get(handler: Answering) -> None:
        asked.append(handler.path)
        handler.answer(200, content)

    with http_server(get) as address:
        image = layout.image(b"here", content)
        document = layout.document(image)
        document["layers"][1]["urls"] = [f"http://{address}/layer"]
        lose(layout.file(document["layers"][1]["digest"]))
        image = layout.add(encode(document), OCI_MANIFEST)
        layout.save(named(image, "os"))
        done = pull(f"oci:{layout.path}", store, home=home)
        assert (done.status, "--foreign-layers fetches it" in done.stderr) == (3, True)
        for _ in range(2):
            done = pull(f"oci:{layout.path}", store, "--foreign-layers", home=home)
            assert done.status == 0, done.stderr
    check_whole(store, image)
    assert asked == ["/layer"]


@pytest.mark.slow
@pytest.mark.parametrize("size", [1000, 2_000_000])
@pytest.mark.parametrize("fault", ["wrong", "short"])
def test_wrong_bytes_leave_nothing_behind(
    size: int, fault: str, layout: Layout, store: Layout
) -> None:
    """Also where that is found before any of them is passed on."""
    image = layout.image(b"x" * size)
    layout.save(named(image, "os"))
    digest = layout.layers(image)[0]["digest"]
    file = layout.file(digest)
    right = file.read_bytes()
    file.write_bytes(right[:-1] + b"y" * (fault == "wrong"))
    done = pull(f"oci:{layout.path}", store)
    assert done.status == 4, done.stderr
    # The config may have been on its way.
    assert not (store.path / ".imgproxy/partial" / digest.replace(":", "-")).exists()
    file.write_bytes(right)
    assert pull(f"oci:{layout.path}", store).status == 0


@pytest.mark.slow
def test_an_image_of_docker_may_be_kept_as_it_is(layout: Layout, store: Layout) -> None:
    layout.save(named(layout.image(b"1", docker=True), "os"))
    assert pull(f"oci:{layout.path}", store).status == 0
    assert entry(store)["mediaType"] == DOCKER_MANIFEST


@pytest.mark.slow
def test_a_config_that_was_read_to_choose_is_all_there_is_to_receive(
    layout: Layout, store: Layout
) -> None:
    content = layout.add(b"{}", OCI_CONFIG)
    signature = layout.add(encode({"config": content, "layers": [content]}), OCI_MANIFEST)
    layout.save(named(layout.index(signature), "it"))
    done = pull(f"oci:{layout.path}:it", store)
    assert done.status == 0, done.stderr
    assert done.json()["digest"] == signature["digest"]
    check_whole(store, entry(store))
