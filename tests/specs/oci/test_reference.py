"""Names of images: the table in imgproxy(1), IMAGES; containers-transports(5) for the grammar."""

from __future__ import annotations

import pytest

from imgproxy.errors import BadRequestError
from imgproxy.specs.oci import reference as references
from imgproxy.specs.oci.digest import Digest
from imgproxy.specs.oci.reference import (
    DirectoryName,
    DockerArchiveName,
    LayoutName,
    LocalName,
    PathName,
    Reference,
    ShortName,
    parse_image,
    parse_reference,
)

HEX = "0123456789abcdef" * 4
SHA256 = f"sha256:{HEX}"
DIGEST = Digest("sha256", HEX)


def refusal(text: str) -> str:
    with pytest.raises(BadRequestError) as caught:
        parse_image(text)
    assert (caught.value.status, caught.value.code) == (400, "NAME_INVALID")
    assert caught.value.message.isprintable()
    return caught.value.message


# --- references into registries ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "registry", "repository"),
    [
        # Docker Hub, normalised
        ("busybox", "docker.io", "library/busybox"),
        ("acme/os", "docker.io", "acme/os"),
        ("docker.io/busybox", "docker.io", "library/busybox"),
        ("docker.io/library/busybox", "docker.io", "library/busybox"),
        ("docker.io/acme/os", "docker.io", "acme/os"),
        ("index.docker.io/busybox", "docker.io", "library/busybox"),
        ("index.docker.io/acme/os", "docker.io", "acme/os"),
        ("registry-1.docker.io/acme/os", "registry-1.docker.io", "acme/os"),
        ("docker.io", "docker.io", "library/docker.io"),
        ("library/library", "docker.io", "library/library"),
        # first components that are a host, and ones that are not
        ("localhost/os", "localhost", "os"),
        ("localhost", "docker.io", "library/localhost"),
        ("quay.io/acme/os", "quay.io", "acme/os"),
        ("host:1/os", "host:1", "os"),
        ("host:65535/os", "host:65535", "os"),
        ("localhost:5000/a/b/c/d", "localhost:5000", "a/b/c/d"),
        ("host/os", "docker.io", "host/os"),
        ("127.0.0.1:5000/os", "127.0.0.1:5000", "os"),
        ("[::1]/os", "[::1]", "os"),
        ("[2001:db8::1]:5000/os", "[2001:db8::1]:5000", "os"),
        ("Quay.IO/os", "quay.io", "os"),
        ("Quay.IO:443/os", "quay.io:443", "os"),
        ("LocalHost:5000/os", "localhost:5000", "os"),
        ("Docker.IO/busybox", "docker.io", "library/busybox"),
        ("docker.io:443/busybox", "docker.io", "library/busybox"),
        ("Index.Docker.IO/busybox", "docker.io", "library/busybox"),
        ("a-b.c--d.e0/os", "a-b.c--d.e0", "os"),
        pytest.param("a" * 63 + ".b/os", "a" * 63 + ".b", "os", id="longest-label"),
        # components of a repository
        ("quay.io/a.b_c__d-e---f/0", "quay.io", "a.b_c__d-e---f/0"),
        pytest.param("q.io/" + "a" * 250, "q.io", "a" * 250, id="longest-name"),
        pytest.param(HEX[:63], "docker.io", f"library/{HEX[:63]}", id="63-digits"),
        pytest.param(f"acme/{HEX}", "docker.io", f"acme/{HEX}", id="64-digits-below-a-name"),
    ],
)
def test_a_name_is_a_registry_and_a_repository(text: str, registry: str, repository: str) -> None:
    assert parse_image(f"docker://{text}") == Reference(registry, repository, "latest", None)


@pytest.mark.parametrize(
    ("tail", "tag", "digest", "asked_for"),
    [
        ("", "latest", None, "latest"),
        (":v1", "v1", None, "v1"),
        (":_A.b-c_", "_A.b-c_", None, "_A.b-c_"),
        (":5000", "5000", None, "5000"),
        pytest.param(":" + "a" * 128, "a" * 128, None, "a" * 128, id="longest-tag"),
        pytest.param(f":{HEX}", HEX, None, HEX, id="tag-like-a-digest"),
        pytest.param(f"@{SHA256}", None, DIGEST, SHA256, id="digest"),
        pytest.param(f":v1@{SHA256}", "v1", DIGEST, SHA256, id="digest-decides"),
        pytest.param("@unheard-of:x", None, Digest("unheard-of", "x"), "unheard-of:x", id="other"),
    ],
)
@pytest.mark.parametrize("name", ["quay.io/acme/os", "[::1]:5000/os"])
def test_a_tag_and_a_digest_say_which(
    name: str, tail: str, tag: str | None, digest: Digest | None, asked_for: str
) -> None:
    reference = parse_reference(f"{name}{tail}")
    assert (reference.name, reference.tag, reference.digest) == (name, tag, digest)
    assert reference.manifest == asked_for
    assert str(reference) == f"{name}{tail or ':latest'}"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", 'the repository "library/" is malformed'),
        ("/os", 'the repository "/os" is malformed'),
        ("quay.io/", 'the repository "" is malformed'),
        ("docker.io/", 'the repository "library/" is malformed'),
        ("quay.io/a//b", 'the repository "a//b" is malformed'),
        ("quay.io/a/", 'the repository "a/" is malformed'),
        ("quay.io/../etc", 'the repository "../etc" is malformed'),
        ("quay.io/a/../b", 'the repository "a/../b" is malformed'),
        ("quay.io/.a", 'the repository ".a" is malformed'),
        ("quay.io/a.", 'the repository "a." is malformed'),
        ("quay.io/a..b", 'the repository "a..b" is malformed'),
        ("quay.io/a___b", 'the repository "a___b" is malformed'),
        ("quay.io/a%2fb", 'the repository "a%2fb" is malformed'),
        ("quay.io/a\\b", 'the repository "a\\b" is malformed'),
        ("quay.io/a b", 'the repository "a b" is malformed'),
        ("quay.io/a\x1b[31m", 'the repository "a [31m" is malformed'),
        ("quay.io/\u00e4", 'the repository "\u00e4" is malformed'),
        ("quay.io/a\uff0fb", 'the repository "a\uff0fb" is malformed'),
        ("quay.io/a\u2024\u2024b", 'the repository "a\u2024\u2024b" is malformed'),
        ("BusyBox", "the repository must be lower-case"),
        ("quay.io/Acme/os", "the repository must be lower-case"),
        ("Host/os", "the repository must be lower-case"),
        pytest.param(HEX, "64 hexadecimal digits are an image's ID, not a name", id="id"),
        pytest.param(
            "q.io/" + "a" * 251, "the name is longer than 255 characters", id="name-too-long"
        ),
        ("os:", 'the tag "" is malformed'),
        ("os:-a", 'the tag "-a" is malformed'),
        ("os:a:b", 'the tag "a:b" is malformed'),
        ("os:\u00e4", 'the tag "\u00e4" is malformed'),
        ("quay.io/os:a/b", 'the tag "a/b" is malformed'),
        pytest.param("os:" + "a" * 129, f'the tag "{"a" * 129}" is malformed', id="tag-too-long"),
        ("os@", '"" is not a digest (algorithm:encoded)'),
        ("os@v1", '"v1" is not a digest (algorithm:encoded)'),
        ("os@sha256:ab", '"sha256:ab": sha256 has 64 lower-case hex digits'),
        pytest.param(
            f"os@{SHA256}@{SHA256}",
            f'"{SHA256}@{SHA256}" is not a digest (algorithm:encoded)',
            id="two-digests",
        ),
        pytest.param(
            f"os@sha256:{HEX.upper()}",
            f'"sha256:{HEX.upper()}": sha256 has 64 lower-case hex digits',
            id="upper-case-digest",
        ),
        ("name:v1/os", 'the registry "name:v1" is malformed'),
        ("host:/os", 'the registry "host:" is malformed'),
        ("host:0/os", 'the registry "host:0" is malformed'),
        ("host:65536/os", 'the registry "host:65536" is malformed'),
        ("host:+1/os", 'the registry "host:+1" is malformed'),
        ("host:1:2/os", 'the registry "host:1:2" is malformed'),
        pytest.param(
            "host:" + "1" * 5000 + "/os",
            f'the registry "host:{"1" * 251}…" is malformed',
            id="port-that-no-int-takes",
        ),
        ("-a.b/os", 'the registry "-a.b" is malformed'),
        ("a-.b/os", 'the registry "a-.b" is malformed'),
        ("a..b/os", 'the registry "a..b" is malformed'),
        (".a/os", 'the registry ".a" is malformed'),
        ("a./os", 'the registry "a." is malformed'),
        ("quay.io./os", 'the registry "quay.io." is malformed'),
        ("a_b.c/os", 'the registry "a_b.c" is malformed'),
        ("\u00e4.b/os", 'the registry "\u00e4.b" is malformed'),
        pytest.param(
            "a" * 64 + ".b/os", f'the registry "{"a" * 64}.b" is malformed', id="label-too-long"
        ),
        ("::1/os", 'the registry "::1" is malformed'),
        ("[::1/os", 'the registry "[::1" is malformed'),
        ("[]:1/os", 'the registry "[]:1" is malformed'),
        ("[::::]/os", 'the registry "[::::]" is malformed'),
        ("[1:2]/os", 'the registry "[1:2]" is malformed'),
        ("[fe80::1%25eth0]/os", 'the registry "[fe80::1%25eth0]" is malformed'),
        ("[::1]x:1/os", 'the registry "[::1]x:1" is malformed'),
    ],
)
def test_a_malformed_reference_is_told_why(text: str, reason: str) -> None:
    assert refusal(f"docker://{text}").endswith(f'": {reason}')


def test_a_refusal_quotes_the_name() -> None:
    assert refusal("docker://os:\x1b") == 'the image name "os:": the tag "" is malformed'


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("docker://u:hunter2@quay.io/os", "…@quay.io/os"),
        ("u:hunter2@quay.io/os:1", "…@quay.io/os:1"),
        ("hunter2@quay.io/os", "…@quay.io/os"),
        ("u:hunter2@quay.io", "…@quay.io"),
        ("docker:u:hunter2@quay.io/os", "…@quay.io/os"),
        ("https://u:hunter2@quay.io/os", "…@quay.io/os"),
        ("u:hunt@er2/hunter2@quay.io/os", "…@quay.io/os"),
        (f"u:hunter2@quay.io/os@{SHA256}", f"…@quay.io/os@{SHA256}"),
        ("u:hunter2%@host:5000", "…@host:5000"),
    ],
)
def test_a_user_and_a_password_in_a_name_are_not_shown(name: str, shown: str) -> None:
    """Other programs take them there; what is written by habit must not get into a log."""
    message = refusal(name)
    assert message.startswith(f'the image name "{shown}": expected [HOST')
    assert "--creds" in message
    assert "er2" not in message


@pytest.mark.parametrize(
    "text", ["/a@b.c/d", "./a@b/c", "oci:/a@b/c", "ostree:os@/repo", "os@v1", f"a.b/os:1@{SHA256}"]
)
def test_what_is_no_password_is_shown(text: str) -> None:
    assert references.shown(text) == text


# --- the IMAGE argument -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "text", ["quay.io/acme/os", "quay.io/acme/os:v1", "localhost/os", "localhost:5000/os"]
)
def test_a_name_with_a_registry_needs_no_transport(text: str) -> None:
    assert parse_image(text) == parse_reference(text)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("dir", ("dir", None, None)),
        ("/a/b", ("/a/b", None, None)),
        ("/a:", ("/a", None, None)),
        ("/a:v1", ("/a", "v1", None)),
        ("/a:busybox:latest", ("/a", "busybox:latest", None)),
        ("/a:quay.io:5000/b/c@d+e--f_g", ("/a", "quay.io:5000/b/c@d+e--f_g", None)),
        ("/a:@0", ("/a", None, 0)),
        ("/a:@12", ("/a", None, 12)),
        ("/a:notlatest@1", ("/a", "notlatest@1", None)),
        ("5000/a", ("5000/a", None, None)),
    ],
)
@pytest.mark.parametrize("transport", ["oci", "oci-archive"])
def test_a_layout_is_named_by_path_and_reference_or_position(
    transport: str, text: str, name: tuple[str, str | None, int | None]
) -> None:
    assert parse_image(f"{transport}:{text}") == LayoutName(transport, *name)


BUSYBOX = Reference("docker.io", "library/busybox", "latest", None)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("docker-archive:a.tar", DockerArchiveName("a.tar")),
        ("docker-archive:/a/b.tar", DockerArchiveName("/a/b.tar")),
        ("docker-archive:/a:", DockerArchiveName("/a")),
        ("docker-archive:/a:busybox", DockerArchiveName("/a", BUSYBOX)),
        ("docker-archive:/a:docker.io/library/busybox:latest", DockerArchiveName("/a", BUSYBOX)),
        (
            "docker-archive:/a:localhost:5000/x:1",
            DockerArchiveName("/a", Reference("localhost:5000", "x", "1", None)),
        ),
        ("docker-archive:/a:@0", DockerArchiveName("/a", position=0)),
        ("docker-archive:/a:@999999999", DockerArchiveName("/a", position=999_999_999)),
    ],
)
def test_a_docker_archive_s_image_is_named_by_tag_or_position(
    text: str, name: DockerArchiveName
) -> None:
    assert parse_image(text) == name


@pytest.mark.parametrize(
    "path", ["a", "/a/b", "/a b/", "/", "/a:", ":", "/a:@0", "localhost:5000/acme/app:1.36", "-"]
)
def test_a_directory_is_named_by_all_of_the_rest(path: str) -> None:
    """Colons too, which `skopeo sync` writes in names of directories."""
    assert parse_image(f"dir:{path}") == DirectoryName(path)


@pytest.mark.parametrize("transport", ["docker-archive", "oci-archive"])
@pytest.mark.parametrize("tail", ["", ":@1"])
def test_an_archive_may_come_through_standard_input(transport: str, tail: str) -> None:
    assert parse_image(f"{transport}:-{tail}") == parse_image(f"{transport}:/dev/stdin{tail}")


@pytest.mark.parametrize("text", ["oci:-", "oci:-:v1", "docker-archive:./-", "oci-archive:-x"])
def test_what_is_no_archive_on_standard_input_is_a_path(text: str) -> None:
    assert "/dev/stdin" not in str(parse_image(text))


@pytest.mark.parametrize(
    "text",
    [
        *("oci:dir", "oci:/a:v1", "oci:/a:@0", "oci-archive:a", "oci-archive:/a:v1"),
        *("oci-archive:/a:@0", "docker-archive:/a", "docker-archive:/a:quay.io/b/c:1"),
        *("docker-archive:/a:@0", "docker-archive:/a:docker.io/library/busybox:latest", "dir:/a"),
    ],
)
def test_a_local_name_is_written_as_it_is_read(text: str) -> None:
    assert str(parse_image(text)) == text


@pytest.mark.parametrize(
    ("text", "name", "layout"),
    [
        ("/a", PathName("/a", ""), LayoutName("oci", "/a")),
        ("./a", PathName("./a", ""), LayoutName("oci", "./a")),
        ("../a", PathName("../a", ""), LayoutName("oci", "../a")),
        ("/a:", PathName("/a", ""), LayoutName("oci", "/a")),
        ("/a:v1:x", PathName("/a", "v1:x"), LayoutName("oci", "/a", "v1:x")),
        ("/a:@3", PathName("/a", "@3"), LayoutName("oci", "/a", position=3)),
        ("./oci:b", PathName("./oci", "b"), LayoutName("oci", "./oci", "b")),
    ],
)
def test_a_path_says_by_its_content_what_it_is(
    text: str, name: PathName, layout: LayoutName
) -> None:
    assert parse_image(text) == name
    assert name.of("oci") == layout
    assert name.of("oci-archive") == layout._replace(transport="oci-archive")


@pytest.mark.parametrize(
    ("text", "transport", "name"),
    [
        ("/a", "docker-archive", DockerArchiveName("/a")),
        ("/a:busybox", "docker-archive", DockerArchiveName("/a", BUSYBOX)),
        ("/a:@3", "docker-archive", DockerArchiveName("/a", position=3)),
        ("/a", "dir", DirectoryName("/a")),
    ],
)
def test_what_is_found_at_a_path_says_how_the_rest_is_read(
    text: str, transport: str, name: LocalName
) -> None:
    path = parse_image(text)
    assert isinstance(path, PathName)
    assert path.of(transport) == name


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("docker:busybox", "expected docker://NAME"),
        ("docker:/busybox", "expected docker://NAME"),
        ("oci:", "expected oci:DIR, oci:DIR:REF or oci:DIR:@N"),
        ("oci::v1", "expected oci:DIR, oci:DIR:REF or oci:DIR:@N"),
        ("oci:a\0b", "expected oci:DIR, oci:DIR:REF or oci:DIR:@N"),
        ("oci:/a:@-5", '"@-5" is neither a reference nor a position (@N)'),
        ("oci:/a:@x", '"@x" is neither a reference nor a position (@N)'),
        ("oci:/a:@", '"@" is neither a reference nor a position (@N)'),
        ("oci:/a:@\uff11", '"@\uff11" is neither a reference nor a position (@N)'),
        ("oci:/a:@1000000000", '"@1000000000" is neither a reference nor a position (@N)'),
        ("oci:/a:-b", '"-b" is neither a reference nor a position (@N)'),
        ("oci:/a:b-", '"b-" is neither a reference nor a position (@N)'),
        ("oci:/a:b c", '"b c" is neither a reference nor a position (@N)'),
        *(
            (
                f"oci-archive:{tail}",
                "expected oci-archive:FILE, oci-archive:FILE:REF or oci-archive:FILE:@N",
            )
            for tail in ("", ":v1", "a\0b")
        ),
        ("oci-archive:/a:@x", '"@x" is neither a reference nor a position (@N)'),
        *(
            (
                f"docker-archive:{tail}",
                "expected docker-archive:FILE, docker-archive:FILE:NAME[:TAG] or"
                " docker-archive:FILE:@N",
            )
            for tail in ("", ":v1", "a\0b")
        ),
        (
            f"docker-archive:/a:os@{SHA256}",
            "images in a Docker archive have names and positions, no digests",
        ),
        *((f"dir:{tail}", "expected dir:DIR") for tail in ("", "a\0b")),
        (
            "containers-storage:os",
            "the transport containers-storage: is not supported; push the image from there to a"
            " registry, or save it with `podman save --format oci-dir`",
        ),
        (
            "docker-daemon:os:v1",
            "the transport docker-daemon: is not supported; save the image with `docker save`",
        ),
        (
            "sif:a.sif",
            "the transport sif: is not supported; convert it with `skopeo copy`",
        ),
        (
            "tarball:a.tar",
            "the transport tarball: is not supported; convert it with `skopeo copy`",
        ),
        (
            "ostree:os@/repo",
            "the transport ostree: is not supported; export it with `ostree container encapsulate`",
        ),
        (
            "atomic:os",
            "the transport atomic: is not supported; name the registry behind it with docker://",
        ),
        ("nosuch://os", 'unknown transport "nosuch"'),
        ("https://quay.io/os", 'unknown transport "https"'),
        ("oci+docker://os", 'unknown transport "oci+docker"'),
        ("", 'the repository "library/" is malformed'),
        ("busybox:", 'the tag "" is malformed'),
        ("UPPER/case", "the repository must be lower-case"),
        ("Nosuch://os", 'the registry "Nosuch:" is malformed'),
    ],
)
def test_what_names_no_image_is_told_why(text: str, reason: str) -> None:
    assert refusal(text).endswith(f'": {reason}')


@pytest.mark.parametrize(
    "text", ["busybox", "busybox:v1", "acme/os", f"acme/os@{SHA256}", "docker.io", "a.b:1"]
)
def test_a_name_without_a_registry_is_short(text: str) -> None:
    name = parse_image(text)
    assert name == ShortName(text)
    assert str(name) == text


@pytest.mark.parametrize("tail", ["v1", "@0", "a:b"])
def test_a_path_with_a_tail_is_no_directory_of_skopeo_s(tail: str) -> None:
    name = parse_image(f"./a:{tail}")
    assert isinstance(name, PathName)
    with pytest.raises(BadRequestError) as caught:
        name.of("dir")
    assert caught.value.code == "NAME_INVALID"
    assert caught.value.message == (
        f'the image name "./a:{tail}": ./a is a dir:, which has one image; expected ./a alone'
    )


def test_a_path_s_tail_is_refused_when_it_is_read() -> None:
    name = parse_image("/a:@x")
    assert isinstance(name, PathName)
    with pytest.raises(BadRequestError, match=r'"@x" is neither a reference nor a position'):
        name.of("oci")


@pytest.mark.parametrize(
    ("tail", "transport", "reason"),
    [
        *(
            (f":{tail}", "docker-archive", f'"{tail}" is neither NAME[:TAG] nor a position (@N)')
            for tail in ("UPPER/case", "@1000000000", "@x", "@", "os:", f"os@{SHA256[:-1]}")
        ),
        (f":os@{SHA256}", "docker-archive", "names and positions, no digests"),
        (":b c", "oci-archive", "neither a reference nor a position"),
    ],
)
def test_a_tail_is_read_by_the_grammar_of_what_was_found(
    tail: str, transport: str, reason: str
) -> None:
    name = parse_image(f"/a{tail}")
    assert isinstance(name, PathName)
    with pytest.raises(BadRequestError) as caught:
        name.of(transport)
    assert caught.value.code == "NAME_INVALID"
    assert reason in caught.value.message
    assert f'"{transport}:/a{tail}"' in caught.value.message


@pytest.mark.parametrize("ref", ["[::1]:5000/os:1", "quay.io/a__b/c---d:1-", "os:_1..2"])
def test_a_layout_may_call_an_image_as_a_registry_does(ref: str) -> None:
    name = parse_image(f"oci:/srv/store:{ref}")
    assert isinstance(name, LayoutName)
    assert (name.path, name.ref_name) == ("/srv/store", ref)
