"""policy.json: containers-policy.json(5)."""

from __future__ import annotations

import json
from typing import Any

import pytest

from imgproxy.config.policy import (
    ACCEPT_ANYTHING,
    Conditions,
    Policy,
    Scope,
    docker_scopes,
    evaluate,
    key_paths,
    parse,
    path_scopes,
    scopes_of,
)
from imgproxy.config.signature_requirements import Material, SignedBy, SigstoreSigned
from imgproxy.config.signed_identity import DEFAULT
from imgproxy.errors import ConfigurationError, DeniedError
from imgproxy.specs.oci.reference import parse_named, parse_reference

Json = dict[str, Any]

ACCEPT = [{"type": "insecureAcceptAnything"}]
REJECT = [{"type": "reject"}]
SIGNED = [{"type": "signedBy", "keyType": "GPGKeys", "keyPath": "/key.gpg"}]
SIGSTORE = [{"type": "sigstoreSigned", "keyPath": "/key.pub"}]
BASE_LAYER = [{"type": "signedBaseLayer", "baseLayerIdentity": {"type": "matchExact"}}]

ACCEPTED = "insecureAcceptAnything"
REJECTED = "reject"


def signed_by(place: str) -> SignedBy:
    return SignedBy("signedBy", Material(f"{place}.keyPath", ("/key.gpg",)), DEFAULT)


def read(document: object) -> Policy:
    return parse(json.dumps(document).encode(), "/p.json")


# --- the file ---------------------------------------------------------------------------------


def test_a_policy_is_a_default_and_scopes_by_transport() -> None:
    document = {
        "default": REJECT,
        "transports": {
            "docker": {"": ACCEPT, "quay.io/acme": [*SIGNED, *ACCEPT]},
            "unheard-of": {"x": REJECT},
            "dir": {},
        },
    }
    assert read(document) == Policy(
        "/p.json",
        Scope("default", (REJECTED,)),
        {
            "docker": {
                "": Scope("transports.docker.", (ACCEPTED,)),
                "quay.io/acme": Scope(
                    "transports.docker.quay.io/acme",
                    (signed_by("transports.docker.quay.io/acme[0]"), ACCEPTED),
                ),
            },
            "unheard-of": {"x": Scope("transports.unheard-of.x", (REJECTED,))},
            "dir": {},
        },
        read(document).warnings,
    )


def test_accepting_anything_is_a_policy() -> None:
    policy = parse(ACCEPT_ANYTHING, "--insecure-policy")
    assert policy == Policy("--insecure-policy", Scope("default", (ACCEPTED,)), {})


@pytest.mark.parametrize("requirements", [ACCEPT, REJECT, SIGNED, SIGSTORE, BASE_LAYER])
def test_every_requirement_of_the_manual_is_known(requirements: list[Json]) -> None:
    (found,) = read({"default": requirements}).default.requirements
    assert getattr(found, "kind", found) == requirements[0]["type"]


@pytest.mark.parametrize(
    ("document", "complaint"),
    [
        ([], "the document: expected an object, got an array"),
        ({}, "default: expected a list of requirements that is not empty"),
        ({"default": []}, "default: expected a list of requirements that is not empty"),
        ({"default": None}, "default: expected a value, got null"),
        ({"default": REJECT, "transports": None}, "transports: expected a value, got null"),
        ({"default": {}}, "default: expected an array, got an object"),
        ({"default": ["reject"]}, 'default[0]: expected an object, got "reject"'),
        ({"default": [{}]}, "default[0].type: missing (expected a string)"),
        ({"default": [{"type": 5}]}, "default[0].type: expected a string, got 5"),
        ({"default": [{"type": "x"}]}, 'default[0].type: unknown requirement "x"'),
        ({"default": [{"type": "Reject"}]}, 'default[0].type: unknown requirement "Reject"'),
        ({"default": [{"type": "reject", "x": 1}]}, "default[0].x: unknown key"),
        (
            {"default": [{"type": "insecureAcceptAnything", "keyPath": "/k"}]},
            "default[0].keyPath: unknown key",
        ),
        ({"default": REJECT, "x": 1}, "x: unknown key"),
        ({"Default": REJECT}, "Default: unknown key"),
        ({"default": REJECT, "transports": []}, "transports: expected an object, got an array"),
        (
            {"default": REJECT, "transports": {"docker": None}},
            "transports.docker: missing (expected an object)",
        ),
        (
            {"default": REJECT, "transports": {"docker": ACCEPT}},
            "transports.docker: expected an object, got an array",
        ),
        (
            {"default": REJECT, "transports": {"docker": {"": []}}},
            "transports.docker.: expected a list of requirements that is not empty",
        ),
        (
            {"default": REJECT, "transports": {"x": {"y": [*ACCEPT, {"type": "z"}]}}},
            'transports.x.y[1].type: unknown requirement "z"',
        ),
    ],
)
def test_a_policy_with_a_mistake_is_none_at_all(document: Json, complaint: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        read(document)
    assert caught.value.message == f"the policy /p.json: {complaint}"
    assert caught.value.detail == {"file": "/p.json"}


@pytest.mark.parametrize("transport", ["oci", "dir", "oci-archive"])
@pytest.mark.parametrize(
    "scope", ["images", "./images", "/", "//", "//images", "/images/", "/a//b", "/a/./b", "/a/../b"]
)
def test_a_path_that_could_never_match_would_make_the_file_laxer_than_it_reads(
    transport: str, scope: str
) -> None:
    with pytest.raises(ConfigurationError) as caught:
        read({"default": ACCEPT, "transports": {transport: {scope: REJECT}}})
    assert caught.value.message == (
        f"the policy /p.json: transports.{transport}.{scope}: expected an absolute path,"
        " without . or .."
    )


def test_a_docker_archive_has_no_scope_but_the_empty_one() -> None:
    with pytest.raises(ConfigurationError) as caught:
        read({"default": ACCEPT, "transports": {"docker-archive": {"/a.tar": REJECT}}})
    assert caught.value.message == (
        "the policy /p.json: transports.docker-archive./a.tar: docker-archive has no scope but the"
        ' empty one, ""'
    )


@pytest.mark.parametrize(
    ("transport", "scope"),
    [
        ("oci", ""),
        ("oci-archive", "/images/os.tar"),
        ("docker-archive", ""),
        ("oci", "/images"),
        ("dir", "/images/a b/..c"),
        ("docker", "images/"),
        ("unheard-of", "//"),
    ],
)
def test_a_scope_is_what_its_transport_understands(transport: str, scope: str) -> None:
    policy = read({"default": ACCEPT, "transports": {transport: {scope: REJECT}}})
    with pytest.raises(DeniedError):
        evaluate(policy, transport, [scope], "it")


@pytest.mark.parametrize(
    ("raw", "complaint"),
    [
        (b"", "not JSON: "),
        (b'{"default":[{"type":"reject"}]}x', "not JSON: Extra data"),
        (b'{"default":[{"type":"reject"}],"default":[]}', 'the key "default" occurs twice'),
        (b'{"default":[{"type":"reject","type":"reject"}]}', 'the key "type" occurs twice'),
    ],
)
def test_a_policy_is_clean_json(raw: bytes, complaint: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        parse(raw, "/p.json")
    assert caught.value.message.startswith(f"the policy /p.json: {complaint}")


# --- scopes -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("registry", "repository", "suffix", "scopes"),
    [
        (
            "docker.io",
            "library/busybox",
            ":latest",
            [
                "docker.io/library/busybox:latest",
                "docker.io/library/busybox",
                "docker.io/library",
                "docker.io",
                "*.io",
            ],
        ),
        (
            "yet.another.example.com:8443",
            "ns/repo",
            "@sha256:0",
            [
                "yet.another.example.com:8443/ns/repo@sha256:0",
                "yet.another.example.com:8443/ns/repo",
                "yet.another.example.com:8443/ns",
                "yet.another.example.com:8443",
                "*.another.example.com",
                "*.example.com",
                "*.com",
            ],
        ),
        ("localhost", "os", ":v1", ["localhost/os:v1", "localhost/os", "localhost"]),
        (
            "localhost:5000",
            "a/b/c",
            ":v1",
            [
                "localhost:5000/a/b/c:v1",
                "localhost:5000/a/b/c",
                "localhost:5000/a/b",
                "localhost:5000/a",
                "localhost:5000",
            ],
        ),
        ("[::1]", "os", ":v1", ["[::1]/os:v1", "[::1]/os", "[::1]"]),
        ("[::1]:5000", "os", ":v1", ["[::1]:5000/os:v1", "[::1]:5000/os", "[::1]:5000"]),
        (
            "127.0.0.1",
            "os",
            ":v1",
            ["127.0.0.1/os:v1", "127.0.0.1/os", "127.0.0.1", "*.0.0.1", "*.0.1", "*.1"],
        ),
    ],
)
def test_the_scopes_of_an_image_in_a_registry(
    registry: str, repository: str, suffix: str, scopes: list[str]
) -> None:
    assert docker_scopes(registry, repository, suffix) == scopes


@pytest.mark.parametrize("suffix", [":v1", "@sha256:" + "0" * 64])
def test_the_scopes_of_a_reference_begin_with_it(suffix: str) -> None:
    reference = parse_named(f"quay.io/acme/os{suffix}")
    assert scopes_of(reference) == docker_scopes("quay.io", "acme/os", suffix)


@pytest.mark.parametrize(
    ("path", "scopes"),
    [("/a/b/c", ["/a/b/c", "/a/b", "/a"]), ("/a", ["/a"]), ("/", ["/"])],
)
def test_the_scopes_of_a_path_are_the_directories_above_it(path: str, scopes: list[str]) -> None:
    assert path_scopes(path) == scopes


# --- the verdict ------------------------------------------------------------------------------

SCOPES = docker_scopes("quay.io", "acme/os", ":v1")
SINCE = "since transports.docker has no scope for it"
DEFAULTED = f"(default), {SINCE}"


@pytest.mark.parametrize(
    ("transports", "place"),
    [
        ({}, DEFAULTED),
        ({"oci": {"": ACCEPT}, "unheard-of": {"quay.io": ACCEPT}}, DEFAULTED),
        ({"docker": {}}, DEFAULTED),
        ({"docker": {"quay.io/acme/os:v2": ACCEPT, "quay.io/ac": ACCEPT}}, DEFAULTED),
        ({"docker": {"": REJECT}}, "(transports.docker.)"),
        ({"docker": {"": ACCEPT, "*.io": REJECT}}, "(transports.docker.*.io)"),
        ({"docker": {"*.io": ACCEPT, "quay.io": REJECT}}, "(transports.docker.quay.io)"),
        (
            {"docker": {"quay.io": ACCEPT, "quay.io/acme": REJECT}},
            "(transports.docker.quay.io/acme)",
        ),
        (
            {"docker": {"quay.io/acme": ACCEPT, "quay.io/acme/os": REJECT}},
            "(transports.docker.quay.io/acme/os)",
        ),
        (
            {"docker": {"quay.io/acme/os": ACCEPT, "quay.io/acme/os:v1": REJECT}},
            "(transports.docker.quay.io/acme/os:v1)",
        ),
    ],
)
def test_only_the_most_specific_list_applies(transports: Json, place: str) -> None:
    policy = read({"default": REJECT, "transports": transports})
    with pytest.raises(DeniedError) as caught:
        evaluate(policy, "docker", SCOPES, "it")
    assert caught.value.message == f"it is rejected by the policy /p.json {place}"


@pytest.mark.parametrize(
    "document",
    [
        {"default": ACCEPT},
        {"default": [*ACCEPT, *ACCEPT]},
        {"default": REJECT, "transports": {"docker": {"quay.io": ACCEPT}}},
        {"default": REJECT, "transports": {"docker": {"": REJECT, "quay.io/acme": ACCEPT}}},
        {"default": ACCEPT, "transports": {"oci": {"": REJECT}}},
    ],
    ids=["default", "default-twice", "registry", "namespace", "another-transport"],
)
def test_an_image_is_accepted_where_the_list_that_applies_accepts(document: Json) -> None:
    assert evaluate(read(document), "docker", SCOPES, "it").requirements == ()


@pytest.mark.parametrize("transport", ["docker-archive", "oci", "oci-archive", "dir", "docker"])
def test_a_refusal_names_the_key_to_look_for(transport: str) -> None:
    """Whoever is refused adds a scope, and the name of its transport is not that of the image."""
    other = "oci" if transport == "dir" else "dir"
    policy = read({"default": REJECT, "transports": {other: {"": ACCEPT}}})
    with pytest.raises(DeniedError, match=rf"\(default\), since transports\.{transport} has no"):
        evaluate(policy, transport, ["/a/b"], "it")
    policy = read({"default": ACCEPT, "transports": {transport: {"": REJECT}}})
    with pytest.raises(DeniedError, match=rf"\(transports\.{transport}\.\)$"):
        evaluate(policy, transport, ["/a/b"], "it")


# --- spellings --------------------------------------------------------------------------------


def verdict(policy: Policy, image: str) -> str:
    """Return `accepted`, `rejected` or the kinds of the requirements."""
    reference = parse_reference(image)
    try:
        conditions = evaluate(policy, "docker", scopes_of(reference), image)
    except DeniedError:
        return "rejected"
    return " ".join(each.kind for each in conditions.requirements) or "accepted"


SPELLINGS = {
    "quay.io": ["Quay.IO", "quay.io:443", "Quay.IO:443", "quay.io:0443"],
    "localhost:5000": ["LOCALHOST:5000", "localhost:05000"],
    "docker.io": ["Docker.IO", "docker.io:443", "index.docker.io", "registry-1.docker.io"],
    "[::1]:5000": ["[0:0:0:0:0:0:0:1]:5000", "[::0001]:5000"],
    "127.0.0.1:5000": ["127.1:5000", "0x7f.1:5000", "[::FFFF:7F00:1]:5000"],
}
PAIRS = [
    pair
    for name, others in SPELLINGS.items()
    for other in others
    for pair in ((name, other), (other, name))
]


@pytest.mark.parametrize(("scope", "image"), PAIRS)
@pytest.mark.parametrize(
    "tail", ["", "/acme", "/acme/os", "/acme/os:v1"], ids=["registry", "namespace", "name", "tag"]
)
def test_no_spelling_evades_a_scope(scope: str, image: str, tail: str) -> None:
    """Each leads to the same server, and whoever wrote the scope meant the server."""
    rejecting = read({"default": ACCEPT, "transports": {"docker": {f"{scope}{tail}": REJECT}}})
    assert verdict(rejecting, f"{image}/acme/os:v1") == "rejected"
    signed = read({"default": ACCEPT, "transports": {"docker": {f"{scope}{tail}": SIGNED}}})
    assert verdict(signed, f"{image}/acme/os:v1") == "signedBy"
    assert rejecting.warnings == signed.warnings == ()


@pytest.mark.parametrize("scope", ["*.example.com", "*.Example.COM"])
@pytest.mark.parametrize("image", ["a.example.com", "A.EXAMPLE.com:443", "a.b.Example.com:5000"])
def test_no_spelling_evades_a_wildcard(scope: str, image: str) -> None:
    policy = read({"default": ACCEPT, "transports": {"docker": {scope: REJECT}}})
    assert verdict(policy, f"{image}/acme/os:v1") == "rejected"


@pytest.mark.parametrize(("one", "other"), PAIRS)
def test_two_spellings_of_a_scope_require_what_both_require(one: str, other: str) -> None:
    """Before they were one, each had its own images; neither may now lift what the other says."""
    for first, second, expected in (
        (ACCEPT, REJECT, "rejected"),
        (REJECT, ACCEPT, "rejected"),
        (ACCEPT, SIGNED, "signedBy"),
        (SIGSTORE, SIGNED, "sigstoreSigned signedBy"),
        (ACCEPT, ACCEPT, "accepted"),
    ):
        policy = read({"default": REJECT, "transports": {"docker": {one: first, other: second}}})
        for image in (one, other):
            assert verdict(policy, f"{image}/acme/os:v1") == expected
    policy = read({"default": ACCEPT, "transports": {"docker": {one: ACCEPT, other: REJECT}}})
    with pytest.raises(DeniedError) as caught:
        evaluate(policy, "docker", scopes_of(parse_reference(f"{one}/acme/os:v1")), "it")
    assert f"transports.docker.{one} and transports.docker.{other}" in caught.value.message


@pytest.mark.parametrize(
    "image", ["quay.io:5000", "quay.io:4430", "quay.io.example.com", "kuay.io"]
)
def test_another_registry_is_not_another_spelling(image: str) -> None:
    scopes = {"quay.io": ACCEPT, "quay.io:443": ACCEPT, "QUAY.IO": ACCEPT, "*.quay.io:443": ACCEPT}
    policy = read({"default": REJECT, "transports": {"docker": scopes}})
    assert verdict(policy, f"{image}/acme/os:v1") == "rejected"
    assert verdict(policy, "x.quay.io:5000/acme/os:v1") == "rejected"


# --- keys that match nothing ------------------------------------------------------------------


def test_a_key_that_matches_no_image_is_warned_about() -> None:
    scopes = {"https://quay.io": REJECT, "quay.io": ACCEPT, "": ACCEPT, "quay.io/acme/": REJECT}
    document = {"default": ACCEPT, "transports": {"Docker": {}, "docker": scopes, "dir": {}}}
    assert read(document).warnings == (
        '/p.json: transports.Docker: there is no such transport; write "docker"',
        '/p.json: transports.docker.https://quay.io: matches no image; write "quay.io"',
        '/p.json: transports.docker.quay.io/acme/: matches no image; write "quay.io/acme"',
    )


def test_what_signatures_decide_is_left_to_them() -> None:
    document = {"default": [*SIGNED, *ACCEPT, *SIGSTORE, *SIGNED]}
    sigstore = SigstoreSigned(
        "sigstoreSigned", Material("default[2].keyPath", ("/key.pub",)), None, DEFAULT
    )
    assert evaluate(read(document), "docker", SCOPES, "it") == Conditions(
        f"{SINCE}, the policy /p.json (default)",
        (signed_by("default[0]"), sigstore, signed_by("default[3]")),
    )


X509 = [{"type": "signedBy", "keyType": "X509Certificates", "keyPath": "/k"}]


@pytest.mark.parametrize(
    ("requirements", "reason"),
    [
        (REJECT, f"it is rejected by the policy /p.json {DEFAULTED}"),
        ([*ACCEPT, *REJECT], f"it is rejected by the policy /p.json {DEFAULTED}"),
        ([*REJECT, *ACCEPT], f"it is rejected by the policy /p.json {DEFAULTED}"),
        ([*SIGNED, *REJECT], f"it is rejected by the policy /p.json {DEFAULTED}"),
        ([*REJECT, *SIGSTORE], f"it is rejected by the policy /p.json {DEFAULTED}"),
        *(
            (
                [*before, *BASE_LAYER, *after],
                f"it is rejected: {SINCE}, the policy /p.json (default) requires signedBaseLayer:"
                " its verification has never been specified",
            )
            for before, after in (([], []), (ACCEPT, SIGNED), (SIGNED, ACCEPT))
        ),
        (
            X509,
            f"it is rejected: {SINCE}, the policy /p.json (default) requires signedBy: keys of the"
            " type X509Certificates are not supported by any program",
        ),
    ],
)
def test_every_requirement_must_accept(requirements: list[Json], reason: str) -> None:
    with pytest.raises(DeniedError) as caught:
        evaluate(read({"default": requirements}), "docker", SCOPES, "it")
    assert (caught.value.status, caught.value.message) == (403, reason)


def test_a_verdict_has_no_controls_from_the_file() -> None:
    policy = read({"default": ACCEPT, "transports": {"unheard-of": {"a\x1b[31m": REJECT}}})
    with pytest.raises(DeniedError) as caught:
        evaluate(policy, "unheard-of", ["a\x1b[31m"], "it")
    assert caught.value.message.isprintable()


@pytest.mark.parametrize(("requirements", "is_refused"), [(ACCEPT, True), (SIGNED, False)])
def test_signatures_may_be_required_whatever_the_policy_wants(
    requirements: list[Json], *, is_refused: bool
) -> None:
    document = {"default": REJECT, "transports": {"docker": {"": requirements}}}
    policy = read(document)._replace(requires_signatures=True)
    if is_refused:
        with pytest.raises(DeniedError, match=r"^it is rejected by --require-signed: the policy"):
            evaluate(policy, "docker", SCOPES, "it")
    else:
        assert evaluate(policy, "docker", SCOPES, "it").requirements == (
            signed_by("transports.docker.[0]"),
        )


def test_the_files_that_a_policy_names() -> None:
    both = [*SIGNED, *SIGSTORE]
    document = {"default": ACCEPT, "transports": {"docker": {"": REJECT, "x.io": both}}}
    assert key_paths(read(document)) == ["/key.gpg", "/key.pub"]
    assert key_paths(read({"default": SIGSTORE})) == ["/key.pub"]
    assert key_paths(read({"default": REJECT})) == []
