"""The image being served: what is chosen, and what may be had."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING

import pytest
import trio
from support.images import (
    DOCKER_LIST,
    OCI_CONFIG,
    OCI_INDEX,
    OCI_LAYER,
    OCI_MANIFEST,
    Json,
    digest_of,
    on,
)
from support.images import encode as encoded
from support.sources import LINUX, Place, Store, accept_anything, at, describe, image_of, never
from support.streams import elapsing, real_time, refused, virtual_time

from imgproxy.config import policy
from imgproxy.errors import (
    ConfigurationError,
    DeniedError,
    Failure,
    NotFoundError,
    ReplacedError,
    UnavailableError,
)
from imgproxy.images.image import MAX_DEPTH, MAX_INDEXES, Image, OpenedImage
from imgproxy.specs.oci import digest as digests
from imgproxy.specs.oci import platform as platforms
from imgproxy.specs.oci.manifest import MAX_DOCUMENT_SIZE
from imgproxy.transports.readers import Bytes

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from imgproxy.specs.oci.digest import Digest
    from imgproxy.specs.oci.manifest import Descriptor
    from imgproxy.transports.source import Reader, Source
    from imgproxy.verification.verified_blob import Blob

UNKNOWN = (404, "MANIFEST_UNKNOWN", False)
NO_BLOB = (404, "BLOB_UNKNOWN", False)
INVALID = (422, "MANIFEST_INVALID", False)
WRONG_SIZE = (422, "SIZE_INVALID", False)
WRONG_DIGEST = (422, "DIGEST_INVALID", False)

MIB = 1 << 20


@pytest.fixture
def store() -> Store:
    return Store()


def digest(descriptor: Json) -> Digest:
    return digests.parse(descriptor["digest"])


async def opened(place: Place, wanted: str = "linux/amd64") -> OpenedImage:
    return await image_of(place, platforms.parse(wanted)).open()


async def failure_of(place: Place, wanted: str = "linux/amd64") -> Failure:
    with pytest.raises(Failure) as raised:
        await opened(place, wanted)
    assert place.closed == 1
    return raised.value


async def chosen(place: Place, wanted: str = "linux/amd64") -> str:
    """Give the digest of the manifest that is chosen."""
    return str((await opened(place, wanted)).manifest.digest)


# --- opening ------------------------------------------------------------------------------------


async def nowhere() -> list[Source]:
    raise AssertionError


def test_nothing_happens_before_the_first_request() -> None:
    Image(nowhere, accept_anything, LINUX, never).close()


@virtual_time
async def test_the_policy_comes_before_anything_else() -> None:
    store = Store()
    place = Place(store, store.image(b"x"))
    denied = policy.parse(b'{"default":[{"type":"reject"}]}', "/etc/policy.json")
    with pytest.raises(Failure) as raised:
        await Image(at(place), lambda: denied, LINUX, never).open()
    assert refused(raised.value) == (403, "DENIED", False)
    assert "/etc/policy.json" in raised.value.message
    assert place.asked == []
    assert place.closed == 1


@virtual_time
async def test_a_policy_that_is_missing_costs_not_even_a_look_at_the_place() -> None:
    def missing() -> policy.Policy:
        raise DeniedError("there is no policy.json")

    with pytest.raises(DeniedError):
        await Image(nowhere, missing, LINUX, never).open()


@virtual_time
async def test_the_policy_of_the_place_decides(store: Store) -> None:
    raw = (
        b'{"default":[{"type":"reject"}],'
        b'"transports":{"memory":{"image":[{"type":"insecureAcceptAnything"}]}}}'
    )
    place = Place(store, store.image(b"x"))
    await Image(at(place), lambda: policy.parse(raw, "p"), LINUX, never).open()


@virtual_time
async def test_an_image_is_opened_once_for_all(store: Store) -> None:
    root = store.image(b"x")
    place = Place(store, root)
    image = image_of(place)
    place.gate = trio.Event()
    images: list[OpenedImage] = []

    async def wait() -> None:
        images.append(await image.open())

    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        place.gate.set()
    await wait()
    assert len(images) == 4
    assert len(set(map(id, images))) == 1
    assert place.asked == [root["digest"]]
    image.close()
    assert place.closed == 1


@virtual_time
async def test_a_failure_is_shared_by_those_who_wait_and_tried_again_by_who_comes_later(
    store: Store,
) -> None:
    root = store.image(b"x")
    place = Place(store, root)
    image = image_of(place)
    place.failures[root["digest"]] = UnavailableError("not now")
    place.gate = trio.Event()
    failures: list[Failure] = []

    async def wait() -> None:
        with pytest.raises(UnavailableError) as raised:
            await image.open()
        failures.append(raised.value)

    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        place.gate.set()
    assert len(failures) == 3
    assert place.asked == [root["digest"]]
    await wait()
    assert place.asked == [root["digest"]] * 2
    del place.failures[root["digest"]]
    assert str((await image.open()).manifest.digest) == root["digest"]


# --- a name that may mean several places --------------------------------------------------------


def lacking(store: Store, failure: Failure) -> Place:
    """Give a place that fails for whatever it is asked."""
    root = store.image(b"lacking")
    place = Place(store, root)
    place.failures[root["digest"]] = failure
    return place


@virtual_time
async def test_the_first_place_that_has_the_image_serves_it(store: Store) -> None:
    root = store.image(b"x")
    absent = lacking(store, NotFoundError("not here"))
    there, other = Place(store, root), Place(store, root)
    image = Image(at(absent, there, other), accept_anything, LINUX, never)
    for _ in range(2):
        assert str((await image.open()).manifest.digest) == root["digest"]
    assert [len(each.asked) for each in (absent, there, other)] == [1, 1, 0]
    assert [each.closed for each in (absent, there)] == [1, 0]
    image.close()
    assert there.closed == 1


@virtual_time
async def test_where_no_place_has_it_all_are_told_of(store: Store) -> None:
    places = [
        lacking(store, UnavailableError("busy")),
        lacking(store, NotFoundError("gone", code="NAME_UNKNOWN")),
    ]
    with pytest.raises(Failure) as raised:
        await Image(at(*places), accept_anything, LINUX, never).open()
    assert refused(raised.value) == (404, "NAME_UNKNOWN", False)
    assert raised.value.message == "busy; gone"
    assert [each.closed for each in places] == [1, 1]


@virtual_time
async def test_what_is_wrong_on_this_host_is_told_and_nothing_else_tried(store: Store) -> None:
    """Another place's image is not what a broken file was to lead to."""
    broken = lacking(store, ConfigurationError("a broken file"))
    other = Place(store, store.image(b"x"))
    with pytest.raises(ConfigurationError):
        await Image(at(broken, other), accept_anything, LINUX, never).open()
    assert other.asked == []


@virtual_time
async def test_who_stops_waiting_leaves_no_place_open(store: Store) -> None:
    place = Place(store, store.image(b"x"))
    place.gate = trio.Event()
    with trio.move_on_after(1) as scope:
        await Image(at(place), accept_anything, LINUX, never).open()
    assert scope.cancelled_caught
    assert place.closed == 1


@virtual_time
async def test_who_waits_goes_on_when_the_first_gives_up(store: Store) -> None:
    root = store.image(b"x")
    place = Place(store, root)
    image = image_of(place)
    place.gate = trio.Event()

    async def give_up() -> None:
        with trio.move_on_after(5):
            await image.open()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(give_up)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(image.open)
        with elapsing(10):
            await trio.sleep(10)
        place.gate.set()
    assert place.asked == [root["digest"]] * 2
    assert place.closed == 1  # by the one that gave up


@virtual_time
async def test_a_manifest_needs_no_index(store: Store) -> None:
    root = store.image(b"x", platform="linux/s390x")
    image = await opened(Place(store, root))
    assert image.index is None
    assert image.manifest.raw == image.oci_manifest == store.read(root["digest"])
    assert image.oci_digest == digest(root)


@virtual_time
async def test_a_manifest_of_docker_is_converted(store: Store) -> None:
    root = store.image(b"x", docker=True)
    image = await opened(Place(store, root))
    assert image.manifest.raw == store.read(root["digest"])
    assert image.oci_manifest != image.manifest.raw
    assert str(image.oci_digest) == digest_of(image.oci_manifest)
    assert b"docker" not in image.oci_manifest


DOCUMENTS: dict[str, tuple[Callable[[Store], Json], tuple[int, str, bool], str]] = {
    "schema 1": (
        lambda s: s.add(b'{"schemaVersion":1,"fsLayers":[],"history":[]}', ""),
        (415, "UNSUPPORTED", False),
        "schema 1",
    ),
    "another type": (
        lambda s: s.add(b"{}", "application/vnd.example+json"),
        INVALID,
        "mediaType: missing",
    ),
    "two formats": (
        lambda s: s.add(encoded({"manifests": [], "layers": []}), OCI_INDEX),
        INVALID,
        "ambiguous",
    ),
    "controls in a key": (
        lambda s: s.add(encoded({"manifests": [], "annotations": {}, "\x1b[31m\n": 1}), OCI_INDEX),
        UNKNOWN,
        "has no manifest for linux/amd64",
    ),
    "controls in an annotation": (
        lambda s: s.add(
            encoded({"manifests": [{**s.image(b"x"), "annotations": {"\x1b[31m\n": 1}}]}), OCI_INDEX
        ),
        INVALID,
        "annotations.",
    ),
    "a very long key": (
        lambda s: s.add(
            encoded({"manifests": [{**s.image(b"x"), "annotations": {"k" * MIB: 1}}]}), OCI_INDEX
        ),
        INVALID,
        "annotations.",
    ),
    "a very long key twice": (
        lambda s: s.add(b'{"%b":1,"%b":2}' % (b"k" * MIB, b"k" * MIB), OCI_INDEX),
        INVALID,
        "occurs twice",
    ),
}


@pytest.mark.parametrize("case", DOCUMENTS)
@virtual_time
async def test_a_document_that_is_not_read_is_told_in_a_line(store: Store, case: str) -> None:
    make, wanted, words = DOCUMENTS[case]
    failure = await failure_of(Place(store, make(store)))
    assert refused(failure) == wanted
    assert words in failure.message
    assert failure.message.isprintable()
    assert len(failure.message) < 2000


# --- choosing -----------------------------------------------------------------------------------


def several(store: Store, *names: str) -> dict[str, Json]:
    """Give an image for each platform, by its name; `-` is one that says none."""
    images = {name: store.image(name.encode()) for name in names}
    return {name: entry if name == "-" else on(entry, name) for name, entry in images.items()}


@pytest.mark.parametrize("docker", [True, False])
@virtual_time
async def test_the_platform_decides_in_an_index(
    store: Store,
    docker: bool,  # noqa: FBT001  (a parameter)
) -> None:
    entries = several(store, "linux/arm/v7", "linux/amd64", "linux/arm64", "windows/amd64")
    root = store.index(*entries.values(), docker=docker)
    for wanted, entry in entries.items():
        place = Place(store, root)
        image = await opened(place, wanted)
        assert image.manifest.digest == digest(entry)
        assert image.index is not None
        assert image.index.digest == digest(root)
        assert place.asked == [root["digest"], entry["digest"]]


@virtual_time
async def test_of_equal_entries_the_first_is_chosen_across_indexes(store: Store) -> None:
    first, second, third = (on(store.image(bytes([n])), "linux/amd64") for n in range(3))
    inner = store.index(first)
    assert await chosen(Place(store, store.index(inner, second, third))) == first["digest"]
    assert await chosen(Place(store, store.index(second, inner))) == second["digest"]


@virtual_time
async def test_the_best_entry_is_chosen_wherever_it_is(store: Store) -> None:
    plain, better = (on(store.image(p.encode()), p) for p in ("linux/amd64", "linux/amd64/v3"))
    root = store.index(plain, store.index(better))
    assert await chosen(Place(store, root), "linux/amd64/v3") == better["digest"]
    assert await chosen(Place(store, root), "linux/amd64/v2") == plain["digest"]


@virtual_time
async def test_an_entry_without_a_platform_is_for_when_nothing_else_fits(store: Store) -> None:
    entries = several(store, "-", "linux/arm64")
    root = store.index(*entries.values())
    assert await chosen(Place(store, root), "linux/arm64") == entries["linux/arm64"]["digest"]
    assert await chosen(Place(store, root), "linux/s390x") == entries["-"]["digest"]


@virtual_time
async def test_an_entry_is_for_the_platform_of_the_index_around_it(store: Store) -> None:
    inner = {p: store.image(p.encode()) for p in ("linux/arm64", "linux/amd64")}
    root = store.index(*(on(store.index(entry), p) for p, entry in inner.items()))
    for wanted, entry in inner.items():
        place = Place(store, root)
        assert await chosen(place, wanted) == entry["digest"]
        assert len(place.asked) == 3  # the index for the other platform is left alone


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
    assert await chosen(Place(store, root)) == image["digest"]
    failure = await failure_of(Place(store, store.index(attestation)))
    assert refused(failure) == UNKNOWN
    assert failure.message.endswith("(there are: none)")


@virtual_time
async def test_entries_of_other_types_are_never_chosen(store: Store) -> None:
    other = on(store.add(b"anything", "application/vnd.example+json"), "linux/amd64")
    untyped = on({**store.image(b"x"), "mediaType": None}, "linux/amd64")
    assert await chosen(Place(store, store.index(other, untyped))) == untyped["digest"]


@virtual_time
async def test_platforms_that_there_are_are_listed_once(store: Store) -> None:
    entries = several(store, "linux/arm/v7", "linux/arm64", "-")
    del entries["-"]
    again = on(store.image(b"again"), "linux/arm64")
    odd = on(store.image(b"odd"), "li\x1bnux/\ns390x")
    failure = await failure_of(Place(store, store.index(*entries.values(), again, odd)))
    assert refused(failure) == UNKNOWN
    assert failure.detail == {"platforms": ["linux/arm/v7", "linux/arm64", "li nux/ s390x"]}
    assert failure.message == (
        "memory:image has no manifest for linux/amd64"
        " (there are: linux/arm/v7, linux/arm64, li nux/ s390x)"
    )


def nested(store: Store, entry: Json, depth: int) -> Json:
    """Give an index of an index of … the entry."""
    for level in range(depth):
        entry = store.index(entry, annotations={"level": str(level)})
    return entry


@virtual_time
async def test_indexes_nest_to_a_limit(store: Store) -> None:
    image = store.image(b"x")
    assert await chosen(Place(store, nested(store, image, MAX_DEPTH))) == image["digest"]
    failure = await failure_of(Place(store, nested(store, image, MAX_DEPTH + 1)))
    assert refused(failure) == INVALID
    assert "more than 4 indexes in one another" in failure.message


@virtual_time
async def test_indexes_have_a_limit_in_number(store: Store) -> None:
    entries = [store.index(annotations={"n": str(n)}) for n in range(MAX_INDEXES)]
    image = store.image(b"x")
    place = Place(store, store.index(*entries, image))
    assert await chosen(place) == image["digest"]
    more = store.index(annotations={"n": "more"})
    assert refused(await failure_of(Place(store, store.index(*entries, more, image)))) == INVALID


@virtual_time
async def test_missing_indexes_count_as_well(store: Store) -> None:
    entries = [{**store.index(), "digest": digest_of(bytes([n]))} for n in range(MAX_INDEXES + 9)]
    place = Place(store, store.index(*entries, store.image(b"x")))
    assert refused(await failure_of(place)) == INVALID
    assert len(place.asked) <= MAX_INDEXES + 1


@virtual_time
async def test_an_index_that_is_named_often_is_fetched_once(store: Store) -> None:
    image = on(store.image(b"x"), "linux/amd64")
    inner = store.index(image)
    missing = {**store.index(), "digest": digest_of(b"missing")}
    place = Place(store, store.index(inner, missing, inner, missing, store.index(inner)))
    assert await chosen(place) == image["digest"]
    assert len(place.asked) == len(set(place.asked)) == 5


@virtual_time
async def test_an_index_that_names_itself_is_no_trap(store: Store) -> None:
    """No digest can be its own; but a source may hand out anything for a name."""
    inner = store.index(store.image(b"x"))
    store.contents[inner["digest"]] = encoded({"manifests": [inner]})
    assert refused(await failure_of(Place(store, store.index(inner)))) in (WRONG_DIGEST, WRONG_SIZE)


@virtual_time
async def test_an_index_that_is_missing_matters_only_if_nothing_else_fits(store: Store) -> None:
    missing = {**store.index(), "digest": digest_of(b"missing")}
    image = on(store.image(b"x"), "linux/amd64")
    root = store.index(missing, image)
    assert await chosen(Place(store, root)) == image["digest"]
    failure = await failure_of(Place(store, root), "linux/arm64")
    assert refused(failure) == UNKNOWN
    assert f"{missing['digest']} is not there" in failure.message


@virtual_time
async def test_an_index_that_fails_is_not_taken_for_missing(store: Store) -> None:
    inner = store.index(store.image(b"x"))
    place = Place(store, store.index(inner, store.image(b"y")))
    place.failures[inner["digest"]] = UnavailableError("not now")
    assert refused(await failure_of(place)) == (503, "UNAVAILABLE", True)


@virtual_time
async def test_a_chosen_manifest_that_is_missing_is_unknown(store: Store) -> None:
    entries = several(store, "linux/amd64", "linux/arm64")
    del store.contents[entries["linux/amd64"]["digest"]]
    root = store.index(*entries.values())
    assert refused(await failure_of(Place(store, root))) == UNKNOWN
    assert await chosen(Place(store, root), "linux/arm64") == entries["linux/arm64"]["digest"]


@virtual_time
async def test_where_the_chosen_manifest_is_missing_those_that_are_there_are_listed(
    store: Store,
) -> None:
    """Stores save an index whole, and the manifests that they have."""
    names = ["linux/amd64", "linux/arm64", "linux/s390x", "linux/arm/v7", "-"]
    entries = several(store, *names)
    for name in ("linux/amd64", "linux/s390x"):
        del store.contents[entries[name]["digest"]]
    broken = on({**store.image(b"broken"), "size": 1}, "linux/386")
    again = on(entries["linux/arm64"], "linux/ppc64le")
    failure = await failure_of(Place(store, store.index(*entries.values(), broken, again)))
    assert refused(failure) == UNKNOWN
    there = ["linux/arm64", "linux/arm/v7", "linux/ppc64le"]
    assert failure.detail == {"platforms": there}
    assert entries["linux/amd64"]["digest"] in failure.message
    assert failure.message.endswith(f"(there are manifests for: {', '.join(there)})")


@virtual_time
async def test_where_all_manifests_are_missing_that_is_told(store: Store) -> None:
    entries = several(store, "linux/amd64", "linux/arm64")
    for entry in entries.values():
        del store.contents[entry["digest"]]
    failure = await failure_of(Place(store, store.index(*entries.values())))
    assert refused(failure) == UNKNOWN
    assert failure.detail == {"platforms": []}
    assert failure.message.endswith("(there are manifests for: nothing else)")


@virtual_time
async def test_what_is_said_of_the_missing_one_stays(store: Store) -> None:
    entries = several(store, "linux/amd64", "linux/arm64")
    place = Place(store, store.index(*entries.values()))
    wanted = entries["linux/amd64"]["digest"]
    place.failures[wanted] = NotFoundError("gone", code="NAME_UNKNOWN", endpoints=["x"])
    failure = await failure_of(place)
    assert refused(failure) == (404, "NAME_UNKNOWN", False)
    assert failure.detail == {"endpoints": ["x"], "platforms": ["linux/arm64"]}


@virtual_time
async def test_so_many_manifests_are_looked_for_and_no_more(store: Store) -> None:
    entries = [on(store.image(bytes([n])), f"linux/arch{n}") for n in range(40)]
    missing = on({**store.image(b"x"), "digest": digest_of(b"missing")}, "linux/amd64")
    place = Place(store, store.index(*entries, missing))
    failure = await failure_of(place)
    assert failure.detail == {"platforms": [f"linux/arch{n}" for n in range(16)]}
    assert len(place.asked) == 1 + 1 + 16


@pytest.mark.parametrize("error", [UnavailableError("not now"), DeniedError("not for you")])
@virtual_time
async def test_nothing_is_looked_for_where_a_manifest_is_not_missing_but_fails(
    store: Store, error: Failure
) -> None:
    entries = several(store, "linux/amd64", "linux/arm64")
    place = Place(store, store.index(*entries.values()))
    place.failures[entries["linux/amd64"]["digest"]] = error
    assert await failure_of(place) is error
    assert len(place.asked) == 2


# --- an entry whose platform nobody says --------------------------------------------------------


@pytest.mark.parametrize("docker", [False, True])
@real_time
async def test_the_only_entry_is_for_the_platform_that_its_config_says(
    store: Store,
    docker: bool,  # noqa: FBT001  (a parameter)
) -> None:
    image = store.image(b"x", platform="linux/arm/v7", docker=docker)
    root = store.index(image, docker=docker)
    for fitting in ("linux/arm/v7", "linux/arm", "linux/arm/v8"):
        assert await chosen(Place(store, root), fitting) == image["digest"]
    failure = await failure_of(Place(store, root), "linux/amd64")
    assert refused(failure) == UNKNOWN
    assert failure.detail == {"platforms": ["linux/arm/v7"]}
    assert failure.message.endswith("no manifest for linux/amd64 (there are: linux/arm/v7)")


@real_time
async def test_an_entry_that_says_its_platform_is_believed(store: Store) -> None:
    image = on(store.image(b"x", platform="linux/arm64"), "linux/amd64")
    place = Place(store, store.index(image))
    assert await chosen(place) == image["digest"]
    assert len(place.asked) == 2  # nobody looks at the config


@real_time
async def test_one_of_several_entries_is_not_looked_into(store: Store) -> None:
    image = store.image(b"x", platform="linux/arm64")
    place = Place(store, store.index(image, on(store.image(b"y"), "linux/s390x")))
    assert await chosen(place) == image["digest"]
    assert place.asked[1:] == [image["digest"]]


@real_time
async def test_the_root_is_served_whatever_it_is_for(store: Store) -> None:
    image = store.image(b"x", platform="windows/amd64")
    assert await chosen(Place(store, image)) == image["digest"]


@pytest.mark.parametrize(
    ("content", "media_type"),
    [
        (b"{}", OCI_CONFIG),
        (b"no JSON", OCI_CONFIG),
        (b'{"os":"linux"}', OCI_CONFIG),
        (b'{"os":"linux","architecture":"arm64"}', "application/vnd.oci.empty.v1+json"),
    ],
    ids=["nothing said", "unreadable", "half of it said", "an artifact"],
)
@real_time
async def test_an_entry_whose_config_says_no_platform_is_for_any(
    store: Store, content: bytes, media_type: str
) -> None:
    document = {"config": store.add(content, media_type), "layers": []}
    entry = store.add(encoded(document), OCI_MANIFEST)
    assert await chosen(Place(store, store.index(entry))) == entry["digest"]


@real_time
async def test_a_config_that_is_looked_at_is_verified_and_closed(store: Store) -> None:
    image = store.image(b"x")
    config = store.document(image)["config"]
    place = Place(store, store.index(image))
    await opened(place)
    assert [reader.closed for reader in place.readers] == [1]
    place = Place(store, store.index(image))
    place.steps[config["digest"]] = (store.read(config["digest"])[::-1], b"")
    assert refused(await failure_of(place)) == WRONG_DIGEST
    assert [reader.closed for reader in place.readers] == [1]


@real_time
async def test_a_config_beyond_the_limit_is_not_looked_at(store: Store) -> None:
    config = {**store.add(b"{}", OCI_CONFIG), "size": MAX_DOCUMENT_SIZE + 1}
    entry = store.add(encoded({"config": config, "layers": []}), OCI_MANIFEST)
    place = Place(store, store.index(entry))
    assert await chosen(place) == entry["digest"]
    assert config["digest"] not in place.asked


@pytest.mark.parametrize("claimed", ["", OCI_MANIFEST])
@virtual_time
async def test_an_entry_that_turns_out_an_index_is_refused(store: Store, claimed: str) -> None:
    inner = {**store.index(store.image(b"x")), "mediaType": claimed}
    failure = await failure_of(Place(store, store.index(inner)))
    assert refused(failure) == INVALID
    assert inner["digest"] in failure.message


@virtual_time
async def test_an_index_that_turns_out_a_manifest_is_refused(store: Store) -> None:
    inner = {**store.image(b"x"), "mediaType": DOCKER_LIST}
    assert refused(await failure_of(Place(store, store.index(inner)))) == INVALID


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
    assert refused(await failure_of(Place(store, root))) == wanted


# --- the data field -----------------------------------------------------------------------------


def embedding(entry: Json, content: bytes) -> Json:
    return {**entry, "data": base64.b64encode(content).decode()}


@pytest.mark.parametrize("right", [True, False])
@virtual_time
async def test_embedded_documents_are_used_if_they_are_right(
    store: Store,
    right: bool,  # noqa: FBT001  (a parameter)
) -> None:
    image = on(store.image(b"x"), "linux/amd64")
    content = store.read(image["digest"])
    inner = store.index(embedding(image, content if right else content[::-1]))
    content = store.read(inner["digest"])
    root = store.index(embedding(inner, content if right else content[::-1]))
    place = Place(store, root)
    assert await chosen(place) == image["digest"]
    entries = [root["digest"], inner["digest"], image["digest"]]
    assert place.asked == (entries[:1] if right else entries)


@pytest.mark.parametrize("right", [True, False])
@real_time
async def test_embedded_blobs_are_used_if_they_are_right(
    store: Store,
    right: bool,  # noqa: FBT001  (a parameter)
) -> None:
    for content in (b"content", b"", bytes(range(251)) * 4200):
        layer = store.add(content, OCI_LAYER)
        layer = embedding(layer, content if right else b"x" + content[1:])
        config = store.add(b"{}", OCI_CONFIG)
        place = Place(
            store, store.add(encoded({"config": config, "layers": [layer]}), OCI_MANIFEST)
        )
        image = await opened(place)
        blob = await image.open_blob(image.find_blob(digest(layer)))
        got = b""
        while piece := await blob.read():
            got += piece
        blob.close()
        assert got == content
        assert (layer["digest"] in place.asked) != right


# --- layers that lie elsewhere ------------------------------------------------------------------


class Elsewhere:
    """What opens foreign layers; `asked` are the digests it was asked for, and why."""

    def __init__(self, content: bytes) -> None:
        self.asked: list[tuple[str, str]] = []
        self._content = content

    async def __call__(self, descriptor: Descriptor, error: NotFoundError) -> Reader:
        self.asked.append((str(descriptor.digest), error.message))
        return Bytes("elsewhere", self._content)


URLS = ["http://a.test/layer"]
MISSING = NotFoundError("the layer is not there", code="BLOB_UNKNOWN")


async def layer_from(
    place: Place, layer: Json, elsewhere: Callable[[Descriptor, NotFoundError], Awaitable[Reader]]
) -> bytes:
    """Give the content of a layer as it is served."""
    image = await Image(at(place), accept_anything, LINUX, elsewhere).open()
    blob = await image.open_blob(image.find_blob(digest(layer)))
    try:
        return b"".join([piece async for piece in pieces(blob)])
    finally:
        blob.close()


async def pieces(blob: Blob) -> AsyncIterator[bytes]:
    while piece := await blob.read():
        yield bytes(piece)


def place_with(store: Store, layer: Json) -> Place:
    config = store.add(b"{}", OCI_CONFIG)
    document = {"config": config, "layers": [layer]}
    return Place(store, store.add(encoded(document), OCI_MANIFEST))


@real_time
async def test_a_layer_that_is_not_there_is_had_from_elsewhere(store: Store) -> None:
    layer = store.add(b"content", OCI_LAYER, urls=URLS)
    place, elsewhere = place_with(store, layer), Elsewhere(b"content")
    place.failures[layer["digest"]] = MISSING
    assert await layer_from(place, layer, elsewhere) == b"content"
    assert elsewhere.asked == [(layer["digest"], "the layer is not there")]


@real_time
async def test_what_comes_from_elsewhere_is_verified(store: Store) -> None:
    layer = store.add(b"content", OCI_LAYER, urls=URLS)
    place = place_with(store, layer)
    place.failures[layer["digest"]] = MISSING
    with pytest.raises(Failure) as raised:
        await layer_from(place, layer, Elsewhere(b"CONTENT"))
    assert refused(raised.value) == WRONG_DIGEST


@pytest.mark.parametrize(
    ("urls", "failure"),
    [
        (URLS, None),
        ([], MISSING),
        (None, MISSING),
        (URLS, UnavailableError("not now")),
        (URLS, DeniedError("not for you")),
    ],
    ids=["it is there", "no URLs", "none said", "it fails", "it is denied"],
)
@real_time
async def test_nothing_else_leads_elsewhere(
    store: Store, urls: list[str] | None, failure: Failure | None
) -> None:
    layer = store.add(b"content", OCI_LAYER, urls=urls)
    place, elsewhere = place_with(store, layer), Elsewhere(b"content")
    if failure is None:
        assert await layer_from(place, layer, elsewhere) == b"content"
    else:
        place.failures[layer["digest"]] = failure
        with pytest.raises(type(failure)) as raised:
            await layer_from(place, layer, elsewhere)
        assert raised.value is failure
    assert elsewhere.asked == []


@real_time
async def test_why_a_layer_cannot_be_had_elsewhere_is_told(store: Store) -> None:
    layer = store.add(b"content", OCI_LAYER, urls=URLS)
    place = place_with(store, layer)
    place.failures[layer["digest"]] = MISSING

    async def refusing(_: Descriptor, error: NotFoundError) -> Reader:
        raise NotFoundError(f"{error.message}, nor elsewhere", code=error.code, urls=URLS)

    with pytest.raises(NotFoundError) as raised:
        await layer_from(place, layer, refusing)
    assert refused(raised.value) == NO_BLOB
    assert raised.value.detail == {"urls": URLS}
    assert raised.value.message == "the layer is not there, nor elsewhere"


@real_time
async def test_a_layer_that_the_manifest_holds_is_had_from_nowhere(store: Store) -> None:
    layer = embedding(store.add(b"content", OCI_LAYER, urls=URLS), b"content")
    place, elsewhere = place_with(store, layer), Elsewhere(b"content")
    place.failures[layer["digest"]] = MISSING
    assert await layer_from(place, layer, elsewhere) == b"content"
    assert elsewhere.asked == []


# --- a source that is replaced ------------------------------------------------------------------


@real_time
async def test_what_was_replaced_is_opened_anew_by_the_next_request(store: Store) -> None:
    before, after = (Place(store, store.image(content)) for content in (b"before", b"after"))
    queue = [before, after]

    async def open_sources() -> list[Source]:
        return [queue.pop(0)]

    image = Image(open_sources, accept_anything, LINUX, never)
    first = await image.open()
    layer = first.find_blob(digests.parse(digest_of(b"before")))
    before.failures[str(layer.digest)] = UnavailableError("not now")
    with pytest.raises(UnavailableError):
        await first.open_blob(layer)
    assert await image.open() is first  # what only fails may be tried again

    before.failures[str(layer.digest)] = ReplacedError("another one is there")
    with pytest.raises(ReplacedError):
        await first.open_blob(layer)
    second = await image.open()
    assert second is not first
    assert second.find_blob(digests.parse(digest_of(b"after")))
    assert await image.open() is second
    assert before.closed == 0  # something may still be read from it
    image.close()
    assert (before.closed, after.closed) == (1, 1)


@virtual_time
async def test_what_was_replaced_long_ago_is_not_kept_open(store: Store) -> None:
    root, other = store.image(b"x"), store.image(b"other")
    places = [Place(store, store.index(on(root, "linux/amd64"), other)) for _ in range(5)]
    queue = list(places)

    async def open_sources() -> list[Source]:
        return [queue.pop(0)]

    image = Image(open_sources, accept_anything, LINUX, never)
    for place in places:
        place.failures[other["digest"]] = ReplacedError("another one is there")
        with pytest.raises(ReplacedError):
            await (await image.open()).document(digest(other))
    assert [place.closed for place in places] == [1, 1, 1, 0, 0]
    image.close()
    assert [place.closed for place in places] == [1] * 5


@virtual_time
async def test_a_document_that_was_replaced_is_noticed_as_well(store: Store) -> None:
    entries = several(store, "linux/amd64", "linux/arm64")
    place = Place(store, store.index(*entries.values()))
    image = image_of(place)
    first = await image.open()
    other = entries["linux/arm64"]
    place.failures[other["digest"]] = ReplacedError("another one is there")
    with pytest.raises(ReplacedError):
        await first.document(digest(other))
    assert await image.open() is not first


# --- what may be had ----------------------------------------------------------------------------


@virtual_time
async def test_the_chosen_manifest_releases_its_blobs(store: Store) -> None:
    root = store.image(b"one", b"two")
    image = await opened(Place(store, root))
    document = store.document(root)
    for blob in (document["config"], *document["layers"]):
        assert image.find_blob(digest(blob)) == describe(blob)
    assert image.find_config() == describe(document["config"])


@virtual_time
async def test_blobs_that_no_released_manifest_names_cannot_be_had(store: Store) -> None:
    entries = several(store, "linux/amd64", "linux/arm64")
    root = store.index(*entries.values())
    image = await opened(Place(store, root))
    other = store.layers(entries["linux/arm64"])[0]
    for unnamed in (other, root, entries["linux/amd64"], store.add(b"in the store", OCI_LAYER)):
        with pytest.raises(NotFoundError) as raised:
            image.find_blob(digest(unnamed))
        assert refused(raised.value) == NO_BLOB
        assert unnamed["digest"] in raised.value.message
    await image.document(digest(entries["linux/arm64"]))
    assert image.find_blob(digest(other)) == describe(other)


@virtual_time
async def test_documents_are_released_from_one_to_the_next(store: Store) -> None:
    """From an index on the way to what it names, and from there on."""
    subject = store.image(b"subject")
    image = store.image(b"image", subject=subject)
    signed = store.image(b"signed")
    attestation = on(store.image(b"attestation", subject=image), "unknown/unknown")
    deep = store.image(b"deep")
    other = on(store.index(store.index(deep)), "linux/arm64")
    root = store.index(on(image, "linux/amd64"), attestation, other, subject=signed)
    served = await opened(Place(store, root))
    way = store.document(store.document(other)["manifests"][0])["manifests"][0]
    assert way["digest"] == deep["digest"]
    await refuse_document(served, deep)
    inner = store.document(other)["manifests"][0]
    await refuse_document(served, inner)
    for entry in (image, root, subject, signed, attestation, other, inner, deep):
        document = await served.document(digest(entry))
        assert document.raw == store.read(entry["digest"])
        assert document.digest == digest(entry)
    await refuse_document(served, store.image(b"in the store"))


async def refuse_document(image: OpenedImage, entry: Json) -> None:
    with pytest.raises(NotFoundError) as raised:
        await image.document(digest(entry))
    assert refused(raised.value) == UNKNOWN
    assert entry["digest"] in raised.value.message


@virtual_time
async def test_the_chosen_documents_are_not_fetched_again(store: Store) -> None:
    image = on(store.image(b"x"), "linux/amd64")
    root = store.index(image)
    place = Place(store, root)
    served = await opened(place)
    await served.document(digest(image))
    await served.document(digest(root))
    assert place.asked == [root["digest"], image["digest"]]


def contradicting(store: Store, first: Json) -> Json:
    """Give a manifest that names a blob of its own, and then `first` with another size."""
    layers = [store.add(b"its own", OCI_LAYER), {**first, "size": first["size"] + 1}]
    config = store.add(b"{}", OCI_CONFIG)
    return store.add(encoded({"config": config, "layers": layers}), OCI_MANIFEST)


@virtual_time
async def test_a_manifest_that_contradicts_itself_is_refused(store: Store) -> None:
    root = contradicting(store, store.add(b"its own", OCI_LAYER))
    failure = await failure_of(Place(store, root))
    assert refused(failure) == WRONG_SIZE
    assert "with two sizes" in failure.message


@virtual_time
async def test_a_manifest_that_contradicts_another_releases_nothing(store: Store) -> None:
    image = store.image(b"shared")
    other = on(contradicting(store, store.layers(image)[0]), "linux/arm64")
    served = await opened(Place(store, store.index(on(image, "linux/amd64"), other)))
    with pytest.raises(Failure) as raised:
        await served.document(digest(other))
    assert refused(raised.value) == WRONG_SIZE
    with pytest.raises(NotFoundError):
        served.find_blob(digests.parse(digest_of(b"its own")))
    assert served.find_blob(digest(store.layers(image)[0])).size == len(b"shared")


@virtual_time
async def test_a_config_beyond_the_limit_is_refused(store: Store) -> None:
    for size, fits in ((MAX_DOCUMENT_SIZE, True), (MAX_DOCUMENT_SIZE + 1, False)):
        config = {**store.add(b"{}", OCI_CONFIG), "size": size}
        root = store.add(encoded({"config": config, "layers": []}), OCI_MANIFEST)
        served = await opened(Place(store, root))
        if fits:
            assert served.find_config().size == size
            continue
        with pytest.raises(Failure) as raised:
            served.find_config()
        assert refused(raised.value) == WRONG_SIZE
        assert str(size) in raised.value.message


@pytest.mark.parametrize("size", [2**63, 10**25])
@virtual_time
async def test_sizes_that_no_file_has_are_refused(store: Store, size: int) -> None:
    layer = {**store.add(b"x", OCI_LAYER), "size": size}
    config = store.add(b"{}", OCI_CONFIG)
    root = store.add(encoded({"config": config, "layers": [layer]}), OCI_MANIFEST)
    assert refused(await failure_of(Place(store, root))) == INVALID


@virtual_time
async def test_a_blob_whose_opening_fails_leaves_nothing_open(store: Store) -> None:
    root = store.image(b"x")
    place = Place(store, root)
    place.steps[store.layers(root)[0]["digest"]] = (b"y", b"")
    image = await opened(place)
    with pytest.raises(Failure) as raised:
        await image.open_blob(image.find_blob(digest(store.layers(root)[0])))
    assert refused(raised.value) == WRONG_DIGEST
    assert [reader.closed for reader in place.readers] == [1]
