"""The examples in demo/registry: what they say is what the program takes, and nothing is open."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from support import registry_clients
from support.parent import ROOT

from imgproxy import __version__
from imgproxy.cli import registry
from imgproxy.cli.registry import RegistryOptions
from imgproxy.config import policy
from imgproxy.frontends.registry_routes import Fixed
from imgproxy.server.service import GRACE

if TYPE_CHECKING:
    from support.home import Home

EXAMPLES = ROOT / "demo/registry"
NAME = "imgproxy-registry"


@pytest.fixture(scope="module")
def documents() -> dict[str, Any]:
    found = yaml.safe_load_all((EXAMPLES / "daemonset.yaml").read_text())
    return {each["kind"]: each for each in found}


@pytest.fixture(scope="module")
def pod(documents: dict[str, Any]) -> dict[str, Any]:
    spec = documents["DaemonSet"]["spec"]
    assert spec["selector"]["matchLabels"] == spec["template"]["metadata"]["labels"]
    return dict(spec["template"]["spec"])


def test_the_documents_belong_together(documents: dict[str, Any], pod: dict[str, Any]) -> None:
    assert set(documents) == {"ConfigMap", "DaemonSet"}
    assert {each["metadata"]["name"] for each in documents.values()} == {NAME}
    assert {each["apiVersion"] for each in documents.values()} == {"v1", "apps/v1"}
    mounted = {each["name"] for each in pod["containers"][0]["volumeMounts"]}
    assert mounted == {each["name"] for each in pod["volumes"]}
    for name, text in documents["ConfigMap"]["data"].items():
        assert policy.parse(text.encode(), name)


@pytest.mark.slow
def test_the_documents_are_what_kubernetes_takes(home: Home) -> None:
    home.path.mkdir()
    words = [registry_clients.require("kubernetes-validate"), "--strict"]
    text = (EXAMPLES / "daemonset.yaml").read_text()
    file = home.write("daemonset.yaml", text)
    checked = registry_clients.run([*words, str(file)], home)
    assert (checked.status, checked.output.count(" passed for ")) == (0, 2), checked.output
    for right, wrong in [("hostPort: 5000", "hostPort: '5000'"), ("hostNetwork:", "network:")]:
        file.write_text(text.replace(right, wrong))
        assert registry_clients.run([*words, str(file)], home).status == 1


def test_the_arguments_are_the_program_s(pod: dict[str, Any]) -> None:
    (container,) = pod["containers"]
    options = RegistryOptions()
    registry.parse(["registry", *container["args"]], options)
    (address,) = options.listen
    probe = container["readinessProbe"]["httpGet"]
    assert (address.host, address.port) == (probe["host"], probe["port"])
    assert probe["path"] == Fixed.HEALTH.value
    assert address.port == container["ports"][0]["hostPort"]
    paths = [each["mountPath"] for each in container["volumeMounts"]]
    assert options.images == paths[:1]
    assert options.policy is not None
    assert options.policy.startswith(f"{paths[1]}/")
    assert pod["terminationGracePeriodSeconds"] > GRACE
    assert container["image"] == f"localhost/{NAME}:{__version__}"


def test_nothing_is_permitted_that_is_not_needed(pod: dict[str, Any]) -> None:
    (container,) = pod["containers"]
    assert all(each["readOnly"] for each in container["volumeMounts"])
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["automountServiceAccountToken"] is False
    user = pod["securityContext"]["runAsUser"]
    assert f"USER {user}:" in (EXAMPLES / "Containerfile").read_text()


def test_the_image_has_the_extras_and_the_command() -> None:
    text = (EXAMPLES / "Containerfile").read_text()
    (extras,) = re.findall(r"/src\[([\w,]+)\]", text)
    assert set(extras.split(",")) == {"signatures", "registry"}
    entry = json.loads(re.findall(r"^ENTRYPOINT (.*)$", text, re.MULTILINE)[0])
    assert entry[1:] == ["registry"]
