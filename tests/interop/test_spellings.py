"""Spellings of a registry, and keys of the policy, in front of a real registry.

skopeo is given the same files; where it decides otherwise, a row says so.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from support import skopeo
from support.home import REGISTRIES_CONF, table
from support.servers import skopeo_copy

if TYPE_CHECKING:
    from interop.conftest import Pull, Together
    from support.filled import Registry
    from support.home import Home

ACCEPT = [{"type": "insecureAcceptAnything"}]
REJECT = [{"type": "reject"}]


class Row(NamedTuple):
    """Scopes with what they require, and images at PORT: whether they are served.

    `skopeo` is whether it serves them, None where it does the same.
    """

    scopes: dict[str, Any]
    images: list[str]
    served: bool
    skopeo: bool | None = None
    default: Any = ACCEPT

    def write(self, home: Home, port: str) -> str:
        """Write the policy; return its path."""
        scopes = {name.replace("PORT", port): value for name, value in self.scopes.items()}
        document = {"default": self.default, "transports": {"docker": scopes}}
        return str(home.write("policy.json", document))


SAME = ["localhost:PORT", "127.0.0.1:PORT"]
OTHER = ["LocalHost:PORT", "LOCALHOST:PORT"]
POLICIES = {
    "as written": Row(dict.fromkeys(SAME, REJECT), SAME, served=False),
    "a port of its own": Row({"localhost": REJECT, "localhost:443": REJECT}, SAME, served=True),
    "upper case": Row(dict.fromkeys(SAME, REJECT), OTHER, served=False, skopeo=True),
    "upper case in the file": Row({"LOCALHOST:PORT": REJECT}, SAME[:1], served=False, skopeo=True),
    "a namespace": Row({"LocalHost:PORT/images": REJECT}, SAME[:1], served=False, skopeo=True),
    "accepted": Row(
        {"LocalHost:PORT": ACCEPT}, SAME[:1], served=True, skopeo=False, default=REJECT
    ),
    "both": Row(
        {"localhost:PORT": ACCEPT, "LOCALHOST:PORT": REJECT}, SAME[:1], served=False, skopeo=True
    ),
    "an end that matches nothing": Row({"localhost:PORT/": REJECT}, SAME, served=True),
    "a scheme that matches nothing": Row(
        {"https://localhost:PORT": ACCEPT}, SAME, served=False, default=REJECT
    ),
}


def skopeo_accepts(image: str, home: Home, policy: str) -> bool:
    destination = home.path / "copy"
    destination.mkdir(exist_ok=True)
    said = skopeo.verdict(image, destination, f"--policy={policy}", env=home.environment())
    assert not said or "rejected by policy" in said, said
    return not said


@pytest.mark.slow
def test_no_spelling_evades_the_policy(together: Together, registry: Registry) -> None:
    port = registry.address.rpartition(":")[2]

    def check(row: Row, pull: Pull, home: Home) -> None:
        policy = row.write(home, port)
        for written in row.images:
            image = f"docker://{written.replace('PORT', port)}/images/all:latest"
            child = pull(image, f"--policy={policy}", "--tls-verify=false", policy=None)
            status = child.client.get("/manifest").status
            assert child.finish() == 0
            assert status == (200 if row.served else 403), image
            expected = row.served if row.skopeo is None else row.skopeo
            assert skopeo_accepts(image, home, policy) is expected, image

    together(POLICIES, check)


@pytest.mark.slow
def test_no_spelling_reaches_a_registry_that_is_rejected(home: Home, pull: Pull) -> None:
    """Port 443 over TLS is the registry itself; nothing is asked of it, in this test as well."""
    scopes = {"docker": {"quay.io": REJECT}}
    policy = home.write("policy.json", {"default": ACCEPT, "transports": scopes})
    for host in ("quay.io", "Quay.IO", "quay.io:443", "Quay.IO:443", "QUAY.io:0443"):
        child = pull(f"docker://{host}/acme/os", f"--policy={policy}", policy=None)
        reply = child.client.get("/manifest")
        assert (reply.status, reply.code) == (403, "DENIED"), reply.body
        assert f"{policy} (transports.docker.quay.io)" in reply.message
        assert child.finish() == 0


BLOCKED = ["localhost:PORT", "LOCALHOST:PORT", "LocalHost:PORT/images"]


def test_no_spelling_evades_a_block(registry: Registry, pull: Pull, home: Home) -> None:
    port = registry.address.rpartition(":")[2]
    for location in BLOCKED:
        text = table("", location, "insecure = true", "blocked = true")
        conf = home.write(REGISTRIES_CONF, text.replace("PORT", port))
        for host in BLOCKED[:-1]:
            image = f"docker://{host.replace('PORT', port)}/images/all:latest"
            child = pull(image)
            reply = child.client.get("/manifest")
            assert (reply.status, reply.code) == (403, "DENIED"), reply.body
            assert f"registry[0] of {conf}" in reply.message
            assert child.finish() == 0
        if location == BLOCKED[0]:  # the spelling that skopeo compares
            image = image.replace(host.replace("PORT", port), location.replace("PORT", port))
            attempt = skopeo.inspect(image.removeprefix("docker://"), home.path)
            assert "is blocked in" in attempt.failure


def test_keys_that_match_nothing_are_told_once(registry: Registry, pull: Pull, home: Home) -> None:
    """Skopeo passes over them without a word, and decides as we do."""
    name = f"{registry.address}/images"
    scopes = {f"https://{name}": REJECT, f"{name}/": REJECT, f"{name}/ALL": REJECT}
    transports = {"docker": scopes, "Docker": {"": REJECT}}
    policy = home.write("policy.json", {"default": ACCEPT, "transports": transports})
    options = (f"--policy={policy}", "--tls-verify=false")
    child = pull(registry.name(":latest"), *options, sockets=2, policy=None)
    for client in child.clients * 2:
        assert client.get("/manifest").status == 200
    assert child.finish() == 0
    lines = child.stderr.splitlines()
    assert len(lines) == 4, lines
    assert all(line.startswith(f"imgproxy: warning: {policy}: transports.") for line in lines)
    for written in (name, f"{name}/all", "docker"):
        assert any(f'write "{written}"' in line for line in lines)
    assert skopeo_accepts(registry.name(":latest"), home, str(policy))


@pytest.mark.slow
def test_a_refusal_names_the_key_that_would_permit_it(
    registry: Registry, pull: Pull, home: Home
) -> None:
    archive = home.path / "image.tar"
    home.path.mkdir()
    skopeo_copy(registry.name(":docker"), f"docker-archive:{archive}", "--src-tls-verify=false")
    transports: dict[str, Any] = {}
    policy = home.write("policy.json", {"default": REJECT, "transports": transports})
    child = pull(str(archive), f"--policy={policy}", policy=None)
    reply = child.client.get("/manifest")
    assert reply.status == 403
    assert "(default), since transports.docker-archive has no scope for it" in reply.message
    assert child.finish() == 0
    assert not skopeo_accepts(f"docker-archive:{archive}", home, str(policy))
    transports["docker-archive"] = {"": ACCEPT}
    policy = home.write("policy.json", {"default": REJECT, "transports": transports})
    child = pull(str(archive), f"--policy={policy}", policy=None)
    assert child.client.get("/manifest").status == 200
    assert child.finish() == 0
    assert skopeo_accepts(f"docker-archive:{archive}", home, str(policy))
