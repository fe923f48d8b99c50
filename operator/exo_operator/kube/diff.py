"""Whether a live object is as we want it. Pure."""

from __future__ import annotations

from typing import Any


def differs(wanted: Any, live: Any) -> bool:
    """Whether a field that we set has another value. Fields that others added, or that the API
    server filled in, do not count.
    """
    if isinstance(wanted, dict):
        return not isinstance(live, dict) or any(differs(v, live.get(k)) for k, v in wanted.items())
    if isinstance(wanted, list):
        if not isinstance(live, list) or len(wanted) != len(live):
            return True
        if wanted and isinstance(wanted[0], dict) and "uid" in wanted[0]:
            # Owner references: a map by uid, whose order means nothing.
            wanted, live = (
                sorted(items, key=lambda item: str(item["uid"])) for items in (wanted, live)
            )
        return any(differs(a, b) for a, b in zip(wanted, live, strict=True))
    return bool(wanted != live)
