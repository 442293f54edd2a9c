"""The served images, on disk and in a registry, and a certificate for that.

Everything is in one temporary directory and removed with it. A large image is removed as soon as
its rows are measured, so that the run needs space only for the largest one, twice.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import tempfile
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

from support.images import OCI_CONFIG, OCI_LAYER, OCI_MANIFEST, Layout, encode, named

from .child import FAULTS, BenchError, Child, capture, describe
from .far import HOSTS, far_away

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from support.images import Json

    from .far import Far

LOOPBACK = "127.0.0.1"
REPOSITORY, TAG = "bench/image", "latest"
OLDER = "older"  # the tag of an image that has most of the layers
MIB = 1 << 20
GIB = 1 << 30
STARTING = 20.0  # seconds for a registry to listen
FILLING = 600.0  # seconds to copy an image into the registry
_NAMES = "subjectAltName=" + ",".join(f"IP:{host}" for host in HOSTS)
MARGIN = 256 * MIB  # the space that a staged image leaves free on the disk


@dataclass(frozen=True)
class Image:
    """A staged image: its names by source, and its descriptors."""

    references: dict[str, str]
    layout: Path
    layers: list[Json]
    blob: Path  # the first layer's file


class Stage:
    """The temporary directory, with the registries that serve from it."""

    def __init__(self, skopeo: str | None) -> None:
        self.notes: list[str] = []
        self._skopeo = skopeo
        self._stack = ExitStack()
        self._ports: dict[str, int] = {}

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            root = stack.enter_context(
                tempfile.TemporaryDirectory(prefix="bench-", ignore_cleanup_errors=True)
            )
            self._root = Path(root)
            self._serve(stack)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def bytecode(self) -> Path:
        """Return the directory for the bytecode of the measured Pythons."""
        return self._root / "bytecode"

    @property
    def sources(self) -> list[str]:
        """Return the names of the available sources."""
        return ["oci", *self._ports]

    def connect(self, source: str) -> socket.socket:
        """Return a connection to a registry."""
        return socket.create_connection((LOOPBACK, self._ports[source]))

    def url(self, source: str, path: str) -> str:
        """Return the URL of something in a registry."""
        return f"{source}://{LOOPBACK}:{self._ports[source]}{path}"

    @contextmanager
    def far(
        self, *, guarded: bool, blobs: Path | None = None, rate: float = 0.0
    ) -> Iterator[tuple[Far, str]]:
        """Make the registry distant; yield it, and the name of its image there.

        For `blobs` and `rate` see `far_away`.
        """
        if not {"http", "https"} <= self._ports.keys():
            raise BenchError("no registry, or no certificate")
        port, files = self._ports["http"], self._files
        with far_away(port, files, guarded=guarded, blobs=blobs, rate=rate) as far:
            yield far, f"docker://{LOOPBACK}:{far.port}/{REPOSITORY}:{TAG}"

    @property
    def _files(self) -> tuple[Path, Path]:
        return self._root / "certificate.pem", self._root / "key.pem"

    @contextmanager
    def image(
        self, sizes: Sequence[int], *, pushed: bool = True, older: int = 0
    ) -> Iterator[Image]:
        """Stage an image whose layers have these sizes, in the registry too; one at a time.

        With `older`, another image has so many of the layers, under a tag of its own.
        """
        self._make_sure_of_room(sum(sizes))
        path = self._root / "layout"
        try:
            layout = Layout(path)
            layers = [_layer(layout, size) for size in sizes]
            if older:
                layout.save(named(write_manifest(layout, layers[:older]), OLDER))
                self.push(path, OLDER)
            manifest = write_manifest(layout, layers)
            # Whole, as a registry serves it, and by the tag alone.
            layout.save(named(manifest, TAG), named(manifest, f"docker.io/{REPOSITORY}:{TAG}"))
            references = {"oci": f"oci:{path}:{TAG}", **(self.push(path) if pushed else {})}
            os.sync()  # otherwise the disk is written while the first contender is measured
            yield Image(references, path, layers, layout.file(layers[0]["digest"]))
        finally:
            shutil.rmtree(path, ignore_errors=True)
            shutil.rmtree(self._storage, ignore_errors=True)

    @contextmanager
    def folder(self, size: int) -> Iterator[Path]:
        """Yield an empty directory with space for so many bytes; one at a time."""
        self._make_sure_of_room(size)
        path = self._root / "folder"
        path.mkdir()
        try:
            yield path
        finally:
            shutil.rmtree(path, ignore_errors=True)

    @property
    def _storage(self) -> Path:
        return self._root / "registry"

    def _make_sure_of_room(self, size: int) -> None:
        copies = 2 if self._ports else 1
        free = shutil.disk_usage(self._root).free
        if free < copies * size + MARGIN:
            raise BenchError(f"{free // MIB} MiB of disk do not hold {copies} x {size // MIB} MiB")

    def push(self, path: Path, tag: str = TAG) -> dict[str, str]:
        """Copy the layout into the registry, and return its references there."""
        references = {
            source: f"docker://{LOOPBACK}:{port}/{REPOSITORY}:{tag}"
            for source, port in self._ports.items()
        }
        # Both registries serve from one directory, so that one copy is enough.
        if references:
            self._copy(f"oci:{path}:{tag}", next(iter(references.values())))
        return references

    def copy(self, image: Image, port: int) -> None:
        """Copy an image that is staged into another registry."""
        self._copy(image.references["oci"], f"docker://{LOOPBACK}:{port}/{REPOSITORY}:{TAG}")

    def _copy(self, image: str, to: str) -> None:
        if self._skopeo:
            # Unchanged: otherwise skopeo would compress the layers.
            flags = ["--insecure-policy", "copy", "--preserve-digests", "--dest-tls-verify=false"]
            capture([self._skopeo, *flags, image, to], FILLING)

    def _serve(self, stack: ExitStack) -> None:
        """Start the registries that are available; note the others."""
        registry = shutil.which("docker-registry")
        if registry is None or self._skopeo is None:
            missing = "skopeo to fill it" if registry else "docker-registry"
            self.notes.append(f"No {missing}: no rows for docker://.")
            return
        kinds: list[tuple[str, Callable[[], Json]]] = [("http", dict), ("https", self._certificate)]
        for source, configuration in kinds:
            try:
                _, self._ports[source] = self._listen(stack, registry, configuration())
            except FAULTS as error:
                self.notes.append(f"No registry over {source}: {describe(error)}.")

    @contextmanager
    def another_registry(self) -> Iterator[tuple[Child, int]]:
        """Start one more registry over the same images; yield it, and its port."""
        with ExitStack() as stack:
            yield self._listen(stack, "docker-registry", {})

    def _listen(self, stack: ExitStack, registry: str, tls: Json) -> tuple[Child, int]:
        """Start a registry, and return it and its port when it listens."""
        port = free_port()
        config = self._root / f"registry-{port}.yml"
        config.write_text(
            json.dumps(  # JSON is YAML
                {
                    "version": 0.1,
                    "log": {"level": "error", "accesslog": {"disabled": True}},
                    "storage": {"filesystem": {"rootdirectory": str(self._storage)}},
                    "http": {"addr": f"{LOOPBACK}:{port}", **tls},
                }
            )
        )
        child = stack.enter_context(Child([registry, "serve", str(config)]))
        await_listener(port, child)
        return child, port

    def _certificate(self) -> Json:
        """Make a certificate for loopback, and return the registry's settings for it."""
        certificate, key = self._files
        kind = ["-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
        subject = ["-subj", f"/CN={LOOPBACK}", "-addext", _NAMES]
        files = ["-keyout", str(key), "-out", str(certificate)]
        capture(["openssl", "req", *kind, *subject, *files, "-days", "2"], STARTING)
        return {"tls": {"certificate": str(certificate), "key": str(key)}}


def _layer(layout: Layout, size: int) -> Json:
    """Write an incompressible layer of any size, without holding it in memory.

    One block of random bytes is repeated, with its number in front: this is as fast as the disk,
    no two blocks are equal, and no compressor looks at more than a block.
    """
    block = bytearray(os.urandom(min(size, MIB)))

    def pieces() -> Iterator[memoryview]:
        for number, start in enumerate(range(0, size, MIB)):
            block[:8] = number.to_bytes(8, "big")
            yield memoryview(block)[: size - start]

    return write_layer(layout, pieces(), size)


def write_layer(layout: Layout, pieces: Iterator[memoryview], size: int) -> Json:
    """Write a layer of so many bytes in all, and return its descriptor."""
    hasher = hashlib.sha256()
    unnamed = layout.path / "unnamed"
    with unnamed.open("wb") as file:
        for piece in pieces:
            hasher.update(piece)
            file.write(piece)
    digest = f"sha256:{hasher.hexdigest()}"
    layout.file(digest).parent.mkdir(parents=True, exist_ok=True)
    unnamed.rename(layout.file(digest))
    return {"mediaType": OCI_LAYER, "digest": digest, "size": size}


def write_manifest(layout: Layout, layers: list[Json]) -> Json:
    """Write config and manifest for existing layers; return the manifest's descriptor."""
    rootfs = {"type": "layers", "diff_ids": [layer["digest"] for layer in layers]}
    config = {"architecture": "amd64", "os": "linux", "config": {}, "rootfs": rootfs}
    manifest = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": layout.add(encode(config), OCI_CONFIG),
        "layers": layers,
    }
    return layout.add(encode(manifest), OCI_MANIFEST)


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.create_server((LOOPBACK, 0)) as server:
        port: int = server.getsockname()[1]
        return port


def await_listener(port: int, child: Child) -> None:
    """Wait until a registry listens. Raises `BenchError` if it ends before that."""
    deadline = time.monotonic() + STARTING
    while time.monotonic() < deadline and not child.ended:
        try:
            socket.create_connection((LOOPBACK, port), timeout=1).close()
        except OSError:
            time.sleep(0.02)
        else:
            return
    raise BenchError("the registry does not listen")
