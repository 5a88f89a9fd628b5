"""Parameters: params.yaml, checked whole and resolved into frozen dataclasses.

Nothing else in the project reads YAML or the environment.
"""

from __future__ import annotations

import difflib
import functools
import hashlib
import importlib.util
import operator
import os
import types
import typing
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path

from ruamel.yaml import YAML, YAMLError

ROOT = Path(__file__).resolve().parent.parent


class ParamsError(ValueError):
    """params.yaml says something that cannot be: names the key, the value and what is known instead."""


@dataclass(frozen=True)
class Task:
    """A degradation with its measuring protocol; the keys are explained in params.yaml."""

    name: str
    degradation: dict
    colors: int
    measured: str
    border: int
    quantise: bool
    train: tuple[str, ...]
    test: tuple[str, ...]
    gray: str = "matlab"
    window: str = "gaussian"


@dataclass(frozen=True)
class Recipe:
    """How a family is trained; times are fractions of the run."""

    loss: str
    optimiser: dict
    schedule: dict
    clip: float = 1.0


@dataclass(frozen=True)
class Budget:
    """How long one experiment is trained: steps, crops per step, side of a crop, peak learning rate, EMA decay; and
    whether every experiment of the task is repeated with all seeds."""

    steps: int
    batch: int
    crop: int
    lr: float
    ema: float
    repeat: bool = False


@dataclass(frozen=True)
class Evaluation:
    """What is restored and how: central crop of a test image (None: whole), largest tile and overlap in input pixels,
    mean over the eight flips and rotations or not."""

    crop: int | None
    tile: int
    overlap: int
    self_ensemble: bool = False


@dataclass(frozen=True)
class Experiment:
    """One network variant on one task, everything resolved for the profile. Anchors have no recipe and no budget."""

    name: str
    model: str
    options: dict
    task: Task
    seeds: tuple[int, ...]
    evaluation: Evaluation
    recipe: Recipe | None = None
    budget: Budget | None = None
    official: str | None = None
    needs: str | None = None

    @property
    def difference(self) -> str:
        """What the name says beyond model and task: "no_threshold", or "" for the full model."""
        return self.name.partition("-")[2]


@dataclass(frozen=True)
class Study:
    """A question: experiments and anchors by name, the first being what the others are compared with, and the claims
    under test as pairs (said to be better, said to be worse)."""

    name: str
    experiments: tuple[str, ...]
    claims: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Ruler:
    """What the study `protocol` measures with: references of the registry, the two of them whose restoration is varied,
    how much of the first's photographs, and how often their noise is drawn anew."""

    sets: tuple[str, ...]
    denoised: str
    enlarged: str
    crop: int
    draws: int


@dataclass(frozen=True)
class _ProfileEntry:
    sets: dict
    seeds: tuple[int, ...]
    evaluation: Evaluation
    models: dict
    training: dict
    protocol: Ruler


@dataclass(frozen=True)
class _ExperimentEntry:
    model: str
    task: str
    recipe: str
    options: dict = field(default_factory=dict)
    size: str | None = None
    repeat: bool = False
    needs: str | None = None


@dataclass(frozen=True)
class _AnchorEntry:
    model: str
    task: str
    options: dict = field(default_factory=dict)
    size: str | None = None
    needs: str | None = None
    official: typing.ClassVar[None] = None


@dataclass(frozen=True)
class _OfficialEntry:
    model: str
    task: str
    official: str
    needs: typing.ClassVar[None] = None


@dataclass(frozen=True)
class _StudyEntry:
    experiments: tuple[str, ...]
    claims: tuple[tuple[str, ...], ...] = ()


_TOP = ("profile", "profiles", "recipes", "tasks", "official", "anchors", "experiments", "studies")


class Params:
    """params.yaml resolved for one profile.

    Raises ParamsError, one line, for anything unknown, missing or of the wrong type anywhere in the file.
    """

    def __init__(self, path: Path = ROOT / "params.yaml", profile: str | None = None):
        self._file = path.name
        self._raw = raw = self._read(path)
        self._keys(raw, _TOP, "")
        self.profile = profile or raw["profile"]
        profiles = {name: self._profile(name, entry) for name, entry in raw["profiles"].items()}
        self._known(self.profile, profiles, "profile", "profiles")
        self._settings = profiles[self.profile]
        self.profiles = [*profiles]  # from the smallest to the largest

        self.recipes = {name: self._make(Recipe, entry, f"recipes.{name}") for name, entry in raw["recipes"].items()}
        self.tasks = {
            name: self._make(Task, {"name": name, **entry, **self._settings.sets}, f"tasks.{name}")
            for name, entry in raw["tasks"].items()
        }
        self._entries: dict[str, _ExperimentEntry | _AnchorEntry | _OfficialEntry] = {}
        kinds = (("experiments", _ExperimentEntry), ("anchors", _AnchorEntry), ("official", _OfficialEntry))
        for kind, entry_class in kinds:
            for name, entry in (raw[kind] or {}).items():
                made = self._make(entry_class, entry, f"{kind}.{name}")
                self._check_entry(f"{kind}.{name}", name, made)
                self._entries[name] = made
        self.studies = {name: self._study(name, entry) for name, entry in raw["studies"].items()}
        for name, settings in profiles.items():
            for task in settings.training:
                self._known(task, self.tasks, "task", f"profiles.{name}.training")

    @property
    def experiments(self) -> list[str]:
        """Names of all trained experiments, in the file's order."""
        return [name for name, entry in self._entries.items() if isinstance(entry, _ExperimentEntry)]

    @property
    def anchors(self) -> list[str]:
        """Names of everything that is evaluated without training."""
        return [name for name, entry in self._entries.items() if not isinstance(entry, _ExperimentEntry)]

    def stage(self, name: str) -> str:
        """The stage of dvc.yaml that evaluates an experiment or anchor."""
        stages = {_ExperimentEntry: "evaluate", _AnchorEntry: "anchor", _OfficialEntry: "official"}
        return stages[type(self._entries[name])]

    def experiment(self, name: str) -> Experiment:
        """The experiment or anchor `name`, resolved; raises ParamsError for an unknown name."""
        self._known(name, self._entries, "experiment", "experiments and anchors")
        entry, settings = self._entries[name], self._settings
        common = {
            "name": name,
            "model": entry.model,
            "options": self.options(name),
            "task": self.tasks[entry.task],
            "evaluation": settings.evaluation,
            "needs": entry.needs,
        }
        if not isinstance(entry, _ExperimentEntry):
            return Experiment(**common, seeds=settings.seeds[:1], official=entry.official)
        if entry.task not in settings.training:
            raise ParamsError(
                f"{self._file}: profile {self.profile!r} has no training.{entry.task}, which experiment {name!r} needs"
            )
        budget = self._make(Budget, settings.training[entry.task], f"profiles.{self.profile}.training.{entry.task}")
        return Experiment(
            **common,
            seeds=settings.seeds if entry.repeat or budget.repeat else settings.seeds[:1],
            recipe=self.recipes[entry.recipe],
            budget=budget,
        )

    def options(self, name: str) -> dict:
        """The options of an experiment's network: the profile's for its family and size, beneath its own; none for a
        public checkpoint, which says itself what its network is."""
        entry = self._entries[name]
        if isinstance(entry, _OfficialEntry):
            return {}
        of_model = self._settings.models.get(entry.model, {})
        if entry.size:
            self._known(entry.size, [key for key, value in of_model.items() if isinstance(value, dict)], "size",
                        f"profiles.{self.profile}.models.{entry.model}, which {name!r} asks for")  # fmt: skip
            of_model = of_model[entry.size]
        return {**{key: value for key, value in of_model.items() if not isinstance(value, dict)}, **entry.options}

    def value(self, path: str) -> typing.Any:
        """What the file says at a dotted path such as `tasks.derain.degradation`, as dvc.yaml's stages track it."""
        return functools.reduce(operator.getitem, path.split("."), self._raw)

    @property
    def used_tasks(self) -> dict[str, Task]:
        """The tasks that some experiment or anchor is about."""
        named = {entry.task for entry in self._entries.values()}
        return {name: task for name, task in self.tasks.items() if name in named}

    def study(self, name: str) -> Study:
        """The study `name`; raises ParamsError for an unknown name."""
        self._known(name, self.studies, "study", "studies")
        return self.studies[name]

    @property
    def protocol(self) -> Ruler:
        """What the study `protocol` measures with in this profile."""
        return self._settings.protocol

    @property
    def references(self) -> list[str]:
        """Every image set that this profile uses, sorted."""
        of_tasks = {reference for task in self.used_tasks.values() for reference in (*task.train, *task.test)}
        return sorted(of_tasks | set(self.protocol.sets))

    def results(self, *parts: str) -> Path:
        """A path under results/<profile>/."""
        return ROOT.joinpath("results", self.profile, *parts)

    # -- reading and checking -----------------------------------------------------------------------------------------

    def _read(self, path: Path) -> dict:
        try:
            raw = YAML(typ="safe").load(path)
        except OSError as error:
            raise ParamsError(f"{path}: {error.strerror}") from None
        except YAMLError as error:
            raise ParamsError(f"{self._file}: not YAML: {' '.join(str(error).split())}") from None
        if not isinstance(raw, dict):
            raise ParamsError(f"{self._file}: is empty; it needs the keys {', '.join(_TOP)}")
        for key in _TOP:
            if key not in raw:
                raise ParamsError(f"{self._file}: the key {key!r} is missing")
        return raw

    def _profile(self, name: str, entry: dict) -> _ProfileEntry:
        where = f"profiles.{name}"
        made = self._make(_ProfileEntry, entry, where)
        self._keys(made.sets, ("train", "test"), f"{where}.sets")
        for task, budget in made.training.items():
            self._make(Budget, budget, f"{where}.training.{task}")
        if not made.seeds:
            raise ParamsError(f"{self._file}: {where}.seeds is empty; it needs at least one number")
        for key in ("denoised", "enlarged"):
            self._known(getattr(made.protocol, key), made.protocol.sets, "set", f"{where}.protocol.{key}")
        for key, least in (("crop", 32), ("draws", 2)):
            if getattr(made.protocol, key) < least:
                raise ParamsError(f"{self._file}: {where}.protocol.{key} must be at least {least}")
        return made

    def _study(self, name: str, entry: dict) -> Study:
        made = self._make(_StudyEntry, entry, f"studies.{name}")
        for experiment in made.experiments:
            self._known(experiment, self._entries, "experiment", f"studies.{name}")
        for claim in made.claims:
            if len(claim) != 2:
                raise ParamsError(f"{self._file}: studies.{name}.claims: {list(claim)} is not a pair [better, worse]")
            for experiment in claim:
                self._known(experiment, made.experiments, "experiment", f"studies.{name}.claims")
        return Study(name, made.experiments, made.claims)

    def _check_entry(self, where: str, name: str, entry: _ExperimentEntry | _AnchorEntry | _OfficialEntry) -> None:
        self._known(entry.task, self.tasks, "task", where)
        if "." in name or not f"{name}-".startswith(f"{entry.model}_{entry.task}-"):
            raise ParamsError(
                f"{self._file}: the name {name!r} must be {entry.model}_{entry.task} or that and -<difference>,"
                " without a dot"
            )
        if isinstance(entry, _ExperimentEntry):
            self._known(entry.recipe, self.recipes, "recipe", where)

    def _known(self, value: str, known: typing.Iterable[str], what: str, where: str) -> None:
        known = list(known)
        if value not in known:
            raise ParamsError(f"{self._file}: unknown {what} {value!r} in {where}{_suggest(value, known)}")

    def _keys(self, entry: dict, known: typing.Sequence[str], where: str) -> None:
        if not isinstance(entry, dict):
            raise ParamsError(f"{self._file}: {where} must be a mapping with the keys {', '.join(known)}")
        for key in entry:
            if key not in known:
                raise ParamsError(
                    f"{self._file}: unknown key {key!r} in {where or 'the top level'}{_suggest(key, known)}"
                )

    def _make(self, cls, entry: dict, where: str):
        """An instance of the dataclass `cls` from a mapping whose keys and types are checked."""
        types_ = typing.get_type_hints(cls)
        self._keys(entry, [f.name for f in fields(cls)], where)
        values = {}
        for f in fields(cls):
            if f.name in entry:
                values[f.name] = self._value(types_[f.name], entry[f.name], f"{where}.{f.name}")
            elif f.default is MISSING and f.default_factory is MISSING:
                raise ParamsError(f"{self._file}: {where} lacks the key {f.name!r}")
        return cls(**values)

    def _value(self, wanted, value, where: str):
        origin, arguments = typing.get_origin(wanted), typing.get_args(wanted)
        if origin is types.UnionType:
            if value is None:
                return None
            wanted = next(a for a in arguments if a is not types.NoneType)
        if origin is tuple and isinstance(value, list):
            return tuple(self._value(arguments[0], item, where) for item in value)
        if isinstance(wanted, type) and hasattr(wanted, "__dataclass_fields__"):
            return self._make(wanted, value, where)
        if wanted is float and isinstance(value, int) and not isinstance(value, bool):
            return float(value)
        if origin is not tuple and isinstance(value, wanted) and (wanted is bool or not isinstance(value, bool)):
            return value
        name = "list" if origin is tuple else getattr(wanted, "__name__", wanted)
        raise ParamsError(f"{self._file}: {where} is {value!r}; it must be of type {name}")


def check(params: Params) -> None:
    """Build-time checks of every experiment: model, options, degradation, sets; raises the first error found."""
    from . import degradations, models
    from .images import registry, sets

    for name in [*params.experiments, *params.anchors]:
        try:
            models.check_options(params._entries[name].model, params.options(name))
        except models.ModelError as error:
            raise ParamsError(f"{params._file}: {name}: {error}") from None
    for task in params.tasks.values():
        try:
            degradations.build(**task.degradation)
            registry.check_references((*task.train, *task.test))
        except (degradations.DegradationError, sets.SetError) as error:
            raise ParamsError(f"{params._file}: tasks.{task.name}: {error}") from None
    try:
        registry.check_references(params.protocol.sets)
    except sets.SetError as error:
        raise ParamsError(f"{params._file}: profiles.{params.profile}.protocol.sets: {error}") from None


def fingerprint(experiment: Experiment, *more: str) -> str:
    """Twelve hex digits that change with anything that training the experiment depends on; `more` adds code hashes."""
    task = {key: value for key, value in asdict(experiment.task).items() if key not in ("test", "measured", "border")}
    budget = {key: value for key, value in asdict(experiment.budget).items() if key != "repeat"}
    parts = (experiment.model, experiment.options, task, asdict(experiment.recipe), budget, *more)
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:12]


def missing(experiment: Experiment) -> str | None:
    """Why the experiment cannot be run here: the package or the file that it `needs` and that is not there, or None."""
    needed = experiment.needs or ""
    if needed.startswith("package:"):
        package = needed.removeprefix("package:")
        return None if importlib.util.find_spec(package) else f"the package {package} is not installed"
    return None if (ROOT / needed).exists() else f"the file {needed} is not there"


def mirror() -> str | None:
    """Folder or URL that holds copies of the published images, from the environment."""
    return os.environ.get("RESTORATION_MIRROR") or None


def cache() -> Path:
    """User-level folder that keeps downloaded files between profiles and clones."""
    base = os.environ.get("RESTORATION_CACHE") or os.environ.get("XDG_CACHE_HOME")
    return Path(base or Path.home() / ".cache") / "nonlocal-restoration"


#: How many known names an error lists.
SHOWN = 12


def _suggest(value: str, known: typing.Sequence[str]) -> str:
    close = difflib.get_close_matches(str(value), known, 1)
    if close:
        return f"; did you mean {close[0]!r}?"
    rest = f" and {len(known) - SHOWN} more" if len(known) > SHOWN else ""
    return f"; known: {', '.join(known[:SHOWN])}{rest}"


def table(experiment: Experiment) -> str:
    """The resolved experiment as a Markdown table, for the head of a notebook."""
    rows = {"experiment": experiment.name, "model": experiment.model, "options": experiment.options}
    rows |= {f"task: {key}": value for key, value in asdict(experiment.task).items()}
    rows["seeds"] = experiment.seeds
    for title, part in {"recipe": experiment.recipe, "training": experiment.budget}.items():
        rows |= {f"{title}: {key}": value for key, value in asdict(part).items() if key != "repeat"} if part else {}
    rows |= {f"evaluation: {key}": value for key, value in asdict(experiment.evaluation).items()}
    return "\n".join(["| key | value |", "|---|---|", *(f"| {key} | {text(value)} |" for key, value in rows.items())])


def text(value) -> str:
    """A parameter's value for readers."""
    if isinstance(value, dict):
        return ", ".join(f"{key}: {text(item)}" for key, item in value.items()) or "none"
    if isinstance(value, list | tuple):
        return ", ".join(map(text, value))
    return str(value)
