"""The part of checking params.yaml that builds what it names: networks, tasks, image sets."""

from __future__ import annotations

from .. import models, tasks
from ..degradations import DegradationError
from ..images import registry, sets
from .resolve import Params, options


def faults(params: Params) -> list[str]:
    """Everything in the file that cannot be built, a line each."""
    found = []
    for name, row in {**params.contents.experiments, **params.contents.baselines}.items():
        try:
            models.check_options(row.model, options(row, params.settings))
        except models.ModelError as error:
            found.append(f"{name}: {error}")
    for name, entry in params.contents.tasks.items():
        replaced = params.settings.sets
        train, test = replaced.train or entry.train, replaced.test or entry.test
        validation = entry.validation if replaced.validation is None else replaced.validation
        try:
            built = tasks.build(name, entry, train, validation, test)
            registry.check_references(built.references)
        except (DegradationError, sets.SetError) as error:
            found.append(f"tasks.{name}: {error}")
    try:
        registry.check_references(params.published_numbers.sets)
    except sets.SetError as error:
        found.append(f"profiles.{params.profile}.published_numbers.sets: {error}")
    return found
