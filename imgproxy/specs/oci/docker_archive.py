"""The manifest.json of a Docker archive, and the OCI manifest that is generated from it.

Docker image specification v1.2, "Combined Image JSON + Filesystem Changeset Format". An archive has
no manifest digest of its own. The generated manifest depends on the image's content alone, and is
the same in every version of this program, since parents store its digest.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, NamedTuple

from imgproxy.errors import InvalidError
from imgproxy.parsing import strict_json
from imgproxy.parsing.typed_fields import FieldError, Fields
from imgproxy.specs.oci import digest as digests
from imgproxy.specs.oci import manifest as manifests
from imgproxy.specs.oci import media_type as types

if TYPE_CHECKING:
    from collections.abc import Sequence

    from imgproxy.specs.oci.choices import Choice
    from imgproxy.specs.oci.digest import Digest
    from imgproxy.specs.oci.manifest import Descriptor
    from imgproxy.specs.oci.platform import Platform

_KEYS = frozenset({"Config", "RepoTags", "Layers", "LayerSources"})
_CONFIG_KEYS = frozenset({"rootfs"})
_ROOTFS_KEYS = frozenset({"type", "diff_ids"})

# The suffix of a layer's media type by its first bytes. OCI defines `+gzip` and `+zstd` only; the
# others follow the same pattern.
_COMPRESSIONS = {
    b"\x1f\x8b": "+gzip",
    b"\x28\xb5\x2f\xfd": "+zstd",
    b"BZh": "+bzip2",
    b"\xfd7zXZ\0": "+xz",
}


class Item(NamedTuple):
    """One image of an archive: the names of its members, and its tags.

    `sources` are descriptors of layers in a registry, by their diff_id.
    """

    config: str
    repo_tags: tuple[str, ...]
    layers: tuple[str, ...]
    sources: dict[str, Descriptor]


def parse(raw: bytes, name: str) -> list[Item]:
    """Return the images that a manifest.json lists.

    `name` is the name of the document in messages. Raises `InvalidError`.
    """
    try:
        items = Fields({"images": strict_json.loads(raw)}).objects("images")
        return list(map(_item, items))
    except (FieldError, strict_json.JsonError) as error:
        raise InvalidError(f"parsing {name}: {error}") from None


def _item(item: Fields) -> Item:
    fields = item.folded(_KEYS)
    sources = fields.optional_object("LayerSources")
    return Item(
        fields.text("Config"),
        fields.texts("RepoTags"),
        fields.texts("Layers"),
        {}
        if sources is None
        else {key: manifests.parse_descriptor(sources.object(key)) for key in sources},
    )


def parse_diff_ids(raw: bytes, name: str) -> tuple[Digest, ...] | None:
    """Return the digests of the uncompressed layers in a config, None where it lists none.

    OCI image specification, config.md, "rootfs". The rest of a config is not looked at, as that of
    a config in a layout is not: it is for those who run the image. Raises `InvalidError`.
    """
    try:
        document = Fields(strict_json.loads_tolerant(raw)).folded(_CONFIG_KEYS)
        rootfs = document.optional_object("rootfs")
        if rootfs is None:
            return None
        return tuple(map(digests.parse, rootfs.folded(_ROOTFS_KEYS).texts("diff_ids")))
    except ValueError as error:  # FieldError, JsonError, or of a digest
        raise InvalidError(f"parsing {name}: {error}") from None


def layer_type(head: bytes) -> str:
    """Return the media type of a layer by its first bytes, six at least."""
    suffix = next((name for magic, name in _COMPRESSIONS.items() if head.startswith(magic)), "")
    return types.OCI_LAYER + suffix


def foreign_type(media_type: str) -> str:
    """Return the media type of a layer of which the archive has only the source's descriptor."""
    _, plus, suffix = media_type.replace(".tar.", ".tar+").partition("+")
    return f"{types.OCI_NONDISTRIBUTABLE}{plus}{suffix}"


def make_index(images: Sequence[Choice]) -> bytes:
    """Return an index of images whose digests, sizes and platforms are known, in a fixed form."""
    entries = [
        {
            "mediaType": image.media_type,
            "digest": str(image.digest),
            "size": image.size,
            "platform": _platform(image.platform),
        }
        for image in images
        if image.platform is not None
    ]
    document = {"schemaVersion": 2, "mediaType": types.OCI_INDEX, "manifests": entries}
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()


def _platform(platform: Platform) -> dict[str, object]:
    described: dict[str, object] = {"architecture": platform.architecture, "os": platform.os}
    if platform.os_features:
        described["os.features"] = list(platform.os_features)
    if platform.variant:
        described["variant"] = platform.variant
    return described


def make_manifest(config: Descriptor, layers: Sequence[Descriptor]) -> bytes:
    """Return the OCI manifest of an image, in its canonical form."""
    document = {
        "schemaVersion": 2,
        "mediaType": types.OCI_MANIFEST,
        "config": _described(config),
        "layers": [_described(layer) for layer in layers],
    }
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()


def _described(descriptor: Descriptor) -> dict[str, object]:
    described: dict[str, object] = {
        "mediaType": descriptor.media_type,
        "digest": str(descriptor.digest),
        "size": descriptor.size,
    }
    if descriptor.urls:
        described["urls"] = list(descriptor.urls)
    return described
