"""`imgproxy registry` while its policy, its keys and where they are change under it."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import pytest
from support import registry_doors
from support.gnupg import gnupg
from support.images import Layout, named
from support.parent import eventually
from support.registry_doors import NAME, REGISTRY, Door, blob, manifest
from support.servers import certificates, docker_registry

if TYPE_CHECKING:
    from pathlib import Path

    from support.filled import Registry
    from support.home import Home
    from support.images import Json

ANYTHING = {"default": [{"type": "insecureAcceptAnything"}]}
NOTHING = {"default": [{"type": "reject"}]}

LARGE = os.urandom(16 << 20)


def becomes(door: Door, target: str, status: int) -> bool:
    return eventually(lambda: door.status(target) == status)


def place(directory: Path, *layers: bytes) -> tuple[Layout, Json]:
    """Write an image of `NAME` where `pattern` finds it."""
    layout = Layout(directory / NAME / "1")
    image = layout.image(*layers)
    layout.save(named(image, f"{NAME}:1"))
    return layout, image


def pattern(directory: Path) -> str:
    return f"--sideload={directory}/<registry>/<name>/<ref>"


@pytest.mark.slow
def test_a_stricter_policy_counts_for_what_is_open(tmp_path: Path) -> None:
    layout, image = place(tmp_path, b"a layer")
    targets = [
        manifest(NAME, "1"),
        manifest(NAME, image["digest"]),
        blob(NAME, layout.layers(image)[0]["digest"]),
    ]
    policy = tmp_path / "policy.json"
    policy.write_text(json.dumps(ANYTHING))
    with registry_doors.running(pattern(tmp_path), policy=f"--policy={policy}") as door:
        assert [door.status(each) for each in targets] == [200] * 3
        policy.write_text(json.dumps(NOTHING))
        assert becomes(door, targets[0], 403)
        assert [door.status(each) for each in targets] == [403] * 3
        assert door.status(targets[0], f'If-None-Match: "{image["digest"]}"') == 403
        policy.write_text('{"default": []}')
        assert becomes(door, targets[0], 500)
        assert {door.ask(each).code for each in targets} == {"CONFIGURATION"}
        assert f"the policy {policy}: default:" in door.child.stderr
        assert (door.status("/healthz"), door.status("/v2/")) == (200, 200)
        policy.write_text(json.dumps(ANYTHING))
        assert becomes(door, targets[0], 200)
        assert [door.status(each) for each in targets] == [200] * 3


@pytest.mark.slow
def test_a_body_that_was_begun_is_finished(tmp_path: Path) -> None:
    layout, image = place(tmp_path, LARGE)
    target = blob(NAME, layout.layers(image)[0]["digest"])
    policy = tmp_path / "policy.json"
    policy.write_text(json.dumps(ANYTHING))
    with registry_doors.running(pattern(tmp_path), policy=f"--policy={policy}") as door:
        slow = door.connect()
        slow.ask("GET", target)
        head = slow.head()
        assert head.status == 200
        policy.write_text(json.dumps(NOTHING))
        assert becomes(door, target, 403)
        assert slow.read(len(LARGE)) == LARGE
        policy.write_text(json.dumps(ANYTHING))
        assert becomes(door, target, 200)


@pytest.mark.slow
def test_a_policy_that_comes_and_goes(tmp_path: Path, home: Home) -> None:
    place(tmp_path, b"a layer")
    target = manifest(NAME, "1")
    with registry_doors.running(pattern(tmp_path), policy=None, env=home.environment()) as door:
        before = door.status(target)  # by the policy of this host, if it has one
        other, document = (403, NOTHING) if before == 200 else (200, ANYTHING)
        policy = home.write(".config/containers/policy.json", document)
        assert becomes(door, target, other)
        policy.unlink()
        assert becomes(door, target, before)


@pytest.mark.slow
@pytest.mark.parametrize("change", ["revoked", "removed", "place"])
@pytest.mark.parametrize("option", ["--sideload", "--images"])
def test_a_revoked_key_and_another_place_of_signatures(
    tmp_path: Path, home: Home, change: str, option: str
) -> None:
    layout, image = place(tmp_path, b"a layer")
    served = pattern(tmp_path) if option == "--sideload" else f"--images={layout.path}"
    target = manifest(NAME, "1")
    with gnupg() as gpg:
        signer = gpg.key("signer")
        other = gpg.key("other")
        key = home.write("key.gpg", gpg.export(other) + gpg.export(signer))
        claim = {
            "type": "atomic container signature",
            "image": {"docker-manifest-digest": image["digest"]},
            "identity": {"docker-reference": f"{NAME}:1"},
        }
        signature = gpg.sign(json.dumps({"critical": claim, "optional": {}}).encode(), signer)
        repository = NAME.removeprefix(f"{REGISTRY}/")
        directory = f"{repository}@{image['digest'].replace(':', '=')}"
        home.write(f"lookaside/{directory}/signature-1", signature)
        wanted = {"type": "signedBy", "keyType": "GPGKeys", "keyPath": str(key)}
        policy = home.write("policy.json", {"default": [wanted]})
        places = home.write(
            "registries.d/a.yaml",
            {"default-docker": {"lookaside": f"file://{home.path}/lookaside"}},
        )
        options = (served, f"--registries.d={places.parent}")
        with registry_doors.running(*options, policy=f"--policy={policy}") as door:
            assert door.status(target) == 200, door.child.stderr
            if change == "revoked":
                gpg.revoke(signer)
                key.write_bytes(gpg.export(other) + gpg.export(signer))
            elif change == "removed":
                key.write_bytes(gpg.export(other))
            else:
                places.unlink()
            assert becomes(door, target, 403)
            if change != "place":
                key.write_bytes(b"no key")
                assert becomes(door, target, 500)
                assert door.ask(target).code == "CONFIGURATION"


@pytest.mark.slow
def test_certificates_of_an_upstream_are_overwritten(
    registry: Registry, home: Home, tmp_path: Path
) -> None:
    """In place: the directory does not change, and neither do the names in it."""
    right, wrong = certificates(tmp_path / "right"), certificates(tmp_path / "wrong")
    with docker_registry(registry.directory, tls=right) as upstream:
        certs = f".config/containers/certs.d/{upstream}/ca.crt"
        trusted = home.write(certs, wrong.authority.read_bytes())
        options = (f"--upstream={upstream}", f"--cache={tmp_path / 'cache'}", "--no-creds")
        with registry_doors.running(*options, env=home.environment()) as door:
            first, second = (
                manifest(f"{upstream}/images/all", each) for each in ("latest", "index")
            )
            assert door.status(first) == 502
            trusted.write_bytes(right.authority.read_bytes())
            assert becomes(door, first, 200)
            trusted.write_bytes(wrong.authority.read_bytes())
            # What was had before still serves.
            assert eventually(lambda: door.ask(first).get("Warning") is not None)
            assert door.status(second) == 502
