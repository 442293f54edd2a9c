"""Layers that lie outside of their registry: fetched where that is asked for."""

from __future__ import annotations

import base64
import json
import re
import ssl
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import ThreadingHTTPServer
from typing import TYPE_CHECKING

import pytest
from support.archives import Member, control, pack, saved
from support.filled import MIB, noise
from support.images import OCI_MANIFEST, Layout, digest_of, encode
from support.parent import descriptors, eventually
from support.pulled import pull_from
from support.servers import Answering, certificates, free_port, http_server, in_thread

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from conftest import Serve
    from support.images import Json
    from support.parent import Child, Reply
    from support.servers import Certificates

FOREIGN = "application/vnd.oci.image.layer.nondistributable.v1.tar"
HERE = b"a layer that is in its place"
SMALL = b"a small layer from elsewhere" * 100
LARGE = noise(3 * MIB)
LINK_LOCAL = "http://169.254.169.254/latest/meta-data"


@dataclass
class Elsewhere:
    """A server with layers; `asked` has the paths and the fields of all requests, in order."""

    address: str = ""
    content: dict[str, bytes] = field(default_factory=dict)
    moved: dict[str, str] = field(default_factory=dict)
    breaks_after: int = 0
    asked: list[tuple[str, dict[str, str]]] = field(default_factory=list)

    def get(self, handler: Answering) -> None:
        fields = {name.lower(): value for name, value in handler.headers.items()}
        self.asked.append((handler.path, fields))
        if handler.path in self.moved:
            handler.answer(307, b"", Location=self.moved[handler.path])
            return
        content = self.content.get(handler.path)
        if content is None:
            handler.answer(404, b"nothing here")
            return
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", fields.get("range", ""))
        if wanted is not None:
            start, end = int(wanted[1]), int(wanted[2] or len(content) - 1)
            said = f"bytes {start}-{end}/{len(content)}"
            handler.answer(206, content[start : end + 1], Content_Range=said)
        elif self.breaks_after:
            handler.send_response(200)
            handler.send_header("Content-Length", str(len(content)))
            handler.end_headers()
            handler.wfile.write(content[: self.breaks_after])
            handler.close_connection = True
        else:
            handler.answer(200, content)

    @property
    def paths(self) -> list[str]:
        return [path for path, _ in self.asked]


@pytest.fixture
def elsewhere() -> Iterator[Elsewhere]:
    server = Elsewhere(content={"/small": SMALL, "/large": LARGE, "/wrong": b"x" * len(SMALL)})
    server.content["/large-and-wrong"] = LARGE[:-1] + bytes([LARGE[-1] ^ 1])
    with http_server(server.get) as server.address:
        yield server


@contextmanager
def https(elsewhere: Elsewhere, files: Certificates) -> Iterator[str]:
    """Serve the same over TLS; yield the address."""

    class Handler(Answering):
        def do_GET(self) -> None:  # noqa: N802  (its name)
            elsewhere.get(self)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(files.certificate, files.key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    with in_thread(server):
        yield f"127.0.0.1:{server.server_port}"


def with_urls(layout: Layout, content: bytes, *urls: str) -> Json:
    """Offer an image with a layer that is here and one that is elsewhere; give the latter."""
    manifest = layout.document(layout.image(HERE, content))
    manifest["layers"][1] |= {"mediaType": FOREIGN, "urls": list(urls)}
    layout.file(manifest["layers"][1]["digest"]).unlink()
    layout.save(layout.add(encode(manifest), OCI_MANIFEST))
    foreign: Json = manifest["layers"][1]
    return foreign


class Fetch:
    """Serves one image with a foreign layer, and asks for that."""

    def __init__(self, layout: Layout, serve: Serve) -> None:
        self.layout = layout
        self._serve = serve

    def start(self, content: bytes, *urls: str, options: tuple[str, ...]) -> tuple[Child, str]:
        """Return the program and the digest of the layer."""
        foreign = with_urls(self.layout, content, *urls)
        return self._serve(f"oci:{self.layout.path}", *options), foreign["digest"]

    def __call__(
        self, content: bytes, *urls: str, options: tuple[str, ...] = ("--foreign-layers",)
    ) -> tuple[Reply, int]:
        """Return the reply for the layer and the exit status."""
        child, digest = self.start(content, *urls, options=(*options, "--retries=1"))
        assert child.client.get(f"/blobs/{digest_of(HERE)}").body == HERE
        reply = child.client.get(f"/blobs/{digest}")
        return reply, child.finish()


@pytest.fixture
def fetch(layout: Layout, serve: Serve) -> Fetch:
    return Fetch(layout, serve)


@pytest.mark.parametrize(
    ("options", "way_out"),
    [
        ((), "--foreign-layers"),
        (("--foreign-layers", "--offline"), "--offline"),
        (("--offline",), "--offline"),
    ],
    ids=["not asked for", "offline", "neither"],
)
def test_nobody_is_asked_unasked(
    options: tuple[str, ...], way_out: str, fetch: Fetch, elsewhere: Elsewhere
) -> None:
    urls = [f"http://{elsewhere.address}/small", "https://layers.example/base"]
    child, digest = fetch.start(SMALL, *urls, options=options)
    head = child.client.request("HEAD", f"/blobs/{digest}")
    assert (head.status, head.length) == (200, len(SMALL)), "as its descriptor says"
    reply = child.client.get(f"/blobs/{digest}")
    assert (reply.status, reply.code) == (404, "BLOB_UNKNOWN")
    assert reply.error["detail"]["urls"] == urls
    assert all(word in reply.message for word in (*urls, way_out))
    assert child.client.get("/manifest").json()["layers"][1]["urls"] == urls
    assert child.finish() == 0
    assert elsewhere.asked == []


def test_a_layer_comes_from_its_url_without_credentials(fetch: Fetch, elsewhere: Elsewhere) -> None:
    options = ("--foreign-layers", "--creds=reader:open-sesame")
    child, digest = fetch.start(SMALL, f"http://{elsewhere.address}/small", options=options)
    pulled = pull_from(child)
    assert pulled.layers == [HERE, SMALL]
    assert digest == digest_of(SMALL)
    (asked,) = elsewhere.asked
    assert asked[0] == "/small"
    assert not {"authorization", "cookie"} & set(asked[1])


def test_a_layer_may_be_asked_for_often(fetch: Fetch, elsewhere: Elsewhere) -> None:
    """Nothing is left of a request: neither a connection nor a grudge."""
    url = f"http://{elsewhere.address}/small"
    child, digest = fetch.start(SMALL, url, options=("--foreign-layers",))
    assert child.client.get(f"/blobs/{digest}").body == SMALL
    before = descriptors(child.pid)
    for _ in range(10):
        assert child.client.get(f"/blobs/{digest}").body == SMALL
    assert eventually(lambda: descriptors(child.pid) <= before)
    assert child.finish() == 0


def test_a_layer_that_is_at_hand_is_not_fetched(fetch: Fetch, elsewhere: Elsewhere) -> None:
    with_urls(fetch.layout, SMALL, f"http://{elsewhere.address}/small")
    fetch.layout.add(SMALL, FOREIGN)
    child = fetch._serve(f"oci:{fetch.layout.path}", "--foreign-layers")
    assert pull_from(child).layers == [HERE, SMALL]
    assert elsewhere.asked == []


def test_redirects_are_followed(fetch: Fetch, elsewhere: Elsewhere) -> None:
    elsewhere.moved = {"/one": "/two", "/two": f"http://localhost:{elsewhere.address[10:]}/small"}
    reply, status = fetch(SMALL, f"http://{elsewhere.address}/one")
    assert (reply.status, reply.body, status) == (200, SMALL, 0)
    assert elsewhere.paths == ["/one", "/two", "/small"]


@pytest.mark.parametrize(
    "url",
    [
        LINK_LOCAL,
        "http://[::ffff:169.254.169.254]/layer",
        "redirect",
    ],
)
def test_link_local_addresses_are_not_asked(url: str, fetch: Fetch, elsewhere: Elsewhere) -> None:
    """Clouds keep the credentials of their machines there."""
    elsewhere.moved = {"/moved": LINK_LOCAL}
    shown = url
    if url == "redirect":
        url, shown = f"http://{elsewhere.address}/moved", LINK_LOCAL
    reply, status = fetch(SMALL, url)
    assert (reply.status, status) == (502, 0), reply.message
    assert shown in reply.message
    assert "link-local" in reply.message


def test_one_url_after_the_other_is_tried(fetch: Fetch, elsewhere: Elsewhere) -> None:
    """Nobody listens, nothing there, wrong bytes: the next."""
    base = f"http://{elsewhere.address}"
    nobody = f"http://127.0.0.1:{free_port()}/small"
    urls = ["ftp://layers.example/x", nobody, f"{base}/absent", f"{base}/wrong", f"{base}/small"]
    reply, status = fetch(SMALL, *urls)
    assert (reply.status, reply.body, status) == (200, SMALL, 0)
    assert list(dict.fromkeys(elsewhere.paths)) == ["/absent", "/wrong", "/small"]
    assert elsewhere.paths.count("/wrong") == 1


def test_wrong_bytes_from_all_of_them(fetch: Fetch, elsewhere: Elsewhere) -> None:
    elsewhere.content["/other"] = b"y" * len(SMALL)
    urls = [f"http://{elsewhere.address}/{each}" for each in ("wrong", "other")]
    reply, status = fetch(SMALL, *urls)
    assert (reply.status, status) == (422, 0)
    assert elsewhere.paths == ["/wrong", "/other"]


def test_none_of_them_has_it(fetch: Fetch, elsewhere: Elsewhere) -> None:
    urls = [f"http://{elsewhere.address}/{each}" for each in ("absent", "missing")]
    reply, status = fetch(SMALL, *urls)
    assert (reply.status, status) == (404, 0)
    assert all(url in reply.message for url in urls)


@pytest.mark.parametrize("url", ["ftp://layers.example/x", "file:///etc/passwd"])
def test_urls_of_other_kinds_lead_nowhere(url: str, fetch: Fetch) -> None:
    reply, status = fetch(SMALL, url)
    assert (reply.status, reply.code, status) == (404, "BLOB_UNKNOWN", 0)
    assert "URL" in reply.message


def test_wrong_bytes_are_not_delivered(fetch: Fetch, elsewhere: Elsewhere) -> None:
    reply, status = fetch(SMALL, f"http://{elsewhere.address}/wrong")
    assert (reply.status, reply.code, status) == (422, "DIGEST_INVALID", 0)


def test_wrong_bytes_of_a_large_layer_stay_incomplete(fetch: Fetch, elsewhere: Elsewhere) -> None:
    reply, status = fetch(LARGE, f"http://{elsewhere.address}/large-and-wrong")
    assert (reply.status, reply.length, status) == (200, len(LARGE), 4)
    assert len(reply.body) < len(LARGE)
    assert LARGE.startswith(reply.body)


@pytest.mark.slow
def test_a_body_that_breaks_is_gone_on_with(fetch: Fetch, elsewhere: Elsewhere) -> None:
    elsewhere.breaks_after = 2 * MIB
    reply, status = fetch(LARGE, f"http://{elsewhere.address}/large")
    assert (reply.status, reply.body, status) == (200, LARGE, 0)
    ranges = [fields.get("range") for _, fields in elsewhere.asked]
    assert ranges == [None, f"bytes={2 * MIB}-{len(LARGE) - 1}"]


@pytest.mark.slow
def test_https_is_verified(fetch: Fetch, elsewhere: Elsewhere, tmp_path: Path) -> None:
    files = certificates(tmp_path / "server")
    trusted = tmp_path / "trusted"
    trusted.mkdir()
    (trusted / "ca.crt").write_bytes(files.authority.read_bytes())
    with https(elsewhere, files) as address:
        url = f"https://{address}/small"
        reply, _ = fetch(SMALL, url)
        assert reply.status in {502, 504}
        assert "certificate" in reply.message
        assert elsewhere.asked == []
        reply, status = fetch(SMALL, url, options=("--foreign-layers", f"--cert-dir={trusted}"))
        assert (reply.status, reply.body, status) == (200, SMALL, 0)
        elsewhere.moved = {"/moved": f"http://{elsewhere.address}/small"}
        elsewhere.asked.clear()
        reply, _ = fetch(
            SMALL,
            f"https://{address}/moved",
            options=("--foreign-layers", f"--cert-dir={trusted}"),
        )
        assert reply.status == 502, "https does not lead to plain http"
        assert elsewhere.paths == ["/moved"]


def test_a_registry_gets_the_credentials_and_its_layers_servers_none(
    layout: Layout, serve: Serve, elsewhere: Elsewhere
) -> None:
    """Of what a registry has, and of what it has not (CVE-2020-15157)."""
    foreign = with_urls(layout, SMALL, f"http://{elsewhere.address}/small")
    (entry,) = json.loads((layout.path / "index.json").read_bytes())["manifests"]
    seen: list[tuple[str, str | None]] = []

    def answer(handler: Answering) -> None:
        authorization = handler.headers.get("Authorization")
        seen.append((handler.path.rpartition("/")[2], authorization))
        if authorization is None:
            handler.answer(401, b"", WWW_Authenticate='Basic realm="test"')
            return
        digest = handler.path.rpartition("/")[2]
        file = layout.file(entry["digest"] if digest == "1" else digest)
        if file.exists():
            handler.answer(200, file.read_bytes(), Content_Type="application/octet-stream")
        else:
            handler.answer(404, b"")

    with http_server(answer) as address:
        child = serve(
            f"docker://{address}/team/os:1",
            *("--tls-verify=false", "--creds=reader:open-sesame", "--foreign-layers"),
        )
        assert pull_from(child).layers == [HERE, SMALL]
    basic = f"Basic {base64.b64encode(b'reader:open-sesame').decode()}"
    assert (foreign["digest"], basic) in seen, "it is asked first"
    ((path, fields),) = elsewhere.asked
    assert path == "/small"
    assert "authorization" not in fields


def test_a_layer_that_a_docker_archive_only_tells_of(
    serve: Serve, elsewhere: Elsewhere, tmp_path: Path
) -> None:
    image = saved(SMALL, HERE)
    source = {
        "mediaType": "application/vnd.docker.image.rootfs.foreign.diff.tar",
        "digest": digest_of(SMALL),
        "size": len(SMALL),
        "urls": [f"http://{elsewhere.address}/small"],
    }
    item = {
        "Config": "config",
        "RepoTags": None,
        "Layers": ["absent/layer.tar", "here/layer.tar"],
        "LayerSources": {digest_of(SMALL): source},
    }
    members = [Member("config", image.config), Member("here/layer.tar", HERE)]
    file = tmp_path / "image.tar"
    file.write_bytes(pack([*members, control("manifest.json", [item])]))
    assert pull_from(serve(f"docker-archive:{file}", "--foreign-layers")).layers == [SMALL, HERE]
    assert elsewhere.paths == ["/small"]
