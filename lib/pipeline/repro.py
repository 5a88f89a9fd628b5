"""`make repro`: profiles, their pins, and one study at a time, on top of `dvc repro`."""

from __future__ import annotations

import io
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from ..params import ROOT, Params, check
from .runner import PROTOCOL, StageError

#: A profile's pins: the lock of its stages and the hash of its images. The root holds those of the profile in force.
PINS = ("dvc.lock", "data.dvc")


#: Experiments at a time unless asked for more; each holds about a gigabyte.
MOST_JOBS = 8

#: The README shows results between these marks.
README_MARKS = ("<!-- results -->", "<!-- /results -->")


class PipelineError(StageError):
    """The pipeline cannot be run as asked; one line."""


def repro(profile: str | None, study: str | None, jobs: int | None = None) -> int:
    """Bring a profile up to date, or one study of it; returns DVC's exit status.

    jobs: experiments at a time, None for one per core, `MOST_JOBS` at most. Raises ParamsError before anything runs
    when params.yaml says something unknown.
    """
    params = Params(profile=profile)
    check(params)
    switch(params.profile)
    status = _study(params, study, jobs) if study else _everything(params, jobs)
    if status == 0:
        keep_pins(params)
        write_readme()
    return status


def _everything(params: Params, jobs: int | None) -> int:
    outdated = _outdated()
    if not outdated:
        print("Everything is up to date.")
        return 0
    names = [*params.experiments, *params.baselines]
    return side_by_side([name for name in names if outdated & {*_stages(params, name)}], params, jobs) or dvc("repro")


def _stages(params: Params, name: str) -> list[str]:
    """The stages of an experiment or baseline, in their order."""
    last = params.stage(name)
    return [f"train@{name}", f"{last}@{name}"] if last == "evaluate" else [f"{last}@{name}"]


def _outdated() -> set[str]:
    """The stages that DVC holds to be out of date, those aside that wait for another one."""
    from dvc.exceptions import DvcException  # here: a second to import, which no other verb needs

    from . import fast_dvc

    try:
        return fast_dvc.status(ROOT)
    except DvcException as error:
        raise PipelineError(f"dvc status failed: {error}") from None


def side_by_side(names: Sequence[str], params: Params, jobs: int | None, *options: str) -> int:
    """Bring experiments and baselines up to date, several at a time: DVC alone runs one stage after the other.

    options: more of `dvc repro`. Returns DVC's exit status.
    """
    status = dvc("repro", "data.dvc") if names else 0
    if status:
        return status
    jobs = min(jobs or min(os.cpu_count() or 1, MOST_JOBS), len(names))
    shares = [[stage for name in names[first::jobs] for stage in _stages(params, name)] for first in range(jobs)]
    running = [_start("--wait-for-lock", "repro", *options, "--single-item", *share) for share in shares]
    return max((process.wait() for process in running), default=0)


def _study(params: Params, name: str, jobs: int | None) -> int:
    """Evaluate the study's experiments, then refresh the tables from what exists, its report and the summary."""
    if name == PROTOCOL:
        return dvc("repro", PROTOCOL)
    experiments = params.study(name).experiments
    status = side_by_side(experiments, params, jobs)
    for stage in ("tables", f"report@{name}", "summary"):
        status = status or dvc("repro", "--single-item", stage)
    return status


def switch(profile: str) -> None:
    """Make `profile` the one in force: its line in params.yaml and its pins in the root."""
    current = Params().profile
    if current == profile:
        return
    path = ROOT / "params.yaml"
    path.write_text(re.sub(r"(?m)^profile: \S+", f"profile: {profile}", path.read_text(), count=1))
    kept = _pins(profile)
    for name in PINS:
        if (kept / name).exists():
            shutil.copyfile(kept / name, ROOT / name)
        elif name == "dvc.lock":
            (ROOT / name).unlink(missing_ok=True)


def keep_pins(params: Params) -> None:
    """Copy the root's pins beside the results that they belong to."""
    kept = _pins(params.profile)
    kept.mkdir(parents=True, exist_ok=True)
    for name in PINS:
        shutil.copyfile(ROOT / name, kept / name)


def _pins(profile: str) -> Path:
    return ROOT / "results" / profile / "pins"


def write_readme() -> None:
    """Put every study's verdicts, the table and the figure of the first and the last study, and those of published
    numbers into the README: each of the largest profile in which the study was run."""
    path = ROOT / "README.md"
    text = path.read_text()
    before, _, rest = text.partition(README_MARKS[0])
    _, mark, after = rest.partition(README_MARKS[1])
    if not mark:
        raise PipelineError(f"{path.name}: the marks {' and '.join(README_MARKS)} are missing")
    from ..reports import readme  # here: draws figures, whose library takes seconds to import

    studies = [*Params().studies]
    shown = [readme.results((studies[-1], studies[0])), _published_numbers()]
    new = "\n\n".join([before + README_MARKS[0], *shown, mark + after])
    if new != text:
        path.write_text(new)


def _published_numbers() -> str:
    """The table and the figure of the study of published numbers in the largest profile in which it was run."""
    for profile in reversed(Params().profiles):
        folder = ROOT / "results" / profile / "report" / PROTOCOL
        if (folder / "rows.md").exists():
            figure = f"![{PROTOCOL}]({(folder / 'differences.png').relative_to(ROOT)})"
            title = f"### {PROTOCOL.replace('_', ' ')} (profile `{profile}`)"
            return "\n\n".join([title, (folder / "rows.md").read_text().strip(), figure])
    return f"**{PROTOCOL}**: not run"


def dvc(*arguments: str) -> int:
    """Run DVC in the project; returns its exit status."""
    return _start(*arguments).wait()


def _start(*arguments: str) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-m", "lib.pipeline.fast_dvc", *arguments], cwd=ROOT)


def compare(revision: str = "HEAD") -> int:
    """Print how far every measured image is from what `revision` holds; returns 1 where the sets of rows differ."""
    params, different = Params(), 0
    for path in sorted(params.results("evaluate").glob("*/images.csv")):
        name = path.relative_to(ROOT).as_posix()
        shown = subprocess.run(["git", "show", f"{revision}:{name}"], cwd=ROOT, capture_output=True, text=True)
        if shown.returncode:
            print(f"{path.parent.name}: not in {revision}")
            different = 1
            continue
        keys = ["set", "image", "seed"]
        old, new = pd.read_csv(io.StringIO(shown.stdout)).set_index(keys), pd.read_csv(path).set_index(keys)
        if not old.index.equals(new.index):
            print(f"{path.parent.name}: other images or seeds than in {revision}")
            different = 1
            continue
        change = new.psnr - old.psnr
        print(f"{path.parent.name}: mean {change.mean():+.4f} dB, largest {change.abs().max():.4f} dB")
    return different
