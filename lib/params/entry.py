"""A new experiment as lines of params.yaml: `python -m lib new`."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from . import check
from .faults import ParamsError, unknown
from .resolve import NOT_YAML, ROOT, Params
from .schema import ExperimentEntry

#: Longest line of params.yaml.
LINE = 120


def add(
    name: str, other: str, options: Sequence[str], study: str | None, title: str | None = None,
    file: Path = ROOT / "params.yaml",
) -> str:  # fmt: skip
    """Write experiment `name` into params.yaml behind `other`, with its options but for `options`, texts
    "<option>=<value in YAML>", and into the list of `study`; comments and all other lines stay as they are.

    Returns the lines that were added. Raises ParamsError, and writes nothing, for what `check` refuses.
    """
    params = Params(file)
    if other not in params.contents.experiments:
        raise ParamsError(unknown("experiment", other, params.contents.experiments, "experiments"))
    if name in params.rows:
        raise ParamsError(f"{params.file}: {name!r} is there already")
    if study and study not in params.studies:
        raise ParamsError(unknown("study", study, params.studies, "studies"))
    entry, changed = params.contents.experiments[other], dict(map(_option, options))
    if len(changed) < len(options):
        raise ParamsError(f"--set {' '.join(options)}: names an option twice")
    said = ", ".join(f"{key} {value}" for key, value in changed.items())
    added = _entry(
        name, entry, title or f"{entry.title}, {said}" if said else title or f"{entry.title}, again", changed
    )
    lines = file.read_text().splitlines()
    place = _end_of_block(lines, _line_of(lines, "experiments:"), f"  {other}:")
    lines[place:place] = added
    if study:
        inside = _line_of(lines, f"  {study}:", _line_of(lines, "studies:"))
        place = _line_of(lines, "    experiments:", inside) + 1
        while place < len(lines) and lines[place].startswith("      - "):
            place += 1
        lines.insert(place, f"      - {name}")
    text = "\n".join(lines) + "\n"
    with tempfile.TemporaryDirectory() as folder:
        trial = Path(folder) / file.name
        trial.write_text(text)
        check(Params(trial))
    from ..pipeline import files  # imports this package

    files.write(file, text)
    return "\n".join([*added, *([f"      - {name}  # {study}"] if study else [])])


def _option(text: str) -> tuple[str, Any]:
    key, mark, value = text.partition("=")
    if not mark or not key.isidentifier():
        raise ParamsError(f"--set {text}: it must be an option of the network and its value, such as heads=3")
    try:
        read = YAML(typ="safe").load(value)
        json.dumps(read, allow_nan=False)  # raises TypeError for a date
    except (*NOT_YAML, TypeError):
        raise ParamsError(f"--set {text}: {value!r} is no number, text, list or mapping in YAML") from None
    return key, read


def _entry(name: str, other: ExperimentEntry, title: str, changed: dict[str, Any]) -> list[str]:
    """The lines of an experiment like `other`."""
    parts: dict[str, Any] = {"title": title, "model": other.model, "task": other.task, "recipe": other.recipe}
    parts |= {key: value for key in ("size", "needs") if (value := getattr(other, key))}
    if options := {**other.options, **changed}:
        parts["options"] = options
    cells = [f"{key}: {_in_flow(value)}" for key, value in parts.items()]
    if len(one := f"    {{{', '.join(cells)}}}") <= LINE:
        return [f"  {name}:", one]
    lines = [f"  {name}:", f"    {{{cells[0]}"]  # the title has a line of its own
    for number, cell in enumerate(cells[1:]):
        lines[-1] += ","
        if number and len(lines[-1]) + len(cell) + 3 <= LINE:
            lines[-1] += f" {cell}"
        else:
            lines.append(f"     {cell}")
    return [*lines[:-1], f"{lines[-1]}}}"]


def _in_flow(value: Any) -> str:
    """A value as YAML's flow style has it, which takes JSON; a plain word without its quotes."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_in_flow(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_in_flow, value)) + "]"
    plain = isinstance(value, str) and re.fullmatch(r"[A-Za-z][\w /-]*", value)
    return value if plain and YAML(typ="safe").load(value) == value else json.dumps(value, ensure_ascii=False)


def _line_of(lines: Sequence[str], start: str, after: int = 0) -> int:
    for number in range(after, len(lines)):
        if lines[number].split("#")[0].rstrip() == start:
            return number
    raise ParamsError(f"params.yaml: has no line {start.strip()!r} of its own; write the experiment by hand")


def _end_of_block(lines: Sequence[str], section: int, start: str) -> int:
    """The line behind the block of a key of the section, which begins with `start`."""
    number = next((n for n in range(section + 1, len(lines)) if lines[n].startswith(start)), None)
    if number is None:
        raise ParamsError(f"params.yaml: has no line {start.strip()!r} of its own; write the experiment by hand")
    number += 1
    while number < len(lines) and lines[number].startswith("    "):
        number += 1
    return number
