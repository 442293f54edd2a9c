"""The same host, with files in a home directory: where skopeo looks, and where we do."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from support import skopeo

from imgproxy.config import search_paths
from imgproxy.config.search_paths import Host

if TYPE_CHECKING:
    from pathlib import Path

REGISTRY = "127.0.0.1:9"
IMAGE = f"{REGISTRY}/x:1"


def names(directory: str) -> list[str]:
    return os.listdir(directory) if os.path.isdir(directory) else []


def this_host(home: Path, **environment: str) -> Host:
    return Host(environment, os.getuid(), str(home), os.path.lexists, names)


def write(home: Path, *paths: str) -> None:
    for path in paths:
        file = home / ".config/containers" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("")


@pytest.fixture
def classic_skopeo() -> None:
    if skopeo.version() >= (1, 20):
        pytest.skip("this skopeo is not of the classic generation")


@pytest.mark.usefixtures("classic_skopeo")
@pytest.mark.parametrize("option", [None, "registries.conf"])
@pytest.mark.parametrize(
    "paths",
    [
        [],
        ["registries.conf"],
        ["registries.conf.d/b.conf", "registries.conf.d/a.conf", "registries.conf.d/c.txt"],
        ["registries.conf", "registries.conf.d/b.conf", "registries.conf.d/a.conf"],
        ["registries.conf.d/deep/a.conf"],
    ],
)
def test_registries_conf(paths: list[str], option: str | None, tmp_path: Path) -> None:
    write(tmp_path, *paths)
    options = []
    if option:
        (tmp_path / option).write_text("")
        option = str(tmp_path / option)
        options = ["--registries-conf", option]
    found = search_paths.registries(this_host(tmp_path), option)
    loaded = skopeo.inspect(IMAGE, tmp_path, *options).loaded
    # It says that it loads a main file before it has seen that there is none.
    assert [file.path for file in found] == [path for path in loaded if os.path.exists(path)]


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"XDG_RUNTIME_DIR": "{home}/run"},
        {"XDG_CONFIG_HOME": "{home}/xdg"},
        {"DOCKER_CONFIG": "{home}/docker"},
        {"XDG_RUNTIME_DIR": "{home}/run", "DOCKER_CONFIG": "{home}/docker"},
    ],
)
def test_auth_json(environment: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    variables = {name: value.format(home=tmp_path) for name, value in environment.items()}
    found = search_paths.auth_files(this_host(tmp_path, **variables))
    asked = skopeo.inspect(IMAGE, tmp_path, environment=variables).auth_files
    assert [file.path for file in found] == asked


@pytest.mark.usefixtures("classic_skopeo")
@pytest.mark.parametrize("there", [True, False])
def test_certs_d(tmp_path: Path, *, there: bool) -> None:
    if there:
        write(tmp_path, f"certs.d/{REGISTRY}/authority.txt")
    found = search_paths.certificates(this_host(tmp_path), REGISTRY)
    (looked,) = skopeo.inspect(IMAGE, tmp_path).certificates
    assert found == (looked if os.path.exists(looked) else None)
