"""What `copy`, `extract` and `unpack` all take."""

from __future__ import annotations

from imgproxy.cli import options as common
from imgproxy.cli import values
from imgproxy.cli.options import Options

TYPE_CHECKING = False  # see `options`
if TYPE_CHECKING:
    from collections.abc import Callable

    from imgproxy.cli.parser import Parser


class LayerOptions(Options):
    """The options of commands that write what layers hold."""

    directory: str
    max_size: int
    max_files: int


def add_operands(
    parser: Parser,
    image: str = "the image or artifact",
    to: Callable[[str], str] = values.new_directory,
    more: str = "",
) -> None:
    """Add the image and the directory: `to` parses its name, `more` says what else it may be."""
    add = parser.add_argument
    add("image", metavar="IMAGE", help=image)
    add("directory", metavar="DIR", type=to, help=f"a directory, absent or empty{more}")


def add_options(parser: Parser, *, max_size: str, max_files: int) -> None:
    """Add the options that all of these commands take, with these limits."""
    add = parser.add_argument
    add(
        "--max-size",
        metavar="SIZE",
        type=values.size,
        default=max_size,
        help=f"how much may be written, in bytes or as 500M or 2GiB (default: {max_size})",
    )
    add(
        "--max-files",
        metavar="N",
        type=values.number,
        default=max_files,
        help=f"how many files may be written (default: {max_files})",
    )
    common.add_choice(parser)
    common.add_credentials(parser, parser.add_mutually_exclusive_group())
    common.add_configuration(parser)
    common.add_networks(parser)
    common.add_cache(parser)
