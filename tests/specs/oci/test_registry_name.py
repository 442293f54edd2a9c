"""The forms in which names of registries are compared."""

from __future__ import annotations

import random
import socket

import pytest

from imgproxy.specs.oci.reference import parse_reference
from imgproxy.specs.oci.registry_name import is_registry, normal, place, split

# Names, their normal form, and the place that they lead to over TLS, and without it.
FORMS = [
    ("quay.io", "quay.io", "quay.io", "quay.io"),
    ("Quay.IO", "quay.io", "quay.io", "quay.io"),
    ("QUAY.io/acme/os:V1", "quay.io/acme/os:V1", "quay.io/acme/os:V1", "quay.io/acme/os:V1"),
    # ports
    ("quay.io:443", "quay.io:443", "quay.io", "quay.io:443"),
    ("Quay.IO:443", "quay.io:443", "quay.io", "quay.io:443"),
    ("quay.io:0443", "quay.io:0443", "quay.io", "quay.io:443"),
    ("quay.io:00443/x:443", "quay.io:00443/x:443", "quay.io/x:443", "quay.io:443/x:443"),
    ("quay.io:4430", "quay.io:4430", "quay.io:4430", "quay.io:4430"),
    ("quay.io:80", "quay.io:80", "quay.io:80", "quay.io:80"),
    ("quay.io:08443", "quay.io:08443", "quay.io:8443", "quay.io:8443"),
    ("LOCALHOST:5000", "localhost:5000", "localhost:5000", "localhost:5000"),
    # Docker Hub, which is reached over TLS alone
    ("Docker.IO", "docker.io", "docker.io", "docker.io"),
    ("docker.io:443/x", "docker.io/x", "docker.io/x", "docker.io/x"),
    ("index.docker.io", "docker.io", "docker.io", "docker.io"),
    ("Index.docker.io:0443", "docker.io", "docker.io", "docker.io"),
    ("docker.io:5000", "docker.io:5000", "docker.io:5000", "docker.io:5000"),
    ("registry-1.docker.io", "registry-1.docker.io", "docker.io", "docker.io"),
    ("registry-1.Docker.io:443", "registry-1.docker.io:443", "docker.io", None),
    ("registry-2.docker.io", "registry-2.docker.io", "registry-2.docker.io", None),
    # addresses
    ("127.0.0.1:5000", "127.0.0.1:5000", "127.0.0.1:5000", None),
    ("127.1:5000", "127.1:5000", "127.0.0.1:5000", None),
    ("0X7F.1:5000", "0x7f.1:5000", "127.0.0.1:5000", None),
    ("0177.0.0.01", "0177.0.0.01", "127.0.0.1", None),
    ("2130706433:5000", "2130706433:5000", "127.0.0.1:5000", None),
    ("[::1]", "[::1]", "[::1]", None),
    ("[0:0:0:0:0:0:0:1]:443", "[0:0:0:0:0:0:0:1]:443", "[::1]", "[::1]:443"),
    ("[2001:DB8::01]:5000", "[2001:db8::01]:5000", "[2001:db8::1]:5000", None),
    ("[::FFFF:7f00:1]:5000", "[::ffff:7f00:1]:5000", "127.0.0.1:5000", None),
    # wildcards, whose domain has no port
    ("*.Example.COM", "*.example.com", "*.example.com", None),
    ("*.example.com:443", "*.example.com:443", "*.example.com:443", None),
    # what is no registry is none in any form
    *(
        (text, text, text, text)
        for text in (
            *("", "quay.io.", "QUAY.IO.:443", "quay.io:", "Quay.io:0", "Quay.IO:99999", ":443"),
            *("https://Quay.IO", "QUAY_1", "*", "*.", "[::g]:443", "[1.2.3.4]", "Busy:Box"),
            *("\u212aay.io", "quay.io\n", "08.1", "1.2.3.4.0", "256.1.1.1", "4294967296"),
        )
    ),
]


@pytest.mark.parametrize(("text", "name", "over_tls", "without"), FORMS)
def test_each_spelling_has_one_form(
    text: str, name: str, over_tls: str, without: str | None
) -> None:
    assert normal(text) == name
    assert place(text) == over_tls
    if without is not None:
        assert place(text, tls=False) == without


@pytest.mark.parametrize("form", [normal, place])
@pytest.mark.parametrize("text", [row[0] for row in FORMS])
def test_a_form_has_itself_as_form(form: object, text: str) -> None:
    assert callable(form)
    assert form(form(text)) == form(text)


@pytest.mark.parametrize("text", [row[0] for row in FORMS if is_registry(row[0])])
def test_the_forms_of_a_registry_are_registries(text: str) -> None:
    assert is_registry(normal(text))
    assert is_registry(place(text))


def test_references_have_the_normal_form() -> None:
    for text, name, _, _ in FORMS:
        if is_registry(text) and ("." in text or ":" in text):
            assert parse_reference(f"{text}/acme/os").registry == name


@pytest.mark.parametrize(
    ("registry", "parts"),
    [
        ("quay.io", ("quay.io", "")),
        ("quay.io:5000", ("quay.io", "5000")),
        ("[::1]", ("[::1]", "")),
        ("[::1]:5000", ("[::1]", "5000")),
    ],
)
def test_a_registry_is_a_host_and_a_port(registry: str, parts: tuple[str, str]) -> None:
    assert split(registry) == parts


def test_addresses_are_read_as_the_system_reads_them() -> None:
    """A notation that is dialled and not recognised would get around what forbids an address."""
    numbers = "0 1 00 08 255 256 0177 000377 0x7f 0x0 0xffffffff 65535 65536 16777216 4294967295"
    generator = random.Random(1)
    for _ in range(2000):
        parts = generator.choices(numbers.split(), k=generator.randint(1, 5))
        text = ".".join(parts)
        try:
            dialled = socket.inet_ntoa(socket.inet_aton(text))
        except OSError:
            dialled = text
        assert place(text) == dialled
