"""Indexes with several things to choose from, and what is chosen of them by which options.

The same rows are tried through every front-end and command that chooses.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from support.artifacts import (
    FLUX,
    HELM,
    ROCKET,
    SPDX,
    TIMONI,
    VERSION,
    WASM,
    attestation,
    cosign,
    flux,
    helm,
    oras,
    said,
    sbom,
    timoni,
    wasm,
)
from support.images import Layout, named, on

if TYPE_CHECKING:
    from support.images import Json

ARM64 = "--platform=linux/arm64"
TYPE, ANNOTATION = "--artifact-type=", "--annotation="


class Shop:
    """A layout with such indexes, each under a name, and its `entries` by what they are."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        amd64, arm64 = (
            on(layout.image(name.encode(), platform=name), name)
            for name in ("linux/amd64", "linux/arm64")
        )
        first, second = helm(layout, "1.0.0"), helm(layout, "2.0.0")
        self.entries: dict[str, Json] = {
            "amd64": amd64,
            "attestation": attestation(layout, amd64),
            "arm64": arm64,
            "sbom": sbom(layout, amd64),
            "signature": said(cosign(layout), kind="dev.cosignproject.cosign/sigs"),
            "chart": first,
            "timoni": timoni(layout),
            "flux": flux(layout),
            "wasm": wasm(layout),
            "oras": oras(layout),
        }
        mixed = layout.index(*self.entries.values())
        charts = [said(first, HELM, stage="old"), said(second, HELM, stage="new")]
        self.entries["second chart"] = second
        layout.save(
            named(mixed, "mixed"),
            named(layout.index(layout.index(mixed), amd64), "nested"),
            named(layout.index(*charts), "charts"),
            named(layout.index(charts[0], layout.index(charts[0]), charts[0]), "equal"),
            named(layout.index(on(charts[1], "linux/amd64"), *charts), "by-platform"),
            named(layout.index(said(first, SPDX)), "contradiction"),
            named(first, "chart"),
        )

    def name(self, ref: str) -> str:
        return f"oci:{self.layout.path}" + (f":{ref}" if ref else "")

    def digest(self, entry: str) -> str:
        digest: str = self.entries[entry]["digest"]
        return digest


class Row(NamedTuple):
    """What to choose from, by which options, and what is chosen: an entry, or a status."""

    ref: str
    options: tuple[str, ...]
    chosen: str | int


def _rows(ref: str) -> dict[str, Row]:
    wanted = {
        "nothing said": ((), "amd64"),
        "platform": ((ARM64,), "arm64"),
        "image": ((f"{TYPE}image",), "amd64"),
        "image and platform": ((f"{TYPE}image", ARM64), "arm64"),
        "SBOM": ((f"{TYPE}{SPDX}",), "sbom"),
        "Helm": ((f"{TYPE}{HELM}",), "chart"),
        "Timoni": ((f"{TYPE}{TIMONI}",), "timoni"),
        "Flux": ((f"{TYPE}{FLUX}",), "flux"),
        "ORAS": ((f"{TYPE}{ROCKET}",), "oras"),
        "WebAssembly": ((f"{TYPE}{WASM}", "--platform=wasip1/wasm"), "wasm"),
        "WebAssembly, here": ((f"{TYPE}{WASM}",), 404),
        "cosign": ((f"{ANNOTATION}kind=dev.cosignproject.cosign/sigs",), "signature"),
        "attestation": ((f"{ANNOTATION}vnd.docker.reference.type",), "attestation"),
        "annotation": ((f"{ANNOTATION}org.acme.stage",), "oras"),
        "annotation and value": ((f"{ANNOTATION}{VERSION}=2.0.0",), "timoni"),
        "type and annotation": ((f"{TYPE}{ROCKET}", f"{ANNOTATION}org.acme.stage=first"), "oras"),
        "no such type": ((f"{TYPE}a/b",), 404),
        "no such value": ((f"{ANNOTATION}org.acme.stage=last",), 404),
    }
    return {f"{ref}: {name}": Row(ref, *row) for name, row in wanted.items()}


ROWS = {
    **_rows("nested"),
    "a manifest": Row("chart", (f"{TYPE}{HELM}",), "chart"),
    "another manifest": Row("chart", (f"{TYPE}image",), 404),
    "equal ones": Row("equal", (), "chart"),
    "equal ones by type": Row("equal", (f"{TYPE}{HELM}",), "chart"),
    "one with a platform": Row("by-platform", (f"{TYPE}{HELM}",), "second chart"),
    "one of two": Row("charts", (f"{ANNOTATION}stage=new",), "second chart"),
    "contradiction": Row("contradiction", (f"{TYPE}{SPDX}",), 422),
    "a layout as a whole": Row("", (f"{TYPE}{TIMONI}",), "timoni"),
    **_rows("mixed"),
    "two of one type": Row("charts", (f"{TYPE}{HELM}",), 409),
}
