"""Artifacts as Helm, Timoni, Flux, ORAS, cosign and others write them, beside images and nested.

Media types and annotations are those of the programs' sources; like `images`, nothing here is
shared with the program.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from support.archives import Member, pack
from support.images import OCI_CONFIG, OCI_MANIFEST, Json, Layout, encode, on

if TYPE_CHECKING:
    from collections.abc import Mapping

EMPTY = "application/vnd.oci.empty.v1+json"
HELM = "application/vnd.cncf.helm.config.v1+json"
HELM_CHART = "application/vnd.cncf.helm.chart.content.v1.tar+gzip"
HELM_PROVENANCE = "application/vnd.cncf.helm.chart.provenance.v1.prov"
TIMONI = "application/vnd.timoni.config.v1+json"
TIMONI_CONTENT = "application/vnd.timoni.content.v1.tar+gzip"
FLUX = "application/vnd.cncf.flux.config.v1+json"
FLUX_CONTENT = "application/vnd.cncf.flux.content.v1.tar+gzip"
WASM = "application/vnd.wasm.config.v0+json"
WASM_MODULE = "application/wasm"
ROCKET = "application/vnd.acme.rocket.config"
SPDX = "application/spdx+json"
COSIGN_SIGNATURE = "application/vnd.dev.cosign.simplesigning.v1+json"
IN_TOTO = "application/vnd.in-toto+json"

TITLE = "org.opencontainers.image.title"
VERSION = "org.opencontainers.image.version"


class File(NamedTuple):
    """A layer of an artifact."""

    media_type: str
    content: bytes
    annotations: Mapping[str, str] = {}


def artifact(
    layout: Layout, *files: File, config: str = EMPTY, content: bytes = b"{}", **fields: object
) -> Json:
    """Write an artifact whose descriptor says nothing of it; return that descriptor."""
    layers = [
        layout.add(each.content, each.media_type, annotations=dict(each.annotations))
        if each.annotations
        else layout.add(each.content, each.media_type)
        for each in files
    ]
    document = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": layout.add(content, config),
        "layers": layers,
        **fields,
    }
    return layout.add(encode(document), OCI_MANIFEST)


def _tar(name: str, text: str) -> bytes:
    return pack([Member(name, text.encode())])


def helm(layout: Layout, version: str = "1.0.0") -> Json:
    """Write a chart and its provenance: told by its config alone."""
    chart = _tar("app/Chart.yaml", f"name: app\nversion: {version}\n")
    return artifact(
        layout,
        File(HELM_CHART, chart),
        File(HELM_PROVENANCE, b"-----BEGIN PGP SIGNED MESSAGE-----\n"),
        config=HELM,
        content=encode({"name": "app", "version": version}),
        annotations={VERSION: version, TITLE: "app"},
    )


def timoni(layout: Layout) -> Json:
    """Write a module: two layers of one media type, told apart by an annotation."""
    vendor, module = ({"sh.timoni.content.type": each} for each in ("vendor", "module"))
    return artifact(
        layout,
        File(TIMONI_CONTENT, _tar("cue.mod/x.cue", "x: 1"), vendor),
        File(TIMONI_CONTENT, _tar("timoni.cue", "y: 2"), module),
        config=TIMONI,
        annotations={VERSION: "2.0.0"},
    )


def flux(layout: Layout) -> Json:
    """Write what `flux push artifact` does."""
    return artifact(layout, File(FLUX_CONTENT, _tar("kustomization.yaml", "k: 1")), config=FLUX)


def wasm(layout: Layout) -> Json:
    """Write a module, with the platform that such have in an index."""
    config = encode({"os": "wasip1", "architecture": "wasm"})
    module = File(WASM_MODULE, b"\0asm\1\0\0\0")
    return on(artifact(layout, module, config=WASM, content=config), "wasip1/wasm")


def oras(layout: Layout) -> Json:
    """Write files with titles, and a type that the manifest states."""
    return artifact(
        layout,
        File("text/plain", b"one", {TITLE: "one.txt"}),
        File("text/plain", b"two", {TITLE: "docs/two.txt"}),
        File("application/json", b"{}", {TITLE: "three.json"}),
        artifactType=ROCKET,
        annotations={"org.acme.stage": "first"},
    )


def sbom(layout: Layout, subject: Json) -> Json:
    """Write what refers to an image, as an index of referrers lists it."""
    files = File(SPDX, b'{"spdxVersion":"SPDX-2.3"}')
    return {**artifact(layout, files, artifactType=SPDX, subject=subject), "artifactType": SPDX}


def cosign(layout: Layout) -> Json:
    """Write a signature: with the config of an image, as cosign does."""
    return artifact(
        layout,
        File(COSIGN_SIGNATURE, b"{}", {"dev.cosignproject.cosign/signature": "MEUCIQ=="}),
        config=OCI_CONFIG,
    )


def attestation(layout: Layout, subject: Json) -> Json:
    """Write what BuildKit adds to an index for each platform."""
    annotations = {
        "vnd.docker.reference.type": "attestation-manifest",
        "vnd.docker.reference.digest": subject["digest"],
    }
    written = artifact(layout, File(IN_TOTO, subject["digest"].encode()), config=OCI_CONFIG)
    return on({**written, "annotations": annotations}, "unknown/unknown")


def said(descriptor: Json, artifact_type: str = "", **annotations: str) -> Json:
    """Return a descriptor that says what it describes."""
    annotated = {**descriptor.get("annotations", {}), **annotations}
    return {
        **descriptor,
        **({"artifactType": artifact_type} if artifact_type else {}),
        **({"annotations": annotated} if annotated else {}),
    }
