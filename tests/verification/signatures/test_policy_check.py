"""The policy check: which document must be signed, by whom, and the message where it is not."""

from __future__ import annotations

import errno
import json
import sys
from functools import partial
from typing import TYPE_CHECKING

import pytest
import trio
from support.images import Json, on
from support.sigstores import (
    PAYLOAD,
    Signer,
    annotated,
    b64,
    compact,
    enveloped,
    payload,
    statement,
)
from support.sources import LINUX, MemorySource, Store, at, never
from support.streams import real_time, refused

from imgproxy.config import policy
from imgproxy.errors import (
    ConfigurationError,
    DeniedError,
    Failure,
    InvalidError,
    ShortageError,
    UnavailableError,
    UnreachableError,
)
from imgproxy.images.image import Image
from imgproxy.specs.oci import digest as digests
from imgproxy.specs.oci.reference import parse_reference
from imgproxy.specs.signing.signature import (
    BundleSignature,
    Signature,
    SigstoreSignature,
    SimpleSignature,
)
from imgproxy.transports.source import Identity, SignaturePlace
from imgproxy.verification.signatures import policy_check, sigstore

if TYPE_CHECKING:
    from collections.abc import Callable

    from imgproxy.images.opened_image import OpenedImage
    from imgproxy.specs.signing.simple_signing import Claim
    from imgproxy.verification.documents import VerifiedDocument

SIGNER, OTHER = Signer(), Signer()
NAME = "quay.io/acme/os:1"


def requirement(*signers: Signer, **fields: object) -> Json:
    data = [b64(each.pem) for each in signers or (SIGNER,)]
    return {"type": "sigstoreSigned", "keyDatas": data, **fields}


def policy_of(*requirements: Json) -> Callable[[], policy.Policy]:
    raw = json.dumps({"default": list(requirements)}).encode()
    return lambda: policy.parse(raw, "/policy.json")


@pytest.fixture
def store() -> Store:
    return Store()


def source_of(store: Store, root: Json, name: str | None = NAME) -> MemorySource:
    source = MemorySource(store, root)
    source.identity = Identity("docker", ["x"], None if name is None else parse_reference(name))
    return source


def signed(
    document: Json, signer: Signer = SIGNER, *, digest: str = "", name: str = NAME
) -> SigstoreSignature:
    content = payload(digest or document["digest"], name)
    return SigstoreSignature("a signature", PAYLOAD, content, annotated(content, signer))


def found(*signatures: Signature, name: str = "there") -> SignaturePlace:
    async def read() -> list[Signature]:
        await trio.lowlevel.checkpoint()
        return list(signatures)

    return SignaturePlace(name, read)


def failing(failure: Failure) -> SignaturePlace:
    async def read() -> list[Signature]:
        await trio.lowlevel.checkpoint()
        raise failure

    return SignaturePlace("broken place", read)


async def opened(source: MemorySource, *requirements: Json) -> OpenedImage:
    load = policy_of(*(requirements or (requirement(),)))
    return await Image(at(source), load, LINUX, never).open()


async def denied(source: MemorySource, *requirements: Json) -> str:
    with pytest.raises(DeniedError) as raised:
        await opened(source, *requirements)
    assert refused(raised.value) == (403, "DENIED", False)
    return raised.value.message


# --- one manifest ---------------------------------------------------------------------------------


@real_time
async def test_a_manifest_that_is_signed_is_served(store: Store) -> None:
    root = store.image(b"x")
    source = source_of(store, root)
    source.signed[root["digest"]] = [found(signed(root))]
    assert str((await opened(source)).manifest.digest) == root["digest"]


@real_time
async def test_without_signatures_the_message_names_the_places_that_were_read(store: Store) -> None:
    root = store.image(b"x")
    source = source_of(store, root)
    words = f"the policy /policy.json (default) requires sigstoreSigned of {root['digest']}: "
    assert await denied(source) == (
        "memory:image is rejected: since transports.docker has no scope for it,"
        f" {words}there is no signature (its transport has none)"
    )
    source.signed[root["digest"]] = [found(name="here"), found(name="there")]
    assert (await denied(source)).endswith("there is no signature (here and there)")


@real_time
async def test_each_signature_has_its_own_reason(store: Store) -> None:
    root = store.image(b"x")
    source = source_of(store, root)
    other = "sha256:" + "0" * 64
    source.signed[root["digest"]] = [
        found(
            signed(root, OTHER)._replace(name="1"),
            signed(root, digest=other)._replace(name="2"),
            signed(root, name="quay.io/acme/os:2")._replace(name="3"),
        ),
        failing(InvalidError("broken")),
        found(SimpleSignature("4", b"")),
    ]
    message = await denied(source)
    assert message.endswith(
        "[1] it is by none of the keys; "
        f"[2] it is for {other}; "
        "[3] it is for the name quay.io/acme/os:2 (signedIdentity: matchRepoDigestOrExact); "
        "[4] it is not a sigstore signature; "
        "[broken place] broken"
    )


@real_time
async def test_of_many_reasons_the_message_has_some(store: Store) -> None:
    root = store.image(b"x")
    source = source_of(store, root)
    bad = [signed(root, OTHER)._replace(name=str(n)) for n in range(20)]
    source.signed[root["digest"]] = [found(*bad)]
    message = await denied(source)
    assert "[7] it is by none of the keys; and 12 more" in message
    assert "[8]" not in message


@real_time
async def test_one_good_signature_is_enough_wherever_it_is(store: Store) -> None:
    root = store.image(b"x")
    source = source_of(store, root)
    bad, good = signed(root, OTHER), signed(root)
    for places in (
        [found(bad, good)],
        [found(good, bad)],
        [found(bad), found(good)],
        [failing(InvalidError("broken")), found(good)],
        [failing(UnavailableError("later")), found(good)],
        [found(good), failing(ConfigurationError("never asked"))],
    ):
        source.signed[root["digest"]] = places
        await opened(source)


class UnexpectedError(Exception):
    """An exception that a library raises and that is not expected."""


@pytest.mark.parametrize("raised", [UnexpectedError("\x1b[31m"), KeyError("x"), RecursionError()])
@real_time
async def test_a_signature_that_cannot_be_examined_is_a_bad_one(
    store: Store, raised: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    verify = sigstore.Verifier.verify

    def examine(self: sigstore.Verifier, signature: Signature, document: VerifiedDocument) -> Claim:
        if signature.name == "strange":
            raise raised
        return verify(self, signature, document)

    monkeypatch.setattr(sigstore.Verifier, "verify", examine)
    root = store.image(b"x")
    source = source_of(store, root)
    strange, good = signed(root)._replace(name="strange"), signed(root)
    source.signed[root["digest"]] = [found(strange)]
    words = f"[strange] it cannot be examined ({type(raised).__name__})"
    assert (await denied(source)).endswith(words)
    for places in ([found(strange, good)], [found(strange), found(good)]):
        source.signed[root["digest"]] = places
        await opened(source)


@pytest.mark.parametrize(
    "error", [MemoryError(), OSError(errno.EMFILE, "Too many open files")], ids=repr
)
@real_time
async def test_a_shortage_does_not_make_a_signature_bad(
    error: Exception, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The image may be good, so that the answer is to try again, and not that it is denied."""

    def examine(*_: object) -> None:
        raise error

    monkeypatch.setattr(sigstore.Verifier, "verify", examine)
    root = store.image(b"x")
    source = source_of(store, root)
    source.signed[root["digest"]] = [found(signed(root))]
    with pytest.raises(ShortageError, match="verifying a signature: "):
        await opened(source)


@real_time
async def test_every_requirement_must_be_met_each_by_any_signature(store: Store) -> None:
    root = store.image(b"x")
    source = source_of(store, root)
    both = requirement(SIGNER), requirement(OTHER), {"type": "insecureAcceptAnything"}
    source.signed[root["digest"]] = [found(signed(root))]
    assert "sigstoreSigned and" not in await denied(source, *both)
    source.signed[root["digest"]].append(found(signed(root, OTHER)))
    await opened(source, *both)
    assert "requires sigstoreSigned and sigstoreSigned of" in await denied(
        source, requirement(Signer()), requirement(Signer())
    )


BUSY, DEAD = UnavailableError("busy", retry_after=7), UnreachableError("nobody answers")


@pytest.mark.parametrize(
    ("places", "code", "words"),
    [
        ([failing(BUSY)], "UNAVAILABLE", "[broken place] busy"),
        ([failing(DEAD), found()], "UNREACHABLE", "[broken place] nobody answers"),
        ([found(), failing(DEAD)], "UNREACHABLE", "[broken place] nobody answers"),
        (
            [failing(DEAD), failing(BUSY)],
            "UNREACHABLE",
            "[broken place] nobody answers; [broken place] busy",
        ),
        (
            [failing(DeniedError("no credentials")), failing(DEAD)],
            "UNREACHABLE",
            "[broken place] no credentials; [broken place] nobody answers",
        ),
    ],
)
def test_where_nothing_was_found_a_place_that_may_succeed_later_is_the_answer(
    places: list[SignaturePlace], code: str, words: str
) -> None:
    @real_time
    async def run() -> None:
        store = Store()
        root = store.image(b"x")
        source = source_of(store, root)
        source.signed[root["digest"]] = places
        with pytest.raises(Failure) as raised:
            await opened(source)
        assert refused(raised.value)[1:] == (code, True)
        assert raised.value.message == (
            "memory:image cannot be checked now: since transports.docker has no scope for it, the"
            " policy /policy.json (default) requires"
            f" sigstoreSigned of {root['digest']}: {words}"
        )
        assert raised.value.retry_after == (7 if "busy" in words else None)

    run()


@pytest.mark.parametrize("failure", [BUSY, DEAD])
@pytest.mark.parametrize("is_first", [True, False])
@real_time
async def test_a_signature_that_was_found_and_rejected_is_the_answer_with_every_place(
    store: Store, failure: Failure, *, is_first: bool
) -> None:
    """Who makes a place unreachable must not turn a rejection into something to try again."""
    root = store.image(b"x")
    source = source_of(store, root)
    bad = [signed(root, OTHER)._replace(name=str(n)) for n in range(20)]
    for signatures, requirements in (
        (bad[:1], [requirement()]),
        (bad, [requirement()]),
        ([SimpleSignature("of another kind", b"")], [requirement()]),
        # One requirement is met, and the signature for the other one may be where nobody answers.
        (bad[:1], [requirement(OTHER), requirement(SIGNER)]),
        (bad[:1], [requirement(SIGNER), requirement(OTHER)]),
    ):
        places = [failing(failure), found(*signatures)]
        source.signed[root["digest"]] = places if is_first else places[::-1]
        message = await denied(source, *requirements)
        assert message.endswith(f"; [broken place] {failure.message}")
        assert f"[{signatures[0].name}] it is " in message


@real_time
async def test_what_is_there_and_is_no_signature_was_found_and_rejected(store: Store) -> None:
    root = store.image(b"x")
    source = source_of(store, root)
    source.signed[root["digest"]] = [failing(DEAD), failing(InvalidError("rubbish"))]
    assert (await denied(source)).endswith("nobody answers; [broken place] rubbish")


@real_time
async def test_what_was_found_of_one_document_counts_for_the_image(store: Store) -> None:
    """An index and the manifest chosen from it are looked for in the same places."""
    amd64 = on(store.image(b"amd64"), "linux/amd64")
    root = store.index(amd64)
    source = source_of(store, root)
    for rejected, unreachable in ((root, amd64), (amd64, root)):
        source.signed[rejected["digest"]] = [found(signed(rejected, OTHER))]
        source.signed[unreachable["digest"]] = [failing(DEAD)]
        message = await denied(source)
        assert "[a signature] it is by none of the keys" in message
        assert "[broken place] nobody answers" in message


@real_time
async def test_a_broken_configuration_is_a_failure_of_its_own(store: Store) -> None:
    root = store.image(b"x")
    source = source_of(store, root)
    source.signed[root["digest"]] = [failing(ConfigurationError("a file")), found(signed(root))]
    with pytest.raises(ConfigurationError, match="a file"):
        await opened(source)
    with pytest.raises(ConfigurationError, match="keyDatas of the policy is unusable"):
        await opened(source, {"type": "sigstoreSigned", "keyDatas": [b64(b"no key")]})
    assert source.asked == [root["digest"]]


@real_time
async def test_the_name_is_that_of_the_reference(store: Store) -> None:
    root = store.image(b"x")
    exact = {"type": "exactRepository", "dockerRepository": "quay.io/acme/os"}
    for name, fields, accepted in (
        (NAME, {}, True),
        ("quay.io/acme/os:2", {}, False),
        ("quay.io/acme/os:2", {"signedIdentity": {"type": "matchRepository"}}, True),
        ("mirror.io/acme/os:1", {}, False),
        (None, {}, False),
        (None, {"signedIdentity": exact}, True),
    ):
        source = source_of(store, root, name)
        source.signed[root["digest"]] = [found(signed(root))]
        if accepted:
            await opened(source, requirement(**fields))
        else:
            assert "it is for the name" in await denied(source, requirement(**fields))


@real_time
async def test_a_signature_without_a_name_is_enough_by_digest_or_where_tags_do_not_matter(
    store: Store,
) -> None:
    root = store.image(b"x")
    document = compact(enveloped(statement(root["digest"]), SIGNER))
    bundle = found(BundleSignature("a bundle", document))
    source = source_of(store, root)
    source.signed[root["digest"]] = [bundle]
    assert (await denied(source)).endswith(
        "[a bundle] it names no image, which is enough only for an image requested by digest, or"
        " with matchRepository (signedIdentity: matchRepoDigestOrExact)"
    )
    await opened(source, requirement(signedIdentity={"type": "matchRepository"}))
    source = source_of(store, root, f"quay.io/acme/os@{root['digest']}")
    source.signed[root["digest"]] = [bundle]
    await opened(source)


@real_time
async def test_a_digest_may_be_by_another_algorithm(store: Store) -> None:
    root = store.image(b"x")
    raw = store.read(root["digest"])
    source = source_of(store, root)
    for digest, accepted in (
        (str(digests.compute(raw, "sha512")), True),
        (str(digests.compute(b"else", "sha512")), False),
        ("blake3:" + "0" * 64, False),
    ):
        source.signed[root["digest"]] = [found(signed(root, digest=digest))]
        if accepted:
            await opened(source)
        else:
            assert f"it is for {digest}" in await denied(source)


@real_time
async def test_a_rejecting_requirement_comes_before_anything_is_asked(store: Store) -> None:
    source = source_of(store, store.image(b"x"))
    assert "is rejected by the policy" in await denied(source, requirement(), {"type": "reject"})
    assert source.asked == []


# --- indexes --------------------------------------------------------------------------------------


async def status_of(image: OpenedImage, descriptor: Json) -> int:
    try:
        await image.document(digests.parse(descriptor["digest"]))
    except Failure as failure:
        return failure.status
    return 200


@real_time
async def test_an_index_that_is_signed_covers_what_it_names(store: Store) -> None:
    amd64 = on(store.image(b"amd64"), "linux/amd64")
    arm64 = on(store.image(b"arm64"), "linux/arm64")
    root = store.index(amd64, arm64)
    source = source_of(store, root)
    source.signed[root["digest"]] = [found(signed(root))]
    image = await opened(source)
    assert [await status_of(image, each) for each in (root, amd64, arm64)] == [200, 200, 200]


@real_time
async def test_a_manifest_that_is_signed_covers_itself(store: Store) -> None:
    subject = store.image(b"what it refers to")
    amd64 = on(store.image(b"amd64", subject=subject), "linux/amd64")
    arm64 = on(store.image(b"arm64"), "linux/arm64")
    signed_too = on(store.image(b"s390x"), "linux/s390x")
    root = store.index(amd64, arm64, signed_too)
    source = source_of(store, root)
    for each in (amd64, signed_too):
        source.signed[each["digest"]] = [found(signed(each))]
    image = await opened(source)
    assert str(image.manifest.digest) == amd64["digest"]
    everything = (amd64, signed_too, root, arm64, subject)
    assert [await status_of(image, each) for each in everything] == [200, 200, 403, 403, 403]
    for layer in store.document(arm64)["layers"]:
        with pytest.raises(Failure, match="no released manifest names the blob"):
            image.find_blob(digests.parse(layer["digest"]))


@real_time
async def test_where_neither_is_signed_the_message_names_both(store: Store) -> None:
    amd64 = on(store.image(b"amd64"), "linux/amd64")
    arm64 = on(store.image(b"arm64"), "linux/arm64")
    root = store.index(amd64, arm64)
    source = source_of(store, root)
    source.signed[arm64["digest"]] = [found(signed(arm64))]
    source.signed[root["digest"]] = [found(signed(amd64))]
    source.signed[amd64["digest"]] = [found(signed(root))]
    message = await denied(source)
    assert f"of {root['digest']}: [a signature] it is for {amd64['digest']}; " in message
    assert f"of {amd64['digest']}: [a signature] it is for {root['digest']}" in message


@real_time
async def test_an_index_in_an_index_is_covered_by_it(store: Store) -> None:
    amd64, arm64 = (on(store.image(each.encode()), f"linux/{each}") for each in ("amd64", "arm64"))
    inner = store.index(amd64, arm64)
    root = store.index(inner)
    for document, statuses in (
        (root, [200, 200, 200]),
        (inner, [403, 200, 200]),
        (amd64, [403, 403, 403]),
    ):
        source = source_of(store, root)
        source.signed[document["digest"]] = [found(signed(document))]
        image = await opened(source)
        assert [await status_of(image, each) for each in (root, inner, arm64)] == statuses
        assert await status_of(image, amd64) == 200
    source = source_of(store, root)
    source.signed[arm64["digest"]] = [found(signed(arm64))]
    assert amd64["digest"] in await denied(source)


def nested(store: Store) -> dict[str, Json]:
    """Return the parts of an image of two indexes, one of which contains another one."""
    parts = {each: on(store.image(each.encode()), f"linux/{each}") for each in ("amd64", "arm64")}
    parts["inner"] = store.index(*parts.values())
    parts["middle"] = store.index(parts["inner"])
    parts["s390x"] = on(store.image(b"s390x"), "linux/s390x")
    parts["beside"] = store.index(parts["s390x"])
    parts["root"] = store.index(parts["middle"], parts["beside"])
    return parts


@pytest.mark.parametrize("first", ["arm64", "inner", "middle", "s390x", "beside", "root"])
@real_time
async def test_what_is_covered_does_not_depend_on_what_was_asked_for_before(
    store: Store, first: str
) -> None:
    parts = nested(store)
    source = source_of(store, parts["root"])
    source.signed[parts["root"]["digest"]] = [found(signed(parts["root"]))]
    image = await opened(source)
    assert await status_of(image, parts[first]) == 200
    for part in parts.values():
        assert await status_of(image, part) == 200


@pytest.mark.parametrize("asked", [("arm64", "s390x"), ("middle", "inner", "beside", "root"), ()])
@real_time
async def test_an_index_in_the_middle_covers_what_is_below_it(
    store: Store, asked: tuple[str, ...]
) -> None:
    parts = nested(store)
    source = source_of(store, parts["root"])
    source.signed[parts["middle"]["digest"]] = [found(signed(parts["middle"]))]
    image = await opened(source)
    assert str(image.manifest.digest) == parts["amd64"]["digest"]
    covered = dict.fromkeys(("middle", "inner", "amd64", "arm64"), 200)
    expected = {**covered, **dict.fromkeys(("root", "beside", "s390x"), 403)}
    for name in (*asked, *expected):
        assert await status_of(image, parts[name]) == expected[name]


@real_time
async def test_an_index_beside_the_chosen_manifest_is_no_reason_to_accept_it(store: Store) -> None:
    parts = nested(store)
    source = source_of(store, parts["root"])
    source.signed[parts["beside"]["digest"]] = [found(signed(parts["beside"]))]
    assert parts["beside"]["digest"] not in await denied(source)


@real_time
async def test_an_image_is_checked_again_after_a_denial(store: Store) -> None:
    root = store.image(b"x")
    source = source_of(store, root)
    image = Image(at(source), policy_of(requirement()), LINUX, never)
    with pytest.raises(DeniedError):
        await image.open()
    source.signed[root["digest"]] = [found(signed(root))]
    await image.open()


# --- libraries ------------------------------------------------------------------------------------

GPG = {"type": "signedBy", "keyType": "GPGKeys", "keyData": b64(b"x")}


@pytest.mark.parametrize(
    ("wanted", "library"), [(requirement(), "cryptography"), (GPG, "pysequoia")]
)
def test_a_library_that_cannot_be_loaded_for_want_of_descriptors_is_not_missing(
    wanted: Json, library: str, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = ImportError(f"{library}.so: cannot open shared object file: Too many open files")

    def load(*_: object) -> None:
        raise short

    monkeypatch.setattr(policy_check, "_condition", load)
    source = source_of(store, store.image(b"x"))
    with pytest.raises(ShortageError, match="Too many open files"):
        trio.run(partial(opened, source, wanted))


@pytest.mark.parametrize(
    ("wanted", "library"), [(requirement(), "cryptography"), (GPG, "pysequoia")]
)
def test_a_library_that_is_missing_rejects_and_is_named(
    wanted: Json, library: str, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [library, *(each for each in sys.modules if each.startswith(f"{library}."))]:
        monkeypatch.setitem(sys.modules, name, None)
    source = source_of(store, store.image(b"x"))
    message = trio.run(partial(denied, source, wanted))
    assert f"{library}" in message
    assert message.endswith("is needed: pip install 'oci-imgproxy[signatures]'")
    assert source.asked == []
