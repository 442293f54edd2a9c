"""The options of skopeo's protocol, before the word and after it: imgproxy-skopeo(7)."""

from __future__ import annotations

import re

import pytest

from imgproxy.cli.skopeo_options import COMMAND, SkopeoOptions, parse
from imgproxy.errors import UsageError
from imgproxy.specs.oci.platform import Platform


def parsed(*arguments: str, program: str = "imgproxy") -> SkopeoOptions:
    options = SkopeoOptions()
    parse(list(arguments), options, program)
    return options


def complaint(*arguments: str, program: str = "imgproxy") -> str:
    with pytest.raises(UsageError) as raised:
        parsed(*arguments, program=program)
    return str(raised.value)


def test_standard_input_is_the_socket_unless_another_is_named() -> None:
    assert parsed(COMMAND).sockfd == 0
    assert parsed(COMMAND, "--sockfd", "3").sockfd == 3
    assert parsed("--sockfd=3", COMMAND).sockfd == 3


# What the clients in Rust and Go give, and each of skopeo's options.
ALL = [
    ["--debug"],
    ["--authfile", "/proc/self/fd/100"],
    ["--no-creds"],
    ["--cert-dir", "/certs"],
    ["--tls-verify=false"],
    ["--tls-verify"],
    ["--insecure-policy"],
    ["--policy", "policy.json"],
    ["--user-agent-prefix", "bootc/1.0 (x)"],
    ["--override-arch", "arm64"],
    ["--override-os=linux"],
    ["--override-arch=arm", "--override-variant", "v7"],
    ["--creds", "user:password"],
    ["--username", "user", "--password", "password"],
    ["--registry-token", "token"],
    ["--require-signed"],
    ["--registries.d", "/registries.d"],
    ["--registries-conf", "registries.conf"],
    ["--daemon-host", "unix:///x"],
    ["--command-timeout", "5s"],
    ["--tmpdir", "/x"],
    ["--sockfd", "3"],
]


@pytest.mark.parametrize("given", ALL, ids=" ".join)
def test_options_stand_before_the_word_or_after_it(given: list[str]) -> None:
    first, second = (
        vars(parsed(*arguments)) for arguments in ([COMMAND, *given], [*given, COMMAND])
    )
    assert first == second
    assert first["contradiction"] == ""


def test_options_are_given_all_at_once() -> None:
    given = [word for option in ALL for word in option if option[0] != "--policy"]
    given.remove("--require-signed")
    options = parsed(*given[:9], COMMAND, *given[9:])
    assert options.tls_verify is True, "the last one holds"
    assert options.user_agent_prefix == "bootc/1.0 (x)"
    assert options.platform == Platform("linux", "arm", "v7")
    assert options.authfile == "/proc/self/fd/100"


def test_a_user_and_a_password_are_credentials() -> None:
    creds = parsed(COMMAND, "--username=user", "--password=pass:word").creds
    assert creds is not None
    assert (creds.username, creds.password) == ("user", "pass:word")
    assert parsed(COMMAND, "--creds", "user:pass:word").creds == creds
    assert set(parsed(COMMAND, "--username=user", "--password=pass:word").secrets) >= {"pass:word"}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--creds=a:b", "--no-creds"], "creds and no-creds cannot be specified at the same time"),
        (["--creds=a:b", "--username=a", "--password=b"], "creds and username cannot .*"),
        (["--username=a", "--password=b", "--no-creds"], "username and no-creds cannot .*"),
        (["--no-creds", "--registry-token=x"], "no-creds and registry-token cannot .*"),
        (["--username=a"], "password must be specified when username is specified"),
        (["--password=a"], "username must be specified when password is specified"),
    ],
)
def test_contradictions_are_left_to_initialize(given: list[str], said: str) -> None:
    assert re.fullmatch(said, parsed(COMMAND, *given).contradiction)


@pytest.mark.parametrize("option", ["--decryption-key", "--shared-blob-dir", "--tls-details"])
def test_what_is_not_supported_is_refused_by_name(option: str) -> None:
    for arguments in ([option, "/x"], [f"{option}=/x"]):
        assert complaint(COMMAND, *arguments).startswith(f"{option} is not supported: ")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["x"], "experimental-image-proxy takes no arguments but options, and there are 1"),
        (["x", "y"], "experimental-image-proxy takes no arguments but options, and there are 2"),
        (["--nope"], "unknown option: --nope"),
        (["--allow-remote"], "unknown option: --allow-remote"),
        (["--sockfd", "x"], 'argument --sockfd: "x" is not the number of a descriptor'),
        (["--sockfd=-1"], 'argument --sockfd: "-1" is not the number of a descriptor'),
        (["--insecure-policy", "--policy=x"], "argument --policy: not allowed with .*"),
        (
            ["--insecure-policy", "--require-signed"],
            "argument --require-signed: not allowed with argument --insecure-policy",
        ),
        (["--user-agent-prefix=a\nb"], "argument --user-agent-prefix: it cannot be .*"),
        (["--user-agent-prefix=ü"], "argument --user-agent-prefix: it cannot be .*"),
    ],
)
def test_faults_are_told_in_one_line(given: list[str], said: str) -> None:
    said += r" \({} experimental-image-proxy --help lists the options\)"
    assert re.fullmatch(said.format("imgproxy"), complaint(COMMAND, *given))
    assert re.fullmatch(said.format("skopeo"), complaint(COMMAND, *given, program="skopeo"))


@pytest.mark.parametrize("program", ["imgproxy", "skopeo", "__main__.py"])
@pytest.mark.parametrize(
    "given",
    [
        ["--registry-tokn", "sesame", COMMAND],
        [COMMAND, "--registry-tokn", "sesame"],
        [COMMAND, "--registry-tokn=sesame"],
        ["--passwort", "sesame", COMMAND, "--username", "x"],
        [COMMAND, "--no-creds=sesame"],
        [COMMAND, "--registry-token", "sesame open"],
    ],
)
def test_complaints_do_not_show_what_may_be_a_secret(program: str, given: list[str]) -> None:
    assert "sesame" not in complaint(*given, program=program)


def test_overrides_that_are_no_platform() -> None:
    assert complaint(COMMAND, "--override-arch=a/b/c").startswith("--override-os, ")


@pytest.mark.parametrize("arguments", [[], ["copy", "a", "b"], ["copy", "--all", "a"], ["--debug"]])
def test_other_commands_of_skopeo_name_the_way_out(arguments: list[str]) -> None:
    said = complaint(*arguments, program="skopeo")
    assert said.startswith("skopeo copy: " if "copy" in arguments else "skopeo: ")
    assert "this is imgproxy" in said
    assert "\n" not in said


def test_help_names_the_program_and_the_option_that_clients_look_for(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for program, shown in (("skopeo", "skopeo"), ("imgproxy", "imgproxy"), ("x.py", "imgproxy")):
        with pytest.raises(SystemExit) as raised:
            parsed("--help", program=program)
        assert raised.value.code == 0
        output = capsys.readouterr().out
        assert output.startswith(f"usage: {shown} {COMMAND} ")
        assert "--user-agent-prefix" in output
