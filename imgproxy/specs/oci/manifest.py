"""Manifests, indexes and descriptors as values.

OCI image specification 1.1 (manifest.md, image-index.md, descriptor.md), and Docker's image
manifest version 2, schema 2. A document is parsed once, strictly, and any ambiguity is refused
(CVE-2021-41190): keys of two formats in one document, keys that differ from a known one only in
case (Go accepts them), a body that contradicts the media type it was sent with.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from imgproxy.errors import InvalidError, UnsupportedFormatError
from imgproxy.parsing import strict_json
from imgproxy.parsing.typed_fields import FieldError, Fields, shown
from imgproxy.specs.oci import digest as digests
from imgproxy.specs.oci import media_type as types
from imgproxy.specs.oci import platform as platforms

if TYPE_CHECKING:
    from imgproxy.specs.oci.digest import Digest
    from imgproxy.specs.oci.platform import Platform

# The distribution specification requires registries to accept manifests of 4 MiB; larger ones are
# not portable. The same holds for configs, which every client reads whole.
MAX_DOCUMENT_SIZE = 4 * 1024 * 1024

# Sizes are int64 in the specification's own types; no file system holds larger files.
_MAX_SIZE = 2**63 - 1

# The keys that distinguish the formats.
_MANIFEST_KEYS = frozenset({"config", "layers"})
_INDEX_KEYS = frozenset({"manifests"})
_FORMAT_KEYS = _MANIFEST_KEYS | _INDEX_KEYS | {"fsLayers", "history"}
_TOP_KEYS = _FORMAT_KEYS | {
    "schemaVersion",
    "mediaType",
    "artifactType",
    "subject",
    "annotations",
    "signatures",
}
_DESCRIPTOR_KEYS = frozenset(
    {"mediaType", "digest", "size", "urls", "annotations", "data", "artifactType", "platform"}
)
_PLATFORM_KEYS = frozenset({"os", "architecture", "variant", "os.features"})

# What a descriptor or a manifest may state without being an artifact; go-containerregistry states
# the type of the config for true images as well.
_NO_ARTIFACTS = types.CONFIGS | {""}

# The annotation `kind` of cosign's layouts: images, indexes, and their signatures (`/sigs`),
# attestations (`/atts`) and SBOMs.
_COSIGN = "dev.cosignproject.cosign/"
_COSIGN_IMAGES = frozenset({f"{_COSIGN}image", f"{_COSIGN}imageIndex"})


class Descriptor(NamedTuple):
    """A descriptor of a blob or a manifest.

    `size` is in bytes, `media_type` empty where the document has none, `data` the embedded content
    if there is any, `platform` None where there is none, `artifact_type` empty where none is
    stated. `annotations` are pairs of key and value.
    """

    media_type: str
    digest: Digest
    size: int
    data: bytes | None = None
    urls: tuple[str, ...] = ()
    platform: Platform | None = None
    artifact_type: str = ""
    annotations: tuple[tuple[str, str], ...] = ()

    def annotation(self, key: str) -> str | None:
        """Return the value of an annotation, None where there is none."""
        return next((value for name, value in self.annotations if name == key), None)

    @property
    def ref_name(self) -> str | None:
        """The name of the image in a layout."""
        return self.annotation("org.opencontainers.image.ref.name")

    @property
    def image_name(self) -> str | None:
        """The name of the image in containerd, a whole reference."""
        return self.annotation("io.containerd.image.name")

    @property
    def title(self) -> str | None:
        """The name of a file whose content this is."""
        return self.annotation("org.opencontainers.image.title")

    @property
    def known_platform(self) -> Platform | None:
        """The platform, None also where it says that it is unknown."""
        platform = self.platform
        return None if platform and platform[:2] == ("unknown", "unknown") else platform

    @property
    def is_attestation(self) -> bool:
        """Whether it says that it is one: BuildKit in both ways, other writers only in one."""
        is_unknown = self.platform is not None and self.known_platform is None
        return is_unknown or self.annotation("vnd.docker.reference.type") is not None

    @property
    def is_companion(self) -> bool:
        """Whether it says that it is not an image but accompanies one, or stands for itself."""
        kind = self.annotation("kind") or ""
        is_cosign_s = kind.startswith(_COSIGN) and kind not in _COSIGN_IMAGES
        return self.is_attestation or is_cosign_s or self.artifact_type not in _NO_ARTIFACTS


class Manifest(NamedTuple):
    """An image's (or artifact's) manifest, OCI or Docker schema 2.

    `artifact_type` is empty for an image; else it is the one that the manifest states, or the type
    of its config (OCI image specification, manifest.md, "Guidelines for Artifact Usage").
    """

    media_type: str
    config: Descriptor
    layers: tuple[Descriptor, ...]
    subject: Descriptor | None
    artifact_type: str = ""

    @property
    def is_companion(self) -> bool:
        """Whether it is not an image: an artifact, or what refers to an image."""
        is_empty = self.config.media_type == types.EMPTY
        return is_empty or bool(self.artifact_type) or self.subject is not None


class Index(NamedTuple):
    """An OCI image index or a Docker manifest list."""

    media_type: str
    manifests: tuple[Descriptor, ...]
    subject: Descriptor | None

    @property
    def is_companion(self) -> bool:
        """Whether it refers to an image rather than to be one for several platforms."""
        return self.subject is not None


def parse(raw: bytes, claimed_type: str, name: str) -> Manifest | Index:
    """Parse a manifest or an index.

    `claimed_type` is the media type it was sent with: only a known one counts, with any other (an
    empty one, a content delivery network's `text/plain`) the document itself decides. `name` is
    its name in messages.

    Raises `InvalidError`, or `UnsupportedFormatError` for an unsupported format.
    """
    try:
        document = Fields(strict_json.loads(raw))
        media_type = _media_type(document, types.essence(claimed_type), name)
        _refuse_ambiguity(document, media_type)
        subject = document.optional_object("subject")
        subject_descriptor = None if subject is None else parse_descriptor(subject)
        if media_type in types.INDEXES:
            entries = tuple(map(parse_descriptor, document.each_object("manifests")))
            return Index(media_type, entries, subject_descriptor)
        config = parse_descriptor(document.object("config"))
        layers = tuple(map(parse_descriptor, document.each_object("layers")))
        artifact_type = _artifact_type(document, config)
        return Manifest(media_type, config, layers, subject_descriptor, artifact_type)
    except (FieldError, strict_json.JsonError) as error:
        raise InvalidError(f"parsing {name}: {error}") from None


def parse_index(raw: bytes, name: str) -> Index:
    """Parse an OCI index. Raises the same as `parse`, also for any other document."""
    document = parse(raw, types.OCI_INDEX, name)
    assert isinstance(document, Index)  # noqa: S101  (`parse` refuses others of this type)
    return document


def parse_platform(raw: bytes) -> Platform | None:
    """Return the platform in an image's config, None where it has no valid one.

    OCI image specification, config.md.
    """
    try:
        platform = _platform(Fields(strict_json.loads_tolerant(raw)))
    except (FieldError, strict_json.JsonError):
        return None
    return platform if platform.os and platform.architecture else None


def parse_created(raw: bytes) -> str:
    """Return when an image was created, as its config says, empty where it does not."""
    try:
        return Fields(strict_json.loads_tolerant(raw)).optional_text("created") or ""
    except (FieldError, strict_json.JsonError):
        return ""


def parse_annotations(raw: bytes) -> dict[str, str]:
    """Return the annotations of a document that has been parsed, none where they are not valid."""
    try:
        return Fields(strict_json.loads(raw)).text_map("annotations")
    except FieldError:
        return {}


def _media_type(document: Fields, claimed: str, name: str) -> str:
    """Return the document's media type; its own and the claimed one must agree."""
    refuse_lookalikes(document, _TOP_KEYS)
    own = document.optional_text("mediaType") or ""
    version = document.optional_integer("schemaVersion")
    claimed = claimed if claimed in types.KNOWN_DOCUMENTS else ""
    if (own or claimed) in types.SCHEMA1 or (version == 1 and not own):
        raise UnsupportedFormatError(
            f"{name} is a Docker schema 1 manifest, which is not supported;"
            " push the image again with a current tool to convert it"
        )
    media_type = own or claimed or _guess(document)
    if claimed and own and claimed != own:
        raise FieldError(f"mediaType: {shown(own)}, but the document was sent as {claimed}")
    if media_type not in types.KNOWN_DOCUMENTS:
        raise UnsupportedFormatError(
            f"{name} has the media type {shown(media_type)}, which is not supported"
        )
    if version not in (2, None):
        raise FieldError(f"schemaVersion: expected 2, got {version}")
    return media_type


def _artifact_type(document: Fields, config: Descriptor) -> str:
    artifact_type = _media_type_of(document, "artifactType") or config.media_type
    return "" if artifact_type in _NO_ARTIFACTS | {types.EMPTY} else artifact_type


def _guess(document: Fields) -> str:
    """Return the type of a document without a media type, by its keys."""
    if "manifests" in document:
        return types.OCI_INDEX
    config = document.optional_object("config")
    if config is None:
        raise FieldError("mediaType: missing, and the keys match no known format")
    docker = config.optional_text("mediaType") == types.DOCKER_CONFIG
    return types.DOCKER_MANIFEST if docker else types.OCI_MANIFEST


def _refuse_ambiguity(document: Fields, media_type: str) -> None:
    wanted = _INDEX_KEYS if media_type in types.INDEXES else _MANIFEST_KEYS
    foreign = sorted(key for key in document if key in _FORMAT_KEYS - wanted)
    if foreign:
        raise FieldError(f"{', '.join(foreign)}: ambiguous, does not belong into {media_type}")


def refuse_lookalikes(fields: Fields, known: frozenset[str]) -> None:
    """Raise `FieldError` for a key that a case-insensitive reader takes for a known one."""
    folded = {key.casefold() for key in known}
    for key in fields:
        if key not in known and key.casefold() in folded:
            raise FieldError(f"{fields.at(key)}: ambiguous, keys are case-sensitive")


def parse_descriptor(fields: Fields) -> Descriptor:
    """Parse an object of a document as a descriptor. Raises `FieldError`."""
    refuse_lookalikes(fields, _DESCRIPTOR_KEYS)
    media_type = _media_type_of(fields, "mediaType")
    size = fields.integer("size")
    if not 0 <= size <= _MAX_SIZE:
        raise FieldError(f"{fields.at('size')}: expected a size, got {size}")
    return Descriptor(
        media_type,
        _digest(fields),
        size,
        _data(fields),
        fields.texts("urls"),
        _platform_of(fields),
        fields.optional_text("artifactType") or "",
        tuple(fields.text_map("annotations").items()),
    )


def _media_type_of(fields: Fields, key: str) -> str:
    text = fields.optional_text(key) or ""
    if text and not types.is_valid(text):
        raise FieldError(f"{fields.at(key)}: {shown(text)} is not a media type")
    return text


def _digest(fields: Fields) -> Digest:
    try:
        return digests.parse(fields.text("digest"))
    except FieldError:
        raise
    except ValueError as error:
        raise FieldError(f"{fields.at('digest')}: {error}") from None


def _data(fields: Fields) -> bytes | None:
    return fields.optional_base64("data")


def _platform_of(fields: Fields) -> Platform | None:
    platform = fields.optional_object("platform")
    if platform is None:
        return None
    refuse_lookalikes(platform, _PLATFORM_KEYS)
    parsed = _platform(platform)
    return parsed if parsed.os or parsed.architecture else None


def _platform(fields: Fields) -> Platform:
    os, architecture, variant = (
        fields.optional_text(key) or "" for key in ("os", "architecture", "variant")
    )
    features = fields.texts("os.features")
    return platforms.normalized(os, architecture, variant, os_features=features)
