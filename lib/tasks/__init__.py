"""Tasks: a degradation with the convention by which its restoration is measured, each built once."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from ..measuring.metrics import Convention
from . import degradations
from .degradations import Degradation

if TYPE_CHECKING:  # a network that resizes needs no parameters
    from ..params.schema import TaskEntry


@dataclass(frozen=True)
class Task:
    """A degradation, the photographs that it is applied to, and the convention by which restorations are measured.

    colors: channels of the images, 1 or 3
    gray: how a colour photograph becomes gray where `colors` is 1, see `lib.images.sets.to_gray`
    train, validation, test: references of image sets
    """

    name: str
    title: str
    degradation: Degradation
    convention: Convention
    colors: int
    train: tuple[str, ...]
    validation: tuple[str, ...]
    test: tuple[str, ...]
    gray: str = "matlab"

    @property
    def sides(self) -> dict[str, tuple[str, ...]]:
        """References by their use, see `lib.images.registry.SIDES`."""
        return {"train": self.train, "validation": self.validation, "test": self.test}

    @property
    def references(self) -> tuple[str, ...]:
        return (*self.train, *self.validation, *self.test)

    def for_training(self) -> dict:
        """Everything in the task that a training depends on, except its photographs."""
        return {"degradation": self.degradation.options(), "colors": self.colors, "gray": self.gray}


def build(name: str, entry: TaskEntry, sides: dict[str, tuple[str, ...]]) -> Task:
    """The task that params.yaml describes by `entry`, with image sets by their use.

    Raises DegradationError for a degradation that cannot be.
    """
    convention, gray = Convention(**asdict(entry.convention)), entry.gray or "matlab"
    return Task(
        name=name, title=entry.title, degradation=degradations.build(**entry.degradation), convention=convention,
        colors=entry.colors, gray=gray, **sides,
    )  # fmt: skip
