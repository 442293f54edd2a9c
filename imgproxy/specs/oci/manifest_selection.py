"""What a manifest must be to be chosen, besides its platform: imgproxy(1), SELECTION.

`--artifact-type` compares what a manifest is, `--annotation` what is written about it. Descriptors
are asked first; a manifest is fetched only where they are silent.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from imgproxy.errors import InvalidError, clean
from imgproxy.specs.oci import manifest as manifests
from imgproxy.specs.oci import media_type as types

if TYPE_CHECKING:
    from collections.abc import Iterable

    from imgproxy.specs.oci.manifest import Descriptor, Manifest

# What stands for images in place of an artifact type.
IMAGE = "image"

Annotation = tuple[str, str | None]


class ManifestConditions(NamedTuple):
    """Conditions for a manifest, all of which must hold.

    `artifact_type` is a media type, `IMAGE`, or empty for any. Of an annotation without a value,
    only the key counts.
    """

    artifact_type: str = ""
    annotations: tuple[Annotation, ...] = ()

    def __str__(self) -> str:
        stated = [f"--artifact-type {self.artifact_type}"] if self.artifact_type else []
        for key, value in self.annotations:
            stated.append(f"--annotation {key}" + ("" if value is None else f"={value}"))
        return clean(" ".join(stated))

    @property
    def is_for_images(self) -> bool:
        """Whether nothing but images fits."""
        return self.artifact_type == IMAGE

    def say(self, descriptor: Descriptor, around: Iterable[Descriptor] = ()) -> bool | None:
        """Return whether a descriptor says that all hold, None where the manifest must be asked.

        `around` are the descriptors of the indexes that lead to it: an annotation of one of them
        is one of all that it names.
        """
        said = [self._type_said(descriptor)] if self.artifact_type else []
        for key, value in self.annotations:
            own = descriptor.annotation(key)
            every = (own, *(index.annotation(key) for index in around))
            if any(each is not None and value in (None, each) for each in every):
                said.append(True)
            else:
                said.append(None if own is None else False)
        return False if False in said else None if None in said else True

    def _type_said(self, descriptor: Descriptor) -> bool | None:
        stated = descriptor.artifact_type
        if self.artifact_type == IMAGE and stated != IMAGE:
            return False if descriptor.is_companion else None
        return stated == self.artifact_type if stated else None

    def hold(
        self,
        descriptor: Descriptor,
        around: Iterable[Descriptor],
        manifest: Manifest,
        raw: bytes,
        name: str,
    ) -> bool:
        """Return whether all hold of a manifest, where its descriptor does not say the contrary.

        `raw` are the bytes of the manifest, `name` is the image in messages. Raises `InvalidError`
        for an artifact type that contradicts the descriptor's.
        """
        stated = _type(descriptor.artifact_type)
        own = manifest.artifact_type or ("" if manifest.is_companion else IMAGE)
        if self.artifact_type and stated and own and stated != own:
            raise InvalidError(
                f"{name}: {descriptor.digest} is of the type {clean(own)}, but the index that names"
                f" it says {clean(descriptor.artifact_type)}"
            )
        # What refers to an image may have the config of one, and registries state its type then.
        found = own or (types.EMPTY if stated in ("", IMAGE) else stated)
        annotations = (*descriptor.annotations, *manifests.parse_annotations(raw).items())
        informed = descriptor._replace(artifact_type=found, annotations=annotations)
        return self.say(informed, around) is True


def parse_annotation(text: str) -> Annotation:
    """Parse `KEY` or `KEY=VALUE`. Raises `ValueError`."""
    key, has_value, value = text.partition("=")
    if not key:
        raise ValueError("expected KEY or KEY=VALUE")
    return key, value if has_value else None


def parse_artifact_type(text: str) -> str:
    """Parse a media type, or `image`; the type of an image's config is `image` as well.

    Raises `ValueError`.
    """
    if text != IMAGE and not types.is_valid(text):
        raise ValueError("expected a media type, or image")
    return _type(text)


def _type(text: str) -> str:
    return IMAGE if text in types.CONFIGS else text
