"""One image: how it is opened, and what may be read of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio
from support.images import (
    OCI_CONFIG,
    OCI_INDEX,
    OCI_LAYER,
    OCI_MANIFEST,
    Json,
    digest_of,
    on,
)
from support.images import encode as encoded
from support.sources import (
    LINUX,
    MemorySource,
    Store,
    accept_anything,
    at,
    describe,
    digest,
    embedding,
    failure_of,
    image_of,
    never,
    opened,
    several,
)
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
from imgproxy.images.image import Image
from imgproxy.specs.oci import digest as digests
from imgproxy.specs.oci.manifest import MAX_DOCUMENT_SIZE
from imgproxy.transports.readers import Bytes

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from imgproxy.images.opened_image import OpenedImage
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


# --- opening ------------------------------------------------------------------------------------


async def no_sources() -> list[Source]:
    raise AssertionError


def test_nothing_happens_before_the_first_request() -> None:
    Image(no_sources, accept_anything, LINUX, never).close()


@virtual_time
async def test_the_policy_is_evaluated_before_anything_is_fetched() -> None:
    store = Store()
    source = MemorySource(store, store.image(b"x"))
    denied = policy.parse(b'{"default":[{"type":"reject"}]}', "/etc/policy.json")
    with pytest.raises(Failure) as raised:
        await Image(at(source), lambda: denied, LINUX, never).open()
    assert refused(raised.value) == (403, "DENIED", False)
    assert "/etc/policy.json" in raised.value.message
    assert source.asked == []
    assert source.closed == 1


@virtual_time
async def test_without_a_policy_no_source_is_opened() -> None:
    def missing() -> policy.Policy:
        raise DeniedError("there is no policy.json")

    with pytest.raises(DeniedError):
        await Image(no_sources, missing, LINUX, never).open()


@virtual_time
async def test_the_policy_for_the_identity_of_the_source_decides(store: Store) -> None:
    raw = (
        b'{"default":[{"type":"reject"}],'
        b'"transports":{"memory":{"image":[{"type":"insecureAcceptAnything"}]}}}'
    )
    source = MemorySource(store, store.image(b"x"))
    await Image(at(source), lambda: policy.parse(raw, "p"), LINUX, never).open()


@virtual_time
async def test_an_image_is_opened_once_for_all_its_users(store: Store) -> None:
    root = store.image(b"x")
    source = MemorySource(store, root)
    image = image_of(source)
    source.gate = trio.Event()
    images: list[OpenedImage] = []

    async def wait() -> None:
        images.append(await image.open())

    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        source.gate.set()
    await wait()
    assert len(images) == 4
    assert len(set(map(id, images))) == 1
    assert source.asked == [root["digest"]]
    image.close()
    assert source.closed == 1


@virtual_time
async def test_a_failure_is_shared_by_those_who_wait_and_not_by_later_requests(
    store: Store,
) -> None:
    root = store.image(b"x")
    source = MemorySource(store, root)
    image = image_of(source)
    source.failures[root["digest"]] = UnavailableError("not now")
    source.gate = trio.Event()
    failures: list[Failure] = []

    async def wait() -> None:
        with pytest.raises(UnavailableError) as raised:
            await image.open()
        failures.append(raised.value)

    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        source.gate.set()
    assert len(failures) == 3
    assert source.asked == [root["digest"]]
    await wait()
    assert source.asked == [root["digest"]] * 2
    del source.failures[root["digest"]]
    assert str((await image.open()).manifest.digest) == root["digest"]


# --- a name that may stand for several sources --------------------------------------------------


def lacking(store: Store, failure: Failure) -> MemorySource:
    """Return a source that always fails."""
    root = store.image(b"lacking")
    source = MemorySource(store, root)
    source.failures[root["digest"]] = failure
    return source


@virtual_time
async def test_the_first_source_that_has_the_image_is_used(store: Store) -> None:
    root = store.image(b"x")
    absent = lacking(store, NotFoundError("not here"))
    there, other = MemorySource(store, root), MemorySource(store, root)
    image = Image(at(absent, there, other), accept_anything, LINUX, never)
    for _ in range(2):
        assert str((await image.open()).manifest.digest) == root["digest"]
    assert [len(each.asked) for each in (absent, there, other)] == [1, 1, 0]
    assert [each.closed for each in (absent, there, other)] == [1, 0, 1]
    image.close()
    image.close()
    assert [each.closed for each in (absent, there, other)] == [1, 1, 1]


@virtual_time
async def test_where_no_source_has_it_the_message_names_all(store: Store) -> None:
    sources = [
        lacking(store, UnavailableError("busy")),
        lacking(store, NotFoundError("gone", code="NAME_UNKNOWN")),
    ]
    with pytest.raises(Failure) as raised:
        await Image(at(*sources), accept_anything, LINUX, never).open()
    assert refused(raised.value) == (404, "NAME_UNKNOWN", False)
    assert raised.value.message == "busy; gone"
    assert [each.closed for each in sources] == [1, 1]


@virtual_time
async def test_the_failures_of_several_sources_are_merged(store: Store) -> None:
    sources = [
        lacking(store, UnavailableError("busy", retry_after=30)),
        lacking(store, UnavailableError("busier", retry_after=60)),
        lacking(store, NotFoundError("gone", is_transient=False, endpoints=["x"])),
    ]
    with pytest.raises(NotFoundError) as raised:
        await Image(at(*sources), accept_anything, LINUX, never).open()
    assert raised.value.message == "busy; busier; gone"
    assert (raised.value.is_transient, raised.value.retry_after) == (True, 30)
    assert raised.value.detail == {"endpoints": ["x"]}


@virtual_time
async def test_after_a_configuration_error_no_other_source_is_tried(
    store: Store,
) -> None:
    """The image of another source is no answer to a broken file."""
    broken = lacking(store, ConfigurationError("a broken file"))
    other = MemorySource(store, store.image(b"x"))
    with pytest.raises(ConfigurationError):
        await Image(at(broken, other), accept_anything, LINUX, never).open()
    assert other.asked == []
    assert [each.closed for each in (broken, other)] == [1, 1]


@virtual_time
async def test_a_user_who_stops_waiting_leaves_no_source_open(store: Store) -> None:
    source = MemorySource(store, store.image(b"x"))
    source.gate = trio.Event()
    with trio.move_on_after(1) as scope:
        await Image(at(source), accept_anything, LINUX, never).open()
    assert scope.cancelled_caught
    assert source.closed == 1


@virtual_time
async def test_when_the_first_user_gives_up_the_next_one_opens_the_image(store: Store) -> None:
    root = store.image(b"x")
    source = MemorySource(store, root)
    image = image_of(source)
    source.gate = trio.Event()

    async def give_up() -> None:
        with trio.move_on_after(5):
            await image.open()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(give_up)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(image.open)
        with elapsing(10):
            await trio.sleep(10)
        source.gate.set()
    assert source.asked == [root["digest"]] * 2
    assert source.closed == 1  # by the one that gave up


@virtual_time
async def test_a_manifest_needs_no_index(store: Store) -> None:
    root = store.image(b"x", platform="linux/s390x")
    image = await opened(MemorySource(store, root))
    assert image.index is None
    assert image.manifest.raw == store.read(root["digest"])
    assert image.manifest.digest == digest(root)


@virtual_time
async def test_a_manifest_of_docker_is_kept_as_it_is(store: Store) -> None:
    root = store.image(b"x", docker=True)
    image = await opened(MemorySource(store, root))
    assert image.manifest.raw == store.read(root["digest"])
    assert image.manifest.digest == digest(root)


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
async def test_a_document_that_is_refused_has_a_one_line_message(store: Store, case: str) -> None:
    make, wanted, words = DOCUMENTS[case]
    failure = await failure_of(MemorySource(store, make(store)))
    assert refused(failure) == wanted
    assert words in failure.message
    assert failure.message.isprintable()
    assert len(failure.message) < 2000


# --- foreign layers -----------------------------------------------------------------------------


class ForeignLayers:
    """What opens foreign layers; `asked` are the digests it was asked for, and the reasons."""

    def __init__(self, content: bytes) -> None:
        self.asked: list[tuple[str, str]] = []
        self._content = content

    async def __call__(self, descriptor: Descriptor, error: NotFoundError) -> Reader:
        self.asked.append((str(descriptor.digest), error.message))
        return Bytes("a foreign layer", self._content)


URLS = ["http://a.test/layer"]
MISSING = NotFoundError("the layer is not there", code="BLOB_UNKNOWN")


async def layer_from(
    source: MemorySource,
    layer: Json,
    foreign: Callable[[Descriptor, NotFoundError], Awaitable[Reader]],
) -> bytes:
    """Return the content of a layer as it is served."""
    image = await Image(at(source), accept_anything, LINUX, foreign).open()
    blob = await image.open_blob(image.find_blob(digest(layer)))
    try:
        return b"".join([piece async for piece in pieces(blob)])
    finally:
        blob.close()


async def pieces(blob: Blob) -> AsyncIterator[bytes]:
    while piece := await blob.read():
        yield bytes(piece)


def source_with(store: Store, layer: Json) -> MemorySource:
    config = store.add(b"{}", OCI_CONFIG)
    document = {"config": config, "layers": [layer]}
    return MemorySource(store, store.add(encoded(document), OCI_MANIFEST))


@real_time
async def test_a_layer_that_is_not_there_is_read_from_its_urls(store: Store) -> None:
    layer = store.add(b"content", OCI_LAYER, urls=URLS)
    source, foreign = source_with(store, layer), ForeignLayers(b"content")
    source.failures[layer["digest"]] = MISSING
    assert await layer_from(source, layer, foreign) == b"content"
    assert foreign.asked == [(layer["digest"], "the layer is not there")]


@real_time
async def test_what_comes_from_the_urls_is_verified(store: Store) -> None:
    layer = store.add(b"content", OCI_LAYER, urls=URLS)
    source = source_with(store, layer)
    source.failures[layer["digest"]] = MISSING
    with pytest.raises(Failure) as raised:
        await layer_from(source, layer, ForeignLayers(b"CONTENT"))
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
async def test_in_all_other_cases_the_urls_are_not_used(
    store: Store, urls: list[str] | None, failure: Failure | None
) -> None:
    layer = store.add(b"content", OCI_LAYER, urls=urls)
    source, foreign = source_with(store, layer), ForeignLayers(b"content")
    if failure is None:
        assert await layer_from(source, layer, foreign) == b"content"
    else:
        source.failures[layer["digest"]] = failure
        with pytest.raises(type(failure)) as raised:
            await layer_from(source, layer, foreign)
        assert raised.value is failure
    assert foreign.asked == []


@real_time
async def test_why_a_layer_cannot_be_read_from_its_urls_is_in_the_failure(
    store: Store,
) -> None:
    layer = store.add(b"content", OCI_LAYER, urls=URLS)
    source = source_with(store, layer)
    source.failures[layer["digest"]] = MISSING

    async def refusing(_: Descriptor, error: NotFoundError) -> Reader:
        raise NotFoundError(f"{error.message}, nor at its URLs", code=error.code, urls=URLS)

    with pytest.raises(NotFoundError) as raised:
        await layer_from(source, layer, refusing)
    assert refused(raised.value) == NO_BLOB
    assert raised.value.detail == {"urls": URLS}
    assert raised.value.message == "the layer is not there, nor at its URLs"


@real_time
async def test_a_layer_that_the_manifest_embeds_is_not_fetched(store: Store) -> None:
    layer = embedding(store.add(b"content", OCI_LAYER, urls=URLS), b"content")
    source, foreign = source_with(store, layer), ForeignLayers(b"content")
    source.failures[layer["digest"]] = MISSING
    assert await layer_from(source, layer, foreign) == b"content"
    assert foreign.asked == []


# --- a source that is replaced ------------------------------------------------------------------


@real_time
async def test_an_image_that_was_replaced_is_opened_anew_by_the_next_request(store: Store) -> None:
    before, after = (MemorySource(store, store.image(content)) for content in (b"before", b"after"))
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
async def test_of_replaced_sources_only_the_last_is_kept_open(store: Store) -> None:
    root, other = store.image(b"x"), store.image(b"other")
    sources = [MemorySource(store, store.index(on(root, "linux/amd64"), other)) for _ in range(5)]
    queue = list(sources)

    async def open_sources() -> list[Source]:
        return [queue.pop(0)]

    image = Image(open_sources, accept_anything, LINUX, never)
    for source in sources:
        source.failures[other["digest"]] = ReplacedError("another one is there")
        with pytest.raises(ReplacedError):
            await (await image.open()).document(digest(other))
    assert [source.closed for source in sources] == [1, 1, 1, 0, 0]
    image.close()
    assert [source.closed for source in sources] == [1] * 5


@virtual_time
async def test_a_document_that_was_replaced_is_noticed_as_well(store: Store) -> None:
    entries = several(store, "linux/amd64", "linux/arm64")
    source = MemorySource(store, store.index(*entries.values()))
    image = image_of(source)
    first = await image.open()
    other = entries["linux/arm64"]
    source.failures[other["digest"]] = ReplacedError("another one is there")
    with pytest.raises(ReplacedError):
        await first.document(digest(other))
    assert await image.open() is not first


# --- what may be read ---------------------------------------------------------------------------


@virtual_time
async def test_the_chosen_manifest_releases_its_blobs(store: Store) -> None:
    root = store.image(b"one", b"two")
    image = await opened(MemorySource(store, root))
    document = store.document(root)
    for blob in (document["config"], *document["layers"]):
        assert image.find_blob(digest(blob)) == describe(blob)
    assert image.find_config() == describe(document["config"])


@virtual_time
async def test_blobs_that_no_released_manifest_names_cannot_be_read(store: Store) -> None:
    entries = several(store, "linux/amd64", "linux/arm64")
    root = store.index(*entries.values())
    image = await opened(MemorySource(store, root))
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
    """A document can be read once a document that names it has been."""
    subject = store.image(b"subject")
    image = store.image(b"image", subject=subject)
    signed = store.image(b"signed")
    attestation = on(store.image(b"attestation", subject=image), "unknown/unknown")
    deep = store.image(b"deep")
    other = on(store.index(store.index(deep)), "linux/arm64")
    root = store.index(on(image, "linux/amd64"), attestation, other, subject=signed)
    served = await opened(MemorySource(store, root))
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
    source = MemorySource(store, root)
    served = await opened(source)
    await served.document(digest(image))
    await served.document(digest(root))
    assert source.asked == [root["digest"], image["digest"]]


def contradicting(store: Store, first: Json) -> Json:
    """Return a manifest that names a blob of its own, and then `first` with another size."""
    layers = [store.add(b"its own", OCI_LAYER), {**first, "size": first["size"] + 1}]
    config = store.add(b"{}", OCI_CONFIG)
    return store.add(encoded({"config": config, "layers": layers}), OCI_MANIFEST)


@virtual_time
async def test_a_manifest_that_contradicts_itself_is_refused(store: Store) -> None:
    root = contradicting(store, store.add(b"its own", OCI_LAYER))
    failure = await failure_of(MemorySource(store, root))
    assert refused(failure) == WRONG_SIZE
    assert "with two sizes" in failure.message


@virtual_time
async def test_a_manifest_that_contradicts_another_releases_nothing(store: Store) -> None:
    image = store.image(b"shared")
    other = on(contradicting(store, store.layers(image)[0]), "linux/arm64")
    served = await opened(MemorySource(store, store.index(on(image, "linux/amd64"), other)))
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
        served = await opened(MemorySource(store, root))
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
    assert refused(await failure_of(MemorySource(store, root))) == INVALID


@virtual_time
async def test_a_blob_whose_opening_fails_leaves_nothing_open(store: Store) -> None:
    root = store.image(b"x")
    source = MemorySource(store, root)
    source.steps[store.layers(root)[0]["digest"]] = (b"y", b"")
    image = await opened(source)
    with pytest.raises(Failure) as raised:
        await image.open_blob(image.find_blob(digest(store.layers(root)[0])))
    assert refused(raised.value) == WRONG_DIGEST
    assert [reader.closed for reader in source.readers] == [1]
