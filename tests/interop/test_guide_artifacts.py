"""The guide's commands for files in artifacts, with nothing but the registry in them changed."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from support import packages
from support.home import REGISTRIES_CONF, Home, table
from support.images import OCI_INDEX, Layout
from support.parent import ROOT
from support.servers import docker_registry, put_image, put_manifest, require

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.slow

PART = (
    (ROOT / "GUIDE.md").read_text().partition("\n## Files in artifacts\n")[2].partition("\n## ")[0]
)
COMMANDS, LOOP = re.findall(r"^```\w*\n(.*?)^```$", PART, re.DOTALL | re.MULTILINE)

FILES = {
    "charts/app:1.0.0": (
        packages.helm,
        {f"app/{name.partition('/')[2]}": each for name, each in packages.CHART_FILES.items()},
    ),
    "manifests/app:latest": (
        packages.flux,
        {f"manifests/{name}": each for name, each in packages.FLUX_FILES.items()},
    ),
    "modules/app:1.0.0": (
        packages.timoni,
        {
            f"module/{name}": each
            for name, each in {**packages.VENDOR_FILES, **packages.MODULE_FILES}.items()
        },
    ),
    "app-wasm:1": (packages.wasm, {"wasm/app.wasm": packages.MODULE}),
}


def entry(layout: Layout) -> dict[str, object]:
    found: dict[str, object] = json.loads((layout.path / "index.json").read_bytes())["manifests"][0]
    return {key: value for key, value in found.items() if key != "annotations"}


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Run a registry that has what the guide names."""
    base = tmp_path_factory.mktemp("artifacts")
    layout = Layout(base / "layout")
    with docker_registry(base / "registry") as address:
        entries = []
        for name, (make, _) in FILES.items():
            make(layout)
            entries.append(entry(layout))
            put_image(address, f"acme/{name}", layout, entries[-1])
            put_image(address, "acme/bundle:part", layout, entries[-1])
        index = layout.read(layout.index(*entries[1:3])["digest"])
        put_manifest(address, "acme/bundle", "1", index, OCI_INDEX)
        yield address


def shell(script: str, address: str, home: Home, directory: Path) -> None:
    """Run a script in a directory, where all images are trusted."""
    home.write(".config/containers/policy.json", packages.ANYTHING)
    home.write(REGISTRIES_CONF, table("ghcr.io", address, "insecure = true"))
    home.program("imgproxy", f'exec {sys.executable} -m imgproxy "$@"')
    directory.mkdir()
    done = subprocess.run(
        ["/bin/sh", "-ec", script],
        cwd=directory,
        env=home.environment(PYTHONPATH=str(ROOT)),
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def contents(path: Path) -> dict[str, bytes]:
    files = (each for each in path.rglob("*") if each.is_file())
    return {str(each.relative_to(path)): each.read_bytes() for each in files}


def test_each_kind_takes_one_command(address: str, home: Home, tmp_path: Path) -> None:
    assert len(COMMANDS.splitlines()) == len(FILES)
    shell(COMMANDS, address, home, tmp_path / "here")
    expected = {name: each for _, files in FILES.values() for name, each in files.items()}
    assert contents(tmp_path / "here") == expected


def test_an_index_of_artifacts_takes_a_loop(address: str, home: Home, tmp_path: Path) -> None:
    require("jq")
    shell(LOOP, address, home, tmp_path / "here")
    made = sorted((tmp_path / "here").iterdir())
    assert [each.name.partition("-")[0] for each in made] == ["bundle", "bundle"]
    assert sorted(len(contents(each)) for each in made) == [2, 3]
