"""For all tests: how Hypothesis runs.

On a busy machine an example may exceed the default deadline of 0.2 s without being a bug, so there
is none. Examples are the same in each run, so that a random find does not fail an unrelated change;
`--hypothesis-profile=explore` tries new ones.
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
