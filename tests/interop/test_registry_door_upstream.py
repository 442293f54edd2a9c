"""`imgproxy registry --upstream`: a real registry, through a cache."""

from __future__ import annotations

import json
import socket
from typing import TYPE_CHECKING

import bcrypt
import pytest
from interop.test_signatures import annotated, attach
from support import registry_doors, upstreams
from support.images import Layout, digest_of, named
from support.parent import eventually
from support.registry_doors import ABSENT, assert_is_refused, blob, manifest, path
from support.servers import (
    PASSWORD,
    READER,
    Answering,
    address_of,
    basic,
    certificates,
    docker_registry,
    http_server,
    put_manifest,
    skopeo_copy,
)
from support.sigstores import Signer, payload

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from support.filled import Registry
    from support.upstreams import Scene

STALE = '110 imgproxy "Response is Stale"'


@pytest.fixture
def scene(registry: Registry, tmp_path: Path) -> Iterator[Scene]:
    with upstreams.scene(registry, tmp_path) as scene:
        yield scene


# --- what is asked for ----------------------------------------------------------------------------


def test_what_was_pulled_once_is_asked_for_once(scene: Scene) -> None:
    with scene.door() as door:
        for tag in ("index", "docker"):
            scene.pull(door, tag)
        asked = scene.asked()
        assert len(asked) == len({*asked}), asked
        scene.pull(door, "index")
        assert [*map(str, scene.line.asked)] == ["HEAD /v2/images/all/manifests/index"]
    scene.line.dead = True
    with scene.door() as door:  # nothing of it is in memory
        for tag in ("index", "docker"):
            first, *rest = scene.pull(door, tag)
            assert first.get("Warning") == STALE
            assert int(first.get("Age") or "") >= 0
            assert not any(each.get("Warning") for each in rest)
        assert "using what was there" in door.child.stderr


def test_blobs_are_known_after_a_restart_and_before_their_manifest(scene: Scene) -> None:
    layer = scene.registry.layers("latest")[0]["digest"]
    with scene.door() as door:
        assert door.status(blob(scene.name, layer)) == 404  # no manifest of the name names it yet
        assert door.status(manifest(scene.name, "latest"), method="HEAD") == 200
        assert door.status(blob(scene.name, layer), method="HEAD") == 200
    with scene.door() as door:
        assert door.ask(blob(scene.name, layer)).body == scene.registry.layout.read(layer)


def test_a_tag_is_not_asked_for_again_within_its_time(scene: Scene) -> None:
    with scene.door("--tag-ttl=600") as door:
        for _ in range(2):
            assert door.status(manifest(scene.name, "latest")) == 200
    assert scene.asked() == ["/v2/images/all/manifests/latest"]


def test_a_tag_that_moves_is_seen_and_what_it_was_can_still_be_had(scene: Scene) -> None:
    images, layout = scene.registry.images, scene.registry.layout
    with scene.door() as door:
        for each in ("latest", "docker"):
            raw, kind = layout.read(images[each]["digest"]), images[each]["mediaType"]
            put_manifest(scene.registry.address, "images/all", "moving", raw, kind)
            assert door.ask(manifest(scene.name, "moving")).body == raw
        first = images["latest"]["digest"]
        assert door.status(manifest(scene.name, first)) == 200
        layer = scene.registry.layers("latest")[0]["digest"]
        assert door.status(blob(scene.name, layer)) == 200


@pytest.mark.slow
def test_many_who_ask_for_a_tag_at_once_have_one_answer(scene: Scene) -> None:
    with scene.door() as door:

        def ask() -> None:
            assert door.status(manifest(scene.name, "latest")) == 200

        upstreams.all_at_once(8, ask)
        asked = scene.asked()
        assert 1 <= len(asked) <= 3, asked  # who comes after an answer asks anew


def test_tags_and_referrers_are_those_of_the_registry(scene: Scene) -> None:
    layout, app = scene.registry.layout, scene.registry.images["latest"]
    subject = {key: app[key] for key in ("mediaType", "digest", "size")}
    sbom = {**layout.document(app), "artifactType": "text/sbom", "subject": subject}
    raw = json.dumps(sbom).encode()
    listed = {"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json"}
    entry = {"mediaType": app["mediaType"], "digest": digest_of(raw), "size": len(raw)}
    listed_raw = json.dumps({**listed, "manifests": [entry, {**app}]}).encode()
    address = scene.registry.address
    put_manifest(address, "images/all", "sbom", raw, app["mediaType"])
    # This registry is older than the list of referrers: they are under a tag.
    fallback = app["digest"].replace(":", "-")
    put_manifest(address, "images/all", fallback, listed_raw, listed["mediaType"])
    where = path(scene.name, "referrers", app["digest"])
    with scene.door() as door:
        tags = door.ask(path(scene.name, "tags", "list")).json()["tags"]
        assert {*scene.registry.images, "sbom"} <= {*tags}
        assert tags == sorted(tags)
        assert [each["digest"] for each in door.ask(where).json()["manifests"]] == [digest_of(raw)]
        assert door.status(manifest(scene.name, "latest")) == 200
    scene.line.dead = True
    with scene.door("--retries=0") as door:
        # What was had under the name serves while the registry is away.
        assert door.ask(path(scene.name, "tags", "list")).json()["tags"] == ["latest"]
        assert [each["digest"] for each in door.ask(where).json()["manifests"]] == [digest_of(raw)]
        assert_is_refused(
            door.ask(path(f"{scene.line.address}/none", "tags", "list")), 504, "UNSUPPORTED"
        )


# --- what may be had ------------------------------------------------------------------------------


def test_what_another_name_has_is_not_given_out(scene: Scene) -> None:
    """A digest that the cache has under one name must not be had under another."""
    image = scene.registry.images["latest"]["digest"]
    layer = scene.registry.layers("latest")[0]["digest"]
    other = scene.name.replace("/all", "/none")
    with scene.door() as door:
        scene.pull(door, "latest")
        scene.asked()
        for target in (manifest(other, image), manifest(other, "latest"), blob(other, layer)):
            assert door.status(target) == 404
        # It is the registry that says so, of this name.
        assert scene.asked() == [
            f"/v2/images/none/manifests/{image}",
            "/v2/images/none/manifests/latest",
        ]
        assert_is_refused(door.ask(manifest(scene.name, ABSENT)), 404, "MANIFEST_UNKNOWN")
        assert_is_refused(door.ask(blob(scene.name, ABSENT)), 404, "BLOB_UNKNOWN")


@pytest.mark.slow
def test_the_policy_decides_by_the_name_of_two_with_one_digest(
    scene: Scene, tmp_path: Path
) -> None:
    """Two registries that are one place have the same image; one name is rejected."""
    image, layer = scene.registry.images["latest"], scene.registry.layers("latest")[0]["digest"]
    port = scene.line.address.rpartition(":")[2]
    rejected = f"localhost:{port}/images/all"
    policy = tmp_path / "policy.json"
    accept, reject = ([{"type": each}] for each in ("insecureAcceptAnything", "reject"))
    scopes = {"docker": {f"localhost:{port}": reject}}
    policy.write_text(json.dumps({"default": accept, "transports": scopes}))
    option = f"--upstream=localhost:{port}"
    with scene.door(option, policy=f"--policy={policy}") as door:
        scene.pull(door, "latest")
        scene.asked()
        for target in (
            manifest(rejected, "latest"),
            manifest(rejected, image["digest"]),
        ):
            assert_is_refused(door.ask(target), 403, "DENIED")
        assert door.status(blob(rejected, layer)) in {403, 404}
        assert scene.asked() == []
        scene.pull(door, "latest")


def test_nothing_is_asked_of_a_registry_that_is_not_listed(scene: Scene) -> None:
    host = scene.line.address
    with scene.door(upstream="registry.example") as door:
        for name in (scene.name, "team/app"):
            for target in (
                manifest(name, "latest"),
                manifest(name, ABSENT),
                blob(name, ABSENT),
                path(name, "tags", "list"),
                path(name, "referrers", ABSENT),
            ):
                assert door.status(target) == 404
                assert door.status(f"{target}?ns={host}") == 404
    assert scene.line.connections == 0


# --- a registry that is away, or refuses ----------------------------------------------------------


def test_what_nobody_can_be_asked_for_is_no_404(scene: Scene) -> None:
    targets = [
        manifest(scene.name, "latest"),
        manifest(scene.name, ABSENT),
        path(scene.name, "tags", "list"),
    ]
    with scene.door("--offline") as door:
        for target in targets:
            assert_is_refused(door.ask(target), 504, "UNSUPPORTED")
        assert scene.line.connections == 0
    with socket.create_server(("127.0.0.1", 0)) as closed:
        nobody = address_of(closed)
    with scene.door("--retries=0", upstream=nobody) as door:
        for target in targets:
            gone = target.replace(scene.line.address, nobody)
            assert_is_refused(door.ask(gone), 504, "UNSUPPORTED")


@pytest.mark.slow
def test_a_registry_that_says_nothing_is_not_asked_by_each(scene: Scene) -> None:
    """Its listener accepts connections, and nobody answers on them."""
    with scene.door("--retries=0") as door:
        for tag in ("latest", "docker"):
            scene.pull(door, tag)
        scene.line.silent = True
        targets = [manifest(scene.name, each) for each in ("latest", "docker", ABSENT, "none")]

        def asks_nobody() -> bool:
            """Ask for one more thing each time, after what has been found out in vain."""
            door.ask(targets[0])
            before = scene.line.connections
            replies = [door.ask(each) for each in targets]
            assert [each.status for each in replies] == [200, 200, 504, 504]
            assert [each.get("Warning") for each in replies[:2]] == [STALE] * 2
            return scene.line.connections == before

        # On a machine that is stopped for seconds in between, they are asked for once more.
        assert eventually(asks_nobody, 300)
        assert "not asked again yet" in door.child.stderr
        scene.line.silent = False
        assert eventually(lambda: door.ask(targets[0]).get("Warning") is None)


@pytest.mark.slow
def test_offline_serves_what_is_there_for_a_time(scene: Scene) -> None:
    with scene.door() as door:
        scene.pull(door, "latest")
    with scene.door("--offline") as door:
        assert scene.pull(door, "latest")[0].get("Warning") == STALE
    with scene.door("--offline", "--max-stale=0") as door:
        assert door.status(manifest(scene.name, "latest")) == 504
        digest = scene.registry.images["latest"]["digest"]
        assert door.status(manifest(scene.name, digest)) == 200


@pytest.mark.slow
@pytest.mark.parametrize(
    ("said", "fields", "status", "code"),
    [
        (401, {"WWW_Authenticate": 'Basic realm="x"'}, 403, "DENIED"),
        (403, {}, 403, "DENIED"),
        (404, {}, 404, "MANIFEST_UNKNOWN"),
        (429, {"Retry_After": "3000"}, 503, "TOOMANYREQUESTS"),
        (429, {"Retry_After": "30"}, 503, "TOOMANYREQUESTS"),
        (500, {}, 503, "TOOMANYREQUESTS"),
        (418, {}, 502, "MANIFEST_INVALID"),
        (503, {}, 503, "TOOMANYREQUESTS"),
    ],
)
def test_what_a_registry_says_is_passed_on(
    scene: Scene, said: int, fields: dict[str, str], status: int, code: str
) -> None:
    def get(request: Answering) -> None:
        request.answer(said, b"", **fields)

    with http_server(get) as address, scene.door(upstream=address) as door:
        reply = door.ask(manifest(f"{address}/x", "1"))
        assert_is_refused(reply, status, code)
        wanted = fields.get("Retry_After") or ("2" if status == 503 else None)
        assert reply.get("Retry-After") == wanted


def test_a_cache_that_was_emptied_is_a_miss(scene: Scene) -> None:
    with scene.door() as door:
        scene.pull(door, "index")
        (scene.cache / "blobs").rename(scene.cache.with_name("blobs"))  # all of it at once
        scene.pull(door, "index")
        scene.cache.rename(scene.cache.with_name("nowhere"))
        scene.pull(door, "docker")


# --- signatures -----------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_signed_index_covers_its_images_also_after_a_restart(
    registry: Registry, tmp_path: Path
) -> None:
    """The signature is of the index under its tag alone; nothing that it names is signed."""
    signer, repository = Signer(), "signed/index"
    layout, index = registry.layout, registry.images["index"]
    image = layout.document(index)["manifests"][0]
    layer = layout.layers(image)[0]["digest"]
    copied = f"docker://{registry.address}/{repository}:1"
    skopeo_copy(
        registry.name(":index"), copied, "--all", "--preserve-digests", "--src-tls-verify=false"
    )
    with upstreams.scene(registry, tmp_path) as scene:
        name = f"{scene.line.address}/{repository}"
        content = payload(index["digest"], f"{name}:1")
        layers = [(content, annotated(content, signer))]
        attach(registry.address, repository, index["digest"], layers)
        (tmp_path / "key.pub").write_bytes(signer.pem)
        (tmp_path / "d").mkdir()
        (tmp_path / "d/a.yaml").write_text("default-docker: {use-sigstore-attachments: true}")
        demand = {
            "type": "sigstoreSigned",
            "keyPath": f"{tmp_path}/key.pub",
            "signedIdentity": {"type": "matchExact"},
        }
        policy = tmp_path / "policy.json"
        policy.write_text(json.dumps({"default": [demand]}))
        options = f"--registries.d={tmp_path}/d"
        for is_first in (True, False):
            with scene.door(options, policy=f"--policy={policy}") as door:
                if is_first:
                    assert_is_refused(door.ask(manifest(name, image["digest"])), 403, "DENIED")
                    assert door.ask(manifest(name, "1")).body == layout.read(index["digest"])
                for digest in (index["digest"], image["digest"]):
                    found = door.ask(manifest(name, digest))
                    assert found.body == layout.read(digest), found
                assert door.ask(blob(name, layer)).body == layout.read(layer)
                # The same images under a name that nobody signed.
                assert_is_refused(door.ask(manifest(scene.name, "index")), 403, "DENIED")
                assert door.status(blob(scene.name, layer)) in {403, 404}
        (tmp_path / "key.pub").write_bytes(Signer().pem)  # the key was revoked
        with scene.door(options, "--offline", policy=f"--policy={policy}") as door:
            for target in (
                manifest(name, "1"),
                manifest(name, index["digest"]),
                manifest(name, image["digest"]),
                blob(name, layer),
            ):
                assert door.status(target) == 403, target


@pytest.mark.slow
@pytest.mark.parametrize("option", ["--images", "--sideload"])
def test_an_image_that_lies_here_has_the_signatures_of_its_upstream(
    registry: Registry, tmp_path: Path, option: str
) -> None:
    signer, repository = Signer(), f"signed/here{option}"
    with upstreams.scene(registry, tmp_path) as scene:
        name = f"{scene.line.address}/{repository}"
        layout = Layout(tmp_path / "here" / repository / "1")
        image = layout.image(b"a layer that its registry does not have")
        layout.save(named(image, f"{name}:1"))
        content = payload(image["digest"], f"{name}:1")
        layers = [(content, annotated(content, signer))]
        attach(registry.address, repository, image["digest"], layers)
        (tmp_path / "key.pub").write_bytes(signer.pem)
        (tmp_path / "d").mkdir()
        (tmp_path / "d/a.yaml").write_text("default-docker: {use-sigstore-attachments: true}")
        demand = {"type": "sigstoreSigned", "keyPath": f"{tmp_path}/key.pub"}
        policy = tmp_path / "policy.json"
        policy.write_text(json.dumps({"default": [demand]}))
        place = str(layout.path) if option == "--images" else f"{tmp_path}/here/<name>/<ref>"
        options = (f"--registries.d={tmp_path}/d", option, place)
        with scene.door(*options, policy=f"--policy={policy}") as door:
            assert door.ask(manifest(name, "1")).body == layout.read(image["digest"])
        asked = scene.asked("/v2/signed")
        assert any(each.endswith(".sig") for each in asked)
        assert not any(each.endswith(("/1", image["digest"])) for each in asked)
        with registry_doors.running(*options, policy=f"--policy={policy}") as door:
            assert_is_refused(door.ask(manifest(name, "1")), 403, "DENIED")
        assert not scene.asked()


# --- protection, and what changes -----------------------------------------------------------------


@pytest.mark.slow
def test_clients_log_in_here_and_never_to_the_registry(registry: Registry, tmp_path: Path) -> None:
    users = tmp_path / "users"
    users.write_text(f"ann:{bcrypt.hashpw(b'secret', bcrypt.gensalt(4)).decode()}\n")
    known = f"Authorization: {basic('ann', 'secret')}"
    options = [f"--htpasswd={users}", f"--cache={tmp_path / 'cache'}", upstreams.HTTP]
    with docker_registry(registry.directory, auth="htpasswd") as guarded:
        target = manifest(f"{guarded}/images/all", "latest")
        with registry_doors.running(*options, f"--upstream={guarded}") as door:
            stranger = door.ask(target)
            assert (stranger.status, stranger.code) == (401, "UNAUTHORIZED")
            assert "imgproxy" in (stranger.get("WWW-Authenticate") or "")
            assert_is_refused(door.ask(target, known), 403, "DENIED")
        with registry_doors.running(
            *options, f"--upstream={guarded}", f"--creds={READER}:{PASSWORD}"
        ) as door:
            assert door.status(target) == 401
            assert door.status(target, known) == 200


@pytest.mark.slow
def test_authorities_and_locations_that_come_count(registry: Registry, tmp_path: Path) -> None:
    files = certificates(tmp_path / "tls")
    trusted = tmp_path / "certs"
    trusted.mkdir()
    conf = tmp_path / "registries.conf"
    conf.write_text("")
    with docker_registry(registry.directory, tls=files) as secure:
        upstream = ["--upstream", secure, "--upstream", "x.invalid", "--no-creds"]
        options = [f"--cert-dir={trusted}", f"--registries-conf={conf}"]
        here = manifest(f"{secure}/images/all", "latest")
        moved = manifest("x.invalid/images/all", "latest")
        with registry_doors.running(*options, *upstream, f"--cache={tmp_path / 'cache'}") as door:
            assert door.status(here) in {502, 504}
            (trusted / "authority.crt").write_bytes(files.authority.read_bytes())
            assert eventually(lambda: door.status(here) == 200)
            assert door.status(moved) == 504
            conf.write_text(f'[[registry]]\nprefix = "x.invalid"\nlocation = "{secure}"\n')
            assert eventually(lambda: door.status(moved) == 200)
            (trusted / "authority.crt").unlink()
            # What was had before still comes, and is known to be old.
            assert eventually(lambda: door.ask(here).get("Warning") == STALE)
