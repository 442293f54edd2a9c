"""What `imgproxy copy` takes; see `commands`."""

from __future__ import annotations

import os

from imgproxy.cli import layer_options, values
from imgproxy.cli import options as common
from imgproxy.cli.layer_options import LayerOptions
from imgproxy.errors import UsageError

TYPE_CHECKING = False  # see `options`
if TYPE_CHECKING:
    from imgproxy.cli.parser import Parser
    from imgproxy.specs.oci.layer_names import Template

DESCRIPTION = "Write the layers of an image or an artifact as files, verified and as they are."

STDOUT = 1


class CopyOptions(LayerOptions):
    """The options of `copy`."""

    name: Template | None
    overwrite: bool


def add_options(parser: Parser) -> None:
    """See `commands.Command`."""
    layer_options.add_operands(
        parser,
        to=values.new_directory_or_output,
        more="; - is standard output, for one layer",
    )
    add = parser.add_argument
    add(
        "--name",
        metavar="TEMPLATE",
        type=values.template,
        help="how to name files, with {title}, {annotation:KEY}, {index} and {offset} (the place in"
        " the manifest, and among those chosen), {digest}, {short}, {algorithm} and {ext} in it"
        " (default: {title}, or {index}-{short}{ext})",
    )
    add(
        "--overwrite",
        action="store_true",
        help="write into a directory that has files, and replace those of the same names",
    )
    common.add_layers(parser)
    layer_options.add_options(parser, max_size="1GiB", max_files=100_000)


def check(options: CopyOptions) -> None:
    """See `commands.CommandOptions`."""
    if options.directory == "-" and (options.format == "json" or os.isatty(STDOUT)):
        raise UsageError("standard output is for the layer: redirect it, without --format json")
