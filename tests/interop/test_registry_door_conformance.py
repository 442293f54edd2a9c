"""The official conformance suite of the distribution specification, over what lies here.

    go install github.com/opencontainers/distribution-spec/conformance@VERSION   # .ci/clients

It is told what there is, and changes nothing. Where nothing is pushed, it ends with a fault of its
own after its verdict (a nil pointer in the writing of its report), so that its status is 2 even if
all has passed: it is judged by what it says.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from support import registry_doors
from support.registry_clients import require, run
from support.registry_doors import NAME, Stock

if TYPE_CHECKING:
    from pathlib import Path

    from support.home import Home

pytestmark = pytest.mark.slow

VERDICT = "OCI Conformance Result: "

# What changes a registry.
WRITING = (
    "OCI_API_PUSH",
    "OCI_API_BLOBS_ATOMIC",
    "OCI_API_BLOBS_DELETE",
    "OCI_API_BLOBS_MOUNT_ANONYMOUS",
    "OCI_API_MANIFESTS_ATOMIC",
    "OCI_API_MANIFESTS_DELETE",
    "OCI_API_TAGS_ATOMIC",
    "OCI_API_TAGS_DELETE",
)


@pytest.mark.parametrize("spelling", ["by its registry", "of the default registry"])
@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_the_suite_passes(tmp_path: Path, home: Home, version: str, spelling: str) -> None:
    program = require("conformance")
    stock = Stock(tmp_path / "layout")
    home.path.mkdir()
    registry, _, name = NAME.partition("/")
    options = ["--images", str(stock.layout.path)]
    if spelling == "of the default registry":
        options += ["--default-registry", registry]
    else:
        name = NAME
    documents = {each["digest"] for each in stock.documents.values()}
    with registry_doors.running(*options) as door:
        ended = run(
            [program],
            home,
            OCI_REGISTRY=door.address,
            OCI_TLS="disabled",
            OCI_VERSION=version,
            OCI_REPO1=name,
            OCI_RO_DATA_TAGS=" ".join(stock.tags),
            OCI_RO_DATA_MANIFESTS=" ".join(sorted(documents)),
            OCI_RO_DATA_BLOBS=" ".join(each["digest"] for each in stock.layout.layers(stock.app)),
            OCI_RO_DATA_REFERRERS=stock.app["digest"],
            OCI_API_BLOBS_DIGEST_HEADER="true",
            **dict.fromkeys(WRITING, "false"),
        )
        (verdict,) = [line for line in ended.output.splitlines() if line.startswith(VERDICT)]
        assert verdict == f"{VERDICT}Pass", ended.output
        for part in ("ping", "empty", "read-only", "missing-manifest", "invalid-digest-format"):
            assert f"OCI Conformance Test/{part}: Pass" in ended.output, ended.output
        referrers = ["referrers"] * (version != "1.0")  # which does not have them
        for part in ("tag-list", "head", "pull", *referrers):
            assert f"OCI Conformance Test/read-only/{part}: Pass" in ended.output, ended.output
