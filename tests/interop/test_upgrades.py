"""An upgrade under a program that runs: the files of the package are replaced or removed.

What a request may need has been imported when the first one is answered.
"""

from __future__ import annotations

import gzip
import os
import re
import shutil
import subprocess
from email.utils import formatdate
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from support.images import OCI_MANIFEST, Layout, encode
from support.servers import (
    PASSWORD,
    READER,
    Answering,
    basic,
    docker_registry,
    http_server,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import Serve
    from support.filled import Registry
    from support.home import Home
    from support.parent import Child

PLAIN = "--tls-verify=false"
PACKAGES = ("imgproxy", "trio", "h11", "outcome", "attr", "attrs", "sniffio", "sortedcontainers")
MIB = 1 << 20


class Installed:
    """A copy of the program and its libraries, which programs are started from."""

    def __init__(self, path: Path, serve: Serve, home: Home) -> None:
        self._path, self._serve, self._home = path, serve, home
        path.mkdir()
        for name in PACKAGES:
            spec = find_spec(name)
            assert spec is not None
            assert spec.origin is not None
            shutil.copytree(Path(spec.origin).parent, path / name)

    def start(self, image: str, *options: str) -> Child:
        """Start the program, ask for the manifest, and return it when that is there."""
        env = self._home.environment(
            PYTHONPATH=str(self._path), PYTHONPROFILEIMPORTTIME="1", COVERAGE_PROCESS_START=None
        )
        child = self._serve(image, "--debug", "--platform=linux/amd64", *options, env=env)
        assert child.client.get("/manifest").status == 200, child.stderr
        return child

    def replace(self, how: str) -> None:
        """Remove all files, or put others in their place that are not those of this version."""
        for name in PACKAGES:
            if how == "removed":
                shutil.rmtree(self._path / name)
            else:
                for file in (self._path / name).rglob("*.py"):
                    file.write_text("raise SystemError('of another version')\n")
                for cache in (self._path / name).rglob("__pycache__"):
                    shutil.rmtree(cache)


@pytest.fixture
def installed(tmp_path: Path, serve: Serve, home: Home) -> Installed:
    return Installed(tmp_path / "installed", serve, home)


def use(child: Child, *paths: str) -> None:
    """Make all kinds of requests; those for `paths` are answered with 200."""
    nothing = "sha256:" + 64 * "0"
    for path in ("/manifest", "/config", *paths):
        reply = child.client.get(path)
        assert (reply.status, reply.complete) == (200, True), (path, reply, child.stderr)
    for path in ("/nothing", f"/blobs/{nothing}", f"/manifests/{nothing}"):
        assert child.client.get(path).status == 404
    assert child.client.request("PUT", "/manifest").status == 405
    assert child.client.get("/manifest?x").status == 400
    assert child.client.quit().status == 200
    assert child.wait() == 0, child.stderr
    after = child.stderr.partition("GET /manifest: 200")[2]
    assert re.findall(r"^import time: .*\| +(\S+)$", after, re.MULTILINE) == []


def blobs(document: dict[str, Any]) -> list[str]:
    return [f"/blobs/{each['digest']}" for each in document["layers"]]


def save_large(layout: Layout) -> list[str]:
    """Save an image of layers too large to be kept by the way; return the paths of its blobs."""
    descriptor = layout.save_image(os.urandom(3 * MIB), os.urandom(2 * MIB))
    return [f"/blobs/{each['digest']}" for each in layout.layers(descriptor)]


HOW = ["removed", "replaced"]
COMPRESSIONS: dict[str, Callable[[bytes], bytes]] = {
    "": lambda content: content,
    "gzip": gzip.compress,
    **{
        name: (
            lambda content, name=name: (
                subprocess.run(
                    [name, "-c", "-1"], input=content, stdout=subprocess.PIPE, check=True
                ).stdout
            )
        )
        for name in ("bzip2", "xz", "zstd")
    },
}


@pytest.mark.slow
@pytest.mark.parametrize("how", HOW)
def test_a_layout(how: str, installed: Installed, layout: Layout) -> None:
    paths = save_large(layout)
    child = installed.start(f"oci:{layout.path}")
    installed.replace(how)
    use(child, *paths)


@pytest.mark.slow
@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_an_archive(
    compression: str, how: str, installed: Installed, layout: Layout, tmp_path: Path
) -> None:
    paths = save_large(layout)
    plain = tmp_path / "plain.tar"
    subprocess.run(["tar", "-cf", plain, "-C", layout.path, "."], check=True)
    archive = tmp_path / "archive"
    archive.write_bytes(COMPRESSIONS[compression](plain.read_bytes()))
    child = installed.start(f"oci-archive:{archive}")
    installed.replace(how)
    use(child, *paths)


@pytest.mark.slow
@pytest.mark.parametrize("how", HOW)
def test_a_registry_that_wants_credentials_later(
    how: str, installed: Installed, registry: Registry, home: Home
) -> None:
    """For its blobs only, after it has been busy until a certain time."""
    home.program(
        "docker-credential-test", f"""printf '{{"Username": "{READER}", "Secret": "{PASSWORD}"}}'"""
    )
    busy = True

    with docker_registry(registry.directory) as behind:

        def get(request: Answering) -> None:
            nonlocal busy
            authorized = request.headers["Authorization"] == basic(READER, PASSWORD)
            if "/blobs/" not in request.path or (authorized and not busy):
                request.answer(307, b"", Location=f"http://{behind}{request.path}")
            elif authorized:
                busy = False
                request.answer(503, b"", Retry_After=formatdate(usegmt=True))
            else:
                request.answer(401, b"", WWW_Authenticate='Basic realm="test"')

        with http_server(get) as front:
            home.write(".config/containers/auth.json", {"credHelpers": {front: "test"}})
            child = installed.start(registry.name(":latest", front), PLAIN)
            paths = blobs(child.client.get("/manifest").json())
            installed.replace(how)
            use(child, *paths)


@pytest.mark.slow
@pytest.mark.parametrize("how", HOW)
def test_foreign_layers_of_a_layout(how: str, installed: Installed, layout: Layout) -> None:
    content = os.urandom(2 * MIB)

    def get(request: Answering) -> None:
        request.answer(200, content)

    with http_server(get) as address:
        manifest = layout.document(layout.save_image(content))
        (layer,) = manifest["layers"]
        layer["urls"] = [f"http://{address}/layer"]
        layout.save(layout.add(encode(manifest), OCI_MANIFEST))
        layout.file(layer["digest"]).unlink()
        child = installed.start(f"oci:{layout.path}", PLAIN, "--foreign-layers")
        installed.replace(how)
        use(child, f"/blobs/{layer['digest']}")
