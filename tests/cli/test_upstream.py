"""The options of the registries that `imgproxy registry` stands before."""

from __future__ import annotations

import os
import socket
import subprocess
from typing import TYPE_CHECKING

import pytest
from support.parent import COMMAND, LIMIT

from imgproxy.cli import registry, upstream
from imgproxy.cli.registry import RegistryOptions
from imgproxy.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

USAGE = 2
CACHED = ("--upstream", "ghcr.io", "--cache", "/var/cache/images")


def parsed(*arguments: str) -> RegistryOptions:
    options = RegistryOptions()
    registry.parse(["registry", *arguments], options)
    return options


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--upstream", "ghcr.io"], "--upstream wants --cache DIR"),
        (["--images", "/i", "--creds", "u:p"], "--creds wants exactly one --upstream"),
        ([*CACHED, "--upstream", "quay.io", "--creds", "u:p"], "--creds wants exactly one"),
        ([*CACHED, "--upstream", "quay.io", "--registry-token", "t"], "--registry-token wants"),
    ],
)
def test_options_that_do_not_go_together(arguments: Sequence[str], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        upstream.check(parsed(*arguments))


@pytest.mark.parametrize(
    "arguments",
    [
        ["--images", "/i"],
        ["--images", "/i", "--cache", "/c"],
        CACHED,
        [*CACHED, "--upstream", "quay.io"],
        [*CACHED, "--creds", "u:p"],
        # Two spellings of one registry.
        [*CACHED, "--upstream", "GHCR.io:443", "--registry-token", "t"],
    ],
)
def test_options_that_go_together(arguments: Sequence[str]) -> None:
    upstream.check(parsed(*arguments))


@pytest.mark.parametrize("text", ["ghcr.io/acme", "https://ghcr.io", "", "a b", "x:99999"])
def test_an_upstream_is_a_registry(text: str) -> None:
    with pytest.raises(UsageError, match="is no registry"):
        parsed("--upstream", text)
    assert parsed("--upstream", "index.docker.io").upstreams == ["docker.io"]


@pytest.mark.parametrize(
    "protection",
    [None, "--no-creds", "--share-credentials", "--htpasswd=/etc/htpasswd", "--client-ca=/etc/ca"],
)
def test_what_credentials_fetch_is_not_everybodys_unawares(protection: str | None) -> None:
    options = parsed(*CACHED, *([protection] if protection else []))
    with (
        socket.socket(socket.AF_INET6) as tcp,
        socket.socket(socket.AF_UNIX) as unix,
    ):
        upstream.check_listeners(options, [unix])
        upstream.check_listeners(parsed("--images", "/i"), [tcp])
        if protection:
            upstream.check_listeners(options, [unix, tcp])
            return
        with pytest.raises(UsageError) as caught:
            upstream.check_listeners(options, [unix, tcp])
        for name in ("--no-creds", "--share-credentials", "--htpasswd", "--client-ca", "unix:PATH"):
            assert name in str(caught.value)


def test_the_program_checks_them(tmp_path: Path) -> None:
    arguments = [*COMMAND, "registry", "--listen", "127.0.0.1:0", "--upstream", "ghcr.io"]
    for more, said in (([], "--cache"), (["--cache", str(tmp_path)], "--share-credentials")):
        result = subprocess.run(
            [*arguments, *more], capture_output=True, text=True, timeout=LIMIT, check=False
        )
        assert result.returncode == USAGE
        assert said in result.stderr
    assert os.listdir(tmp_path) == []
