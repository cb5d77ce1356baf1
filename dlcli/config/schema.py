"""Kinds of settings with type, range and meaning, checked without torch.

`SETTINGS["optimizer.lr"].check(value)` returns None or a sentence that says what is expected. A key that is not in
the table (such as a setting of a user's own model) must have the kind of value that its YAML gives.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import Field, TypeAdapter, ValidationError

from dlcli.errors import printable


@dataclass(frozen=True)
class Setting:
    """One setting. annotation: what pydantic checks; expects: the same in words; meaning: what the setting does."""

    annotation: Any
    expects: str
    meaning: str

    @cached_property
    def adapter(self) -> TypeAdapter[Any]:
        return TypeAdapter(self.annotation)

    def check(self, value: object) -> str | None:
        """Return None if `value` is valid, otherwise what was expected and what was given."""
        try:
            self.adapter.validate_python(value)
        except ValidationError:
            return f"must be {self.expects}, got {say(value)}"
        return None

    @property
    def choices(self) -> list[Any]:
        """Return the values that can be listed: a word's choices, true and false for a switch; none for a number."""
        return _choices(self.annotation)


def _choices(annotation: Any) -> list[Any]:
    if annotation is bool:
        return [True, False]
    parts, origin = get_args(annotation), get_origin(annotation)
    if origin is Literal:
        return list(parts)
    if origin is Annotated:
        return _choices(parts[0])
    return [choice for part in parts for choice in _choices(part)] if origin in (Union, UnionType) else []


def say(value: object) -> str:
    """Describe a value for a message: `the word "ten"`, `-3`, `nothing`."""
    if value is None:
        return "nothing (null)"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f'the word "{printable(value, limit=60)}"'
    if isinstance(value, Mapping):
        return "a group of settings"
    return printable(value, limit=60)


def whole(low: int, high: int, meaning: str, *, optional: bool = False) -> Setting:
    annotation: Any = Annotated[int, Field(strict=True, ge=low, le=high)]
    return _setting(annotation, f"a whole number from {low:,} to {high:,}", meaning, optional)


def real(
    low: float, high: float, meaning: str, *, optional: bool = False, above: bool = False, below: bool = False
) -> Setting:
    """Return the setting for a finite number from low to high; `above` and `below` exclude the ends."""
    bounds: Any = {"gt" if above else "ge": low, "lt" if below else "le": high}
    annotation: Any = Annotated[float, Field(strict=True, allow_inf_nan=False, **bounds)]
    said = f"a number {'above' if above else 'from'} {low:g} {'and below' if below else 'to'} {high:g}"
    return _setting(annotation, said, meaning, optional)


def word(choices: tuple[str, ...], meaning: str) -> Setting:
    return Setting(Literal[choices], "one of " + ", ".join(choices), meaning)


def text(pattern: str, expects: str, meaning: str, *, optional: bool = False) -> Setting:
    return _setting(Annotated[str, Field(strict=True, pattern=pattern)], expects, meaning, optional)


def switch(meaning: str) -> Setting:
    return Setting(Annotated[bool, Field(strict=True)], "true or false", meaning)


def several(item: Setting, fewest: int, most: int, meaning: str, *, optional: bool = False) -> Setting:
    annotation: Any = Annotated[list[item.annotation], Field(min_length=fewest, max_length=most)]  # type: ignore[name-defined]
    count = f"{fewest}" if fewest == most else f"{fewest} to {most}"
    return _setting(annotation, f"a list of {count} values, each {item.expects}, like [1,2]", meaning, optional)


def _setting(annotation: Any, expects: str, meaning: str, optional: bool) -> Setting:
    return (
        Setting(annotation | None, expects + " (or null)", meaning)
        if optional
        else Setting(annotation, expects, meaning)
    )
