"""Edge cases of local images, row by row: E1 to E48, as issue 4 numbers them (there is no E47).

What concerns only the conversation or only registries has its place elsewhere; a row of that kind
is tried here on an archive.
"""

from __future__ import annotations

import bz2
import gzip
import io
import json
import os
import socket
import subprocess
import tarfile
from typing import TYPE_CHECKING

import pytest
from archives import (
    COMPRESSIONS,
    DIALECTS,
    IMAGE_NAME,
    REFERENCE_TYPE,
    Member,
    Saved,
    control,
    directory,
    docker_containerd,
    docker_graphdriver,
    docker_legacy,
    ggcr,
    gzip_bad_checksum,
    gzip_bad_size,
    gzip_then_garbage,
    gzipped,
    hard_link,
    lz4_stored,
    nix_layered,
    of_directory,
    pack,
    plain,
    replaced,
    saved,
    skopeo,
    symlink,
    truncated,
    write_oci_archive,
    zstd_with_dictionary,
    zstd_with_window,
)
from filled import MIB
from images import (
    DOCKER_MANIFEST,
    OCI_CONFIG,
    OCI_INDEX,
    OCI_LAYER,
    OCI_MANIFEST,
    REF_NAME,
    Json,
    Layout,
    digest_of,
    encode,
    named,
    on,
)
from parent import peak_memory
from pulled import Pulled, pull, pull_from, refused
from servers import require

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from conftest import Serve
    from parent import Child

AMD64 = "--platform=linux/amd64"
SCHEMA1 = "application/vnd.docker.distribution.manifest.v1+prettyjws"

ONE, TWO = b"the first layer" * 100, b"the second" * 200
IMAGE = saved(ONE, TWO, tags=["registry.example/team/os:1"])


class Offer:
    """Starts the program on what is written for one test."""

    def __init__(self, path: Path, serve: Serve) -> None:
        self.path = path
        self.layout = Layout(path / "layout")
        self._serve = serve

    def archive(
        self,
        members: Sequence[Member] | bytes,
        *options: str,
        transport: str = "docker-archive:",
        tail: str = "",
    ) -> Child:
        """Serve an archive; without a `transport`, by its path alone."""
        file = self.path / "image.tar"
        file.write_bytes(members if isinstance(members, bytes) else pack(members))
        return self._serve(f"{transport}{file}{tail}", AMD64, *options)

    def images(self, *descriptors: Json, tail: str = "", platform: str = "linux/amd64") -> Child:
        """Serve a layout that offers these."""
        self.layout.save(*descriptors)
        return self.again(tail, platform)

    def again(self, tail: str = "", platform: str = "linux/amd64") -> Child:
        """Serve the layout as it is."""
        return self._serve(f"oci:{self.layout.path}{tail}", f"--platform={platform}")

    def control(self, name: str, content: bytes) -> Child:
        """Serve `IMAGE` with a control file in the place of its own."""
        return self.archive(replaced(skopeo(IMAGE), name, Member(name, content)))


@pytest.fixture
def offer(tmp_path: Path, serve: Serve) -> Offer:
    return Offer(tmp_path, serve)


def rows(*cases: tuple[object, ...]) -> Callable[[Callable[..., None]], object]:
    """Parametrize by tuples whose first item is the identifier, which begins with the row."""
    names = {2: "case", 3: "case, status", 4: "case, status, words"}[len(cases[0])]
    values = [pytest.param(*case[1:], id=str(case[0])) for case in cases]
    return pytest.mark.parametrize(names.replace(" ", "").split(","), values)


def assert_is(pulled: Pulled, image: Saved) -> None:
    assert pulled.content == (image.config, list(image.layers))


def choices_of(error: Json) -> list[tuple[str, list[str]]]:
    return [(each["position"], each["names"]) for each in error["detail"]["choices"]]


def digests_of(layout: Layout, child: Child) -> tuple[str | None, str | None]:
    """Give the digests of the chosen manifest and of the index around it; all is whole."""
    reply = child.client.get("/manifest")
    assert reply.status == 200, reply.message
    assert pull_from(child).raw == layout.read(str(reply.get("Manifest-Digest")))
    return reply.get("Manifest-Digest"), reply.get("Index-Digest")


# --- which image -------------------------------------------------------------------------------

PAIR = [
    saved(b"of the first", tags=["registry.example/one:1", "registry.example/one:latest"]),
    saved(b"of the second", ONE, tags=["nginx:latest"]),
]


def test_e1_several_images_ask_for_a_choice(offer: Offer) -> None:
    members = skopeo(*PAIR)
    error = refused(offer.archive(members), 409, ":@0", ":@1", *PAIR[0].tags, *PAIR[1].tags)
    assert choices_of(error) == [("@0", list(PAIR[0].tags)), ("@1", list(PAIR[1].tags))]
    pulled = pull_from(offer.archive(members, tail=":@1"))
    assert_is(pulled, PAIR[1])
    assert error["detail"]["choices"][1]["digest"] == digest_of(pulled.raw)
    refused(offer.archive(members, tail=":@2"), 404, ":@0", ":@1")


def test_e1_several_images_of_a_layout_in_an_archive(offer: Offer) -> None:
    images = [named(offer.layout.image(name.encode()), name) for name in ("one", "two")]
    offer.layout.save(*images)
    members = of_directory(offer.layout.path)
    child = offer.archive(members, transport="oci-archive:")
    error = refused(child, 409, "one", "two", ":@0", ":@1", *(each["digest"] for each in images))
    assert choices_of(error) == [("@0", ["one"]), ("@1", ["two"])]
    for tail in (":@1", ":two"):
        child = offer.archive(members, transport="oci-archive:", tail=tail)
        assert digests_of(offer.layout, child) == (images[1]["digest"], None)


@rows(("E2 the one tag", ":registry.example/one:1"), ("E2 the other", ":registry.example/one"))
def test_e2_any_tag_leads_to_the_image(case: str, offer: Offer) -> None:
    assert_is(pull_from(offer.archive(docker_legacy(PAIR[0]), tail=case)), PAIR[0])


def test_e2_several_tags_of_one_image_are_no_choice(offer: Offer) -> None:
    assert_is(pull_from(offer.archive(docker_graphdriver(PAIR[0]), transport="")), PAIR[0])


@rows(("E3 without a reference", ""), ("E3 by position", ":@0"))
def test_e3_an_image_without_tags(case: str, offer: Offer) -> None:
    untagged = saved(ONE)
    members = skopeo(untagged)
    assert b'"RepoTags":null' in next(each.content for each in members if "manifest" in each.name)
    assert_is(pull_from(offer.archive(members, tail=case)), untagged)


@rows(
    ("E4 short name", ":nginx"),
    ("E4 whole name", ":docker.io/library/nginx:latest"),
    ("E4 old host", ":index.docker.io/library/nginx"),
)
def test_e4_names_are_compared_as_what_they_mean(case: str, offer: Offer) -> None:
    assert_is(pull_from(offer.archive(skopeo(*PAIR), tail=case)), PAIR[1])


# --- indexes -----------------------------------------------------------------------------------


@rows(("E5 one", 1), ("E5 two", 2), ("E5 four", 4))
def test_e5_indexes_in_indexes(case: int, offer: Offer) -> None:
    image = outer = on(offer.layout.image(ONE), "linux/amd64")
    for depth in range(case):
        outer = offer.layout.index(outer, annotations={"depth": str(depth)})
    child = offer.images(outer)
    assert digests_of(offer.layout, child) == (image["digest"], outer["digest"])


def test_e5_five_are_too_many(offer: Offer) -> None:
    outer = on(offer.layout.image(ONE), "linux/amd64")
    for _ in range(5):
        outer = offer.layout.index(outer)
    refused(offer.images(outer), 422, "4")


def test_e5_a_cycle_cannot_have_its_digest(offer: Offer) -> None:
    first = offer.layout.index(annotations={"which": "first"})
    second = offer.layout.index(first)
    offer.layout.file(first["digest"]).write_bytes(
        encode({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [second]})
    )
    reply = offer.images(second).client.get("/manifest")
    assert (reply.status, first["digest"] in reply.message) == (422, True)


def test_e5_an_index_that_names_itself_in_index_json(offer: Offer) -> None:
    """Whoever follows index.json into itself by a name would go on for ever."""
    itself = {"mediaType": OCI_INDEX, "digest": digest_of(b"index.json"), "size": 10}
    place = offer.layout.file(itself["digest"])
    place.parent.mkdir(parents=True)
    place.symlink_to("../../index.json")
    reply = offer.images(itself).client.get("/manifest")
    assert (reply.status, reply.code) in {(422, "SIZE_INVALID"), (422, "DIGEST_INVALID")}


def test_e6_an_entry_without_platform_is_the_last_resort(offer: Offer) -> None:
    vague = offer.layout.image(ONE)
    exact = on(offer.layout.image(TWO), "linux/amd64")
    index = offer.layout.index(vague, exact)
    assert digests_of(offer.layout, offer.images(index))[0] == exact["digest"]
    assert digests_of(offer.layout, offer.again(platform="linux/arm64"))[0] == vague["digest"]


def test_e6_the_config_of_the_only_candidate_tells_its_platform(offer: Offer) -> None:
    index = offer.layout.index(offer.layout.image(ONE, platform="linux/arm64"))
    error = refused(offer.images(index), 404, "linux/arm64")
    assert error["detail"]["platforms"] == ["linux/arm64"]


ATTESTATION = {"annotations": {REFERENCE_TYPE: "attestation-manifest"}}
UNKNOWN = {"platform": {"os": "unknown", "architecture": "unknown"}}


@rows(
    ("E7 marked twice", {**ATTESTATION, **UNKNOWN}),
    ("E7 marked by its platform", UNKNOWN),
    ("E8 marked by its annotation", ATTESTATION),
)
def test_e7_attestations_are_passed_over(case: Json, offer: Offer) -> None:
    absent = {"mediaType": OCI_MANIFEST, "digest": digest_of(b"absent"), "size": 6}
    image = offer.layout.image(ONE)  # no platform: what comes before would be taken
    index = offer.layout.index({**absent, **case}, image)
    assert digests_of(offer.layout, offer.images(index))[0] == image["digest"]


# --- members of Docker archives ----------------------------------------------------------------


def with_layers(*members: Member, layers: Sequence[bytes] = (ONE,)) -> list[Member]:
    """Give an archive whose one layer is `a/layer.tar`, wherever the members say that it is."""
    config = saved(*layers).config
    item = {"Config": "c.json", "RepoTags": None, "Layers": ["a/layer.tar"]}
    return [Member("c.json", config), *members, control("manifest.json", [item])]


@rows(
    ("E9 one", [symlink("a/layer.tar", "../b/layer.tar"), Member("b/layer.tar", ONE)]),
    (
        "E9 a chain",
        [
            symlink("a/layer.tar", "../b/layer.tar"),
            symlink("b/layer.tar", "./../c/x/../layer.tar"),
            symlink("c/layer.tar", "other"),
            Member("c/other", ONE),
        ],
    ),
    ("E10 to a hard link", [Member("b/layer.tar", ONE), hard_link("a/layer.tar", "b/layer.tar")]),
    ("E10 beside", [Member("x", ONE), Member("a/x", TWO), hard_link("a/layer.tar", "x")]),
)
def test_e9_links_lead_through_the_archive(case: list[Member], offer: Offer) -> None:
    assert pull_from(offer.archive(with_layers(*case))).layers == [ONE]


OUTSIDE = "leads out of the archive"


@rows(
    (
        "E9 a loop",
        [symlink("a/layer.tar", "../b/layer.tar"), symlink("b/layer.tar", "../a/layer.tar")],
        422,
        "itself",
    ),
    ("E9 to itself", [symlink("a/layer.tar", "layer.tar")], 422, "itself"),
    ("E9 dangling", [symlink("a/layer.tar", "../b/layer.tar")], 422, "b/layer.tar"),
    ("E9 absolute", [symlink("a/layer.tar", "/etc/passwd")], 422, OUTSIDE),
    ("E9 above", [symlink("a/layer.tar", "../../etc/passwd")], 422, OUTSIDE),
    ("E10 to nothing", [hard_link("a/layer.tar", "b/layer.tar")], 422, "b/layer.tar"),
    ("E9 no file", [directory("a/layer.tar")], 422, "directory"),
)
def test_e9_links_that_lead_nowhere(
    case: list[Member], status: int, words: str, offer: Offer
) -> None:
    refused(offer.archive(with_layers(*case)), status, "a/layer.tar", words)


# What gzip makes of the empty tar, in Docker's own words: the digest is known everywhere.
GZIPPED_NOTHING = bytes.fromhex(
    "1f8b080000096e8800ff621805a360148c5800080000ffff2eafb5ef00040000"
)


def test_e11_layers_with_nothing_in_them(offer: Offer) -> None:
    assert digest_of(GZIPPED_NOTHING).startswith("sha256:a3ed95caeb02")
    layers = [b"", bytes(1024), GZIPPED_NOTHING]
    assert digest_of(layers[0]).startswith("sha256:e3b0c442")
    config = saved(b"", bytes(1024), gzip.decompress(GZIPPED_NOTHING)).config
    members = [Member("c", config), *(Member(str(n), each) for n, each in enumerate(layers))]
    item = {"Config": "c", "RepoTags": None, "Layers": ["0", "1", "2"]}
    pulled = pull_from(offer.archive([*members, control("manifest.json", [item])]))
    assert pulled.layers == layers
    types = [each["mediaType"] for each in pulled.manifest["layers"]]
    assert types == [OCI_LAYER, OCI_LAYER, OCI_LAYER + "+gzip"]


@rows(*((f"E12 {each}", each) for each in ("docker 24", "skopeo", "nix layered")))
def test_e12_a_layer_that_comes_twice(case: str, offer: Offer) -> None:
    image = saved(ONE, TWO, ONE)
    assert_is(pull_from(offer.archive(DIALECTS[case](image))), image)


@rows(
    ("E13 manifest.json", [control("manifest.json", [])]),
    ("E13 ./manifest.json", [control("./manifest.json", [])]),
    ("E13 a/../manifest.json", [control("a/../manifest.json", [])]),
    ("E13 as a link", [symlink("manifest.json", "repositories")]),
    ("E13 index.json", [control("index.json", {})]),
    ("E13 oci-layout", [control("oci-layout", {})]),
)
def test_e13_a_control_file_that_stands_twice(case: list[Member], offer: Offer) -> None:
    members = docker_graphdriver(IMAGE)
    name = case[0].name.rpartition("/")[2]
    refused(offer.archive([*case, *members], transport=""), 422, name, "2 times")


def test_e13_a_config_that_stands_twice(offer: Offer) -> None:
    members = skopeo(IMAGE)
    (config,) = (each.name for each in members if each.content == IMAGE.config)
    refused(offer.archive([Member(config, saved(TWO).config), *members]), 422, config, "2 times")


def test_e13_a_layer_that_stands_twice_has_its_digest(offer: Offer) -> None:
    """Whichever is taken: what is served verifies."""
    members = with_layers(Member("a/layer.tar", TWO), Member("a/layer.tar", ONE))
    assert pull_from(offer.archive(members)).layers == [ONE]


LONG = "/".join(["a-directory-with-a-long-name"] * 9) + "/layer.tar"


def renamed(members: Sequence[Member], rename: Callable[[str], str]) -> list[Member]:
    return [each._replace(name=rename(each.name)) for each in members]


def with_long_name() -> list[Member]:
    item = {"Config": "c.json", "RepoTags": None, "Layers": [LONG]}
    members = [Member("c.json", saved(ONE).config), Member(LONG, ONE)]
    return [*members, control("manifest.json", [item])]


@rows(
    ("E14 ./", pack(renamed(nix_layered(saved(ONE)), "./{}".format))),
    ("E14 .//", pack(renamed(nix_layered(saved(ONE)), ".//{}".format))),
    ("E14 from the root", pack(renamed(nix_layered(saved(ONE)), "/{}".format))),
    ("E14 manifest.json/", pack(renamed(nix_layered(saved(ONE)), "{}/".format))),
    ("E14 PAX", pack(with_long_name(), tarfile.PAX_FORMAT)),
    ("E14 GNU", pack(with_long_name(), tarfile.GNU_FORMAT)),
    ("E14 ustar prefix", pack(renamed(nix_layered(saved(ONE)), lambda name: name))),
    (
        "E14 large uid, GNU",
        pack([each._replace(uid=3_000_000) for each in with_long_name()], tarfile.GNU_FORMAT),
    ),
    (
        "E14 large uid, PAX",
        pack([each._replace(uid=1 << 40) for each in with_long_name()], tarfile.PAX_FORMAT),
    ),
)
def test_e14_names_are_normalised(case: bytes, offer: Offer) -> None:
    assert pull_from(offer.archive(case)).layers == [ONE]


@rows(("E14 GNU sparse", "gnu"), ("E14 PAX sparse", "pax"))
def test_e14_a_sparse_layer(case: str, offer: Offer) -> None:
    place = offer.path / "a"
    place.mkdir()
    with (place / "layer.tar").open("wb") as file:
        file.truncate(MIB)
        file.seek(MIB)
        file.write(ONE)
    (offer.path / "c.json").write_bytes(saved((place / "layer.tar").read_bytes()).config)
    (offer.path / "manifest.json").write_text('[{"Config":"c.json","Layers":["a/layer.tar"]}]')
    names = ["a/layer.tar", "c.json", "manifest.json"]
    arguments = ["tar", "-C", str(offer.path), "--sparse", f"--format={case}", "-cf-", *names]
    content = subprocess.run(arguments, capture_output=True, check=True, timeout=10).stdout
    assert len(content) < MIB, "the file system has no holes"
    refused(offer.archive(content), 422, "a/layer.tar", "sparse")


def without(members: Sequence[Member], *names: str) -> list[Member]:
    return [each for each in members if each.name not in names]


def test_e15_no_manifest_json_and_an_index_json(offer: Offer) -> None:
    members = without(docker_graphdriver(IMAGE), "manifest.json", "repositories")
    for transport in ("", "docker-archive:"):
        assert_is(pull_from(offer.archive(members, transport=transport)), IMAGE)


@rows(
    ("E15 repositories", [*without(docker_legacy(IMAGE), "manifest.json")], 415, "1.10"),
    ("E15 nothing", [Member("etc/passwd"), Member("bin/sh")], 415, "etc/passwd, bin/sh"),
    ("E15 no members", [], 415, "nothing"),
)
def test_e15_neither(case: list[Member], status: int, words: str, offer: Offer) -> None:
    refused(offer.archive(case, transport=""), status, words)


def test_e15_the_wrong_transport(offer: Offer) -> None:
    child = offer.archive(skopeo(IMAGE), transport="oci-archive:")
    refused(child, 415, "index.json", "docker-archive:")


@rows(("E16 first", 0), ("E16 in the middle", 2), ("E16 last", None))
def test_e16_manifest_json_stands_anywhere(case: int | None, offer: Offer) -> None:
    members = skopeo(IMAGE)
    (manifest,) = (each for each in members if each.name == "manifest.json")
    others = [each for each in members if each is not manifest]
    others.insert(len(others) if case is None else case, manifest)
    assert_is(pull_from(offer.archive(gzipped(pack(others)))), IMAGE)


@rows(("E16 octal", tarfile.USTAR_FORMAT, 5), ("E16 GNU", tarfile.GNU_FORMAT, 9), ("E16 PAX", tarfile.PAX_FORMAT, 9))
def test_e16_after_gigabytes(case: int, status: int, offer: Offer) -> None:
    """They are stepped over, whatever the size is written in."""
    filler = tarfile.TarInfo("filler")
    filler.size = status << 30
    file = offer.path / "image.tar"
    with file.open("wb") as archive:
        archive.write(filler.tobuf(case))
        archive.seek(filler.size, io.SEEK_CUR)
        archive.write(pack(skopeo(IMAGE)))
    assert_is(pull_from(offer._serve(str(file))), IMAGE)
