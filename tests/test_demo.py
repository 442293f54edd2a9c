"""The parent in the README, and what the demo shows."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from typing import IO, TYPE_CHECKING, Any

import pytest
from support import skopeo
from support.artifacts import HELM, helm, oras
from support.images import Layout, named
from support.parent import COMMAND, INSECURE, LIMIT, ROOT, environment

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

LARGE = hashlib.shake_256(b"large").digest(5 << 19)  # 2.5 MiB: verified while it is streamed
SMALL = b"a small layer"

# Changes with demo/sample.py, and with nothing else: neither clock nor version of Python.
SAMPLE_INDEX = "sha256:4b1e350c65b9159b0686e50fc28018947e166ba4af23e9cd20d6188f41aa0af1"

# And this one never again: it is that of a manifest that is made.
SAMPLE_MANIFEST = "sha256:1570da2314aae908237c0e9b5e5a39feba3317869467bb35a928db5242c6e604"

Run = subprocess.CompletedProcess[str]


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    layout = Layout(tmp_path / "image")
    layout.save(layout.image(LARGE, SMALL))
    return layout


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., Run]:
    """Run a program that finds `imgproxy` on PATH, and a home without any policy."""
    program = tmp_path / "bin/imgproxy"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {" ".join(COMMAND)} "$@"\n')
    program.chmod(0o755)
    home = tmp_path / "home"
    path = f"{program.parent}:{environment()['PATH']}"

    def run(
        arguments: Sequence[str | Path],
        limit: float = LIMIT,
        stderr: int | IO[bytes] = subprocess.PIPE,
    ) -> Run:
        return subprocess.run(
            arguments,
            env=environment(PATH=path, HOME=str(home)),
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            timeout=limit,
            check=False,
        )

    return run


@pytest.fixture
def demo(tmp_path: Path, run: Callable[..., Run]) -> Callable[..., Run]:
    """Run the parent with the library on an image, with options of imgproxy."""

    def demo(image: str, *options: str) -> Run:
        parent = ROOT / "demo/parent_trio.py"
        return run([sys.executable, parent, image, tmp_path / "saved", "--", *options])

    return demo


def spoil(layout: Layout, digest: str) -> None:
    content = bytearray(layout.read(digest))
    content[len(content) // 2] ^= 1
    layout.file(digest).write_bytes(content)


def digest_of(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def test_a_parent_gets_what_it_wants(demo: Callable[..., Run], layout: Layout) -> None:
    result = demo(f"oci:{layout.path}", INSECURE)
    assert (result.returncode, result.stderr) == (0, "")
    assert digest_of(LARGE) in result.stdout
    assert "exit status 0" in result.stdout


def test_a_parent_saves_every_layer(
    demo: Callable[..., Run], layout: Layout, tmp_path: Path
) -> None:
    saved = tmp_path / "saved"
    assert demo(f"oci:{layout.path}", INSECURE).returncode == 0
    files = {file.name: file.read_bytes() for file in saved.iterdir()}
    assert files == {digest_of(blob).replace(":", "-"): blob for blob in (LARGE, SMALL)}


def test_a_parent_can_merely_list(run: Callable[..., Run], layout: Layout) -> None:
    words = [sys.executable, ROOT / "demo/parent_trio.py", f"oci:{layout.path}", "--", INSECURE]
    result = run(words)
    assert result.returncode == 0
    assert f"{digest_of(SMALL)}, {len(SMALL)} bytes\n" in result.stdout


def test_the_trio_parent_shows_progress_on_a_terminal(
    run: Callable[..., Run], layout: Layout, tmp_path: Path
) -> None:
    """And when there is none, nothing of the kind."""
    words = [sys.executable, ROOT / "demo/parent_trio.py", f"oci:{layout.path}", tmp_path / "saved"]
    arguments = [*words, "--", INSECURE]
    assert run(arguments).stderr == ""
    ours, theirs = os.openpty()
    with os.fdopen(ours, "rb", buffering=0) as terminal, os.fdopen(theirs, "wb") as screen:
        run(arguments, stderr=screen)
        assert f"100 % of {len(LARGE) + len(SMALL)} bytes".encode() in terminal.read(1 << 16)


def test_a_parent_tells_that_there_is_no_such_image(
    demo: Callable[..., Run], layout: Layout
) -> None:
    result = demo(f"oci:{layout.path}:absent", INSECURE)
    assert result.returncode == 1
    assert "/manifest: 404 " in result.stdout
    assert "exit status 0" in result.stdout


def test_a_parent_tells_that_the_policy_refuses(
    demo: Callable[..., Run], layout: Layout, tmp_path: Path
) -> None:
    policy = tmp_path / "policy.json"
    policy.write_text(json.dumps({"default": [{"type": "reject"}]}))
    result = demo(f"oci:{layout.path}", "--policy", str(policy))
    assert result.returncode == 1
    assert "/manifest: 403 DENIED" in result.stdout or '"code":"DENIED"' in result.stdout


def test_a_parent_takes_no_corrupt_blob_for_whole(
    demo: Callable[..., Run], layout: Layout, tmp_path: Path
) -> None:
    spoil(layout, digest_of(LARGE))
    result = demo(f"oci:{layout.path}", INSECURE)
    assert result.returncode == 1
    assert re.search(rf"short body, \d+ of {len(LARGE)} bytes", result.stdout)
    assert "exit status 4" in result.stdout
    assert len(result.stderr.splitlines()) == 1  # imgproxy's own line
    saved = {file.name: file.read_bytes() for file in tmp_path.glob("saved/*")}
    assert saved.items() <= {digest_of(SMALL).replace(":", "-"): SMALL}.items()  # the other layer


def test_a_parent_tells_that_its_options_are_wrong(
    demo: Callable[..., Run], layout: Layout
) -> None:
    result = demo(f"oci:{layout.path}", "--nonsense")
    assert result.returncode == 1
    assert "exit status 2" in result.stdout


def test_the_parent_in_the_readme_works(
    run: Callable[..., Run], layout: Layout, tmp_path: Path
) -> None:
    """On a host that has a policy, as it says."""
    policy = tmp_path / "home/.config/containers/policy.json"
    policy.parent.mkdir(parents=True)
    policy.write_text(json.dumps({"default": [{"type": "insecureAcceptAnything"}]}))
    readme = (ROOT / "README.md").read_text()
    (code,) = re.findall(r"^```python\n(.*?)^```$", readme, re.DOTALL | re.MULTILINE)
    code, count = re.subn(r'"docker://[^"]*"', repr(f"oci:{layout.path}"), code)
    assert count == 1
    result = run([sys.executable, "-c", code])
    assert (result.returncode, result.stderr) == (0, "")
    first, last = result.stdout.splitlines()
    assert first.startswith("200 sha256:")
    assert last == "200 0"


def test_a_chart_is_saved_from_among_other_things(
    run: Callable[..., Run], layout: Layout, tmp_path: Path
) -> None:
    chart, saved = helm(layout), tmp_path / "app.tgz"
    layout.save(layout.index(layout.image(SMALL), oras(layout), layout.index(chart)))
    command = [sys.executable, ROOT / "demo/chart.py", f"oci:{layout.path}", saved, INSECURE]
    done = run(command)
    assert (done.stdout, done.stderr, done.returncode) == ("", "", 0)
    assert saved.read_bytes() == layout.read(layout.layers(chart)[0]["digest"])
    layout.save(oras(layout))
    done = run(command)
    assert done.returncode == 1
    assert done.stderr.startswith("chart.py: /layers/0: 404 MANIFEST_UNKNOWN: ")
    assert f"no manifest with --artifact-type {HELM} " in done.stderr


def test_the_sample_image_is_the_same_everywhere(run: Callable[..., Run], tmp_path: Path) -> None:
    """And has what the demo is to show: two platforms, and a layer that is streamed."""
    run([sys.executable, ROOT / "demo/sample.py", tmp_path / "image"])
    layout = Layout(tmp_path / "image")
    (top,) = _json(layout.path / "index.json")["manifests"]
    assert top["digest"] == SAMPLE_INDEX
    images = _json(layout.file(top["digest"]))["manifests"]
    assert [image["platform"]["architecture"] for image in images] == ["amd64", "arm64"]
    layers = _json(layout.file(images[0]["digest"]))["layers"]
    assert max(layer["size"] for layer in layers) > 1 << 20


def test_the_sample_archive_stands_in_for_a_registry(
    run: Callable[..., Run], tmp_path: Path
) -> None:
    """With the layers of the layout, as none of them is compressed."""
    archive = tmp_path / "sample-1.tar.gz"
    run([sys.executable, ROOT / "demo/sample.py", tmp_path / "image", archive])
    options = [INSECURE, "--platform=linux/amd64"]
    sideload = ["--offline", f"--sideload={tmp_path}/<basename>-<ref>.tar.gz"]
    listed = [
        run([sys.executable, ROOT / "demo/parent.py", image, *options, *more])
        for image, more in [
            (f"oci:{tmp_path}/image", []),
            (f"docker.io/acme/sample:1@{SAMPLE_MANIFEST}", sideload),
        ]
    ]
    assert [result.returncode for result in listed] == [0, 0]
    (_, *layout), (first, *sideloaded) = (result.stdout.splitlines() for result in listed)
    assert first.split() == ["manifest", SAMPLE_MANIFEST]
    assert sideloaded == layout


IMAGE = "quay.io/acme/sample:1"


@pytest.fixture
def pull(run: Callable[..., Run], layout: Layout) -> Callable[..., Run]:
    """Run the demo of the registry over an index of the image."""
    layout.save(named(layout.index(layout.image(LARGE, SMALL)), IMAGE))
    command = [sys.executable, ROOT / "demo/registry.py", layout.path, IMAGE]
    return lambda *options: run([*command, *options])


def test_the_registry_gives_what_lies_there(pull: Callable[..., Run]) -> None:
    result = pull(INSECURE)
    assert (result.returncode, result.stderr) == (0, "")
    assert f"blob {digest_of(SMALL)} {len(SMALL)} bytes\n" in result.stdout
    assert f"part 206 bytes {len(LARGE) // 2}-{len(LARGE) - 1}/{len(LARGE)}\n" in result.stdout


@pytest.mark.parametrize(
    ("spoilt", "failure"), [(LARGE, "IncompleteRead"), (SMALL, "502 .*DIGEST_INVALID")]
)
def test_the_registry_gives_nothing_damaged(
    pull: Callable[..., Run], layout: Layout, spoilt: bytes, failure: str
) -> None:
    spoil(layout, digest_of(spoilt))
    result = pull(INSECURE)
    assert result.returncode == 1
    assert re.search(f"^failed: .*{failure}", result.stderr)


def test_the_registry_obeys_the_policy(pull: Callable[..., Run], tmp_path: Path) -> None:
    policy = tmp_path / "policy.json"
    policy.write_text(json.dumps({"default": [{"type": "reject"}]}))
    result = pull("--policy", str(policy))
    assert result.returncode == 1
    assert "failed: manifests/1: 403 " in result.stderr


@pytest.mark.slow
def test_the_demo_runs() -> None:
    """All of its steps, whatever the umask is."""
    result = subprocess.run(
        ["sh", "-c", f"umask 002; {ROOT}/demo/run"], capture_output=True, text=True, check=False
    )
    assert (result.returncode, result.stdout.count("OK\n")) == (0, 3), result.stderr


@pytest.mark.slow
def test_what_is_said_of_archives_and_skopeo_is_so(run: Callable[..., Run]) -> None:
    """All of the table in the guide, and nothing else; of skopeo, if it is the version there."""
    is_theirs = skopeo.version() == (1, 9)
    result = run([sys.executable, ROOT / "demo/compare.py"], limit=120)
    assert (result.returncode, result.stderr) == (0, "")
    said = re.findall(
        r"^(\S.*)\n   skopeo:   (.*)\n   imgproxy: (.*)$", result.stdout, re.MULTILINE
    )
    guide = (ROOT / "GUIDE.md").read_text()
    _, _, table = guide.partition("| archive | skopeo 1.9.3 | imgproxy |\n|---|---|---|\n")
    rows = [row.split(" | ") for row in table.partition("\n\n")[0].splitlines()]
    claims = {title.removeprefix("| "): (theirs, ours) for title, theirs, ours in rows}
    assert claims.keys() == {title for title, _, _ in said}
    for title, theirs, ours in said:
        their_claim, our_claim = (re.findall(r"`([^`]+)`", claim) for claim in claims[title])
        assert our_claim[0] in ours, title
        assert their_claim[0] in theirs or not is_theirs, title
    assert {ours for _, _, ours in said} & {"served"}


def _json(file: Path) -> Any:  # noqa: ANN401  (JSON is any)
    return json.loads(file.read_bytes())
