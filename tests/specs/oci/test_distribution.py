"""The distribution specification 1.1: the URLs of requests, and the meaning of replies."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from imgproxy.errors import (
    AbsentError,
    BadUpstreamError,
    DeniedError,
    Failure,
    NotFoundError,
    UnavailableError,
)
from imgproxy.specs.http.url import Url, parse
from imgproxy.specs.oci import digest as digests
from imgproxy.specs.oci.distribution import (
    ACCEPT_MANIFESTS,
    ApiPath,
    BasePath,
    BlobPath,
    ManifestPath,
    ReferrersPath,
    SignaturesPath,
    TagsPath,
    content_digests,
    failure,
    is_authorized,
    is_blob,
    redirect,
    refusal,
    registry_url,
    repository_of,
)

if TYPE_CHECKING:
    from imgproxy.specs.oci.digest import Digest

HERE = parse("https://quay.io/v2/os/blobs/x?signature=secret")


def test_every_manifest_that_is_read_is_accepted_and_no_other() -> None:
    assert ACCEPT_MANIFESTS.split(", ") == [
        "application/vnd.oci.image.index.v1+json",
        "application/vnd.oci.image.manifest.v1+json",
        "application/vnd.docker.distribution.manifest.list.v2+json",
        "application/vnd.docker.distribution.manifest.v2+json",
    ]


# --- URLs -------------------------------------------------------------------------------------


DIGEST = digests.parse("sha256:" + "a" * 64)
BLOB = BlobPath(DIGEST)
MANIFEST = ManifestPath("v1")


@pytest.mark.parametrize(
    ("registry", "url"),
    [
        ("docker.io", "https://registry-1.docker.io/v2/a/b/manifests/v1"),
        ("quay.io", "https://quay.io/v2/a/b/manifests/v1"),
        ("localhost:5000", "https://localhost:5000/v2/a/b/manifests/v1"),
        ("[::1]:5000", "https://[::1]:5000/v2/a/b/manifests/v1"),
        ("Quay.IO", "https://quay.io/v2/a/b/manifests/v1"),
    ],
)
def test_the_name_of_a_registry_is_its_host(registry: str, url: str) -> None:
    assert str(registry_url("https", registry, "a/b", MANIFEST)) == url


@pytest.mark.parametrize(
    ("path", "target", "text"),
    [
        (BasePath(), "/v2/", "base"),
        (MANIFEST, "/v2/a/b/manifests/v1", "manifest v1"),
        (ManifestPath(str(DIGEST)), f"/v2/a/b/manifests/{DIGEST}", f"manifest {DIGEST}"),
        (BLOB, f"/v2/a/b/blobs/{DIGEST}", f"blob {DIGEST}"),
        (
            ReferrersPath(DIGEST, "artifactType=x"),
            f"/v2/a/b/referrers/{DIGEST}?artifactType=x",
            f"referrers {DIGEST}?artifactType=x",
        ),
        (TagsPath(""), "/v2/a/b/tags/list", "tags"),
        (TagsPath("n=2&last=x"), "/v2/a/b/tags/list?n=2&last=x", "tags n=2&last=x"),
        (
            SignaturesPath(DIGEST),
            f"/extensions/v2/a/b/signatures/{DIGEST}",
            f"signatures {DIGEST}",
        ),
    ],
)
def test_what_a_registry_has_is_at_a_path_and_has_a_text(
    path: ApiPath, target: str, text: str
) -> None:
    assert registry_url("https", "quay.io", "a/b", path).target == target
    assert str(path) == text


# --- redirects --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("start", "location", "target"),
    [
        ("https://a/b/c", "https://d/e?f", "https://d/e?f"),
        ("https://a/b/c", "/e", "https://a/e"),
        ("https://a:1/b/c", "e", "https://a:1/b/e"),
        ("https://a/b/c", "../e", "https://a/e"),
        ("https://a/b/c", "?e", "https://a/b/c?e"),
        ("https://a/b/c", "//d/e", "https://d/e"),
        ("https://[::1]:1/b", "/e", "https://[::1]:1/e"),
        ("http://a/b", "https://a/b", "https://a/b"),
        ("http://a/b", "http://d/e", "http://d/e"),
    ],
)
@pytest.mark.parametrize("allow_http", [True, False])
def test_a_redirect_leads_where_it_says(
    start: str, location: str, target: str, *, allow_http: bool
) -> None:
    assert redirect(parse(start), location, allow_http=allow_http) == parse(target)


@pytest.mark.parametrize(
    ("location", "target"),
    [
        ("/a b/c", "/a%20b/c"),
        (" /a ", "/a"),
        ("/a?x=b c", "/a?x=b%20c"),
        ("/\u00e4", "/%E4"),  # Latin-1
        ("/\u00c3\u00a4", "/%C3%A4"),  # UTF-8, as a field is read
        ("https://quay.io/%C3%A4/%20?a=%2F", "/%C3%A4/%20?a=%2F"),
        ('/"<a>"{b}|c\\^`', '/"<a>"{b}|c\\^`'),
    ],
)
def test_what_may_not_be_in_a_location_is_percent_encoded(location: str, target: str) -> None:
    assert redirect(HERE, location, allow_http=False) == Url("https", "quay.io", 443, target)


DIGEST = digests.parse("sha256:" + "a" * 64)
LONGER = digests.parse("sha512:" + "b" * 128)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ([], ()),
        ([""], ()),
        ([str(DIGEST)], (DIGEST,)),
        ([f'"{DIGEST}"'], (DIGEST,)),
        ([f" {DIGEST} "], (DIGEST,)),
        (["sha256:" + "A" * 64], (DIGEST,)),
        (["SHA256:" + "A" * 64], (DIGEST,)),
        ([f"{DIGEST}, {DIGEST}"], (DIGEST,)),
        ([str(DIGEST), str(DIGEST)], (DIGEST,)),
        ([str(DIGEST), str(LONGER)], (DIGEST, LONGER)),
        ([f"{DIGEST},sha256:{'c' * 64}"], (DIGEST, digests.parse("sha256:" + "c" * 64))),
        (["x", str(DIGEST)], (DIGEST,)),
        (["sha256:abc"], ()),
        (["nonsense"], ()),
        (["md7:abc"], ()),
        (["blake3:" + "0" * 64], ()),
    ],
)
def test_every_digest_that_a_registry_names_counts(
    fields: list[str], expected: tuple[Digest, ...]
) -> None:
    assert content_digests(fields) == expected


def test_a_step_down_to_http_must_be_allowed() -> None:
    assert redirect(HERE, "http://a/b", allow_http=True) == Url("http", "a", 80, "/b")
    with pytest.raises(BadUpstreamError) as caught:
        redirect(HERE, "http://a/b?secret", allow_http=False)
    assert caught.value.message == (
        "GET https://quay.io/v2/os/blobs/x?…: redirected from https to http://a/b?…, which is"
        " refused (--tls-verify=false would allow it)"
    )


@pytest.mark.parametrize(
    ("location", "complaint"),
    [
        ("", "redirected without a Location"),
        (
            "ftp://a/b",
            "redirected to an unusable URL (neither http nor https): ftp://a/…",
        ),
        (
            "https://user:secret@a/?secret",
            "redirected to an unusable URL (it has user information (USER:PASSWORD@)): https://a/…",
        ),
        (
            "https://\u00e4/",
            "redirected to an unusable URL (its host is malformed): (not shown)",
        ),
    ],
)
def test_a_redirect_to_nowhere_is_the_registry_s_mistake(location: str, complaint: str) -> None:
    with pytest.raises(BadUpstreamError) as caught:
        redirect(HERE, location, allow_http=True)
    assert caught.value.message == f"GET https://quay.io/v2/os/blobs/x?…: {complaint}"


@pytest.mark.parametrize(
    "location",
    [
        "https://user:secret@a/",
        "https://a:secret/",
        "https://[secret]/",
        "https://[::1/secret",
        "ftp://a/secret",
        "ftp://a?secret",
        "https://\u00e4.secret/",
        "https:user:secret@a/",
        "http:user:secret@a/",
        "HTTP:secret",
        "http:/user:secret@a/",
        "x:secret",
    ],
)
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_what_may_be_secret_in_a_location_is_not_quoted(scheme: str, location: str) -> None:
    """`urljoin` takes a URL of the same scheme without a host for a path, which would be shown."""
    with pytest.raises(BadUpstreamError) as caught:
        redirect(HERE._replace(scheme=scheme), location, allow_http=True)
    assert "secret" not in caught.value.message


# --- what other replies mean ------------------------------------------------------------------


def said(*codes: str) -> bytes:
    return json.dumps({"errors": [{"code": code, "message": "no"} for code in codes]}).encode()


@pytest.mark.parametrize(
    ("status", "body", "path", "leaf", "code"),
    [
        (404, b"", MANIFEST, NotFoundError, "MANIFEST_UNKNOWN"),
        (404, b"", BLOB, NotFoundError, "BLOB_UNKNOWN"),
        (404, said("MANIFEST_UNKNOWN"), MANIFEST, AbsentError, "MANIFEST_UNKNOWN"),
        (404, said("X", "NAME_UNKNOWN"), MANIFEST, NotFoundError, "NAME_UNKNOWN"),
        (404, said("NAME_UNKNOWN"), BLOB, NotFoundError, "NAME_UNKNOWN"),
        (401, b"", MANIFEST, DeniedError, "UNAUTHORIZED"),
        (403, said("DENIED"), MANIFEST, DeniedError, "DENIED"),
        (429, b"", BLOB, UnavailableError, "TOOMANYREQUESTS"),
        (500, b"", BLOB, UnavailableError, "UNAVAILABLE"),
        (502, b"", BLOB, UnavailableError, "UNAVAILABLE"),
        (503, b"", BLOB, UnavailableError, "UNAVAILABLE"),
        (599, b"", BLOB, UnavailableError, "UNAVAILABLE"),
        (201, b"", BLOB, BadUpstreamError, "BAD_UPSTREAM"),
        (204, b"", BLOB, BadUpstreamError, "BAD_UPSTREAM"),
        (206, b"", BLOB, BadUpstreamError, "BAD_UPSTREAM"),
        (304, b"", BLOB, BadUpstreamError, "BAD_UPSTREAM"),
        (400, b"", BLOB, BadUpstreamError, "BAD_UPSTREAM"),
        (416, b"", BLOB, BadUpstreamError, "BAD_UPSTREAM"),
    ],
)
def test_a_registry_s_refusal_has_a_meaning(
    status: int, body: bytes, path: ApiPath, leaf: type[Failure], code: str
) -> None:
    found = failure(HERE, status, body, path, retry_after=7)
    assert type(found) is leaf
    assert (found.code, found.retry_after) == (code, 7)
    assert found.message.startswith(f"{path}: GET https://quay.io/v2/os/blobs/x?…: {status}")


@pytest.mark.parametrize(
    ("status", "leaf", "code"),
    [
        (401, DeniedError, "UNAUTHORIZED"),
        (403, DeniedError, "DENIED"),
        (408, UnavailableError, "UNAVAILABLE"),
        (429, UnavailableError, "TOOMANYREQUESTS"),
        (500, UnavailableError, "UNAVAILABLE"),
        (501, BadUpstreamError, "BAD_UPSTREAM"),
        (503, UnavailableError, "UNAVAILABLE"),
        (511, BadUpstreamError, "BAD_UPSTREAM"),
        (302, BadUpstreamError, "BAD_UPSTREAM"),
        (404, BadUpstreamError, "BAD_UPSTREAM"),
    ],
)
def test_a_status_has_a_meaning_whatever_was_asked(
    status: int, leaf: type[Failure], code: str
) -> None:
    found = refusal("the message", status)
    assert (type(found), found.message, found.code) == (leaf, "the message", code)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (said("A", "B"), " (A: no; B: no)"),
        (b"<html><title>403 Forbidden</title></html>", " (403 Forbidden)"),
        (b"{}", ""),
        (b"", ""),
    ],
)
def test_a_registry_s_own_words_are_quoted(body: bytes, words: str) -> None:
    assert failure(HERE, 400, body, "a blob").message == (
        f"a blob: GET https://quay.io/v2/os/blobs/x?…: 400{words}"
    )


def test_a_registry_s_own_words_are_bounded() -> None:
    body = json.dumps({"errors": [{"code": "A", "message": "a" * 10_000}]}).encode()
    assert len(failure(HERE, 400, body, "a blob").message) < 400


@pytest.mark.parametrize("status", [429, 503])
def test_a_delay_too_long_to_wait_is_named_and_not_tried_again(status: int) -> None:
    (soon, late) = (refusal("it", status, retry_after=seconds) for seconds in (1.0, 3600.0))
    assert isinstance(soon, UnavailableError)
    assert isinstance(late, UnavailableError)
    assert (soon.message, soon.is_transient, soon.retry_after) == ("it", True, 1.0)
    message = "it; it may be asked again in 3600 s, which is too long to wait"
    assert (late.message, late.is_transient, late.retry_after) == (message, False, 3600.0)


def test_which_url_is_that_of_a_blob() -> None:
    assert is_blob(HERE)
    assert not is_blob(parse("https://quay.io/v2/os/manifests/1"))
    assert not is_blob(parse("https://quay.io/v2/acme/blobs/os/manifests/1"))
    assert not is_blob(parse("https://quay.io/blobs/token?scope=a"))


@pytest.mark.parametrize(
    ("url", "authorized"),
    [
        ("https://quay.io/v2/other/blobs/x", True),
        ("https://quay.io:443/v2/os/blobs/x", True),
        ("https://cdn.quay.io/v2/os/blobs/x", False),
        ("https://quay.io:8443/v2/os/blobs/x", False),
        ("http://quay.io/v2/os/blobs/x", False),
        ("https://quay.io/store/x", False),
        ("https://quay.io/v2/../store/x", False),
        ("https://quay.io/v2/%2e%2e/store/x", False),
        ("https://quay.io/v2/os/blobs/x?X-Amz-Signature=a", False),
        ("https://quay.io/v2/os/blobs/x?a=b&sig=c", False),
    ],
)
def test_what_is_authorized_where_a_redirect_led(url: str, *, authorized: bool) -> None:
    assert is_authorized(parse(url), parse("https://quay.io/v2/os/blobs/x")) is authorized


def test_what_is_authorized_from_a_url_that_is_not_of_a_registry() -> None:
    store = parse("https://quay.io/store/x?sig=a")
    assert is_authorized(store, store)
    assert is_authorized(parse("https://quay.io/else"), store)
    assert not is_authorized(parse("https://quay.io/else?sig=b"), store)


@pytest.mark.parametrize(
    ("url", "repository"),
    [
        ("https://quay.io/v2/acme/os/blobs/sha256:0", "acme/os"),
        ("https://quay.io/v2/acme/os/manifests/1?ns=a", "acme/os"),
        ("https://quay.io/v2/os/referrers/sha256:0", "os"),
        ("https://quay.io/v2/os/tags/list", ""),
        ("https://quay.io/v2/", ""),
        ("https://quay.io/store/os/blobs/x", ""),
        ("https://quay.io/v2/os/blobs/x?sig=a", ""),
    ],
)
def test_the_repository_that_a_redirect_led_to(url: str, repository: str) -> None:
    assert repository_of(parse(url)) == repository
