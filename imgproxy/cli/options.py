"""The options of the command line: imgproxy(1), OPTIONS.

Their names follow skopeo, so that habits and scripts carry over.
"""

from __future__ import annotations

import argparse

from imgproxy import __version__
from imgproxy.cli import values
from imgproxy.cli.parser import Parser, described

TYPE_CHECKING = False  # `typing` would take a fifth of the time of a usage error
if TYPE_CHECKING:
    from collections.abc import Iterator

    from imgproxy.config.sideload_pattern import Pattern
    from imgproxy.specs.http.credentials import Credentials
    from imgproxy.specs.oci.layer_selection import LayerSpec
    from imgproxy.specs.oci.manifest_selection import Annotation
    from imgproxy.specs.oci.platform import Platform

DESCRIPTION = """\
Serve a container image over HTTP/1.1 on an inherited socket: GET /manifest, GET /config,
GET /blobs/<digest>, GET /manifests/<digest>, GET /candidates, GET /layers, POST /quit. Everything
that is delivered has been verified."""

EPILOG = """\
IMAGE is docker://[HOST[:PORT]/]NAME[:TAG][@DIGEST], oci:DIR[:REF], oci-archive:FILE[:REF],
docker-archive:FILE[:NAME[:TAG]], dir:DIR, the path of any of these beginning with /, ./ or ../,
a name that begins with a registry (quay.io/acme/os:1), or a short name (busybox), which
registries.conf resolves. :@N in place of :REF or :NAME chooses by position.
Without --sockfd, systemd's LISTEN_FDS are served, else standard input and output.

In place of IMAGE, a command: copy and extract write layers as files, and unpack a root file
system; pull, list, tag, rm, gc, verify and export are for images in a layout; registry serves
what lies on this host as a registry, and experimental-image-proxy speaks skopeo's protocol.
imgproxy COMMAND --help describes each.
See imgproxy(1)."""


# The options that take a value, of all commands: the first word after them is not theirs.
WITH_VALUE = frozenset(
    {
        *("--artifact-type", "--annotation", "--layer"),
        *("--name", "--max-size", "--max-files", "--merge", "--strip", "--include"),
        *("--sockfd", "--platform", "--sideload", "--tls-verify", "--authfile", "--creds"),
        *("--registry-token", "--cert-dir", "--registries-conf", "--registries.d", "--policy"),
        *("--retries", "--stall-timeout", "--host", "--format"),
        *("--cache", "--cache-size", "--tag-ttl", "--max-stale", "--grace", "--convert"),
        *("--images", "--listen", "--default-registry", "--upstream"),
        *("--tls-cert", "--tls-key", "--client-ca", "--htpasswd"),
        *("--owner", "--config"),
    }
)

# What options stand for whose value may be left out.
_WITHOUT_VALUE = {
    "--tls-verify": "--tls-verify=true",
    "--layer-per-dir": "--layer-per-dir={index}-{short}",
}


class Options(argparse.Namespace):
    """The values of all options. `sockfds` are numbers of descriptors, times are in seconds."""

    image: str
    sockfds: list[int]
    platform: Platform | None
    artifact_type: str | None
    annotations: list[Annotation]
    layer_specs: list[LayerSpec]
    sideload: list[Pattern]
    offline: bool
    tls_verify: bool | None
    policy: str | None
    insecure_policy: bool
    authfile: str | None
    creds: Credentials | None
    no_creds: bool
    registry_token: str | None
    cert_dir: str | None
    registries_conf: str | None
    registries_d: str | None
    no_mirrors: bool
    foreign_layers: bool
    retries: int
    stall_timeout: float
    cache: str | None
    cache_size: int | None
    tag_ttl: float
    max_stale: float
    allow_remote: bool
    hosts: list[str]
    quiet: bool
    debug: bool
    # The option that has no meaning without `cache`, if one was given.
    of_cache = ""
    # Of commands alone.
    format = "text"
    # Of skopeo's protocol alone.
    requires_signatures = False
    user_agent_prefix = ""

    @property
    def secrets(self) -> Iterator[str]:
        """What must not be shown, of the options that have been parsed so far."""
        creds: Credentials | None = getattr(self, "creds", None)
        if creds is not None:
            from imgproxy.specs.http.secrets import of_credentials

            yield from of_credentials(creds)
        yield getattr(self, "registry_token", None) or ""


def parse(arguments: list[str], options: Options | None = None) -> Options:
    """Return the options in the arguments of a command line. Raises `UsageError`.

    `options` receives them one by one, and so has those before an error.
    """
    options = options or Options()
    parser = _parser()
    unknown = parse_known(parser, arguments, options)
    if unknown:
        parser.error(described(unknown))
    return options


def parse_known(
    parser: Parser, arguments: list[str], options: Options, *, intermixed: bool = False
) -> list[str]:
    """Parse the options that a parser knows, and return the arguments that are left.

    `intermixed`: operands that may be several have options between them.
    """
    # Without a value, the option must not take the argument that follows it for one.
    arguments = [_WITHOUT_VALUE.get(each, each) for each in arguments]
    parse = parser.parse_known_intermixed_args if intermixed else parser.parse_known_args
    unknown = parse(arguments, options)[1]
    if options.of_cache and options.cache is None:
        parser.error(f"{options.of_cache} has no meaning without --cache DIR")
    return unknown


def _parser() -> Parser:
    parser = Parser("imgproxy", DESCRIPTION, EPILOG)
    # In the order of `--help`.
    parser.add_argument("image", metavar="IMAGE", help="the image to serve")
    add_sockets(parser)
    add_choice(parser)
    add_layers(parser)
    credentials = parser.add_mutually_exclusive_group()
    add_credentials(parser, credentials)
    add_configuration(parser)
    add_networks(parser)
    add_cache(parser)
    add_service(parser)
    add_diagnostics(parser)
    return parser


def add_command(parser: Parser) -> None:
    """Add the word that has chosen the parser, which may stand before or after options."""
    parser.add_argument("command", help=argparse.SUPPRESS)


def add_sockets(parser: Parser) -> None:
    """Add the option that names inherited sockets."""
    parser.add_argument(
        "--sockfd",
        metavar="FD",
        dest="sockfds",
        type=values.descriptor,
        action="append",
        default=[],
        help="inherited socket to serve on, connected or listening; may be given several times",
    )


def add_sideload(parser: Parser) -> None:
    """Add the option for paths of images."""
    parser.add_argument(
        "--sideload",
        metavar="PATTERN",
        type=values.pattern,
        action="append",
        default=[],
        help="a path where images of registries lie on this host, with <ref> and <name> or"
        " <basename> in it; may be given several times",
    )


def add_choice(parser: Parser) -> None:
    """Add the options that say which image is meant, and where it may come from."""
    add_platform(parser, "what to choose from an index (default: this host)")
    add_conditions(parser)
    add_places(parser)


def add_conditions(parser: Parser) -> None:
    """Add the options for what to choose from an index besides the platform."""
    add = parser.add_argument
    add(
        "--artifact-type",
        metavar="TYPE",
        type=values.artifact_type,
        help="choose what is of this type: a media type, or image",
    )
    add(
        "--annotation",
        metavar="KEY[=VALUE]",
        dest="annotations",
        type=values.annotation,
        action="append",
        default=[],
        help="choose what has this annotation; may be given several times, and all must hold",
    )


def add_layers(parser: Parser) -> None:
    """Add the option for layers."""
    parser.add_argument(
        "--layer",
        metavar="SPEC",
        dest="layer_specs",
        type=values.layer,
        action="append",
        default=[],
        help="choose layers: type=MEDIATYPE,title=GLOB,annotation:KEY=VALUE,digest=D,offset=N[-M],"
        " of which all that are given must hold; may be given several times, and any may hold"
        " (default: all layers)",
    )


def add_platform(parser: Parser, purpose: str) -> None:
    """Add the option for a platform."""
    parser.add_argument(
        "--platform", metavar="OS/ARCH[/VARIANT]", type=values.platform, help=purpose
    )


def add_places(parser: Parser) -> None:
    """Add the options that say where an image may come from."""
    add_sideload(parser)
    add_reach(parser)


def add_reach(parser: Parser) -> None:
    """Add the options that say whether networks are used, and which servers are believed."""
    add = parser.add_argument
    add("--offline", action="store_true", help="never open a network connection")
    add(
        "--tls-verify",
        metavar="true|false",
        type=values.boolean,
        help="verify certificates, whatever registries.conf sets (default: verify, unless it sets"
        " insecure); --tls-verify=false, with the =, also allows plain http",
    )


def add_credentials(parser: Parser, group: argparse._ActionsContainer) -> None:
    """Add the options for credentials; those of which only one may be given to `group`."""
    parser.add_argument(
        "--authfile", metavar="FILE", help="the only file to look for credentials in"
    )
    add = group.add_argument
    add(
        "--creds",
        metavar="USER[:PASSWORD]",
        type=values.creds,
        help="credentials for the image's own registry, before those in files",
    )
    add("--no-creds", action="store_true", help="no credentials, even if files have some")
    add(
        "--registry-token",
        metavar="TOKEN",
        type=values.token,
        help="bearer token for the image's own registry",
    )


def add_configuration(parser: Parser) -> None:
    """Add the options that stand in for configuration files."""
    add_registries(parser)
    add = parser.add_argument
    add(
        "--registries.d",
        metavar="DIR",
        dest="registries_d",
        help="the directory that configures where signatures are, in place of the system's",
    )
    add(
        "--foreign-layers",
        action="store_true",
        help="fetch layers that lie outside the registry from the URLs in the manifest",
    )
    add = parser.add_mutually_exclusive_group().add_argument
    add("--policy", metavar="FILE", help="the policy.json to use in place of the system's")
    add(
        "--insecure-policy",
        action="store_true",
        help="accept any image, without regard to policy.json",
    )


def add_registries(parser: Parser) -> None:
    """Add the options that say how registries are reached."""
    add = parser.add_argument
    add("--cert-dir", metavar="DIR", help="certificates for every host, in place of certs.d")
    add(
        "--registries-conf",
        metavar="FILE",
        help="the registries.conf to use in place of the system's; drop-ins still count",
    )
    add("--no-mirrors", action="store_true", help="ask the primary location alone")


def add_networks(parser: Parser) -> None:
    """Add the options for how long a bad network is put up with."""
    add = parser.add_argument
    add(
        "--retries",
        metavar="N",
        type=values.count,
        default=5,
        help="how often to try again after a failure that may pass (default: 5); for a blob the"
        " count starts again after each megabyte",
    )
    add(
        "--stall-timeout",
        metavar="SECONDS",
        type=values.seconds,
        default=60.0,
        help="how long a registry may send nothing (default: 60)",
    )


class _OfCache(argparse.Action):
    """An option that says something of the cache."""

    def __call__(
        self, _: object, options: argparse.Namespace, value: object, option: str | None = None
    ) -> None:
        """See `argparse`."""
        setattr(options, self.dest, value)
        options.of_cache = option


def add_cache(parser: Parser) -> None:
    """Add the options for what is kept of images."""
    add = parser.add_argument
    add(
        "--cache",
        metavar="DIR",
        type=values.directory,
        help="keep what registries send, verified, in a store there, and look there first",
    )
    add(
        "--cache-size",
        action=_OfCache,
        metavar="SIZE",
        type=values.size,
        help="remove from the cache what was used least recently, beyond 500M or 20GiB, say"
        " (default: no bound)",
    )
    add(
        "--tag-ttl",
        action=_OfCache,
        metavar="SECONDS",
        type=values.seconds_or_none,
        default=0.0,
        help="how long the cache knows what a tag stands for before it is asked again (default: 0,"
        " always ask)",
    )
    add(
        "--max-stale",
        action=_OfCache,
        metavar="DURATION",
        type=values.duration,
        default=7 * 86400.0,
        help="how old what the cache knows of a tag may be where the registry is away, in s, m, h"
        " or d (default: 7d; 0: never)",
    )


def add_service(parser: Parser) -> None:
    """Add the options for listeners."""
    add = parser.add_argument
    add(
        "--allow-remote",
        action="store_true",
        help="accept connections on a TCP listener from other than loopback",
    )
    add(
        "--host",
        metavar="NAME",
        dest="hosts",
        type=values.host,
        action="append",
        default=[],
        help="a name or address, besides those of loopback, that requests on a TCP listener may be"
        " for; may be given several times",
    )


def add_diagnostics(parser: Parser) -> None:
    """Add the options for what is said on standard error, and `--version`."""
    add = parser.add_argument
    add("-q", "--quiet", action="store_true", help="nothing on standard error")
    add("--debug", action="store_true", help="a line for each request on standard error")
    add("--version", action="version", version=f"imgproxy {__version__}")
