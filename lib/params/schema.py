"""The content of params.yaml: type, range and meaning of every key.

Each mapping of the file is a frozen dataclass here, read strictly: an unknown key, a text for a number and a value out
of range are faults. Parts that mean the same in every profile (`Recipe`, `Budget`, `Evaluation`, `Claim`, ...) are used
as they are; `resolve` makes the others into what the rest of the project works with.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, ConfigDict, Field, model_validator
from pydantic.dataclasses import dataclass

_STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

NAME = "at most 100 letters, digits, _ and -, the first no -"

#: A file of weights that the registry lists, as params.yaml names it, begins with the name of its set.
PUBLISHED = "weights/"


def _name(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,99}", name):
        raise ValueError(f"a name is made of {NAME}")
    return name


def _path(path: str) -> str:
    parts = path.split("/")
    if any(part in (".", "..") or part != part.strip() or not part for part in parts) or re.search(r"[^\w ./+-]", path):
        raise ValueError("it must be a path below the project's folder, of letters, digits, _ - + . and blanks inside")
    return path


def _file(path: str) -> str:
    if not _path(path).startswith(("own/", PUBLISHED)):
        raise ValueError(f"it must be a file in own/, or one that the registry lists, {PUBLISHED}<name>")
    return path


def _needed(text: str) -> str:
    kind, mark, package = text.partition(":")
    if not mark:
        return _file(text)
    if kind != "package" or not re.fullmatch(r"[A-Za-z0-9_]+", package):
        raise ValueError("it must be the path of a file or package:<name>")
    return text


def _named(options: dict[str, Any]) -> dict[str, Any]:
    if not isinstance(options.get("name"), str):
        raise ValueError("it lacks `name`")
    return options


def _different(values: tuple) -> tuple:
    if twice := [value for i, value in enumerate(values) if value in values[:i]]:
        raise ValueError(f"{twice[0]!r} is listed twice")
    return values


def _ascending(values: tuple[float, ...]) -> tuple[float, ...]:
    if list(values) != sorted(set(values)):
        raise ValueError("it must ascend")
    return values


Name = Annotated[str, AfterValidator(_name)]
#: Characters that a title must not contain: in tables of Markdown | ends a cell and < begins HTML; control characters
#: and ends of lines.
_UNFIT = r"|<>`\x00-\x1f\x7f-\x9f\u2028\u2029"
Title = Annotated[str, Field(min_length=1, pattern=rf"^[^\s{_UNFIT}]([^{_UNFIT}]*[^\s{_UNFIT}])?$")]
Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Rate = Annotated[float, Field(gt=0, le=1)]
Moment = Annotated[float, Field(gt=0, lt=1)]
Seeds = Annotated[tuple[Annotated[int, Field(ge=0, lt=2**32)], ...], Field(min_length=1), AfterValidator(_different)]
Sets = Annotated[tuple[Annotated[str, AfterValidator(_path)], ...], AfterValidator(_different)]
SomeSets = Annotated[Sets, Field(min_length=1)]
Needs = Annotated[str, AfterValidator(_needed)]
File = Annotated[str, AfterValidator(_file)]


@dataclass(frozen=True, config=_STRICT)
class Optimiser:
    """Name and options of a PyTorch optimiser."""

    name: Literal["adam", "adamw"]
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    weight_decay: Annotated[float, Field(ge=0)] = 0.0


@dataclass(frozen=True, config=_STRICT)
class Cosine:
    """From `hold` on, the learning rate falls along half a cosine to `floor` times its peak."""

    name: Literal["cosine"]
    warm_up: Fraction = 0.0
    hold: Fraction = 0.0
    floor: Annotated[float, Field(ge=0, le=1)] = 0.0


@dataclass(frozen=True, config=_STRICT)
class Step:
    """The learning rate is multiplied by `factor` at each fraction of the run in `at`."""

    name: Literal["step"]
    at: Annotated[tuple[Moment, ...], Field(min_length=1), AfterValidator(_ascending)]
    factor: Annotated[float, Field(gt=0, lt=1)]
    warm_up: Fraction = 0.0


Schedule = Annotated[Cosine | Step, Field(discriminator="name")]


@dataclass(frozen=True, config=_STRICT)
class Recipe:
    """How networks are trained; times are fractions of the run. clip: largest norm of the gradient, None for no
    clipping."""

    loss: Literal["l1", "mse"]
    optimiser: Optimiser
    schedule: Schedule
    clip: Positive | None = None


@dataclass(frozen=True, config=_STRICT)
class Budget:
    """How long one network is trained: steps, crops per step, side of a crop in target pixels, peak learning rate,
    decay of the weights' average per step; the share of the run, from its start, in which crops are half as wide and
    four times as many (ours; 0: none); and the peak rate of attention modules and seeds, in place of the profile's."""

    steps: Count
    batch: Count
    crop: Count
    lr: Rate
    ema: Fraction
    attention_lr: Rate | None = None
    half_crops: Fraction = 0.0
    seeds: Seeds | None = None


@dataclass(frozen=True, config=_STRICT)
class Evaluation:
    """How test images are restored: side of their central crop (None: whole), side of the largest tile (None: no
    tiles) and overlap of tiles, in input pixels, and whether the mean over eight flips and rotations is taken."""

    crop: Count | None
    tile: Count | None
    overlap: Annotated[int, Field(ge=0)]
    self_ensemble: bool = False

    @model_validator(mode="after")
    def _tile_over_overlap(self) -> Evaluation:
        if self.tile is not None and self.tile <= self.overlap:
            raise ValueError(f"tile {self.tile} must be larger than overlap {self.overlap}")
        return self


@dataclass(frozen=True, config=_STRICT)
class PublishedNumbers:
    """The study of published numbers: references of the registry, the two of them whose restoration is
    varied, how large the central crop of the first's photographs is, and how often their noise is drawn anew."""

    sets: Sets
    denoised: str
    enlarged: str
    crop: Annotated[int, Field(ge=32)]
    draws: Annotated[int, Field(ge=2)]


@dataclass(frozen=True, config=_STRICT)
class RecipeSearch:
    """The search for peak learning rates: which experiments are trained at which rates, and for how many steps."""

    experiments: Annotated[tuple[Name, ...], Field(min_length=1), AfterValidator(_different)]
    rates: Annotated[tuple[Positive, ...], Field(min_length=2), AfterValidator(_ascending)]
    steps: Count


@dataclass(frozen=True, config=_STRICT)
class ProfileSets:
    """Image sets in place of every task's own."""

    train: SomeSets | None = None
    validation: Sets | None = None
    test: SomeSets | None = None


@dataclass(frozen=True, config=_STRICT)
class Resources:
    """What one row takes of a node of a cluster: cores, and GPUs, a fraction of one where rows share it."""

    cpus: Count = 1
    gpus: Annotated[float, Field(ge=0)] = 0


#: Numbers of seeds at which verdicts may be given where more seeds may follow, and the error that each may spend.
LOOKS = {3: 0.01, 5: 0.015, 10: 0.025}


@dataclass(frozen=True, config=_STRICT)
class Profile:
    """How much is spent. models: options of every network of a model; a mapping among them is a `size`; attention_lr:
    the peak learning rate of attention modules, where it is not the budget's (ours), by their option `attention` (nl,
    mhnl), and of other rows by model; resources: by model, `default` for the others; looks: whether seeds may be added
    once verdicts were read, so that each look spends a part of the error; spent_before: the error that verdicts of
    fewer seeds had spent, which were read before this was planned."""

    sets: ProfileSets
    seeds: Seeds
    evaluation: Evaluation
    models: dict[Name, dict[str, Any]]
    training: dict[Name, Budget]
    published_numbers: PublishedNumbers
    precision: Literal["float32", "bf16"] = "float32"
    attention_lr: dict[Name, Rate] = Field(default_factory=dict)
    recipe_search: RecipeSearch | None = None
    resources: dict[Name, Resources] = Field(default_factory=dict)
    looks: bool = False
    spent_before: Annotated[float, Field(ge=0, lt=1)] = 0

    @model_validator(mode="after")
    def _planned(self) -> Profile:
        if not self.looks:
            return self
        if len(self.seeds) not in LOOKS:
            planned = ", ".join(map(str, LOOKS))
            raise ValueError(f"looks: {len(self.seeds)} seeds are no planned look; the looks are at {planned} seeds")
        for task, budget in self.training.items():
            if budget.seeds and len(budget.seeds) != len(self.seeds):
                raise ValueError(f"looks: training.{task} has {len(budget.seeds)} seeds of its own and the profile "
                                 f"{len(self.seeds)}; a planned look is of all")  # fmt: skip
        return self


@dataclass(frozen=True, config=_STRICT)
class ConventionEntry:
    """How a restored image is measured, see `lib.measuring.metrics.Convention`."""

    channel: Literal["gray", "rgb", "r", "g", "b", "y", "y8"]
    border: Annotated[int, Field(ge=0)]
    quantise: bool
    window: Literal["gaussian", "uniform"] = "gaussian"


@dataclass(frozen=True, config=_STRICT)
class TaskEntry:
    """A degradation with the convention by which its restoration is measured. degradation: `name` and the options that
    `lib.tasks.degradations` gives it; gray: how a colour photograph becomes gray, where `colors` is 1."""

    title: Title
    degradation: Annotated[dict[str, Any], AfterValidator(_named)]
    colors: Literal[1, 3]
    convention: ConventionEntry
    train: SomeSets
    test: SomeSets
    validation: Sets = ()
    gray: Literal["matlab", "opencv"] | None = None

    @model_validator(mode="after")
    def _colors(self) -> TaskEntry:
        channels = 1 if self.convention.channel == "gray" else 3
        if channels != self.colors:
            raise ValueError(f"channel {self.convention.channel!r} cannot be measured where colors is {self.colors}")
        if (self.gray is None) != (self.colors == 3):
            raise ValueError("`gray` (matlab, opencv) belongs to tasks with colors: 1, and only to them")
        return self


@dataclass(frozen=True, config=_STRICT)
class BaselineEntry:
    """A row that is not trained. checkpoint: file of a public checkpoint, which says itself what its network is; one of
    the registry's is downloaded where the profile's published numbers use `weights`."""

    title: Title
    model: Name
    task: Name
    options: dict[str, Any] = Field(default_factory=dict)
    checkpoint: File | None = None
    needs: Needs | None = None

    @model_validator(mode="after")
    def _checkpoint(self) -> BaselineEntry:
        if self.checkpoint and (self.options or self.needs):
            raise ValueError("a checkpoint leaves no `options` and needs nothing but its file")
        return self


@dataclass(frozen=True, config=_STRICT)
class ExperimentEntry:
    """A network variant on a task. size: options of that name in the profile in place of the model's; rate: the peak
    rate as a multiple of the profile's, of all but attention modules, which keep theirs; needs: file, or
    package:<name>, without which it is not run."""

    title: Title
    model: Name
    task: Name
    recipe: Name
    options: dict[str, Any] = Field(default_factory=dict)
    size: Name | None = None
    rate: Positive | None = None
    needs: Needs | None = None


@dataclass(frozen=True, config=_STRICT)
class Claim:
    """ "`better` restores better than `worse`", who says so, and by how much in dB where a number is published."""

    better: Name
    worse: Name
    source: Annotated[str, Field(pattern=rf"^[^{_UNFIT}]*$")] = ""
    published: float | None = None


@dataclass(frozen=True, config=_STRICT)
class StudyEntry:
    """A question answered by experiments and baselines; the first of each task is what its others differ from."""

    title: Title
    experiments: Annotated[tuple[Name, ...], Field(min_length=1), AfterValidator(_different)]
    claims: tuple[Claim, ...] = ()


@dataclass(frozen=True, config=_STRICT)
class Delta:
    """Smallest difference of interest: smaller ones count as equal."""

    psnr: Positive
    ssim: Positive


@dataclass(frozen=True, config=_STRICT)
class ParamsFile:
    """params.yaml as a whole."""

    profile: Name
    profiles: Annotated[dict[Name, Profile], Field(min_length=1)]
    delta: Delta
    recipes: dict[Name, Recipe]
    tasks: dict[Name, TaskEntry]
    baselines: dict[Name, BaselineEntry]
    experiments: dict[Name, ExperimentEntry]
    studies: dict[Name, StudyEntry]
