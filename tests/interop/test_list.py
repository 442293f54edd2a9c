"""`list`: what people and programs are told, of a real registry and of local places."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

import pytest
from support.commands import run
from support.damage import flip
from support.images import Layout, named, on
from support.networks import line_to
from support.parent import COMMAND

if TYPE_CHECKING:
    from pathlib import Path

    from support.filled import Registry
    from support.home import Home

HTTP = "--tls-verify=false"


def test_of_a_registry_s_index_one_request_tells_what_there_is(
    registry: Registry, home: Home
) -> None:
    """No policy is asked: the host has none."""
    with line_to(registry.address) as line:
        name = registry.name(":index", line.address)
        done = run("list", HTTP, "--format=json", name, env=home.environment())
    assert done.status == 0, done.stderr
    (index,) = done.json()["items"]
    assert index["names"] == [name.removeprefix("docker://")]
    assert (index["kind"], index["size"]) == ("index", None)
    assert index["digest"] == registry.images["index"]["digest"]
    entries = registry.layout.document(registry.images["index"])["manifests"]
    assert [each["digest"] for each in index["items"]] == [each["digest"] for each in entries]
    assert [each["platform"] for each in index["items"]] == [
        "linux/amd64",
        "linux/arm64",
        "linux/arm/v7",
    ]
    assert len(line.asked) == 1


@pytest.mark.slow
def test_the_layers_of_a_registry_s_image_are_told_without_fetching_them(
    registry: Registry, home: Home
) -> None:
    with line_to(registry.address) as line:
        name = registry.name(":large", line.address)
        done = run("list", HTTP, "--format=json", "--layers", name, env=home.environment())
    assert done.status == 0, done.stderr
    (image,) = done.json()["items"]
    (layer,) = registry.layers("large")
    assert [each["digest"] for each in image["layers"]] == [layer["digest"]]
    assert len(line.asked) == 2  # the manifest and the config


def test_people_get_a_table(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "layout")
    image = layout.image(b"x" * 12345)
    broken = layout.image(b"y")
    layout.save(
        named(image, "quay.io/acme/os:1"),
        named(layout.index(on(image, "linux/amd64")), "all\x1b[31m"),
        broken,
    )
    flip(layout.file(broken["digest"]))
    done = run("list", "--layers", f"oci:{layout.path}")
    assert (done.status, done.stderr) == (0, "")
    head, one, layer, index, child, _, odd, summary = done.stdout.splitlines()
    assert head.split() == ["NAME", "KIND", "PLATFORM", "SIZE", "CREATED", "DIGEST"]
    size = image["size"] + layout.document(image)["config"]["size"] + 12345
    cells = ["image", "linux/amd64", f"{size / 1000:.1f}", "kB", "-", image["digest"]]
    assert one.split() == ["quay.io/acme/os:1", *cells]
    assert layer.startswith("  layer 0 ")
    assert index.split()[:3] == ["all", "[31m", "index"]
    assert child.split() == ["-", *cells]
    assert odd.split()[:2] == ["@2", "?"]
    assert "do not have the digest" in odd
    assert summary.startswith("3 in all, ")
    assert summary.endswith("of it shared")
    places = {line.index("sha256:") for line in (one, layer, index, child, odd)}
    assert places == {head.index("DIGEST")}


def test_a_reader_that_has_enough_is_no_failure(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "layout")
    layout.save(*[layout.image(b"x")] * 20)
    read, write = os.pipe()
    os.close(read)
    command = [*COMMAND, "list", f"oci:{layout.path}"]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, check=False)
    os.close(write)
    assert (done.returncode, done.stderr) == (0, b"")


FAILED = {
    "absent": (["oci:{path}/absent"], 3, "no such"),
    "no image": (["oci:{path}/layout:other"], 3, "no such image in the layout"),
    "offline": (["--offline", "docker://quay.io/x/y"], 3, "--offline forbids"),
    "policy": (["--insecure-policy", "oci:{path}/layout"], 2, "unknown option: --insecure-policy"),
    "platform": (["--platform=linux/386", "oci:x"], 2, "unknown option: --platform"),
}


@pytest.mark.parametrize("case", FAILED)
def test_what_cannot_be_listed_is_told(case: str, tmp_path: Path) -> None:
    layout = Layout(tmp_path / "layout")
    layout.save(named(layout.image(b"x"), "os"))
    arguments, status, words = FAILED[case]
    done = run("list", *(each.format(path=tmp_path) for each in arguments))
    assert (done.status, done.stdout) == (status, "")
    assert done.stderr.count("\n") == 1
    assert words.lower() in done.stderr.lower()
