"""Checks params.yaml by building everything that it names: networks, degradations, image sets, reports."""

from __future__ import annotations

import contextlib
import inspect
import math
import warnings
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import nn

from .. import models
from ..images import download, registry, sets
from ..measuring.metrics import WINDOWS
from ..models.blocks import NON_LOCAL, Attention
from ..official import OfficialError
from ..tasks import Task
from ..tasks import experiment as experiments
from ..tasks.degradations import DegradationError, Paired
from . import missing
from .faults import ParamsError, unknown
from .resolve import ROOT, Baseline, Experiment, Params, options, sides
from .schema import PUBLISHED, BaselineEntry

#: Folder of the user's image sets.
OWN = ROOT / "own"


#: Largest network, 25 times the published ones: its training takes 16 GB for weights, gradients and moments alone.
MOST_NUMBERS = 1_000_000_000

#: Side of the image on which a degradation is tried; a multiple of every `multiple`.
SIDE = 48

#: Options that build a network but make no sense: a test that sensible values pass, and what the message says.
SENSIBLE: dict[str, tuple[Callable[[Any], bool], str]] = {
    "contrastive_start": (lambda start: start < 1, "below 1, else there is no loss (contrastive: false says that)"),
    "contrastive_weight": (lambda weight: weight > 0, "above 0 (contrastive: false leaves the loss out)"),
    "k": (lambda k: k <= 80, "at most 80, for exp(k) is a float32 number"),
    "margin": (lambda margin: margin > 0, "above 0, else the loss is 0"),
    "positions": (lambda places: places != [] and not (isinstance(places, int) and places < 1), "one place or more"),
    "redraw": (lambda share: share is None or share < 1, "a fraction of the run below 1, or null for never"),
    "sigma": (lambda sigma: 0 < sigma <= 255, "above 0 and at most 255"),
    "window": (lambda window: window >= 1, "at least 1"),
}

#: (model, option, values, ignored): where `option` has one of `values`, the options `ignored` have no effect.
UNUSED: tuple[tuple[str, str, tuple, tuple[str, ...]], ...] = (
    ("dagl", "attention", (*NON_LOCAL,), ("heads", "patch", "stride", "weights")),
    ("dagl", "no_graph_attention", (True,), ("weights",)),
    ("enlca", "exact", (True,), ("features", "orthogonal", "redraw")),
    ("enlca", "contrastive", (False,),
     ("contrastive_ranks", "contrastive_weight", "contrastive_start", "margin")),
    ("ignn", "neighbours", (0,), ("adapn", "branch", "edge_weights", "vgg19_weights", "window")),
    ("ignn", "neighbours", (1,), ("edge_weights",)),
    ("ignn", "embedding", ("own", "random"), ("vgg19_weights",)),
    ("graph_prior", "attention", ("blocks",), ("heads", "patch", "stride")),
)  # fmt: skip


def faults(params: Params) -> list[str]:
    """Everything in the file that cannot be built in the profile in force, a line each; in the other profiles, models
    and options that are not known."""
    found, built = [], set()
    profile = f"profiles.{params.profile}"
    numbers = params.published_numbers
    named: dict[str, tuple[str, ...]]
    named = {f"{profile}.published_numbers.{key}": (getattr(numbers, key),) for key in ("denoised", "enlarged")}
    for side, references in vars(params.settings.sets).items():
        named[f"{profile}.sets.{side}"] = references or ()
    for name, entry in params.contents.tasks.items():
        named |= {f"tasks.{name}.{side}": references for side, references in sides(entry, params.settings.sets).items()
                  if getattr(params.settings.sets, side) is None}  # fmt: skip
        try:
            _try(params.task(name))
            built.add(name)
        except DegradationError as error:
            found.append(f"tasks.{name}.degradation: {error}")
        except ParamsError as error:
            found += [fault.removeprefix(f"{params.file}: ") for fault in error.faults]
    for place, references in {f"{profile}.published_numbers.sets": numbers.sets, **named}.items():
        try:
            registry.check_references(references)
            if place in named:
                _check_images(references)
        except sets.SetError as error:
            found.append(f"{place}: {error}")
    for name, row in params.rows.items():
        with contextlib.suppress(KeyError):  # of an unknown recipe or size, which is a fault that has been found
            found += _of_row(params, name) if row.task in built else ()
    used = {row.task: None for row in params.rows.values() if row.task in built}
    found += [*_of_links()] or _of_sets(params, [*used])
    for name in params.studies:
        if not (ROOT / "notebooks" / f"report_{name}.ipynb").exists():
            found.append(f"studies.{name}: there is no notebooks/report_{name}.ipynb; a study needs its report")
    found = [*dict.fromkeys([*found, *_of_other_profiles(params, found)])]
    return [*found, *_of_options(params, found)]


def _try(task: Task) -> None:
    if isinstance(task.degradation, Paired):
        return
    for side in (SIDE, 20 * SIDE):  # a large image has the rare drops of a light rain
        image = torch.rand(1, task.colors, side, side, generator=torch.Generator().manual_seed(0))
        if not torch.equal(task.degradation(image, torch.Generator().manual_seed(0)), image):
            return
    raise DegradationError(f"{task.degradation.name}: leaves a photograph as it is; there is nothing to restore")


def _of_row(params: Params, name: str) -> Iterator[str]:
    where, task = f"{params.section(name)}.{name}", params.rows[name].task
    if name in params.contents.experiments and task not in params.settings.training:
        yield f"profiles.{params.profile}.training lacks {task!r}, which {name!r} needs"
        return
    row = params.row(name)
    checkpoint = row.checkpoint if isinstance(row, Baseline) else None
    file, known = checkpoint or row.needs or "", registry.published().checkpoints
    if file.startswith(f"data/{PUBLISHED}") and file not in known:
        yield unknown("file", file.removeprefix("data/"), [k.removeprefix("data/") for k in known], where)
        return
    try:
        models.check_options(row.model, row.options)
        _check_meant(row, params.entry(name).options)
        absent = missing(row) or (file.startswith(("own/", "data/")) and not (ROOT / file).is_file())
        network = None if absent else _network(row)
    except (models.ModelError, OfficialError) as error:
        yield f"{where}: {error}"
        return
    if network:
        trained = any(True for _ in network.parameters())
        if isinstance(row, Experiment) and not trained:
            yield f"{where}: model {row.model!r} has nothing to train; name it among the baselines"
        if isinstance(row, Baseline) and trained and not checkpoint:
            yield f"{where}: model {row.model!r} must be trained; name it among the experiments, or a checkpoint"
    yield from _of_sizes(params, row, _least(network) if network else 1)


def _check_meant(row: Experiment | Baseline, own: dict[str, Any]) -> None:
    """Raise ModelError for options of which nothing comes, the row's `own` where another one rules them out."""
    for model, option, values, unused in UNUSED:
        if row.model == model and (value := row.options.get(option)) in values:
            for other in (key for key in own if key in unused):
                raise models.ModelError(f"option {other!r} of model {model!r} is not used where {option} is {value!r}; "
                                        "leave one of them out")  # fmt: skip
    file = row.options.get("vgg19_weights")
    if file and row.options.get("embedding", "vgg19") == "vgg19" and file != row.needs:
        raise models.ModelError(f"option 'vgg19_weights' of model {row.model!r} is {file!r}; it must be the file "
                                f"that `needs` names, which is {row.needs or 'none'}")  # fmt: skip
    if row.model == "enlca" and (width := row.options.get("width", 4)) < 4:
        raise models.ModelError(f"option 'width' of model 'enlca' is {width}; it must be at least 4, for queries and "
                                "keys have a quarter of it")  # fmt: skip
    for option, value in row.options.items():
        means, must = SENSIBLE.get(option, (lambda _: True, ""))
        if not means(value):
            raise models.ModelError(f"option {option!r} of model {row.model!r} is {value!r}; it must be {must}")
    if (
        isinstance(row, Baseline)
        and not row.checkpoint
        and "sigma" in {*models.known_options(row.model)} - {*row.options}
    ):
        raise models.ModelError(f"model {row.model!r} needs the option 'sigma', the noise that it takes away")


def _network(row: Experiment | Baseline) -> nn.Module:
    try:
        with warnings.catch_warnings(action="ignore"):  # of tensors without elements, which are refused here
            network = experiments.network(row)
    except (RuntimeError, TypeError, ValueError, ArithmeticError) as error:
        if isinstance(error, models.ModelError | OfficialError):
            raise
        reason = str(error).splitlines()[0]
        raise models.ModelError(f"model {row.model!r} cannot be built with {row.options}: {reason}") from None
    numbers = sum(tensor.numel() for tensor in network.state_dict().values())
    if numbers > MOST_NUMBERS:
        raise models.ModelError(f"model {row.model!r} with {row.options}: has {numbers:,} numbers; at most "
                                f"{MOST_NUMBERS:,} are allowed")  # fmt: skip
    for name, tensor in network.state_dict().items():
        if not tensor.numel():
            raise models.ModelError(f"model {row.model!r} with {row.options}: {name} has no elements")
        if tensor.isnan().any():  # IGNN's VGG-19 embedding without its file
            raise models.ModelError(f"model {row.model!r} with {row.options}: {name} has no values; name their file")
    return network


def _of_sizes(params: Params, row: Experiment | Baseline, side: int) -> Iterator[str]:
    """Faults of crops and tiles: too small to measure, or for the attention, which needs `side` input pixels a side, or
    no whole input pixels."""
    profile, task = f"profiles.{params.profile}", row.task
    scale, convention, how = task.degradation.scale, task.convention, row.evaluation
    attended = f"the attention of {row.model} needs {side} x {side} input pixels"
    least = WINDOWS[convention.window] + 2 * convention.border
    if how.crop and how.crop // task.degradation.multiple * task.degradation.multiple < least:
        yield f"{profile}.evaluation.crop is {how.crop}; the convention of {task.name} needs at least {least}"
    elif how.crop and how.crop // scale < side:
        yield f"{profile}.evaluation.crop is {how.crop}, {how.crop // scale} input pixels in {task.name}; {attended}"
    if how.tile and how.tile < side:
        yield f"{profile}.evaluation.tile is {how.tile}; {attended}"
    period = task.degradation.period
    if how.tile and -(-how.overlap // period) >= how.tile // period:
        yield (f"{profile}.evaluation.overlap is {how.overlap}; in whole periods of {task.name}, {period} pixels, it "
               f"must be smaller than the tile, {how.tile}")  # fmt: skip
    if not isinstance(row, Experiment):
        return
    crop, where = row.budget.crop, f"{profile}.training.{task.name}.crop"
    smallest, part = _smallest(task), 2 if row.budget.half_crops else 1
    if crop % (scale * part):
        halves = "twice the scale, for half_crops:" if part == 2 else "the scale"
        yield f"{where} is {crop}; it must be a multiple of {halves} {scale * part}"
    elif crop // (scale * part) < side:
        yield f"{where} is {crop}, {crop // (scale * part)} input pixels{' in half_crops' * (part - 1)}; {attended}"
    elif smallest and crop > smallest:
        yield f"{where} is {crop}; the smallest training photograph has a side of {smallest} pixels"


def _smallest(task: Task) -> int | None:
    """The shortest side of the training photographs whose size the registry knows."""
    known = registry.published()
    listed = [reference for reference in task.train if known.lists(reference)]
    held_out = {entry.path for entry in known.leaks(task.train, task.test)}
    entries = [entry for reference in listed for entry, _ in known.pairs(reference) if entry.path not in held_out]
    return min((min(entry.height, entry.width) for entry in entries if entry.height), default=None)


def _check_images(references: Iterable[str]) -> None:
    known = registry.published()
    for reference in references:
        if not all(entry.is_image for entry in known.entries.get(reference, ())):
            raise sets.SetError(f"set {reference}: holds files that are no images; name a set of photographs")


def _of_links() -> Iterator[str]:
    """Broken links in own/. DVC hashes the whole folder and fails without naming the link."""
    for path in sorted(OWN.rglob("*")):
        if path.is_symlink() and not path.exists():
            yield f"{path.relative_to(OWN.parent)}: is a link to {path.readlink()}, which is not there; remove it"


#: A file of the user, or one that the registry lists.
File = Path | registry.Entry


def _of_sets(params: Params, names: list[str]) -> Iterator[str]:
    """The first fault of each set on each side of a task: sets that do not exist or do not fit the task; the user's
    photographs that are too small to be cropped or measured, or on two sides."""
    sized = cache(_sized)
    for task in map(params.task, names):
        taken: dict[Path, tuple[str, str]] = {}
        for side, references in task.sides.items():
            of_profile = getattr(params.settings.sets, side) is not None
            place = f"profiles.{params.profile}.sets.{side}" if of_profile else f"tasks.{task.name}.{side}"
            kinds: dict[bool, str] = {}
            for reference in references:
                try:
                    images, pairs = _images(reference)
                    kinds.setdefault(pairs, reference)
                    _check_kind(task, reference, images, pairs)
                    for target, degraded in images:
                        if degraded:
                            _check_scale(task, sized(target), sized(degraded))
                        if isinstance(target, Path):
                            _check_size(params, task, side, sized(target))
                            other, where = taken.setdefault(target.resolve(), (side, reference))
                            if other != side:
                                raise sets.SetError(f"{target.relative_to(OWN.parent)} is in {where} too, for {other}")
                except sets.SetError as error:
                    yield f"{place}: {error}"
            if side == "train" and task.degradation.fresh and len(kinds) > 1:
                yield f"{place}: {kinds[True]} has pairs, {kinds[False]} has none; train on pairs or photographs alone"


def _images(reference: str) -> tuple[list[tuple[File, File | None]], bool]:
    """The photographs of a set, each with its degraded version or None, as far as they are known, and whether it is a
    set of pairs."""
    known, images = registry.published(), list[tuple[File, File | None]]()
    if reference in known.manual:
        return images, known.manual[reference].pairs
    if reference.startswith(registry.OWN):
        images += download.own_images(reference, OWN)
    elif known.lists(reference):
        images += known.pairs(reference)
    return images, any(degraded for _, degraded in images)


def _check_kind(task: Task, reference: str, images: list[tuple[File, File | None]], pairs: bool) -> None:
    if isinstance(task.degradation, Paired) and not pairs:
        raise sets.SetError(f"set {reference}: has no pairs, which the degradation of {task.name} needs")
    if images and task.colors == 3 and all(_is_gray(target) for target, _ in images):
        raise sets.SetError(f"set {reference}: has gray photographs alone, which {task.name} leaves out")


def _is_gray(file: File) -> bool:
    if isinstance(file, Path):
        download.size(file)  # raises SetError for what is no image
        with Image.open(file) as image:
            return image.mode in ("L", "LA")
    return file.channels == 1


#: A file with its rows and columns.
Sized = tuple[str, int, int]


def _sized(file: File) -> Sized:
    if isinstance(file, Path):
        return str(file.relative_to(OWN.parent)), *download.size(file)
    return f"{file.reference}/{file.name}", file.height, file.width


def _check_scale(task: Task, target: Sized, degraded: Sized) -> None:
    scale = task.degradation.scale
    if target[1:] != tuple(scale * pixels for pixels in degraded[1:]):
        raise sets.SetError(f"{_described(degraded)}, but {_described(target)}; task {task.name} has scale {scale}")


def _check_size(params: Params, task: Task, side: str, target: Sized) -> None:
    """Raise SetError unless a photograph of the user suits the side of the task that names it."""
    convention, shortest = task.convention, min(target[1:])
    multiple, budget = task.degradation.multiple, params.settings.training.get(task.name)
    least, use = {
        "train": (budget.crop if budget else 1, f"the training crop of {task.name}"),
        "validation": (experiments.VALIDATION_SIDE, "a validation photograph"),
        "test": (WINDOWS[convention.window] + 2 * convention.border, f"the convention of {task.name}"),
    }[side]
    if shortest // multiple * multiple < least:
        raise sets.SetError(f"{_described(target)} (rows x columns); {use} needs at least {least} a side")


def _described(image: Sized) -> str:
    name, rows, columns = image
    return f"{name} has {rows} x {columns} pixels"


def _least(network: nn.Module) -> int:
    """Side of the smallest image with a whole patch, and a pixel at each scale, for every attention module."""
    found = [getattr(module, "patch", 1) for module in network.modules()]
    scales = [scale for module in network.modules() for scale in getattr(module, "scales", ())]
    return max(math.ceil(1 / min(scales, default=1)), *(side for side in found if isinstance(side, int)))


def _of_other_profiles(params: Params, found: list[str]) -> Iterator[str]:
    """Faults of the profiles that are not in force, except those that are `found` already."""
    for profile, settings in params.contents.profiles.items():
        for model in settings.models:
            if model not in models.names():
                yield f"profiles.{profile}.models: unknown model {model!r}; known: {', '.join(models.names())}"
        kinds = [*NON_LOCAL, *filter(_attends, models.names())] if settings.attention_lr else []
        for kind in (kind for kind in settings.attention_lr if kind not in kinds):
            yield unknown("attention", kind, kinds, f"profiles.{profile}.attention_lr")
        for name, entry in params.rows.items() if profile != params.profile else ():
            if not (isinstance(entry, BaselineEntry) and entry.checkpoint):
                try:
                    models.check_options(entry.model, options(entry, settings))
                except models.ModelError as error:
                    if f"{params.section(name)}.{name}: {error}" not in found:
                        yield f"{params.section(name)}.{name} in profile {profile}: {error}"


def _attends(model: str) -> bool:
    """Whether a model has attention modules, which `attention_lr` is about."""
    kinds = vars(inspect.getmodule(models.network_class(model))).values()
    return any(inspect.isclass(kind) and issubclass(kind, Attention) and kind is not Attention for kind in kinds)


def _of_options(params: Params, found: list[str]) -> Iterator[str]:
    """Faults of a profile's options of a model, except those that are `found` in a row."""
    for profile, settings in params.contents.profiles.items():
        for model, given in settings.models.items():
            named = {key: value for key, value in given.items() if isinstance(value, dict)}
            plain = {key: value for key, value in given.items() if key not in named}
            options = models.known_options(model) if model in models.names() else {}
            for size in sorted({*named} & {*options} - {"common_trunk"}):
                yield f"profiles.{profile}.models.{model}.{size} is a size, but an option has this name; rename it"
            for place, values in {
                model: plain,
                **{f"{model}.{size}": of_size for size, of_size in named.items()},
            }.items():
                try:
                    models.check_options(model, values)
                except models.ModelError as error:
                    if not any(fault.endswith(str(error)) for fault in found):
                        yield f"profiles.{profile}.models.{place}: {error}"
