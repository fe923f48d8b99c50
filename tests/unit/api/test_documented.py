"""docs/api.md names every address of the API and every field of a completion."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from api_fakes import Fakes
from pydantic import BaseModel

from exo.api.app import build_app
from exo.api.openai.schema import ChatRequest, CompletionRequest
from exo.api.route_labels import PARAMETER

PAGE = (Path(__file__).parents[3] / "docs" / "api.md").read_text(encoding="utf-8")


def test_every_address_is_on_the_page() -> None:
    routes = build_app(Fakes().context()).routes
    paths = [PARAMETER.sub("{id}", str(getattr(route, "path", ""))) for route in routes]
    assert len(paths) > 10
    assert [path for path in paths if not re.search(rf"[` ]{re.escape(path)}`", PAGE)] == []


@pytest.mark.parametrize("body", [ChatRequest, CompletionRequest])
def test_every_field_is_on_the_page(body: type[BaseModel]) -> None:
    missing = {name for name in body.model_fields if f"`{name}`" not in PAGE}
    assert missing == set(), "list them in docs/api.md"
