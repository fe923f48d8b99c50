"""docs/operations.md lists the model families that a node can run, and no others."""

from __future__ import annotations

import re

from source_code import ROOT

from exo.inference.models import supported_families


def test_the_supported_families_are_listed() -> None:
    section = (ROOT / "docs/operations.md").read_text().partition("\n## Models\n")[2]
    table = section.partition("\n## ")[0]
    listed = re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)
    assert sorted(listed) == sorted(supported_families())
