"""Where the options that choose have a meaning, and that they are usage errors elsewhere."""

from __future__ import annotations

import pytest

from imgproxy.__main__ import COMMANDS
from imgproxy.cli import commands, registry, runtime, skopeo_options
from imgproxy.cli.options import Options, parse
from imgproxy.errors import UsageError
from imgproxy.images.selection import Wanted
from imgproxy.specs.oci.manifest_selection import ManifestConditions
from imgproxy.specs.oci.platform import Platform

CONDITIONS = ["--artifact-type=a/b", "--annotation=k=v", "--annotation", "x"]
OPERANDS = {
    "list": ["oci:x"],
    "pull": ["oci:x", "oci:y"],
    "export": ["oci:x", "oci-archive:y"],
    "tag": ["oci:x:a", "b"],
    "rm": ["oci:x:a"],
    "gc": ["oci:x"],
    "verify": ["oci:x"],
}
CHOOSING = {"pull"}


def parsed(name: str, *arguments: str) -> Options:
    options, arguments = Options(), (name, *OPERANDS[name], *arguments)
    commands._parse(name, commands.options_of(name), list(arguments), options)
    return options


def assert_chosen(options: Options) -> None:
    platform, conditions = runtime.wanted(options)
    assert platform.os
    assert conditions == ManifestConditions("a/b", (("k", "v"), ("x", None)))


@pytest.mark.parametrize("name", sorted(CHOOSING))
def test_commands_that_choose_a_manifest_take_conditions(name: str) -> None:
    assert_chosen(parsed(name, *CONDITIONS))


@pytest.mark.parametrize("option", ["--artifact-type=a/b", "--annotation=k", "--layer=offset=0"])
@pytest.mark.parametrize("name", sorted(set(COMMANDS) & set(OPERANDS)))
def test_elsewhere_they_are_usage_errors(name: str, option: str) -> None:
    if name in CHOOSING and not option.startswith("--layer"):
        return
    with pytest.raises(UsageError, match=f"unknown option: {option.partition('=')[0]}"):
        parsed(name, option)


@pytest.mark.parametrize("option", ["--artifact-type=a/b", "--annotation=k", "--layer=offset=0"])
def test_a_registry_chooses_nothing(option: str) -> None:
    with pytest.raises(UsageError, match=f"unknown option: {option.partition('=')[0]}"):
        registry.parse(["registry", option], registry.RegistryOptions())


def test_skopeo_s_protocol_chooses_manifests_and_no_layers() -> None:
    options = skopeo_options.SkopeoOptions()
    skopeo_options.parse([skopeo_options.COMMAND, *CONDITIONS], options, "imgproxy")
    assert_chosen(options)
    with pytest.raises(UsageError, match="unknown option: --layer"):
        skopeo_options.parse(
            [skopeo_options.COMMAND, "--layer=offset=0"], skopeo_options.SkopeoOptions(), "imgproxy"
        )


def test_an_image_is_chosen_by_all_of_them() -> None:
    assert_chosen(parse([*CONDITIONS, "--layer=offset=0", "oci:x"]))
    options = parse(["--platform=linux/arm64", "oci:x"])
    assert runtime.wanted(options) == Wanted(Platform("linux", "arm64"), None)
