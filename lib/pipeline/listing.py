"""`python -m lib list`: studies, their rows, and what is up to date."""

from __future__ import annotations

from collections.abc import Iterator

from ..params import Params
from .repro import check_pins, outdated_rows


def lines(profile: str | None, study: str | None) -> Iterator[str]:
    """A line per study and row: its state in the profile in force, its name and its title. Without results of this
    profile in place (`make repro` puts them there) nothing is said of states."""
    params = Params(profile=profile)
    known = params.profile == params.contents.profile
    if known:
        check_pins(params.profile)
    late = outdated_rows([*params.rows], params) if known else {}
    names = [study] if study else [*params.studies]
    width = max(len(row) for name in names for row in params.study(name).experiments)
    for name in names:
        one = params.study(name)
        yield f"{name}: {one.title}"
        for row in one.experiments:
            state = ""
            if known:
                done = params.results("evaluate", row, "images.csv").exists()
                state = "not run" if not done else "out of date" if row in late else "up to date"
            yield f"  {state:<12}{row:<{width}}  {params.row(row).title}"
