"""Trained networks that come with the project, and restoring images of one's own.

Chosen networks lie in git, under results/<profile>/networks, which DVC takes for a remote: `python -m lib keep` fills
it, `python -m lib pull` brings them, bit for bit, to where a training leaves them, so that DVC takes it as done.
"""

from __future__ import annotations

import hashlib
import json
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
from PIL import Image, ImageOps, UnidentifiedImageError
from ruamel.yaml import YAML

from .. import experiment as experiments
from ..images import sets
from ..inference import restore
from ..official import OfficialError
from ..params import ROOT, Baseline, Experiment, Params, missing
from ..tasks import Task
from ..training import TrainingError, write_whole
from . import repro as pipeline
from .runner import StageError

#: Endings of the files that a restored image is written to.
LOSSLESS = (".png", ".bmp", ".tif", ".tiff")

#: What DVC calls the folder, a remote for as long as it is filled or read.
REMOTE = "networks"


def keep(names: Sequence[str], profile: str | None = None) -> None:
    """Have git hold the trained networks `names` of a profile, all their seeds, in place of those it held.

    Raises StageError for a baseline and for an experiment whose weights are not there, not those that dvc.lock vouches
    for, or not in DVC's cache; what git held then stays.
    """
    params, names = Params(profile=profile), [*dict.fromkeys(names)]
    for name in names:
        run = params.row(name)
        if isinstance(run, Baseline):
            raise StageError(f"{name}: is not trained; there is nothing to keep")
        for seed in run.seeds:
            _check_trained(params, replace(run, seeds=(seed,)))
    pipeline.switch(params.profile)
    folder = _folder(params)
    with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
        filled, old = Path(temporary) / "new", Path(temporary) / "old"
        targets = [f"train@{name}" for name in names]
        try:
            with _repository(filled) as repository:
                changed = repository.status(targets=targets)
                if not changed:
                    repository.push(targets=targets, remote=REMOTE, jobs=1)
        except DvcException as error:
            raise StageError(f"dvc push failed: {str(error).splitlines()[0]}") from None
        if changed:
            raise StageError(
                f"{', '.join(changed)}: out of date; `make repro` brings the weights and dvc.lock together"
            )
        if lacking := {*names} - {*_complete(params, filled)}:
            raise StageError(f"{', '.join(sorted(lacking))}: DVC's cache lacks the weights; train it again")
        if folder.exists():
            folder.rename(old)
        filled.rename(folder)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6
    print(f"{folder.relative_to(ROOT)}: {len(names)} network(s), {size:.1f} MB; commit them")


def pull(names: Sequence[str], profile: str | None = None) -> None:
    """Make `profile` the one in force and bring its networks `names`, all that are kept where none is named, to
    results/<profile>/weights.

    Raises StageError, before anything is changed, for one that is not kept in the version that the profile's lock
    vouches for, and where other weights are in the way.
    """
    params = Params(profile=profile)
    there = kept(params)
    for name in names:
        params.row(name)
        if name not in there:
            known = ", ".join(there) or "none"
            raise StageError(f"{name}: profile {params.profile} keeps no network of this version; it keeps {known}")
    chosen = [*dict.fromkeys(names or there)]
    if not chosen:
        raise StageError(f"profile {params.profile} keeps no networks; `make repro` trains them")
    pipeline.switch(params.profile)
    place = params.results("weights").relative_to(ROOT)
    try:
        with _repository(_folder(params)) as repository:
            repository.pull(targets=[f"train@{name}" for name in chosen], remote=REMOTE, jobs=1)
    except DvcException as error:
        reason = str(error).splitlines()[0].partition(" Use ")[0]
        raise StageError(f"{place}: {reason} Move or delete there what is not to be kept") from None
    print(f"{place}: {', '.join(chosen)}")


def kept(params: Params) -> list[str]:
    """The experiments whose networks git holds in the version that the profile's lock vouches for."""
    return _complete(params, _folder(params))


def restore_file(image: Path, by: str, into: Path, profile: str | None = None, self_ensemble: bool = False) -> None:
    """Restore an image file by the network (its first seed) or baseline `by` and write it, rounded to 8 bits.

    The image is taken as it is, for the degraded one; gray tasks make it gray by their rule. Raises StageError where
    `into` cannot be written, the image cannot be read, the row cannot be run here, or its weights are missing or of
    another version of code or parameters.
    """
    params = Params(profile=profile)
    run = params.row(by)
    if isinstance(run, Experiment):
        run = replace(run, seeds=run.seeds[:1])
    if into.suffix.lower() not in LOSSLESS:
        raise StageError(f"{into}: end it in {', '.join(LOSSLESS)}")
    given = _read(image, run.task)
    if into.is_dir() or not into.parent.is_dir() or (into.exists() and into.samefile(image)):
        raise StageError(f"{into}: is a folder, in none, or the image itself; name another file")
    if reason := missing(run):
        raise StageError(f"{by}: {reason}")
    if isinstance(run, Experiment):
        _check_trained(params, run)
        if differs := _differences(params, by):
            raise StageError(f"{by}: its weights were trained with another {differs}; `make repro` trains it anew")
    try:
        [network] = experiments.trained(run, params.results("weights", by)).values()
        how = run.evaluation
        output = restore(network, given, how.tile, how.overlap, self_ensemble)[0].clamp(0, 1).mul(255).round().byte()
        pixels = output[0].numpy() if len(output) == 1 else output.movedim(0, 2).contiguous().numpy()
        form = Image.registered_extensions()[into.suffix.lower()]
        write_whole(into, partial(Image.fromarray(pixels).save, format=form))
    except (TrainingError, OfficialError) as error:
        raise StageError(str(error)) from None
    print(f"{into}: {image.name} by {by}, profile {params.profile}")


def _folder(params: Params) -> Path:
    return params.results("networks")


@contextmanager
def _repository(folder: Path) -> Iterator[Repo]:
    """The project as DVC sees it, with `folder` as its remote."""
    with Repo(str(ROOT), config={"remote": {REMOTE: {"url": str(folder)}}}) as repository:
        yield repository


def _lock(params: Params) -> dict[str, dict]:
    """The stages of the profile's lock: the root's where it is in force, else that of its pins."""
    in_force = params.profile == Params().profile
    path = ROOT / "dvc.lock" if in_force else params.results("pins", "dvc.lock")
    return YAML(typ="safe").load(path)["stages"] if path.exists() else {}


def _complete(params: Params, folder: Path) -> list[str]:
    """The experiments of whose locked weights every file lies in `folder`, a remote of DVC."""
    stages, files, found = _lock(params), folder / "files" / "md5", []
    for name in params.experiments:
        for out in stages.get(f"train@{name}", {}).get("outs", []):
            listing = files / out["md5"][:2] / out["md5"][2:]
            if out["path"] == f"results/{params.profile}/weights/{name}" and listing.exists():
                digests = [entry["md5"] for entry in json.loads(listing.read_text())]
                found += [name] if all((files / digest[:2] / digest[2:]).exists() for digest in digests) else []
    return found


def _differences(params: Params, name: str) -> str:
    """Which code and parameters are not those of the lock's training of `name`; images, which need not be here, are
    left out."""
    stage = _lock(params).get(f"train@{name}")
    if stage is None:
        return "dvc.lock"
    code = [dep for dep in stage["deps"] if not dep["path"].startswith("data/")]
    files = [dep["path"] for dep in code if hashlib.md5((ROOT / dep["path"]).read_bytes()).hexdigest() != dep["md5"]]
    values = stage.get("params", {}).get("params.yaml", {})
    return ", ".join(files + [key for key, value in values.items() if _value(params, key) != value])


def _value(params: Params, key: str) -> object:
    """What params.yaml says at a key, None where it has no such key any more."""
    try:
        return params.value(key)
    except KeyError:
        return None


def _check_trained(params: Params, run: Experiment) -> None:
    """Raises StageError, saying how to get them, where the weights of the first seed of `run` are not there."""
    path = experiments.weights_file(params.results("weights", run.name), run.seeds[0])
    if path.exists():
        return
    if reason := missing(run):
        raise StageError(f"{run.name}: {reason}")
    verb, does = ("pull " + run.name, "brings") if run.name in kept(params) else ("repro", "trains")
    raise StageError(
        f"{path.relative_to(ROOT)} is not there; `python -m lib {verb} --profile {params.profile}` {does} it"
    )


def _read(path: Path, task: Task) -> torch.Tensor:
    """An image file, the right way up, as the task sees it: float32 ``(1, colors, H, W)`` in [0, 1]."""
    try:
        with Image.open(path) as image:
            if image.mode.startswith(("I", "F")):
                raise StageError(f"{path}: has more than 8 bits per channel; convert it to 8 first")
            if image.has_transparency_data and image.convert("RGBA").getchannel("A").getextrema()[0] < 255:
                raise StageError(f"{path}: has transparent pixels; lay it on a background first")
            upright = ImageOps.exif_transpose(image)
            pixels = np.asarray(upright.convert("L" if upright.mode in ("1", "L") else "RGB"))
    except UnidentifiedImageError:
        raise StageError(f"{path}: is not an image that Pillow can read") from None
    except OSError as error:
        raise StageError(f"{path}: {error.strerror or error}") from None
    if task.colors == 1:
        pixels = sets.to_gray(pixels, task.gray)[:, :, None]
    elif pixels.ndim == 2:
        pixels = np.repeat(pixels[:, :, None], 3, axis=2)
    return torch.from_numpy(np.moveaxis(pixels, 2, 0).astype(np.float32))[None] / 255
