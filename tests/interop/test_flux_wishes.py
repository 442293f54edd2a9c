"""What users of Flux have asked for since 2023 (fluxcd/source-controller, issue 1247), one by one.

An index of a release holds charts and manifests for several purposes; a controller takes one, and
of that one layer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from support import forked
from support.artifacts import FLUX, FLUX_CONTENT, HELM, File, artifact, helm, said
from support.images import named
from support.packages import tarball
from support.parent import INSECURE

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import Serve
    from support.images import Json, Layout
    from support.parent import Child

LAYERS = tuple(tarball({name: name.encode(), "d/": b""}) for name in ("one", "two", "three"))
STAGING = "--annotation=stage=staging"


@pytest.fixture
def release(layout: Layout) -> dict[str, Json]:
    """Return what a release has, in an index `flat` and, deeper, in an index `nested`."""
    files = [File(FLUX_CONTENT, each) for each in LAYERS]
    entries = {
        "chart": helm(layout),
        "staging": artifact(layout, *files, config=FLUX, annotations={"stage": "staging"}),
        "production": said(
            artifact(layout, *files[1:], config=FLUX), "", **{"org.acme.stage": "production"}
        ),
        "signed": artifact(layout, File("application/json", b"{}"), *files[:1], config=HELM),
    }
    flat = layout.index(*entries.values())
    nested = layout.index(layout.index(layout.index(entries["production"]), entries["chart"]))
    layout.save(named(flat, "flat"), named(nested, "nested"))
    return entries


def chosen(layout: Layout, ref: str, serve: Serve, *options: str) -> Child:
    return serve(f"oci:{layout.path}:{ref}", *options)


def digest_from(child: Child) -> str | None:
    reply = child.client.get("/manifest")
    assert reply.status == 200, reply.body
    assert child.finish() == 0
    return reply.get("Manifest-Digest")


@pytest.mark.slow
def test_search_from_an_index(release: dict[str, Json], layout: Layout, serve: Serve) -> None:
    found = chosen(layout, "flat", serve, STAGING)
    assert digest_from(found) == release["staging"]["digest"]


@pytest.mark.slow
def test_search_nested_indexes(release: dict[str, Json], layout: Layout, serve: Serve) -> None:
    found = chosen(layout, "nested", serve, "--annotation=org.acme.stage=production")
    assert digest_from(found) == release["production"]["digest"]


@pytest.mark.slow
def test_search_by_type(release: dict[str, Json], layout: Layout, serve: Serve) -> None:
    found = chosen(layout, "nested", serve, f"--artifact-type={FLUX}")
    assert digest_from(found) == release["production"]["digest"]
    found = chosen(layout, "nested", serve, f"--artifact-type={HELM}")
    assert digest_from(found) == release["chart"]["digest"]


@pytest.mark.slow
def test_search_by_annotation(release: dict[str, Json], layout: Layout, serve: Serve) -> None:
    found = chosen(layout, "flat", serve, f"--artifact-type={FLUX}", "--annotation=org.acme.stage")
    assert digest_from(found) == release["production"]["digest"]


@pytest.mark.slow
def test_choose_a_layer_by_type_and_offset(
    release: dict[str, Json], layout: Layout, serve: Serve
) -> None:
    """The offset counts among the layers of the type."""
    del release
    spec = f"--layer=type={FLUX_CONTENT},offset=1"
    child = chosen(layout, "flat", serve, STAGING, spec)
    (layer,) = child.client.get("/layers").json()
    assert (layer["index"], layer["offset"]) == (1, 0)
    assert child.client.get("/layers/0").body == LAYERS[1]
    assert child.client.get("/layers/1").status == 404
    assert child.finish() == 0


def test_an_error_with_digests(release: dict[str, Json], layout: Layout, serve: Serve) -> None:
    child = chosen(layout, "flat", serve, f"--artifact-type={HELM}")
    reply = child.client.get("/manifest")
    assert child.finish() == 0
    assert reply.status == 409
    wanted = [release[each]["digest"] for each in ("chart", "signed")]
    assert [each["digest"] for each in reply.error["detail"]["choices"]] == wanted
    assert all(each in reply.message for each in wanted)


def written(command: str, layout: Layout, directory: Path, *options: str) -> dict[str, bytes]:
    """Return the files that a command writes of the artifact for staging."""
    done = forked.run(
        command, INSECURE, f"oci:{layout.path}:flat", str(directory), STAGING, *options
    )
    assert done.status == 0, done.stderr
    files = (each for each in directory.rglob("*") if each.is_file())
    return {str(each.relative_to(directory)): each.read_bytes() for each in files}


@pytest.mark.usefixtures("release")
def test_copy_a_layer(layout: Layout, tmp_path: Path) -> None:
    options = (f"--layer=type={FLUX_CONTENT},offset=-1", "--name={offset}.tar")
    assert written("copy", layout, tmp_path / "out", *options) == {"0.tar": LAYERS[2]}


@pytest.mark.usefixtures("release")
def test_names_of_copied_layers(layout: Layout, tmp_path: Path) -> None:
    copied = written("copy", layout, tmp_path / "out", "--name=part-{index}{ext}")
    assert copied == {f"part-{index}.tar": each for index, each in enumerate(LAYERS)}


@pytest.mark.usefixtures("release")
def test_extract_a_layer(layout: Layout, tmp_path: Path) -> None:
    assert written("extract", layout, tmp_path / "out", "--layer=offset=1") == {"two": b"two"}


@pytest.mark.usefixtures("release")
def test_merge_all_layers(layout: Layout, tmp_path: Path) -> None:
    merged = {"one": b"one", "two": b"two", "three": b"three"}
    assert written("extract", layout, tmp_path / "out") == merged


@pytest.mark.usefixtures("release")
def test_a_directory_for_each_layer(layout: Layout, tmp_path: Path) -> None:
    apart = {"0/one": b"one", "1/two": b"two", "2/three": b"three"}
    assert written("extract", layout, tmp_path / "out", "--layer-per-dir={index}") == apart
