"""Keys of policy.json that match no image, and what to write instead."""

from __future__ import annotations

import pytest

from imgproxy.config.policy import docker_scopes, scopes_of
from imgproxy.config.policy_hints import for_scope, for_transport
from imgproxy.specs.oci.reference import parse_reference

DIGEST = "sha256:" + "0" * 64
SOMETHING = "expected host[:port], host[:port]/path, that with :tag or @digest, or *.domain"


@pytest.mark.parametrize(
    ("scope", "instead"),
    [
        # a scheme, or a transport
        ("https://quay.io", "quay.io"),
        ("http://localhost:5000/", "localhost:5000"),
        ("docker://quay.io/acme/os:v1", "quay.io/acme/os:v1"),
        ("docker:quay.io", "quay.io"),
        # the end
        ("quay.io/", "quay.io"),
        ("quay.io/acme/", "quay.io/acme"),
        ("quay.io/acme//", "quay.io/acme"),
        ("quay.io/acme/*", "quay.io/acme"),
        ("quay.io/**", "quay.io"),
        ("*.example.com/", "*.example.com"),
        ("*", ""),
        # the case of repositories, which tags may have
        ("quay.io/ACME", "quay.io/acme"),
        ("Quay.IO/Acme/OS:V1", "quay.io/acme/os:V1"),
        ("127.0.0.1:5000/ACME/os", "127.0.0.1:5000/acme/os"),
        (f"localhost:5000/Acme@{DIGEST}", f"localhost:5000/acme@{DIGEST}"),
        ("BusyBox:V1", "docker.io/library/busybox:V1"),
        # a host with the dot of the root
        ("quay.io.", "quay.io"),
        ("quay.io./acme", "quay.io/acme"),
        # names that are short for one of Docker Hub
        ("busybox", "docker.io/library/busybox"),
        ("acme/os", "docker.io/acme/os"),
        ("docker.io/busybox:1", "docker.io/library/busybox:1"),
        (f"index.docker.io/busybox@{DIGEST}", f"docker.io/library/busybox@{DIGEST}"),
        ("registry", "docker.io/library/registry"),
        # an image that is named by both has the digest in its scope
        (f"quay.io/acme/os:v1@{DIGEST}", f"quay.io/acme/os@{DIGEST}"),
        (" quay.io", "quay.io"),
    ],
)
def test_what_was_meant_is_shown(scope: str, instead: str) -> None:
    assert for_scope(scope) == f'matches no image; write "{instead}"'
    assert for_scope(instead) == ""


@pytest.mark.parametrize(
    "scope",
    [
        *("*.example.com:8443", "*.example.com/acme", "*.*.com", "*.", "quay*", "quay.io/acme*"),
        *(
            "quay.io//acme",
            "quay.io acme",
            "/srv/images",
            "oci:/srv/images",
            "ftp:",
            "quay.io/a:-b",
        ),
        *(f"quay.io@{DIGEST}x", "quay.io/a@sha256:00", "a_b.io/x", "[::g]/x", "quay.io/\u00e4"),
    ],
)
def test_where_that_cannot_be_told_the_grammar_is(scope: str) -> None:
    assert for_scope(scope) == f"matches no image; {SOMETHING}"


@pytest.mark.parametrize(
    "image",
    [
        *("busybox", "docker.io/acme/os:v1", "Quay.IO:0443/acme/os:V1", "localhost/os"),
        *(f"[::1]:5000/a/b/c@{DIGEST}", f"a.b.example.com:8443/os:v1@{DIGEST}", "127.1/os"),
    ],
)
def test_all_scopes_of_images_are_without_a_hint(image: str) -> None:
    reference = parse_reference(image)
    suffix = f":{reference.tag}" if reference.tag else f"@{reference.digest}"
    for scope in (
        *scopes_of(reference),
        *docker_scopes(reference.registry, reference.repository, suffix),
        image if "/" in image else "",
    ):
        assert for_scope(scope) == "" or (reference.tag and reference.digest and scope == image)


@pytest.mark.parametrize(
    ("name", "instead"),
    [
        *(("Docker", "docker"), ("docker:", "docker"), ("docker://", "docker"), ("OCI", "oci")),
        *(("registry", "docker"), ("https", "docker"), (" dir", "dir")),
    ],
)
def test_a_transport_that_was_meant_is_shown(name: str, instead: str) -> None:
    assert for_transport(name) == f'there is no such transport; write "{instead}"'


@pytest.mark.parametrize("name", ["", "x", "docker.io", "oci-dir"])
def test_another_transport_is_told_which_there_are(name: str) -> None:
    hint = for_transport(name)
    assert hint.startswith("there is no such transport; expected one of ")
    assert "docker-archive, " in hint


@pytest.mark.parametrize(
    "name", ["docker", "docker-archive", "docker-daemon", "containers-storage", "atomic", "sif"]
)
def test_the_transports_of_other_tools_may_have_rules(name: str) -> None:
    """The policy is that of the whole host, and distributions ship one for the Docker daemon."""
    assert for_transport(name) == ""
