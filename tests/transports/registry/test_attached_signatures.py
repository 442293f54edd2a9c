"""Places of signatures: lookasides, the extension, what cosign attaches, bundles."""

from __future__ import annotations

import base64
import json
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from support.images import OCI_INDEX, OCI_MANIFEST, Json, digest_of
from support.registries import BASE, PLACES, REFERENCE, STALL, image_at, place, registry
from support.sigstores import BUNDLE, PAYLOAD
from support.streams import Exchange, Notes, Script, answer, asked, refused, virtual_time

from imgproxy.config.registries_d import Section
from imgproxy.errors import ConfigurationError, DeniedError, Failure
from imgproxy.net.client import Client
from imgproxy.specs.oci import digest as digests
from imgproxy.specs.oci.reference import parse_reference
from imgproxy.specs.signing.signature import (
    MAX_SIGNATURE_SIZE,
    MAX_SIGNATURES,
    BundleSignature,
    Signature,
    SigstoreSignature,
    SimpleSignature,
)
from imgproxy.transports.registry import attached_signatures
from imgproxy.transports.registry.failover import Failover
from imgproxy.transports.registry.plain_url import PlainUrl

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable
    from pathlib import Path

    from imgproxy.specs.http.url import Url
    from imgproxy.transports.registry.registry_image import RegistryImage
    from imgproxy.transports.source import SignaturePlace

DIGEST = digests.parse("sha256:" + "a" * 64)
HOST = "https://registry.test"
TAIL = f"acme/os@sha256={'a' * 64}"
SIGNED = b"\x90 something"
NOTHING = answer(404)

# Before all others: whether the registry has the extension.
PING = asked(f"{HOST}/v2/", answer())
SUPPORTED = asked(f"{HOST}/v2/", answer(x_registry_supports_signatures="1"))
EXTENSION = f"{HOST}/extensions/v2/acme/os/signatures/{DIGEST}"
ATTACHED = f"{BASE}/manifests/sha256-{'a' * 64}.sig"
REFERRERS = f"{BASE}/referrers/{DIGEST}"
FILTERED = f"{REFERRERS}?artifactType=application%2Fvnd.dev.sigstore.bundle.v0.3%2Bjson"
FALLBACK = f"{BASE}/manifests/sha256-{'a' * 64}"


@asynccontextmanager
async def places(
    section: Section,
    *exchanges: Exchange,
    reference: str = REFERENCE,
    retries: int = 0,
    unreachable: dict[str, float | Exception] | None = None,
) -> AsyncIterator[list[SignaturePlace]]:
    """Return the places at a registry that plays a script, together with lookasides."""
    script = Script(*exchanges, unreachable=unreachable)
    client = Client(script, Notes(), stall_timeout=STALL, user_agent="test/1")

    def sections(scopes: Iterable[str]) -> Section:
        assert next(iter(scopes)) == reference
        return section

    def connect(base: Url) -> Failover[PlainUrl]:
        location = PlainUrl(base, client, allow_http=False)
        return Failover(location.name, [location], retries=retries)

    def find(image: RegistryImage, digest: digests.Digest) -> list[SignaturePlace]:
        return attached_signatures.places(
            image, parse_reference(reference), digest, sections, connect
        )

    source = image_at(script, [place(reference)], reference, retries=retries, signatures=[find])
    try:
        yield source.signatures(DIGEST)
    finally:
        source.close()
        client.close()
    script.check()


async def found(section: Section, *exchanges: Exchange, **named: Any) -> list[Signature]:  # noqa: ANN401
    """Read the lookaside, and then the registry."""
    async with places(section, *exchanges, **named) as (lookaside, attached, *_):
        return await lookaside.read() + await attached.read()


async def bundles(*exchanges: Exchange, **named: Any) -> list[Signature]:  # noqa: ANN401
    async with places(Section("file:///none", attachments=True), *exchanges, **named) as every:
        return await every[-1].read()


async def failure_of(section: Section, *exchanges: Exchange, **named: Any) -> Failure:  # noqa: ANN401
    with pytest.raises(Failure) as raised:
        await found(section, *exchanges, **named)
    return raised.value


# --- lookasides -----------------------------------------------------------------------------------


def filled(directory: Path, *contents: bytes) -> Section:
    """Return a lookaside with these signatures."""
    at = directory / TAIL
    at.mkdir(parents=True)
    for n, content in enumerate(contents, 1):
        (at / f"signature-{n}").write_bytes(content)
    return Section(f"file://{directory}", source="/r.yaml")


@virtual_time
async def test_a_lookaside_may_be_a_directory(tmp_path: Path) -> None:
    directory = tmp_path / "a b"
    section = filled(directory, SIGNED, b"\0simple-signing\nmore")
    where = f"{directory}/{TAIL}/signature"
    expected = [SimpleSignature(f"{where}-1", SIGNED), SimpleSignature(f"{where}-2", b"more")]
    assert await found(section, PING) == expected
    for written in (f"{section.lookaside}/", section.lookaside.replace(" ", "%20")):
        assert await found(section._replace(lookaside=written), PING) == expected
    assert await found(Section(f"file://{tmp_path}/none"), PING) == []
    async with places(section) as every:
        assert [each.name for each in every] == [
            section.lookaside,
            "the registry registry.test itself",
        ]


@virtual_time
async def test_signatures_are_counted_and_weighed(tmp_path: Path) -> None:
    assert len(await found(filled(tmp_path / "1", *[SIGNED] * MAX_SIGNATURES), PING)) == 128
    failure = await failure_of(filled(tmp_path / "2", *[SIGNED] * (MAX_SIGNATURES + 1)), PING)
    assert failure.message.endswith(": more than 128 signatures")
    assert refused(failure)[0] == 422
    failure = await failure_of(filled(tmp_path / "3", bytes(MAX_SIGNATURE_SIZE + 1)), PING)
    assert refused(failure) == (422, "SIZE_INVALID", False)
    big = SIGNED + bytes(MAX_SIGNATURE_SIZE - len(SIGNED))
    failure = await failure_of(filled(tmp_path / "4", *[big] * 9), PING)
    assert refused(failure) == (422, "SIZE_INVALID", False)


@virtual_time
async def test_a_signature_that_is_none_spoils_the_place(tmp_path: Path) -> None:
    failure = await failure_of(filled(tmp_path, SIGNED, b"{}"), PING)
    assert refused(failure) == (422, "MANIFEST_INVALID", False)
    assert failure.message == (
        f"{tmp_path}/{TAIL}/signature-2: it begins with 0x7b7d, unlike any signature"
    )


LOOKASIDE = "https://lookaside.test/sigs"
WEB = Section(LOOKASIDE, source="/r.yaml")


def file(number: int, *steps: bytes, base: str = LOOKASIDE, **fields: Any) -> Exchange:  # noqa: ANN401
    return asked(f"{base}/{TAIL}/signature-{number}", *steps, **fields)


@virtual_time
async def test_a_lookaside_may_be_a_web_server() -> None:
    name = f"{LOOKASIDE}/{TAIL}/signature"
    assert await found(
        WEB,
        PING,
        file(1, answer(body=SIGNED), authorization=None),
        file(2, answer(body=SIGNED)),
        file(3, NOTHING),
    ) == [SimpleSignature(f"{name}-1", SIGNED), SimpleSignature(f"{name}-2", SIGNED)]
    async with places(WEB) as every:
        assert every[0].name == "https://lookaside.test/…"


@virtual_time
async def test_a_lookaside_may_redirect() -> None:
    elsewhere = asked("https://else.test/1", answer(body=SIGNED))
    (one,) = await found(
        WEB, PING, file(1, answer(302, location="https://else.test/1")), elsewhere, file(2, NOTHING)
    )
    assert one.name == f"{LOOKASIDE}/{TAIL}/signature-1"
    failure = await failure_of(WEB, PING, file(1, answer(302, location="http://else.test/1")))
    assert refused(failure)[0] == 502


@pytest.mark.parametrize(
    ("reply", "wanted"),
    [
        (answer(403), (403, "DENIED", False)),
        (answer(500), (503, "UNAVAILABLE", True)),
        (answer(418), (502, "BAD_UPSTREAM", False)),
        (answer(body=bytes(MAX_SIGNATURE_SIZE + 1)), (422, "SIZE_INVALID", False)),
        (answer(body=SIGNED, content_encoding="gzip"), (502, "BAD_UPSTREAM", False)),
    ],
)
def test_a_lookaside_that_fails_says_so(reply: bytes, wanted: tuple[int, str, bool]) -> None:
    @virtual_time
    async def run() -> None:
        assert refused(await failure_of(WEB, PING, file(1, reply))) == wanted

    run()


@virtual_time
async def test_a_lookaside_that_is_busy_is_asked_again() -> None:
    busy = file(1, answer(503))
    (one,) = await found(WEB, PING, busy, file(1, answer(body=SIGNED)), file(2, NOTHING), retries=1)
    assert isinstance(one, SimpleSignature)


@pytest.mark.parametrize(
    "url", ["ftp://x/y", "file://host/x", "sigs", "https://user:secret@x/", "https://a b/"]
)
def test_a_lookaside_that_cannot_be_one_is_a_mistake(url: str) -> None:
    @virtual_time
    async def run() -> None:
        failure = await failure_of(Section(url, source="/r.yaml"), PING)
        assert isinstance(failure, ConfigurationError)
        assert failure.message.startswith("/r.yaml: the lookaside ")
        assert failure.detail == {"file": "/r.yaml"}
        assert "secret" not in failure.message

    run()


@virtual_time
async def test_offline_a_directory_can_still_be_looked_at(tmp_path: Path) -> None:
    section = filled(tmp_path, SIGNED)
    reference = parse_reference(REFERENCE)
    (one,) = attached_signatures.places_offline(reference, DIGEST, lambda _: section)
    assert len(await one.read()) == 1
    (other,) = attached_signatures.places_offline(reference, DIGEST, lambda _: WEB)
    with pytest.raises(DeniedError, match="--offline forbids asking there"):
        await other.read()


# --- the registry's own extension -----------------------------------------------------------------


def listed(*contents: bytes) -> bytes:
    entries = [
        {
            "schemaVersion": 2,
            "type": "atomic",
            "name": "x",
            "content": base64.b64encode(content).decode(),
        }
        for content in contents
    ]
    return json.dumps({"signatures": entries}).encode()


@virtual_time
async def test_the_extension_stands_in_place_of_the_lookaside(tmp_path: Path) -> None:
    section = filled(tmp_path, b"\x90 not this one")
    read = asked(EXTENSION, answer(body=listed(SIGNED, SIGNED)))
    where = f"signatures of {DIGEST} at registry.test/acme/os"
    assert await found(section, SUPPORTED, read) == [
        SimpleSignature(f"{where} (1)", SIGNED),
        SimpleSignature(f"{where} (2)", SIGNED),
    ]
    assert await found(section, SUPPORTED, asked(EXTENSION, NOTHING)) == []
    for no in ("0", "true"):
        ping = asked(f"{HOST}/v2/", answer(x_registry_supports_signatures=no))
        assert len(await found(section, ping)) == 1
    unauthorized = answer(401, x_registry_supports_signatures="1")
    assert len(await found(section, asked(f"{HOST}/v2/", unauthorized), read)) == 2


@pytest.mark.parametrize(
    ("body", "words"),
    [(b"{", "not JSON"), (listed(*[SIGNED] * 129), "more than 128 signatures")],
)
def test_the_extension_is_read_strictly(body: bytes, words: str) -> None:
    @virtual_time
    async def run() -> None:
        read = asked(EXTENSION, answer(body=body))
        failure = await failure_of(WEB, SUPPORTED, read)
        assert refused(failure)[0] == 422
        assert words in failure.message

    run()


# --- attachments ----------------------------------------------------------------------------------

NONE = Section("file:///none")
WITH = NONE._replace(attachments=True)


def described(content: bytes, kind: str = PAYLOAD, **fields: object) -> Json:
    return {"mediaType": kind, "digest": digest_of(content), "size": len(content), **fields}


def manifest(*layers: Json, **fields: object) -> bytes:
    config = described(b"{}", "application/vnd.oci.image.config.v1+json")
    document = {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config}
    return json.dumps({**document, "layers": list(layers), **fields}).encode()


def blob(content: bytes) -> Exchange:
    return asked(f"{BASE}/blobs/{digest_of(content)}", answer(body=content))


def at(url: str, document: bytes, kind: str = OCI_MANIFEST) -> Exchange:
    return asked(url, answer(body=document, content_type=kind))


@virtual_time
async def test_attachments_are_all_layers_under_a_tag() -> None:
    one = described(b"one", annotations={"k": "v"})
    document = manifest(one, described(b"two", "text/spdx"))
    name = f"registry.test/acme/os:sha256-{'a' * 64}.sig, layer"
    assert await found(WITH, PING, at(ATTACHED, document), blob(b"one"), blob(b"two")) == [
        SigstoreSignature(f"{name} 1", PAYLOAD, b"one", {"k": "v"}),
        SigstoreSignature(f"{name} 2", "text/spdx", b"two", {}),
    ]
    assert await found(WITH, PING, asked(ATTACHED, NOTHING)) == []
    async with places(WITH) as every:
        assert [each.name for each in every] == [
            "file:///none",
            "attached to registry.test/acme/os",
            "bundles at registry.test/acme/os",
        ]


@virtual_time
async def test_attachments_are_looked_at_where_that_is_set() -> None:
    for attachments in (None, False):
        async with places(NONE._replace(attachments=attachments), PING) as every:
            assert [await each.read() for each in every] == [[], []]


@virtual_time
async def test_attachments_have_limits() -> None:
    many = manifest(*[described(b"x")] * 129)
    assert "more than 128" in (await failure_of(WITH, PING, at(ATTACHED, many))).message
    for size in (MAX_SIGNATURE_SIZE + 1, 1 << 60):
        big = manifest({**described(b"x"), "size": size})
        failure = await failure_of(WITH, PING, at(ATTACHED, big))
        assert refused(failure) == (422, "SIZE_INVALID", False)
    failure = await failure_of(WITH, PING, at(ATTACHED, b'{"manifests":[]}', OCI_INDEX))
    assert "expected a document with layers" in failure.message


@virtual_time
async def test_an_attachment_that_is_short_is_what_came() -> None:
    layer = {**described(b"one"), "size": 5}
    (one,) = await found(WITH, PING, at(ATTACHED, manifest(layer)), blob(b"one"))
    assert isinstance(one, SigstoreSignature)
    assert one.payload == b"one"


# --- places that cannot be reached ----------------------------------------------------------------

REFUSED = ConnectionRefusedError(111, "Connection refused")


@virtual_time
async def test_a_registry_that_cannot_be_reached_hides_no_lookaside(tmp_path: Path) -> None:
    """Nobody knows if it has the extension, but a signature proves the same in either place."""
    section = filled(tmp_path, SIGNED)._replace(attachments=True)
    unreachable = {HOST: REFUSED}
    async with places(section, unreachable=unreachable) as (lookaside, *others):
        assert len(await lookaside.read()) == 1
        for each in others:
            with pytest.raises(Failure) as raised:
                await each.read()
            assert refused(raised.value) == (504, "UNREACHABLE", True)


@virtual_time
async def test_a_lookaside_that_cannot_be_reached_hides_nothing_in_the_registry() -> None:
    section = WEB._replace(attachments=True)
    document = manifest(described(b"one"))
    script = (
        *(PING, at(ATTACHED, document), blob(b"one")),
        *(referrers(FILTERED, LISTED), FETCHED, blob(CONTENT)),
    )
    unreachable = {"https://lookaside.test": REFUSED}
    async with places(section, *script, unreachable=unreachable) as (lookaside, *others):
        with pytest.raises(Failure) as raised:
            await lookaside.read()
        assert refused(raised.value) == (504, "UNREACHABLE", True)
        assert [len(await each.read()) for each in others] == [1, 1]


@virtual_time
async def test_what_is_asked_of_a_registry_is_asked_again_where_it_is_needed() -> None:
    """The lookaside does not wait for a registry that is busy; the registry's own place does."""
    section = Section("file:///none")
    busy = asked(f"{HOST}/v2/", b"")
    read = asked(EXTENSION, answer(body=listed(SIGNED)))
    async with places(section, busy, busy, SUPPORTED, read, retries=1) as (lookaside, attached):
        assert await lookaside.read() == []
        assert len(await attached.read()) == 1


# --- bundles --------------------------------------------------------------------------------------

CONTENT = b'{"a":"bundle"}'
REFERRER = manifest(described(CONTENT, BUNDLE), described(b"no", "text/x"), artifactType=BUNDLE)
LISTED = {**described(REFERRER, OCI_MANIFEST), "artifactType": BUNDLE}
OTHER = {**described(b"other", OCI_MANIFEST), "artifactType": "text/spdx"}
FETCHED = at(f"{BASE}/manifests/{digest_of(REFERRER)}", REFERRER)
EXPECTED = [BundleSignature(f"bundle {digest_of(REFERRER)}", CONTENT)]


def index(*entries: Json) -> bytes:
    return json.dumps({"schemaVersion": 2, "manifests": list(entries)}).encode()


def referrers(url: str, *entries: Json, **fields: Any) -> Exchange:  # noqa: ANN401
    return asked(url, answer(body=index(*entries), content_type=OCI_INDEX, **fields))


@virtual_time
async def test_bundles_are_what_refers_to_the_image() -> None:
    assert await bundles(referrers(FILTERED, OTHER, LISTED), FETCHED, blob(CONTENT)) == EXPECTED
    assert await bundles(referrers(FILTERED)) == []


@virtual_time
async def test_a_list_of_referrers_has_parts() -> None:
    link = f'</v2/acme/os/referrers/{DIGEST}?artifactType=x&last=1>; rel="next"'
    exchanges = (
        referrers(FILTERED, OTHER, link=link),
        referrers(f"{REFERRERS}?artifactType=x&last=1", LISTED),
    )
    assert await bundles(*exchanges, FETCHED, blob(CONTENT)) == EXPECTED
    endless = [
        referrers(url, link=link) for url in (FILTERED, *[f"{REFERRERS}?artifactType=x&last=1"] * 7)
    ]
    with pytest.raises(Failure, match="the list has more than 8 parts"):
        await bundles(*endless)


@virtual_time
async def test_a_registry_without_such_a_list_has_one_under_a_tag() -> None:
    for no in (NOTHING, answer(405), answer(400)):
        tagged = referrers(FALLBACK, OTHER, LISTED)
        assert await bundles(asked(FILTERED, no), tagged, FETCHED, blob(CONTENT)) == EXPECTED
    assert await bundles(asked(FILTERED, NOTHING), asked(FALLBACK, NOTHING)) == []


@virtual_time
async def test_bundles_that_cannot_be_had_say_so() -> None:
    for exchanges, wanted in (
        ([asked(FILTERED, answer(503))], (503, "UNAVAILABLE", True)),
        ([asked(FILTERED, answer(body=b"{"))], (422, "MANIFEST_INVALID", False)),
        (
            [asked(FILTERED, NOTHING), asked(FALLBACK, answer(body=b"{}"))],
            (422, "MANIFEST_INVALID", False),
        ),
        (
            [
                referrers(FILTERED, {**described(b"{}", OCI_MANIFEST), "artifactType": BUNDLE}),
                at(f"{BASE}/manifests/{digest_of(b'{}')}", b"{}"),
            ],
            (422, "MANIFEST_INVALID", False),
        ),
    ):
        with pytest.raises(Failure) as raised:
            await bundles(*exchanges)
        assert refused(raised.value) == wanted


# --- mirrors --------------------------------------------------------------------------------------


@virtual_time
async def test_each_endpoint_has_its_own_places() -> None:
    seen: list[str] = []

    def find(name: str, alone: RegistryImage, digest: digests.Digest) -> list[SignaturePlace]:
        seen.append(f"{name} {alone.name} {digest}")
        return []

    blocked = place("blocked.test/x/os:1", is_mirror=True, refusal="blocked")
    every = [blocked, *PLACES]
    found = [partial(find, each.reference.registry) for each in PLACES]
    async with registry(places=every) as (source, _):
        assert source.signatures(DIGEST) == []
    async with registry(places=every, signatures=found) as (source, _):
        assert source.signatures(DIGEST) == []
    assert seen == [
        f"{host} docker://{REFERENCE} {DIGEST}"
        for host in ("mirror.test", "other.test", "registry.test")
    ]
