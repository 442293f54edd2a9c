"""Entry of `python tests/bench`.

Python puts this folder on the path; the bench is a package, and it needs `images` from the folder
above. One entry of the path is enough for both.
"""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

from bench.command import main  # noqa: E402  (the path comes first)

sys.exit(main())
