"""Artifacts for the tests, as Helm, Timoni, Flux, ORAS and makers of WebAssembly write them."""

from __future__ import annotations

import gzip
from typing import TYPE_CHECKING, NamedTuple

from support import attacks
from support.images import OCI_MANIFEST, Json, Layout, encode, named

if TYPE_CHECKING:
    from collections.abc import Mapping

TITLE = "org.opencontainers.image.title"
EMPTY = "application/vnd.oci.empty.v1+json"

CHART = "application/vnd.cncf.helm.chart.content.v1.tar+gzip"
PROVENANCE = "application/vnd.cncf.helm.chart.provenance.v1.prov"
FLUX = "application/vnd.cncf.flux.content.v1.tar+gzip"
TIMONI = "application/vnd.timoni.content.v1.tar+gzip"
WASM = "application/wasm"


ANYTHING = {"default": [{"type": "insecureAcceptAnything"}]}


class Part(NamedTuple):
    """A layer to be: its content, media type and annotations."""

    content: bytes
    media_type: str = "application/octet-stream"
    annotations: Mapping[str, str] = {}


def titled(title: str, content: bytes, media_type: str = "application/octet-stream") -> Part:
    return Part(content, media_type, {TITLE: title})


def tarball(files: Mapping[str, bytes]) -> bytes:
    """Return a tar with these files, and directories where the name ends with a slash."""
    return attacks.layer(
        *(
            attacks.directory(name.encode())
            if name.endswith("/")
            else attacks.file(name.encode(), content)
            for name, content in files.items()
        )
    )


def add(layout: Layout, *parts: Part, config_type: str = EMPTY, **fields: object) -> Json:
    """Write an artifact; return the descriptor of its manifest."""
    layers = [
        {
            **layout.add(part.content, part.media_type),
            **({"annotations": dict(part.annotations)} if part.annotations else {}),
        }
        for part in parts
    ]
    manifest = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": layout.add(b"{}", config_type),
        "layers": layers,
        **fields,
    }
    return layout.add(encode(manifest), OCI_MANIFEST)


def save(layout: Layout, *parts: Part, config_type: str = EMPTY, **fields: object) -> str:
    """Write an artifact as the only entry; return IMAGE for it."""
    layout.save(named(add(layout, *parts, config_type=config_type, **fields), "v1"))
    return f"oci:{layout.path}:v1"


CHART_FILES = {"chart/Chart.yaml": b"name: chart", "chart/templates/x.yaml": b"kind: X"}
FLUX_FILES = {"app.yaml": b"kind: Deployment", "base/kustomization.yaml": b"resources: []"}
MODULE_FILES = {"timoni.cue": b"package main", "templates/config.cue": b"package templates"}
VENDOR_FILES = {"cue.mod/gen/k8s.cue": b"package k8s"}
MODULE = b"\0asm\x01\0\0\0"


def helm(layout: Layout) -> str:
    """Write a chart with its provenance, as `helm push` does."""
    return save(
        layout,
        Part(gzip.compress(tarball(CHART_FILES), mtime=0), CHART),
        Part(b"-----BEGIN PGP SIGNED MESSAGE-----", PROVENANCE),
        config_type="application/vnd.cncf.helm.config.v1+json",
    )


def flux(layout: Layout) -> str:
    """Write what `flux push artifact` does."""
    return save(
        layout,
        Part(gzip.compress(tarball(FLUX_FILES), mtime=0), FLUX),
        config_type="application/vnd.cncf.flux.config.v1+json",
    )


def timoni(layout: Layout) -> str:
    """Write a module in two layers, as `timoni mod push` does."""
    kind = "sh.timoni.content.type"
    return save(
        layout,
        Part(gzip.compress(tarball(VENDOR_FILES), mtime=0), TIMONI, {kind: "module/vendor"}),
        Part(gzip.compress(tarball(MODULE_FILES), mtime=0), TIMONI, {kind: "module"}),
        config_type="application/vnd.timoni.config.v1+json",
    )


def wasm(layout: Layout) -> str:
    """Write a WebAssembly module."""
    return save(layout, Part(MODULE, WASM), config_type="application/vnd.wasm.config.v0+json")
