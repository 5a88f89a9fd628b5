"""Trained networks that come with the project, and restoring images of one's own.

Chosen networks lie in git, as results/<profile>/networks/<experiment>/seed_<seed>.safetensors: `python -m lib keep`
puts them there, `python -m lib pull` brings them to where a training leaves them, so that DVC takes it as done. Weights
are used only if they are those that the profile's dvc.lock states.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from ruamel.yaml import YAML

from ..images import sets
from ..measuring.inference import restore
from ..models.blocks import ImageError
from ..official import OfficialError
from ..params import ROOT, Baseline, Experiment, Params, missing
from ..tasks import Task
from ..tasks import experiment as experiments
from ..training import TrainingError, write_whole
from . import repro as pipeline
from . import resolve
from .runner import StageError

#: Endings of the files that a restored image is written to.
LOSSLESS = (".png", ".bmp", ".tif", ".tiff")


def keep(names: Sequence[str], profile: str | None = None) -> None:
    """Have git hold the trained networks `names` of a profile, all their seeds, in place of those it held.

    Raises StageError for a baseline and for an experiment whose weights are not those that dvc.lock states; what git
    held then stays.
    """
    params, names = Params(profile=profile), [*dict.fromkeys(names)]
    for name in names:
        if isinstance(params.row(name), Baseline):
            raise StageError(f"{name}: is not trained; there is nothing to keep")
        _check_trained(params, name)
        if code := _other_code(params, name):
            raise StageError(f"{name}: its weights were trained with other code ({code}); `make repro` trains it anew")
    folder = _folder(params)
    filled = folder.with_name("networks.part")
    shutil.rmtree(filled, ignore_errors=True)
    for name in names:
        shutil.copytree(params.results("weights", name), filled / name)
    shutil.rmtree(folder, ignore_errors=True)
    filled.rename(folder)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6
    print(f"{folder.relative_to(ROOT)}: {len(names)} network(s), {size:.1f} MB; commit them")


def pull(names: Sequence[str], profile: str | None = None) -> None:
    """Make `profile` the one in force and bring its networks `names`, all that are kept where none is named, to
    results/<profile>/weights.

    Raises StageError, before anything is changed, for one that is not kept as the profile's lock states it, and where
    other weights are in the way.
    """
    params = Params(profile=profile)
    for name in names:
        params.row(name)
        _check_kept(params, name)
    chosen = [*dict.fromkeys(names or kept(params))]
    if not chosen:
        raise StageError(f"profile {params.profile} keeps no networks; `make repro` trains them")
    place = params.results("weights").relative_to(ROOT)
    for name in chosen:
        _check_kept(params, name)
        there = params.results("weights", name)
        if there.exists() and _listing(there)[1] != _stated(params, name):
            raise StageError(f"{place / name}: holds other weights; move or delete them first")
    with pipeline.alone():
        pipeline.switch(params.profile)
        for name in chosen:
            _cache(_folder(params) / name)
        if status := pipeline.dvc("checkout", "--quiet", *(f"train@{name}" for name in chosen)):
            raise StageError(f"{place}: dvc checkout failed with status {status}")
    print(f"{place}: {', '.join(chosen)}")


def kept(params: Params) -> list[str]:
    """The experiments whose networks git holds in the version that the profile's lock states."""
    names = [name for name in params.experiments if (_folder(params) / name).is_dir()]
    return [name for name in names if _listing(_folder(params) / name)[1] == _stated(params, name)]


def _check_kept(params: Params, name: str) -> None:
    folder = _folder(params) / name
    if not folder.is_dir():
        raise StageError(f"{name}: profile {params.profile} keeps no such network; it keeps "
                         f"{', '.join(kept(params)) or 'none'}")  # fmt: skip
    if _listing(folder)[1] != _stated(params, name):
        place = folder.relative_to(ROOT)
        raise StageError(f"{place}: is not what the lock of profile {params.profile} states; `git checkout {place}` "
                         "brings it back, or `make repro` trains it anew")  # fmt: skip


def _listing(folder: Path) -> tuple[str, str]:
    """DVC's listing of a folder's files, and the hash of that, by which its locks name the folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    entries = [{"md5": _md5(path), "relpath": path.relative_to(folder).as_posix()} for path in files]
    listing = json.dumps(entries, sort_keys=True)
    return listing, f"{hashlib.md5(listing.encode()).hexdigest()}.dir"


def _cache(folder: Path) -> None:
    """Put a folder's files into DVC's cache, in its published layout: files/md5/<2 digits>/<30 digits>."""
    listing, digest = _listing(folder)
    cache = ROOT / ".dvc" / "cache" / "files" / "md5"
    for path in filter(Path.is_file, folder.rglob("*")):
        md5 = _md5(path)
        write_whole(cache / md5[:2] / md5[2:], partial(shutil.copyfile, path))
    write_whole(cache / digest[:2] / digest[2:], lambda path: path.write_text(listing))


def _md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


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
        raise StageError(f"{into}: is a folder, lies in none, or is the image itself; name another file")
    if reason := missing(run):
        raise StageError(f"{by}: {reason}")
    if isinstance(run, Experiment):
        _check_trained(params, by)
        if code := _other_code(params, by):
            print(f"note: {by} was trained with other code: {code}", file=sys.stderr)
    try:
        [network] = experiments.trained(run, params.results("weights", by)).values()
        how = run.evaluation
        output = restore(network, given, how.tile, how.overlap, self_ensemble)[0].clamp(0, 1).mul(255).round().byte()
        pixels = output[0].numpy() if len(output) == 1 else output.movedim(0, 2).contiguous().numpy()
        form = Image.registered_extensions()[into.suffix.lower()]
        write_whole(into, partial(Image.fromarray(pixels).save, format=form))
    except (TrainingError, OfficialError) as error:
        raise StageError(str(error)) from None
    except ImageError as error:
        raise StageError(f"{image}: {error}") from None
    print(f"{into}: {image.name} by {by}, profile {params.profile}")


def _folder(params: Params) -> Path:
    return params.results("networks")


def _lock(params: Params) -> dict[str, dict]:
    """The stages of the profile's lock: the root's where it is in force, else that of its pins."""
    in_force = params.profile == Params().profile
    path = ROOT / "dvc.lock" if in_force else params.results("pins", "dvc.lock")
    return YAML(typ="safe").load(path)["stages"] if path.exists() else {}


def _stated(params: Params, name: str) -> str | None:
    """The hash of the experiment's weights that the profile's lock states, None where it states none."""
    place = params.results("weights", name).relative_to(ROOT).as_posix()
    outs = _lock(params).get(f"train@{name}", {}).get("outs", [])
    return next((out["md5"] for out in outs if out["path"] == place), None)


def _other_code(params: Params, name: str) -> str:
    """The code that differs from that of the lock's training of `name`."""
    found = []
    for dep in _lock(params)[f"train@{name}"]["deps"]:
        path = ROOT / dep["path"]
        if dep["path"].startswith(("lib/", "notebooks/")):
            now = None if not path.exists() else _listing(path)[1] if path.is_dir() else _md5(path)
            found += [dep["path"]] if now != dep["md5"] else []
    return ", ".join(found)


def _other_values(params: Params, name: str) -> bool:
    """Whether params.yaml gives other values than the lock's training of `name` had."""
    given = resolve.file_of(params, "train", name).relative_to(ROOT).as_posix()
    now = hashlib.md5(resolve.text(params, "train", name).encode()).hexdigest()
    return any(dep["path"] == given and dep["md5"] != now for dep in _lock(params)[f"train@{name}"]["deps"])


def _check_trained(params: Params, name: str) -> None:
    """Raises StageError, saying how to get them, unless the weights of `name` are there, those of the profile's lock,
    and trained with the present values."""
    folder = params.results("weights", name)
    stated, place = _stated(params, name), folder.relative_to(ROOT)
    if not any(folder.glob("*.safetensors")):
        if reason := missing(params.experiment(name)):
            raise StageError(f"{name}: {reason}")
        verb, does = ("pull " + name, "brings") if name in kept(params) else ("repro", "trains")
        raise StageError(f"{place} is not there; `python -m lib {verb} --profile {params.profile}` {does} it")
    if stated is None or _listing(folder)[1] != stated:
        raise StageError(f"{place}: is not what dvc.lock states; delete it and `dvc checkout train@{name}` brings it "
                         "back, or `make repro` trains it anew")  # fmt: skip
    if _other_values(params, name):
        raise StageError(
            f"{name}: its weights were trained with other values in params.yaml; `make repro` trains it anew"
        )


def _read(path: Path, task: Task) -> torch.Tensor:
    """An image file, the right way up, as the task sees it: float32 ``(1, colors, H, W)`` in [0, 1]."""
    try:
        with Image.open(path) as image:
            if image.mode.startswith(("I", "F")):
                raise StageError(f"{path}: has more than 8 bits per channel; convert it to 8 first")
            if image.has_transparency_data and np.asarray(image.convert("RGBA"))[..., 3].min() < 255:
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
