"""The parts of the benchmark. Each yields records, one per measured number, which `__main__` writes to the csv."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lib import params
from lib.pipeline import progress
from lib.tasks import experiment as experiments
from lib.training import OPTIMISERS

from . import measure
from .cases import CASES, call, has_references, with_references
from .process import FORM, in_process

#: Modules are compared in so many visits, between two of which all the others have theirs: a CPU that shares caches and
#: memory with strangers is fast for some minutes and slow for others.
VISITS = {"cpu": 5, "cuda": 1}

#: Rounds of a visit, the seconds after which it ends early but for three rounds, and those for which short calls are
#: repeated.
REPEATS, LIMIT, ENOUGH = {"cpu": 2, "cuda": 9}, 180.0, {"cpu": 1.6, "cuda": 1.0}

#: Calls of a visit whose operations are timed apart.
APART = {"cpu": 1, "cuda": 5}

#: Seconds after which the comparison of a network's steps ends early.
STEPS_LIMIT = 2.5

#: Sides of the square inputs of the curves.
SIDES = (32, 48, 64, 96, 128, 192, 256)

#: A second curve is drawn with blocks of so many scores.
SMALL_BLOCKS = 2**17

#: Bounds of the scores held at a time that are compared with a module's own, powers of 2.
BLOCKS = {"pyramid attention": (20, 19, 18), "DAGL stage": (19, 18, 17, 16)}

#: The form that holds as few scores as it can: those of a query, or of the few that a patch needs.
FEWEST = "ours, fewest scores"

#: Full-size networks that restore an image in one piece.
NETWORKS = {"dagl": {"colors": 1}, "panet": {"colors": 3}}
IMAGE = 256


@dataclass(frozen=True)
class Record:
    """One number. `mode`: forward, both (forward and backward) or step; `form`: ours, reference or short, after a comma
    what is said of its blocks; `side`: of the input; `repeat`: the round, in which all forms were measured in turn."""

    part: str
    case: str
    quantity: str
    value: float
    form: str = ""
    mode: str = ""
    dtype: str = "float32"
    side: int = 0
    repeat: int = 0


#: Name of the case that holds what the machine can do.
MACHINE = "machine"

Records = Iterator[Record]

#: Cases, networks or experiments that a part is restricted to.
Names = Sequence[str] | None


def modules(device: str, only: Names = None, sides: dict[str, int] | None = None, visits: int | None = None) -> Records:
    """Time, operations and agreement of every module; `sides` replaces the inputs' sides, and short calls are then not
    repeated; `visits` replaces their number."""
    for dtype in dtypes(device):
        rate = measure.peak_rate(device, dtype, 256 if sides else None)
        yield Record("modules", MACHINE, "flop/s", rate, dtype=name_of(dtype))
    yield Record("modules", MACHINE, "byte/s", measure.bandwidth(device, measure.IN_CACHE[device]))
    yield Record("modules", MACHINE, "byte/s beyond cache", measure.bandwidth(device, measure.BEYOND_CACHE))
    yield Record("modules", MACHINE, "exponential/s", measure.exponential_rate(device))
    wanted = itertools.product(only or names("modules", device), dtypes(device), ("forward", "both"))
    compared = [
        Comparison(name, mode, device, dtype, dict.fromkeys(CASES[name].forms), (sides or {}).get(name))
        for name, dtype, mode in wanted
    ]
    visit_all(compared, visits or VISITS[device], APART[device])
    for comparison in compared:
        yield from comparison.records("modules")
        yield from _counted(comparison)


class Comparison:
    """Forms of a case, by turns, in one mode.

    forms: their names, as of `Record`, and bounds of the scores held at a time, None being the module's own
    side: other than the case's own; short calls are then not repeated
    """

    def __init__(
        self,
        name: str,
        mode: str,
        device: str,
        dtype: torch.dtype,
        forms: dict[str, int | None],
        side: int | None = None,
    ):
        self.name, self.mode, self.device, self.dtype, self.forms = name, mode, device, dtype, forms
        self.side = side or CASES[name].shape[3]
        self.repeats, self.enough = REPEATS[device], 0.0 if side else ENOUGH[device]
        self.record = partial(Record, case=name, mode=mode, dtype=name_of(dtype), side=self.side)
        self.rounds: list[dict[str, float]] = []
        self.apart: list[dict[str, float]] = []

    def visit(self, apart: int = 0) -> None:
        """Start the forms and measure some rounds, as many in each visit; then the parts of `apart` calls of ours."""
        with contextlib.ExitStack() as running:
            started = {
                form: running.enter_context(
                    FORM[self.device](self.name, base(form), self.mode, self.side, name_of(self.dtype), max_scores)
                )
                for form, max_scores in self.forms.items()
            }
            seconds = {form: process.seconds for form, process in started.items()}
            say = _say(f"{self.name}, {self.mode}, {name_of(self.dtype)}")
            rounds = measure.by_turns(seconds, self.repeats, LIMIT, self.enough, say)
            self.apart += [started["ours"].apart() for _ in range(apart)]
        self.rounds += rounds
        self.repeats, self.enough = len(rounds), 0.0  # no visit, fast or slow, weighs more than another

    def records(self, part: str) -> Records:
        """Seconds of every round, and where ours spent them."""
        for repeat, spent in enumerate(self.apart):
            for where, value in spent.items():
                yield self.record(part, quantity=f"spent, {where}", value=value, form="ours", repeat=repeat)
        for form in self.forms:
            for repeat, found in enumerate(self.rounds):
                yield self.record(part, quantity="seconds", value=found[form], form=form, repeat=repeat)


def visit_all(compared: Sequence[Comparison], visits: int, apart: int = 0) -> None:
    """Visit one comparison after the other, and all of them again."""
    for _, comparison in itertools.product(range(visits), compared):
        comparison.visit(apart)


def base(form: str) -> str:
    """The form of a case, without what is said of its blocks."""
    return form.split(",")[0]


def _counted(comparison: Comparison) -> Records:
    """The work of one more call of each form, and how far its results are from the reference's."""
    case, device = CASES[comparison.name], comparison.device
    module, inputs = case.module(device), case.inputs(comparison.side, device=device)
    with measure.precision(device, comparison.dtype):
        counted = {
            form: measure.counted(partial(call, function, module, inputs, comparison.mode))
            for form, function in case.forms.items()
        }
    for form, (outputs, work) in counted.items():
        difference = max(map(measure.relative_difference, outputs, counted["reference"][0]))
        for quantity, value in {"difference": difference, **work._asdict()}.items():
            yield comparison.record("modules", quantity=quantity, value=value, form=form)


def memory(device: str, only: Names = None) -> Records:
    """What every module holds at most beyond its weights and inputs, each form in a process of its own."""
    for name in only or names("memory", device):
        forms = [*CASES[name].forms, FEWEST]
        for form, kind, mode in itertools.product(forms, map(name_of, dtypes(device)), ("forward", "both")):
            progress.show(f"{name}, {mode}, {kind}: memory of {form}")
            max_scores = 1 if form == FEWEST else None
            [found] = in_process("held", name, base(form), mode, [None], kind, max_scores)
            yield Record("memory", name, "bytes", found["growth"], form, mode, kind, found["side"])


def bounded(power: int) -> str:
    """The form of ours that holds at most 2^power scores at a time."""
    return f"ours, 2^{power} scores"


def blocks(device: str, only: Names = None, side: int | None = None, visits: int | None = None) -> Records:
    """Time and memory of a forward pass against the bound of the scores held at a time."""
    compared = []
    for name in only or names("blocks", device):
        forms = {"reference": None, "ours": None, **{bounded(power): 2**power for power in BLOCKS[name]}}
        compared.append(Comparison(name, "forward", device, torch.float32, forms, side))
    visit_all(compared, visits or VISITS[device])
    for comparison in compared:
        yield from comparison.records("blocks")
        for form, max_scores in comparison.forms.items():
            progress.show(f"{comparison.name}: memory of {form}")
            arguments = (comparison.name, base(form), "forward", [side], "float32", max_scores)
            [found] = in_process("held", *arguments)
            yield comparison.record("blocks", quantity="bytes", value=found["growth"], form=form)


def sizes(device: str, only: Names = None, sides: Sequence[int] = SIDES) -> Records:
    """Time and memory of a forward pass on one image against its side, for ours also with small blocks."""
    for name in only or names("sizes", device):
        forms = {"ours": None, "reference": None}
        if name in BLOCKS:
            forms["ours, small blocks"] = SMALL_BLOCKS
        for form, max_scores in forms.items():
            progress.show(f"{name}: {form} against the side of the image")
            for found in in_process("held", name, base(form), "forward", list(sides), "float32", max_scores):
                yield Record("sizes", name, "seconds", found["seconds"], form, "forward", side=found["side"])
                yield Record("sizes", name, "bytes", found["growth"], form, "forward", side=found["side"])


def networks(device: str, only: Names = None, side: int = IMAGE, options: dict[str, dict] = NETWORKS) -> Records:
    """Time and memory of full-size networks that restore one image in one piece, their attention global."""
    for name in only or options:
        progress.show(f"{name} at full size on {side} x {side} pixels")
        [found] = in_process("restore", name, side, options[name])
        for quantity in ("seconds", "resident", "growth"):
            yield Record("networks", name, quantity, found[quantity], "ours", "forward", side=side)


def steps(device: str, only: Names = None, repeats: int = 25) -> Records:
    """One training step of the experiments' networks, their modules ours and references, as they train: on one thread
    with memory that stays, on a GPU those of the profile `gpu`.

    Experiments with the same network and crops are measured once, under the first one's name; networks without a module
    that has a reference are left out.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    measure.keep_freed()
    yield Record("steps", MACHINE, "flop/s", measure.peak_rate(device, step_dtype(device)))
    groups: dict[str, list[params.Experiment]] = {}
    for chosen in map(study(device).experiment, only or names("steps", device)):
        if not params.missing(chosen):
            groups.setdefault(_step_key(chosen), []).append(chosen)
    for chosen, *others in groups.values():
        ours = experiments.network(chosen).to(device).train()
        forms = {"ours": ours, "reference": with_references(ours)}
        if not has_references(forms["reference"]):
            continue
        yield from _step(chosen, forms, device, repeats)
        steps = sum(each.budget.steps * len(each.seeds) for each in [chosen, *others])
        yield Record("steps", chosen.name, "steps", steps)
    torch.set_num_threads(threads)


def study(device: str) -> params.Params:
    """The experiments whose steps are measured."""
    return params.Params(profile="gpu" if device == "cuda" else None)


def _step_key(chosen: params.Experiment) -> str:
    scale = chosen.task.degradation.scale
    return str((chosen.model, chosen.options, chosen.task.colors, scale, chosen.budget.batch, chosen.budget.crop))


def _step(chosen: params.Experiment, forms: dict[str, nn.Module], device: str, repeats: int) -> Records:
    name, side, batch = chosen.name, chosen.budget.crop, images(chosen, device)
    trainings = {form: training_step(network, chosen, *batch, device) for form, network in forms.items()}
    for form, training in trainings.items():
        work = measure.counted(training)[1]
        yield Record("steps", name, "flops", work.flops, form, "step", side=side)
    timed = {form: partial(measure.seconds, training, device) for form, training in trainings.items()}
    for repeat, found in enumerate(measure.by_turns(timed, repeats, STEPS_LIMIT, say=_say(name))):
        for form, seconds in found.items():
            yield Record("steps", name, "seconds", seconds, form, "step", side=side, repeat=repeat)
    yield Record("steps", name, "images", chosen.budget.batch)


def step_dtype(device: str) -> torch.dtype:
    return torch.bfloat16 if device == "cuda" else torch.float32


def images(chosen: params.Experiment, device: str) -> tuple[Tensor, Tensor]:
    """A batch of the experiment: noise that stands for degraded and for clean crops."""
    budget, scale = chosen.budget, chosen.task.degradation.scale
    generator = torch.Generator().manual_seed(0)
    sides = (budget.crop // scale, budget.crop)
    shapes = [(budget.batch, chosen.task.colors, side, side) for side in sides]
    degraded, clean = (torch.rand(shape, generator=generator).to(device) for shape in shapes)
    return degraded, clean


def training_step(
    network: nn.Module, chosen: params.Experiment, degraded: Tensor, clean: Tensor, device: str
) -> Callable[[], None]:
    """A step as in lib/training.py, on a batch that stays; every loss inside the network has begun."""
    network.start_step(0.999, torch.Generator().manual_seed(0))
    how = chosen.recipe.optimiser
    optimiser = OPTIMISERS[how.name](network.parameters(), lr=1e-6, betas=how.betas, weight_decay=how.weight_decay)

    def step() -> None:
        with measure.precision(device, step_dtype(device)):
            restored = network(degraded)
        loss = F.mse_loss(restored.float(), clean) + network.auxiliary_loss()
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), chosen.recipe.clip or torch.inf)
        optimiser.step()

    return step


def names(part: str, device: str) -> list[str]:
    """What a part measures, and can be restricted to."""
    if part == "steps":
        return list(study(device).experiments)
    return list({"blocks": BLOCKS, "networks": NETWORKS}.get(part, CASES))


PARTS: dict[str, Callable[[str, Names], Records]] = {
    "modules": modules,
    "memory": memory,
    "blocks": blocks,
    "sizes": sizes,
    "networks": networks,
    "steps": steps,
}


def dtypes(device: str) -> tuple[torch.dtype, ...]:
    return (torch.float32, torch.bfloat16) if device == "cuda" else (torch.float32,)


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _say(title: str) -> Callable[[str], None]:
    return lambda line: progress.show(f"{title}: {line}")
