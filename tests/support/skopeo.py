"""skopeo without a network, to see from what it says where it looks and whom it asks."""

from __future__ import annotations

import re
import subprocess
from typing import TYPE_CHECKING, NamedTuple

from support.servers import require

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

# Nothing listens there: every request to another host fails at once, unresolved.
_NOWHERE = "http://127.0.0.1:9"

_MESSAGE = re.compile(r' msg="((?:[^"\\]|\\.)*)"')
_TRYING = re.compile(r'Trying to access "(.*)"')
_LOADING = re.compile(r'Loading registries configuration "(.*)"')
_ASKED_FOR_CREDENTIALS = re.compile(r"No credentials matching \S+ found in (.*)")
_CERTIFICATES = re.compile(r"Looking for TLS certificates and private keys in (.*)")


class Asked(NamedTuple):
    """An endpoint as skopeo tried it."""

    reference: str
    insecure: bool
    blocked: bool


class Attempt(NamedTuple):
    """The output of skopeo, line by line, when it looks for an image that does not exist."""

    lines: list[str]

    @property
    def failure(self) -> str:
        """Its last message."""
        return self.lines[-1]

    @property
    def asked(self) -> list[Asked]:
        """The endpoints in order."""
        found = []
        for n, line in enumerate(self.lines):
            match = _TRYING.fullmatch(line)
            if match is not None:
                rest = self.lines[n + 1 :]
                end = next((m for m, text in enumerate(rest) if _TRYING.fullmatch(text)), None)
                found.append(_asked(match[1], rest[:end]))
        return found

    def matching(self, pattern: re.Pattern[str]) -> list[str]:
        """Return what follows these words, in order."""
        return [match[1] for match in map(pattern.fullmatch, self.lines) if match]

    @property
    def loaded(self) -> list[str]:
        """The files of containers-registries.conf(5) that it read."""
        return self.matching(_LOADING)

    @property
    def auth_files(self) -> list[str]:
        """The files in which it found no credentials."""
        return self.matching(_ASKED_FOR_CREDENTIALS)

    @property
    def certificates(self) -> list[str]:
        """The directories in which it looked for certificates."""
        return self.matching(_CERTIFICATES)


def _asked(reference: str, lines: list[str]) -> Asked:
    """Return an endpoint; it is insecure where plain HTTP was tried after TLS."""
    host = reference.partition("/")[0].replace("docker.io", "registry-1.docker.io")
    return Asked(
        reference,
        insecure=f"GET http://{host}/v2/" in lines,
        blocked=any(
            line.startswith(f'Accessing "{reference}" failed: registry ')
            and " is blocked in " in line
            for line in lines
        ),
    )


def inspect(
    image: str, home: Path, *options: str, environment: Mapping[str, str] | None = None
) -> Attempt:
    """Run skopeo to read the manifest of an image."""
    result = subprocess.run(
        [require("skopeo"), *options, "--debug", "inspect", "--raw", f"docker://{image}"],
        env={
            "PATH": "/usr/bin:/bin",
            "HOME": str(home),
            "HTTP_PROXY": _NOWHERE,
            "HTTPS_PROXY": _NOWHERE,
            **(environment or {}),
        },
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    lines = [re.sub(r"\\(.)", r"\1", text) for text in _MESSAGE.findall(result.stderr)]
    assert result.returncode, result.stdout
    assert lines, result.stderr
    return Attempt(lines)


def run(*arguments: str, env: Mapping[str, str]) -> None:
    """Run skopeo; its output is shown if it fails."""
    result = subprocess.run(
        [require("skopeo"), *arguments], env=env, capture_output=True, timeout=60, check=False
    )
    assert not result.returncode, result.stderr.decode()


def verdict(source: str, destination: Path, *options: str, env: Mapping[str, str]) -> str:
    """Run skopeo to copy an image; return its last message, empty where it succeeded."""
    platform = ("--override-os=linux", "--override-arch=amd64")
    copy = ("copy", "--quiet", "--src-tls-verify=false", "--remove-signatures")
    result = subprocess.run(
        [require("skopeo"), *platform, *options, *copy, source, f"dir:{destination}"],
        env=env,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return result.stderr.splitlines()[-1] if result.returncode else ""


def version() -> tuple[int, ...]:
    """Return the version of skopeo."""
    said = subprocess.run(
        [require("skopeo"), "--version"], capture_output=True, text=True, timeout=60, check=True
    ).stdout
    return tuple(map(int, re.findall(r"\d+", said)[:2]))
