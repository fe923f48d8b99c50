"""The `EXO_…` variables that exist, and which of them a misspelt one was meant to be. Pure.

An unknown name is no error: Kubernetes sets its own variables (service links) for a Service called
`exo` or `exo-…`, and so may other programs. Only a name close to one of ours is reported.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from typing import Final

from exo.cli.settings.options import SETTINGS
from exo.contract import ENV_PREFIX, env_name

KNOWN: Final = frozenset(
    {env_name(setting.name) for setting in SETTINGS}
    | {env_name(name) for name in ("config", "debug", "fault-dir", "url")}
)
# How similar names (without the prefix) must be: MODLE and MODEL are 0.8, NODE_IMAGE and NODE_ID
# 0.71.
_ALIKE: Final = 0.75
_SERVICE_LINK: Final = re.compile(
    r"(_SERVICE_HOST|_SERVICE_PORT(_\w+)?|_PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)$"
)
_LINKED_PORT: Final = re.compile(r"(tcp|udp|sctp)://")


def misspelt(environ: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Each unknown variable that is close to a known one, and that known one."""
    known = sorted(name.removeprefix(ENV_PREFIX) for name in KNOWN)
    for variable, value in sorted(environ.items()):
        name = variable.removeprefix(ENV_PREFIX)
        if name == variable or variable in KNOWN or _is_service_link(variable, value):
            continue
        for meant in difflib.get_close_matches(name, known, n=1, cutoff=_ALIKE):
            yield variable, ENV_PREFIX + meant


def _is_service_link(variable: str, value: str) -> bool:
    """`<SERVICE>_PORT` looks like a setting, but has a value like tcp://10.0.0.1:52415."""
    return bool(
        _SERVICE_LINK.search(variable) or (variable.endswith("_PORT") and _LINKED_PORT.match(value))
    )
