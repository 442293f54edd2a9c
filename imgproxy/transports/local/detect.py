"""Open local images: by the transport in a name, or detected by their content, never by file name.

containers-transports(5) has the names; what a path without a transport holds is decided here.
"""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

from imgproxy.config.policy import path_scopes
from imgproxy.errors import (
    InvalidError,
    NotFoundError,
    UnsupportedFormatError,
    clean,
    closing_on_error,
)
from imgproxy.host.blocking_calls import call
from imgproxy.host.files import OpenFile, failure
from imgproxy.specs.oci import manifest as manifests
from imgproxy.specs.oci.manifest import MAX_DOCUMENT_SIZE, Manifest
from imgproxy.specs.oci.reference import DirectoryName, DockerArchiveName, LayoutName, PathName
from imgproxy.transports import file_tree
from imgproxy.transports.file_tree import Directory
from imgproxy.transports.local import near_misses
from imgproxy.transports.source import Identity, docker_identity

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from imgproxy.host.files import FileState
    from imgproxy.specs.oci.digest import Digest
    from imgproxy.specs.oci.manifest import Descriptor
    from imgproxy.specs.oci.reference import LocalName, Reference
    from imgproxy.transports.local.docker_archive import Made
    from imgproxy.transports.local.tar_archive import Archive
    from imgproxy.transports.source import SearchableSource

    # Returns what is known of an archive that is open.
    MadeOf = Callable[[FileState], Made]

# Manifests that are read to find out whether an archive has what its indexes name.
_MAX_INSPECTED = 64


async def open_named(name: LocalName | PathName) -> SearchableSource:
    """Open what a name with a path refers to. Raises `Failure`."""
    try:
        return await _open_named(name)
    except NotFoundError as error:
        raise await call(name.path, near_misses.absent, name.path, error) from None


async def _open_named(name: LocalName | PathName) -> SearchableSource:
    if isinstance(name, PathName):
        return await _open_detected(name.path, name.of)
    if isinstance(name, DirectoryName) or (
        isinstance(name, LayoutName) and name.transport == "oci"
    ):
        return await call(name.path, _in_directory, name)
    from imgproxy.transports.local.tar_archive import open_archive

    archive = await open_archive(name.path)
    with closing_on_error(archive):
        return _in_archive(_readable_name(name, archive), archive)


async def open_path(
    path: str, reference: Reference, made_of: MadeOf | None = None
) -> SearchableSource:
    """Open the image at `path` that stands in for the image of a registry with this reference.

    A file of a registry's tree counts as well, and so does the only image of an archive or a
    layout, whatever its name there. `made_of` returns what is known of a Docker archive that is
    open. Raises `Failure`.
    """

    def name_of(transport: str) -> LocalName:
        if transport == "docker-archive":
            return DockerArchiveName(path, reference._replace(digest=None))
        return DirectoryName(path) if transport == "dir" else LayoutName(transport, path)

    if await call(path, _is_manifest, path):
        from imgproxy.transports.local.registry_tree import RegistryTree

        return RegistryTree(path, docker_identity(reference))
    return await _open_detected(path, name_of, reference, made_of)


async def _open_detected(
    path: str,
    name_of: Callable[[str], LocalName],
    reference: Reference | None = None,
    made_of: MadeOf | None = None,
) -> SearchableSource:
    """Open what is at `path`; `name_of` returns its name, given the transport that reads it.

    `reference`, `made_of`: see `open_path`.
    """
    if await call(path, _is_directory, path):
        name = name_of(await call(path, _directory_transport, path))
        return await call(path, _in_directory, name, reference)
    from imgproxy.transports.local.tar_archive import open_archive

    archive = await open_archive(path)
    with closing_on_error(archive):
        name = _readable_name(name_of(await archive_transport(archive)), archive)
        return _in_archive(name, archive, reference, made_of)


def _in_directory(name: LocalName, reference: Reference | None = None) -> SearchableSource:
    path = os.path.realpath(name.path)
    if os.path.isfile(path):
        raise UnsupportedFormatError(
            f"{clean(name.path)} is a file, not a directory; read it with oci-archive: or"
            " docker-archive:"
        )
    if isinstance(name, LayoutName):
        from imgproxy.transports.local.oci_layout import OciLayout

        return OciLayout(name, Directory(path), Identity("oci", path_scopes(path)), reference)
    from imgproxy.transports.local.dir_format import ImageDirectory

    assert isinstance(name, DirectoryName)  # noqa: S101  (a Docker archive is a file)
    return ImageDirectory(name, Directory(path), Identity("dir", path_scopes(path)))


def _in_archive(
    name: LocalName,
    archive: Archive,
    reference: Reference | None = None,
    made_of: MadeOf | None = None,
) -> SearchableSource:
    if isinstance(name, DockerArchiveName):
        from imgproxy.transports.local.docker_archive import DockerArchive

        made = None if made_of is None else made_of(archive.state)
        return DockerArchive(name, archive, is_lenient=reference is not None, made=made)
    from imgproxy.transports.local.oci_layout import OciLayout

    assert isinstance(name, LayoutName)  # noqa: S101  (a `dir:` is no file)
    # A scope of the policy that is a path applies to the file that was opened, and to no pipe.
    true_path = archive.true_path if name.transport == "oci-archive" else None
    scopes = [] if true_path is None else path_scopes(true_path)
    return OciLayout(name, archive, Identity(name.transport, scopes), reference)


def _is_directory(path: str) -> bool:
    try:
        return stat.S_ISDIR(os.stat(path).st_mode)
    except OSError as error:
        raise failure(path, error) from None


def _is_manifest(path: str) -> bool:
    """Return whether a path is a manifest in a registry's tree.

    Its content shows no more than that it is JSON, so the name of its directory decides as well.
    """
    if os.path.basename(os.path.dirname(path)) != "manifests" or _is_directory(path):
        return False
    file = OpenFile(path)
    try:
        return file.read(64, 0).lstrip(b" \t\r\n")[:1] == b"{"
    finally:
        file.close()


def _directory_transport(path: str) -> str:
    for name, kind in (("index.json", "oci"), ("manifest.json", "dir")):
        try:
            os.lstat(f"{path}/{name}")
        except FileNotFoundError:
            continue
        except OSError as error:  # such as a directory that may not be entered
            raise failure(f"{path}/{name}", error) from None
        return kind
    raise UnsupportedFormatError(
        f"{clean(path)} is a directory, but neither an OCI layout (it has no index.json)"
        " nor a dir: (it has no manifest.json)"
    )


async def archive_transport(archive: Archive) -> str:
    """Return the transport that reads an archive which may be readable in two ways."""
    if "index.json" not in archive:
        return "docker-archive"
    if "manifest.json" not in archive:
        return "oci-archive"
    return "oci-archive" if await _has_an_image(archive) else "docker-archive"


def _readable_name(name: LocalName, archive: Archive) -> LocalName:
    """Return the name under which the archive can be read, which may be of another transport.

    `docker save` writes a layout without a manifest.json in some versions of Docker. Raises
    `UnsupportedFormatError` where the archive has neither.
    """
    where = clean(archive.path)
    if isinstance(name, DockerArchiveName) and "manifest.json" not in archive:
        if "index.json" in archive:
            ref_name = str(name.reference) if name.reference else None
            return LayoutName("docker-archive", name.path, ref_name, name.position)
        if "repositories" in archive:
            raise UnsupportedFormatError(
                f"{where} was saved by Docker before version 1.10, in a format that is not"
                " supported; load it into a current one and save it again"
            )
        raise UnsupportedFormatError(
            f"{where} has neither manifest.json nor index.json, so it is not an image"
            f" (it has: {archive.names}){near_misses.no_image(archive)}"
        )
    if isinstance(name, LayoutName) and "index.json" not in archive:
        is_docker_s = "manifest.json" in archive
        way_out = "; read it with docker-archive:" if is_docker_s else near_misses.no_image(archive)
        raise UnsupportedFormatError(
            f"{where} has no index.json, so it is not an OCI layout"
            f" (it has: {archive.names}){way_out}"
        )
    return name


async def _has_an_image(archive: Archive) -> bool:
    """Return whether an archive has a complete image according to its index.json.

    Some versions of Docker write an index.json that lacks parts of the image. An image without
    layers does not count, because they wrote such a one in its place.
    """
    try:
        raw = await file_tree.read(archive, "index.json", MAX_DOCUMENT_SIZE)
        level: Sequence[Descriptor] = manifests.parse_index(raw, "index.json").manifests
        left = _MAX_INSPECTED
        while level and left > 0:
            documents = [
                manifests.parse(
                    await file_tree.read(archive, _blob_path(entry.digest), MAX_DOCUMENT_SIZE),
                    entry.media_type,
                    str(entry.digest),
                )
                for entry in level[:left]
                if _is_there(entry, archive) and not entry.is_companion
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
    return bool(manifest.layers) and all(_is_there(each, archive) for each in blobs)


def _is_there(descriptor: Descriptor, archive: Archive) -> bool:
    """Return whether an archive has content of the size that its descriptor says.

    Docker 25.0 wrote wrong sizes (moby #47072).
    """
    try:
        return archive.find(_blob_path(descriptor.digest)).size == descriptor.size
    except (NotFoundError, InvalidError):
        return False


def _blob_path(digest: Digest) -> str:
    return f"blobs/{digest.algorithm}/{digest.encoded}"
