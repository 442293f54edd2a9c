"""What may be asked of a registry: distribution specification, "API"."""

from __future__ import annotations

import pytest

from imgproxy.errors import BadRequestError, NotFoundError
from imgproxy.frontends.registry_routes import (
    MAX_LISTED,
    Fixed,
    GetBlob,
    GetCatalog,
    GetManifest,
    GetReferrers,
    GetTags,
    Page,
    Request,
    parse,
)
from imgproxy.server.request_errors import MethodNotAllowedError
from imgproxy.specs.oci.digest import Digest
from imgproxy.specs.oci.reference import Reference

HEX = "0123456789abcdef" * 4
DIGEST = Digest("sha256", HEX)
OS = Reference("docker.io", "acme/os", None, None)
QUAY = OS._replace(registry="quay.io")
LONG = "a" * 256
DIGESTED = f"sha256:{HEX}"


def asked(target: str, default: str = "docker.io") -> Request:
    found = [parse(method, target.encode(), default) for method in (b"GET", b"HEAD")]
    assert found[0] == found[1]
    return found[0]


@pytest.mark.parametrize(
    ("target", "request_"),
    [
        ("/v2/", Fixed.PING),
        ("/v2", Fixed.PING),
        ("/v2/?x=y", Fixed.PING),
        ("http://h/v2/", Fixed.PING),
        ("/healthz", Fixed.HEALTH),
        ("/v2/acme/os/manifests/1.0", GetManifest(OS._replace(tag="1.0"))),
        (f"/v2/acme/os/manifests/{DIGESTED}", GetManifest(OS._replace(digest=DIGEST))),
        (f"/v2/acme/os/manifests/sha256%3A{HEX}", GetManifest(OS._replace(digest=DIGEST))),
        (f"/v2/acme/os/blobs/{DIGESTED}", GetBlob(OS, DIGEST)),
        (f"/v2/acme/os/blobs/{DIGESTED}?unheard-of=1&x", GetBlob(OS, DIGEST)),
        ("/v2/acme/os/tags/list", GetTags(OS, Page())),
        ("/v2/acme/os/tags/list?n=2&last=a", GetTags(OS, Page(2, "a"))),
        ("/v2/acme/os/tags/list?n=0", GetTags(OS, Page(0))),
        ("/v2/acme/os/tags/list?n=999999999", GetTags(OS, Page(MAX_LISTED))),
        (f"/v2/acme/os/referrers/{DIGESTED}", GetReferrers(OS, DIGEST, "")),
        (f"/v2/acme/os/referrers/{DIGESTED}?artifactType=a%2Fb", GetReferrers(OS, DIGEST, "a/b")),
        ("/v2/_catalog", GetCatalog(Page())),
        ("/v2/_catalog?last=x", GetCatalog(Page(last="x"))),
        # components that are called as routes are
        (
            "/v2/manifests/blobs/manifests/tags",
            GetManifest(Reference("docker.io", "manifests/blobs", "tags", None)),
        ),
    ],
)
def test_get_and_head_ask_for_the_same(target: str, request_: Request) -> None:
    assert asked(target) == request_


@pytest.mark.parametrize(
    ("target", "default", "repository", "namespace"),
    [
        ("/v2/acme/os/manifests/1?ns=quay.io", "docker.io", QUAY, "quay.io"),
        ("/v2/quay.io/acme/os/manifests/1", "docker.io", QUAY, ""),
        ("/v2/acme/os/manifests/1", "quay.io", QUAY, ""),
        ("/v2/acme/os/manifests/1?ns=", "quay.io", QUAY, ""),
        # the namespace decides, whatever the first component looks like
        (
            "/v2/x.io/os/manifests/1?ns=quay.io",
            "docker.io",
            QUAY._replace(repository="x.io/os"),
            "quay.io",
        ),
        # in the form in which names are compared
        ("/v2/acme/os/manifests/1?ns=index.docker.io", "quay.io", OS, "index.docker.io"),
        ("/v2/busybox/manifests/1", "docker.io", OS._replace(repository="library/busybox"), ""),
        ("/v2/busybox/manifests/1", "quay.io", QUAY._replace(repository="busybox"), ""),
        (
            "/v2/os/manifests/1?ns=localhost%3A5000",
            "docker.io",
            Reference("localhost:5000", "os", None, None),
            "localhost:5000",
        ),
        ("/v2/localhost/os/manifests/1", "docker.io", Reference("localhost", "os", None, None), ""),
        (
            "/v2/os/manifests/1?ns=registry",
            "docker.io",
            Reference("registry", "os", None, None),
            "registry",
        ),
    ],
)
def test_a_mirror_is_told_the_registry_in_three_ways(
    target: str, default: str, repository: Reference, namespace: str
) -> None:
    assert asked(target, default) == GetManifest(repository._replace(tag="1"), namespace)


@pytest.mark.parametrize(
    ("target", "code"),
    [
        *((target, "NAME_UNKNOWN") for target in (
            "/", "/v1/", "/v2/x", "/v2/acme/os", "/v2/acme/os/tags", "/v2/acme/os/tags/all",
            "/v2/acme/os/manifests", "/v2/acme/os/manifests/", "/v2//manifests/1",
            "/v2/acme//os/manifests/1", "/v2/../os/manifests/1", "/v2/acme/../os/manifests/1",
            "/v2/./os/manifests/1", "/v2/Acme/os/manifests/1", "/v2/acme/os/manifests/a/b",
            "/v2/acme%2Fos/manifests/1", "/v2/acme%2fos/manifests/1", "/v2/acme%5Cos/manifests/1",
            "/v2/acme%00/manifests/1", "/v2/acme%/manifests/1", "/v2/acme%zz/manifests/1",
            "/v2/%C3%BC/manifests/1", "/v2/%252e%252e/manifests/1", f"/v2/{LONG}/manifests/1",
            "/v2/a b/manifests/1", "/v2/a%0a/manifests/1", "/v2/acme/os/Manifests/1", "*", "h:80",
            "/v2/os/manifests/1?ns=http%3A%2F%2Fx", "/v2/os/manifests/1?ns=u%40x.io",
            "/v2/os/manifests/1?ns=x.io%2Fy", "/v2/os/manifests/1?ns=x.io%3A99999",
            "/v2/os/manifests/1?ns=..", "/v2/os/manifests/1?ns=%00", "/v2/os/manifests/1?ns=nix:0",
        )),
        ("/v2/acme/os/manifests/.INVALID_MANIFEST_NAME", "MANIFEST_UNKNOWN"),
        ("/v2/acme/os/manifests/-a", "MANIFEST_UNKNOWN"),
        ("/v2/acme/os/manifests/" + "a" * 129, "MANIFEST_UNKNOWN"),
        ("/v2/acme/os/manifests/%25", "MANIFEST_UNKNOWN"),
        ("/v2/acme/os/manifests/sha256:baddigeststring", "MANIFEST_UNKNOWN"),
        ("/v2/acme/os/blobs/sha256:totallywrong", "BLOB_UNKNOWN"),
        ("/v2/acme/os/blobs/1", "BLOB_UNKNOWN"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_absent(target: str, code: str) -> None:
    with pytest.raises(NotFoundError) as caught:
        parse(b"GET", target.encode(), "docker.io")
    assert caught.value.code == code
    assert caught.value.message.isprintable()


@pytest.mark.parametrize(
    ("target", "code"),
    [
        ("/v2/acme/os/tags/list?n=-1", "BAD_REQUEST"),
        ("/v2/acme/os/tags/list?n=x", "BAD_REQUEST"),
        ("/v2/acme/os/tags/list?n=", "BAD_REQUEST"),
        ("/v2/acme/os/tags/list?n=1&" + "&".join("x" * 80), "BAD_REQUEST"),
        ("/v2/acme/os/tags/list?last=%ff", "BAD_REQUEST"),
        ("/v2/acme/os/manifests/1?ns=x.io&ns=x.io", "NAME_INVALID"),
        ("/v2/acme/os/referrers/sha256:x", "DIGEST_INVALID"),
    ],
)
def test_what_cannot_be_meant_is_refused(target: str, code: str) -> None:
    with pytest.raises(BadRequestError) as caught:
        parse(b"GET", target.encode(), "docker.io")
    assert caught.value.code == code


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS", "get"])
@pytest.mark.parametrize("target", ["/v2/", "/v2/acme/os/blobs/uploads/", "/healthz", "/x"])
def test_nothing_can_be_changed(method: str, target: str) -> None:
    with pytest.raises(MethodNotAllowedError) as caught:
        parse(method.encode(), target.encode(), "docker.io")
    assert (caught.value.status, caught.value.code) == (405, "UNSUPPORTED")
    assert caught.value.header_fields == (("Allow", "GET, HEAD"),)
