"""params.yaml read, checked and resolved for one profile."""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import itertools
import json
import typing
from collections.abc import Collection, Iterator
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import ConfigDict, TypeAdapter, ValidationError
from ruamel.yaml import YAML, YAMLError

from .faults import ParamsError, line, unknown
from .schema import (
    PUBLISHED,
    BaselineEntry,
    Budget,
    Claim,
    Evaluation,
    ExperimentEntry,
    ParamsFile,
    Profile,
    ProfileSets,
    Recipe,
    Resources,
    TaskEntry,
)

if TYPE_CHECKING:  # torch takes a second and a half to import, and a stage's own process does not need it
    from ..tasks import Task

ROOT = Path(__file__).resolve().parent.parent.parent

#: What reading YAML raises; not all of it where a scalar is none of its kind, such as `2020-13-45` or `!!bool x`.
NOT_YAML = (YAMLError, ValueError, LookupError)


@dataclass(frozen=True, kw_only=True)
class Row:
    """An experiment or a baseline, measured on one task, everything resolved for the profile."""

    name: str
    title: str
    model: str
    options: dict[str, Any]
    task: Task
    evaluation: Evaluation
    needs: str | None = None
    downloaded: bool = False  # whether the profile downloads the weights that the registry lists


@dataclass(frozen=True, kw_only=True)
class Experiment(Row):
    """A network variant that is trained."""

    seeds: tuple[int, ...]
    recipe: Recipe
    budget: Budget
    precision: str = "float32"


@dataclass(frozen=True, kw_only=True)
class Baseline(Row):
    """A row that is not trained: the degraded input, a classical method, or a public `checkpoint`."""

    checkpoint: str | None = None

    #: It has one network and no seed; its numbers stand in the tables as those of seed 1.
    seeds: ClassVar[tuple[int, ...]] = (1,)


@dataclass(frozen=True)
class Study:
    """A question: rows by name, the first of each task being what its others are compared with, and the claims."""

    name: str
    title: str
    experiments: tuple[str, ...]
    claims: tuple[Claim, ...] = field(default=())


class Params:
    """params.yaml resolved for one profile.

    Raises ParamsError, a line for each fault, for anything unknown, missing, of the wrong type or out of range anywhere
    in the file; faults that appear only when networks are built are found by `lib.params.checks`.
    """

    def __init__(self, path: Path = ROOT / "params.yaml", profile: str | None = None):
        self.file = path.name
        self.contents, found = _validated(_read(path), self.file)
        self.profile = profile or self.contents.profile
        found += dict.fromkeys(_references(self.contents))
        for name in {self.profile, self.contents.profile} - {*self.contents.profiles}:
            found.insert(0, unknown("profile", name, self.contents.profiles, "profiles"))
        if found and self.profile not in self.contents.profiles:
            raise ParamsError([f"{self.file}: {fault}" for fault in found])
        self.profiles = [*self.contents.profiles]  # from the smallest to the largest
        self.settings = self.contents.profiles[self.profile]
        self.published_numbers = self.settings.published_numbers
        self.delta = self.contents.delta
        self.experiments, self.baselines = [*self.contents.experiments], [*self.contents.baselines]
        self.rows = _rows(self.contents)
        self._tasks: dict[str, Task] = {}
        self.studies = {
            name: Study(name, entry.title, entry.experiments, entry.claims)
            for name, entry in self.contents.studies.items()
        }
        if found:
            raise ParamsError([f"{self.file}: {fault}" for fault in dict.fromkeys([*found, *self._more_faults()])])

    def _more_faults(self) -> list[str]:
        """Further faults that show only when networks are built; none where earlier faults prevent building."""
        from .checks import faults  # builds networks, which takes seconds to import

        try:
            return faults(self)
        except (KeyError, ParamsError):
            return []

    def stage(self, name: str) -> str:
        """The stage of dvc.yaml that evaluates a row."""
        return "evaluate" if name in self.contents.experiments else "baseline"

    def section(self, name: str) -> str:
        """The section of the file that names a row."""
        return "experiments" if name in self.contents.experiments else "baselines"

    def row(self, name: str) -> Experiment | Baseline:
        """The experiment or baseline `name`, resolved; raises ParamsError for an unknown name."""
        return self.experiment(name) if name in self.contents.experiments else self._baseline(name)

    def experiment(self, name: str) -> Experiment:
        """The experiment `name`, resolved; raises ParamsError for an unknown name, or one without a budget."""
        entry, settings = self.entry(name), self.settings
        if not isinstance(entry, ExperimentEntry):
            raise ParamsError(f"{self.file}: {name!r} is a baseline, which is not trained")
        budget = settings.training.get(entry.task)
        if budget is None:
            raise ParamsError(
                f"{self.file}: profile {self.profile!r} has no training.{entry.task}, which experiment {name!r} needs"
            )
        if budget.attention_lr is None:
            kind = str(entry.options.get("attention", entry.model))  # `checks` finds one that is no text
            budget = replace(budget, attention_lr=settings.attention_lr.get(kind))
        if entry.rate is not None:
            budget = replace(budget, lr=entry.rate * budget.lr, attention_lr=budget.attention_lr or budget.lr)
        return Experiment(
            **self._common(name, entry),
            seeds=budget.seeds or settings.seeds,
            recipe=self.contents.recipes[entry.recipe],
            budget=budget,
            precision=settings.precision,
        )

    def _baseline(self, name: str) -> Baseline:
        entry = self.entry(name)
        assert isinstance(entry, BaselineEntry)
        return Baseline(**self._common(name, entry), checkpoint=_place(entry.checkpoint))

    def resources(self, name: str) -> Resources:
        """What the row `name` takes of a node of a cluster."""
        given = self.settings.resources
        return given.get(self.entry(name).model) or given.get("default") or Resources()

    def task(self, name: str) -> Task:
        """The task `name`, built once; raises ParamsError for one that cannot be built."""
        from .. import tasks
        from ..tasks.degradations import DegradationError

        if name not in self._tasks:
            entry = self.contents.tasks[name]
            try:
                _check_types(entry.degradation)
                self._tasks[name] = tasks.build(name, entry, sides(entry, self.settings.sets))
            except DegradationError as error:
                raise ParamsError(f"{self.file}: tasks.{name}.degradation: {error}") from None
        return self._tasks[name]

    @property
    def used_tasks(self) -> dict[str, Task]:
        """The tasks that some row is about."""
        named = {entry.task for entry in self.rows.values()}
        return {name: self.task(name) for name in self.contents.tasks if name in named}

    def study(self, name: str) -> Study:
        """The study `name`; raises ParamsError for an unknown name."""
        if name not in self.studies:
            raise ParamsError(f"{self.file}: {unknown('study', name, self.studies, 'studies')}")
        return self.studies[name]

    @property
    def references(self) -> list[str]:
        """Every image set that this profile uses, sorted."""
        of_tasks = {reference for task in self.used_tasks.values() for reference in task.references}
        return sorted(of_tasks | set(self.published_numbers.sets))

    def results(self, *parts: str) -> Path:
        """A path under results/<profile>/."""
        return ROOT.joinpath("results", self.profile, *parts)

    def entry(self, name: str) -> ExperimentEntry | BaselineEntry:
        """The entry of a row in the file; raises ParamsError for an unknown name."""
        if name not in self.rows:
            raise ParamsError(f"{self.file}: {unknown('row', name, self.rows, 'experiments and baselines')}")
        return self.rows[name]

    def group(self, name: str) -> str:
        """The title of the rows that stand beside row `name` in a study: those of its task, trained at its rate."""
        rate = getattr(entry := self.entry(name), "rate", None)
        return self.task(entry.task).title + (f", {rate:g} times the rate" if rate else "")

    def _common(self, name: str, entry: ExperimentEntry | BaselineEntry) -> dict[str, Any]:
        found = options(entry, self.settings)
        return {
            "name": name,
            "title": entry.title,
            "model": entry.model,
            "options": {key: _place(value) if value == entry.needs else value for key, value in found.items()},
            "task": self.task(entry.task),
            "evaluation": self.settings.evaluation,
            "needs": _place(entry.needs),
            "downloaded": PUBLISHED.rstrip("/") in self.published_numbers.sets,
        }


def _place(file: str | None) -> str | None:
    """Where a file that params.yaml names lies: one of the registry's among the downloads."""
    return f"data/{file}" if file and file.startswith(PUBLISHED) else file


def options(entry: ExperimentEntry | BaselineEntry, profile: Profile) -> dict[str, Any]:
    """The options of a row's network in a profile: those of its model and size, beneath its own; none for a public
    checkpoint, which says itself what its network is."""
    if isinstance(entry, BaselineEntry) and entry.checkpoint:
        return {}
    of_model = profile.models.get(entry.model, {})
    if size := getattr(entry, "size", None):
        of_model = of_model[size] if isinstance(of_model[size], dict) else {}  # which `checks` refuses
    return {**{key: value for key, value in of_model.items() if not isinstance(value, dict)}, **entry.options}


def sides(entry: TaskEntry, replaced: ProfileSets) -> dict[str, tuple[str, ...]]:
    """Image sets of a task by their use, the profile's in place of the task's."""
    ours = {f.name: getattr(replaced, f.name) for f in fields(replaced)}
    return {side: getattr(entry, side) if references is None else references for side, references in ours.items()}


def _check_types(degradation: dict[str, Any]) -> None:
    """Raise DegradationError for an option of another type than the degradation states, such as a text for a bool."""
    from ..tasks.degradations import DEGRADATIONS, DegradationError

    kind = DEGRADATIONS.get(degradation["name"])
    for option, annotation in typing.get_type_hints(kind).items() if kind else ():
        if option in degradation:
            try:
                wanted = TypeAdapter(annotation, config=ConfigDict(strict=True))
                wanted.validate_json(json.dumps(degradation[option]))
            except ValidationError:
                must = inspect.formatannotation(annotation)
                raise DegradationError(
                    f"{degradation['name']}: {option} is {degradation[option]!r}; it must be {must}"
                ) from None


def _read(path: Path) -> dict:
    try:
        raw = YAML(typ="safe").load(path)
    except OSError as error:
        raise ParamsError(f"{path}: {error.strerror}") from None
    except NOT_YAML as error:
        raise ParamsError(f"{path.name}: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(raw, dict):
        raise ParamsError(f"{path.name}: holds no mapping; it needs the keys {', '.join(ParamsFile.__annotations__)}")
    return raw


def _validated(raw: dict, file: str) -> tuple[ParamsFile, list[str]]:
    """The file and its faults: the file without rows that have some. Raises ParamsError for faults elsewhere."""
    try:
        text = json.dumps(raw, default=str)
    except (TypeError, ValueError):
        raise ParamsError(f"{file}: has a list, mapping or date for a key, or an alias inside of what it stands for; "
                          "keys are texts") from None  # fmt: skip
    try:
        return TypeAdapter(ParamsFile).validate_json(text), []
    except ValidationError as error:
        faults = error.errors()
        inside = {fault["loc"][:-1] for fault in faults}  # a list with a fault inside is called too short besides
        found = [
            line(fault, ParamsFile) for fault in faults if fault["type"] != "too_short" or fault["loc"] not in inside
        ]
        places = {fault["loc"][:2] for fault in faults}
        if {section for section, *_ in places} <= {"experiments", "baselines"} and all(len(at) == 2 for at in places):
            with contextlib.suppress(ParamsError):
                return _validated(_without(json.loads(text), places), file)[0], found
        raise ParamsError([f"{file}: {fault}" for fault in found]) from None


def _without(raw: dict, places: Collection[tuple[Any, ...]]) -> dict:
    """The file without some rows, and without all that names them."""
    rows = {name for _, name in places}
    for section, name in places:
        del raw[section][name]
    for profile in raw["profiles"].values():
        if search := profile.get("recipe_search"):
            search["experiments"] = [name for name in search["experiments"] if name not in rows]
    for study in raw["studies"].values():
        study["experiments"] = [name for name in study["experiments"] if name not in rows]
        study["claims"] = [claim for claim in study.get("claims", ()) if not {*claim.values()} & rows]
    return raw


def _references(file: ParamsFile) -> Iterator[str]:
    """Faults of names that stand for something elsewhere in the file."""
    for name, profile in file.profiles.items():
        where = f"profiles.{name}"
        known = {"default", *(row.model for row in _rows(file).values())}
        for model in (model for model in profile.resources if model not in known):
            yield unknown("model", model, known, f"{where}.resources")
        for model, given in profile.resources.items():
            if given.gpus > 1 and given.gpus % 1:
                yield f"{where}.resources.{model}.gpus is {given.gpus:g}; above 1 it must be whole"
        for task in profile.training:
            if task not in file.tasks:
                yield unknown("task", task, file.tasks, f"{where}.training")
        for row in profile.recipe_search.experiments if profile.recipe_search else ():
            if row not in file.experiments:
                yield unknown("experiment", row, file.experiments, f"{where}.recipe_search.experiments")
        numbers = profile.published_numbers
        for key, value in (("denoised", numbers.denoised), ("enlarged", numbers.enlarged)):
            if value not in numbers.sets:
                yield unknown("set", value, numbers.sets, f"{where}.published_numbers.{key}")
        for key, entry in file.tasks.items():
            found = sides(entry, profile.sets)
            for one, other in itertools.combinations(found, 2):
                for reference in (r for r in found[one] if r in found[other]):
                    own = (getattr(profile.sets, one), getattr(profile.sets, other))
                    place = f"tasks.{key}" if None in own else f"{where}.sets"
                    yield f"{place}: {reference} is in {one} and in {other} (profile {name})"
    rows = _rows(file)
    yield from _of_rows(file, rows)
    yield from _of_studies(file, rows)


def _rows(file: ParamsFile) -> dict[str, ExperimentEntry | BaselineEntry]:
    return {**file.experiments, **file.baselines}


def _of_rows(file: ParamsFile, rows: dict[str, ExperimentEntry | BaselineEntry]) -> Iterator[str]:
    for name in file.experiments:
        if name in file.baselines:
            yield f"{name!r} is the name of an experiment and of a baseline"
    titles: dict[tuple[str, str], str] = {}
    for name, row in rows.items():
        where = f"{'experiments' if isinstance(row, ExperimentEntry) else 'baselines'}.{name}"
        if row.task not in file.tasks:
            yield unknown("task", row.task, file.tasks, where)
        elif not f"{name}-".startswith(f"{row.model}_{row.task}-") or name.endswith("-"):
            yield f"the name {name!r} must be {row.model}_{row.task} or that and -<difference>"
        if (other := titles.setdefault((row.task, row.title), name)) != name:
            yield f"{where}.title is {row.title!r}, as that of {other!r} on the same task"
        for key in {"colors", "scale"} & {*row.options}:
            yield f"{where}.options: {key!r} follows from the task and cannot be set"
        if not isinstance(row, ExperimentEntry):
            continue
        if row.recipe not in file.recipes:
            yield unknown("recipe", row.recipe, file.recipes, where)
        for key, profile in file.profiles.items() if row.size else ():
            sizes = [size for size, value in profile.models.get(row.model, {}).items() if isinstance(value, dict)]
            if row.size not in sizes:
                yield unknown("size", row.size, sizes, f"profiles.{key}.models.{row.model}, which {name!r} asks for")


def _of_studies(file: ParamsFile, rows: dict[str, ExperimentEntry | BaselineEntry]) -> Iterator[str]:
    for name, study in file.studies.items():
        where = f"studies.{name}"
        if name == "published_numbers":
            yield f"{where}: that is the name of the study of published numbers; choose another"
        for row in study.experiments:
            if row not in rows:
                yield unknown("row", row, rows, where)
        for number, claim in enumerate(study.claims):
            place = f"{where}.claims[{number}]"
            sides = (claim.better, claim.worse)
            lacking = [side for side in sides if side not in study.experiments]
            yield from (unknown("row", side, study.experiments, place) for side in lacking)
            if claim.better == claim.worse:
                yield f"{place}: {claim.better!r} is compared with itself"
            if sides in [(other.better, other.worse) for other in study.claims[:number]]:
                yield f"{place}: the claim is listed twice"
            tasks = [rows[side].task for side in sides if side in rows]
            if len(set(tasks)) > 1:
                yield f"{place}: compares rows of two tasks, {tasks[0]} and {tasks[1]}"


def fingerprint(experiment: Experiment, *more: str) -> str:
    """Twelve hex digits that change with anything that training the experiment depends on; `more` adds code hashes."""
    budget = {key: value for key, value in asdict(experiment.budget).items() if key != "seeds"}
    trained = (asdict(experiment.recipe), budget, experiment.precision)
    parts = (experiment.model, experiment.options, experiment.task.for_training(), experiment.task.train)
    return hashlib.sha256(repr((*parts, *trained, *more)).encode()).hexdigest()[:12]


def table(row: Row) -> str:
    """A resolved row as a Markdown table, for the head of a notebook."""
    task, degradation = row.task, row.task.degradation
    rows: dict[str, Any] = {row.name: row.title, "model": row.model, "options": row.options, "task": task.title}
    rows["degradation"] = degradation.options()
    rows |= {"convention": task.convention.describe(), "train": task.train, "test": task.test}
    if isinstance(row, Experiment):
        rows |= {"seeds": row.seeds, "precision": row.precision}
        rows |= {f"recipe: {key}": value for key, value in asdict(row.recipe).items() if value is not None}
        rows |= {f"training: {key}": value for key, value in asdict(row.budget).items() if key != "seeds"}
    elif isinstance(row, Baseline) and row.checkpoint:
        rows["checkpoint"] = row.checkpoint
    rows |= {f"evaluation: {key}": value for key, value in asdict(row.evaluation).items()}
    return "\n".join(["| key | value |", "|---|---|", *(f"| {key} | {text(value)} |" for key, value in rows.items())])


def text(value: object) -> str:
    """A parameter's value for readers."""
    if isinstance(value, dict):
        return ", ".join(f"{key}: {text(item)}" for key, item in value.items()) or "none"
    if isinstance(value, list | tuple):
        return ", ".join(map(text, value))
    return str(value)
