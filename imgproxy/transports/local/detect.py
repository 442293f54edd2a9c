"""What lies at a path: recognised by its content, never by its name."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

from imgproxy.config.policy import path_scopes
from imgproxy.errors import InvalidError, UnsupportedFormatError, clean
from imgproxy.host.files import OpenFile, failure
from imgproxy.specs.oci import manifest as manifests
from imgproxy.specs.oci.manifest import MAX_DOCUMENT_SIZE, Manifest
from imgproxy.specs.oci.reference import DirectoryName, DockerArchiveName, LayoutName, PathName
from imgproxy.transports import file_tree
from imgproxy.transports.file_tree import Directory
from imgproxy.transports.source import Identity, docker_identity

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from imgproxy.specs.oci.digest import Digest
    from imgproxy.specs.oci.manifest import Descriptor
    from imgproxy.specs.oci.reference import LocalName, Reference
    from imgproxy.transports.local.tar_archive import Archive
    from imgproxy.transports.source import Document, Place, Reader, SignaturePlace, Source

# Manifests that are looked at to find out whether an archive has what its indexes name.
_MAX_LOOKED_AT = 64


async def open_named(name: LocalName | PathName) -> Place:
    """Give the place that a name with a path means. Raises `Failure`."""
    if isinstance(name, PathName):
        return await _recognised(name.path, name.of)
    if isinstance(name, DirectoryName) or (
        isinstance(name, LayoutName) and name.transport == "oci"
    ):
        return _in_directory(name)
    from imgproxy.transports.local.tar_archive import open_archive

    archive = await open_archive(name.path)
    try:
        return _in_archive(_as_asked(name, archive), archive)
    except BaseException:
        archive.close()
        raise


class Sideloaded:
    """An image of a registry that lies here. See `Source`.

    The reference decides what it is called, and what its digest must be. Its signatures may lie
    beside it, and where those of the registry's image are: what `open_registry` gives.
    """

    def __init__(
        self,
        place: Place,
        reference: Reference,
        open_registry: Callable[[], Source] | None = None,
    ) -> None:
        self.name = f"docker://{reference} from {place.name}"
        self._open_registry = open_registry
        self._registry: Source | None = None
        self.identity = docker_identity(reference)
        self._place = place
        self._digest = reference.digest

    async def root(self) -> Document:
        """See `Source`."""
        if self._digest is None:
            return await self._place.root()
        return await self._place.seek(self._digest)

    async def document(self, descriptor: Descriptor) -> Document:
        """See `Source`."""
        return await self._place.document(descriptor)

    async def blob(self, descriptor: Descriptor) -> Reader:
        """See `Source`."""
        return await self._place.blob(descriptor)

    def signatures(self, digest: Digest) -> list[SignaturePlace]:
        """See `Source`."""
        found = self._place.signatures(digest)
        if self._registry is None and self._open_registry is not None:
            self._registry = self._open_registry()
        return found if self._registry is None else found + self._registry.signatures(digest)

    def close(self) -> None:
        """See `Source`."""
        self._place.close()
        if self._registry is not None:
            self._registry.close()


async def open_sideloaded(
    path: str, reference: Reference, open_registry: Callable[[], Source] | None = None
) -> Sideloaded:
    """Give the image of a registry that lies at a path; see `Sideloaded`. Raises `Failure`."""

    def name_of(transport: str) -> LocalName:
        if transport == "docker-archive":
            return DockerArchiveName(path, reference._replace(digest=None))
        return DirectoryName(path) if transport == "dir" else LayoutName(transport, path)

    if _is_manifest(path):
        from imgproxy.transports.local.registry_tree import RegistryTree

        place: Place = RegistryTree(path, docker_identity(reference))
    else:
        place = await _recognised(path, name_of, reference)
    return Sideloaded(place, reference, open_registry)


async def _recognised(
    path: str, name_of: Callable[[str], LocalName], reference: Reference | None = None
) -> Place:
    """Give the place at a path, by the name that its kind gives it.

    `reference`: it stands in for a registry, where it is called so.
    """
    if _is_directory(path):
        return _in_directory(name_of(_directory_kind(path)), reference)
    from imgproxy.transports.local.tar_archive import open_archive

    archive = await open_archive(path)
    try:
        name = _as_asked(name_of(await _archive_kind(archive)), archive)
        return _in_archive(name, archive, reference)
    except BaseException:
        archive.close()
        raise


def _in_directory(name: LocalName, reference: Reference | None = None) -> Place:
    path = os.path.realpath(name.path)
    if os.path.isfile(path):
        raise UnsupportedFormatError(
            f"{clean(name.path)} is a file, and no directory; read it with oci-archive: or"
            " docker-archive:"
        )
    if isinstance(name, LayoutName):
        from imgproxy.transports.local.oci_layout import OciLayout

        return OciLayout(name, Directory(path), Identity("oci", path_scopes(path)), reference)
    from imgproxy.transports.local.dir_format import ImageDirectory

    assert isinstance(name, DirectoryName)  # noqa: S101  (a Docker archive is a file)
    return ImageDirectory(name, Directory(path), Identity("dir", path_scopes(path)))


def _in_archive(name: LocalName, archive: Archive, reference: Reference | None = None) -> Place:
    if isinstance(name, DockerArchiveName):
        from imgproxy.transports.local.docker_archive import DockerArchive

        return DockerArchive(name, archive, is_lenient=reference is not None)
    from imgproxy.transports.local.oci_layout import OciLayout

    assert isinstance(name, LayoutName)  # noqa: S101  (a `dir:` is no file)
    # What the policy says of a path is said of the file that is open, and of no pipe.
    true_path = archive.true_path if name.transport == "oci-archive" else None
    scopes = [] if true_path is None else path_scopes(true_path)
    return OciLayout(name, archive, Identity(name.transport, scopes), reference)


def _is_directory(path: str) -> bool:
    try:
        return stat.S_ISDIR(os.stat(path).st_mode)
    except OSError as error:
        raise failure(path, error) from None


def _is_manifest(path: str) -> bool:
    """Whether it is a file of a registry's tree, which says itself only that it is JSON."""
    if os.path.basename(os.path.dirname(path)) != "manifests" or _is_directory(path):
        return False
    file = OpenFile(path)
    try:
        return file.read(64, 0).lstrip(b" \t\r\n")[:1] == b"{"
    finally:
        file.close()


def _directory_kind(path: str) -> str:
    for name, kind in (("index.json", "oci"), ("manifest.json", "dir")):
        try:
            os.lstat(f"{path}/{name}")
        except FileNotFoundError:
            continue
        except OSError as error:  # a directory that may not be entered says nothing of its content
            raise failure(f"{path}/{name}", error) from None
        return kind
    raise UnsupportedFormatError(
        f"{clean(path)} is a directory and no OCI layout (it has no index.json),"
        " nor does it have the manifest.json of a dir:"
    )


async def _archive_kind(archive: Archive) -> str:
    """Tell how an archive is read that may be readable in two ways."""
    if "index.json" not in archive:
        return "docker-archive"
    if "manifest.json" not in archive:
        return "oci-archive"
    return "oci-archive" if await _has_an_image(archive) else "docker-archive"


def _as_asked(name: LocalName, archive: Archive) -> LocalName:
    """Give the name that the archive can be read by; versions of Docker differ in what they write.

    Raises `UnsupportedFormatError` where there is none.
    """
    where = clean(archive.path)
    if isinstance(name, DockerArchiveName) and "manifest.json" not in archive:
        if "index.json" in archive:
            ref_name = str(name.reference) if name.reference else None
            return LayoutName("docker-archive", name.path, ref_name, name.position)
        if "repositories" in archive:
            raise UnsupportedFormatError(
                f"{where} was saved by Docker before version 1.10, in a format that is not read;"
                " load it into a current one and save it again"
            )
        raise UnsupportedFormatError(
            f"{where} has neither manifest.json nor index.json, so it is no image"
            f" (it has: {archive.names})"
        )
    if isinstance(name, LayoutName) and "index.json" not in archive:
        way_out = "; read it with docker-archive:" if "manifest.json" in archive else ""
        raise UnsupportedFormatError(
            f"{where} has no index.json, so it is no OCI layout (it has: {archive.names}){way_out}"
        )
    return name


async def _has_an_image(archive: Archive) -> bool:
    """Whether an archive has a whole image by its index.json; some versions of Docker forget one.

    An image without layers is none: that was what was written for one.
    """
    try:
        raw = await file_tree.read(archive, "index.json", MAX_DOCUMENT_SIZE)
        level: Sequence[Descriptor] = manifests.parse_index(raw, "index.json").manifests
        left = _MAX_LOOKED_AT
        while level and left > 0:
            documents = [
                manifests.parse(
                    await file_tree.read(archive, _blob_path(entry.digest), MAX_DOCUMENT_SIZE),
                    entry.media_type,
                    str(entry.digest),
                )
                for entry in level[:left]
                if _blob_path(entry.digest) in archive and not entry.is_attestation
            ]
            left -= len(level)
            if any(_is_whole(each, archive) for each in documents if isinstance(each, Manifest)):
                return True
            level = [
                entry
                for each in documents
                if not isinstance(each, Manifest)
                for entry in each.manifests
            ]
    except (InvalidError, UnsupportedFormatError):
        pass
    return False


def _is_whole(manifest: Manifest, archive: Archive) -> bool:
    blobs = (manifest.config, *manifest.layers)
    return bool(manifest.layers) and all(_blob_path(each.digest) in archive for each in blobs)


def _blob_path(digest: Digest) -> str:
    return f"blobs/{digest.algorithm}/{digest.encoded}"
