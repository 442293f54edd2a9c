"""`signedIdentity`: each type against a tag, a digest, both, neither, ports and namespaces."""

from __future__ import annotations

import pytest

from imgproxy.config.signed_identity import DEFAULT, SignedIdentity, accepts, accepts_unnamed, parse
from imgproxy.parsing.typed_fields import FieldError, Fields
from imgproxy.specs.oci.reference import Reference, parse_named, parse_reference

DIGEST = "sha256:" + "a" * 64
OTHER = "sha256:" + "b" * 64

OS = "quay.io:8443/acme/os"


def identity(kind: str, **values: str) -> SignedIdentity:
    return parse(Fields({"type": kind, **values}, "id"))


def image(text: str) -> Reference:
    return parse_reference(text)


EXACT = identity("matchExact")
REPOSITORY = identity("matchRepository")

# The requested image, the signed name, and whether they match exactly, by the default, and by the
# repository.
TABLE = [
    (f"{OS}:1", f"{OS}:1", (True, True, True)),
    (f"{OS}:1", f"{OS}:2", (False, False, True)),
    (f"{OS}:1", OS, (False, False, True)),
    (f"{OS}:1", f"{OS}@{DIGEST}", (False, False, True)),
    (f"{OS}:1", f"{OS}:1@{DIGEST}", (False, False, True)),
    (f"{OS}@{DIGEST}", f"{OS}:1", (False, True, True)),
    (f"{OS}@{DIGEST}", f"{OS}@{DIGEST}", (True, True, True)),
    (f"{OS}@{DIGEST}", f"{OS}@{OTHER}", (False, True, True)),
    (f"{OS}@{DIGEST}", f"{OS}:1@{DIGEST}", (False, True, True)),
    (f"{OS}@{DIGEST}", OS, (False, False, True)),
    (f"{OS}:1@{DIGEST}", f"{OS}:1@{DIGEST}", (True, True, True)),
    (f"{OS}:1@{DIGEST}", f"{OS}:1", (False, False, True)),
    (f"{OS}:1@{DIGEST}", f"{OS}@{DIGEST}", (False, False, True)),
    (f"{OS}:1@{DIGEST}", OS, (False, False, True)),
    (OS, f"{OS}:latest", (True, True, True)),
    (OS, OS, (False, False, True)),
    ("busybox:latest", "docker.io/library/busybox:latest", (True, True, True)),
    ("docker.io/library/busybox", "busybox:latest", (True, True, True)),
    ("busybox", "index.docker.io/busybox:latest", (True, True, True)),
    *(
        (asked, signed, (False, False, False))
        for asked in (f"{OS}:1", f"{OS}@{DIGEST}", f"{OS}:1@{DIGEST}")
        for signed in (
            "quay.io/acme/os:1",
            "quay.io:443/acme/os:1",
            "quay.io:8443/acme/os2:1",
            "quay.io:8443/acme/os/more:1",
            "quay.io:8443/acme:1",
            "quay.io:8443/other/os:1",
            "acme/os:1",
            f"quay.io/acme/os@{DIGEST}",
        )
    ),
]


# A name permits, and says nothing of how its registry is reached; so it has to be the same one but
# for the case of the host, which no registry can tell apart. Otherwise a server that answers by
# plain http on one port could pass off what was signed for the server on another.
TABLE += [
    ("Quay.IO/os:1", "quay.io/os:1", (True, True, True)),
    ("quay.io/os:1", "QUAY.io/os:1", (True, True, True)),
    ("Docker.IO/busybox:1", "busybox:1", (True, True, True)),
    ("quay.io:443/os:1", "QUAY.io:443/os:1", (True, True, True)),
    ("quay.io/os:1", "quay.io:443/os:1", (False, False, False)),
    ("quay.io:443/os:1", "quay.io/os:1", (False, False, False)),
    ("127.0.0.1:5000/os:1", "127.1:5000/os:1", (False, False, False)),
    ("docker.io/library/os:1", "registry-1.docker.io/library/os:1", (False, False, False)),
]


@pytest.mark.parametrize(("asked", "signed", "verdicts"), TABLE)
def test_the_name_that_is_signed_is_compared_with_the_one_that_is_asked_for(
    asked: str, signed: str, verdicts: tuple[bool, bool, bool]
) -> None:
    found = tuple(
        accepts(each, image(asked), parse_named(signed)) for each in (EXACT, DEFAULT, REPOSITORY)
    )
    assert found == verdicts


@pytest.mark.parametrize("asked", [None, image(f"{OS}:9"), image("busybox"), image(f"x@{DIGEST}")])
@pytest.mark.parametrize(
    ("wanted", "signed", "verdict"),
    [
        (f"{OS}:1", f"{OS}:1", True),
        (f"{OS}:1", f"{OS}:2", False),
        (f"{OS}:1", OS, False),
        (f"{OS}:1", f"{OS}:1@{DIGEST}", False),
        (f"{OS}@{DIGEST}", f"{OS}@{DIGEST}", True),
        (f"{OS}@{DIGEST}", f"{OS}@{OTHER}", False),
        (f"{OS}@{DIGEST}", f"{OS}:1", False),
        (f"{OS}:1", "quay.io/acme/os:1", False),
        ("busybox:1", "docker.io/library/busybox:1", True),
    ],
)
def test_an_exact_reference_is_that_of_the_policy(
    asked: Reference | None, wanted: str, signed: str, *, verdict: bool
) -> None:
    exact = identity("exactReference", dockerReference=wanted)
    assert accepts(exact, asked, parse_named(signed)) is verdict


@pytest.mark.parametrize("asked", [None, image(f"{OS}:9"), image("busybox"), image(f"x@{DIGEST}")])
@pytest.mark.parametrize(
    ("wanted", "signed", "verdict"),
    [
        (OS, f"{OS}:1", True),
        (OS, f"{OS}@{DIGEST}", True),
        (OS, OS, True),
        (OS, "quay.io:8443/acme/os2:1", False),
        (OS, "quay.io:8443/acme:1", False),
        (OS, "quay.io/acme/os:1", False),
        ("busybox", "docker.io/library/busybox:1", True),
    ],
)
def test_an_exact_repository_is_that_of_the_policy(
    asked: Reference | None, wanted: str, signed: str, *, verdict: bool
) -> None:
    exact = identity("exactRepository", dockerRepository=wanted)
    assert accepts(exact, asked, parse_named(signed)) is verdict


@pytest.mark.parametrize(
    ("prefix", "by", "asked", "signed", "verdict"),
    [
        ("mirror:5000", "quay.io", "mirror:5000/acme/os:1", "quay.io/acme/os:1", True),
        ("mirror:5000", "quay.io", "mirror:5000/acme/os:1", "mirror:5000/acme/os:1", False),
        ("mirror:5000", "quay.io", "mirror:5000/acme/os:1", "quay.io/acme/os:2", False),
        ("mirror:5000", "quay.io", f"mirror:5000/acme/os@{DIGEST}", "quay.io/acme/os:2", True),
        ("mirror:5000", "quay.io", f"mirror:5000/acme/os@{DIGEST}", "quay.io/acme/os", False),
        ("mirror.io", "quay.io", "mirror.io:5000/acme/os:1", "quay.io:5000/acme/os:1", False),
        ("mirror.io", "quay.io", "mirror.io:5000/acme/os:1", "mirror.io:5000/acme/os:1", True),
        ("m.io/acme", "quay.io/x/y", "m.io/acme/os:1", "quay.io/x/y/os:1", True),
        ("m.io/acme", "quay.io", "m.io/acme/os:1", "quay.io/os:1", True),
        ("m.io/ac", "quay.io", "m.io/acme/os:1", "m.io/acme/os:1", True),
        ("m.io/ac", "quay.io", "m.io/acme/os:1", "quay.iome/os:1", False),
        ("m.io/acme/os", "quay.io/os", "m.io/acme/os:1", "quay.io/os:1", True),
        ("m.io/acme/os", "quay.io", "m.io/acme/os:1", "quay.io/os:1", False),
        ("m.io/acme/os", "quay.io/os", "m.io/acme/os2:1", "m.io/acme/os2:1", True),
        ("docker.io", "quay.io", "busybox:1", "quay.io/library/busybox:1", True),
        ("docker.io/library", "quay.io", "busybox:1", "quay.io/busybox:1", True),
        ("docker.io/library/busybox", "quay.io/b", "busybox:1", "quay.io/b:1", True),
        ("m.io", "docker.io/library", "m.io/busybox:1", "busybox:1", True),
        ("m.io", "docker.io", "m.io/busybox:1", "busybox:1", False),
        ("localhost", "quay.io", "localhost/os:1", "quay.io/os:1", True),
    ],
)
def test_a_prefix_is_replaced_where_a_component_ends(
    prefix: str, by: str, asked: str, signed: str, *, verdict: bool
) -> None:
    remap = identity("remapIdentity", prefix=prefix, signedPrefix=by)
    assert accepts(remap, image(asked), parse_named(signed)) is verdict


REMAP = identity("remapIdentity", prefix="m.io", signedPrefix="quay.io")


@pytest.mark.parametrize("prefix", ["m.io", "M.IO", "M.io/acme"])
def test_prefixes_are_compared_in_normal_form(prefix: str) -> None:
    signed_prefix = "Quay.IO" + prefix[4:]
    wanted = identity("remapIdentity", prefix=prefix, signedPrefix=signed_prefix)
    for asked in ("m.io/acme/os:1", "M.IO/acme/os:1"):
        assert accepts(wanted, image(asked), parse_named("quay.io/acme/os:1"))
        assert not accepts(wanted, image(asked), parse_named("m.io/acme/os:1"))
    assert not accepts(wanted, image("m.io:443/acme/os:1"), parse_named("quay.io/acme/os:1"))


@pytest.mark.parametrize("wanted", [EXACT, DEFAULT, REPOSITORY, REMAP])
def test_an_image_without_a_name_fits_none(wanted: SignedIdentity) -> None:
    assert not accepts(wanted, None, parse_named(f"{OS}:1"))
    assert not accepts_unnamed(wanted, None)


@pytest.mark.parametrize(
    ("wanted", "by_tag", "by_digest", "by_both"),
    [
        (EXACT, False, False, False),
        (DEFAULT, False, True, False),
        (REPOSITORY, True, True, True),
        (REMAP, False, True, False),
        (identity("exactReference", dockerReference=f"{OS}@{DIGEST}"), False, False, False),
        (identity("exactRepository", dockerRepository=OS), False, False, False),
    ],
)
def test_bytes_under_no_name_are_enough_by_digest_or_where_tags_do_not_matter(
    wanted: SignedIdentity, *, by_tag: bool, by_digest: bool, by_both: bool
) -> None:
    assert accepts_unnamed(wanted, image(f"{OS}:1")) is by_tag
    assert accepts_unnamed(wanted, image(f"{OS}@{DIGEST}")) is by_digest
    assert accepts_unnamed(wanted, image(f"{OS}:1@{DIGEST}")) is by_both


PREFIX = "expected host[:port][/path] as in full references, got "


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({}, "id.type: missing (expected a string)"),
        ({"type": "x"}, 'id.type: unknown identity "x"'),
        ({"type": "matchexact"}, 'id.type: unknown identity "matchexact"'),
        ({"type": "matchExact", "x": 1}, "id.x: unknown key"),
        ({"type": "matchExact", "dockerReference": f"{OS}:1"}, "id.dockerReference: unknown key"),
        ({"type": "matchRepository", "prefix": "x"}, "id.prefix: unknown key"),
        ({"type": "exactReference"}, "id.dockerReference: missing"),
        ({"type": "exactReference", "dockerReference": None}, "id.dockerReference: expected a val"),
        ({"type": "exactReference", "dockerReference": 5}, "id.dockerReference: expected a string"),
        (
            {"type": "exactReference", "dockerReference": OS},
            "id.dockerReference: expected a tag or",
        ),
        (
            {"type": "exactReference", "dockerReference": "A:1"},
            "id.dockerReference: the image name",
        ),
        ({"type": "exactReference", "dockerRepository": OS}, "id.dockerRepository: unknown key"),
        ({"type": "exactRepository"}, "id.dockerRepository: missing"),
        (
            {"type": "exactRepository", "dockerRepository": ""},
            "id.dockerRepository: the image name",
        ),
        (
            {"type": "exactRepository", "dockerRepository": f"{OS}:1"},
            "id.dockerRepository: has a tag or a digest",
        ),
        (
            {"type": "exactRepository", "dockerRepository": f"{OS}@{DIGEST}"},
            "id.dockerRepository: has a tag or a digest",
        ),
        ({"type": "remapIdentity", "prefix": "m.io"}, "id.signedPrefix: missing"),
        ({"type": "remapIdentity", "signedPrefix": "m.io"}, "id.prefix: missing"),
        *(
            (
                {"type": "remapIdentity", "prefix": prefix, "signedPrefix": "quay.io"},
                f"id.prefix: {PREFIX}",
            )
            for prefix in (
                *("", "busybox", "acme/os", "m.io/", "/m.io", "m.io/A", "m.io:x", "*.m.io"),
                *("m.io/os:1", f"m.io/os@{DIGEST}", "https://m.io"),
            )
        ),
        (
            {"type": "remapIdentity", "prefix": "m.io", "signedPrefix": "quay"},
            f'id.signedPrefix: {PREFIX}"quay"',
        ),
    ],
)
def test_an_identity_with_a_mistake_is_none_at_all(values: dict[str, object], words: str) -> None:
    with pytest.raises(FieldError) as raised:
        parse(Fields(values, "id"))
    assert str(raised.value).startswith(words)
