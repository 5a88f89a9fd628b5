"""`make repro`: profiles, their pins, and one study at a time, on top of `dvc repro`."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from itertools import dropwhile
from pathlib import Path

import pandas as pd
from filelock import FileLock, Timeout
from ruamel.yaml import YAML, YAMLError

from ..params import ROOT, Params, check
from . import files, resolve
from .runner import PUBLISHED_NUMBERS, REPORT_PUBLISHED_NUMBERS, StageError

#: A profile's pins, each with its main key: the lock of its stages and the hash of its images. The root holds those of
#: the profile in force.
PINS = {"dvc.lock": "stages", "data.dvc": "outs"}

#: What DVC writes of a file or folder in a pin.
ENTRY = {"path", "md5", "hash", "size", "nfiles", "isexec"}

#: Of a file or folder in a pin.
HASH = re.compile(r"[0-9a-f]{32}(\.dir)?")

#: Experiments at a time unless asked for more; each holds about a gigabyte.
MOST_JOBS = 8

#: DVC, with another writer of dvc.lock.
DVC = (sys.executable, "-m", "lib.pipeline.fast_dvc")

#: The README shows results between these marks.
README_MARKS = ("<!-- results -->", "<!-- /results -->")


class PipelineError(StageError):
    """The pipeline cannot be run as asked; one line."""


def repro(profile: str | None, study: str | None, jobs: int | None = None, cluster: str | None = None) -> int:
    """Bring a profile up to date, or one study of it; returns DVC's exit status.

    jobs: experiments at a time, None for one per core, `MOST_JOBS` at most. cluster: address of the machines that run
    the rows (see `cluster`). Raises ParamsError before anything runs when params.yaml says something unknown.
    """
    params = Params(profile=profile)
    if not resolve.unchanged(params):  # where code changed since, the stage `resolve` checks it again
        check(params)
    if study and study != PUBLISHED_NUMBERS:
        params.study(study)  # unknown ones are refused before anything is switched
    if cluster:
        from . import cluster as machines

        machines.check(cluster)
    with alone():
        switch(params.profile)
        status = _study(params, study, jobs, cluster) if study else _everything(params, jobs, cluster)
        if status == 0:
            keep_pins(params)
            write_readme()
    return status


@contextmanager
def alone() -> Iterator[None]:
    """Raises PipelineError, saying since when, while another process runs this project's pipeline."""
    if not (ROOT / ".git").exists():
        raise PipelineError(f"{ROOT}: is no git repository, which DVC needs; run `git init` there")
    path = ROOT / ".dvc" / "tmp" / "repro.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        since = time.strftime("%H:%M on %d %B", time.localtime(path.stat().st_mtime))
        raise PipelineError(f"the pipeline is being run in {ROOT} since {since}; wait for its end") from None
    try:
        os.utime(path)
        for left in ROOT.glob("*.part"):  # of a run that was killed while it wrote
            left.unlink()
        yield
    finally:
        lock.release()


def _everything(params: Params, jobs: int | None, cluster: str | None) -> int:
    outdated = _outdated()
    if outdated & {"resolve", "download", "data.dvc"}:  # they may change what is asked of the others
        if status := dvc("repro", "--quiet", "resolve", "data.dvc"):
            return status
        outdated = _outdated()
    if not outdated:
        print("Everything is up to date.")
        return 0
    names = [*params.experiments, *params.baselines]
    names = [name for name in names if outdated & {*stages_of(params, name)}]
    return _rows_or_say(names, params, jobs, cluster) or dvc("repro")


def _rows_or_say(names: Sequence[str], params: Params, jobs: int | None, cluster: str | None) -> int:
    """`bring_up_to_date`; raises PipelineError, naming the stages, where a row failed."""
    status = bring_up_to_date(names, params, jobs, cluster)
    if failed := sorted(_outdated() & {stage for name in names for stage in stages_of(params, name)}) if status else []:
        raise PipelineError(f"not done: {', '.join(failed)}; the reasons stand above")
    return status


def bring_up_to_date(names: Sequence[str], params: Params, jobs: int | None, address: str | None) -> int:
    """Bring rows up to date here, or on the machines of a cluster; returns an exit status."""
    if status := dvc("repro", "--quiet", "resolve", "data.dvc") if names else 0:
        return status
    if not address:
        return run_locally(names, params, jobs)
    from . import cluster

    return cluster.run_on_cluster(outdated_rows(names, params), params, address, jobs)


def outdated_rows(names: Sequence[str], params: Params) -> dict[str, list[str]]:
    """The rows that are out of date, each with its stages from the first that is."""
    outdated, rows = _outdated(), {}
    for name in names:
        if stages := [*dropwhile(lambda stage: stage not in outdated, stages_of(params, name))]:
            rows[name] = stages
    return rows


def stages_of(params: Params, name: str) -> list[str]:
    """The stages of a row, in their order."""
    return [f"train@{name}"] * (name in params.experiments) + [f"{params.stage(name)}@{name}"]


def _outdated() -> set[str]:
    """The stages that DVC holds to be out of date, except those that wait for another one."""
    shown = subprocess.run([*DVC, "status", "--json"], cwd=ROOT, capture_output=True, text=True, env=_environment())
    if shown.returncode:
        reasons = [line for line in shown.stderr.splitlines() if line.startswith("ERROR")] or ["it says no reason"]
        raise PipelineError(
            f"dvc status failed: {reasons[0].removeprefix('ERROR: ')}; `python -m lib check` may say more"
        )
    return set(json.loads(shown.stdout or "{}"))


def run_locally(names: Sequence[str], params: Params, jobs: int | None) -> int:
    """Bring rows up to date, several at a time: DVC alone runs one stage after the other.

    A row that fails stops no other one. Returns DVC's exit status.
    """
    jobs = min(jobs or min(os.cpu_count() or 1, MOST_JOBS), len(names))
    shares = [[stage for name in names[first::jobs] for stage in stages_of(params, name)] for first in range(jobs)]
    always = ("--wait-for-lock", "repro", "--keep-going", "--single-item")
    return _wait([_start(*always, *share) for share in shares])


def _study(params: Params, name: str, jobs: int | None, cluster: str | None) -> int:
    """Evaluate the study's experiments, then refresh the tables from what exists, its report and the summary."""
    if name == PUBLISHED_NUMBERS:
        return dvc("repro", REPORT_PUBLISHED_NUMBERS)
    status = _rows_or_say(params.study(name).experiments, params, jobs, cluster)
    for stage in ("tables", f"report@{name}", "summary"):
        status = status or dvc("repro", "--single-item", stage)
    return status


def switch(profile: str) -> None:
    """Make `profile` the one in force: its line in params.yaml, and its pins in the root once those are kept that lie
    there. A switch that was interrupted is completed by the next."""
    current, held, kept = Params().profile, _profile_of(ROOT / "dvc.lock"), _pins(profile)
    if current == profile and held in (profile, None):
        check_pins(profile)
        return
    check_pins(held or current)
    check_pins(profile, kept)
    if held:
        _copy_pins(ROOT, _pins(held), [*PINS] if held == current else ["dvc.lock"])
    if current != profile:
        path = ROOT / "params.yaml"
        text, changed = _PROFILE_LINE.subn(rf"\g<1>{profile}", path.read_text(), count=1)
        if not changed:
            raise PipelineError(f"{path.name}: has no line `profile: {current}`; write {profile} there yourself")
        files.write(path, text)
    _copy_pins(kept, ROOT, [*reversed(PINS)])  # the lock, which says whose they are, last
    if not (kept / "dvc.lock").exists():
        (ROOT / "dvc.lock").unlink(missing_ok=True)


_PROFILE_LINE = re.compile(r"""(?m)^((?:profile|'profile'|"profile")[ ]*:[ ]+)([\w-]+|'[^'\n]*'|"[^"\n]*")""")


def _profile_of(lock: Path) -> str | None:
    """The profile whose stages a lock holds, None where there are none."""
    found = re.search(r"path: results/([\w-]+)/parameters\n", lock.read_text() if lock.exists() else "")
    return found[1] if found else None


def keep_pins(params: Params) -> None:
    """Copy the root's pins beside the results that they belong to; raises PipelineError for one that is cut."""
    check_pins(params.profile)
    _copy_pins(ROOT, _pins(params.profile), [*PINS])


def _copy_pins(source: Path, target: Path, names: Sequence[str]) -> None:
    target.mkdir(parents=True, exist_ok=True)
    for name in names:
        if (source / name).exists():
            files.write(target / name, (source / name).read_text())


def check_pins(profile: str, folder: Path = ROOT) -> None:
    """Raises PipelineError, saying what to put in its place, for a damaged pin of a profile in `folder`."""
    for name in PINS:
        path, kept = folder / name, _pins(profile) / name
        if path.exists() and not _whole(path):
            place = path.relative_to(ROOT)
            good = (
                f"copy {kept.relative_to(ROOT)} there" if path != kept and _whole(kept) else f"`git checkout {place}`"
            )
            raise PipelineError(f"{place}: is damaged; {good} and run again")


def _whole(path: Path) -> bool:
    try:
        return _is_pin(path.name, path.read_text())
    except (OSError, UnicodeError):
        return False


@cache  # a lock takes half a second to parse, and is looked at before a run and after it
def _is_pin(name: str, text: str) -> bool:
    try:
        content = YAML(typ="safe").load(text)
        needed = content[PINS[name]]
        stages = [content] if name == "data.dvc" else needed.values()
        entries = [entry for stage in stages for part in ("deps", "outs") for entry in stage.get(part, [])]
        known = all(
            {"path", "md5"} <= entry.keys() <= ENTRY and isinstance(entry["path"], str) and HASH.fullmatch(entry["md5"])
            for entry in entries
        )
        return bool(needed) and known and all({*stage} <= {"cmd", "deps", "params", "outs", "md5"} for stage in stages)
    except (YAMLError, TypeError, KeyError, AttributeError):
        return False


def _pins(profile: str) -> Path:
    return ROOT / "results" / profile / "pins"


def write_readme() -> None:
    """Put the results (`lib.reports.readme.results`) between the README's marks."""
    path = ROOT / "README.md"
    text = path.read_text()
    before, _, rest = text.partition(README_MARKS[0])
    _, mark, after = rest.partition(README_MARKS[1])
    if not mark:
        raise PipelineError(f"{path.name}: the marks {' and '.join(README_MARKS)} are missing")
    from ..reports import readme  # here: draws figures, whose library takes seconds to import

    new = "\n\n".join([before + README_MARKS[0], readme.results(), mark + after])
    if new != text:
        files.write(path, new)


def dvc(*arguments: str) -> int:
    """Run DVC in the project; returns its exit status."""
    return _wait([_start(*arguments)])


def _wait(running: Sequence[subprocess.Popen]) -> int:
    """The largest exit status; an interrupt, which they get too, leaves none behind."""
    try:
        return max((process.wait() for process in running), default=0)
    except KeyboardInterrupt:
        for process in running:
            process.wait()
        raise


def _start(*arguments: str) -> subprocess.Popen:
    return subprocess.Popen([*DVC, *arguments], cwd=ROOT, env=_environment())


def _environment() -> dict[str, str]:
    """The stages' `python` is the one that runs now, whether its environment is activated or not."""
    return {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}


def compare(revision: str = "HEAD") -> int:
    """Print how far every measured image is from the one in `revision`; returns 1 where the sets of rows differ. Raises
    PipelineError for a revision that git does not know."""
    from ..measuring.metrics import MOST_PSNR  # imports torch

    params, different = Params(), 0
    if not (ROOT / ".git").exists():
        raise PipelineError(f"compare: {ROOT} is no git repository; there is nothing to compare with")
    if subprocess.run(["git", "rev-parse", "--quiet", "--verify", f"{revision}^{{commit}}"], cwd=ROOT,
                      capture_output=True).returncode:  # fmt: skip
        raise PipelineError(f"compare: git knows no revision {revision!r}")
    measured = params.results("evaluate").relative_to(ROOT).as_posix()
    known = subprocess.run(["git", "ls-tree", "-r", "--name-only", revision, measured], cwd=ROOT, capture_output=True,
                           text=True, check=True).stdout.split()  # fmt: skip
    for name in (name for name in known if name.endswith("/images.csv") and not (ROOT / name).exists()):
        print(f"{Path(name).parent.name}: in {revision} alone")
        different = 1
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
        change = new.psnr.clip(upper=MOST_PSNR) - old.psnr.clip(upper=MOST_PSNR)
        print(f"{path.parent.name}: mean {change.mean():+.4f} dB, largest {change.abs().max():.4f} dB")
    return different
