"""What `imgproxy extract` takes; see `commands`."""

from __future__ import annotations

from imgproxy.cli import layer_options, values
from imgproxy.cli import options as common
from imgproxy.cli.layer_options import LayerOptions

TYPE_CHECKING = False  # see `options`
if TYPE_CHECKING:
    from imgproxy.cli.parser import Parser
    from imgproxy.specs.oci.layer_names import Template

DESCRIPTION = "Extract the archives in the layers of an image or an artifact into a directory."


class ExtractOptions(LayerOptions):
    """The options of `extract`."""

    layer_per_dir: Template | None
    merge: str
    strip: int
    include: list[str]


def add_options(parser: Parser) -> None:
    """See `commands.Command`."""
    layer_options.add_operands(parser)
    add = parser.add_argument
    add(
        "--layer-per-dir",
        metavar="TEMPLATE",
        type=values.template,
        help="a directory in DIR for each layer, named as copy --name has it (default, without a"
        " value: {index}-{short}); the value stands after a =",
    )
    add(
        "--merge",
        choices=("later",),
        help="later: of one path in two layers, that in the later layer counts (default: it is an"
        " error)",
    )
    add(
        "--strip",
        metavar="N",
        type=values.number,
        default=0,
        help="take the first N directories off the front of each name (default: 0)",
    )
    add(
        "--include",
        metavar="GLOB",
        action="append",
        default=[],
        help="extract what fits this pattern, or is in a directory that does; * stands for / as"
        " well; may be given several times, and any may fit (default: everything)",
    )
    common.add_layers(parser)
    layer_options.add_options(parser, max_size="1GiB", max_files=100_000)
