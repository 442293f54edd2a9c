"""What `imgproxy pull` takes; see `commands`."""

from __future__ import annotations

from imgproxy.cli import options as common
from imgproxy.cli import stored_names
from imgproxy.cli.options import Options
from imgproxy.errors import UsageError

TYPE_CHECKING = False  # see `options`
if TYPE_CHECKING:
    from imgproxy.cli.parser import Parser
    from imgproxy.specs.oci.reference import LayoutName

DESCRIPTION = "Copy an image, verified, into an OCI layout that many processes may share."


class PullOptions(Options):
    """The options of `pull`."""

    store: LayoutName
    all_platforms: bool
    convert: str | None


def add_options(parser: Parser) -> None:
    """See `commands.Command`."""
    add = parser.add_argument
    add("image", metavar="IMAGE", help="the image to copy")
    add(
        "store",
        metavar="oci:DIR[:REF]",
        type=stored_names.layout,
        help="the store, and the name there",
    )
    add("--all-platforms", action="store_true", help="the whole index, with all that it names")
    add(
        "--convert",
        choices=("oci",),
        help="oci: rename the media types of Docker's manifests, which gives them other digests",
    )
    common.add_choice(parser)
    common.add_credentials(parser, parser.add_mutually_exclusive_group())
    common.add_configuration(parser)
    common.add_networks(parser)
    common.add_cache(parser)


def check(options: PullOptions) -> None:
    """See `commands.CommandOptions`."""
    if options.all_platforms and (options.artifact_type or options.annotations):
        raise UsageError("--all-platforms has all of an index; leave out what chooses from it")
