"""Every option, and every way to get one wrong: imgproxy(1), OPTIONS."""

from __future__ import annotations

from itertools import permutations
from typing import Any

import pytest

from imgproxy import __version__
from imgproxy.cli.options import Options, parse
from imgproxy.config import sideload_pattern
from imgproxy.errors import UsageError
from imgproxy.specs.http.credentials import Credentials
from imgproxy.specs.oci.layer_selection import LayerSpec, Offsets
from imgproxy.specs.oci.platform import Platform

DEFAULTS: dict[str, Any] = {
    "image": "os",
    "sockfds": [],
    "platform": None,
    "artifact_type": None,
    "annotations": [],
    "layer_specs": [],
    "sideload": [],
    "offline": False,
    "tls_verify": None,
    "policy": None,
    "insecure_policy": False,
    "authfile": None,
    "creds": None,
    "no_creds": False,
    "registry_token": None,
    "cert_dir": None,
    "registries_conf": None,
    "registries_d": None,
    "no_mirrors": False,
    "foreign_layers": False,
    "retries": 5,
    "stall_timeout": 60.0,
    "cache": None,
    "cache_size": None,
    "tag_ttl": 0.0,
    "max_stale": 604800.0,
    "allow_remote": False,
    "hosts": [],
    "quiet": False,
    "debug": False,
}


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
        ("--artifact-type a/b os", {"artifact_type": "a/b"}),
        ("--artifact-type=image os", {"artifact_type": "image"}),
        (
            "--annotation a=b=c os --annotation=d --annotation e=",
            {"annotations": [("a", "b=c"), ("d", None), ("e", "")]},
        ),
        (
            "--layer type=a/b,offset=0 --layer=title=x os",
            {"layer_specs": [LayerSpec("a/b", offsets=Offsets(0, 0)), LayerSpec(title="x")]},
        ),
        (
            "--sideload /a/<ref>/<name> os",
            {"sideload": [sideload_pattern.parse("/a/<ref>/<name>")]},
        ),
        (
            "--sideload /b/<name>/<ref> --sideload=/a/<basename>-<ref>.tar os",
            {
                "sideload": [
                    sideload_pattern.parse("/b/<name>/<ref>"),
                    sideload_pattern.parse("/a/<basename>-<ref>.tar"),
                ]
            },
        ),
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
        ("--authfile a.json os", {"authfile": "a.json"}),
        ("--authfile /proc/self/fd/3 os", {"authfile": "/proc/self/fd/3"}),
        ("--authfile a --registry-token t os", {"authfile": "a", "registry_token": "t"}),
        ("--no-creds --authfile a os", {"authfile": "a", "no_creds": True}),
        ("--creds u:p:q os", {"creds": Credentials("u", "p:q", "", "--creds")}),
        ("--creds=u os", {"creds": Credentials("u", "", "", "--creds")}),
        ("--no-creds os", {"no_creds": True}),
        ("--registry-token a.b-c== os", {"registry_token": "a.b-c=="}),
        ("--cert-dir /certs os", {"cert_dir": "/certs"}),
        ("--registries-conf r.conf os", {"registries_conf": "r.conf"}),
        ("--registries.d /r.d os", {"registries_d": "/r.d"}),
        ("--no-mirrors os", {"no_mirrors": True}),
        ("--foreign-layers os", {"foreign_layers": True}),
        ("--retries 0 os", {"retries": 0}),
        ("--retries=12 os", {"retries": 12}),
        (f"--retries={'9' * 5000} os", {"retries": 999_999_999}),
        ("--stall-timeout 5 os", {"stall_timeout": 5.0}),
        ("--stall-timeout=0.5 os", {"stall_timeout": 0.5}),
        (
            "--cache /c --cache-size 20GiB os",
            {"cache": "/c", "cache_size": 20 << 30, "of_cache": "--cache-size"},
        ),
        ("--cache /c --tag-ttl 0 os", {"cache": "/c", "tag_ttl": 0.0, "of_cache": "--tag-ttl"}),
        (
            "--tag-ttl=300 --max-stale=12h --cache=/c os",
            {"cache": "/c", "tag_ttl": 300.0, "max_stale": 43200.0, "of_cache": "--max-stale"},
        ),
        ("--allow-remote os", {"allow_remote": True}),
        ("--host image.lan os", {"hosts": ["image.lan"]}),
        (
            "--host=Image.LAN. --host [2001:DB8::1] os --host 10.0.0.1",
            {"hosts": ["image.lan", "2001:db8::1", "10.0.0.1"]},
        ),
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
    assert vars(parse(arguments.split())) == {**DEFAULTS, **changes}


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ("", "the following arguments are required: IMAGE"),
        ("--offline", "the following arguments are required: IMAGE"),
        ("os other", "expected one IMAGE, got 2 arguments that are no options"),
        ("--unheard-of os", "unknown option: --unheard-of"),
        ("-x os", "unknown option: -x"),
        ("--off os", "unknown option: --off"),
        ("--offline=yes os", "argument --offline: it takes no value"),
        ("os --sockfd", "argument --sockfd: expected one argument"),
        ("--sockfd x os", 'argument --sockfd: "x" is not the number of a descriptor'),
        ("--sockfd= os", 'argument --sockfd: "" is not the number of a descriptor'),
        ("--sockfd=-1 os", 'argument --sockfd: "-1" is not the number of a descriptor'),
        ("--sockfd=+1 os", 'argument --sockfd: "+1" is not the number of a descriptor'),
        ("--sockfd=1_0 os", 'argument --sockfd: "1_0" is not the number of a descriptor'),
        ("--sockfd=\u0663 os", 'argument --sockfd: "\u0663" is not the number of a descriptor'),
        (
            "--host image.lan:80 os",
            'argument --host: "image.lan:80": expected the name or the address of a host, without a'
            " port",
        ),
        (
            "--artifact-type chart os",
            'argument --artifact-type: "chart": expected a media type, or image',
        ),
        ("--annotation =x os", 'argument --annotation: "=x": expected KEY or KEY=VALUE'),
        (
            "--layer type=a/b,offset=2-1 os",
            'argument --layer: "type=a/b,offset=2-1": column 17: "2-1" is reversed; write 1-2',
        ),
        (
            "--platform linux os",
            'argument --platform: "linux": expected OS/ARCH or OS/ARCH/VARIANT, such as'
            " linux/arm64",
        ),
        (
            "--sideload a/<ref>/<name> os",
            'argument --sideload: "a/<ref>/<name>": column 1: a pattern is an absolute path',
        ),
        (
            "--sideload /a/<ref>/<nam> os",
            'argument --sideload: "/a/<ref>/<nam>": column 10: "<nam>" is none of <ref>, <name>,'
            " <basename>, <registry>",
        ),
        (
            "--sideload= os",
            'argument --sideload: "": column 1: a pattern is an absolute path',
        ),
        ("os --sideload", "argument --sideload: expected one argument"),
        ("--tls-verify=maybe os", 'argument --tls-verify: "maybe" is neither true nor false'),
        ("--tls-verify= os", 'argument --tls-verify: "" is neither true nor false'),
        ("--retries=-1 os", 'argument --retries: "-1" is not a number of retries'),
        ("--retries= os", 'argument --retries: "" is not a number of retries'),
        ("--retries=1.5 os", 'argument --retries: "1.5" is not a number of retries'),
        ("--retries=\u0663 os", 'argument --retries: "\u0663" is not a number of retries'),
        *(
            (
                f"{first} {second} os",
                f"argument {second.partition(' ')[0]}: not allowed with argument"
                f" {first.partition(' ')[0]}",
            )
            for first, second in permutations(
                ["--creds u:p", "--no-creds", "--registry-token t"], 2
            )
        ),
        (
            "--cache-size=much os",
            'argument --cache-size: "much" is not a size, as 500M and 20GiB are',
        ),
        ("--cache-size=1M os", "--cache-size has no meaning without --cache DIR"),
        ("--tag-ttl=300 os", "--tag-ttl has no meaning without --cache DIR"),
        ("--max-stale=0 os", "--max-stale has no meaning without --cache DIR"),
        ("--tag-ttl=-1 os", 'argument --tag-ttl: "-1" is not a number of seconds'),
        (
            "--max-stale=1w os",
            'argument --max-stale: "1w" is not a duration, as 90s, 12h and 7d are',
        ),
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


def test_a_secret_after_a_short_option_is_not_shown() -> None:
    """Newer releases of argparse take the rest for further short options."""
    with pytest.raises(
        UsageError, match=r"-q/--quiet: it takes no value|unknown option: -u "
    ) as caught:
        parse(["-qu:hunter2", "os"])
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--creds", ":hunter2"], "--creds: expected USER[:PASSWORD], and the user is missing"),
        (["--creds", "u:hunter2\udcff"], "--creds: user or password is not UTF-8"),
        (["--registry-token", "hunter2\n"], "--registry-token: the value cannot be a bearer token"),
        (["--registry-token", ""], "--registry-token: the value cannot be a bearer token"),
    ],
    ids=["no-user", "no-text", "two-lines", "empty"],
)
def test_a_secret_that_is_malformed_is_not_shown(arguments: list[str], complaint: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse([*arguments, "os"])
    assert str(caught.value) == complaint
    assert caught.value.__context__ is None or "hunter2" not in str(caught.value.__context__)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--crds=u:hunter2", "os"], "unknown option: --crds"),
        (["--crds", "u:hunter2", "os"], "unknown option: --crds"),
        (["os", "--crds", "u:hunter2"], "unknown option: --crds"),
        (["--cred=hunter2", "--pass", "hunter2", "os"], "unknown option: --cred, --pass"),
        (["--creds:u:hunter2", "os"], "unknown option: --creds"),
        (["-uhunter2", "os"], "unknown option: -u"),
        (["-creds=u:hunter2", "os"], "unknown option: -c"),
        (["os", "u:hunter2"], "expected one IMAGE, got 2 arguments that are no options"),
        (["--no-creds=u:hunter2", "os"], "argument --no-creds: it takes no value"),
        (["--version=hunter2", "os"], "argument --version: it takes no value"),
    ],
    ids=lambda each: " ".join(each) if isinstance(each, list) else None,
)
def test_a_secret_given_to_a_wrong_option_is_not_shown(
    arguments: list[str], complaint: str
) -> None:
    """Standard error of a service goes into a log, and --crds is soon written."""
    with pytest.raises(UsageError) as caught:
        parse(arguments)
    assert str(caught.value) == f"{complaint} (imgproxy --help lists the options)"


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        ([], set()),
        (["--creds=u:hunter2", "--sockfd=x", "os"], {"hunter2", "dTpodW50ZXIy"}),
        (["--registry-token=a.b", "--unheard-of", "os"], {"a.b"}),
    ],
)
def test_the_secrets_of_options_are_known_even_if_others_are_wrong(
    arguments: list[str], found: set[str]
) -> None:
    options = Options()
    with pytest.raises(UsageError):
        parse(arguments, options)
    assert set(options.secrets) - {""} == found


def test_options_are_shown_without_their_secrets() -> None:
    assert "hunter2" not in repr(parse(["--creds", "u:hunter2", "os"]))


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
    assert Options.__annotations__.keys() == DEFAULTS.keys()
    known = {
        "image": "IMAGE",
        "sockfds": "--sockfd",
        "hosts": "--host",
        "annotations": "--annotation",
        "layer_specs": "--layer",
        "registries_d": "--registries.d",
    }
    for name in DEFAULTS:
        word = known.get(name, f"--{name.replace('_', '-')}")
        assert f" {word} " in text.replace(",", " ").replace("\n", " "), word


def test_the_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse(["--version", "--unheard-of"])
    assert not caught.value.code
    assert capsys.readouterr().out == f"imgproxy {__version__}\n"
