"""The choice from indexes through every front-end and command that chooses: the same each time."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from support.commands import run
from support.images import Layout, digest_of
from support.parent import INSECURE
from support.shops import ROWS, TYPE, Row, Shop

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from conftest import Converse, Serve
    from support.images import Json

AMD64 = "--platform=linux/amd64"
EXIT = {404: 3, 409: 3, 422: 4}
CODES = {404: "MANIFEST_UNKNOWN", 409: "AMBIGUOUS", 422: "MANIFEST_INVALID"}
WAY_OUT = "choose one by --artifact-type, --annotation or its digest: @sha256:"


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    return Shop(Layout(tmp_path_factory.mktemp("shop")))


def options_of(row: Row) -> list[str]:
    return [*([] if any("platform" in each for each in row.options) else [AMD64]), *row.options]


def assert_refused(error: Json, row: Row, shop: Shop) -> None:
    assert error["code"] == CODES[int(row.chosen)]
    if row.chosen == 409:
        assert WAY_OUT in error["message"]
        wanted = [shop.digest(each) for each in ("chart", "second chart")]
        assert [each["digest"] for each in error["detail"]["choices"]] == wanted
        for each in wanted:
            assert each in error["message"]
    if row.chosen == 404:
        assert "has no manifest with --" in error["message"]
        assert error["detail"]["choices"]


@pytest.mark.parametrize("case", ROWS)
def test_a_parent_gets_it_over_http(case: str, shop: Shop, serve: Serve) -> None:
    row = ROWS[case]
    child = serve(shop.name(row.ref), *options_of(row))
    manifest, candidates = child.client.get("/manifest"), child.client.get("/candidates")
    if isinstance(row.chosen, int):
        assert manifest.status == row.chosen, manifest.body
        assert_refused(manifest.error, row, shop)
        if row.chosen == 409:
            assert candidates.json() == manifest.error["detail"]["choices"]
    else:
        assert manifest.get("Manifest-Digest") == shop.digest(row.chosen)
        assert shop.digest(row.chosen) in [each["digest"] for each in candidates.json()]
        layers = child.client.get("/layers").json()
        assert [each["digest"] for each in layers] == [
            each["digest"] for each in shop.layout.layers(shop.entries[row.chosen])
        ]
    assert child.finish() == 0


def as_skopeo(option: str) -> list[str]:
    if not option.startswith("--platform="):
        return [option]
    os, architecture = option.removeprefix("--platform=").split("/")
    return [f"--override-os={os}", f"--override-arch={architecture}"]


@pytest.mark.parametrize("case", ROWS)
def test_a_client_of_skopeo_s_protocol_gets_it(case: str, shop: Shop, converse: Converse) -> None:
    """The platform is that of skopeo's options, which go before ours."""
    row = ROWS[case]
    client = converse(*(word for each in row.options for word in as_skopeo(each)))
    client.initialize()
    if isinstance(row.chosen, int):
        failure = client.failure("OpenImage", shop.name(row.ref))
        assert (WAY_OUT in str(failure)) == (row.chosen == 409)
    else:
        image = client.open(shop.name(row.ref))
        assert digest_of(client.document("GetManifest", image)) == shop.digest(row.chosen)
    assert client.shut_down() == 0


@pytest.mark.parametrize("case", ROWS)
def test_pull_takes_it(case: str, shop: Shop, tmp_path: Path) -> None:
    row, store = ROWS[case], Layout(tmp_path / "store")
    arguments = ["pull", INSECURE, "--format=json", *options_of(row), shop.name(row.ref)]
    done = run(*arguments, f"oci:{store.path}:it")
    if isinstance(row.chosen, int):
        assert done.status == EXIT[row.chosen]
        assert_refused(done.json()["errors"][0], row, shop)
    else:
        assert done.status == 0, done.stderr
        assert done.json()["digest"] == shop.digest(row.chosen)
        (entry,) = json.loads((store.path / "index.json").read_bytes())["manifests"]
        assert entry["digest"] == shop.digest(row.chosen)
        for each in shop.layout.layers(entry):
            assert store.read(each["digest"]) == shop.layout.read(each["digest"])


def every(items: list[Json]) -> Iterator[Json]:
    for each in items:
        yield each
        yield from every(each.get("items", []))


@pytest.mark.slow
def test_list_says_all_that_choices_say(shop: Shop, serve: Serve) -> None:
    listed = run("list", "--format=json", "--layers", shop.name("mixed"))
    assert listed.status == 0, listed.stderr
    items = {each["digest"]: each for each in every(listed.json()["items"])}
    child = serve(shop.name("mixed"), f"{TYPE}a/b", AMD64)
    choices = child.client.get("/manifest").error["detail"]["choices"]
    assert child.finish() == 0
    assert len(choices) == 10
    for choice in choices:
        item = items[choice["digest"]]
        assert set(choice) <= set(item)
        for same in ("name", "names", "digest", "mediaType", "annotations", "path"):
            assert item[same] == choice[same]
        assert choice["artifactType"] in (None, item["artifactType"])
        layers = shop.layout.layers(choice)
        assert [each["digest"] for each in item["layers"]] == [each["digest"] for each in layers]
    text = run("list", "--layers", shop.name("mixed")).stdout
    for name in ("one.txt", "docs/two.txt", "application/vnd.cncf.helm.config.v1+json"):
        assert name in text
