"""`Setting`: one row of the options table. Imports nothing heavy: `exo --help` must be quick."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin

from exo.contract import env_name


def unchanged(value: Any) -> Any:
    return value


@dataclass(frozen=True, slots=True)
class Feed:
    """A field that a setting fills: `node.model` is the field `model` of `NodeSettings`.

    The records are those of `exo.cli.settings.records`. A value of None leaves a field's default.
    """

    field: str
    convert: Callable[[Any], Any] = unchanged


@dataclass(frozen=True, slots=True)
class Setting:
    """feeds: the fields it fills; left out, the node's field of the same name.
    shown: what help says about a default that is found at run time.
    secret: never printed.
    """

    name: str
    kind: Any
    default: Any
    help: str
    metavar: str | None = None
    shown: str | None = None
    secret: bool = False
    least: float | None = None
    most: float | None = None
    feeds: tuple[Feed, ...] = ()

    def __post_init__(self) -> None:
        if not self.feeds:
            object.__setattr__(self, "feeds", (Feed(f"node.{self.key}"),))

    @property
    def key(self) -> str:
        return self.name.replace("-", "_")

    @property
    def plain_kind(self) -> Any:
        """The kind without `| None`."""
        if get_origin(self.kind) is Literal:
            return self.kind
        return next((kind for kind in get_args(self.kind) if kind is not NoneType), self.kind)

    @property
    def choices(self) -> tuple[str, ...]:
        """The values of a closed set; () for any other kind."""
        return get_args(self.plain_kind) if get_origin(self.plain_kind) is Literal else ()

    def wrong(self, value: Any) -> str:
        """What is expected, and what was given instead."""
        if isinstance(value, bool):
            shown = str(value).lower()
        else:
            shown = repr(value) if isinstance(value, str) else str(value)
        return f"expected {self._expected()}" + ("" if self.secret else f", got {shown}")

    def _expected(self) -> str:
        if self.choices:
            return f"one of {', '.join(self.choices)}"
        kind = self.plain_kind
        if kind not in (int, float):
            return {bool: "true or false", Path: "a path in quotes"}.get(kind, "text in quotes")
        noun = "a whole number" if kind is int else "a number"
        if self.most is not None:
            return f"{noun} from {self.least:g} to {self.most:g}"
        return noun if self.least is None else f"{noun} of at least {self.least:g}"

    def accepts(self, value: Any) -> bool:
        """True when a config file's value is of a sensible kind. A string is still to be parsed."""
        if isinstance(value, bool):
            return self.plain_kind is bool
        is_number = isinstance(value, int | float) and self.plain_kind in (int, float)
        return is_number or isinstance(value, str)

    def parse(self, text: str) -> Any:
        """The value that a variable's text stands for, as the command line reads it.

        Raises `ValueError` with `wrong`.
        """
        kind = self.plain_kind
        try:
            value: Any = (
                _WORDS[text.lower()] if kind is bool else text if self.choices else kind(text)
            )
        except (KeyError, ValueError):
            raise ValueError(self.wrong(text)) from None
        if (
            (self.choices and value not in self.choices)
            or (self.least is not None and not value >= self.least)
            or (self.most is not None and not value <= self.most)
        ):
            raise ValueError(self.wrong(text))
        return value


_WORDS = {
    **dict.fromkeys(("1", "true", "t", "yes", "y", "on"), True),
    **dict.fromkeys(("0", "false", "f", "no", "n", "off"), False),
}


def port(name: str, default: int, text: str, *feeds: Feed) -> Setting:
    return Setting(name, int, default, text, "PORT", least=0, most=65535, feeds=feeds)


def secret(name: str, text: str, *feeds: Feed) -> Setting:
    text = f"{text} Better set as {env_name(name)}."
    return Setting(name, str, "", text, "TEXT", secret=True, feeds=feeds)
