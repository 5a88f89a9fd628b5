"""Command line of the benchmark: measures, and shows the results in an executed notebook."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict

import pandas as pd

from lib.pipeline import progress

from . import measure, parts
from .parts import ROOT

RESULTS = ROOT / "results" / "benchmark"
NOTEBOOK = ROOT / "notebooks" / "benchmark.ipynb"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="part", help=f"{', '.join(parts.PARTS)}; all by default")
    parser.add_argument("--only", nargs="+", metavar="name", help="modules or experiments that every given part knows")
    usual = f"{parts.SECONDS:g} and {parts.STEP_SECONDS:g}"
    parser.add_argument("--seconds", type=float, default=0, help=f"for each module and network; {usual} by default")
    parser.add_argument("--report", metavar="machine", help="measure nothing: make a machine's report from its files")
    given = parser.parse_args(arguments)
    if given.report:
        return report(given.report)
    if unknown := [part for part in given.parts if part not in parts.PARTS]:
        parser.error(f"unknown part {unknown[0]!r}; known: {', '.join(parts.PARTS)}")
    device = measure.device()
    chosen: dict[str, list[str]] = {}
    for part in given.parts or parts.PARTS:
        known = parts.known(part, device)
        if unknown := [name for name in given.only or () if name not in known]:
            parser.error(f"part {part} has no {unknown[0]!r}; known: {', '.join(known)}")
        chosen[part] = list(dict.fromkeys(given.only or known))
    machine = measure.machine(device)
    if device == "cpu":
        measure.keep_freed()
    for part, names in chosen.items():
        run(part, device, machine, names, given.seconds)
    return report(str(machine["name"]))


def run(part: str, device: str, machine: dict, names: Sequence[str], seconds: float = 0) -> None:
    """Measure one part; a case's numbers take the place of those in the machine's csv."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / f"{machine['name']}.json").write_text(json.dumps(machine, indent=1) + "\n")
    file = RESULTS / f"{machine['name']}.csv"
    rows = pd.DataFrame(map(asdict, parts.PARTS[part](device, names, seconds)))
    if file.exists():
        before = pd.read_csv(file, keep_default_na=False)
        rows = pd.concat([before[(before.part != part) | ~before.case.isin(rows.case)], rows])
    rows.to_csv(file, index=False, float_format="%.6g")
    progress.done(f"{part}: {file}")


def report(machine: str) -> int:
    """Execute the notebook on a machine's csv."""
    for file in (RESULTS / f"{machine}.csv", RESULTS / f"{machine}.json"):
        if not file.exists():
            print(f"error: {machine}: no {file.relative_to(ROOT)}; `make benchmark` writes it", file=sys.stderr)
            return 1
    try:
        from lib.pipeline import runner  # needs more packages than measuring does
    except ModuleNotFoundError as error:
        print(f"error: {machine}: no report without the package {error.name}; its csv is there", file=sys.stderr)
        return 1
    try:
        runner.execute(NOTEBOOK, RESULTS / f"{machine}.ipynb", {"machine": machine})
    except runner.StageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
