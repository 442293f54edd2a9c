"""How many examples are tried: the same ones in every run, or a campaign of new ones.

IMGPROXY_PROPERTY_EXAMPLES=100000 makes it a campaign, with so many examples of each property.
"""

from __future__ import annotations

import os

from hypothesis import HealthCheck, Phase, settings
from support.effort import SLOW

settings.register_profile(
    "tests",
    derandomize=True,
    max_examples=60 if SLOW else 20,
    deadline=None,
    database=None,
    phases=set(Phase) - {Phase.explain},
)
settings.register_profile(
    "campaign",
    max_examples=int(os.environ.get("IMGPROXY_PROPERTY_EXAMPLES", "100000")),
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    print_blob=True,
)
settings.load_profile("campaign" if "IMGPROXY_PROPERTY_EXAMPLES" in os.environ else "tests")
