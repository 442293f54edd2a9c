"""What is installed: the wheel, the source distribution, and the program as one file."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tarfile
import zipfile
from typing import TYPE_CHECKING

import pytest
from support import archives
from support.images import encode
from support.parent import INSECURE, LIMIT, ROOT, Child, Client, environment
from support.servers import skip

from imgproxy import __version__

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import Keep, Sample

VERSION = "{}.{}".format(*sys.version_info)
BUILDING = 60


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        arguments, cwd=ROOT, capture_output=True, text=True, timeout=BUILDING, check=False
    )


@pytest.fixture(scope="module")
def onefile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the single file for this Python."""
    directory = tmp_path_factory.mktemp("onefile")
    result = run(sys.executable, ROOT / ".ci/onefile.py", directory)
    assert result.returncode == 0, result.stderr
    return directory / f"imgproxy-{VERSION}.pyz"


def alone(file: Path, *arguments: str) -> list[str]:
    """Run a file with nothing else to import from: neither packages nor the checkout."""
    return [sys.executable, "-I", "-S", str(file), *arguments]


def bare() -> dict[str, str]:
    return environment(PYTHONPATH=None)


@pytest.fixture(scope="module")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel and the source distribution."""
    directory = tmp_path_factory.mktemp("dist")
    if run(sys.executable, "-c", "import hatchling").returncode:
        skip("hatchling is not installed")
    result = run(sys.executable, "-m", "hatchling", "build", "-d", directory)
    assert result.returncode == 0, result.stderr
    return directory


def test_the_wheel_has_the_pages_and_the_units(distributions: Path) -> None:
    (wheel,) = distributions.glob("*.whl")
    data = f"oci_imgproxy-{__version__}.data/data/share"
    expected = {
        **{f"{data}/man/man{each.suffix[1:]}/{each.name}": each for each in ROOT.glob("man/*")},
        **{f"{data}/doc/imgproxy/systemd/{each.name}": each for each in ROOT.glob("systemd/*")},
    }
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        assert {name for name in names if ".data/" in name} == set(expected)
        assert [archive.read(name) for name in expected] == [
            path.read_bytes() for path in expected.values()
        ]
    modules = {path.relative_to(ROOT).as_posix() for path in ROOT.glob("imgproxy/**/*.py")}
    assert {name for name in names if name.endswith(".py")} == modules
    assert "imgproxy/py.typed" in names


def test_the_source_distribution_has_what_the_tests_need(distributions: Path) -> None:
    (file,) = distributions.glob("*.tar.gz")
    with tarfile.open(file) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    directories = ("imgproxy", "tests", "demo", "man", "systemd", ".ci")
    expected = {
        path.relative_to(ROOT).as_posix()
        for directory in directories
        for path in (ROOT / directory).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert expected <= names
    assert {"README.md", "GUIDE.md", "CHANGELOG.md", "LICENSE", "pyproject.toml"} <= names


@pytest.mark.slow
def test_the_single_file_has_bytecode_and_licences_and_nothing_else(onefile: Path) -> None:
    with zipfile.ZipFile(onefile) as archive:
        names = archive.namelist()
    sources = [name for name in names if name.endswith(".py")]
    assert sources == ["__main__.py"]  # which says what Python it is for
    assert [name for name in names if name.endswith((".so", ".pth"))] == []
    tops = {name.partition("/")[0].partition(".")[0] for name in names if name.endswith(".pyc")}
    assert {"imgproxy", "trio", "h11"} <= tops
    for package in ("trio", "h11"):
        assert [name for name in names if name.startswith(f"{package}-") and "LICENSE" in name]
    assert os.access(onefile, os.X_OK)
    with onefile.open("rb") as file:
        assert file.readline() == f"#!/usr/bin/env python{VERSION}\n".encode()


def test_the_single_file_runs_alone(onefile: Path, sample: Sample, keep: Keep) -> None:
    result = subprocess.run(
        alone(onefile, "--version"), env=bare(), capture_output=True, timeout=LIMIT, check=True
    )
    assert result.stdout.decode() == f"imgproxy {__version__}\n"
    child = keep(serving(onefile, sample.name))
    assert child.client.get("/manifest").body == sample.manifest
    for layer, content in zip(sample.layout.layers(sample.descriptor), sample.layers, strict=True):
        assert child.client.get(f"/blobs/{layer['digest']}").body == content
    assert child.client.get("/nowhere").code == "NOT_FOUND"
    assert child.finish() == 0


def serving(onefile: Path, image: str) -> Child:
    ours, theirs = socket.socketpair()
    with theirs:
        fd = theirs.fileno()
        arguments = alone(onefile, f"--sockfd={fd}", INSECURE, image)
        child = Child(arguments, pass_fds=[fd], env=bare())
    child.clients.append(Client(ours))
    return child


@pytest.mark.skipif(sys.version_info >= (3, 14), reason="zstd is in the standard library")
def test_the_single_file_says_what_zstd_wants(onefile: Path, tmp_path: Path, keep: Keep) -> None:
    """Extension modules cannot be in it."""
    file = tmp_path / "image.tar.zst"
    file.write_bytes(archives.zstd_compressed(encode({})))
    child = keep(serving(onefile, f"docker-archive:{file}"))
    reply = child.client.get("/manifest")
    assert (reply.status, reply.code) == (415, "UNSUPPORTED")
    assert "backports.zstd" in reply.message


def test_the_single_file_is_for_one_version_of_python(onefile: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(onefile) as archive:
        main = archive.read("__main__.py").decode()
    major, minor = sys.version_info[:2]
    changed = main.replace(f"({major}, {minor})", f"({major}, {minor + 1})")
    assert changed != main
    script = tmp_path / "__main__.py"
    script.write_text(changed)
    result = run(sys.executable, script)
    assert result.returncode == 1
    assert f"this is Python {VERSION}" in result.stderr
