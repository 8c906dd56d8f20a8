"""Frozen dataclasses from plain tables (TOML, JSON), with errors that name the key."""

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

T = TypeVar("T")


class RecipeError(ValueError):
    """A recipe that cannot be used; the message names the key and the remedy."""


def from_table(cls: type[T], table: Mapping[str, Any], where: str = "recipe") -> T:
    """The frozen dataclass ``cls`` with the values of ``table``, nested tables included.

    Raises:
        RecipeError: A key is unknown or missing, a value has another type, or the class itself
            refuses a value.
    """
    if not isinstance(table, Mapping):
        raise RecipeError(f"{where} must be a table, not {table!r}")
    fields = {field.name: field for field in dataclasses.fields(typing.cast(Any, cls))}
    for key in table:
        if key not in fields:
            raise RecipeError(f"unknown key {key!r} in {where}; {_suggestion(key, list(fields))}")
    for name, field in fields.items():
        required = field.default is field.default_factory is dataclasses.MISSING
        if required and name not in table:
            raise RecipeError(f"{where} needs the key {name!r}")
    hints = typing.get_type_hints(cls)
    values = {key: _convert(hints[key], value, f"{where}.{key}") for key, value in table.items()}
    try:
        return cls(**values)
    except RecipeError:
        raise
    except ValueError as error:
        raise RecipeError(f"{where}: {error}") from error


def to_table(value: Any) -> Any:
    """The JSON-ready table that :func:`from_table` reads back; as in TOML, None is no entry."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        entries = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
        return {name: to_table(entry) for name, entry in entries.items() if entry is not None}
    if isinstance(value, Mapping):
        return {key: to_table(entry) for key, entry in value.items()}
    if isinstance(value, tuple | list):
        return [to_table(entry) for entry in value]
    return value


def _suggestion(key: str, known: list[str]) -> str:
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"known keys: {', '.join(known)}"


def _convert(hint: Any, value: Any, where: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):  # "X | None": TOML has no null, a value is X
        return _convert(arguments[0], value, where)
    if dataclasses.is_dataclass(hint):
        return from_table(typing.cast(type, hint), value, where)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise RecipeError(f"{where} must be a list, not {value!r}")
        if arguments[-1] is Ellipsis:
            arguments = (arguments[0],) * len(value)
        if len(arguments) != len(value):
            raise RecipeError(f"{where} must have {len(arguments)} entries, not {value!r}")
        return tuple(
            _convert(argument, entry, f"{where}[{index}]")
            for index, (argument, entry) in enumerate(zip(arguments, value, strict=True))
        )
    if origin is not None:  # Mapping[str, float]
        if not isinstance(value, Mapping):
            raise RecipeError(f"{where} must be a table, not {value!r}")
        return {
            key: _convert(arguments[1], entry, f"{where}.{key}") for key, entry in value.items()
        }
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise RecipeError(f"{where} must be a {hint.__name__}, not {value!r}")
    return value
