"""For all tests: what Hypothesis may not depend on.

An example that a busy machine stretches over Hypothesis' default deadline of 0.2 s is no bug, and a
random find fails whichever change is under test. So examples are the same each time;
`--hypothesis-profile=explore` looks for new ones.
"""

from __future__ import annotations

from hypothesis import HealthCheck, settings

settings.register_profile(
    "suite",
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
    print_blob=True,
)
settings.register_profile("explore", settings.get_profile("suite"), derandomize=False)
settings.load_profile("suite")
