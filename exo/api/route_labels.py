"""The label of a request's route in the metrics, from the routes of the app.

Labels must be few: a route's template is one (`/v1/models/{id}`), a path that a client invents is
not. A route that is added to the app has its label at once.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from starlette.routing import BaseRoute, Match
from starlette.types import Scope

OTHER: Final = "other"
PARAMETER: Final = re.compile(r"\{[^}]*\}")


class RouteLabels:
    """`routes` may grow after this object is made; it is read with each request."""

    def __init__(self, routes: Iterable[BaseRoute]) -> None:
        self._routes = routes

    def of(self, scope: Scope) -> str:
        """Also for a method that the path does not take: its label is that of the path."""
        for route in self._routes:
            if route.matches(scope)[0] is not Match.NONE:
                return PARAMETER.sub("{id}", str(getattr(route, "path", OTHER)))
        return OTHER
