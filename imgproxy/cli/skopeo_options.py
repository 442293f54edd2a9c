"""The options of `experimental-image-proxy`: imgproxy-skopeo(7), OPTIONS.

They are skopeo's, before the command or after it, and those of this program that have a meaning
here. What would change the meaning of an image or of its trust is refused by name, not ignored.
"""

from __future__ import annotations

import argparse
from functools import partial

from imgproxy.cli import options as common
from imgproxy.cli import values
from imgproxy.cli.options import Options
from imgproxy.cli.parser import Parser, described, unknown_options
from imgproxy.errors import UsageError, clean

TYPE_CHECKING = False  # `typing` would take a tenth of the time until Initialize is answered
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import NoReturn

    from imgproxy.specs.oci.platform import Platform

COMMAND = "experimental-image-proxy"

# The name of a link to this program that stands in for skopeo.
LINK = "skopeo"

DESCRIPTION = """\
Serve container images in the protocol of "skopeo experimental-image-proxy", version 0.2.8, on an
inherited sequential-packet socket. Everything that is delivered has been verified."""

EPILOG = """\
Called by the name skopeo, imgproxy takes skopeo's place for this command alone.
See imgproxy-skopeo(7)."""

# What changes nothing here: there are no daemons and no temporary files, and skopeo's own proxy
# has no use for the time-out either.
_WITHOUT_EFFECT = ("--daemon-host", "--command-timeout", "--tmpdir")

# What cannot be left out without a difference that nobody sees.
_UNSUPPORTED = {
    "--decryption-key": "encrypted images are not read, by skopeo's proxy neither",
    "--shared-blob-dir": "layouts whose blobs are elsewhere are not read",
    "--tls-details": "the versions and ciphers of TLS are those of OpenSSL's configuration",
}


class SkopeoOptions(Options):
    """The options of skopeo's protocol. `sockfd` is the number of a descriptor.

    `contradiction` is what Initialize fails with, empty where the options do not contradict each
    other.
    """

    command: str
    sockfd: int
    username: str | None
    password: str | None
    override_arch: str | None
    override_os: str | None
    override_variant: str | None
    contradiction = ""

    @property
    def secrets(self) -> Iterator[str]:
        """See `Options`."""
        yield from super().secrets
        yield getattr(self, "password", None) or ""


def parse(arguments: list[str], options: SkopeoOptions, program: str) -> None:
    """Parse the command line of a program that was called `program`. Raises `UsageError`.

    `options` receives them one by one, and so has those before an error.
    """
    parser = _parser(program)
    unknown = common.parse_known(parser, arguments, options)
    names = unknown_options(unknown)
    # After an unknown option, what seems to be the command may be its value, and a secret.
    if options.command != COMMAND and (not names or arguments[0] == options.command):
        raise UsageError(_no_such_command(options.command, program))
    if names:
        parser.error(described(unknown))
    if unknown:
        parser.error(f"{COMMAND} takes no arguments but options, and there are {len(unknown)}")
    if options.insecure_policy and options.requires_signatures:
        parser.error("argument --require-signed: not allowed with argument --insecure-policy")
    options.contradiction = _contradiction(options)
    if options.username is not None and options.password is not None:
        options.creds = values.creds(f"{options.username}:{options.password}")
    if options.override_arch or options.override_os or options.override_variant:
        options.platform = _overridden(options)


def _no_such_command(command: str | None, program: str) -> str:
    if program != LINK:
        return f"expected {COMMAND}, got {clean(command or 'nothing')}"
    called = f"{LINK} {clean(command or '')}".strip()
    return (
        f"{called}: this is imgproxy, which takes the place of skopeo for {COMMAND} alone; install"
        " skopeo for everything else, or remove the link"
    )


def _contradiction(options: SkopeoOptions) -> str:
    given = {
        "creds": options.creds is not None,
        "username": options.username is not None,
        "no-creds": options.no_creds,
        "registry-token": options.registry_token is not None,
    }
    found = [name for name, is_given in given.items() if is_given]
    if len(found) > 1:
        return f"{found[0]} and {found[1]} cannot be specified at the same time"
    if options.username is not None and options.password is None:
        return "password must be specified when username is specified"
    if options.password is not None and options.username is None:
        return "username must be specified when password is specified"
    return ""


def _overridden(options: SkopeoOptions) -> Platform:
    """Return the platform of this host with what options put in its place."""
    from imgproxy.host import environment
    from imgproxy.specs.oci import platform as platforms

    host = environment.host_platform()
    named = (
        options.override_os or host.os,
        options.override_arch or host.architecture,
        options.override_variant or "",
    )
    try:
        return platforms.parse("/".join(filter(None, named)))
    except ValueError as error:
        raise UsageError(f"--override-os, --override-arch, --override-variant: {error}") from None


def _parser(program: str) -> Parser:
    name = LINK if program == LINK else "imgproxy"
    parser = Parser(f"{name} {COMMAND}", DESCRIPTION, EPILOG)
    add = parser.add_argument
    add("command", metavar=COMMAND, nargs="?", help="after options or before them")
    add(
        "--sockfd",
        metavar="FD",
        type=values.descriptor,
        default=0,
        help="inherited socket to serve on (default: 0, standard input)",
    )
    for name, what in (("os", "OS"), ("arch", "ARCH"), ("variant", "VARIANT")):
        add(f"--override-{name}", metavar=what, help="what to choose from an index, in part")
    common.add_choice(parser)
    common.add_credentials(parser, parser)
    add("--username", metavar="USER", help="with --password, as --creds")
    add("--password", metavar="PASSWORD", help="with --username, as --creds")
    common.add_configuration(parser)
    add(
        "--require-signed",
        dest="requires_signatures",
        action="store_true",
        help="reject what the policy accepts without a signature",
    )
    common.add_networks(parser)
    common.add_cache(parser)
    add(
        "--user-agent-prefix",
        metavar="PREFIX",
        type=_prefix,
        default="",
        help="what comes before imgproxy's own name in User-Agent",
    )
    for option in _WITHOUT_EFFECT:
        add(option, metavar="VALUE", help="accepted, without effect")
    for option, reason in _UNSUPPORTED.items():
        add(option, metavar="VALUE", type=partial(_refuse, option, reason), help="not supported")
    common.add_diagnostics(parser)
    return parser


def _refuse(option: str, reason: str, _: str) -> NoReturn:
    raise UsageError(f"{option} is not supported: {reason}")


def _prefix(text: str) -> str:
    """Return what may stand before a product in `User-Agent`: RFC 9110 section 5.5, in ASCII."""
    if not (text.isascii() and text.isprintable() and text.strip() == text):
        raise argparse.ArgumentTypeError("it cannot be in a header field")
    return text
