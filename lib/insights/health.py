"""Does an attention module act on photographs, or could a constant stand in its place?

A claim about a module that does not act is not tested. Measured on the fields (tiles) that the evaluation restores.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import pandas as pd
import torch
from torch import Tensor, nn

from .. import insights
from ..models.blocks import Attention

#: A module is inactive if its spatial mean in its place loses less, in dB on average over photographs, ...
SMALLEST_LOSS = 0.005

#: ... or if one and the same key is the largest for more than this share of the queries, in every head.
LARGEST_SHARE = 0.5

#: Numbers of queries and of tiles of a photograph whose weights are measured, both evenly spaced.
QUERIES, TILES = 256, 4

#: A network of more attention modules has them replaced all at once, class by class.
MANY = 8

#: Output of an attention module, as `Attention` says.
Output = Tensor | tuple[Tensor | None, ...]

#: Columns of `measure`; some of them are each head's own.
PER_HEAD = ["effective_keys", "effective_share", "same_largest"]
COLUMNS = ["module", "head", "variation", *PER_HEAD, "psnr_lost_mean", "psnr_lost_zero"]


def measure(
    network: nn.Module,
    restore: Callable[[], Tensor],
    psnr: Callable[[Tensor], float],
    weights: Callable[..., Tensor | None] = insights.weights,
) -> pd.DataFrame:
    """Measure each attention module while `restore` restores one photograph with the network; `psnr` rates the result.

    A row for each module and head, in the network's order; head is missing for a module without weights.

    variation: spatial standard deviation over root mean square of the added tensor; 0 for a constant, or nothing
    effective_keys, effective_share: exponential of the entropy of a query's weights, the median over queries, and its
        share of the keys of the field
    same_largest: share of the queries whose largest key is the most frequent one
    psnr_lost_mean, psnr_lost_zero: dB lost where the added tensor is replaced by its spatial mean, by zero
    """
    modules = insights.attentions(network)
    seen = {name: _Seen() for name in modules}
    with insights.hooked(modules, lambda name, module, x, y: seen[name].add(module, x, y)):
        whole = psnr(restore())
    rows: list[dict] = []
    for group, names in groups(modules).items():
        of_module = {"module": group, "variation": sum(seen[name].variation for name in names) / len(names)}
        for kind, factor in (("mean", 1.0), ("zero", 0.0)):
            stand_ins = {name: _StandIn(modules[name], seen[name].means, factor) for name in names}
            with _replaced(network, stand_ins):
                of_module[f"psnr_lost_{kind}"] = whole - psnr(restore())
        found = [w for name in names for w in seen[name].concentrations(modules[name], weights)]
        heads = torch.stack(found).mean(0).tolist() if found else [[float("nan")] * len(PER_HEAD)]
        for head, values in enumerate(heads):
            rows.append(of_module | {"head": head if found else None} | dict(zip(PER_HEAD, values, strict=True)))
    return pd.DataFrame(rows, columns=COLUMNS)


def groups(modules: Mapping[str, Attention]) -> dict[str, list[str]]:
    """Names of the modules that are replaced together, by the name that they have in the table."""
    together: dict[str, list[str]] = {}
    for name, module in modules.items():
        together.setdefault(name if len(modules) <= MANY else type(module).__name__, []).append(name)
    return together


def over_photographs(tables: list[pd.DataFrame]) -> pd.DataFrame:
    """The mean of the tables of several photographs."""
    rows = pd.concat(tables)
    return rows.groupby(["module", "head"], sort=False, dropna=False, as_index=False).mean()


def acts(table: pd.DataFrame) -> pd.Series:
    """Whether each module of each seed acts, indexed by (seed, module), for a table like acts.csv."""
    modules = table.groupby(["seed", "module"], sort=False)
    on_one_key = modules.same_largest.min() > LARGEST_SHARE  # False for a module without weights
    return (modules.psnr_lost_mean.first() >= SMALLEST_LOSS) & ~on_one_key


def describe(table: pd.DataFrame) -> str:
    """The column "acts" of a report, for a row's acts.csv: yes, no, or how many of the modules of all seeds act."""
    found = acts(table)
    if not len(found):
        return "no attention"
    if found.all() or not found.any():
        return "yes" if found.all() else "no"
    return f"{found.sum()} of {len(found)}"


def tested(table: pd.DataFrame) -> bool:
    """Whether a claim about the row's attention is tested: in more than half of the seeds at least one module acts.

    A row without attention makes no such claim.
    """
    return not len(table) or bool(acts(table).groupby(level="seed").any().mean() > 0.5)


def concentration(weights: Tensor) -> Tensor:
    """PER_HEAD of weights ``(heads, Q, keys)``: ``(heads, 3)``.

    A query whose weights are all zero has no key; where none has one, they count as having the same. Keys of equal
    weight share a query.
    """
    weights = weights.float()
    total = weights.sum(2, keepdim=True)
    shares = weights / total.clamp_min(torch.finfo(torch.float32).tiny)
    has_key = total[..., 0] > 0
    effective = torch.special.entr(shares).sum(2).exp() * has_key
    median = effective.median(1).values
    count, keys = weights.shape[1:]
    is_largest = (weights == weights.amax(2, keepdim=True)) & has_key[..., None]
    votes = is_largest / is_largest.sum(2, keepdim=True).clamp_min(1)
    same = torch.where(has_key.any(1), votes.sum(1).amax(1) / count, 1.0)
    return torch.stack([median, median / keys, same], 1).cpu()


@dataclass
class _Seen:
    """The inputs of a module, and its additions to its identity, in each of its calls (tiles)."""

    inputs: list[tuple[Tensor, ...]] = field(default_factory=list)
    means: list[list[Tensor | None]] = field(default_factory=list)  # over space, in the shape of the added tensors
    variance: float = 0.0
    power: float = 0.0

    def add(self, module: Attention, inputs: tuple[Tensor, ...], output: Output) -> None:
        terms = output if isinstance(output, tuple) else (output - module.identity(*inputs),)
        self.inputs.append(inputs)
        self.means.append([None if t is None else t.mean((2, 3), keepdim=True).expand_as(t) for t in terms])
        for term, mean in zip(terms, self.means[-1], strict=True):
            if term is not None and mean is not None:
                self.variance += float((term - mean).float().square().mean())
                self.power += float(term.float().square().mean())

    @property
    def variation(self) -> float:
        return (self.variance / self.power) ** 0.5 if self.power else 0.0

    @torch.inference_mode()
    def concentrations(self, module: Attention, weights: Callable) -> list[Tensor]:
        """PER_HEAD of some of the calls, none for a module without weights."""
        found = []
        for index in torch.linspace(0, len(self.inputs) - 1, min(TILES, len(self.inputs))).long().tolist():
            x, *others = (tensor[:1] for tensor in self.inputs[index])
            count = insights.query_count(module, x)
            some = torch.linspace(0, count - 1, min(count, QUERIES), device=x.device).long()
            of_tile = weights(module, x, some, *others)
            if of_tile is not None:
                found.append(concentration(of_tile))
        return found


class _StandIn(nn.Module):
    """In a module's place: its identity plus, call after call, the means that it added, times a factor."""

    def __init__(self, module: Attention, means: Sequence[Sequence[Tensor | None]], factor: float):
        super().__init__()
        self.module, self.means, self.factor = module, iter(means), factor

    def __getattr__(self, name: str):
        """Every other attribute that a network reads from the module."""
        return getattr(super().__getattr__("module"), name) if name != "module" else super().__getattr__(name)

    def forward(self, *inputs: Tensor) -> Output:
        terms = tuple(None if mean is None else self.factor * mean for mean in next(self.means))
        if len(terms) > 1 or terms[0] is None:
            return terms
        return self.module.identity(*inputs) + terms[0]


@contextlib.contextmanager
def _replaced(network: nn.Module, stand_ins: Mapping[str, nn.Module]) -> Iterator[None]:
    kept = {name: network.get_submodule(name) for name in stand_ins}
    try:
        for name, module in stand_ins.items():
            network.set_submodule(name, module)
        yield
    finally:
        for name, module in kept.items():
            network.set_submodule(name, module)
