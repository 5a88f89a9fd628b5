"""Trained networks that come with the project, and restoring images of one's own.

Chosen networks lie in git, under results/<profile>/networks, which DVC takes for a remote: `python -m lib keep` fills
it, `python -m lib pull` brings them, bit for bit, to where a training leaves them, so that DVC takes it as done.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from dvc.exceptions import DvcException
from dvc.repo import Repo
from PIL import Image, UnidentifiedImageError
from ruamel.yaml import YAML

from . import experiment as experiments
from . import pipeline, sets
from .inference import restore
from .params import ROOT, Params, Task
from .runner import StageError
from .training import write_whole

#: What DVC calls the folder, a remote for as long as it is filled or read.
REMOTE = "networks"


def keep(names: Sequence[str], profile: str | None = None) -> None:
    """Have git hold the trained networks `names` of a profile, all their seeds, in place of those it held.

    Raises StageError for an anchor and for an experiment that has not been trained here.
    """
    params = Params(profile=profile)
    for name in names:
        run = params.experiment(name)
        for seed in run.seeds if run.recipe else ():
            _trained_file(params, name, seed)
        if not run.recipe:
            raise StageError(f"{name}: is not trained; there is nothing to keep")
    pipeline.switch(params.profile)
    folder = _folder(params)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
        filled = Path(temporary) / folder.name
        with _repository(filled) as repository:
            repository.push(targets=[f"train@{name}" for name in names], remote=REMOTE, jobs=1)
        shutil.rmtree(folder, ignore_errors=True)
        filled.rename(folder)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6
    print(f"{folder.relative_to(ROOT)}: {len(names)} network(s), {size:.1f} MB; commit them")


def pull(names: Sequence[str], profile: str | None = None) -> None:
    """Bring the networks `names`, all that are kept where none is named, to results/<profile>/weights.

    Raises StageError for one that is not kept, or not in the version that dvc.lock vouches for.
    """
    params = Params(profile=profile)
    pipeline.switch(params.profile)
    there = kept(params)
    for name in names:
        params.experiment(name)
        if name not in there:
            raise StageError(
                f"{name}: profile {params.profile} keeps no network of this version; it keeps {_list(there)}"
            )
    chosen = [*(names or there)]
    if not chosen:
        raise StageError(f"profile {params.profile} keeps no networks; `make repro` trains them")
    try:
        with _repository(_folder(params)) as repository:
            repository.pull(targets=[f"train@{name}" for name in chosen], remote=REMOTE, jobs=1)
    except DvcException as error:
        raise StageError(f"dvc pull failed: {error}") from None
    print(f"results/{params.profile}/weights: {', '.join(chosen)}")


def kept(params: Params) -> list[str]:
    """The experiments whose networks git holds in the version that the profile's lock vouches for."""
    in_force = params.profile == Params().profile
    lock = ROOT / "dvc.lock" if in_force else params.results("pins", "dvc.lock")
    stages = YAML(typ="safe").load(lock)["stages"] if lock.exists() else {}
    found = []
    for name in params.experiments:
        outs = stages.get(f"train@{name}", {}).get("outs", [])
        digests = [out["md5"] for out in outs if out["path"] == f"results/{params.profile}/weights/{name}"]
        if any((_folder(params) / "files/md5" / digest[:2] / digest[2:]).exists() for digest in digests):
            found.append(name)
    return found


def restore_file(image: Path, by: str, into: Path, profile: str | None = None, self_ensemble: bool = False) -> None:
    """Restore an image file by the network (its first seed) or anchor `by` and write it, rounded to 8 bits.

    The image is taken as it is, for the degraded one; gray tasks make it gray by their rule. Raises StageError where
    there is no such image, no trained network, or `into` cannot be written in the format that its name says.
    """
    params = Params(profile=profile)
    run = params.experiment(by)
    run = replace(run, seeds=run.seeds[:1])
    if into.suffix.lower() not in Image.registered_extensions():
        raise StageError(f"{into}: no image format has this ending; end it in .png")
    given = _read(image, run.task)
    if run.recipe:
        _trained_file(params, by, run.seeds[0])
    [network] = experiments.trained(run, params.results("weights", by)).values()
    how = run.evaluation
    output = restore(network, given, how.tile, how.overlap, self_ensemble)[0].clamp(0, 1).mul(255).round().byte()
    pixels = output[0].numpy() if len(output) == 1 else output.movedim(0, 2).contiguous().numpy()
    form = Image.registered_extensions()[into.suffix.lower()]
    write_whole(into, partial(Image.fromarray(pixels).save, format=form))
    print(f"{into}: {image.name} by {by}, profile {params.profile}")


def _folder(params: Params) -> Path:
    return params.results("networks")


@contextmanager
def _repository(folder: Path) -> Iterator[Repo]:
    """The project as DVC sees it, with `folder` as its remote."""
    with Repo(str(ROOT), config={"remote": {REMOTE: {"url": str(folder)}}}) as repository:
        yield repository


def _trained_file(params: Params, name: str, seed: int) -> Path:
    """Where a seed's trained weights lie; raises StageError, saying how to get them, where they do not."""
    path = experiments.weights_file(params.results("weights", name), seed)
    if not path.exists():
        verb = "pull" if name in kept(params) else "repro"
        how = f"`python -m lib {verb} --profile {params.profile}`"
        raise StageError(f"{path.relative_to(ROOT)} is not there; {how} {'brings' if verb == 'pull' else 'trains'} it")
    return path


def _read(path: Path, task: Task) -> torch.Tensor:
    """An image file as the task sees it: float32 ``(1, colors, H, W)`` in [0, 1]."""
    try:
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("L" if image.mode in ("1", "L", "LA") else "RGB"))
    except UnidentifiedImageError:
        raise StageError(f"{path}: is not an image that Pillow can read") from None
    except OSError as error:
        raise StageError(f"{path}: {error.strerror or error}") from None
    if task.colors == 1:
        pixels = sets.to_gray(pixels, task.gray)[:, :, None]
    elif pixels.ndim == 2:
        pixels = np.repeat(pixels[:, :, None], 3, axis=2)
    return torch.from_numpy(np.moveaxis(pixels, 2, 0).astype(np.float32))[None] / 255


def _list(names: Sequence[str]) -> str:
    return ", ".join(names) or "none"
