"""Faults of params.yaml for people: one line each, with the key, its value and what is allowed."""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

#: How many known names a message lists.
SHOWN = 12


class ParamsError(ValueError):
    """params.yaml has faults: a line for each, which names the key and the known alternatives."""

    def __init__(self, faults: str | Sequence[str]):
        self.faults = [faults] if isinstance(faults, str) else list(faults)
        super().__init__("\n".join(self.faults))


def unknown(what: str, value: object, known: Iterable[str], where: str) -> str:
    """That `value` is not among the known names."""
    return f"unknown {what} {value!r} in {where}{suggest(value, list(known))}"


def suggest(value: object, known: Sequence[str]) -> str:
    """The end of a message about a name that is not known: the one that may be meant, or those that are known."""
    close = difflib.get_close_matches(str(value), known, 1)
    if close:
        return f"; did you mean {close[0]!r}?"
    rest = f" and {len(known) - SHOWN} more" if len(known) > SHOWN else ""
    return f"; known: {', '.join(known[:SHOWN]) or 'none'}{rest}"


def line(error: Mapping[str, Any], schema: type) -> str:
    """One fault that pydantic found in an instance of the dataclass `schema`."""
    kind, value, context = error["type"], error["input"], error.get("ctx", {})
    place = [part for part in error["loc"] if part not in _NOT_IN_FILE]
    last, where, inside = place[-1] if place else "", _dotted(place), _dotted(place[:-1]) or "the top level"
    match kind:
        case "unexpected_keyword_argument":
            return f"unknown key {last!r} in {inside}{suggest(last, _keys(schema, error['loc'][:-1]))}"
        case "missing" if isinstance(last, int):
            return f"{inside} is too short"
        case "missing":
            return f"{inside} lacks the key {last!r}"
        case "value_error" if isinstance(value, dict):
            return f"{where}: {context['error']}"
        case "value_error":
            reason = str(context["error"])
        case "union_tag_not_found":
            return f"{where} lacks the key {context['discriminator'].strip(chr(39))!r}"
        case "union_tag_invalid":
            known = [name.strip("'") for name in context["expected_tags"].split(", ")]
            return f"unknown name {context['tag']!r} in {where}{suggest(context['tag'], known)}"
        case "literal_error":
            reason = f"it must be {context['expected']}".replace("'", "")
        case "greater_than" | "greater_than_equal" | "less_than" | "less_than_equal":
            [limit] = context.values()
            reason = f"it must be {_LIMITS[kind]} {limit:g}"
        case "too_short":
            reason = f"it must be a list of {least} or more" if (least := context["min_length"]) > 1 else _NOT_EMPTY
        case _ if kind in _WANTED:
            reason = f"it must be {_WANTED[kind]}"
        case _:
            reason = error["msg"].replace("Input should be", "it must be")
    return f"{where} is {_shown(value)}; {reason}"


_NOT_EMPTY = "it must be a list that is not empty"

_WANTED = {
    "bool_type": "true or false",
    "int_type": "a whole number",
    "float_type": "a number",
    "string_type": "a text",
    "string_too_short": "a text",
    "string_pattern_mismatch": "a text of one line without | < > `, control characters and blanks at its ends",
    "finite_number": "a finite number",
    "dict_type": "a mapping",
    "dataclass_type": "a mapping",
    "tuple_type": "a list",
}


_LIMITS = {
    "greater_than": "above",
    "greater_than_equal": "at least",
    "less_than": "below",
    "less_than_equal": "at most",
}

#: Added by pydantic to the keys of the file: the type of a schedule, and that a key itself is at fault.
_NOT_IN_FILE = ("[key]", "cosine", "step")


def _dotted(place: Sequence[str | int]) -> str:
    """`claims[0].better` of ("claims", 0, "better"); a key that would break the line is quoted."""
    keys = (part if isinstance(part, int) or part.isprintable() else repr(part) for part in place)
    return "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in keys).removeprefix(".")


def _shown(value: object) -> str:
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list) and len(value) > 6:
        return "a list"
    return "empty" if value is None else repr(value)


def _keys(schema: Any, location: Sequence[str | int]) -> list[str]:
    """The keys that a mapping of the file may have, found by following types from `schema`."""
    for part in location:
        schema = _plain(schema, part)
        if is_dataclass(schema):
            schema = typing.get_type_hints(schema).get(str(part), schema)
        elif typing.get_origin(schema) in (dict, tuple):
            arguments = typing.get_args(schema)
            schema = arguments[1] if typing.get_origin(schema) is dict else arguments[0]
    schema = _plain(schema, "")
    return [f.name for f in fields(schema)] if is_dataclass(schema) else []


def _plain(schema: Any, tag: str | int) -> Any:
    """A type without None; of several dataclasses the one named `tag`."""
    if typing.get_origin(schema) in (types.UnionType, typing.Union):
        kinds = [kind for kind in typing.get_args(schema) if kind is not types.NoneType]
        return next((kind for kind in kinds if kind.__name__.lower() == tag), kinds[0])
    return schema
