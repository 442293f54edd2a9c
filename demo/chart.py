#!/usr/bin/env python3
"""Save a Helm chart, verified, from a registry or a layout, also from an index of many things.

chart.py IMAGE FILE [OPTIONS OF IMGPROXY]
"""

import os
import shutil
import sys

from imgproxy import parent

TYPE = "application/vnd.cncf.helm.config.v1+json"
CONTENT = "application/vnd.cncf.helm.chart.content.v1.tar+gzip"

image, path, *options = sys.argv[1:]
options += [f"--artifact-type={TYPE}", f"--layer=type={CONTENT}"]
command = [os.environ.get("IMGPROXY", "imgproxy")]
try:
    with (
        parent.start(image, *options, command=command) as child,
        open(f"{path}.part", "wb") as file,
    ):
        shutil.copyfileobj(child.layer(0), file)  # raises if the chart is not whole
    os.rename(f"{path}.part", path)
except parent.ParentError as error:
    sys.exit(f"chart.py: {error}")
