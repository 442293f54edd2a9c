"""Names of images: the IMAGE argument, and references to images in registries.

The grammar of a reference is that of the distribution project (`reference`), as in
containers-transports(5). The text before the first `:` is a transport only if it is on a list, so
that `localhost:5000/x` needs no prefix.

All functions raise `BadRequestError` with the code NAME_INVALID for a malformed name.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple, NoReturn

from imgproxy.errors import OMISSION, BadRequestError, clean
from imgproxy.specs.oci import digest as digests
from imgproxy.specs.oci import registry_name

if TYPE_CHECKING:
    from imgproxy.specs.oci.digest import Digest

_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_REPOSITORY = re.compile(f"{_COMPONENT}(?:/{_COMPONENT})*")
_TAG = re.compile(r"\w[\w.-]{0,127}", re.ASCII)
_REF_NAME = re.compile(r"[A-Za-z0-9]+(?:(?:[-._:@/+]|--)[A-Za-z0-9]+)*")
_POSITION = re.compile(r"@([0-9]{1,9})")
_WORD = re.compile(r"[a-z][a-z0-9+-]*")
_AFTER_USERINFO = re.compile(r"[./:]|localhost")
_DIGESTS = re.compile(r"(?:@(?:sha256|sha384|sha512|blake3):[^@/]*)*\Z")
_HEX_ID = re.compile(r"[0-9a-f]{64}")

_MAX_NAME = 255

# Transports of other tools that this program does not support, each with a way out.
_UNSUPPORTED = {
    "containers-storage": "push the image from there to a registry, or save it with"
    " `podman save --format oci-dir`",
    "docker-daemon": "save the image with `docker save`",
    "sif": "convert it with `skopeo copy`",
    "tarball": "convert it with `skopeo copy`",
    "ostree": "export it with `ostree container encapsulate`",
    "atomic": "name the registry behind it with docker://",
}
_LOCAL = {
    "oci": "oci:DIR, oci:DIR:REF or oci:DIR:@N",
    "oci-archive": "oci-archive:FILE, oci-archive:FILE:REF or oci-archive:FILE:@N",
    "docker-archive": "docker-archive:FILE, docker-archive:FILE:NAME[:TAG] or"
    " docker-archive:FILE:@N",
    "dir": "dir:DIR",
}

# What stands before the first colon of an image's name, in any tool of the ecosystem.
TRANSPORTS = frozenset({"docker", *_LOCAL, *_UNSUPPORTED})


class Reference(NamedTuple):
    """An image in a registry: `registry/repository[:tag][@digest]`, normalised.

    With both a tag and a digest, the digest decides; with neither, it is a repository. The registry
    is as `registry_name.normal` has it.
    """

    registry: str
    repository: str
    tag: str | None
    digest: Digest | None

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        return f"{self.name}{tag}" + (f"@{self.digest}" if self.digest else "")

    @property
    def name(self) -> str:
        """The repository with its registry: the name that configuration files refer to."""
        return f"{self.registry}/{self.repository}"

    @property
    def manifest(self) -> str:
        """The last component of the manifest's path in the registry, after `/manifests/`."""
        return str(self.digest or self.tag)


class LayoutName(NamedTuple):
    """`oci:DIR[:REF|:@N]`, `oci-archive:FILE…`: by annotation, by position, or the only image."""

    transport: str
    path: str
    ref_name: str | None = None
    position: int | None = None

    def __str__(self) -> str:
        return _joined(self.transport, self.path, self.ref_name, self.position)


class DockerArchiveName(NamedTuple):
    """`docker-archive:FILE[:NAME[:TAG]|:@N]`: by tag, by position, or the only image."""

    path: str
    reference: Reference | None = None
    position: int | None = None

    def __str__(self) -> str:
        return _joined("docker-archive", self.path, self.reference, self.position)


class DirectoryName(NamedTuple):
    """`dir:DIR`."""

    path: str

    def __str__(self) -> str:
        return f"dir:{self.path}"


class PathName(NamedTuple):
    """A path without a transport; the transport is detected from the content at the path."""

    path: str
    tail: str

    def of(self, transport: str) -> LocalName:
        """Return the name with the transport that has been detected."""
        if self.tail and transport == "dir":
            _refuse(
                f"{self.path}:{self.tail}",
                f"{self.path} is a dir:, which has one image; expected {self.path} alone",
            )
        return _local(transport, f"{self.path}:{self.tail}" if self.tail else self.path)


class ShortName(NamedTuple):
    """A name without a registry, which registries.conf resolves."""

    text: str

    def __str__(self) -> str:
        return self.text


LocalName = LayoutName | DockerArchiveName | DirectoryName
ImageName = Reference | LocalName | PathName | ShortName


def parse_image(text: str) -> ImageName:
    """Parse the IMAGE argument."""
    if text.startswith(("/", "./", "../")):
        path, _, tail = text.partition(":")
        return PathName(path, tail)
    word, colon, rest = text.partition(":")
    if colon and word == "docker":
        if not rest.startswith("//"):
            _refuse(text, "expected docker://NAME")
        return parse_reference(rest[2:])
    if colon and word in _LOCAL:
        return _local(word, rest)
    if colon and word in _UNSUPPORTED:
        _refuse(text, f"the transport {word}: is not supported; {_UNSUPPORTED[word]}")
    if colon and rest.startswith("//") and _WORD.fullmatch(word):
        _refuse(text, f'unknown transport "{word}"')
    reference = parse_reference(text)
    return reference if has_registry(text) else ShortName(text)


def parse_reference(text: str) -> Reference:
    """Parse `[HOST[:PORT]/]NAME[:TAG][@DIGEST]`, and return it normalised.

    The default host is Docker Hub, the default tag `latest` where there is no digest either.
    """
    named = parse_named(text)
    return named if named.tag or named.digest else named._replace(tag="latest")


def parse_named(text: str) -> Reference:
    """Parse the same without a default tag: signatures and policies may name a repository."""
    rest, at, digest_text = text.partition("@")
    digest = _digest(text, digest_text) if at else None
    registry, repository = "docker.io", rest
    if has_registry(rest):
        registry, _, repository = rest.partition("/")
    repository, colon, tag = repository.partition(":")
    if _HEX_ID.fullmatch(rest):
        _refuse(text, "64 hexadecimal digits are an image's ID, not a name")
    if colon and not is_tag(tag):
        _refuse(text, f'the tag "{clean(tag)}" is malformed')
    whole = parse_parts(registry, repository, text)
    return whole._replace(tag=tag if colon else None, digest=digest)


def parse_parts(registry: str, repository: str, text: str | None = None) -> Reference:
    """Return the repository of a registry, normalised, from its two parts.

    `text` is what they are parts of, for messages.
    """
    text = f"{registry}/{repository}" if text is None else text
    registry = registry_name.normal(registry)
    if registry == "docker.io" and "/" not in repository:
        repository = f"library/{repository}"
    _check_registry(text, registry)
    _check_repository(text, repository)
    if len(registry) + 1 + len(repository) > _MAX_NAME:
        _refuse(text, f"the name is longer than {_MAX_NAME} characters")
    return Reference(registry, repository, None, None)


def is_tag(text: str) -> bool:
    """Return whether a text can be a tag."""
    return _TAG.fullmatch(text) is not None


def shown(text: str) -> str:
    """Return a possible name of an image for messages, without user and password.

    That is what stands before an `@` that is followed by a host or a path, and not by a digest.
    """
    if text.startswith(("/", "./", "../")) or text.partition(":")[0] in {**_LOCAL, **_UNSUPPORTED}:
        return clean(text)  # a path, which may have an `@`
    digests_at = next(_DIGESTS.finditer(text)).start()
    userinfo, at, name = text[:digests_at].rpartition("@")
    if not userinfo or not _AFTER_USERINFO.search(name):
        return clean(text)
    return clean(f"{OMISSION}{at}{name}{text[digests_at:]}")


def has_registry(text: str) -> bool:
    """Return whether the first of several components is a host.

    That is one with a dot or a colon, or `localhost`.
    """
    first, slash, _ = text.partition("/")
    return bool(slash) and (first == "localhost" or "." in first or ":" in first)


def _check_registry(text: str, registry: str) -> None:
    if not registry_name.is_registry(registry):
        _refuse(text, f'the registry "{clean(registry)}" is malformed')


def _check_repository(text: str, repository: str) -> None:
    if _REPOSITORY.fullmatch(repository) is None:
        if _REPOSITORY.fullmatch(repository.lower()) is not None:
            _refuse(text, "the repository must be lower-case")
        _refuse(text, f'the repository "{clean(repository)}" is malformed')


def _digest(text: str, digest_text: str) -> Digest:
    try:
        return digests.parse(digest_text)
    except ValueError as error:
        _refuse(text, str(error))


def _local(transport: str, text: str) -> LocalName:
    # `skopeo sync` writes directories with colons in their names, HOST:PORT/NAME:TAG.
    path, _, tail = (text, "", "") if transport == "dir" else text.partition(":")
    whole = f"{transport}:{text}"
    if not path or "\0" in path:
        _refuse(whole, f"expected {_LOCAL[transport]}")
    if transport == "dir":
        return DirectoryName(path)
    if path == "-" and transport != "oci":
        path = "/dev/stdin"
    match = _POSITION.fullmatch(tail)
    position = int(match[1]) if match else None
    if transport == "docker-archive":
        return DockerArchiveName(path, None if match else _tagged(whole, tail), position)
    if tail and not match and not _is_ref_name(tail):
        _refuse(whole, f'"{clean(tail)}" is neither a reference nor a position (@N)')
    return LayoutName(transport, path, tail if tail and not match else None, position)


def _is_ref_name(text: str) -> bool:
    """Return whether a layout may call an image so: by the grammar there, or as a registry does."""
    if _REF_NAME.fullmatch(text):
        return True
    try:
        parse_named(text)
    except BadRequestError:
        return False
    return True


def _tagged(whole: str, tail: str) -> Reference | None:
    try:
        reference = parse_reference(tail) if tail else None
    except BadRequestError:
        _refuse(whole, f'"{clean(tail)}" is neither NAME[:TAG] nor a position (@N)')
    if reference is not None and reference.digest is not None:
        _refuse(whole, "images in a Docker archive have names and positions, no digests")
    return reference


def _joined(transport: str, path: str, name: object, position: int | None) -> str:
    tail = name if position is None else f"@{position}"
    return f"{transport}:{path}" + (f":{tail}" if tail else "")


def _refuse(text: str, reason: str) -> NoReturn:
    name = shown(text)
    if name != clean(text):  # a part may be in the reason, too
        reason = (
            "expected [HOST[:PORT]/]NAME[:TAG][@ALGORITHM:ENCODED]; a user and a password go into"
            " --creds or an auth.json"
        )
    raise BadRequestError(f'the image name "{name}": {reason}', code="NAME_INVALID")
