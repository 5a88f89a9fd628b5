"""Rows on a machine without DVC and network: `pack` carries code, values and images there, `remote` runs the rows'
stages as any machine does (`work`), and with `import` DVC records here what came back.

box.json, in both archives, has the profile, the rows, and their stages with all that these depend on; in what comes
back also the stages that are done and the hash of every file.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import tarfile
import tempfile
import time
from collections.abc import Iterable, Sequence
from functools import partial
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

from ..images import sets
from ..params import ROOT, Params, missing
from . import files, progress, work
from . import repro as pipeline
from .files import digest
from .runner import StageError, depends_on

BOX, RAN, BACK, CHECKPOINTS = ROOT / "box.json", ROOT / "ran.json", ROOT / "back.tar", ROOT / "checkpoints"


def pack(names: Sequence[str], into: Path, profile: str | None = None) -> int:
    """Write an archive with which another machine runs the stages of rows; returns DVC's status where it brings no
    images. Raises ParamsError for an unknown row, StageError for one that needs what is not there."""
    params = Params(profile=profile)
    rows = {name: params.row(name) for name in names}
    if reasons := [f"{name}: {reason}" for name, row in rows.items() if (reason := missing(row))]:
        raise StageError("\n".join(reasons))
    with pipeline.alone():
        pipeline.switch(params.profile)
        if status := pipeline.dvc("repro", "resolve", "data.dvc"):
            return status
        stages = {stage: depends_on(params, stage) for name in rows for stage in pipeline.stages_of(params, name)}
        paths = {*work.needed(params, stages)}
        for name, row in rows.items():
            paths |= {path for path in CHECKPOINTS.glob("*.pt") if re.fullmatch(rf"{name}-\d+-[^-]+\.pt", path.name)}
            for side, references in row.task.sides.items():
                paths.add(manifest := ROOT / "data" / side / f"{row.task.name}.csv")
                items = sets.read(manifest, may_be_empty=not references)
                paths |= {path for item in items for path in (item.target, item.input) if path}
        _archive(into, {"profile": params.profile, "rows": [*rows], "stages": stages}, paths, f"{into.stem}/")
    print(f"there: tar xf {shlex.quote(into.name)} && cd {shlex.quote(into.stem)} && python -m lib remote")
    return 0


def _archive(into: Path, box: dict[str, Any], paths: Iterable[Path], inside: str = "") -> None:
    with files.whole(into) as aside, tarfile.open(aside, "w:gz", compresslevel=6, dereference=True) as archive:
        with tempfile.NamedTemporaryFile("w") as listed:
            json.dump(box, listed)
            listed.flush()
            archive.add(listed.name, inside + BOX.name)
        for path in paths:
            archive.add(path, inside + str(path.relative_to(ROOT)))


def remote(jobs: int, minutes: float | None) -> int:
    """Run the stages of the rows in this box, `jobs` rows at a time, and write `back.tar`; returns 1 if one is left.
    After `minutes` all is ended; run again, it goes on: trainings from their last checkpoint, at most a minute old."""
    if not BOX.exists():
        raise StageError(f"{BOX.name}: nothing is packed here; unpack what `python -m lib pack` made, and run there")
    box = json.loads(BOX.read_text())
    params, until = Params(profile=box["profile"]), time.time() + 60 * (minutes or 1e6)
    if not RAN.exists() or RAN.read_text() != BOX.read_text():  # another box was unpacked over the last one
        shutil.rmtree(params.results("machine"), ignore_errors=True)
        shutil.copyfile(BOX, RAN)
    with ThreadPool(jobs) as pool:  # of threads that end with this process, and with them what they started
        whole = pool.map(partial(_row, params, until), box["rows"], chunksize=1)
    box["done"] = [stage for stage in box["stages"] if _done(params, stage)]
    folders = [CHECKPOINTS, *(folder for stage in box["done"] for folder in _results(params, stage))]
    found = [path for folder in folders for path in folder.glob("*") if path.suffix != ".part"]
    _archive(BACK, box | {"files": {str(path.relative_to(ROOT)): digest(path) for path in found}}, found)
    print(f"{BACK}: {BACK.stat().st_size / 2**20:.1f} MiB, for `python -m lib import {BACK.name}`")
    return int(not all(whole))


def _results(params: Params, stage: str) -> list[Path]:
    kind, _, name = stage.partition("@")
    return [params.results(folder, name) for folder in (("train", "weights") if kind == "train" else ("evaluate",))]


def _done(params: Params, stage: str) -> bool:
    return params.results("machine", f"{stage.replace('baseline@', 'evaluate@')}.json").exists()


def _row(params: Params, until: float, name: str) -> bool:
    """Run a row's stages that are not done; returns whether all are."""
    todo, reason = [stage for stage in pipeline.stages_of(params, name) if not _done(params, stage)], None
    if todo and time.time() < until:
        reason = work.attend(str(ROOT), {"stages": todo, "seconds": until - time.time()}, progress.show)
    reason = "out of time" if time.time() >= until else reason
    done = all(_done(params, stage) for stage in todo)
    progress.done(f"{name}: {'done' if done else f'not done ({reason}); run it again to go on'}")
    return done


def bring_back(source: Path, profile: str | None = None) -> int:
    """Put what `remote` wrote in place, checkpoints too, and have DVC record what is done; returns its exit status.
    Raises StageError before that where files are damaged or of another version of code, values or images."""
    params = Params(profile=profile)
    with pipeline.alone(), tempfile.TemporaryDirectory() as unpacked:
        box = _unpack(source, folder := Path(unpacked), params)
        pipeline.switch(params.profile)
        if status := pipeline.dvc("repro", "resolve", "data.dvc"):
            return status
        for stage, packed in box["stages"].items():
            now = depends_on(params, stage)
            if differ := sorted(key for key in {**packed, **now} if packed.get(key) != now.get(key)):
                raise StageError(f"{stage}: {', '.join(differ)} differ from what was packed; pack and run it again")
        for target in [target for stage in box["done"] for target in _results(params, stage)]:
            shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(folder, ROOT, dirs_exist_ok=True, ignore=shutil.ignore_patterns(BOX.name))
        if status := pipeline.dvc("commit", "--quiet", "--force", *box["done"]) if box["done"] else 0:
            return status
        pipeline.keep_pins(params)
    lacking = [stage for stage in box["stages"] if stage not in box["done"]]
    print(f"recorded: {', '.join(box['done']) or 'nothing'}; not finished: {', '.join(lacking) or 'nothing'}")
    return 0


def _unpack(source: Path, folder: Path, params: Params) -> dict[str, Any]:
    """The box that came back, whole and of this profile, with its files, all where they may be, in `folder`."""
    try:
        with tarfile.open(source) as archive:
            wrong = [member.name for member in archive if not member.isfile()]
            archive.extractall(folder, filter="data")
        box = json.loads((folder / BOX.name).read_text())
        made, known = Params(profile=box["profile"]), {**box["files"], BOX.name: digest(folder / BOX.name)}
        places = {str(path.relative_to(ROOT)) for stage in box["done"] for path in _results(made, stage)}
        there = {str(path.relative_to(folder)): digest(path) for path in folder.rglob("*") if path.is_file()}
        wrong += [name for name in {**there, **known} if there.get(name) != known.get(name)]
        wrong += [name for name in box["files"] if str(Path(name).parent) not in {CHECKPOINTS.name, *places}]
        stages = {stage for name in box["rows"] for stage in pipeline.stages_of(made, name)}
        wrong += {*box["done"], *box["stages"]} - stages
    except Exception as error:  # those of tarfile and what unpacks it, of json, of names that are none
        wrong = [(str(error).strip() or type(error).__name__).splitlines()[0]]
    if wrong:
        raise StageError(f"{source}: is no whole {BACK.name} of this study ({wrong[0]}); bring it here again")
    if made.profile != params.profile:
        raise StageError(f"{source}: is of profile {made.profile}; add --profile {made.profile}")
    return box
