"""Where a connection is begun before the event loop is there, and where none is."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
from support.home import mirror, table
from support.images import digest_of
from support.streams import Notes

from imgproxy.cli import options
from imgproxy.cli.runtime import preconnect as preconnect_by_options
from imgproxy.config.policy import ACCEPT_ANYTHING
from imgproxy.host.configuration import Configuration, Overrides
from imgproxy.specs.oci import distribution
from imgproxy.transports.registry import preconnect

if TYPE_CHECKING:
    from pathlib import Path

IMAGE = "docker://registry.test/acme/os:1"
REJECT = b'{"default":[{"type":"reject"}]}'
SIGNED = b'{"default":[{"type":"signedBy","keyType":"GPGKeys","keyPath":"/nowhere"}]}'
ELSEWHERE = (
    b'{"default":[{"type":"reject"}],"transports":{"docker":{"other.test":'
    b'[{"type":"insecureAcceptAnything"}]}}}'
)


@dataclass
class Case:
    """An image with its options and configuration, and where a connection is begun, if any is."""

    begun: str | None
    image: str = IMAGE
    options: tuple[str, ...] = ()
    policy: bytes = ACCEPT_ANYTHING
    registries: str = ""
    environment: dict[str, str] = field(default_factory=dict)


HERE = "registry.test:443"
PROXY = {"HTTPS_PROXY": "http://proxy.test:3128"}
CASES = {
    "an image of a registry": Case(HERE),
    "with a port": Case("registry.test:5000", "docker://registry.test:5000/os"),
    "an IPv6 address": Case("[::1]:5000", "docker://[::1]:5000/os"),
    "by digest": Case(HERE, f"docker://registry.test/os@{digest_of(b'')}"),
    "without the transport": Case(HERE, "registry.test/acme/os"),
    "Docker Hub": Case("registry-1.docker.io:443", "docker://busybox"),
    "a short name": Case(None, "busybox"),
    "a layout": Case(None, "oci:registry.test/acme/os"),
    "a directory": Case(None, "dir:registry.test/acme/os"),
    "an archive": Case(None, "docker-archive:registry.test/acme/os"),
    "a path": Case(None, "/registry.test/acme/os"),
    "a relative path": Case(None, "./registry.test/acme/os"),
    "no name": Case(None, "docker://registry.test/UPPER"),
    "another transport": Case(None, "containers-storage:registry.test/acme/os"),
    "offline": Case(None, options=("--offline",)),
    "sideload": Case(None, options=("--sideload=/srv/<name>/<ref>",)),
    "no verification": Case(None, options=("--tls-verify=false",)),
    "verification": Case(HERE, options=("--tls-verify=true",)),
    "a policy that rejects": Case(None, policy=REJECT),
    "a policy that accepts others": Case(None, policy=ELSEWHERE),
    "a policy that requires signatures": Case(HERE, policy=SIGNED),
    "a broken policy": Case(None, policy=b"{"),
    "a proxy": Case(None, environment=PROXY),
    "a proxy for others": Case(HERE, environment={**PROXY, "NO_PROXY": "registry.test"}),
    "blocked": Case(None, registries=table("", "registry.test", "blocked = true")),
    "others blocked": Case(HERE, registries=table("", "other.test", "blocked = true")),
    "insecure": Case(None, registries=table("", "registry.test", "insecure = true")),
    "elsewhere": Case("other.test:443", registries=table("registry.test", "other.test")),
    "broken tables": Case(None, registries="[[registry"),
    "a mirror": Case(
        "mirror.test:443", registries=table("", "registry.test") + mirror("mirror.test")
    ),
    "a mirror that is not wanted": Case(
        HERE,
        options=("--no-mirrors",),
        registries=table("", "registry.test") + mirror("mirror.test"),
    ),
    "an insecure mirror": Case(
        None,
        registries=table("", "registry.test") + mirror("mirror.test", "insecure = true"),
    ),
    "a mirror for digests": Case(
        HERE,
        registries=table("", "registry.test")
        + mirror("mirror.test", 'pull-from-mirror = "digest-only"'),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_it_is_begun_where_it_will_be_needed_and_nowhere_else(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    case, begun = CASES[name], list[str]()
    for variable in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy", "NO_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    for variable, value in case.environment.items():
        monkeypatch.setenv(variable, value)
    monkeypatch.setattr(preconnect, "Preconnection", lambda url, *_: begun.append(url.endpoint))
    notes = Notes()
    chosen = Overrides((case.policy, "policy"), (case.registries.encode(), "registries"))
    parsed = options.parse([*case.options, case.image])
    preconnect_by_options(parsed, parsed.image, Configuration(chosen, notes), lambda: False)
    assert begun == ([case.begun] if case.begun else [])
    assert notes.failures == []


def test_it_is_given_all_that_the_first_request_consists_of(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "ca.crt").touch()
    given = list[Any]()
    monkeypatch.setattr(preconnect, "Preconnection", lambda *values: given.extend(values))
    chosen = Overrides((ACCEPT_ANYTHING, "policy"), (b"", "registries"), None, str(tmp_path))

    def is_wanted() -> bool:
        return True

    preconnect.begin(IMAGE, Configuration(chosen, Notes()), is_wanted, mirrors=True, timeout=2.5)
    url, headers, certificates, *others = given
    assert str(url) == "https://registry.test/v2/acme/os/manifests/1"
    assert headers == {"Accept": distribution.ACCEPT_MANIFESTS}
    assert certificates().authorities == (f"{tmp_path}/ca.crt",)
    assert others == [is_wanted, 2.5]


def test_it_does_not_import_the_event_loop() -> None:
    """Otherwise the connection is begun only after the import that it runs beside."""
    program = (
        "import sys, imgproxy.transports.registry.preconnect;"
        "sys.exit(bool({'trio', 'h11', 'ssl'} & sys.modules.keys()))"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
