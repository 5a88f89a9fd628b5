"""Rows on a machine without DVC and network: `pack` carries code, values and images there, `remote` runs the rows'
stages as any machine does (`work`), and with `import` DVC records here what came back.

box.json, in both archives, holds the profile, and of each row the stages with all that they depend on; in what comes
back also the stages that are done and the hash of every file.
"""

from __future__ import annotations

import json
import shutil
import tarfile
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from ..images import sets
from ..params import ROOT, Params, missing
from . import files, progress, resolve, work
from . import repro as pipeline
from .runner import StageError, dependencies, digest

BOX, BACK, CHECKPOINTS = ROOT / "box.json", ROOT / "back.tar", ROOT / "checkpoints"


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
    box = {name: {stage: _needs(params, stage) for stage in pipeline.stages_of(params, name)} for name in rows}
    paths = {*work.needed(params, [stage for stages in box.values() for stage in stages])}
    for name, row in rows.items():
        paths |= {*CHECKPOINTS.glob(f"{name}-*.pt")}
        for side, references in row.task.sides.items():
            paths.add(manifest := ROOT / "data" / side / f"{row.task.name}.csv")
            items = sets.read(manifest, may_be_empty=not references)
            paths |= {path for item in items for path in (item.target, item.input) if path}
    _archive(into, {"profile": params.profile, "rows": box}, paths, f"{into.stem}/")
    print(f"{into}: {into.stat().st_size / 2**20:.1f} MiB; on the other machine: tar xf {into.name!r} && "
          f"cd {into.stem!r} && python -m lib remote")  # fmt: skip
    return 0


def _needs(params: Params, stage: str) -> dict[str, Any]:
    """What the results of a row's stage depend on: every value, and the hashes of code and of manifests of images."""
    kind, name = ("train" if stage.startswith("train") else "evaluate"), stage.partition("@")[2]
    found = [path for path in dependencies(params, kind, name) if not path.startswith("results/")]
    return {path: digest(ROOT / path) for path in found} | json.loads(resolve.text(params, kind, name))


def _archive(into: Path, box: dict[str, Any], paths: Iterable[Path], inside: str = "") -> None:
    with files.whole(into) as aside, tarfile.open(aside, "w:gz", compresslevel=6) as archive:
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
    with ThreadPoolExecutor(jobs) as pool:
        whole = [*pool.map(partial(_row, params, until), box["rows"].values())]
    box["done"] = [stage for stages in box["rows"].values() for stage in stages if _done(params, stage)]
    folders = [CHECKPOINTS, *(folder for stage in box["done"] for folder in _results(params, stage))]
    found = [path for folder in folders for path in folder.glob("*")]
    _archive(BACK, box | {"files": {str(path.relative_to(ROOT)): digest(path) for path in found}}, found)
    print(f"{BACK}: {BACK.stat().st_size / 2**20:.1f} MiB, for `python -m lib import {BACK.name}`")
    return int(not all(whole))


def _results(params: Params, stage: str) -> list[Path]:
    kind, _, name = stage.partition("@")
    return [params.results(folder, name) for folder in (("train", "weights") if kind == "train" else ("evaluate",))]


def _done(params: Params, stage: str) -> bool:
    return params.results("machine", f"{stage.replace('baseline@', 'evaluate@')}.json").exists()


def _row(params: Params, until: float, stages: Mapping[str, Any]) -> bool:
    """Run a row's stages that are not done; returns whether all are."""
    todo, reason = [stage for stage in stages if not _done(params, stage)], None
    if todo and time.time() < until:
        reason = work.attend(str(ROOT), {"stages": todo, "seconds": until - time.time()}, progress.show)
    reason = "out of time" if time.time() >= until else reason
    done = all(_done(params, stage) for stage in todo)
    progress.done(f"{[*stages][-1]}: {'done' if done else f'not done ({reason}); run it again to go on'}")
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
        for stage, packed in [pair for stages in box["rows"].values() for pair in stages.items()]:
            now = _needs(params, stage)
            if differ := sorted(key for key in {**packed, **now} if packed.get(key) != now.get(key)):
                raise StageError(f"{stage}: {', '.join(differ)} differ from what was packed; pack and run it again")
        for target in [target for stage in box["done"] for target in _results(params, stage)]:
            shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(folder, ROOT, dirs_exist_ok=True, ignore=shutil.ignore_patterns(BOX.name))
        status = pipeline.dvc("commit", "--quiet", "--force", *box["done"]) if box["done"] else 0
        pipeline.keep_pins(params)
    lacking = [stage for stages in box["rows"].values() for stage in stages if stage not in box["done"]]
    print(f"recorded: {', '.join(box['done']) or 'nothing'}; not finished: {', '.join(lacking) or 'nothing'}")
    return status


def _unpack(source: Path, folder: Path, params: Params) -> dict[str, Any]:
    """The box that came back, whole and of this profile, with its files in `folder`."""
    try:
        with tarfile.open(source) as archive:
            archive.extractall(folder, filter="data")
        box = json.loads((folder / BOX.name).read_text())
        there = {str(path.relative_to(folder)): digest(path) for path in folder.rglob("*") if path.is_file()}
        there.pop(BOX.name)
        places = {CHECKPOINTS, *(path for stage in box["done"] for path in _results(params, stage))}
        broken = [name for name in {**there, **box["files"]} if there.get(name) != box["files"].get(name)]
        broken += [name for name in there if (ROOT / name).parent not in places]
        if not broken and box["profile"] == params.profile:
            return box
        reason = f"{broken[0]} is damaged" if broken else f"it is of profile {box['profile']}; add --profile"
    except Exception as error:  # those of tarfile and what unpacks it, of json, of names that are none
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    raise StageError(f"{source}: is no whole {BACK.name} of this study ({reason}); bring it here again")
