"""Where the signatures of an image are: containers-registries.d(5), and what grew around it.

A lookaside (a directory, or files on a web server), or in its place the signature extension of
OpenShift's registry; where `use-sigstore-attachments` is set, what cosign attaches to images:
signatures under a tag, and bundles that refer to them. A place that fails says so as a whole, for
one signature that cannot be read may be the one that matters.
"""

from __future__ import annotations

from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import unquote, urlsplit

from imgproxy import files
from imgproxy.config.policy import docker_scopes
from imgproxy.errors import (
    BadUpstreamError,
    ConfigurationError,
    InvalidError,
    NotFoundError,
    clean,
)
from imgproxy.spec import artifact, distribution, retry, signature
from imgproxy.spec import media_type as types
from imgproxy.spec import url as urls
from imgproxy.spec.manifest import MAX_DOCUMENT_SIZE
from imgproxy.spec.signature import (
    MAX_SIGNATURE_SIZE,
    MAX_SIGNATURES,
    MAX_TOTAL_SIZE,
    BundleSignature,
    SignatureError,
    SigstoreSignature,
)
from imgproxy.transports.endpoint import discard
from imgproxy.transports.source import SignaturePlace

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Iterator

    from imgproxy.client import Client
    from imgproxy.config.registries_d import Section
    from imgproxy.spec.artifact import Part
    from imgproxy.spec.digest import Digest
    from imgproxy.spec.manifest import Descriptor
    from imgproxy.spec.signature import Signature
    from imgproxy.spec.url import Url
    from imgproxy.transports.endpoint import Endpoint
    from imgproxy.transports.registry import Registry

# A list of referrers of one kind; each part of it costs a request.
_MAX_PARTS = 8

# The field that tells of the extension counts, whatever is said to whom has no token.
_ANY_STATUS = range(100, 600)

T = TypeVar("T")


class _Total:
    """How much has been read at one place; it has a limit."""

    def __init__(self) -> None:
        self._left = MAX_TOTAL_SIZE

    def add(self, size: int, where: str) -> None:
        self._left -= size
        if size > MAX_SIGNATURE_SIZE or self._left < 0:
            raise InvalidError(
                f"{where}: more than {MAX_SIGNATURE_SIZE} bytes of a signature,"
                f" or {MAX_TOTAL_SIZE} of all",
                code="SIZE_INVALID",
            )


def places(
    registry: Registry,
    endpoint: Endpoint,
    digest: Digest,
    sections: Callable[[Iterable[str]], Section],
    client: Callable[[Url], Client],
) -> list[SignaturePlace]:
    """Give where the signatures of a document at an endpoint are; see `Source.signatures`.

    `registry` has this endpoint alone, `sections` says what registries.d says of scopes, and
    `client` gives one for a lookaside. Raises what `sections` raises.
    """
    reference = endpoint.place.reference
    suffix = f"@{reference.digest}" if reference.digest else f":{reference.tag}"
    section = sections(docker_scopes(reference.registry, reference.repository, suffix))

    async def read() -> list[Signature]:
        found = await _extension(registry, endpoint, digest)
        if found is None:
            found = await _lookaside(registry, section, reference.repository, digest, client)
        return found + (await _attachments(registry, endpoint, digest) if attachments else [])

    attachments = section.attachments
    is_local = section.lookaside.startswith("file:")
    shown = clean(section.lookaside) if is_local else urls.redacted(section.lookaside)
    attached = f" and attached to {endpoint.name}" if attachments else ""
    every = [SignaturePlace(f"{shown}{attached}", read)]
    if attachments:
        bundles = partial(_bundles, registry, endpoint, digest)
        every.append(SignaturePlace(f"bundles at {endpoint.name}", bundles))
    return every


async def in_directory(directory: str, prefix: str = "") -> list[Signature]:
    """Give the signatures that lie in a directory as `<prefix>signature-N`, in either encoding.

    That is how a lookaside keeps them, and `dir:`, where the prefix is `<hex>.` for a manifest
    behind an index. Raises `Failure`.
    """

    def path(number: int) -> str:
        return f"{directory}/{prefix}signature-{number}"

    async def read(number: int) -> bytes:
        return await files.read_file(path(number), MAX_SIGNATURE_SIZE)

    return await _numbered(read, lambda number: clean(path(number)))


async def _numbered(
    read: Callable[[int], Awaitable[bytes]], name: Callable[[int], str]
) -> list[Signature]:
    """Give the signatures from number 1 to the first that is not there: a `NotFoundError`.

    Raises `InvalidError` for what is no signature, or for too many of them.
    """
    found: list[Signature] = []
    total = _Total()
    while True:
        number = len(found) + 1
        where = name(number)
        try:
            content = await read(number)
        except NotFoundError:
            return found
        total.add(len(content), where)
        with _readable(where):
            found.append(signature.decode(content, where))
        _limited(found, where)


async def _lookaside(
    registry: Registry,
    section: Section,
    repository: str,
    digest: Digest,
    client: Callable[[Url], Client],
) -> list[Signature]:
    parts = urlsplit(section.lookaside)
    tail = f"{repository}@{digest.algorithm}={digest.encoded}"
    if parts.scheme == "file" and not parts.netloc:
        return await in_directory(f"{unquote(parts.path).rstrip('/')}/{tail}")
    try:
        base = urls.parse(f"{section.lookaside.rstrip('/')}/{tail}")
    except ValueError as error:
        raise ConfigurationError(
            f"{clean(section.source)}: the lookaside {urls.redacted(section.lookaside)} cannot be"
            f" used: {error}, and not file:///",
            file=section.source,
        ) from None
    fetching = client(base)

    async def read(number: int) -> bytes:
        url = base._replace(target=f"{base.target}/signature-{number}")
        return await _asked(registry, str(url), lambda _: _fetch(fetching, url))

    try:
        return await _numbered(read, lambda number: f"{base}/signature-{number}")
    finally:
        fetching.close()


async def _fetch(client: Client, url: Url) -> bytes:
    """Give what is at a URL, without credentials. Raises `Failure`, `NotFoundError` for a 404."""
    for _ in range(distribution.MAX_REDIRECTS + 1):
        response = await client.get(url, {})
        if response.status == 200:
            return await response.read(MAX_SIGNATURE_SIZE)
        await discard(response)
        if response.status not in distribution.REDIRECTS:
            raise distribution.failure(url, response.status, b"", "signature", "")
        url = distribution.redirect(url, response.header("location"), allow_http=False)
    raise BadUpstreamError(f"GET {url}: redirected more than {distribution.MAX_REDIRECTS} times")


async def _extension(
    registry: Registry, endpoint: Endpoint, digest: Digest
) -> list[Signature] | None:
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
    where = f"signatures of {digest} at {endpoint.name}"
    try:
        raw = await _asked(registry, where, read)
    except NotFoundError:
        return []
    with _readable(where):
        return _limited(signature.of_extension(raw, where), where)


async def _attachments(registry: Registry, endpoint: Endpoint, digest: Digest) -> list[Signature]:
    """Give the signatures of cosign 1 and 2: the layers under a tag made of the digest."""
    tag = artifact.attachments_tag(digest)
    try:
        document = await registry.tagged(tag)
    except NotFoundError:
        return []
    with _readable(document.name):
        parts = _limited(artifact.layers(document.raw), document.name)
    total = _Total()
    return [
        SigstoreSignature(
            f"{endpoint.name}:{tag}, layer {n}",
            part.kind,
            await _content(registry, part.descriptor, total),
            part.annotations,
        )
        for n, part in enumerate(parts, 1)
    ]


async def _bundles(registry: Registry, endpoint: Endpoint, digest: Digest) -> list[Signature]:
    """Give the signatures of cosign 3: artifacts of its type that refer to the document."""
    found: list[Signature] = []
    total = _Total()
    for part in _of_kind(await _referrers(registry, endpoint, digest)):
        document = await registry.document(part.descriptor)
        total.add(len(document.raw), document.name)
        with _readable(document.name):
            layers = _of_kind(artifact.layers(document.raw))
        found += [
            BundleSignature(
                f"bundle {part.descriptor.digest}", await _content(registry, each.descriptor, total)
            )
            for each in layers
        ]
        _limited(found, document.name)
    return found


def _of_kind(parts: list[Part]) -> list[Part]:
    return [part for part in parts if part.kind == signature.BUNDLE]


async def _referrers(registry: Registry, endpoint: Endpoint, digest: Digest) -> list[Part]:
    """Give what refers to a document, by the registry's list or by the one under a tag."""
    where = f"referrers of {digest} at {endpoint.name}"
    name: str | None = artifact.referrers_name(digest, signature.BUNDLE)
    found: list[Part] = []
    try:
        for _ in range(_MAX_PARTS):
            raw, link = await _asked(registry, where, partial(_list, name or ""))
            with _readable(where):
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
    with _readable(document.name):
        return artifact.manifests(document.raw)


async def _content(registry: Registry, descriptor: Descriptor, total: _Total) -> bytes:
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


@contextmanager
def _readable(where: str) -> Iterator[None]:
    """Raise `InvalidError` for what does not parse."""
    try:
        yield
    except SignatureError as error:
        raise InvalidError(f"{where}: {error}") from None


def _limited(found: list[T], where: str) -> list[T]:
    if len(found) > MAX_SIGNATURES:
        raise InvalidError(f"{where}: more than {MAX_SIGNATURES} signatures")
    return found
