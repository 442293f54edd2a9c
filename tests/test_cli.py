"""Every option, and every way to get one wrong: imgproxy(1), OPTIONS."""

from __future__ import annotations

from typing import Any

import pytest

from imgproxy import __version__
from imgproxy.cli import Options, parse
from imgproxy.errors import UsageError
from imgproxy.spec.platform import Platform

DEFAULTS = Options(
    image="os",
    sockfds=[],
    platform=None,
    offline=False,
    tls_verify=True,
    policy=None,
    insecure_policy=False,
    stall_timeout=60.0,
    allow_remote=False,
    quiet=False,
    debug=False,
)


@pytest.mark.parametrize(
    ("arguments", "changes"),
    [
        ("os", {}),
        ("-- --os", {"image": "--os"}),
        ("--sockfd 3 os", {"sockfds": [3]}),
        ("--sockfd=3 --sockfd 0 os --sockfd 3", {"sockfds": [3, 0, 3]}),
        ("--sockfd 99999999999999999999 os", {"sockfds": [99999999999999999999]}),
        ("--platform linux/arm64 os", {"platform": Platform("linux", "arm64")}),
        ("--platform=linux/arm/v7 os", {"platform": Platform("linux", "arm", "v7")}),
        ("--offline os", {"offline": True}),
        ("--tls-verify=true os", {"tls_verify": True}),
        ("--tls-verify=false os", {"tls_verify": False}),
        ("--tls-verify=False os", {"tls_verify": False}),
        ("--tls-verify=0 os", {"tls_verify": False}),
        ("--tls-verify=1 os", {"tls_verify": True}),
        ("--tls-verify os", {"tls_verify": True}),
        ("--tls-verify=false --tls-verify os", {"tls_verify": True}),
        ("--policy p.json os", {"policy": "p.json"}),
        ("--policy= os", {"policy": ""}),
        ("--insecure-policy os", {"insecure_policy": True}),
        ("--stall-timeout 5 os", {"stall_timeout": 5.0}),
        ("--stall-timeout=0.5 os", {"stall_timeout": 0.5}),
        ("--allow-remote os", {"allow_remote": True}),
        ("-q os", {"quiet": True}),
        ("--quiet os", {"quiet": True}),
        ("os --debug", {"debug": True}),
        (
            "--offline --debug -q os --allow-remote",
            {"offline": True, "debug": True, "quiet": True, "allow_remote": True},
        ),
    ],
)
def test_options_say_what_differs_from_the_defaults(
    arguments: str, changes: dict[str, Any]
) -> None:
    assert parse(arguments.split()) == DEFAULTS._replace(**changes)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ("", "the following arguments are required: IMAGE"),
        ("--offline", "the following arguments are required: IMAGE"),
        ("os other", "unrecognized arguments: other"),
        ("--unheard-of os", "unrecognized arguments: --unheard-of"),
        ("-x os", "unrecognized arguments: -x"),
        ("--off os", "unrecognized arguments: --off"),
        ("--offline=yes os", "argument --offline: ignored explicit argument 'yes'"),
        ("os --sockfd", "argument --sockfd: expected one argument"),
        ("--sockfd x os", 'argument --sockfd: "x" is not the number of a descriptor'),
        ("--sockfd= os", 'argument --sockfd: "" is not the number of a descriptor'),
        ("--sockfd=-1 os", 'argument --sockfd: "-1" is not the number of a descriptor'),
        ("--sockfd=+1 os", 'argument --sockfd: "+1" is not the number of a descriptor'),
        ("--sockfd=1_0 os", 'argument --sockfd: "1_0" is not the number of a descriptor'),
        ("--sockfd=\u0663 os", 'argument --sockfd: "\u0663" is not the number of a descriptor'),
        (
            "--platform linux os",
            'argument --platform: "linux": expected OS/ARCH or OS/ARCH/VARIANT, such as'
            " linux/arm64",
        ),
        ("--tls-verify=maybe os", 'argument --tls-verify: "maybe" is neither true nor false'),
        ("--tls-verify= os", 'argument --tls-verify: "" is neither true nor false'),
        ("--stall-timeout=soon os", 'argument --stall-timeout: "soon" is not a number of seconds'),
        ("--stall-timeout=0 os", 'argument --stall-timeout: "0" is not a number of seconds'),
        ("--stall-timeout=-1 os", 'argument --stall-timeout: "-1" is not a number of seconds'),
        ("--stall-timeout=nan os", 'argument --stall-timeout: "nan" is not a number of seconds'),
        ("--stall-timeout=inf os", 'argument --stall-timeout: "inf" is not a number of seconds'),
        (
            "--policy p --insecure-policy os",
            "argument --insecure-policy: not allowed with argument --policy",
        ),
        (
            "--insecure-policy --policy p os",
            "argument --policy: not allowed with argument --insecure-policy",
        ),
        ("--policy", "argument --policy: expected one argument"),
    ],
)
def test_a_usage_error_says_what_is_wrong_and_where_help_is(arguments: str, complaint: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(arguments.split())
    assert str(caught.value) == f"{complaint} (imgproxy --help lists the options)"


@pytest.mark.parametrize(
    ("option", "value"),
    [
        pytest.param("--sockfd", "9" * 5000, id="descriptor-that-no-int-takes"),
    ],
)
def test_no_value_is_too_much(option: str, value: str) -> None:
    with pytest.raises(UsageError):
        parse([option, value, "os"])


@pytest.mark.parametrize("option", ["-h", "--help"])
def test_help_lists_every_option(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse([option])
    assert not caught.value.code
    text = capsys.readouterr().out
    assert text.startswith("usage: imgproxy ")
    for name in Options._fields:
        word = {"image": "IMAGE", "sockfds": "--sockfd"}.get(name, f"--{name.replace('_', '-')}")
        assert f" {word} " in text.replace(",", " ").replace("\n", " "), word


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse(["--version", "--unheard-of"])
    assert not caught.value.code
    assert capsys.readouterr().out == f"imgproxy {__version__}\n"
