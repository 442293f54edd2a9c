"""Requests to a registry: any bytes are a request with names that can be, or a failure.

What is a name never leads a pattern out of its directories.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING
from urllib.parse import quote

from hypothesis import example, given
from hypothesis import strategies as st
from support.strategies import attempt

from imgproxy.config import sideload_pattern
from imgproxy.errors import Failure
from imgproxy.frontends import registry_routes as routes
from imgproxy.server.error_body import error_body
from imgproxy.specs.oci import reference as references
from imgproxy.specs.oci import registry_name

if TYPE_CHECKING:
    from imgproxy.specs.oci.reference import Reference

METHODS = st.sampled_from([b"GET", b"HEAD", b"POST", b"\xff"]) | st.binary(max_size=8)
PIECES = [
    *(b"/v2/", b"/v2", b"/", b"//", b"manifests", b"blobs", b"tags", b"list", b"referrers"),
    *(b"%2f", b"%2F", b"%5c", b"%00", b"%", b"%2e%2e", b"%ff", b"%252e", b"..", b".", b"\\"),
    *(b"?", b"#", b"ns=", b"&", b"n=", b"last=", b"=", b"a", b"A", b"-", b"_", b"__", b"___"),
    *(b"sha256:", b"0" * 64, b"docker.io", b"localhost", b":5000", b"[::1]", b"@", b"*", b"<ref>"),
    *(b"\t", b"\r\n", b" ", b"\0", b"\xff", b"\x1b", b"a" * 260, b"library", b"_catalog"),
]
PATHS = st.lists(st.sampled_from(PIECES), max_size=10).map(b"".join)
NAMED = st.tuples(PATHS, st.sampled_from([b"manifests", b"blobs", b"referrers", b"tags"]), PATHS)
TARGETS = st.binary() | PATHS | NAMED.map(lambda parts: b"/v2/" + b"/".join(parts))

PATTERNS = [
    sideload_pattern.parse(text)
    for text in (
        "/nix/store/<ref>-<basename>.tar.gz",
        "/opt/<registry>/<name>/<ref>.tar",
        "/srv/<name>/manifests/<ref>",
        "/x/<name><ref>",
        "/y/<ref>/<name>",
    )
]


def reference_of(asked: object) -> Reference | None:
    """Return the name that a request is for, if it is for one."""
    match asked:
        case routes.GetManifest():
            return asked.reference
        case routes.GetBlob() | routes.GetTags() | routes.GetReferrers():
            return asked.repository
    return None


@given(METHODS, TARGETS)
@example(b"GET", b"/v2/../../etc/passwd/manifests/1")
@example(b"GET", b"/v2/a/manifests/%2e%2e")
@example(b"GET", b"/v2/a/manifests/1?ns=..")
@example(b"GET", b"/v2/a/tags/list?n=\xd9\xa1")
@example(b"GET", b"/v2/" + b"a/" * 5000 + b"manifests/1")
def test_bytes_are_a_request_or_a_failure(method: bytes, target: bytes) -> None:
    asked = attempt(routes.parse, method, target, "docker.io", expected=Failure)
    if isinstance(asked, Failure):
        assert asked.status in {400, 404, 405}
        assert asked.message.isprintable()
        body = json.loads(error_body(asked, str))
        assert body["errors"][0]["message"] == asked.message.strip()
        return
    reference = reference_of(asked)
    if reference is not None:
        assert registry_name.is_registry(reference.registry)
        assert references.parse_parts(
            reference.registry, reference.repository
        ) == reference._replace(tag=None, digest=None)
        assert reference.tag is None or references.is_tag(reference.tag)
        for pattern in PATTERNS:
            path = pattern.path(reference, reference.manifest)
            before = str(pattern).partition("<")[0]
            assert path.startswith(before)
            assert not {"", ".", ".."} & set(path[1:].split("/")), path
            assert path.isprintable()


COMPONENT = st.from_regex(r"[a-z0-9]{1,4}((\.|_|__|-{1,3})[a-z0-9]{1,4}){0,2}", fullmatch=True)


@given(
    st.lists(COMPONENT, min_size=2, max_size=5).map("/".join),
    st.from_regex(r"[a-zA-Z0-9_][a-zA-Z0-9._-]{0,20}", fullmatch=True),
)
def test_every_name_can_be_asked_for_in_three_spellings(name: str, tag: str) -> None:
    host = "registry.example:5000"
    spellings = [
        (f"/v2/{name}/manifests/{tag}", host),
        (f"/v2/{host}/{name}/manifests/{tag}", "docker.io"),
        (f"/v2/{name}/manifests/{tag}?x=1&ns={quote(host)}", "docker.io"),
    ]
    found = []
    for target, default in spellings:
        if references.has_registry(name) and "ns=" not in target and default == host:
            continue  # its first component is a host itself
        asked = routes.parse(b"GET", target.encode(), default)
        assert isinstance(asked, routes.GetManifest)
        found.append(asked.reference)
    assert {(each.registry, each.repository, each.tag) for each in found} == {(host, name, tag)}
