"""The part of checking params.yaml that builds what it names: networks, degradations, image sets, reports."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from .. import experiment as experiments
from .. import models, tasks
from ..degradations import DegradationError, Paired
from ..images import registry, sets
from ..metrics import WINDOWS
from ..official import OfficialError
from ..tasks import Task
from . import missing
from .resolve import ROOT, Experiment, Params, options, sides
from .schema import BaselineEntry

#: Side of the image on which a degradation is tried; a multiple of every `multiple`.
SIDE = 48


def faults(params: Params) -> list[str]:
    """Everything in the file that cannot be built in the profile in force, a line each; in the other profiles, options
    that models do not know."""
    built, found = {}, []
    for name, entry in params.contents.tasks.items():
        try:
            built[name] = _built(tasks.build(name, entry, sides(entry, params.settings.sets)))
        except (DegradationError, sets.SetError) as error:
            found.append(f"tasks.{name}: {error}")
    try:
        registry.check_references(params.published_numbers.sets)
    except sets.SetError as error:
        found.append(f"profiles.{params.profile}.published_numbers.sets: {error}")
    for name, row in params.rows.items():
        if row.task in built:
            found += [f"{params.section(name)}.{name}: {fault}" for fault in _of_row(params, name)]
    for name in params.studies:
        if not (ROOT / "notebooks" / f"report_{name}.ipynb").exists():
            found.append(f"studies.{name}: there is no notebooks/report_{name}.ipynb; a study needs its report")
    return [*dict.fromkeys([*found, *_of_other_profiles(params)])]


def _built(task: Task) -> Task:
    registry.check_references(task.references)
    if not isinstance(task.degradation, Paired):
        task.degradation(torch.zeros(1, task.colors, SIDE, SIDE), torch.Generator())
    return task


def _of_row(params: Params, name: str) -> Iterator[str]:
    if name in params.contents.experiments and params.rows[name].task not in params.settings.training:
        yield f"profiles.{params.profile}.training lacks {params.rows[name].task!r}"
        return
    row = params.row(name)
    try:
        models.check_options(row.model, row.options)
        network = None if missing(row) else experiments.network(row)
    except (models.ModelError, OfficialError) as error:
        yield str(error)
        return
    patch = _patch(network) if network else 1
    scale, convention, how = row.task.degradation.scale, row.task.convention, row.evaluation
    where = f"profiles.{params.profile}"
    least = WINDOWS[convention.window] + 2 * convention.border
    if how.crop and how.crop // scale * scale < least:
        yield f"{where}.evaluation.crop is {how.crop}; the convention of {row.task.name} needs {least} pixels at least"
    if how.tile and min(how.tile, (how.crop or how.tile * scale) // scale) < patch:
        yield f"{where}.evaluation: less than one patch of the attention, {patch} x {patch} input pixels, is restored"
    if isinstance(row, Experiment):
        yield from _of_training(params, row, patch)


def _of_training(params: Params, row: Experiment, patch: int) -> Iterator[str]:
    scale, crop = row.task.degradation.scale, row.budget.crop
    where = f"profiles.{params.profile}.training.{row.task.name}"
    if crop % scale:
        yield f"{where}.crop is {crop}; it must be a multiple of the scale {scale}"
    elif crop // scale < patch:
        yield f"{where}.crop is {crop}; a patch of the attention has {patch} x {patch} input pixels at scale {scale}"
    if row.start is not None:
        first = params.experiment(row.start)
        if lacking := sorted({*row.seeds} - {*first.seeds}):
            yield f"{row.start!r}, from which it starts, has no seed {lacking[0]}"


def _patch(network: nn.Module) -> int:
    """Side of the largest patch that an attention module of the network compares."""
    sides = [getattr(module, "patch", 1) for module in network.modules()]
    return max(side for side in sides if isinstance(side, int))


def _of_other_profiles(params: Params) -> Iterator[str]:
    for profile, settings in params.contents.profiles.items():
        for model in settings.models:
            if model not in models.names():
                yield f"profiles.{profile}.models: unknown model {model!r}; known: {', '.join(models.names())}"
        for name, entry in params.rows.items() if profile != params.profile else ():
            if not (isinstance(entry, BaselineEntry) and entry.checkpoint):
                try:
                    models.check_options(entry.model, options(entry, settings))
                except models.ModelError as error:
                    yield f"{params.section(name)}.{name}: {error}"
