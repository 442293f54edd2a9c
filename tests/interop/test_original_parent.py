"""The parent of the original container-image-proxy, with only the program's name changed.

It opens `socket.socketpair()`, passes `--sockfd=N IMAGE` and nothing else, talks with a plain HTTP
library, and trusts the host's policy.json.
"""

from __future__ import annotations

import json
import socket
import subprocess
from http.client import HTTPConnection, HTTPResponse
from typing import TYPE_CHECKING, Any

import pytest
from support.images import digest_of
from support.parent import COMMAND, INSECURE, LIMIT, environment, start

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import Keep, Sample

ACCEPT = {"default": [{"type": "insecureAcceptAnything"}]}
REJECT = {"default": [{"type": "reject"}]}


class OverSocket(HTTPConnection):
    """A connection over a socket that exists already."""

    auto_open = 0

    def __init__(self, sock: socket.socket) -> None:
        super().__init__("localhost")
        self.sock = sock


def home_with(policy: dict[str, Any], directory: Path) -> dict[str, str]:
    """Return the environment of a user whose policy this is."""
    path = directory / ".config/containers/policy.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(policy))
    return environment(HOME=str(directory))


def get(connection: HTTPConnection, path: str) -> tuple[HTTPResponse, bytes]:
    connection.request("GET", path)
    response = connection.getresponse()
    return response, response.read()


def test_the_original_parent_is_content(sample: Sample, tmp_path: Path) -> None:
    ours, theirs = socket.socketpair()
    ours.settimeout(LIMIT)
    with theirs:
        child = subprocess.Popen(
            [*COMMAND, f"--sockfd={theirs.fileno()}", sample.name],
            pass_fds=[theirs.fileno()],
            env=home_with(ACCEPT, tmp_path / "home"),
        )
    with ours, child:
        connection = OverSocket(ours)
        response, content = get(connection, "/manifest")
        assert response.status == 200
        assert response.headers["Manifest-Digest"] == sample.descriptor["digest"]
        blobs = []
        for layer in json.loads(content)["layers"]:
            response, blob = get(connection, "/blobs/" + layer["digest"])
            assert response.status == 200
            assert len(blob) == int(response.headers["Content-Length"]) == layer["size"]
            assert digest_of(blob) == layer["digest"]
            blobs.append(blob)
        assert blobs == list(sample.layers)
        connection.request("POST", "/quit")
        assert connection.getresponse().read() == b""
        assert child.wait(LIMIT) == 0
        connection.close()


def test_a_policy_of_the_users_that_rejects_is_a_403(
    sample: Sample, keep: Keep, tmp_path: Path
) -> None:
    child = keep(start(sample.name, policy=None, env=home_with(REJECT, tmp_path / "home")))
    reply = child.client.get("/manifest")
    assert (reply.status, reply.code) == (403, "DENIED")
    layer = sample.layout.layers(sample.descriptor)[0]["digest"]
    assert child.client.get(f"/blobs/{layer}").status == 403
    assert child.client.get(f"/manifests/{sample.descriptor['digest']}").status == 403
    assert child.client.get("/config").status == 403
    assert child.finish() == 0


@pytest.mark.parametrize("policy", [REJECT, {"default": []}, {}], ids=["rejects", "empty", "none"])
def test_insecure_policy_needs_no_file_and_overrides_it(
    policy: dict[str, Any], sample: Sample, keep: Keep, tmp_path: Path
) -> None:
    env = home_with(policy, tmp_path / "home")
    child = keep(start(sample.name, policy=INSECURE, env=env))
    assert child.client.get("/manifest").body == sample.manifest
    assert child.finish() == 0


def test_a_policy_by_option_decides(sample: Sample, keep: Keep, tmp_path: Path) -> None:
    env = home_with(REJECT, tmp_path / "home")
    policy = tmp_path / "policy.json"
    policy.write_text(json.dumps(ACCEPT))
    child = keep(start(sample.name, policy=f"--policy={policy}", env=env))
    assert child.client.get("/manifest").body == sample.manifest
    assert child.finish() == 0


def test_a_broken_policy_is_a_500_that_names_the_file(
    sample: Sample, keep: Keep, tmp_path: Path
) -> None:
    env = home_with({}, tmp_path / "home")
    child = keep(start(sample.name, policy=None, env=env))
    reply = child.client.get("/manifest")
    assert (reply.status, reply.code) == (500, "CONFIGURATION")
    assert str(tmp_path / "home") in reply.message
    assert child.finish() == 0


def test_a_policy_option_that_names_no_file_is_a_usage_error(
    sample: Sample, keep: Keep, tmp_path: Path
) -> None:
    missing = tmp_path / "missing.json"
    child = keep(start(sample.name, policy=f"--policy={missing}"))
    assert child.wait() == 2
    assert str(missing) in child.stderr
