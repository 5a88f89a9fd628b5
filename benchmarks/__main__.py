"""Command line of the benchmark: measures, and shows the results in an executed notebook."""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from dataclasses import asdict

import pandas as pd

from lib.params import ROOT
from lib.pipeline import progress, runner

from . import measure, parts

RESULTS = ROOT / "results" / "benchmark"
NOTEBOOK = ROOT / "notebooks" / "benchmark.ipynb"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="part", help=f"{', '.join(parts.PARTS)}; all by default")
    parser.add_argument(
        "--only", nargs="+", metavar="name", help="these modules, networks or experiments, which every given part knows"
    )
    parser.add_argument(
        "--report", metavar="machine", help="measure nothing: make its report again from its csv and json"
    )
    given = parser.parse_args(arguments)
    if given.report:
        return report(given.report)
    if unknown := [part for part in given.parts if part not in parts.PARTS]:
        parser.error(f"unknown part {unknown[0]!r}; known: {', '.join(parts.PARTS)}")
    device, chosen = measure.device(), given.parts or parts.PARTS
    only = list(dict.fromkeys(given.only or ()))  # each once
    for part in chosen:
        known = parts.names(part, device)
        if unknown := [name for name in only if name not in known]:
            parser.error(f"part {part} has no {unknown[0]!r}; known: {', '.join(known)}")
    machine = measure.machine(device)
    for part in chosen:
        run(part, device, machine, only)
    return report(machine["name"])


def report(machine: str) -> int:
    """Execute the notebook on what the machine's csv holds."""
    for file in (RESULTS / f"{machine}.csv", RESULTS / f"{machine}.json"):
        if not file.exists():
            print(f"error: {machine}: no {file.relative_to(ROOT)}; `make benchmark` writes it", file=sys.stderr)
            return 1
    try:
        runner.execute(NOTEBOOK, RESULTS / f"{machine}.ipynb", {"machine": machine})
    except runner.StageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def run(part: str, device: str, machine: dict, only: parts.Names = None) -> None:
    """Measure one part; what is found of a case takes the place of what the machine's csv holds of it."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / f"{machine['name']}.json").write_text(json.dumps(machine, indent=1) + "\n")
    file = RESULTS / f"{machine['name']}.csv"
    for case, records in itertools.groupby(parts.PARTS[part](device, only), key=lambda record: record.case):
        rows = pd.DataFrame(map(asdict, records))
        if file.exists():
            kept = pd.read_csv(file, keep_default_na=False)
            rows = pd.concat([kept[(kept.part != part) | (kept.case != case)], rows])
        rows.to_csv(file, index=False, float_format="%.6g")
    progress.done(f"{part}: {file.relative_to(ROOT)}")


if __name__ == "__main__":
    sys.exit(main())
