"""Images from a real registry, as skopeo sees them; and a registry that fails in every way."""

from __future__ import annotations

import json
import shutil
import socketserver
import subprocess
import threading
from typing import TYPE_CHECKING, Any

import pytest
from support.damage import flip, respace, shorten
from support.images import (
    DOCKER_CONFIG,
    DOCKER_LAYER,
    DOCKER_LIST,
    DOCKER_MANIFEST,
    OCI_CONFIG,
    OCI_INDEX,
    OCI_LAYER,
    OCI_MANIFEST,
    Json,
    Layout,
    digest_of,
)
from support.parent import LIMIT, Child, environment
from support.servers import (
    Answering,
    Certificates,
    certificates,
    docker_registry,
    free_port,
    http_server,
    in_thread,
    layout_as_registry,
    nginx,
    put_manifest,
    relay,
    require,
    stored_blob,
    token_service,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from conftest import Serve
    from support.filled import Registry
    from support.parent import Reply

INSECURE_TLS = "--tls-verify=false"
AMD64 = "--platform=linux/amd64"

# The path of the contract that a blob, a manifest lies at.
RELABELLED = {
    DOCKER_MANIFEST: OCI_MANIFEST,
    DOCKER_CONFIG: OCI_CONFIG,
    DOCKER_LAYER: OCI_LAYER,
    DOCKER_LAYER + ".gzip": OCI_LAYER + "+gzip",
}


@pytest.fixture
def pull(serve: Serve) -> Callable[..., Child]:
    """Start the program on an image of a plain-http registry."""
    return lambda image, *options: serve(image, INSECURE_TLS, AMD64, *options)


def raw(image: str) -> bytes:
    """Return the manifest as skopeo sees it."""
    return subprocess.run(
        [require("skopeo"), "inspect", "--raw", "--tls-verify=false", image],
        capture_output=True,
        check=True,
        timeout=30,
    ).stdout


def config_and_layers(manifest: Json) -> list[Json]:
    return [manifest["config"], *manifest["layers"]]


def assert_blobs_are_served(child: Child, manifest: Json, layout: Layout) -> None:
    """Compare the config and every layer with the layout's files."""
    for descriptor in config_and_layers(manifest):
        reply = child.client.get(f"/blobs/{descriptor['digest']}")
        assert reply.status == 200
        assert reply.length == descriptor["size"]
        assert reply.get("Docker-Content-Digest") == descriptor["digest"]
        assert reply.body == layout.read(descriptor["digest"])
    assert child.client.get("/config").body == layout.read(manifest["config"]["digest"])


# --- manifests and blobs ---------------------------------------------------------------------


def references(tag: str, digest: str) -> list[str]:
    return [f":{tag}", f"@{digest}", f":{tag}@{digest}", f":no-such-tag@{digest}"]


@pytest.mark.parametrize("kind", range(4), ids=["tag", "digest", "tag+digest", "digest decides"])
def test_an_oci_image_is_served_byte_for_byte(
    kind: int, registry: Registry, pull: Callable[..., Child]
) -> None:
    digest = registry.images["latest"]["digest"]
    child = pull(registry.name(references("latest", digest)[kind]))
    reply = child.client.get("/manifest")
    assert reply.body == raw(registry.name(":latest")) == registry.layout.read(digest)
    assert reply.get("Content-Type") == OCI_MANIFEST
    assert reply.get("Manifest-Digest") == digest
    assert reply.get("Manifest-Media-Type") == OCI_MANIFEST
    assert reply.get("Docker-Content-Digest") == digest
    assert reply.get("Index-Digest") is None
    assert_blobs_are_served(child, reply.json(), registry.layout)
    assert child.finish() == 0
    assert child.stderr == ""


def test_latest_is_the_tag_where_none_is_given(
    registry: Registry, pull: Callable[..., Child]
) -> None:
    child = pull(registry.name())
    expected = registry.images["latest"]["digest"]
    assert child.client.get("/manifest").get("Manifest-Digest") == expected
    assert child.finish() == 0


def relabelled(document: Any) -> Any:  # noqa: ANN401  (JSON is any)
    """Replace Docker's media types by OCI's, wherever they stand, and nothing else."""
    if isinstance(document, dict):
        return {
            key: RELABELLED.get(value, value) if key == "mediaType" else relabelled(value)
            for key, value in document.items()
        }
    if isinstance(document, list):
        return [relabelled(value) for value in document]
    return document


@pytest.mark.parametrize("tag", ["docker", "converted-v2s2"])
def test_a_docker_image_is_relabelled_and_nothing_else(
    tag: str, registry: Registry, pull: Callable[..., Child]
) -> None:
    original = raw(registry.name(f":{tag}"))
    document = json.loads(original)
    assert document["mediaType"] == DOCKER_MANIFEST
    child = pull(registry.name(f":{tag}"))
    reply = child.client.get("/manifest")
    converted = reply.json()
    assert converted == relabelled(document)
    assert converted["mediaType"] == OCI_MANIFEST
    assert converted["config"]["mediaType"] == OCI_CONFIG
    layer_types = {layer["mediaType"] for layer in converted["layers"]}
    assert layer_types <= {OCI_LAYER, OCI_LAYER + "+gzip"}
    assert reply.body == json.dumps(relabelled(document), separators=(",", ":")).encode()
    assert reply.get("Content-Type") == OCI_MANIFEST
    assert reply.get("Manifest-Media-Type") == DOCKER_MANIFEST
    assert reply.get("Manifest-Digest") == digest_of(original)
    assert reply.get("Docker-Content-Digest") == digest_of(reply.body)
    unconverted = child.client.get(f"/manifests/{digest_of(original)}")
    assert unconverted.body == original
    assert unconverted.get("Content-Type") == DOCKER_MANIFEST
    assert child.client.get("/config").get("Content-Type") == OCI_CONFIG
    assert child.finish() == 0


@pytest.mark.parametrize("tag", ["converted-v2s2", "converted-oci"])
def test_blobs_that_skopeo_compressed_are_served_as_they_are(
    tag: str, registry: Registry, pull: Callable[..., Child]
) -> None:
    child = pull(registry.name(f":{tag}"))
    for layer in child.client.get("/manifest").json()["layers"]:
        assert layer["mediaType"] == OCI_LAYER + "+gzip"
        reply = child.client.get(f"/blobs/{layer['digest']}")
        assert reply.body == stored_blob(registry.directory, layer["digest"]).read_bytes()
        assert digest_of(reply.body) == layer["digest"]
        assert reply.get("Content-Encoding") is None
    assert child.finish() == 0


@pytest.mark.parametrize("platform", ["linux/amd64", "linux/arm64", "linux/arm/v7"])
@pytest.mark.parametrize(("tag", "media_type"), [("index", OCI_INDEX), ("list", DOCKER_LIST)])
def test_the_image_for_the_platform_is_chosen_from_an_index(
    tag: str, media_type: str, platform: str, registry: Registry, pull: Callable[..., Child]
) -> None:
    index = json.loads(raw(registry.name(f":{tag}")))
    assert index["mediaType"] == media_type
    (expected,) = (
        entry["digest"]
        for entry in index["manifests"]
        if "/".join(entry["platform"].get(key, "") for key in ("os", "architecture", "variant"))
        in {platform, f"{platform}/"}
    )
    child = pull(registry.name(f":{tag}"), f"--platform={platform}")
    reply = child.client.get("/manifest")
    assert reply.get("Manifest-Digest") == expected
    assert reply.get("Index-Digest") == registry.images[tag]["digest"]
    assert_blobs_are_served(child, reply.json(), registry.layout)
    chosen = child.client.get(f"/manifests/{expected}")
    assert chosen.body == registry.layout.read(expected)
    whole = child.client.get(f"/manifests/{registry.images[tag]['digest']}")
    assert whole.body == registry.layout.read(registry.images[tag]["digest"])
    assert whole.get("Content-Type") == media_type
    assert child.finish() == 0


def test_a_platform_that_is_not_there_is_a_404_with_those_there_are(
    registry: Registry, pull: Callable[..., Child]
) -> None:
    child = pull(registry.name(":index"), "--platform=linux/riscv64")
    reply = child.client.get("/manifest")
    assert (reply.status, reply.code) == (404, "MANIFEST_UNKNOWN")
    platforms = ["linux/amd64", "linux/arm64", "linux/arm/v7"]
    assert sorted(reply.error["detail"]["platforms"]) == sorted(platforms)
    assert all(platform in reply.message for platform in platforms)
    assert child.finish() == 0


@pytest.mark.slow
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_a_nested_index_is_walked(
    depth: int, registry: Registry, pull: Callable[..., Child]
) -> None:
    outer = registry.images[f"nested-{depth}"]["digest"]
    child = pull(registry.name(f":nested-{depth}"))
    reply = child.client.get("/manifest")
    inner = registry.layout.document(registry.images["index"])["manifests"][0]["digest"]
    assert reply.get("Manifest-Digest") == inner
    assert reply.get("Index-Digest") == outer
    assert_blobs_are_served(child, reply.json(), registry.layout)
    way = child.client.get(f"/manifests/{registry.images['index']['digest']}")
    assert way.body == registry.layout.read(registry.images["index"]["digest"])
    assert child.finish() == 0


def test_an_index_nested_too_deep_is_refused(
    registry: Registry, pull: Callable[..., Child]
) -> None:
    child = pull(registry.name(":nested-5"))
    reply = child.client.get("/manifest")
    assert reply.status in {404, 422}
    assert child.finish() == 0


def test_a_large_blob_is_streamed_and_many_at_once(registry: Registry, serve: Serve) -> None:
    (layer,) = registry.layers("large")
    child = serve(registry.name(":large"), INSECURE_TLS, sockets=4)
    for client in child.clients:
        client.ask("GET", f"/blobs/{layer['digest']}")
    content = registry.layout.read(layer["digest"])
    assert all(client.reply().body == content for client in child.clients)
    assert child.finish() == 0
    assert child.stderr == ""


def test_blobs_of_other_images_are_not_served(
    registry: Registry, pull: Callable[..., Child]
) -> None:
    """The registry has it, under the same name; the chosen manifest does not name it."""
    (layer,) = registry.layers("large")
    child = pull(registry.name(":latest"))
    reply = child.client.get(f"/blobs/{layer['digest']}")
    assert (reply.status, reply.code) == (404, "BLOB_UNKNOWN")
    other = registry.images["docker"]["digest"]
    reply = child.client.get(f"/manifests/{other}")
    assert (reply.status, reply.code) == (404, "MANIFEST_UNKNOWN")
    assert child.finish() == 0


def test_another_platforms_manifest_releases_its_blobs(
    registry: Registry, pull: Callable[..., Child]
) -> None:
    child = pull(registry.name(":index"))
    other = registry.layout.document(registry.images["index"])["manifests"][1]
    (layer,) = registry.layout.layers(other)
    assert child.client.get(f"/blobs/{layer['digest']}").status == 404
    assert child.client.get(f"/manifests/{other['digest']}").status == 200
    reply = child.client.get(f"/blobs/{layer['digest']}")
    assert reply.body == registry.layout.read(layer["digest"])
    assert child.finish() == 0


# --- what is not there -----------------------------------------------------------------------


def test_a_tag_that_is_not_there_is_a_404(registry: Registry, pull: Callable[..., Child]) -> None:
    child = pull(registry.name(":no-such-tag"))
    for _ in range(2):
        reply = child.client.get("/manifest")
        assert (reply.status, reply.code) == (404, "MANIFEST_UNKNOWN")
        assert "no-such-tag" in reply.message
    assert child.finish() == 0


def test_a_digest_that_is_not_there_is_a_404(
    registry: Registry, pull: Callable[..., Child]
) -> None:
    child = pull(registry.name(f":latest@{digest_of(b'nothing')}"))
    reply = child.client.get("/manifest")
    assert (reply.status, reply.code) == (404, "MANIFEST_UNKNOWN")
    assert child.finish() == 0


def test_a_repository_that_is_not_there_is_a_404(
    registry: Registry, pull: Callable[..., Child]
) -> None:
    child = pull(f"docker://{registry.address}/no/such/repository:latest")
    reply = child.client.get("/manifest")
    assert reply.status == 404
    assert reply.code in {"NAME_UNKNOWN", "MANIFEST_UNKNOWN"}  # as the registry itself has it
    assert "no/such/repository" in reply.message
    assert child.finish() == 0


def test_a_registry_that_is_not_there_is_a_504(pull: Callable[..., Child]) -> None:
    address = f"127.0.0.1:{free_port()}"
    child = pull(f"docker://{address}/some/image", "--retries=0")
    assert_unreachable(child.client.get("/manifest"), address)
    assert child.finish() == 0


def assert_unreachable(reply: Reply, address: str) -> None:
    assert reply.status == 504
    assert reply.error["detail"]["retryable"] is True
    assert address in reply.message


def test_a_registry_that_comes_back_is_asked_again(
    registry: Registry, pull: Callable[..., Child], tmp_path: Path
) -> None:
    port = free_port()
    address = f"127.0.0.1:{port}"
    child = pull(registry.name(":latest", address), "--retries=0")
    assert_unreachable(child.client.get("/manifest"), address)
    with nginx(tmp_path, f"location / {{ proxy_pass http://{registry.address}; }}", port=port):
        assert child.client.get("/manifest").status == 200
    assert child.finish() == 0


def test_a_name_that_does_not_resolve_is_a_504(pull: Callable[..., Child]) -> None:
    """Which another try does not change: the resolver has answered that there is none."""
    child = pull("docker://registry.invalid/some/image")
    reply = child.client.get("/manifest")
    assert (reply.status, reply.code) == (504, "UNREACHABLE")
    assert reply.error["detail"]["retryable"] is False
    assert "registry.invalid" in reply.message
    assert child.finish() == 0


def test_offline_opens_no_connection(registry: Registry, pull: Callable[..., Child]) -> None:
    with relay(registry.address, after=1 << 30, fate="end") as address:
        child = pull(registry.name(":latest", address), "--offline")
        reply = child.client.get("/manifest")
    assert reply.status == 404
    assert "offline" in reply.message
    assert child.finish() == 0


# --- TLS -------------------------------------------------------------------------------------


@pytest.fixture
def tls(tmp_path: Path) -> Certificates:
    return certificates(tmp_path / "tls")


@pytest.fixture
def secure(registry: Registry, tls: Certificates) -> Iterator[str]:
    """Return the address of the same registry behind TLS."""
    with docker_registry(registry.directory, tls=tls) as address:
        yield address


def assert_refused_for_tls(reply: Reply) -> None:
    assert reply.status in {502, 504}
    assert "TLS" in reply.message or "certificate" in reply.message
    assert "--tls-verify=false" in reply.message, "the way out"


def test_an_unknown_authority_is_refused(registry: Registry, secure: str, serve: Serve) -> None:
    child = serve(registry.name(":latest", secure))
    assert_refused_for_tls(child.client.get("/manifest"))
    assert child.finish() == 0


def test_an_unknown_authority_is_accepted_when_told_to(
    registry: Registry, secure: str, pull: Callable[..., Child]
) -> None:
    child = pull(registry.name(":large", secure))
    assert child.client.get("/manifest").status == 200
    (layer,) = registry.layers("large")
    reply = child.client.get(f"/blobs/{layer['digest']}")
    assert reply.body == registry.layout.read(layer["digest"])
    assert child.finish() == 0


@pytest.mark.slow
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_an_authority_the_host_trusts_is_enough(
    host: str, registry: Registry, secure: str, tls: Certificates, serve: Serve
) -> None:
    env = environment(SSL_CERT_FILE=str(tls.authority))
    child = serve(registry.name(":latest", secure.replace("127.0.0.1", host)), env=env)
    assert child.client.get("/manifest").status == 200
    assert child.finish() == 0


def test_a_certificate_for_another_host_is_refused(
    registry: Registry, serve: Serve, tmp_path: Path
) -> None:
    other = certificates(tmp_path / "other", "other.example")
    with docker_registry(registry.directory, tls=other) as address:
        env = environment(SSL_CERT_FILE=str(other.authority))
        child = serve(registry.name(":latest", address), env=env)
        assert_refused_for_tls(child.client.get("/manifest"))
        assert child.finish() == 0


def test_plain_http_is_refused_by_default(registry: Registry, serve: Serve) -> None:
    child = serve(registry.name(":latest"))
    assert_refused_for_tls(child.client.get("/manifest"))
    assert child.finish() == 0


def test_plain_http_is_not_even_tried_by_default(registry: Registry, serve: Serve) -> None:
    heard: list[str] = []

    def get(request: Answering) -> None:
        heard.append(request.path)
        request.answer(200, b"{}")

    with http_server(get) as address:
        child = serve(registry.name(":latest", address))
        assert child.client.get("/manifest").status in {502, 504}
        assert child.finish() == 0
    assert heard == []


# --- tokens and redirects --------------------------------------------------------------------


def test_an_anonymous_token_is_fetched_and_used(
    registry: Registry, pull: Callable[..., Child], tmp_path: Path
) -> None:
    with (
        token_service(tmp_path / "tokens") as tokens,
        docker_registry(registry.directory, auth=tokens) as address,
    ):
        child = pull(registry.name(":latest", address))
        manifest = child.client.get("/manifest")
        assert manifest.body == registry.layout.read(registry.images["latest"]["digest"])
        assert_blobs_are_served(child, manifest.json(), registry.layout)
        assert child.finish() == 0
    assert tokens.scopes == ["repository:images/all:pull"], "one token for everything"
    assert tokens.authorizations == [None]


def test_a_token_service_that_refuses_is_a_403(
    registry: Registry, pull: Callable[..., Child], tmp_path: Path
) -> None:
    errors = {"errors": [{"code": "DENIED", "message": "not \x1b[31m you"}]}

    def get(request: Answering) -> None:
        request.answer(403, json.dumps(errors).encode(), Content_Type="application/json")

    with token_service(tmp_path / "tokens") as tokens, http_server(get) as other:
        tokens.realm = f"http://{other}/token"
        with docker_registry(registry.directory, auth=tokens) as address:
            child = pull(registry.name(":latest", address))
            reply = child.client.get("/manifest")
            assert reply.status == 403
            assert reply.code in {"DENIED", "UNAUTHORIZED"}
            assert other in reply.message
            assert child.finish() == 0


def test_blobs_may_be_redirected_to_another_host_which_gets_no_token(
    registry: Registry, pull: Callable[..., Child], tmp_path: Path
) -> None:
    with (
        token_service(tmp_path / "tokens") as tokens,
        docker_registry(registry.directory, auth=tokens) as guarded,
        nginx(tmp_path / "store", layout_as_registry(registry.layout.path, OCI_MANIFEST)) as store,
        nginx(
            tmp_path / "front",
            f"""
            location ~ /blobs/ {{ return 307 http://{store}$request_uri; }}
            location / {{ proxy_pass http://{guarded}; }}
            """,
        ) as front,
    ):
        child = pull(registry.name(":latest", front))
        manifest = child.client.get("/manifest")
        assert_blobs_are_served(child, manifest.json(), registry.layout)
        assert child.finish() == 0
    at_front = (tmp_path / "front/access.log").read_text()
    at_store = (tmp_path / "store/access.log").read_text()
    assert " 307 Bearer " in at_front
    assert "/blobs/sha256:" in at_store
    assert "Bearer" not in at_store


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_every_kind_of_redirect_is_followed(
    status: int, registry: Registry, pull: Callable[..., Child]
) -> None:
    def get(request: Answering) -> None:
        request.answer(status, b"", Location=f"http://{registry.address}{request.path}")

    with http_server(get) as address:
        child = pull(registry.name(":latest", address))
        assert child.client.get("/manifest").status == 200
        assert child.finish() == 0


def test_redirects_without_end_are_a_502(pull: Callable[..., Child]) -> None:
    def get(request: Answering) -> None:
        request.answer(307, b"", Location=request.path)

    with http_server(get) as address:
        child = pull(f"docker://{address}/some/image")
        assert child.client.get("/manifest").status == 502
        assert child.finish() == 0


@pytest.mark.parametrize("location", ["ftp://127.0.0.1/", "file:///etc/passwd", "http://[", ""])
def test_a_redirect_to_nowhere_is_a_502(location: str, pull: Callable[..., Child]) -> None:
    with http_server(lambda request: request.answer(307, b"", Location=location)) as address:
        child = pull(f"docker://{address}/some/image")
        assert child.client.get("/manifest").status == 502
        assert child.finish() == 0


def test_a_redirect_from_https_to_http_is_refused(
    registry: Registry, tls: Certificates, serve: Serve, tmp_path: Path
) -> None:
    downgrade = f"location / {{ return 307 http://{registry.address}$request_uri; }}"
    with nginx(tmp_path / "front", downgrade, tls=tls) as front:
        env = environment(SSL_CERT_FILE=str(tls.authority))
        child = serve(registry.name(":latest", front), env=env)
        assert child.client.get("/manifest").status in {502, 504}
        assert child.finish() == 0


# --- a registry that fails -------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("fate", ["end", "reset", "stall"])
def test_a_registry_lost_in_mid_blob_is_a_short_body_and_status_5(
    fate: Any,  # noqa: ANN401  (one of a few words)
    registry: Registry,
    pull: Callable[..., Child],
) -> None:
    (layer,) = registry.layers("large")
    with relay(registry.address, after=6 << 20, fate=fate) as address:
        child = pull(registry.name(":large", address), "--stall-timeout=1", "--retries=0")
        reply = child.client.get(f"/blobs/{layer['digest']}")
        assert reply.status == 200
        assert 0 < len(reply.body) < layer["size"] == reply.length
        assert reply.ending == "end"
        assert child.finish() == 5
    assert len(child.stderr.splitlines()) == 1
    assert layer["digest"] in child.stderr


def test_a_registry_lost_before_the_head_is_retryable_and_the_connection_lives(
    registry: Registry, pull: Callable[..., Child]
) -> None:
    with relay(registry.address, after=100, fate="end") as address:
        child = pull(registry.name(":latest", address), "--retries=0")
        for _ in range(2):
            reply = child.client.get("/manifest")
            assert reply.status in {502, 503, 504}
            assert reply.error["detail"]["retryable"] is True
        assert child.finish() == 0


@pytest.fixture
def damaged(registry: Registry, tmp_path: Path) -> Iterator[Registry]:
    """Return a registry over a copy of the data, which a test may damage."""
    copy = tmp_path / "data"
    shutil.copytree(registry.directory, copy)
    with docker_registry(copy) as address:
        yield type(registry)(address, copy, registry.layout, registry.images)


@pytest.mark.slow
@pytest.mark.parametrize("opening", ["/manifest", "/config"])
def test_a_tag_that_moves_under_a_conversation_moves_nothing_in_it(
    opening: str, damaged: Registry, pull: Callable[..., Child]
) -> None:
    """A manifest and the blobs of another image would be an image that nobody has made."""
    old, new = damaged.images["latest"], damaged.images["large"]
    before, after = damaged.layout.document(old), damaged.layout.document(new)
    child = pull(damaged.name(":latest"))
    assert child.client.request("HEAD", opening).status == 200
    content = damaged.layout.read(new["digest"])
    put_manifest(damaged.address, "images/all", "latest", content, OCI_MANIFEST)
    assert raw(damaged.name(":latest")) == content
    assert child.client.get("/manifest").body == damaged.layout.read(old["digest"])
    assert_blobs_are_served(child, before, damaged.layout)
    for descriptor in config_and_layers(after):
        assert child.client.get(f"/blobs/{descriptor['digest']}").status == 404
    assert child.finish() == 0
    later = pull(damaged.name(":latest"))
    assert later.client.get("/manifest").body == content
    assert_blobs_are_served(later, after, damaged.layout)
    assert later.finish() == 0


def test_a_small_blob_damaged_in_the_registry_is_a_422(
    damaged: Registry, pull: Callable[..., Child]
) -> None:
    bad, good = damaged.layers("latest")
    flip(stored_blob(damaged.directory, bad["digest"]))
    child = pull(damaged.name(":latest"))
    reply = child.client.get(f"/blobs/{bad['digest']}")
    assert (reply.status, reply.code) == (422, "DIGEST_INVALID")
    assert bad["digest"] in reply.message
    reply = child.client.get(f"/blobs/{good['digest']}")
    assert reply.body == damaged.layout.read(good["digest"])
    assert child.finish() == 0


@pytest.mark.parametrize("place", [0, -1])
def test_a_large_blob_damaged_in_the_registry_stays_short(
    place: int, damaged: Registry, pull: Callable[..., Child]
) -> None:
    (layer,) = damaged.layers("large")
    flip(stored_blob(damaged.directory, layer["digest"]), place)
    child = pull(damaged.name(":large"))
    reply = child.client.get(f"/blobs/{layer['digest']}")
    assert reply.status == 200
    assert len(reply.body) < layer["size"] == reply.length
    assert reply.ending == "end"
    assert child.finish() == 4
    assert len(child.stderr.splitlines()) == 1


@pytest.mark.slow
@pytest.mark.parametrize("tag", ["latest", "large"])
def test_a_blob_truncated_in_the_registry_is_never_complete(
    tag: str, damaged: Registry, pull: Callable[..., Child]
) -> None:
    """The registry announces the length the file has, which is not the descriptor's."""
    layer = damaged.layers(tag)[0]
    shorten(stored_blob(damaged.directory, layer["digest"]))
    child = pull(damaged.name(f":{tag}"))
    reply = child.client.get(f"/blobs/{layer['digest']}")
    if reply.status == 200:
        assert not reply.complete
        assert child.finish() == 4
    else:
        assert reply.status == 422
        assert reply.code in {"SIZE_INVALID", "DIGEST_INVALID"}
        assert child.finish() == 0


@pytest.mark.slow
@pytest.mark.parametrize("kind", range(3), ids=["tag", "digest", "tag+digest"])
def test_a_manifest_damaged_in_the_registry_is_a_422(
    kind: int, damaged: Registry, pull: Callable[..., Child]
) -> None:
    """A space becomes a tabulator: still JSON, still the registry's digest in the header."""
    digest = damaged.images["latest"]["digest"]
    respace(stored_blob(damaged.directory, digest))
    child = pull(damaged.name(references("latest", digest)[kind]))
    for _ in range(2):
        reply = child.client.get("/manifest")
        assert (reply.status, reply.code) == (422, "DIGEST_INVALID")
        assert digest in reply.message
    assert child.finish() == 0


def test_a_manifest_damaged_behind_its_index_is_a_422(
    damaged: Registry, pull: Callable[..., Child]
) -> None:
    digest = damaged.layout.document(damaged.images["index"])["manifests"][0]["digest"]
    respace(stored_blob(damaged.directory, digest))
    child = pull(damaged.name(":index"))
    reply = child.client.get("/manifest")
    assert (reply.status, reply.code) == (422, "DIGEST_INVALID")
    assert child.finish() == 0


def test_a_blob_lost_in_the_registry_is_a_404(
    damaged: Registry, pull: Callable[..., Child]
) -> None:
    bad, good = damaged.layers("latest")
    stored_blob(damaged.directory, bad["digest"]).unlink()
    child = pull(damaged.name(":latest"))
    reply = child.client.get(f"/blobs/{bad['digest']}")
    assert (reply.status, reply.code) == (404, "BLOB_UNKNOWN")
    assert child.client.get(f"/blobs/{good['digest']}").status == 200
    assert child.finish() == 0


ANSWERS = {
    "500": (500, b"oops", {502, 503}),
    "503": (503, b"{}", {503}),
    "429": (429, b"{}", {503}),
    "200 without JSON": (200, b"<html>hello", {415, 422, 502}),
    "an empty 200": (200, b"", {422, 502}),
    "206": (206, b"{}", {502}),
    "418": (418, b"", {502}),
}


@pytest.mark.parametrize(("status", "content", "expected"), ANSWERS.values(), ids=ANSWERS.keys())
def test_an_unusable_answer_has_its_status(
    status: int, content: bytes, expected: set[int], pull: Callable[..., Child]
) -> None:
    def get(request: Answering) -> None:
        if request.path == "/v2/":
            request.answer(200, b"{}")
        else:
            request.answer(status, content, Content_Type="text/html")

    with http_server(get) as address:
        child = pull(f"docker://{address}/some/image", "--retries=0")
        reply = child.client.get("/manifest")
        assert reply.status in expected
        assert reply.error["detail"]["retryable"] is (reply.status == 503)
        assert address in reply.message
        assert child.finish() == 0


@pytest.mark.slow
def test_a_registry_that_takes_the_request_and_is_silent_is_a_504(
    pull: Callable[..., Child],
) -> None:
    ended = threading.Event()
    with http_server(lambda request: wait_for(ended, request)) as address:
        child = pull(f"docker://{address}/some/image", "--stall-timeout=1", "--retries=0")
        assert_unreachable(child.client.get("/manifest"), address)
        assert child.finish() == 0
        ended.set()


def wait_for(ended: threading.Event, request: Answering) -> None:
    """Answer only when nobody waits any more."""
    request.close_connection = True
    ended.wait(LIMIT)


def test_what_does_not_speak_http_is_a_502(pull: Callable[..., Child]) -> None:
    class Garbage(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            self.request.recv(65536)
            self.request.sendall(b"SSH-2.0-not-a-registry\r\n\r\n")

    server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Garbage)
    with in_thread(server):
        child = pull(f"docker://127.0.0.1:{server.server_address[1]}/some/image")
        reply = child.client.get("/manifest")
        assert reply.status == 502
        assert reply.message.isprintable()
        assert child.finish() == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "{}/UPPER/case",
        "{}/x:bad tag",
        "{}/x@sha256:12",
        "{}/x@sha256:" + "A" * 64,
        "{}/../x",
        "{}/x\r\nHost: evil",
        "",
    ],
)
def test_a_malformed_name_is_a_400(
    name: str, registry: Registry, pull: Callable[..., Child]
) -> None:
    child = pull("docker://" + name.format(registry.address))
    reply = child.client.get("/manifest")
    assert reply.status == 400
    assert reply.code in {"NAME_INVALID", "DIGEST_INVALID"}
    assert child.finish() == 0
