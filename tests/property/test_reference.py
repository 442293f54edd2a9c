"""Names of images: normalising is idempotent, and only a refusal is raised."""

from __future__ import annotations

import string

from hypothesis import assume, given
from hypothesis import strategies as st
from support.strategies import attempt

from imgproxy.errors import BadRequestError
from imgproxy.specs.oci import registry_name
from imgproxy.specs.oci.distribution import ManifestPath, registry_url
from imgproxy.specs.oci.reference import (
    DirectoryName,
    DockerArchiveName,
    LayoutName,
    LocalName,
    PathName,
    Reference,
    parse_image,
    parse_reference,
)

ALPHANUMERIC = string.ascii_lowercase + string.digits
LABELS = st.from_regex(r"[a-zA-Z0-9]([a-zA-Z0-9-]{0,6}[a-zA-Z0-9])?", fullmatch=True)
HOSTS = (
    st.lists(LABELS, min_size=2, max_size=4).map(".".join)
    | st.just("localhost")
    | st.just("[::1]")
    | st.lists(st.integers(0, 0xFFFF).map("{:x}".format), min_size=8, max_size=8).map(
        lambda groups: f"[{':'.join(groups)}]"
    )
)
PORTS = st.just("") | st.integers(1, 65535).map(":{}".format)
COMPONENTS = st.from_regex(r"[a-z0-9]{1,5}((\.|_|__|-{1,3})[a-z0-9]{1,5}){0,2}", fullmatch=True)
REPOSITORIES = st.lists(COMPONENTS, min_size=1, max_size=4).map("/".join)
ON_DOCKER_HUB = st.builds("acme/{}".format, REPOSITORIES) | COMPONENTS
TAGS = st.just("") | st.from_regex(r":[A-Za-z0-9_][A-Za-z0-9_.-]{0,20}", fullmatch=True)
DIGESTS = st.just("") | st.text("0123456789abcdef", min_size=64, max_size=64).map(
    "@sha256:{}".format
)

WELL_FORMED = st.builds(
    lambda host, port, repository, tag, digest: f"{host}{port}/{repository}{tag}{digest}",
    HOSTS,
    PORTS,
    REPOSITORIES,
    TAGS,
    DIGESTS,
)
PIECES = [
    *("docker:", "docker://", "oci:", "dir:", "//", "/", ":", "@", ".", "..", "-", "_", "[", "]"),
    *("a", "A", "0", "::1", "localhost", "a.b", "sha256:", "f" * 64, "1" * 5000, "\0", "\n", "ä"),
]
NONSENSE = st.text() | st.lists(st.sampled_from(PIECES), max_size=8).map("".join)


@given(WELL_FORMED)
def test_a_well_formed_reference_is_kept(text: str) -> None:
    reference = parse_reference(text)
    tail = "" if reference.digest or ":" in text.rpartition("/")[2] else ":latest"
    assume(reference.registry != "docker.io")
    registry, slash, rest = text.partition("/")
    assert str(reference) == registry_name.normal(registry) + slash + rest + tail


@given(WELL_FORMED | st.builds("{}{}{}".format, ON_DOCKER_HUB, TAGS, DIGESTS))
def test_normalising_is_a_fixpoint(text: str) -> None:
    reference = parse_reference(text)
    assert parse_reference(str(reference)) == reference
    assert parse_image(str(reference)) == reference
    assert parse_image(f"docker://{text}") == reference


@given(WELL_FORMED | ON_DOCKER_HUB, st.sampled_from(["http", "https"]))
def test_every_reference_has_a_url(text: str, scheme: str) -> None:
    reference = parse_reference(text)
    path = ManifestPath(reference.manifest)
    url = registry_url(scheme, reference.registry, reference.repository, path)
    assert url.target == f"/v2/{reference.repository}/manifests/{reference.manifest}"


@given(NONSENSE)
def test_text_is_a_name_or_a_refusal_that_can_be_shown(text: str) -> None:
    name = attempt(parse_image, text, expected=BadRequestError)
    if isinstance(name, BadRequestError):
        assert name.code == "NAME_INVALID"
        assert not {"\n", "\r", "\0", "\x1b"} & set(name.message)
        assert len(name.message) < 2000
    elif not isinstance(name, PathName):
        assert parse_image(str(name)) == name


STEPS = st.sampled_from(["a", "a.b", "a_b", "..", ".", "", "a..b", "%2f", "\\", "~", "A", "a:v1"])


@given(st.lists(STEPS, min_size=1, max_size=4).map("/".join), st.sampled_from(["", "quay.io/"]))
def test_no_reference_leads_out_of_its_repository(path: str, host: str) -> None:
    reference = attempt(parse_reference, f"{host}{path}", expected=BadRequestError)
    if isinstance(reference, Reference):
        assert not {"", ".", ".."} & set(reference.repository.split("/"))
        assert set(reference.repository) <= set(f"{ALPHANUMERIC}._-/")
        assert "/" not in (reference.tag or "")


REF_NAMES = st.from_regex(r"[A-Za-z0-9]+(([-._:@/+]|--)[A-Za-z0-9]+){0,3}", fullmatch=True)
POSITIONS = st.integers(0, 999_999_999)
PATHS = st.text(st.characters(exclude_characters=":\0"), min_size=1)
LAYOUTS = st.sampled_from(["oci", "oci-archive"])
TRANSPORTS = LAYOUTS | st.sampled_from(["docker-archive", "dir"])
TAGGED = st.builds("{}{}".format, ON_DOCKER_HUB, TAGS).map(parse_reference)


@given(
    st.builds(LayoutName, LAYOUTS, PATHS, REF_NAMES, st.none())
    | st.builds(LayoutName, LAYOUTS, PATHS, st.none(), POSITIONS)
    | st.builds(LayoutName, LAYOUTS, PATHS, st.none(), st.none())
    | st.builds(DockerArchiveName, PATHS, TAGGED, st.none())
    | st.builds(DockerArchiveName, PATHS, st.none(), POSITIONS)
    | st.builds(DockerArchiveName, PATHS, st.none(), st.none())
    | st.builds(DirectoryName, PATHS)
)
def test_a_local_name_is_read_as_it_is_written(name: LocalName) -> None:
    assert parse_image(str(name)) == name


@given(PATHS, REF_NAMES | POSITIONS.map("@{}".format) | st.text(), TRANSPORTS.filter("dir".__ne__))
def test_a_bare_path_means_what_the_transport_s_name_would(
    path: str, tail: str, transport: str
) -> None:
    named = attempt(parse_image, f"{transport}:/{path}:{tail}", expected=BadRequestError)
    bare = parse_image(f"/{path}:{tail}")
    assert isinstance(bare, PathName)
    found = attempt(bare.of, transport, expected=BadRequestError)
    if isinstance(named, BadRequestError):
        assert isinstance(found, BadRequestError)
    else:
        assert found == named
