"""A configuration whose files change."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from support.streams import Notes

from imgproxy.errors import ConfigurationError
from imgproxy.host import file_changes
from imgproxy.host.configuration import Overrides
from imgproxy.host.watched_configuration import WatchedConfiguration

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> WatchedConfiguration:
    monkeypatch.setattr(file_changes, "INTERVAL", 0.0)
    (tmp_path / "policy.json").write_text('{"default": [{"type": "reject"}]}')
    (tmp_path / "registries.conf").write_text("")
    (tmp_path / "d").mkdir()
    overrides = Overrides(
        policy=(None, f"{tmp_path}/policy.json"),
        registries=(None, f"{tmp_path}/registries.conf"),
        registries_d=f"{tmp_path}/d",
    )
    return WatchedConfiguration(overrides, Notes())


def test_what_was_not_read_does_not_count(
    configuration: WatchedConfiguration, tmp_path: Path
) -> None:
    (tmp_path / "policy.json").write_text("{}")
    assert not configuration.have_changed()


def test_a_policy_that_changes(configuration: WatchedConfiguration, tmp_path: Path) -> None:
    configuration.policy()
    assert not configuration.have_changed()
    (tmp_path / "policy.json").write_text("{}")
    assert configuration.have_changed()
    with pytest.raises(ConfigurationError):
        configuration.policy()
    assert not configuration.have_changed()
    (tmp_path / "policy.json").unlink()
    assert configuration.have_changed()


@pytest.mark.parametrize(
    "requirement",
    [
        {"type": "signedBy", "keyType": "GPGKeys", "keyPath": "{key}"},
        {"type": "sigstoreSigned", "keyPaths": ["/nothing", "{key}"]},
        {"type": "sigstoreSigned", "keyPath": "/nothing", "rekorPublicKeyPath": "{key}"},
        {
            "type": "sigstoreSigned",
            "fulcio": {"caPath": "{key}", "oidcIssuer": "x", "subjectEmail": "y"},
            "rekorPublicKeyPath": "/nothing",
        },
    ],
)
def test_a_key_that_changes(
    configuration: WatchedConfiguration, tmp_path: Path, requirement: object
) -> None:
    key = tmp_path / "key"
    text = json.dumps({"default": [requirement]}).replace("{key}", str(key))
    (tmp_path / "policy.json").write_text(text)
    configuration.policy()
    assert not configuration.have_changed()
    key.write_text("new")
    assert configuration.have_changed()


def test_certificates_that_are_overwritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They have the same names and are the same files."""
    monkeypatch.setattr(file_changes, "INTERVAL", 0.0)
    files = [tmp_path / each for each in ("ca.crt", "me.cert", "me.key")]
    for each in files:
        each.write_text("first")
    configuration = WatchedConfiguration(Overrides(cert_dir=str(tmp_path)), Notes())
    for each in files:
        configuration.certificates("registry.example")
        assert not configuration.have_changed()
        each.write_text("other")
        assert configuration.have_changed()


def test_registries_and_where_signatures_are(
    configuration: WatchedConfiguration, tmp_path: Path
) -> None:
    assert configuration.registries is configuration.registries
    (tmp_path / "registries.conf").write_text(
        '[[registry]]\nlocation = "a.example"\nblocked = true'
    )
    assert configuration.have_changed()
    assert "a.example" in str(configuration.registries)
    before = configuration.signatures(["a.example"])
    (tmp_path / "d/a.yaml").write_text("default-docker: {lookaside: 'file:///there'}")
    assert configuration.have_changed()
    assert configuration.signatures(["a.example"]) != before
