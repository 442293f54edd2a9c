"""The manifest that is chosen from an index, and from the indexes in it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from support.images import (
    DOCKER_LIST,
    OCI_CONFIG,
    OCI_MANIFEST,
    Json,
    digest_of,
    on,
)
from support.images import encode as encoded
from support.sources import (
    MemorySource,
    Store,
    chosen,
    digest,
    failure_of,
    opened,
    several,
)
from support.streams import real_time, refused, virtual_time

from imgproxy.errors import (
    DeniedError,
    Failure,
    NotFoundError,
    UnavailableError,
)
from imgproxy.images.selection import MAX_DEPTH, MAX_INDEXES
from imgproxy.specs.oci.manifest import MAX_DOCUMENT_SIZE

if TYPE_CHECKING:
    from collections.abc import Callable


UNKNOWN = (404, "MANIFEST_UNKNOWN", False)
INVALID = (422, "MANIFEST_INVALID", False)
WRONG_SIZE = (422, "SIZE_INVALID", False)
WRONG_DIGEST = (422, "DIGEST_INVALID", False)


@pytest.fixture
def store() -> Store:
    return Store()


# --- choosing -----------------------------------------------------------------------------------


@pytest.mark.parametrize("docker", [True, False])
@virtual_time
async def test_the_platform_decides_in_an_index(
    store: Store,
    docker: bool,  # noqa: FBT001  (a parameter)
) -> None:
    entries = several(store, "linux/arm/v7", "linux/amd64", "linux/arm64", "windows/amd64")
    root = store.index(*entries.values(), docker=docker)
    for wanted, entry in entries.items():
        source = MemorySource(store, root)
        image = await opened(source, wanted)
        assert image.manifest.digest == digest(entry)
        assert image.index is not None
        assert image.index.digest == digest(root)
        assert source.asked == [root["digest"], entry["digest"]]


@virtual_time
async def test_of_equal_entries_the_first_is_chosen_across_indexes(store: Store) -> None:
    first, second, third = (on(store.image(bytes([n])), "linux/amd64") for n in range(3))
    inner = store.index(first)
    assert await chosen(MemorySource(store, store.index(inner, second, third))) == first["digest"]
    assert await chosen(MemorySource(store, store.index(second, inner))) == second["digest"]


@virtual_time
async def test_the_best_entry_is_chosen_wherever_it_is(store: Store) -> None:
    plain, better = (on(store.image(p.encode()), p) for p in ("linux/amd64", "linux/amd64/v3"))
    root = store.index(plain, store.index(better))
    assert await chosen(MemorySource(store, root), "linux/amd64/v3") == better["digest"]
    assert await chosen(MemorySource(store, root), "linux/amd64/v2") == plain["digest"]


@virtual_time
async def test_an_entry_without_a_platform_is_for_when_nothing_else_fits(store: Store) -> None:
    entries = several(store, "-", "linux/arm64")
    root = store.index(*entries.values())
    assert (
        await chosen(MemorySource(store, root), "linux/arm64") == entries["linux/arm64"]["digest"]
    )
    assert await chosen(MemorySource(store, root), "linux/s390x") == entries["-"]["digest"]


@virtual_time
async def test_an_entry_is_for_the_platform_of_the_index_around_it(store: Store) -> None:
    inner = {p: store.image(p.encode()) for p in ("linux/arm64", "linux/amd64")}
    root = store.index(*(on(store.index(entry), p) for p, entry in inner.items()))
    for wanted, entry in inner.items():
        source = MemorySource(store, root)
        assert await chosen(source, wanted) == entry["digest"]
        assert len(source.asked) == 3  # the index for the other platform is left alone


ATTESTATION = {"vnd.docker.reference.type": "attestation-manifest"}


@pytest.mark.parametrize(
    "mark",
    [
        lambda entry: on(entry, "unknown/unknown"),
        lambda entry: {**entry, "annotations": ATTESTATION},
        lambda entry: {**on(entry, "linux/amd64"), "annotations": ATTESTATION},
    ],
    ids=["by platform", "by annotation", "by annotation alone"],
)
@virtual_time
async def test_attestations_are_never_chosen(store: Store, mark: Callable[[Json], Json]) -> None:
    attestation, image = mark(store.image(b"attestation")), store.image(b"image")
    root = store.index(attestation, mark(store.index(image)), image)
    assert await chosen(MemorySource(store, root)) == image["digest"]
    failure = await failure_of(MemorySource(store, store.index(attestation)))
    assert refused(failure) == UNKNOWN
    assert failure.message.endswith("(there are: none)")


# --- what accompanies images ----------------------------------------------------------------------

EMPTY = "application/vnd.oci.empty.v1+json"
SPDX = "application/spdx+json"
COSIGN = "dev.cosignproject.cosign"


def annotated(entry: Json, **annotations: str) -> Json:
    return {**entry, "annotations": annotations}


def artifact(store: Store, **fields: object) -> Json:
    """Return an artifact whose descriptor does not say that it is one."""
    config = store.add(b"{}", EMPTY)
    document = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": config,
        "layers": [store.add(encoded(fields), "text/plain")],
        **fields,
    }
    return store.add(encoded(document), OCI_MANIFEST)


SAYING = {
    "a type": lambda entry: {**entry, "artifactType": SPDX},
    "cosign's signatures": lambda entry: annotated(entry, kind=f"{COSIGN}/sigs"),
    "cosign's attestations": lambda entry: annotated(entry, kind=f"{COSIGN}/atts"),
    "a type and the platform": lambda entry: on({**entry, "artifactType": SPDX}, "linux/amd64"),
}


@pytest.mark.parametrize("mark", SAYING.values(), ids=SAYING)
@pytest.mark.parametrize("platform", ["linux/amd64", ""])
@virtual_time
async def test_a_companion_that_says_so_is_not_even_fetched(
    store: Store, mark: Callable[[Json], Json], platform: str
) -> None:
    image = store.image(b"image")
    image = on(image, platform) if platform else image
    root = store.index(mark(artifact(store)), image, mark(artifact(store, more="x")))
    source = MemorySource(store, root)
    assert await chosen(source) == image["digest"]
    assert source.asked[:2] == [root["digest"], image["digest"]]


@virtual_time
async def test_an_image_may_state_the_type_of_its_config(store: Store) -> None:
    """go-containerregistry does, and cosign calls images so in its layouts."""
    for said in ({"artifactType": OCI_CONFIG}, {"annotations": {"kind": f"{COSIGN}/image"}}):
        image = on({**store.image(b"x"), **said}, "linux/amd64")
        root = store.index(image, on(store.image(b"y"), "linux/amd64"))
        assert await chosen(MemorySource(store, root)) == image["digest"]


TURNING_OUT = {
    "a type": {"artifactType": SPDX},
    "an empty config": {},
    "a type of config": {"config": {"mediaType": "application/vnd.cncf.helm.config.v1+json"}},
    "a subject": {"subject": True},
}


def turning_out(store: Store, case: str) -> Json:
    fields: Json = dict(TURNING_OUT[case])
    if case == "a type of config":
        fields["config"] = {**store.add(b"{}", EMPTY), **fields["config"]}
    if case == "a subject":
        return store.image(b"attached", subject=store.image(b"subject"))
    return artifact(store, **fields)


@pytest.mark.parametrize("case", TURNING_OUT)
@virtual_time
async def test_the_next_is_taken_if_the_best_turns_out_to_be_a_companion(
    store: Store, case: str
) -> None:
    other, image = turning_out(store, case), on(store.image(b"image"), "linux/amd64")
    root = store.index(on(other, "linux/amd64"), image, on(store.image(b"x"), "linux/amd64"))
    source = MemorySource(store, root)
    assert await chosen(source) == image["digest"]
    assert source.asked == [root["digest"], other["digest"], image["digest"]]


@pytest.mark.parametrize("case", TURNING_OUT)
@virtual_time
async def test_without_platforms_the_manifests_decide(store: Store, case: str) -> None:
    other, image = turning_out(store, case), store.image(b"image")
    for entries in ((other, image), (image, other)):
        assert await chosen(MemorySource(store, store.index(*entries))) == image["digest"]


@pytest.mark.parametrize("case", TURNING_OUT)
@virtual_time
async def test_where_there_are_no_images_artifacts_are_chosen(store: Store, case: str) -> None:
    other = turning_out(store, case)
    for entry in (other, {**other, "artifactType": SPDX}, on(other, "linux/amd64")):
        source = MemorySource(store, store.index(entry))
        assert await chosen(source) == other["digest"]


@virtual_time
async def test_an_artifact_for_the_platform_is_chosen_where_no_image_is(store: Store) -> None:
    other = artifact(store, artifactType="application/vnd.wasm.module")
    root = store.index(on(other, "linux/amd64"), on(store.image(b"x"), "linux/arm64"))
    assert await chosen(MemorySource(store, root)) == other["digest"]


@virtual_time
async def test_what_is_in_a_companion_is_one_too(store: Store) -> None:
    image = on(store.image(b"image"), "linux/amd64")
    inner = on(store.image(b"in an index of artifacts"), "linux/amd64")
    for index in (
        {**store.index(inner), "artifactType": SPDX},
        annotated(store.index(inner), kind=f"{COSIGN}/sigs"),
        store.index(inner, subject=image),
    ):
        assert await chosen(MemorySource(store, store.index(index, image))) == image["digest"]


@virtual_time
async def test_several_images_without_a_platform_are_a_choice(store: Store) -> None:
    images = [annotated(store.image(bytes([n])), x=f"\x1b{n}") for n in range(3)]
    sbom = {**artifact(store), "artifactType": SPDX}
    root = store.index(sbom, *images, artifact(store, more="x"), images[0])
    failure = await failure_of(MemorySource(store, root))
    assert refused(failure) == (409, "AMBIGUOUS", False)
    assert failure.message.isprintable()
    for entry in images:
        assert f"@{entry['digest']}" in failure.message
    assert failure.detail["choices"] == [
        {
            "position": f"@{n + 1}",
            "name": None,
            "names": [],
            "digest": entry["digest"],
            "kind": "image",
            "mediaType": OCI_MANIFEST,
            "artifactType": None,
            "platform": None,
            "annotations": {"x": str(n)},
            "size": entry["size"],
            "path": [root["digest"]],
        }
        for n, entry in enumerate(images)
    ]


@virtual_time
async def test_no_more_manifests_are_read_than_help(store: Store) -> None:
    entries = [artifact(store, n=str(n)) for n in range(100)]
    source = MemorySource(store, store.index(*entries))
    failure = await failure_of(source)
    assert refused(failure) == (409, "AMBIGUOUS", False)
    assert len(source.asked) == 1
    image = on(store.image(b"image"), "linux/amd64")
    root = store.index(*(on(entry, "linux/amd64") for entry in entries), image)
    source = MemorySource(store, root)
    assert await chosen(source) == entries[0]["digest"]
    assert len(source.asked) < 80


@virtual_time
async def test_the_only_image_among_companions_is_for_the_platform_of_its_config(
    store: Store,
) -> None:
    root = store.index(artifact(store), store.image(b"x", platform="linux/arm64"))
    failure = await failure_of(MemorySource(store, root))
    assert refused(failure) == UNKNOWN
    assert failure.detail["platforms"] == ["linux/arm64"]


@virtual_time
async def test_what_requires_features_is_for_when_nothing_else_fits(store: Store) -> None:
    plain = on(store.image(b"plain"), "linux/amd64")
    nydus = on(store.image(b"nydus"), "linux/amd64")
    nydus["platform"]["os.features"] = ["nydus.remoteimage.v1"]
    for entries in ((nydus, plain), (plain, nydus)):
        assert await chosen(MemorySource(store, store.index(*entries))) == plain["digest"]
    for entries in ((nydus,), (nydus, on(store.image(b"other"), "linux/arm64"))):
        assert await chosen(MemorySource(store, store.index(*entries))) == nydus["digest"]


@virtual_time
async def test_entries_of_other_types_are_never_chosen(store: Store) -> None:
    other = on(store.add(b"anything", "application/vnd.example+json"), "linux/amd64")
    untyped = on({**store.image(b"x"), "mediaType": None}, "linux/amd64")
    assert await chosen(MemorySource(store, store.index(other, untyped))) == untyped["digest"]


@virtual_time
async def test_the_available_platforms_are_listed_once(store: Store) -> None:
    entries = several(store, "linux/arm/v7", "linux/arm64", "-")
    del entries["-"]
    again = on(store.image(b"again"), "linux/arm64")
    odd = on(store.image(b"odd"), "li\x1bnux/\ns390x")
    failure = await failure_of(MemorySource(store, store.index(*entries.values(), again, odd)))
    assert refused(failure) == UNKNOWN
    assert failure.detail == {"platforms": ["linux/arm/v7", "linux/arm64", "li nux/ s390x"]}
    assert failure.message == (
        "memory:image has no manifest for linux/amd64"
        " (there are: linux/arm/v7, linux/arm64, li nux/ s390x)"
    )


def nested(store: Store, entry: Json, depth: int) -> Json:
    """Return an index of an index of … the entry."""
    for level in range(depth):
        entry = store.index(entry, annotations={"level": str(level)})
    return entry


@virtual_time
async def test_indexes_nest_to_a_limit(store: Store) -> None:
    image = store.image(b"x")
    assert await chosen(MemorySource(store, nested(store, image, MAX_DEPTH))) == image["digest"]
    failure = await failure_of(MemorySource(store, nested(store, image, MAX_DEPTH + 1)))
    assert refused(failure) == INVALID
    assert "more than 4 indexes in one another" in failure.message


@virtual_time
async def test_indexes_have_a_limit_in_number(store: Store) -> None:
    entries = [store.index(annotations={"n": str(n)}) for n in range(MAX_INDEXES)]
    image = store.image(b"x")
    source = MemorySource(store, store.index(*entries, image))
    assert await chosen(source) == image["digest"]
    more = store.index(annotations={"n": "more"})
    assert (
        refused(await failure_of(MemorySource(store, store.index(*entries, more, image))))
        == INVALID
    )


@virtual_time
async def test_missing_indexes_count_as_well(store: Store) -> None:
    entries = [{**store.index(), "digest": digest_of(bytes([n]))} for n in range(MAX_INDEXES + 9)]
    source = MemorySource(store, store.index(*entries, store.image(b"x")))
    assert refused(await failure_of(source)) == INVALID
    assert len(source.asked) <= MAX_INDEXES + 1


@virtual_time
async def test_an_index_that_is_named_often_is_fetched_once(store: Store) -> None:
    image = on(store.image(b"x"), "linux/amd64")
    inner = store.index(image)
    missing = {**store.index(), "digest": digest_of(b"missing")}
    source = MemorySource(store, store.index(inner, missing, inner, missing, store.index(inner)))
    assert await chosen(source) == image["digest"]
    assert len(source.asked) == len(set(source.asked)) == 5


@virtual_time
async def test_an_index_that_names_itself_is_refused(store: Store) -> None:
    """No document contains its own digest; but a source may return anything."""
    inner = store.index(store.image(b"x"))
    store.contents[inner["digest"]] = encoded({"manifests": [inner]})
    assert refused(await failure_of(MemorySource(store, store.index(inner)))) in (
        WRONG_DIGEST,
        WRONG_SIZE,
    )


@virtual_time
async def test_an_index_that_is_missing_matters_only_if_nothing_else_fits(store: Store) -> None:
    missing = {**store.index(), "digest": digest_of(b"missing")}
    image = on(store.image(b"x"), "linux/amd64")
    root = store.index(missing, image)
    assert await chosen(MemorySource(store, root)) == image["digest"]
    failure = await failure_of(MemorySource(store, root), "linux/arm64")
    assert refused(failure) == UNKNOWN
    assert f"{missing['digest']} is not there" in failure.message


@virtual_time
async def test_an_index_that_fails_does_not_count_as_missing(store: Store) -> None:
    inner = store.index(store.image(b"x"))
    source = MemorySource(store, store.index(inner, store.image(b"y")))
    source.failures[inner["digest"]] = UnavailableError("not now")
    assert refused(await failure_of(source)) == (503, "UNAVAILABLE", True)


@virtual_time
async def test_a_chosen_manifest_that_is_missing_is_unknown(store: Store) -> None:
    entries = several(store, "linux/amd64", "linux/arm64")
    del store.contents[entries["linux/amd64"]["digest"]]
    root = store.index(*entries.values())
    assert refused(await failure_of(MemorySource(store, root))) == UNKNOWN
    assert (
        await chosen(MemorySource(store, root), "linux/arm64") == entries["linux/arm64"]["digest"]
    )


@virtual_time
async def test_where_the_chosen_manifest_is_missing_the_others_are_listed(
    store: Store,
) -> None:
    """Stores save an index whole, and the manifests that they have."""
    names = ["linux/amd64", "linux/arm64", "linux/s390x", "linux/arm/v7", "-"]
    entries = several(store, *names)
    for name in ("linux/amd64", "linux/s390x"):
        del store.contents[entries[name]["digest"]]
    broken = on({**store.image(b"broken"), "size": 1}, "linux/386")
    again = on(entries["linux/arm64"], "linux/ppc64le")
    failure = await failure_of(MemorySource(store, store.index(*entries.values(), broken, again)))
    assert refused(failure) == UNKNOWN
    there = ["linux/arm64", "linux/arm/v7", "linux/ppc64le"]
    assert failure.detail == {"platforms": there}
    assert entries["linux/amd64"]["digest"] in failure.message
    assert failure.message.endswith(f"(there are manifests for: {', '.join(there)})")


@virtual_time
async def test_where_all_manifests_are_missing_the_message_says_so(store: Store) -> None:
    entries = several(store, "linux/amd64", "linux/arm64")
    for entry in entries.values():
        del store.contents[entry["digest"]]
    failure = await failure_of(MemorySource(store, store.index(*entries.values())))
    assert refused(failure) == UNKNOWN
    assert failure.detail == {"platforms": []}
    assert failure.message.endswith("(there are manifests for: nothing else)")


@virtual_time
async def test_the_code_and_detail_of_the_missing_one_stay(store: Store) -> None:
    entries = several(store, "linux/amd64", "linux/arm64")
    source = MemorySource(store, store.index(*entries.values()))
    wanted = entries["linux/amd64"]["digest"]
    source.failures[wanted] = NotFoundError("gone", code="NAME_UNKNOWN", endpoints=["x"])
    failure = await failure_of(source)
    assert refused(failure) == (404, "NAME_UNKNOWN", False)
    assert failure.detail == {"endpoints": ["x"], "platforms": ["linux/arm64"]}


@virtual_time
async def test_the_manifests_that_are_looked_for_are_limited(store: Store) -> None:
    entries = [on(store.image(bytes([n])), f"linux/arch{n}") for n in range(40)]
    missing = on({**store.image(b"x"), "digest": digest_of(b"missing")}, "linux/amd64")
    source = MemorySource(store, store.index(*entries, missing))
    failure = await failure_of(source)
    assert failure.detail == {"platforms": [f"linux/arch{n}" for n in range(16)]}
    assert len(source.asked) == 1 + 1 + 16


@pytest.mark.parametrize("error", [UnavailableError("not now"), DeniedError("not for you")])
@virtual_time
async def test_nothing_is_looked_for_where_a_manifest_is_not_missing_but_fails(
    store: Store, error: Failure
) -> None:
    entries = several(store, "linux/amd64", "linux/arm64")
    source = MemorySource(store, store.index(*entries.values()))
    source.failures[entries["linux/amd64"]["digest"]] = error
    assert await failure_of(source) is error
    assert len(source.asked) == 2


# --- an entry without a platform ----------------------------------------------------------------


@pytest.mark.parametrize("docker", [False, True])
@real_time
async def test_the_only_entry_is_for_the_platform_of_its_config(
    store: Store,
    docker: bool,  # noqa: FBT001  (a parameter)
) -> None:
    image = store.image(b"x", platform="linux/arm/v7", docker=docker)
    root = store.index(image, docker=docker)
    for fitting in ("linux/arm/v7", "linux/arm", "linux/arm/v8"):
        assert await chosen(MemorySource(store, root), fitting) == image["digest"]
    failure = await failure_of(MemorySource(store, root), "linux/amd64")
    assert refused(failure) == UNKNOWN
    assert failure.detail == {"platforms": ["linux/arm/v7"]}
    assert failure.message.endswith("no manifest for linux/amd64 (there are: linux/arm/v7)")


@real_time
async def test_the_platform_of_an_entry_is_not_compared_with_its_config(store: Store) -> None:
    image = on(store.image(b"x", platform="linux/arm64"), "linux/amd64")
    source = MemorySource(store, store.index(image))
    assert await chosen(source) == image["digest"]
    assert len(source.asked) == 2  # the config is not read


@real_time
async def test_the_config_of_one_of_several_entries_is_not_read(store: Store) -> None:
    image = store.image(b"x", platform="linux/arm64")
    source = MemorySource(store, store.index(image, on(store.image(b"y"), "linux/s390x")))
    assert await chosen(source) == image["digest"]
    assert source.asked[1:] == [image["digest"]]


@real_time
async def test_a_root_manifest_is_chosen_whatever_its_platform(store: Store) -> None:
    image = store.image(b"x", platform="windows/amd64")
    assert await chosen(MemorySource(store, image)) == image["digest"]


@pytest.mark.parametrize(
    ("content", "media_type"),
    [
        (b"{}", OCI_CONFIG),
        (b"no JSON", OCI_CONFIG),
        (b'{"os":"linux"}', OCI_CONFIG),
        (b'{"os":"linux","architecture":"arm64"}', "application/vnd.oci.empty.v1+json"),
    ],
    ids=["no platform", "unreadable", "half a platform", "an artifact"],
)
@real_time
async def test_an_entry_whose_config_has_no_platform_is_for_any(
    store: Store, content: bytes, media_type: str
) -> None:
    document = {"config": store.add(content, media_type), "layers": []}
    entry = store.add(encoded(document), OCI_MANIFEST)
    assert await chosen(MemorySource(store, store.index(entry))) == entry["digest"]


@real_time
async def test_a_config_that_is_read_is_verified_and_closed(store: Store) -> None:
    image = store.image(b"x")
    config = store.document(image)["config"]
    source = MemorySource(store, store.index(image))
    await opened(source)
    assert [reader.closed for reader in source.readers] == [1]
    source = MemorySource(store, store.index(image))
    source.steps[config["digest"]] = (store.read(config["digest"])[::-1], b"")
    assert refused(await failure_of(source)) == WRONG_DIGEST
    assert [reader.closed for reader in source.readers] == [1]


@real_time
async def test_a_config_beyond_the_limit_is_not_read(store: Store) -> None:
    config = {**store.add(b"{}", OCI_CONFIG), "size": MAX_DOCUMENT_SIZE + 1}
    entry = store.add(encoded({"config": config, "layers": []}), OCI_MANIFEST)
    source = MemorySource(store, store.index(entry))
    assert await chosen(source) == entry["digest"]
    assert config["digest"] not in source.asked


@pytest.mark.parametrize("claimed", ["", OCI_MANIFEST])
@virtual_time
async def test_an_entry_for_a_manifest_that_is_an_index_is_refused(
    store: Store, claimed: str
) -> None:
    inner = {**store.index(store.image(b"x")), "mediaType": claimed}
    failure = await failure_of(MemorySource(store, store.index(inner)))
    assert refused(failure) == INVALID
    assert inner["digest"] in failure.message


@virtual_time
async def test_an_entry_for_an_index_that_is_a_manifest_is_refused(store: Store) -> None:
    inner = {**store.image(b"x"), "mediaType": DOCKER_LIST}
    assert refused(await failure_of(MemorySource(store, store.index(inner)))) == INVALID


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        (lambda s, d: s.contents.update({d: s.contents[d] + b" "}), WRONG_SIZE),
        (lambda s, d: s.contents.update({d: s.contents[d][:-1] + b" "}), WRONG_DIGEST),
    ],
    ids=["longer", "other"],
)
@pytest.mark.parametrize("which", ["root", "inner", "chosen"])
@virtual_time
async def test_every_document_is_verified(
    store: Store, which: str, change: Callable[[Store, str], None], wanted: tuple[int, str, bool]
) -> None:
    image = store.image(b"x")
    inner = store.index(image)
    root = store.index(inner)
    change(store, {"root": root, "inner": inner, "chosen": image}[which]["digest"])
    assert refused(await failure_of(MemorySource(store, root))) == wanted
