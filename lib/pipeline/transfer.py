"""`python -m lib pack` and `import`: experiments to another machine and their results back into the pipeline."""

from __future__ import annotations

import json
import shlex
import shutil
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path

from ..images import sets
from ..params import ROOT, Experiment, Params, ParamsError, fingerprint, missing
from ..training import TrainingError, read_checkpoint, write_checkpoint, write_whole
from . import remote
from . import repro as pipeline
from .returned import DONE, ELSEWHERE, Returned, difference, version
from .runner import StageError, code_digest, notebook_of

#: Parts of the project that the other machine needs, besides images.
PROJECT = ("params.yaml", "dvc.yaml", "lib", *(notebook_of(stage, None).relative_to(ROOT).as_posix() for stage in DONE))


def pack(names: Sequence[str], into: Path, profile: str | None = None) -> int:
    """Write an archive with which another machine trains and measures the experiments `names`; returns DVC's status
    where that could not bring the images.

    In it: code, parameters, manifests, every image once and in gray where only gray tasks use it, and what there is of
    each experiment already. Raises ParamsError for a baseline, StageError for one that needs what is not there.
    """
    params = Params(profile=profile)
    runs = [params.experiment(name) for name in dict.fromkeys(names)]
    if into.is_dir() or not into.parent.is_dir():
        raise StageError(f"{into}: {'is a folder' if into.is_dir() else f'there is no folder {into.parent}'}; name a "
                         "file such as box.tar, in a folder that exists")  # fmt: skip
    for run in runs:
        if reason := missing(run):
            raise StageError(f"{run.name}: {reason}")
    with pipeline.alone():
        pipeline.switch(params.profile)
        if status := pipeline.dvc("repro", "data.dvc"):
            return status
    with tempfile.TemporaryDirectory() as folder:
        box = Path(folder)
        for name in PROJECT:
            _copy(name, box)
        for run in runs:
            if run.needs and not run.needs.startswith("package:"):
                _copy(run.needs, box)
            _pack_state(params, run, box)
        count = _pack_images(runs, box)
        try:
            write_whole(into, lambda temporary: _archive(box, temporary, into.stem))
        except TrainingError as error:
            raise StageError(str(error)) from None
    size = into.stat().st_size / 2**20
    print(f"{into}: {len(runs)} experiment(s), {count} images, {size:.1f} MiB; on the other machine:")
    file, box_there = shlex.quote(into.name), shlex.quote(into.stem)
    print(f"tar xf {file} && cd {box_there} && python -m lib remote; then here: python -m lib import elsewhere")
    return 0


def _copy(name: str, box: Path) -> None:
    files = (ROOT / name).rglob("*.py") if (ROOT / name).is_dir() else [ROOT / name]
    for file in files:
        target = box / file.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)


def _pack_state(params: Params, run: Experiment, box: Path) -> None:
    """The experiment's folder: what came back of this version, checkpoints of a training here, the version itself."""
    folder = box / ELSEWHERE.name / run.name
    kept = ELSEWHERE / run.name
    if kept.exists() and not difference(params, run.name):
        shutil.copytree(kept, folder)
    folder.mkdir(parents=True, exist_ok=True)
    for path in _checkpoints(params, run):
        shutil.copyfile(path, folder / path.name)
    versions = {stage: version(params, stage, run.name) for stage in DONE}
    (folder / "version.json").write_text(json.dumps({"profile": params.profile, **versions}, indent=1) + "\n")


def _checkpoints(params: Params, run: Experiment) -> list[Path]:
    digest = fingerprint(run, code_digest(params, "train", run.name))
    return sorted((ROOT / "checkpoints").glob(f"{run.name}-*-{digest}.pt"))


def _pack_images(runs: Sequence[Experiment], box: Path) -> int:
    """Manifests and images of the experiments' tasks; returns the number of images."""
    rules: dict[Path, set[str | None]] = {}
    for task in {run.task.name: run.task for run in runs}.values():
        for side, references in task.sides.items():
            manifest = f"data/{side}/{task.name}.csv"
            _copy(manifest, box)
            for item in sets.read(ROOT / manifest, may_be_empty=not references):
                for path in filter(None, (item.target, item.input)):
                    rules.setdefault(path, set()).add(task.gray if task.colors == 1 else None)
    for path, of_image in rules.items():
        pixels, [*wanted] = sets.open_image(path), of_image
        target = (box / path.relative_to(ROOT)).with_suffix(".webp")
        target.parent.mkdir(parents=True, exist_ok=True)
        remote.fold(sets.to_gray(pixels, wanted[0]) if len(wanted) == 1 and wanted[0] else pixels, target)
    return len(rules)


def _archive(box: Path, path: Path, name: str) -> None:
    with tarfile.open(path, "w") as archive:
        archive.add(box, name)


def bring_back(source: Path, profile: str | None = None, jobs: int | None = None) -> int:
    """Take results from a folder, or an archive of it, into the pipeline: the notebooks `train` and `evaluate` are
    executed on them and DVC records both stages; returns its exit status.

    What is unfinished is kept, to be packed again. Raises StageError before anything is kept where results are damaged
    or of another version of code, parameters or images, and at the end where some are unfinished.
    """
    if not source.exists():
        raise StageError(f"{source}: does not exist; name the folder {ELSEWHERE.name} that came back, or its archive")
    params = Params(profile=profile)
    with pipeline.alone():
        return _bring_back(source, params, jobs)


def _bring_back(source: Path, params: Params, jobs: int | None) -> int:
    pipeline.switch(params.profile)
    if status := pipeline.dvc("repro", "data.dvc"):
        return status
    with tempfile.TemporaryDirectory() as folder:
        if source.is_file():
            try:
                with tarfile.open(source) as archive:
                    archive.extractall(folder, filter="data")
            except Exception as error:  # those of tarfile and of what unpacks it
                raise StageError(f"{source}: is no whole tar archive ({_reason(error)}); bring it here again, or "
                                 f"unpack it and name the folder {ELSEWHERE.name}") from None  # fmt: skip
            source = Path(folder)
        found = {path.parent.name: path.parent for path in sorted(source.rglob("version.json"))}
        if not found:
            raise StageError(f"{source}: holds no results; name the folder {ELSEWHERE.name} that came back")
        lacks = {name: _check(params, name, path) for name, path in found.items()}
        for name, path in found.items():
            _keep(name, path)
    whole = [name for name, lack in lacks.items() if not lack]
    status = pipeline.side_by_side(whole, params, jobs, "--force")
    if status == 0 and whole:
        pipeline.keep_pins(params)
        print(f"{', '.join(whole)}: recorded; `make repro` refreshes tables and reports")
    if unfinished := "; ".join(f"{name}: {lack}" for name, lack in lacks.items() if lack):
        raise StageError(f"not finished: {unfinished}. Kept: `python -m lib pack` carries on with it")
    return status


def _check(params: Params, name: str, folder: Path) -> str | None:
    """What `folder` lacks of the results of the experiment `name`; raises StageError unless all that is there is sound
    and of this version."""
    try:
        made = json.loads((folder / "version.json").read_text())["profile"]
        if made != params.profile:
            raise StageError(f"{name}: is of profile {made}, in force is {params.profile}; add --profile {made}")
        run = params.experiment(name)
        if differs := difference(params, name, folder=folder.parent):
            raise StageError(f"{name}: {differs} from what was packed; go back to that, or pack and run it again")
        for path in folder.glob("*.pt"):
            read_checkpoint(path)
        lack = remote.lacking(run, folder)
        if lack is None:
            Returned(folder).read(run.seeds)
    except (StageError, ParamsError):
        raise
    except Exception as error:  # of json, NumPy, pandas, safetensors, torch
        raise StageError(f"{name}: what came back is damaged ({_reason(error)}); bring it here again") from None
    return lack


def _reason(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _keep(name: str, source: Path) -> None:
    """Put an experiment's folder in place, and its checkpoints where a training here looks for them."""
    target = ELSEWHERE / name
    if source.resolve() != target:
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(source, target)
    for path in target.glob("*.pt"):
        write_checkpoint(ROOT / "checkpoints" / path.name, read_checkpoint(path))
        path.unlink()
