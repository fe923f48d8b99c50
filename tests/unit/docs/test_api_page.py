"""docs/api.md has every address that a node serves."""

from __future__ import annotations

import pytest
import source_code
from source_code import ROOT

from exo import contract

PAGE = (ROOT / "docs/api.md").read_text()


def routes() -> list[str]:
    """The paths in `exo/api/app.py`, those of the contract among them."""
    app = next(module for module in source_code.modules() if module.path == "exo/api/app.py")
    paths = {text for _, text in source_code.strings(app) if text.startswith("/")}
    paths |= {contract.LIVE_PATH, contract.READY_PATH, contract.STARTED_PATH, contract.METRICS_PATH}
    return sorted(paths)


@pytest.mark.parametrize("route", routes())
def test_the_page_has_it(route: str) -> None:
    """Whole, or what comes after the part that a row of the page says once."""
    name = route.partition("{")[0].rstrip("/") or "/"
    assert f"{name}`" in PAGE or f"`/{name.rpartition('/')[2]}`" in PAGE or f"{name}/" in PAGE
