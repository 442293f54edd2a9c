from __future__ import annotations

import pytest

from imgproxy.config import certs
from imgproxy.config.certs import Certificates
from imgproxy.errors import ConfigurationError

D = "/etc/containers/certs.d/registry.example:5000"


@pytest.mark.parametrize(
    ("names", "authorities", "clients"),
    [
        ([], (), ()),
        (["README", "ca.pem", "ca.crt.bak", "client.cert.old", "crt", "key"], (), ()),
        (["ca.crt"], ("ca.crt",), ()),
        (["b.crt", "a.crt", "c.CRT"], ("a.crt", "b.crt"), ()),
        (["client.key", "client.cert"], (), (("client.cert", "client.key"),)),
        (
            ["b.key", "a.cert", "ca.crt", "b.cert", "a.key"],
            ("ca.crt",),
            (("a.cert", "a.key"), ("b.cert", "b.key")),
        ),
        # An authority's certificate is not a part of a client's pair.
        (["a.crt", "a.cert", "a.key"], ("a.crt",), (("a.cert", "a.key"),)),
        ([".crt", ".cert", ".key"], (".crt",), ((".cert", ".key"),)),
    ],
)
def test_names_say_what_the_files_are(
    names: list[str], authorities: tuple[str, ...], clients: tuple[tuple[str, str], ...]
) -> None:
    found = certs.choose(D, names)
    assert found == Certificates(
        tuple(f"{D}/{name}" for name in authorities),
        tuple((f"{D}/{cert}", f"{D}/{key}") for cert, key in clients),
    )
    used = [*authorities, *(name for pair in clients for name in pair)]
    assert found.paths == [f"{D}/{name}" for name in used]


@pytest.mark.parametrize(
    ("names", "there", "missing"),
    [
        (["a.cert"], "a.cert", "a.key"),
        (["a.key"], "a.key", "a.cert"),
        (["a.cert", "b.key"], "a.cert", "a.key"),
        (["a.cert", "a.key", "b.key", "ca.crt"], "b.key", "b.cert"),
        (["a.crt", "a.key"], "a.key", "a.cert"),
    ],
)
def test_half_of_a_client_certificate_is_an_error(
    names: list[str], there: str, missing: str
) -> None:
    with pytest.raises(ConfigurationError) as broken:
        certs.choose(D, names)
    message = broken.value.message
    assert f"{D}: a client certificate has two files" in message
    assert f"there is {there} without {missing}" in message
    assert ("a name in .crt" in message) == there.endswith(".cert")
    assert broken.value.detail == {"file": f"{D}/{there}"}
