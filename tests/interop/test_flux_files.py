"""What Flux's users ask for of files since 2023, one by one: fluxcd/source-controller, issue 1247.

`test_flux_wishes` has those for the choice.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from support import forked, packages
from support.images import Layout, named
from support.packages import Part, tarball, titled
from support.parent import INSECURE

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def image(tmp_path: Path) -> str:
    """Return an artifact in two layers of one type."""
    return packages.save(
        Layout(tmp_path / "layout"),
        titled("base.tar", tarball({"base/a.yaml": b"a"}), packages.FLUX),
        titled("app.tar", tarball({"app/b.yaml": b"b"}), packages.FLUX),
        Part(b"{}", "application/spdx+json"),
    )


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


ONLY = f"--layer=type={packages.FLUX}"


def run(command: str, *arguments: object) -> None:
    done = forked.run(command, INSECURE, *map(str, arguments))
    assert done.status == 0, done.stderr


def files(out: Path) -> list[str]:
    return sorted(str(each.relative_to(out)) for each in out.rglob("*") if each.is_file())


def test_offset(image: str, out: Path) -> None:
    run("extract", image, out, f"{ONLY},offset=1")
    assert files(out) == ["app/b.yaml"]


def test_copy(image: str, out: Path) -> None:
    run("copy", image, out, ONLY)
    assert files(out) == ["app.tar", "base.tar"]


def test_extract(image: str, out: Path) -> None:
    run("extract", image, out, f"{ONLY},offset=0")
    assert files(out) == ["base/a.yaml"]


def test_merge(image: str, out: Path) -> None:
    run("extract", image, out, ONLY)
    assert files(out) == ["app/b.yaml", "base/a.yaml"]


def test_a_directory_for_each_layer(image: str, out: Path) -> None:
    run("extract", image, out, ONLY, "--layer-per-dir={title}")
    assert files(out) == ["app.tar/app/b.yaml", "base.tar/base/a.yaml"]


def test_names(image: str, out: Path) -> None:
    run("copy", image, out, "--name={offset}{ext}")
    assert files(out) == ["0.tar", "1.tar", "2.json"]


@pytest.mark.parametrize("option", ["--artifact-type=x/app", "--annotation=stage=live"])
def test_search_from_a_nested_index(option: str, tmp_path: Path, out: Path) -> None:
    layout = Layout(tmp_path / "layout")
    entries = [
        packages.add(
            layout,
            Part(tarball({f"{kind}.yaml": b""}), packages.FLUX),
            artifactType=f"x/{kind}",
            annotations={"stage": stage},
        )
        for kind, stage in (("base", "test"), ("app", "live"))
    ]
    index = layout.index(layout.index(*entries))
    layout.save(named(index, "v1"))
    run("extract", f"oci:{layout.path}:v1", out, option)
    assert files(out) == ["app.yaml"]


def test_an_error_with_digests(image: str, out: Path) -> None:
    done = forked.run("copy", INSECURE, image, "-", ONLY)
    assert done.status == 3
    assert done.stderr.count("sha256:") == 2
    assert not os.path.exists(out)
