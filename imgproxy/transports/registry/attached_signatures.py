"""Where the signatures of an image are: containers-registries.d(5), and what grew around it.

A lookaside (a directory, or files on a web server), or in its place the signature extension of
OpenShift's registry; where `use-sigstore-attachments` is set, what cosign attaches to images:
signatures under a tag, and bundles that refer to them. A place that fails says so as a whole, for
one signature that cannot be read may be the one that matters.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import unquote, urlsplit

from imgproxy.errors import (
    BadUpstreamError,
    ConfigurationError,
    DeniedError,
    InvalidError,
    NotFoundError,
    clean,
)
from imgproxy.specs.http import retry
from imgproxy.specs.http import url as urls
from imgproxy.specs.oci import distribution
from imgproxy.specs.oci import media_type as types
from imgproxy.specs.oci.manifest import MAX_DOCUMENT_SIZE
from imgproxy.specs.signing import artifact, signature
from imgproxy.specs.signing.signature import (
    MAX_SIGNATURE_SIZE,
    MAX_TOTAL_SIZE,
    BundleSignature,
    SigstoreSignature,
)
from imgproxy.transports import signature_files
from imgproxy.transports.file_tree import Directory
from imgproxy.transports.registry.endpoint import check_encoding, discard, follow
from imgproxy.transports.signature_files import Total, limited, numbered, readable
from imgproxy.transports.source import SignaturePlace, docker_identity

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from imgproxy.config.registries_d import Section
    from imgproxy.net.client import Client
    from imgproxy.specs.http.url import Url
    from imgproxy.specs.oci.digest import Digest
    from imgproxy.specs.oci.manifest import Descriptor
    from imgproxy.specs.oci.reference import Reference
    from imgproxy.specs.signing.artifact import Part
    from imgproxy.specs.signing.signature import Signature
    from imgproxy.transports.registry.failover import Endpoint
    from imgproxy.transports.registry.repository import Registry

# A list of referrers of one kind; each part of it costs a request.
_MAX_PARTS = 8

# The field that tells of the extension counts, whatever is said to whom has no token.
_ANY_STATUS = range(100, 600)

T = TypeVar("T")


def places(
    registry: Registry,
    reference: Reference,
    digest: Digest,
    sections: Callable[[Iterable[str]], Section],
    client: Callable[[Url], Client],
) -> list[SignaturePlace]:
    """Give where the signatures of a document at an endpoint are; see `Source.signatures`.

    `registry` has this endpoint alone, where the image is called `reference`; `sections` says what
    registries.d says of scopes, and `client` gives one for a lookaside. Raises what `sections`
    raises.
    """
    section = sections(docker_identity(reference).scopes)
    where = reference.name

    async def read() -> list[Signature]:
        found = await _extension(registry, where, digest)
        if found is None:
            found = await _lookaside(registry, section, reference, digest, client)
        return found + (await _attachments(registry, where, digest) if attachments else [])

    attachments = section.attachments
    attached = f" and attached to {where}" if attachments else ""
    every = [SignaturePlace(f"{_shown(section)}{attached}", read)]
    if attachments:
        bundles = partial(_bundles, registry, where, digest)
        every.append(SignaturePlace(f"bundles at {where}", bundles))
    return every


def places_offline(
    reference: Reference, digest: Digest, sections: Callable[[Iterable[str]], Section]
) -> list[SignaturePlace]:
    """Give where they are, as far as no network is needed."""
    section = sections(docker_identity(reference).scopes)
    return [_directory(section, reference, digest) or _forbidden(section)]


def _forbidden(section: Section) -> SignaturePlace:
    async def read() -> list[Signature]:
        raise DeniedError("--offline forbids asking there")

    return SignaturePlace(_shown(section), read)


def _shown(section: Section) -> str:
    """Give the URL of a lookaside as it may stand in a message."""
    is_local = section.lookaside.startswith("file:")
    return clean(section.lookaside) if is_local else urls.redacted(section.lookaside)


def _tail(reference: Reference, digest: Digest) -> str:
    return f"{reference.repository}@{digest.algorithm}={digest.encoded}"


def _directory(section: Section, reference: Reference, digest: Digest) -> SignaturePlace | None:
    """Give the lookaside where it is a directory. Raises `ConfigurationError` for no URL."""
    try:
        scheme, host, path, _, _ = urlsplit(section.lookaside)
    except ValueError as error:
        raise _unusable(section, str(error)) from None
    if scheme != "file" or host:
        return None
    base = unquote(path)
    if "\0" in base:
        raise _unusable(section, "a path has no NUL")
    return signature_files.place(Directory(f"{base.rstrip('/')}/{_tail(reference, digest)}"))


def _unusable(section: Section, reason: str) -> ConfigurationError:
    return ConfigurationError(
        f"{clean(section.source)}: the lookaside {_shown(section)} cannot be used: {clean(reason)}",
        file=section.source,
    )


async def _lookaside(
    registry: Registry,
    section: Section,
    reference: Reference,
    digest: Digest,
    client: Callable[[Url], Client],
) -> list[Signature]:
    directory = _directory(section, reference, digest)
    if directory is not None:
        return await directory.read()
    try:
        base = urls.parse(f"{section.lookaside.rstrip('/')}/{_tail(reference, digest)}/")
    except ValueError as error:
        raise _unusable(section, f"{error}, and not file:///") from None
    fetching = client(base)

    async def read(name: str) -> bytes:
        url = base._replace(target=base.target + name)
        return await _asked(registry, str(url), lambda _: _fetch(fetching, url))

    try:
        return await numbered(read, str(base))
    finally:
        fetching.close()


async def _fetch(client: Client, url: Url) -> bytes:
    """Give what is at a URL, without credentials. Raises `Failure`, `NotFoundError` for a 404."""
    response = await follow(client.get, url, lambda _: {}, allow_http=False)
    if response.status != 200:
        body = await discard(response)
        raise distribution.failure(response.url, response.status, body, "signature", "")
    check_encoding(response)
    return await response.read(MAX_SIGNATURE_SIZE)


async def _extension(registry: Registry, place: str, digest: Digest) -> list[Signature] | None:
    """Give what the registry itself has of signatures, None where it does not say that it does."""

    async def has(endpoint: Endpoint) -> bool:
        response = await endpoint.get("base", "", {}, wanted=_ANY_STATUS)
        await discard(response)
        return response.header("x-registry-supports-signatures") == "1"

    async def read(endpoint: Endpoint) -> bytes:
        response = await endpoint.get("signature", str(digest), {})
        return await response.read(MAX_TOTAL_SIZE)

    if not await _asked(registry, "base", has):
        return None
    where = f"signatures of {digest} at {place}"
    try:
        raw = await _asked(registry, where, read)
    except NotFoundError:
        return []
    with readable(where):
        return limited(signature.parse_extension_reply(raw, where), where)


async def _attachments(registry: Registry, place: str, digest: Digest) -> list[Signature]:
    """Give the signatures of cosign 1 and 2: the layers under a tag made of the digest."""
    tag = artifact.attachments_tag(digest)
    try:
        document = await registry.tagged(tag)
    except NotFoundError:
        return []
    with readable(document.name):
        parts = limited(artifact.layers(document.raw), document.name)
    total = Total()
    return [
        SigstoreSignature(
            f"{place}:{tag}, layer {n}",
            part.kind,
            await _content(registry, part.descriptor, total),
            part.annotations,
        )
        for n, part in enumerate(parts, 1)
    ]


async def _bundles(registry: Registry, place: str, digest: Digest) -> list[Signature]:
    """Give the signatures of cosign 3: artifacts of its type that refer to the document."""
    found: list[Signature] = []
    total = Total()
    named = {each.descriptor.digest: each for each in await _referrers(registry, place, digest)}
    # Each costs a request, and whoever may push can add to them.
    for part in limited(_of_kind([*named.values()]), f"referrers of {digest} at {place}"):
        document = await registry.document(part.descriptor)
        total.add(len(document.raw), document.name)
        with readable(document.name):
            layers = _of_kind(artifact.layers(document.raw))
        found += [
            BundleSignature(
                f"bundle {part.descriptor.digest}", await _content(registry, each.descriptor, total)
            )
            for each in layers
        ]
        limited(found, document.name)
    return found


def _of_kind(parts: list[Part]) -> list[Part]:
    return [part for part in parts if part.kind == signature.BUNDLE]


async def _referrers(registry: Registry, place: str, digest: Digest) -> list[Part]:
    """Give what refers to a document, by the registry's list or by the one under a tag."""
    where = f"referrers of {digest} at {place}"
    name: str | None = artifact.referrers_name(digest, signature.BUNDLE)
    found: list[Part] = []
    try:
        for _ in range(_MAX_PARTS):
            raw, link = await _asked(registry, where, partial(_list, name or ""))
            with readable(where):
                found += artifact.manifests(raw)
            name = artifact.following(digest, link)
            if name is None:
                return found
    except (NotFoundError, BadUpstreamError):  # it is older than the list
        return await _under_tag(registry, artifact.referrers_tag(digest))
    raise InvalidError(f"{where}: the list has more than {_MAX_PARTS} parts")


async def _list(name: str, endpoint: Endpoint) -> tuple[bytes, str]:
    response = await endpoint.get("referrer", name, {"Accept": types.OCI_INDEX})
    return await response.read(MAX_DOCUMENT_SIZE), response.header("link")


async def _under_tag(registry: Registry, tag: str) -> list[Part]:
    try:
        document = await registry.tagged(tag)
    except NotFoundError:
        return []
    with readable(document.name):
        return artifact.manifests(document.raw)


async def _content(registry: Registry, descriptor: Descriptor, total: Total) -> bytes:
    """Give a blob. Whether it is the one that was meant, its signature tells."""
    total.add(descriptor.size, f"blob {descriptor.digest}")
    reader = await registry.blob(descriptor)
    content = memoryview(bytearray(descriptor.size))
    filled = 0
    try:
        while filled < len(content) and (count := await reader.receive_into(content[filled:])):
            filled += count
    finally:
        reader.close()
    return bytes(content[:filled])


async def _asked(registry: Registry, what: str, attempt: Callable[[Endpoint], Awaitable[T]]) -> T:
    """Give what the only endpoint gives, perhaps after some retries."""
    _, found, _ = await registry.ask(what, attempt, retry.Budget(registry.retries))
    return found
