"""The manifest that is chosen by its type and annotations, and which requests that takes."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

import pytest
from support.artifacts import (
    EMPTY,
    FLUX,
    HELM,
    ROCKET,
    SPDX,
    TIMONI,
    VERSION,
    WASM,
    artifact,
    attestation,
    cosign,
    flux,
    helm,
    oras,
    said,
    sbom,
    timoni,
    wasm,
)
from support.images import OCI_CONFIG, Json, digest_of, on
from support.parent import ROOT
from support.sources import MemorySource, Store, accept_anything, at, never
from support.streams import refused, virtual_time

from imgproxy.cli import runtime
from imgproxy.cli.options import parse
from imgproxy.config import policy
from imgproxy.errors import AmbiguousError, DeniedError, Failure, UnavailableError
from imgproxy.images.image import Image
from imgproxy.images.selection import Wanted
from imgproxy.specs.oci import platform as platforms
from imgproxy.specs.oci.manifest_selection import ManifestConditions, parse_annotation

if TYPE_CHECKING:
    from collections.abc import Callable

UNKNOWN = (404, "MANIFEST_UNKNOWN", False)
AMBIGUOUS = (409, "AMBIGUOUS", False)
INVALID = (422, "MANIFEST_INVALID", False)


@pytest.fixture
def store() -> Store:
    return Store()


def image_of(
    source: MemorySource, artifact_type: str = "", *annotations: str, platform: str = "linux/amd64"
) -> Image:
    conditions = ManifestConditions(artifact_type, tuple(map(parse_annotation, annotations)))
    return Image(
        at(source),
        accept_anything,
        Wanted(platforms.parse(platform), conditions if artifact_type or annotations else None),
        never,
    )


async def chosen(
    source: MemorySource, artifact_type: str = "", *annotations: str, platform: str = "linux/amd64"
) -> str:
    image = image_of(source, artifact_type, *annotations, platform=platform)
    return str((await image.open()).manifest.digest)


async def failure_of(
    source: MemorySource, artifact_type: str = "", *annotations: str, platform: str = "linux/amd64"
) -> Failure:
    with pytest.raises(Failure) as raised:
        await chosen(source, artifact_type, *annotations, platform=platform)
    assert raised.value.message.isprintable()
    return raised.value


class Shop:
    """An index with an image for two platforms, what accompanies it, and artifacts, all silent."""

    def __init__(self, store: Store) -> None:
        amd64, arm64 = (
            on(store.image(name.encode(), platform=name), name)
            for name in ("linux/amd64", "linux/arm64")
        )
        self.entries = {
            "amd64": amd64,
            "attestation": attestation(store, amd64),
            "arm64": arm64,
            "sbom": sbom(store, amd64),
            "signature": said(cosign(store), kind="dev.cosignproject.cosign/sigs"),
            "helm": helm(store),
            "timoni": timoni(store),
            "flux": flux(store),
            "wasm": wasm(store),
            "oras": oras(store),
        }
        self.index = store.index(*self.entries.values())
        self.nested = store.index(store.index(store.index(self.index, annotations={"n": "1"})))


WANTED = [
    ("amd64", "image", ()),
    ("amd64", OCI_CONFIG, ()),
    ("sbom", SPDX, ()),
    ("helm", HELM, ()),
    ("timoni", TIMONI, ()),
    ("flux", FLUX, ()),
    ("oras", ROCKET, ()),
    ("oras", "", ("org.acme.stage",)),
    ("oras", "", ("org.acme.stage=first",)),
    ("oras", ROCKET, ("org.acme.stage=first",)),
    ("helm", "", (f"{VERSION}=1.0.0",)),
    ("timoni", "", (f"{VERSION}=2.0.0",)),
    ("signature", "", ("kind=dev.cosignproject.cosign/sigs",)),
    ("attestation", "", ("vnd.docker.reference.type=attestation-manifest",)),
]


@pytest.mark.parametrize("where", ["index", "nested"])
@pytest.mark.parametrize(("name", "artifact_type", "annotations"), WANTED)
@virtual_time
async def test_a_manifest_is_found_by_what_it_is(
    store: Store, where: str, name: str, artifact_type: str, annotations: tuple[str, ...]
) -> None:
    shop = Shop(store)
    if artifact_type == OCI_CONFIG:
        artifact_type = "image"
    root: Json = getattr(shop, where)
    wanted = shop.entries[name]["digest"]
    assert await chosen(MemorySource(store, root), artifact_type, *annotations) == wanted


@virtual_time
async def test_the_platform_comes_after_the_conditions(store: Store) -> None:
    shop = Shop(store)
    source = MemorySource(store, shop.index)
    assert await chosen(source, WASM, platform="wasip1/wasm") == shop.entries["wasm"]["digest"]
    arm64 = shop.entries["arm64"]["digest"]
    assert await chosen(source, "image", platform="linux/arm64") == arm64
    failure = await failure_of(source, WASM)
    assert refused(failure) == UNKNOWN
    charts = [said(on(helm(store, name), name), HELM) for name in ("linux/amd64", "linux/arm64")]
    root = store.index(*charts, on(store.image(b"x"), "linux/arm64"))
    for chart in charts:
        platform = "/".join([chart["platform"]["os"], chart["platform"]["architecture"]])
        assert await chosen(MemorySource(store, root), HELM, platform=platform) == chart["digest"]


def guide() -> list[list[str]]:
    """Return the table of artifacts in the guide, without the row whose type is the user's own."""
    text = (ROOT / "GUIDE.md").read_text().partition("## Artifacts")[2].partition("\n```")[0]
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line[:2] == "| "]
    return [row for row in rows[1:] if "TYPE" not in row[1]]


@pytest.mark.parametrize("row", guide(), ids=lambda row: str(row[0]))
@virtual_time
async def test_what_the_guide_says_chooses_what_it_says(store: Store, row: list[str]) -> None:
    shop = Shop(store)
    words = {"Helm": "helm", "Timoni": "timoni", "Flux": "flux", "WebAssembly": "wasm"}
    (wanted,) = [name for word, name in words.items() if word in row[0]] or ["amd64"]
    typed = " ".join(cell.strip("`") for cell in row[1:]).strip(" |")
    options = parse(["--platform=linux/amd64", *shlex.split(typed), "oci:x"])
    source = MemorySource(store, shop.nested)
    opened = await Image(at(source), accept_anything, runtime.wanted(options), never).open()
    assert str(opened.manifest.digest) == shop.entries[wanted]["digest"]
    layers = opened.layers(options.layer_specs)
    assert len(layers) == 1
    if wanted == "timoni":
        assert layers[0].index == 1


# --- requests ---------------------------------------------------------------------------------


@virtual_time
async def test_nothing_is_fetched_where_descriptors_say_it(store: Store) -> None:
    entries = [said(helm(store, str(n)), HELM, n=str(n)) for n in range(9)]
    root = store.index(on(store.image(b"x"), "linux/arm64"), *entries)
    for conditions in ((HELM, "n=5"), ("", "n=5")):
        source = MemorySource(store, root)
        assert await chosen(source, *conditions) == entries[5]["digest"]
        assert source.asked == [root["digest"], entries[5]["digest"]]


@virtual_time
async def test_manifests_are_fetched_where_descriptors_are_silent(store: Store) -> None:
    entries = [helm(store, str(n)) for n in range(4)]
    source = MemorySource(store, store.index(said(oras(store), ROCKET), *entries))
    assert await chosen(source, HELM, f"{VERSION}=2") == entries[2]["digest"]
    assert source.asked[1:] == [each["digest"] for each in entries]


@virtual_time
async def test_an_image_takes_as_few_requests_with_its_condition_as_without(store: Store) -> None:
    shop = Shop(store)
    for artifact_type in ("", "image"):
        source = MemorySource(store, shop.index)
        await chosen(source, artifact_type)
        assert source.asked == [shop.index["digest"], shop.entries["amd64"]["digest"]]


@virtual_time
async def test_no_more_than_64_manifests_are_fetched_to_decide(store: Store) -> None:
    entries = [artifact(store, annotations={"n": str(n)}) for n in range(65)]
    source = MemorySource(store, store.index(*entries))
    failure = await failure_of(source, "", "n=64")
    assert refused(failure) == AMBIGUOUS
    assert failure.message.startswith(
        "memory:image may fit 65 manifests with --annotation n=64, and no more than 64 are fetched"
        " to tell; choose one by --artifact-type, --annotation or its digest: @sha256:"
    )
    assert failure.message.endswith(" and 55 more")
    assert len(failure.detail["choices"]) == 65
    assert len(source.asked) == 1
    source = MemorySource(store, store.index(*entries[1:]))
    assert await chosen(source, "", "n=64") == entries[64]["digest"]
    assert len(source.asked) == 65
    source = MemorySource(store, store.index(*(on(each, "linux/amd64") for each in entries)))
    failure = await failure_of(source, "", "n=64")
    assert refused(failure) == AMBIGUOUS
    assert "may fit 65 manifests" in failure.message
    assert len(failure.detail["choices"]) == 65
    assert len(source.asked) == 65


@virtual_time
async def test_what_is_silent_and_missing_is_passed_over(store: Store) -> None:
    entries = [helm(store, str(n)) for n in range(3)]
    del store.contents[entries[0]["digest"]]
    root = store.index(*entries)
    source = MemorySource(store, root)
    assert await chosen(source, "", f"{VERSION}=1") == entries[1]["digest"]
    assert len(source.asked) == 1 + 3
    failure = await failure_of(MemorySource(store, root), "", f"{VERSION}=0")
    assert refused(failure) == UNKNOWN
    assert entries[0]["digest"] in failure.message


@pytest.mark.parametrize("platform", ["", "linux/amd64"])
@virtual_time
async def test_what_fits_and_is_missing_is_a_failure(store: Store, platform: str) -> None:
    chart = said(helm(store), HELM)
    chart = on(chart, platform) if platform else chart
    del store.contents[chart["digest"]]
    failure = await failure_of(MemorySource(store, store.index(chart, oras(store))), HELM)
    assert refused(failure) == UNKNOWN
    assert chart["digest"] in failure.message


@virtual_time
async def test_what_fails_while_it_is_looked_into_fails_the_choice(store: Store) -> None:
    entries = [helm(store, str(n)) for n in range(3)]
    source = MemorySource(store, store.index(*entries))
    source.failures[entries[0]["digest"]] = UnavailableError("not now")
    assert refused(await failure_of(source, HELM)) == (503, "UNAVAILABLE", True)


# --- nothing, and too much --------------------------------------------------------------------


@virtual_time
async def test_where_nothing_fits_what_is_there_is_listed(store: Store) -> None:
    shop = Shop(store)
    failure = await failure_of(MemorySource(store, shop.index), "a/b")
    assert refused(failure) == UNKNOWN
    assert failure.message.startswith(
        "memory:image has no manifest with --artifact-type a/b for linux/amd64 (there are: @sha256:"
    )
    found = {each["digest"]: each["artifactType"] for each in failure.detail["choices"]}
    assert found == {
        shop.entries[name]["digest"]: wanted
        for name, wanted in {
            "amd64": None,
            "attestation": None,
            "arm64": None,
            "sbom": SPDX,
            "signature": None,
            "helm": HELM,
            "timoni": TIMONI,
            "flux": FLUX,
            "wasm": None,
            "oras": ROCKET,
        }.items()
    }
    assert failure.detail["platforms"] == ["linux/amd64", "linux/arm64", "wasip1/wasm"]


@virtual_time
async def test_a_manifest_that_no_index_names_must_fit_as_well(store: Store) -> None:
    chart = helm(store)
    assert await chosen(MemorySource(store, chart), HELM) == chart["digest"]
    for conditions in (("image",), ("", "x"), (SPDX,)):
        failure = await failure_of(MemorySource(store, chart), *conditions)
        assert refused(failure) == UNKNOWN
        assert failure.detail["choices"][0]["artifactType"] == HELM
        assert failure.message == (
            f"memory:image has no manifest with"
            f" {ManifestConditions(conditions[0], tuple(map(parse_annotation, conditions[1:])))}"
            f" (there are: @{chart['digest']} ({HELM}))"
        )


@virtual_time
async def test_an_ambiguous_choice_lists_the_digests(store: Store) -> None:
    charts = [said(helm(store, str(n)), "", n=str(n)) for n in range(12)]
    inner = store.index(*charts)
    root = store.index(oras(store), store.index(inner), charts[0])
    failure = await failure_of(MemorySource(store, root), HELM)
    assert refused(failure) == AMBIGUOUS
    assert failure.message == (
        f"memory:image fits 12 manifests with --artifact-type {HELM} without a platform; choose one"
        " by --artifact-type, --annotation or its digest: "
        + ", ".join(f"@{each['digest']} ({HELM})" for each in charts[:10])
        + " and 2 more"
    )
    outer = store.document(root)["manifests"][1]
    assert failure.detail["choices"] == [
        {
            "position": f"@{n}",
            "name": None,
            "names": [],
            "digest": each["digest"],
            "kind": "artifact",
            "mediaType": each["mediaType"],
            "artifactType": HELM,
            "platform": None,
            "annotations": {"n": str(n)},
            "size": each["size"],
            "path": [root["digest"], outer["digest"], inner["digest"]],
        }
        for n, each in enumerate(charts)
    ]


@pytest.mark.parametrize("artifact_type", ["", HELM])
@virtual_time
async def test_equal_entries_are_one_choice(store: Store, artifact_type: str) -> None:
    chart = helm(store)
    root = store.index(chart, store.index(chart), chart)
    assert await chosen(MemorySource(store, root), artifact_type) == chart["digest"]
    of_one_platform = [on(helm(store, str(n)), "linux/amd64") for n in range(3)]
    root = store.index(*of_one_platform)
    wanted = of_one_platform[0]["digest"]
    assert await chosen(MemorySource(store, root), artifact_type) == wanted


@virtual_time
async def test_a_companion_takes_part_only_where_a_condition_asks_for_it(store: Store) -> None:
    image = said(on(store.image(b"x"), "linux/amd64"), "", stage="1")
    beside = said(sbom(store, image), "", stage="1")
    root = store.index(beside, image)
    assert await chosen(MemorySource(store, root)) == image["digest"]
    assert await chosen(MemorySource(store, root), SPDX) == beside["digest"]
    assert await chosen(MemorySource(store, root), SPDX, "stage=1") == beside["digest"]
    assert await chosen(MemorySource(store, root), "", "stage=1") == image["digest"]
    assert refused(await failure_of(MemorySource(store, root), "image", "stage=2")) == UNKNOWN


@virtual_time
async def test_an_index_that_refers_to_an_image_has_no_images(store: Store) -> None:
    image = on(store.image(b"x"), "linux/amd64")
    inner = store.index(on(store.image(b"y"), "linux/amd64"), subject=image)
    root = store.index(inner)
    assert refused(await failure_of(MemorySource(store, root), "image")) == UNKNOWN
    assert await chosen(MemorySource(store, store.index(inner, image)), "image") == image["digest"]


@virtual_time
async def test_an_annotation_of_a_nested_index_is_one_of_all_in_it(store: Store) -> None:
    images = [on(store.image(bytes([n])), "linux/amd64") for n in range(2)]
    root = store.index(
        *(said(store.index(each), "", flavour=str(n)) for n, each in enumerate(images))
    )
    for n, each in enumerate(images):
        source = MemorySource(store, root)
        assert await chosen(source, "", f"flavour={n}") == each["digest"]


@virtual_time
async def test_the_config_of_an_image_without_a_platform_decides(store: Store) -> None:
    image = said(store.image(b"x", platform="linux/arm64"), "", a="1")
    root = store.index(image, on(store.image(b"y"), "linux/s390x"))
    failure = await failure_of(MemorySource(store, root), "", "a=1")
    assert refused(failure) == UNKNOWN
    assert failure.detail["platforms"] == ["linux/arm64"]
    assert await chosen(MemorySource(store, root), "", "a=1", platform="linux/arm64")


@pytest.mark.parametrize("mark", [lambda each: each, lambda each: on(each, "linux/amd64")])
@virtual_time
async def test_a_descriptor_that_contradicts_its_manifest_is_refused(
    store: Store, mark: Callable[[Json], Json]
) -> None:
    root = store.index(mark(said(helm(store), SPDX)), oras(store))
    failure = await failure_of(MemorySource(store, root), SPDX)
    assert refused(failure) == INVALID
    assert f"is of the type {HELM}, but the index that names it says {SPDX}" in failure.message


@virtual_time
async def test_what_says_that_it_is_an_image_and_is_none_is_not_chosen(store: Store) -> None:
    image = store.image(b"x")
    other = said(artifact(store, config=OCI_CONFIG, subject=image), OCI_CONFIG)
    root = store.index(other, said(cosign(store), "a/b"))
    assert refused(await failure_of(MemorySource(store, root), "image")) == UNKNOWN


# --- candidates -------------------------------------------------------------------------------


async def candidates(image: Image) -> dict[str, Json]:
    return {str(each["digest"]): each for each in (await image.candidates())[0]}


@virtual_time
async def test_candidates_are_listed_without_a_choice(store: Store) -> None:
    shop = Shop(store)
    source = MemorySource(store, shop.nested)
    image = image_of(source)
    found, age = await image.candidates()
    assert age is None
    names = ["amd64", "arm64", "helm", "timoni", "flux", "wasm", "oras"]
    assert [each["digest"] for each in found] == [shop.entries[each]["digest"] for each in names]
    assert [each["position"] for each in found] == ["@0", "@2", "@5", "@6", "@7", "@8", "@9"]
    assert [each["artifactType"] for each in found] == [
        *(None, None, HELM, TIMONI, FLUX, None, ROCKET)
    ]
    platforms_there = ["linux/amd64", "linux/arm64", None, None, None, "wasip1/wasm", None]
    assert [each["platform"] for each in found] == platforms_there
    assert {len(each["path"]) for each in found} == {4}
    # Indexes, and what says neither what it is nor for which platform.
    assert len(source.asked) == 4 + 4
    assert source.closed == 1


@virtual_time
async def test_conditions_leave_fewer_candidates(store: Store) -> None:
    shop = Shop(store)
    found = await candidates(image_of(MemorySource(store, shop.index), "image"))
    assert list(found) == [shop.entries[each]["digest"] for each in ("amd64", "arm64")]
    assert await candidates(image_of(MemorySource(store, shop.index), "a/b")) == {}


@virtual_time
async def test_candidates_of_an_ambiguous_choice_are_its_choices(store: Store) -> None:
    root = store.index(*(helm(store, str(n)) for n in range(3)))
    source = MemorySource(store, root)
    with pytest.raises(AmbiguousError) as raised:
        await image_of(source).open()
    assert await image_of(source).candidates() == (raised.value.detail["choices"], None)
    many = store.index(*(artifact(store, annotations={"n": str(n)}) for n in range(65)))
    assert len(await candidates(image_of(MemorySource(store, many)))) == 65
    assert len(await candidates(image_of(MemorySource(store, many), "", "n=1"))) == 65


@virtual_time
async def test_a_manifest_is_its_own_candidate(store: Store) -> None:
    chart = helm(store)
    for conditions in ((), (HELM,)):
        ((found,), _) = await image_of(MemorySource(store, chart), *conditions).candidates()
        assert (found["digest"], found["artifactType"], found["path"]) == (
            chart["digest"],
            HELM,
            [],
        )
    assert await candidates(image_of(MemorySource(store, chart), "image")) == {}


@virtual_time
async def test_a_missing_candidate_is_described_by_its_descriptor(store: Store) -> None:
    missing = {**helm(store), "digest": digest_of(b"missing")}
    root = store.index(missing, oras(store))
    ((first, second), _) = await image_of(MemorySource(store, root)).candidates()
    assert (first["digest"], first["artifactType"]) == (missing["digest"], None)
    assert second["artifactType"] == ROCKET


@virtual_time
async def test_a_name_that_the_policy_rejects_has_no_candidates(store: Store) -> None:
    source = MemorySource(store, Shop(store).index)
    rejecting = policy.parse(b'{"default": [{"type": "reject"}]}', "p")
    image = Image(at(source), lambda: rejecting, Wanted(platforms.parse("linux/amd64")), never)
    with pytest.raises(DeniedError):
        await image.candidates()
    assert source.asked == []
    assert source.closed == 1


@virtual_time
async def test_an_empty_config_is_no_type(store: Store) -> None:
    source = MemorySource(store, artifact(store, config=EMPTY))
    ((found,), _) = await image_of(source).candidates()
    assert found["artifactType"] is None
