"""What may be asked of one image: imgproxy(1), PROTOCOL."""

from __future__ import annotations

import pytest

from imgproxy.errors import BadRequestError, NotFoundError, NotImplementedByUsError
from imgproxy.frontends.single_image_routes import (
    GetBlob,
    GetCandidates,
    GetConfig,
    GetDocument,
    GetLayer,
    GetLayers,
    GetManifest,
    Quit,
    Request,
    parse,
)
from imgproxy.server.request_errors import MethodNotAllowedError
from imgproxy.specs.oci.digest import Digest
from imgproxy.specs.oci.layer_selection import LayerSpec, Offsets

HEX = "0123456789abcdef" * 4
DIGEST = Digest("sha256", HEX)


@pytest.mark.parametrize(
    ("target", "asked"),
    [
        ("/manifest", GetManifest()),
        ("/config", GetConfig()),
        (f"/blobs/sha256:{HEX}", GetBlob(DIGEST)),
        (f"/manifests/sha256:{HEX}", GetDocument(DIGEST)),
        ("/candidates", GetCandidates()),
        ("/layers", GetLayers()),
        ("/layers?", GetLayers()),
        ("/%6cayers", GetLayers()),
        ("/layers/0", GetLayer(0)),
        ("/layers/007", GetLayer(7)),
        ("http://localhost/layers/12?", GetLayer(12)),
        ("/layers?type=a/b%2bc", GetLayers(LayerSpec("a/b+c"))),
        ("/layers?type=a/b+c&offset=1-2", GetLayers(LayerSpec("a/b+c", offsets=Offsets(1, 2)))),
        ("/layers?title=%2A%3D,%5C", GetLayers(LayerSpec(title="*=,\\"))),
        (
            "http://localhost/layers?annotation=a=1&annotation=b%3D=c",
            GetLayers(LayerSpec(annotations=(("a", "1"), ("b", "=c")))),
        ),
        ("/blobs/unheard-of:x_Y=", GetBlob(Digest("unheard-of", "x_Y="))),
        # decoded once
        (f"/blobs/sha256%3A{HEX}", GetBlob(DIGEST)),
        (f"/blobs/sha256%3a{HEX}", GetBlob(DIGEST)),
        ("/%6d%61nifest", GetManifest()),
        # the absolute form
        ("http://localhost/manifest", GetManifest()),
        ("HTTP://localhost:80/config", GetConfig()),
        (f"https://[::1]:8080/blobs/sha256:{HEX}", GetBlob(DIGEST)),
        # an empty query
        ("/manifest?", GetManifest()),
        (f"/blobs/sha256:{HEX}?", GetBlob(DIGEST)),
        ("http://localhost/config?", GetConfig()),
        # hosts whose names stand in the scheme as well
        ("http://h/manifest", GetManifest()),
        ("http://http/manifest", GetManifest()),
        ("http://tp/manifest", GetManifest()),
    ],
)
def test_get_and_head_ask_for_the_same(target: str, asked: Request) -> None:
    assert [parse(method, target.encode()) for method in (b"GET", b"HEAD")] == [asked] * 2


@pytest.mark.parametrize("target", ["/quit", "http://localhost/quit"])
def test_quit_is_posted(target: str) -> None:
    assert parse(b"POST", target.encode()) == Quit()


@pytest.mark.parametrize(
    ("method", "target", "allow"),
    [
        ("POST", "/manifest", "GET, HEAD"),
        ("PUT", "/config", "GET, HEAD"),
        ("DELETE", f"/blobs/sha256:{HEX}", "GET, HEAD"),
        ("OPTIONS", f"/manifests/sha256:{HEX}", "GET, HEAD"),
        ("get", "/manifest", "GET, HEAD"),
        ("GET", "/quit", "POST"),
        ("HEAD", "/quit", "POST"),
    ],
)
def test_another_method_is_refused_with_those_that_are_allowed(
    method: str, target: str, allow: str
) -> None:
    with pytest.raises(MethodNotAllowedError) as caught:
        parse(method.encode(), target.encode())
    assert caught.value.header_fields == (("Allow", allow),)
    assert caught.value.message == f"{method} {target}: the method must be {allow}"


@pytest.mark.parametrize(
    "target",
    [
        "/",
        "//manifest",
        "/manifest/",
        "/Manifest",
        "/manifest#part",
        "/manifest%00",
        "/%2e/manifest",
        "/blobs",
        "/blob/x",
        "/v2/",
        "http://localhost",
        "http://localhost/",
    ],
)
def test_an_unknown_path_is_not_found_whatever_the_method(target: str) -> None:
    for method in (b"GET", b"HEAD", b"POST", b"PUT"):
        with pytest.raises(NotFoundError, match=r"^no such path: .*/manifest, /config, /blobs/"):
            parse(method, target.encode())


@pytest.mark.parametrize(
    ("target", "complaint"),
    [
        pytest.param(b"*", "the request target * is not a path", id="asterisk"),
        pytest.param(b"manifest", "the request target manifest is not a path", id="relative"),
        pytest.param(b"localhost:80", "the request target localhost:80 is", id="authority"),
        pytest.param(b"ftp://localhost/manifest", "the request target ftp://", id="scheme"),
        pytest.param(b"http:/manifest", "the request target http:/manifest is", id="no-host"),
        pytest.param(b"http://[::1/manifest", "the request target http://[", id="bad-host"),
        pytest.param(b"http://\xff/manifest", "the request target http://ÿ", id="no-ascii"),
        pytest.param(b"\x1b[31m", "the request target [31m is not a path", id="controls"),
        pytest.param(b"/candidates?type=a/b", "/candidates?type=a/b: a query is not", id="choices"),
        pytest.param(b"/layers/0?type=a/b", "/layers/0?type=a/b: a query is not", id="one"),
        pytest.param(b"/manifest??", "/manifest??: a query is not supported", id="second-query"),
        pytest.param(b"/manifest?x=1", "/manifest?x=1: a query is not", id="query"),
        pytest.param(b"http://localhost?x", "?x: a query is not supported", id="query-alone"),
        pytest.param(b"/manifest%", "/manifest%: a % must be followed", id="percent"),
        pytest.param(b"/%6", "/%6: a % must be followed by two hex digits", id="half-escape"),
        pytest.param(b"/%gg", "/%gg: a % must be followed by two hex digits", id="no-hex"),
        pytest.param(b"/%ff", "/%ff: the path is not UTF-8", id="no-utf-8"),
        pytest.param(b"/\xff", "/ÿ: the path is not UTF-8", id="raw-no-utf-8"),
    ],
)
def test_a_malformed_target_is_a_bad_request(target: bytes, complaint: str) -> None:
    with pytest.raises(BadRequestError) as caught:
        parse(b"GET", target)
    assert caught.value.message.startswith(complaint)
    assert caught.value.code == "BAD_REQUEST"


@pytest.mark.parametrize(
    ("target", "complaint"),
    [
        pytest.param(b"/layers?x=1", '/layers?x=1: "x" is none of type, title, ', id="key"),
        pytest.param(b"/layers?digest=x", '"digest" is none of type, title,', id="digest"),
        pytest.param(b"/layers?type", '/layers?type: "" is not a media type', id="no-value"),
        pytest.param(b"/layers?type=a/b&", '"" is none of type, title, annotation', id="empty"),
        pytest.param(b"/layers?offset=2-1", '"2-1" is reversed; write 1-2', id="reversed"),
        pytest.param(b"/layers?type=a/b&type=a/b", '"type" is given twice', id="twice"),
        pytest.param(b"/layers?annotation=a", '"a" is not an annotation KEY=VALUE', id="bare"),
        pytest.param(b"/layers?annotation==a", "the key of an annotation is missing", id="no-key"),
        pytest.param(b"/layers?title=%f", "%f: a % must be followed", id="query-escape"),
        pytest.param(b"/layers?title=%ff", "the query is not UTF-8", id="query-encoding"),
        pytest.param(b"/layers/", '"" is not the offset of a layer', id="no-offset"),
        pytest.param(b"/layers/-1", '"-1" is not the offset of a layer', id="negative"),
        pytest.param(b"/layers/1e3", '"1e3" is not the offset of a layer', id="no-number"),
        pytest.param(b"/layers/1/", '"1/" is not the offset of a layer', id="slash"),
        pytest.param(b"/layers/9999999999", "is not the offset of a layer", id="too-long"),
    ],
)
def test_a_layer_that_cannot_be_meant_is_a_bad_request(target: bytes, complaint: str) -> None:
    with pytest.raises(BadRequestError) as caught:
        parse(b"GET", target)
    assert complaint in caught.value.message
    assert "column" not in caught.value.message
    assert caught.value.code == "BAD_REQUEST"


@pytest.mark.parametrize("target", ["localhost:80", "[::1]:443", "*", ""])
def test_a_tunnel_is_not_implemented(target: str) -> None:
    with pytest.raises(NotImplementedByUsError, match="CONNECT is a request to a proxy"):
        parse(b"CONNECT", target.encode())


@pytest.mark.parametrize("prefix", ["/blobs/", "/manifests/"])
@pytest.mark.parametrize(
    "digest",
    [
        "",
        "latest",
        HEX,
        f"sha256:{HEX.upper()}",
        f"SHA256:{HEX}",
        f"sha256:{HEX[1:]}",
        f"sha256:{HEX}/",
        f"sha256:{HEX}%2f..",
        f"sha256%253A{HEX}",  # decoded once, not twice
        "sha256:..%2f..%2fetc%2fpasswd",
        "../manifest",
        "%00",
    ],
)
def test_a_malformed_digest_is_a_bad_request(prefix: str, digest: str) -> None:
    with pytest.raises(BadRequestError) as caught:
        parse(b"GET", f"{prefix}{digest}".encode())
    assert caught.value.code == "DIGEST_INVALID"
    assert caught.value.message.isprintable()
