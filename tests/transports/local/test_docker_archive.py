"""`docker-archive:`: the manifest that is made, which image a name fits, what is refused."""

from __future__ import annotations

import json
import tarfile
from typing import TYPE_CHECKING

import pytest
from support.archives import (
    COMPRESSIONS,
    DIALECTS,
    Member,
    Saved,
    control,
    docker_legacy,
    ggcr,
    gzipped,
    hex_of,
    layer,
    nix_layered,
    pack,
    plain,
    replaced,
    saved,
    skopeo,
    stored,
    symlink,
    zstd_compressed,
)
from support.images import OCI_CONFIG, OCI_INDEX, OCI_LAYER, OCI_MANIFEST, Json, digest_of
from support.opened import (
    AMBIGUOUS,
    BLOB_UNKNOWN,
    BROKEN,
    INVALID,
    TOO_LARGE,
    UNKNOWN,
    drained,
    refusing,
    served_from,
)
from support.sources import describe
from support.streams import real_time

from imgproxy.specs.oci import digest as digests
from imgproxy.specs.oci.manifest import MAX_DOCUMENT_SIZE, parse_index
from imgproxy.specs.oci.reference import DockerArchiveName, parse_reference
from imgproxy.transports.local.docker_archive import DockerArchive
from imgproxy.transports.local.tar_archive import Archive, open_archive

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from imgproxy.transports.readers import Content

LAYERS = (layer("first"), layer("second", 300_000))
IMAGE = saved(*LAYERS, tags=["example.com/os:1", "example.com/os:latest"])
OTHER = saved(layer("other"), tags=["nginx:latest"])
EMPTY_GZIP = bytes.fromhex("1f8b080000096e8800ff621805a360148c5800080000ffff2eafb5ef00040000")


async def opened(
    path: Path,
    members: Iterable[Member],
    name: str = "",
    *,
    compress: Callable[[bytes], bytes] = plain,
    is_lenient: bool = False,
) -> DockerArchive:
    """Write an archive, and return it as the source for `:NAME` or `:@N`."""
    write(path, compress(pack(members, tarfile.PAX_FORMAT)))
    position = int(name[1:]) if name.startswith("@") else None
    reference = parse_reference(name) if name and position is None else None
    wanted = DockerArchiveName(str(path), reference, position)
    return DockerArchive(wanted, await open_archive(str(path)), is_lenient=is_lenient)


def write(path: Path, content: bytes) -> None:
    path.write_bytes(content)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "saved"


def manifest_of(config: bytes, *layers: Json) -> bytes:
    """Return the manifest that is made of an image, in its one form."""
    described = {"mediaType": OCI_CONFIG, "digest": digest_of(config), "size": len(config)}
    document = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": described,
        "layers": list(layers),
    }
    return json.dumps(document, separators=(",", ":")).encode()


def described(content: bytes, suffix: str = "") -> Json:
    return {
        "mediaType": OCI_LAYER + suffix,
        "digest": digest_of(content),
        "size": len(content),
    }


def with_item(members: Iterable[Member], change: Callable[[Json], object]) -> list[Member]:
    """Return the members with a change to the first image of manifest.json."""
    members = list(members)
    items = json.loads(next(each.content for each in members if each.name == "manifest.json"))
    change(items[0])
    return replaced(members, "manifest.json", control("manifest.json", items))


# --- the manifest that is made ------------------------------------------------------------------


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("compression", ["plain", "gzip", "zstd"])
@real_time
async def test_an_image_is_the_same_from_every_writer(
    path: Path, dialect: str, compression: str
) -> None:
    compress = COMPRESSIONS[compression]
    source = await opened(path, DIALECTS[dialect](IMAGE), compress=compress)
    served = await served_from(source)
    layers = [stored(dialect, each) for each in LAYERS]
    suffix = "" if layers[0] == LAYERS[0] else "+gzip"
    assert served.config == IMAGE.config
    assert served.layers == layers
    assert served.manifest == manifest_of(
        IMAGE.config, *(described(each, suffix) for each in layers)
    )
    source.close()


@pytest.mark.parametrize("compression", COMPRESSIONS)
@real_time
async def test_the_digest_is_for_ever(path: Path, compression: str) -> None:
    """Parents keep the digest: if it changes, all of them pull the image again."""
    image = Saved(b'{"rootfs":{"diff_ids":["%s"]}}' % digest_of(b"layer").encode(), (b"layer",))
    source = await opened(path, nix_layered(image), compress=COMPRESSIONS[compression])
    document = await source.root()
    assert document.raw == (
        b'{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json",'
        b'"config":{"mediaType":"application/vnd.oci.image.config.v1+json",'
        b'"digest":"sha256:182f1e9393810fcdfb8050ab7501961f4896621e19453f35783f894a8abfe0a0",'
        b'"size":99},"layers":[{"mediaType":"application/vnd.oci.image.layer.v1.tar",'
        b'"digest":"sha256:dac1d7cfa95021764849fd102524e141488c5e3a90f861dbb5a12d9ac8584f85",'
        b'"size":5}]}'
    )
    assert digest_of(document.raw) == (
        "sha256:2f5b655456076b7975c75f69d1895d4c46ed303fedc70f4779568b682c1f78e3"
    )
    assert document.media_type == OCI_MANIFEST
    assert document.digests == ()
    source.close()


COMPRESSED_LAYERS = {
    "gzip": ("gzip", "+gzip"),
    "zstd": ("zstd", "+zstd"),
    "bzip2": ("bzip2", "+bzip2"),
    "xz": ("xz", "+xz"),
}


@pytest.mark.parametrize("outer", [plain, gzipped])
@pytest.mark.parametrize("case", COMPRESSED_LAYERS)
@real_time
async def test_a_layer_that_is_stored_compressed_is_named_by_what_is_stored(
    path: Path, case: str, outer: Callable[[bytes], bytes]
) -> None:
    compression, suffix = COMPRESSED_LAYERS[case]
    inner = COMPRESSIONS[compression](LAYERS[1])
    name = f"{hex_of(LAYERS[1])}.tar"
    members = replaced(skopeo(IMAGE), name, Member(name, inner))
    served = await served_from(await opened(path, members, compress=outer))
    assert served.described == [described(LAYERS[0]), described(inner, suffix)]
    assert served.layers == [LAYERS[0], inner]
    assert served.config == IMAGE.config


@real_time
async def test_what_is_compressed_twice_is_inflated_once(path: Path) -> None:
    inner = gzipped(gzipped(LAYERS[0]))
    image = saved(LAYERS[0])
    name = f"{hex_of(LAYERS[0])}.tar"
    members = replaced(skopeo(image), name, Member(name, inner))
    served = await served_from(await opened(path, members, compress=gzipped))
    assert served.layers == [inner]


ZERO_LAYERS = {
    "nothing": (b"", ""),
    "zeros": (bytes(1024), ""),
    "gzip-of-nothing": (EMPTY_GZIP, "+gzip"),
}


@pytest.mark.parametrize("compress", [plain, gzipped])
@pytest.mark.parametrize("case", ZERO_LAYERS)
@real_time
async def test_a_layer_without_content_is_served(
    path: Path, case: str, compress: Callable[[bytes], bytes]
) -> None:
    content, suffix = ZERO_LAYERS[case]
    served = await served_from(await opened(path, skopeo(saved(content)), compress=compress))
    assert served.layers == [content]
    assert served.described == [described(content, suffix)]
    assert [each["size"] for each in served.described] == [len(content)]


@pytest.mark.parametrize("dialect", DIALECTS)
@real_time
async def test_a_layer_that_comes_twice_is_listed_twice(path: Path, dialect: str) -> None:
    image = saved(LAYERS[0], LAYERS[1], LAYERS[0])
    served = await served_from(await opened(path, DIALECTS[dialect](image)))
    layers = [stored(dialect, each) for each in image.layers]
    assert served.layers == layers
    assert [each["digest"] for each in served.described] == [digest_of(each) for each in layers]


@pytest.mark.parametrize("place", ["start", "end"])
@real_time
async def test_manifest_json_lies_anywhere(path: Path, place: str) -> None:
    members = skopeo(IMAGE)
    first = [each for each in members if each.name == "manifest.json"]
    rest = replaced(members, "manifest.json")
    ordered = first + rest if place == "start" else rest + first
    served = await served_from(await opened(path, ordered, compress=gzipped))
    assert served.layers == list(LAYERS)


@real_time
async def test_many_layers_are_no_matter(path: Path) -> None:
    layers = tuple(b"layer %d" % n for n in range(501))
    served = await served_from(await opened(path, skopeo(saved(*layers))))
    assert served.layers == list(layers)


@pytest.mark.parametrize(
    "config",
    [b"{}", b'{"rootfs":null}', b'{"cache":[1,2]}', b'{"architecture":"x","os":"y"}'],
)
@real_time
async def test_a_config_that_names_no_layers_leaves_them_to_be_hashed(
    path: Path, config: bytes
) -> None:
    image = Saved(config, LAYERS)
    served = await served_from(await opened(path, skopeo(image)))
    assert served.manifest == manifest_of(config, *map(described, LAYERS))
    assert served.layers == list(LAYERS)


@real_time
async def test_an_image_without_layers_is_one(path: Path) -> None:
    for layers in ([], None):
        members = with_item(skopeo(saved()), lambda item, layers=layers: item.update(Layers=layers))
        served = await served_from(await opened(path, members))
        assert served.manifest == manifest_of(saved().config)


# --- what is hashed -----------------------------------------------------------------------------


@pytest.fixture
def opens(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the paths of the members that are going to be opened."""
    opens: list[str] = []
    open_member = Archive.open

    async def note(archive: Archive, path: str, name: str, *, sole: bool = False) -> Content:
        opens.append(path)
        return await open_member(archive, path, name, sole=sole)

    monkeypatch.setattr(Archive, "open", note)
    return opens


@pytest.mark.parametrize(
    "dialect", ["docker 24", "docker 25", "skopeo", "nix layered", "nix plain"]
)
@real_time
async def test_no_layer_is_read_that_the_config_names(
    path: Path, dialect: str, opens: list[str]
) -> None:
    source = await opened(path, DIALECTS[dialect](IMAGE))
    await source.root()
    config = source._made.images[0].manifest
    assert opens[0] == "manifest.json"
    assert len(opens) == 2
    assert digest_of(IMAGE.config).encode() in config


@real_time
async def test_no_layer_is_read_that_docker_names_by_its_digest(
    path: Path, opens: list[str]
) -> None:
    source = await opened(path, DIALECTS["docker with containerd"](IMAGE))
    await source.root()
    assert len(opens) == 2


@real_time
async def test_a_layer_that_nobody_names_is_hashed_once(path: Path, opens: list[str]) -> None:
    image = saved(LAYERS[1], LAYERS[1])
    source = await opened(path, ggcr(image, image))
    for _ in range(3):
        await source.root()
    name = f"{hex_of(gzipped(LAYERS[1]))}.tar.gz"
    assert opens.count(name) == 1


@real_time
async def test_a_layer_is_hashed_once_however_it_is_spelled(path: Path, opens: list[str]) -> None:
    name = f"{hex_of(gzipped(LAYERS[1]))}.tar.gz"
    image = saved(*[LAYERS[1]] * 4)
    spelled = [name, f"./{name}", "a/link", f"a/../{name}"]
    members = with_item(ggcr(image), lambda item: item.update(Layers=spelled))
    source = await opened(path, [*members, symlink("a/link", f"../{name}")])
    await source.root()
    assert len([each for each in opens if each in spelled]) == 1


@real_time
async def test_a_digest_in_a_name_is_not_believed(path: Path) -> None:
    content = gzipped(LAYERS[0])
    lie = hex_of(b"something else")
    members = with_item(
        [*skopeo(saved(LAYERS[0])), Member(f"blobs/sha256/{lie}", content)],
        lambda item: item.update(Layers=[f"blobs/sha256/{lie}"]),
    )
    source = await opened(path, members)
    with refusing((422, "DIGEST_INVALID"), lie, digest_of(content)):
        await served_from(source)


def named_by(algorithm: str, encoded: str, content: bytes) -> list[Member]:
    """Return an archive whose only layer is named by such a digest."""
    path = f"blobs/{algorithm}/{encoded}"
    members = with_item(skopeo(saved(LAYERS[0])), lambda item: item.update(Layers=[path]))
    return [*members, Member(path, content)]


@real_time
async def test_a_digest_in_a_name_is_of_any_algorithm(path: Path) -> None:
    content = gzipped(LAYERS[0])
    digest = digest_of(content, "sha512")
    served = await served_from(
        await opened(path, named_by("sha512", digest.partition(":")[2], content))
    )
    assert served.layers == [content]
    assert [each["digest"] for each in served.described] == [digest]


@real_time
async def test_a_digest_that_cannot_be_computed_is_no_obstacle_to_the_manifest(
    path: Path,
) -> None:
    source = await opened(path, named_by("blake3", "0" * 64, gzipped(LAYERS[0])))
    layers = json.loads((await source.root()).raw)["layers"]
    assert [each["digest"] for each in layers] == ["blake3:" + "0" * 64]
    with refusing((501, "UNSUPPORTED"), "blake3", "is not available"):
        await served_from(source)


@pytest.mark.parametrize("encoded", ["0" * 63, "abc"])
@real_time
async def test_a_name_that_is_no_digest_is_a_name(path: Path, encoded: str) -> None:
    content = gzipped(LAYERS[0])
    served = await served_from(await opened(path, named_by("sha256", encoded, content)))
    assert [each["digest"] for each in served.described] == [digest_of(content)]


@pytest.mark.parametrize("compress", [plain, zstd_compressed])
@real_time
async def test_a_layer_that_is_not_what_the_config_says_is_refused(
    path: Path, compress: Callable[[bytes], bytes]
) -> None:
    name = f"{hex_of(LAYERS[1])}.tar"
    other = LAYERS[1].replace(b"second", b"SECOND")
    members = replaced(skopeo(IMAGE), name, Member(name, other))
    source = await opened(path, members, compress=compress)
    with refusing((422, "DIGEST_INVALID"), digest_of(LAYERS[1]), digest_of(other)):
        await served_from(source)


# --- which image --------------------------------------------------------------------------------

UNTAGGED = saved(layer("nobody calls me"))


@pytest.mark.parametrize(
    "name",
    ["", "@0", "example.com/os:1", "example.com/os:latest", "example.com/os"],
    ids=["none", "position", "tag", "another-tag", "default-tag"],
)
@real_time
async def test_any_name_of_the_only_image_fits(path: Path, name: str) -> None:
    served = await served_from(await opened(path, skopeo(IMAGE), name))
    assert served.config == IMAGE.config


@pytest.mark.parametrize("name", ["", "@0"])
@pytest.mark.parametrize("tags", [None, []])
@real_time
async def test_an_image_needs_no_name(path: Path, name: str, tags: list[str] | None) -> None:
    members = with_item(skopeo(UNTAGGED), lambda item: item.update(RepoTags=tags))
    served = await served_from(await opened(path, members, name))
    assert served.config == UNTAGGED.config


@pytest.mark.parametrize(
    ("name", "image"),
    [
        ("@0", IMAGE),
        ("@1", OTHER),
        ("@2", UNTAGGED),
        ("nginx", OTHER),
        ("nginx:latest", OTHER),
        ("library/nginx", OTHER),
        ("docker.io/nginx", OTHER),
        ("docker.io/library/nginx:latest", OTHER),
        ("index.docker.io/library/nginx:latest", OTHER),
        ("example.com/os:1", IMAGE),
    ],
)
@pytest.mark.parametrize("dialect", DIALECTS)
@real_time
async def test_an_image_of_several_is_chosen(
    path: Path, dialect: str, name: str, image: Saved
) -> None:
    members = DIALECTS[dialect](IMAGE, OTHER, UNTAGGED)
    served = await served_from(await opened(path, members, name))
    assert served.config == image.config
    assert served.layers == [stored(dialect, each) for each in image.layers]


@real_time
async def test_a_tag_that_is_written_in_full_is_found_by_its_short_form(path: Path) -> None:
    image = saved(layer("x"), tags=["docker.io/library/nginx:latest"])
    served = await served_from(await opened(path, skopeo(OTHER._replace(tags=()), image), "nginx"))
    assert served.config == image.config


@real_time
async def test_several_images_and_no_name_are_ambiguous(path: Path) -> None:
    source = await opened(path, skopeo(IMAGE, OTHER, UNTAGGED))
    images = [
        await served_from(await opened(path, skopeo(IMAGE, OTHER, UNTAGGED), f"@{n}"))
        for n in range(3)
    ]
    made = [digest_of(each.manifest) for each in images]
    source = await opened(path, skopeo(IMAGE, OTHER, UNTAGGED))
    with refusing(AMBIGUOUS, f"docker-archive:{path} fits 3 images", *made) as raised:
        await source.root()
    for words in (":@0 (:example.com/os:1) (:example.com/os:latest)", ":@1 (:nginx:latest)", ":@2"):
        assert words in raised.value.message
    assert raised.value.detail["choices"] == [
        {
            "position": f"@{n}",
            "name": image.tags[0] if image.tags else None,
            "names": list(image.tags),
            "digest": made[n],
            "kind": "image",
            "mediaType": OCI_MANIFEST,
            "artifactType": None,
            "platform": "linux/amd64",
            "annotations": {},
            "size": len(images[n].manifest),
            "path": [],
        }
        for n, image in enumerate((IMAGE, OTHER, UNTAGGED))
    ]


ARM = saved(layer("for arm"), tags=["example.com/os:1"], platform="linux/arm/v7")


@pytest.mark.parametrize("name", [None, "example.com/os:1"])
@real_time
async def test_images_whose_configs_differ_by_platform_are_an_index(
    path: Path, name: str | None
) -> None:
    source = await opened(path, skopeo(IMAGE, ARM), name or "")
    root = await source.root()
    assert root.media_type == OCI_INDEX
    entries = parse_index(root.raw, "it").manifests
    assert [str(each.platform) for each in entries] == ["linux/amd64", "linux/arm/v7"]
    for n, (entry, image) in enumerate(zip(entries, (IMAGE, ARM), strict=True)):
        document = await source.document(entry)
        assert (document.size, len(document.raw)) == (entry.size, entry.size)
        alone = await opened(path, skopeo(IMAGE, ARM), f"@{n}")
        assert document.raw == (await alone.root()).raw
        assert (await served_from(alone)).config == image.config
    again = await opened(path, nix_layered(IMAGE, ARM))
    assert (await again.root()).raw == root.raw, "the same from every writer"


@real_time
async def test_an_image_for_the_platform_is_served_from_several(path: Path) -> None:
    served = await served_from(await opened(path, skopeo(ARM, IMAGE)))
    assert served.config == IMAGE.config


@pytest.mark.parametrize(
    "others",
    [
        [saved(layer("x"), platform="linux/amd64"), ARM],
        [ARM._replace(config=b'{"rootfs":{"diff_ids":["%s"]}}' % ARM.diff_ids[0].encode())],
        [ARM._replace(config=b"{")],
    ],
    ids=["the same platform", "no platform", "broken"],
)
@real_time
async def test_images_whose_configs_do_not_tell_them_apart_are_a_choice(
    path: Path, others: list[Saved]
) -> None:
    with refusing(AMBIGUOUS, ":@0", ":@1"):
        await (await opened(path, skopeo(IMAGE, *others))).root()


@real_time
async def test_one_image_that_is_listed_twice_is_one(path: Path) -> None:
    served = await served_from(await opened(path, skopeo(IMAGE, IMAGE)))
    assert served.config == IMAGE.config


@real_time
async def test_a_name_of_two_images_is_ambiguous(path: Path) -> None:
    double = OTHER._replace(tags=IMAGE.tags[:1])
    with refusing(AMBIGUOUS, "example.com/os:1 fits 2 images") as raised:
        await (await opened(path, skopeo(IMAGE, UNTAGGED, double), "example.com/os:1")).root()
    assert [each["position"] for each in raised.value.detail["choices"]] == ["@0", "@2"]


@pytest.mark.parametrize("name", ["nginx:1", "@2", "other/nginx", "example.com/os:2"])
@real_time
async def test_an_image_that_is_not_there_is_answered_with_those_that_are(
    path: Path, name: str
) -> None:
    with refusing(UNKNOWN, "no such image in the archive", ":@0", "nginx:latest") as raised:
        await (await opened(path, skopeo(IMAGE, OTHER), name)).root()
    assert [each["position"] for each in raised.value.detail["choices"]] == ["@0", "@1"]


@real_time
async def test_an_image_that_is_broken_is_offered_without_a_digest(path: Path) -> None:
    broken = saved(layer("gone"))
    members = replaced(skopeo(IMAGE, broken), f"{hex_of(broken.config)}.json")
    with refusing(AMBIGUOUS) as raised:
        await (await opened(path, members)).root()
    assert [bool(each["digest"]) for each in raised.value.detail["choices"]] == [True, False]


@real_time
async def test_names_that_are_none_are_no_error(path: Path) -> None:
    image = IMAGE._replace(tags=("<none>:<none>", "\x1b[31m", "UPPER"))
    source = await opened(path, nix_layered(image, OTHER), "nginx")
    assert (await served_from(source)).config == OTHER.config
    with refusing(AMBIGUOUS, "(:<none>:<none>)", "(:[31m)"):
        await (await opened(path, nix_layered(image, OTHER))).root()


@real_time
async def test_what_stands_in_for_a_registry_need_not_be_called_so(path: Path) -> None:
    """Nix uses a hash as the tag, and a different one in the name of the file."""
    source = await opened(path, skopeo(IMAGE), "example.org/any", is_lenient=True)
    assert (await served_from(source)).config == IMAGE.config
    source = await opened(path, skopeo(IMAGE, OTHER), "nginx", is_lenient=True)
    assert (await served_from(source)).config == OTHER.config
    source = await opened(path, skopeo(IMAGE, OTHER), "example.org/any", is_lenient=True)
    with refusing(AMBIGUOUS, "example.org/any:latest fits 2 images"):
        await source.root()


# --- by digest ----------------------------------------------------------------------------------


@real_time
async def test_an_image_is_found_by_the_digest_that_is_made(path: Path) -> None:
    for dialect in (skopeo, ggcr):
        wanted = await (await opened(path, dialect(IMAGE, OTHER), "@1")).root()
        source = await opened(path, dialect(IMAGE, OTHER))
        for algorithm in ("sha256", "sha512"):
            found = await source.find(digests.compute(wanted.raw, algorithm))
            assert found.raw == wanted.raw


@real_time
async def test_the_only_image_is_given_as_what_was_wanted(path: Path) -> None:
    source = await opened(path, skopeo(IMAGE))
    wanted = digests.compute(b"another")
    found = await source.find(wanted)
    assert found.digests == (wanted,)  # so that it does not verify


@real_time
async def test_none_of_several_has_the_digest(path: Path) -> None:
    source = await opened(path, skopeo(IMAGE, OTHER))
    made = [
        digest_of((await (await opened(path, skopeo(IMAGE, OTHER), f"@{n}")).root()).raw)
        for n in range(2)
    ]
    source = await opened(path, skopeo(IMAGE, OTHER))
    wanted = digests.compute(b"another")
    words = f"none of its images has the digest {wanted}"
    with refusing((422, "DIGEST_INVALID"), words, *made) as raised:
        await source.find(wanted)
    assert [each["digest"] for each in raised.value.detail["choices"]] == made


@real_time
async def test_a_broken_image_does_not_hide_the_others(path: Path) -> None:
    wanted = await (await opened(path, skopeo(IMAGE, OTHER), "@1")).root()
    members = replaced(skopeo(IMAGE, OTHER), f"{hex_of(IMAGE.layers[0])}.tar")
    found = await (await opened(path, members)).find(digests.compute(wanted.raw))
    assert found.raw == wanted.raw


# --- layers that lie elsewhere ------------------------------------------------------------------

URLS = ["https://example.com/layer", "https://example.org/layer"]
FOREIGN = {
    "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip": "+gzip",
    "application/vnd.docker.image.rootfs.foreign.diff.tar": "",
    "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd": "+zstd",
}
NONDISTRIBUTABLE = "application/vnd.oci.image.layer.nondistributable.v1.tar"


def foreign(media_type: str, **fields: object) -> list[Member]:
    """Return an archive that describes its first layer but does not contain it."""
    source = {"mediaType": media_type, "digest": digest_of(b"gzip"), "size": 4, **fields}
    members = with_item(
        skopeo(IMAGE),
        lambda item: item.update(LayerSources={digest_of(LAYERS[0]): source}),
    )
    return replaced(members, f"{hex_of(LAYERS[0])}.tar")


@pytest.mark.parametrize("media_type", FOREIGN)
@real_time
async def test_a_layer_that_lies_elsewhere_is_described_as_such(
    path: Path, media_type: str
) -> None:
    source = await opened(path, foreign(media_type, urls=URLS))
    manifest = json.loads((await source.root()).raw)
    wanted = {
        "mediaType": NONDISTRIBUTABLE + FOREIGN[media_type],
        "digest": digest_of(b"gzip"),
        "size": 4,
        "urls": URLS,
    }
    assert manifest["layers"] == [wanted, described(LAYERS[1])]
    with refusing(BLOB_UNKNOWN, f"blob {wanted['digest']} is not there"):
        await source.blob(describe(wanted))


@real_time
async def test_a_layer_that_is_here_is_not_sought_elsewhere(path: Path) -> None:
    members = [*foreign(next(iter(FOREIGN)), urls=URLS), *skopeo(saved(LAYERS[0]))[:1]]
    served = await served_from(await opened(path, members))
    assert served.layers == list(LAYERS)
    assert "urls" not in served.described[0]


@pytest.mark.parametrize("fields", [{}, {"urls": []}])
@real_time
async def test_a_layer_that_is_nowhere_is_refused(path: Path, fields: Json) -> None:
    source = await opened(path, foreign(next(iter(FOREIGN)), **fields))
    name = f"{hex_of(LAYERS[0])}.tar"
    with refusing(INVALID, f"{path}: {name} is not there, and manifest.json names it as a layer"):
        await source.root()


# --- what is refused ----------------------------------------------------------------------------


def manifest_json(content: bytes) -> list[Member]:
    return replaced(skopeo(IMAGE), "manifest.json", Member("manifest.json", content))


def item(**fields: object) -> list[Member]:
    return with_item(skopeo(IMAGE), lambda item: item.update(fields))


def config(content: bytes) -> list[Member]:
    name = f"{hex_of(IMAGE.config)}.json"
    return replaced(skopeo(IMAGE), name, Member(name, content))


DIFF_IDS = [digest_of(each) for each in LAYERS]
REFUSED: dict[str, tuple[list[Member], tuple[int, str], str]] = {
    "not JSON": (manifest_json(b"{"), INVALID, "manifest.json: not JSON"),
    "no array": (manifest_json(b"{}"), INVALID, "expected an array"),
    "null": (manifest_json(b"null"), UNKNOWN, "choose one: none"),
    "no images": (manifest_json(b"[]"), UNKNOWN, "choose one: none"),
    "an image that is none": (manifest_json(b"[1]"), INVALID, "images[0]: expected an object"),
    "bom": (manifest_json(b"\xef\xbb\xbf[]"), INVALID, "manifest.json"),
    "nan": (manifest_json(b"[NaN]"), INVALID, "manifest.json"),
    "depth": (manifest_json(b"[" * 10_000), INVALID, "manifest.json"),
    "twice": (
        manifest_json(b'[{"Config":"a","Config":"b","Layers":[]}]'),
        INVALID,
        "Config",
    ),
    "lookalike": (item(layers=["evil"]), INVALID, "ambiguous, there in two spellings"),
    "lookalike-config": (item(CONFIG="evil"), INVALID, "ambiguous"),
    "no config": (item(Config=None), INVALID, "Config"),
    "layers that are none": (item(Layers="x"), INVALID, "Layers: expected an array"),
    "a layer that is none": (item(Layers=[1]), INVALID, "Layers[0]: expected"),
    "tags that are none": (item(RepoTags="x"), INVALID, "RepoTags: expected an array"),
    "a source that is none": (item(LayerSources={"x": {"size": 1}}), INVALID, "LayerSources"),
    "a layer that is missing": (
        item(Layers=["gone", "gone"]),
        INVALID,
        "gone is not there, and manifest.json names it as a layer",
    ),
    "a layer that is a directory": (
        [*item(Layers=["etc", "etc"]), Member("etc", kind=b"5")],
        BROKEN,
        "etc is not a file",
    ),
    "config-outside": (item(Config="../../etc/passwd"), BROKEN, "leads out of the archive"),
    "layer-outside": (item(Layers=["../x", "y"]), BROKEN, "leads out of the archive"),
    "layer-absolute": (
        [*item(Layers=["l", "l"]), symlink("l", "/etc/passwd")],
        BROKEN,
        "leads out of the archive",
    ),
    "config-twice": (
        [*skopeo(IMAGE), Member(f"{hex_of(IMAGE.config)}.json", b"{}")],
        BROKEN,
        "is in the archive 2 times",
    ),
    "sparse-layer": (
        [*item(Layers=["l", "l"]), Member("l", b"x", kind=b"S")],
        BROKEN,
        "of the kind: sparse",
    ),
    "more-layers": (
        item(Layers=[f"{hex_of(LAYERS[0])}.tar"] * 3),
        INVALID,
        "names 2 layers, and manifest.json 3",
    ),
    "fewer-layers": (item(Layers=[]), INVALID, "names 2 layers, and manifest.json 0"),
    "no-diff-ids": (config(b'{"rootfs":{}}'), INVALID, "names 0 layers, and manifest.json 2"),
    "a config that is no JSON": (config(b"x"), INVALID, "config"),
    "a config that is no object": (config(b"[]"), INVALID, "config"),
    "a diff_id that is none": (
        config(json.dumps({"rootfs": {"diff_ids": ["x", "y"]}}).encode()),
        INVALID,
        "is not a digest",
    ),
    "a-diff_id-in-upper-case": (
        config(json.dumps({"rootfs": {"diff_ids": [each.upper() for each in DIFF_IDS]}}).encode()),
        INVALID,
        "",
    ),
    "config-lookalike": (
        config(json.dumps({"RootFS": {}, "rootfs": {"diff_ids": DIFF_IDS}}).encode()),
        INVALID,
        "ambiguous",
    ),
    "diff-ids-lookalike": (
        config(json.dumps({"rootfs": {"diff_ids": DIFF_IDS, "Diff_Ids": []}}).encode()),
        INVALID,
        "ambiguous",
    ),
    "huge-manifest.json": (
        manifest_json(b" " * (MAX_DOCUMENT_SIZE + 1)),
        TOO_LARGE,
        "more than the limit",
    ),
    "huge-config": (
        config(b" " * (MAX_DOCUMENT_SIZE + 1)),
        TOO_LARGE,
        "more than the limit",
    ),
}


@pytest.mark.parametrize("compress", [plain, gzipped])
@pytest.mark.parametrize("case", REFUSED)
@real_time
async def test_what_contradicts_itself_is_refused(
    path: Path, case: str, compress: Callable[[bytes], bytes]
) -> None:
    members, wanted, words = REFUSED[case]
    source = await opened(path, members, compress=compress)
    with refusing(wanted, str(path), words):
        await source.root()
    source.close()


@real_time
async def test_a_config_that_is_missing_is_refused(path: Path) -> None:
    name = f"{hex_of(IMAGE.config)}.json"
    source = await opened(path, replaced(skopeo(IMAGE), name))
    with refusing(INVALID, f"{name} is not there, and manifest.json names it"):
        await source.root()


# --- blobs and documents ------------------------------------------------------------------------


@real_time
async def test_only_what_an_image_has_is_a_blob(path: Path) -> None:
    source = await opened(path, docker_legacy(IMAGE, OTHER), "@0")
    await source.root()
    for content in (*LAYERS, IMAGE.config):
        reader = await source.blob(describe(described(content)))
        assert reader.size == len(content)
        assert digest_of(content) in reader.name
        assert await drained(reader) == content
    for content in (OTHER.config, b"nothing"):
        with refusing(BLOB_UNKNOWN, f"blob {digest_of(content)} is not there"):
            await source.blob(describe(described(content)))
    source.close()


@real_time
async def test_there_is_no_manifest_but_the_one_that_is_made(path: Path) -> None:
    source = await opened(path, skopeo(IMAGE))
    made = describe(described((await source.root()).raw))
    assert (await source.document(made)).digests == (made.digest,)
    with refusing(UNKNOWN, f"manifest {digest_of(b'nothing')} is not there"):
        await source.document(describe(described(b"nothing")))


@real_time
async def test_a_name_says_where_it_is_from(path: Path) -> None:
    source = await opened(path, skopeo(IMAGE), "example.com/os")
    assert source.name == f"docker-archive:{path}:example.com/os:latest"
    assert source.identity == ("docker-archive", [], None)
    assert (await source.root()).name == f"{source.name}: image @0"
