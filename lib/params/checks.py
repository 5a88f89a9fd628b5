"""Checks params.yaml by building everything that it names: networks, degradations, image sets, reports."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .. import models
from ..images import download, registry, sets
from ..measuring.metrics import WINDOWS
from ..models.blocks import NON_LOCAL
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


#: Side of the image on which a degradation is tried; a multiple of every `multiple`.
SIDE = 48

#: Values of options that a network takes although nothing comes of them: what holds of those that it can mean.
MEANT: dict[str, tuple[Callable[[Any], bool], str]] = {
    "contrastive_start": (lambda start: start < 1, "below 1, else there is no loss (contrastive: false says that)"),
    "contrastive_weight": (lambda weight: weight > 0, "above 0 (contrastive: false leaves the loss out)"),
    "k": (lambda k: k <= 80, "at most 80, for exp(k) is a float32 number"),
    "margin": (lambda margin: margin > 0, "above 0, else the loss is 0"),
    "positions": (lambda places: places != [] and not (isinstance(places, int) and places < 1), "one place or more"),
    "redraw": (lambda share: share is None or share < 1, "a fraction of the run below 1, or null for never"),
    "sigma": (lambda sigma: sigma <= 255, "at most 255"),
}


def faults(params: Params) -> list[str]:
    """Everything in the file that cannot be built in the profile in force, a line each; in the other profiles, models
    and options that are not known."""
    found, built = [], set()
    profile = f"profiles.{params.profile}"
    named = {f"{profile}.published_numbers.sets": params.published_numbers.sets}
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
    for place, references in named.items():
        try:
            registry.check_references(references)
        except sets.SetError as error:
            found.append(f"{place}: {error}")
    for name, row in params.rows.items():
        if row.task in built:
            found += _of_row(params, name)
    found += _of_own_sets(params, [task for task in {row.task: None for row in params.rows.values()} if task in built])
    for name in params.studies:
        if not (ROOT / "notebooks" / f"report_{name}.ipynb").exists():
            found.append(f"studies.{name}: there is no notebooks/report_{name}.ipynb; a study needs its report")
    return [*dict.fromkeys([*found, *_of_other_profiles(params, found)])]


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
    file = row.checkpoint if isinstance(row, Baseline) else None
    known = registry.published().checkpoints
    if file and file.startswith(f"data/{PUBLISHED}") and file not in known:
        yield unknown("checkpoint", file.removeprefix("data/"), [k.removeprefix("data/") for k in known], where)
        return
    try:
        models.check_options(row.model, row.options)
        _check_meant(row)
        network = None if missing(row) or (file and not (ROOT / file).is_file()) else _network(row)
    except (models.ModelError, OfficialError) as error:
        yield f"{where}: {error}"
        return
    if network:
        trained = any(True for _ in network.parameters())
        if isinstance(row, Experiment) and not trained:
            yield f"{where}: model {row.model!r} has nothing to train; name it among the baselines"
        if isinstance(row, Baseline) and trained and not file:
            yield f"{where}: model {row.model!r} must be trained; name it among the experiments, or a checkpoint"
    yield from _of_sizes(params, row, _patch(network) if network else 1)


def _check_meant(row: Experiment | Baseline) -> None:
    embedding = row.options.get("embedding", "vgg19")
    if row.options.get("vgg19_weights") and embedding != "vgg19":
        raise models.ModelError(f"option 'vgg19_weights' of model {row.model!r} is not used where embedding is "
                                f"{embedding!r}; leave one of them out")  # fmt: skip
    for option, value in row.options.items():
        means, must = MEANT.get(option, (lambda _: True, ""))
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
    for name, tensor in network.state_dict().items():
        if not tensor.numel():
            raise models.ModelError(f"model {row.model!r} with {row.options}: {name} has no elements")
        if tensor.isnan().any():  # IGNN's VGG-19 embedding without its file
            raise models.ModelError(f"model {row.model!r} with {row.options}: {name} has no values; name their file")
    return network


def _of_sizes(params: Params, row: Experiment | Baseline, patch: int) -> Iterator[str]:
    """Faults of crops and tiles: too small to measure, or for the attention's patches, or no whole input pixels."""
    profile, task = f"profiles.{params.profile}", row.task
    scale, convention, how = task.degradation.scale, task.convention, row.evaluation
    attended = f"a patch of the attention of {row.model} has {patch} x {patch} input pixels"
    least = WINDOWS[convention.window] + 2 * convention.border
    if how.crop and how.crop // task.degradation.multiple * task.degradation.multiple < least:
        yield f"{profile}.evaluation.crop is {how.crop}; the convention of {task.name} needs at least {least}"
    if how.tile and how.tile < patch:
        yield f"{profile}.evaluation.tile is {how.tile}; {attended}"
    if not isinstance(row, Experiment):
        return
    crop, where = row.budget.crop, f"{profile}.training.{task.name}.crop"
    smallest, part = _smallest(task), 2 if row.budget.half_crops else 1
    if crop % (scale * part):
        halves = "twice the scale, for half_crops:" if part == 2 else "the scale"
        yield f"{where} is {crop}; it must be a multiple of {halves} {scale * part}"
    elif crop // (scale * part) < patch:
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


def _of_own_sets(params: Params, names: list[str]) -> Iterator[str]:
    """The first fault of each set of the user: what is no set, pairs of another scale, photographs that are too small
    to be cropped or measured."""
    size = cache(download.size)
    for task in map(params.task, names):
        for side, references in task.sides.items():
            of_profile = getattr(params.settings.sets, side) is not None
            place = f"profiles.{params.profile}.sets.{side}" if of_profile else f"tasks.{task.name}.{side}"
            for reference in (r for r in references if r.startswith(registry.OWN)):
                try:
                    for pair in download.own_images(reference, OWN):
                        _check_sizes(params, task, side, *((path, *size(path)) for path in pair if path))
                except sets.SetError as error:
                    yield f"{place}: {error}"


#: A file with its rows and columns.
Sized = tuple[Path, int, int]


def _check_sizes(params: Params, task: Task, side: str, target: Sized, degraded: Sized | None = None) -> None:
    """Raise SetError unless a photograph of the user suits the side of the task that names it."""
    scale, convention, shortest = task.degradation.scale, task.convention, min(target[1:])
    if degraded and target[1:] != tuple(scale * pixels for pixels in degraded[1:]):
        raise sets.SetError(f"{_described(degraded)}, but {_described(target)}; task {task.name} has scale {scale}")
    multiple, budget = task.degradation.multiple, params.settings.training.get(task.name)
    least, use = {
        "train": (budget.crop if budget else 1, f"the training crop of {task.name}"),
        "validation": (experiments.VALIDATION_SIDE, "a validation photograph"),
        "test": (WINDOWS[convention.window] + 2 * convention.border, f"the convention of {task.name}"),
    }[side]
    if shortest // multiple * multiple < least:
        raise sets.SetError(f"{_described(target)} (rows x columns); {use} needs at least {least} a side")


def _described(image: Sized) -> str:
    path, rows, columns = image
    return f"{path.relative_to(OWN.parent)} has {rows} x {columns} pixels"


def _patch(network: nn.Module) -> int:
    """Side of the largest patch that an attention module of the network compares."""
    found = [getattr(module, "patch", 1) for module in network.modules()]
    return max(side for side in found if isinstance(side, int))


def _of_other_profiles(params: Params, found: list[str]) -> Iterator[str]:
    """Faults of the profiles that are not in force, those aside that are `found` already."""
    for profile, settings in params.contents.profiles.items():
        for model in settings.models:
            if model not in models.names():
                yield f"profiles.{profile}.models: unknown model {model!r}; known: {', '.join(models.names())}"
        kinds = [*NON_LOCAL, *models.names()]
        for kind in (kind for kind in settings.attention_lr if kind not in kinds):
            yield unknown("attention", kind, kinds, f"profiles.{profile}.attention_lr")
        for name, entry in params.rows.items() if profile != params.profile else ():
            if not (isinstance(entry, BaselineEntry) and entry.checkpoint):
                try:
                    models.check_options(entry.model, options(entry, settings))
                except models.ModelError as error:
                    if f"{params.section(name)}.{name}: {error}" not in found:
                        yield f"{params.section(name)}.{name} in profile {profile}: {error}"
