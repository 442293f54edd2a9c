"""Edge cases of local images: what is ambiguous, damaged, huge, or written by few programs.

Each is tried on the whole program. What concerns only the conversation or only registries has its
place elsewhere; where it is here, it is tried on an archive.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import io
import subprocess
import tarfile
from typing import TYPE_CHECKING, Any

import pytest
from support.archives import (
    COMPRESSIONS,
    DIALECTS,
    REFERENCE_TYPE,
    Member,
    Saved,
    bzip2_streams,
    control,
    directory,
    docker_containerd,
    docker_graphdriver,
    docker_legacy,
    ggcr,
    gzip_bad_checksum,
    gzip_flushed,
    gzip_then_garbage,
    gzip_with_fields,
    gzipped,
    hard_link,
    hex_of,
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
    write_dir,
    write_oci_archive,
    xz_streams,
    zstd_compressed,
    zstd_frames,
    zstd_skippable,
    zstd_streamed,
    zstd_with_window,
)
from support.filled import MIB
from support.images import (
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
from support.parent import peak_memory
from support.pulled import Pulled, pull_from, refused

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from conftest import Serve
    from support.parent import Child

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


def rows(names: str, *cases: tuple[Any, ...]) -> pytest.MarkDecorator:
    """Parametrize by tuples; the first item of each says the row."""
    values = [pytest.param(*values, id=row) for row, *values in cases]
    return pytest.mark.parametrize([each.strip() for each in names.split(",")], values)


def assert_is(pulled: Pulled, image: Saved) -> None:
    assert pulled.content == (image.config, list(image.layers))


def choices_of(error: Json) -> list[tuple[str, list[str]]]:
    return [(each["position"], each["names"]) for each in error["detail"]["choices"]]


def digests_of(layout: Layout, child: Child) -> tuple[str | None, str | None]:
    """Return the digests of the chosen manifest and of the index around it; all is whole."""
    reply = child.client.get("/manifest")
    assert reply.status == 200, reply.message
    assert pull_from(child).raw == layout.read(str(reply.get("Manifest-Digest")))
    return reply.get("Manifest-Digest"), reply.get("Index-Digest")


# --- which image -------------------------------------------------------------------------------

PAIR = [
    saved(b"of the first", tags=["registry.example/one:1", "registry.example/one:latest"]),
    saved(b"of the second", ONE, tags=["nginx:latest"]),
]


def test_several_images_in_a_docker_archive_ask_for_a_choice(offer: Offer) -> None:
    """The error lists each with its position, its tags and its digest."""
    members = skopeo(*PAIR)
    error = refused(offer.archive(members), 409, ":@0", ":@1", *PAIR[0].tags, *PAIR[1].tags)
    assert choices_of(error) == [("@0", list(PAIR[0].tags)), ("@1", list(PAIR[1].tags))]
    pulled = pull_from(offer.archive(members, tail=":@1"))
    assert_is(pulled, PAIR[1])
    assert error["detail"]["choices"][1]["digest"] == digest_of(pulled.raw)
    refused(offer.archive(members, tail=":@2"), 404, ":@0", ":@1")


@pytest.mark.slow
def test_several_images_in_an_oci_archive_ask_for_a_choice(offer: Offer) -> None:
    """An image is chosen by its position or by its name."""
    images = [named(offer.layout.image(name.encode()), name) for name in ("one", "two")]
    offer.layout.save(*images)
    members = of_directory(offer.layout.path)
    child = offer.archive(members, transport="oci-archive:")
    error = refused(child, 409, "one", "two", ":@0", ":@1", *(each["digest"] for each in images))
    assert choices_of(error) == [("@0", ["one"]), ("@1", ["two"])]
    for tail in (":@1", ":two"):
        child = offer.archive(members, transport="oci-archive:", tail=tail)
        assert digests_of(offer.layout, child) == (images[1]["digest"], None)


@rows("tail", *((tag, f":{tag}") for tag in PAIR[0].tags), ("none", ""))
def test_any_tag_leads_to_the_only_image_as_does_none(tail: str, offer: Offer) -> None:
    assert_is(
        pull_from(offer.archive(docker_graphdriver(PAIR[0]), transport="", tail=tail)), PAIR[0]
    )


@rows("case", ("by position", ":@0"))
def test_an_image_without_tags_is_chosen_by_its_position(case: str, offer: Offer) -> None:
    """Its `RepoTags` are null, as skopeo writes them."""
    untagged = saved(ONE)
    members = skopeo(untagged)
    assert b'"RepoTags":null' in next(each.content for each in members if "manifest" in each.name)
    assert_is(pull_from(offer.archive(members, tail=case)), untagged)


@pytest.mark.slow
@rows(
    "case",
    ("whole name", ":docker.io/library/nginx:latest"),
    ("old host", ":index.docker.io/library/nginx"),
)
def test_names_are_compared_in_their_full_form(case: str, offer: Offer) -> None:
    """A tag without a host is of Docker Hub, which has an old name as well."""
    assert_is(pull_from(offer.archive(skopeo(*PAIR), tail=case)), PAIR[1])


# --- indexes -----------------------------------------------------------------------------------


@pytest.mark.slow
@rows("case", ("one", 1), ("four", 4))
def test_up_to_four_indexes_are_nested(case: int, offer: Offer) -> None:
    """`Index-Digest` is that of the outermost one."""
    image = outer = on(offer.layout.image(ONE), "linux/amd64")
    for depth in range(case):
        outer = offer.layout.index(outer, annotations={"depth": str(depth)})
    child = offer.images(outer)
    assert digests_of(offer.layout, child) == (image["digest"], outer["digest"])


def test_five_nested_indexes_are_refused(offer: Offer) -> None:
    outer = on(offer.layout.image(ONE), "linux/amd64")
    for _ in range(5):
        outer = offer.layout.index(outer)
    refused(offer.images(outer), 422, "4")


def test_a_cycle_of_indexes_fails_verification(offer: Offer) -> None:
    """No index can contain its own digest: one of a cycle is always wrong."""
    first = offer.layout.index(annotations={"which": "first"})
    second = offer.layout.index(first)
    offer.layout.file(first["digest"]).write_bytes(
        encode({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [second]})
    )
    reply = offer.images(second).client.get("/manifest")
    assert (reply.status, first["digest"] in reply.message) == (422, True)


def test_an_index_json_that_names_itself_is_refused(offer: Offer) -> None:
    """Whoever follows index.json into itself by a name would go on for ever."""
    itself = {"mediaType": OCI_INDEX, "digest": digest_of(b"index.json"), "size": 10}
    place = offer.layout.file(itself["digest"])
    place.parent.mkdir(parents=True)
    place.symlink_to("../../index.json")
    reply = offer.images(itself).client.get("/manifest")
    assert (reply.status, reply.code) in {(422, "SIZE_INVALID"), (422, "DIGEST_INVALID")}


def test_an_entry_without_a_platform_is_the_last_resort(offer: Offer) -> None:
    """One whose platform fits is preferred, wherever it stands."""
    vague = offer.layout.image(ONE)
    exact = on(offer.layout.image(TWO), "linux/amd64")
    index = offer.layout.index(vague, exact)
    assert digests_of(offer.layout, offer.images(index))[0] == exact["digest"]
    assert digests_of(offer.layout, offer.again(platform="linux/arm64"))[0] == vague["digest"]


def test_the_config_tells_the_platform_of_the_only_candidate(offer: Offer) -> None:
    """It is for arm64, so that amd64 is not found, and the error lists what is there."""
    index = offer.layout.index(offer.layout.image(ONE, platform="linux/arm64"))
    error = refused(offer.images(index), 404, "linux/arm64")
    assert error["detail"]["platforms"] == ["linux/arm64"]


ATTESTATION = {"annotations": {REFERENCE_TYPE: "attestation-manifest"}}
UNKNOWN = {"platform": {"os": "unknown", "architecture": "unknown"}}


@rows(
    "case",
    ("marked twice", {**ATTESTATION, **UNKNOWN}),
    ("marked by its platform", UNKNOWN),
    ("marked by its annotation", ATTESTATION),
)
def test_attestations_of_buildkit_are_passed_over(case: Json, offer: Offer) -> None:
    """They are marked by an annotation, by the platform `unknown/unknown`, or by both."""
    absent = {"mediaType": OCI_MANIFEST, "digest": digest_of(b"absent"), "size": 6}
    image = offer.layout.image(ONE)  # no platform: what comes before would be taken
    index = offer.layout.index({**absent, **case}, image)
    assert digests_of(offer.layout, offer.images(index))[0] == image["digest"]


# --- members of Docker archives ----------------------------------------------------------------


def with_layers(*members: Member, layers: Sequence[bytes] = (ONE,)) -> list[Member]:
    """Return an archive whose one layer is `a/layer.tar`, wherever the members say that it is."""
    config = saved(*layers).config
    item = {"Config": "c.json", "RepoTags": None, "Layers": ["a/layer.tar"]}
    return [Member("c.json", config), *members, control("manifest.json", [item])]


@rows(
    "case",
    ("one", [symlink("a/layer.tar", "../b/layer.tar"), Member("b/layer.tar", ONE)]),
    (
        "a chain",
        [
            symlink("a/layer.tar", "../b/layer.tar"),
            symlink("b/layer.tar", "./../c/x/../layer.tar"),
            symlink("c/layer.tar", "other"),
            Member("c/other", ONE),
        ],
    ),
    ("to a hard link", [Member("b/layer.tar", ONE), hard_link("a/layer.tar", "b/layer.tar")]),
    ("beside", [Member("x", ONE), Member("a/x", TWO), hard_link("a/layer.tar", "x")]),
)
def test_links_are_followed_within_the_archive(case: list[Member], offer: Offer) -> None:
    """Symbolic ones are relative to their directory, hard ones to the root of the archive."""
    assert pull_from(offer.archive(with_layers(*case))).layers == [ONE]


OUTSIDE = "leads out of the archive"


@rows(
    "case, status, words",
    (
        "a loop",
        [symlink("a/layer.tar", "../b/layer.tar"), symlink("b/layer.tar", "../a/layer.tar")],
        422,
        "itself",
    ),
    ("dangling", [symlink("a/layer.tar", "../b/layer.tar")], 422, "b/layer.tar"),
    ("above", [symlink("a/layer.tar", "../../etc/passwd")], 422, OUTSIDE),
    ("no file", [directory("a/layer.tar")], 422, "directory"),
)
def test_links_that_lead_to_no_file_are_refused(
    case: list[Member], status: int, words: str, offer: Offer
) -> None:
    refused(offer.archive(with_layers(*case)), status, "a/layer.tar", words)


# What gzip makes of the empty tar, in Docker's own words: the digest is known everywhere.
GZIPPED_NOTHING = bytes.fromhex("1f8b080000096e8800ff621805a360148c5800080000ffff2eafb5ef00040000")


def test_empty_layers_are_layers(offer: Offer) -> None:
    """No bytes, an empty tar, and what Docker's gzip makes of that: served as they lie there."""
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


@rows("case", *((each, each) for each in ("docker 24", "skopeo", "nix layered")))
def test_a_layer_that_an_image_has_twice_is_listed_twice(case: str, offer: Offer) -> None:
    image = saved(ONE, TWO, ONE)
    assert_is(pull_from(offer.archive(DIALECTS[case](image))), image)


@rows(
    "case",
    ("manifest.json", [control("manifest.json", [])]),
    ("./manifest.json", [control("./manifest.json", [])]),
    ("index.json", [control("index.json", {})]),
)
def test_a_control_file_that_stands_twice_is_refused(case: list[Member], offer: Offer) -> None:
    """Programs differ about which of them counts."""
    members = docker_graphdriver(IMAGE)
    name = case[0].name.rpartition("/")[2]
    refused(offer.archive([*case, *members], transport=""), 422, name, "2 times")


def test_a_config_that_stands_twice_is_refused(offer: Offer) -> None:
    members = skopeo(IMAGE)
    (config,) = (each.name for each in members if each.content == IMAGE.config)
    refused(offer.archive([Member(config, saved(TWO).config), *members]), 422, config, "2 times")


def test_a_layer_that_stands_twice_has_its_digest(offer: Offer) -> None:
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
    "case",
    ("./", pack(renamed(nix_layered(saved(ONE)), "./{}".format))),
    ("more of that", pack(renamed(nix_layered(saved(ONE)), "/.//x/../{}/".format))),
    (
        "long names and large numbers, GNU",
        pack([each._replace(uid=3_000_000) for each in with_long_name()], tarfile.GNU_FORMAT),
    ),
    (
        "long names and large numbers, PAX",
        pack([each._replace(uid=1 << 40) for each in with_long_name()], tarfile.PAX_FORMAT),
    ),
)
def test_names_of_members_are_normalised(case: bytes, offer: Offer) -> None:
    """`./` and `x/..` do not count, and long names are read as GNU and PAX write them."""
    assert pull_from(offer.archive(case)).layers == [ONE]


@rows("case", ("GNU sparse", "gnu"), ("PAX sparse", "pax"))
def test_a_sparse_layer_is_refused(case: str, offer: Offer) -> None:
    """Its content does not lie in the archive in one piece."""
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


def test_a_docker_archive_without_manifest_json_is_read_by_its_index_json(offer: Offer) -> None:
    members = without(docker_graphdriver(IMAGE), "manifest.json", "repositories")
    for transport in ("", "docker-archive:"):
        assert_is(pull_from(offer.archive(members, transport=transport)), IMAGE)


@rows(
    "case, status, words",
    ("repositories", [*without(docker_legacy(IMAGE), "manifest.json")], 415, "1.10"),
    ("nothing", [Member("etc/passwd"), Member("bin/sh")], 415, "etc/passwd, bin/sh"),
    ("no members", [], 415, "nothing"),
)
def test_an_archive_without_either_is_refused(
    case: list[Member], status: int, words: str, offer: Offer
) -> None:
    """With what is there, or that only Docker before 1.10 wrote such archives."""
    refused(offer.archive(case, transport=""), status, words)


def test_the_wrong_transport_is_told_with_the_right_one(offer: Offer) -> None:
    child = offer.archive(skopeo(IMAGE), transport="oci-archive:")
    refused(child, 415, "index.json", "docker-archive:")


@rows("case", ("first", 0), ("last", None))
def test_manifest_json_stands_anywhere(case: int | None, offer: Offer) -> None:
    """Even last in a compressed archive."""
    members = skopeo(IMAGE)
    (manifest,) = (each for each in members if each.name == "manifest.json")
    others = [each for each in members if each is not manifest]
    others.insert(len(others) if case is None else case, manifest)
    assert_is(pull_from(offer.archive(gzipped(pack(others)))), IMAGE)


@rows(
    "dialect, gigabytes",
    ("GNU", tarfile.GNU_FORMAT, 9),
    ("PAX", tarfile.PAX_FORMAT, 9),
)
def test_manifest_json_stands_after_gigabytes(dialect: int, gigabytes: int, offer: Offer) -> None:
    """They are stepped over, whatever the size is written in."""
    filler = tarfile.TarInfo("filler")
    filler.size = gigabytes << 30
    file = offer.path / "image.tar"
    with file.open("wb") as archive:
        archive.write(filler.tobuf(dialect))
        archive.seek(filler.size, io.SEEK_CUR)
        archive.write(pack(skopeo(IMAGE)))
    assert_is(pull_from(offer._serve(str(file))), IMAGE)


# --- what the control files say ----------------------------------------------------------------


@rows("layers", ("too few", [ONE]), ("too many", [ONE, TWO, ONE]))
def test_layers_and_diff_ids_that_differ_in_number_are_refused(
    layers: list[bytes], offer: Offer
) -> None:
    members = replaced(nix_layered(IMAGE), f"{hex_of(IMAGE.config)}.json")
    config = Member(f"{hex_of(IMAGE.config)}.json", saved(*layers).config)
    refused(offer.archive([config, *members]), 422, str(len(layers)), "2")


@rows(
    "config",
    ("no rootfs", {"architecture": "amd64", "os": "linux"}),
    ("of BuildKit's cache", {"layers": [{"blob": digest_of(ONE)}], "records": []}),
)
def test_layers_are_hashed_where_the_config_names_none(config: Json, offer: Offer) -> None:
    """So is what BuildKit writes as a cache."""
    content = encode(config)
    members = with_layers(Member("a/layer.tar", ONE))
    pulled = pull_from(offer.archive(replaced(members, "c.json", Member("c.json", content))))
    assert (pulled.config, pulled.layers) == (content, [ONE])


@rows(
    "compression, suffix",
    ("gzip", "gzip", "+gzip"),
    ("zstd", "zstd", "+zstd"),
)
def test_compressed_layers_in_an_archive_are_served_as_they_lie_there(
    compression: str, suffix: str, offer: Offer
) -> None:
    content = COMPRESSIONS[compression](ONE)
    pulled = pull_from(offer.archive(with_layers(Member("a/layer.tar", content))))
    assert pulled.layers == [content], "as it lies there"
    (layer,) = pulled.manifest["layers"]
    assert layer["mediaType"] == OCI_LAYER + suffix
    assert pulled.config == saved(ONE).config


def test_archives_of_go_containerregistry_have_compressed_layers(offer: Offer) -> None:
    pulled = pull_from(offer.archive(ggcr(IMAGE)))
    assert pulled.content == (IMAGE.config, [gzipped(ONE), gzipped(TWO)])


def test_a_foreign_layer_in_layersources_is_described_and_not_served(offer: Offer) -> None:
    """Its URL and the option that fetches it are in the message."""
    foreign = {
        "mediaType": "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
        "digest": digest_of(b"elsewhere"),
        "size": 9,
        "urls": ["https://layers.example/base"],
    }
    config = saved(TWO, ONE)
    item = {
        "Config": "c.json",
        "RepoTags": None,
        "Layers": ["absent/layer.tar", "a/layer.tar"],
        "LayerSources": {config.diff_ids[0]: foreign},
    }
    members = [Member("c.json", config.config), Member("a/layer.tar", ONE)]
    child = offer.archive([*members, control("manifest.json", [item])])
    told, there = child.client.get("/manifest").json()["layers"]
    media_type = "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"
    assert told == {**foreign, "mediaType": media_type}
    assert there["digest"] == digest_of(ONE)
    reply = child.client.get(f"/blobs/{foreign['digest']}")
    assert (reply.status, reply.code) == (404, "BLOB_UNKNOWN")
    assert foreign["urls"][0] in reply.message
    assert "--foreign-layers" in reply.message
    assert child.client.get(f"/blobs/{there['digest']}").body == ONE
    assert child.finish() == 0


# --- compression -------------------------------------------------------------------------------


WHOLE = pack(skopeo(IMAGE))
HALVES = WHOLE[:1234], WHOLE[1234:]


@rows(
    "content",
    (
        "members, header fields and zeros",
        gzip_with_fields(HALVES[0]) + gzipped(HALVES[1]) + bytes(10_240),
    ),
    ("flushes", gzip_flushed(WHOLE)),
    ("frames, with and without a size", zstd_frames(HALVES[0]) + zstd_streamed(HALVES[1])),
    ("skippable frames", zstd_skippable(WHOLE)),
    ("streams of bzip2", bzip2_streams(WHOLE)),
    ("streams of xz, and padding", xz_streams(WHOLE)),
)
def test_every_form_of_a_compression_is_read(content: bytes, offer: Offer) -> None:
    assert_is(pull_from(offer.archive(content)), IMAGE)


@rows(
    "content, status, words",
    ("truncated", truncated(gzipped(WHOLE)), 422, "at byte"),
    ("checksum", gzip_bad_checksum(WHOLE), 422, "at byte"),
    ("garbage", gzip_then_garbage(WHOLE), 422, "at byte"),
    ("window", zstd_with_window(WHOLE, 31), 422, "zstd"),
    ("lz4", lz4_stored(WHOLE), 415, "lz4"),
    ("twice", gzipped(gzipped(WHOLE)), 415, "tar"),
    ("neither", b"no tar" * 500, 415, "tar"),
    ("empty", b"", 415, "tar"),
    ("a truncated tar", WHOLE[:1500], 422, "ends at byte"),
)
def test_what_is_damaged_or_no_tar_is_refused(
    content: bytes, status: int, words: str, offer: Offer
) -> None:
    refused(offer.archive(content, transport=""), status, "image.tar", words)


def test_zstd_with_a_window_of_128_mib_is_read(offer: Offer) -> None:
    assert_is(pull_from(offer.archive(zstd_with_window(WHOLE, 27))), IMAGE)


def test_an_archive_beyond_the_limit_is_refused_at_once(offer: Offer) -> None:
    """A member of a terabyte, in a file of some kilobytes: its header says that it is one."""
    header = tarfile.TarInfo("zeros")
    header.size = 1 << 40
    zeros = zstd_compressed(bytes(64 * MIB))
    content = zstd_compressed(header.tobuf(tarfile.GNU_FORMAT)) + zeros * 18
    child = offer.archive(content)
    reply = child.client.get("/manifest")
    assert (reply.status, reply.code) == (422, "SIZE_INVALID")
    assert peak_memory(child.pid) < 80 * MIB
    assert child.finish() == 0


@pytest.mark.slow
def test_a_layer_of_zeros_is_an_image(offer: Offer) -> None:
    """1.3 GB in 40 KB, as a disk image or a swap file that somebody has added."""
    header = tarfile.TarInfo("zeros")
    header.size = 20 * 64 * MIB
    zeros = zstd_compressed(bytes(64 * MIB))
    digest = hashlib.sha256()
    for _ in range(20):
        digest.update(bytes(64 * MIB))
    diff_id = digest.hexdigest()
    config = b'{"rootfs":{"type":"layers","diff_ids":["sha256:%s"]}}' % diff_id.encode()
    item = b'[{"Config":"c.json","Layers":["zeros"]}]'
    rest = pack([Member("c.json", config), Member("manifest.json", item)])
    child = offer.archive(
        zstd_compressed(header.tobuf(tarfile.GNU_FORMAT)) + zeros * 20 + zstd_compressed(rest)
    )
    (layer,) = child.client.get("/manifest").json()["layers"]
    assert (layer["digest"], layer["size"]) == (f"sha256:{diff_id}", header.size)
    child.client.ask("GET", f"/blobs/{layer['digest']}")
    assert child.client.head().length == header.size
    for _ in range(20 * 64):
        assert child.client.read(MIB) == bytes(MIB)
    assert peak_memory(child.pid) < 80 * MIB
    assert child.finish() == 0


@pytest.mark.slow
def test_names_that_would_fill_the_memory_are_refused(offer: Offer) -> None:
    members = [Member(f"{n}/" + "x" * 4000) for n in range(6000)]
    child = offer.archive(gzipped(pack(members, tarfile.GNU_FORMAT)))
    reply = child.client.get("/manifest")
    assert (reply.status, reply.code) == (422, "ARCHIVE_INVALID")
    assert "bytes of their names" in reply.message
    assert peak_memory(child.pid) < 80 * MIB
    assert child.finish() == 0


@pytest.mark.slow
def test_a_huge_manifest_json_is_refused_in_little_memory(offer: Offer) -> None:
    child = offer.control("manifest.json", b"[" + b" " * (64 * MIB) + b"]")
    reply = child.client.get("/manifest")
    assert (reply.status, reply.code) == (422, "SIZE_INVALID")
    assert peak_memory(child.pid) < 80 * MIB
    assert child.finish() == 0


# --- digests and names -------------------------------------------------------------------------


def test_digests_of_other_algorithms_are_served_or_answered_with_501(offer: Offer) -> None:
    """What cannot be computed is no obstacle to the manifest; what is no digest is a 400."""
    layers = [
        offer.layout.add(ONE, OCI_LAYER, algorithm="sha512"),
        {"mediaType": OCI_LAYER, "digest": f"blake3:{'0' * 64}", "size": 5},
        {"mediaType": OCI_LAYER, "digest": f"unheard-of:{'0' * 64}", "size": 5},
    ]
    config = offer.layout.add(IMAGE.config, OCI_CONFIG)
    manifest = {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": layers}
    offer.layout.save(offer.layout.add(encode(manifest), OCI_MANIFEST, algorithm="sha512"))
    content = pack(of_directory(offer.layout.path), tarfile.PAX_FORMAT)
    client = (child := offer.archive(content, transport="")).client
    assert client.get("/manifest").json()["layers"] == layers, "mentioned, and no obstacle"
    sha512, blake3, unknown = (each["digest"] for each in layers)
    assert client.get(f"/blobs/{sha512}").body == ONE
    assert str(client.get("/manifest").get("Docker-Content-Digest")).startswith("sha512:")
    for digest in (blake3, unknown):
        assert client.get(f"/blobs/{digest}").status == 501
    for digest in (sha512.upper(), sha512[:-1], sha512 + "0", sha512.replace("512:", "512-")):
        assert client.get(f"/blobs/{digest}").status == 400, digest
    assert child.finish() == 0


@rows(
    "name",
    ("..", "registry.example/a/../b"),
    ("%2f", "registry.example/a%2fb"),
    ("in the tag", "registry.example/a:../../b"),
    ("long", "registry.example/" + "a/" * 150 + "b"),
)
def test_malformed_names_never_reach_the_file_system(name: str, offer: Offer) -> None:
    child = offer._serve(f"docker://{name}", f"--sideload={offer.path}/<name>/<ref>", "--offline")
    assert refused(child, 400)["code"] == "NAME_INVALID"


# --- documents ---------------------------------------------------------------------------------


def test_an_artifact_is_served_as_it_is(offer: Offer) -> None:
    """It has no platform, and its type is in `Artifact-Type`."""
    empty = offer.layout.add(b"{}", "application/vnd.oci.empty.v1+json")
    artifact = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "artifactType": "application/vnd.example.sbom",
        "config": empty,
        "layers": [offer.layout.add(ONE, "text/plain")],
        "subject": offer.layout.image(TWO, platform="linux/s390x"),
    }
    descriptor = offer.layout.add(encode(artifact), OCI_MANIFEST)
    child = offer.images(descriptor)
    assert child.client.get("/manifest").get("Artifact-Type") == "application/vnd.example.sbom"
    pulled = pull_from(child)
    assert pulled.raw == offer.layout.read(descriptor["digest"])
    assert (pulled.config, pulled.layers) == (b"{}", [ONE])


def test_content_in_a_descriptor_is_used_if_it_verifies(offer: Offer) -> None:
    """Used if it is what is described; a lie does not keep the blob itself from being found."""
    image = offer.layout.document(offer.layout.image(ONE, TWO))
    one, two = image["layers"]
    one["data"] = base64.b64encode(ONE).decode()
    two["data"] = base64.b64encode(b"a lie" * 400).decode()
    offer.layout.file(one["digest"]).unlink()
    child = offer.images(offer.layout.add(encode(image), OCI_MANIFEST))
    assert pull_from(child).layers == [ONE, TWO]


@pytest.mark.slow
def test_a_subject_is_not_an_image_of_the_index(offer: Offer) -> None:
    image = offer.layout.image(ONE)
    index = offer.layout.index(subject=image)
    refused(offer.images(index), 404, "linux/amd64")
    other = on(offer.layout.image(TWO), "linux/amd64")
    index = offer.layout.index(other, subject=on(image, "linux/amd64"))
    assert digests_of(offer.layout, offer.images(index))[0] == other["digest"]


def test_the_fallback_tag_of_referrers_is_not_an_image(offer: Offer) -> None:
    """It stands in the layout beside the image, and has the signatures of that."""
    image = offer.layout.image(ONE)
    empty = offer.layout.add(b"{}", "application/vnd.oci.empty.v1+json")
    signature = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "artifactType": "application/vnd.example.signature",
        "config": empty,
        "layers": [empty],
        "subject": image,
    }
    referrers = offer.layout.index(offer.layout.add(encode(signature), OCI_MANIFEST))
    fallback = named(referrers, image["digest"].replace(":", "-"))
    assert digests_of(offer.layout, offer.images(fallback, image)) == (image["digest"], None)


@pytest.mark.slow
def test_entries_without_names_are_chosen_by_position_or_platform(offer: Offer) -> None:
    one, two = (offer.layout.image(content) for content in (ONE, TWO))
    refused(offer.images(one, two), 409, one["digest"], two["digest"], ":@0", ":@1")
    assert digests_of(offer.layout, offer.again(":@1"))[0] == two["digest"]
    apart = on(one, "linux/amd64"), on(two, "linux/arm64")
    for platform, image in (("linux/amd64", one), ("linux/arm64", two)):
        child = offer.images(*apart, platform=platform)
        assert digests_of(offer.layout, child)[0] == image["digest"]


def test_entries_of_the_same_name_are_one_image_or_a_choice(offer: Offer) -> None:
    """Of the same digest they are one image; otherwise a 409 lists both."""
    one, two = (named(offer.layout.image(content), "same") for content in (ONE, TWO))
    assert digests_of(offer.layout, offer.images(one, one, tail=":same"))[0] == one["digest"]
    refused(offer.images(one, two, tail=":same"), 409, one["digest"], two["digest"])


def without_layers() -> list[Member]:
    """Docker 25's release candidates wrote an OCI manifest without layers (moby #47065)."""
    bare = saved(tags=IMAGE.tags)._replace(config=IMAGE.config)
    index = docker_graphdriver(bare)
    return [
        *(each for each in index if each.name.startswith("blobs") or each.name == "index.json"),
        *(each for each in skopeo(IMAGE) if each.name != "repositories"),
    ]


NULL = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": None}


@rows(
    "members",
    ("null", replaced(docker_graphdriver(IMAGE), "index.json", control("index.json", NULL))),
    ("no layers", without_layers()),
    (
        "no blob",
        replaced(
            docker_graphdriver(IMAGE),
            "index.json",
            next(each for each in docker_containerd(PAIR[0]) if each.name == "index.json"),
        ),
    ),
)
def test_manifest_json_counts_where_index_json_leads_nowhere(
    members: list[Member], offer: Offer
) -> None:
    assert_is(pull_from(offer.archive(members, transport="")), IMAGE)


def test_an_image_whose_siblings_are_not_in_the_archive_is_served(offer: Offer) -> None:
    """Containerd saves an index whole, and what it has of it."""
    members = without(docker_containerd(IMAGE), "manifest.json")
    pulled = pull_from(offer.archive(members, transport="oci-archive:"))
    assert pulled.content == (IMAGE.config, [gzipped(ONE), gzipped(TWO)])
    file = offer.path / "image.tar"
    child = offer._serve(f"oci-archive:{file}", "--platform=linux/s390x")
    error = refused(child, 404, "linux/amd64")
    assert error["detail"]["platforms"] == ["linux/amd64"]


ITEM = '{"Config":"c.json","RepoTags":null,"Layers":["a/layer.tar"]}'


@rows(
    "content, words",
    ("layers", f'[{ITEM[:-1]},"layers":[]}}]', "Layers"),
    ("twice", f'[{ITEM[:-1]},"Config":"d.json"}}]', "Config"),
    ("BOM", f"\ufeff[{ITEM}]", "manifest.json"),
    ("depth", "[" * 10_000 + "]" * 10_000, "manifest.json"),
)
def test_json_that_programs_read_differently_is_refused(
    content: str, words: str, offer: Offer
) -> None:
    """A name that comes twice, or once more in another case, a byte order mark, and any depth."""
    members = with_layers(Member("a/layer.tar", ONE))
    manifest = Member("manifest.json", content.encode())
    refused(offer.archive(replaced(members, "manifest.json", manifest)), 422, words)


@pytest.mark.slow
@rows(
    "name, change",
    ("index.json", "index.json", (b'"manifests"', b'"Manifests":[],"manifests"')),
    ("a config", "config", (b'"rootfs"', b'"Rootfs":{},"rootfs"')),
)
def test_ambiguous_json_is_refused_in_index_json_and_in_a_config(
    name: str, change: tuple[bytes, bytes], offer: Offer
) -> None:
    members = docker_graphdriver(IMAGE)
    if name == "config":
        members = skopeo(IMAGE)
        (name,) = (each.name for each in members if each.content == IMAGE.config)
    (member,) = (each for each in members if each.name == name)
    content = member.content.replace(*change)
    assert content != member.content
    transport = "oci-archive:" if name == "index.json" else "docker-archive:"
    changed = replaced(members, name, member._replace(content=content))
    refused(offer.archive(changed, transport=transport), 422, name)


@pytest.mark.slow
@rows(
    "document, status",
    ("a manifest", lambda layout: layout.document(layout.image(ONE)), 200),
    (
        "an index",
        lambda layout: layout.document(layout.index(on(layout.image(ONE), "linux/amd64"))),
        200,
    ),
    ("both", lambda layout: {**layout.document(layout.image(ONE)), "manifests": []}, 422),
    ("the first schema", lambda _: {"schemaVersion": 1, "fsLayers": [], "history": []}, 415),
)
def test_documents_without_a_media_type_are_told_by_their_fields(
    document: Callable[[Layout], Json], status: int, offer: Offer
) -> None:
    """In a `dir:`, where nothing else says it either."""
    content = document(offer.layout)
    content.pop("mediaType", None)
    path = offer.path / "dir"
    write_dir(path, offer.layout, offer.layout.image(ONE))
    (path / "manifest.json").write_bytes(encode(content))
    if "manifests" in content and status == 200:
        (entry,) = content["manifests"]
        name = entry["digest"].partition(":")[2] + ".manifest.json"
        (path / name).write_bytes(offer.layout.read(entry["digest"]))
    child = offer._serve(f"dir:{path}", AMD64)
    if status == 200:
        assert pull_from(child).layers == [ONE]
    else:
        refused(child, status, "manifest.json")


def test_a_signed_manifest_of_schema_1_is_refused(offer: Offer) -> None:
    document = {"schemaVersion": 1, "name": "x", "tag": "1", "fsLayers": [], "history": []}
    signed = offer.layout.add(encode({**document, "signatures": []}), SCHEMA1)
    refused(offer.images(signed), 415, "schema 1")


def test_the_first_of_several_windows_versions_is_chosen(offer: Offer) -> None:
    images = [
        on(offer.layout.image(version.encode(), platform="windows/amd64"), "windows/amd64")
        for version in ("10.0.17763", "10.0.20348")
    ]
    for image, version in zip(images, ("10.0.17763.1", "10.0.20348.1"), strict=True):
        image["platform"] |= {"os.version": version, "os.features": ["win32k"]}
    index = offer.layout.index(on(offer.layout.image(ONE), "linux/amd64"), *images)
    child = offer.images(index, platform="windows/amd64")
    assert digests_of(offer.layout, child)[0] == images[0]["digest"]


@rows(
    "there, wanted, chosen",
    ("arm/v7", "arm/v6 arm/v7 arm64", "arm/v7", "arm/v7"),
    ("arm64 is v8", "arm/v7 arm64/v8", "arm64", "arm64/v8"),
    ("no arm on arm64", "arm/v7 arm", "arm64", ""),
    ("no 386 on amd64", "386 arm64", "amd64", ""),
    ("the first of equals", "amd64 amd64", "amd64", "amd64"),
)
def test_the_image_for_the_platform_is_chosen_from_an_archive(
    there: str, wanted: str, chosen: str, offer: Offer
) -> None:
    """Annotations of a zstd variant do not count, and of equals the first is chosen."""
    images = [
        on(offer.layout.image(f"{n}: {each}".encode(), platform=f"linux/{each}"), f"linux/{each}")
        for n, each in enumerate(there.split())
    ]
    images[-1].setdefault("annotations", {})["io.github.containers.compression.zstd"] = "true"
    offer.layout.save(offer.layout.index(*images))
    write_oci_archive(offer.path / "image", offer.layout, plain)
    child = offer._serve(f"oci-archive:{offer.path}/image", f"--platform=linux/{wanted}")
    if chosen:
        expected = images[there.split().index(chosen)]["digest"]
        assert digests_of(offer.layout, child)[0] == expected
    else:
        error = refused(child, 404, *there.split())
        assert len(error["detail"]["platforms"]) == len(images)


@pytest.mark.slow
def test_hundreds_of_layers_are_served(offer: Offer) -> None:
    image = saved(*(f"layer {n}".encode() for n in range(600)))
    assert_is(pull_from(offer.archive(skopeo(image))), image)


@rows("size, status", ("just below the limit", 4 * MIB, 200), ("above", 4 * MIB + 1, 422))
def test_a_manifest_has_four_mebibytes_at_most(size: int, status: int, offer: Offer) -> None:
    document = offer.layout.document(offer.layout.image(ONE))
    document["annotations"] = {"filler": ""}
    document["annotations"]["filler"] = "x" * (size - len(encode(document)))
    child = offer.images(offer.layout.add(encode(document), OCI_MANIFEST))
    if status == 200:
        assert len(pull_from(child).raw) == size
    else:
        assert refused(child, status)["code"] == "SIZE_INVALID"


@pytest.mark.slow
def test_an_archive_answers_requests_of_every_kind(offer: Offer) -> None:
    child = offer.archive(skopeo(IMAGE))
    client = child.client
    reply = client.request("GET", "/manifest", "Expect: 100-continue", body=b"a body on GET")
    assert reply.status == 200
    absolute = client.get("http://localhost/config")
    assert (absolute.status, absolute.body) == (200, IMAGE.config)
    client.send(b"GET /config HTTP/1.0\r\n\r\n")  # which needs no Host, and ends the connection
    old = client.reply()
    assert (old.status, old.body) == (200, IMAGE.config)
    assert client.ending() == "end"
    assert child.wait() == 0


def test_a_body_that_is_too_large_is_refused(offer: Offer) -> None:
    child = offer.archive(skopeo(IMAGE))
    child.client.ask("GET", "/manifest", f"Content-Length: {65 << 10}")
    reply = child.client.reply()
    assert reply.status == 413
    assert child.finish() == 0
