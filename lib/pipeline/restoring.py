"""Restoring image files of one's own by a trained network or a baseline.

Files are read as the study's own image sets are (`lib.images.download.decode`): 8 bits a channel, gray or RGB, turned
upright; anything else is refused by name. Only opacity is taken here: it is kept as it was, beside the colours beneath.
"""

from __future__ import annotations

import itertools
import math
import sys
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from ..images import registry, sets
from ..images.download import SUFFIXES, decode_layers
from ..measuring.evaluation import Row, tile_side
from ..measuring.inference import restore
from ..models import ModelError
from ..models.blocks import ImageError, mirror_pad
from ..models.dagl import MGFAM, same_padding
from ..official import OfficialError
from ..params import ROOT, Evaluation, Experiment, Params, missing
from ..tasks import Task
from ..tasks import experiment as experiments
from ..training import TrainingError, write_whole
from . import networks, progress
from .files import digest
from .runner import StageError

#: Endings of the files that a restored image is written to.
LOSSLESS = (".png", ".tif", ".tiff")

#: Pixels per inch that no image has: more cannot be written.
DENSEST = 1e8


def restore_files(
    images: Sequence[Path], by: str, into: Path, profile: str | None, self_ensemble: bool, megapixels: float
) -> None:
    """Restore image files by the network (its first seed) or baseline `by` and write them, rounded to 8 bits.

    images: files, folders of them and patterns such as `scans/*.jpg`. into: a file for a single image, else a folder,
    where each becomes <name>.png. megapixels: of the largest image that is taken.
    An image is taken as it is, for the degraded one; gray tasks make it gray by their rule. Raises StageError where the
    row cannot be run here, its weights are missing or of other parameters, and at the end with a line for each image
    that could not be read or written.
    """
    params, targets = Params(profile=profile), _targets(images, into)
    run, network = load(params, by)
    if into not in targets.values():
        into.mkdir(parents=True, exist_ok=True)
    how, failed = replace(run.evaluation, tile=tile_side(run, network), self_ensemble=self_ensemble), []
    for image, target in targets.items():
        try:
            _restore_file(image, target, network, run.task, how, megapixels)
            progress.done(f"{target}: {image.name} by {by}, profile {params.profile}")
        except StageError as error:
            failed.append(str(error))
    if failed:
        raise StageError("\n".join(failed))


def load(params: Params, by: str) -> tuple[Row, nn.Module]:
    """A row with the network of its first seed, or its baseline, on the GPU where there is one; raises StageError where
    it cannot be run here."""
    run = params.row(by)
    if reason := missing(run):
        raise StageError(f"{by}: {reason}")
    for file in filter(None, (run.needs, getattr(run, "checkpoint", None))):
        known = registry.published().checkpoints.get(file)
        if known and digest(ROOT / file) != known:
            raise StageError(f"{file}: is damaged; remove it and run `dvc repro --force download`")
    if isinstance(run, Experiment):
        run = replace(run, seeds=run.seeds[:1])
        networks.check_trained(params, by)
        if code := networks.other_code(params, by):
            print(f"note: {by} was trained with other code: {code}", file=sys.stderr)
    try:
        [network] = experiments.trained(run, params.results("weights", by)).values()
    except (OfficialError, ModelError) as error:
        raise StageError(str(error)) from None
    return run, network.to("cuda" if torch.cuda.is_available() else "cpu")


def _targets(images: Sequence[Path], into: Path) -> dict[Path, Path]:
    """The images with the file that each is restored to."""
    found = list(dict.fromkeys(_named(images)))
    single = len(found) == 1 and not into.is_dir() and not images[0].is_dir()
    if single and into.suffix.lower() not in LOSSLESS:
        raise StageError(f"{into}: end it in {', '.join(LOSSLESS)}, or name a folder that exists")
    if single and not into.parent.is_dir():
        raise StageError(f"{into}: {into.parent} is no folder; make it first")
    if not single and (into.suffix.lower() in LOSSLESS or into.is_file()):
        raise StageError(f"{into}: names a file for {len(found)} images; name a folder")
    targets = {image: into if single else into / f"{image.stem}.png" for image in found}
    given, taken = {image.resolve() for image in found}, dict[Path, Path]()
    for image, target in targets.items():
        if target.resolve() in given:
            raise StageError(f"{target}: is an image that is to be restored; name another file or folder")
        if (other := taken.setdefault(target, image)) != image:
            raise StageError(f"{other} and {image}: both would become {target}; restore them into two folders")
    return targets


def _named(images: Sequence[Path]) -> Iterator[Path]:
    for path in images:
        matching = Path(path.anchor).glob(str(path.relative_to(path.anchor)))
        within = [path] if path.is_file() else path.iterdir() if path.is_dir() else matching
        try:
            files = sorted(file for file in within if file == path or _is_image(file))
        except ValueError as error:  # of a pattern
            raise StageError(f"{path}: {error}") from None
        if not files:
            raise StageError(f"{path}: {'the folder has no images' if path.is_dir() else 'No such file or directory'}")
        yield from files


def _is_image(path: Path) -> bool:
    """Whether a file that is not named itself is meant, by its name; macOS puts a hidden one beside each."""
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and not path.is_dir()


def _restore_file(
    image: Path, target: Path, network: nn.Module, task: Task, how: Evaluation, megapixels: float
) -> None:
    given, opacity, described = read(image, task, megapixels)
    parts = itertools.count(1)

    def shown(x: Tensor) -> Tensor:
        progress.show(f"{image.name}: part {next(parts)}")
        return in_phase(network, x)

    try:
        output = restore(shown, given, how.tile, how.overlap, how.self_ensemble, task.degradation.period)  # type: ignore[arg-type]
    except (ImageError, torch.OutOfMemoryError) as error:
        raise StageError(f"{image}: {str(error).splitlines()[0]}") from None
    planes = output[0].clamp(0, 1).mul(255).round().byte().cpu()
    restored = Image.fromarray(planes[0].numpy() if len(planes) == 1 else planes.movedim(0, 2).contiguous().numpy())
    if opacity:
        restored.putalpha(opacity.resize(restored.size, Image.Resampling.BICUBIC))
    try:
        form = Image.registered_extensions()[target.suffix.lower()]
        write_whole(target, partial(restored.save, format=form, **described))
    except TrainingError as error:  # which names the file
        raise StageError(str(error)) from None
    except (OSError, ValueError) as error:
        raise StageError(f"{target}: {error}") from None


def in_phase(network: nn.Module, x: Tensor) -> Tensor:
    """The network on an image ``(1, colors, H, W)``, continued by mirroring where DAGL's graph would paste its patches
    with another shift than on training crops, whose sides are multiples of its stride: there its networks fail."""
    graphs = {(module.patch, module.stride) for module in network.modules() if isinstance(module, MGFAM)}

    common = math.lcm(*(stride for _, stride in graphs))

    def shifts(side: int) -> list[int]:
        return [same_padding(side, *graph)[0] for graph in graphs]

    def lacking(side: int) -> int:
        return next(more for more in range(common) if shifts(side + more) == shifts(9 * common))

    if not graphs:
        return network(x)
    height, width = x.shape[2:]
    below, right = lacking(height), lacking(width)
    return network(mirror_pad(x, (0, right, 0, below)))[..., :height, :width]


def read(path: Path, task: Task, megapixels: float) -> tuple[Tensor, Image.Image | None, dict[str, Any]]:
    """An image file as the task sees it, float32 ``(1, colors, H, W)`` in [0, 1]; its opacity (mode L) where not all of
    it is opaque; and what is said of its pixels and stays true: resolution, and the colour profile where the colours
    stay. Raises StageError for any other file."""
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None  # ours can be raised
    try:
        with warnings.catch_warnings(record=True) as remarks, Image.open(path) as image:
            size, bands = image.width * image.height / 1e6, len(image.getbands())
            frames = getattr(image, "n_frames", 1)
            described = {key: image.info[key] for key in ("dpi", "icc_profile") if image.info.get(key)}
        if not all(0 < value < DENSEST for value in described.get("dpi", ())):
            del described["dpi"]
        if size > megapixels:
            larger = f"is larger than {megapixels:g} megapixels"
            raise StageError(f"{path}: {larger}; `--megapixels {math.ceil(size)}` takes it, given the memory")
        with warnings.catch_warnings(action="ignore"):
            pixels, opacity = decode_layers(path, str(path))
        if frames > 1:  # a camera's, of one photograph
            print(f"note: {path}: the first of {frames} pictures in it is taken", file=sys.stderr)
        for remark in remarks[:1]:  # such as damaged EXIF data
            print(f"note: {path}: {' '.join(str(remark.message).split())}", file=sys.stderr)
    except (StageError, sets.SetError) as error:
        raise StageError(str(error)) from None
    except Exception as error:  # Pillow meets damage with almost any of them
        raise StageError(f"{path}: truncated or no image ({' '.join(str(error).split())})") from None
    finally:
        Image.MAX_IMAGE_PIXELS = limit
    if task.colors == 1:
        pixels = sets.to_gray(pixels, task.gray)[:, :, None]
    elif pixels.ndim == 2:
        pixels = np.repeat(pixels[:, :, None], 3, axis=2)
    if (bands < 3) != (task.colors == 1):
        described.pop("icc_profile", None)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.from_numpy(np.moveaxis(pixels, 2, 0).astype(np.float32))[None].to(device) / 255, opacity, described
