"""`/metrics`, read by Prometheus's own parser, after requests of every kind."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from prometheus_client.parser import text_string_to_metric_families
from support import registry_doors
from support.damage import flip
from support.images import Layout, named
from support.parent import ROOT, Incomplete, environment, eventually
from support.registry_doors import ABSENT, NAME, REGISTRY, Door, Stock, blob, manifest

if TYPE_CHECKING:
    from pathlib import Path

Numbers = dict[tuple[str, ...], float]


def numbers(door: Door) -> Numbers:
    """Return the numbers by name and labels, without the common beginning."""
    reply = door.ask("/metrics")
    assert reply.status == 200, reply
    assert (reply.get("Content-Type") or "").startswith("text/plain; version=")
    return {
        (sample.name.removeprefix("imgproxy_"), *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(reply.body.decode())
        for sample in family.samples
    }


def test_requests_are_counted_by_route_and_status(stock: Stock) -> None:
    with registry_doors.running("--images", str(stock.layout.path)) as door:
        layer = stock.layer
        for target in (
            *[manifest(NAME, "1")] * 2,
            manifest(NAME, "absent"),
            blob(NAME, layer["digest"]),
            blob(NAME, ABSENT),
            blob(f"{REGISTRY}/any/name", ABSENT),
            "/v2/",
            "/v2/?x=1",
            "/healthz",
            "/nothing",
        ):
            door.ask(target)
        door.ask(blob(NAME, layer["digest"]), method="HEAD")
        door.ask(blob(NAME, layer["digest"]), "Range: bytes=1-2")
        door.ask(manifest(NAME, "1"), f'If-None-Match: "{stock.app["digest"]}"')
        # What no route gets to see.
        door.ask("/v2/", "Origin: http://page.example")
        door.ask("/v2/", "Sec-Fetch-Site: cross-site")
        door.ask("/v2/", "Transfer-Encoding: chunked", "Content-Length: 1")
        client = door.connect()
        client.send(b"no request\r\n\r\n")
        assert client.reply().status == 400
        client.close()
        found = numbers(door)
        requests = {key[1:]: value for key, value in found.items() if key[0] == "requests_total"}
        assert requests == {
            ("manifests", "200"): 2,
            ("manifests", "304"): 1,
            ("manifests", "404"): 1,
            ("blobs", "200"): 2,
            ("blobs", "206"): 1,
            ("blobs", "404"): 2,
            ("base", "200"): 2,
            ("health", "200"): 1,
            ("other", "404"): 1,
            ("refused", "403"): 2,
            ("refused", "400"): 2,
        }
        assert found["failures_total", "DENIED"] == 2
        assert found["images_total",] == 2
        assert found["failures_total", "BLOB_UNKNOWN"] == 2
        assert found["failures_total", "MANIFEST_UNKNOWN"] == 1
        assert found["verdicts_total", "accepted"] >= 1
        sent = 2 * stock.app["size"] + layer["size"] + 2 + len(b"ready\n") + 2 * len("{}")
        assert found["sent_bytes_total",] >= sent
        assert found["connections",] == 1
        assert found["bodies",] == 0
        text = door.ask("/metrics").body.decode()
        assert "team" not in text, "names are for clients to choose"


@pytest.mark.slow
def test_bodies_under_way_and_wrong_ones(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "images")
    content = os.urandom(32 << 20)
    image = layout.image(content, b"small")
    layout.save(named(image, f"{NAME}:1"))
    large, small = (each["digest"] for each in layout.layers(image))
    flip(layout.path / "blobs" / small.replace(":", "/"))
    with registry_doors.running("--images", str(layout.path)) as door:
        slow = door.connect()
        slow.ask("GET", blob(NAME, large))
        assert slow.head().status == 200
        assert eventually(lambda: numbers(door)["bodies",] == 1)
        assert slow.read(len(content)) == content
        assert eventually(lambda: numbers(door)["bodies",] == 0)
        assert numbers(door)["wrong_blobs_total",] == 0
        assert door.status(blob(NAME, small)) == 502
        assert numbers(door)["wrong_blobs_total",] == 1
        flip(layout.path / "blobs" / large.replace(":", "/"))
        slow.ask("GET", blob(NAME, large))
        assert slow.head().status == 200
        with pytest.raises(Incomplete):
            slow.read(len(content))
        assert numbers(door)["wrong_blobs_total",] == 2
        gone = door.connect()
        gone.ask("GET", blob(NAME, large))
        gone.close()
        assert eventually(lambda: numbers(door)["bodies",] == 0)


@pytest.mark.slow
def test_verdicts_and_what_is_rejected(stock: Stock, tmp_path: Path) -> None:
    policy = tmp_path / "policy.json"
    policy.write_text('{"default": [{"type": "reject"}]}')
    options = ("--images", str(stock.layout.path))
    with registry_doors.running(*options, policy=f"--policy={policy}") as door:
        assert door.status(manifest(NAME, "1")) == 403
        found = numbers(door)
        assert found["verdicts_total", "rejected"] == 1
        assert found["failures_total", "DENIED"] == 1


@pytest.mark.slow
def test_without_the_library_the_extra_is_named(stock: Stock, tmp_path: Path) -> None:
    (tmp_path / "prometheus_client.py").write_text("raise ImportError('none')\n")
    env = environment(PYTHONPATH=f"{tmp_path}:{ROOT}")
    with registry_doors.running("--images", str(stock.layout.path), env=env) as door:
        reply = door.ask("/metrics")
        assert (reply.status, b"oci-imgproxy[registry]" in reply.body) == (404, True)
        assert door.status(manifest(NAME, "1")) == 200
