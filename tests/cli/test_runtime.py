"""What options amount to: files, diagnostics, configuration, the image."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from support.home import Home
from support.images import Layout
from support.streams import Notes, real_time

from imgproxy.cli import options, runtime
from imgproxy.cli.runtime import OptionFiles
from imgproxy.config.policy import ACCEPT_ANYTHING
from imgproxy.errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path


NOTHING = {"policy": None, "registries": None, "auth": None}


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "file"
    path.write_bytes(b"{}")
    return str(path)


@pytest.mark.parametrize(
    ("option", "field"),
    [("--policy", "policy"), ("--registries-conf", "registries"), ("--authfile", "auth")],
)
def test_a_file_that_an_option_names_is_read_at_once(option: str, field: str, file: str) -> None:
    files = OptionFiles(options.parse([option, file, "os"]))
    assert vars(files) == {**NOTHING, field: (b"{}", file)}
    with pytest.raises(UsageError, match=f"^{option} /nowhere: "):
        OptionFiles(options.parse([option, "/nowhere", "os"]))


@pytest.mark.parametrize("option", ["--cert-dir", "--registries.d"])
def test_a_directory_that_an_option_names_is_looked_at(
    option: str, file: str, tmp_path: Path
) -> None:
    assert vars(OptionFiles(options.parse([option, str(tmp_path), "os"]))) == NOTHING
    for path in ("/nowhere", file):
        with pytest.raises(UsageError, match=f"^{option} {path}: "):
            OptionFiles(options.parse([option, path, "os"]))


@pytest.mark.parametrize("option", ["--insecure-policy", "--policy"])
def test_a_policy_is_that_of_an_option(option: str, tmp_path: Path) -> None:
    accepting = tmp_path / "policy.json"
    accepting.write_bytes(ACCEPT_ANYTHING)
    arguments = [option] if option == "--insecure-policy" else [option, str(accepting)]
    parsed, notes = options.parse([*arguments, "os"]), Notes()
    policy = runtime.new_configuration(parsed, OptionFiles(parsed), notes).policy()
    assert policy.default.requirements == ("insecureAcceptAnything",)
    assert policy.source == arguments[-1]


@pytest.mark.parametrize(
    ("arguments", "shares_stderr", "quiet", "debug"),
    [
        ([], False, False, False),
        ([], True, True, False),
        (["-q"], False, True, False),
        (["--debug"], False, False, True),
        (["--debug"], True, True, False),
        (["--debug", "-q"], False, True, False),
    ],
)
def test_diagnostics_are_silent_where_they_are_not_wanted_or_http_is_served(
    arguments: list[str],
    shares_stderr: bool,  # noqa: FBT001  (a parameter)
    quiet: bool,  # noqa: FBT001
    debug: bool,  # noqa: FBT001
) -> None:
    parsed = options.parse([*arguments, "os"])
    diagnostics = runtime.new_diagnostics(parsed, shares_stderr=shares_stderr)
    assert (diagnostics._quiet, diagnostics._debug) == (quiet, debug)


@real_time
async def test_an_image_is_built_of_its_options(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "layout")
    here = layout.save_image(b"x", platform="linux/s390x")
    parsed = options.parse(["--insecure-policy", "--platform=linux/s390x", f"oci:{layout.path}"])
    files, notes = OptionFiles(parsed), Notes()
    configuration = runtime.new_configuration(parsed, files, notes)
    network = runtime.new_network(parsed, configuration, notes, None)
    catalog = runtime.new_catalog(parsed, configuration, network)
    opened = await catalog.image(parsed.image, runtime.wanted(parsed)).open()
    assert str(opened.manifest.digest) == here["digest"]
    catalog.close()
    network.close()


# An option, the field of `NetworkOptions` that it sets, and the value.
NETWORK = [
    ("--offline", "offline", True),
    ("--tls-verify=false", "tls_verify", False),
    ("--no-mirrors", "mirrors", False),
    ("--retries=7", "retries", 7),
    ("--stall-timeout=2", "stall_timeout", 2.0),
    ("--no-creds", "anonymous", True),
    ("--registry-token=t", "registry_token", "t"),
    ("--foreign-layers", "foreign_layers", True),
]


@pytest.mark.parametrize(("option", "field", "value"), NETWORK)
def test_options_decide_how_registries_are_reached(
    option: str, field: str, value: object, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name, setting in Home(tmp_path / "home").environment().items():
        monkeypatch.setenv(name, setting)
    seen = []
    for arguments in (["os"], [option, "os"]):
        parsed, notes = options.parse(arguments), Notes()
        files = OptionFiles(parsed)
        configuration = runtime.new_configuration(parsed, files, notes)
        seen.append(runtime.new_network(parsed, configuration, notes, None).options)
    defaults, changed = seen
    assert changed == defaults._replace(**{field: value})
    assert getattr(defaults, field) != value
