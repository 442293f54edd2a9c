"""Artifacts that Helm, ORAS and regctl have pushed, chosen from indexes that the last two made."""

from __future__ import annotations

import tarfile
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING

import pytest
from support.artifacts import HELM, HELM_CHART, TITLE
from support.home import Home
from support.networks import line_to
from support.registry_clients import require, run
from support.servers import docker_registry

if TYPE_CHECKING:
    from collections.abc import Iterator

    from interop.conftest import Pull

pytestmark = pytest.mark.slow

HTTP, AMD64 = "--tls-verify=false", "--platform=linux/amd64"
ROCKET, PROBE = "application/vnd.acme.rocket", "application/vnd.acme.probe"
REPOSITORY = "charts/app"


@dataclass
class Place:
    """A registry, and a home whose files are pushed there."""

    address: str
    home: Home

    @property
    def repository(self) -> str:
        return f"{self.address}/{REPOSITORY}"

    def __call__(self, program: str, *arguments: str) -> None:
        done = run([require(program), *arguments], self.home)
        assert done.status == 0, done.output


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """Return a registry with what the three push: by tag, and all of it in two indexes."""
    root = tmp_path_factory.mktemp("tools")
    home = Home(root / "home")
    home.write("app/Chart.yaml", "apiVersion: v2\nname: app\nversion: 1.0.0\n")
    home.write("one.txt", "one")
    home.write("docs/two.txt", "two")
    home.write("probe.json", "{}")
    with docker_registry(root / "data") as address:
        there = Place(address, home)
        there("helm", "package", "app")
        there("helm", "push", "app-1.0.0.tgz", f"oci://{address}/charts", "--plain-http")
        there(
            *("oras", "push", "--plain-http", f"--artifact-type={ROCKET}"),
            *(f"{there.repository}:files", "one.txt:text/plain", "docs/two.txt:text/plain"),
        )
        regctl = ("regctl", f"--host=reg={address},tls=disabled")
        there(
            *(*regctl, "artifact", "put", f"--artifact-type={PROBE}", "--annotation=stage=first"),
            *("--file=probe.json", "--file-media-type=application/json", "--file-title"),
            f"{there.repository}:probe",
        )
        tags = ("1.0.0", "files", "probe")
        index = ("oras", "manifest", "index", "create", "--plain-http")
        there(*index, f"{there.repository}:oras", *tags)
        refs = [f"--ref={there.repository}:{each}" for each in tags]
        there(*regctl, "index", "create", f"{there.repository}:regctl", *refs)
        yield there


@pytest.mark.parametrize("index", ["oras", "regctl"])
@pytest.mark.parametrize(
    ("options", "titles"),
    [
        ([f"--artifact-type={HELM}", f"--layer=type={HELM_CHART}"], [None]),
        ([f"--artifact-type={ROCKET}"], ["one.txt", "docs/two.txt"]),
        ([f"--artifact-type={ROCKET}", "--layer=title=docs/*"], ["docs/two.txt"]),
        ([f"--artifact-type={PROBE}"], ["probe.json"]),
        (["--annotation=stage=first"], ["probe.json"]),
        (["--annotation=org.opencontainers.image.title=app"], [None]),
    ],
)
def test_what_tools_have_pushed_is_chosen(
    index: str, options: list[str], titles: list[str | None], place: Place, pull: Pull
) -> None:
    with line_to(place.address) as line:
        name = f"docker://{line.address}/{REPOSITORY}:{index}"
        child = pull(name, HTTP, AMD64, *options)
        layers = child.client.get("/layers")
        assert layers.status == 200, layers.body
        assert [each["annotations"].get(TITLE) for each in layers.json()] == titles
        asked = len(line.asked)
        content = child.client.get("/layers/0")
        assert content.status == 200
        assert child.finish() == 0
    # The index, the manifests that had to be looked into, and one blob.
    assert 2 <= asked <= 1 + 3
    assert len(line.asked) == asked + 1
    if HELM_CHART in str(options):
        with tarfile.open(fileobj=BytesIO(content.body)) as chart:
            assert "app/Chart.yaml" in chart.getnames()


@pytest.mark.parametrize("index", ["oras", "regctl"])
def test_candidates_of_what_tools_have_made(index: str, place: Place, pull: Pull) -> None:
    child = pull(f"docker://{place.repository}:{index}", HTTP, AMD64)
    candidates = child.client.get("/candidates").json()
    refused = child.client.get("/manifest")
    assert child.finish() == 0
    assert [each["artifactType"] for each in candidates] == [HELM, ROCKET, PROBE]
    assert refused.status == 409
    assert refused.error["detail"]["choices"] == candidates
