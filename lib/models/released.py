"""How the tensors of a network released by its authors become those of ours: the parts of a model's `official.py`.

A folder ``lib/models/<m>/`` with released weights has a file `official.py` that defines `SYSTEMS`, a `System` by
name. Names and shapes are those of the released code.
"""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .blocks import DIV2K_MEAN

State = Mapping[str, Tensor]
Substitutions = tuple[tuple[str, str | Callable[[re.Match], str]], ...]


class OfficialError(ValueError):
    """A file is no checkpoint, or its tensors are not those of the system's network."""


@dataclass(frozen=True)
class System:
    """How a released network's tensors become ours.

    scales: for which checkpoints exist or could exist
    options: options of our network, from a state dict
    names: substitutions that, one after the other, make the released name of ours
    stacked: placeholders in a name so made, with what stands for them, the first varying slowest
    flat: parts of names of layers on flattened patches, (channel, row, column), where ours convolves
    copies: substitutions that make the second name of a tensor registered twice
    constants: released tensors that our network holds as constants, from the options; on "meta" where the value is free
    optional: whether a further tensor may be in the file
    """

    scales: tuple[int, ...]
    options: Callable[[State], dict]
    names: Substitutions = ()
    stacked: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    flat: tuple[str, ...] = ()
    copies: Substitutions = ()
    constants: Callable[[dict], dict[str, Tensor]] = lambda options: {}
    optional: Callable[[str, Tensor, dict], bool] = lambda name, tensor, options: False

    def sources(self, name: str) -> list[str]:
        """The released tensors that make our tensor `name`."""
        found = [substitute(self.names, name)]
        for placeholder, values in self.stacked.items():
            if placeholder in found[0]:
                found = [source.replace(placeholder, value) for source in found for value in values]
        return found

    def source_shape(self, source: str, own: Tensor, count: int) -> tuple[int, ...]:
        """Shape of one of `count` released tensors that make our tensor `own`."""
        shape = (own.shape[0] // count, *own.shape[1:])
        is_flat = len(shape) > 1 and any(part in source for part in self.flat)
        return (shape[0], math.prod(shape[1:])) if is_flat else shape


def substitute(substitutions: Substitutions, name: str) -> str:
    for pattern, replacement in substitutions:
        name = re.sub(pattern, replacement, name)
    return name


def renumbered(template: str, number: Callable[[int], int]) -> Callable[[re.Match], str]:
    """Replacement by `template`, its % the matched number through `number`."""
    return lambda match: template.replace("%", str(number(int(match[1]))))


def from_one(template: str) -> Callable[[re.Match], str]:
    """Replacement where the released code counts from one."""
    return renumbered(template, lambda index: index + 1)


def without_activations(template: str) -> Callable[[re.Match], str]:
    """Replacement where the released code does not count the activations between layers."""
    return renumbered(template, lambda index: index // 2)


# The network that a state dict describes. Most of the tensors that share a size decide it, and blocks are counted by
# consecutive indices from 0: a tensor that is missing, misshaped or superfluous is then named in an error.


def size(state: State, *axes: tuple[str, int]) -> int:
    """The most frequent length of axes of tensors."""
    lengths = [state[name].shape[axis] for name, axis in axes if name in state and axis < state[name].ndim]
    if not lengths:
        raise OfficialError(f"missing: {', '.join(dict.fromkeys(name for name, _ in axes))}")
    return statistics.mode(lengths)


def count(state: State, prefix: str, step: int = 1, first: int = 0) -> int:
    """Number of consecutive indices after `prefix`, in steps of `step`, from `first`."""
    pattern = re.compile(re.escape(prefix) + r"(\d+)\.")
    indices = {int(match[1]) // step - first for match in map(pattern.match, state) if match}
    return next(i for i in range(len(indices) + 1) if i not in indices)


def upsampling(state: State, layer: str, width: int, factors: Sequence[int] = (2, 3)) -> int:
    """The factor of one sub-pixel convolution, to images of `width` channels."""
    for name in (f"{layer}.bias", f"{layer}.weight"):
        for factor in factors:
            if name in state and state[name].shape[:1] == (factor**2 * width,):
                return factor
    if f"{layer}.weight" not in state:
        raise OfficialError(f"missing: {layer}.weight")
    shape = tuple(state[f"{layer}.weight"].shape)
    raise OfficialError(
        f"misshaped: {layer}.weight {shape}, expected {' or '.join(str(f**2 * width) for f in factors)} outputs"
    )


def sizes(state: State, tail: str) -> dict:
    """Colours and width of a trunk, from its first and last layers."""
    return {
        "colors": size(state, ("head.0.weight", 1), (f"{tail}.bias", 0), (f"{tail}.weight", 0)),
        "width": size(state, ("head.0.bias", 0), ("head.0.weight", 0), (f"{tail}.weight", 1)),
    }


def plain_options(state: State) -> dict:
    """Trunk at the input's size; besides its residual blocks it has one attention module and one convolution."""
    return {**sizes(state, "tail.0"), "blocks": max(0, count(state, "body.") - 2)}


def enlarging_options(state: State) -> dict:
    """EDSR's trunk with upsampler, otherwise as `plain_options`."""
    found = sizes(state, "tail.1")
    twice = any(name.startswith("tail.0.2.") for name in state)
    scale = 4 if twice else upsampling(state, "tail.0.0", found["width"])
    return {**found, "scale": scale, "blocks": max(0, count(state, "body.") - 2)}


def shifts(value_range: float) -> dict[str, Tensor]:
    """The mean shifts of a network on colours in [0, value_range]."""
    mean = value_range * torch.tensor(DIV2K_MEAN)
    eye = torch.eye(3).view(3, 3, 1, 1)
    return {"sub_mean.weight": eye, "sub_mean.bias": -mean, "add_mean.weight": eye, "add_mean.bias": mean}


FIRST_AND_LAST = (r"^(head|tail)\.", r"\1.0.")
WITH_UPSAMPLER = ((r"^head\.", "head.0."), (r"^tail\.", "tail.1."), (r"^upsampler\.", "tail.0."))
