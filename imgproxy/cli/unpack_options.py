"""What `imgproxy unpack` takes; see `commands`."""

from __future__ import annotations

from imgproxy.cli import layer_options, values
from imgproxy.cli.layer_options import LayerOptions
from imgproxy.unpacking.limits import MAX_FILES, MAX_SIZE

TYPE_CHECKING = False  # see `options`
if TYPE_CHECKING:
    from imgproxy.cli.parser import Parser
    from imgproxy.unpacking.ownership import Ownership

DESCRIPTION = "Unpack the root file system of an image into a directory that is absent or empty."


class UnpackOptions(LayerOptions):
    """The options of `unpack`."""

    owner: Ownership | None
    config: str | None


def add_options(parser: Parser) -> None:
    """See `commands.Command`."""
    layer_options.add_operands(parser, image="the image")
    add = parser.add_argument
    add(
        "--owner",
        metavar="keep|me|record|map=FIRST:THERE:COUNT,…",
        type=values.ownership,
        help="keep: the owners in the image; me: you own all; record: you do, and an extended"
        " attribute tells the owners in the image; map: other numbers for users and groups"
        " (default: keep for root, else record)",
    )
    add("--config", metavar="FILE", help="write the image's configuration there as well")
    parser.set_defaults(layer_specs=[])
    layer_options.add_options(parser, max_size=f"{MAX_SIZE >> 30}GiB", max_files=MAX_FILES)
