"""Entry of `python tests/load`; the path is that of `tests/bench/__main__.py`."""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

from load.command import main  # noqa: E402  (the path comes first)

sys.exit(main())
